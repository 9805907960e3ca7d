//! Trees: what there is to be warmed, and warming it, by two sets of threads.
//!
//! One set walks ahead, so that it is soon known how much there is; names are taken in order, so that a second run takes
//! the same ones first. The other reads. What does not fit in the cache is decided when it is found.

use super::queue::Queue;
use super::tally::{Tally, add};
use super::{open, open_asked, why};
use crate::ask::{self, SPAN_MAX};
use crate::cache::SLOT_OVERHEAD;
use crate::span::Span;
use crossbeam_channel::{Receiver, Sender};
use indicatif::BinaryBytes;
use parking_lot::Mutex;
use std::collections::{HashMap, HashSet};
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

/// Files found and not yet read, at most: some 20 MB of names. Until there are so many the walk runs ahead.
const AHEAD_MAX: usize = 100_000;

/// Lines about single files; the rest is counted.
const COMPLAINTS_MAX: usize = 5;

/// Slots are as large as the parts that the daemon reads.
const SLOT: u64 = 128 << 10;

/// The mount that names lie on, and the room in its cache for this run.
struct Room {
    /// What was typed.
    path: PathBuf,
    dev: u64,
    /// Opened to ask the mount.
    file: File,
    /// Most bytes that the cache holds, and what plugins have pinned of them.
    about: ask::About,
    /// What is taken by files that this run has found.
    taken: AtomicU64,
    /// Files that did not fit: how many, and how much room they need.
    left_out: AtomicU64,
    left_out_bytes: AtomicU64,
}

/// A name that was found.
struct Name {
    path: PathBuf,
    room: Arc<Room>,
    /// It was typed, so what a symbolic link leads to is meant.
    is_root: bool,
}

/// A file to be read.
struct Found {
    path: PathBuf,
    size: u64,
    ino: u64,
    room: Arc<Room>,
}

/// An open file that is being read.
struct Reading {
    found: Found,
    file: File,
    tally: Arc<Tally>,
    is_failed: AtomicBool,
}

impl Drop for Reading {
    /// Its last part is done.
    fn drop(&mut self) {
        add(&self.tally.files_done, 1);
        if !self.is_failed.load(Ordering::Relaxed) {
            add(&self.tally.files_warm, 1);
        }
    }
}

enum Task {
    File(Found),
    Part(Arc<Reading>, Span),
}

/// All that is to be warmed.
pub(super) struct Tree(Arc<Work>);

struct Work {
    jobs: usize,
    names: Queue<Name>,
    tasks: Queue<Task>,
    tally: Arc<Tally>,
    rooms: Mutex<HashMap<u64, Arc<Room>>>,
    /// Files that were found, by device and number: hard links, and names below other names that were typed.
    seen: Mutex<HashSet<(u64, u64)>>,
    complaints: Mutex<(Vec<String>, usize)>,
}

impl Tree {
    /// Nothing yet; `jobs` threads will read.
    pub(super) fn new(jobs: usize, tally: Arc<Tally>) -> Tree {
        Tree(Arc::new(Work {
            jobs,
            names: Queue::fed(),
            tasks: Queue::fed(),
            tally,
            rooms: Mutex::default(),
            seen: Mutex::default(),
            complaints: Mutex::default(),
        }))
    }

    /// Begin with `paths`; what is returned is disconnected when all is done.
    pub(super) fn start(&self, paths: &[PathBuf]) -> io::Result<Receiver<()>> {
        let (working, done) = crossbeam_channel::bounded(0);
        let (walking, walked) = crossbeam_channel::bounded::<()>(0);
        // Walking asks less than reading does.
        for _ in 0..self.0.jobs.div_ceil(2) {
            self.spawn(&walking, Work::walk)?;
        }
        for _ in 0..self.0.jobs {
            self.spawn(&working, Work::read)?;
        }
        drop(walking);
        let (work, paths) = (self.0.clone(), paths.to_vec());
        thread::Builder::new().spawn(move || {
            let roots = paths.into_iter().filter_map(|path| work.root(path));
            let roots: Vec<Name> = roots.collect();
            work.names.put_first(roots.into_iter());
            work.names.leave();
            let _ = walked.recv();
            work.tally.is_walked.store(true, Ordering::Relaxed);
            work.tasks.leave();
            drop(working);
        })?;
        Ok(done)
    }

    fn spawn(&self, guard: &Sender<()>, work: impl Fn(&Work) + Send + 'static) -> io::Result<()> {
        let (tree, guard) = (self.0.clone(), guard.clone());
        thread::Builder::new().spawn(move || {
            work(&tree);
            drop(guard);
        })?;
        Ok(())
    }

    /// Everything that was found is warm.
    pub(super) fn is_all_warm(&self) -> bool {
        let rooms = self.0.rooms.lock();
        let mut rooms = rooms.values();
        self.0.complaints.lock().1 == 0
            && rooms.all(|room| room.left_out.load(Ordering::Relaxed) == 0)
    }

    /// Say what went wrong.
    pub(super) fn complain(&self) {
        let (lines, count) = &*self.0.complaints.lock();
        for line in lines {
            eprintln!("warmfs: {line}");
        }
        if *count > lines.len() {
            eprintln!("warmfs: and {} more errors", count - lines.len());
        }
        for room in self.0.rooms.lock().values() {
            if let Some(line) = room.complaint() {
                eprintln!("warmfs: {line}");
            }
        }
    }
}

impl Room {
    /// Take room for a file; false when there is not enough.
    fn take(&self, size: u64) -> bool {
        let cost = cost(size);
        let most = self.about.bytes_max.saturating_sub(self.about.bytes_pinned);
        let take = |taken: u64| taken.checked_add(cost).filter(|taken| *taken <= most);
        let order = Ordering::Relaxed;
        let is_taken = self.taken.fetch_update(order, order, take).is_ok();
        if !is_taken {
            add(&self.left_out, 1);
            add(&self.left_out_bytes, cost);
        }
        is_taken
    }

    fn complaint(&self) -> Option<String> {
        let files = self.left_out.load(Ordering::Relaxed);
        if files == 0 {
            return None;
        }
        let bytes = self.left_out_bytes.load(Ordering::Relaxed);
        let needed = self.about.bytes_pinned + self.taken.load(Ordering::Relaxed) + bytes;
        Some(format!(
            "the memory tier of {} is full ({}): {files} {} ({}) left out; mount with --memory {} to hold all of it",
            self.path.display(),
            BinaryBytes(self.about.bytes_max),
            super::files_word(files),
            BinaryBytes(bytes),
            memory_text(needed),
        ))
    }
}

/// What a file takes in the cache.
fn cost(size: u64) -> u64 {
    size.saturating_add(size.div_ceil(SLOT) * SLOT_OVERHEAD)
}

/// As `--memory` takes it, not less than `bytes`.
fn memory_text(bytes: u64) -> String {
    if bytes > 10 << 30 {
        format!("{}G", bytes.div_ceil(1 << 30))
    } else {
        format!("{}M", bytes.div_ceil(1 << 20))
    }
}

impl Work {
    fn complain(&self, path: &Path, error: &io::Error) {
        let mut complaints = self.complaints.lock();
        complaints.1 += 1;
        if complaints.0.len() < COMPLAINTS_MAX {
            complaints.0.push(why(path, error));
        }
    }

    /// A path that was typed.
    fn root(&self, path: PathBuf) -> Option<Name> {
        let asked =
            open_asked(&path).and_then(|(file, about)| Ok((file.metadata()?.dev(), file, about)));
        let (dev, file, about) = match asked {
            Ok(asked) => asked,
            Err(error) => {
                self.complain(&path, &error);
                return None;
            }
        };
        let mut rooms = self.rooms.lock();
        let room = rooms.entry(dev).or_insert_with(|| {
            Arc::new(Room {
                path: path.clone(),
                dev,
                file,
                about,
                taken: AtomicU64::new(0),
                left_out: AtomicU64::new(0),
                left_out_bytes: AtomicU64::new(0),
            })
        });
        Some(Name {
            path,
            room: room.clone(),
            is_root: true,
        })
    }

    fn walk(&self) {
        while let Some((name, _feeder)) = self.names.take() {
            match self.find(&name) {
                Err(error) if error.kind() != io::ErrorKind::NotFound || name.is_root => {
                    self.complain(&name.path, &error);
                }
                _ => {}
            }
        }
    }

    /// What is it?
    fn find(&self, name: &Name) -> io::Result<()> {
        let meta = if name.is_root {
            name.path.metadata()?
        } else {
            name.path.symlink_metadata()?
        };
        if meta.dev() != name.room.dev {
            return Ok(());
        }
        if meta.is_dir() {
            return self.list(name);
        }
        if meta.is_file() && meta.len() > 0 && self.is_new(&meta) && name.room.take(meta.len()) {
            add(&self.tally.files_found, 1);
            add(&self.tally.bytes_found, meta.len());
            let found = Found {
                path: name.path.clone(),
                size: meta.len(),
                ino: meta.ino(),
                room: name.room.clone(),
            };
            self.tasks.put_last(Task::File(found), AHEAD_MAX);
        }
        Ok(())
    }

    fn is_new(&self, meta: &Metadata) -> bool {
        self.seen.lock().insert((meta.dev(), meta.ino()))
    }

    fn list(&self, dir: &Name) -> io::Result<()> {
        let mut names = Vec::new();
        for entry in dir.path.read_dir()? {
            names.push(entry?.file_name());
        }
        names.sort_unstable();
        let below = names.iter().map(|name| Name {
            path: dir.path.join(name),
            room: dir.room.clone(),
            is_root: false,
        });
        self.names.put_first(below);
        Ok(())
    }

    fn read(&self) {
        while let Some((task, _feeder)) = self.tasks.take() {
            match task {
                Task::File(found) => self.read_file(found),
                Task::Part(reading, span) => self.read_part(&reading, span),
            }
        }
    }

    fn read_file(&self, found: Found) {
        if ask::is_held(found.room.file.as_fd(), found.ino, found.size) {
            add(&self.tally.cached, found.size);
            add(&self.tally.bytes_done, found.size);
            add(&self.tally.files_done, 1);
            add(&self.tally.files_warm, 1);
            return;
        }
        let file = match open_found(&found) {
            Ok(file) => file,
            Err(error) => {
                add(&self.tally.files_done, 1);
                add(&self.tally.bytes_done, found.size);
                // Gone since it was found: nothing to be warmed.
                if error.kind() != io::ErrorKind::NotFound {
                    self.complain(&found.path, &error);
                }
                return;
            }
        };
        let reading = Arc::new(Reading {
            found,
            file,
            tally: self.tally.clone(),
            is_failed: AtomicBool::new(false),
        });
        let whole = Span::new(0, reading.found.size);
        let parts = (0..whole.size.div_ceil(SPAN_MAX)).map(|number| {
            let part = Span::new(number * SPAN_MAX, SPAN_MAX).clip(whole.size);
            Task::Part(reading.clone(), part)
        });
        // The first one is for this thread, which comes right back.
        self.tasks.put_first(parts);
    }

    fn read_part(&self, reading: &Reading, part: Span) {
        if !reading.is_failed.load(Ordering::Relaxed) {
            match ask::warm(reading.file.as_fd(), part) {
                Ok(warmed) => {
                    add(&self.tally.cached, warmed.cached);
                    add(&self.tally.fetched, warmed.fetched);
                }
                // One line for each file.
                Err(errno) if !reading.is_failed.swap(true, Ordering::Relaxed) => {
                    self.complain(&reading.found.path, &errno.into());
                }
                Err(_) => {}
            }
        }
        add(&self.tally.bytes_done, part.size);
    }
}

/// The file that was found. Another one may have its name by now, which then is meant; but no pipe, and nothing on
/// another mount.
fn open_found(found: &Found) -> io::Result<File> {
    let file = open(&found.path)?;
    let meta = file.metadata()?;
    if meta.is_file() && meta.dev() == found.room.dev {
        Ok(file)
    } else {
        Err(io::ErrorKind::NotFound.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_that_is_asked_for_is_enough() {
        assert_eq!(memory_text(1), "1M");
        assert_eq!(memory_text((300 << 20) + 1), "301M");
        assert_eq!(memory_text((12 << 30) + 1), "13G");
    }

    #[test]
    fn a_file_is_left_out_whole_and_smaller_ones_still_fit() {
        let room = Room {
            path: "m".into(),
            dev: 1,
            file: File::open("/").expect("open"),
            about: ask::About {
                bytes_max: 1 << 20,
                bytes_pinned: 1 << 19,
            },
            taken: AtomicU64::new(0),
            left_out: AtomicU64::new(0),
            left_out_bytes: AtomicU64::new(0),
        };
        assert!(room.take(1 << 18));
        assert!(!room.take(1 << 18), "its slots cost something, too");
        assert!(room.take(1 << 17));
        assert_eq!(
            room.complaint().as_deref(),
            Some(
                "the memory tier of m is full (1.00 MiB): 1 file (256.50 KiB) left out; mount with --memory 2M to \
                 hold all of it"
            )
        );
    }
}
