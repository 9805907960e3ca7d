//! A source that fails, lies or dies, and a daemon that dies. (One that hangs is in `hang`.)

use crate::fixture::{
    Mount, Running, SOON, Slow, assert_bytes, equal, eventually, is_alive, let_age, mount_at,
    pattern, run, unmount, warmfs,
};
use crate::slow_source::Kind;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// `known` has been read, `unknown` has not. The first megabyte of `half` has.
fn half_known(args: &[&str]) -> Slow {
    let slow = Slow::with(args, |disk| {
        fs::write(disk.join("known"), pattern(100_000, 1)).expect("write");
        fs::write(disk.join("unknown"), pattern(100_000, 2)).expect("write");
        fs::write(disk.join("half"), pattern(16 << 20, 3)).expect("write");
        let_age(&disk.join("half"));
    });
    assert_bytes(&slow.view("known"), &pattern(100_000, 1));
    slow
}

fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> Option<i32> {
    result.expect_err("it must fail").raw_os_error()
}

/// Each access goes to the source once the ttl has passed; this waits for it.
fn use_up_the_ttl(slow: &Slow) {
    let before = slow.control().requests();
    eventually("the source is asked", SOON, || {
        assert_bytes(&slow.view("known"), &pattern(100_000, 1));
        match slow.control().requests() > before {
            true => Ok(()),
            false => Err("nothing was asked".into()),
        }
    });
}

/// A server that answers everything with an error. An error is not news of a file: what is cached stays readable,
/// before and after the ttl. What is not cached gives the error, and is there again when the server is.
#[test]
fn an_error_is_not_a_deletion() {
    for wrong in [libc::EIO, libc::ETIMEDOUT] {
        let slow = half_known(&["--ttl", "0.3"]);
        slow.control().fail(Some(wrong));
        assert_eq!(errno(fs::read(slow.view("unknown"))), Some(wrong));
        use_up_the_ttl(&slow);
        for _ in 0..50 {
            assert_bytes(&slow.view("known"), &pattern(100_000, 1));
            fs::metadata(slow.view("known")).expect("stat");
        }
        slow.control().fail(None);
        assert_bytes(&slow.view("unknown"), &pattern(100_000, 2));
    }
}

/// A bad sector: the part of the file that was read before can still be read, through the same open file too.
#[test]
fn a_miss_that_fails_leaves_the_rest_of_the_file_readable() {
    let slow = half_known(&[]);
    let wanted = pattern(16 << 20, 3);
    let file = File::open(slow.view("half")).expect("open");
    let mut start = vec![0; 64 << 10];
    file.read_exact_at(&mut start, 0).expect("read");
    slow.control().fail_kind(Kind::Read, Some(libc::EIO));
    let mut part = vec![0; 4096];
    assert_eq!(
        errno(file.read_exact_at(&mut part, 12 << 20)),
        Some(libc::EIO)
    );
    for _ in 0..50 {
        file.read_exact_at(&mut start, 0).expect("cached");
        assert!(start == wanted[..64 << 10]);
    }
    slow.control().fail_kind(Kind::Read, None);
    file.read_exact_at(&mut part, 12 << 20).expect("read");
    assert!(part == wanted[12 << 20..][..4096]);
}

/// A full disk. The program is told with the very error, and afterwards the mount shows what is in the source, not
/// what the program wanted to write. Whether the failed write left something is the source's business: `late` means that
/// it did, although it said no.
#[test]
fn a_write_that_fails_is_reported_and_not_believed() {
    for (wrong, late) in [
        (libc::ENOSPC, false),
        (libc::EDQUOT, false),
        (libc::EIO, true),
    ] {
        let slow = half_known(&["--ttl", "600"]);
        let mut file = File::options()
            .read(true)
            .write(true)
            .open(slow.view("known"))
            .expect("open");
        slow.control().answer_late(late);
        slow.control().fail_kind(Kind::Write, Some(wrong));
        file.seek(SeekFrom::Start(5000)).expect("seek");
        assert_eq!(
            errno(file.write(&[b'x'; 9000])),
            Some(wrong),
            "late: {late}"
        );
        slow.control().fail_kind(Kind::Write, None);
        slow.control().answer_late(false);
        let truth = fs::read(slow.disk("known")).expect("read");
        assert_eq!(
            truth[5000] == b'x',
            late,
            "the source did what it was told to"
        );
        assert_bytes(&slow.view("known"), &truth);
        let mut seen = Vec::new();
        file.seek(SeekFrom::Start(0)).expect("seek");
        file.read_to_end(&mut seen).expect("read");
        assert!(
            seen == truth,
            "the open file shows something else, late: {late}"
        );
        // It goes on when there is space again.
        file.write_all_at(b"there is space", 5000).expect("write");
        assert_bytes(
            &slow.view("known"),
            &fs::read(slow.disk("known")).expect("read"),
        );
    }
}

/// Creating, removing, renaming and truncating that the source refuses: the program gets the reason, and names and
/// sizes stay what they are in the source.
#[test]
fn a_change_that_fails_is_reported_and_not_believed() {
    let slow = half_known(&["--ttl", "600"]);
    let control = slow.control();
    let (known, new) = (slow.view("known"), slow.view("new"));
    let kinds = [
        Kind::Create,
        Kind::Unlink,
        Kind::Rename,
        Kind::Setattr,
        Kind::Mkdir,
    ];
    for kind in kinds {
        control.fail_kind(kind, Some(libc::EDQUOT));
    }
    let truncated = || File::options().write(true).open(&known)?.set_len(10);
    assert_eq!(errno(File::create_new(&new)), Some(libc::EDQUOT));
    assert_eq!(errno(fs::remove_file(&known)), Some(libc::EDQUOT));
    assert_eq!(errno(fs::rename(&known, &new)), Some(libc::EDQUOT));
    assert_eq!(errno(truncated()), Some(libc::EDQUOT));
    assert_eq!(errno(fs::create_dir(&new)), Some(libc::EDQUOT));
    for kind in kinds {
        control.fail_kind(kind, None);
    }
    assert_bytes(&known, &pattern(100_000, 1));
    assert_eq!(
        fs::metadata(&new).expect_err("was not made").kind(),
        ErrorKind::NotFound
    );
    fs::rename(&known, &new).expect("rename");
    assert_bytes(&new, &pattern(100_000, 1));
}

/// Servers may answer a read with less than was asked, and take less than was written. Programs see neither.
#[test]
fn short_reads_and_writes_of_the_source_do_no_harm() {
    let slow = half_known(&["--ttl", "0"]);
    slow.control().short_reads(true);
    slow.control().short_writes(true);
    assert_bytes(&slow.view("unknown"), &pattern(100_000, 2));
    assert_bytes(&slow.view("half"), &pattern(16 << 20, 3));
    let new = pattern(3_000_000, 4);
    fs::write(slow.view("new"), &new).expect("write");
    assert_bytes(&slow.disk("new"), &new);
    assert_bytes(&slow.view("new"), &new);
    slow.control().short_reads(false);
    slow.control().short_writes(false);
    assert_bytes(&slow.view("half"), &pattern(16 << 20, 3));
    assert_bytes(&slow.view("new"), &new);
}

/// sshfs ends, the cable of the disk comes off: every call on the source says ENOTCONN from now on. What is cached
/// stays readable, what is not says so.
#[test]
fn a_source_that_died_leaves_what_is_cached_readable() {
    let mut slow = half_known(&["--ttl", "0.3"]);
    slow.kill_source();
    assert_eq!(errno(fs::read(slow.view("unknown"))), Some(libc::ENOTCONN));
    for round in 0..100 {
        // Some of these rounds are after the ttl.
        assert_bytes(&slow.view("known"), &pattern(100_000, 1));
        let size = fs::metadata(slow.view("known")).expect("stat").len();
        assert_eq!(size, 100_000, "round {round}");
    }
    unmount(slow.mount.at());
}

fn kill_hard(pid: u32) {
    kill(Pid::from_raw(pid as i32), Signal::SIGKILL).expect("kill");
    eventually("the daemon is gone", SOON, || equal(is_alive(pid), false));
}

/// The daemon is killed. Every write that a program was told to have succeeded is in the source, with or without
/// fsync, of files that are closed and of one that is still being written.
#[test]
fn what_was_written_is_in_the_source_when_the_daemon_is_killed() {
    const RECORD: usize = 64;
    let mount = Mount::new();
    for index in 0..50u64 {
        let path = mount.view(format!("closed {index}"));
        let mut file = File::create(&path).expect("create");
        file.write_all(&pattern(10_000, index)).expect("write");
        if index % 2 == 0 {
            file.sync_all().expect("fsync");
        }
    }
    let written = Arc::new(AtomicUsize::new(0));
    let (count, path) = (written.clone(), mount.view("open"));
    let writer = Running::start(move || {
        let mut file = File::create(path).expect("create");
        for index in 0.. {
            let record = format!("{index:0width$}\n", width = RECORD - 1);
            if let Err(error) = file.write_all(record.as_bytes()) {
                return error.raw_os_error();
            }
            count.store(index + 1, Ordering::SeqCst);
        }
        None
    });
    eventually("some records are written", SOON, || {
        match written.load(Ordering::SeqCst) {
            0..200 => Err("too few".into()),
            _ => Ok(()),
        }
    });
    kill_hard(mount.pid());
    let end = writer.join("the writer", SOON);
    assert!(
        matches!(end, Some(libc::ENOTCONN | libc::ECONNABORTED)),
        "{end:?}"
    );
    for index in 0..50u64 {
        let path = mount.source(format!("closed {index}"));
        assert_bytes(&path, &pattern(10_000, index));
    }
    let records = fs::read_to_string(mount.source("open")).expect("read");
    let wanted = written.load(Ordering::SeqCst);
    assert!(
        records.len() >= wanted * RECORD,
        "{} bytes of {wanted} records",
        records.len()
    );
    for (index, record) in records.lines().take(wanted).enumerate() {
        assert_eq!(record.parse::<usize>().ok(), Some(index));
    }
}

/// After that a directory is left that every access answers with an error. One command cleans up, and the next mount
/// works; the commands say which.
#[test]
fn a_killed_daemon_is_cleaned_up_with_one_command() {
    let mount = Mount::with(&[], |source| {
        fs::write(source.join("f"), b"content").expect("write");
    });
    kill_hard(mount.pid());
    assert_eq!(errno(fs::read(mount.view("f"))), Some(libc::ENOTCONN));
    let again = |at: &Path| run(warmfs(["mount"]).arg(mount.source("")).arg(at));
    let said = again(mount.at());
    assert_eq!(said.status.code(), Some(1), "{said:?}");
    assert!(said.stderr.contains("warmfs umount"), "{said:?}");
    unmount(mount.at());
    assert!(mount_at(mount.at()).is_none());
    again(mount.at()).ok();
    mount.assert_content("f", b"content");
}
