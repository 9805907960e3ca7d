//! The subject: the operations done on an [`Overlay`] as the kernel does them, from path to path component, asking
//! memory first as the FUSE face does, and looking a path up once more upon `ESTALE`.

use crate::ops::{NOWHERE, Op, Place, SLOTS, bytes};
use crate::plain::{Answer, Attr, Value, allows, xattr};
use nix::errno::Errno;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use warmfs::backing::Source;
use warmfs::cache::{Cache, SLOT_OVERHEAD, Trust};
use warmfs::clock::Clock;
use warmfs::overlay::{Caller, DirEntry, Entry, How, Limits, NodeId, Opened, Overlay, SetAttr};
use warmfs::span::Span;
use warmfs::stats::Stats;
use warmfs::sys::{self, SetTime, Stat, Time};

pub(crate) const TTL: Duration = Duration::from_secs(1);
const IDLE_NODES: usize = 8;

/// References on nodes, as the kernel holds them; given back when dropped.
struct Refs(Arc<Overlay>, Vec<NodeId>);

impl Drop for Refs {
    fn drop(&mut self) {
        for &node in self.1.iter().rev() {
            drop(self.0.forget(node, 1));
        }
    }
}

struct Open {
    /// An open file keeps its path.
    path: Refs,
    handle: u64,
    flags: i32,
}

impl Open {
    fn node(&self) -> NodeId {
        *self.path.1.last().expect("a path to a file is not empty")
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        drop(self.path.0.release(self.handle));
    }
}

/// An overlay of small limits: everything is evicted all the time.
pub(crate) struct View {
    root: PathBuf,
    pub(crate) overlay: Arc<Overlay>,
    pub(crate) clock: Clock,
    slots: [Option<Open>; SLOTS],
}

pub(crate) fn caller() -> Caller {
    Caller {
        uid: nix::unistd::geteuid().as_raw(),
        gid: nix::unistd::getegid().as_raw(),
        pid: 0,
    }
}

fn code(error: warmfs::error::Error) -> Errno {
    error.errno()
}

/// The path of the directory, and the name in it.
fn split(place: Place) -> (Place, &'static OsStr) {
    let (parent, name) = place.rsplit_once('/').unwrap_or(("", place));
    (parent, OsStr::new(name))
}

impl View {
    pub(crate) fn new(root: &Path) -> View {
        // An hour ahead of all files: what is cached is never racy.
        let clock = Clock::manual(SystemTime::now() + Duration::from_secs(3600));
        let stats = Arc::new(Stats::default());
        let source = Source::open(root, None, stats.clone()).expect("the source opens");
        let memory = 4 * (SLOT_OVERHEAD + 64);
        let cache = Arc::new(Cache::new(memory, TTL, clock.clone(), stats));
        let two = NonZeroUsize::new(2).expect("not zero");
        let limits = Limits {
            idle_nodes: IDLE_NODES,
            dir_handles: two,
            read_handles: two,
        };
        let overlay = Overlay::new(Arc::new(source), cache, &limits).expect("the root opens");
        View {
            root: root.to_owned(),
            overlay: Arc::new(overlay),
            clock,
            slots: Default::default(),
        }
    }

    pub(crate) fn lookup(&self, parent: NodeId, name: &OsStr) -> Result<Entry, Errno> {
        let known = self.overlay.lookup_known(parent, name, Trust::Ttl);
        known
            .unwrap_or_else(|| self.overlay.lookup(parent, name))
            .map_err(code)
    }

    /// Look up a path; the last entry, if it is not the root's.
    fn walk(&self, place: Place) -> Result<(Refs, Option<Entry>), Errno> {
        let mut refs = Refs(self.overlay.clone(), Vec::new());
        let mut last: Option<Entry> = None;
        for name in place.split('/').filter(|name| !name.is_empty()) {
            let parent = match last {
                None => NodeId::ROOT,
                Some(entry) if entry.stat.is_dir() => entry.node,
                Some(entry) if entry.stat.kind() == libc::S_IFLNK => return Err(Errno::ENOENT),
                Some(_) => return Err(Errno::ENOTDIR),
            };
            let entry = self.lookup(parent, OsStr::new(name))?;
            refs.1.push(entry.node);
            last = Some(entry);
        }
        Ok((refs, last))
    }

    /// Look up the directory of a path, and the name in it.
    fn walk_parent(
        &self,
        place: Place,
    ) -> Result<(Refs, NodeId, &'static OsStr, Option<Entry>), Errno> {
        let (parent, name) = split(place);
        let (mut refs, dir) = self.walk(parent)?;
        let node = match dir {
            None => NodeId::ROOT,
            Some(entry) if entry.stat.is_dir() => entry.node,
            Some(entry) if entry.stat.kind() == libc::S_IFLNK => return Err(Errno::ENOENT),
            Some(_) => return Err(Errno::ENOTDIR),
        };
        match self.lookup(node, name) {
            Ok(entry) => {
                refs.1.push(entry.node);
                Ok((refs, node, name, Some(entry)))
            }
            Err(Errno::ENOENT) => Ok((refs, node, name, None)),
            Err(errno) => Err(errno),
        }
    }

    fn node(&self, place: Place) -> Result<(Refs, NodeId), Errno> {
        let (refs, entry) = self.walk(place)?;
        Ok((refs, entry.map_or(NodeId::ROOT, |entry| entry.node)))
    }

    /// What is there and is no symbolic link, which the kernel would follow.
    fn no_link(&self, place: Place) -> Result<(Refs, NodeId, Option<Entry>), Errno> {
        let (refs, entry) = self.walk(place)?;
        match entry {
            Some(entry) if entry.stat.kind() == libc::S_IFLNK => Err(Errno::ELOOP),
            _ => Ok((refs, entry.map_or(NodeId::ROOT, |entry| entry.node), entry)),
        }
    }

    pub(crate) fn getattr(&self, node: NodeId) -> Result<Stat, Errno> {
        let known = self.overlay.getattr_known(node, Trust::Ttl).map(Ok);
        let (stat, _) = known
            .unwrap_or_else(|| self.overlay.getattr(node))
            .map_err(code)?;
        Ok(stat)
    }

    /// What a program sees of `stat`, and what is wrong with it compared with the source itself.
    fn attr(&self, stat: &Stat, place: Option<&Path>) -> Attr {
        let mut attr = Attr::new(stat.mode, stat.nlink, stat.size, stat.mtime.secs);
        if let Some(place) = place {
            let dir = sys::open_root(&self.root).expect("the source is there");
            let real = sys::stat_at(std::os::fd::AsFd::as_fd(&dir), place.as_os_str(), false).ok();
            // Reading moves atime, writing back moves blocks.
            let seen = Stat {
                atime: Time::default(),
                blocks: 0,
                ..*stat
            };
            let real = real.map(|real| Stat {
                atime: Time::default(),
                blocks: 0,
                ..real
            });
            let is_root = place.as_os_str().is_empty();
            if !is_root && real != Some(seen) {
                attr.wrong = Some(format!("shown {seen:?}, but is {real:?}"));
            }
        }
        attr
    }

    pub(crate) fn open(&self, node: NodeId, flags: i32) -> Result<Opened, Errno> {
        // The kernel truncates by itself, after the opening.
        let flags = flags & !(libc::O_TRUNC | libc::O_CREAT | libc::O_EXCL);
        let known = self.overlay.open_known(node, flags, Trust::Ttl).map(Ok);
        known
            .unwrap_or_else(|| self.overlay.open(caller(), node, flags))
            .map_err(code)
    }

    fn open_path(&self, place: Place, flags: i32) -> Result<Open, Errno> {
        let (mut path, parent, name, entry) = self.walk_parent(place)?;
        let creates = flags & libc::O_CREAT != 0;
        let Some(entry) = entry else {
            if !creates {
                return Err(Errno::ENOENT);
            }
            let created = self
                .overlay
                .create(caller(), parent, name, (0o644, 0), flags)
                .map_err(code)?;
            path.1.push(created.0.node);
            return Ok(Open {
                path,
                handle: created.1.handle,
                flags,
            });
        };
        match entry.stat.kind() {
            _ if creates && flags & libc::O_EXCL != 0 => return Err(Errno::EEXIST),
            libc::S_IFREG => {}
            libc::S_IFLNK => return Err(Errno::ELOOP),
            libc::S_IFDIR => return Err(Errno::EISDIR),
            _ => return Err(Errno::ENXIO),
        }
        let opened = self.open(entry.node, flags)?;
        let open = Open {
            path,
            handle: opened.handle,
            flags,
        };
        if flags & libc::O_TRUNC != 0 {
            self.cut(entry.node, None, 0)?;
        }
        Ok(open)
    }

    fn cut(&self, node: NodeId, handle: Option<u64>, size: u64) -> Result<(), Errno> {
        let set = SetAttr {
            size: Some(size),
            ..SetAttr::default()
        };
        let (stat, _) = self
            .overlay
            .setattr(caller(), node, handle, &set)
            .map_err(code)?;
        assert_eq!(stat.size, size, "size after truncate");
        Ok(())
    }

    fn slot(&self, slot: usize, writing: bool) -> Result<&Open, Errno> {
        match &self.slots[slot] {
            Some(open) if allows(open.flags, writing) => Ok(open),
            _ => Err(Errno::EBADF),
        }
    }

    pub(crate) fn read(&self, handle: u64, span: Span) -> Result<Vec<u8>, Errno> {
        let known = self.overlay.read_known(handle, span, Trust::Ttl).map(Ok);
        let bytes = known
            .unwrap_or_else(|| self.overlay.read(handle, span))
            .map_err(code)?;
        Ok(bytes.to_vec())
    }

    fn write(&self, open: &Open, pos: u64, data: Vec<u8>) -> Answer {
        let append = open.flags & libc::O_APPEND != 0;
        let pos = if append {
            self.getattr(open.node())?.size
        } else {
            pos
        };
        let how = How {
            append,
            clear_setid: false,
        };
        self.overlay
            .write(open.handle, pos, data.into(), how)
            .map(Value::Count)
            .map_err(code)
    }

    /// Everything in a directory, in batches as the kernel asks for it.
    fn list(
        &self,
        place: Place,
        plus: bool,
    ) -> Result<BTreeMap<String, (DirEntry, Option<Attr>)>, Errno> {
        let (_refs, node, entry) = self.no_link(place)?;
        if entry.is_some_and(|entry| !entry.stat.is_dir()) {
            return Err(Errno::ENOTDIR);
        }
        let known = self.overlay.opendir_known(node, Trust::Ttl).map(Ok);
        let handle = known
            .unwrap_or_else(|| self.overlay.opendir(node))
            .map_err(code)?;
        let (mut found, mut from) = (BTreeMap::new(), 0);
        loop {
            let known = self
                .overlay
                .readdir_known(handle, from, plus, Trust::Ttl)
                .map(Ok);
            let batch = known
                .unwrap_or_else(|| self.overlay.readdir(handle, from, plus))
                .map_err(code)?;
            let Some(last) = batch.last() else { break };
            from = last.next;
            for entry in &batch {
                if entry.name == "." || entry.name == ".." {
                    continue;
                }
                let path = Path::new(place).join(&entry.name);
                let attr = entry.entry.map(|e| self.attr(&e.stat, Some(&path)));
                let name = entry.name.clone().into_string().expect("names are ASCII");
                assert!(
                    found.insert(name, (entry.clone(), attr)).is_none(),
                    "listed twice"
                );
            }
            self.overlay.put_back(batch);
        }
        self.overlay.releasedir(handle);
        Ok(found)
    }

    /// Set what is there; a symbolic link only where the kernel does not follow.
    fn set(&self, node: NodeId, set: &SetAttr) -> Answer {
        self.overlay
            .setattr(caller(), node, None, set)
            .map(|_| Value::Nothing)
            .map_err(code)
    }

    pub(crate) fn apply(&mut self, op: &Op) -> Answer {
        match self.attempt(op) {
            Err(Errno::ESTALE) => self.attempt(op),
            other => other,
        }
    }

    fn attempt(&mut self, op: &Op) -> Answer {
        let (overlay, done) = (self.overlay.clone(), |()| Value::Nothing);
        match *op {
            Op::Open(slot, place, flags) => {
                self.slots[slot] = None;
                self.slots[slot] = Some(self.open_path(place, flags)?);
                Ok(Value::Nothing)
            }
            Op::Close(slot) => {
                let open = self.slots[slot].take().ok_or(Errno::EBADF)?;
                overlay.flush(open.handle).map(done).map_err(code)
            }
            Op::Read(slot, (pos, size)) => self
                .read(self.slot(slot, false)?.handle, Span::new(pos, size))
                .map(Value::Bytes),
            Op::Write(slot, (pos, size), seed) => {
                self.write(self.slot(slot, true)?, pos, bytes(size, seed))
            }
            Op::Cut(slot, size) => match self.slot(slot, true) {
                Ok(open) => self.cut(open.node(), Some(open.handle), size).map(done),
                Err(_) => Err(Errno::EINVAL),
            },
            Op::Allocate(slot, mode, (pos, size)) => {
                let handle = self.slot(slot, true)?.handle;
                overlay
                    .allocate(caller(), handle, mode, pos, size)
                    .map(done)
                    .map_err(code)
            }
            Op::Copy(from, (from_pos, size), to, to_pos) => {
                let (from, to) = (self.slot(from, false)?.handle, self.slot(to, true)?);
                if to.flags & libc::O_APPEND != 0 {
                    return Err(Errno::EBADF);
                }
                let copied = overlay.copy(caller(), (from, from_pos), (to.handle, to_pos), size);
                copied.map(Value::Count).map_err(code)
            }
            Op::StatOpen(slot) => {
                let open = self.slots[slot].as_ref().ok_or(Errno::EBADF)?;
                self.getattr(open.node())
                    .map(|stat| Value::Attr(self.attr(&stat, None)))
            }
            Op::Stat(place) => {
                let (_refs, node) = self.node(place)?;
                let stat = self.getattr(node)?;
                Ok(Value::Attr(self.attr(&stat, Some(Path::new(place)))))
            }
            Op::List(place) => {
                let found = self.list(place, false)?.into_iter();
                Ok(Value::Names(
                    found.map(|(name, (entry, _))| (name, entry.kind)).collect(),
                ))
            }
            Op::ListPlus(place) => {
                let found = self.list(place, true)?.into_iter();
                let attr = |attr: Option<Attr>| attr.expect("it was asked for");
                Ok(Value::Attrs(
                    found.map(|(name, (_, a))| (name, attr(a))).collect(),
                ))
            }
            Op::Put(place, (pos, size), seed) => {
                let open = self.open_path(place, libc::O_WRONLY | libc::O_CREAT)?;
                self.write(&open, pos, bytes(size, seed))
            }
            Op::Truncate(place, size) => {
                let (_refs, node, entry) = self.no_link(place)?;
                match entry.map(|entry| entry.stat.kind()) {
                    Some(libc::S_IFREG) => self.cut(node, None, size).map(done),
                    Some(libc::S_IFDIR) => Err(Errno::EISDIR),
                    _ => Err(Errno::EINVAL),
                }
            }
            Op::Mkdir(place) => self.make(place, |at, name| {
                overlay.mkdir(caller(), at, name, (0o755, 0))
            }),
            Op::Mkfifo(place) => {
                let mode = libc::S_IFIFO | 0o644;
                self.make(place, |at, name| {
                    overlay.mknod(caller(), at, name, (mode, 0), 0)
                })
            }
            Op::Symlink(place) => self.make(place, |at, name| {
                overlay.symlink(caller(), at, name, Path::new(NOWHERE))
            }),
            Op::Link(old, new) => {
                let (_refs, node) = self.node(old)?;
                self.make(new, |at, name| overlay.link(node, at, name))
            }
            Op::Rmdir(place) => {
                let (_refs, parent, name, _) = self.walk_parent(place)?;
                overlay.rmdir(parent, name).map(done).map_err(code)
            }
            Op::Unlink(place) => {
                let (_refs, parent, name, _) = self.walk_parent(place)?;
                overlay.unlink(parent, name).map(done).map_err(code)
            }
            Op::Rename(from, to, flags) => {
                let (_from, from_dir, from_name, moved) = self.walk_parent(from)?;
                let (_to, to_dir, to_name, other) = self.walk_parent(to)?;
                // Two names of one file: the kernel does nothing, and does not ask.
                if moved.is_some() && moved.map(|e| e.node) == other.map(|e| e.node) && flags != 1 {
                    return Ok(Value::Nothing);
                }
                overlay
                    .rename((from_dir, from_name), (to_dir, to_name), flags)
                    .map(done)
                    .map_err(code)
            }
            Op::Readlink(place) => {
                let (_refs, entry) = self.walk(place)?;
                let Some(entry) = entry.filter(|entry| entry.stat.kind() == libc::S_IFLNK) else {
                    return Err(Errno::EINVAL);
                };
                let known = overlay.readlink_known(entry.node, Trust::Ttl).map(Ok);
                let text = known
                    .unwrap_or_else(|| overlay.readlink(entry.node))
                    .map_err(code)?;
                Ok(Value::Bytes(text.into_encoded_bytes()))
            }
            Op::Chmod(place, mode) => {
                let (_refs, node, _) = self.no_link(place)?;
                self.set(
                    node,
                    &SetAttr {
                        mode: Some(mode),
                        ..SetAttr::default()
                    },
                )
            }
            Op::SetTime(place, secs) => {
                let (_refs, node) = self.node(place)?;
                let time = SetTime::At(Time { secs, nanos: 5 });
                self.set(
                    node,
                    &SetAttr {
                        mtime: Some(time),
                        ..SetAttr::default()
                    },
                )
            }
            Op::SetXattr(place, name, size, flags) => {
                let (_refs, node) = self.node(place)?;
                let value = bytes(size as u64, 0);
                overlay
                    .setxattr(caller(), node, OsStr::new(name), &value, flags, 0)
                    .map(done)
                    .map_err(code)
            }
            Op::GetXattr(place, name, size) => {
                let (_refs, node) = self.node(place)?;
                let known = overlay.getxattr_known(node, OsStr::new(name), size, Trust::Ttl);
                xattr(
                    known
                        .unwrap_or_else(|| overlay.getxattr(node, OsStr::new(name), size))
                        .map_err(code),
                )
            }
            Op::ListXattr(place) => {
                let (_refs, node) = self.node(place)?;
                let known = overlay.listxattr_known(node, 1000, Trust::Ttl);
                xattr(
                    known
                        .unwrap_or_else(|| overlay.listxattr(node, 1000))
                        .map_err(code),
                )
            }
            Op::RemoveXattr(place, name) => {
                let (_refs, node) = self.node(place)?;
                overlay
                    .removexattr(node, OsStr::new(name))
                    .map(done)
                    .map_err(code)
            }
            Op::Outside(_) => Ok(Value::Nothing),
            Op::Wait(millis) => {
                self.clock.advance(Duration::from_millis(millis));
                Ok(Value::Nothing)
            }
            Op::Sweep => {
                overlay.sweep(Duration::ZERO);
                Ok(Value::Nothing)
            }
        }
    }

    /// Make something new; the kernel knows already what is there.
    fn make(
        &self,
        place: Place,
        make: impl FnOnce(NodeId, &OsStr) -> warmfs::error::Result<Entry>,
    ) -> Answer {
        let (mut refs, parent, name, entry) = self.walk_parent(place)?;
        if entry.is_some() {
            return Err(Errno::EEXIST);
        }
        refs.1.push(make(parent, name).map_err(code)?.node);
        Ok(Value::Nothing)
    }

    /// Close everything; then hardly anything may be left in memory.
    pub(crate) fn close(&mut self) -> Result<(), String> {
        self.slots = Default::default();
        self.overlay.cache().assert_invariants();
        match (self.overlay.open_files(), self.overlay.nodes()) {
            (0, nodes) if nodes <= IDLE_NODES + 2 => Ok(()),
            left => Err(format!("open files and nodes left: {left:?}")),
        }
    }
}
