//! The table of nodes: which file of the source each inode number of the mount stands for, under which
//! names it is known, and what was last seen of it.
//!
//! Promises:
//! * One node per file (device and inode), whatever its names: hard links share attributes and data.
//! * The number is the source's own inode number. Only a file on another device than the source's root (a
//!   mount point inside it), or one whose number FUSE reserves, gets a number from a range of its own, so
//!   that one number never means two files.
//! * A number that the source gave to a new file is a new *generation*: the kernel drops what it held of the
//!   old one.
//! * Attributes are stored only when no change of ours was under way or ended since the question was asked
//!   ([`Epoch`]): what is answered from here is never older than a change that has returned.
//! * Memory: nodes that the kernel has forgotten stay for their attributes, up to a limit, oldest out first.
//!
//! Plain data under the overlay's mutex: nothing here blocks or calls out. Descriptors that are no longer
//! needed are returned as [`Garbage`], because closing one may wait for the source.

use super::Limits;
use super::attrs::{Asked, Attr, Edit, Held, KnownListing, Listing, Trusting, UNTIL_TOLD, Xattrs};
use crate::cache::{FileId, Version};
use crate::clock::Moment;
use crate::sys::{Stat, Time};
use lru::LruCache;
use smallvec::SmallVec;
use std::collections::{HashMap, VecDeque};
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// A node of the mount: the `nodeid` of the FUSE protocol, and the inode number that programs see.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct NodeId(pub u64);

impl NodeId {
    /// The root of the mount; FUSE fixes this number.
    pub const ROOT: NodeId = NodeId(1);
}

/// First number for files that cannot have their own: above what disk file systems use, below the sign.
const FOREIGN_FIRST: u64 = 1 << 62;

/// Names kept per file; a file with more hard links is found through the others.
const NAMES_MAX: usize = 32;

/// Absent names that were looked up, counted for each directory, before they are forgotten.
const ABSENT_MAX: u32 = 4096;

/// A point in the order of our own changes; see the module's text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub(super) struct Epoch(u64);

/// Descriptors to be closed by a thread that may wait.
#[derive(Default, Debug)]
pub struct Garbage(SmallVec<[Arc<OwnedFd>; 2]>);

impl Garbage {
    /// Nothing to close?
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn push(&mut self, fd: Option<Arc<OwnedFd>>) {
        self.0.extend(fd);
    }
}

/// What a name in a directory was last seen to be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Child {
    /// `None`: there was no such name.
    pub(super) node: Option<NodeId>,
    pub(super) checked: Moment,
}

/// Does a watch tell of the changes of a directory?
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) enum Watch {
    /// Nobody has asked for one.
    #[default]
    No,
    /// Then it could not be set.
    Refused(Moment),
    /// What the source was asked for from then on is believed until told.
    Since(Moment),
}

impl Watch {
    pub(super) fn covers(self, asked: Moment) -> bool {
        matches!(self, Watch::Since(since) if asked >= since)
    }
}

#[derive(Debug)]
pub(super) struct Node {
    pub(super) file: FileId,
    pub(super) kind: u32,
    birth: Option<Time>,
    pub(super) generation: u64,
    /// References that the kernel holds (FUSE_FORGET gives them back).
    lookups: u64,
    pub(super) names: SmallVec<[(NodeId, OsString); 1]>,
    pub(super) attr: Option<Attr>,
    /// Changes of ours under way, and the epoch when the last one ended.
    changing: u32,
    changed: Epoch,
    /// Version of the content that the kernel's page cache may hold, and whether it was racy then.
    pub(super) seen: Option<(Version, bool)>,
    /// Names below a directory.
    pub(super) children: HashMap<OsString, Child>,
    /// Absent names added to `children` since they were last thinned out.
    absent: u32,
    pub(super) listing: Option<KnownListing>,
    /// A directory that was made through us, and that nobody has listed so far.
    pub(super) fresh: bool,
    /// A directory: the listing that the kernel may have kept, and since when.
    pub(super) shown: Option<(Arc<Listing>, Moment)>,
    /// A directory: how often it is open.
    pub(super) dir_opens: u32,
    /// A directory: the version that its names hold with.
    pub(super) held: Option<Held>,
    pub(super) link: Option<(OsString, Version)>,
    /// Extended attributes, of this version.
    pub(super) xattrs: Option<(Version, Xattrs)>,
    /// Open descriptors of the file: each works without any name.
    open: SmallVec<[Weak<OwnedFd>; 2]>,
    /// Opened from memory, without a descriptor, so many times.
    pub(super) unbacked: u32,
    /// Kept for a file that a rename replaced while the kernel still refers to it.
    pub(super) grave: Option<Arc<OwnedFd>>,
    /// A directory: when a file in it was last replaced between lookup and opening.
    pub(super) flapped: Option<Moment>,
    /// A directory: when it was last known to exist.
    pub(super) proven: Option<Moment>,
    /// A directory: does a watch tell of its changes?
    pub(super) watch: Watch,
    /// The last name is gone, so the source may give the number to another file.
    pub(super) dead: bool,
}

impl Node {
    fn is_new_file(&self, stat: &Stat) -> bool {
        let reborn = matches!((self.birth, stat.btime), (Some(a), Some(b)) if a != b);
        self.kind != stat.kind() || reborn || (self.dead && !self.is_open())
    }

    fn is_open(&self) -> bool {
        self.open.iter().any(|fd| fd.strong_count() > 0)
    }

    /// `fd` is one more open descriptor of the file.
    pub(super) fn opened(&mut self, fd: &Arc<OwnedFd>) {
        self.open.retain(|fd| fd.strong_count() > 0);
        if !self
            .open
            .iter()
            .any(|known| known.as_ptr() == Arc::as_ptr(fd))
        {
            self.open.push(Arc::downgrade(fd));
        }
    }

    /// A descriptor that needs no name: of an open file, or kept for one that a rename replaced.
    pub(super) fn held(&self) -> Option<Arc<OwnedFd>> {
        let open = self.open.iter().find_map(Weak::upgrade);
        open.or_else(|| self.grave.clone())
    }
}

#[derive(Debug)]
pub(super) struct Inodes {
    nodes: HashMap<NodeId, Node>,
    by_file: HashMap<FileId, NodeId>,
    home_dev: u64,
    foreign_next: u64,
    epoch: u64,
    trusting: Trusting,
    idle: VecDeque<NodeId>,
    idle_max: usize,
    /// Handles for names below directories, and descriptors for reading files that are read again and
    /// again. Both only save system calls; each entry belongs to a node that exists.
    dirs: LruCache<NodeId, Arc<OwnedFd>>,
    reads: LruCache<NodeId, (Arc<OwnedFd>, Moment)>,
    /// Files held since their lookup, in directories that flap.
    named: LruCache<NodeId, (Arc<OwnedFd>, Moment)>,
    garbage: Garbage,
    /// See [`Inodes::take_unwatched`].
    unwatched: Vec<NodeId>,
}

impl Inodes {
    pub(super) fn new(root: &Stat, asked: &Asked, trusting: Trusting, limits: &Limits) -> Inodes {
        let mut inodes = Inodes {
            nodes: HashMap::new(),
            by_file: HashMap::new(),
            home_dev: root.dev,
            foreign_next: FOREIGN_FIRST,
            epoch: 0,
            trusting,
            idle: VecDeque::new(),
            idle_max: limits.idle_nodes,
            dirs: LruCache::new(limits.dir_handles),
            reads: LruCache::new(limits.read_handles),
            named: LruCache::new(limits.read_handles),
            garbage: Garbage::default(),
            unwatched: Vec::new(),
        };
        let mut node = inodes.fresh(root, 0);
        node.lookups = 1;
        node.attr = Some(Attr::new(*root, asked, asked.at).trusted(None, &trusting));
        inodes.by_file.insert(node.file, NodeId::ROOT);
        inodes.nodes.insert(NodeId::ROOT, node);
        inodes
    }

    fn fresh(&self, stat: &Stat, generation: u64) -> Node {
        Node {
            file: FileId {
                dev: stat.dev,
                ino: stat.ino,
            },
            kind: stat.kind(),
            birth: stat.btime,
            generation,
            lookups: 0,
            names: SmallVec::new(),
            attr: None,
            changing: 0,
            changed: Epoch(0),
            seen: None,
            children: HashMap::new(),
            absent: 0,
            listing: None,
            fresh: false,
            shown: None,
            dir_opens: 0,
            held: None,
            link: None,
            xattrs: None,
            open: SmallVec::new(),
            unbacked: 0,
            grave: None,
            flapped: None,
            proven: None,
            watch: Watch::No,
            dead: false,
        }
    }

    pub(super) fn get(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: NodeId) -> Option<&mut Node> {
        self.nodes.get_mut(&id)
    }

    /// How long things are believed.
    pub(super) fn trusting(&self) -> &Trusting {
        &self.trusting
    }

    /// Believe things for so long from now on.
    pub(super) fn set_trusting(&mut self, trusting: Trusting) {
        self.trusting = trusting;
    }

    /// How much longer it may be believed at `now` what a name in a directory stands for.
    pub(super) fn name_left(&self, parent: NodeId, child: &Child, now: Moment) -> Duration {
        let dir = self.nodes.get(&parent);
        if dir.is_some_and(|dir| dir.watch.covers(child.checked)) {
            return UNTIL_TOLD;
        }
        let held = dir.and_then(|dir| dir.held.as_ref());
        Held::name_left(held, child.checked, now, &self.trusting)
    }

    /// For how long the names in a directory are believed in all.
    pub(super) fn names_trust(&self, id: NodeId) -> Duration {
        let held = self.nodes.get(&id).and_then(|dir| dir.held);
        held.map_or(self.trusting.ttl, |held| held.trust())
    }

    /// The entries of a directory, and how much longer they may be believed at `now`.
    pub(super) fn listing(&mut self, id: NodeId, now: Moment) -> Option<(Arc<Listing>, Duration)> {
        let dir = self.nodes.get_mut(&id)?;
        let known = dir.listing.as_mut()?;
        let left = match dir.watch.covers(known.read) {
            true => UNTIL_TOLD,
            false => known.left(dir.held.as_ref(), now, &self.trusting),
        };
        if known.is_plain() {
            return Some((known.listing.clone(), left));
        }
        // Out of the table for the look at other nodes.
        let mut known = dir.listing.take()?;
        let edited = known.edited(|name| {
            let child = self.nodes.get(&id)?.children.get(name)?;
            self.nodes.get(&child.node?).map(|node| node.file.ino)
        })?;
        if let Some(dir) = self.nodes.get_mut(&id) {
            dir.listing = Some(known);
        }
        Some((edited, left))
    }

    /// Now, for a question to the source that is about to be asked.
    pub(super) fn epoch(&self) -> Epoch {
        Epoch(self.epoch)
    }

    /// The node of the file that `stat` describes, made or made anew as needed.
    pub(super) fn intern(&mut self, stat: &Stat) -> NodeId {
        let file = FileId {
            dev: stat.dev,
            ino: stat.ino,
        };
        let Some(&id) = self.by_file.get(&file) else {
            let own =
                stat.dev == self.home_dev && stat.ino > NodeId::ROOT.0 && stat.ino < FOREIGN_FIRST;
            let id = if own {
                NodeId(stat.ino)
            } else {
                self.foreign_next += 1;
                NodeId(self.foreign_next)
            };
            let node = self.fresh(stat, 0);
            self.by_file.insert(file, id);
            self.nodes.insert(id, node);
            self.go_idle(id);
            return id;
        };
        if id != NodeId::ROOT && self.nodes.get(&id).is_some_and(|n| n.is_new_file(stat)) {
            self.reincarnate(id, stat);
        }
        if let Some(node) = self.nodes.get_mut(&id) {
            node.dead = false;
        }
        id
    }

    fn reincarnate(&mut self, id: NodeId, stat: &Stat) {
        let Some(mut old) = self.nodes.remove(&id) else {
            return;
        };
        if let Watch::Since(_) = old.watch {
            self.unwatched.push(id);
        }
        self.garbage.push(old.grave.take());
        self.close_cached(id);
        let mut node = self.fresh(stat, old.generation + 1);
        // The kernel gives back references by number, of whatever generation.
        node.lookups = old.lookups;
        node.unbacked = old.unbacked;
        node.dir_opens = old.dir_opens;
        node.changing = old.changing;
        node.changed = Epoch(self.epoch);
        for (parent, name) in &old.names {
            self.unset_child(*parent, name, id);
        }
        self.nodes.insert(id, node);
    }

    fn unset_child(&mut self, parent: NodeId, name: &OsStr, id: NodeId) {
        if let Some(parent) = self.nodes.get_mut(&parent)
            && parent
                .children
                .get(name)
                .is_some_and(|c| c.node == Some(id))
        {
            parent.children.remove(name);
        }
    }

    /// `name` in `parent` is `child` (or nothing), as of `checked`.
    pub(super) fn set_child(
        &mut self,
        parent: NodeId,
        name: &OsStr,
        child: Option<NodeId>,
        checked: Moment,
    ) {
        let Some(dir) = self.nodes.get_mut(&parent) else {
            return;
        };
        if child.is_some() {
            dir.proven = Some(checked);
        }
        let before = dir.children.insert(
            name.to_owned(),
            Child {
                node: child,
                checked,
            },
        );
        let before = before.and_then(|c| c.node);
        if child.is_none() {
            dir.absent += 1;
            // Programs look for any number of names that are not there. Those known longest are not known
            // apart, so all go at once: rarely, and they are asked for again.
            if dir.absent > ABSENT_MAX {
                dir.absent = 0;
                dir.children.retain(|_, known| known.node.is_some());
            }
        }
        if let Some(old) = before.filter(|_| before != child) {
            self.drop_name(old, parent, name);
        }
        if let Some(id) = child
            && let Some(node) = self.nodes.get_mut(&id)
        {
            let known = node.names.iter().any(|(p, n)| *p == parent && n == name);
            if !known {
                // The oldest goes; it is found again by a lookup.
                node.names.truncate(NAMES_MAX - 1);
                // The latest name first: it is the one most likely to be still there.
                node.names.insert(0, (parent, name.to_owned()));
            }
            node.dead = false;
        }
    }

    /// What was known of `name` in `parent` may be out of date: ask again next time. The file that had the name
    /// keeps it as a place to look.
    pub(super) fn unlearn(&mut self, parent: NodeId, name: &OsStr) {
        if let Some(dir) = self.nodes.get_mut(&parent) {
            dir.children.remove(name);
        }
    }

    fn drop_name(&mut self, id: NodeId, parent: NodeId, name: &OsStr) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.names.retain(|(p, n)| *p != parent || n != name);
        }
    }

    /// None of the names of `id` leads to it any more: somebody else moved or replaced it.
    pub(super) fn forget_names(&mut self, id: NodeId, now: Moment) {
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
        for (parent, name) in std::mem::take(&mut node.names) {
            self.unset_child(parent, &name, id);
            if let Some(dir) = self.nodes.get_mut(&parent) {
                dir.flapped = Some(now);
            }
        }
    }

    /// The last change took a name from `id`; without any left the source may reuse the number.
    pub(super) fn mark_dead_if_nameless(&mut self, id: NodeId) {
        if let Some(node) = self.nodes.get_mut(&id) {
            let other_links =
                node.attr.is_some_and(|a| a.stat.nlink > 1) && node.kind != crate::sys::S_IFDIR;
            node.dead = node.names.is_empty() && !other_links;
        }
    }

    /// Store attributes from a question that was asked at `asked`, and say for how long they are believed; `None` when a
    /// change of ours makes it unclear whether they are current.
    pub(super) fn store_attr(&mut self, id: NodeId, attr: Attr, asked: Epoch) -> Option<Attr> {
        let node = self.nodes.get_mut(&id)?;
        if node.changing > 0 || node.changed > asked {
            return None;
        }
        let attr = attr.trusted(node.attr.as_ref(), &self.trusting);
        let vouched = self.is_vouched(id, &attr);
        let node = self.nodes.get_mut(&id)?;
        let attr = if vouched { attr.vouched() } else { attr };
        if node.kind == crate::sys::S_IFDIR {
            node.held = Some(Held::observe(node.held, &attr, &self.trusting));
        }
        node.attr = Some(attr);
        Some(attr)
    }

    /// Would a watch tell of a change of these attributes? A directory's own watch does; that of the directory above tells
    /// of everything else that has no other name, by which it could be changed unseen.
    fn is_vouched(&self, id: NodeId, attr: &Attr) -> bool {
        let Some(node) = self.nodes.get(&id) else {
            return false;
        };
        if node.kind == crate::sys::S_IFDIR {
            return node.watch.covers(attr.checked);
        }
        attr.stat.nlink == 1
            && node.names.iter().any(|(parent, name)| {
                self.nodes.get(parent).is_some_and(|dir| {
                    let child = dir.children.get(name);
                    dir.watch.covers(attr.checked)
                        && child.is_some_and(|c| c.node == Some(id) && dir.watch.covers(c.checked))
                })
            })
    }

    /// Directories whose nodes went while they were watched.
    pub(super) fn take_unwatched(&mut self) -> Vec<NodeId> {
        let mut unwatched = std::mem::take(&mut self.unwatched);
        unwatched.retain(|id| {
            let node = self.nodes.get(id);
            !node.is_some_and(|node| matches!(node.watch, Watch::Since(_)))
        });
        unwatched
    }

    /// `id` and all that is known to be below it.
    pub(super) fn tree(&self, id: NodeId) -> Vec<NodeId> {
        let mut tree = vec![id];
        let mut seen = std::collections::HashSet::from([id]);
        let mut at = 0;
        while let Some(node) = tree.get(at) {
            at += 1;
            let children = self.nodes.get(node).map(|node| node.children.values());
            let children = children
                .into_iter()
                .flatten()
                .filter_map(|child| child.node);
            tree.extend(children.filter(|child| seen.insert(*child)));
        }
        tree
    }

    /// All nodes.
    pub(super) fn all(&self) -> Vec<NodeId> {
        self.nodes.keys().copied().collect()
    }

    /// A change of `id` begins: what is known of its attributes is void until it ends.
    pub(super) fn begin_change(&mut self, id: NodeId) -> Epoch {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.changing += 1;
            node.attr = None;
        }
        Epoch(self.epoch)
    }

    /// The change that began at `begun` ended, and `attr` is what the source said afterwards: believed if no
    /// other change was under way meanwhile, which that may not show.
    pub(super) fn end_change(&mut self, id: NodeId, begun: Epoch, attr: Option<Attr>) {
        self.epoch += 1;
        let vouched = attr.as_ref().is_some_and(|attr| self.is_vouched(id, attr));
        let epoch = Epoch(self.epoch);
        if let Some(node) = self.nodes.get_mut(&id) {
            node.changing -= 1;
            let is_sole = node.changing == 0 && node.changed <= begun;
            node.changed = epoch;
            let attr = attr.filter(|_| is_sole);
            let trusted = attr.map(|attr| attr.trusted(None, &self.trusting));
            node.attr = trusted.map(|attr| if vouched { attr.vouched() } else { attr });
            if let Some(held) = &mut node.held {
                held.version = None;
            }
        }
    }

    /// A change of ours to the names of a directory is about to end, and this is what it did; `None` when that is not known.
    pub(super) fn edit_listing(&mut self, id: NodeId, edits: Option<&[Edit<'_>]>) {
        let Some(dir) = self.nodes.get_mut(&id) else {
            return;
        };
        if let Some(known) = &mut dir.listing
            && !edits.is_some_and(|edits| known.edit(edits, dir.held.as_ref()))
        {
            dir.listing = None;
        }
    }

    /// Has a change of `id` been under way or ended since `asked`?
    pub(super) fn is_changed_since(&self, id: NodeId, asked: Epoch) -> bool {
        self.nodes
            .get(&id)
            .is_none_or(|n| n.changing > 0 || n.changed > asked)
    }

    /// The kernel was told of the node once more.
    pub(super) fn count_lookup(&mut self, id: NodeId) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.lookups += 1;
        }
    }

    /// Does the kernel refer to the node?
    pub(super) fn is_referenced(&self, id: NodeId) -> bool {
        self.nodes.get(&id).is_some_and(|n| n.lookups > 0)
    }

    /// Believe nothing of `id` any more; returns which file it is.
    pub(super) fn expire(&mut self, id: NodeId) -> Option<FileId> {
        let node = self.nodes.get_mut(&id)?;
        node.attr = None;
        node.seen = None;
        node.listing = None;
        node.shown = None;
        node.held = None;
        node.link = None;
        node.xattrs = None;
        node.proven = None;
        let file = node.file;
        let names: Vec<OsString> = node.children.keys().cloned().collect();
        for name in names {
            self.unlearn(id, &name);
        }
        Some(file)
    }

    /// The kernel gives back `count` references.
    pub(super) fn forget(&mut self, id: NodeId, count: u64) {
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
        node.lookups = node.lookups.saturating_sub(count);
        if node.lookups == 0 && id != NodeId::ROOT {
            self.garbage.push(node.grave.take());
            // Whatever the kernel cached of it is gone.
            node.seen = None;
            node.shown = None;
            self.go_idle(id);
        }
    }

    fn go_idle(&mut self, id: NodeId) {
        self.idle.push_back(id);
        // Each node may stand in the line several times; the first time that finds it unused counts.
        while self.idle.len() > self.idle_max {
            let Some(oldest) = self.idle.pop_front() else {
                return;
            };
            let unused = self
                .nodes
                .get(&oldest)
                .is_some_and(|n| n.lookups == 0 && n.changing == 0 && !n.is_open());
            if unused && oldest != id {
                self.remove(oldest);
            }
        }
    }

    fn remove(&mut self, id: NodeId) {
        let Some(mut node) = self.nodes.remove(&id) else {
            return;
        };
        if let Watch::Since(_) = node.watch {
            self.unwatched.push(id);
        }
        self.garbage.push(node.grave.take());
        self.close_cached(id);
        self.by_file.remove(&node.file);
        for (parent, name) in &node.names {
            self.unset_child(*parent, name, id);
        }
        for (name, child) in &node.children {
            if let Some(child) = child.node {
                self.drop_name(child, id, name);
            }
        }
    }

    /// Does `stat` describe the file that `id` stands for?
    pub(super) fn is_same_file(&self, id: NodeId, stat: &Stat) -> bool {
        self.nodes.get(&id).is_some_and(|n| {
            n.file
                == FileId {
                    dev: stat.dev,
                    ino: stat.ino,
                }
                && !n.is_new_file(stat)
        })
    }

    /// The cached handle of a directory.
    pub(super) fn dir(&mut self, id: NodeId) -> Option<Arc<OwnedFd>> {
        self.dirs.get(&id).cloned()
    }

    /// Keep the handle of a directory, if `id` still stands for `file`.
    pub(super) fn keep_dir(&mut self, id: NodeId, file: FileId, fd: Arc<OwnedFd>) {
        if self.nodes.get(&id).is_some_and(|n| n.file == file) {
            let evicted = self.dirs.push(id, fd);
            self.garbage.push(evicted.map(|(_, fd)| fd));
        }
    }

    /// The cached descriptor for reading `id`.
    pub(super) fn read_fd(&mut self, id: NodeId, now: Moment) -> Option<Arc<OwnedFd>> {
        let (fd, used) = self.reads.get_mut(&id)?;
        *used = now;
        Some(fd.clone())
    }

    /// Keep a descriptor for reading, if `id` still stands for `file`.
    pub(super) fn keep_read_fd(&mut self, id: NodeId, file: FileId, fd: Arc<OwnedFd>, now: Moment) {
        if self
            .nodes
            .get(&id)
            .is_some_and(|n| n.file == file && !n.dead)
        {
            let evicted = self.reads.push(id, (fd, now));
            self.garbage.push(evicted.map(|(_, (fd, _))| fd));
        }
    }

    /// The descriptor held since the lookup of `id`.
    pub(super) fn named(&mut self, id: NodeId) -> Option<Arc<OwnedFd>> {
        self.named.peek(&id).map(|(fd, _)| fd.clone())
    }

    /// Hold a descriptor from the lookup of `id` on.
    pub(super) fn keep_named(&mut self, id: NodeId, fd: Arc<OwnedFd>, now: Moment) {
        let evicted = self.named.push(id, (fd, now));
        self.garbage.push(evicted.map(|(_, (fd, _))| fd));
    }

    /// Close what is cached of `id`: it is being removed, and an open descriptor would keep its space
    /// allocated (or make an NFS client rename it instead of removing it).
    pub(super) fn close_cached(&mut self, id: NodeId) {
        self.garbage.push(self.dirs.pop(&id));
        self.garbage.push(self.reads.pop(&id).map(|(fd, _)| fd));
        self.garbage.push(self.named.pop(&id).map(|(fd, _)| fd));
    }

    /// Close descriptors for reading that were not used for `idle`.
    pub(super) fn close_idle(&mut self, now: Moment, idle: Duration) {
        for kept in [&mut self.reads, &mut self.named] {
            while kept
                .peek_lru()
                .is_some_and(|(_, (_, used))| now.since(*used) >= idle)
            {
                let oldest = kept.pop_lru();
                self.garbage.push(oldest.map(|(_, (fd, _))| fd));
            }
        }
    }

    /// Close everything that only saves system calls.
    pub(super) fn close_all_cached(&mut self) {
        while let Some((_, fd)) = self.dirs.pop_lru() {
            self.garbage.push(Some(fd));
        }
        for kept in [&mut self.reads, &mut self.named] {
            while let Some((_, (fd, _))) = kept.pop_lru() {
                self.garbage.push(Some(fd));
            }
        }
    }

    /// Descriptors to close once the lock is gone.
    pub(super) fn take_garbage(&mut self) -> Garbage {
        std::mem::take(&mut self.garbage)
    }

    /// Path below the root by the names known now, for messages and the keys of slots.
    pub(super) fn path(&self, id: NodeId) -> PathBuf {
        let mut parts: Vec<&OsStr> = Vec::new();
        let mut at = id;
        // A cycle is impossible in the source; a moment's confusion here must still end.
        while at != NodeId::ROOT && parts.len() < 4096 {
            let Some((parent, name)) = self.nodes.get(&at).and_then(|n| n.names.first()) else {
                break;
            };
            parts.push(name);
            at = *parent;
        }
        parts.iter().rev().collect()
    }

    /// Number of nodes, for tests of the limit.
    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }
}

/// Is something last compared at `checked` still believed at `now`?
pub(super) fn is_fresh(checked: Moment, now: Moment, ttl: Duration) -> bool {
    now.since(checked) < ttl
}
