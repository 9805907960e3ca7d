//! What programs ask for of the cache itself: to bring files into it, and to drop them.
//!
//! A span is brought in parts that the source is asked for side by side, and no thread waits for the whole: the last
//! part answers. Evicting asks the source for nothing.

use super::Overlay;
use super::handles::OpenFile;
use super::inodes::NodeId;
use crate::ask::{About, Evicted, Warmed};
use crate::cache::{Compared, FileId, Found, Trust};
use crate::error::Result;
use crate::span::Span;
use crate::workers::Pool;
use parking_lot::Mutex;
use std::path::Path;
use std::sync::Arc;

/// One request to the source: what sources usually take at once (sshfs, and NFS in many settings), and small enough that
/// a span of [`crate::ask::SPAN_MAX`] keeps all background requests of a mount busy.
const PART: u64 = 128 << 10;

/// Comparisons of one file can overtake one another, and writes a comparison; then it is made again, so often.
const COMPARE_TRIES: u32 = 3;

/// A span that is being brought, shared by its parts. When they were dropped, because the mount ends, so is who is to be
/// told.
struct Warming<F> {
    overlay: Arc<Overlay>,
    open: Arc<OpenFile>,
    so_far: Mutex<(Result<Warmed>, F)>,
}

impl<F: FnOnce(Result<Warmed>) + Send + 'static> Warming<F> {
    /// Compare the file with the source once for all parts, then read them.
    fn compare(self: Arc<Self>, parts: Vec<Span>, pool: &Pool) {
        match self.overlay.compare_to_warm(&self.open) {
            Ok(compared) => self.split(parts, compared, pool),
            Err(error) => {
                self.so_far.lock().0 = Err(error);
                self.finish();
            }
        }
    }

    fn split(self: Arc<Self>, parts: Vec<Span>, compared: Compared, pool: &Pool) {
        for part in parts {
            let warming = self.clone();
            pool.submit(self.open.node.0, move || warming.read(part, compared));
        }
        self.finish();
    }

    fn read(self: Arc<Self>, part: Span, compared: Compared) {
        let read = warm_part(&self.open, part, compared);
        let mut guard = self.so_far.lock();
        let (so_far, _) = &mut *guard;
        match (so_far.as_mut(), read) {
            (Ok(so_far), Ok(warmed)) => {
                so_far.cached += warmed.cached;
                so_far.fetched += warmed.fetched;
            }
            (Ok(_), Err(error)) => *so_far = Err(error),
            (Err(_), _) => {}
        }
        drop(guard);
        self.finish();
    }

    /// One less works on it.
    fn finish(self: Arc<Self>) {
        if let Some(whole) = Arc::into_inner(self) {
            let (result, done) = whole.so_far.into_inner();
            done(result);
        }
    }
}

impl Overlay {
    /// Bring `span` of an open file into the cache, then call `done`. `pool` serves when there is no pool for requests
    /// ahead of programs.
    pub fn warm(
        self: &Arc<Self>,
        handle: u64,
        span: Span,
        pool: &Pool,
        done: impl FnOnce(Result<Warmed>) + Send + 'static,
    ) {
        let open = match self.files.get(handle) {
            Ok(open) => open,
            Err(error) => return done(Err(error)),
        };
        let id = open.file.id();
        let end = self.cache.version(id).map(|version| version.size);
        let mut cached = 0;
        let mut missing = Vec::new();
        for part in parts(span.clip(end.unwrap_or(u64::MAX))) {
            match open.file.hit(part, Trust::Ttl) {
                Some(hit) => cached += hit.pieces.len() as u64,
                None => missing.push(part),
            }
        }
        let warming = Arc::new(Warming {
            overlay: self.clone(),
            open,
            so_far: Mutex::new((Ok(Warmed { cached, fetched: 0 }), done)),
        });
        let pool = self.background().unwrap_or(pool).clone();
        if missing.is_empty() || self.cache.is_trusted(id) {
            return warming.split(missing, Compared::Same, &pool);
        }
        let key = warming.open.node.0;
        let parts_pool = pool.clone();
        pool.submit(key, move || warming.compare(missing, &parts_pool));
    }

    /// A read after a comparison that was overtaken leaves nothing in the cache: try until one is not.
    fn compare_to_warm(&self, open: &OpenFile) -> Result<Compared> {
        let before = self.cache.version(open.file.id());
        let mut compared = Compared::Unsettled;
        for _ in 0..COMPARE_TRIES {
            if compared == Compared::Unsettled {
                compared = open.file.compare(true)?;
            }
        }
        if before.is_some() && self.cache.version(open.file.id()) != before {
            self.note_compared(open.node, Compared::Changed);
        }
        Ok(compared)
    }

    /// Bytes from the start of the file `id` that are cached and believed: `size` or none.
    pub fn held_bytes(&self, id: NodeId, size: u64) -> u64 {
        let Some(file) = self.inodes.lock().get(id).map(|node| node.file) else {
            return 0;
        };
        match self.cache.get(file, Span::new(0, size), Trust::Ttl) {
            Found::Hit(hit) => hit.pieces.len() as u64,
            Found::Miss => 0,
        }
    }

    /// Drop what is cached of the file `id`, or of all below the directory `id`: contents, attributes, listings, and
    /// the kernel's pages. Open files go on, and what is read next comes from the source.
    pub fn evict(&self, id: NodeId) -> Evicted {
        let mut evicted = Evicted::default();
        let (path, is_dir) = {
            let inodes = self.inodes.lock();
            let kind = inodes.get(id).map(|node| node.kind);
            (inodes.path(id), kind == Some(crate::sys::S_IFDIR))
        };
        let mut nodes = vec![id];
        // This ends although names may be confused for a moment: a directory is left without known children.
        while let Some(id) = nodes.pop() {
            let file = {
                let mut inodes = self.inodes.lock();
                let children = inodes.get(id).map(|node| node.children.values());
                nodes.extend(
                    children
                        .into_iter()
                        .flatten()
                        .filter_map(|child| child.node),
                );
                inodes.expire(id)
            };
            if let Some(file) = file {
                self.evict_file(file, &mut evicted);
                self.invalidate_content(id);
            }
        }
        if is_dir {
            self.evict_strays(&path, &mut evicted);
        }
        evicted
    }

    /// Files whose nodes were forgotten, to stay under the limit, while their contents were kept.
    fn evict_strays(&self, dir: &Path, evicted: &mut Evicted) {
        for file in self.cache.files_below(dir) {
            self.evict_file(file, evicted);
        }
    }

    fn evict_file(&self, file: FileId, evicted: &mut Evicted) {
        let bytes = self.cache.evict(file);
        evicted.bytes += bytes;
        evicted.files += u64::from(bytes > 0);
    }

    /// For programs that ask.
    pub fn about(&self) -> About {
        About {
            bytes_max: self.cache.bytes_max(),
            bytes_pinned: self.cache.bytes_pinned(),
        }
    }
}

/// Read `part` through the cache of a file that was `compared` just now.
fn warm_part(open: &OpenFile, part: Span, compared: Compared) -> Result<Warmed> {
    let mut warmed = Warmed::default();
    match open.file.hit(part, Trust::Any) {
        Some(hit) if compared != Compared::Unsettled => warmed.cached = hit.pieces.len() as u64,
        _ => warmed.fetched = open.file.read_exactly(part, compared)?.len() as u64,
    }
    Ok(warmed)
}

/// `span`, cut where multiples of [`PART`] are.
fn parts(span: Span) -> impl Iterator<Item = Span> {
    let mut at = span.pos;
    std::iter::from_fn(move || {
        let end = (at / PART + 1).saturating_mul(PART).min(span.end());
        let part = Span::between(at, end);
        at = end;
        (!part.is_empty()).then_some(part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_cut_where_others_cut_them_too() {
        let cut = |pos, size| parts(Span::new(pos, size)).collect::<Vec<_>>();
        assert_eq!(cut(0, 0), []);
        assert_eq!(cut(0, PART), [Span::new(0, PART)]);
        assert_eq!(
            cut(PART - 1, PART + 2),
            [
                Span::new(PART - 1, 1),
                Span::new(PART, PART),
                Span::new(2 * PART, 1)
            ]
        );
        assert_eq!(cut(u64::MAX - 1, 9), [Span::new(u64::MAX - 1, 1)]);
    }
}
