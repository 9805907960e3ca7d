//! The composition root: checks what was asked for, builds all parts, mounts, and takes it down in order.
//!
//! Promises:
//! * A mistake is one line that says what is wrong and what to do, before anything is mounted.
//! * [`mount`] returns a [`Mounted`]; when that is dropped, or the process is told to end, nothing stays
//!   mounted. Teardown order: unmount (the kernel sends what it still holds), end of the FUSE threads, the
//!   notifier, the I/O workers, the plugins; so whatever was accepted is in the source, and was told.
//! * Programs that still use the mount do not stop it from ending: it is then taken out of the tree at once,
//!   and they lose it after [`config::LINGER`].

use crate::backing::{Intercept, Source};
use crate::cache::Cache;
use crate::clock::Clock;
use crate::config::{self, MountConfig, MountFlag, Watch};
use crate::fuse::{Face, Invalidator};
use crate::hooks::{self, Act, Hooks, Setup};
use crate::notices::{self, Notices};
use crate::overlay::{Actor, Overlay};
use crate::patience::Patience;
use crate::stats::Stats;
use crate::workers::{Pool, Timer};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use fuser::{BackgroundSession, MountOption, Session, SessionACL};
use nix::errno::Errno;
use std::fmt;
use std::io;
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// Why something could not be mounted or unmounted, and what to do: one line for a person.
#[derive(Debug)]
pub struct Refused(String);

impl Refused {
    /// A line for a person.
    pub fn new(line: String) -> Refused {
        Refused(line)
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

fn refuse<T>(text: String) -> Result<T, Refused> {
    Err(Refused(text))
}

/// Check source and mount point, and make their paths absolute.
pub fn check(config: &MountConfig) -> Result<MountConfig, Refused> {
    let source = config.source.canonicalize().map_err(|error| {
        Refused(format!(
            "cannot use {} as source: {}; give a directory that exists and that you may read",
            config.source.display(),
            text(&error)
        ))
    })?;
    if !source.is_dir() {
        return refuse(format!(
            "cannot use {} as source: not a directory",
            source.display()
        ));
    }
    let mountpoint = check_mountpoint(config)?;
    if mountpoint.starts_with(&source) || source.starts_with(&mountpoint) {
        return refuse(format!(
            "source {} and mount point {} lie inside one another, which would make a loop; mount it elsewhere",
            source.display(),
            mountpoint.display()
        ));
    }
    check_fuse(config)?;
    Ok(MountConfig {
        source,
        mountpoint,
        ..config.clone()
    })
}

fn check_mountpoint(config: &MountConfig) -> Result<PathBuf, Refused> {
    let typed = config.mountpoint.display();
    let path = match config.mountpoint.canonicalize() {
        Ok(path) => path,
        Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => {
            return refuse(format!(
                "{typed} is still mounted, but its daemon is gone; run: warmfs umount {typed}"
            ));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return refuse(format!(
                "mount point {typed} does not exist; run: mkdir -p {typed}"
            ));
        }
        Err(error) => return refuse(format!("cannot use mount point {typed}: {}", text(&error))),
    };
    if !path.is_dir() {
        return refuse(format!(
            "mount point {typed} is not a directory; give an empty directory"
        ));
    }
    if mount_at(&path).is_some_and(|fstype| fstype == FS_TYPE) {
        return refuse(format!(
            "{typed} is a warmfs mount already; unmount it first: warmfs umount {typed}"
        ));
    }
    let mut entries = match std::fs::read_dir(&path) {
        Ok(entries) => entries,
        Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => {
            return refuse(format!(
                "{typed} is still mounted, but its daemon is gone; run: warmfs umount {typed}"
            ));
        }
        Err(error) => return refuse(format!("cannot use mount point {typed}: {}", text(&error))),
    };
    if entries.next().is_some() && !config.nonempty {
        return refuse(format!(
            "mount point {typed} is not empty; give an empty directory, or -o nonempty to hide what is in it"
        ));
    }
    Ok(path)
}

#[cfg(target_os = "linux")]
fn check_fuse(config: &MountConfig) -> Result<(), Refused> {
    if !Path::new("/dev/fuse").exists() {
        return refuse(
            "there is no /dev/fuse; load the module (modprobe fuse), or give the container --device /dev/fuse"
                .into(),
        );
    }
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    if let Err(error) = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/fuse")
    {
        return refuse(format!(
            "cannot open /dev/fuse: {}; an administrator can allow it: chmod 666 /dev/fuse",
            text(&error)
        ));
    }
    let helper = std::process::Command::new("fusermount3")
        .arg("-V")
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .status();
    if helper.is_err() {
        return refuse("mounting as a user needs fusermount3; install the package fuse3".into());
    }
    if config.allow_other && !user_allow_other() {
        return refuse(
            "--allow-other needs a line user_allow_other in /etc/fuse.conf, which an administrator can add"
                .into(),
        );
    }
    Ok(())
}

#[cfg(target_os = "macos")]
fn check_fuse(_config: &MountConfig) -> Result<(), Refused> {
    if Path::new("/Library/Filesystems/macfuse.fs").exists() {
        return Ok(());
    }
    refuse("macFUSE is not installed; get it with: brew install --cask macfuse".into())
}

#[cfg(target_os = "linux")]
fn user_allow_other() -> bool {
    std::fs::read_to_string("/etc/fuse.conf")
        .unwrap_or_default()
        .lines()
        .any(|line| line.trim() == "user_allow_other")
}

/// The text of an OS error without Rust's "(os error 2)".
pub(crate) fn text(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(code) => Errno::from_raw(code).desc().to_owned(),
        None => error.to_string(),
    }
}

const FS_TYPE: &str = "fuse.warmfs";

/// Is anything mounted below `path`? What is mounted there later is not known.
#[cfg(target_os = "linux")]
fn has_mounts_below(path: &Path) -> bool {
    mount_points()
        .iter()
        .any(|point| point != path && point.starts_with(path))
}

/// Not known on macOS.
#[cfg(target_os = "macos")]
fn has_mounts_below(_path: &Path) -> bool {
    true
}

/// Type of the file system that is mounted at exactly `path`, the topmost if several are.
#[cfg(target_os = "linux")]
fn mount_at(path: &Path) -> Option<String> {
    let topmost = mount_table().into_iter().rfind(|(point, _)| point == path);
    topmost.map(|(_, fstype)| fstype)
}

#[cfg(target_os = "linux")]
fn mount_points() -> Vec<PathBuf> {
    mount_table().into_iter().map(|(point, _)| point).collect()
}

/// Mount points and types of all file systems, in the order of mounting (proc(5), mountinfo).
#[cfg(target_os = "linux")]
fn mount_table() -> Vec<(PathBuf, String)> {
    use std::os::unix::ffi::OsStringExt;
    let table = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    let entry = |line: &[u8]| {
        let mut fields = line.split(|&byte| byte == b' ');
        let point = std::ffi::OsString::from_vec(unescape(fields.nth(4)?));
        let fstype = fields.skip_while(|field| *field != b"-").nth(1)?;
        Some((point.into(), String::from_utf8_lossy(fstype).into_owned()))
    };
    table
        .split(|&byte| byte == b'\n')
        .filter_map(entry)
        .collect()
}

/// Space, tab, newline and backslash stand in the table as a backslash and three octal digits.
#[cfg(target_os = "linux")]
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = tail
            .get(..3)
            .filter(|_| first == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        plain.push(octal.unwrap_or(first));
        rest = if octal.is_some() { &tail[3..] } else { tail };
    }
    plain
}

#[cfg(target_os = "macos")]
fn mount_at(path: &Path) -> Option<String> {
    let output = std::process::Command::new("/sbin/mount").output().ok()?;
    let wanted = format!(" on {} (macfuse", path.display());
    String::from_utf8_lossy(&output.stdout)
        .contains(&wanted)
        .then(|| FS_TYPE.to_owned())
}

/// A mount that is in place. Dropping it unmounts.
pub struct Mounted {
    mountpoint: PathBuf,
    overlay: Arc<Overlay>,
    patience: Arc<Patience>,
    invalidator: Arc<Invalidator>,
    /// Never dropped: at its end fuser 0.18 unmounts the path once more when the mount is gone already
    /// (it takes POLLERR for "mounted"), and so would take away whatever was mounted there meanwhile.
    session: Option<ManuallyDrop<BackgroundSession>>,
    ended: Receiver<()>,
}

/// Mount what `config` says; it must have passed [`check`]. `intercept`: see [`crate::backing`].
pub fn mount(
    config: &MountConfig,
    intercept: Option<Arc<dyn Intercept>>,
) -> Result<Mounted, Refused> {
    mount_with_hooks(config, intercept, Setup::default())
}

/// As [`mount`], and tell the plugins of `setup` what happens.
///
/// ```no_run
/// use warmfs::hooks::{Delivery, Host, Kind, Rule, Setup};
/// # fn config() -> warmfs::config::MountConfig { unimplemented!() }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut setup = Setup::default();
/// setup.plugin("watch", Rule::all(&[Kind::Write], 0), |delivery: &Delivery, _: &Host| {
///     println!("{} was written", delivery.event.path.display());
/// });
/// let mounted = warmfs::mount::mount_with_hooks(&config(), None, setup)?;
/// # Ok(())
/// # }
/// ```
pub fn mount_with_hooks(
    config: &MountConfig,
    intercept: Option<Arc<dyn Intercept>>,
    setup: Setup,
) -> Result<Mounted, Refused> {
    let descriptors = raise_descriptor_limit();
    let stats = Arc::new(Stats::default());
    let no_source = |error: crate::error::Error| {
        Refused(format!(
            "cannot read the source {}: {error}",
            config.source.display()
        ))
    };
    let source = Source::open(&config.source, intercept, stats.clone()).map_err(no_source)?;
    let cache = Cache::new(config.memory, config.ttl, Clock::system(), stats.clone());
    let overlay = Overlay::new(
        Arc::new(source),
        Arc::new(cache),
        &config::limits(descriptors),
    )
    .map_err(no_source)?;
    let overlay = Arc::new(overlay);
    let no_threads = |error: io::Error| Refused(format!("cannot start threads: {error}"));
    let pool = Pool::new(config.io_threads);
    overlay.set_ttl_max(config.ttl_max);
    overlay.set_background(config.parallel);
    overlay.read_ahead(config.readahead);
    if !setup.is_empty() {
        let actor: Arc<dyn Act> = Arc::new(Actor::new(&overlay, pool.clone()));
        let hooks = Hooks::start(setup, &actor).map_err(|error| Refused(error.to_string()))?;
        overlay.set_hooks(Arc::new(hooks));
    }
    let timer = Timer::start().map_err(no_threads)?;
    let strict = config.ttl.is_zero();
    let patience = Arc::new(Patience::new(
        pool,
        timer,
        stats,
        strict,
        config::FUSE_THREADS.saturating_sub(2),
    ));
    let (ending, ended): (Sender<()>, _) = crossbeam_channel::bounded(0);
    let face = Face::new(
        overlay.clone(),
        patience.clone(),
        config.kernel_checks,
        strict,
        // Another file system may be mounted below a local one.
        !overlay.is_local() || has_mounts_below(&config.source),
        ending,
    );
    let session =
        Session::new(face, &config.mountpoint, &fuse_config(config)).map_err(|error| {
            Refused(format!(
                "cannot mount at {}: {}",
                config.mountpoint.display(),
                error.to_string().trim()
            ))
        })?;
    let invalidator = Arc::new(Invalidator::default());
    overlay.set_invalidate(invalidator.clone());
    let (notifier, sender) = (session.notifier(), invalidator.clone());
    spawn("warmfs-notify", move || sender.run(&notifier)).map_err(no_threads)?;
    let session = session.spawn().map_err(no_threads)?;
    sweep_every(&overlay, &patience, config::READ_HANDLE_IDLE);
    watch(config, &overlay);
    let mounted = Mounted {
        mountpoint: config.mountpoint.clone(),
        overlay,
        patience,
        invalidator,
        session: Some(ManuallyDrop::new(session)),
        ended,
    };
    mounted.note_own_device();
    Ok(mounted)
}

/// Let the system tell of changes in the source, where it can. `ttl = 0` compares each time, whatever is told.
fn watch(config: &MountConfig, overlay: &Arc<Overlay>) {
    let wanted = match config.watch {
        Watch::Auto => overlay.is_local(),
        Watch::On => true,
        Watch::Off => false,
    };
    if !wanted || config.ttl.is_zero() {
        return;
    }
    let heeding = Arc::downgrade(overlay);
    let started = Notices::start(&config.source, notices::watches_max()).and_then(|notices| {
        let notices = Arc::new(notices);
        overlay.set_notices(notices.clone(), config.watch == Watch::On);
        let heed = move || {
            while let Some(notice) = notices.next()
                && let Some(overlay) = heeding.upgrade()
            {
                overlay.heed(&notice);
            }
        };
        spawn("warmfs-heed", heed).map_err(|error| error.to_string())
    });
    if let Err(error) = started {
        tracing::warn!("the source cannot be watched: {error}; it is polled as --ttl says");
    }
}

fn spawn<T: Send + 'static>(
    name: &str,
    f: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    std::thread::Builder::new().name(name.into()).spawn(f)
}

/// Close descriptors that are not used, now and then, on a worker: closing may wait for the source.
fn sweep_every(overlay: &Arc<Overlay>, patience: &Arc<Patience>, period: Duration) {
    let (overlay, weak) = (Arc::downgrade(overlay), Arc::downgrade(patience));
    patience.timer().after(period, move || {
        if let (Some(overlay), Some(patience)) = (overlay.upgrade(), weak.upgrade()) {
            let sweeping = overlay.clone();
            patience
                .pool()
                .submit(0, move || sweeping.close_idle(period));
            sweep_every(&overlay, &patience, period);
        }
    });
}

fn raise_descriptor_limit() -> u64 {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return 256;
    };
    match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(_) => soft,
    }
}

fn fuse_config(config: &MountConfig) -> fuser::Config {
    let mut fuse = fuser::Config::default();
    let name = config
        .fsname
        .clone()
        .unwrap_or_else(|| config.source.display().to_string());
    let options = &mut fuse.mount_options;
    options.push(MountOption::FSName(if nix::unistd::geteuid().is_root() {
        name
    } else {
        // fusermount3 takes the options as one list: commas in the name must not end it.
        name.replace('\\', "\\\\").replace(',', "\\,")
    }));
    #[cfg(target_os = "linux")]
    options.push(MountOption::CUSTOM("subtype=warmfs".into()));
    if config.read_only {
        options.push(MountOption::RO);
    }
    if config.kernel_checks {
        options.push(MountOption::DefaultPermissions);
    }
    for flag in &config.flags {
        options.push(match flag {
            MountFlag::Suid => MountOption::Suid,
            MountFlag::NoSuid => MountOption::NoSuid,
            MountFlag::Dev => MountOption::Dev,
            MountFlag::NoDev => MountOption::NoDev,
            MountFlag::Exec => MountOption::Exec,
            MountFlag::NoExec => MountOption::NoExec,
            MountFlag::Atime => MountOption::Atime,
            MountFlag::NoAtime => MountOption::NoAtime,
            MountFlag::Sync => MountOption::Sync,
            MountFlag::Async => MountOption::Async,
            MountFlag::DirSync => MountOption::DirSync,
        });
    }
    fuse.acl = if config.allow_other {
        SessionACL::All
    } else {
        SessionACL::Owner
    };
    fuse.n_threads = Some(config::FUSE_THREADS);
    // Not `clone_fd`: a queue for each thread spreads requests over more processors, and waking those cost more
    // than it brought with 1 and with 4 clients on 2 processors (4 KiB direct reads, medians: 36 against 39 and
    // 75 against 82 thousand a second).
    fuse
}

impl Mounted {
    /// The file system behind it.
    pub fn overlay(&self) -> &Arc<Overlay> {
        &self.overlay
    }

    /// Its cache: streams of the same process that use it share what they hold with the mount.
    pub fn cache(&self) -> &Arc<Cache> {
        self.overlay.cache()
    }

    /// Where it is.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// A bind mount could make the mount a part of its own source. Files on its own device are then
    /// refused instead of asking itself for ever.
    fn note_own_device(&self) {
        use std::os::unix::fs::MetadataExt;
        if let Ok(own) = std::fs::symlink_metadata(&self.mountpoint) {
            self.overlay.refuse_device(own.dev());
        }
    }

    /// Wait until somebody unmounts it, or something arrives on `stop`; then end it.
    pub fn run(mut self, stop: &Receiver<()>) -> Result<(), Refused> {
        crossbeam_channel::select! {
            recv(self.ended) -> _ => {}
            recv(stop) -> _ => tracing::info!("told to end"),
        }
        self.end()
    }

    /// Unmount and wait until everything that was accepted is in the source.
    pub fn unmount(mut self) -> Result<(), Refused> {
        self.end()
    }

    fn end(&mut self) -> Result<(), Refused> {
        if self.session.take().is_none() {
            return Ok(());
        }
        if !self.has_ended(Duration::ZERO) {
            self.detach()?;
        }
        if !self.has_ended(config::LINGER) {
            // Programs keep files open on a mount that is gone from the tree. Every write of theirs that
            // returned is in the source; the connection ends with this process.
            tracing::warn!("programs still use the mount; they lose it now");
            self.abort();
        }
        self.overlay.close_background();
        self.overlay.stop_notices();
        self.invalidator.stop();
        if !self.patience.pool().stop(config::DRAIN) {
            tracing::warn!("requests still hang at the source; they were answered to nobody");
        }
        if let Some(hooks) = self.overlay.hooks() {
            hooks.stop(hooks::STOP);
        }
        let stats = self.overlay.cache().stats();
        tracing::info!(
            "programs asked for {} bytes; read ahead of them {} bytes, of which {} were used and {} evicted unread",
            stats.asked_bytes.get(),
            stats.ahead_bytes.get(),
            stats.ahead_used_bytes.get(),
            stats.ahead_lost_bytes.get()
        );
        tracing::info!(
            "hits {}, misses {}, fetched {} bytes, wrote {} bytes, {} calls on the source",
            stats.hits.get(),
            stats.misses.get(),
            stats.fetched_bytes.get(),
            stats.written_bytes.get(),
            stats.source_calls.get()
        );
        Ok(())
    }

    /// Cut the connection, so that whoever waits for an answer gets an error. This matters when our own threads
    /// hang at the source: the process then cannot end, and its connection would not either.
    fn abort(&self) {
        #[cfg(target_os = "linux")]
        if let Some(device) = self.overlay.own_device() {
            // Documentation/filesystems/fuse.rst, "Control filesystem". Usually mounted; without it the
            // connection ends with the process.
            let number = nix::sys::stat::minor(device);
            let path = format!("/sys/fs/fuse/connections/{number}/abort");
            if let Err(error) = std::fs::write(&path, "1") {
                tracing::debug!("{path}: {error}");
            }
        }
    }

    fn has_ended(&self, wait: Duration) -> bool {
        !matches!(
            self.ended.recv_timeout(wait),
            Err(RecvTimeoutError::Timeout)
        )
    }

    /// Unmount; when programs use the mount, send what the kernel holds and take it out of the tree.
    fn detach(&self) -> Result<(), Refused> {
        match unmount_path(&self.mountpoint, false) {
            Ok(()) => Ok(()),
            Err(Errno::EBUSY) => {
                if let Ok(dir) = std::fs::File::open(&self.mountpoint) {
                    let _ = crate::sys::syncfs(std::os::fd::AsFd::as_fd(&dir));
                }
                unmount_path(&self.mountpoint, true).or_else(|errno| self.not_unmounted(errno))
            }
            Err(errno) => self.not_unmounted(errno),
        }
    }

    fn not_unmounted(&self, errno: Errno) -> Result<(), Refused> {
        if self.has_ended(config::LINGER) {
            // Somebody else unmounted it meanwhile.
            return Ok(());
        }
        refuse(format!(
            "cannot unmount {}: {}",
            self.mountpoint.display(),
            errno.desc()
        ))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::error!("{error}");
        }
    }
}

/// `warmfs umount`.
pub fn umount(mountpoint: &Path, lazy: bool) -> Result<(), Refused> {
    let typed = mountpoint.display();
    let path = absolute(mountpoint)
        .map_err(|error| Refused(format!("cannot unmount {typed}: {}", text(&error))))?;
    match mount_at(&path) {
        None => {
            return refuse(format!(
                "nothing is mounted at {typed}; mounts of warmfs are listed by: findmnt -t {FS_TYPE}"
            ));
        }
        Some(fstype) if fstype != FS_TYPE => {
            return refuse(format!(
                "{typed} is not a warmfs mount (its type is {fstype}); use umount(8)"
            ));
        }
        Some(_) => {}
    }
    match unmount_path(&path, lazy) {
        Ok(()) => Ok(()),
        Err(Errno::EBUSY) => refuse(format!(
            "{typed} is in use (fuser -vm {typed} shows by whom); end those programs, or run: warmfs umount --lazy {typed}"
        )),
        Err(errno) => refuse(format!("cannot unmount {typed}: {}", errno.desc())),
    }
}

/// The path without asking the mount itself, whose daemon may be gone: only its parent is resolved.
fn absolute(path: &Path) -> io::Result<PathBuf> {
    if let Ok(path) = path.canonicalize() {
        return Ok(path);
    }
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) if parent.as_os_str().is_empty() => {
            Ok(std::env::current_dir()?.join(name))
        }
        (Some(parent), Some(name)) => Ok(parent.canonicalize()?.join(name)),
        _ => path.canonicalize(),
    }
}

#[cfg(target_os = "linux")]
fn unmount_path(path: &Path, lazy: bool) -> Result<(), Errno> {
    use nix::mount::{MntFlags, umount2};
    let mut flags = MntFlags::UMOUNT_NOFOLLOW;
    if lazy {
        flags |= MntFlags::MNT_DETACH;
    }
    match umount2(path, flags) {
        Err(Errno::EPERM) => {
            // Only root may unmount; fusermount3 does it for the user who mounted.
            let mut helper = std::process::Command::new("fusermount3");
            helper
                .arg(if lazy { "-uz" } else { "-u" })
                .arg("--")
                .arg(path);
            match helper.output() {
                Ok(output) if output.status.success() => Ok(()),
                Ok(output) if String::from_utf8_lossy(&output.stderr).contains("busy") => {
                    Err(Errno::EBUSY)
                }
                _ => Err(Errno::EPERM),
            }
        }
        other => other,
    }
}

#[cfg(target_os = "macos")]
fn unmount_path(path: &Path, lazy: bool) -> Result<(), Errno> {
    let flags = if lazy {
        nix::mount::MntFlags::MNT_FORCE
    } else {
        nix::mount::MntFlags::empty()
    };
    nix::mount::unmount(path, flags)
}
