//! `warmfs warm` and `warmfs evict`: programs that ask mounts ([`crate::ask`]), and need nothing else of them.
//!
//! A process that waits for a source which does not answer cannot be ended, by nobody. So `warmfs warm` is two: this
//! one never touches the mount, and can always end at Ctrl-C; the other (`--worker`) does the work, and ends when its
//! standard input does, or as soon as the source lets it.

mod queue;
mod tally;
mod tree;

use crate::ask;
use crate::cli::{EvictArgs, WarmArgs};
use crate::mount::Refused;
use crossbeam_channel::Receiver;
use indicatif::{BinaryBytes, ProgressBar, ProgressStyle};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};
use tally::Tally;
use tree::Tree;

/// After Ctrl-C the worker has this long to say how far it got, which it does at once unless it is stopped itself.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How often the bar is drawn anew.
const TICK: Duration = Duration::from_millis(100);

/// What shells make of a program that was ended by SIGINT.
const INTERRUPTED: u8 = 128 + Signal::SIGINT as u8;

enum Event {
    Signal,
    Ended(io::Result<ExitStatus>),
}

/// `warmfs warm`.
pub fn run(args: &WarmArgs) -> Result<ExitCode, Refused> {
    let refused = |error: &dyn std::fmt::Display| Refused::new(format!("cannot start: {error}"));
    if args.worker {
        return work(args).map_err(|error| refused(&error));
    }
    let (tell, events) = crossbeam_channel::unbounded();
    let ended = tell.clone();
    ctrlc::set_handler(move || {
        // Fails when the end has come already.
        let _ = tell.send(Event::Signal);
    })
    .map_err(|error| refused(&error))?;
    let mut worker = start_worker().map_err(|error| refused(&error))?;
    let (pid, leash) = (worker.id(), worker.stdin.take());
    thread::spawn(move || ended.send(Event::Ended(worker.wait())));
    match events.recv() {
        Ok(Event::Ended(status)) => return Ok(exit_code(status)),
        Ok(Event::Signal) | Err(_) => drop(leash),
    }
    let deadline = Instant::now() + LAST_WORDS;
    loop {
        match events.recv_deadline(deadline) {
            Ok(Event::Signal) => {}
            Ok(Event::Ended(_)) => break,
            Err(_) => {
                // It has said what it had to say, and hangs in the kernel: this ends it when the source answers.
                let _ = kill(Pid::from_raw(pid as i32), Signal::SIGKILL);
                break;
            }
        }
    }
    Ok(ExitCode::from(INTERRUPTED))
}

/// Start this program once more, with the same words.
fn start_worker() -> io::Result<Child> {
    Command::new(std::env::current_exe()?)
        .args(["warm", "--worker"])
        .args(std::env::args_os().skip(2))
        .stdin(Stdio::piped())
        .spawn()
}

fn exit_code(status: io::Result<ExitStatus>) -> ExitCode {
    match status.ok().and_then(|status| status.code()) {
        Some(code @ 0..=255) => ExitCode::from(code as u8),
        _ => ExitCode::FAILURE,
    }
}

fn work(args: &WarmArgs) -> Result<ExitCode, Box<dyn std::error::Error>> {
    // A terminal tells both processes of Ctrl-C; the other one decides.
    ctrlc::set_handler(|| {})?;
    let (stop, stopped) = crossbeam_channel::bounded(0);
    thread::Builder::new().spawn(move || {
        // It never says anything, and ends when that process has let go of it, or is gone.
        let _ = io::stdin().read(&mut [0]);
        drop(stop);
    })?;
    let tally = Arc::new(Tally::default());
    let tree = Tree::new(args.jobs, tally.clone());
    let done = tree.start(&args.paths)?;
    let begun = Instant::now();
    let is_interrupted = watch(args.quiet, &tally, &done, &stopped);
    let say = tally.summary(begun.elapsed(), is_interrupted);
    tree.complain();
    if !args.quiet {
        println!("{say}");
    }
    let code = if is_interrupted {
        INTERRUPTED
    } else {
        u8::from(!tree.is_all_warm())
    };
    // Threads may hang in the kernel: nobody waits for them.
    std::process::exit(code.into())
}

/// Draw until all is done (false) or somebody wants no more (true).
fn watch(quiet: bool, tally: &Tally, done: &Receiver<()>, stopped: &Receiver<()>) -> bool {
    let bar = (!quiet && io::stderr().is_terminal()).then(|| {
        let bar = ProgressBar::new(0);
        let look = "{percent:>3}% {wide_bar} {binary_bytes}/{msg} {binary_bytes_per_sec} {eta}";
        if let Ok(style) = ProgressStyle::with_template(look) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar
    });
    loop {
        let is_interrupted = crossbeam_channel::select! {
            recv(done) -> _ => Some(false),
            recv(stopped) -> _ => Some(true),
            default(TICK) => None,
        };
        if let Some(bar) = &bar {
            tally.show(bar);
        }
        if let Some(is_interrupted) = is_interrupted {
            if let Some(bar) = &bar {
                bar.finish_and_clear();
            }
            return is_interrupted;
        }
    }
}

/// `warmfs evict`.
pub fn evict(args: &EvictArgs) -> ExitCode {
    let mut code = ExitCode::SUCCESS;
    let mut sum = ask::Evicted::default();
    for path in &args.paths {
        let evicted = open_asked(path).and_then(|(file, _)| Ok(ask::evict(file.as_fd())?));
        match evicted {
            Ok(evicted) => {
                sum.files += evicted.files;
                sum.bytes += evicted.bytes;
            }
            Err(error) => {
                eprintln!("warmfs: {}", why(path, &error));
                code = ExitCode::FAILURE;
            }
        }
    }
    if !args.quiet {
        let (files, bytes) = (sum.files, BinaryBytes(sum.bytes));
        println!("evicted {bytes} of {files} {}", files_word(files));
    }
    code
}

fn files_word(count: u64) -> &'static str {
    if count == 1 { "file" } else { "files" }
}

/// Open to ask, and ask who is there.
fn open_asked(path: &Path) -> io::Result<(File, ask::About)> {
    let file = open(path)?;
    let about = ask::about(file.as_fd())?;
    Ok((file, about))
}

/// Open for reading; never waits for the other end of a pipe, nor becomes the owner of a terminal.
fn open(path: &Path) -> io::Result<File> {
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    File::options().read(true).custom_flags(flags).open(path)
}

/// One line for a person.
fn why(path: &Path, error: &io::Error) -> String {
    let path = path.display();
    match Errno::from_raw(error.raw_os_error().unwrap_or_default()) {
        // What file systems say to an ioctl that they do not know.
        Errno::ENOTTY | Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP => format!(
            "{path} is not on a warmfs mount of this version; give a name below a mount point, and mount again what an \
             older warmfs mounted"
        ),
        _ => format!("{path}: {}", crate::mount::text(error)),
    }
}
