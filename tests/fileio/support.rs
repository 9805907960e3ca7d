//! A directory, a cache whose clock a test moves, and a gate before the file system.

use bytes::Bytes;
use nix::errno::Errno;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, SystemTime};
use tempfile::TempDir;
use warmfs::backing::{Call, Intercept};
use warmfs::cache::Cache;
use warmfs::clock::Clock;
use warmfs::fileio::{Builder, FileIoStream};
use warmfs::stats::Stats;

/// A directory with files, and a cache for their streams.
pub(crate) struct World {
    pub(crate) dir: TempDir,
    pub(crate) cache: Arc<Cache>,
    pub(crate) clock: Clock,
    pub(crate) gate: Arc<Gate>,
}

impl World {
    /// A cache that compares at each access, as [`warmfs::fileio::FILE_CACHE`] does.
    pub(crate) fn new() -> World {
        World::with(1 << 20, Duration::ZERO)
    }

    /// A cache of at most `bytes`, which believes a comparison for `ttl`. Its wall clock is an hour ahead of all files,
    /// so that nothing counts as read in the tick of its last change.
    pub(crate) fn with(bytes: u64, ttl: Duration) -> World {
        let clock = Clock::manual(SystemTime::now() + Duration::from_secs(3600));
        let stats = Arc::new(Stats::default());
        World {
            dir: tempfile::tempdir().expect("a temporary directory"),
            cache: Arc::new(Cache::new(bytes, ttl, clock.clone(), stats)),
            clock,
            gate: Arc::default(),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A file with this content.
    pub(crate) fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).expect("write");
        path
    }

    /// A change by somebody else, whose time differs from all before: the clocks of file systems tick.
    pub(crate) fn outside(&self, change: impl FnOnce()) {
        next_tick(self.dir.path());
        change();
        next_tick(self.dir.path());
    }

    pub(crate) fn builder(&self, path: impl AsRef<Path>) -> Builder {
        FileIoStream::builder(path)
            .cache(self.cache.clone())
            .intercept(self.gate.clone())
            .open_now(true)
    }

    pub(crate) fn reader(&self, path: impl AsRef<Path>) -> FileIoStream {
        self.builder(path).build().expect("the file opens")
    }

    pub(crate) fn writer(&self, path: impl AsRef<Path>) -> FileIoStream {
        let builder = self.builder(path).mode("r+b");
        builder.build().expect("the file opens for writing")
    }

    /// Bytes that were read from the file system while `f` ran.
    pub(crate) fn fetched<T>(&self, f: impl FnOnce() -> T) -> (T, u64) {
        let before = self.cache.stats().fetched_bytes.get();
        let result = f();
        (result, self.cache.stats().fetched_bytes.get() - before)
    }
}

/// Wait until the file system's clock has ticked.
pub(crate) fn next_tick(dir: &Path) {
    use std::os::unix::fs::MetadataExt;
    let probe = dir.join("probe");
    let stamp = || {
        fs::write(&probe, "").expect("the probe can be written");
        let meta = fs::metadata(&probe).expect("it was just written");
        (meta.ctime(), meta.ctime_nsec())
    };
    let before = stamp();
    while stamp() <= before {}
}

/// Wait until a file's last change is longer ago than a tick of the coarsest common clock (10 ms): what is read within
/// one is read once more.
pub(crate) fn let_age(path: &Path) {
    use std::os::unix::fs::MetadataExt;
    let meta = fs::metadata(path).expect("stat");
    let changed = Duration::new(meta.ctime() as u64, meta.ctime_nsec() as u32);
    let old = SystemTime::UNIX_EPOCH + changed + Duration::from_millis(20);
    while SystemTime::now() < old {
        std::thread::yield_now();
    }
}

/// The names of a stream's slots without the directory.
pub(crate) fn slots(stream: &FileIoStream) -> Vec<(u64, u64)> {
    let keys = stream.cache_keys();
    keys.iter().map(|key| (key.pos, key.size)).collect()
}

/// The file as it is, without the cache.
pub(crate) fn on_disk(path: &Path) -> Bytes {
    fs::read(path).expect("read").into()
}

/// Holds or fails the calls of one kind.
#[derive(Default)]
pub(crate) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    holding: Option<Call>,
    failing: Option<(Option<Call>, Errno)>,
}

impl Gate {
    /// From now on calls of this kind wait.
    pub(crate) fn hold(&self, call: Call) {
        self.state.lock().expect("not poisoned").holding = Some(call);
    }

    /// Let them go on.
    pub(crate) fn release(&self) {
        self.state.lock().expect("not poisoned").holding = None;
        self.changed.notify_all();
    }

    /// From now on calls of this kind (`None`: of any kind) fail.
    pub(crate) fn fail(&self, call: Option<Call>, errno: Errno) {
        self.state.lock().expect("not poisoned").failing = Some((call, errno));
    }

    pub(crate) fn recover(&self) {
        self.state.lock().expect("not poisoned").failing = None;
    }
}

impl Intercept for Gate {
    fn before(&self, call: Call) -> nix::Result<()> {
        let mut state = self.state.lock().expect("not poisoned");
        while state.holding == Some(call) {
            state = self.changed.wait(state).expect("not poisoned");
        }
        match state.failing {
            Some((kind, errno)) if kind.is_none_or(|kind| kind == call) => Err(errno),
            _ => Ok(()),
        }
    }
}
