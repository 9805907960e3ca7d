//! The process around a mount: foreground or background, signals, the log.
//!
//! A mount in the background is this program started once more (`--daemon`) in a session of its own. It says
//! "ready" on the pipe that is its standard output, or fails with its line on the standard error that it
//! inherits; either way the caller's exit status tells. No fork without exec, so no state of threads or
//! locks is ever copied.

use crate::cli::{HookTestArgs, LogLevel, MountArgs};
use crate::hooks;
use crate::mount::{self, Refused};
use nix::sys::signal::{SigSet, Signal};
use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

const READY: &str = "ready";

/// `warmfs mount`.
pub fn run(args: &MountArgs) -> Result<ExitCode, Refused> {
    let is_root = nix::unistd::geteuid().is_root();
    let config = mount::check(&args.config(is_root))?;
    let hooks = hooks::Config::load(args.config.as_deref(), &args.hook).map_err(wrong)?;
    hooks.check_logs(&config.mountpoint).map_err(wrong)?;
    if !args.foreground && !args.daemon {
        return start_daemon();
    }
    // Before any thread is started, because they inherit it.
    let hangup = hooks.has_log_file().then(Hangup::block);
    crate::sys::trim_allocator();
    start_log(args)?;
    if args.daemon {
        // Fails only for a process group leader, which a spawned child is not.
        let _ = nix::unistd::setsid();
        let _ = nix::unistd::chdir("/");
    }
    let (signal, stop) = crossbeam_channel::bounded(1);
    let hung_up = signal.clone();
    ctrlc::set_handler(move || {
        // A second signal finds the channel full: the end is on its way.
        let _ = signal.try_send(());
    })
    .map_err(|error| refused("cannot catch signals", &error))?;
    let env = [
        ("WARMFS_SOURCE".to_owned(), config.source.clone().into()),
        (
            "WARMFS_MOUNTPOINT".to_owned(),
            config.mountpoint.clone().into(),
        ),
    ];
    let mounted = mount::mount_with_hooks(&config, None, hooks.start(&env).map_err(wrong)?)?;
    if let (Some(hangup), Some(hooks)) = (hangup, mounted.overlay().hooks()) {
        let is_terminal = std::io::stdin().is_terminal();
        hangup
            .watch(hooks, move || {
                // The terminal is gone: what SIGHUP meant before it meant "open your files again".
                if is_terminal {
                    let _ = hung_up.try_send(());
                }
            })
            .map_err(|error| refused("cannot start threads", &error))?;
    }
    tracing::info!(
        "{} is mounted at {}",
        config.source.display(),
        config.mountpoint.display()
    );
    if args.daemon {
        // Nobody listens any more when the caller was interrupted; the mount is there all the same.
        let _ = writeln!(std::io::stdout(), "{READY}");
        crate::sys::detach_stdio()
            .map_err(|errno| refused("cannot part from the terminal", &errno))?;
    }
    mounted.run(&stop)?;
    Ok(ExitCode::SUCCESS)
}

fn wrong(error: hooks::Wrong) -> Refused {
    Refused::new(error.to_string())
}

/// SIGHUP, for as long as there are log files to be opened again: kept from all threads, so that only the one that waits
/// for it gets it.
struct Hangup(SigSet);

impl Hangup {
    fn block() -> Hangup {
        let mut set = SigSet::empty();
        set.add(Signal::SIGHUP);
        // Fails for a set that the kernel does not know.
        let _ = set.thread_block();
        Hangup(set)
    }

    fn watch(
        self,
        hooks: &Arc<hooks::Hooks>,
        also: impl Fn() + Send + 'static,
    ) -> std::io::Result<()> {
        let hooks = Arc::downgrade(hooks);
        std::thread::Builder::new()
            .name("warmfs-hangup".into())
            .spawn(move || {
                while self.0.wait().is_ok() {
                    match hooks.upgrade() {
                        Some(hooks) => hooks.reopen(),
                        None => return,
                    }
                    also();
                }
            })
            .map(drop)
    }
}

/// `warmfs hook test`.
pub fn hook_test(args: &HookTestArgs) -> Result<ExitCode, Refused> {
    tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::INFO)
        .with_ansi(false)
        .with_target(false)
        .without_time()
        .with_writer(std::io::stderr)
        .init();
    let config = hooks::Config::load(args.config.as_deref(), &args.hook).map_err(wrong)?;
    let is_good =
        hooks::trial::run(&config, args.path.as_deref(), &mut std::io::stdout()).map_err(wrong)?;
    Ok(if is_good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn refused(what: &str, error: &dyn std::fmt::Display) -> Refused {
    Refused::new(format!("{what}: {error}"))
}

/// Start this program again as the daemon, wait for its word.
fn start_daemon() -> Result<ExitCode, Refused> {
    let no_start = |error: std::io::Error| refused("cannot start the daemon", &error);
    let own = std::env::current_exe().map_err(no_start)?;
    // The same words once more, in the same directory: the daemon leaves it only when it has the paths.
    let mut child = Command::new(own)
        .args(["mount", "--daemon"])
        .args(std::env::args_os().skip(2))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(no_start)?;
    let mut line = String::new();
    if let Some(output) = child.stdout.take() {
        // An error here is an empty line, which is handled below.
        let _ = BufReader::new(output).read_line(&mut line);
    }
    if line.trim() == READY {
        return Ok(ExitCode::SUCCESS);
    }
    let status = child.wait().map_err(no_start)?;
    // It has told the reason on the standard error that we share.
    Ok(match status.code() {
        Some(code @ 1..=255) => ExitCode::from(code as u8),
        _ => ExitCode::FAILURE,
    })
}

fn start_log(args: &MountArgs) -> Result<(), Refused> {
    if args.log == LogLevel::Off {
        return Ok(());
    }
    let writer = match &args.log_file {
        Some(path) => {
            let file = std::fs::File::options()
                .create(true)
                .append(true)
                .open(path)
                .map_err(|error| refused(&format!("cannot log to {}", path.display()), &error))?;
            BoxMakeWriter::new(std::sync::Mutex::new(file))
        }
        None => BoxMakeWriter::new(std::io::stderr),
    };
    tracing_subscriber::fmt()
        .with_max_level(args.log.filter())
        .with_ansi(false)
        .with_target(false)
        .with_writer(writer)
        .init();
    Ok(())
}
