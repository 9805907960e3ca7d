//! Random histories on several streams of one file, synchronous and asynchronous, against a plain vector of bytes.
//!
//! A failure prints the shortest history that fails and how to repeat the search. `PROPTEST_CASES` says how many
//! histories to try.

use crate::support::{World, on_disk};
use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::test_runner::{Config, RngSeed, TestCaseError, TestError, TestRunner};
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::io::{Read, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Runtime;
use warmfs::cache::SLOT_OVERHEAD;
use warmfs::fileio::{AsyncFileIoStream, FileIoStream};

/// Positions and sizes are chosen below this, so that most of them meet.
const SPACE: usize = 3000;

/// The streams of a history, by number.
const MODES: [(&str, Kind); 6] = [
    ("r+b", Kind::Sync),
    ("rb", Kind::Sync),
    ("r+b", Kind::Async),
    ("rb", Kind::Async),
    ("a+b", Kind::Sync),
    ("a+b", Kind::Async),
];

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Sync,
    Async,
}

#[derive(Clone, Debug)]
enum Op {
    Read(usize, Option<usize>),
    /// Through `std::io::Read`, or tokio's traits.
    ReadInto(usize, usize),
    Write(usize, Vec<u8>),
    /// Through tokio's traits, for the asynchronous ones: what is taken is written later.
    WriteLater(usize, Vec<u8>),
    SeekStart(usize, u64),
    SeekCurrent(usize, i64),
    SeekEnd(usize, i64),
    Move(usize, u64),
    Truncate(usize, u64),
    Reopen(usize),
    /// A future that is polled once and dropped: of a read ...
    DropRead(usize, usize),
    /// ... or of a write.
    DropWrite(usize, Vec<u8>),
    CacheGet(usize, Option<usize>),
    /// Somebody else writes, cuts, or replaces the file.
    OutsideWrite(u64, Vec<u8>),
    OutsideTruncate(u64),
    OutsideReplace(Vec<u8>),
    Evict,
    Wait(u64),
}

fn op() -> impl Strategy<Value = Op> {
    let space = SPACE as u64;
    let half = SPACE as i64 / 2;
    let data = || vec(any::<u8>(), 0..600);
    let size = || prop_oneof![Just(None), (0..SPACE).prop_map(Some)];
    let stream = 0..MODES.len();
    prop_oneof![
        6 => (stream.clone(), size()).prop_map(|(n, size)| Op::Read(n, size)),
        3 => (stream.clone(), 0..SPACE).prop_map(|(n, size)| Op::ReadInto(n, size)),
        4 => (stream.clone(), data()).prop_map(|(n, data)| Op::Write(n, data)),
        2 => (stream.clone(), data()).prop_map(|(n, data)| Op::WriteLater(n, data)),
        5 => (stream.clone(), 0..space).prop_map(|(n, pos)| Op::SeekStart(n, pos)),
        1 => (stream.clone(), -half..half).prop_map(|(n, by)| Op::SeekCurrent(n, by)),
        1 => (stream.clone(), -half..half).prop_map(|(n, by)| Op::SeekEnd(n, by)),
        1 => (stream.clone(), 0..space).prop_map(|(n, pos)| Op::Move(n, pos)),
        1 => (stream.clone(), 0..space).prop_map(|(n, size)| Op::Truncate(n, size)),
        1 => stream.clone().prop_map(Op::Reopen),
        1 => (stream.clone(), 0..SPACE).prop_map(|(n, size)| Op::DropRead(n, size)),
        2 => (stream.clone(), data()).prop_map(|(n, data)| Op::DropWrite(n, data)),
        1 => (stream.clone(), size()).prop_map(|(n, size)| Op::CacheGet(n, size)),
        1 => (0..space, data()).prop_map(|(pos, data)| Op::OutsideWrite(pos, data)),
        1 => (0..space).prop_map(Op::OutsideTruncate),
        1 => data().prop_map(Op::OutsideReplace),
        1 => Just(Op::Evict),
        1 => (0..2000_u64).prop_map(Op::Wait),
    ]
}

#[derive(Clone, Debug)]
struct Setting {
    memory: u64,
    ttl: Duration,
    chunk_size: usize,
}

fn setting() -> impl Strategy<Value = Setting> {
    let memory = prop_oneof![Just(1 << 20), Just(3 * (SLOT_OVERHEAD + 400))];
    let ttl = prop_oneof![Just(Duration::ZERO), Just(Duration::from_secs(1))];
    let chunk_size = prop_oneof![Just(2 << 20), Just(500_usize)];
    (memory, ttl, chunk_size).prop_map(|(memory, ttl, chunk_size)| Setting {
        memory,
        ttl,
        chunk_size,
    })
}

enum Stream {
    Sync(FileIoStream),
    Async(AsyncFileIoStream),
}

/// A stream, and where it should be.
struct Player {
    stream: Stream,
    pos: u64,
    mode: &'static str,
}

struct Game {
    world: World,
    runtime: Runtime,
    path: PathBuf,
    content: Vec<u8>,
    setting: Setting,
    players: Vec<Player>,
}

type Outcome = Result<(), String>;

fn same<T: PartialEq + std::fmt::Debug>(what: &str, got: T, wanted: T) -> Outcome {
    if got == wanted {
        return Ok(());
    }
    Err(format!("{what}: {got:?} instead of {wanted:?}"))
}

impl Game {
    fn new(setting: Setting, content: Vec<u8>) -> Game {
        let world = World::with(setting.memory, setting.ttl);
        let path = world.file("f", &content);
        let mut game = Game {
            world,
            runtime: tokio::runtime::Builder::new_current_thread()
                .build()
                .expect("a runtime"),
            path,
            content,
            setting,
            players: Vec::new(),
        };
        for n in 0..MODES.len() {
            let player = game.open(n);
            game.players.push(player);
        }
        game
    }

    fn open(&self, n: usize) -> Player {
        let (mode, kind) = MODES[n];
        let builder = self.world.builder(&self.path).mode(mode);
        let builder = builder.chunk_size(self.setting.chunk_size);
        let stream = match kind {
            Kind::Sync => Stream::Sync(builder.build().expect("open")),
            Kind::Async => Stream::Async(builder.build_async().expect("open")),
        };
        let pos = if mode == "a+b" { self.content.len() } else { 0 };
        Player {
            stream,
            pos: pos as u64,
            mode,
        }
    }

    /// What a read at `pos` should give.
    fn wanted(&self, pos: u64, size: Option<usize>) -> Vec<u8> {
        let start = (pos as usize).min(self.content.len());
        let size = size.map_or(usize::MAX, |size| size.min(self.setting.chunk_size));
        self.content[start..].iter().copied().take(size).collect()
    }

    fn put(&mut self, pos: u64, data: &[u8]) {
        let end = pos as usize + data.len();
        if self.content.len() < end {
            self.content.resize(end, 0);
        }
        self.content[pos as usize..end].copy_from_slice(data);
    }

    /// What a write of `data` by player `n` should do.
    fn written(&mut self, n: usize, data: &[u8]) {
        if data.is_empty() {
            return;
        }
        let player = &self.players[n];
        let pos = if player.mode == "a+b" {
            self.content.len() as u64
        } else {
            player.pos
        };
        self.put(pos, data);
        self.players[n].pos = pos + data.len() as u64;
    }

    /// Every stream may be asked at once, but what somebody else does is seen within the ttl. Writes that were taken are
    /// to be in the file first, or their order would be anybody's guess.
    fn outside(&mut self, change: impl FnOnce(&Path)) -> Outcome {
        for player in &mut self.players {
            if let Stream::Async(stream) = &mut player.stream {
                let flushed = self.runtime.block_on(stream.flush());
                flushed.map_err(|error| format!("flush: {error}"))?;
            }
        }
        let path = self.path.clone();
        self.world.outside(|| change(&path));
        self.world.clock.advance(self.setting.ttl);
        Ok(())
    }

    /// Wait for writes that were taken or whose futures are gone.
    fn settle(&mut self, except: usize) -> Outcome {
        for (n, player) in self.players.iter_mut().enumerate() {
            if let Stream::Async(stream) = &mut player.stream
                && n != except
            {
                let flushed = self.runtime.block_on(stream.flush());
                flushed.map_err(|error| format!("flush: {error}"))?;
            }
        }
        Ok(())
    }

    fn play(&mut self, op: &Op) -> Outcome {
        match op {
            Op::Read(n, size) => {
                self.settle(*n)?;
                let wanted = self.wanted(self.players[*n].pos, *size);
                let got = match &mut self.players[*n].stream {
                    Stream::Sync(stream) => stream.read(*size),
                    Stream::Async(stream) => self.runtime.block_on(stream.read(*size)),
                };
                self.players[*n].pos += wanted.len() as u64;
                let got = got.map_err(|error| error.to_string())?;
                same("read", got.to_vec(), wanted)
            }
            Op::ReadInto(n, size) => {
                self.settle(*n)?;
                let wanted = self.wanted(self.players[*n].pos, Some(*size));
                let mut buffer = vec![0; *size];
                let got = match &mut self.players[*n].stream {
                    Stream::Sync(stream) => Read::read(stream, &mut buffer),
                    Stream::Async(stream) => self
                        .runtime
                        .block_on(AsyncReadExt::read(stream, &mut buffer)),
                };
                self.players[*n].pos += wanted.len() as u64;
                buffer.truncate(got.map_err(|error| error.to_string())?);
                same("read into a buffer", buffer, wanted)
            }
            Op::Write(n, data) | Op::WriteLater(n, data) => {
                self.settle(*n)?;
                if self.players[*n].mode == "rb" {
                    return Ok(());
                }
                let later = matches!(op, Op::WriteLater(..));
                let count = match &mut self.players[*n].stream {
                    Stream::Sync(stream) => stream.write(data),
                    Stream::Async(stream) if later => self
                        .runtime
                        .block_on(stream.write_all(data))
                        .map(|()| data.len())
                        .map_err(|error| panic!("{error}")),
                    Stream::Async(stream) => self.runtime.block_on(stream.write(data)),
                };
                self.written(*n, data);
                same("written", count.map_err(|e| e.to_string())?, data.len())
            }
            Op::SeekStart(n, pos) => self.seek(*n, SeekFrom::Start(*pos), *pos as i64),
            Op::SeekCurrent(n, by) => {
                self.settle(usize::MAX)?;
                let target = self.players[*n].pos as i64 + by;
                self.seek(*n, SeekFrom::Current(*by), target)
            }
            Op::SeekEnd(n, by) => {
                self.settle(usize::MAX)?;
                let target = self.content.len() as i64 + by;
                self.seek(*n, SeekFrom::End(*by), target)
            }
            Op::Move(n, pos) => {
                let player = &mut self.players[*n];
                player.pos = *pos;
                match &mut player.stream {
                    Stream::Sync(stream) => stream.update_pos(*pos),
                    Stream::Async(stream) => stream.update_pos(*pos),
                }
                Ok(())
            }
            Op::Truncate(n, size) => {
                self.settle(*n)?;
                if self.players[*n].mode == "rb" {
                    return Ok(());
                }
                self.content.resize(*size as usize, 0);
                let cut = match &mut self.players[*n].stream {
                    Stream::Sync(stream) => stream.truncate(*size),
                    Stream::Async(stream) => self.runtime.block_on(stream.truncate(*size)),
                };
                cut.map_err(|error| error.to_string())
            }
            Op::Reopen(n) => {
                self.settle(usize::MAX)?;
                let closed = match &mut self.players[*n].stream {
                    Stream::Sync(stream) => stream.close(),
                    Stream::Async(stream) => self.runtime.block_on(stream.close()),
                };
                self.players[*n] = self.open(*n);
                closed.map_err(|error| error.to_string())
            }
            Op::DropRead(n, size) => {
                self.settle(*n)?;
                let Game {
                    players, runtime, ..
                } = self;
                let Stream::Async(stream) = &mut players[*n].stream else {
                    return Ok(());
                };
                let done = runtime.block_on(async {
                    tokio::select! {
                        biased;
                        got = stream.read(Some(*size)) => Some(got),
                        () = std::future::ready(()) => None,
                    }
                });
                if let Some(got) = done {
                    let wanted = self.wanted(self.players[*n].pos, Some(*size));
                    self.players[*n].pos += wanted.len() as u64;
                    let got = got.map_err(|error| error.to_string())?;
                    return same("read at once", got.to_vec(), wanted);
                }
                Ok(())
            }
            Op::DropWrite(n, data) => {
                // One poll of a write that has to wait for another does not begin it.
                self.settle(usize::MAX)?;
                let Game {
                    players, runtime, ..
                } = self;
                let player = &mut players[*n];
                let Stream::Async(stream) = &mut player.stream else {
                    return Ok(());
                };
                if player.mode == "rb" {
                    return Ok(());
                }
                runtime.block_on(async {
                    tokio::select! {
                        biased;
                        _ = stream.write(data) => {}
                        () = std::future::ready(()) => {}
                    }
                });
                // Polled once, it is under way.
                self.written(*n, data);
                Ok(())
            }
            Op::CacheGet(n, size) => {
                self.settle(usize::MAX)?;
                let wanted = self.wanted(self.players[*n].pos, *size);
                let got = match &mut self.players[*n].stream {
                    Stream::Sync(stream) => stream.cache_get(*size),
                    Stream::Async(stream) => stream.cache_get(*size),
                };
                match got.map_err(|error| error.to_string())? {
                    Some(got) => same("cached", got.to_vec(), wanted),
                    None => Ok(()),
                }
            }
            Op::OutsideWrite(pos, data) => {
                self.outside(|path| {
                    let file = fs::File::options().write(true).open(path).expect("open");
                    file.write_all_at(data, *pos).expect("write");
                })?;
                if !data.is_empty() {
                    self.put(*pos, data);
                }
                Ok(())
            }
            Op::OutsideTruncate(size) => {
                self.outside(|path| {
                    let file = fs::File::options().write(true).open(path).expect("open");
                    file.set_len(*size).expect("truncate");
                })?;
                self.content.resize(*size as usize, 0);
                Ok(())
            }
            Op::OutsideReplace(data) => {
                let new = self.world.path("new");
                self.outside(|path| {
                    fs::write(&new, data).expect("write");
                    fs::rename(&new, path).expect("rename");
                })?;
                self.content.clone_from(data);
                // Readers follow; a writer stays with its file until it is opened again.
                for n in 0..self.players.len() {
                    if self.players[n].mode != "rb" {
                        self.players[n] = self.open(n);
                    }
                }
                Ok(())
            }
            Op::Evict => {
                let id = warmfs::cache::FileId {
                    dev: std::os::unix::fs::MetadataExt::dev(&self.path.metadata().expect("stat")),
                    ino: std::os::unix::fs::MetadataExt::ino(&self.path.metadata().expect("stat")),
                };
                self.world.cache.evict(id);
                Ok(())
            }
            Op::Wait(millis) => {
                self.world.clock.advance(Duration::from_millis(*millis));
                Ok(())
            }
        }
    }

    fn seek(&mut self, n: usize, to: SeekFrom, target: i64) -> Outcome {
        let got = match &mut self.players[n].stream {
            Stream::Sync(stream) => stream.seek(to),
            Stream::Async(stream) => stream.seek(to),
        };
        match u64::try_from(target) {
            Ok(target) => {
                self.players[n].pos = target;
                same("position", got.map_err(|error| error.to_string())?, target)
            }
            Err(_) => got.map_or(Ok(()), |pos| Err(format!("a position of {pos}"))),
        }
    }

    fn check(&mut self) -> Outcome {
        self.world.cache.assert_invariants();
        for (n, player) in self.players.iter().enumerate() {
            let got = match &player.stream {
                Stream::Sync(stream) => stream.tell(),
                // That of one with a write under way is known when it has ended.
                Stream::Async(_) => continue,
            };
            same(&format!("position of stream {n}"), got, player.pos)?;
        }
        Ok(())
    }

    fn end(&mut self) -> Outcome {
        self.settle(usize::MAX)?;
        for (n, player) in self.players.iter().enumerate() {
            let got = match &player.stream {
                Stream::Sync(stream) => stream.tell(),
                Stream::Async(stream) => stream.tell(),
            };
            same(&format!("last position of stream {n}"), got, player.pos)?;
        }
        same(
            "the file",
            on_disk(&self.path).to_vec(),
            self.content.clone(),
        )?;
        for n in 0..self.players.len() {
            self.play(&Op::Move(n, 0))?;
            self.play(&Op::Read(n, None))?;
        }
        Ok(())
    }
}

fn play(setting: &Setting, ops: &[Op]) -> Outcome {
    let content = (0..SPACE).map(|n| (n % 251) as u8).collect();
    let mut game = Game::new(setting.clone(), content);
    for (number, op) in ops.iter().enumerate() {
        let outcome = game.play(op).and_then(|()| game.check());
        outcome.map_err(|error| format!("operation {number}, {op:?}: {error}"))?;
    }
    game.end()
}

#[test]
fn like_a_vector_of_bytes() {
    let given = Config::default();
    let seed = match given.rng_seed {
        RngSeed::Fixed(seed) => seed,
        RngSeed::Random => RandomState::new().hash_one(0),
    };
    let config = Config {
        cases: if std::env::var_os("PROPTEST_CASES").is_some() {
            given.cases
        } else {
            2000
        },
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(seed),
        ..given
    };
    let cases = config.cases;
    let mut runner = TestRunner::new(config);
    let histories = (setting(), vec(op(), 1..60));
    let result = runner.run(&histories, |(setting, ops)| {
        play(&setting, &ops).map_err(TestCaseError::fail)
    });
    if let Err(TestError::Fail(reason, (setting, ops))) = result {
        let ops: String = ops.iter().map(|op| format!("    {op:?},\n")).collect();
        panic!(
            "{reason}\n{setting:?}\n[\n{ops}]\nrepeat with PROPTEST_RNG_SEED={seed} PROPTEST_CASES={cases}"
        );
    }
    result.expect("histories can be made");
}
