//! The command line: mounting, what the mount is then, and the log. (Mistakes are in `refusals`, signals in `signals`.)

use crate::fixture::{
    Mount, SOON, equal, eventually, is_alive, mount_at, run, take_away_below, tempdir, unmount,
    unmount_with, warmfs,
};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The command returns when the mount is ready, not before and not much later, with no word and nothing of it left in
/// the way: its output is closed.
#[test]
fn mounting_returns_when_the_mount_is_ready() {
    let mount = Mount::with(&[], |source| {
        fs::write(source.join("f"), "content").expect("write");
    });
    // The fixture has read the output to its end.
    assert_eq!(fs::read(mount.view("f")).expect("read at once"), b"content");
    let listed = mount_at(mount.at()).expect("listed");
    assert_eq!(listed.fstype, "fuse.warmfs");
    assert_eq!(
        OsStr::from_bytes(&listed.source),
        mount.source("").components().as_path(),
        "the source is listed by its path"
    );
    for option in ["nosuid", "nodev", "rw"] {
        assert!(
            listed.options.split(',').any(|word| word == option),
            "{option} is not in {listed:?}"
        );
    }
    let pid = mount.pid();
    let said = unmount(mount.at());
    assert_eq!((said.stdout.as_str(), said.stderr.as_str()), ("", ""));
    assert!(said.status.success());
    assert!(mount_at(mount.at()).is_none(), "still mounted");
    eventually("the daemon ends", SOON, || equal(is_alive(pid), false));
    assert_eq!(fs::read_dir(mount.at()).expect("list").count(), 0);
}

/// The daemon keeps nothing of the terminal or directory from which it was started.
#[test]
fn the_daemon_parts_from_its_starter() {
    let mount = Mount::new();
    let pid = mount.pid();
    let link = |name: &str| fs::read_link(format!("/proc/{pid}/{name}")).expect("proc");
    assert_eq!(link("cwd"), Path::new("/"));
    for fd in 0..3 {
        assert_eq!(link(&format!("fd/{fd}")), Path::new("/dev/null"), "fd {fd}");
    }
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("proc");
    let after = stat.rsplit_once(") ").expect("a command name").1;
    let session = after.split(' ').nth(3).expect("a session");
    assert_eq!(session, pid.to_string(), "not a session of its own");
}

#[test]
fn read_only_refuses_all_changes() {
    for args in [&["--read-only"][..], &["-o", "ro"]] {
        let mount = Mount::with(args, |source| {
            fs::write(source.join("f"), "content").expect("write");
        });
        let path = mount.view("f");
        let changes = [
            fs::write(&path, "x"),
            fs::write(mount.view("new"), "x"),
            fs::create_dir(mount.view("dir")),
            fs::remove_file(&path),
            fs::rename(&path, mount.view("g")),
            fs::hard_link(&path, mount.view("g")),
            std::os::unix::fs::symlink("f", mount.view("g")),
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)),
        ];
        for (number, change) in changes.into_iter().enumerate() {
            let error = change.expect_err("a change");
            assert_eq!(error.raw_os_error(), Some(libc::EROFS), "change {number}");
        }
        mount.assert_content("f", b"content");
        let listed = mount_at(mount.at()).expect("listed");
        assert!(listed.options.starts_with("ro"), "{listed:?}");
    }
}

/// Options of mount(8) mean what they mean there.
#[test]
fn options_of_mount_8_are_honoured() {
    let script = |source: &Path| {
        let path = source.join("script");
        fs::write(&path, "#!/bin/sh\necho it runs\n").expect("write");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("chmod");
    };
    let mount = Mount::with(&["-o", "noexec,noatime,fsname=some name"], script);
    let error = Command::new(mount.view("script"))
        .output()
        .expect_err("noexec");
    assert_eq!(error.raw_os_error(), Some(libc::EACCES));
    let listed = mount_at(mount.at()).expect("listed");
    let has = |option| listed.options.split(',').any(|word| word == option);
    assert!(has("noexec") && has("noatime"), "{listed:?}");
    assert_eq!(OsStr::from_bytes(&listed.source), "some name");
    let mount = Mount::with(&["-o", "defaults,_netdev,x-systemd.automount"], script);
    assert_eq!(
        run(&mut Command::new(mount.view("script"))).ok(),
        "it runs\n"
    );
}

#[test]
fn the_log_goes_to_its_file() {
    let mount = Mount::new();
    let log = mount.log();
    assert!(log.contains("is mounted at"), "{log}");
    unmount(mount.at());
    eventually("the last line is there", SOON, || {
        let log = mount.log();
        match log.lines().last() {
            Some(line) if line.contains("calls on the source") => Ok(()),
            _ => Err(log),
        }
    });
}

/// Mounts of a temporary directory by its relative paths; taken down at the end.
struct Relative {
    dir: tempfile::TempDir,
    view: PathBuf,
}

impl Relative {
    fn new(source: impl AsRef<OsStr>, view: impl AsRef<OsStr>) -> Relative {
        let dir = tempdir();
        let source = dir.path().join(Path::new(source.as_ref()));
        fs::create_dir(&source).expect("mkdir");
        fs::write(source.join("f"), "content").expect("write");
        let view = dir.path().join(Path::new(view.as_ref()));
        fs::create_dir(&view).expect("mkdir");
        Relative { dir, view }
    }

    /// Mount with these words, read, unmount by a relative path too.
    fn assert_mounts<S: AsRef<OsStr>>(&self, words: &[S]) {
        let said = run(warmfs(words).current_dir(self.dir.path()));
        assert!(said.status.success(), "{said:?}");
        assert_eq!(fs::read(self.view.join("f")).expect("read"), b"content");
        assert!(mount_at(&self.view).is_some());
        let name = self.view.file_name().expect("a name");
        unmount_with(|| {
            let mut command = warmfs(["umount"]);
            command.arg(Path::new(".").join(name));
            command.current_dir(self.dir.path());
            command
        });
        assert!(mount_at(&self.view).is_none(), "still mounted");
    }
}

impl Drop for Relative {
    fn drop(&mut self) {
        take_away_below(self.dir.path());
    }
}

#[test]
fn relative_paths_are_relative_to_where_they_were_typed() {
    let dirs = Relative::new("source", "view");
    dirs.assert_mounts(&["mount", "source", "view"]);
    dirs.assert_mounts(&["mount", "./source/", "view/"]);
    dirs.assert_mounts(&[
        "mount",
        "--log",
        "info",
        "--log-file",
        "log",
        "source",
        "view",
    ]);
    let log = fs::read_to_string(dirs.dir.path().join("log")).expect("the log is here");
    assert!(log.contains("is mounted at"), "{log}");
}

/// Directories may be called like words of the command line.
#[test]
fn directories_called_like_words_of_the_command_line_are_told_apart() {
    Relative::new("mount", "view").assert_mounts(&["mount", "mount", "view"]);
    let numbers = Relative::new("64M", "5");
    numbers.assert_mounts(&["mount", "--memory", "64M", "--ttl", "5", "64M", "5"]);
    let ro = Relative::new("info", "ro");
    ro.assert_mounts(&["mount", "--log", "info", "-o", "ro", "info", "ro"]);
    Relative::new("-source", "-view").assert_mounts(&["mount", "--", "-source", "-view"]);
    Relative::new("-source", "-view").assert_mounts(&["mount", "--", "./-source", "./-view"]);
}

/// Spaces, commas and what else has a meaning to mount options, tables and shells; and bytes that are no text.
#[test]
fn paths_may_have_any_characters() {
    let odd: [&[u8]; 7] = [
        b"with space",
        b"with,comma,ro",
        b"back\\slash\\040",
        b"tab\tand\nline",
        b"quote'\"$(x)",
        b"equals=colon:#",
        b"no text \xff\xfe",
    ];
    let mut listed_wrong = Vec::new();
    for name in odd.map(OsStr::from_bytes) {
        let mut view = name.to_owned();
        view.push(".view");
        let dirs = Relative::new(name, &view);
        dirs.assert_mounts(&[OsStr::new("mount"), name, &view]);
        let source = dirs.dir.path().join(name);
        let said = run(warmfs(["mount"]).arg(&source).arg(&dirs.view));
        assert!(said.status.success(), "{name:?}: {said:?}");
        let listed = mount_at(&dirs.view).expect("listed");
        assert_eq!(listed.fstype, "fuse.warmfs", "{name:?}");
        // What is no text is listed as text all the same.
        if listed.source != source.to_string_lossy().as_bytes() {
            listed_wrong.push((source, OsStr::from_bytes(&listed.source).to_owned()));
        }
    }
    assert!(
        listed_wrong.is_empty(),
        "sources, and how they are listed: {listed_wrong:#?}"
    );
}

#[test]
fn help_and_version_are_there() {
    for words in [&["--help"][..], &["mount", "--help"], &["umount", "-h"]] {
        let text = run(&mut warmfs(words)).ok();
        assert!(text.contains("Usage: warmfs"), "{text}");
    }
    let version = run(&mut warmfs(["--version"])).ok();
    assert_eq!(version, format!("warmfs {}\n", env!("CARGO_PKG_VERSION")));
}
