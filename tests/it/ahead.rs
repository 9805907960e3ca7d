//! Reading ahead: a slow source is kept busy for a program that reads on, and is spared by one that does not.

use crate::fixture::{Running, SOON, Slow, assert_bytes, assert_equal_bytes, pattern};
use crate::slow_source::Kind;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use std::fs::{self, File};
use std::io::{Read, Seek};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::time::Duration;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// What the kernel asks of a server at a time, and warmfs of its source.
const UNIT: usize = 128 * KIB;

/// Slow enough not to be taken for a local disk.
const DELAY: Duration = Duration::from_millis(5);

/// A cold file of `size` bytes at a slow source, already opened once so that only reads are counted.
fn slow(args: &[&str], size: usize) -> (Slow, File) {
    let slow = Slow::with(args, |disk| {
        fs::write(disk.join("f"), pattern(size, 1)).expect("write");
    });
    slow.control().set_delay(DELAY);
    let file = File::open(slow.view("f")).expect("open");
    slow.control().reset_counters();
    (slow, file)
}

/// What a read through the kernel's page cache would not show: every byte comes from warmfs again.
fn forget_pages(file: &File) {
    posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).expect("fadvise");
}

#[track_caller]
fn assert_part(file: &File, at: usize, size: usize, whole: &[u8]) {
    let mut buffer = vec![0; size];
    file.read_exact_at(&mut buffer, at as u64).expect("read");
    assert_equal_bytes(&format!("from {at} on"), &buffer, &whole[at..at + size]);
}

/// One program that reads on has many requests in flight, and no byte is fetched twice.
#[test]
fn sequential_reading_fills_the_pipe() {
    let size = 32 * MIB + 12_345;
    let (slow, mut file) = slow(&[], size);
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).expect("read");
    assert_equal_bytes("f", &bytes, &pattern(size, 1));
    let control = slow.control();
    assert!(control.peak() >= 16, "{} in flight", control.peak());
    assert_eq!(control.bytes_read(), size as u64);
}

/// From the end down to the start, as some databases and `tac` read.
#[test]
fn backward_reading_fills_the_pipe_too() {
    let (slow, file) = slow(&[], 16 * MIB);
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_RANDOM).expect("fadvise");
    let whole = pattern(16 * MIB, 1);
    for at in (0..16 * MIB).step_by(64 * KIB).rev() {
        assert_part(&file, at, 64 * KIB, &whole);
    }
    let control = slow.control();
    assert!(control.peak() >= 8, "{} in flight", control.peak());
    assert_eq!(control.bytes_read(), 16 * MIB as u64);
}

/// A database: what it does not ask for is hardly fetched.
#[test]
fn random_reads_do_not_drag_in_megabytes() {
    let (slow, file) = slow(&[], 32 * MIB);
    let whole = pattern(32 * MIB, 1);
    let mut word = 7_u64;
    for _ in 0..200 {
        word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let at = (word >> 33) as usize % (32 * MIB / 4096) * 4096;
        assert_part(&file, at, 4096, &whole);
    }
    let (fetched, asked) = (slow.control().bytes_read(), 200 * 4096);
    assert!(fetched <= 4 * asked, "{fetched} bytes for {asked}");
}

/// Reads, jumps, rewinds, goes on. In the end everything was read, and nothing was fetched twice.
#[test]
fn a_player_fetches_nothing_twice() {
    let (slow, file) = slow(&[], 48 * MIB);
    let whole = pattern(48 * MIB, 1);
    let play = |from: usize, to: usize| {
        for at in (from..to).step_by(64 * KIB) {
            assert_part(&file, at, 64 * KIB, &whole);
        }
    };
    play(0, 2 * MIB);
    play(20 * MIB, 28 * MIB);
    forget_pages(&file);
    let before = slow.control().bytes_read();
    play(24 * MIB, 28 * MIB);
    play(28 * MIB, 30 * MIB);
    forget_pages(&file);
    play(0, 48 * MIB);
    assert!(before >= 10 * MIB as u64);
    assert_eq!(slow.control().bytes_read(), 48 * MIB as u64);
}

/// Where the first byte is wanted the rest comes with it.
#[test]
fn a_small_file_takes_one_request() {
    let (slow, file) = slow(&[], UNIT - 100);
    let whole = pattern(UNIT - 100, 1);
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_RANDOM).expect("fadvise");
    assert_part(&file, 60 * KIB, 4 * KIB, &whole);
    assert_bytes(&slow.view("f"), &whole);
    assert_eq!(slow.control().count(Kind::Read), 1);
    assert_eq!(slow.control().bytes_read(), whole.len() as u64);
}

/// One long read that bypasses the page cache is fetched in parallel, and brings what it asked for.
#[test]
fn a_long_read_is_fetched_in_parallel() {
    let (slow, _) = slow(&[], 16 * MIB);
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(slow.view("f"))
        .expect("open");
    slow.control().reset_counters();
    // Direct reads want their memory aligned.
    let mut buffer = vec![0; MIB + 4096];
    let skip = buffer.as_ptr().align_offset(4096);
    let part = &mut buffer[skip..skip + MIB];
    file.read_exact_at(part, 5 * MIB as u64).expect("read");
    assert_equal_bytes("part", part, &pattern(16 * MIB, 1)[5 * MIB..6 * MIB]);
    let control = slow.control();
    assert!(control.peak() >= 4, "{} in flight", control.peak());
    assert_eq!(control.bytes_read(), MIB as u64);
}

#[test]
fn without_read_ahead_there_is_none() {
    let (slow, file) = slow(&["--readahead", "0"], 16 * MIB);
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_RANDOM).expect("fadvise");
    let whole = pattern(16 * MIB, 1);
    for at in (0..4 * MIB).step_by(UNIT) {
        assert_part(&file, at, UNIT, &whole);
    }
    assert_eq!(slow.control().bytes_read(), 4 * MIB as u64);
    assert_eq!(slow.control().peak(), 1);
}

/// Many files at once, with far less memory than their windows would take: all bytes are right, and little is fetched
/// twice, because nothing is read further ahead than there is room for.
#[test]
fn windows_share_the_memory() {
    const FILES: usize = 16;
    let slow = Slow::with(&["--memory", "8M"], |disk| {
        for index in 0..FILES {
            fs::write(
                disk.join(format!("{index}")),
                pattern(2 * MIB, index as u64),
            )
            .expect("write");
        }
    });
    slow.control().set_delay(DELAY);
    std::thread::scope(|threads| {
        for index in 0..FILES {
            let path = slow.view(format!("{index}"));
            threads.spawn(move || assert_bytes(&path, &pattern(2 * MIB, index as u64)));
        }
    });
    let (fetched, asked) = (slow.control().bytes_read(), (FILES * 2 * MIB) as u64);
    assert!(fetched <= asked * 5 / 4, "{fetched} bytes for {asked}");
}

/// Reading ahead that hangs in one file keeps no other from being read, cold or warm, and loses nothing itself.
#[test]
fn read_ahead_that_hangs_stays_with_its_file() {
    let slow = Slow::with(&[], |disk| {
        fs::write(disk.join("hung"), pattern(16 * MIB, 1)).expect("write");
        fs::write(disk.join("other"), pattern(8 * MIB, 2)).expect("write");
    });
    let control = slow.control();
    control.set_delay(DELAY);
    let mut hung = File::open(slow.view("hung")).expect("open");
    let mut bytes = vec![0; 4 * MIB];
    hung.read_exact(&mut bytes).expect("read");
    control.hang_path(Some("hung"));
    let reading = Running::start(move || hung.read_to_end(&mut bytes).map(|_| bytes));
    assert!(control.wait_held(8, SOON), "{} held", control.held());
    for _ in 0..2 {
        let path = slow.view("other");
        let other = Running::start(move || assert_bytes(&path, &pattern(8 * MIB, 2)));
        other.join("reading another file", SOON);
    }
    assert!(reading.is_running());
    control.hang_path(None);
    let bytes = reading.join("reading on", SOON).expect("read");
    assert_equal_bytes("hung", &bytes, &pattern(16 * MIB, 1));
}

/// A source that fails for a moment, while much is in flight ahead: a read that meets it may fail, and what comes after it is
/// read as ever.
#[test]
fn reading_goes_on_after_a_failure() {
    let (slow, mut file) = slow(&[], 16 * MIB);
    let mut bytes = vec![0; 2 * MIB];
    file.read_exact(&mut bytes).expect("read");
    slow.control().fail_kind(Kind::Read, Some(libc::EIO));
    let mut failed = false;
    while !failed {
        failed = match file.read(&mut vec![0; UNIT]) {
            Ok(count) => {
                assert_ne!(count, 0, "all of it cannot have been here");
                false
            }
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::EIO));
                true
            }
        };
    }
    slow.control().fail_kind(Kind::Read, None);
    slow.control().reset_counters();
    bytes.clear();
    file.rewind().expect("seek");
    file.read_to_end(&mut bytes).expect("read");
    assert_equal_bytes("f", &bytes, &pattern(16 * MIB, 1));
    let peak = slow.control().peak();
    assert!(peak >= 4, "{peak} in flight");
}
