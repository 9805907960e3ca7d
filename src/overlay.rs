//! What the operations of a file system mean here: names, attributes, content, with typed results. It runs
//! without FUSE, which is how most tests drive it.
//!
//! Promises:
//! * `*_known` functions answer from memory or not at all. They make no system call and wait for nothing, so
//!   a FUSE thread may call them. With [`Trust::Any`] they also give what is too old to be believed: for a
//!   source that does not answer.
//! * All other functions may wait for the source, and belong on an I/O worker. They return the source's own
//!   errno. A file that is no longer where its name was known gives `ESTALE`, upon which the kernel looks
//!   the path up once more; never a made-up `ENOENT`.
//! * Every name is resolved one component at a time below directory handles, and every handle is compared
//!   with the identity that the node stands for, before anything is done to it.
//! * An [`Entry`] that is returned holds a reference on its node, as FUSE_LOOKUP does; what is not passed on
//!   to the kernel is given back with [`Overlay::forget`].
//!
//! Locks: `inodes` is held for lookups and moves only. `renames` is taken shared around each rename, and
//! exclusively by a resolution that failed, so that it sees the table before or after a rename, not between.

mod actions;
pub mod attrs;
mod content;
mod dirs;
pub mod handles;
mod inodes;
mod names;
mod questions;
mod sweep;
mod vouching;
mod walk;
mod warm;
mod watch;

pub use crate::sys::Caller;
pub use actions::Actor;
pub use attrs::Listing;
pub use content::{How, Keep, Opened, SetAttr};
pub use dirs::{DirEntry, KeepDir, OpenedDir};
pub use inodes::{Garbage, NodeId};
pub use watch::Watching;

use crate::backing::Source;
use crate::cache::{Cache, Compared, FileId, Trust, Version};
use crate::clock::Moment;
use crate::error::{Error, Result};
use crate::file::Ahead;
use crate::hooks::Hooks;
use crate::pace::Pace;
use crate::sys::Stat;
use crate::workers::Pool;
use attrs::{Asked, Attr, Trusting};
use handles::{Handles, OpenDir, OpenFile};
use inodes::{Inodes, is_fresh};
use lru::LruCache;
use nix::errno::Errno;
use parking_lot::{Mutex, RwLock};
use questions::Questions;
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use sweep::Sweeps;
use walk::Walks;

/// How much the overlay remembers.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Nodes kept after the kernel forgot them.
    pub idle_nodes: usize,
    /// Handles for names below directories.
    pub dir_handles: NonZeroUsize,
    /// Descriptors for reading, kept for a while after the last close.
    pub read_handles: NonZeroUsize,
}

/// A name's node and attributes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// The node; one reference is held on it.
    pub node: NodeId,
    /// Differs between files that used one number one after the other.
    pub generation: u64,
    /// Attributes; `stat.ino` is the number to show.
    pub stat: Stat,
    /// For how long name and attributes may be believed.
    pub ttl: Duration,
}

/// Told when the kernel must drop what it cached of a file. Called without any lock held; must not block.
pub trait Invalidate: Send + Sync + 'static {
    /// The attributes of `node`; its content is as it was.
    fn attributes(&self, node: NodeId);
    /// The content (and attributes) of `node`.
    fn content(&self, node: NodeId);
    /// What `name` in `parent` stands for.
    fn entry(&self, parent: NodeId, name: OsString);
}

/// The file system.
pub struct Overlay {
    source: Arc<Source>,
    root: Arc<OwnedFd>,
    cache: Arc<Cache>,
    inodes: Mutex<Inodes>,
    renames: RwLock<()>,
    files: Handles<OpenFile>,
    dirs: Handles<OpenDir>,
    statfs: Mutex<Option<nix::sys::statvfs::Statvfs>>,
    invalidate: std::sync::OnceLock<Arc<dyn Invalidate>>,
    /// NFS renames a file that is removed while somebody holds it, and then the directory is not empty:
    /// there, files that a rename replaced are let go at once.
    keeps_graves: bool,
    /// The mount's own device, when it is known.
    own_device: std::sync::OnceLock<u64>,
    /// Who is told of what happens.
    hooks: std::sync::OnceLock<Arc<Hooks>>,
    /// Where requests ahead of programs are made. Without it there are none.
    background: std::sync::OnceLock<Background>,
    /// For those requests, which outlive the one that caused them.
    this: std::sync::OnceLock<Weak<Overlay>>,
    /// How long the source takes to say what a name is.
    pace: Pace,
    questions: Questions,
    /// Kinds of extended attributes that file systems of the source do not have, and since when that is known.
    no_xattrs: Mutex<HashMap<(u64, OsString), Moment>>,
    /// Of which entry of a directory an extended attribute was asked last.
    xattrs_asked: Mutex<LruCache<(NodeId, OsString), OsString>>,
    /// Tells of changes in the source. Without it they are asked for.
    notices: std::sync::OnceLock<vouching::Told>,
    sweeps: Sweeps,
    walks: Walks,
    /// Reads ahead of programs.
    ahead: std::sync::OnceLock<Arc<Ahead>>,
    /// How many names have changed: what an open file is called has to be found out again.
    names: AtomicU64,
}

/// A question about a name carries no data, and costs the source two or three short requests one after the other (each
/// directory on the way, the name, its attributes), of which one is under way at a time.
const QUESTIONS_PER_READ: usize = 2;

/// Threads for requests ahead of programs. Two pools, so that reads of large files and walks of trees do not wait for each
/// other.
struct Background {
    reads: Pool,
    questions: Pool,
}

/// How long names are held by the version of their directory, where it is not certain that the source changes a
/// directory's times with its names: long enough to save most listings, short enough for a person who waits.
const NAMES_HELD_MAX: Duration = Duration::from_secs(60);

/// How long a directory counts as flapping after a file in it was replaced between lookup and opening.
const FLAPPING_FOR: Duration = Duration::from_secs(10);

/// `NFS_SUPER_MAGIC` of statfs(2).
const NFS_MAGIC: u64 = 0x6969;

impl Overlay {
    /// The view of `source` through `cache`.
    pub fn new(source: Arc<Source>, cache: Arc<Cache>, limits: &Limits) -> Result<Overlay> {
        let root = source.open_dir(source.root()?, OsStr::new("."))?;
        let asked = Asked {
            epoch: Default::default(),
            at: cache.clock().now(),
            wall: cache.clock().wall(),
        };
        let stat = source.stat(&root, true)?;
        let trusting = Trusting {
            ttl: cache.ttl(),
            ttl_max: cache.ttl(),
            names_max: NAMES_HELD_MAX,
        };
        let keeps_graves = crate::sys::fs_magic(std::os::fd::AsFd::as_fd(&root)) != NFS_MAGIC;
        Ok(Overlay {
            source,
            root: Arc::new(root),
            inodes: Mutex::new(Inodes::new(&stat, &asked, trusting, limits)),
            cache,
            renames: RwLock::new(()),
            files: Handles::default(),
            dirs: Handles::default(),
            statfs: Mutex::new(None),
            invalidate: std::sync::OnceLock::new(),
            keeps_graves,
            own_device: std::sync::OnceLock::new(),
            hooks: std::sync::OnceLock::new(),
            background: std::sync::OnceLock::new(),
            this: std::sync::OnceLock::new(),
            pace: Pace::default(),
            questions: Questions::default(),
            no_xattrs: Mutex::default(),
            xattrs_asked: Mutex::new(LruCache::new(sweep::SWEEPS_MAX)),
            notices: std::sync::OnceLock::new(),
            sweeps: Sweeps::default(),
            walks: Walks::default(),
            ahead: std::sync::OnceLock::new(),
            names: AtomicU64::new(0),
        })
    }

    /// Who tells the kernel to drop its caches. Without one nobody does, which is right without a kernel.
    pub fn set_invalidate(&self, invalidate: Arc<dyn Invalidate>) {
        // The first one stays; a mount sets it once.
        let _ = self.invalidate.set(invalidate);
    }

    /// Attributes of files that stay as they are may be believed for so long.
    pub fn set_ttl_max(&self, ttl_max: Duration) {
        let is_local = self.is_local();
        let ttl_max = ttl_max.max(self.ttl());
        self.inodes.lock().set_trusting(Trusting {
            ttl: self.ttl(),
            ttl_max,
            names_max: if is_local {
                Duration::MAX
            } else {
                NAMES_HELD_MAX.max(ttl_max)
            },
        });
    }

    /// Make requests ahead of programs from now on, `parallel` reads at once. The first call counts; a mount makes one.
    pub fn set_background(self: &Arc<Self>, parallel: usize) {
        // One file may have nearly all of it; what hangs on one leaves something to the others.
        let pool = |threads: usize| Pool::shared_out(threads, threads - threads / 8);
        let background = Background {
            reads: pool(parallel),
            questions: pool(parallel * QUESTIONS_PER_READ),
        };
        if self.background.set(background).is_ok() {
            // Set nowhere else.
            let _ = self.this.set(Arc::downgrade(self));
        }
    }

    /// Make no more requests ahead of programs.
    pub fn close_background(&self) {
        if let Some(background) = self.background.get() {
            background.reads.close();
            background.questions.close();
        }
    }

    /// Where contents are read ahead of programs.
    pub(crate) fn background(&self) -> Option<&Pool> {
        self.background.get().map(|background| &background.reads)
    }

    /// Where names and attributes are asked for ahead of programs.
    fn asking_ahead(&self) -> Option<&Pool> {
        self.background
            .get()
            .map(|background| &background.questions)
    }

    /// Read up to `bytes` ahead of programs from now on, where requests ahead of programs are made.
    pub fn read_ahead(&self, bytes: u64) {
        if let Some(pool) = self.background() {
            let ahead = Ahead::new(&self.cache, pool.clone(), bytes);
            let _ = self.ahead.set(Arc::new(ahead));
        }
    }

    /// Files on `device` are the mount's own: refuse them with `ELOOP`.
    pub fn refuse_device(&self, device: u64) {
        // The first one stays; a mount sets it once.
        let _ = self.own_device.set(device);
    }

    /// Is the source's root on a local file system? See [`crate::sys::is_local`].
    pub fn is_local(&self) -> bool {
        crate::sys::is_local(crate::sys::fs_magic(std::os::fd::AsFd::as_fd(&self.root)))
    }

    /// The mount's own device.
    pub fn own_device(&self) -> Option<u64> {
        self.own_device.get().copied()
    }

    /// The cache below.
    pub fn cache(&self) -> &Arc<Cache> {
        &self.cache
    }

    /// The source below.
    pub fn source(&self) -> &Arc<Source> {
        &self.source
    }

    /// Open files.
    pub fn open_files(&self) -> usize {
        self.files.len()
    }

    /// Nodes in memory.
    pub fn nodes(&self) -> usize {
        self.inodes.lock().len()
    }

    fn now(&self) -> Moment {
        self.cache.clock().now()
    }

    fn ttl(&self) -> Duration {
        self.cache.ttl()
    }

    /// Before the source is asked something.
    fn question(&self) -> Asked {
        Asked {
            epoch: self.inodes.lock().epoch(),
            at: self.now(),
            wall: self.cache.clock().wall(),
        }
    }

    /// With `ttl = 0` the user wants the source's word each time: then ask the server, not its client's
    /// attribute cache. (With a ttl, too: it counts from the server's answer.)
    const FRESH: bool = true;

    /// What the source has just said to a question.
    fn answer(&self, stat: Stat, asked: &Asked) -> Attr {
        Attr::new(stat, asked, self.now())
    }

    // ---- names to nodes ----

    /// `name` in `parent`, from memory.
    pub fn lookup_known(
        &self,
        parent: NodeId,
        name: &OsStr,
        trust: Trust,
    ) -> Option<Result<Entry>> {
        let known = self.known_name(parent, name, trust)?;
        if trust == Trust::Ttl {
            self.hit(parent, name);
            self.looked(parent, name, known.as_ref().ok().map(|entry| &entry.stat));
        }
        Some(known)
    }

    /// The same for ourselves: no program has asked.
    fn known_name(&self, parent: NodeId, name: &OsStr, trust: Trust) -> Option<Result<Entry>> {
        let now = self.now();
        let mut inodes = self.inodes.lock();
        let child = inodes.get(parent)?.children.get(name)?;
        let name_left = inodes.name_left(parent, child, now);
        if trust == Trust::Ttl && name_left.is_zero() {
            return None;
        }
        let Some(id) = child.node else {
            return Some(Err(Error::new(Errno::ENOENT, "lookup")));
        };
        let node = inodes.get(id)?;
        let attr = node.attr?;
        let attr_left = attr.ttl_left(now);
        if trust == Trust::Ttl && attr_left.is_zero() {
            return None;
        }
        let entry = Entry {
            node: id,
            generation: node.generation,
            stat: shown(id, attr.stat),
            ttl: name_left.min(attr_left),
        };
        inodes.count_lookup(id);
        Some(Ok(entry))
    }

    /// How long the absence of `name` in `parent` may be believed; zero when it is not known.
    pub fn absence_ttl(&self, parent: NodeId, name: &OsStr) -> Duration {
        let now = self.now();
        let inodes = self.inodes.lock();
        inodes
            .get(parent)
            .and_then(|dir| dir.children.get(name))
            .filter(|child| child.node.is_none())
            .map_or(Duration::ZERO, |child| inodes.name_left(parent, child, now))
    }

    /// `name` in `parent`.
    pub fn lookup(&self, parent: NodeId, name: &OsStr) -> Result<Entry> {
        self.missed(parent, name);
        let answer = self.lookup_once(parent, name);
        self.looked(parent, name, answer.as_ref().ok().map(|entry| &entry.stat));
        answer
    }

    /// `name` in `parent`, asked for once, however many want to know.
    fn lookup_once(&self, parent: NodeId, name: &OsStr) -> Result<Entry> {
        let asking = self.questions.begin(parent, name);
        if asking.is_none()
            && let Some(known) = self.known_name(parent, name, Trust::Ttl)
        {
            return known;
        }
        let begun = Instant::now();
        let answer = self.lookup_source(parent, name);
        tracing::trace!(
            "lookup of {} in {}: {:?}",
            name.display(),
            parent.0,
            begun.elapsed()
        );
        self.pace.note(begun.elapsed());
        answer
    }

    fn lookup_source(&self, parent: NodeId, name: &OsStr) -> Result<Entry> {
        let dir = self.dir(parent)?;
        if self.is_flapping(parent) {
            return self.lookup_held(parent, &dir, name);
        }
        self.vouch(parent);
        let asked = self.question();
        match self.source.stat_at(&*dir, name, Self::FRESH) {
            Ok(stat) if self.own_device.get() == Some(&stat.dev) => {
                Err(Error::new(Errno::ELOOP, "lookup"))
            }
            Ok(stat) => Ok(self.learn(parent, name, stat, &asked)),
            Err(error) if error.errno() == Errno::ENOENT => {
                self.check_alive(parent, &dir)?;
                let mut inodes = self.inodes.lock();
                if !inodes.is_changed_since(parent, asked.epoch) {
                    inodes.set_child(parent, name, None, asked.at);
                } else {
                    inodes.unlearn(parent, name);
                }
                Err(error)
            }
            Err(error) => Err(error),
        }
    }

    /// Does somebody else keep replacing files in this directory?
    fn is_flapping(&self, id: NodeId) -> bool {
        let now = self.now();
        let flapped = self.inodes.lock().get(id).and_then(|dir| dir.flapped);
        self.keeps_graves && flapped.is_some_and(|then| now.since(then) < FLAPPING_FOR)
    }

    /// A lookup that takes a descriptor first and asks that: in a directory that flaps, the file may be gone from
    /// its name before the program that looked it up opens it, again and again.
    fn lookup_held(&self, parent: NodeId, dir: &Arc<OwnedFd>, name: &OsStr) -> Result<Entry> {
        let asked = self.question();
        let named = self.with_descriptor(|| self.source.name(&**dir, name))?;
        let stat = self.source.stat(&named, false)?;
        if self.own_device.get() == Some(&stat.dev) {
            return Err(Error::new(Errno::ELOOP, "lookup"));
        }
        let entry = self.learn(parent, name, stat, &asked);
        let garbage = {
            let mut inodes = self.inodes.lock();
            if stat.is_file() {
                inodes.keep_named(entry.node, Arc::new(named), asked.at);
            }
            inodes.take_garbage()
        };
        drop(garbage);
        Ok(entry)
    }

    /// Everything is absent from a directory that was removed. If that happened behind our back another may
    /// have taken its place, and the kernel should find that one: `ESTALE` makes it look.
    fn check_alive(&self, id: NodeId, dir: &Arc<OwnedFd>) -> Result<()> {
        // Removed by ourselves, or seen alive lately: nothing to find out.
        let now = self.now();
        let settled = self.inodes.lock().get(id).is_none_or(|node| {
            node.names.is_empty()
                || node
                    .proven
                    .is_some_and(|proven| is_fresh(proven, now, self.ttl()))
        });
        if settled || self.source.stat(&**dir, false)?.nlink > 0 {
            if let Some(node) = self.inodes.lock().get_mut(id) {
                node.proven = Some(now);
            }
            return Ok(());
        }
        self.inodes.lock().close_cached(id);
        Err(Error::new(Errno::ESTALE, "lookup"))
    }

    /// The source said `stat` of `name` in `parent` to a question.
    fn learn(&self, parent: NodeId, name: &OsStr, stat: Stat, asked: &Asked) -> Entry {
        let mut inodes = self.inodes.lock();
        let id = inodes.intern(&stat);
        let named = !inodes.is_changed_since(parent, asked.epoch);
        if named {
            inodes.set_child(parent, name, Some(id), asked.at);
        } else {
            inodes.unlearn(parent, name);
        }
        let stored = inodes.store_attr(id, self.answer(stat, asked), asked.epoch);
        inodes.count_lookup(id);
        let generation = inodes.get(id).map_or(0, |node| node.generation);
        let now = self.now();
        let ttl = stored.filter(|_| named).map(|attr| {
            // Attributes may be vouched for where the name is not.
            let child = inodes.get(parent).and_then(|dir| dir.children.get(name));
            let name_left = child.map_or(Duration::ZERO, |c| inodes.name_left(parent, c, now));
            let attr_left = attr.ttl_left(now);
            if attr.is_vouched() {
                attr_left.min(name_left)
            } else {
                attr_left
            }
        });
        drop(inodes);
        if let Some(attr) = &stored {
            self.confirm(id, attr);
        }
        Entry {
            node: id,
            generation,
            stat: shown(id, stat),
            ttl: ttl.unwrap_or_default(),
        }
    }

    /// New attributes of a file are also news of its content.
    fn confirm(&self, id: NodeId, attr: &Attr) {
        if !attr.stat.is_file() {
            return;
        }
        let version = Version::of(&attr.stat);
        self.cache.confirm(version, attr.checked, attr.trust());
        let wall = self.cache.clock().wall();
        let stale = {
            let mut inodes = self.inodes.lock();
            let Some(node) = inodes.get_mut(id) else {
                return;
            };
            match node.seen {
                // The kernel compares mtime and size by itself (FUSE_AUTO_INVAL_DATA). What it cannot see: a
                // change that left both as they were, and pages read within the tick of a change.
                Some((seen, racy)) => {
                    let hidden = seen != version && seen.mtime == version.mtime;
                    let settled = racy && !version.is_racy(wall);
                    if hidden || settled {
                        node.seen = Some((version, version.is_racy(wall)));
                    }
                    hidden || settled
                }
                None => false,
            }
        };
        if stale {
            self.invalidate_content(id);
        }
    }

    fn invalidate_content(&self, id: NodeId) {
        if let Some(invalidate) = self.invalidate.get() {
            invalidate.content(id);
        }
    }

    /// The kernel gives back `count` references. The descriptors returned are to be closed by a thread
    /// that may wait.
    pub fn forget(&self, id: NodeId, count: u64) -> Garbage {
        let mut inodes = self.inodes.lock();
        inodes.forget(id, count);
        inodes.take_garbage()
    }

    /// Close descriptors that were not used lately. To be called every few seconds from a worker.
    pub fn close_idle(&self, idle: Duration) {
        let garbage = {
            let mut inodes = self.inodes.lock();
            inodes.close_idle(self.now(), idle);
            inodes.take_garbage()
        };
        drop(garbage);
    }

    // ---- attributes ----

    /// Attributes from memory, and for how long they may be believed.
    pub fn getattr_known(&self, id: NodeId, trust: Trust) -> Option<(Stat, Duration)> {
        let now = self.now();
        let inodes = self.inodes.lock();
        let attr = inodes.get(id)?.attr?;
        let left = attr.ttl_left(now);
        if trust == Trust::Ttl && left.is_zero() {
            return None;
        }
        Some((shown(id, attr.stat), left))
    }

    /// Attributes from the source, and for how long they may be believed.
    pub fn getattr(&self, id: NodeId) -> Result<(Stat, Duration)> {
        if let Some((parent, name)) = self.name_of(id) {
            self.missed(parent, &name);
        }
        let asked = self.question();
        let stat = self.stat_node(id)?;
        let stored = self
            .inodes
            .lock()
            .store_attr(id, self.answer(stat, &asked), asked.epoch);
        let ttl = match &stored {
            Some(attr) => {
                self.confirm(id, attr);
                attr.ttl_left(self.now())
            }
            None => Duration::ZERO,
        };
        Ok((shown(id, stat), ttl))
    }

    // ---- nodes to the source ----

    /// Run `open`, which needs a descriptor; when none is left, give up those that only save time, and try
    /// once more.
    fn with_descriptor<T>(&self, open: impl Fn() -> Result<T>) -> Result<T> {
        match open() {
            Err(error) if error.errno() == Errno::ENFILE => {
                let garbage = {
                    let mut inodes = self.inodes.lock();
                    inodes.close_all_cached();
                    inodes.take_garbage()
                };
                drop(garbage);
                open()
            }
            other => other,
        }
    }

    /// Run `resolve`; when it finds names missing or wrong, wait until no rename is under way and try once
    /// more. What is still not there is stale: the kernel's path lookup starts again.
    fn settled<T>(&self, resolve: impl Fn() -> Result<T>) -> Result<T> {
        match resolve() {
            Err(error) if is_misplaced(error) => {
                let _no_rename = self.renames.write();
                resolve().map_err(|error| {
                    if is_misplaced(error) {
                        Error::new(Errno::ESTALE, "resolve")
                    } else {
                        error
                    }
                })
            }
            other => other,
        }
    }

    /// A handle for names below the directory `id`.
    fn dir(&self, id: NodeId) -> Result<Arc<OwnedFd>> {
        self.with_descriptor(|| self.settled(|| self.try_dir(id)))
    }

    fn try_dir(&self, id: NodeId) -> Result<Arc<OwnedFd>> {
        let mut chain: Vec<(NodeId, FileId, OsString)> = Vec::new();
        let mut at = id;
        let mut handle = {
            let mut inodes = self.inodes.lock();
            loop {
                if at == NodeId::ROOT {
                    break self.root.clone();
                }
                if let Some(handle) = inodes.dir(at) {
                    break handle;
                }
                let node = inodes.get(at).ok_or(STALE)?;
                let Some((parent, name)) = node.names.first() else {
                    break node.grave.clone().ok_or(STALE)?;
                };
                chain.push((at, node.file, name.clone()));
                at = *parent;
            }
        };
        for (id, file, name) in chain.into_iter().rev() {
            let opened = Arc::new(self.source.open_dir(&*handle, &name)?);
            let stat = self.source.stat(&*opened, false)?;
            let mut inodes = self.inodes.lock();
            if !inodes.is_same_file(id, &stat) {
                return Err(STALE);
            }
            inodes.keep_dir(id, file, opened.clone());
            let garbage = inodes.take_garbage();
            drop(inodes);
            drop(garbage);
            handle = opened;
        }
        Ok(handle)
    }

    /// Do something under a name of the file `id`, whichever still leads to it. When none does, its names are
    /// forgotten, so that the kernel's next lookup asks the source.
    fn at_name<T>(&self, id: NodeId, f: impl Fn(&Arc<OwnedFd>, &OsStr) -> Result<T>) -> Result<T> {
        let result = self.with_descriptor(|| self.settled(|| self.try_names(id, &f)));
        if let Err(error) = &result
            && error.errno() == Errno::ESTALE
        {
            let now = self.now();
            self.inodes.lock().forget_names(id, now);
        }
        result
    }

    /// Try `f` with each name that the file is known under, in turn, until one leads to the file.
    fn try_names<T>(
        &self,
        id: NodeId,
        f: impl Fn(&Arc<OwnedFd>, &OsStr) -> Result<T>,
    ) -> Result<T> {
        let names = match self.inodes.lock().get(id) {
            Some(node) => node.names.clone(),
            None => return Err(STALE),
        };
        let mut last = STALE;
        for (parent, name) in &names {
            match self.try_dir(*parent).and_then(|dir| f(&dir, name)) {
                Err(error) if is_misplaced(error) => last = error,
                other => return other,
            }
        }
        Err(last)
    }

    /// A descriptor that needs no name: of an open file, or kept for one that a rename replaced.
    fn held(&self, id: NodeId) -> Option<Arc<OwnedFd>> {
        let mut inodes = self.inodes.lock();
        let node = inodes.get(id)?;
        let held = node.held();
        held.or_else(|| inodes.named(id))
    }

    fn is_dir(&self, id: NodeId) -> bool {
        self.inodes
            .lock()
            .get(id)
            .is_some_and(|node| node.kind == crate::sys::S_IFDIR)
    }

    fn stat_node(&self, id: NodeId) -> Result<Stat> {
        if let Some(held) = self.held(id) {
            return self.source.stat(&*held, Self::FRESH);
        }
        if self.is_dir(id) {
            return self.source.stat(&*self.dir(id)?, Self::FRESH);
        }
        self.at_name(id, |dir, name| {
            let stat = self.source.stat_at(&**dir, name, Self::FRESH)?;
            self.same_file(id, &stat).map(|()| stat)
        })
    }

    /// A descriptor that names the file, for everything but its content.
    fn named(&self, id: NodeId) -> Result<Arc<OwnedFd>> {
        if let Some(held) = self.held(id) {
            return Ok(held);
        }
        if self.is_dir(id) {
            return self.dir(id);
        }
        self.at_name(id, |dir, name| {
            let named = self.source.name(&**dir, name)?;
            let stat = self.source.stat(&named, false)?;
            self.same_file(id, &stat).map(|()| Arc::new(named))
        })
    }

    fn same_file(&self, id: NodeId, stat: &Stat) -> Result<()> {
        if self.inodes.lock().is_same_file(id, stat) {
            Ok(())
        } else {
            Err(STALE)
        }
    }

    /// Do something to the file `id` that changes its attributes but not its bytes (chmod, rename, link ...):
    /// its slots stay warm under the version that it has afterwards.
    fn changing_attributes<T>(&self, id: NodeId, f: impl FnOnce() -> Result<T>) -> Result<T> {
        let file = self.inodes.lock().get(id).map(|node| node.file);
        let warm = file.filter(|file| self.cache.holds(*file));
        let before = match warm {
            Some(_) => self.stat_node(id).ok().map(|stat| Version::of(&stat)),
            None => None,
        };
        let begun = self.inodes.lock().begin_change(id);
        let result = f();
        let mut attr = None;
        if let Some(before) = before
            && result.is_ok()
        {
            let asked = self.question();
            if let Ok(stat) = self.stat_node(id) {
                self.cache.restamp(before, Version::of(&stat));
                self.see(id, &stat);
                attr = Some(self.answer(stat, &asked));
            }
        }
        self.inodes.lock().end_change(id, begun, attr);
        result
    }

    /// After a change of ours: the kernel's pages, which it kept up to date itself, belong to this version.
    fn see(&self, id: NodeId, stat: &Stat) {
        let mut inodes = self.inodes.lock();
        if let Some(node) = inodes.get_mut(id)
            && let Some((version, _)) = &mut node.seen
        {
            *version = Version::of(stat);
        }
    }

    /// Compare outcome of an open file: tell the kernel when somebody changed it.
    fn note_compared(&self, id: NodeId, compared: Compared) {
        if compared == Compared::Changed {
            self.invalidate_content(id);
        }
    }
}

const STALE: Error = Error::new(Errno::ESTALE, "resolve");

/// The name leads nowhere or elsewhere: the file may have moved.
fn is_misplaced(error: Error) -> bool {
    matches!(
        error.errno(),
        Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::ESTALE
    )
}

/// The attributes with the inode number that programs see.
fn shown(id: NodeId, mut stat: Stat) -> Stat {
    if id != NodeId::ROOT {
        stat.ino = id.0;
    }
    stat
}
