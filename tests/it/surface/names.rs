//! Names: making, linking, moving, removing; long ones and odd ones.

use super::errno;
use crate::fixture::SOON;
use crate::fixture::{Mount, assert_bytes, names, within};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, RenameFlags, open, openat, renameat2};
use nix::sys::stat::{Mode, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, mkfifo, unlinkat};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

#[test]
fn directories_are_made_and_removed() {
    let mount = Mount::new();
    fs::create_dir_all(mount.view("a/b/c")).expect("mkdir");
    for name in ["a", "a/b", "a/b/c", ""] {
        mount.assert_same(name);
    }
    assert_eq!(errno(fs::create_dir(mount.view("a"))), libc::EEXIST);
    assert_eq!(errno(fs::create_dir(mount.view("x/y"))), libc::ENOENT);
    assert_eq!(errno(fs::remove_dir(mount.view("a"))), libc::ENOTEMPTY);
    fs::write(mount.view("a/b/f"), "content").expect("write");
    assert_eq!(errno(fs::remove_dir(mount.view("a/b/f"))), libc::ENOTDIR);
    assert_eq!(errno(fs::remove_file(mount.view("a/b"))), libc::EISDIR);
    fs::remove_dir(mount.view("a/b/c")).expect("rmdir");
    mount.assert_same("a/b");
    fs::remove_dir_all(mount.view("a")).expect("remove");
    assert!(names(&mount.source("")).is_empty());
    mount.assert_same("");
}

#[test]
fn links_of_both_kinds_are_those_of_the_source() {
    let mount = Mount::new();
    fs::write(mount.view("f"), "content").expect("write");
    for target in ["f", "/absolute/and/absent", "../source/f", "x y\\z"] {
        symlink(target, mount.view("link")).expect("symlink");
        mount.assert_same("link");
        for path in [mount.view("link"), mount.source("link")] {
            assert_eq!(fs::read_link(path).expect("readlink"), Path::new(target));
        }
        fs::remove_file(mount.view("link")).expect("remove");
    }
    assert_eq!(errno(fs::read_link(mount.view("f"))), libc::EINVAL);
    // One node per file, whatever its names: what is done by one name shows at once by the others.
    fs::create_dir(mount.view("dir")).expect("mkdir");
    let others = ["g", "dir/h"];
    for (number, name) in others.iter().enumerate() {
        fs::hard_link(mount.view("f"), mount.view(name)).expect("link");
        for same in ["f"].iter().chain(&others[..=number]) {
            mount.assert_same(same);
            let nlink = fs::metadata(mount.view(same)).expect("stat").nlink();
            assert_eq!(nlink, number as u64 + 2, "{same}");
        }
    }
    for round in 0..20 {
        fs::write(mount.view("g"), format!("{round}{}", "x".repeat(round))).expect("write");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600 + round as u32);
        fs::set_permissions(mount.view("dir/h"), mode).expect("chmod");
        for name in ["f", "g", "dir/h"] {
            mount.assert_same(name);
            mount.assert_content(name, &fs::read(mount.source("f")).expect("read"));
        }
    }
    fs::remove_file(mount.view("g")).expect("remove");
    mount.assert_same("f");
    mount.assert_same("dir/h");
}

/// FIFOs and sockets are names in the source; what passes through them passes between the programs.
#[test]
fn pipes_and_sockets_work() {
    let mount = Mount::new();
    mkfifo(&mount.view("pipe"), Mode::from_bits_truncate(0o640)).expect("mkfifo");
    mount.assert_same("pipe");
    let (one, other) = (mount.view("pipe"), mount.view("pipe"));
    within("data goes through the pipe", SOON, move || {
        let writer = std::thread::spawn(move || fs::write(one, "through the pipe"));
        assert_bytes(&other, b"through the pipe");
        writer.join().expect("no panic").expect("write");
    });
    let listener = UnixListener::bind(mount.view("socket")).expect("bind");
    mount.assert_same("socket");
    let kind = fs::symlink_metadata(mount.view("socket"))
        .expect("stat")
        .file_type();
    assert!(kind.is_socket());
    let path = mount.view("socket");
    within("data goes through the socket", SOON, move || {
        let mut client = UnixStream::connect(path).expect("connect");
        client.write_all(b"hello").expect("send");
        drop(client);
        let mut text = String::new();
        let (mut server, _) = listener.accept().expect("accept");
        server.read_to_string(&mut text).expect("receive");
        assert_eq!(text, "hello");
    });
}

fn rename(from: &Path, to: &Path, flags: RenameFlags) -> nix::Result<()> {
    renameat2(AT_FDCWD, from, AT_FDCWD, to, flags)
}

#[test]
fn renames_move_replace_refuse_and_exchange() {
    let mount = Mount::new();
    for name in ["a", "b"] {
        fs::write(mount.view(name), name).expect("write");
    }
    fs::create_dir(mount.view("dir")).expect("mkdir");
    let (a, b, dir) = (mount.view("a"), mount.view("b"), mount.view("dir"));
    let (refuse, exchange) = (RenameFlags::RENAME_NOREPLACE, RenameFlags::RENAME_EXCHANGE);
    assert_eq!(rename(&a, &b, refuse), Err(Errno::EEXIST));
    mount.assert_content("b", b"b");
    rename(&a, &b, exchange).expect("exchange");
    mount.assert_content("a", b"b");
    mount.assert_content("b", b"a");
    rename(&a, &dir, exchange).expect("exchange of a file with a directory");
    mount.assert_content("dir", b"b");
    assert!(fs::metadata(&a).expect("stat").is_dir());
    for name in ["a", "b", "dir"] {
        mount.assert_same(name);
    }
    rename(&a, &dir, exchange).expect("and back");
    assert_eq!(rename(&a, &mount.view("x"), exchange), Err(Errno::ENOENT));
    rename(&a, &mount.view("dir/c"), refuse).expect("move");
    mount.assert_content("dir/c", b"b");
    assert_eq!(errno(fs::metadata(&a)), libc::ENOENT);
    fs::rename(&b, mount.view("dir/c")).expect("replace");
    mount.assert_content("dir/c", b"a");
    mount.assert_same("dir/c");
    mount.assert_same("dir");
    assert_eq!(
        errno(fs::rename(&dir, mount.view("dir/in itself"))),
        libc::EINVAL
    );
    assert_eq!(
        errno(fs::rename(mount.view("dir/c"), &dir)),
        libc::ENOTEMPTY
    );
    fs::write(&b, "b").expect("write");
    assert_eq!(errno(fs::rename(&dir, &b)), libc::ENOTDIR);
    assert_eq!(errno(fs::rename(&b, &dir)), libc::EISDIR);
    // A tree moves with everything that is known of it.
    fs::create_dir_all(mount.view("dir/sub")).expect("mkdir");
    fs::write(mount.view("dir/sub/f"), "deep").expect("write");
    fs::rename(&dir, mount.view("moved")).expect("rename");
    mount.assert_content("moved/sub/f", b"deep");
    assert_eq!(errno(fs::metadata(mount.view("dir/sub/f"))), libc::ENOENT);
    // ctime changes with the name, and is seen.
    mount.assert_same("moved");
    mount.assert_same("moved/c");
}

#[test]
fn names_may_be_long_and_need_not_be_text() {
    let mount = Mount::new();
    let longest = "n".repeat(255);
    fs::write(mount.view(&longest), "content").expect("write");
    mount.assert_content(&longest, b"content");
    let too_long = mount.view("n".repeat(256));
    assert_eq!(errno(fs::write(&too_long, "")), libc::ENAMETOOLONG);
    assert_eq!(errno(fs::metadata(&too_long)), libc::ENAMETOOLONG);
    assert_eq!(errno(fs::create_dir(&too_long)), libc::ENAMETOOLONG);
    assert_eq!(
        errno(fs::rename(mount.view(&longest), &too_long)),
        libc::ENAMETOOLONG
    );
    let odd: [&[u8]; 7] = [
        b"\xff\xfe not text \x80",
        b"line\nbreak",
        b" ",
        b"...",
        b"\\ \" ' * ? [",
        b"\x01\x1b[31m",
        "\u{e4}\u{1f4be}a\u{308}".as_bytes(),
    ];
    for name in odd.map(OsStr::from_bytes) {
        fs::write(mount.view(name), name.as_bytes()).expect("write");
        mount.assert_content(name, name.as_bytes());
        mount.assert_same(name);
        symlink(name, mount.view("link")).expect("symlink");
        mount.assert_content("link", name.as_bytes());
        fs::remove_file(mount.view("link")).expect("remove");
    }
    assert_eq!(names(mount.at()), names(&mount.source("")));
    assert_eq!(names(mount.at()).len(), 8);
}

/// Go down from a directory, one name at a time, with `step` at each.
fn descend(from: &Path, name: &str, depth: usize, step: impl Fn(&OwnedFd)) -> OwnedFd {
    let folder = OFlag::O_DIRECTORY | OFlag::O_RDONLY;
    let mut at = open(from, folder, Mode::empty()).expect("open");
    for level in 0..depth {
        step(&at);
        at = openat(&at, name, folder, Mode::empty())
            .unwrap_or_else(|errno| panic!("open at depth {level}: {errno}"));
    }
    at
}

/// A tree that grew deeper than PATH_MAX, as backups of backups do. Who walks it step by step meets no limit.
#[test]
fn a_path_may_be_longer_than_path_max() {
    const DEPTH: usize = 60;
    let mount = Mount::new();
    let name = "d".repeat(200);
    let any = Mode::from_bits_truncate(0o755);
    let bottom = descend(mount.at(), &name, DEPTH, |at| {
        mkdirat(at, name.as_str(), any).expect("mkdir");
    });
    let create = OFlag::O_CREAT | OFlag::O_RDWR;
    let mut file = File::from(openat(&bottom, "f", create, any).expect("create"));
    file.write_all(b"deep down").expect("write");
    drop(file);
    let source = descend(&mount.source(""), &name, DEPTH, |_| {});
    for bottom in [&bottom, &source] {
        let mut text = String::new();
        File::from(openat(bottom, "f", OFlag::O_RDONLY, any).expect("open"))
            .read_to_string(&mut text)
            .expect("read");
        assert_eq!(text, "deep down");
    }
    let stat = |dir| fstatat(dir, "f", AtFlags::empty()).expect("stat");
    assert_eq!(stat(&bottom).st_ino, stat(&source).st_ino);
    renameat2(&bottom, "f", &bottom, "g", RenameFlags::empty()).expect("rename");
    assert_eq!(
        fstatat(&source, "f", AtFlags::empty()).map(|_| ()),
        Err(Errno::ENOENT)
    );
    unlinkat(&bottom, "g", UnlinkatFlags::NoRemoveDir).expect("remove");
    fs::remove_dir_all(mount.view(&name)).expect("remove all");
    assert!(names(&mount.source("")).is_empty());
}
