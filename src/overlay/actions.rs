//! What plugins ask for, done to the files of a mount.
//!
//! Actions run on I/O workers, because they may wait for the source; the plugin is not answered. Prefetching runs where all
//! requests ahead of programs do, so it never keeps programs from the source. It takes turns there with the files that are
//! read ahead of (its pool key is one).

use super::inodes::NodeId;
use super::{Entry, Overlay};
use crate::error::{Error, Result};
use crate::hooks::{Act, Action};
use crate::prefetch::UNIT;
use crate::span::Span;
use crate::workers::Pool;
use crossbeam_channel::{Receiver, Sender};
use nix::errno::Errno;
use std::ffi::OsStr;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// Actions that are under way; a plugin that asks for more waits.
const UNDER_WAY_MAX: usize = 64;

/// So long, then its action is refused: the source does not answer.
const WAIT_MAX: Duration = Duration::from_secs(5);

/// Keys of the pools; no node has these numbers. What is quick stays among the workers, so that a fetch that hangs at the
/// source does not keep a plugin from evicting or pinning.
const PREFETCH_KEY: u64 = u64::MAX;
const QUICK_KEY: u64 = u64::MAX - 1;

/// Does what plugins ask for.
pub struct Actor {
    overlay: Weak<Overlay>,
    pool: Pool,
    /// A place is taken by sending, and given back by receiving.
    places: (Sender<()>, Receiver<()>),
}

/// What goes wrong is told to the plugin's log.
type Fail = Box<dyn FnOnce(String) + Send>;

struct Place(Receiver<()>);

impl Drop for Place {
    fn drop(&mut self) {
        // There is what we sent.
        let _ = self.0.try_recv();
    }
}

impl Actor {
    /// For the files of `overlay`, on the workers of `pool`.
    pub fn new(overlay: &Arc<Overlay>, pool: Pool) -> Actor {
        Actor {
            overlay: Arc::downgrade(overlay),
            pool,
            places: crossbeam_channel::bounded(UNDER_WAY_MAX),
        }
    }
}

impl Act for Actor {
    fn act(&self, action: &Action, fail: Fail) {
        if self.places.0.send_timeout((), WAIT_MAX).is_err() {
            return fail(format!("{UNDER_WAY_MAX} actions are under way already"));
        }
        let place = Place(self.places.1.clone());
        let Some(overlay) = self.overlay.upgrade() else {
            return;
        };
        let background = overlay.background().unwrap_or(&self.pool);
        let (key, pool) = match action {
            Action::Prefetch(..) => (PREFETCH_KEY, background.clone()),
            _ => (QUICK_KEY, self.pool.clone()),
        };
        let (action, fetching) = (action.clone(), pool.clone());
        let doing = move || {
            let _place = place;
            if let Err(error) = overlay.act(&action, &fetching) {
                fail(error.errno().desc().to_owned());
            }
        };
        pool.submit(key, doing);
    }
}

impl Overlay {
    fn act(self: &Arc<Self>, action: &Action, pool: &Pool) -> Result<()> {
        let Some(path) = action.path() else {
            return Ok(());
        };
        let found = self.find(path)?;
        match action {
            Action::Prefetch(_, span) => self.prefetch(&found, *span, pool),
            Action::Evict(_) => {
                self.cache.evict(self.file_of(&found)?);
                self.invalidate_content(found.entry.node);
                Ok(())
            }
            Action::Invalidate(path) => {
                self.invalidate_all(found.entry.node, path);
                Ok(())
            }
            Action::Pin(path) => {
                let file = self.file_of(&found)?;
                if self.cache.pin(file, || path.clone()) {
                    Ok(())
                } else {
                    Err(Error::new(Errno::ENOSPC, "pin"))
                }
            }
            Action::Unpin(_) => {
                self.cache.unpin(self.file_of(&found)?);
                Ok(())
            }
            Action::Ack(_) => Ok(()),
        }
    }

    /// Walk down from the root, never through a symbolic link.
    fn find(self: &Arc<Self>, path: &Path) -> Result<Found> {
        let mut at: Option<Found> = None;
        for name in path.iter() {
            let parent = at.as_ref().map_or(NodeId::ROOT, |found| found.entry.node);
            let entry = self.lookup_any(parent, name)?;
            at = Some(Found {
                overlay: self.clone(),
                entry,
            });
        }
        at.ok_or(Error::new(Errno::EINVAL, "find"))
    }

    fn lookup_any(&self, parent: NodeId, name: &OsStr) -> Result<Entry> {
        match self.known_name(parent, name, crate::cache::Trust::Ttl) {
            Some(known) => known,
            None => self.lookup(parent, name),
        }
    }

    fn file_of(&self, found: &Found) -> Result<crate::cache::FileId> {
        if !found.entry.stat.is_file() {
            return Err(not_a_file(&found.entry));
        }
        let file = self
            .inodes
            .lock()
            .get(found.entry.node)
            .map(|node| node.file);
        file.ok_or(super::STALE)
    }

    /// Read a span of the file into the cache, in parallel steps; no more of it than half of the cache holds, which
    /// would push out what it brought.
    fn prefetch(self: &Arc<Self>, found: &Found, span: Option<Span>, pool: &Pool) -> Result<()> {
        if !found.entry.stat.is_file() {
            return Err(not_a_file(&found.entry));
        }
        let span = span.unwrap_or(Span::from(0)).clip(found.entry.stat.size);
        let span = Span::new(span.pos, span.size.min(self.cache.bytes_max() / 2));
        if span.is_empty() {
            return Ok(());
        }
        let file = Arc::new(self.file_to_read(found.entry.node)?);
        let mut at = span.pos;
        while at < span.end() {
            let step = Span::between(at, span.end().min(at.saturating_add(UNIT)));
            at = step.end();
            let file = file.clone();
            pool.submit(PREFETCH_KEY, move || {
                if let Err(error) = file.read_at(step) {
                    tracing::debug!("prefetch: {error}");
                }
            });
        }
        Ok(())
    }

    /// Forget content, attributes and names of `id`, here and in the kernel.
    fn invalidate_all(&self, id: NodeId, path: &Path) {
        let (file, names) = {
            let mut inodes = self.inodes.lock();
            let file = inodes.expire(id);
            let names = inodes.get(id).map(|node| node.names.clone());
            for (parent, name) in names.iter().flatten() {
                inodes.unlearn(*parent, name);
            }
            (file, names)
        };
        if let Some(file) = file {
            self.cache.forget(file);
            self.cache.distrust(file);
        }
        self.invalidate_content(id);
        if let Some(invalidate) = self.invalidate.get() {
            for (parent, name) in names.into_iter().flatten() {
                invalidate.entry(parent, name);
            }
        }
        tracing::debug!("forgot {}", path.display());
    }
}

/// An entry, given back when it is not needed any more.
struct Found {
    overlay: Arc<Overlay>,
    entry: Entry,
}

impl Drop for Found {
    fn drop(&mut self) {
        drop(self.overlay.forget(self.entry.node, 1));
    }
}

fn not_a_file(entry: &Entry) -> Error {
    let errno = if entry.stat.is_dir() {
        Errno::EISDIR
    } else {
        Errno::EINVAL
    };
    Error::new(errno, "act")
}
