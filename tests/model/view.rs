//! The subject: the operations done on an [`Overlay`] as the kernel does them, from component to component of a path,
//! asking memory first as the FUSE face does, and looking the path up once more upon `ESTALE`.

mod apply;

use crate::ops::{Place, SLOTS};
use crate::plain::{Answer, Attr, Code, Value, allows};
use nix::errno::Errno;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use warmfs::backing::{Intercept, Source};
use warmfs::cache::{Cache, SLOT_OVERHEAD, Trust};
use warmfs::clock::Clock;
use warmfs::error::{Error, Result as Asked};
use warmfs::overlay::{Caller, Entry, How, Limits, NodeId, Overlay, SetAttr};
use warmfs::span::Span;
use warmfs::stats::Stats;
use warmfs::sys::{self, Stat, Time};

pub(crate) const TTL: Duration = Duration::from_secs(1);
const IDLE_NODES: usize = 8;
const DEFAULT: SetAttr = SetAttr {
    mode: None,
    uid: None,
    gid: None,
    size: None,
    atime: None,
    mtime: None,
};

impl From<Error> for Code {
    fn from(error: Error) -> Code {
        Code(error.errno())
    }
}

/// What memory knows, or else what the source says.
fn ask<T>(known: Option<T>, source: impl FnOnce() -> Asked<T>) -> Result<T, Code> {
    Ok(known.map_or_else(source, Ok)?)
}

pub(crate) fn caller() -> Caller {
    let (uid, gid) = (
        nix::unistd::geteuid().as_raw(),
        nix::unistd::getegid().as_raw(),
    );
    Caller { uid, gid, pid: 0 }
}

/// References on the nodes of a path, given back when dropped.
struct Refs(Arc<Overlay>, Vec<NodeId>);

impl Drop for Refs {
    fn drop(&mut self) {
        for &node in self.1.iter().rev() {
            drop(self.0.forget(node, 1));
        }
    }
}

/// A path that was looked up: the directory and the name in it, and what is there.
struct Found {
    refs: Refs,
    dir: NodeId,
    name: &'static OsStr,
    entry: Option<Entry>,
}

/// What is there, and the references that keep it.
struct There {
    _refs: Refs,
    node: NodeId,
    kind: u32,
}

struct Open {
    /// An open file keeps its path.
    path: Refs,
    node: NodeId,
    handle: u64,
    flags: i32,
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

impl View {
    pub(crate) fn new(root: &Path) -> View {
        View::with(root, None)
    }

    pub(crate) fn with(root: &Path, intercept: Option<Arc<dyn Intercept>>) -> View {
        // An hour ahead of all files: what is cached is never racy.
        let clock = Clock::manual(SystemTime::now() + Duration::from_secs(3600));
        let stats = Arc::new(Stats::default());
        let source = Source::open(root, intercept, stats.clone()).expect("the source opens");
        let cache = Cache::new(4 * (SLOT_OVERHEAD + 64), TTL, clock.clone(), stats);
        let two = NonZeroUsize::new(2).expect("not zero");
        let limits = Limits {
            idle_nodes: IDLE_NODES,
            dir_handles: two,
            read_handles: two,
        };
        let overlay = Overlay::new(Arc::new(source), Arc::new(cache), &limits);
        let overlay = Arc::new(overlay.expect("the root opens"));
        View {
            root: root.to_owned(),
            overlay,
            clock,
            slots: Default::default(),
        }
    }

    pub(crate) fn lookup(&self, parent: NodeId, name: &OsStr) -> Result<Entry, Code> {
        let known = self.overlay.lookup_known(parent, name, Trust::Ttl);
        Ok(known.unwrap_or_else(|| self.overlay.lookup(parent, name))?)
    }

    fn find(&self, place: Place) -> Result<Found, Code> {
        let refs = Refs(self.overlay.clone(), Vec::new());
        let mut found = Found {
            refs,
            dir: NodeId::ROOT,
            name: OsStr::new(""),
            entry: None,
        };
        let mut components = place.split('/').peekable();
        while let Some(name) = components.next() {
            found.name = OsStr::new(name);
            let entry = match self.lookup(found.dir, found.name) {
                Err(Code(Errno::ENOENT)) if components.peek().is_none() => break,
                entry => entry?,
            };
            found.refs.1.push(entry.node);
            match entry.stat.kind() {
                _ if components.peek().is_none() => found.entry = Some(entry),
                libc::S_IFDIR => found.dir = entry.node,
                libc::S_IFLNK => return Err(Code(Errno::ENOENT)),
                _ => return Err(Code(Errno::ENOTDIR)),
            }
        }
        Ok(found)
    }

    fn there(&self, place: Place) -> Result<There, Code> {
        if place.is_empty() {
            let _refs = Refs(self.overlay.clone(), Vec::new());
            return Ok(There {
                _refs,
                node: NodeId::ROOT,
                kind: libc::S_IFDIR,
            });
        }
        let found = self.find(place)?;
        let entry = found.entry.ok_or(Errno::ENOENT)?;
        Ok(There {
            _refs: found.refs,
            node: entry.node,
            kind: entry.stat.kind(),
        })
    }

    /// What is there and is no symbolic link, which the kernel would follow.
    fn no_link(&self, place: Place) -> Result<There, Code> {
        match self.there(place)? {
            there if there.kind == libc::S_IFLNK => Err(Code(Errno::ELOOP)),
            there => Ok(there),
        }
    }

    pub(crate) fn getattr(&self, node: NodeId) -> Result<Stat, Code> {
        let known = self.overlay.getattr_known(node, Trust::Ttl);
        Ok(ask(known, || self.overlay.getattr(node))?.0)
    }

    /// What a program sees of a file, and what is wrong with it compared with the source itself.
    fn attr(&self, stat: &Stat, place: Option<&Path>) -> Attr {
        let mut attr = Attr::new(stat.mode, stat.nlink, stat.size, stat.mtime.secs);
        // Of the root the number differs.
        if let Some(place) = place.filter(|place| !place.as_os_str().is_empty()) {
            let root = sys::open_root(&self.root).expect("the source is there");
            let real = sys::stat_at(root.as_fd(), place.as_os_str(), false);
            // Reading moves atime, writing back moves blocks.
            let still = |stat: Stat| Stat {
                atime: Time::default(),
                blocks: 0,
                ..stat
            };
            if real.map(still) != Ok(still(*stat)) {
                attr.wrong = Some(format!("shown {stat:?}, but is {real:?}"));
            }
        }
        attr
    }

    /// Open; returns the handle.
    pub(crate) fn open(&self, node: NodeId, flags: i32) -> Result<u64, Code> {
        // The kernel truncates by itself, after the opening.
        let flags = flags & !(libc::O_TRUNC | libc::O_CREAT | libc::O_EXCL);
        let known = self.overlay.open_known(node, flags, Trust::Ttl);
        let handle = ask(known, || self.overlay.open(caller(), node, flags))?.handle;
        // As the kernel's face does for those that stay open.
        self.overlay.back(handle);
        Ok(handle)
    }

    fn open_path(&self, place: Place, flags: i32) -> Result<Open, Code> {
        let Found {
            refs: mut path,
            dir,
            name,
            entry,
        } = self.find(place)?;
        let creates = flags & libc::O_CREAT != 0;
        let Some(entry) = entry else {
            if !creates {
                return Err(Code(Errno::ENOENT));
            }
            let (entry, opened) = self
                .overlay
                .create(caller(), dir, name, (0o644, 0), flags)?;
            path.1.push(entry.node);
            return Ok(Open {
                path,
                node: entry.node,
                handle: opened.handle,
                flags,
            });
        };
        let node = entry.node;
        match entry.stat.kind() {
            _ if creates && flags & libc::O_EXCL != 0 => return Err(Code(Errno::EEXIST)),
            libc::S_IFREG => {}
            libc::S_IFLNK => return Err(Code(Errno::ELOOP)),
            libc::S_IFDIR => return Err(Code(Errno::EISDIR)),
            _ => return Err(Code(Errno::ENXIO)),
        }
        let open = Open {
            handle: self.open(node, flags)?,
            path,
            node,
            flags,
        };
        if flags & libc::O_TRUNC != 0 {
            self.set(
                node,
                None,
                SetAttr {
                    size: Some(0),
                    ..DEFAULT
                },
            )?;
        }
        Ok(open)
    }

    fn slot(&self, slot: usize, writing: bool) -> Result<&Open, Code> {
        match &self.slots[slot] {
            Some(open) if allows(open.flags, writing) => Ok(open),
            _ => Err(Code(Errno::EBADF)),
        }
    }

    pub(crate) fn read(&self, handle: u64, span: Span) -> Result<Vec<u8>, Code> {
        let known = self.overlay.read_known(handle, span, Trust::Ttl);
        Ok(ask(known, || self.overlay.read(handle, span))?.to_vec())
    }

    fn write(&self, open: &Open, pos: u64, data: Vec<u8>) -> Answer {
        let how = How {
            append: open.flags & libc::O_APPEND != 0,
            clear_setid: false,
        };
        let pos = if how.append {
            self.getattr(open.node)?.size
        } else {
            pos
        };
        Ok(self
            .overlay
            .write(open.handle, pos, data.into(), how)?
            .into())
    }

    fn set(&self, node: NodeId, handle: Option<u64>, set: SetAttr) -> Answer {
        let (stat, _) = self.overlay.setattr(caller(), node, handle, &set)?;
        assert!(
            set.size.is_none_or(|size| size == stat.size),
            "size after truncate"
        );
        Ok(Value::Nothing)
    }

    /// Everything in a directory, in batches as the kernel asks for it: types, and attributes if wanted.
    pub(crate) fn list(
        &self,
        place: Place,
        plus: bool,
    ) -> Result<BTreeMap<String, (u32, Option<Attr>)>, Code> {
        let there = self.no_link(place)?;
        if there.kind != libc::S_IFDIR {
            return Err(Code(Errno::ENOTDIR));
        }
        let known = self.overlay.opendir_known(there.node, Trust::Ttl);
        let handle = ask(known, || self.overlay.opendir(there.node))?.handle;
        let (mut found, mut from) = (BTreeMap::new(), 0);
        loop {
            let known = self.overlay.readdir_known(handle, from, plus, Trust::Ttl);
            let batch = ask(known, || self.overlay.readdir(handle, from, plus))?;
            let Some(last) = batch.last() else { break };
            from = last.next;
            for entry in batch
                .iter()
                .filter(|entry| entry.name != "." && entry.name != "..")
            {
                let path = Path::new(place).join(&entry.name);
                let attr = entry.entry.map(|entry| self.attr(&entry.stat, Some(&path)));
                let name = entry.name.clone().into_string().expect("names are ASCII");
                assert!(
                    found.insert(name, (entry.kind, attr)).is_none(),
                    "listed twice"
                );
            }
            self.overlay.put_back(batch);
        }
        self.overlay.releasedir(handle);
        Ok(found)
    }

    /// Make something new. The kernel knows before what is there.
    fn make(&self, place: Place, make: impl FnOnce(NodeId, &OsStr) -> Asked<Entry>) -> Answer {
        let mut found = self.find(place)?;
        if found.entry.is_some() {
            return Err(Code(Errno::EEXIST));
        }
        found.refs.1.push(make(found.dir, found.name)?.node);
        Ok(Value::Nothing)
    }

    /// Close everything; then hardly anything may be left in memory.
    pub(crate) fn close(&mut self) -> Result<(), String> {
        self.slots = Default::default();
        match (self.overlay.open_files(), self.overlay.nodes()) {
            (0, nodes) if nodes <= IDLE_NODES + 2 => Ok(()),
            left => Err(format!("open files and nodes left: {left:?}")),
        }
    }
}
