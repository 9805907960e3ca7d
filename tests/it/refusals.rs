//! Mistakes on the command line: one line that says what is wrong and what to do, exit code 1, and nothing mounted.

use crate::fixture::{Mount, Said, mount_at, run, take_away_below, tempdir, umount, warmfs};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// One line, and what must be in it.
#[track_caller]
fn assert_refused(said: &Said, wanted: &[&str]) {
    assert_eq!(said.status.code(), Some(1), "{said:#?}");
    assert_eq!(said.stdout, "", "{said:#?}");
    assert!(said.stderr.starts_with("warmfs: "), "{said:#?}");
    assert_eq!(said.stderr.lines().count(), 1, "{said:#?}");
    for part in wanted {
        assert!(said.stderr.contains(part), "{part:?} is not in {said:#?}");
    }
}

/// A source with one file, and an empty mount point, that nothing mounts.
struct Dirs(TempDir);

impl Dirs {
    fn new() -> Dirs {
        let dir = tempdir();
        for name in ["source", "view"] {
            fs::create_dir(dir.path().join(name)).expect("mkdir");
        }
        fs::write(dir.path().join("source/f"), "content").expect("write");
        Dirs(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Try to mount; it must be refused, and nothing be mounted, in the foreground as well.
    #[track_caller]
    fn refused(&self, args: &[&str], source: &str, view: &str, wanted: &[&str]) {
        for more in [&[][..], &["--foreground"]] {
            let mut command = warmfs(["mount"]);
            command.args(args).args(more);
            let said = run(command.arg(self.path(source)).arg(self.path(view)));
            assert_refused(&said, wanted);
            assert!(mount_at(&self.path(view)).is_none(), "something is mounted");
        }
    }
}

impl Drop for Dirs {
    fn drop(&mut self) {
        take_away_below(self.0.path());
    }
}

#[test]
fn a_source_that_is_missing_or_no_directory() {
    let dirs = Dirs::new();
    dirs.refused(
        &[],
        "nowhere",
        "view",
        &["nowhere", "as source", "No such file", "exists"],
    );
    dirs.refused(&[], "source/f", "view", &["source/f", "not a directory"]);
}

#[test]
fn a_mount_point_that_is_missing_or_no_directory_or_not_empty() {
    let dirs = Dirs::new();
    dirs.refused(
        &[],
        "source",
        "nowhere",
        &["nowhere", "does not exist", "mkdir -p"],
    );
    fs::write(dirs.path("file"), "").expect("write");
    dirs.refused(
        &[],
        "source",
        "file",
        &["file", "not a directory", "empty directory"],
    );
    fs::write(dirs.path("view/hidden"), "").expect("write");
    dirs.refused(&[], "source", "view", &["view", "not empty", "-o nonempty"]);
    // What it says to do works.
    let mut command = warmfs(["mount", "-o", "nonempty"]);
    run(command.arg(dirs.path("source")).arg(dirs.path("view"))).ok();
    assert!(!dirs.path("view/hidden").exists());
    assert_eq!(fs::read(dirs.path("view/f")).expect("read"), b"content");
}

#[test]
fn a_mount_point_and_a_source_that_lie_inside_one_another() {
    let dirs = Dirs::new();
    fs::create_dir(dirs.path("source/inner")).expect("mkdir");
    fs::create_dir(dirs.path("outer")).expect("mkdir");
    std::os::unix::fs::symlink(dirs.path("source"), dirs.path("link")).expect("symlink");
    let wanted = ["inside one another", "elsewhere"];
    dirs.refused(&[], "source", "source/inner", &wanted);
    dirs.refused(&[], "source/inner", "source/inner", &wanted);
    // By another name of the same place.
    dirs.refused(&[], "source", "link/inner", &wanted);
    // The mount point is not empty either, but that is not what is wrong.
    dirs.refused(&["-o", "nonempty"], "source/inner", "source", &wanted);
    // Names that begin alike are not inside.
    fs::create_dir(dirs.path("source-view")).expect("mkdir");
    let mut command = warmfs(["mount"]);
    run(command
        .arg(dirs.path("source"))
        .arg(dirs.path("source-view")))
    .ok();
    umount(&dirs.path("source-view")).ok();
}

#[test]
fn a_mount_point_that_is_in_use_already() {
    let mount = Mount::new();
    let said = run(warmfs(["mount"]).arg(mount.source("")).arg(mount.at()));
    assert_refused(&said, &["mount already", "warmfs umount"]);
    // The first one does not suffer.
    fs::write(mount.view("f"), "content").expect("write");
    mount.assert_content("f", b"content");
}

/// Values that mean nothing: the line says which option, and what it takes. These come from the parser of the command
/// line, which has an exit code of its own.
#[test]
fn values_that_mean_nothing() {
    let dirs = Dirs::new();
    for (args, wanted) in [
        (&["--memory", "lots"][..], &["--memory", "64M"][..]),
        (&["--memory=-5"], &["--memory", "64M"]),
        (&["--ttl", "soon"], &["--ttl", "seconds"]),
        (&["--ttl=-1"], &["--ttl", "seconds"]),
        (&["--ttl", "1e30"], &["--ttl", "at most a year"]),
        (&["--io-threads", "0"], &["--io-threads", "from 4"]),
        (&["-o", "bogus"], &["bogus", "known are"]),
        (&["-o", "ro,memory=lots"], &["memory", "64M"]),
        (&["--log", "everything"], &["--log", "warn"]),
        (&["--bogus"], &["--bogus"]),
    ] {
        let mut command = warmfs(["mount"]);
        command.args(args);
        let said = run(command.arg(dirs.path("source")).arg(dirs.path("view")));
        assert_eq!(said.status.code(), Some(2), "{args:?}: {said:#?}");
        for part in wanted {
            assert!(said.stderr.contains(part), "{part:?} is not in {said:#?}");
        }
        assert!(mount_at(&dirs.path("view")).is_none());
    }
    let said = run(warmfs(["mount"]).arg(dirs.path("source")));
    assert_eq!(said.status.code(), Some(2), "{said:#?}");
    assert!(said.stderr.contains("MOUNTPOINT"), "{said:#?}");
}

#[test]
fn a_log_that_cannot_be_written() {
    let dirs = Dirs::new();
    let log = dirs.path("nowhere/log");
    let log = log.to_str().expect("text");
    dirs.refused(
        &["--log-file", log],
        "source",
        "view",
        &["cannot log", "nowhere/log"],
    );
}

#[test]
fn unmounting_what_is_not_mounted() {
    let dirs = Dirs::new();
    for name in ["view", "nowhere", "source/f", "nowhere/at/all"] {
        for args in [&["umount"][..], &["umount", "--lazy"]] {
            let said = run(warmfs(args).arg(dirs.path(name)));
            assert_refused(&said, &[name]);
        }
    }
    assert_refused(
        &umount(&dirs.path("view")),
        &["nothing is mounted", "findmnt"],
    );
    assert_refused(
        &umount(Path::new("/proc")),
        &["not a warmfs mount", "proc", "umount(8)"],
    );
    assert!(Path::new("/proc/self").exists());
}

/// A program has a file open, or stands in a directory: the line says how to find it, and what takes the mount away all
/// the same. After that the program can go on with what it has.
#[test]
fn unmounting_a_mount_that_is_in_use() {
    let mount = Mount::with(&[], |source| {
        fs::write(source.join("f"), "content").expect("write");
    });
    let file = File::open(mount.view("f")).expect("open");
    assert_refused(&umount(mount.at()), &["in use", "umount --lazy"]);
    mount.assert_content("f", b"content");
    drop(file);
    let mut stands_in_it = Command::new("sleep")
        .arg("600")
        .current_dir(mount.at())
        .spawn()
        .expect("sleep starts");
    let said = umount(mount.at());
    let file = File::options()
        .read(true)
        .write(true)
        .open(mount.view("f"))
        .expect("open");
    let lazy = run(warmfs(["umount", "--lazy"]).arg(mount.at()));
    let left = mount_at(mount.at());
    stands_in_it.kill().expect("kill");
    stands_in_it.wait().expect("wait");
    assert_refused(&said, &["in use", "umount --lazy"]);
    lazy.ok();
    assert!(left.is_none(), "still mounted");
    std::os::unix::fs::FileExt::write_all_at(&file, b"written", 0).expect("write");
    file.sync_all().expect("fsync");
    assert_eq!(fs::read(mount.source("f")).expect("read"), b"written");
}
