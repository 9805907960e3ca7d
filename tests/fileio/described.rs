//! The description of the streams, sentence by sentence.

use crate::support::{World, on_disk, slots};
use bytes::Bytes;
use nix::errno::Errno;
use std::fs;
use std::io::SeekFrom;
use std::sync::Arc;
use std::time::Duration;
use warmfs::cache::{Cache, SLOT_OVERHEAD};
use warmfs::fileio::{AsyncFileIoStream, CHUNK_SIZE_DEFAULT, Error, FILE_CACHE, FileIoStream};

// Reading and the cache.

#[test]
fn a_read_populates_the_cache() {
    let w = World::new();
    let path = w.file("f", "ABCDEFGH");
    let mut stream = w.reader(&path);
    assert_eq!(stream.read(Some(4)).expect("read"), "ABCD");
    assert_eq!(slots(&stream), [(0, 4)]);
    assert_eq!(
        stream.cache_keys()[0].to_string(),
        format!("{}:0:4", path.display())
    );
}

#[test]
fn a_second_read_is_a_hit() {
    let w = World::new();
    let path = w.file("f", "ABCDEFGH");
    let first = w.reader(&path).read(None).expect("read");
    let (second, fetched) = w.fetched(|| w.reader(&path).read(None).expect("read"));
    assert_eq!((first, fetched), (second, 0));
    assert_eq!(w.cache.stats().hits.get(), 1);
}

#[test]
fn streams_share_the_default_cache() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("f");
    fs::write(&path, "shared").expect("write");
    let (mut one, mut other) = (FileIoStream::new(&path), FileIoStream::new(&path));
    one.open().expect("open");
    other.open().expect("open");
    assert!(Arc::ptr_eq(one.cache(), &FILE_CACHE));
    one.read(None).expect("read");
    assert_eq!(slots(&other), [(0, 6)]);
    assert_eq!(FILE_CACHE.ttl(), Duration::ZERO);
}

#[test]
fn a_slot_is_stale_by_mtime() {
    let w = World::new();
    let path = w.file("f", "before");
    let mut stream = w.reader(&path);
    stream.read(None).expect("read");
    w.outside(|| fs::write(&path, "AFTER!").expect("write"));
    stream.update_pos(0);
    assert_eq!(stream.cache_get(None).expect("stat"), None);
    assert_eq!(slots(&stream), [], "a stale slot goes when it is asked for");
    assert_eq!(stream.read(None).expect("read"), "AFTER!");
    assert_eq!(w.cache.stats().stale_records.get(), 1);
}

#[test]
fn a_change_that_puts_mtime_back_is_seen_by_ctime() {
    let w = World::new();
    let path = w.file("f", "before");
    let mut stream = w.reader(&path);
    stream.read(None).expect("read");
    let mtime = fs::metadata(&path)
        .expect("stat")
        .modified()
        .expect("mtime");
    w.outside(|| {
        fs::write(&path, "AFTER!").expect("write");
        let file = fs::File::options().write(true).open(&path).expect("open");
        file.set_modified(mtime).expect("set mtime");
    });
    assert_eq!(stream.current_mtime().expect("stat"), Some(mtime));
    stream.update_pos(0);
    assert_eq!(stream.read(None).expect("read"), "AFTER!");
}

#[test]
fn each_triple_of_file_position_and_size_has_a_slot() {
    let w = World::new();
    let (f, g) = (w.file("f", "0123456789ABCDEF"), w.file("g", "other"));
    let (mut first, mut other) = (w.reader(&f), w.reader(&g));
    for pos in [0, 8, 12] {
        first.update_pos(pos);
        first.read(Some(4)).expect("read");
    }
    other.read(Some(4)).expect("read");
    assert_eq!(slots(&first), [(0, 4), (8, 4), (12, 4)]);
    assert_eq!(slots(&other), [(0, 4)]);
    let mut second = w.reader(&f);
    for (pos, expected) in [(12, "CDEF"), (0, "0123"), (8, "89AB")] {
        second.update_pos(pos);
        let (bytes, fetched) = w.fetched(|| second.read(Some(4)).expect("read"));
        assert_eq!((&bytes[..], fetched), (expected.as_bytes(), 0));
    }
}

#[test]
fn a_read_of_any_span_is_a_hit_when_slots_cover_it() {
    let w = World::new();
    let mut stream = w.reader(w.file("f", "0123456789"));
    stream.read(Some(4)).expect("read");
    stream.read(Some(6)).expect("read");
    stream.update_pos(2);
    let (bytes, fetched) = w.fetched(|| stream.read(Some(5)).expect("read"));
    assert_eq!((&bytes[..], fetched), (&b"23456"[..], 0));
}

#[test]
fn a_miss_reads_only_what_no_slot_has() {
    let w = World::new();
    let mut stream = w.reader(w.file("f", "0123456789"));
    stream.read(Some(4)).expect("read");
    stream.update_pos(0);
    let (bytes, fetched) = w.fetched(|| stream.read(None).expect("read"));
    assert_eq!((&bytes[..], fetched), (&b"0123456789"[..], 6));
}

#[test]
fn a_seek_and_then_a_read_gives_the_bytes_there() {
    let w = World::new();
    let mut stream = w.reader(w.file("f", "ABCDEFGH"));
    assert_eq!(stream.seek(SeekFrom::Start(4)).expect("seek"), 4);
    assert_eq!(stream.read(None).expect("read"), "EFGH");
    assert_eq!(stream.tell(), 8);
    assert_eq!(stream.seek(SeekFrom::Current(-6)).expect("seek"), 2);
    assert_eq!(stream.read(Some(1)).expect("read"), "C");
    assert_eq!(stream.seek(SeekFrom::End(-1)).expect("seek"), 7);
    assert_eq!(stream.read(Some(9)).expect("read"), "H");
    assert_eq!(stream.read(Some(9)).expect("read"), "");
}

#[test]
fn a_position_that_no_file_has_is_refused_and_the_old_one_stays() {
    let w = World::new();
    let mut stream = w.reader(w.file("f", "ABC"));
    stream.seek(SeekFrom::Start(2)).expect("seek");
    for to in [
        SeekFrom::Current(-3),
        SeekFrom::End(-4),
        SeekFrom::Start(1 << 63),
    ] {
        assert!(matches!(stream.seek(to), Err(Error::Position(_))), "{to:?}");
    }
    assert_eq!(stream.tell(), 2);
}

/// The original moves its position on a hit, but not that of its file, and so reads the wrong bytes at the next miss.
#[test]
fn the_position_after_a_hit_is_right_for_the_next_miss() {
    let w = World::new();
    let path = w.file("f", "ABCDEFGH");
    w.reader(&path).read(Some(4)).expect("read");
    let mut stream = w.reader(&path);
    assert_eq!(stream.read(Some(4)).expect("hit"), "ABCD");
    assert_eq!(stream.read(Some(4)).expect("miss"), "EFGH");
}

#[test]
fn positions_can_be_set_without_a_seek() {
    let w = World::new();
    let mut stream = FileIoStream::builder(w.file("f", "ABCDEFGH"))
        .cache(w.cache.clone())
        .build()
        .expect("a stream");
    stream.update_pos(2);
    stream.increment_pos(3);
    assert_eq!((stream.tell(), stream.get_pos()), (5, 5));
    stream.open().expect("open");
    assert_eq!(stream.read(Some(2)).expect("read"), "FG");
    stream.increment_pos(u64::MAX);
    assert_eq!(stream.tell(), u64::MAX);
    assert_eq!(stream.read(Some(2)).expect("behind the end"), "");
}

#[test]
fn a_sized_read_moves_at_most_chunk_size_and_a_full_read_everything() {
    let w = World::new();
    let path = w.file("f", "ABCDEFGH");
    let mut stream = w.builder(&path).chunk_size(3).build().expect("open");
    assert_eq!(stream.read(Some(100)).expect("read"), "ABC");
    assert_eq!(stream.read(None).expect("read"), "DEFGH");
    assert_eq!(w.reader(&path).chunk_size(), CHUNK_SIZE_DEFAULT);
    assert_eq!(CHUNK_SIZE_DEFAULT, 2 * 1024 * 1024);
}

#[test]
fn a_full_read_of_several_fetches_is_whole() {
    let w = World::with(64 << 20, Duration::ZERO);
    let content: Vec<u8> = (0..5_000_001_u32).map(|n| (n % 251) as u8).collect();
    let path = w.file("f", &content);
    assert_eq!(w.reader(&path).read(None).expect("miss"), content);
    let (bytes, fetched) = w.fetched(|| w.reader(&path).read(None).expect("hit"));
    assert_eq!((bytes == content, fetched), (true, 0));
}

// Writing.

#[test]
fn a_write_inside_a_slot_patches_it() {
    let w = World::new();
    let path = w.file("f", "AAAABBBB");
    let mut stream = w.writer(&path);
    stream.read(None).expect("read");
    stream.update_pos(2);
    assert_eq!(stream.write(b"xyz").expect("write"), 3);
    assert_eq!(stream.tell(), 5);
    assert_eq!(slots(&stream), [(0, 8)]);
    stream.update_pos(0);
    let (bytes, fetched) = w.fetched(|| stream.read(None).expect("read"));
    assert_eq!((&bytes[..], fetched), (&b"AAxyzBBB"[..], 0));
    assert_eq!(on_disk(&path), bytes);
}

#[test]
fn a_write_that_covers_slots_patches_them() {
    let w = World::new();
    let path = w.file("f", "0123456789");
    let mut stream = w.writer(&path);
    for pos in [2, 6] {
        stream.update_pos(pos);
        stream.read(Some(2)).expect("read");
    }
    stream.update_pos(0);
    stream.write(b"abcdefghij").expect("write");
    stream.update_pos(0);
    let (bytes, fetched) = w.fetched(|| stream.read(None).expect("read"));
    assert_eq!((&bytes[..], fetched), (&b"abcdefghij"[..], 0));
    assert_eq!(on_disk(&path), bytes);
}

/// The original evicts a slot that a write overlaps at a boundary.
#[test]
fn a_write_across_the_boundary_of_a_slot_patches_it() {
    let w = World::new();
    let path = w.file("f", "ABCDEFGH");
    for (pos, written, expected) in [(0, "xxxx", "xxxxEFGH"), (4, "yyy", "xxxxyyyH")] {
        let mut stream = w.writer(&path);
        stream.update_pos(2);
        stream.read(Some(4)).expect("read");
        stream.update_pos(pos);
        stream.write(written.as_bytes()).expect("write");
        stream.update_pos(2);
        let (bytes, fetched) = w.fetched(|| stream.read(Some(4)).expect("read"));
        assert_eq!((&bytes[..], fetched), (&expected.as_bytes()[2..6], 0));
        assert_eq!(on_disk(&path), expected);
        w.cache.assert_invariants();
    }
}

#[test]
fn the_slice_just_written_is_warm() {
    let w = World::new();
    let mut stream = w.builder(w.path("new")).mode("w+b").build().expect("open");
    stream.write(b"hello world").expect("write");
    stream.update_pos(0);
    assert_eq!(slots(&stream), [(0, 11)]);
    let (bytes, fetched) = w.fetched(|| stream.read(Some(11)).expect("read"));
    assert_eq!((&bytes[..], fetched), (&b"hello world"[..], 0));
}

/// In the original each slot has its own mtime, so that a write makes all that it did not touch stale.
#[test]
fn slots_that_a_write_did_not_touch_stay_valid() {
    let w = World::new();
    let mut stream = w.writer(w.file("f", "AAAABBBBCCCC"));
    stream.read(None).expect("read");
    stream.update_pos(0);
    stream.write(b"x").expect("write");
    stream.update_pos(8);
    let (bytes, fetched) = w.fetched(|| stream.read(Some(4)).expect("read"));
    assert_eq!((&bytes[..], fetched), (&b"CCCC"[..], 0));
}

#[test]
fn no_byte_is_held_twice() {
    let w = World::new();
    let mut stream = w.writer(w.file("f", vec![1; 1000]));
    for (pos, size) in [(0, 600), (300, 600), (0, 1000), (299, 3)] {
        stream.update_pos(pos);
        stream.read(Some(size)).expect("read");
        stream.update_pos(pos + 1);
        stream.write(&vec![2; size]).expect("write");
    }
    w.cache.assert_invariants();
    let held: u64 = slots(&stream).iter().map(|(_, size)| size).sum();
    assert_eq!(held, 1001);
}

#[test]
fn a_write_larger_than_chunk_size_goes_in_whole() {
    let w = World::new();
    let path = w.path("f");
    let builder = w.builder(&path).mode("wb").chunk_size(4);
    let mut stream = builder.build().expect("open");
    assert_eq!(stream.write(b"0123456789").expect("write"), 10);
    assert_eq!(slots(&stream), [(0, 4), (4, 4), (8, 2)]);
    assert_eq!(on_disk(&path), "0123456789");
}

#[test]
fn streams_see_each_others_writes_at_once() {
    let w = World::with(1 << 20, Duration::from_secs(60));
    let path = w.file("f", "ABCDEFGH");
    let (mut reader, mut writer) = (w.reader(&path), w.writer(&path));
    reader.read(None).expect("read");
    writer.update_pos(4);
    writer.write(b"xyzEFGH").expect("write");
    reader.update_pos(0);
    let (bytes, fetched) = w.fetched(|| reader.read(None).expect("read"));
    assert_eq!((&bytes[..], fetched), (&b"ABCDxyzEFGH"[..], 0));
    writer.truncate(3).expect("truncate");
    reader.update_pos(0);
    assert_eq!(reader.read(None).expect("read"), "ABC");
}

#[test]
fn within_the_ttl_nothing_is_asked_and_after_it_a_change_is_seen() {
    let w = World::with(1 << 20, Duration::from_secs(1));
    let path = w.file("f", "before");
    let mut stream = w.reader(&path);
    stream.read(None).expect("read");
    w.outside(|| fs::write(&path, "AFTER!").expect("write"));
    stream.update_pos(0);
    let calls = w.cache.stats().source_calls.get();
    assert_eq!(stream.read(None).expect("read"), "before");
    assert_eq!(w.cache.stats().source_calls.get(), calls);
    w.clock.advance(Duration::from_secs(1));
    stream.update_pos(0);
    assert_eq!(stream.read(None).expect("read"), "AFTER!");
}

// is_modified and current_mtime.

#[test]
fn is_modified_is_false_before_any_read() {
    let w = World::new();
    let path = w.file("f", "x");
    let stream = w.reader(&path);
    w.outside(|| fs::write(&path, "y").expect("write"));
    assert!(!stream.is_modified().expect("stat"));
}

#[test]
fn is_modified_is_false_while_nothing_changes() {
    let w = World::new();
    let mut stream = w.reader(w.file("f", "x"));
    stream.read(None).expect("read");
    assert!(!stream.is_modified().expect("stat"));
    stream.update_pos(0);
    stream.read(None).expect("a hit");
    assert!(!stream.is_modified().expect("stat"));
}

#[test]
fn is_modified_is_true_after_a_change_from_outside() {
    let w = World::new();
    let path = w.file("f", "x");
    let mut stream = w.reader(&path);
    stream.read(None).expect("read");
    w.outside(|| fs::write(&path, "y").expect("write"));
    assert!(stream.is_modified().expect("stat"));
    stream.update_pos(0);
    stream.read(None).expect("read");
    assert!(!stream.is_modified().expect("stat"), "it was read since");
}

#[test]
fn is_modified_is_true_when_the_file_is_gone_or_another() {
    let w = World::new();
    let path = w.file("f", "x");
    let mut stream = w.reader(&path);
    stream.read(None).expect("read");
    fs::rename(w.file("g", "x"), &path).expect("rename");
    assert!(stream.is_modified().expect("stat"));
    fs::remove_file(&path).expect("unlink");
    assert!(stream.is_modified().expect("stat"));
    assert_eq!(stream.current_mtime().expect("stat"), None);
}

#[test]
fn is_modified_is_false_after_a_write_of_its_own() {
    let w = World::new();
    let mut stream = w.writer(w.file("f", "x"));
    stream.write(b"y").expect("write");
    assert!(!stream.is_modified().expect("stat"));
    stream.truncate(0).expect("truncate");
    assert!(!stream.is_modified().expect("stat"));
}

#[test]
fn current_mtime_is_that_of_the_file() {
    let w = World::new();
    let path = w.file("f", "x");
    let file = fs::File::options().write(true).open(&path).expect("open");
    for mtime in [
        std::time::UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789),
        std::time::UNIX_EPOCH - Duration::new(5, 250_000_000),
    ] {
        file.set_modified(mtime).expect("set mtime");
        assert_eq!(w.reader(&path).current_mtime().expect("stat"), Some(mtime));
    }
}

// The cache by name.

#[test]
fn a_cache_key_is_path_position_and_size() {
    let w = World::new();
    let stream = FileIoStream::new(w.path("f"));
    let f = w.path("f").display().to_string();
    assert_eq!(
        stream.make_cache_key(4, Some(10)).to_string(),
        format!("{f}:4:10")
    );
    assert_eq!(
        stream.make_cache_key(4, None).to_string(),
        format!("{f}:4:-1")
    );
}

#[test]
fn cache_get_gives_what_a_read_would_and_moves_nothing() {
    let w = World::new();
    let mut stream = w.reader(w.file("f", "ABCDEFGH"));
    assert_eq!(stream.cache_get(Some(4)).expect("stat"), None);
    stream.read(Some(4)).expect("read");
    assert_eq!(stream.cache_get(Some(4)).expect("stat"), None);
    stream.update_pos(1);
    assert_eq!(
        stream.cache_get(Some(3)).expect("stat").as_deref(),
        Some(&b"BCD"[..])
    );
    assert_eq!(stream.cache_get(None).expect("stat"), None);
    assert_eq!(stream.tell(), 1);
}

#[test]
fn cache_set_keeps_a_result_unless_the_file_has_changed_since() {
    let w = World::new();
    let path = w.file("f", "ABCDEFGH");
    let mut stream = w.reader(&path);
    let data = Bytes::from_static(b"EFGH");
    stream.cache_set(4, Some(4), &data).expect("stat");
    assert_eq!(slots(&stream), [(4, 4)]);
    stream.update_pos(4);
    assert_eq!(stream.cache_get(Some(4)).expect("stat"), Some(data.clone()));
    stream.read(None).expect("read");
    w.outside(|| fs::write(&path, "abcdefgh").expect("write"));
    stream.cache_set(4, Some(4), &data).expect("stat");
    assert_eq!(slots(&stream), [], "these bytes are of before the change");
    stream.update_pos(4);
    assert_eq!(stream.read(None).expect("read"), "efgh");
}

#[test]
fn cache_patch_on_write_takes_over_a_write_by_other_means() {
    let w = World::new();
    let path = w.file("f", "AAAABBBB");
    let mut stream = w.reader(&path);
    stream.read(None).expect("read");
    w.outside(|| fs::write(&path, "AAxxBBBB").expect("write"));
    let data = Bytes::from_static(b"xx");
    stream.cache_patch_on_write(2, &data).expect("patch");
    stream.update_pos(0);
    let (bytes, fetched) = w.fetched(|| stream.read(None).expect("read"));
    assert_eq!((&bytes[..], fetched), (&b"AAxxBBBB"[..], 0));
    assert!(!stream.is_modified().expect("stat"));
}

#[test]
fn the_cache_is_bounded_in_bytes_and_drops_the_least_recently_used() {
    let w = World::with(3 * (1000 + SLOT_OVERHEAD), Duration::ZERO);
    let mut stream = w.reader(w.file("f", vec![7; 10_000]));
    let mut read = |pos| {
        stream.update_pos(pos);
        stream.read(Some(1000)).expect("read");
        slots(&stream)
    };
    for pos in [0, 1000, 2000] {
        read(pos);
    }
    read(0);
    assert_eq!(read(3000), [(0, 1000), (2000, 1000), (3000, 1000)]);
    assert!(w.cache.bytes_used() <= 3 * (1000 + SLOT_OVERHEAD));
}

#[test]
fn a_file_larger_than_the_cache_is_read_right() {
    let w = World::with(10_000, Duration::ZERO);
    let content: Vec<u8> = (0..100_000_u32).map(|n| (n % 253) as u8).collect();
    let mut stream = w.reader(w.file("f", &content));
    for _ in 0..2 {
        stream.update_pos(0);
        assert!(stream.read(None).expect("read") == content);
        assert!(w.cache.bytes_used() <= 10_000);
    }
}

#[test]
fn a_hit_copies_and_allocates_nothing() {
    let w = World::with(1 << 20, Duration::from_secs(60));
    let mut stream = w.reader(w.file("f", vec![7; 8192]));
    stream.read(Some(4096)).expect("read");
    stream.read(Some(4096)).expect("read");
    let mut buffer = [0; 4096];
    for pos in [0, 100] {
        // The first share of a slot's buffer makes its reference count.
        stream.update_pos(pos);
        stream.read(Some(4096)).expect("read");
        let info = allocation_counter::measure(|| {
            stream.update_pos(pos);
            std::io::Read::read(&mut stream, &mut buffer).expect("read");
        });
        assert_eq!(info.count_total, 0, "at {pos}");
    }
    let info = allocation_counter::measure(|| {
        stream.update_pos(0);
        stream.read(Some(4096)).expect("read");
        let _ = stream.make_cache_key(0, Some(4096));
    });
    assert_eq!(info.count_total, 0);
}

/// The hits that decide that a slot is to be kept, and those of one that is kept already.
#[test]
fn a_hit_that_protects_a_slot_allocates_nothing() {
    const SLOT: usize = 64 << 10;
    let w = World::with(1 << 20, Duration::from_secs(60));
    let mut stream = w.reader(w.file("f", vec![7; SLOT]));
    let mut others = w.reader(w.file("others", vec![7; 40 * SLOT]));
    let mut buffer = vec![0; SLOT];
    stream.read(Some(SLOT)).expect("read");
    let mut hit = || {
        stream.update_pos(0);
        std::io::Read::read(&mut stream, &mut buffer).expect("read")
    };
    assert_eq!(
        allocation_counter::measure(|| assert_eq!(hit(), SLOT)).count_total,
        0,
        "second read"
    );
    // It moves to the protected part while these push each other out.
    while !others.read(Some(SLOT)).expect("read").is_empty() {}
    assert!(w.cache.stats().evicted_slots.get() > 20);
    assert_eq!(
        allocation_counter::measure(|| assert_eq!(hit(), SLOT)).count_total,
        0,
        "protected"
    );
}

#[test]
fn all_bytes_read_are_kept_only_when_asked_for() {
    let w = World::new();
    let path = w.file("f", "ABCDEFGH");
    let mut plain = w.reader(&path);
    plain.read(Some(3)).expect("read");
    assert_eq!(plain.total_read_bytes(), None);
    let mut keeping = w
        .builder(&path)
        .keep_read_bytes(true)
        .build()
        .expect("open");
    assert_eq!(keeping.total_read_bytes(), Some(&b""[..]));
    keeping.read(Some(3)).expect("a hit");
    keeping.read(Some(4)).expect("a miss");
    keeping.update_pos(1);
    keeping.read(Some(1)).expect("again");
    assert_eq!(keeping.total_read_bytes(), Some(&b"ABCDEFGB"[..]));
}

// Opening and closing.

#[test]
fn a_stream_is_opened_by_open_or_at_once() {
    let w = World::new();
    let path = w.file("f", "x");
    let mut later = FileIoStream::new(&path);
    assert!(!later.is_open());
    later.open().expect("open");
    later.open().expect("open again changes nothing");
    assert!(later.is_open());
    assert!(w.reader(&path).is_open());
    later.close().expect("close");
    assert!(!later.is_open());
    later.close().expect("close again changes nothing");
    later.open().expect("a closed stream can be opened again");
    assert_eq!(later.read(None).expect("read"), "x");
}

#[test]
fn a_closed_stream_says_so() {
    let w = World::new();
    let mut stream = FileIoStream::builder(w.file("f", "x"))
        .mode("r+b")
        .build()
        .expect("a stream");
    let closed = |result: Result<(), Error>| {
        let error = result.expect_err("it is closed");
        assert!(matches!(error, Error::Closed(_)), "{error:?}");
        assert!(error.to_string().contains("is not open; call open() first"));
        assert_eq!(error.errno(), Errno::EBADF);
    };
    for _ in 0..2 {
        closed(stream.read(None).map(drop));
        closed(stream.read(Some(1)).map(drop));
        closed(stream.write(b"y").map(drop));
        closed(stream.seek(SeekFrom::Start(0)).map(drop));
        closed(stream.truncate(0));
        closed(stream.sync());
        closed(stream.cache_get(None).map(drop));
        stream.open().expect("open");
        stream.close().expect("close");
    }
}

#[test]
fn modes_let_read_and_write_what_python_lets() {
    let w = World::new();
    let path = w.file("f", "ABC");
    let mut reader = w.reader(&path);
    let error = reader.write(b"x").expect_err("read only");
    assert!(matches!(error, Error::NotWritable(_)), "{error}");
    let mut writer = w.builder(&path).mode("wb").build().expect("open");
    assert_eq!(on_disk(&path), "", "wb empties the file");
    let error = writer.read(None).expect_err("write only");
    assert!(matches!(error, Error::NotReadable(_)), "{error}");
    assert_eq!(reader.read(None).expect("read"), "");
    let error = w.builder(&path).mode("xb").build().expect_err("exists");
    assert_eq!(error.errno(), Errno::EEXIST);
    let mut made = w.builder(w.path("new")).mode("x+b").build().expect("open");
    made.write(b"new").expect("write");
    made.update_pos(0);
    assert_eq!(made.read(None).expect("read"), "new");
    let error = w.builder(&path).mode("rt").build().expect_err("text");
    assert!(
        error.to_string().contains("valid are rb, r+b, wb"),
        "{error}"
    );
}

/// Emptying by `O_TRUNC` would go past the cache, which then gave the old bytes for a ttl.
#[test]
fn opening_with_wb_is_seen_by_other_streams_at_once() {
    let w = World::with(1 << 20, Duration::from_secs(60));
    let path = w.file("f", "ABC");
    let mut reader = w.reader(&path);
    reader.read(None).expect("read");
    w.builder(&path).mode("wb").build().expect("open");
    reader.update_pos(0);
    assert_eq!(reader.read(None).expect("read"), "");
}

#[test]
fn a_mode_that_appends_writes_at_the_end_wherever_the_position_is() {
    let w = World::new();
    let path = w.file("f", "ABC");
    let mut stream = w.builder(&path).mode("a+b").build().expect("open");
    assert_eq!(stream.tell(), 3);
    stream.update_pos(0);
    assert_eq!(stream.read(Some(2)).expect("read"), "AB");
    stream.write(b"D").expect("write");
    assert_eq!(stream.tell(), 4);
    w.outside(|| fs::write(&path, "ABCD+outside").expect("write"));
    stream.write(b"E").expect("write");
    assert_eq!(stream.tell(), 13);
    stream.update_pos(0);
    assert_eq!(stream.read(None).expect("read"), "ABCD+outsideE");
    assert_eq!(on_disk(&path), "ABCD+outsideE");
}

#[test]
fn what_cannot_be_opened_is_said_with_path_and_reason() {
    let w = World::new();
    let missing = w.builder(w.path("missing")).build().expect_err("missing");
    assert_eq!(missing.errno(), Errno::ENOENT);
    assert!(
        missing.to_string().contains("/missing: open: No such file"),
        "{missing}"
    );
    let directory = w.builder(w.dir.path()).build().expect_err("a directory");
    assert_eq!(directory.errno(), Errno::EISDIR);
    nix::unistd::mkfifo(&w.path("fifo"), nix::sys::stat::Mode::S_IRWXU).expect("mkfifo");
    let fifo = w.builder(w.path("fifo")).build().expect_err("a fifo");
    assert!(matches!(fifo, Error::NotRegular(_)), "{fifo}");
    let chunk = w
        .builder(w.path("f"))
        .chunk_size(0)
        .build()
        .expect_err("zero");
    assert_eq!(chunk, Error::ChunkSize);
    assert!(w.builder("").build().is_err());
}

#[test]
fn a_closed_file_stays_warm() {
    let w = World::new();
    let path = w.file("f", "ABC");
    let mut stream = w.reader(&path);
    stream.read(None).expect("read");
    stream.close().expect("close");
    let (_, fetched) = w.fetched(|| w.reader(&path).read(None).expect("read"));
    assert_eq!(fetched, 0);
}

// Asynchronous contexts.

#[test]
fn a_synchronous_stream_refuses_to_block_a_runtime() {
    let w = World::new();
    let path = w.file("f", "ABC");
    let mut stream = w.writer(&path);
    let mut allowed = w
        .builder(&path)
        .allow_in_async_context(true)
        .build()
        .expect("open");
    stream
        .raise_if_in_async_context("not now")
        .expect("no runtime here");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let error = stream.read(None).expect_err("in a runtime");
        assert!(matches!(error, Error::InAsyncContext(_)));
        assert!(
            error.to_string().contains("use AsyncFileIoStream"),
            "{error}"
        );
        assert!(stream.write(b"x").is_err());
        let error = stream
            .raise_if_in_async_context("not now")
            .expect_err("in a runtime");
        assert_eq!(error.to_string(), "not now");
        assert_eq!(allowed.read(None).expect("read"), "ABC");
    });
    assert_eq!(stream.read(None).expect("read"), "ABC");
}

#[test]
fn a_stream_becomes_asynchronous_with_its_hooks_position_and_open_file() {
    let w = World::new();
    let path = w.file("f", "ABCDEFGH");
    let count = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counting = count.clone();
    let mut stream = w.reader(&path);
    let hook = move |_: &_, _: &Bytes, n| {
        counting.fetch_add(n, std::sync::atomic::Ordering::SeqCst);
    };
    stream.hook("on_read", hook).expect("an event");
    stream.read(Some(3)).expect("read");
    // The name is gone: only a stream that took over the open file can go on.
    fs::remove_file(&path).expect("unlink");
    let mut stream: AsyncFileIoStream = warmfs::fileio::to_async_fileio_stream(stream);
    assert!(stream.is_open());
    assert_eq!(stream.tell(), 3);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        assert_eq!(stream.read(Some(2)).await.expect("read"), "DE");
    });
    assert_eq!(count.load(std::sync::atomic::Ordering::SeqCst), 5);
    assert!(stream.is_modified().expect("what it read last went along"));
}

/// The cache is a value, not only a global.
#[test]
fn a_stream_may_be_given_another_cache() {
    let w = World::new();
    let path = w.file("f", "ABC");
    let other = Cache::shared(1000, Duration::from_secs(1));
    let mut stream = FileIoStream::builder(&path)
        .cache(other.clone())
        .open_now(true)
        .build()
        .expect("open");
    stream.read(None).expect("read");
    assert!(other.bytes_used() > 0);
    assert_eq!(w.cache.bytes_used(), 0);
}
