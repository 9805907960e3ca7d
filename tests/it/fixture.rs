//! Mounts for tests, and waiting for what must happen.
//!
//! [`Mount`] is a temporary source, a mount point and the warmfs mount between them; [`Slow`] puts a slow source below.
//! When one is dropped nothing of it stays: the mount is detached, the daemon is waited for, and what hangs all
//! the same is cut off from the kernel. A mount that lives longer than [`LIFE_MAX`] is cut off too, so a request that
//! is never answered fails its test instead of hanging the run.

use crate::slow_source::{Control, Options, SlowSource};
use std::ffi::{OsStr, OsString};
use std::fmt::Debug;
use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};
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
    let base = base.canonicalize().expect("the directory for temporary files exists");
    let dir = tempfile::Builder::new()
        .prefix("warmfs-it.")
        .tempdir_in(base)
        .expect("a temporary directory can be made");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
    dir
}

// ---- waiting ----

/// Look at `check` until it says `Ok`; fail with its last word when `limit` has passed.
pub(crate) fn eventually<T>(
    what: &str,
    limit: Duration,
    mut check: impl FnMut() -> Result<T, String>,
) -> T {
    let begun = Instant::now();
    loop {
        let last_look = begun.elapsed() >= limit;
        match check() {
            Ok(value) => return value,
            Err(seen) if last_look => panic!("not within {limit:?}: {what}; last: {seen}"),
            Err(_) => thread::sleep(POLL),
        }
    }
}

/// `Ok` when the two are equal, else a text with both.
pub(crate) fn equal<T: PartialEq + Debug>(seen: T, wanted: T) -> Result<(), String> {
    if seen == wanted {
        Ok(())
    } else {
        Err(format!("seen {seen:?}, wanted {wanted:?}"))
    }
}

/// Run `f` on a thread of its own; fail when it does not come back in time.
pub(crate) fn within<T: Send + 'static>(
    what: &str,
    limit: Duration,
    f: impl FnOnce() -> T + Send + 'static,
) -> T {
    Running::start(f).join(what, limit)
}

/// Something that runs on a thread of its own and may hang.
pub(crate) struct Running<T>(mpsc::Receiver<thread::Result<T>>);

impl<T: Send + 'static> Running<T> {
    /// Start `f`.
    pub(crate) fn start(f: impl FnOnce() -> T + Send + 'static) -> Running<T> {
        let (done, ended) = mpsc::channel();
        thread::spawn(move || {
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f));
            // Nobody listens when the test has failed meanwhile.
            let _ = done.send(result);
        });
        Running(ended)
    }

    /// Its result; fails when there is none in time.
    pub(crate) fn join(&self, what: &str, limit: Duration) -> T {
        match self.0.recv_timeout(limit) {
            Ok(Ok(value)) => value,
            Ok(Err(panic)) => std::panic::resume_unwind(panic),
            Err(_) => panic!("still not done after {limit:?}: {what}"),
        }
    }

    /// Is it still going on?
    pub(crate) fn is_running(&self) -> bool {
        matches!(self.0.try_recv(), Err(mpsc::TryRecvError::Empty))
    }
}

/// Wait until a second change of `path` would get another time stamp: only then is what was read of it believed for
/// longer than the next comparison.
pub(crate) fn let_age(path: &Path) {
    eventually("the clock moves on", SOON, || {
        let meta = path.symlink_metadata().map_err(|error| error.to_string())?;
        let changed = Duration::new(meta.ctime() as u64, meta.ctime_nsec() as u32);
        let age = SystemTime::UNIX_EPOCH + changed + Duration::from_millis(40);
        if age < SystemTime::now() { Ok(()) } else { Err(format!("{path:?} is young")) }
    });
}

// ---- other programs ----

/// How a program ended and what it said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Said {
    /// Fails, with all that was said, unless it ended well.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert!(self.status.success(), "{self:#?}");
        self.stdout
    }
}

/// Run `command` to its end, which must come within two minutes; output is closed by then, too.
#[track_caller]
pub(crate) fn run(command: &mut Command) -> Said {
    let what = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("cannot start {what}: {error}"));
    let stdout = collect(child.stdout.take());
    let stderr = collect(child.stderr.take());
    let begun = Instant::now();
    let status = loop {
        match child.try_wait().expect("waiting for a child") {
            Some(status) => break status,
            None if begun.elapsed() > LIFE_MAX - SOON => {
                // It may be beyond killing; the mount's guard then cuts it off.
                let _ = child.kill();
                panic!("{what} does not end");
            }
            None => thread::sleep(POLL),
        }
    };
    Said {
        status,
        stdout: stdout.join(&format!("end of the output of {what}"), SOON),
        stderr: stderr.join(&format!("end of the errors of {what}"), SOON),
    }
}

fn collect(pipe: Option<impl Read + Send + 'static>) -> Running<String> {
    Running::start(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            pipe.read_to_end(&mut bytes).expect("reading a pipe");
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// `warmfs` with arguments.
pub(crate) fn warmfs<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(WARMFS);
    command.args(args);
    command
}

/// `warmfs umount`.
pub(crate) fn umount(at: &Path) -> Said {
    run(warmfs(["umount"]).arg(at))
}

/// A Python program with arguments.
pub(crate) fn python<S: AsRef<OsStr>>(
    program: &str,
    args: impl IntoIterator<Item = S>,
) -> Command {
    let mut command = Command::new("python3");
    // -S: the standard library is enough, and starts sooner.
    command.args(["-S", "-c", program]).args(args);
    command
}

// ---- the table of mounts ----

/// One line of mountinfo.
#[derive(Clone, Debug)]
pub(crate) struct Listed {
    pub(crate) minor: String,
    pub(crate) options: String,
    pub(crate) fstype: String,
    pub(crate) source: Vec<u8>,
}

/// The topmost mount at `path`; the mount itself is not asked.
pub(crate) fn mount_at(path: &Path) -> Option<Listed> {
    let table = fs::read("/proc/self/mountinfo").expect("proc is mounted");
    let mut found = None;
    for line in table.split(|&byte| byte == b'\n') {
        let fields: Vec<&[u8]> = line.split(|&byte| byte == b' ').collect();
        if fields.len() < 10 || unescape(fields[4]) != path.as_os_str().as_bytes() {
            continue;
        }
        let text = |field: &[u8]| String::from_utf8_lossy(field).into_owned();
        let dash = fields.iter().position(|field| *field == b"-").expect("mountinfo has a dash");
        found = Some(Listed {
            minor: text(fields[2]).split(':').nth(1).unwrap_or_default().to_owned(),
            options: text(fields[5]),
            fstype: text(fields[dash + 1]),
            source: unescape(fields[dash + 2]),
        });
    }
    found
}

/// Octal escapes of mountinfo.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        let escape = after
            .get(..3)
            .filter(|_| first == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        bytes.push(escape.unwrap_or(first));
        rest = if escape.is_some() { &after[3..] } else { after };
    }
    bytes
}

/// Take away whatever is mounted at `path`: detach, and cut the connection of what does not end by itself.
pub(crate) fn take_away(path: &Path) {
    while let Some(listed) = mount_at(path) {
        let pid = daemon_of(path);
        let detached = run(warmfs(["umount", "--lazy"]).arg(path)).status.success();
        let gone = || pid.is_none_or(|pid| !is_alive(pid));
        let begun = Instant::now();
        while detached && !gone() && begun.elapsed() < SOON {
            thread::sleep(POLL);
        }
        if !detached || !gone() {
            eprintln!("{path:?} did not end by itself (detached: {detached}); cutting it off");
            cut_off(&listed.minor);
            let _ = run(Command::new("umount").arg("-l").arg(path));
        }
        if !detached && mount_at(path).is_some() {
            eprintln!("{path:?} is still mounted");
            return;
        }
    }
}

/// Cut the connection between kernel and daemon: whoever waits for an answer gets an error.
fn cut_off(minor: &str) {
    let switch = Path::new("/sys/fs/fuse/connections").join(minor).join("abort");
    if !switch.exists() {
        let at = "/sys/fs/fuse/connections";
        let _ = run(Command::new("mount").args(["-t", "fusectl", "none", at]));
    }
    let _ = fs::write(switch, "1");
}

/// The process that serves the mount at `path`.
pub(crate) fn daemon_of(path: &Path) -> Option<u32> {
    let pids = fs::read_dir("/proc").expect("proc is mounted").flatten();
    let mut pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.find(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = line.split(|&byte| byte == 0).collect();
        let has = |word: &[u8]| words.contains(&word);
        has(b"mount") && (has(b"--daemon") || has(b"--foreground")) && has(path.as_os_str().as_bytes())
    })
}

/// Is there such a process, and not only what is left of it?
pub(crate) fn is_alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" Z")))
}

// ---- mounts ----

/// A source and its mount.
pub(crate) struct Mount {
    source: PathBuf,
    view: PathBuf,
    log: PathBuf,
    /// Ends the watchdog.
    _watch: mpsc::Sender<()>,
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
        assert_eq!(view, source, "left: the mount, right: the source, of {:?}", name.as_ref());
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
        for kind in crate::slow_source::Kind::ALL {
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
        .map(|entry| entry.unwrap_or_else(|error| panic!("listing {dir:?}: {error}")).file_name())
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
