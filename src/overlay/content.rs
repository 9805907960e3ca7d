//! Files: opening, reading, writing, and everything else that needs a file handle; attributes to be set.

use super::attrs::{Asked, Xattrs};
use super::handles::{OpenFile, Unbacked};
use super::inodes::is_fresh;
use super::walk::SMALL;
use super::{Caller, Entry, NodeId, Overlay, STALE, shown};
use crate::backing::BackingFile;
use crate::cache::{Check, FileId, OpenRecord, Trust, Version};
use crate::error::{Error, Result};
use crate::file::{CachedFile, Changed};
use crate::hooks::Served;
use crate::span::Span;
use crate::sys::{Identity, SetTime, Stat, XattrAnswer};
use bytes::Bytes;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::Duration;

/// May the kernel keep what it has cached of a file that is being opened?
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Keep {
    /// Yes: it belongs to the version that the file has.
    Yes,
    /// No: drop it.
    No,
}

/// An open file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Opened {
    /// Its handle.
    pub handle: u64,
    /// About the kernel's page cache.
    pub keep: Keep,
    /// Every read has to reach us: somebody wants to know of them.
    pub direct: bool,
    /// Opened from memory: to be opened in the source, too, when it stays open ([`Overlay::back`]).
    pub unbacked: bool,
}

/// How a program writes.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct How {
    /// At the end of the file (`O_APPEND`).
    pub append: bool,
    /// The write takes set-user-id and set-group-id bits away: the writer is not privileged.
    pub clear_setid: bool,
}

/// A comparison of a file's content and attributes with the source, from before the source was asked.
struct Asking {
    record: OpenRecord,
    check: Check,
    asked: Asked,
}

/// Attributes to set; what is `None` stays.
#[derive(Clone, Copy, Default, Debug)]
#[allow(missing_docs, reason = "the names are those of stat(2)")]
pub struct SetAttr {
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub atime: Option<SetTime>,
    pub mtime: Option<SetTime>,
}

/// Open flags that mean something to the source. O_DIRECT does not: it would force the alignment of one file
/// system on programs that opened another, and the source's own page cache is coherent. Nor does O_APPEND,
/// which each write brings along.
pub(super) fn source_flags(flags: i32) -> OFlag {
    let kept = libc::O_ACCMODE | libc::O_SYNC | libc::O_DSYNC;
    OFlag::from_bits_retain(flags & kept)
}

fn is_readable_only(flags: i32) -> bool {
    flags & libc::O_ACCMODE == libc::O_RDONLY && flags & libc::O_TRUNC == 0
}

/// How long a file system is believed not to have extended attributes of a kind, once it has said so of one file.
const NO_XATTRS_FOR: Duration = Duration::from_secs(60);

impl Overlay {
    /// Open for reading without asking the source: possible while its attributes are believed and a descriptor of it is
    /// still there or all of it is cached, or (with [`Trust::Any`]) when anything of it is cached. Without a descriptor the
    /// file is opened in the source when a read misses, when its last name goes, or when it stays open ([`Overlay::back`]):
    /// from then on it is that file, whatever its name leads to.
    pub fn open_known(self: &Arc<Self>, id: NodeId, flags: i32, trust: Trust) -> Option<Opened> {
        if !is_readable_only(flags) {
            return None;
        }
        let (stat, _) = self.getattr_known(id, trust)?;
        if !stat.is_file() {
            return None;
        }
        let now = self.now();
        let fd = self.inodes.lock().read_fd(id, now);
        let version = self.version_in(id, &stat)?;
        let record = self.record(id, version.id);
        if trust == Trust::Ttl {
            let is_current = self.cache.version(version.id) == Some(version);
            let whole = Span::new(0, stat.size);
            // A record of another time, or one with gaps: let the slow way sort it out.
            if !is_current || (fd.is_none() && !self.cache.covers(version.id, whole)) {
                return None;
            }
        }
        let unbacked = match &fd {
            Some(_) => None,
            None => Some(self.open_unbacked(id)?),
        };
        let backing = match fd {
            Some(fd) => {
                if let Some(node) = self.inodes.lock().get_mut(id) {
                    node.opened(&fd);
                }
                BackingFile::opened(self.source.clone(), fd)
            }
            None => {
                let overlay = Arc::downgrade(self);
                BackingFile::lazy(self.source.clone(), move || {
                    let overlay = overlay.upgrade().ok_or(STALE)?;
                    if unbacked.is_some_and(|unbacked| !overlay.is_still(id, unbacked)) {
                        return Err(STALE);
                    }
                    overlay.read_descriptor(id).map(|(fd, _)| fd)
                })
            }
        };
        let file = CachedFile::new(record, backing);
        if trust == Trust::Ttl && stat.size <= SMALL {
            self.opened_small(id);
        }
        Some(self.insert(id, file, unbacked, self.keep(id, version)))
    }

    fn open_unbacked(&self, id: NodeId) -> Option<Unbacked> {
        let mut inodes = self.inodes.lock();
        let node = inodes.get_mut(id)?;
        node.unbacked += 1;
        Some(Unbacked(node.generation))
    }

    /// Does the node still stand for the file that was opened?
    fn is_still(&self, id: NodeId, unbacked: Unbacked) -> bool {
        let inodes = self.inodes.lock();
        inodes
            .get(id)
            .is_some_and(|node| node.generation == unbacked.0)
    }

    /// Was the file removed, by somebody else and before it was opened in the source, and its number given to another?
    fn is_lost(&self, open: &OpenFile) -> bool {
        open.file.backing().fd_if_open().is_none()
            && open
                .unbacked
                .is_some_and(|unbacked| !self.is_still(open.node, unbacked))
    }

    /// Is this handle open, and still without a descriptor?
    pub fn is_unbacked(&self, handle: u64) -> bool {
        let open = self.files.get(handle);
        open.is_ok_and(|open| open.unbacked.is_some() && open.file.backing().fd_if_open().is_none())
    }

    /// Open in the source a file that is open from memory alone.
    pub fn back(&self, handle: u64) {
        if let Ok(open) = self.files.get(handle)
            && let Err(error) = open.file.backing().fd()
        {
            tracing::debug!("opening what is open: {error}");
        }
    }

    /// Open.
    pub fn open(&self, caller: Caller, id: NodeId, flags: i32) -> Result<Opened> {
        let asking = self.asking(id)?;
        let (fd, stat) = if is_readable_only(flags) {
            self.read_descriptor(id)?
        } else {
            let (fd, stat) = self.descriptor(id, source_flags(flags))?;
            (Arc::new(fd), Some(stat))
        };
        let (file, stat) = self.compared_file(id, fd, asking, stat)?;
        if is_readable_only(flags) && stat.size <= SMALL {
            self.opened_small(id);
        }
        if flags & libc::O_TRUNC != 0 {
            self.cut_opened(caller, id, &file, flags)?;
            return Ok(self.insert(id, file, None, Keep::No));
        }
        Ok(self.insert(id, file, None, self.keep(id, Version::of(&stat))))
    }

    fn insert(
        &self,
        id: NodeId,
        file: CachedFile,
        unbacked: Option<Unbacked>,
        keep: Keep,
    ) -> Opened {
        let watched = self.watch(id);
        let direct = watched
            .as_ref()
            .is_some_and(|watched| watched.watch.reads());
        let open = OpenFile {
            node: id,
            file: file.reading_ahead(self.ahead.get(), id.0),
            unbacked,
            watched,
        };
        Opened {
            unbacked: open.unbacked.is_some(),
            handle: self.files.insert(open),
            keep,
            direct,
        }
    }

    /// A file to be read without any program having opened it.
    pub(super) fn file_to_read(&self, id: NodeId) -> Result<CachedFile> {
        let asking = self.asking(id)?;
        let before = self.cache.version(asking.record.id());
        let (fd, stat) = self.read_descriptor(id)?;
        let (file, _) = self.compared_file(id, fd, asking, stat)?;
        if before.is_some() && self.cache.version(file.id()) != before {
            self.note_compared(id, crate::cache::Compared::Changed);
        }
        Ok(file)
    }

    fn record(&self, id: NodeId, file: FileId) -> OpenRecord {
        // Before the cache's lock is taken, which is the last.
        let path = self.inodes.lock().path(id);
        self.cache.open(file, || path)
    }

    /// Begin to compare the content of `id`, before the source is asked anything.
    fn asking(&self, id: NodeId) -> Result<Asking> {
        let asked = self.question();
        let file = self.inodes.lock().get(id).ok_or(STALE)?.file;
        Ok(Asking {
            record: self.record(id, file),
            check: self.cache.begin_check(file),
            asked,
        })
    }

    /// The data path of an open descriptor, its record compared with the source: with `stat`, when the source
    /// said that since `asking`.
    fn compared_file(
        &self,
        id: NodeId,
        fd: Arc<OwnedFd>,
        asking: Asking,
        stat: Option<Stat>,
    ) -> Result<(CachedFile, Stat)> {
        let stat = match stat {
            Some(stat) => stat,
            None => self.source.stat(&*fd, Self::FRESH)?,
        };
        self.cache.finish_check(asking.check, Version::of(&stat));
        let mut inodes = self.inodes.lock();
        inodes.store_attr(id, self.answer(stat, &asking.asked), asking.asked.epoch);
        if let Some(node) = inodes.get_mut(id) {
            node.opened(&fd);
        }
        drop(inodes);
        let backing = BackingFile::opened(self.source.clone(), fd);
        Ok((CachedFile::new(asking.record, backing), stat))
    }

    /// The version in attributes from memory, with the source's own inode number.
    fn version_in(&self, id: NodeId, stat: &Stat) -> Option<Version> {
        let file = self.inodes.lock().get(id)?.file;
        Some(Version {
            id: file,
            ..Version::of(stat)
        })
    }

    /// Decide about the kernel's pages, and note which version they belong to from now on.
    fn keep(&self, id: NodeId, version: Version) -> Keep {
        let racy = version.is_racy(self.cache.clock().wall());
        let mut inodes = self.inodes.lock();
        let Some(node) = inodes.get_mut(id) else {
            return Keep::No;
        };
        // A version that we know of old, or made ourselves, stays what it was.
        if matches!(node.seen, Some((seen, false)) if seen == version) {
            return Keep::Yes;
        }
        node.seen = Some((version, racy));
        Keep::No
    }

    /// The file was made by us just now: the kernel's pages will be our own writes.
    fn keep_own(&self, id: NodeId, version: Version) {
        if let Some(node) = self.inodes.lock().get_mut(id) {
            node.seen = Some((version, version.is_coarse()));
        }
    }

    /// A descriptor for reading, shared by all who read the file and kept for a while after the last; with
    /// the file's stat if it was opened just now.
    fn read_descriptor(&self, id: NodeId) -> Result<(Arc<OwnedFd>, Option<Stat>)> {
        let now = self.now();
        let cached = self.inodes.lock().read_fd(id, now);
        if let Some(fd) = cached {
            return Ok((fd, None));
        }
        let (fd, stat) = self.descriptor(id, OFlag::O_RDONLY)?;
        let fd = Arc::new(fd);
        let mut inodes = self.inodes.lock();
        if let Some(file) = inodes.get(id).map(|node| node.file) {
            inodes.keep_read_fd(id, file, fd.clone(), now);
        }
        if let Some(node) = inodes.get_mut(id) {
            node.opened(&fd);
        }
        let garbage = inodes.take_garbage();
        drop(inodes);
        drop(garbage);
        Ok((fd, Some(stat)))
    }

    /// A new descriptor of exactly this file, and the file's stat.
    fn descriptor(&self, id: NodeId, flags: OFlag) -> Result<(OwnedFd, Stat)> {
        let by_name = self.at_name(id, |dir, name| {
            let fd = self
                .source
                .open_file(&**dir, name, flags)
                .or_else(|error| {
                    // An error of another file that has the name by now is none of this file's.
                    let stat = self.source.stat_at(&**dir, name, false)?;
                    self.same_file(id, &stat).and(Err(error))
                })?;
            let stat = self.source.stat(&fd, Self::FRESH)?;
            self.same_file(id, &stat).map(|()| (fd, stat))
        });
        match by_name {
            Err(error) if error.errno() == Errno::ESTALE => match self.held(id) {
                Some(held) => {
                    let fd = self.source.reopen(&*held, flags)?;
                    let stat = self.source.stat(&fd, Self::FRESH)?;
                    Ok((fd, stat))
                }
                None => Err(error),
            },
            other => other,
        }
    }

    /// Close a handle. What is returned must be dropped by a thread that may wait: it closes a descriptor.
    #[must_use]
    pub fn release(&self, handle: u64) -> Option<Arc<OpenFile>> {
        let open = self.files.remove(handle)?;
        if open.unbacked.is_some()
            && let Some(node) = self.inodes.lock().get_mut(open.node)
        {
            node.unbacked = node.unbacked.saturating_sub(1);
        }
        if open.file.backing().is_shared() {
            return None;
        }
        Some(open)
    }

    /// Read from memory alone.
    pub fn read_known(&self, handle: u64, span: Span, trust: Trust) -> Option<Bytes> {
        let open = self.files.get(handle).ok()?;
        if self.is_lost(&open) {
            return None;
        }
        match trust {
            Trust::Ttl => open.file.read_known(span, trust),
            // The source is asked as well, or does not answer.
            Trust::Any => open.file.read_cached(span, trust),
        }
    }

    /// Read; shorter at end of file.
    pub fn read(&self, handle: u64, span: Span) -> Result<Bytes> {
        self.read_served(handle, span).map(|(bytes, _)| bytes)
    }

    /// As [`Overlay::read`], and where the bytes came from.
    pub fn read_served(&self, handle: u64, span: Span) -> Result<(Bytes, Served)> {
        let open = self.files.get(handle)?;
        if self.is_lost(&open) {
            return Err(STALE);
        }
        let before = self.cache.version(open.file.id());
        let read = match open.file.read_served(span) {
            // Somebody else took its last name away before it was opened in the source. What memory has of it is what it
            // was then, and nobody can change that by name.
            Err(error) if open.unbacked.is_some() && error.errno() == Errno::ESTALE => {
                let cached = open.file.read_cached(span, Trust::Any);
                (cached.ok_or(error)?, Served::Memory)
            }
            other => other?,
        };
        if before.is_some() && self.cache.version(open.file.id()) != before {
            self.note_compared(open.node, crate::cache::Compared::Changed);
        }
        Ok(read)
    }

    /// Write all of `data`; returns how many bytes went in.
    pub fn write(&self, handle: u64, pos: u64, data: Bytes, how: How) -> Result<usize> {
        let placed = self.write_placed(handle, pos, data, how);
        placed.map(|(count, _)| count)
    }

    /// As [`Overlay::write`], and where the bytes went: an append goes to the end of the file, wherever `pos` was.
    pub fn write_placed(
        &self,
        handle: u64,
        pos: u64,
        data: Bytes,
        how: How,
    ) -> Result<(usize, u64)> {
        let open = self.files.get(handle)?;
        let identity = Identity::changing(!how.clear_setid);
        self.changing_content(open.node, || {
            let changed = identity.run(|| open.file.write_at(pos, data, how.append))?;
            let at = if how.append {
                changed.stat.size.saturating_sub(changed.value as u64)
            } else {
                pos
            };
            Ok(Changed {
                value: (changed.value, at),
                stat: changed.stat,
            })
        })
    }

    /// Run a change of the content of `id`; its attributes afterwards are known from the change itself.
    fn changing_content<T>(&self, id: NodeId, f: impl FnOnce() -> Result<Changed<T>>) -> Result<T> {
        let asked = self.question();
        let begun = self.inodes.lock().begin_change(id);
        let result = f();
        let attr = match &result {
            Ok(changed) => {
                self.see(id, &changed.stat);
                Some(self.answer(changed.stat, &asked))
            }
            Err(_) => None,
        };
        self.inodes.lock().end_change(id, begun, attr);
        result.map(|changed| changed.value)
    }

    /// O_TRUNC of a file that was opened with `flags`: for reading only, it takes another descriptor.
    pub(super) fn cut_opened(
        &self,
        caller: Caller,
        id: NodeId,
        file: &CachedFile,
        flags: i32,
    ) -> Result<()> {
        if flags & libc::O_ACCMODE == libc::O_RDONLY {
            return self.truncate(caller, id, None, 0);
        }
        self.cut(caller, id, file, 0)
    }

    fn cut(&self, caller: Caller, id: NodeId, file: &CachedFile, size: u64) -> Result<()> {
        let identity = Identity::changing(caller.uid == 0);
        self.changing_content(id, || {
            let stat = identity.run(|| file.truncate(size))?;
            Ok(Changed { value: (), stat })
        })
    }

    /// Set attributes; returns them all afterwards.
    pub fn setattr(
        &self,
        caller: Caller,
        id: NodeId,
        handle: Option<u64>,
        set: &SetAttr,
    ) -> Result<(Stat, Duration)> {
        if let Some(size) = set.size {
            self.truncate(caller, id, handle, size)?;
        }
        let nothing =
            set.size.is_none() && set.mode.is_none() && set.atime.is_none() && set.mtime.is_none();
        // chown(-1, -1) arrives as a change of nothing; it moves ctime.
        let owner = set.uid.is_some() || set.gid.is_some() || nothing;
        let times = set.atime.is_some() || set.mtime.is_some();
        if owner || times || set.mode.is_some() {
            let named = self.named(id)?;
            self.changing_attributes(id, || {
                if owner {
                    self.source.chown(&*named, set.uid, set.gid)?;
                }
                if let Some(mode) = set.mode {
                    self.source.chmod(&*named, mode & 0o7777)?;
                }
                if times {
                    self.source.utimens(
                        &*named,
                        set.atime.unwrap_or(SetTime::Omit),
                        set.mtime.unwrap_or(SetTime::Omit),
                    )?;
                }
                Ok(())
            })?;
        }
        if let Some(known) = self.getattr_known(id, Trust::Ttl) {
            return Ok(known);
        }
        self.getattr(id)
    }

    fn truncate(&self, caller: Caller, id: NodeId, handle: Option<u64>, size: u64) -> Result<()> {
        if let Some(handle) = handle {
            let open = self.files.get(handle)?;
            return self.cut(caller, id, &open.file, size);
        }
        let asking = self.asking(id)?;
        let (fd, stat) = self.descriptor(id, OFlag::O_WRONLY)?;
        let (file, _) = self.compared_file(id, Arc::new(fd), asking, Some(stat))?;
        self.cut(caller, id, &file, size)
    }

    /// What close(2) must report: some file systems tell of a failed write only then.
    pub fn flush(&self, handle: u64) -> Result<()> {
        let open = self.files.get(handle)?;
        match open.file.backing().fd_if_open() {
            Some(fd) => self.source.flush(&fd),
            None => Ok(()),
        }
    }

    /// fsync(2) or fdatasync(2).
    pub fn sync(&self, handle: u64, data_only: bool) -> Result<()> {
        let open = self.files.get(handle)?;
        let fd = open.file.backing().fd()?;
        self.source.sync(&fd, data_only)
    }

    /// fallocate(2) with its raw mode.
    pub fn allocate(
        &self,
        caller: Caller,
        handle: u64,
        mode: i32,
        pos: u64,
        size: u64,
    ) -> Result<()> {
        let open = self.files.get(handle)?;
        let identity = Identity::changing(caller.uid == 0);
        self.changing_content(open.node, || {
            open.file.change(allocate_span(mode, pos, size), || {
                let fd = open.file.backing().fd()?;
                identity.run(|| self.source.allocate(&fd, mode, pos, size))
            })
        })
    }

    /// copy_file_range(2) within the source.
    pub fn copy(
        &self,
        caller: Caller,
        from: (u64, u64),
        to: (u64, u64),
        size: u64,
    ) -> Result<usize> {
        let (source_file, target) = (self.files.get(from.0)?, self.files.get(to.0)?);
        let identity = Identity::changing(caller.uid == 0);
        // The reply has 32 bits for the count; programs go on after a short copy.
        let size = size.min(1 << 30);
        self.changing_content(target.node, || {
            target.file.change(Span::new(to.1, size), || {
                let from_fd = source_file.file.backing().fd()?;
                let to_fd = target.file.backing().fd()?;
                identity.run(|| {
                    self.source
                        .copy((&from_fd, from.1), (&to_fd, to.1), size as usize)
                })
            })
        })
    }

    /// lseek(2) for SEEK_DATA and SEEK_HOLE: every write is in the source already.
    pub fn seek(&self, handle: u64, pos: i64, whence: i32) -> Result<i64> {
        let open = self.files.get(handle)?;
        let fd = open.file.backing().fd()?;
        self.source.seek(&fd, pos, whence)
    }

    // ---- what needs a file but no handle ----

    /// Text of a symbolic link, from memory.
    pub fn readlink_known(&self, id: NodeId, trust: Trust) -> Option<OsString> {
        let (stat, _) = self.getattr_known(id, trust)?;
        let version = self.version_in(id, &stat)?;
        let inodes = self.inodes.lock();
        let (text, of) = inodes.get(id)?.link.as_ref()?;
        (*of == version).then(|| text.clone())
    }

    /// Text of a symbolic link.
    pub fn readlink(&self, id: NodeId) -> Result<OsString> {
        let (text, stat) = self.at_name(id, |dir, name| {
            let stat = self.source.stat_at(&**dir, name, false)?;
            self.same_file(id, &stat)?;
            Ok((self.source.readlink(&**dir, name)?, stat))
        })?;
        if let Some(node) = self.inodes.lock().get_mut(id) {
            node.link = Some((text.clone(), Version::of(&stat)));
        }
        Ok(text)
    }

    /// Value of an extended attribute, from memory; the errno when it is known to be absent.
    pub fn getxattr_known(
        &self,
        id: NodeId,
        name: &OsStr,
        size: u32,
        trust: Trust,
    ) -> Option<Result<XattrAnswer>> {
        if let Some(key) = self.xattr_kind(id, name)
            && let Some(since) = self.no_xattrs.lock().get(&key)
            && is_fresh(*since, self.now(), NO_XATTRS_FOR)
        {
            return Some(Err(Error::new(Errno::EOPNOTSUPP, "getxattr")));
        }
        self.xattrs_known(id, trust, |xattrs| {
            Some(match xattrs.values.get(name)? {
                Ok(value) => fit(value, size),
                Err(errno) => Err(Error::new(*errno, "getxattr")),
            })
        })
    }

    /// Names of the extended attributes, from memory.
    pub fn listxattr_known(
        &self,
        id: NodeId,
        size: u32,
        trust: Trust,
    ) -> Option<Result<XattrAnswer>> {
        self.xattrs_known(id, trust, |xattrs| {
            xattrs.list.as_ref().map(|list| fit(list, size))
        })
    }

    /// The file system and the kind of an extended attribute (`security.`, `system.` ...), of a file or directory: others may
    /// have none where these do.
    fn xattr_kind(&self, id: NodeId, name: &OsStr) -> Option<(u64, OsString)> {
        let inodes = self.inodes.lock();
        let node = inodes.get(id)?;
        let has_any = matches!(node.kind, crate::sys::S_IFREG | crate::sys::S_IFDIR);
        let kind = name.as_encoded_bytes().split(|byte| *byte == b'.').next()?;
        has_any.then(|| (node.file.dev, OsStr::from_bytes(kind).to_owned()))
    }

    fn xattrs_known<T>(
        &self,
        id: NodeId,
        trust: Trust,
        f: impl FnOnce(&Xattrs) -> Option<T>,
    ) -> Option<T> {
        let (stat, _) = self.getattr_known(id, trust)?;
        let version = self.version_in(id, &stat)?;
        let inodes = self.inodes.lock();
        let (of, xattrs) = inodes.get(id)?.xattrs.as_ref()?;
        if *of == version { f(xattrs) } else { None }
    }

    /// Value of an extended attribute.
    pub fn getxattr(&self, id: NodeId, name: &OsStr, size: u32) -> Result<XattrAnswer> {
        let at = self.name_of(id).filter(|_| self.runs_ahead());
        let Some((dir, file)) = at else {
            return self.getxattr_source(id, name, size);
        };
        self.fetch_xattrs_after(dir, &file, name);
        // Asked once, as names are: no entry has a name with a slash.
        let about = [file.as_os_str(), name].join(OsStr::new("/"));
        let _asking = self.questions.begin(dir, &about);
        // Answered meanwhile, if it was asked already.
        if let Some(known) = self.getxattr_known(id, name, size, Trust::Ttl) {
            return known;
        }
        self.getxattr_source(id, name, size)
    }

    pub(super) fn getxattr_source(
        &self,
        id: NodeId,
        name: &OsStr,
        size: u32,
    ) -> Result<XattrAnswer> {
        let named = self.named(id)?;
        let version = self.version_now(id, &named)?;
        let answer = self.whole_xattr(|size| self.source.getxattr(&*named, name, size));
        let known = match &answer {
            Ok(value) if value.len() <= Xattrs::VALUE_MAX => Some(Ok(value.clone())),
            Err(error) if matches!(error.errno(), NO_XATTR | Errno::EOPNOTSUPP) => {
                Some(Err(error.errno()))
            }
            _ => None,
        };
        if let Some(Err(Errno::EOPNOTSUPP)) = &known
            && !self.ttl().is_zero()
            && let Some(key) = self.xattr_kind(id, name)
        {
            // As every file there: `ls -l` asks for two of each.
            self.no_xattrs.lock().insert(key, self.now());
        }
        if let Some(known) = known {
            self.keep_xattr(id, version, |xattrs| {
                if xattrs.values.len() < Xattrs::NAMES_MAX {
                    xattrs.values.insert(name.to_owned(), known);
                }
            });
        }
        fit(&answer?, size)
    }

    /// Names of the extended attributes.
    pub fn listxattr(&self, id: NodeId, size: u32) -> Result<XattrAnswer> {
        let named = self.named(id)?;
        let version = self.version_now(id, &named)?;
        let list = self.whole_xattr(|size| self.source.listxattr(&*named, size))?;
        if list.len() <= Xattrs::VALUE_MAX {
            self.keep_xattr(id, version, |xattrs| xattrs.list = Some(list.clone()));
        }
        fit(&list, size)
    }

    /// The whole value, whatever its size: small ones with one call.
    fn whole_xattr(&self, get: impl Fn(u32) -> Result<XattrAnswer>) -> Result<Vec<u8>> {
        let answer = match get(Xattrs::VALUE_MAX as u32) {
            Err(error) if error.errno() == Errno::ERANGE => get(u32::from(u16::MAX) + 1),
            other => other,
        };
        match answer? {
            XattrAnswer::Data(value) => Ok(value),
            XattrAnswer::Size(_) => Err(Error::new(Errno::EIO, "getxattr")),
        }
    }

    /// The version before a question that takes no part in the coherence rule.
    fn version_now(&self, id: NodeId, named: &Arc<OwnedFd>) -> Result<Version> {
        if let Some((stat, _)) = self.getattr_known(id, Trust::Ttl)
            && let Some(version) = self.version_in(id, &stat)
        {
            return Ok(version);
        }
        Ok(Version::of(&self.source.stat(&**named, false)?))
    }

    fn keep_xattr(&self, id: NodeId, version: Version, keep: impl FnOnce(&mut Xattrs)) {
        if version.is_racy(self.cache.clock().wall()) {
            return;
        }
        let mut inodes = self.inodes.lock();
        let Some(node) = inodes.get_mut(id) else {
            return;
        };
        match &mut node.xattrs {
            Some((of, xattrs)) if *of == version => keep(xattrs),
            slot => {
                let mut xattrs = Xattrs::default();
                keep(&mut xattrs);
                *slot = Some((version, xattrs));
            }
        }
    }

    /// Set an extended attribute. Access control lists are among them; they change the mode too.
    pub fn setxattr(
        &self,
        caller: Caller,
        id: NodeId,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        position: u32,
    ) -> Result<()> {
        let named = self.named(id)?;
        self.no_xattrs.lock().clear();
        // Setting an ACL takes the set-group-id bit away from a caller outside the group, as chmod does.
        let identity = if name == "system.posix_acl_access" {
            Identity::creating(caller.uid, caller.gid, 0).with_groups_of(caller.pid)
        } else {
            Identity::DAEMON
        };
        self.changing_attributes(id, || {
            identity.run(|| self.source.setxattr(&*named, name, value, flags, position))
        })
    }

    /// Remove an extended attribute.
    pub fn removexattr(&self, id: NodeId, name: &OsStr) -> Result<()> {
        let named = self.named(id)?;
        self.changing_attributes(id, || self.source.removexattr(&*named, name))
    }

    /// access(2) with the daemon's rights, which are the caller's where the kernel does not check by itself.
    pub fn access(&self, id: NodeId, mask: i32) -> Result<()> {
        if mask == libc::F_OK {
            return self.getattr(id).map(drop);
        }
        if self.is_dir(id) {
            return self.source.access(&*self.dir(id)?, OsStr::new("."), mask);
        }
        self.at_name(id, |dir, name| {
            let stat = self.source.stat_at(&**dir, name, false)?;
            self.same_file(id, &stat)?;
            self.source.access(&**dir, name, mask)
        })
    }

    /// statvfs(3) of the source.
    pub fn statfs(&self) -> Result<nix::sys::statvfs::Statvfs> {
        let answer = self.source.statfs(&*self.root)?;
        *self.statfs.lock() = Some(answer);
        Ok(answer)
    }

    /// The last answer of [`Overlay::statfs`].
    pub fn statfs_known(&self) -> Option<nix::sys::statvfs::Statvfs> {
        *self.statfs.lock()
    }

    /// The entry of a file that was just created and is open as `fd`, with a handle.
    pub(super) fn open_created(
        &self,
        parent: NodeId,
        name: &OsStr,
        fd: OwnedFd,
        flags: i32,
        caller: Caller,
    ) -> Result<(Entry, Opened)> {
        let asked = self.question();
        let stat = self.source.stat(&fd, false)?;
        if !stat.is_file() {
            return Err(STALE);
        }
        let entry = self.learn(parent, name, stat, &asked);
        let opened = self
            .asking(entry.node)
            .and_then(|asking| self.compared_file(entry.node, Arc::new(fd), asking, Some(stat)))
            .and_then(|(file, stat)| {
                if flags & libc::O_TRUNC != 0 && stat.size > 0 {
                    // Not through this descriptor, which may be for reading only.
                    self.truncate(caller, entry.node, None, 0)?;
                }
                self.keep_own(entry.node, Version::of(&stat));
                Ok(self.insert(entry.node, file, None, Keep::No))
            });
        match opened {
            Ok(opened) => {
                let stat = self
                    .getattr_known(entry.node, Trust::Ttl)
                    .map_or(shown(entry.node, stat), |(stat, _)| stat);
                Ok((Entry { stat, ..entry }, opened))
            }
            Err(error) => {
                drop(self.forget(entry.node, 1));
                Err(error)
            }
        }
    }
}

#[cfg(target_os = "linux")]
const NO_XATTR: Errno = Errno::ENODATA;
#[cfg(target_os = "macos")]
const NO_XATTR: Errno = Errno::ENOATTR;

/// A value as getxattr(2) returns it into a buffer of `size` bytes.
fn fit(value: &[u8], size: u32) -> Result<XattrAnswer> {
    if size == 0 {
        Ok(XattrAnswer::Size(value.len() as u32))
    } else if value.len() > size as usize {
        Err(Error::new(Errno::ERANGE, "getxattr"))
    } else {
        Ok(XattrAnswer::Data(value.to_vec()))
    }
}

/// The bytes at stake in an fallocate(2) call: inserting or collapsing a range moves everything behind it.
fn allocate_span(mode: i32, pos: u64, size: u64) -> Span {
    #[cfg(target_os = "linux")]
    if mode & (libc::FALLOC_FL_COLLAPSE_RANGE | libc::FALLOC_FL_INSERT_RANGE) != 0 {
        return Span::from(pos);
    }
    let _ = mode;
    Span::new(pos, size)
}
