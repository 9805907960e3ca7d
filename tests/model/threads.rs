//! Several threads on a few files: what a read returns is never older than the writes that returned before it began.
//!
//! Each file begins with one block for each patching thread, which that thread writes over and over with a growing
//! number; behind them blocks are added. So every word of a file says which write it is from. Meanwhile the files
//! change their names and modes, and are evicted.

use crate::plain::Code;
use crate::view::{TTL, View, caller};
use libc::{O_EXCL, O_RDONLY, O_RDWR};
use nix::errno::Errno;
use std::ffi::OsStr;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;
use warmfs::backing::{Call, Intercept};
use warmfs::overlay::{How, NodeId, SetAttr};
use warmfs::span::Span;

const FILES: usize = 3;
const PATCHERS: usize = 2;
const BLOCK: u64 = 64;
/// Where blocks are added.
const TAIL: u64 = PATCHERS as u64 * BLOCK;
/// Rounds of each thread; WARMFS_ROUNDS says more.
const ROUNDS: u64 = 1500;

/// Nobody needs so long, also on a busy machine.
const HANGS: Duration = Duration::from_secs(120);

/// Numbers of the writes to one file.
#[derive(Default)]
struct Progress {
    begun: [AtomicU64; PATCHERS],
    returned: [AtomicU64; PATCHERS],
    /// Blocks that were added.
    added: AtomicU64,
}

/// What was true of every file when a read began.
type Floors = [([u64; PATCHERS], u64); FILES];

struct Shared {
    view: View,
    /// Where names come and go.
    dir: NodeId,
    nodes: [NodeId; FILES],
    handles: [u64; FILES],
    progress: [Progress; FILES],
    over: AtomicBool,
}

/// Lets others go on between a call on the source and what is made of its answer: there it matters most.
struct Yield(AtomicU64);

impl Intercept for Yield {
    fn before(&self, _: Call) -> nix::Result<()> {
        Ok(())
    }

    fn after(&self, _: Call) {
        for _ in 0..self.0.fetch_add(1, SeqCst) % 4 {
            std::thread::yield_now();
        }
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        // Constants of Knuth's MMIX; the low bits of such numbers are poor.
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// A block whose every word says where it is from.
fn block(file: usize, part: usize, number: u64) -> Vec<u8> {
    let word = (file as u64) << 56 | (part as u64) << 48 | number;
    word.to_be_bytes().repeat(BLOCK as usize / 8)
}

impl Shared {
    fn floors(&self) -> Floors {
        self.progress.each_ref().map(|progress| {
            let returned = progress
                .returned
                .each_ref()
                .map(|number| number.load(SeqCst));
            (returned, progress.added.load(SeqCst))
        })
    }

    fn patch(&self, part: usize, random: &mut Random) {
        let file = random.below(FILES as u64) as usize;
        let progress = &self.progress[file];
        let number = progress.begun[part].fetch_add(1, SeqCst) + 1;
        let data = block(file, part, number).into();
        let how = How::default();
        let put = self
            .view
            .overlay
            .write(self.handles[file], part as u64 * BLOCK, data, how);
        assert_eq!(put, Ok(BLOCK as usize));
        progress.returned[part].store(number, SeqCst);
    }

    fn add(&self, random: &mut Random) {
        let file = random.below(FILES as u64) as usize;
        let number = self.progress[file].added.load(SeqCst);
        let data = block(file, PATCHERS, number).into();
        let how = How {
            append: random.below(2) == 0,
            clear_setid: false,
        };
        let put = self
            .view
            .overlay
            .write(self.handles[file], TAIL + number * BLOCK, data, how);
        assert_eq!(put, Ok(BLOCK as usize));
        self.progress[file].added.store(number + 1, SeqCst);
        let stat = self.view.getattr(self.nodes[file]).expect("getattr");
        assert_eq!(
            stat.size,
            TAIL + (number + 1) * BLOCK,
            "size of file {file}"
        );
    }

    fn read(&self, random: &mut Random) {
        let floors = self.floors();
        if random.below(2) == 0 {
            let file = random.below(FILES as u64) as usize;
            return self.read_handle(self.handles[file], Some(file), &floors, random);
        }
        // By name, whatever file has it now.
        let name = random.below(FILES as u64);
        let mut tried = 0;
        let opened = loop {
            let entry = match self.view.lookup(NodeId::ROOT, format!("f{name}").as_ref()) {
                Err(Code(Errno::ENOENT)) => return,
                other => other.expect("lookup"),
            };
            match self.view.open(entry.node, O_RDONLY) {
                Err(Code(Errno::ESTALE)) if tried == 0 => tried += 1,
                opened => break (entry, opened.expect("open")),
            }
            drop(self.view.overlay.forget(entry.node, 1));
        };
        self.read_handle(opened.1, None, &floors, random);
        drop(self.view.overlay.release(opened.1));
        drop(self.view.overlay.forget(opened.0.node, 1));
    }

    /// `file`: which one it is, when the reader knows.
    fn read_handle(&self, handle: u64, file: Option<usize>, floors: &Floors, random: &mut Random) {
        let from_start = file.is_none() || random.below(2) == 0;
        let pos = if from_start {
            0
        } else {
            random.below(TAIL / 8 + 16) * 8
        };
        let span = Span::new(pos, (1 + random.below(40)) * 8);
        let bytes = self.view.read(handle, span).expect("read");
        let word = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        let file = file.unwrap_or_else(|| (word(0) >> 56) as usize);
        let (returned, added) = &floors[file];
        let due = span.clip(TAIL + added * BLOCK).size;
        assert!(
            bytes.len() as u64 >= due,
            "{} bytes at {span:?} of file {file}, not {due}",
            bytes.len()
        );
        for at in (0..bytes.len()).step_by(8) {
            let part = ((span.pos + at as u64) / BLOCK) as usize;
            let number = word(at) & 0xffff_ffff_ffff;
            assert_eq!(
                word(at) >> 48,
                (file << 8 | part.min(PATCHERS)) as u64,
                "file and part"
            );
            if part < PATCHERS {
                let begun = self.progress[file].begun[part].load(SeqCst);
                let allowed = returned[part]..=begun;
                assert!(
                    allowed.contains(&number),
                    "write {number}, not {allowed:?}, of file {file}"
                );
            } else {
                assert_eq!(number, (part - PATCHERS) as u64, "block of file {file}");
            }
        }
    }

    /// Names in one directory come and go, and each of them is known at once.
    fn name(&self, thread: u64, random: &mut Random) {
        let overlay = &self.view.overlay;
        let (dir, number) = (self.dir, random.below(2));
        let names = ["a", "b"].map(|name| format!("{name}{thread}{number}"));
        let [first, second] = names.each_ref().map(OsStr::new);
        let made = overlay.create(caller(), dir, first, (0o600, 0), O_RDWR | O_EXCL);
        let (entry, opened) = made.expect("create");
        drop(overlay.release(opened.handle));
        self.assert_named(first, Some(entry.node));
        overlay
            .rename((dir, first), (dir, second), 0)
            .expect("rename");
        self.assert_named(first, None);
        self.assert_named(second, Some(entry.node));
        overlay.unlink(dir, second).expect("unlink");
        self.assert_named(second, None);
        drop(overlay.forget(entry.node, 1));
    }

    fn assert_named(&self, name: &OsStr, node: Option<NodeId>) {
        let found = self.view.lookup(self.dir, name).map(|entry| {
            drop(self.view.overlay.forget(entry.node, 1));
            entry.node
        });
        assert_eq!(found, node.ok_or(Code(Errno::ENOENT)), "{name:?}");
        let listed = self.view.list("d", false).expect("list");
        let is_listed = listed.contains_key(name.to_str().expect("ASCII"));
        assert_eq!(is_listed, node.is_some(), "{name:?} in the list");
    }

    /// Somebody looks at those names, so that what he saw may be remembered too long.
    fn watch(&self, random: &mut Random) {
        let name = format!(
            "{}{}{}",
            ["a", "b"][random.below(2) as usize],
            random.below(2),
            random.below(2)
        );
        match random.below(4) {
            0 => drop(self.view.list("d", true)),
            _ => {
                if let Ok(entry) = self.view.lookup(self.dir, name.as_ref()) {
                    drop(self.view.overlay.forget(entry.node, 1));
                }
            }
        }
    }

    /// Names, modes, memory and time move.
    fn disturb(&self, random: &mut Random) {
        let overlay = &self.view.overlay;
        let (from, to) = (random.below(FILES as u64), random.below(FILES as u64));
        let (from, to) = (format!("f{from}"), format!("f{to}"));
        let file = random.below(FILES as u64) as usize;
        match random.below(8) {
            0..3 if from != to => {
                let exchanged = overlay.rename(
                    (NodeId::ROOT, from.as_ref()),
                    (NodeId::ROOT, to.as_ref()),
                    2,
                );
                exchanged.expect("exchange");
            }
            3 => {
                let aside = "aside".as_ref();
                overlay
                    .rename((NodeId::ROOT, from.as_ref()), (NodeId::ROOT, aside), 0)
                    .expect("rename");
                overlay
                    .rename((NodeId::ROOT, aside), (NodeId::ROOT, from.as_ref()), 0)
                    .expect("rename");
            }
            4 => {
                let set = SetAttr {
                    mode: Some(0o600 | random.below(64) as u32),
                    ..SetAttr::default()
                };
                overlay
                    .setattr(caller(), self.nodes[file], None, &set)
                    .expect("chmod");
            }
            5 => self.view.clock.advance(TTL / 3),
            6 => overlay.close_idle(TTL),
            _ => {}
        }
    }
}

#[test]
fn no_read_is_older_than_a_write_that_has_returned() {
    let rounds = std::env::var("WARMFS_ROUNDS")
        .ok()
        .and_then(|rounds| rounds.parse().ok())
        .unwrap_or(ROUNDS);
    let seed = RandomState::new().hash_one(0);
    println!("seed {seed}; the threads of each run meet differently");
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let view = View::with(dir.path(), Some(Arc::new(Yield(AtomicU64::new(0)))));
    let mut handles = [0; FILES];
    let nodes: [NodeId; FILES] = std::array::from_fn(|file| {
        let name = format!("f{file}");
        let made = view
            .overlay
            .create(caller(), NodeId::ROOT, name.as_ref(), (0o600, 0), O_RDWR);
        let (entry, opened) = made.expect("create");
        handles[file] = opened.handle;
        for part in 0..PATCHERS {
            let data = block(file, part, 0).into();
            view.overlay
                .write(opened.handle, part as u64 * BLOCK, data, How::default())
                .expect("write");
        }
        entry.node
    });
    let dir = view
        .overlay
        .mkdir(caller(), NodeId::ROOT, "d".as_ref(), (0o700, 0))
        .expect("mkdir")
        .node;
    let progress = Default::default();
    let shared = Shared {
        view,
        dir,
        nodes,
        handles,
        progress,
        over: AtomicBool::new(false),
    };
    let run = |number: u64, act: &dyn Fn(&mut Random)| {
        let mut random = Random(seed.wrapping_add(number));
        for _ in 0..rounds {
            if shared.over.load(SeqCst) {
                return;
            }
            // A thread that fails ends the others, too.
            let result =
                std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| act(&mut random)));
            if let Err(failure) = result {
                shared.over.store(true, SeqCst);
                std::panic::resume_unwind(failure);
            }
        }
    };
    let (at_work, watched) = mpsc::channel::<()>();
    std::thread::spawn(move || {
        if watched.recv_timeout(HANGS) == Err(RecvTimeoutError::Timeout) {
            eprintln!(
                "the threads wait for each other (seed {seed}); look at them with a debugger"
            );
            std::process::abort();
        }
    });
    std::thread::scope(|scope| {
        let (shared, run) = (&shared, &run);
        scope.spawn(move || run(0, &|random| shared.patch(0, random)));
        scope.spawn(move || run(1, &|random| shared.patch(1, random)));
        scope.spawn(move || run(2, &|random| shared.add(random)));
        scope.spawn(move || run(3, &|random| shared.read(random)));
        scope.spawn(move || run(4, &|random| shared.read(random)));
        scope.spawn(move || run(5, &|random| shared.disturb(random)));
        scope.spawn(move || run(6, &|random| shared.name(0, random)));
        scope.spawn(move || run(7, &|random| shared.name(1, random)));
        scope.spawn(move || run(8, &|random| shared.watch(random)));
    });
    drop(at_work);
    shared.view.overlay.cache().assert_invariants();
    let floors = shared.floors();
    for (file, handle) in handles.into_iter().enumerate() {
        shared.read_handle(handle, Some(file), &floors, &mut Random(seed));
    }
}
