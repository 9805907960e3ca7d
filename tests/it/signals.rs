//! Ending a mount with a signal: Ctrl-C in the foreground, SIGTERM at shutdown.

use crate::fixture::{
    Mount, Running, SOON, equal, eventually, is_alive, mount_at, take_away_below, tempdir, warmfs,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, ExitStatus, Stdio};

/// A mount in the foreground.
struct Foreground {
    child: Child,
    dir: tempfile::TempDir,
    view: PathBuf,
}

impl Foreground {
    fn start() -> Foreground {
        let dir = tempdir();
        let (source, view) = (dir.path().join("source"), dir.path().join("view"));
        fs::create_dir(&source).expect("mkdir");
        fs::create_dir(&view).expect("mkdir");
        fs::write(source.join("f"), "content").expect("write");
        let log = File::create(dir.path().join("log")).expect("create");
        let child = warmfs(["mount", "--foreground", "--log", "info"])
            .arg(&source)
            .arg(&view)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("warmfs starts");
        let mut foreground = Foreground { child, dir, view };
        eventually("it is mounted", SOON, || {
            if let Some(status) = foreground.child.try_wait().expect("wait") {
                return Err(format!("ended with {status}: {}", foreground.log()));
            }
            equal(mount_at(&foreground.view).is_some(), true)
        });
        foreground
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    /// Send one signal, wait for the end.
    fn signal(&mut self, signal: Signal) -> ExitStatus {
        kill(self.pid(), signal).expect("kill");
        self.wait()
    }

    fn wait(&mut self) -> ExitStatus {
        eventually("the daemon ends", SOON, || {
            match self.child.try_wait().expect("wait") {
                Some(status) => Ok(status),
                None => Err("it runs".into()),
            }
        })
    }
}

impl Drop for Foreground {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
        take_away_below(self.dir.path());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const SIGNALS: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

#[test]
fn one_signal_unmounts_and_ends_well() {
    for signal in SIGNALS {
        let mut mount = Foreground::start();
        fs::write(mount.view.join("new"), "written").expect("write");
        let status = mount.signal(signal);
        assert_eq!(status.code(), Some(0), "{signal}: {}", mount.log());
        assert!(mount_at(&mount.view).is_none(), "{signal}: still mounted");
        let source = mount.dir.path().join("source/new");
        assert_eq!(fs::read(source).expect("read"), b"written");
    }
}

/// A shell stands in the mount, an editor has a file open: one signal is enough all the same, and what was written
/// before is in the source.
#[test]
fn one_signal_is_enough_while_files_are_open() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let mut mount = Foreground::start();
        let mut file = File::options()
            .write(true)
            .open(mount.view.join("f"))
            .expect("open");
        file.write_all(b"written").expect("write");
        let dir = File::open(&mount.view).expect("open");
        let status = mount.signal(signal);
        assert_eq!(status.code(), Some(0), "{signal}: {}", mount.log());
        assert!(mount_at(&mount.view).is_none(), "{signal}: still mounted");
        let source = mount.dir.path().join("source/f");
        assert_eq!(fs::read(source).expect("read"), b"written");
        assert!(file.write_all(b"more").is_err(), "who would have taken it?");
        drop((file, dir));
    }
}

/// What a program stored through a map, and nobody has asked to be written yet, gets into the source too.
#[test]
fn what_is_in_a_map_is_in_the_source_after_a_signal() {
    const STORE: &str = "
import mmap, sys
file = open(sys.argv[1], 'r+b')
map = mmap.mmap(file.fileno(), 0)
map[0:6] = b'stored'
print('stored', flush=True)
sys.stdin.read()
";
    let mut mount = Foreground::start();
    let mut writer = crate::fixture::python(STORE, [mount.view.join("f")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python starts");
    let mut output = std::io::BufReader::new(writer.stdout.take().expect("a pipe"));
    let line = Running::start(move || {
        let mut line = String::new();
        std::io::BufRead::read_line(&mut output, &mut line).map(|_| line)
    });
    let line = line.join("the store", SOON);
    let status = mount.signal(Signal::SIGTERM);
    writer.kill().expect("kill");
    writer.wait().expect("wait");
    assert_eq!(line.expect("a line"), "stored\n");
    assert_eq!(status.code(), Some(0), "{}", mount.log());
    let source = mount.dir.path().join("source/f");
    assert_eq!(fs::read(source).expect("read"), b"storedt");
}

/// Whoever unmounts it from outside ends a mount in the foreground, too, and it ends well.
#[test]
fn an_umount_from_outside_ends_it_well() {
    let mut mount = Foreground::start();
    crate::fixture::unmount(&mount.view);
    assert_eq!(mount.wait().code(), Some(0), "{}", mount.log());
}

#[test]
fn a_signal_ends_a_mount_in_the_background() {
    let mount = Mount::new();
    fs::write(mount.view("f"), "written").expect("write");
    let pid = mount.pid();
    kill(Pid::from_raw(pid as i32), Signal::SIGTERM).expect("kill");
    eventually("the daemon ends", SOON, || equal(is_alive(pid), false));
    assert!(mount_at(mount.at()).is_none(), "still mounted");
    assert_eq!(fs::read(mount.source("f")).expect("read"), b"written");
}
