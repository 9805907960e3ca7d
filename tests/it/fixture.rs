//! Mounts for tests, and waiting for what must happen.
//!
//! [`Mount`] is a temporary source, a mount point and the warmfs mount between them; [`Slow`] puts a slow source below.
//! When one is dropped nothing of it stays: the mount is detached, the daemon is waited for, and what hangs all
//! the same is cut off from the kernel. A mount that lives longer than [`LIFE_MAX`] is cut off too, so a request that
//! is never answered fails its test instead of hanging the run.

mod programs;
mod table;
mod waiting;

pub(crate) use programs::{Said, python, run, umount, unmount, unmount_with, warmfs};
pub(crate) use table::{daemon_of, is_alive, mount_at, take_away, take_away_below};
pub(crate) use waiting::{Repeating, Running, equal, eventually, let_age, within};

use crate::slow_source::{Control, Kind, Options, SlowSource};
use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::cell::Cell;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{OnceLock, mpsc};
use std::thread;
use std::time::Duration;
use table::cut_off;
use tempfile::TempDir;

/// No test needs a mount for longer, also on a busy machine.
const LIFE_MAX: Duration = Duration::from_secs(150);

/// For what must happen at once, on a machine that has other things to do.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(5);

/// The program under test.
pub(crate) const WARMFS: &str = env!("CARGO_BIN_EXE_warmfs");

/// A temporary directory that other users may enter. Not in /tmp, which is a RAM disk on many machines: the source
/// should be on an ordinary disk file system.
pub(crate) fn tempdir() -> TempDir {
    let base = std::env::var_os("TMPDIR").map_or(PathBuf::from("/var/tmp"), PathBuf::from);
    let base = base
        .canonicalize()
        .expect("the directory for temporary files exists");
    let prefix = format!("warmfs-it.{}.", std::process::id());
    CLEANER.get_or_init(|| cleaner(&base.join(&prefix)));
    let dir = tempfile::Builder::new()
        .prefix(&prefix)
        .tempdir_in(base)
        .expect("a temporary directory can be made");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
    dir
}

static CLEANER: OnceLock<Child> = OnceLock::new();

/// Unmounts and removes all that begins with `$0` as soon as its input ends.
const CLEAN: &str = r#"
trap '' INT TERM HUP
cat
while read -r _ _ _ _ at _; do
    case $at in "$0"*) at=$(printf "$at"); umount -l "$at" || fusermount3 -uz "$at" ;; esac
done </proc/self/mountinfo
rm -rf --one-file-system "$0"*
"#;

/// A process that outlives this one, whose end, however it comes, is the end of its input. Guards alone do not help
/// against Ctrl-C.
fn cleaner(prefix: &Path) -> Child {
    Command::new("sh")
        .args(["-c", CLEAN])
        .arg(prefix)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("sh starts")
}

/// Every mount holds this shared, a test that measures time holds it alone.
static MACHINE: RwLock<()> = RwLock::new(());

thread_local! {
    static IS_ALONE: Cell<bool> = const { Cell::new(false) };
}

/// No other test of this run has a mount while this exists.
pub(crate) struct Alone(#[expect(dead_code, reason = "held")] RwLockWriteGuard<'static, ()>);

/// Wait until no other test has a mount, and keep it so.
pub(crate) fn alone() -> Alone {
    let guard = MACHINE.write();
    IS_ALONE.set(true);
    Alone(guard)
}

impl Drop for Alone {
    fn drop(&mut self) {
        IS_ALONE.set(false);
    }
}

/// A source and its mount.
pub(crate) struct Mount {
    source: PathBuf,
    view: PathBuf,
    log: PathBuf,
    /// Ends the watchdog.
    _watch: mpsc::Sender<()>,
    _among_others: Option<RwLockReadGuard<'static, ()>>,
    /// Removed last.
    _dir: Option<TempDir>,
}

impl Mount {
    /// An empty source, mounted with the defaults.
    pub(crate) fn new() -> Mount {
        Mount::with(&[], |_| {})
    }

    /// A source that `fill` fills, mounted with these arguments.
    #[track_caller]
    pub(crate) fn with(args: &[&str], fill: impl FnOnce(&Path)) -> Mount {
        let dir = tempdir();
        let source = dir.path().join("source");
        fs::create_dir(&source).expect("mkdir");
        fill(&source);
        let mut mount = Mount::over(dir.path(), &source, args);
        mount._dir = Some(dir);
        mount
    }

    /// Mount `source` at a new directory in `dir`.
    #[track_caller]
    fn over(dir: &Path, source: &Path, args: &[&str]) -> Mount {
        // Recursive: a test may have several.
        let among_others = (!IS_ALONE.get()).then(|| MACHINE.read_recursive());
        let (view, log) = (dir.join("view"), dir.join("log"));
        fs::create_dir(&view).expect("mkdir");
        let mut command = warmfs(["mount", "--log", "info", "--log-file"]);
        command.arg(&log).args(args).arg(source).arg(&view);
        let said = run(&mut command);
        assert!(said.status.success(), "cannot mount: {said:#?}");
        let (watch, dismissed) = mpsc::channel();
        let mount = Mount {
            source: source.to_owned(),
            view,
            log,
            _watch: watch,
            _among_others: among_others,
            _dir: None,
        };
        let minor = mount_at(&mount.view).expect("the mount is listed").minor;
        let name = mount.view.clone();
        thread::spawn(move || {
            if dismissed.recv_timeout(LIFE_MAX) == Err(mpsc::RecvTimeoutError::Timeout) {
                eprintln!("{name:?} has been there for {LIFE_MAX:?}; cutting it off");
                cut_off(&minor);
            }
        });
        mount
    }

    /// A name in the source.
    pub(crate) fn source(&self, name: impl AsRef<Path>) -> PathBuf {
        self.source.join(name)
    }

    /// The same name in the mount.
    pub(crate) fn view(&self, name: impl AsRef<Path>) -> PathBuf {
        self.view.join(name)
    }

    /// Where it is mounted.
    pub(crate) fn at(&self) -> &Path {
        &self.view
    }

    /// The daemon's process.
    #[track_caller]
    pub(crate) fn pid(&self) -> u32 {
        daemon_of(&self.view).expect("the daemon runs")
    }

    /// What the daemon has logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Both hold these bytes under `name`.
    #[track_caller]
    pub(crate) fn assert_content(&self, name: impl AsRef<Path>, wanted: &[u8]) {
        for path in [self.view(&name), self.source(&name)] {
            assert_bytes(&path, wanted);
        }
    }

    /// What `stat` says of `name` is the same in both.
    #[track_caller]
    pub(crate) fn assert_same(&self, name: impl AsRef<Path>) {
        let [view, source] = [self.view(&name), self.source(&name)].map(|path| {
            let meta = path.symlink_metadata();
            Shown::of(&meta.unwrap_or_else(|error| panic!("stat of {path:?}: {error}")))
        });
        assert_eq!(
            view,
            source,
            "left: the mount, right: the source, of {:?}",
            name.as_ref()
        );
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(20).collect();
            for line in tail.iter().rev() {
                eprintln!("log: {line}");
            }
        }
        take_away(&self.view);
    }
}

/// Fails without printing megabytes.
#[track_caller]
pub(crate) fn assert_bytes(path: &Path, wanted: &[u8]) {
    let seen = fs::read(path).unwrap_or_else(|error| panic!("reading {path:?}: {error}"));
    assert_equal_bytes(&format!("{path:?}"), &seen, wanted);
}

/// Fails without printing megabytes.
#[track_caller]
pub(crate) fn assert_equal_bytes(what: &str, seen: &[u8], wanted: &[u8]) {
    if seen == wanted {
        return;
    }
    let at = seen.iter().zip(wanted).take_while(|(a, b)| a == b).count();
    let part = |bytes: &[u8]| {
        let part = &bytes[at.min(bytes.len())..(at + 32).min(bytes.len())];
        String::from_utf8_lossy(part).into_owned()
    };
    panic!(
        "{what}: {} bytes seen, {} wanted; they differ from {at} on: seen {:?}, wanted {:?}",
        seen.len(),
        wanted.len(),
        part(seen),
        part(wanted)
    );
}

/// What `stat` says, but for what cannot be the same in both (the device) and what reading changes (atime).
#[derive(PartialEq, Debug)]
pub(crate) struct Shown {
    ino: u64,
    mode: String,
    nlink: u64,
    owner: (u32, u32),
    rdev: u64,
    size: u64,
    blocks: u64,
    mtime: (i64, i64),
    ctime: (i64, i64),
}

impl Shown {
    pub(crate) fn of(meta: &fs::Metadata) -> Shown {
        Shown {
            ino: meta.ino(),
            mode: format!("{:o}", meta.mode()),
            nlink: meta.nlink(),
            owner: (meta.uid(), meta.gid()),
            rdev: meta.rdev(),
            size: meta.size(),
            blocks: meta.blocks(),
            mtime: (meta.mtime(), meta.mtime_nsec()),
            ctime: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}

/// A warmfs mount of a slow source of a directory on disk. The directory itself is `disk`.
pub(crate) struct Slow {
    /// Lets go of what hangs before the mounts are taken down.
    release: ReleaseOnDrop,
    pub(crate) mount: Mount,
    slow: Option<SlowSource>,
    dir: TempDir,
}

struct ReleaseOnDrop(Control);

impl Drop for ReleaseOnDrop {
    fn drop(&mut self) {
        let control = &self.0;
        control.hang(false);
        control.hang_path(None);
        control.fail(None);
        for kind in Kind::ALL {
            control.hang_kind(*kind, false);
            control.fail_kind(*kind, None);
        }
    }
}

impl Slow {
    /// A source that `fill` fills, without faults at first, mounted with these arguments.
    #[track_caller]
    pub(crate) fn with(args: &[&str], fill: impl FnOnce(&Path)) -> Slow {
        let dir = tempdir();
        let (disk, far) = (dir.path().join("disk"), dir.path().join("far"));
        fs::create_dir(&disk).expect("mkdir");
        fs::create_dir(&far).expect("mkdir");
        fill(&disk);
        let slow = SlowSource::mount(&disk, &far, Options::default())
            .unwrap_or_else(|error| panic!("cannot mount the slow source: {error}"));
        let release = ReleaseOnDrop(slow.control());
        let mount = Mount::over(dir.path(), &far, args);
        Slow {
            release,
            mount,
            slow: Some(slow),
            dir,
        }
    }

    /// What it does wrong, and its counters.
    pub(crate) fn control(&self) -> &Control {
        &self.release.0
    }

    /// A name on the disk below the slow source.
    pub(crate) fn disk(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join("disk").join(name)
    }

    /// A name in the warmfs mount.
    pub(crate) fn view(&self, name: impl AsRef<Path>) -> PathBuf {
        self.mount.view(name)
    }

    /// The source goes away, as when its own daemon dies.
    pub(crate) fn kill_source(&mut self) {
        self.slow = None;
    }
}

/// Names in a directory, sorted; fails if one comes twice.
#[track_caller]
pub(crate) fn names(dir: &Path) -> Vec<OsString> {
    let entries = fs::read_dir(dir).unwrap_or_else(|error| panic!("listing {dir:?}: {error}"));
    let mut names: Vec<OsString> = entries
        .map(|entry| {
            entry
                .unwrap_or_else(|error| panic!("listing {dir:?}: {error}"))
                .file_name()
        })
        .collect();
    names.sort();
    for pair in names.windows(2) {
        assert_ne!(pair[0], pair[1], "listed twice in {dir:?}");
    }
    names
}

/// Bytes that differ from place to place, also from one seed to the next.
pub(crate) fn pattern(size: usize, seed: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(size + 8);
    let mut word = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    while bytes.len() < size {
        // xorshift64
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}
