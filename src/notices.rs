//! What the operating system tells of changes in directories: inotify on Linux, FSEvents on macOS.
//!
//! Promises:
//! * A directory is watched from the return of [`Notices::watch`] on: every later change of its names, and of the
//!   attributes and contents of its entries, made under one of those names, arrives in [`Notices::next`]. (Not a store
//!   through a memory map: Linux tells of that when the file is closed and unmapped.)
//! * Notices are a set of directories and names, so many changes of one file are one notice, and its length is bounded.
//!   Taking them in waits for nothing.
//! * When a watch is lost, or notices were lost, that arrives too.
//!
//! What it deliberately does not do: look at the source to find out what a notice means. It tells of our own changes as
//! of those of others.

#[cfg(target_os = "macos")]
mod fsevents;
#[cfg(target_os = "linux")]
mod inotify;

use crate::cache::FileId;
#[cfg(target_os = "macos")]
use fsevents::Watches;
#[cfg(target_os = "linux")]
use inotify::Watches;
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
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

/// Why a directory is not watched. Which of them there are depends on the system.
#[allow(dead_code)]
enum Unwatched {
    /// So many are as many as there may be.
    Own(usize),
    /// The system grants no more.
    System,
    Refused(io::Error),
}

/// Notices to be heeded.
#[derive(Default)]
struct Waiting {
    /// Being heeded one after the other.
    gathered: BTreeSet<Notice>,
    /// Came since then.
    notices: BTreeSet<Notice>,
    /// To be looked at once more, after a while.
    later: BTreeSet<Notice>,
    /// When the first of those was put off for long enough.
    due: Option<Instant>,
    /// When a person was told last that notices were lost.
    told_of_overflow: Option<Instant>,
    stopped: bool,
}

#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    work: Condvar,
}

/// The watches of one source.
pub struct Notices {
    watches: Watches,
    queue: Arc<Queue>,
    told_of_limit: AtomicBool,
}

/// How long a notice is put off that cannot be understood yet: more than a tick of the slowest common kernel clock (10
/// ms), within which two changes of a file may look like one.
pub const PUT_OFF: Duration = Duration::from_millis(20);

/// How long notices are gathered before the first is heeded: who makes a file, writes it and closes it causes three or more,
/// which are then one. Nobody sees 2 ms.
const GATHER: Duration = Duration::from_millis(2);

/// Notices that wait at most: as many as the kernel keeps for us in turn (fs.inotify.max_queued_events). Heeding so many
/// one by one takes longer than asking anew for what programs use.
const WAITING_MAX: usize = 16_384;

/// How often a person is told that notices were lost, if that goes on.
const TELL_OF_OVERFLOW: Duration = Duration::from_secs(60);

/// Watches at most. Each pins an inode and costs the kernel about 1 KiB: 32,768 are some 40 MiB, and more directories than
/// a person works in.
pub const WATCHES_MAX: usize = 32_768;

/// Half of what the system grants a user: editors and desktops want watches too.
pub fn watches_max() -> usize {
    let granted = std::fs::read_to_string("/proc/sys/fs/inotify/max_user_watches");
    let granted = granted.ok().and_then(|text| text.trim().parse().ok());
    granted.map_or(WATCHES_MAX, |most: usize| (most / 2).min(WATCHES_MAX))
}

impl Notices {
    /// Watch directories below `base`, at most `watches_max`. The error is a line for a person.
    pub fn start(base: &Path, watches_max: usize) -> Result<Notices, String> {
        let queue = Arc::new(Queue::default());
        Ok(Notices {
            watches: Watches::start(base, watches_max, queue.clone())?,
            queue,
            told_of_limit: AtomicBool::new(false),
        })
    }

    /// Watch the directory `id`, which is `file`, open as `dir`, and was at `path` below the source's root a moment ago.
    /// Whether it is watched then: [`Notices::watches`].
    pub fn watch(&self, id: Dir, file: FileId, dir: &impl AsFd, path: &Path) {
        match self.watches.set(id, file, dir.as_fd(), path) {
            Ok(()) => {}
            Err(Unwatched::Own(most)) => {
                self.tell_of_limit(&format!("warmfs sets at most {most}"));
            }
            Err(Unwatched::System) => {
                self.tell_of_limit("the system grants no more; raise fs.inotify.max_user_watches");
            }
            Err(Unwatched::Refused(error)) => {
                tracing::debug!("watching {}: {error}", path.display());
            }
        }
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
        self.watches.take(id);
    }

    /// Is `id` watched?
    pub fn watches(&self, id: Dir) -> bool {
        self.watches.has(id)
    }

    /// How many directories are watched.
    pub fn count(&self) -> usize {
        self.watches.len()
    }

    /// Wait for something to heed; `None` at the end.
    pub fn next(&self) -> Option<Notice> {
        let mut waiting = self.queue.waiting.lock();
        loop {
            if waiting.stopped {
                return None;
            }
            if let Some(notice) = waiting.gathered.pop_first() {
                return Some(notice);
            }
            // However much comes in between.
            if waiting.due.is_some_and(|due| due <= Instant::now()) {
                waiting.due = None;
                waiting.gathered = std::mem::take(&mut waiting.later);
                continue;
            }
            if !waiting.notices.is_empty() {
                MutexGuard::unlocked(&mut waiting, || std::thread::sleep(GATHER));
                waiting.gathered = std::mem::take(&mut waiting.notices);
                continue;
            }
            match waiting.due {
                None => self.queue.work.wait(&mut waiting),
                Some(due) => {
                    let _ = self.queue.work.wait_until(&mut waiting, due);
                }
            }
        }
    }

    /// Bring `notice` once more, after [`PUT_OFF`].
    pub fn put_off(&self, notice: Notice) {
        let mut waiting = self.queue.waiting.lock();
        waiting.later.insert(notice);
        waiting.due.get_or_insert_with(|| Instant::now() + PUT_OFF);
    }

    /// Notices were lost.
    pub fn overflow(&self) {
        self.queue.overflow();
    }

    /// End [`Notices::next`] and all watches.
    pub fn stop(&self) {
        self.queue.waiting.lock().stopped = true;
        self.queue.work.notify_all();
        self.watches.stop();
    }
}

impl Queue {
    fn push(&self, notices: impl IntoIterator<Item = Notice>) {
        let mut waiting = self.waiting.lock();
        let was_empty = waiting.notices.is_empty();
        waiting.notices.extend(notices);
        if waiting.notices.len() > WAITING_MAX {
            waiting.lose();
        }
        if was_empty && !waiting.notices.is_empty() {
            self.work.notify_one();
        }
    }

    fn overflow(&self) {
        self.waiting.lock().lose();
        self.work.notify_one();
    }
}

impl Waiting {
    /// What waits is not worth heeding any more, but for lost watches: anything may have changed.
    fn lose(&mut self) {
        self.notices
            .retain(|notice| matches!(notice, Notice::Lost(_)));
        self.notices.insert(Notice::Everything);
        let now = Instant::now();
        let told = self.told_of_overflow.replace(now);
        if told.is_some_and(|told| now < told + TELL_OF_OVERFLOW) {
            self.told_of_overflow = told;
            return;
        }
        tracing::warn!(
            "changes in the source came faster than they could be told (fs.inotify.max_queued_events); all that is known \
             is asked for anew"
        );
    }
}
