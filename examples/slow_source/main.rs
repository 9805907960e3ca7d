//! A slow and faulty copy of a directory, for trying out and measuring warmfs.
//!
//! ```text
//! slow_source SOURCE MOUNTPOINT [--delay 20ms] [--max-read 128K] [--control SOCKET] [--allow-other]
//! slow_source --control SOCKET --ask COMMAND
//! ```
//!
//! Every access to the mount point costs at least one request, and every request takes the delay. It runs until
//! Ctrl-C or SIGTERM, or until somebody unmounts it. With `--control` it listens on a Unix socket: each line is a
//! command and gets one line back (`ok`, `error: ...`, or JSON for `stats`; see [`control`] for the commands).
//! `--ask` sends one command to such a socket; these do the same:
//!
//! ```text
//! echo stats | nc -U SOCKET
//! echo "hang on" | socat - UNIX-CONNECT:SOCKET
//! python3 -c 'import socket as s; c = s.socket(s.AF_UNIX); c.connect("SOCKET"); c.send(b"delay 5ms\n"); print(c.recv(99))'
//! ```

mod control;
mod fs;

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

/// Shows a directory at a mount point, slowly.
#[derive(Parser)]
struct Arguments {
    /// The directory to show.
    #[arg(required_unless_present = "ask")]
    source: Option<PathBuf>,
    /// An empty directory outside it.
    #[arg(required_unless_present = "ask")]
    mountpoint: Option<PathBuf>,
    /// How long each request takes: 20ms, 1.5s, 300us.
    #[arg(long, default_value = "20ms", value_parser = control::duration)]
    delay: Duration,
    /// The most bytes that one request reads or writes: 4096 to 1M, a multiple of 4096.
    #[arg(long, default_value = "128K", value_parser = control::size)]
    max_read: u32,
    /// A Unix socket to make, which takes commands.
    #[arg(long, value_name = "SOCKET")]
    control: Option<PathBuf>,
    /// Mount nothing: send this command to the socket of a running one, and print the answer.
    #[arg(
        long,
        value_name = "COMMAND",
        requires = "control",
        conflicts_with = "source"
    )]
    ask: Option<String>,
    /// Let other users in.
    #[arg(long)]
    allow_other: bool,
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("slow_source: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> io::Result<()> {
    let named = |path: &Path, error| io::Error::other(format!("{}: {error}", path.display()));
    let (source, mountpoint) = match (&arguments.ask, &arguments.control) {
        (Some(command), Some(socket)) => {
            let answer = control::ask(socket, command).map_err(|error| named(socket, error))?;
            println!("{answer}");
            return Ok(());
        }
        _ => (
            arguments.source.unwrap_or_default(),
            arguments.mountpoint.unwrap_or_default(),
        ),
    };
    let Arguments {
        delay,
        max_read,
        control,
        allow_other,
        ..
    } = arguments;
    for path in [&source, &mountpoint] {
        path.metadata().map_err(|error| named(path, error))?;
    }
    // Before the mount: a signal that comes while it is being made must not leave it behind.
    let (stop, stopped) = crossbeam_channel::bounded(1);
    ctrlc::set_handler(move || {
        let _ = stop.try_send(());
    })
    .map_err(io::Error::other)?;
    let mounted = fs::SlowSource::mount(
        &source,
        &mountpoint,
        fs::Options {
            delay,
            max_read,
            allow_other,
        },
    )
    .map_err(|error| named(&mountpoint, error))?;
    let listening = match &control {
        Some(path) => Some(
            control::Server::start(path, mounted.control()).map_err(|error| named(path, error))?,
        ),
        None => None,
    };
    println!(
        "slow_source: {} at {}, {delay:?} per request",
        source.display(),
        mountpoint.display()
    );
    // Whoever unmounts it from outside ends it too.
    while mounted.is_mounted() && stopped.recv_timeout(Duration::from_millis(200)).is_err() {}
    drop((listening, mounted));
    Ok(())
}
