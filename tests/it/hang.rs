//! A source that hangs: what is cached never waits for it, what is not waits without harm.

use crate::fixture::{Running, equal};
use crate::fixture::{
    SOON, Slow, alone, assert_equal_bytes, daemon_of, eventually, is_alive, let_age, mount_at,
    names, pattern, python, run, umount, unmount_with, warmfs, within,
};
use crate::slow_source::Kind;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a person does not notice.
const QUICK: Duration = Duration::from_millis(10);
/// What a single operation may take on a machine that is busy with something else at that moment.
const BOUND: Duration = Duration::from_millis(100);
/// Operations measured at a time.
const OPERATIONS: usize = 50;
/// A machine that is busy for a moment spoils a measurement, a mount that waits spoils every one.
const ROUNDS: usize = 3;

/// The times that `measure` found are those of answers that do not wait for the source.
#[track_caller]
fn assert_quick(what: &str, mut measure: impl FnMut() -> Vec<Duration>) {
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let mut times = measure();
        assert_eq!(times.len(), OPERATIONS, "{what}");
        times.sort();
        let quick = times.iter().filter(|time| **time < QUICK).count();
        let (median, longest) = (times[OPERATIONS / 2], times[OPERATIONS - 1]);
        if quick >= OPERATIONS * 9 / 10 && longest < BOUND {
            return;
        }
        rounds.push(format!(
            "{quick} of {OPERATIONS} quick, median {median:?}, longest {longest:?}"
        ));
    }
    panic!("{what}: {rounds:#?}");
}

/// How long each of `OPERATIONS` calls takes.
fn timed(mut operation: impl FnMut(usize)) -> Vec<Duration> {
    let time = |index| {
        let begun = Instant::now();
        operation(index);
        begun.elapsed()
    };
    (0..OPERATIONS).map(time).collect()
}

const FILES: usize = 5;

fn small(index: usize) -> Vec<u8> {
    pattern(5000, index as u64)
}

/// A mount of a tree that has been read once and may be believed, of a source that does not hang yet.
fn warm(args: &[&str]) -> Slow {
    let slow = Slow::with(args, |disk| {
        fs::create_dir(disk.join("dir")).expect("mkdir");
        for index in 0..FILES {
            fs::write(disk.join(format!("dir/{index}")), small(index)).expect("write");
        }
        std::os::unix::fs::symlink("dir/2", disk.join("link")).expect("symlink");
        fs::write(disk.join("cold"), b"never read").expect("write");
        fs::write(disk.join("colder"), b"never read either").expect("write");
        let_age(&disk.join("colder"));
    });
    // Twice: what the first look finds is remembered by then.
    for _ in 0..2 {
        assert_eq!(walk(&slow), FILES);
        for index in 0..FILES {
            read_small(&slow, index);
        }
        fs::read_link(slow.view("link")).expect("readlink");
        let said = run(&mut python(GETXATTR, [slow.view("dir/3")]));
        said.ok();
    }
    slow
}

/// `ls -l`: list a directory, look at each entry.
fn walk(slow: &Slow) -> usize {
    let entries = names(&slow.view("dir"));
    for name in &entries {
        let meta = fs::symlink_metadata(slow.view("dir").join(name)).expect("stat");
        assert_eq!(meta.len(), 5000);
    }
    entries.len()
}

/// Open, read, close.
fn read_small(slow: &Slow, index: usize) {
    let path = slow.view(format!("dir/{index}"));
    let bytes = fs::read(&path).unwrap_or_else(|error| panic!("reading {path:?}: {error}"));
    assert_equal_bytes(&format!("{path:?}"), &bytes, &small(index));
}

/// Prints how long each call took, in nanoseconds.
const GETXATTR: &str = "
import os, sys, time
for _ in range(50):
    begun = time.monotonic_ns()
    try: os.getxattr(sys.argv[1], 'user.absent')
    except OSError: pass
    print(time.monotonic_ns() - begun)
";

/// All of it, each by itself.
fn assert_all_quick(slow: &Slow, when: &str) {
    let each = |what: &str| format!("{what} {when}");
    assert_quick(&each("open, read and close of a cached file"), || {
        timed(|index| read_small(slow, index % FILES))
    });
    assert_quick(&each("stat of a cached file"), || {
        timed(|index| {
            fs::metadata(slow.view(format!("dir/{}", index % FILES))).expect("stat");
        })
    });
    // One operation is the listing and the stat of each entry.
    assert_quick(&each("ls -l of a cached directory"), || {
        timed(|_| assert_eq!(walk(slow), FILES))
    });
    assert_quick(&each("readlink"), || {
        timed(|_| {
            assert_eq!(
                fs::read_link(slow.view("link")).expect("readlink"),
                Path::new("dir/2")
            );
        })
    });
    let path = slow.view("dir/3");
    assert_quick(&each("getxattr"), || {
        let said = run(&mut python(GETXATTR, [&path])).ok();
        let nanos = |line: &str| line.parse().expect("a number");
        said.lines()
            .map(|line| Duration::from_nanos(nanos(line)))
            .collect()
    });
}

/// Ask for things until one question reached the source and hangs there: then the ttl has passed for sure.
fn use_up_the_ttl(slow: &Slow) {
    eventually("a question reaches the source", SOON, || {
        walk(slow);
        match slow.control().held() {
            0 => Err("none is held".into()),
            _ => Ok(()),
        }
    });
}

/// A server that stops answering. Everything that was read before stays as quick as it was: reading, looking,
/// listing, links, attributes. (Every network file system, and every cache that compares before it answers, stands
/// still here.)
#[test]
fn what_is_cached_does_not_wait_for_a_source_that_hangs() {
    let _alone = alone();
    let slow = warm(&["--ttl", "600"]);
    slow.control().hang(true);
    assert_all_quick(&slow, "within the ttl");
}

/// The same after the ttl has passed, when each answer should be compared with the source, which does not say a word.
#[test]
fn what_is_cached_does_not_wait_after_the_ttl_either() {
    let _alone = alone();
    let slow = warm(&["--ttl", "0.3"]);
    slow.control().hang(true);
    use_up_the_ttl(&slow);
    assert_all_quick(&slow, "after the ttl");
}

/// The first questions after the ttl wait for the source for a moment before memory answers. That moment is short too.
#[test]
fn the_first_question_to_a_source_that_hangs_costs_little() {
    let _alone = alone();
    let slow = warm(&["--ttl", "0.3"]);
    slow.control().hang(true);
    let mut longest = Duration::ZERO;
    eventually("a question reaches the source", SOON, || {
        let begun = Instant::now();
        read_small(&slow, 0);
        longest = longest.max(begun.elapsed());
        equal(slow.control().held() > 0, true)
    });
    // The source has always answered at once, so patience with it is short; the machine may be busy.
    assert!(longest < 5 * BOUND, "{longest:?}");
}

/// The disk behind one file is broken, and many programs wait for that file. The others can still be read, also those
/// that were never read before, and new ones can be written. (Not in the very directory in which a name is being looked
/// up: there the kernel itself makes who wants to create something wait.)
#[test]
fn a_hang_on_one_file_leaves_the_others_usable() {
    let slow = warm(&[]);
    slow.control().hang_path(Some("colder"));
    let stuck: Vec<_> = (0..40)
        .map(|_| {
            let path = slow.view("colder");
            Running::start(move || fs::read(path))
        })
        .collect();
    assert!(
        slow.control().wait_held(1, SOON),
        "nobody waits for the file"
    );
    let (cold, new) = (slow.view("cold"), slow.view("dir/new"));
    within("another file is read and written", SOON, move || {
        assert_eq!(fs::read(cold).expect("read"), b"never read");
        fs::write(&new, b"written").expect("write");
        assert_eq!(fs::read(&new).expect("read"), b"written");
    });
    assert!(stuck.iter().all(Running::is_running));
    slow.control().hang_path(None);
    for reader in stuck {
        let bytes = reader.join("a read that was held", SOON).expect("read");
        assert_eq!(bytes, b"never read either");
    }
}

/// The same when the file is known and open, and it is its content that cannot be read.
#[test]
fn many_reads_of_a_file_that_hangs_leave_the_others_usable() {
    const SIZE: usize = 32 << 20;
    let slow = Slow::with(&[], |disk| {
        fs::write(disk.join("broken"), pattern(SIZE, 1)).expect("write");
        fs::write(disk.join("cold"), b"never read").expect("write");
    });
    let broken = Arc::new(File::open(slow.view("broken")).expect("open"));
    slow.control().hang_path(Some("broken"));
    // Far from each other, so that each is a request of its own.
    let stuck: Vec<_> = (0..60u64)
        .map(|index| {
            let file = broken.clone();
            let mut part = vec![0; 1000];
            let at = index * (SIZE as u64 / 60);
            Running::start(move || file.read_exact_at(&mut part, at).map(|()| (at, part)))
        })
        .collect();
    assert!(slow.control().wait_held(4, SOON), "nobody waits");
    let (cold, new) = (slow.view("cold"), slow.view("new"));
    within("another file is read and written", SOON, move || {
        assert_eq!(fs::read(cold).expect("read"), b"never read");
        fs::write(&new, b"written").expect("write");
        assert_eq!(fs::read(&new).expect("read"), b"written");
    });
    slow.control().hang_path(None);
    let wanted = pattern(SIZE, 1);
    for reader in stuck {
        let (at, part) = reader.join("a read that was held", SOON).expect("read");
        assert_equal_bytes("a part", &part, &wanted[at as usize..][..1000]);
    }
}

/// A server that comes back: whoever waited gets what he asked for, and everything is as if nothing had happened.
#[test]
fn what_waited_goes_on_when_the_source_answers_again() {
    let slow = warm(&["--ttl", "0.3"]);
    slow.control().hang(true);
    let (cold, new) = (slow.view("cold"), slow.view("new"));
    let reader = Running::start(move || fs::read(cold));
    let writer = Running::start(move || fs::write(new, b"written"));
    assert!(
        slow.control().wait_held(2, SOON),
        "{} are held",
        slow.control().held()
    );
    assert!(reader.is_running() && writer.is_running());
    // Somebody changes a file that we hold while we cannot know of it.
    fs::write(slow.disk("dir/4"), b"changed").expect("write");
    slow.control().hang(false);
    assert_eq!(reader.join("the read", SOON).expect("read"), b"never read");
    writer.join("the write", SOON).expect("write");
    assert_eq!(fs::read(slow.disk("new")).expect("read"), b"written");
    let path = slow.view("dir/4");
    eventually("the change is seen", SOON, || {
        equal(fs::read(&path).expect("read"), b"changed".to_vec())
    });
}

/// The first thing that a person does when a server hangs. `umount` of an NFS mount hangs then itself. (The daemon may
/// have to wait for the source to close its files, but it has no mount any more.)
#[test]
fn umount_works_while_the_source_hangs() {
    for args in [&["--ttl", "0.3"][..], &["--ttl", "0"], &["--ttl", "600"]] {
        for command in [&["umount"][..], &["umount", "--lazy"]] {
            let slow = warm(args);
            slow.control().hang(true);
            if args[1] == "0.3" {
                use_up_the_ttl(&slow);
            }
            let at = slow.mount.at();
            let pid = daemon_of(at).expect("the daemon runs");
            unmount_with(|| {
                let mut command = warmfs(command);
                command.arg(at);
                command
            });
            assert!(mount_at(at).is_none(), "still mounted, {args:?}");
            slow.control().hang(false);
            eventually("the daemon ends", SOON, || equal(is_alive(pid), false));
        }
    }
}

/// The same while programs wait for files that are not cached: the mount is in use then, and `--lazy` takes it away.
#[test]
fn umount_lazy_works_while_programs_wait_for_the_source() {
    let slow = warm(&[]);
    slow.control().hang(true);
    let cold: PathBuf = slow.view("cold");
    let reader = Running::start(move || fs::read(cold));
    assert!(slow.control().wait_held(1, SOON), "the read does not wait");
    let at = slow.mount.at().to_owned();
    let said = umount(&at);
    assert_eq!(said.status.code(), Some(1), "{said:?}");
    assert!(said.stderr.contains("--lazy"), "{said:?}");
    let pid = daemon_of(&at).expect("the daemon runs");
    run(warmfs(["umount", "--lazy"]).arg(&at)).ok();
    assert!(mount_at(&at).is_none(), "still mounted");
    slow.control().hang(false);
    assert_eq!(reader.join("the read", SOON).expect("read"), b"never read");
    eventually("the daemon ends", SOON, || equal(is_alive(pid), false));
}

/// A signal to end while the source hangs and a program waits: the mount does not wait with it, and the program is let
/// go.
#[test]
fn a_signal_ends_the_mount_while_the_source_hangs() {
    let slow = warm(&[]);
    slow.control().hang_kind(Kind::Read, true);
    let cold = slow.view("cold");
    let reader = Running::start(move || fs::read(cold));
    assert!(slow.control().wait_held(1, SOON), "the read does not wait");
    let pid = slow.mount.pid();
    let process = nix::unistd::Pid::from_raw(pid as i32);
    nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGTERM).expect("kill");
    eventually("nothing is mounted", SOON, || {
        equal(mount_at(slow.mount.at()).is_none(), true)
    });
    let error = reader
        .join("the read", SOON)
        .expect_err("nobody is left to answer");
    assert!(
        matches!(
            error.raw_os_error(),
            Some(libc::ENOTCONN | libc::ECONNABORTED | libc::EIO)
        ),
        "{error}"
    );
    slow.control().hang_kind(Kind::Read, false);
    eventually("the daemon ends", SOON, || equal(is_alive(pid), false));
}
