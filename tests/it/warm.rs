//! `warmfs warm` and `warmfs evict`, on real mounts of a source that counts what it is asked.

use crate::fixture::{
    Mount, SOON, Said, Slow, assert_bytes, equal, eventually, let_age, pattern, run, tempdir,
    warmfs,
};
use crate::slow_source::Kind;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

fn warm(path: impl AsRef<Path>) -> Said {
    run(warmfs(["warm"]).arg(path.as_ref()))
}

fn evict(path: impl AsRef<Path>) -> Said {
    run(warmfs(["evict"]).arg(path.as_ref()))
}

/// Several directories, small files, an empty one, one that takes several requests of several parts, and what is no file.
fn fill(dir: &Path) {
    for (number, name) in FILES.iter().enumerate() {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("mkdir");
        fs::write(&path, content(number)).expect("write");
        let_age(&path);
    }
    fs::write(dir.join("empty"), "").expect("write");
    symlink("a/b", dir.join("link")).expect("symlink");
    nix::unistd::mkfifo(&dir.join("pipe"), nix::sys::stat::Mode::S_IRUSR).expect("mkfifo");
}

/// Of all of them.
const BYTES: u64 = 9_035_004;

const FILES: [&str; 5] = ["one", "a/two", "a/b/three", "a/b/c/large", "z/four"];

fn content(number: usize) -> Vec<u8> {
    let size = if number == 3 {
        9_000_000
    } else {
        5000 * number + 1
    };
    pattern(size, number as u64)
}

fn read_all(root: &Path) {
    for (number, name) in FILES.iter().enumerate() {
        assert_bytes(&root.join(name), &content(number));
    }
}

/// All that `f` reads is in the cache.
#[track_caller]
fn assert_reads_no_source<T>(slow: &Slow, f: impl FnOnce() -> T) -> T {
    let reads = slow.control().count(Kind::Read);
    let result = f();
    assert_eq!(
        slow.control().count(Kind::Read),
        reads,
        "reads of the source"
    );
    result
}

/// `warmfs warm` of the whole mount, while the source holds what it is asked.
fn start_warming(slow: &Slow) -> Child {
    let child = warmfs(["warm"])
        .arg(slow.mount.at())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("warmfs starts");
    assert!(slow.control().wait_held(1, SOON), "it asks the source");
    child
}

/// The attributes stay believed, so that only contents are asked for.
const LONG: [&str; 2] = ["--ttl", "600"];

#[test]
fn what_is_warm_is_read_without_the_source() {
    let slow = Slow::with(&LONG, fill);
    let said = warm(slow.mount.at()).ok();
    assert!(
        said.contains("warm: 5 files, 8.62 MiB: 8.62 MiB from the source"),
        "{said}"
    );
    assert_reads_no_source(&slow, || read_all(slow.mount.at()));
}

#[test]
fn a_second_run_reads_nothing_from_the_source() {
    let slow = Slow::with(&LONG, fill);
    warm(slow.mount.at()).ok();
    let said = assert_reads_no_source(&slow, || warm(slow.mount.at()).ok());
    assert!(said.contains(": 0 B from the source"), "{said}");
    assert!(said.contains("8.62 MiB there already"), "{said}");
}

/// Files that are warm are not even opened, so that a run that was interrupted is soon where it was.
#[test]
fn a_second_run_opens_only_large_files() {
    let slow = Slow::with(&LONG, fill);
    warm(slow.mount.at()).ok();
    let requests = slow.control().requests();
    let said = warm(slow.mount.at()).ok();
    assert!(
        said.contains("warm: 5 files, 8.62 MiB: 0 B from the source"),
        "{said}"
    );
    let more = slow.control().requests() - requests;
    assert!(more <= 4, "{more} requests");
}

/// The mount answers from what it knows of a file while it still opens it: another comparison then overtakes that of the
/// read, whose bytes were not kept. One file in fifty was not in the cache after all.
#[test]
fn every_file_of_many_is_warm_while_the_source_is_slow() {
    let slow = Slow::with(&LONG, |disk| {
        for number in 0..300 {
            let path = disk.join(format!("f{number}"));
            fs::write(&path, pattern(4000, number)).expect("write");
        }
        let_age(&disk.join("f299"));
    });
    slow.control()
        .set_delay(std::time::Duration::from_millis(5));
    for _ in 0..2 {
        warm(slow.mount.at()).ok();
        assert_eq!(
            evict(slow.mount.at()).ok(),
            "evicted 1.14 MiB of 300 files\n"
        );
    }
}

#[test]
fn what_was_evicted_is_read_from_the_source_again() {
    let slow = Slow::with(&LONG, fill);
    warm(slow.mount.at()).ok();
    let said = evict(slow.view("a")).ok();
    assert_eq!(said, "evicted 8.60 MiB of 3 files\n");
    assert_reads_no_source(&slow, || assert_bytes(&slow.view("z/four"), &content(4)));
    let reads = slow.control().count(Kind::Read);
    assert_bytes(&slow.view("a/b/three"), &content(2));
    assert_eq!(slow.control().count(Kind::Read), reads + 1);
    assert_eq!(
        evict(slow.view("a/b/three")).ok(),
        "evicted 9.77 KiB of 1 file\n"
    );
    assert_bytes(&slow.view("a/b/three"), &content(2));
    assert_eq!(slow.control().count(Kind::Read), reads + 2);
    read_all(slow.mount.at());
}

/// What an open file shows is right whatever is evicted below it, also what somebody else writes meanwhile.
#[test]
fn evicting_shows_what_the_source_has_by_now() {
    let mount = Mount::with(&LONG, fill);
    read_all(mount.at());
    fs::write(mount.source("one"), "changed").expect("write");
    evict(mount.view("one")).ok();
    assert_bytes(&mount.view("one"), b"changed");
    fs::write(mount.source("a/two"), "changed, too").expect("write");
    fs::write(mount.source("a/new"), "new").expect("write");
    evict(mount.at()).ok();
    assert_bytes(&mount.view("a/two"), b"changed, too");
    let names = crate::fixture::names(&mount.view("a"));
    assert_eq!(names, ["b", "new", "two"]);
}

/// Names may be several, one below the other, links, files and directories: nothing is read twice.
#[test]
fn names_that_mean_the_same_are_warmed_once() {
    let slow = Slow::with(&LONG, |disk| {
        fill(disk);
        fs::hard_link(disk.join("one"), disk.join("other")).expect("link");
    });
    let elsewhere = tempdir();
    let link = elsewhere.path().join("link");
    symlink(slow.mount.at(), &link).expect("symlink");
    let paths = [
        slow.view("one"),
        slow.view("other"),
        slow.view("a/b/c/large"),
        link,
    ];
    let said = run(warmfs(["warm", "--jobs", "3"]).args(paths)).ok();
    assert!(said.contains("warm: 5 files, 8.62 MiB"), "{said}");
    assert_eq!(slow.control().bytes_read(), BYTES);
}

#[test]
fn a_path_that_is_on_no_warmfs_mount_is_one_line() {
    let dir = tempdir();
    fs::write(dir.path().join("f"), "content").expect("write");
    for path in [
        dir.path().to_owned(),
        dir.path().join("f"),
        PathBuf::from("/proc/self/status"),
    ] {
        for said in [warm(&path), evict(&path)] {
            assert_eq!(said.status.code(), Some(1), "{said:?}");
            let line = format!("warmfs: {} is not on a warmfs mount", path.display());
            assert!(said.stderr.starts_with(&line), "{said:?}");
            assert_eq!(said.stderr.lines().count(), 1, "{said:?}");
        }
    }
    let said = warm(dir.path().join("absent"));
    assert_eq!(said.status.code(), Some(1));
    assert!(
        said.stderr.ends_with("absent: No such file or directory\n"),
        "{said:?}"
    );
}

/// One file that cannot be read is told, the others are warmed.
#[test]
fn an_error_is_told_and_the_rest_goes_on() {
    let slow = Slow::with(&LONG, fill);
    slow.control().fail_kind(Kind::Read, Some(libc::EIO));
    let said = warm(slow.mount.at());
    assert_eq!(said.status.code(), Some(1), "{said:?}");
    assert_eq!(said.stderr.lines().count(), 5, "{said:?}");
    assert!(said.stderr.contains("large: I/O error"), "{said:?}");
    slow.control().fail_kind(Kind::Read, None);
    let said = run(warmfs(["warm"]).args([slow.view("absent"), slow.mount.at().into()]));
    assert_eq!(said.status.code(), Some(1), "{said:?}");
    assert!(said.stdout.contains("warm: 5 files"), "{said:?}");
}

#[test]
fn read_only_mounts_are_warmed_too() {
    let slow = Slow::with(&["--ttl", "600", "--read-only"], fill);
    warm(slow.mount.at()).ok();
    assert_reads_no_source(&slow, || read_all(slow.mount.at()));
    assert_eq!(evict(slow.mount.at()).ok(), "evicted 8.62 MiB of 5 files\n");
}

/// A tree that is larger than the cache: what fits is warm afterwards, the rest is told, and a second run reads nothing.
#[test]
fn what_does_not_fit_is_left_out_and_told() {
    let slow = Slow::with(&["--ttl", "600", "--memory", "1M"], |disk| {
        for number in 0..8 {
            let path = disk.join(format!("f{number}"));
            fs::write(&path, pattern(300_000, number)).expect("write");
            let_age(&path);
        }
        fs::write(disk.join("g"), "small").expect("write");
    });
    for round in 0..2 {
        let said = run(warmfs(["warm", "--jobs", "1"]).arg(slow.mount.at()));
        assert_eq!(said.status.code(), Some(1), "{said:?}");
        let line = "is full (1.00 MiB): 5 files (1.43 MiB) left out; mount with --memory 3M to hold all of it\n";
        assert!(said.stderr.ends_with(line), "{said:?}");
        let source = if round == 0 { "878.91 KiB" } else { "0 B" };
        assert!(
            said.stdout.contains(&format!(": {source} from the source")),
            "{said:?}"
        );
    }
    assert_reads_no_source(&slow, || {
        for number in 0..3 {
            assert_bytes(&slow.view(format!("f{number}")), &pattern(300_000, number));
        }
        assert_bytes(&slow.view("g"), b"small");
    });
}

/// Also while the source answers nothing at all, and the program could not be killed.
#[test]
fn an_interrupt_ends_it_at_once_and_the_next_run_goes_on() {
    for hangs in [Some(Kind::Read), None] {
        let slow = Slow::with(&LONG, fill);
        warm(slow.view("one")).ok();
        match hangs {
            Some(kind) => slow.control().hang_kind(kind, true),
            None => slow.control().hang(true),
        }
        let mut child = start_warming(&slow);
        kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).expect("kill");
        let status = eventually("it ends", SOON, || {
            child.try_wait().expect("wait").ok_or("it runs".to_owned())
        });
        assert_eq!(status.code(), Some(130));
        slow.control().hang(false);
        Kind::ALL
            .iter()
            .for_each(|kind| slow.control().hang_kind(*kind, false));
        let output = child.wait_with_output().expect("output");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.starts_with("interrupted; warm are "), "{output:?}");
        warm(slow.mount.at()).ok();
        assert_reads_no_source(&slow, || read_all(slow.mount.at()));
        assert_eq!(slow.control().bytes_read(), BYTES, "nothing was read twice");
    }
}

/// Whoever kills it from outside leaves nothing behind that goes on.
#[test]
fn killed_it_leaves_nobody_behind() {
    let slow = Slow::with(&LONG, fill);
    slow.control().hang_kind(Kind::Read, true);
    let mut child = start_warming(&slow);
    child.kill().expect("kill");
    child.wait().expect("wait");
    slow.control().hang_kind(Kind::Read, false);
    eventually("the worker ends", SOON, || {
        equal(workers_on(slow.mount.at()), 0)
    });
}

fn workers_on(path: &Path) -> usize {
    let pids = fs::read_dir("/proc").expect("proc is mounted").flatten();
    let lines = pids.filter_map(|pid| fs::read(pid.path().join("cmdline")).ok());
    let is_worker = |line: &Vec<u8>| {
        let words: Vec<&[u8]> = line.split(|&byte| byte == 0).collect();
        let path: &[u8] = path.as_os_str().as_encoded_bytes();
        words.contains(&b"--worker".as_slice()) && words.contains(&path)
    };
    lines.filter(is_worker).count()
}
