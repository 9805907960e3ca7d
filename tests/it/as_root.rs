//! Other users and devices: tests that only root can make. (`cargo test --test it -- --skip as_root` leaves them out.)

use crate::fixture::{Mount, WARMFS, mount_at, run, tempdir};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use std::fs::{self, Permissions};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

/// A user that owns nothing; so is the group.
const NOBODY: u32 = 65534;

#[track_caller]
fn need_root() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "this test switches users or makes devices, so it must run as root"
    );
}

/// Run a shell line as another user, in `dir`.
fn as_user(options: &[&str], dir: &Path, line: &str) -> crate::fixture::Said {
    let mut command = Command::new("setpriv");
    command
        .args(options)
        .args(["sh", "-c", line])
        .current_dir(dir);
    run(&mut command)
}

const AS_NOBODY: [&str; 3] = ["--reuid=65534", "--regid=65534", "--clear-groups"];

#[test]
fn devices_are_those_of_the_source() {
    need_root();
    let mount = Mount::new();
    for (name, kind, device) in [
        ("null", SFlag::S_IFCHR, makedev(1, 3)),
        ("block", SFlag::S_IFBLK, makedev(7, 200)),
        ("large", SFlag::S_IFCHR, makedev(300, 70_000)),
    ] {
        let mode = Mode::from_bits_truncate(0o600);
        mknod(&mount.view(name), kind, mode, device).expect("mknod");
        mount.assert_same(name);
        let meta = fs::symlink_metadata(mount.source(name)).expect("stat");
        assert_eq!(meta.rdev(), device, "{name}");
        let kind_seen = meta.file_type();
        assert_eq!(kind_seen.is_block_device(), kind == SFlag::S_IFBLK);
    }
    // Devices of a source that anybody may have put there do nothing, unless they are asked for.
    let refused = fs::read(mount.view("null")).expect_err("nodev");
    assert_eq!(refused.raw_os_error(), Some(libc::EACCES));
    let mount = Mount::with(&["-o", "dev,suid"], |source| {
        let mode = Mode::from_bits_truncate(0o600);
        mknod(&source.join("null"), SFlag::S_IFCHR, mode, makedev(1, 3)).expect("mknod");
    });
    assert_eq!(fs::read(mount.view("null")).expect("read"), b"");
    let listed = mount_at(mount.at()).expect("listed");
    assert!(!listed.options.contains("nosuid"), "{listed:?}");
}

/// What another user creates belongs to that user, in the source too: files, directories, links, pipes. (PostgreSQL
/// refuses to start otherwise.)
#[test]
fn what_a_user_makes_belongs_to_that_user() {
    need_root();
    let mount = Mount::with(&["--allow-other"], |source| {
        fs::create_dir(source.join("dir")).expect("mkdir");
        fs::set_permissions(source.join("dir"), Permissions::from_mode(0o777)).expect("chmod");
        fs::create_dir(source.join("closed")).expect("mkdir");
        fs::write(source.join("secret"), "secret").expect("write");
        fs::set_permissions(source.join("secret"), Permissions::from_mode(0o600)).expect("chmod");
    });
    let line = "umask 027 && echo content >f && mkdir d && ln -s f l && mkfifo p && ln f h && echo more >>h && chmod 4711 f";
    as_user(&AS_NOBODY, &mount.view("dir"), line).ok();
    for (name, mode) in [
        ("f", Some(0o4711)),
        ("d", Some(0o750)),
        ("l", None),
        ("p", Some(0o640)),
        ("h", Some(0o4711)),
    ] {
        let name = Path::new("dir").join(name);
        mount.assert_same(&name);
        let meta = fs::symlink_metadata(mount.source(&name)).expect("stat");
        assert_eq!((meta.uid(), meta.gid()), (NOBODY, NOBODY), "{name:?}");
        if let Some(mode) = mode {
            assert_eq!(meta.mode() & 0o7777, mode, "{name:?} {:o}", meta.mode());
        }
    }
    // A write by that user takes the bit away, as on a local disk.
    as_user(&AS_NOBODY, &mount.view("dir"), "echo more >>f").ok();
    mount.assert_same("dir/f");
    let mode = fs::metadata(mount.view("dir/f")).expect("stat").mode() & 0o7777;
    assert_eq!(mode, 0o711);
    // The daemon is root; that must not open doors.
    for line in [
        "echo x >closed/f",
        "mkdir closed/d",
        "cat secret",
        "echo x >>secret",
        "chmod 666 secret",
        "rm -f secret",
        "mv secret dir/",
    ] {
        let said = as_user(&AS_NOBODY, mount.at(), line);
        assert!(!said.status.success(), "{line}: {said:?}");
        assert!(said.stderr.contains("ermi"), "{line}: {said:?}");
    }
    assert_eq!(fs::read(mount.source("secret")).expect("read"), b"secret");
}

/// A directory with the set-group-id bit hands its group on, and to directories the bit as well; a file keeps the bit
/// only if its maker is in that group. All decided as the source would decide.
#[test]
fn a_set_group_id_directory_hands_its_group_on() {
    need_root();
    const GROUP: u32 = 54321;
    let member = ["--reuid=65534", "--regid=65534", "--groups=54321"];
    let mount = Mount::with(&["--allow-other"], |source| {
        for name in ["in the mount", "in the source"] {
            let dir = source.join(name);
            fs::create_dir(&dir).expect("mkdir");
            chown(&dir, None, Some(GROUP)).expect("chown");
            fs::set_permissions(&dir, Permissions::from_mode(0o2777)).expect("chmod");
        }
    });
    let line = "umask 0 && >f && mkdir d && >d/below && chmod 2755 f && \
                perl -e 'sysopen(F, \"g\", 65, 02775)' 2>/dev/null; true";
    for (who, options) in [("member", &member), ("other", &AS_NOBODY)] {
        for (path, name) in [
            (mount.view("in the mount"), "in the mount"),
            (mount.source("in the source"), "in the source"),
        ] {
            fs::create_dir(path.join(who)).expect("mkdir");
            chown(path.join(who), None, Some(GROUP)).expect("chown");
            fs::set_permissions(path.join(who), Permissions::from_mode(0o2777)).expect("chmod");
            as_user(options, &path.join(who), line).ok();
            mount.assert_same(Path::new(name).join(who).join("d"));
        }
        for name in ["f", "d", "d/below", "g"] {
            let facts = |dir: &str| {
                let path = mount.source(dir).join(who).join(name);
                let meta = fs::symlink_metadata(path).ok()?;
                Some((format!("{:o}", meta.mode()), meta.uid(), meta.gid()))
            };
            let made = facts("in the mount");
            assert_eq!(made, facts("in the source"), "{name} made by {who}");
            if let Some((_, uid, gid)) = made {
                assert_eq!((uid, gid), (NOBODY, GROUP), "{name} made by {who}");
            }
        }
    }
}

/// Runs in a mount table and a process table of its own, which end with it: nothing that it mounts or starts stays.
/// There /dev/fuse is open to all, as it is on most machines. $1: warmfs, $2: a directory of the user.
const AS_A_USER: &str = r#"
set -eu
mount -t tmpfs none "$2/dev"
mknod "$2/dev/fuse" c 10 229
chmod 666 "$2/dev/fuse"
mount --bind "$2/dev/fuse" /dev/fuse
cd "$2"
user() { setpriv --reuid=65534 --regid=65534 --clear-groups -- "$@"; }
wrong() { echo "$1"; exit 1; }
user "$1" mount 'a source, with "odd" \ characters' 'a view, too'
grep 'a\\040view,\\040too' /proc/self/mountinfo
user cat 'a view, too/f'
user sh -c 'cd "a view, too"; echo written >new; mkdir dir; mv new dir/; chmod 600 dir/new; cat dir/new'
! user sh -c 'echo x >"a view, too/not-mine"' || wrong 'wrote a file of another user'
! user cat 'a view, too/secret' || wrong 'read a file of another user'
! ls 'a view, too' || wrong 'another user got in, though only root'
! user "$1" umount --lazy nothing || wrong 'unmounted nothing'
user "$1" umount 'a view, too'
! grep fuse.warmfs /proc/self/mountinfo | grep ',\\040too' || wrong 'still mounted'
user "$1" mount --read-only -o noexec 'a source, with "odd" \ characters' 'a view, too'
! user sh -c 'echo x >"a view, too/f"' || wrong 'wrote to a read-only mount'
user sh -c 'exec 3<"a view, too/f"; ! "$0" umount "a view, too" || exit 1; "$0" umount --lazy "a view, too"' "$1"
! user "$1" mount --allow-other source view 2>allow-other || wrong 'let others in'
cat allow-other
"#;

/// The usual way to use it: no root anywhere, mounting through fusermount3. Also with characters in the paths that mean
/// something to mount options.
#[test]
fn a_user_mounts_without_root() {
    need_root();
    let dir = tempdir();
    let source = dir.path().join("a source, with \"odd\" \\ characters");
    for name in ["dev", "a view, too", "source", "view"] {
        fs::create_dir(dir.path().join(name)).expect("mkdir");
    }
    fs::create_dir(&source).expect("mkdir");
    fs::write(source.join("f"), "content").expect("write");
    fs::write(source.join("secret"), "secret").expect("write");
    fs::write(source.join("not-mine"), "not mine").expect("write");
    fs::set_permissions(source.join("secret"), Permissions::from_mode(0o600)).expect("chmod");
    for path in [
        &source,
        &dir.path().join("a view, too"),
        &dir.path().join("view"),
    ] {
        chown(path, Some(NOBODY), Some(NOBODY)).expect("chown");
    }
    chown(source.join("f"), Some(NOBODY), Some(NOBODY)).expect("chown");
    chown(dir.path(), Some(NOBODY), Some(NOBODY)).expect("chown");
    // The build may lie where that user cannot go.
    let program = dir.path().join("warmfs");
    fs::copy(WARMFS, &program).expect("copy");
    let mut command = Command::new("unshare");
    command
        .args([
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "sh",
            "-c",
            AS_A_USER,
            "sh",
        ])
        .arg(&program)
        .arg(dir.path());
    let said = run(&mut command);
    assert!(said.status.success(), "{said:#?}");
    assert!(said.stdout.contains("content"), "{said:#?}");
    let listed = r#"with\040"odd"\040\134\040characters"#;
    assert!(said.stdout.contains(listed), "{said:#?}");
    assert!(said.stdout.contains("written"), "{said:#?}");
    assert!(said.stderr.contains("Permission denied"), "{said:#?}");
    assert!(said.stderr.contains("Read-only file system"), "{said:#?}");
    assert!(said.stderr.contains("is in use"), "{said:#?}");
    if !fs::read_to_string("/etc/fuse.conf")
        .is_ok_and(|text| text.lines().any(|line| line.trim() == "user_allow_other"))
    {
        assert!(said.stdout.contains("user_allow_other"), "{said:#?}");
    }
    let made = fs::metadata(source.join("dir/new")).expect("stat");
    assert_eq!((made.uid(), made.mode() & 0o777), (NOBODY, 0o600));
    assert_eq!(
        fs::read(source.join("dir/new")).expect("read"),
        b"written\n"
    );
    assert_eq!(
        fs::read(source.join("not-mine")).expect("read"),
        b"not mine"
    );
}
