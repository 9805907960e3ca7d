//! Changes that somebody makes in the source, behind the mount's back, and writes through the mount beside them.

use crate::fixture::{
    Mount, SOON, Slow, assert_bytes, assert_equal_bytes, equal, eventually, let_age, names,
    pattern, python, run,
};
use crate::slow_source::Kind;
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;
use std::fmt::Debug;
use std::fs::{self, File, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

/// The default ttl, and a second more for a machine that is busy.
const TTL_AND_MORE: Duration = Duration::from_secs(2);

/// What a program sees: content or an error, and the mode.
fn seen(path: &Path) -> Result<(String, u32), i32> {
    let code = |error: std::io::Error| error.raw_os_error().unwrap_or_default();
    let text = fs::read(path).map_err(code)?;
    let mode = fs::metadata(path).map_err(code)?.mode();
    Ok((String::from_utf8_lossy(&text).into_owned(), mode))
}

fn listed(dir: &Path) -> Vec<std::ffi::OsString> {
    names(dir)
}

/// Let the mount learn what `look` says of `name`, make the `change` in the source, and expect the mount to say what
/// the source says: within the default ttl, and at once without one.
#[track_caller]
fn assert_is_seen<T: PartialEq + Debug>(
    name: &str,
    fill: impl Fn(&Path),
    look: impl Fn(&Path) -> T,
    change: impl Fn(&Path),
) {
    for ttl in ["1", "0"] {
        let mount = Mount::with(&["--ttl", ttl], |source| {
            fs::create_dir(source.join("dir")).expect("mkdir");
            fs::write(source.join("dir/f"), "old content").expect("write");
            fill(&source.join("dir"));
        });
        let (view, source) = (mount.view("dir").join(name), mount.source("dir").join(name));
        let before = look(&source);
        let_age(&mount.source("dir/f"));
        for _ in 0..3 {
            assert_eq!(look(&view), before, "before the change, ttl {ttl}");
        }
        change(&mount.source("dir"));
        let wanted = look(&source);
        assert_ne!(before, wanted, "the test must change something");
        if ttl == "0" {
            assert_eq!(look(&view), wanted, "at once with ttl 0");
        } else {
            eventually("the change is seen", TTL_AND_MORE, || {
                equal(look(&view), look(&source))
            });
        }
        // And it stays so.
        assert_eq!(look(&view), wanted, "ttl {ttl}");
    }
}

fn put(path: &Path, text: &str) {
    fs::write(path, text).expect("write");
}

/// Somebody edits a file in place, without changing its length, in the second of the last change.
#[test]
fn a_rewrite_of_the_same_size_is_seen() {
    assert_is_seen("f", |_| {}, seen, |dir| put(&dir.join("f"), "new content"));
}

/// The same by a program that sets the time of the last change back, as `touch -r` or `rsync --times` do. Only ctime
/// tells.
#[test]
fn a_rewrite_that_hides_its_time_is_seen() {
    let rewrite = |dir: &Path| {
        let path = dir.join("f");
        let meta = fs::metadata(&path).expect("stat");
        put(&path, "new content");
        let time = TimeSpec::new(meta.mtime(), meta.mtime_nsec());
        utimensat(
            nix::fcntl::AT_FDCWD,
            &path,
            &time,
            &time,
            UtimensatFlags::FollowSymlink,
        )
        .expect("utimensat");
        assert_eq!(
            fs::metadata(&path).expect("stat").mtime_nsec(),
            meta.mtime_nsec()
        );
    };
    assert_is_seen("f", |_| {}, seen, rewrite);
}

#[test]
fn a_truncation_is_seen() {
    let cut = |dir: &Path| {
        let file = File::options()
            .write(true)
            .open(dir.join("f"))
            .expect("open");
        file.set_len(3).expect("truncate");
    };
    assert_is_seen("f", |_| {}, seen, cut);
}

/// `tail -f` on a log that another machine writes.
#[test]
fn growth_is_seen() {
    let grow = |dir: &Path| {
        let mut file = File::options()
            .append(true)
            .open(dir.join("f"))
            .expect("open");
        file.write_all(b", and more").expect("write");
    };
    assert_is_seen("f", |_| {}, seen, grow);
}

/// How editors save and package managers install.
#[test]
fn a_replacement_by_rename_is_seen() {
    let replace = |dir: &Path| {
        put(&dir.join("f.tmp"), "new content");
        fs::rename(dir.join("f.tmp"), dir.join("f")).expect("rename");
    };
    assert_is_seen("f", |_| {}, seen, replace);
}

#[test]
fn a_deletion_is_seen() {
    let remove = |dir: &Path| fs::remove_file(dir.join("f")).expect("remove");
    assert_is_seen("f", |_| {}, seen, remove);
}

/// A name that programs looked for in vain (a configuration file, a module in a search path) comes to be.
#[test]
fn a_creation_after_a_look_in_vain_is_seen() {
    assert_is_seen(
        "absent",
        |_| {},
        seen,
        |dir| put(&dir.join("absent"), "here now"),
    );
}

#[test]
fn a_change_of_mode_is_seen() {
    let chmod = |dir: &Path| {
        fs::set_permissions(dir.join("f"), Permissions::from_mode(0o600)).expect("chmod");
    };
    assert_is_seen("f", |_| {}, seen, chmod);
}

#[test]
fn a_changed_listing_is_seen() {
    let change = |dir: &Path| {
        put(&dir.join("appeared"), "");
        fs::remove_file(dir.join("f")).expect("remove");
        fs::rename(dir.join("moves"), dir.join("moved")).expect("rename");
    };
    assert_is_seen("", |dir| put(&dir.join("moves"), ""), listed, change);
}

#[test]
fn a_changed_link_is_seen() {
    let link = |to: &'static str| {
        move |dir: &Path| {
            let _ = fs::remove_file(dir.join("link"));
            std::os::unix::fs::symlink(to, dir.join("link")).expect("symlink");
        }
    };
    let look = |path: &Path| fs::read_link(path).expect("readlink");
    assert_is_seen("link", link("here"), look, link("there"));
}

/// A directory that was removed and made again at the same name is a new one, with what is in it.
#[test]
fn a_directory_made_anew_is_seen() {
    let again = |dir: &Path| {
        fs::remove_dir_all(dir.join("sub")).expect("remove");
        fs::create_dir(dir.join("sub")).expect("mkdir");
        put(&dir.join("sub/new"), "");
    };
    let fill = |dir: &Path| {
        fs::create_dir(dir.join("sub")).expect("mkdir");
        put(&dir.join("sub/old"), "");
    };
    assert_is_seen("sub", fill, listed, again);
}

/// Prints what a map of the file shows.
const MAP: &str = "
import mmap, sys
with open(sys.argv[1], 'rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as map:
    print(map[:].decode())
";

/// Programs that map files (linkers, databases, loaders) see a change as soon as they open the file again.
#[test]
fn a_change_is_seen_through_a_new_map() {
    let look = |path: &Path| run(&mut python(MAP, [path])).ok();
    assert_is_seen("f", |_| {}, look, |dir| put(&dir.join("f"), "new content"));
}

/// Without a ttl a change is seen at once also by those who have the file open, wherever they stand in it.
#[test]
fn without_a_ttl_an_open_file_shows_changes_at_once() {
    let mount = Mount::with(&["--ttl", "0"], |source| {
        put(&source.join("f"), "old content")
    });
    let file = File::open(mount.view("f")).expect("open");
    let all = |what: &str| {
        let mut bytes = vec![0; 100];
        let size = file
            .read_at(&mut bytes, 0)
            .unwrap_or_else(|error| panic!("{what}: {error}"));
        String::from_utf8_lossy(&bytes[..size]).into_owned()
    };
    assert_eq!(all("first"), "old content");
    for round in 0..200 {
        let text = format!("content {round}");
        put(&mount.source("f"), &text);
        assert_eq!(all("after a rewrite"), text);
        assert_eq!(file.metadata().expect("fstat").len(), text.len() as u64);
    }
    let on_disk = File::options()
        .write(true)
        .open(mount.source("f"))
        .expect("open");
    on_disk.set_len(4).expect("truncate");
    assert_eq!(all("after a truncation"), "cont");
    on_disk.set_len(6).expect("extend");
    assert_eq!(all("after an extension"), "cont\0\0");
}

/// Longer and shorter by turns, and other bytes each time.
fn text_of(round: usize) -> String {
    round.to_string().repeat(1 + 7 * round % 10)
}

/// An open file with the default ttl: the same within a second. Attributes and content are compared one after the
/// other, here with a pause between. A change after that must not be seen in the attributes first, and bytes from before
/// it be given out as theirs: the kernel keeps those for ever.
#[test]
fn an_open_file_shows_changes_within_the_ttl() {
    let slow = Slow::with(&["--ttl", "1"], |disk| put(&disk.join("f"), "content 0"));
    let pause = Duration::from_millis(200);
    slow.control().set_delay(pause);
    let file = File::open(slow.view("f")).expect("open");
    let look = || {
        let mut bytes = [0; 100];
        let size = file.read_at(&mut bytes, 0).expect("read");
        String::from_utf8_lossy(&bytes[..size]).into_owned()
    };
    for (round, delay) in [pause, Duration::ZERO].repeat(3).into_iter().enumerate() {
        look();
        slow.control().set_delay(delay);
        let wanted = text_of(round);
        put(&slow.disk("f"), &wanted);
        let what = format!("the change of round {round} is seen");
        eventually(&what, TTL_AND_MORE, || equal(look(), wanted.clone()));
    }
}

/// A server that was quick and has become slow: answers come from memory while it takes its time. What it says at last
/// counts for content and attributes alike, or the kernel keeps old bytes as those of the new time stamp.
#[test]
fn a_source_that_became_slow_still_shows_changes() {
    let slow = Slow::with(&["--ttl", "0.2"], |disk| {
        put(&disk.join("f"), "content 0");
        let_age(&disk.join("f"));
    });
    let file = File::open(slow.view("f")).expect("open");
    let read_open = || {
        let mut bytes = [0; 100];
        let size = file.read_at(&mut bytes, 0).expect("read");
        String::from_utf8_lossy(&bytes[..size]).into_owned()
    };
    let read_anew = || fs::read_to_string(slow.view("f")).expect("read");
    for (delay, round) in [(100, 1), (100, 2), (0, 3), (60, 4), (100, 5), (0, 6)] {
        assert_eq!(read_open(), read_anew());
        slow.control().set_delay(Duration::from_millis(delay));
        let wanted = text_of(round);
        put(&slow.disk("f"), &wanted);
        for (how, look) in [
            ("in the open file", &read_open as &dyn Fn() -> String),
            ("in a new one", &read_anew),
        ] {
            let what = format!("the change is seen {how}, round {round}");
            eventually(&what, SOON / 4, || equal(look(), wanted.clone()));
        }
    }
}

/// Reading goes on in a file that the source took away from under an open descriptor, with another one in its place: an
/// open file is that file, whatever its name leads to.
#[test]
fn an_open_file_stays_that_file() {
    for ttl in ["1", "0"] {
        let old = pattern(3_000_000, 1);
        let mount = Mount::with(&["--ttl", ttl], |source| {
            fs::write(source.join("f"), &old).expect("write");
        });
        let mut file = File::open(mount.view("f")).expect("open");
        let mut bytes = vec![0; 1000];
        file.read_exact(&mut bytes).expect("read");
        put(&mount.source("other"), "other");
        fs::rename(mount.source("other"), mount.source("f")).expect("rename");
        eventually("the new file is seen", TTL_AND_MORE, || {
            equal(fs::read(mount.view("f")).expect("read"), b"other".to_vec())
        });
        file.read_to_end(&mut bytes).expect("read");
        assert_equal_bytes("the old file", &bytes, &old);
    }
}

/// Two machines write different parts of one file. Our own write brings a new time stamp; taking that one for the
/// file's would declare the foreign part current that we had cached before, for ever.
#[test]
fn our_write_does_not_hide_a_foreign_change_within_the_ttl() {
    for ttl in ["600", "1", "0"] {
        let mount = Mount::with(&["--ttl", ttl], |source| {
            fs::write(source.join("f"), vec![b'.'; 300_000]).expect("write");
            let_age(&source.join("f"));
        });
        let ours = File::options()
            .read(true)
            .write(true)
            .open(mount.view("f"))
            .expect("open");
        let foreign = File::options()
            .write(true)
            .open(mount.source("f"))
            .expect("open");
        assert_bytes(&mount.view("f"), &vec![b'.'; 300_000]);
        for round in 0..20u64 {
            let at = round * 9_000;
            foreign.write_all_at(b"foreign", at).expect("write");
            ours.write_all_at(b"ours", at + 100_000).expect("write");
            let wanted = fs::read(mount.source("f")).expect("read");
            let mut seen = vec![0; 300_000];
            ours.read_exact_at(&mut seen, 0).expect("read");
            assert_equal_bytes(
                &format!("open file, ttl {ttl}, round {round}"),
                &seen,
                &wanted,
            );
            assert_bytes(&mount.view("f"), &wanted);
        }
    }
}

/// Append-only logs that two machines share: nothing that the other appended is overwritten or missing.
#[test]
fn appends_of_both_sides_end_up_in_one_file() {
    let mount = Mount::with(&[], |source| put(&source.join("log"), ""));
    let open = |path: &Path| File::options().append(true).open(path).expect("open");
    let (mut ours, mut foreign) = (open(&mount.view("log")), open(&mount.source("log")));
    let mut wanted = String::new();
    for round in 0..100 {
        for (file, who) in [(&mut ours, "ours"), (&mut foreign, "foreign")] {
            let line = format!("{who} {round}\n");
            file.write_all(line.as_bytes()).expect("append");
            wanted.push_str(&line);
        }
    }
    assert_bytes(&mount.source("log"), wanted.as_bytes());
    eventually("all lines are seen", TTL_AND_MORE, || {
        equal(
            fs::read_to_string(mount.view("log")).expect("read"),
            wanted.clone(),
        )
    });
}

/// A build writes object files and the linker reads them back: what was written through the mount is in the cache, the
/// source is asked for none of it.
#[test]
fn what_was_written_is_read_back_without_the_source() {
    let old = pattern(1_000_000, 1);
    let slow = Slow::with(&["--ttl", "600"], |disk| {
        fs::write(disk.join("old"), &old).expect("write");
        let_age(&disk.join("old"));
    });
    let assert_unread = |after: &str| {
        let (reads, bytes) = (
            slow.control().count(Kind::Read),
            slow.control().bytes_read(),
        );
        assert_eq!((reads, bytes), (0, 0), "the source was read after {after}");
    };
    // New files, small and large.
    slow.control().reset_counters();
    for (name, size) in [("small", 10), ("odd", 70_001), ("large", 5_000_000)] {
        let bytes = pattern(size, size as u64);
        fs::write(slow.view(name), &bytes).expect("write");
        assert_bytes(&slow.view(name), &bytes);
        assert_bytes(&slow.disk(name), &bytes);
        assert_unread(name);
    }
    // Some bytes in the middle of a file that is cached: the rest of it stays cached.
    assert_bytes(&slow.view("old"), &old);
    slow.control().reset_counters();
    let mut wanted = old.clone();
    let file = File::options()
        .write(true)
        .open(slow.view("old"))
        .expect("open");
    for at in [0, 4095, 500_000, 999_000] {
        wanted[at..at + 1000].copy_from_slice(&pattern(1000, at as u64));
        file.write_all_at(&wanted[at..at + 1000], at as u64)
            .expect("write");
    }
    drop(file);
    assert_bytes(&slow.view("old"), &wanted);
    assert_bytes(&slow.disk("old"), &wanted);
    assert_unread("writes into a file");
    // An editor saves: write another file, rename it over the old one.
    fs::write(slow.view("old.tmp"), &old).expect("write");
    assert_unread("writing another file");
    fs::rename(slow.view("old.tmp"), slow.view("old")).expect("rename");
    assert_bytes(&slow.view("old"), &old);
    assert_unread("a rename over it");
}

/// Attributes are not content: chmod, touch, a rename or one more link leave the content cached.
#[test]
fn a_change_of_attributes_keeps_the_content_cached() {
    let bytes = pattern(300_000, 1);
    let slow = Slow::with(&["--ttl", "600"], |disk| {
        fs::write(disk.join("f"), &bytes).expect("write");
        let_age(&disk.join("f"));
    });
    assert_bytes(&slow.view("f"), &bytes);
    slow.control().reset_counters();
    fs::set_permissions(slow.view("f"), Permissions::from_mode(0o640)).expect("chmod");
    assert_bytes(&slow.view("f"), &bytes);
    let file = File::options()
        .write(true)
        .open(slow.view("f"))
        .expect("open");
    file.set_modified(std::time::SystemTime::UNIX_EPOCH)
        .expect("touch");
    assert_bytes(&slow.view("f"), &bytes);
    fs::hard_link(slow.view("f"), slow.view("g")).expect("link");
    assert_bytes(&slow.view("g"), &bytes);
    fs::rename(slow.view("f"), slow.view("h")).expect("rename");
    assert_bytes(&slow.view("h"), &bytes);
    fs::remove_file(slow.view("h")).expect("remove");
    assert_bytes(&slow.view("g"), &bytes);
    assert_eq!(slow.control().count(Kind::Read), 0);
}

/// Reading again costs the source nothing within the ttl, and no read after it: one question whether the file
/// changed is enough.
#[test]
fn reading_again_does_not_read_the_source_again() {
    let bytes = pattern(700_000, 1);
    let slow = Slow::with(&["--ttl", "0.2"], |disk| {
        fs::write(disk.join("f"), &bytes).expect("write");
        let_age(&disk.join("f"));
    });
    assert_bytes(&slow.view("f"), &bytes);
    slow.control().reset_counters();
    eventually("the source is asked", SOON, || {
        assert_bytes(&slow.view("f"), &bytes);
        match slow.control().requests() {
            0 => Err("nothing was asked".into()),
            _ => Ok(()),
        }
    });
    assert_eq!(slow.control().count(Kind::Read), 0);
    assert_eq!(slow.control().bytes_read(), 0);
}
