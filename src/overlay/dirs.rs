//! Directories: listings, and what the kernel reads of them.
//!
//! An open directory is a snapshot. Its positions are indices into that snapshot: 0 is `.`, 1 is `..`, then
//! the entries; so an entry that was there throughout is listed exactly once, whatever comes and goes.

use super::attrs::{KnownListing, Listing};
use super::handles::OpenDir;
use super::{Entry, NodeId, Overlay, shown};
use crate::cache::{Trust, Version};
use crate::error::Result;
use nix::errno::Errno;
use parking_lot::Mutex;
use std::ffi::{OsStr, OsString};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Entries answered at once, about what fits the 32 KiB that programs read at a time. (A reply must not be
/// empty before the end: emptiness means the end.)
const BATCH: usize = 128;

/// What the kernel may do with the entries of a directory that is being opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KeepDir {
    /// Use those that it has.
    Yes,
    /// Drop what it has, and keep those that it is about to read.
    New,
    /// Keep none.
    No,
}

/// An open directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OpenedDir {
    /// Its handle.
    pub handle: u64,
    /// About the kernel's cache of its entries.
    pub keep: KeepDir,
}

/// One entry as the kernel reads it.
#[derive(Clone, Debug)]
pub struct DirEntry {
    /// Name.
    pub name: OsString,
    /// Inode number.
    pub ino: u64,
    /// `S_IFMT` bits, 0 when not known.
    pub kind: u32,
    /// Position of the entry behind it.
    pub next: u64,
    /// Node and attributes, for those who asked for them; a reference is held on the node.
    pub entry: Option<Entry>,
}

impl Overlay {
    /// Open a directory from memory.
    pub fn opendir_known(&self, id: NodeId, trust: Trust) -> Option<OpenedDir> {
        let listing = self.listing_known(id, trust)?;
        if trust == Trust::Ttl {
            self.visited(id);
        }
        Some(self.insert_dir(id, listing))
    }

    /// Open a directory.
    pub fn opendir(&self, id: NodeId) -> Result<OpenedDir> {
        self.visited(id);
        let listing = self.listing_once(id)?;
        Ok(self.insert_dir(id, listing))
    }

    fn insert_dir(&self, id: NodeId, listing: Arc<Listing>) -> OpenedDir {
        let keep = self.keep_dir(id, &listing);
        let handle = self.dirs.insert(OpenDir {
            node: id,
            snapshot: Mutex::new(listing),
            used: AtomicBool::new(false),
        });
        OpenedDir { handle, keep }
    }

    /// The kernel may list a directory by itself as long as the listing is the one that it was given; but no longer than
    /// the attributes last that came with it, because it gets new ones cheapest with the next listing.
    fn keep_dir(&self, id: NodeId, listing: &Arc<Listing>) -> KeepDir {
        let now = self.now();
        let mut inodes = self.inodes.lock();
        let trust = inodes.names_trust(id);
        let Some(node) = inodes.get_mut(id) else {
            return KeepDir::No;
        };
        let is_open = node.dir_opens > 0;
        node.dir_opens += 1;
        match &node.shown {
            Some((shown, at)) if Arc::ptr_eq(shown, listing) && now.since(*at) < trust => {
                KeepDir::Yes
            }
            // Somebody may still read an older listing, and the kernel would take his entries for these.
            _ if listing.racy || trust.is_zero() || is_open => {
                node.shown = None;
                KeepDir::No
            }
            _ => {
                node.shown = Some((listing.clone(), now));
                KeepDir::New
            }
        }
    }

    pub(super) fn listing_known(&self, id: NodeId, trust: Trust) -> Option<Arc<Listing>> {
        let now = self.now();
        let (listing, left) = self.inodes.lock().listing(id, now)?;
        (trust == Trust::Any || !left.is_zero()).then_some(listing)
    }

    /// The listing of a directory, read once, however many want it.
    pub(super) fn listing_once(&self, id: NodeId) -> Result<Arc<Listing>> {
        // No entry has an empty name.
        let asking = self.questions.begin(id, OsStr::new(""));
        if asking.is_none()
            && let Some(listing) = self.listing_known(id, Trust::Ttl)
        {
            return Ok(listing);
        }
        self.listing(id)
    }

    fn listing(&self, id: NodeId) -> Result<Arc<Listing>> {
        let dir = self.dir(id)?;
        if let Some(node) = self.inodes.lock().get_mut(id) {
            node.fresh = false;
        }
        self.vouch(id);
        let asked = self.question();
        let stat = self.source.stat(&*dir, Self::FRESH)?;
        let version = Version::of(&stat);
        {
            let mut inodes = self.inodes.lock();
            inodes.store_attr(id, self.answer(stat, &asked), asked.epoch);
            let names_max = inodes.trusting().names_max;
            let unchanged = !inodes.is_changed_since(id, asked.epoch);
            if let Some(node) = inodes.get(id)
                && let Some(known) = &node.listing
                && unchanged
                && known.is_plain()
                && known.listing.version == version
                && !known.listing.racy
                && asked.at.since(known.read) < names_max
            {
                return Ok(known.listing.clone());
            }
        }
        let entries = self.source.list(&*dir)?;
        let listing = Arc::new(Listing::new(entries, version, version.is_racy(asked.wall)));
        let mut inodes = self.inodes.lock();
        if !inodes.is_changed_since(id, asked.epoch)
            && let Some(node) = inodes.get_mut(id)
        {
            node.listing = Some(KnownListing::new(listing.clone(), asked.at));
        }
        Ok(listing)
    }

    /// Close a directory.
    pub fn releasedir(&self, handle: u64) {
        if let Some(open) = self.dirs.remove(handle)
            && let Some(node) = self.inodes.lock().get_mut(open.node)
        {
            node.dir_opens = node.dir_opens.saturating_sub(1);
        }
    }

    /// Read an open directory from the start again: with a new listing. Others may be reading the old one.
    fn renew(&self, open: &OpenDir, listing: Arc<Listing>) {
        let old = std::mem::replace(&mut *open.snapshot.lock(), listing.clone());
        if !Arc::ptr_eq(&old, &listing)
            && let Some(node) = self.inodes.lock().get_mut(open.node)
        {
            node.shown = None;
        }
    }

    /// fsync(2) of a directory.
    pub fn sync_dir(&self, id: NodeId) -> Result<()> {
        self.source.sync_dir(&*self.dir(id)?)
    }

    /// Entries from position `from` on, from memory. With `plus`, each with its node and attributes.
    /// `None` when something of it must be asked for, or a new snapshot is due.
    pub fn readdir_known(
        &self,
        handle: u64,
        from: u64,
        plus: bool,
        trust: Trust,
    ) -> Option<Vec<DirEntry>> {
        let open = self.dirs.get(handle).ok()?;
        if from == 0 && open.used.load(Ordering::Acquire) {
            if trust == Trust::Any {
                // While this answer waits to be needed, the source's may bring another snapshot.
                return None;
            }
            let fresh = self.listing_known(open.node, trust)?;
            self.renew(&open, fresh);
        }
        let listing = open.snapshot.lock().clone();
        let mut batch = self.dots(open.node, from);
        let is_slow = self.runs_ahead();
        for (index, listed) in entries_from(&listing, from) {
            if batch.len() >= BATCH {
                break;
            }
            if listed.kind == 0 && !plus {
                return None;
            }
            let entry = if plus {
                match self.known_name(open.node, &listed.name, trust) {
                    Some(Ok(entry)) => Some(entry),
                    // Gone since the snapshot: do not list it.
                    Some(Err(_)) => continue,
                    None => {
                        // Nobody has looked at the attributes yet, and it would take long to fetch them. The kernel asks
                        // for what follows without them, unless a program has looked at one by then.
                        if (trust == Trust::Any || is_slow) && !batch.is_empty() {
                            break;
                        }
                        self.put_back(batch);
                        return None;
                    }
                }
            } else {
                None
            };
            batch.push(self.dir_entry(listed, index, entry));
        }
        if trust == Trust::Ttl {
            open.used.store(true, Ordering::Release);
        }
        Some(batch)
    }

    /// Entries from position `from` on. With `plus`, each with its node and attributes.
    pub fn readdir(&self, handle: u64, from: u64, plus: bool) -> Result<Vec<DirEntry>> {
        let open = self.dirs.get(handle)?;
        if from == 0 && open.used.swap(true, Ordering::AcqRel) {
            let fresh = self.listing_once(open.node)?;
            self.renew(&open, fresh);
        }
        let listing = open.snapshot.lock().clone();
        let mut batch = self.dots(open.node, from);
        let is_slow = self.runs_ahead();
        for (index, listed) in entries_from(&listing, from) {
            if batch.len() >= BATCH {
                break;
            }
            // Here and in `readdir_known`: attributes that nobody has looked at yet are not worth a wait.
            if plus && is_slow && !batch.is_empty() && !self.knows(open.node, &listed.name) {
                break;
            }
            // A source that does not tell types in listings is asked for them: FUSE has no "unknown".
            let entry = if plus || listed.kind == 0 {
                match self.entry_of(open.node, &listed.name) {
                    Ok(entry) => Some(entry),
                    Err(error) if error.errno() == Errno::ENOENT => continue,
                    // What was found so far is worth more than the error, which the next request meets.
                    Err(_) if !batch.is_empty() => break,
                    Err(error) => {
                        self.put_back(batch);
                        return Err(error);
                    }
                }
            } else {
                None
            };
            let mut read = self.dir_entry(listed, index, entry);
            if !plus && let Some(entry) = read.entry.take() {
                drop(self.forget(entry.node, 1));
            }
            batch.push(read);
        }
        Ok(batch)
    }

    fn entry_of(&self, parent: NodeId, name: &OsStr) -> Result<Entry> {
        match self.known_name(parent, name, Trust::Ttl) {
            Some(known) => known,
            None => self.lookup(parent, name),
        }
    }

    /// Give back the references that a batch holds, from the entry `sent` on.
    pub fn put_back(&self, batch: impl IntoIterator<Item = DirEntry>) {
        for entry in batch.into_iter().filter_map(|e| e.entry) {
            drop(self.forget(entry.node, 1));
        }
    }

    fn dots(&self, id: NodeId, from: u64) -> Vec<DirEntry> {
        let inodes = self.inodes.lock();
        let parent = inodes
            .get(id)
            .and_then(|node| node.names.first())
            .map_or(id, |(parent, _)| *parent);
        let dot = |name: &str, node: NodeId, next: u64| DirEntry {
            name: name.into(),
            ino: inodes
                .get(node)
                .and_then(|n| n.attr)
                .map_or(node.0, |attr| shown(node, attr.stat).ino),
            kind: crate::sys::S_IFDIR,
            next,
            entry: None,
        };
        [dot(".", id, 1), dot("..", parent, 2)]
            .into_iter()
            .skip(from.min(2) as usize)
            .collect()
    }

    fn dir_entry(
        &self,
        listed: &crate::backing::Listed,
        index: u64,
        entry: Option<Entry>,
    ) -> DirEntry {
        DirEntry {
            name: listed.name.clone(),
            ino: entry.map_or(listed.ino, |entry| entry.stat.ino),
            kind: entry.map_or(listed.kind, |entry| entry.stat.kind()),
            next: index + 3,
            entry,
        }
    }
}

/// The entries from a position on, with their indices.
fn entries_from(
    listing: &Listing,
    from: u64,
) -> impl Iterator<Item = (u64, &crate::backing::Listed)> {
    let first = from.saturating_sub(2);
    let start = first.min(listing.entries.len() as u64) as usize;
    listing.entries[start..]
        .iter()
        .enumerate()
        .map(move |(offset, listed)| ((start + offset) as u64, listed))
}
