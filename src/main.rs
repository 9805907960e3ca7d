//! The `warmfs` command: parse, run, exit code.

use clap::Parser;
use std::process::ExitCode;
use warmfs::cli::{Cli, Command, HookCommand};

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Mount(args) => warmfs::daemon::run(&args),
        Command::Umount(args) => {
            warmfs::mount::umount(&args.mountpoint, args.lazy).map(|()| ExitCode::SUCCESS)
        }
        Command::Warm(args) => warmfs::warm::run(&args),
        Command::Evict(args) => Ok(warmfs::warm::evict(&args)),
        Command::Hook(HookCommand::Test(args)) => warmfs::daemon::hook_test(&args),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("warmfs: {error}");
            ExitCode::FAILURE
        }
    }
}
