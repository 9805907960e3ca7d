//! Programs that walk through trees of a slow source: what it is asked for, how often, and how much of that side by side.

use crate::fixture::{Slow, let_age, pattern, python, run};
use crate::slow_source::Kind;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const DIRS: usize = 12;
const FILES: usize = 15;

/// Long enough to be slow, short enough for a test.
const DELAY: Duration = Duration::from_millis(4);

fn content(dir: usize, file: usize) -> Vec<u8> {
    pattern(3000 + dir, (dir * FILES + file) as u64)
}

fn tree(args: &[&str]) -> Slow {
    let slow = Slow::with(args, |disk| {
        for dir in 0..DIRS {
            let at = disk.join(format!("tree/{dir:02}"));
            fs::create_dir_all(&at).expect("mkdir");
            for file in 0..FILES {
                fs::write(at.join(format!("{file:02}")), content(dir, file)).expect("write");
            }
        }
        let_age(&disk.join(format!("tree/{:02}", DIRS - 1)));
    });
    slow.control().set_delay(DELAY);
    slow.control().reset_counters();
    slow
}

/// `find -ls`: each directory is listed, then each entry looked at. Returns the sizes of all files.
fn find(dir: &Path) -> Vec<(PathBuf, u64)> {
    let entries = fs::read_dir(dir).unwrap_or_else(|error| panic!("listing {dir:?}: {error}"));
    let paths: Vec<PathBuf> = entries
        .map(|entry| entry.expect("an entry").path())
        .collect();
    let mut found = Vec::new();
    for path in paths {
        let meta = path
            .symlink_metadata()
            .unwrap_or_else(|error| panic!("{path:?}: {error}"));
        if meta.is_dir() {
            found.extend(find(&path));
        } else {
            found.push((path, meta.size()));
        }
    }
    found
}

/// A first walk: the directories that come next, and the attributes of what is in them, are fetched before the program
/// gets there.
#[test]
fn a_first_walk_runs_ahead_of_the_program() {
    let slow = tree(&["--ttl", "60"]);
    assert_eq!(find(&slow.view("tree")).len(), DIRS * FILES);
    let (peak, lookups) = (slow.control().peak(), slow.control().count(Kind::Lookup));
    assert!(peak >= 12, "{peak} requests at once");
    // Each name once, and each directory once more for its handle.
    let names = (DIRS * FILES + 2 * DIRS + 4) as u64;
    assert!(
        lookups <= names + names / 10,
        "{lookups} lookups of {names} names"
    );
    slow.control().reset_counters();
    assert_eq!(find(&slow.view("tree")).len(), DIRS * FILES);
    assert_eq!(
        slow.control().requests(),
        0,
        "the second walk asks for nothing"
    );
}

/// After the ttl: each entry is asked for, once, the listings hold, and what somebody else has changed is seen. (A walk of
/// a slow source showed old attributes, because one answer for many entries took longer than anybody waits for one.)
#[test]
fn a_walk_after_the_ttl_asks_for_each_entry_once_and_sees_changes() {
    let ttl = Duration::from_secs(1);
    let slow = tree(&["--ttl", "1"]);
    find(&slow.view("tree"));
    for round in 0..3 {
        let grown = format!("tree/{:02}/{:02}", 3 + round, 7);
        let size = content(3 + round, 7).len() as u64 + 1;
        fs::write(slow.disk(&grown), vec![b'x'; size as usize]).expect("write");
        let begun = Instant::now();
        while begun.elapsed() < ttl {
            std::thread::yield_now();
        }
        slow.control().reset_counters();
        let found = find(&slow.view("tree"));
        let seen = found.iter().find(|(path, _)| path.ends_with(&grown[5..]));
        assert_eq!(seen.map(|(_, size)| *size), Some(size), "{grown}");
        let names = (DIRS * FILES + DIRS) as u64;
        let lookups = slow.control().count(Kind::Lookup);
        // Some answers of the last walk came after its end: of directories ahead of it, or later than anybody waits. And a
        // busy machine takes longer for the walk than the ttl.
        assert!(
            (names * 3 / 4..names * 2).contains(&lookups),
            "{lookups} lookups of {names} names"
        );
        assert_eq!(slow.control().count(Kind::Readdir), 0, "the listings hold");
    }
}

/// `tar`, a build, a thumbnailer: small files are read one after the other, and are there before the program opens them.
#[test]
fn small_files_are_read_ahead_of_who_reads_one_after_the_other() {
    let slow = tree(&["--ttl", "60"]);
    for dir in 0..DIRS {
        let at = slow.view(format!("tree/{dir:02}"));
        let mut names: Vec<_> = fs::read_dir(&at)
            .expect("list")
            .map(|entry| entry.expect("an entry").file_name())
            .collect();
        names.sort();
        for (file, name) in names.iter().enumerate() {
            let bytes = fs::read(at.join(name)).expect("read");
            assert!(bytes == content(dir, file), "{dir}/{file}");
        }
    }
    let control = slow.control();
    let files = (DIRS * FILES) as u64;
    assert!(control.peak() >= 12, "{} requests at once", control.peak());
    let (reads, opens) = (control.count(Kind::Read), control.count(Kind::Open));
    assert!(
        reads <= files + files / 10,
        "{reads} reads of {files} files"
    );
    assert!(opens <= files + files / 5, "{opens} opens of {files} files");
}

/// `ls -l` asks for the access control list of one entry after the other, each a round trip of its own.
#[test]
fn extended_attributes_are_fetched_ahead_of_who_asks_of_one_entry_after_the_other() {
    let slow = tree(&["--ttl", "60"]);
    slow.control().answer_xattrs(true);
    let at = slow.view("tree/05");
    assert_eq!(find(&at).len(), FILES);
    slow.control().reset_counters();
    let ask = "import errno,os,sys
for path in 2 * sys.argv[1:]:
    try: sys.exit(os.getxattr(path, 'system.posix_acl_access'))
    except OSError as error: assert error.errno == errno.ENODATA, error";
    let entries = fs::read_dir(&at).expect("list");
    let paths: Vec<_> = entries
        .map(|entry| entry.expect("an entry").path())
        .collect();
    let assert_asks = |paths: &[PathBuf], count: u64| {
        let said = run(&mut python(ask, paths));
        assert!(said.status.success(), "{said:#?}");
        assert_eq!(slow.control().count(Kind::Getxattr), count, "each once");
    };
    assert_asks(&paths[..1], 1);
    assert_asks(&paths, FILES as u64);
    let control = slow.control();
    assert!(control.peak() >= 8, "{} requests at once", control.peak());
}

/// A person who lists one directory does not make the source read the whole tree.
#[test]
fn one_listing_is_not_a_walk() {
    let slow = tree(&["--ttl", "60"]);
    fs::read_dir(slow.view("tree/05"))
        .expect("list")
        .for_each(drop);
    let requests = slow.control().requests();
    assert!(requests < 30, "{requests} requests for one listing");
}
