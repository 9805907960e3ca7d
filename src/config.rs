//! What will be done: validated settings, and every default with its reason.

use crate::overlay::Limits;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

/// Memory tier. It is the second level below the kernel's page cache, which holds what is hot; 256 MiB keep
/// the working set of an editor, a build or a player warm across the kernel's reclaim, and are noticed on no
/// desktop.
pub const MEMORY_DEFAULT: u64 = 256 << 20;

/// How long attributes and contents are believed. One second is what FUSE file systems use by default and what
/// users of the peers are used to; a person does not notice it, and a build or a walk asks each name once.
pub const TTL_DEFAULT: Duration = Duration::from_secs(1);

/// A trust of more than a year is a typing error.
pub const TTL_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

/// I/O threads at most. They start on demand and spend their time waiting: 64 let 64 requests be under way at
/// a source of 20 ms, which is where such sources stop getting faster, and leave room when some hang.
pub const IO_THREADS_DEFAULT: usize = 64;

/// More threads than this only cost memory.
pub const IO_THREADS_MAX: usize = 1024;

/// Reads that warmfs itself keeps in flight at the source, ahead of programs. At 20 ms and 128 KiB a request, 32 of them
/// are 200 MB/s, which is more than most sources give to one client; what programs wait for comes on top
/// ([`IO_THREADS_DEFAULT`]). Of questions about names, which carry no data, twice as many are kept in flight.
pub const PARALLEL_DEFAULT: usize = 32;

/// How far reading runs ahead of a program that reads on. Enough for [`PARALLEL_DEFAULT`] requests of 128 KiB in flight
/// (4 MiB) and as much again, so that the next are under way before the program has taken the last.
pub const READAHEAD_DEFAULT: u64 = 8 << 20;

/// A longer window than this only fills memory.
pub const READAHEAD_MAX: u64 = 1 << 30;

/// What `warmfs warm` reads at once. Small files cost several requests one after the other (look up, open, stat, read):
/// of a source of 20 ms, 1,000 files of 40 kB took 10.3 s with 16, 6.1 s with 32 and 4.2 s with 64, which would have taken
/// all of [`IO_THREADS_DEFAULT`] from programs.
pub const WARM_JOBS_DEFAULT: usize = 32;

/// More threads than this only wait for one another.
pub const WARM_JOBS_MAX: usize = 256;

/// FUSE threads. They only look up and reply, so few are needed; 4 measured best for 1 to 8 clients on 2 and on
/// more processors. macOS knows one.
pub const FUSE_THREADS: usize = if cfg!(target_os = "linux") { 4 } else { 1 };

/// Largest read and write request: what Linux allows (256 pages, `fs.fuse.max_pages_limit`). Programs that read past the
/// page cache get a megabyte in one round trip; the page cache itself asks for 128 KiB at a time.
pub const REQUEST_BYTES_MAX: u32 = 1 << 20;

/// Background requests (the page cache's own read-ahead, releases) that the kernel keeps in flight. Its default of 12 is
/// fewer than a slow source needs to be kept busy, and a hung file could use them up; 64 are what the I/O threads take.
pub const BACKGROUND_MAX: u16 = 64;

/// Nodes remembered after the kernel forgot them: about 500 bytes each, so some 30 MB in the worst case.
const IDLE_NODES: usize = 65_536;

/// Directory handles: they save one or two system calls for each path component. A process that keeps no more
/// than an eighth of its descriptors for each kind cannot run out of them by itself.
const DIR_HANDLES_MAX: usize = 1024;

/// Descriptors for reading kept after the last close.
const READ_HANDLES_MAX: usize = 512;

/// How long they are kept: a program that reads a tree opens most files again within seconds; longer would
/// keep the space of files that are removed elsewhere.
pub const READ_HANDLE_IDLE: Duration = Duration::from_secs(5);

/// A file that was opened from memory alone is opened in the source when it is still open after this: most are closed
/// sooner, and cost the source nothing; the others are then what they were, whatever is renamed over them.
pub const BACK_AFTER: Duration = Duration::from_millis(250);

/// When told to end while files are open, wait this long for programs to close them after the mount has
/// gone from the tree: enough for a shell that only had it as its directory.
pub const LINGER: Duration = Duration::from_millis(500);

/// At the end, wait this long for requests that are still at the source. What hangs longer was answered to
/// nobody, so nothing that a program was promised is lost.
pub const DRAIN: Duration = Duration::from_secs(5);

/// A mount to be made.
#[derive(Clone, PartialEq, Debug)]
pub struct MountConfig {
    /// Directory to mirror, as an absolute path.
    pub source: PathBuf,
    /// Where the view appears, as an absolute path.
    pub mountpoint: PathBuf,
    /// Refuse all changes.
    pub read_only: bool,
    /// Let other users in.
    pub allow_other: bool,
    /// Let the kernel check permissions by mode bits and ACLs.
    pub kernel_checks: bool,
    /// The mount point may have entries, which the mount then hides.
    pub nonempty: bool,
    /// Bytes of the memory tier.
    pub memory: u64,
    /// How long attributes and contents are believed.
    pub ttl: Duration,
    /// How long attributes are believed at most, of files that stay as they are; at least `ttl`.
    pub ttl_max: Duration,
    /// Most I/O threads.
    pub io_threads: usize,
    /// Requests in flight ahead of programs.
    pub parallel: usize,
    /// Most bytes that reading runs ahead of one program; none with 0.
    pub readahead: u64,
    /// Whether the source's file system tells of changes.
    pub watch: Watch,
    /// Flags of mount(8), as `-o` took them.
    pub flags: Vec<MountFlag>,
    /// Name of the source in the list of mounts; the source's path when not given.
    pub fsname: Option<String>,
}

/// Whether changes in the source are told (inotify, FSEvents) or asked for.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Watch {
    /// Told, where the source is on a local file system.
    #[default]
    Auto,
    /// Told: nobody changes the source but through this machine.
    On,
    /// Asked for.
    Off,
}

/// A flag of mount(8) that the kernel honours on this mount.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[allow(missing_docs, reason = "the names are those of mount(8)")]
pub enum MountFlag {
    Suid,
    NoSuid,
    Dev,
    NoDev,
    Exec,
    NoExec,
    Atime,
    NoAtime,
    Sync,
    Async,
    DirSync,
}

/// `-o` options that mean something, with what they set.
#[derive(Clone, PartialEq, Debug)]
pub enum MountOpt {
    /// A kernel flag.
    Flag(MountFlag),
    /// `ro` or `rw`.
    ReadOnly(bool),
    /// `allow_other`.
    AllowOther,
    /// `default_permissions`.
    DefaultPermissions,
    /// `nonempty`.
    Nonempty,
    /// `fsname=`.
    FsName(String),
    /// `memory=`.
    Memory(u64),
    /// `ttl=`.
    Ttl(Duration),
    /// `ttl_max=`.
    TtlMax(Duration),
    /// `io_threads=`.
    IoThreads(usize),
    /// `parallel=`.
    Parallel(usize),
    /// `readahead=`.
    Readahead(u64),
    /// `watch=`.
    Watch(Watch),
    /// Addressed to mount(8), systemd or the boot scripts, not to us.
    Ignored,
}

impl std::str::FromStr for MountOpt {
    type Err = String;

    fn from_str(text: &str) -> Result<MountOpt, String> {
        use MountFlag as F;
        if let Some((key, value)) = text.split_once('=') {
            return match key {
                "fsname" => Ok(MountOpt::FsName(value.into())),
                "memory" => parse_memory(value).map(MountOpt::Memory),
                "ttl" => parse_ttl(value).map(MountOpt::Ttl),
                "ttl_max" => parse_ttl(value).map(MountOpt::TtlMax),
                "io_threads" => parse_io_threads(value).map(MountOpt::IoThreads),
                "parallel" => parse_parallel(value).map(MountOpt::Parallel),
                "readahead" => parse_readahead(value).map(MountOpt::Readahead),
                "watch" => clap::ValueEnum::from_str(value, false)
                    .map(MountOpt::Watch)
                    .map_err(|_| "watch= takes auto, on or off".into()),
                _ if key.starts_with("x-") || key == "comment" || key == "subtype" => {
                    Ok(MountOpt::Ignored)
                }
                _ => Err(unknown_option(text)),
            };
        }
        Ok(match text {
            "ro" => MountOpt::ReadOnly(true),
            "rw" => MountOpt::ReadOnly(false),
            "suid" => MountOpt::Flag(F::Suid),
            "nosuid" => MountOpt::Flag(F::NoSuid),
            "dev" => MountOpt::Flag(F::Dev),
            "nodev" => MountOpt::Flag(F::NoDev),
            "exec" => MountOpt::Flag(F::Exec),
            "noexec" => MountOpt::Flag(F::NoExec),
            "atime" => MountOpt::Flag(F::Atime),
            "noatime" => MountOpt::Flag(F::NoAtime),
            "sync" => MountOpt::Flag(F::Sync),
            "async" => MountOpt::Flag(F::Async),
            "dirsync" => MountOpt::Flag(F::DirSync),
            "allow_other" => MountOpt::AllowOther,
            "default_permissions" => MountOpt::DefaultPermissions,
            "nonempty" => MountOpt::Nonempty,
            "defaults" | "auto" | "noauto" | "user" | "nouser" | "users" | "nofail" | "_netdev"
            | "relatime" | "strictatime" => MountOpt::Ignored,
            _ if text.starts_with("x-") => MountOpt::Ignored,
            _ => return Err(unknown_option(text)),
        })
    }
}

fn unknown_option(text: &str) -> String {
    format!(
        "unknown option '{text}'; known are ro, rw, [no]suid, [no]dev, [no]exec, [no]atime, sync, async, \
         dirsync, allow_other, default_permissions, nonempty, fsname=, memory=, ttl=, ttl_max=, io_threads=, \
         parallel=, readahead=, watch="
    )
}

/// Bytes from "64M", "1.5GiB", "100000": units are powers of 1024, as in mount options everywhere.
pub fn parse_memory(text: &str) -> Result<u64, String> {
    parse_size::Config::new()
        .with_binary()
        .parse_size(text)
        .map_err(|error| format!("{error}; give bytes or a unit, like 64M or 2G"))
}

/// Seconds, with a fraction if wanted.
pub fn parse_ttl(text: &str) -> Result<Duration, String> {
    let hint = "give seconds, like 0, 0.5 or 60";
    let seconds: f64 = text.parse().map_err(|error| format!("{error}; {hint}"))?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(ttl) if ttl <= TTL_MAX => Ok(ttl),
        _ => Err(format!("out of range; {hint}, at most a year")),
    }
}

/// Number of I/O threads.
pub fn parse_io_threads(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(threads @ 4..=IO_THREADS_MAX) => Ok(threads),
        _ => Err(format!("give a number from 4 to {IO_THREADS_MAX}")),
    }
}

/// Number of requests in flight ahead of programs.
pub fn parse_parallel(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(requests @ 1..=IO_THREADS_MAX) => Ok(requests),
        _ => Err(format!("give a number from 1 to {IO_THREADS_MAX}")),
    }
}

/// Number of files that `warmfs warm` reads at once.
pub fn parse_jobs(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(jobs @ 1..=WARM_JOBS_MAX) => Ok(jobs),
        _ => Err(format!("give a number from 1 to {WARM_JOBS_MAX}")),
    }
}

/// Bytes of the read-ahead window.
pub fn parse_readahead(text: &str) -> Result<u64, String> {
    match parse_memory(text)? {
        bytes @ 0..=READAHEAD_MAX => Ok(bytes),
        _ => Err("give at most 1G; 0 reads nothing ahead".into()),
    }
}

/// Limits of the overlay for a process that may have `descriptors` open.
pub fn limits(descriptors: u64) -> Limits {
    let share = usize::try_from(descriptors / 8).unwrap_or(usize::MAX);
    let at_most = |most: usize| NonZeroUsize::new(share.min(most)).unwrap_or(NonZeroUsize::MIN);
    Limits {
        idle_nodes: IDLE_NODES,
        dir_handles: at_most(DIR_HANDLES_MAX),
        read_handles: at_most(READ_HANDLES_MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_binary_and_mistakes_say_what_to_give() {
        assert_eq!(parse_memory("64M"), Ok(64 << 20));
        assert_eq!(parse_memory("1.5 GiB"), Ok(3 << 29));
        assert_eq!(parse_memory("4096"), Ok(4096));
        for wrong in ["", "64Q", "-1", "lots"] {
            let error = parse_memory(wrong).expect_err(wrong);
            assert!(error.contains("like 64M"), "{error}");
        }
    }

    #[test]
    fn a_ttl_is_a_number_of_seconds() {
        assert_eq!(parse_ttl("0"), Ok(Duration::ZERO));
        assert_eq!(parse_ttl("0.25"), Ok(Duration::from_millis(250)));
        for wrong in ["", "-1", "NaN", "inf", "1e30", "1s"] {
            assert!(parse_ttl(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn options_of_others_are_ignored_and_unknown_ones_named() {
        assert_eq!("_netdev".parse(), Ok(MountOpt::Ignored));
        assert_eq!("x-systemd.automount".parse(), Ok(MountOpt::Ignored));
        assert_eq!("memory=1M".parse(), Ok(MountOpt::Memory(1 << 20)));
        let error = "bogus".parse::<MountOpt>().expect_err("unknown");
        assert!(
            error.contains("'bogus'") && error.contains("noatime") || error.contains("[no]atime")
        );
    }

    #[test]
    fn descriptors_are_shared_out_and_never_none() {
        assert_eq!(limits(1024).read_handles.get(), 128);
        assert_eq!(limits(0).dir_handles.get(), 1);
        assert_eq!(limits(u64::MAX).dir_handles.get(), DIR_HANDLES_MAX);
    }
}
