//! Watched directories: what is known of them is believed until the system tells of a change.
//!
//! A directory is watched from the first question about its names on, and the watch is set before the question is asked,
//! so that no change falls between. It then vouches for its own attributes, for its names, and for the attributes and
//! contents of its entries, but for directories (which have watches of their own) and for files with several links, which
//! may be changed by a name elsewhere. Each [`Notice`] is heeded by asking the source about that one name: when it says
//! what is known already, as after each change of our own, nothing happens. Else memory and kernel are put right.
//!
//! Promises:
//! * An answer that is believed until told was asked for after the watch was set.
//! * A notice that meets a change of ours under way, or attributes too young for a second change to show, is put off, not
//!   dropped.
//! * When a watch or a notice is lost, nothing that depended on it is believed any more, here or in the kernel.

use super::attrs::Attr;
use super::inodes::{Inodes, Watch};
use super::{NodeId, Overlay, is_fresh};
use crate::cache::{Check, Compared, FileId, Version};
use crate::error::Error;
use crate::notices::{Notice, Notices};
use crate::sys::Stat;
use nix::errno::Errno;
use std::ffi::OsStr;
use std::sync::Arc;
use std::time::Duration;

/// A directory that could not be watched is tried again after this time: watches become free.
const TRY_AGAIN: Duration = Duration::from_secs(60);

/// Who tells of changes.
pub(super) struct Told {
    notices: Arc<Notices>,
    /// Also on other file systems that are mounted below the source's root.
    foreign: bool,
}

/// What was known of a name when a notice about it came.
struct Known {
    /// `None`: the name is not known; of `Some(None)` it is known that it is absent.
    child: Option<Option<NodeId>>,
    attr: Option<Attr>,
    file: Option<FileId>,
}

impl Overlay {
    /// Watch directories from now on; `foreign`: also on other file systems below. Somebody must [`Overlay::heed`] what
    /// `notices` bring. The first ones stay; a mount sets them once.
    pub fn set_notices(&self, notices: Arc<Notices>, foreign: bool) {
        // See above.
        let _ = self.notices.set(Told { notices, foreign });
    }

    /// Watch no longer.
    pub fn stop_notices(&self) {
        if let Some(told) = self.notices.get() {
            told.notices.stop();
        }
    }

    /// Before the source is asked about names in `dir`: watch it, if that has not been done.
    pub(super) fn vouch(&self, dir: NodeId) {
        let Some(told) = self.notices.get() else {
            return;
        };
        if !self.wants_watch(dir) {
            return;
        }
        // Whoever asks meanwhile waits for the watch: no entry has this name.
        let Some(_setting) = self.questions.begin(dir, OsStr::new("/")) else {
            return;
        };
        let (file, path, unwatched) = {
            let mut inodes = self.inodes.lock();
            let unwatched = inodes.take_unwatched();
            let home = inodes.get(NodeId::ROOT).map(|root| root.file.dev);
            let node = inodes.get(dir);
            let file = node.map(|node| node.file);
            let file = file.filter(|file| told.foreign || Some(file.dev) == home);
            (file, inodes.path(dir), unwatched)
        };
        for id in unwatched {
            told.notices.unwatch(id.0);
        }
        if !self.wants_watch(dir) {
            return;
        }
        if let Some(file) = file
            && let Ok(handle) = self.dir(dir)
        {
            told.notices.watch(dir.0, file, &*handle, &path);
        }
        let now = self.now();
        if let Some(node) = self.inodes.lock().get_mut(dir) {
            // It may be lost again by now, see `doubt`.
            node.watch = match told.notices.watches(dir.0) {
                true => Watch::Since(now),
                false => Watch::Refused(now),
            };
        }
    }

    fn wants_watch(&self, dir: NodeId) -> bool {
        let now = self.now();
        match self.inodes.lock().get(dir) {
            // Who unpacks a tree asks for each name once, and every file that he makes would raise a handful of events.
            Some(node) if node.fresh => false,
            Some(node) => match node.watch {
                Watch::No => true,
                Watch::Refused(then) => !is_fresh(then, now, TRY_AGAIN),
                Watch::Since(_) => false,
            },
            None => false,
        }
    }

    /// Put right what a notice shows to be wrong. May wait for the source.
    pub fn heed(&self, notice: &Notice) {
        let is_clear = match notice {
            Notice::Everything => {
                let all = self.inodes.lock().all();
                self.doubt(&all, false);
                true
            }
            Notice::Lost(dir) => {
                let tree = self.inodes.lock().tree(NodeId(*dir));
                self.doubt(&tree, true);
                true
            }
            Notice::Dir(dir) => self.heed_dir(NodeId(*dir)),
            Notice::Name(dir, name) => self.heed_name(NodeId(*dir), name),
        };
        if !is_clear && let Some(told) = self.notices.get() {
            told.notices.put_off(notice.clone());
        }
    }

    /// Believe nothing of these nodes any more. `lost`: those that are directories are not watched any more either.
    fn doubt(&self, nodes: &[NodeId], lost: bool) {
        for &id in nodes {
            let now = self.now();
            // First: who sets a watch meanwhile sees it gone, or is told below.
            if lost && let Some(told) = self.notices.get() {
                told.notices.unwatch(id.0);
            }
            let mut inodes = self.inodes.lock();
            let Some(node) = inodes.get_mut(id) else {
                continue;
            };
            match node.watch {
                Watch::Since(_) if lost => node.watch = Watch::No,
                Watch::Since(_) => node.watch = Watch::Since(now),
                _ => {}
            }
            let names: Vec<_> = node.children.keys().cloned().collect();
            let file = inodes.expire(id);
            drop(inodes);
            if let Some(file) = file {
                self.cache.distrust(file);
            }
            if let Some(invalidate) = self.invalidate.get() {
                for name in names {
                    invalidate.entry(id, name);
                }
                invalidate.attributes(id);
            }
        }
    }

    /// False: look again later.
    fn heed_dir(&self, id: NodeId) -> bool {
        let asked = self.question();
        let known = {
            let inodes = self.inodes.lock();
            if inodes.is_changed_since(id, asked.epoch) {
                // Ours; its end voids the attributes, and the kernel has voided its own.
                return true;
            }
            inodes.get(id).and_then(|node| node.attr)
        };
        // Nothing is believed, so nothing can be wrong.
        let Some(known) = known else {
            return true;
        };
        let Ok(stat) = self.dir(id).and_then(|dir| self.source.stat(&*dir, false)) else {
            self.inodes.lock().expire(id);
            self.tell_attributes(id);
            return true;
        };
        if Version::of(&known.stat) != Version::of(&stat) || known.stat.nlink != stat.nlink {
            let attr = self.answer(stat, &asked);
            self.inodes.lock().store_attr(id, attr, asked.epoch);
            self.tell_attributes(id);
        }
        true
    }

    fn tell_attributes(&self, id: NodeId) {
        if let Some(invalidate) = self.invalidate.get() {
            invalidate.attributes(id);
        }
    }

    /// False: look again later.
    fn heed_name(&self, dir: NodeId, name: &OsStr) -> bool {
        let Ok(handle) = self.dir(dir) else {
            let tree = self.inodes.lock().tree(dir);
            self.doubt(&tree, true);
            return true;
        };
        let asked = self.question();
        let known = self.known_of(dir, name);
        let held = known
            .file
            .filter(|file| self.cache.version(*file).is_some());
        let check = held.map(|file| self.cache.begin_check(file));
        let said = self.source.stat_at(&*handle, name, false);
        let stat = match said {
            Ok(stat) if self.own_device.get() == Some(&stat.dev) => return true,
            Ok(stat) => Some(stat),
            Err(error) if error.errno() == Errno::ENOENT => None,
            Err(error) => {
                self.forget_name(dir, name, error);
                return true;
            }
        };
        if let Some(stat) = stat
            && let Some(Some(id)) = known.child
            && self.inodes.lock().is_same_file(id, &stat)
        {
            let attr = self.answer(stat, &asked);
            return self.heed_attributes(id, known.attr, attr, (check, asked));
        }
        let mut inodes = self.inodes.lock();
        if is_as_known(&inodes, dir, name, known.child, stat.as_ref()) {
            return true;
        }
        if inodes.is_changed_since(dir, asked.epoch) {
            return false;
        }
        if let Some(node) = inodes.get_mut(dir) {
            node.listing = None;
        }
        let gone = known.child.flatten();
        match stat {
            None => inodes.set_child(dir, name, None, asked.at),
            Some(_) => inodes.unlearn(dir, name),
        }
        drop(inodes);
        if let Some(gone) = gone {
            self.heed_gone(gone);
        }
        if let Some(invalidate) = self.invalidate.get() {
            invalidate.entry(dir, name.to_owned());
        }
        true
    }

    fn known_of(&self, dir: NodeId, name: &OsStr) -> Known {
        let inodes = self.inodes.lock();
        let child = inodes.get(dir).and_then(|node| node.children.get(name));
        let child = child.map(|child| child.node);
        let node = child.flatten().and_then(|id| inodes.get(id));
        Known {
            child,
            attr: node.and_then(|node| node.attr),
            file: node.map(|node| node.file),
        }
    }

    fn forget_name(&self, dir: NodeId, name: &OsStr, error: Error) {
        tracing::debug!("looking at {} again: {error}", name.display());
        self.inodes.lock().unlearn(dir, name);
        if let Some(invalidate) = self.invalidate.get() {
            invalidate.entry(dir, name.to_owned());
        }
    }

    /// `id` has lost a name: moved, replaced or removed by somebody else.
    fn heed_gone(&self, id: NodeId) {
        if self.is_dir(id) {
            let tree = self.inodes.lock().tree(id);
            return self.doubt(&tree, true);
        }
        let mut inodes = self.inodes.lock();
        let file = inodes.get_mut(id).map(|node| {
            node.attr = None;
            node.file
        });
        inodes.mark_dead_if_nameless(id);
        drop(inodes);
        if let Some(file) = file {
            self.cache.distrust(file);
        }
        self.tell_attributes(id);
    }

    /// The name leads to the file `id` as before, which has these attributes. False: look again later.
    fn heed_attributes(
        &self,
        id: NodeId,
        known: Option<Attr>,
        attr: Attr,
        (check, asked): (Option<Check>, super::Asked),
    ) -> bool {
        let version = Version::of(&attr.stat);
        let is_content = attr.stat.is_file();
        if self.inodes.lock().is_changed_since(id, asked.epoch) {
            return false;
        }
        let compared = check.filter(|_| is_content);
        let compared = compared.map(|check| self.cache.finish_check(check, version));
        if compared == Some(Compared::Unsettled) {
            return false;
        }
        let same = known.is_some_and(|known| {
            Version::of(&known.stat) == version && known.stat.nlink == attr.stat.nlink
        });
        let Some(stored) = self.inodes.lock().store_attr(id, attr, asked.epoch) else {
            return false;
        };
        self.confirm(id, &stored);
        if compared == Some(Compared::Changed)
            || known.is_some_and(|k| moved_bytes(&k.stat, &attr.stat))
        {
            self.invalidate_content(id);
        } else if !same {
            self.tell_attributes(id);
        }
        // A second change within the tick would look the same: once more when the tick is over, if bytes are kept that were
        // read in it. (Our own writes are known without being read.)
        let seen_racy = |node: &super::inodes::Node| node.seen.is_some_and(|(_, racy)| racy);
        let keeps =
            self.cache.is_racy(version.id) || self.inodes.lock().get(id).is_some_and(seen_racy);
        !(is_content && keeps && attr.is_racy())
    }
}

fn moved_bytes(before: &Stat, after: &Stat) -> bool {
    before.is_file() && (before.size, before.mtime) != (after.size, after.mtime)
}

/// Is a name what the directory's names and listing say? (That it leads to the known file has been looked at.)
fn is_as_known(
    inodes: &Inodes,
    dir: NodeId,
    name: &OsStr,
    child: Option<Option<NodeId>>,
    stat: Option<&Stat>,
) -> bool {
    let names = match child {
        None => true,
        Some(known) => known.is_none() && stat.is_none(),
    };
    let is = stat.map(|stat| (stat.kind(), stat.ino));
    let listing = inodes.get(dir).and_then(|node| node.listing.as_ref());
    names && listing.is_none_or(|known| known.agrees(name, is))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backing::Source;
    use crate::cache::{Cache, Trust};
    use crate::clock::Clock;
    use crate::stats::Stats;
    use crate::sys::Caller;
    use bytes::Bytes;
    use std::time::Instant;

    const TTL: Duration = Duration::from_secs(600);

    struct Told {
        dir: tempfile::TempDir,
        overlay: Arc<Overlay>,
        notices: Arc<Notices>,
    }

    impl Told {
        fn new(watches_max: usize) -> Told {
            let dir = tempfile::tempdir_in("/var/tmp").expect("tempdir");
            std::fs::create_dir(dir.path().join("dir")).expect("mkdir");
            std::fs::write(dir.path().join("dir/f"), "old").expect("write");
            let stats = Arc::new(Stats::default());
            let source = Source::open(dir.path(), None, stats.clone()).expect("source");
            let cache = Cache::new(1 << 20, TTL, Clock::system(), stats);
            let limits = crate::config::limits(1024);
            let overlay = Overlay::new(Arc::new(source), Arc::new(cache), &limits);
            let overlay = Arc::new(overlay.expect("overlay"));
            let notices = Notices::start(dir.path(), watches_max).expect("watches");
            let notices = Arc::new(notices);
            overlay.set_notices(notices.clone(), false);
            let (heeding, coming) = (overlay.clone(), notices.clone());
            std::thread::spawn(move || {
                while let Some(notice) = coming.next() {
                    heeding.heed(&notice);
                }
            });
            Told {
                dir,
                overlay,
                notices,
            }
        }

        fn lookup(&self, parent: NodeId, name: &str) -> super::super::Entry {
            self.overlay.lookup(parent, name.as_ref()).expect("lookup")
        }

        /// Its size, if memory knows the name.
        fn known(&self, parent: NodeId, name: &str) -> Option<u64> {
            let known = self.overlay.lookup_known(parent, name.as_ref(), Trust::Ttl);
            Some(known?.ok()?.stat.size)
        }

        #[track_caller]
        fn eventually(&self, what: &str, check: impl Fn() -> bool) {
            let begun = Instant::now();
            while !check() {
                assert!(begun.elapsed() < Duration::from_secs(10), "{what}");
                std::thread::yield_now();
            }
        }
    }

    impl Drop for Told {
        fn drop(&mut self) {
            self.notices.stop();
        }
    }

    #[test]
    fn our_own_changes_cool_nothing() {
        let told = Told::new(100);
        let dir = told.lookup(NodeId::ROOT, "dir").node;
        told.lookup(dir, "f");
        let who = Caller {
            uid: nix::unistd::geteuid().as_raw(),
            gid: nix::unistd::getegid().as_raw(),
            pid: 0,
        };
        for number in 0..100 {
            let name = format!("own{number}");
            let made = told
                .overlay
                .create(who, dir, name.as_ref(), (0o644, 0), libc::O_RDWR);
            let (_, open) = made.expect("create");
            let data = Bytes::from_static(b"mine");
            let written = told.overlay.write(open.handle, 0, data, Default::default());
            written.expect("write");
            drop(told.overlay.release(open.handle));
        }
        // Heeded behind all of these, up to what is put off.
        std::fs::write(told.dir.path().join("dir/f"), "the mark").expect("write");
        told.eventually("the mark", || told.known(dir, "f") == Some(8));
        let before = told.overlay.cache().stats().misses.get();
        for number in 0..100 {
            let name = format!("own{number}");
            let known = told
                .overlay
                .lookup_known(dir, name.as_ref(), Trust::Ttl)
                .expect("known");
            let entry = known.expect("there");
            assert!(entry.ttl > TTL, "{name} is believed until told");
            let open = told.overlay.open(who, entry.node, libc::O_RDONLY);
            let handle = open.expect("open").handle;
            let read = told.overlay.read(handle, crate::span::Span::new(0, 100));
            assert_eq!(&read.expect("read")[..], b"mine");
            drop(told.overlay.release(handle));
        }
        assert_eq!(told.overlay.cache().stats().misses.get(), before);
    }

    #[test]
    fn what_is_not_watched_is_polled() {
        let told = Told::new(1);
        let dir = told.lookup(NodeId::ROOT, "dir");
        let file = told.lookup(dir.node, "f");
        assert!(file.ttl <= TTL, "one watch is all there may be");
        assert_eq!(told.notices.count(), 1);
        let absent = told.overlay.lookup(NodeId::ROOT, "absent".as_ref());
        assert!(absent.is_err());
        let ttl = told.overlay.absence_ttl(NodeId::ROOT, "absent".as_ref());
        assert!(ttl > TTL, "the root is watched");
    }

    #[test]
    fn after_an_overflow_nothing_is_believed_and_watches_go_on() {
        let told = Told::new(100);
        let dir = told.lookup(NodeId::ROOT, "dir").node;
        assert!(told.lookup(dir, "f").ttl > TTL);
        told.notices.overflow();
        told.eventually("nothing is believed", || told.known(dir, "f").is_none());
        assert!(told.lookup(dir, "f").ttl > TTL, "asked anew");
        std::fs::write(told.dir.path().join("dir/f"), "changed").expect("write");
        told.eventually("the change", || told.known(dir, "f") == Some(7));
    }

    #[test]
    fn a_file_with_two_names_is_polled() {
        let told = Told::new(100);
        let path = told.dir.path();
        std::fs::hard_link(path.join("dir/f"), path.join("other")).expect("link");
        let dir = told.lookup(NodeId::ROOT, "dir").node;
        assert!(told.lookup(dir, "f").ttl <= TTL);
    }

    #[test]
    fn a_directory_that_moved_is_watched_anew() {
        let told = Told::new(100);
        let path = told.dir.path();
        let dir = told.lookup(NodeId::ROOT, "dir").node;
        told.lookup(dir, "f");
        std::fs::rename(path.join("dir"), path.join("moved")).expect("rename");
        told.eventually("the watch goes", || told.known(dir, "f").is_none());
        let moved = told.lookup(NodeId::ROOT, "moved").node;
        assert_eq!(moved, dir);
        assert!(told.lookup(moved, "f").ttl > TTL);
        std::fs::write(path.join("moved/f"), "changed").expect("write");
        told.eventually("the change", || told.known(moved, "f") == Some(7));
    }
}
