//! What was typed: subcommands, flags and help texts. No I/O.

use crate::config::{self, MountConfig, MountOpt, Watch};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;
use std::time::Duration;

/// A cached, writable view of a slow directory.
#[derive(Parser, Debug)]
#[command(
    name = "warmfs",
    version,
    about,
    long_about = "warmfs mounts a cached, writable view of a slow directory (NFS, SMB, sshfs, a spinning disk, a cloud \
                  mount), so that programs read it at local speed. Writes go to the source before they return; the \
                  cache may be lost at any time without loss of data.",
    after_help = "Examples:\n  \
                  warmfs mount /mnt/nas ~/nas             mount, return when it is ready\n  \
                  warmfs mount --ttl 60 /mnt/nas ~/nas    believe what was seen for a minute\n  \
                  warmfs umount ~/nas                     unmount, also after a crash\n  \
                  warmfs warm ~/nas/photos                read a tree into the cache, with a progress bar\n  \
                  warmfs hook test hooks.toml             try hooks and plugins without a mount"
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Mount a cached view of SOURCE at MOUNTPOINT
    Mount(MountArgs),
    /// Unmount MOUNTPOINT; also one whose daemon is gone
    Umount(UmountArgs),
    /// Read files and trees on a mount into its cache, ahead of their use
    Warm(WarmArgs),
    /// Drop what is cached of files and trees on a mount
    Evict(EvictArgs),
    /// Hooks: what happens on a mount, told to plugins
    #[command(subcommand)]
    Hook(HookCommand),
}

/// The subcommands of `warmfs hook`.
#[derive(Subcommand, Debug)]
pub enum HookCommand {
    /// Check a configuration, run its plugins on sample events, and show what they would do
    Test(HookTestArgs),
}

/// Arguments of `warmfs hook test`.
#[derive(Args, Debug)]
pub struct HookTestArgs {
    /// Configuration with hook rules and plugin tables (TOML)
    #[arg(required_unless_present = "hook")]
    pub config: Option<PathBuf>,

    /// One more rule, as with `warmfs mount`
    #[arg(long, value_name = "RULE")]
    pub hook: Vec<String>,

    /// Path of the file that the sample events are about; without it one that each rule matches is made up
    #[arg(long, value_name = "PATH")]
    pub path: Option<PathBuf>,
}

/// Arguments of `warmfs mount`.
#[derive(Args, Debug)]
pub struct MountArgs {
    /// Directory to mirror
    pub source: PathBuf,

    /// Empty directory where the view appears
    pub mountpoint: PathBuf,

    /// Stay in the foreground, log to standard error; Ctrl-C unmounts
    #[arg(short, long)]
    pub foreground: bool,

    /// Refuse all changes
    #[arg(short, long)]
    pub read_only: bool,

    /// Let other users in (a user other than root needs user_allow_other in /etc/fuse.conf)
    #[arg(long)]
    pub allow_other: bool,

    /// Memory for cached file contents: bytes, or with a unit like 64M or 2G
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = config::parse_memory)]
    pub memory: u64,

    /// How long contents and attributes are believed before the source is asked again; with 0 it is asked at
    /// every access
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = config::parse_ttl)]
    pub ttl: Duration,

    /// Believe attributes of files that stay as they are for longer and longer, up to this; by default no longer
    /// than --ttl
    #[arg(long, value_name = "SECONDS", value_parser = config::parse_ttl)]
    pub ttl_max: Option<Duration>,

    /// How far to read ahead of a program that reads on: bytes, or with a unit; 0 reads nothing ahead
    #[arg(long, value_name = "SIZE", default_value = "8M", value_parser = config::parse_readahead)]
    pub readahead: u64,

    /// Requests kept in flight at the source ahead of programs (read-ahead, directory walks)
    #[arg(long, value_name = "N", default_value_t = config::PARALLEL_DEFAULT, value_parser = config::parse_parallel)]
    pub parallel: usize,

    /// Learn of changes in the source from its file system instead of asking: auto does so for local ones; on is
    /// for others that nobody changes but through this machine
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    pub watch: Watch,

    /// What to log
    #[arg(long, value_name = "LEVEL", default_value = "warn")]
    pub log: LogLevel,

    /// Append the log to FILE; without it a mount in the background logs nothing
    #[arg(long, value_name = "FILE")]
    pub log_file: Option<PathBuf>,

    /// Requests of programs that may be under way at the source at once
    #[arg(long, value_name = "N", default_value_t = config::IO_THREADS_DEFAULT, value_parser = config::parse_io_threads)]
    pub io_threads: usize,

    /// Hooks and plugins: a TOML file that nobody but you (or root) may write
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// One more hook rule, as TOML in one line:
    /// 'events=["on_read"], include=["*.flac"], plugin={type="log", file="reads.jsonl"}'
    #[arg(long, value_name = "RULE")]
    pub hook: Vec<String>,

    /// Options of mount(8), separated by commas: ro, suid, dev, noexec, noatime, allow_other,
    /// default_permissions, fsname=NAME, nonempty ... By default nosuid and nodev
    #[arg(short = 'o', value_name = "OPTIONS", value_delimiter = ',')]
    pub options: Vec<MountOpt>,

    /// The daemon's half of a mount in the background: say "ready" on standard output, then part from the
    /// terminal
    #[arg(long, hide = true)]
    pub daemon: bool,
}

/// Arguments of `warmfs umount`.
#[derive(Args, Debug)]
pub struct UmountArgs {
    /// Where the view is mounted
    pub mountpoint: PathBuf,

    /// Take the mount away at once, even when programs still use it; they may finish
    #[arg(short, long)]
    pub lazy: bool,
}

/// Arguments of `warmfs warm`.
#[derive(Args, Debug)]
#[command(after_help = "\
Trees are walked without following symbolic links or leaving the mount. What is in the cache already is not read again, \
so a run that was interrupted goes on where it was when it is started once more.

The cache holds as much as the mount was given with --memory. What was used longest ago makes room; but files that do \
not fit beside what this run has warmed before are left out and told, instead of pushing that out.

Exit status: 0 when all is warm; 1 when something could not be read or did not fit; 130 after Ctrl-C.")]
pub struct WarmArgs {
    /// Files and directories on warmfs mounts
    #[arg(required = true, value_name = "PATH")]
    pub paths: Vec<PathBuf>,

    /// Files, or parts of large files, read at once
    #[arg(short, long, value_name = "N", default_value_t = config::WARM_JOBS_DEFAULT, value_parser = config::parse_jobs)]
    pub jobs: usize,

    /// Show no progress and no summary, only what went wrong
    #[arg(short, long)]
    pub quiet: bool,

    /// The half that touches the mount: ends when its standard input does
    #[arg(long, hide = true)]
    pub worker: bool,
}

/// Arguments of `warmfs evict`.
#[derive(Args, Debug)]
#[command(after_help = "\
Of a directory, all that is cached of what is below it. Nothing is lost: what is read next comes from the source.")]
pub struct EvictArgs {
    /// Files and directories on warmfs mounts
    #[arg(required = true, value_name = "PATH")]
    pub paths: Vec<PathBuf>,

    /// Show no summary, only what went wrong
    #[arg(short, long)]
    pub quiet: bool,
}

/// How much is logged.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the names say it")]
pub enum LogLevel {
    Off,
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl LogLevel {
    /// As the log library has it.
    pub fn filter(self) -> tracing_subscriber::filter::LevelFilter {
        use tracing_subscriber::filter::LevelFilter;
        match self {
            LogLevel::Off => LevelFilter::OFF,
            LogLevel::Error => LevelFilter::ERROR,
            LogLevel::Warn => LevelFilter::WARN,
            LogLevel::Info => LevelFilter::INFO,
            LogLevel::Debug => LevelFilter::DEBUG,
            LogLevel::Trace => LevelFilter::TRACE,
        }
    }
}

impl MountArgs {
    /// The mount that was asked for, with its paths as they were typed. `is_root`: the daemon's user is root.
    pub fn config(&self, is_root: bool) -> MountConfig {
        let mut config = MountConfig {
            source: self.source.clone(),
            mountpoint: self.mountpoint.clone(),
            read_only: self.read_only,
            allow_other: self.allow_other,
            kernel_checks: is_root,
            nonempty: false,
            memory: self.memory,
            ttl: self.ttl,
            ttl_max: self.ttl,
            io_threads: self.io_threads,
            parallel: self.parallel,
            readahead: self.readahead,
            watch: self.watch,
            flags: Vec::new(),
            fsname: None,
        };
        let mut ttl_max = self.ttl_max;
        for option in &self.options {
            match option {
                MountOpt::Flag(flag) => config.flags.push(*flag),
                MountOpt::ReadOnly(read_only) => config.read_only = *read_only,
                MountOpt::AllowOther => config.allow_other = true,
                MountOpt::DefaultPermissions => config.kernel_checks = true,
                MountOpt::Nonempty => config.nonempty = true,
                MountOpt::FsName(name) => config.fsname = Some(name.clone()),
                MountOpt::Memory(memory) => config.memory = *memory,
                MountOpt::Ttl(ttl) => config.ttl = *ttl,
                MountOpt::TtlMax(ttl) => ttl_max = Some(*ttl),
                MountOpt::IoThreads(threads) => config.io_threads = *threads,
                MountOpt::Parallel(requests) => config.parallel = *requests,
                MountOpt::Readahead(bytes) => config.readahead = *bytes,
                MountOpt::Watch(watch) => config.watch = *watch,
                MountOpt::Ignored => {}
            }
        }
        config.ttl_max = config.ttl.max(ttl_max.unwrap_or_default());
        // Others must be held to the permissions of the files: the daemon itself may do all its user may.
        config.kernel_checks |= config.allow_other;
        config
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn mount(args: &[&str]) -> MountConfig {
        let words = ["warmfs", "mount"].iter().chain(args);
        match Cli::try_parse_from(words).expect("valid").command {
            Command::Mount(args) => args.config(false),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_of_mount_8_win_over_flags() {
        let config = mount(&["-o", "ro,noexec,memory=1M", "-o", "allow_other", "/a", "/b"]);
        assert!(config.read_only && config.allow_other && config.kernel_checks);
        assert_eq!(config.memory, 1 << 20);
        assert_eq!(config.flags, [config::MountFlag::NoExec]);
    }

    #[test]
    fn a_users_own_mount_leaves_permissions_to_the_source() {
        assert!(!mount(&["/a", "/b"]).kernel_checks);
    }

    #[test]
    fn defaults_are_those_of_the_configuration() {
        let config = mount(&["/a", "/b"]);
        assert_eq!(config.memory, config::MEMORY_DEFAULT);
        assert_eq!(config.ttl, config::TTL_DEFAULT);
        assert_eq!(config.ttl_max, config::TTL_DEFAULT);
        assert_eq!(config.readahead, config::READAHEAD_DEFAULT);
    }

    #[test]
    fn warming_takes_many_paths_and_no_path_is_a_mistake() {
        let parse = |words: &[&str]| Cli::try_parse_from(["warmfs"].iter().chain(words));
        match parse(&["warm", "-j", "3", "-q", "a", "b"])
            .expect("valid")
            .command
        {
            Command::Warm(args) => {
                assert_eq!((args.jobs, args.quiet, args.paths.len()), (3, true, 2));
            }
            other => panic!("{other:?}"),
        }
        match parse(&["evict", "--", "-a"]).expect("valid").command {
            Command::Evict(args) => assert_eq!(args.paths, [PathBuf::from("-a")]),
            other => panic!("{other:?}"),
        }
        for wrong in [&["warm"][..], &["evict"], &["warm", "-j", "0", "a"]] {
            parse(wrong).expect_err("a mistake");
        }
    }
}
