//! What `stat` says, what can be set of it, and extended attributes.

use crate::fixture::{Mount, run};
use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::statvfs::statvfs;
use nix::sys::time::TimeSpec;
use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

fn populated() -> Mount {
    Mount::with(&[], |source| {
        fs::write(source.join("f"), "content").expect("write");
        fs::create_dir(source.join("dir")).expect("mkdir");
        symlink("f", source.join("link")).expect("symlink");
        symlink("absent", source.join("dangling")).expect("symlink");
    })
}

/// Inode numbers, link counts, sizes, owners, modes and times to the nanosecond: git, make and backups depend on them.
#[test]
fn stat_says_what_the_source_says() {
    let mount = populated();
    for name in ["", "f", "dir", "link", "dangling"] {
        mount.assert_same(name);
    }
    // Numbers in listings are the same, too.
    for entry in fs::read_dir(mount.at()).expect("list") {
        let entry = entry.expect("list");
        let meta = entry.path().symlink_metadata().expect("stat");
        assert_eq!(
            std::os::unix::fs::DirEntryExt::ino(&entry),
            meta.ino(),
            "{entry:?}"
        );
        assert_eq!(entry.file_type().expect("type"), meta.file_type());
    }
    // And after each kind of change through the mount, at once.
    fs::write(mount.view("f"), "longer than before").expect("write");
    mount.assert_same("f");
    fs::write(mount.view("dir/new"), "").expect("write");
    mount.assert_same("dir");
    fs::create_dir(mount.view("dir/sub")).expect("mkdir");
    mount.assert_same("dir");
    fs::remove_file(mount.view("dir/new")).expect("remove");
    mount.assert_same("dir");
    let mut open = File::options()
        .append(true)
        .open(mount.view("f"))
        .expect("open");
    for _ in 0..20 {
        open.write_all(b"more").expect("write");
        mount.assert_same("f");
        let seen = open.metadata().expect("fstat").len();
        assert_eq!(seen, fs::metadata(mount.source("f")).expect("stat").len());
    }
}

/// All of the mode, whatever the umask.
#[test]
fn modes_are_set() {
    let mount = populated();
    for name in ["f", "dir"] {
        for mode in [0o000, 0o1777, 0o644, 0o4755, 0o2750, 0o600, 0o755] {
            fs::set_permissions(mount.view(name), Permissions::from_mode(mode)).expect("chmod");
            mount.assert_same(name);
            let seen = fs::metadata(mount.view(name)).expect("stat").mode() & 0o7777;
            assert_eq!(seen, mode, "{name} {mode:o}");
        }
    }
}

fn set_times(path: &Path, atime: TimeSpec, mtime: TimeSpec) {
    let nofollow = UtimensatFlags::NoFollowSymlink;
    utimensat(AT_FDCWD, path, &atime, &mtime, nofollow)
        .unwrap_or_else(|errno| panic!("utimensat {path:?}: {errno}"));
}

/// Seconds and nanoseconds of atime and mtime.
fn times(path: &Path) -> [(i64, i64); 2] {
    let meta = fs::symlink_metadata(path).expect("stat");
    [
        (meta.atime(), meta.atime_nsec()),
        (meta.mtime(), meta.mtime_nsec()),
    ]
}

/// tar and rsync set times of files, directories and links; also those before 1970, whose nanoseconds count forwards
/// all the same.
#[test]
fn times_are_set_to_the_nanosecond_also_before_1970() {
    let mount = populated();
    for name in ["f", "dir", "link", "dangling"] {
        for time in [
            (1_234_567_890, 123_456_789),
            (0, 0),
            (0, 1),
            (-1, 999_999_999),
            (-2, 500_000_000),
            (-1_000_000_000, 1),
            (4_294_967_296, 5),
        ] {
            let spec = TimeSpec::new(time.0, time.1);
            let later = (time.0 + 5, time.1);
            set_times(&mount.view(name), spec, TimeSpec::new(later.0, later.1));
            for path in [mount.view(name), mount.source(name)] {
                assert_eq!(times(&path), [time, later], "{path:?}");
            }
            mount.assert_same(name);
        }
    }
}

#[test]
fn one_time_can_be_left_alone_or_set_to_now() {
    let mount = populated();
    for name in ["f", "dir", "link"] {
        let path = mount.view(name);
        let (first, second) = (TimeSpec::new(1000, 1), TimeSpec::new(2000, 2));
        set_times(&path, first, second);
        set_times(&path, TimeSpec::UTIME_OMIT, TimeSpec::new(3000, 3));
        assert_eq!(times(&path), [(1000, 1), (3000, 3)], "{name}");
        set_times(&path, TimeSpec::new(4000, 4), TimeSpec::UTIME_OMIT);
        assert_eq!(times(&path), [(4000, 4), (3000, 3)], "{name}");
        let ctime = |path: &Path| {
            let meta = fs::symlink_metadata(path).expect("stat");
            (meta.ctime(), meta.ctime_nsec())
        };
        let before = ctime(&path);
        set_times(&path, TimeSpec::UTIME_OMIT, TimeSpec::UTIME_NOW);
        let [atime, mtime] = times(&path);
        assert_eq!(atime, (4000, 4), "{name}");
        assert!(mtime >= before && mtime <= ctime(&path), "{name} {mtime:?}");
        mount.assert_same(name);
        set_times(&path, TimeSpec::UTIME_OMIT, TimeSpec::UTIME_OMIT);
        assert_eq!(times(&path), [atime, mtime], "{name}");
        mount.assert_same(name);
    }
}

#[test]
fn the_file_system_below_shows_through() {
    let mount = populated();
    let [view, source] = [mount.view("f"), mount.source("f")].map(|path| {
        let all = statvfs(&path).expect("statfs");
        // What is free changes from one call to the next.
        (
            all.blocks(),
            all.block_size(),
            all.fragment_size(),
            all.files(),
            all.name_max(),
        )
    });
    assert_eq!(view, source);
}

/// Output of a program about the same name in the mount and in the source.
fn both(mount: &Mount, command: &[&str], name: &str) -> [String; 2] {
    [mount.at().to_owned(), mount.source("")].map(|dir| {
        let mut command_line = Command::new(command[0]);
        let said = run(command_line.args(&command[1..]).arg(name).current_dir(dir));
        format!("{}{}{}", said.status, said.stdout, said.stderr)
    })
}

#[track_caller]
fn assert_both(mount: &Mount, command: &[&str], name: &str, contains: &str) {
    let [view, source] = both(mount, command, name);
    assert_eq!(view, source, "{command:?} {name}");
    assert!(view.contains(contains), "{command:?} {name}: {view}");
}

fn in_view(mount: &Mount, command: &[&str], name: &str) {
    let mut command_line = Command::new(command[0]);
    run(command_line
        .args(&command[1..])
        .arg(name)
        .current_dir(mount.at()))
    .ok();
}

#[test]
fn extended_attributes_are_those_of_the_source() {
    let mount = populated();
    let dump = ["getfattr", "-d", "-e", "hex"];
    for name in ["f", "dir"] {
        assert_both(&mount, &["getfattr", "-n", "user.absent"], name, "No such");
        in_view(&mount, &["setfattr", "-n", "user.one", "-v", "first"], name);
        assert_both(&mount, &dump, name, "user.one=0x6669727374");
        in_view(
            &mount,
            &["setfattr", "-n", "user.one", "-v", "second"],
            name,
        );
        in_view(&mount, &["setfattr", "-n", "user.empty"], name);
        let long = "x".repeat(2000);
        in_view(&mount, &["setfattr", "-n", "user.long", "-v", &long], name);
        assert_both(&mount, &dump, name, "user.one=0x7365636f6e64");
        assert_both(&mount, &dump, name, "user.empty");
        assert_both(&mount, &dump, name, &"78".repeat(2000));
        in_view(&mount, &["setfattr", "-x", "user.one"], name);
        assert_both(&mount, &["getfattr", "-n", "user.one"], name, "No such");
        assert_both(&mount, &dump, name, "user.long");
        mount.assert_same(name);
    }
    let refused = both(&mount, &["setfattr", "-x", "user.absent"], "f");
    assert_eq!(refused[0], refused[1]);
    // A change in the source is seen as any other.
    let mut command = Command::new("setfattr");
    run(command
        .args(["-n", "user.long", "-v", "short"])
        .arg(mount.source("f")))
    .ok();
    crate::fixture::eventually("the change is seen", crate::fixture::SOON, || {
        let [view, source] = both(&mount, &dump, "f");
        crate::fixture::equal(view, source)
    });
}

/// An ACL changes the mode bits, which are its mask; `ls` and `stat` show that at once.
#[test]
fn an_access_control_list_shows_in_the_mode_at_once() {
    let mount = populated();
    for name in ["f", "dir"] {
        let mode = || fs::metadata(mount.view(name)).expect("stat").mode() & 0o777;
        fs::set_permissions(mount.view(name), Permissions::from_mode(0o600)).expect("chmod");
        assert_eq!(mode(), 0o600);
        in_view(&mount, &["setfacl", "-m", "u:12345:rwx"], name);
        assert_eq!(
            mode(),
            0o670,
            "{name}: the mask is shown as the group's bits"
        );
        mount.assert_same(name);
        assert_both(&mount, &["getfacl", "-n"], name, "user:12345:rwx");
        fs::set_permissions(mount.view(name), Permissions::from_mode(0o640)).expect("chmod");
        assert_both(&mount, &["getfacl", "-n"], name, "mask::r--");
        in_view(&mount, &["setfacl", "-b"], name);
        mount.assert_same(name);
        assert_both(&mount, &["getfacl", "-n"], name, "user::rw-");
    }
    fs::set_permissions(mount.view("dir"), Permissions::from_mode(0o755)).expect("chmod");
    in_view(&mount, &["setfacl", "-d", "-m", "u:12345:rx"], "dir");
    fs::write(mount.view("dir/new"), "").expect("write");
    mount.assert_same("dir/new");
    assert_both(&mount, &["getfacl", "-n"], "dir/new", "user:12345:r-x");
}
