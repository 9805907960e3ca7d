//! What the operating system tells of changes in directories (inotify, FSEvents): the adapter of the crate `notify`.
//!
//! Promises:
//! * A directory is watched from the return of [`Notices::watch`] on: every later change of its names, and of the
//!   attributes and contents of its entries, made under one of those names, arrives in [`Notices::next`].
//! * Notices are a set of directories and names, so many changes of one file are one notice, and its length is bounded by
//!   what is known. Taking them in waits for nothing.
//! * When a watch is lost (the directory was moved or removed), or notices were lost, that arrives too.
//!
//! What it deliberately does not do: look at the source to find out what a notice means. It tells of our own changes as
//! of those of others.

use crate::cache::FileId;
use notify::event::{EventKind, ModifyKind, RenameMode};
use notify::{ErrorKind, RecommendedWatcher, RecursiveMode, Watcher};
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// What a watched directory is called here: whatever number its owner knows it by.
pub type Dir = u64;

/// One thing to heed.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Notice {
    /// Notices were lost: anything may have changed.
    Everything,
    /// The directory is not watched any more.
    Lost(Dir),
    /// Something happened to the directory itself.
    Dir(Dir),
    /// Something happened to a name in the directory.
    Name(Dir, OsString),
}

/// Notices to be heeded.
#[derive(Default)]
struct Queue {
    /// Being heeded one after the other.
    gathered: BTreeSet<Notice>,
    /// Came since then.
    notices: BTreeSet<Notice>,
    /// To be looked at once more, after a while.
    later: BTreeSet<Notice>,
    /// When the first of those was put off for long enough.
    due: Option<Instant>,
    stopped: bool,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    work: Condvar,
    /// Watched directories. An entry is made before its watch is, so that the loss of a watch never goes unseen.
    dirs: Mutex<BTreeMap<PathBuf, Dir>>,
    /// Where watches were lost. `notify` keeps some of them, by paths that are wrong by now: they go before the next watch
    /// is set, or taking one away could end another's.
    gone: Mutex<Vec<PathBuf>>,
}

/// The watches of one source.
pub struct Notices {
    base: PathBuf,
    /// `None` once it has ended. Held while a watch is set or taken away, so that the two are in order.
    watcher: Mutex<Option<RecommendedWatcher>>,
    shared: Arc<Shared>,
    watches_max: usize,
    told_of_limit: AtomicBool,
}

/// How long a notice is put off that cannot be understood yet: more than a tick of the slowest common kernel clock (10
/// ms), within which two changes of a file may look like one.
pub const PUT_OFF: Duration = Duration::from_millis(20);

/// How long notices are gathered before the first is heeded: who makes a file, writes it and closes it causes three or more,
/// which are then one. Nobody sees 2 ms.
const GATHER: Duration = Duration::from_millis(2);

/// Watches at most. Each pins an inode and costs the kernel about 1 KiB, and the daemon a path: 32,768 are some 40 MiB, and
/// more directories than a person works in.
pub const WATCHES_MAX: usize = 32_768;

/// Half of what the system grants a user: editors and desktops want watches too.
pub fn watches_max() -> usize {
    let granted = std::fs::read_to_string("/proc/sys/fs/inotify/max_user_watches");
    let granted = granted.ok().and_then(|text| text.trim().parse().ok());
    granted.map_or(WATCHES_MAX, |most: usize| (most / 2).min(WATCHES_MAX))
}

impl Notices {
    /// Watch directories below `base`, at most `watches_max`. The error is a line for a person.
    pub fn start(base: PathBuf, watches_max: usize) -> Result<Notices, String> {
        let shared = Arc::new(Shared::default());
        let taking = shared.clone();
        let watcher = notify::recommended_watcher(move |event| taking.take_in(event));
        let watcher = watcher.map_err(|error| match raw(&error) {
            Some(libc::EMFILE) => "the limit of inotify instances is reached; raise it: sysctl \
                                   fs.inotify.max_user_instances=1024"
                .to_owned(),
            _ => error.to_string(),
        })?;
        Ok(Notices {
            base,
            watcher: Mutex::new(Some(watcher)),
            shared,
            watches_max,
            told_of_limit: AtomicBool::new(false),
        })
    }

    /// Watch the directory `id`, which is `file`, at `path` below the source's root. False: it is not watched.
    pub fn watch(&self, id: Dir, file: FileId, path: &Path) -> bool {
        let path = self.base.join(path);
        let mut watcher = self.watcher.lock();
        let Some(watcher) = &mut *watcher else {
            return false;
        };
        let gone = std::mem::take(&mut *self.shared.gone.lock());
        for path in gone {
            if !self.shared.dirs.lock().contains_key(&path) {
                // Most have gone by themselves.
                drop(watcher.unwatch(&path));
            }
        }
        if self.shared.dirs.lock().len() >= self.watches_max {
            self.tell_of_limit(&format!("warmfs sets at most {}", self.watches_max));
            return false;
        }
        self.shared.dirs.lock().insert(path.clone(), id);
        let error = match set(watcher, &self.base, &path) {
            // What is called so by now may be another directory.
            Ok(()) if is_file(&path, file) => {
                return self.shared.dirs.lock().get(&path) == Some(&id);
            }
            Ok(()) => None,
            Err(error) => Some(error),
        };
        self.shared.dirs.lock().remove(&path);
        match error {
            None => {
                drop(watcher.unwatch(&path));
                // It may have been watched by its own path, and is not any more.
                self.shared.push([Notice::Everything]);
            }
            Some(error) if is_limit(&error) => {
                self.tell_of_limit("the system grants no more; raise fs.inotify.max_user_watches");
            }
            Some(error) => tracing::debug!("watching {}: {error}", path.display()),
        }
        false
    }

    fn tell_of_limit(&self, limit: &str) {
        if !self.told_of_limit.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "no more directories can be watched ({limit}); others are polled as --ttl says. The system's limit is \
                 raised by: sysctl fs.inotify.max_user_watches=524288"
            );
        }
    }

    /// Watch `id` no longer.
    pub fn unwatch(&self, id: Dir) {
        let mut watcher = self.watcher.lock();
        let path = {
            let mut dirs = self.shared.dirs.lock();
            let found = dirs.iter().find(|(_, known)| **known == id);
            let path = found.map(|(path, _)| path.clone());
            if let Some(path) = &path {
                dirs.remove(path);
            }
            path
        };
        if let (Some(watcher), Some(path)) = (&mut *watcher, path) {
            // It may have gone by itself.
            drop(watcher.unwatch(&path));
        }
    }

    /// Wait for something to heed; `None` at the end.
    pub fn next(&self) -> Option<Notice> {
        let mut queue = self.shared.queue.lock();
        loop {
            if queue.stopped {
                return None;
            }
            if let Some(notice) = queue.gathered.pop_first() {
                return Some(notice);
            }
            // However much comes in between.
            if queue.due.is_some_and(|due| due <= Instant::now()) {
                queue.due = None;
                queue.gathered = std::mem::take(&mut queue.later);
                continue;
            }
            if !queue.notices.is_empty() {
                MutexGuard::unlocked(&mut queue, || std::thread::sleep(GATHER));
                queue.gathered = std::mem::take(&mut queue.notices);
                continue;
            }
            match queue.due {
                None => self.shared.work.wait(&mut queue),
                Some(due) => {
                    let _ = self.shared.work.wait_until(&mut queue, due);
                }
            }
        }
    }

    /// Bring `notice` once more, after [`PUT_OFF`].
    pub fn put_off(&self, notice: Notice) {
        let mut queue = self.shared.queue.lock();
        queue.later.insert(notice);
        queue.due.get_or_insert_with(|| Instant::now() + PUT_OFF);
    }

    /// Notices were lost.
    pub fn overflow(&self) {
        self.shared.overflow();
    }

    /// Watched directories.
    pub fn watches(&self) -> usize {
        self.shared.dirs.lock().len()
    }

    /// End [`Notices::next`] and all watches.
    pub fn stop(&self) {
        self.shared.queue.lock().stopped = true;
        self.shared.work.notify_all();
        drop(self.watcher.lock().take());
    }
}

/// FSEvents watches trees, and starts anew for each one: there the whole source is one watch.
fn set(watcher: &mut RecommendedWatcher, base: &Path, path: &Path) -> notify::Result<()> {
    if cfg!(target_os = "macos") {
        return match path == base {
            true => watcher.watch(base, RecursiveMode::Recursive),
            false => Ok(()),
        };
    }
    watcher.watch(path, RecursiveMode::NonRecursive)
}

fn is_file(path: &Path, file: FileId) -> bool {
    std::fs::metadata(path).is_ok_and(|meta| (meta.dev(), meta.ino()) == (file.dev, file.ino))
}

fn raw(error: &notify::Error) -> Option<i32> {
    match &error.kind {
        ErrorKind::Io(error) => error.raw_os_error(),
        _ => None,
    }
}

fn is_limit(error: &notify::Error) -> bool {
    matches!(error.kind, ErrorKind::MaxFilesWatch) || raw(error) == Some(libc::ENOSPC)
}

impl Shared {
    fn push(&self, notices: impl IntoIterator<Item = Notice>) {
        let mut queue = self.queue.lock();
        let was_empty = queue.notices.is_empty();
        queue.notices.extend(notices);
        if was_empty && !queue.notices.is_empty() {
            self.work.notify_one();
        }
    }

    /// On the thread of `notify`, which also sets watches: nothing here may wait for one.
    fn take_in(&self, event: notify::Result<notify::Event>) {
        let event = match event {
            Ok(event) if event.need_rescan() => return self.overflow(),
            Ok(event) => event,
            Err(error) => {
                tracing::warn!("watching the source: {error}; all that is known is asked for anew");
                return self.push([Notice::Everything]);
            }
        };
        // Who opens, reads or closes a file changes nothing; what was written has been told of.
        if let EventKind::Access(_) = event.kind {
            return;
        }
        // The path is gone, and the watches that lead through it; FSEvents does not say which way it went.
        let leaves = matches!(
            event.kind,
            EventKind::Remove(_)
                | EventKind::Modify(ModifyKind::Name(RenameMode::From | RenameMode::Any))
        );
        for path in &event.paths {
            let names = !matches!(
                event.kind,
                EventKind::Modify(ModifyKind::Data(_) | ModifyKind::Metadata(_))
            );
            self.push(self.notices_of(path, names, leaves));
        }
    }

    fn overflow(&self) {
        tracing::warn!(
            "changes in the source came faster than they could be told (fs.inotify.max_queued_events); all that is known \
             is asked for anew"
        );
        self.push([Notice::Everything]);
    }

    /// `names`: a name came or went; `leaves`: it went.
    fn notices_of(&self, path: &Path, names: bool, leaves: bool) -> Vec<Notice> {
        let mut notices = Vec::new();
        let mut dirs = self.dirs.lock();
        if let (Some(parent), Some(name)) = (path.parent(), path.file_name())
            && let Some(dir) = dirs.get(parent)
        {
            notices.push(Notice::Name(*dir, name.to_owned()));
            // Which changed the directory, too.
            notices.extend(names.then_some(Notice::Dir(*dir)));
        }
        if !leaves {
            notices.extend(dirs.get(path).map(|dir| Notice::Dir(*dir)));
            return notices;
        }
        let below = dirs.range(path.to_owned()..);
        let lost: Vec<PathBuf> = below
            .take_while(|(below, _)| below.starts_with(path))
            .map(|(below, _)| below.clone())
            .collect();
        notices.extend(
            lost.iter()
                .filter_map(|path| dirs.remove(path))
                .map(Notice::Lost),
        );
        drop(dirs);
        self.gone.lock().extend(lost);
        notices
    }
}
