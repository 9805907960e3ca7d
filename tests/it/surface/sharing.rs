//! Locks between processes.

use crate::fixture::{Mount, Running, SOON, equal, eventually, python};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, Flock, FlockArg, fcntl};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Stdio};

/// Takes a lock, says so, and keeps it until its input ends.
const HOLD: &str = "
import fcntl, sys
file = open(sys.argv[1], 'r+')
getattr(fcntl, sys.argv[2])(file, fcntl.LOCK_EX)
print('locked', flush=True)
sys.stdin.read()
";

/// Another process that holds a lock.
struct Holder(Child);

impl Holder {
    fn start(path: &Path, call: &str) -> Holder {
        let mut command = python(HOLD, [path]);
        let mut child = command
            .arg(call)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python starts");
        let output = BufReader::new(child.stdout.take().expect("a pipe"));
        let first = Running::start(move || output.lines().next());
        let holder = Holder(child);
        let line = first.join("the other process gets the lock", SOON);
        assert_eq!(line.expect("a line").expect("reading its output"), "locked");
        holder
    }
}

impl Drop for Holder {
    /// The end of the process is the end of its locks.
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn open(path: &Path) -> File {
    File::options()
        .read(true)
        .write(true)
        .open(path)
        .expect("open")
}

fn record_lock(kind: i32) -> libc::flock {
    libc::flock {
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

/// flock(2), as package managers use it: another process is refused, or waits until the first has ended.
#[test]
fn flock_holds_between_processes() {
    let mount = Mount::new();
    let path = mount.view("lock");
    File::create(&path).expect("create");
    let holder = Holder::start(&path, "flock");
    let (file, errno) = Flock::lock(open(&path), FlockArg::LockExclusiveNonblock)
        .map(drop)
        .expect_err("somebody else has it");
    assert_eq!(errno, Errno::EWOULDBLOCK);
    let waiter = Running::start(move || Flock::lock(file, FlockArg::LockExclusive).is_ok());
    let (_, errno) = Flock::lock(open(&path), FlockArg::LockSharedNonblock)
        .map(drop)
        .expect_err("still");
    assert_eq!(errno, Errno::EWOULDBLOCK);
    assert!(waiter.is_running());
    drop(holder);
    assert!(waiter.join("the lock after its holder's end", SOON));
}

/// fcntl(2) locks of ranges, as databases use them.
#[test]
fn record_locks_hold_between_processes() {
    let mount = Mount::new();
    let path = mount.view("lock");
    File::create(&path)
        .expect("create")
        .write_all(&[0; 100])
        .expect("write");
    let holder = Holder::start(&path, "lockf");
    let file = open(&path);
    let wanted = record_lock(libc::F_WRLCK);
    assert_eq!(fcntl(&file, FcntlArg::F_SETLK(&wanted)), Err(Errno::EAGAIN));
    let mut found = record_lock(libc::F_WRLCK);
    fcntl(&file, FcntlArg::F_GETLK(&mut found)).expect("getlk");
    assert_eq!(found.l_pid as u32, holder.0.id());
    let waiter = Running::start(move || {
        fcntl(&file, FcntlArg::F_SETLKW(&wanted)).expect("the lock");
        file
    });
    assert!(waiter.is_running());
    drop(holder);
    let file = waiter.join("the lock after its holder's end", SOON);
    fcntl(&file, FcntlArg::F_SETLK(&record_lock(libc::F_UNLCK))).expect("unlock");
    eventually("the lock is free", SOON, || {
        let mut found = record_lock(libc::F_WRLCK);
        fcntl(&file, FcntlArg::F_GETLK(&mut found)).expect("getlk");
        equal(i32::from(found.l_type), libc::F_UNLCK)
    });
}
