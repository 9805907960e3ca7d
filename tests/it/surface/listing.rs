//! Listing directories, also large ones and such that change meanwhile.

use crate::fixture::{Mount, Repeating, SOON, Slow, equal, eventually, let_age, names};
use nix::dir::Dir;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

fn fill(dir: &Path, prefix: &str, count: usize) {
    for index in 0..count {
        File::create(dir.join(format!("{prefix}{index}"))).expect("create");
    }
}

/// A mail folder, a photo archive: 100,000 entries come once each, whoever lists.
#[test]
fn a_large_directory_lists_each_entry_once() {
    const COUNT: usize = 100_000;
    let mount = Mount::with(&[], |source| {
        // Links to a few files are made faster than files, and are entries like any other.
        for group in 0..COUNT / 10_000 {
            let first = source.join(format!("{group}-0"));
            File::create(&first).expect("create");
            for index in 1..10_000 {
                let name = source.join(format!("{group}-{index}"));
                fs::hard_link(&first, name).expect("link");
            }
        }
    });
    for _ in 0..2 {
        let entries = names(mount.at());
        assert_eq!(entries.len(), COUNT);
        assert!(entries == names(&mount.source("")));
    }
}

/// How often each name comes in one pass.
fn pass(dir: &mut Dir) -> HashMap<Vec<u8>, usize> {
    let mut seen = HashMap::new();
    for entry in dir.iter() {
        let entry = entry.expect("list");
        *seen
            .entry(entry.file_name().to_bytes().to_vec())
            .or_default() += 1;
    }
    seen
}

fn open_dir(path: &Path) -> Dir {
    Dir::open(path, OFlag::O_DIRECTORY, Mode::empty()).expect("open")
}

/// Somebody creates, removes and renames in a directory while it is listed. What was there throughout is listed exactly
/// once, whatever comes and goes.
#[test]
fn a_directory_that_changes_lists_what_stays_exactly_once() {
    const STAY: usize = 700;
    let mount = Mount::with(&[], |source| {
        fill(source, "stays-", STAY);
        fill(source, "goes-", 300);
    });
    for (who, side) in [("we", mount.view("")), ("somebody", mount.source(""))] {
        let churn = Repeating::start(move |round| {
            let index = round % 300;
            let name = |what: &str| side.join(format!("{what}-{index}"));
            fs::rename(name("goes"), name("gone")).expect("rename");
            fs::write(name("comes"), "").expect("create");
            fs::remove_file(name("comes")).expect("remove");
            fs::rename(name("gone"), name("goes")).expect("rename");
        });
        let begun = Instant::now();
        let mut passes = 0;
        while begun.elapsed() < Duration::from_secs(3) || passes < 5 {
            let seen = pass(&mut open_dir(mount.at()));
            let count = |name: &[u8]| seen.get(name).copied().unwrap_or_default();
            for index in 0..STAY {
                let name = format!("stays-{index}");
                assert_eq!(
                    count(name.as_bytes()),
                    1,
                    "{name} in pass {passes}, {who} change it"
                );
            }
            assert_eq!((count(b"."), count(b"..")), (1, 1));
            let twice = seen.iter().find(|(_, count)| **count > 1);
            assert_eq!(twice, None, "pass {passes}, {who} change it");
            passes += 1;
        }
        let rounds = churn.stop();
        assert!(rounds > 10, "only {rounds} rounds of changes");
    }
}

/// A slow source. The first part of a listing comes from memory; while the program is busy with it, the answer of the
/// source arrives, and says something else. The rest must follow on the first part all the same.
#[test]
fn a_listing_goes_on_from_where_it_was() {
    const STAY: usize = 700;
    let slow = Slow::with(&["--ttl", "0.2"], |disk| {
        fill(disk, "stays-", STAY);
        fill(disk, "goes-", 300);
        let_age(disk);
    });
    let view = slow.view("");
    for _ in 0..2 {
        assert_eq!(pass(&mut open_dir(&view)).len(), STAY + 302);
    }
    for index in 0..300 {
        fs::remove_file(slow.disk(format!("goes-{index}"))).expect("remove");
    }
    let before = slow.control().requests();
    eventually("the ttl has passed", SOON, || {
        fs::metadata(slow.view("stays-0")).expect("stat");
        equal(slow.control().requests() > before, true)
    });
    slow.control().set_delay(Duration::from_millis(30));
    let mut dir = open_dir(&view);
    let mut entries = dir.iter();
    let mut seen: Vec<_> = entries.next().into_iter().collect();
    eventually("the source's own answer is there", SOON, || {
        equal(names(&view).len(), STAY)
    });
    seen.extend(entries);
    let mut count: HashMap<String, usize> = HashMap::new();
    for entry in seen {
        let entry = entry.expect("list");
        let name = entry.file_name().to_string_lossy().into_owned();
        *count.entry(name).or_default() += 1;
    }
    for index in 0..STAY {
        let name = format!("stays-{index}");
        let times = count.get(&name).copied().unwrap_or_default();
        assert_eq!(times, 1, "{name} was there throughout");
    }
}

/// Removing files in the order in which they are listed, in pieces, as `rm -r` does: all of them are found.
#[test]
fn removing_while_listing_finds_all() {
    let mount = Mount::with(&[], |source| fill(source, "f", 3000));
    let mut removed = 0;
    for entry in fs::read_dir(mount.at()).expect("list") {
        let path = entry.expect("list").path();
        fs::remove_file(&path).unwrap_or_else(|error| panic!("remove {path:?}: {error}"));
        removed += 1;
    }
    assert_eq!(removed, 3000);
    assert!(names(&mount.source("")).is_empty());
    assert!(names(mount.at()).is_empty());
}

/// A directory that stays open is read again from the start, as a file manager does: new entries are there, old ones
/// are not.
#[test]
fn going_back_to_the_start_shows_the_directory_anew() {
    for ttl in ["600", "0"] {
        let mount = Mount::with(&["--ttl", ttl], |source| fill(source, "f", 200));
        let mut dir = open_dir(mount.at());
        assert_eq!(pass(&mut dir).len(), 202);
        for round in 0..10 {
            fs::write(mount.view(format!("new{round}")), "").expect("write");
            fs::remove_file(mount.view(format!("f{round}"))).expect("remove");
            let seen = pass(&mut dir);
            assert_eq!(seen.len(), 202, "ttl {ttl}");
            assert!(seen.contains_key(format!("new{round}").as_bytes()));
            assert!(!seen.contains_key(format!("f{round}").as_bytes()));
        }
    }
}

/// What is created, renamed or removed through the mount is in the next listing, whatever the ttl.
#[test]
fn a_listing_shows_our_own_changes_at_once() {
    let mount = Mount::with(&["--ttl", "600"], |source| {
        fs::create_dir(source.join("dir")).expect("mkdir");
    });
    let list = || names(&mount.view("dir"));
    let text = |list: Vec<OsString>| {
        let all: Vec<_> = list
            .iter()
            .map(|name| String::from_utf8_lossy(name.as_bytes()).into_owned())
            .collect();
        all.join(" ")
    };
    assert_eq!(text(list()), "");
    fs::write(mount.view("dir/a"), "").expect("write");
    assert_eq!(text(list()), "a");
    fs::create_dir(mount.view("dir/b")).expect("mkdir");
    assert_eq!(text(list()), "a b");
    std::os::unix::fs::symlink("a", mount.view("dir/c")).expect("symlink");
    fs::hard_link(mount.view("dir/a"), mount.view("dir/d")).expect("link");
    assert_eq!(text(list()), "a b c d");
    fs::rename(mount.view("dir/a"), mount.view("dir/e")).expect("rename");
    assert_eq!(text(list()), "b c d e");
    fs::rename(mount.view("dir/e"), mount.view("f")).expect("rename");
    fs::remove_dir(mount.view("dir/b")).expect("rmdir");
    fs::remove_file(mount.view("dir/c")).expect("remove");
    assert_eq!(text(list()), "d");
    assert_eq!(text(names(mount.at())), "dir f");
}
