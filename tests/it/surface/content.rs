//! Reading, writing, and what else changes or maps the bytes of a file.

use super::errno;
use crate::fixture::{Mount, assert_equal_bytes, pattern, python, run};
use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{Whence, lseek};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

fn edit(path: &Path) -> File {
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false);
    options
        .open(path)
        .unwrap_or_else(|error| panic!("open {path:?}: {error}"))
}

/// Creating, writing over, appending, truncating: both sides hold the same bytes after each step.
#[test]
fn writing_is_seen_on_both_sides() {
    let mount = Mount::new();
    let (view, mut wanted) = (mount.view("f"), pattern(300_000, 1));
    let mut file = edit(&view);
    file.write_all(&wanted).expect("write");
    mount.assert_content("f", &wanted);
    for (at, size) in [(0, 1), (4095, 2), (100_000, 131_072), (299_999, 5000)] {
        let part = pattern(size, at);
        file.write_all_at(&part, at).expect("write");
        wanted.resize(wanted.len().max(at as usize + size), 0);
        wanted[at as usize..][..size].copy_from_slice(&part);
        mount.assert_content("f", &wanted);
        mount.assert_same("f");
    }
    let mut log = File::options().append(true).open(&view).expect("open");
    log.seek(SeekFrom::Start(0)).expect("seek");
    for line in ["one", "two", "three"] {
        log.write_all(line.as_bytes()).expect("append");
        wanted.extend_from_slice(line.as_bytes());
    }
    mount.assert_content("f", &wanted);
    for size in [10, 5000, 0, 7] {
        file.set_len(size).expect("truncate");
        wanted.resize(size as usize, 0);
        mount.assert_content("f", &wanted);
        mount.assert_same("f");
    }
}

#[test]
fn the_flags_of_open_mean_what_they_say() {
    let mount = Mount::with(&[], |source| {
        fs::write(source.join("f"), "content").expect("write");
        std::os::unix::fs::symlink("f", source.join("link")).expect("symlink");
    });
    let open = |options: &mut OpenOptions, name: &str| options.open(mount.view(name));
    let exclusive = |name| open(File::options().write(true).create_new(true), name);
    assert_eq!(errno(exclusive("f")), libc::EEXIST);
    assert_eq!(errno(exclusive("link")), libc::EEXIST);
    exclusive("new").expect("create");
    mount.assert_content("new", b"");
    let flagged = |flags, name| open(File::options().read(true).custom_flags(flags), name);
    assert_eq!(errno(flagged(libc::O_NOFOLLOW, "link")), libc::ELOOP);
    flagged(libc::O_NOFOLLOW, "f").expect("open");
    assert_eq!(errno(flagged(libc::O_DIRECTORY, "f")), libc::ENOTDIR);
    assert_eq!(errno(flagged(0, "absent")), libc::ENOENT);
    assert_eq!(errno(flagged(0, "f/below")), libc::ENOTDIR);
    assert_eq!(errno(open(File::options().write(true), "")), libc::EISDIR);
    let mut bytes = String::new();
    open(File::options().read(true), "link")
        .and_then(|mut file| file.read_to_string(&mut bytes))
        .expect("read");
    assert_eq!(bytes, "content");
    open(File::options().write(true).truncate(true), "link").expect("open");
    mount.assert_content("f", b"");
    let wrong_way = |options: &mut OpenOptions| {
        let mut file = open(options, "f").expect("open");
        (file.write_all(b"x").is_ok(), file.read(&mut [0; 9]).is_ok())
    };
    assert_eq!(wrong_way(File::options().read(true)), (false, true));
    assert_eq!(wrong_way(File::options().write(true)), (true, false));
}

/// A part of `buffer` that begins on a page, as O_DIRECT wants it.
fn aligned(buffer: &mut [u8], size: usize) -> &mut [u8] {
    let skip = buffer.as_ptr().align_offset(4096);
    &mut buffer[skip..skip + size]
}

/// Databases read and write past the page cache, while others read the same file through it.
#[test]
fn direct_and_buffered_access_see_each_other() {
    const SIZE: usize = 64 << 10;
    let mount = Mount::new();
    let mut wanted = pattern(SIZE, 1);
    fs::write(mount.view("f"), &wanted).expect("write");
    let direct = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(mount.view("f"))
        .expect("open");
    let buffered = edit(&mount.view("f"));
    let mut memory = vec![0; SIZE + 4096];
    for round in 0..20u64 {
        let at = round * 4096 % SIZE as u64;
        let block = aligned(&mut memory, 4096);
        block.copy_from_slice(&pattern(4096, round));
        direct.write_all_at(block, at).expect("direct write");
        wanted[at as usize..][..4096].copy_from_slice(block);
        mount.assert_content("f", &wanted);
        let byte = (at as usize + 8192) % SIZE;
        wanted[byte] ^= 1;
        buffered
            .write_all_at(&wanted[byte..=byte], byte as u64)
            .expect("write");
        let whole = aligned(&mut memory, SIZE);
        direct.read_exact_at(whole, 0).expect("direct read");
        assert_equal_bytes(&format!("direct read, round {round}"), whole, &wanted);
    }
}

/// A file that was cached, then cut and extended again, reads zeros there.
#[test]
fn cut_and_extended_is_zeros() {
    let mount = Mount::new();
    let mut wanted = pattern(100_000, 1);
    fs::write(mount.view("f"), &wanted).expect("write");
    mount.assert_content("f", &wanted);
    let file = edit(&mount.view("f"));
    file.set_len(50_001).expect("truncate");
    file.set_len(90_000).expect("extend");
    wanted.truncate(50_001);
    wanted.resize(90_000, 0);
    mount.assert_content("f", &wanted);
    file.write_all_at(b"behind the end", 200_000)
        .expect("write");
    wanted.resize(200_000, 0);
    wanted.extend_from_slice(b"behind the end");
    mount.assert_content("f", &wanted);
}

#[test]
fn allocating_and_punching_holes_change_what_is_read() {
    let mount = Mount::new();
    let mut wanted = pattern(1 << 20, 1);
    fs::write(mount.view("f"), &wanted).expect("write");
    mount.assert_content("f", &wanted);
    let file = edit(&mount.view("f"));
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(&file, punch, 100_000, 300_000).expect("punch");
    wanted[100_000..400_000].fill(0);
    mount.assert_content("f", &wanted);
    mount.assert_same("f");
    let zero = FallocateFlags::FALLOC_FL_ZERO_RANGE;
    fallocate(&file, zero, (1 << 20) - 1000, 2000).expect("zero");
    wanted[(1 << 20) - 1000..].fill(0);
    wanted.resize((1 << 20) + 1000, 0);
    mount.assert_content("f", &wanted);
    fallocate(&file, FallocateFlags::empty(), 1 << 20, 1 << 20).expect("allocate");
    wanted.resize(2 << 20, 0);
    mount.assert_content("f", &wanted);
    mount.assert_same("f");
    let keep = FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(&file, keep, 2 << 20, 1 << 20).expect("allocate behind the end");
    mount.assert_content("f", &wanted);
    mount.assert_same("f");
}

/// cp and tar look for holes; what was just written must be found, what was not must not.
#[test]
fn holes_are_where_they_are_in_the_source() {
    const MIB: i64 = 1 << 20;
    let mount = Mount::new();
    let file = edit(&mount.view("f"));
    file.write_all_at(&pattern(MIB as usize, 1), 2 * MIB as u64)
        .expect("write");
    file.set_len(8 * MIB as u64).expect("extend");
    let source = File::open(mount.source("f")).expect("open");
    for whence in [Whence::SeekData, Whence::SeekHole] {
        for at in [0, 1, 2 * MIB, 2 * MIB + 5, 3 * MIB, 7 * MIB, 8 * MIB] {
            assert_eq!(
                lseek(&file, at, whence),
                lseek(&source, at, whence),
                "{whence:?} from {at}"
            );
        }
    }
    assert_eq!(lseek(&file, 0, Whence::SeekData), Ok(2 * MIB));
}

/// A sparse image of a virtual disk: far offsets are not cut to 32 bits anywhere, and holes cost nothing.
#[test]
fn a_file_beyond_4_gib_keeps_its_offsets() {
    const GIB: u64 = 1 << 30;
    let mount = Mount::new();
    let file = edit(&mount.view("f"));
    file.set_len(6 * GIB).expect("extend");
    let places = [0, 2, 4, 5].map(|gib| (gib * GIB).saturating_sub(7));
    for at in places {
        file.write_all_at(&pattern(16, at), at).expect("write");
    }
    let source = File::open(mount.source("f")).expect("open");
    for file in [&file, &source] {
        for at in places {
            let mut bytes = [0; 16];
            file.read_exact_at(&mut bytes, at).expect("read");
            assert_equal_bytes(&format!("at {at}"), &bytes, &pattern(16, at));
        }
        let mut bytes = [1; 4096];
        file.read_exact_at(&mut bytes, 3 * GIB).expect("read");
        assert_eq!(bytes, [0; 4096]);
    }
    assert_eq!(fs::metadata(mount.view("f")).expect("stat").size(), 6 * GIB);
    mount.assert_same("f");
    file.set_len(4 * GIB + 2).expect("truncate");
    mount.assert_same("f");
    let mut end = Vec::new();
    (&file).seek(SeekFrom::Start(4 * GIB)).expect("seek");
    (&file).read_to_end(&mut end).expect("read");
    let wanted = pattern(16, 4 * GIB - 7);
    assert_eq!(end, wanted[7..9]);
}

const COPY_RANGE: &str = "
import os, sys
source, target = (os.open(path, os.O_RDWR) for path in sys.argv[1:3])
count, start, to = map(int, sys.argv[3:])
print(os.copy_file_range(source, target, count, start, to))
";

/// The source copies by itself; what the mount had cached of the target is not shown any more.
#[test]
fn copy_file_range_is_a_write() {
    let mount = Mount::new();
    let (from, mut to) = (pattern(200_000, 1), pattern(200_000, 2));
    fs::write(mount.view("from"), &from).expect("write");
    fs::write(mount.view("to"), &to).expect("write");
    mount.assert_content("to", &to);
    let copy = |from: usize, to: usize, size: usize| {
        let mut copy = python(COPY_RANGE, [mount.view("from"), mount.view("to")]);
        copy.args([size, from, to].map(|number| number.to_string()));
        run(&mut copy).ok().trim().to_owned()
    };
    assert_eq!(copy(1000, 50_000, 100_000), "100000");
    to[50_000..150_000].copy_from_slice(&from[1000..101_000]);
    mount.assert_content("to", &to);
    // Behind the end of the target, and from where the source ends.
    assert_eq!(copy(190_000, 250_000, 50_000), "10000");
    to.resize(250_000, 0);
    to.extend_from_slice(&from[190_000..]);
    mount.assert_content("to", &to);
    mount.assert_same("to");
    mount.assert_content("from", &from);
}

const SHARED_MAP: &str = "
import mmap, os, sys
view, source = sys.argv[1:3]
fd = os.open(view, os.O_RDWR)
map = mmap.mmap(fd, 0)
other = os.open(view, os.O_RDWR)
def check(what, seen, wanted):
    if seen != wanted: sys.exit(f'{what}: seen {seen!r}, wanted {wanted!r}')
for round in range(50):
    at, text = round * 5003 % 90000, b'stored %d.' % round
    map[at:at + len(text)] = text
    check('read after a store', os.pread(other, len(text), at), text)
    map.flush()
    with open(source, 'rb') as file:
        file.seek(at)
        check('the source after msync', file.read(len(text)), text)
    text = b'written %d.' % round
    os.pwrite(other, text, at + 9000)
    check('the map after a write', map[at + 9000:at + 9000 + len(text)], text)
map[0:5] = b'close'
map.close()
os.close(fd)
os.close(other)
with open(source, 'rb') as file:
    check('the source after munmap and close', file.read(5), b'close')
";

/// Linkers and databases write through maps. Reads see what was stored, the map sees what was written, and after msync,
/// or munmap and close, it is in the source. (Through an open file the kernel writes what a map stored; closing flushes.)
#[test]
fn what_is_stored_through_a_map_is_read_and_gets_into_the_source() {
    for ttl in ["1", "0"] {
        let mount = Mount::with(&["--ttl", ttl], |source| {
            fs::write(source.join("f"), pattern(100_000, 1)).expect("write");
        });
        run(&mut python(
            SHARED_MAP,
            [mount.view("f"), mount.source("f")],
        ))
        .ok();
        mount.assert_content("f", &fs::read(mount.source("f")).expect("read"));
    }
}

/// Temporary files: removed while open, they go on working through their descriptor, and the space is free when it
/// is closed.
#[test]
fn a_file_that_was_removed_works_while_it_is_open() {
    let mount = Mount::with(&[], |source| {
        fs::write(source.join("read only"), pattern(100_000, 2)).expect("write");
    });
    let mut file = edit(&mount.view("f"));
    file.write_all(&pattern(100_000, 1)).expect("write");
    let reader = File::open(mount.view("read only")).expect("open");
    fs::remove_file(mount.view("f")).expect("remove");
    fs::remove_file(mount.view("read only")).expect("remove");
    assert_eq!(errno(fs::metadata(mount.view("f"))), libc::ENOENT);
    assert_eq!(errno(fs::metadata(mount.source("f"))), libc::ENOENT);
    let left = fs::read_dir(mount.source("")).expect("list").count();
    assert_eq!(left, 0, "something stayed in the source");
    // A new file of that name is another one.
    fs::write(mount.view("f"), "another").expect("write");

    let mut bytes = vec![0; 100_000];
    reader.read_exact_at(&mut bytes, 0).expect("read");
    assert_equal_bytes("the reader", &bytes, &pattern(100_000, 2));
    file.write_all_at(b"new", 50).expect("write");
    file.read_exact_at(&mut bytes[..3], 50).expect("read");
    assert_eq!(&bytes[..3], b"new");
    file.set_len(60).expect("truncate");
    let meta = file.metadata().expect("fstat");
    assert_eq!((meta.len(), meta.nlink()), (60, 0));
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .expect("fchmod");
    assert_eq!(file.metadata().expect("fstat").mode() & 0o777, 0o600);
    file.sync_all().expect("fsync");
    drop((file, reader));
    mount.assert_content("f", b"another");
}
