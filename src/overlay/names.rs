//! Names: creating, removing, renaming, linking.
//!
//! Each change of a directory is bracketed by `begin_change` and `end_change` of that directory, so that no
//! lookup or listing that was under way meanwhile is remembered.

use super::attrs::Edit;
use super::content::source_flags;
use super::{Caller, Entry, NodeId, Opened, Overlay, STALE};
use crate::error::{Error, Result};
use crate::sys::{Identity, RENAME_EXCHANGE, RENAME_NOREPLACE};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

impl Overlay {
    /// Who makes a new file in `parent`: in a directory with the set-group-id bit the caller's groups
    /// decide whether a file may keep that bit.
    fn creator(&self, caller: Caller, mode: u32, umask: u32) -> Identity {
        let identity = Identity::creating(caller.uid, caller.gid, umask);
        if mode & crate::sys::S_ISGID != 0 {
            identity.with_groups_of(caller.pid)
        } else {
            identity
        }
    }

    /// Run a change of directory `parent` that does `edits` to its names, if it goes well (`None`: unknown ones).
    fn changing_dir<T>(
        &self,
        parent: NodeId,
        edits: Option<&[Edit<'_>]>,
        f: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let begun = self.inodes.lock().begin_change(parent);
        let result = f();
        let mut inodes = self.inodes.lock();
        inodes.edit_listing(parent, edits.filter(|_| result.is_ok()));
        inodes.end_change(parent, begun, None);
        drop(inodes);
        self.names_changed();
        result
    }

    /// Make a name with `make`, then look at what it made.
    fn make(
        &self,
        parent: NodeId,
        (name, kind): (&OsStr, u32),
        make: impl FnOnce(&Arc<OwnedFd>) -> Result<()>,
    ) -> Result<Entry> {
        let dir = self.dir(parent)?;
        self.changing_dir(parent, Some(&[Edit::Add(name, kind)]), || make(&dir))?;
        self.lookup(parent, name)
    }

    /// Create and open a regular file.
    pub fn create(
        &self,
        caller: Caller,
        parent: NodeId,
        name: &OsStr,
        (mode, umask): (u32, u32),
        flags: i32,
    ) -> Result<(Entry, Opened)> {
        let dir = self.dir(parent)?;
        // Truncation is a change of content, which must go through the cache: it comes after the opening.
        let exclusive = OFlag::from_bits_retain(flags & libc::O_EXCL);
        let source_flags = source_flags(flags) | exclusive | OFlag::O_NONBLOCK;
        let edit = [Edit::Add(name, crate::sys::S_IFREG)];
        let fd = self.changing_dir(parent, Some(&edit), || {
            self.creator(caller, mode, umask)
                .run(|| self.source.create(&*dir, name, source_flags, mode & 0o7777))
        });
        let fd = match fd {
            // Something that is no regular file took the name: the kernel should look again.
            Err(error) if matches!(error.errno(), Errno::ELOOP | Errno::ENXIO) => {
                return Err(STALE);
            }
            other => other?,
        };
        self.open_created(parent, name, fd, flags, caller)
    }

    /// Make a regular file, FIFO, socket or device.
    pub fn mknod(
        &self,
        caller: Caller,
        parent: NodeId,
        name: &OsStr,
        (mode, umask): (u32, u32),
        device: u32,
    ) -> Result<Entry> {
        let kind = match mode & crate::sys::S_IFMT {
            0 => crate::sys::S_IFREG,
            kind => kind,
        };
        self.make(parent, (name, kind), |dir| {
            self.creator(caller, mode, umask)
                .run(|| self.source.mknod(&**dir, name, mode, device))
        })
    }

    /// Make a directory.
    pub fn mkdir(
        &self,
        caller: Caller,
        parent: NodeId,
        name: &OsStr,
        (mode, umask): (u32, u32),
    ) -> Result<Entry> {
        let entry = self.make(parent, (name, crate::sys::S_IFDIR), |dir| {
            self.creator(caller, mode, umask)
                .run(|| self.source.mkdir(&**dir, name, mode & 0o7777))
        })?;
        if let Some(node) = self.inodes.lock().get_mut(entry.node) {
            node.fresh = true;
        }
        Ok(entry)
    }

    /// Make a symbolic link.
    pub fn symlink(
        &self,
        caller: Caller,
        parent: NodeId,
        name: &OsStr,
        target: &Path,
    ) -> Result<Entry> {
        self.make(parent, (name, crate::sys::S_IFLNK), |dir| {
            self.creator(caller, 0, 0)
                .run(|| self.source.symlink(&**dir, name, target))
        })
    }

    /// Give the file `id` one more name.
    pub fn link(&self, id: NodeId, parent: NodeId, name: &OsStr) -> Result<Entry> {
        let dir = self.dir(parent)?;
        let kind = self.inodes.lock().get(id).ok_or(STALE)?.kind;
        self.changing_dir(parent, Some(&[Edit::Add(name, kind)]), || {
            self.changing_attributes(id, || {
                self.at_name(id, |old_dir, old_name| {
                    let stat = self.source.stat_at(&**old_dir, old_name, false)?;
                    self.same_file(id, &stat)?;
                    self.source.link((&**old_dir, old_name), (&*dir, name))
                })
                // A file without any name left cannot get one again.
                .map_err(|error| match error.errno() {
                    Errno::ESTALE => Error::new(Errno::ENOENT, "link"),
                    _ => error,
                })
            })
        })?;
        self.lookup(parent, name)
    }

    fn known_child(&self, parent: NodeId, name: &OsStr) -> Option<NodeId> {
        self.inodes.lock().get(parent)?.children.get(name)?.node
    }

    /// Remove a name that is not a directory's.
    pub fn unlink(&self, parent: NodeId, name: &OsStr) -> Result<()> {
        self.remove(parent, name, |dir| self.source.unlink(&**dir, name))
    }

    /// Remove an empty directory.
    pub fn rmdir(&self, parent: NodeId, name: &OsStr) -> Result<()> {
        self.remove(parent, name, |dir| self.source.rmdir(&**dir, name))
    }

    fn remove(
        &self,
        parent: NodeId,
        name: &OsStr,
        remove: impl FnOnce(&Arc<OwnedFd>) -> Result<()>,
    ) -> Result<()> {
        let dir = self.dir(parent)?;
        let victim = self.known_child(parent, name);
        let mut grave = None;
        if let Some(victim) = victim {
            // A directory that some process is in stays usable to it, empty.
            if self.is_dir(victim) {
                grave = self.dir(victim).ok();
            } else if self.is_open_unbacked(victim) {
                // As does a file that was opened from memory.
                grave = self.dig_grave(victim, &dir, name);
            }
            let garbage = {
                let mut inodes = self.inodes.lock();
                inodes.close_cached(victim);
                inodes.take_garbage()
            };
            drop(garbage);
        }
        let removed = || {
            remove(&dir)?;
            let now = self.now();
            let mut inodes = self.inodes.lock();
            inodes.set_child(parent, name, None, now);
            if let Some(victim) = victim {
                inodes.mark_dead_if_nameless(victim);
                if inodes.is_referenced(victim)
                    && let Some(node) = inodes.get_mut(victim)
                {
                    node.grave = grave;
                }
            }
            Ok(())
        };
        let result = self.changing_dir(parent, Some(&[Edit::Remove(name)]), || match victim {
            Some(victim) => self.unlinking(victim, removed),
            None => removed(),
        });
        self.unpin_if_dead(victim);
        result
    }

    /// A file without a name is in nobody's way, and must not stay in memory for ever.
    fn unpin_if_dead(&self, id: Option<NodeId>) {
        let dead = id.and_then(|id| {
            let inodes = self.inodes.lock();
            inodes
                .get(id)
                .filter(|node| node.dead)
                .map(|node| node.file)
        });
        if let Some(file) = dead {
            self.cache.unpin(file);
        }
    }

    /// Run the removal of one name of `victim`. What remains under other names stays warm; what does not
    /// is worth no question to the source.
    fn unlinking(&self, victim: NodeId, f: impl FnOnce() -> Result<()>) -> Result<()> {
        let others = self
            .inodes
            .lock()
            .get(victim)
            .and_then(|node| node.attr)
            .is_none_or(|attr| attr.stat.is_file() && attr.stat.nlink > 1);
        if others {
            return self.changing_attributes(victim, f);
        }
        let mut inodes = self.inodes.lock();
        // The number of links is what `mark_dead_if_nameless` decides by.
        let attr = inodes.get(victim).and_then(|node| node.attr);
        let begun = inodes.begin_change(victim);
        if let Some(node) = inodes.get_mut(victim) {
            node.attr = attr;
        }
        drop(inodes);
        let result = f();
        self.inodes.lock().end_change(victim, begun, None);
        result
    }

    /// Rename; `flags` in the numbers of renameat2(2).
    pub fn rename(&self, from: (NodeId, &OsStr), to: (NodeId, &OsStr), flags: u32) -> Result<()> {
        let (from_dir, to_dir) = (self.dir(from.0)?, self.dir(to.0)?);
        let moved = self.known_child(from.0, from.1);
        let other = self.known_child(to.0, to.1).filter(|id| Some(*id) != moved);
        let exchange = flags & RENAME_EXCHANGE != 0;
        let grave = match other {
            Some(other) if !exchange => self.dig_grave(other, &to_dir, to.1),
            _ => None,
        };
        let rename = || {
            let _under_way = self.renames.read();
            self.source
                .rename((&*from_dir, from.1), (&*to_dir, to.1), flags)?;
            let now = self.now();
            let mut inodes = self.inodes.lock();
            if flags & !(RENAME_NOREPLACE | RENAME_EXCHANGE) == 0 {
                match other {
                    // The table does not know what comes: it was told of a change meanwhile.
                    None if exchange => inodes.unlearn(from.0, from.1),
                    _ => inodes.set_child(from.0, from.1, other.filter(|_| exchange), now),
                }
            } else {
                // RENAME_WHITEOUT leaves a device node at the old name.
                inodes.set_child(from.0, from.1, None, now);
                if let Some(dir) = inodes.get_mut(from.0) {
                    dir.children.remove(from.1);
                }
            }
            // When the table does not know the file, nothing is known of the name either.
            match moved {
                Some(_) => inodes.set_child(to.0, to.1, moved, now),
                None => {
                    if let Some(dir) = inodes.get_mut(to.0) {
                        dir.children.remove(to.1);
                    }
                }
            }
            if let Some(other) = other.filter(|_| !exchange) {
                inodes.mark_dead_if_nameless(other);
                if inodes.is_referenced(other)
                    && let Some(node) = inodes.get_mut(other)
                {
                    node.grave = grave;
                }
            }
            Ok(())
        };
        let kind_of = |id: Option<NodeId>| Some(self.inodes.lock().get(id?)?.kind);
        let (moved_kind, other_kind) = (kind_of(moved), kind_of(other));
        let left = match exchange {
            true => other_kind.map(|kind| Edit::Add(from.1, kind)),
            // RENAME_WHITEOUT leaves something there.
            false => (flags & !RENAME_NOREPLACE == 0).then_some(Edit::Remove(from.1)),
        };
        let come = moved_kind.map(|kind| Edit::Add(to.1, kind));
        let (left, come) = (left.map(|edit| [edit]), come.map(|edit| [edit]));
        let [left, come] = [&left, &come].map(|edits| edits.as_ref().map(|edits| &edits[..]));
        let result = self.changing_dir(from.0, left, || {
            self.changing_dir(to.0, come, || {
                self.changing_if_known(moved, || self.changing_if_known(other, rename))
            })
        });
        self.unpin_if_dead(other);
        if result.is_ok() {
            for (id, _) in [(moved, to), (other, from)] {
                self.rename_record(id);
            }
        }
        result
    }

    fn changing_if_known<T>(&self, id: Option<NodeId>, f: impl FnOnce() -> Result<T>) -> Result<T> {
        match id {
            Some(id) => self.changing_attributes(id, f),
            None => f(),
        }
    }

    /// A program that has looked a name up may open it after a rename put another file there. A descriptor
    /// of the file that goes keeps that opening possible until the kernel forgets the node. Taken before
    /// the rename: afterwards there is no name to take it by.
    fn dig_grave(&self, id: NodeId, dir: &Arc<OwnedFd>, name: &OsStr) -> Option<Arc<OwnedFd>> {
        let is_file = self
            .inodes
            .lock()
            .get(id)
            .is_some_and(|node| node.kind == crate::sys::S_IFREG);
        if !is_file || !(self.keeps_graves || self.is_open_unbacked(id)) {
            return None;
        }
        let named = self.source.name(&**dir, name).ok()?;
        let stat = self.source.stat(&named, false).ok()?;
        self.same_file(id, &stat).ok()?;
        Some(Arc::new(named))
    }

    /// Is the file open by a handle that has no descriptor?
    fn is_open_unbacked(&self, id: NodeId) -> bool {
        self.inodes
            .lock()
            .get(id)
            .is_some_and(|node| node.unbacked > 0)
    }

    fn rename_record(&self, id: Option<NodeId>) {
        let Some(id) = id else { return };
        let file = self.inodes.lock().get(id).map(|node| node.file);
        if let Some(file) = file.filter(|file| self.cache.holds(*file)) {
            let path = self.inodes.lock().path(id);
            self.cache.rename(file, &path);
        }
    }
}
