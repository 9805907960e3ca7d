//! The limit of the cache is a limit of the process.

use crate::fixture::{Mount, assert_equal_bytes, pattern};
use std::fs::{self, File};
use std::io::Read;

/// What the program itself may need: its code, threads and buffers of requests under way. Without optimisation.
const OWN_KIB: u64 = 40 << 10;

fn status_kib(pid: u32, field: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("the daemon runs");
    let line = text
        .lines()
        .find(|line| line.starts_with(field))
        .expect("the field is there");
    let number = line.split_whitespace().nth(1).expect("a number");
    number.parse().expect("a number")
}

/// 64 MiB are read through a cache of 1 MiB. The daemon does not grow with what it carries, and all bytes are right.
#[test]
fn a_small_cache_stays_small() {
    const SIZE: usize = 64 << 20;
    let bytes = pattern(SIZE, 1);
    let mount = Mount::with(&["--memory", "1M"], |source| {
        fs::write(source.join("f"), &bytes).expect("write");
    });
    let pid = mount.pid();
    let before = status_kib(pid, "VmRSS:");
    let mut file = File::open(mount.view("f")).expect("open");
    let mut buffer = vec![0; 1 << 20];
    for (index, wanted) in bytes.chunks(buffer.len()).enumerate() {
        file.read_exact(&mut buffer).expect("read");
        assert_equal_bytes(&format!("MiB {index}"), &buffer, wanted);
        let now = status_kib(pid, "VmRSS:");
        assert!(
            now < before + OWN_KIB,
            "{before} KiB before, {now} KiB at MiB {index}"
        );
    }
    // Backwards, in odd pieces: what was kept and what was not.
    for at in (0..SIZE - 10_000).rev().step_by(1_234_567) {
        let mut part = vec![0; 10_000];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut part, at as u64).expect("read");
        assert_equal_bytes(&format!("from {at} on"), &part, &bytes[at..at + 10_000]);
    }
    // Written through it, too.
    fs::write(mount.view("copy"), &bytes).expect("write");
    mount.assert_content("copy", &bytes);
    let peak = status_kib(pid, "VmHWM:");
    println!("{before} KiB before, {peak} KiB at most");
    assert!(
        peak < before + OWN_KIB,
        "{before} KiB before, {peak} KiB at most"
    );
}
