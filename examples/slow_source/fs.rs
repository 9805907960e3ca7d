//! A passthrough file system that is slow, and broken, on purpose.
//!
//! It shows a real directory at a mount point, lets every request wait as long as a far server would, and can be told
//! to hang, to fail, and to answer with less than was asked. The demo, the benchmark and the fault tests of warmfs use
//! it as their source; tests include this file with `#[path]` and mount it in their own process.
//!
//! It promises that every access costs a request: nothing is cached for the client, no attribute, no name, no byte.
//! Requests wait side by side: 64 of them together take as long as one. It is test equipment: works on paths, wants
//! the source on one file system (an inode number of the source is the node's number here), and has no extended
//! attributes.

#![allow(
    dead_code,
    reason = "each program that includes this file uses a part of it"
)]

// Paths are given because this file is not always a child of the program that includes it.
#[path = "face.rs"]
mod face;
#[path = "gate.rs"]
mod gate;
#[path = "tree.rs"]
mod tree;

use fuser::{BackgroundSession, Config, MountOption, SessionACL};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use face::Face;
use gate::Gate;
#[allow(
    unused_imports,
    reason = "not every program that includes this file names both"
)]
pub(crate) use gate::{Control, Kind};
use tree::Tree;

/// How long an orderly unmount may take before the mount is detached and its connection cut.
const UNMOUNT_TIME: Duration = Duration::from_secs(2);

/// How to mount.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// Wait of each request, counted from its arrival. Zero at first, for tests that only want the faults.
    pub(crate) delay: Duration,
    /// Bytes per read: a multiple of 4096, at most 1 MiB. 128 KiB, as many network mounts have. A write takes
    /// one page more.
    pub(crate) max_read: u32,
    /// Let other users in (by default only the one who mounts).
    pub(crate) allow_other: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            delay: Duration::ZERO,
            max_read: 128 * 1024,
            allow_other: false,
        }
    }
}

/// A mounted slow source. Dropping it lets everything go that hangs, and unmounts; this never blocks for ever.
pub(crate) struct SlowSource {
    session: Option<BackgroundSession>,
    mountpoint: PathBuf,
    /// The minor device number of the mount, under which the kernel lists its connection.
    device_minor: Option<String>,
    control: Control,
}

impl SlowSource {
    /// Mounts `source` at `mountpoint`, which must not lie one in the other.
    pub(crate) fn mount(
        source: &Path,
        mountpoint: &Path,
        options: Options,
    ) -> io::Result<SlowSource> {
        let source = source.canonicalize()?;
        let mountpoint = mountpoint.canonicalize()?;
        let wrong = |text: &str| Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        if source.starts_with(&mountpoint) || mountpoint.starts_with(&source) {
            return wrong("source and mount point must lie outside each other");
        }
        if !options.max_read.is_multiple_of(4096)
            || !(4096..=1024 * 1024).contains(&options.max_read)
        {
            return wrong("max_read must be a multiple of 4096 and at most 1 MiB");
        }
        let gate = Arc::new(Gate::new(options.delay));
        let tree = Tree::new(source, Arc::clone(&gate))?;
        let face = Face::new(tree, options.max_read);
        let mut config = Config::default();
        config.mount_options = vec![
            MountOption::FSName("slow_source".into()),
            MountOption::DefaultPermissions,
            MountOption::CUSTOM(format!("max_read={}", options.max_read)),
        ];
        config.acl = if options.allow_other {
            SessionACL::All
        } else {
            SessionACL::Owner
        };
        let session = fuser::spawn_mount(face, &mountpoint, &config)?;
        let device_minor = device_minor(&mountpoint);
        Ok(SlowSource {
            session: Some(session),
            mountpoint,
            device_minor,
            control: Control(gate),
        })
    }

    /// The handle that changes how it behaves, for any thread.
    pub(crate) fn control(&self) -> Control {
        self.control.clone()
    }

    /// Where it is mounted.
    pub(crate) fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// Whether it still serves; false once somebody else unmounted it.
    pub(crate) fn is_mounted(&self) -> bool {
        self.session
            .as_ref()
            .is_some_and(|session| !session.guard.is_finished())
    }
}

impl Drop for SlowSource {
    fn drop(&mut self) {
        self.control.0.drain();
        let Some(session) = self.session.take() else {
            return;
        };
        let (done, ended) = mpsc::channel();
        // A thread of its own: the session ends only when the last open file is closed, which may be never.
        thread::spawn(move || {
            let _ = done.send(session.umount_and_join().is_ok());
        });
        if ended.recv_timeout(UNMOUNT_TIME) == Ok(true) {
            return;
        }
        if self.device_minor.is_some() && device_minor(&self.mountpoint) == self.device_minor {
            detach(&self.mountpoint);
        }
        if let Some(minor) = &self.device_minor {
            abort(minor);
        }
    }
}

/// The minor device number of the mount that is on top at `mountpoint`, without asking the mount itself.
fn device_minor(mountpoint: &Path) -> Option<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let wanted = mountpoint
        .to_str()?
        .replace('\\', "\\134")
        .replace(' ', "\\040");
    let fields = |line: &str| -> Option<(String, String)> {
        let mut fields = line.split(' ');
        let minor = fields.nth(2)?.split_once(':')?.1.to_string();
        Some((minor, fields.nth(1)?.to_string()))
    };
    table
        .lines()
        .rev()
        .filter_map(fields)
        .find(|(_, at)| *at == wanted)
        .map(|(minor, _)| minor)
}

/// Takes the mount out of sight although it is in use.
fn detach(mountpoint: &Path) {
    let commands: [&[&str]; 2] = if cfg!(target_os = "macos") {
        [&["umount", "-f"], &["diskutil", "unmount", "force"]]
    } else {
        [&["fusermount3", "-u", "-z", "--"], &["umount", "-l", "--"]]
    };
    for words in commands {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).arg(mountpoint);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        if command.status().is_ok_and(|status| status.success()) {
            return;
        }
    }
}

/// Cuts the connection, so that whoever still waits for an answer gets an error.
fn abort(minor: &str) {
    let switch = Path::new("/sys/fs/fuse/connections")
        .join(minor)
        .join("abort");
    if !switch.exists() {
        // The control file system is not mounted everywhere; without it only the end of the process cuts.
        let mut mount = Command::new("mount");
        mount.args(["-t", "fusectl", "none", "/sys/fs/fuse/connections"]);
        let _ = mount.stdout(Stdio::null()).stderr(Stdio::null()).status();
    }
    let _ = fs::write(switch, "1");
}
