//! What is wrong with the slow source at the moment, and what it was asked so far.
//!
//! Every request passes the [`Gate`]: there it is counted, waits for its time, is held by a hang, and may be told to
//! fail. [`Control`] is the handle with which a test changes all that; it holds no file of the source open.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

macro_rules! kinds {
    ($($variant:ident $name:literal),* $(,)?) => {
        /// What a request asks for.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Kind { $(#[doc = $name] $variant),* }

        impl Kind {
            /// All kinds, in the order of their numbers.
            pub(crate) const ALL: &[Kind] = &[$(Kind::$variant),*];

            /// The name used in counters and commands.
            pub(crate) fn name(self) -> &'static str {
                match self { $(Kind::$variant => $name),* }
            }
        }
    };
}

kinds! {
    Lookup "lookup", Getattr "getattr", Setattr "setattr", Readlink "readlink", Symlink "symlink", Link "link",
    Mknod "mknod", Mkdir "mkdir", Unlink "unlink", Rmdir "rmdir", Rename "rename", Create "create", Open "open",
    Read "read", Write "write", Flush "flush", Fsync "fsync", Fallocate "fallocate", CopyRange "copy_file_range",
    Lseek "lseek", Opendir "opendir", Readdir "readdir", Fsyncdir "fsyncdir", Statfs "statfs",
    Getxattr "getxattr",
}

/// Bytes per bit in the account of what was read.
const PAGE: u64 = 4096;

const KINDS: usize = Kind::ALL.len();

/// Changes how a mounted [`SlowSource`] behaves, and counts what it was asked. Cheap to clone, for any thread.
#[derive(Clone)]
pub(crate) struct Control(pub(super) Arc<Gate>);

impl Control {
    /// Wait of each request that arrives from now on.
    pub(crate) fn set_delay(&self, delay: Duration) {
        self.0.change(|faults| faults.delay = delay);
    }

    /// Holds every request until told otherwise. What is held goes on when the hang ends.
    pub(crate) fn hang(&self, on: bool) {
        self.0.change(|faults| faults.hang = on);
    }

    /// Holds the requests on paths that contain `name`. `None` ends it.
    pub(crate) fn hang_path(&self, name: Option<&str>) {
        self.0
            .change(|faults| faults.hang_path = name.map(str::to_string));
    }

    /// Holds the requests of one kind.
    pub(crate) fn hang_kind(&self, kind: Kind, on: bool) {
        self.0.change(|faults| faults.hang_kind[kind as usize] = on);
    }

    /// Fails every request with this errno. `None` ends this and [`Control::fail_after`].
    pub(crate) fn fail(&self, errno: Option<i32>) {
        self.0
            .change(|faults| faults.fail = errno.map(|errno| (0, errno)));
    }

    /// Answers `count` more requests, then fails all with this errno.
    pub(crate) fn fail_after(&self, count: u64, errno: i32) {
        self.0.change(|faults| faults.fail = Some((count, errno)));
    }

    /// Fails the requests of one kind with this errno. `None` ends it.
    pub(crate) fn fail_kind(&self, kind: Kind, errno: Option<i32>) {
        self.0
            .change(|faults| faults.fail_kind[kind as usize] = errno);
    }

    /// Reads return fewer bytes than asked for, but not none. Not for files that are mapped into memory: there the
    /// kernel takes a short answer for the end of the file.
    pub(crate) fn short_reads(&self, on: bool) {
        self.0.change(|faults| faults.short_reads = on);
    }

    /// Writes take fewer bytes than given, but not none.
    pub(crate) fn short_writes(&self, on: bool) {
        self.0.change(|faults| faults.short_writes = on);
    }

    /// Does the work when a request arrives, and waits, hangs and fails only then: the answer to a read may be older
    /// than a write that ended meanwhile, and a write that failed may have been done.
    pub(crate) fn answer_late(&self, on: bool) {
        self.0.change(|faults| faults.late = on);
    }

    /// Files might have extended attributes, and have none: each question for one is a request. Else the kernel is told
    /// at the first that there are none at all, and asks no more.
    pub(crate) fn answer_xattrs(&self, on: bool) {
        self.0.change(|faults| faults.xattrs = on);
    }

    /// Requests that are held by a hang at this moment.
    pub(crate) fn held(&self) -> usize {
        self.0.faults.lock().held
    }

    /// Waits until at least `count` requests are held; false when `timeout` passes first.
    pub(crate) fn wait_held(&self, count: usize, timeout: Duration) -> bool {
        let mut faults = self.0.faults.lock();
        !self
            .0
            .held_changed
            .wait_while_for(&mut faults, |faults| faults.held < count, timeout)
            .timed_out()
    }

    /// Requests that arrived. Not counted are those that nobody waits for (forget, release).
    pub(crate) fn requests(&self) -> u64 {
        self.0.counts.iter().map(|count| count.load(Relaxed)).sum()
    }

    /// Requests of one kind that arrived.
    pub(crate) fn count(&self, kind: Kind) -> u64 {
        self.0.counts[kind as usize].load(Relaxed)
    }

    /// Bytes that reads returned.
    pub(crate) fn bytes_read(&self) -> u64 {
        self.0.bytes_read.load(Relaxed)
    }

    /// Of these, bytes on pages that an earlier read had returned already.
    #[allow(
        dead_code,
        reason = "for measurements; not every user of this module makes them"
    )]
    pub(crate) fn bytes_read_again(&self) -> u64 {
        self.0.bytes_read_again.load(Relaxed)
    }

    /// Bytes that writes took.
    pub(crate) fn bytes_written(&self) -> u64 {
        self.0.bytes_written.load(Relaxed)
    }

    /// The most requests that were under way at one time.
    pub(crate) fn peak(&self) -> usize {
        self.0.peak.load(Relaxed)
    }

    /// Sets all counters to zero.
    pub(crate) fn reset_counters(&self) {
        let gate = &self.0;
        gate.counts
            .iter()
            .chain([
                &gate.bytes_read,
                &gate.bytes_read_again,
                &gate.bytes_written,
            ])
            .for_each(|count| count.store(0, Relaxed));
        gate.pages_read.lock().clear();
        gate.peak.store(gate.under_way.load(Relaxed), Relaxed);
    }
}

/// What is wrong at the moment.
#[derive(Default)]
struct Faults {
    delay: Duration,
    hang: bool,
    hang_path: Option<String>,
    hang_kind: [bool; KINDS],
    /// How many more requests succeed, and the errno after them.
    fail: Option<(u64, i32)>,
    fail_kind: [Option<i32>; KINDS],
    short_reads: bool,
    short_writes: bool,
    late: bool,
    xattrs: bool,
    /// Unmounting: nothing waits any more.
    draining: bool,
    held: usize,
}

impl Faults {
    fn holds(&self, asked: &Asked) -> bool {
        let on_path = || {
            self.hang_path
                .as_ref()
                .is_some_and(|name| asked.path.to_string_lossy().contains(name))
        };
        !self.draining && (self.hang || self.hang_kind[asked.kind as usize] || on_path())
    }
}

/// One request, as far as faults are concerned.
pub(super) struct Asked {
    kind: Kind,
    path: PathBuf,
    /// When the answer may be given.
    due: Instant,
    /// Whether the work is done before the wait.
    pub(super) late: bool,
}

/// Where every request waits, and is counted.
pub(super) struct Gate {
    faults: Mutex<Faults>,
    changed: Condvar,
    /// A condition of its own: those who wait to see requests held must not wake the held ones.
    held_changed: Condvar,
    counts: [AtomicU64; KINDS],
    bytes_read: AtomicU64,
    bytes_read_again: AtomicU64,
    /// A bit for each page of a file that was read, by inode.
    pages_read: Mutex<HashMap<u64, Vec<u64>>>,
    bytes_written: AtomicU64,
    under_way: AtomicUsize,
    peak: AtomicUsize,
}

impl Gate {
    pub(super) fn new(delay: Duration) -> Gate {
        Gate {
            faults: Mutex::new(Faults {
                delay,
                ..Faults::default()
            }),
            changed: Condvar::new(),
            held_changed: Condvar::new(),
            counts: std::array::from_fn(|_| AtomicU64::new(0)),
            bytes_read: AtomicU64::new(0),
            bytes_read_again: AtomicU64::new(0),
            pages_read: Mutex::default(),
            bytes_written: AtomicU64::new(0),
            under_way: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
        }
    }

    fn change(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.faults.lock());
        self.changed.notify_all();
    }

    /// Lets everything go, now and later.
    pub(super) fn drain(&self) {
        self.change(|faults| {
            *faults = Faults {
                draining: true,
                held: faults.held,
                ..Faults::default()
            }
        });
    }

    pub(super) fn arrive(&self, kind: Kind, path: PathBuf) -> Asked {
        self.counts[kind as usize].fetch_add(1, Relaxed);
        self.peak
            .fetch_max(self.under_way.fetch_add(1, Relaxed) + 1, Relaxed);
        let faults = self.faults.lock();
        Asked {
            kind,
            path,
            due: Instant::now() + faults.delay,
            late: faults.late,
        }
    }

    /// The answer goes out.
    pub(super) fn leave(&self) {
        self.under_way.fetch_sub(1, Relaxed);
    }

    /// Counts what a read of an inode returned.
    pub(super) fn count_read(&self, ino: u64, position: u64, count: usize) {
        let end = position + count as u64;
        self.bytes_read.fetch_add(count as u64, Relaxed);
        let mut files = self.pages_read.lock();
        let pages = files.entry(ino).or_default();
        let mut again = 0;
        for page in position / PAGE..end.div_ceil(PAGE) {
            let (word, bit) = ((page / 64) as usize, 1 << (page % 64));
            if pages.len() <= word {
                pages.resize(word + 1, 0);
            }
            if pages[word] & bit != 0 {
                again += end.min((page + 1) * PAGE) - position.max(page * PAGE);
            }
            pages[word] |= bit;
        }
        self.bytes_read_again.fetch_add(again, Relaxed);
    }

    /// Counts what a write took.
    pub(super) fn count_written(&self, count: usize) {
        self.bytes_written.fetch_add(count as u64, Relaxed);
    }

    /// Whether reads, and writes, are to be short.
    pub(super) fn shortens(&self) -> (bool, bool) {
        let faults = self.faults.lock();
        (faults.short_reads, faults.short_writes)
    }

    /// Whether questions for extended attributes are requests.
    pub(super) fn answers_xattrs(&self) -> bool {
        self.faults.lock().xattrs
    }

    /// Waits as long as this request has to, then says whether it fails.
    pub(super) fn pass(&self, asked: &Asked) -> io::Result<()> {
        let mut faults = self.faults.lock();
        loop {
            if faults.holds(asked) {
                faults.held += 1;
                self.held_changed.notify_all();
                self.changed
                    .wait_while(&mut faults, |faults| faults.holds(asked));
                faults.held -= 1;
            } else if !faults.draining && Instant::now() < asked.due {
                self.changed.wait_until(&mut faults, asked.due);
            } else {
                break;
            }
        }
        let errno = match (faults.fail_kind[asked.kind as usize], &mut faults.fail) {
            (Some(errno), _) => errno,
            (None, Some((0, errno))) => *errno,
            (None, Some((left, _))) => {
                *left -= 1;
                return Ok(());
            }
            (None, None) => return Ok(()),
        };
        Err(io::Error::from_raw_os_error(errno))
    }
}
