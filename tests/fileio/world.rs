//! The world around a stream: other programs, threads, the mount, a source that fails.

use crate::support::{World, on_disk};
use nix::errno::Errno;
use std::fs;
use std::sync::Arc;
use std::time::Duration;
use warmfs::backing::{Call, Source};
use warmfs::config;
use warmfs::overlay::{Caller, How, NodeId, Overlay};
use warmfs::span::Span;

/// An editor that saves by write-and-rename.
#[test]
fn a_reader_goes_on_with_the_file_that_its_path_leads_to() {
    let w = World::new();
    let path = w.file("f", "old text");
    let mut stream = w.reader(&path);
    assert_eq!(stream.read(Some(4)).expect("read"), "old ");
    fs::rename(w.file("f.new", "new words"), &path).expect("rename");
    assert!(stream.is_modified().expect("stat"));
    assert_eq!(stream.read(None).expect("read"), "words");
    stream.update_pos(0);
    assert_eq!(stream.read(None).expect("read"), "new words");
    assert!(!stream.is_modified().expect("stat"));
}

#[test]
fn a_reader_that_does_not_follow_stays_with_its_file() {
    let w = World::new();
    let path = w.file("f", "old");
    let builder = w.builder(&path).follow_replaced(false);
    let mut stream = builder.build().expect("open");
    fs::rename(w.file("f.new", "new"), &path).expect("rename");
    assert_eq!(stream.read(None).expect("read"), "old");
    assert!(stream.is_modified().expect("stat"));
}

#[test]
fn a_writer_stays_with_the_file_that_it_opened() {
    let w = World::new();
    let path = w.file("f", "old text");
    let mut stream = w.writer(&path);
    fs::rename(w.file("f.new", "new"), &path).expect("rename");
    stream.write(b"OLD").expect("write");
    stream.update_pos(0);
    assert_eq!(stream.read(None).expect("read"), "OLD text");
    assert_eq!(on_disk(&path), "new");
}

#[test]
fn a_reader_follows_within_the_ttl_although_others_keep_its_record_fresh() {
    let w = World::with(1 << 20, Duration::from_secs(1));
    let path = w.file("f", "old");
    let (mut reader, mut writer) = (w.reader(&path), w.writer(&path));
    reader.read(None).expect("read");
    fs::rename(w.file("f.new", "new"), &path).expect("rename");
    for _ in 0..3 {
        w.clock.advance(Duration::from_millis(400));
        writer.update_pos(0);
        writer.write(b"Old").expect("write");
    }
    reader.update_pos(0);
    assert_eq!(reader.read(None).expect("read"), "new");
}

#[test]
fn a_file_that_was_removed_can_be_read_on() {
    let w = World::new();
    let path = w.file("f", "ABCD");
    let mut stream = w.reader(&path);
    stream.read(Some(2)).expect("read");
    fs::remove_file(&path).expect("unlink");
    assert_eq!(stream.read(None).expect("read"), "CD");
}

#[test]
fn a_source_that_fails_leaves_what_is_cached() {
    let w = World::new();
    let path = w.file("f", "ABCDEFGH");
    let mut stream = w.reader(&path);
    stream.read(Some(4)).expect("read");
    w.gate.fail(None, Errno::ETIMEDOUT);
    stream.update_pos(0);
    assert_eq!(stream.read(Some(4)).expect("it is here"), "ABCD");
    assert_eq!(w.cache.stats().served_unchecked.get(), 1);
    let error = stream.read(Some(4)).expect_err("it is not");
    assert_eq!(error.errno(), Errno::ETIMEDOUT);
    assert!(stream.is_modified().is_err(), "unreachable is not changed");
    assert_eq!(stream.tell(), 4);
    w.gate.recover();
    assert_eq!(stream.read(Some(4)).expect("read"), "EFGH");
}

#[test]
fn a_write_that_fails_says_so_and_the_cache_is_right_after_it() {
    let w = World::new();
    let path = w.file("f", "ABCD");
    let mut stream = w.writer(&path);
    stream.read(None).expect("read");
    stream.update_pos(0);
    w.gate.fail(Some(Call::Write), Errno::ENOSPC);
    let error = stream.write(b"x").expect_err("no space");
    assert_eq!(error.errno(), Errno::ENOSPC);
    assert_eq!(stream.tell(), 0);
    w.gate.recover();
    assert_eq!(stream.read(None).expect("read"), "ABCD");
}

/// The limit of ulimit(1), 20 blocks of 512 bytes, stands for a disk that is full in the middle of a write. It is the
/// whole process's: the test runs once more, in a process of its own.
#[test]
fn a_write_that_goes_in_by_half_says_how_far() {
    const CHILD: &str = "WARMFS_TEST_FILE_SIZE_LIMITED";
    if std::env::var_os(CHILD).is_none() {
        let script = r#"trap "" XFSZ; ulimit -f 20; exec "$0" "$@""#;
        let output = std::process::Command::new("sh")
            .args(["-c", script])
            .arg(std::env::current_exe().expect("this test"))
            .args([
                "--exact",
                "world::a_write_that_goes_in_by_half_says_how_far",
            ])
            .env(CHILD, "1")
            .output()
            .expect("sh is there");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && said.contains("1 passed"),
            "{said}"
        );
        return;
    }
    let w = World::new();
    let builder = w.builder(w.path("f")).mode("w+b").chunk_size(6_000);
    let mut stream = builder.build().expect("open");
    assert_eq!(stream.write(&[7; 20_000]).expect("a part of it"), 10_240);
    assert_eq!(stream.tell(), 10_240);
    let error = stream.write(b"more").expect_err("the limit");
    assert_eq!(error.errno(), Errno::EFBIG);
    stream.update_pos(0);
    assert_eq!(stream.read(None).expect("read"), vec![7; 10_240]);
}

#[test]
fn dropping_a_stream_closes_it() {
    let w = World::new();
    let path = w.file("f", "A");
    let open = || {
        let fds = fs::read_dir("/proc/self/fd").expect("procfs");
        let links = fds.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
        links.filter(|link| *link == path).count()
    };
    let stream = w.reader(&path);
    assert_eq!(open(), 1);
    drop(stream);
    assert_eq!(open(), 0);
    let mut stream = w.writer(&path);
    stream.close().expect("close");
    assert_eq!(open(), 0);
}

#[test]
fn threads_see_each_others_writes_at_once() {
    let w = World::with(1 << 16, Duration::from_secs(60));
    let path = w.file("f", vec![0; 32 * 1024]);
    std::thread::scope(|scope| {
        for n in 0..4_u64 {
            let (w, path) = (&w, &path);
            scope.spawn(move || {
                let (mut writer, mut reader) = (w.writer(path), w.reader(path));
                for round in 1..=200_u8 {
                    writer.update_pos(n * 8192 + 100);
                    writer.write(&[round; 5000]).expect("write");
                    reader.update_pos(n * 8192);
                    let seen = reader.read(Some(8192)).expect("read");
                    assert!(seen[100..5100].iter().all(|&byte| byte == round));
                    assert!(seen[5100..].iter().all(|&byte| byte == 0));
                }
            });
        }
    });
    w.cache.assert_invariants();
}

/// What the kernel's face of a mount calls, with the cache of the streams.
#[test]
fn a_stream_and_a_mount_of_the_same_process_share_one_record() {
    let w = World::with(1 << 20, Duration::from_secs(60));
    let path = w.file("f", "ABCDEFGH");
    let source = Source::open(w.dir.path(), None, w.cache.stats().clone()).expect("open");
    let limits = config::limits(1024);
    let overlay = Overlay::new(Arc::new(source), w.cache.clone(), &limits).expect("an overlay");
    let caller = Caller {
        uid: 0,
        gid: 0,
        pid: 0,
    };
    let entry = overlay.lookup(NodeId::ROOT, "f".as_ref()).expect("lookup");
    let open = overlay
        .open(caller, entry.node, libc::O_RDWR)
        .expect("open");

    let mut stream = w.writer(&path);
    stream.read(None).expect("read");
    let (bytes, fetched) = w.fetched(|| overlay.read(open.handle, Span::new(2, 4)).expect("read"));
    assert_eq!((&bytes[..], fetched), (&b"CDEF"[..], 0));

    stream.update_pos(2);
    stream.write(b"xy").expect("write");
    let (bytes, fetched) = w.fetched(|| overlay.read(open.handle, Span::new(0, 8)).expect("read"));
    assert_eq!((&bytes[..], fetched), (&b"ABxyEFGH"[..], 0));

    let how = How {
        append: false,
        clear_setid: false,
    };
    overlay
        .write(open.handle, 6, b"zz".to_vec().into(), how)
        .expect("write");
    stream.update_pos(0);
    let (bytes, fetched) = w.fetched(|| stream.read(None).expect("read"));
    assert_eq!((&bytes[..], fetched), (&b"ABxyEFzz"[..], 0));
    drop(overlay.release(open.handle));
}
