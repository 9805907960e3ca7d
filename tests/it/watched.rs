//! A source that tells of its changes: they are seen at once, however long the ttl, and our own cool nothing.

use crate::fixture::{
    Mount, Repeating, SOON, equal, eventually, let_age, names, python, run, within,
};
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use std::fmt::Debug;
use std::fs::{self, Permissions};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

/// "At once", on a machine that has other things to do. No ttl of these tests is over by then.
const AT_ONCE: Duration = Duration::from_secs(5);

fn told() -> Mount {
    Mount::with(&["--ttl", "600"], |source| {
        fs::create_dir_all(source.join("dir/below")).expect("mkdir");
        fs::write(source.join("dir/f"), "old content").expect("write");
        fs::write(source.join("dir/below/deep"), "old").expect("write");
        symlink("old", source.join("dir/link")).expect("symlink");
    })
}

#[track_caller]
fn assert_is_told<T: PartialEq + Debug>(look: impl Fn(&Path) -> T, change: impl Fn(&Path)) {
    let mount = told();
    let (view, source) = (mount.view("dir"), mount.source("dir"));
    let_age(&mount.source("dir/f"));
    let before = look(&source);
    for _ in 0..3 {
        assert_eq!(look(&view), before, "before the change");
    }
    change(&source);
    let wanted = look(&source);
    assert_ne!(before, wanted, "the test must change something");
    eventually("the change is told of", AT_ONCE, || {
        equal(look(&view), look(&source))
    });
}

fn text(dir: &Path) -> Option<String> {
    fs::read_to_string(dir.join("f")).ok()
}

#[test]
fn a_change_of_content_is_told_of() {
    assert_is_told(text, |dir| {
        fs::write(dir.join("f"), "new").expect("write");
    });
}

#[test]
fn content_of_the_same_size_and_time_is_told_of() {
    assert_is_told(text, |dir| {
        let before = fs::metadata(dir.join("f")).expect("stat");
        fs::write(dir.join("f"), "OLD CONTENT").expect("write");
        let file = fs::File::options().write(true).open(dir.join("f"));
        let file = file.expect("open");
        file.set_modified(before.modified().expect("mtime"))
            .expect("utimes");
    });
}

/// Stores through a map raise no event; the close after them does, and would not be asked for by who wants to know of
/// changes of names, attributes and written bytes alone.
#[test]
fn what_was_stored_through_a_map_is_told_of_when_it_is_closed() {
    assert_is_told(text, |dir| {
        let store =
            "import mmap,sys\nf=open(sys.argv[1],'r+b')\nm=mmap.mmap(f.fileno(),0)\nm[:3]=b'NEW'";
        let said = run(&mut python(store, [dir.join("f")]));
        assert!(said.status.success(), "{said:#?}");
    });
}

#[test]
fn attributes_are_told_of() {
    let mode = |dir: &Path| fs::metadata(dir.join("f")).expect("stat").mode();
    assert_is_told(mode, |dir| {
        fs::set_permissions(dir.join("f"), Permissions::from_mode(0o600)).expect("chmod");
    });
}

#[test]
fn a_file_that_replaces_another_is_told_of() {
    assert_is_told(text, |dir| {
        fs::write(dir.join("tmp"), "replaced").expect("write");
        fs::rename(dir.join("tmp"), dir.join("f")).expect("rename");
    });
}

#[test]
fn a_name_that_was_looked_for_in_vain_is_told_of() {
    let look = |dir: &Path| dir.join("new").exists();
    assert_is_told(look, |dir| fs::write(dir.join("new"), "x").expect("write"));
}

#[test]
fn a_removed_file_is_told_of() {
    assert_is_told(text, |dir| fs::remove_file(dir.join("f")).expect("unlink"));
}

#[test]
fn a_changed_link_is_told_of() {
    let look = |dir: &Path| fs::read_link(dir.join("link")).ok();
    assert_is_told(look, |dir| {
        fs::remove_file(dir.join("link")).expect("unlink");
        symlink("new", dir.join("link")).expect("symlink");
    });
}

#[test]
fn listings_are_told_of() {
    assert_is_told(names, |dir| {
        fs::write(dir.join("new"), "x").expect("write");
        fs::remove_file(dir.join("f")).expect("unlink");
    });
}

#[test]
fn a_directory_that_was_replaced_is_told_of() {
    let look = |dir: &Path| fs::read_to_string(dir.join("below/deep")).ok();
    assert_is_told(look, |dir| {
        fs::rename(dir.join("below"), dir.join("moved")).expect("rename");
        fs::create_dir(dir.join("below")).expect("mkdir");
        fs::write(dir.join("below/deep"), "another").expect("write");
    });
}

/// The watch goes with the directory, and so does what is known below it.
#[test]
fn changes_in_a_moved_directory_are_told_of() {
    let mount = told();
    let look = |name: &str| fs::read_to_string(mount.view(name)).ok();
    assert_eq!(look("dir/below/deep").as_deref(), Some("old"));
    fs::rename(mount.view("dir"), mount.view("moved")).expect("rename");
    assert_eq!(look("moved/below/deep").as_deref(), Some("old"));
    for text in ["first", "second"] {
        fs::write(mount.source("moved/below/deep"), text).expect("write");
        eventually("the change is told of", AT_ONCE, || {
            equal(look("moved/below/deep").as_deref(), Some(text))
        });
    }
}

#[test]
fn an_open_file_is_told_of() {
    let mount = told();
    let file = fs::File::open(mount.view("dir/f")).expect("open");
    let read = || {
        let mut bytes = [0; 11];
        let count = file.read_at(&mut bytes, 0).expect("read");
        String::from_utf8_lossy(&bytes[..count]).into_owned()
    };
    let_age(&mount.source("dir/f"));
    assert_eq!(read(), "old content");
    fs::write(mount.source("dir/f"), "new content").expect("write");
    eventually("it is told of", AT_ONCE, || {
        equal(read(), "new content".into())
    });
    let mapped = "import mmap,sys\nf=open(sys.argv[1],'rb')\n\
                  assert mmap.mmap(f.fileno(),0,prot=mmap.PROT_READ)[:]==b'new content'";
    let said = run(&mut python(mapped, [mount.view("dir/f")]));
    assert!(said.status.success(), "{said:#?}");
}

/// Setting a watch once waited for the thread that takes in events, which did nothing else while they kept coming: the
/// first look into a directory hung for as long as somebody was busy in the source.
#[test]
fn changes_without_pause_keep_nobody_waiting() {
    const DIRS: usize = 100;
    let mount = Mount::with(&["--ttl", "600"], |source| {
        for name in ["busy/a", "busy/b"] {
            fs::create_dir_all(source.join(name)).expect("mkdir");
        }
        for number in 0..DIRS {
            fs::create_dir(source.join(format!("{number}"))).expect("mkdir");
            fs::write(source.join(format!("{number}/f")), "x").expect("write");
        }
    });
    for name in ["busy", "busy/a", "busy/b"] {
        names(&mount.view(name));
    }
    let (a, b) = (mount.source("busy/a"), mount.source("busy/b"));
    let changing = Repeating::start(move |_| {
        renameat2(AT_FDCWD, &a, AT_FDCWD, &b, RenameFlags::RENAME_EXCHANGE).expect("exchange");
    });
    for number in 0..DIRS {
        let file = mount.view(format!("{number}/f"));
        within("the first look into a directory", SOON, move || {
            assert_eq!(fs::read_to_string(file).expect("read"), "x");
        });
    }
    assert!(changing.stop() > 0);
    fs::write(mount.source("busy/mark"), "x").expect("write");
    let view = mount.view("busy/mark");
    eventually("changes are told of again", AT_ONCE, || {
        equal(view.exists(), true)
    });
}

/// That they cool nothing is a test of the overlay's own.
#[test]
fn our_own_changes_stay_as_they_are() {
    let mount = told();
    for number in 0..200 {
        fs::write(mount.view(format!("dir/own{number}")), "mine").expect("write");
    }
    // A change of somebody else's is heeded behind all of these.
    fs::write(mount.source("dir/f"), "mark").expect("write");
    let look = || {
        let mut text = String::new();
        let mut file = fs::File::open(mount.view("dir/f")).map_err(|error| error.to_string())?;
        file.read_to_string(&mut text)
            .map_err(|error| error.to_string())?;
        equal(text.as_str(), "mark")
    };
    eventually("the mark is told of", AT_ONCE, look);
    for number in 0..200 {
        let name = format!("dir/own{number}");
        assert_eq!(fs::read_to_string(mount.view(&name)).expect("read"), "mine");
        mount.assert_same(&name);
    }
}

#[test]
fn watch_off_polls() {
    let mount = Mount::with(&["--ttl", "600", "--watch", "off"], |source| {
        fs::write(source.join("f"), "old").expect("write");
    });
    let size = || fs::metadata(mount.view("f")).expect("stat").len();
    assert_eq!(size(), 3);
    fs::write(mount.source("f"), "longer").expect("write");
    assert_eq!(size(), 3, "nobody told of it");
}
