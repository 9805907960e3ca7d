//! What an operation of a stream costs: hits, misses, and writes beside few and many cached slots.
//!
//! `cargo bench` runs them; `scripts/bench-fileio` sets them beside the Python module that the streams are modelled on.
//! Everything is on the local file system, so a miss is a page-cache read of the kernel: what the cache itself costs.

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use warmfs::cache::Cache;
use warmfs::clock::Clock;
use warmfs::fileio::FileIoStream;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
/// As many slots of 4 KiB as one file has in any of these, each with a gap behind it.
const SLOTS_MAX: usize = 10_000;
const FILE: usize = SLOTS_MAX * 8 * KIB;
/// No slot is evicted in any of these.
const MEMORY: u64 = 4 << 30;
/// No comparison ends in any of these.
const LONG: Duration = Duration::from_secs(3600);

struct World {
    dir: TempDir,
    cache: Arc<Cache>,
}

impl World {
    fn new(ttl: Duration) -> World {
        World {
            // An ordinary disk file system: /tmp is a RAM disk on many machines.
            dir: tempfile::tempdir_in("/var/tmp").expect("a temporary directory"),
            // Its wall clock is ahead, so that no slot counts as read in the tick of the file's last change, as it is
            // with every file that is older than a moment.
            cache: if ttl.is_zero() {
                Arc::new(Cache::new(MEMORY, ttl, ahead(), Arc::default()))
            } else {
                Cache::shared(MEMORY, ttl)
            },
        }
    }

    fn file(&self, name: &str, size: usize) -> PathBuf {
        let path = self.dir.path().join(name);
        // As cp(1) writes. A file that is written with one call lies in the page cache in large folios, and pwrite(2)
        // into those costs ten times as much (ext4, Linux 6.18: 4.4 us instead of 0.4).
        let mut file = std::fs::File::create(&path).expect("create");
        for piece in vec![7; size].chunks(128 * KIB) {
            file.write_all(piece).expect("write");
        }
        path
    }

    fn open(&self, path: &PathBuf, mode: &str) -> FileIoStream {
        let builder = FileIoStream::builder(path).cache(self.cache.clone());
        builder.mode(mode).open_now(true).build().expect("open")
    }

    /// Slots of 4 KiB with gaps between them.
    fn fill(&self, stream: &mut FileIoStream, slots: usize) {
        for slot in 0..slots {
            stream.update_pos((slot * 8 * KIB) as u64);
            stream.read(Some(4 * KIB)).expect("read");
        }
        assert_eq!(stream.cache_keys().len(), slots);
    }
}

fn ahead() -> Clock {
    Clock::manual(std::time::SystemTime::now() + Duration::from_secs(3600))
}

fn hits(c: &mut Criterion) {
    let mut group = c.benchmark_group("hit");
    for (name, size) in [("4KiB", 4 * KIB), ("1MiB", MIB)] {
        group.throughput(Throughput::Bytes(size as u64));
        let mut buffer = vec![0; size];
        let from = vec![7; size];
        group.bench_function(BenchmarkId::new("copy alone", name), |b| {
            b.iter(|| buffer.copy_from_slice(black_box(&from)));
        });
        for (when, ttl) in [("within ttl", LONG), ("ttl 0", Duration::ZERO)] {
            let world = World::new(ttl);
            let mut stream = world.open(&world.file("f", 2 * size), "rb");
            stream.read(Some(size)).expect("read");
            group.bench_function(BenchmarkId::new(format!("shared, {when}"), name), |b| {
                b.iter(|| {
                    stream.update_pos(0);
                    black_box(stream.read(Some(size)).expect("read"))
                });
            });
            group.bench_function(
                BenchmarkId::new(format!("into a buffer, {when}"), name),
                |b| {
                    b.iter(|| {
                        stream.update_pos(0);
                        Read::read(&mut stream, black_box(&mut buffer)).expect("read")
                    });
                },
            );
        }
    }
    group.finish();
}

fn misses(c: &mut Criterion) {
    let mut group = c.benchmark_group("miss");
    for (name, size) in [("4KiB", 4 * KIB), ("1MiB", MIB)] {
        group.throughput(Throughput::Bytes(size as u64));
        let world = World::new(LONG);
        let path = world.file("f", size);
        let id = warmfs::cache::FileId {
            dev: path.metadata().expect("stat").dev(),
            ino: path.metadata().expect("stat").ino(),
        };
        let mut stream = world.open(&path, "rb");
        group.bench_function(BenchmarkId::new("within ttl", name), |b| {
            b.iter_batched(
                || world.cache.evict(id),
                |_| {
                    stream.update_pos(0);
                    black_box(stream.read(Some(size)).expect("read"))
                },
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

/// 100 bytes into a slot that is cached; pwrite(2) alone is beside.
fn writes(c: &mut Criterion) {
    let mut group = c.benchmark_group("write 100 bytes");
    let data = [9; 100];
    let mut n = 0_u64;
    let mut next = move || {
        n = (n + 1) % 10;
        1000 + n * 200
    };
    {
        let world = World::new(LONG);
        let path = world.file("f", FILE);
        let file = std::fs::File::options()
            .write(true)
            .open(path)
            .expect("open");
        group.bench_function("pwrite alone", |b| {
            b.iter(|| file.write_all_at(black_box(&data), next()).expect("write"));
        });
    }
    let mut cases: Vec<_> = [1, 100, 1_000, 10_000].map(|slots| (slots, 0)).into();
    cases.push((1, 100_000));
    for (slots, others) in cases {
        let world = World::new(LONG);
        for n in 0..others / SLOTS_MAX {
            let mut other = world.open(&world.file(&format!("other {n}"), FILE), "rb");
            world.fill(&mut other, SLOTS_MAX);
        }
        let mut stream = world.open(&world.file("f", FILE), "r+b");
        world.fill(&mut stream, slots);
        let id = BenchmarkId::new("slots", format!("{slots}, and {others} of other files"));
        group.bench_function(id, |b| {
            b.iter(|| {
                stream.update_pos(next());
                stream.write(black_box(&data)).expect("write")
            });
        });
    }
    group.finish();

    let mut group = c.benchmark_group("write 1 MiB");
    let data = vec![9; MIB];
    for slots in [1, 16, 256] {
        let world = World::new(LONG);
        let mut stream = world.open(&world.file("f", FILE), "r+b");
        for _ in 0..slots {
            stream.read(Some(MIB / slots)).expect("read");
        }
        group.bench_function(BenchmarkId::new("overlapped slots", slots), |b| {
            b.iter(|| {
                stream.update_pos(0);
                stream.write(black_box(&data)).expect("write")
            });
        });
    }
    group.finish();
}

// In a module of its own: the macro makes a public function without documentation.
mod entry {
    use super::*;
    criterion_group!(benches, hits, misses, writes);
}
use entry::benches;
criterion_main!(benches);
