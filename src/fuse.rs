//! The kernel's face: each FUSE request becomes an [`Overlay`] call, its result a reply. No meaning here.
//!
//! Every callback follows one pattern. What memory knows is answered on the FUSE thread that received the
//! request. All else goes through [`Patience`], which knows where and for how long the source may be asked, so
//! that a source that hangs never takes all FUSE threads with it.

mod invalidator;
mod reply;
mod tell;

pub use invalidator::Invalidator;

use crate::ask::{Ask, Warmed};
use crate::cache::Trust;
use crate::config;
use crate::error::Result;
use crate::hooks::{Hooks, Kind, Served};
use crate::overlay::{
    Caller, DirEntry, Entry, Garbage, How, Keep, KeepDir, NodeId, Opened, OpenedDir, Overlay,
    SetAttr,
};
use crate::patience::Patience;
use crate::span::Span;
use crate::sys::{self, Stat};
use bytes::Bytes;
use crossbeam_channel::Sender;
use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags,
    Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, PollEvents,
    PollFlags, PollNotifier, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use reply::{
    code, file_attr, send_attr, send_count, send_empty, send_entry, send_lookup, send_readdir,
    send_readdirplus, send_statfs, send_words, send_xattr, set_time,
};
use tell::{told, told_span};

/// The file system as fuser calls it.
pub struct Face {
    overlay: Arc<Overlay>,
    patience: Arc<Patience>,
    /// `None` costs nothing: no clock is read and nothing is looked up for them.
    hooks: Option<Arc<Hooks>>,
    /// The kernel checks permissions by mode bits and ACLs (`default_permissions`).
    kernel_checks: bool,
    /// `ttl = 0`: every read must come to us, where it is compared with the source.
    strict: bool,
    /// Files can be opened past the page cache, and be mapped all the same.
    direct_io: AtomicBool,
    /// Closing a file of the source may report what a write did not (NFS and its like).
    flushes: bool,
    /// Dropped when the kernel is done with us: whoever listens then knows.
    ending: Option<Sender<()>>,
}

impl Face {
    /// Answer for `overlay`.
    pub fn new(
        overlay: Arc<Overlay>,
        patience: Arc<Patience>,
        kernel_checks: bool,
        strict: bool,
        flushes: bool,
        ending: Sender<()>,
    ) -> Face {
        Face {
            hooks: overlay.hooks().cloned(),
            overlay,
            patience,
            kernel_checks,
            strict,
            direct_io: AtomicBool::new(false),
            flushes,
            ending: Some(ending),
        }
    }

    /// What only Linux has.
    #[cfg(target_os = "linux")]
    fn negotiate(&self, config: &mut KernelConfig) {
        // The source applies the umask, since it knows of default ACLs; and it clears set-id bits, which also
        // spares a getxattr(security.capability) before every write.
        let _ = config.add_capabilities(InitFlags::FUSE_DONT_MASK);
        let _ = config.add_capabilities(InitFlags::FUSE_HANDLE_KILLPRIV_V2);
        if self.kernel_checks {
            let _ = config.add_capabilities(InitFlags::FUSE_POSIX_ACL);
        }
        let told = self.tells(Kind::Read);
        if self.strict || told {
            // Without mmap on direct files (Linux before 6.6) builds and databases would break, so there the
            // page cache stays, with attributes that expire at once.
            let can = config.add_capabilities(InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP);
            self.direct_io.store(can.is_ok(), Ordering::Relaxed);
            if can.is_err() && told {
                tracing::warn!(
                    "this kernel cannot map files that are read past its page cache (Linux 6.6 can): on_read will not \
                     tell of reads that the page cache answers"
                );
            }
        }
    }

    /// macFUSE applies the umask and checks permissions by mount option alone; mmap of direct files it does not
    /// have, so with `ttl = 0` the page cache stays, with attributes that expire at once.
    #[cfg(not(target_os = "linux"))]
    fn negotiate(&self, _config: &mut KernelConfig) {
        let (checks, strict) = (self.kernel_checks, self.strict);
        tracing::debug!("kernel checks permissions: {checks}; ttl 0: {strict}");
        if self.tells(Kind::Read) {
            tracing::warn!("on_read will not tell of reads that macOS answers from its page cache");
        }
    }

    /// Answer with what the source says, however long it takes; requests of one `key` never take all workers.
    fn work<R: Send + 'static, T: Send + 'static>(
        &self,
        key: INodeNo,
        reply: R,
        ask: impl FnOnce(&Arc<Overlay>) -> Result<T> + Send + 'static,
        send: impl FnOnce(R, Result<T>) + Send + 'static,
    ) {
        let (overlay, errors) = (self.overlay.clone(), self.errors(key));
        self.patience.work(
            key.0,
            move || errors.look(ask(&overlay)),
            move |answer| send(reply, answer),
        );
    }

    /// The same for what is known to take long (syncing, copying, reserving): always on an I/O worker.
    fn work_long<R: Send + 'static, T: Send + 'static>(
        &self,
        key: INodeNo,
        reply: R,
        ask: impl FnOnce(&Arc<Overlay>) -> Result<T> + Send + 'static,
        send: impl FnOnce(R, Result<T>) + Send + 'static,
    ) {
        let (overlay, errors) = (self.overlay.clone(), self.errors(key));
        self.patience
            .pool()
            .submit(key.0, move || send(reply, errors.look(ask(&overlay))));
    }

    /// Answer with what the source says, or with what memory `known` when that takes too long: see [`Patience::ask`].
    fn ask<R: Send + 'static, T: Send + 'static>(
        &self,
        key: INodeNo,
        reply: R,
        known: impl FnOnce() -> Option<T>,
        ask: impl FnOnce() -> Result<T> + Send + 'static,
        send: impl FnOnce(R, Result<T>) + Clone + Send + 'static,
        undo: impl Fn(T) + Clone + Send + 'static,
    ) {
        let errors = self.errors(key);
        let ask = move || errors.look(ask());
        self.patience.ask(key.0, reply, known, ask, send, undo);
    }

    fn dispose(&self, garbage: Garbage) {
        if !garbage.is_empty() {
            self.patience.work(0, move || drop(garbage), drop);
        }
    }

    /// Open a file in the source that was opened from memory, if it stays open.
    fn back_later(&self, key: INodeNo, handle: u64) {
        let (overlay, pool) = (Arc::downgrade(&self.overlay), self.patience.pool().clone());
        self.patience.timer().after(config::BACK_AFTER, move || {
            if let Some(overlay) = overlay
                .upgrade()
                .filter(|overlay| overlay.is_unbacked(handle))
            {
                pool.submit(key.0, move || overlay.back(handle));
            }
        });
    }

    /// How the kernel is to treat a file that is opened with `flags`.
    fn open_flags(&self, flags: i32) -> impl Fn(&Opened) -> FopenFlags + Clone + Send + use<> {
        let direct_io = self.direct_io.load(Ordering::Relaxed);
        let strict = self.strict;
        move |opened| open_flags(opened, flags, direct_io && (strict || opened.direct))
    }
}

fn open_flags(opened: &Opened, flags: i32, direct: bool) -> FopenFlags {
    let mut reply = FopenFlags::empty();
    if direct {
        reply |= FopenFlags::FOPEN_DIRECT_IO;
    } else if opened.keep == Keep::Yes {
        reply |= FopenFlags::FOPEN_KEEP_CACHE;
    }
    #[cfg(target_os = "linux")]
    if flags & libc::O_ACCMODE == libc::O_RDONLY {
        // Nothing was written, so closing has nothing to report: one request less.
        reply |= FopenFlags::FOPEN_NOFLUSH;
    }
    let _ = flags;
    reply
}

fn send_opendir(reply: ReplyOpen, result: Result<OpenedDir>) {
    match result {
        Ok(opened) => {
            let flags = match opened.keep {
                KeepDir::Yes => FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE,
                KeepDir::New => FopenFlags::FOPEN_CACHE_DIR,
                KeepDir::No => FopenFlags::empty(),
            };
            reply.opened(FileHandle(opened.handle), flags);
        }
        Err(error) => reply.error(code(error)),
    }
}

fn node(ino: INodeNo) -> NodeId {
    NodeId(ino.0)
}

fn caller(request: &Request) -> Caller {
    Caller {
        uid: request.uid(),
        gid: request.gid(),
        pid: request.pid(),
    }
}

impl Filesystem for Face {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // Kernel-side comparison of mtime and size (FUSE_AUTO_INVAL_DATA). Readdirplus when the caller looks
        // at attributes. Parallel lookups in one directory. Several direct reads of one file at once.
        //
        // Not FUSE_ATOMIC_O_TRUNC, although it saves a request: open(O_RDONLY | O_TRUNC) of a program that is
        // running would empty it here before the kernel finds that it must refuse (ETXTBSY).
        let wanted = [
            InitFlags::FUSE_AUTO_INVAL_DATA,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_ASYNC_DIO,
            // The text of a link never changes: another text is another file, with a number or generation of its own.
            InitFlags::FUSE_CACHE_SYMLINKS,
        ];
        for flag in wanted {
            // A kernel without it does more requests, with the same result.
            let _ = config.add_capabilities(flag);
        }
        self.negotiate(config);
        // Errors of these give the nearest possible value, which is what we want then.
        if let Err(most) = config.set_max_write(config::REQUEST_BYTES_MAX) {
            let _ = config.set_max_write(most);
        }
        let _ = config.set_max_background(config::BACKGROUND_MAX);
        Ok(())
    }

    fn destroy(&mut self) {
        self.ending = None;
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let at = node(parent);
        if let Some(known) = self.overlay.lookup_known(at, name, Trust::Ttl) {
            return send_lookup(&self.overlay, (at, name), reply, known);
        }
        let name: OsString = name.to_owned();
        let (asking, sending, undoing) = (
            self.overlay.clone(),
            self.overlay.clone(),
            self.overlay.clone(),
        );
        let asked_name = name.clone();
        self.ask(
            parent,
            reply,
            || self.overlay.lookup_known(at, &name, Trust::Any)?.ok(),
            move || asking.lookup(at, &asked_name),
            {
                let name = name.clone();
                move |reply, result| send_lookup(&sending, (at, &name), reply, result)
            },
            move |entry: Entry| drop(undoing.forget(entry.node, 1)),
        );
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.dispose(self.overlay.forget(node(ino), nlookup));
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let id = node(ino);
        if let Some(known) = self.overlay.getattr_known(id, Trust::Ttl) {
            return send_attr(reply, Ok(known));
        }
        let overlay = self.overlay.clone();
        self.ask(
            ino,
            reply,
            || self.overlay.getattr_known(id, Trust::Any),
            move || overlay.getattr(id),
            send_attr,
            drop,
        );
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let who = caller(req);
        let set = SetAttr {
            mode,
            uid,
            gid,
            size,
            atime: atime.map(set_time),
            mtime: mtime.map(set_time),
        };
        let handle = fh.map(|fh| fh.0);
        let telling = self.telling_of_size(req, ino, size);
        self.work(
            ino,
            reply,
            move |overlay| overlay.setattr(who, node(ino), handle, &set),
            move |reply, result| told(telling, &result, move || send_attr(reply, result)),
        );
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        let id = node(ino);
        if let Some(text) = self.overlay.readlink_known(id, Trust::Ttl) {
            return reply.data(text.as_bytes());
        }
        let overlay = self.overlay.clone();
        self.ask(
            ino,
            reply,
            || self.overlay.readlink_known(id, Trust::Any),
            move || overlay.readlink(id),
            |reply: ReplyData, result| match result {
                Ok(text) => reply.data(text.as_bytes()),
                Err(error) => reply.error(code(error)),
            },
            drop,
        );
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let telling = self.telling_of_name(req, Kind::Create, (parent, name));
        let (who, name) = (caller(req), name.to_owned());
        self.work(
            parent,
            reply,
            move |overlay| overlay.mknod(who, node(parent), &name, (mode, umask), rdev),
            move |reply, result| told(telling, &result, move || send_entry(reply, result)),
        );
    }

    fn mkdir(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let telling = self.telling_of_name(req, Kind::Create, (parent, name));
        let (who, name) = (caller(req), name.to_owned());
        self.work(
            parent,
            reply,
            move |overlay| overlay.mkdir(who, node(parent), &name, (mode, umask)),
            move |reply, result| told(telling, &result, move || send_entry(reply, result)),
        );
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let telling = self.telling_of_name(req, Kind::Remove, (parent, name));
        let name = name.to_owned();
        self.work(
            parent,
            reply,
            move |overlay| overlay.unlink(node(parent), &name),
            move |reply, result| told(telling, &result, move || send_empty(reply, result)),
        );
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let telling = self.telling_of_name(req, Kind::Remove, (parent, name));
        let name = name.to_owned();
        self.work(
            parent,
            reply,
            move |overlay| overlay.rmdir(node(parent), &name),
            move |reply, result| told(telling, &result, move || send_empty(reply, result)),
        );
    }

    fn symlink(
        &self,
        req: &Request,
        parent: INodeNo,
        link_name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let telling = self.telling_of_name(req, Kind::Create, (parent, link_name));
        let (who, name, target) = (caller(req), link_name.to_owned(), target.to_owned());
        self.work(
            parent,
            reply,
            move |overlay| overlay.symlink(who, node(parent), &name, &target),
            move |reply, result| told(telling, &result, move || send_entry(reply, result)),
        );
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let telling = self.telling_of_rename(req, (parent, name), (newparent, newname));
        let (name, newname) = (name.to_owned(), newname.to_owned());
        let rename = move |overlay: &Arc<Overlay>| {
            let from = (node(parent), name.as_os_str());
            let to = (node(newparent), newname.as_os_str());
            overlay.rename(from, to, flags.bits())
        };
        self.work(parent, reply, rename, move |reply, result| {
            told(telling, &result, move || send_empty(reply, result));
        });
    }

    fn link(
        &self,
        req: &Request,
        ino: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        let telling = self.telling_of_name(req, Kind::Create, (newparent, newname));
        let name = newname.to_owned();
        self.work(
            newparent,
            reply,
            move |overlay| overlay.link(node(ino), node(newparent), &name),
            move |reply, result| told(telling, &result, move || send_entry(reply, result)),
        );
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let (id, flags, who) = (node(ino), flags.0, caller(req));
        let (telling, bits) = (
            self.telling_of(req, Kind::Open, ino),
            self.open_flags(flags),
        );
        let send = move |reply: ReplyOpen, result: Result<Opened>| {
            told(telling, &result, move || match result {
                Ok(opened) => reply.opened(FileHandle(opened.handle), bits(&opened)),
                Err(error) => reply.error(code(error)),
            });
        };
        if let Some(opened) = self.overlay.open_known(id, flags, Trust::Ttl) {
            if opened.unbacked {
                self.back_later(ino, opened.handle);
            }
            return send(reply, Ok(opened));
        }
        let (asking, undoing) = (self.overlay.clone(), self.overlay.clone());
        self.ask(
            ino,
            reply,
            || self.overlay.open_known(id, flags, Trust::Any),
            move || asking.open(who, id, flags),
            send,
            move |opened: Opened| drop(undoing.release(opened.handle)),
        );
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let telling = self.telling_of_name(req, Kind::Create, (parent, name));
        let (who, name, bits) = (caller(req), name.to_owned(), self.open_flags(flags));
        self.work(
            parent,
            reply,
            move |overlay| overlay.create(who, node(parent), &name, (mode, umask), flags),
            move |reply, result| {
                told(telling, &result, move || match result {
                    Ok((entry, opened)) => reply.created(
                        &entry.ttl,
                        &file_attr(&entry.stat),
                        Generation(entry.generation),
                        FileHandle(opened.handle),
                        bits(&opened) & !FopenFlags::FOPEN_KEEP_CACHE,
                    ),
                    Err(error) => reply.error(code(error)),
                });
            },
        );
    }

    fn read(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let span = Span::new(offset, u64::from(size));
        let telling = self.telling_of_bytes(req, Kind::Read, ino, fh);
        if let Some(bytes) = self.overlay.read_known(fh.0, span, Trust::Ttl) {
            return match telling {
                None => reply.data(&bytes),
                Some(telling) => {
                    telling.moved(offset, bytes.clone(), Some(Served::Memory), move || {
                        reply.data(&bytes);
                    });
                }
            };
        }
        let overlay = self.overlay.clone();
        self.ask(
            ino,
            reply,
            || {
                let bytes = self.overlay.read_known(fh.0, span, Trust::Any)?;
                Some((bytes, Served::Memory))
            },
            move || overlay.read_served(fh.0, span),
            move |reply: ReplyData, result: Result<(Bytes, Served)>| match (telling, result) {
                (Some(telling), Ok((bytes, served))) => {
                    telling.moved(offset, bytes.clone(), Some(served), move || {
                        reply.data(&bytes);
                    });
                }
                (None, Ok((bytes, _))) => reply.data(&bytes),
                (_, Err(error)) => reply.error(code(error)),
            },
            drop,
        );
    }

    fn write(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        // The one copy: out of the request buffer, into what becomes the slot.
        let data = Bytes::copy_from_slice(data);
        let from_page_cache = write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let how = How {
            // What the kernel writes back from mapped pages goes where the pages are.
            append: flags.0 & libc::O_APPEND != 0 && !from_page_cache,
            clear_setid: write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID),
        };
        let telling = self
            .telling_of_bytes(req, Kind::Write, ino, fh)
            .map(|telling| (telling, data.clone()));
        self.work(
            ino,
            reply,
            move |overlay| overlay.write_placed(fh.0, offset, data, how),
            move |reply, result| match (telling, result) {
                (Some((telling, data)), Ok((count, pos))) => {
                    let data = data.slice(..data.len().min(count));
                    telling.moved(pos, data, None, move || send_count(reply, Ok(count)));
                }
                (_, result) => send_count(reply, result.map(|(count, _)| count)),
            },
        );
    }

    fn flush(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        if !self.flushes {
            // Then the kernel asks no more. (It still writes mapped pages back before close returns.)
            return reply.error(Errno::ENOSYS);
        }
        self.work(ino, reply, move |overlay| overlay.flush(fh.0), send_empty);
    }

    fn release(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let closing = self.overlay.release(fh.0);
        reply.ok();
        if closing.is_some() {
            self.patience.work(ino.0, move || drop(closing), drop);
        }
    }

    fn fsync(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.work_long(
            ino,
            reply,
            move |overlay| overlay.sync(fh.0, datasync),
            send_empty,
        );
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let id = node(ino);
        if let Some(opened) = self.overlay.opendir_known(id, Trust::Ttl) {
            return send_opendir(reply, Ok(opened));
        }
        let (asking, undoing) = (self.overlay.clone(), self.overlay.clone());
        self.ask(
            ino,
            reply,
            || self.overlay.opendir_known(id, Trust::Any),
            move || asking.opendir(id),
            send_opendir,
            move |opened: OpenedDir| undoing.releasedir(opened.handle),
        );
    }

    fn readdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        let known = |trust| self.overlay.readdir_known(fh.0, offset, false, trust);
        if let Some(batch) = known(Trust::Ttl) {
            return send_readdir(&self.overlay, reply, Ok(batch));
        }
        let (asking, sending, undoing) = (
            self.overlay.clone(),
            self.overlay.clone(),
            self.overlay.clone(),
        );
        self.ask(
            ino,
            reply,
            || known(Trust::Any),
            move || asking.readdir(fh.0, offset, false),
            move |reply, result| send_readdir(&sending, reply, result),
            move |batch: Vec<DirEntry>| undoing.put_back(batch),
        );
    }

    fn readdirplus(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        let known = |trust| self.overlay.readdir_known(fh.0, offset, true, trust);
        if let Some(batch) = known(Trust::Ttl) {
            return send_readdirplus(&self.overlay, reply, Ok(batch));
        }
        let (asking, sending, undoing) = (
            self.overlay.clone(),
            self.overlay.clone(),
            self.overlay.clone(),
        );
        self.ask(
            ino,
            reply,
            || known(Trust::Any),
            move || asking.readdir(fh.0, offset, true),
            move |reply, result| send_readdirplus(&sending, reply, result),
            move |batch: Vec<DirEntry>| undoing.put_back(batch),
        );
    }

    fn releasedir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.overlay.releasedir(fh.0);
        reply.ok();
    }

    fn fsyncdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.work_long(
            ino,
            reply,
            move |overlay| overlay.sync_dir(node(ino)),
            send_empty,
        );
    }

    fn statfs(&self, _req: &Request, ino: INodeNo, reply: ReplyStatfs) {
        let overlay = self.overlay.clone();
        self.ask(
            ino,
            reply,
            || self.overlay.statfs_known(),
            move || overlay.statfs(),
            send_statfs,
            drop,
        );
    }

    fn setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        position: u32,
        reply: ReplyEmpty,
    ) {
        let (who, name, value) = (caller(req), name.to_owned(), value.to_vec());
        let set = move |overlay: &Arc<Overlay>| {
            overlay.setxattr(who, node(ino), &name, &value, flags, position)
        };
        self.work(ino, reply, set, send_empty);
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let id = node(ino);
        if let Some(known) = self.overlay.getxattr_known(id, name, size, Trust::Ttl) {
            return send_xattr(reply, known);
        }
        let (overlay, asked) = (self.overlay.clone(), name.to_owned());
        // A known absence is an answer as good as a value: it travels inside.
        self.ask(
            ino,
            reply,
            || self.overlay.getxattr_known(id, name, size, Trust::Any),
            move || settle(overlay.getxattr(id, &asked, size)),
            |reply, result| send_xattr(reply, result.and_then(|inner| inner)),
            drop,
        );
    }

    fn listxattr(&self, _req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let id = node(ino);
        if let Some(known) = self.overlay.listxattr_known(id, size, Trust::Ttl) {
            return send_xattr(reply, known);
        }
        let overlay = self.overlay.clone();
        self.ask(
            ino,
            reply,
            || self.overlay.listxattr_known(id, size, Trust::Any),
            move || settle(overlay.listxattr(id, size)),
            |reply, result| send_xattr(reply, result.and_then(|inner| inner)),
            drop,
        );
    }

    fn removexattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.to_owned();
        self.work(
            ino,
            reply,
            move |overlay| overlay.removexattr(node(ino), &name),
            send_empty,
        );
    }

    fn access(&self, _req: &Request, ino: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        let id = node(ino);
        if let Some((stat, _)) = self.overlay.getattr_known(id, Trust::Any)
            && mode_allows(&stat, mask.bits())
        {
            return reply.ok();
        }
        self.work(
            ino,
            reply,
            move |overlay| overlay.access(id, mask.bits()),
            send_empty,
        );
    }

    fn ioctl(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        flags: IoctlFlags,
        cmd: u32,
        in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        let is_dir = flags.contains(IoctlFlags::FUSE_IOCTL_DIR);
        match Ask::decode(cmd, in_data) {
            Some(Ask::About) => send_words(reply, Ok(self.overlay.about().encode())),
            Some(Ask::Held(id, size)) => {
                let held = self.overlay.held_bytes(NodeId(id), size);
                send_words(reply, Ok([held, 0, 0, 0]));
            }
            Some(Ask::Warm(span)) if !is_dir => {
                let pool = self.patience.pool();
                self.overlay.warm(fh.0, span, pool, move |result| {
                    send_words(reply, result.map(Warmed::encode));
                });
            }
            Some(Ask::Evict) => {
                let evict = move |overlay: &Arc<Overlay>| Ok(overlay.evict(node(ino)).encode());
                self.work_long(ino, reply, evict, send_words);
            }
            // "Not a device that knows this request" is what programs expect of a plain file.
            _ => reply.error(Errno::ENOTTY),
        }
    }

    fn poll(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _ph: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        // The kernel then answers by itself, and for ever: regular files are always ready (poll(2)).
        reply.error(Errno::ENOSYS);
    }

    fn fallocate(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let who = caller(req);
        // Reserving space changes no byte.
        let changes = mode & !sys::ALLOCATE_ONLY != 0;
        let telling = changes
            .then(|| self.telling_of_bytes(req, Kind::Write, ino, fh))
            .flatten();
        self.work_long(
            ino,
            reply,
            move |overlay| overlay.allocate(who, fh.0, mode, offset, length),
            move |reply, result| {
                let span = result.is_ok().then(|| Span::new(offset, length));
                told_span(telling, span, move || send_empty(reply, result));
            },
        );
    }

    fn lseek(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let seek = move |overlay: &Arc<Overlay>| overlay.seek(fh.0, offset, whence);
        self.work(ino, reply, seek, |reply: ReplyLseek, result| match result {
            Ok(found) => reply.offset(found),
            Err(error) => reply.error(code(error)),
        });
    }

    fn copy_file_range(
        &self,
        req: &Request,
        _ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let who = caller(req);
        let copy = move |overlay: &Arc<Overlay>| {
            overlay.copy(who, (fh_in.0, offset_in), (fh_out.0, offset_out), len)
        };
        let telling = self.telling_of_bytes(req, Kind::Write, ino_out, fh_out);
        self.work_long(ino_out, reply, copy, move |reply, result| {
            let span = result.as_ref().ok();
            let span = span.map(|count| Span::new(offset_out, *count as u64));
            told_span(telling, span, move || send_count(reply, result));
        });
    }
}

/// An error that is a fact about the file is an answer; only "unreachable" leaves room for memory's.
fn settle<T>(result: Result<T>) -> Result<Result<T>> {
    match result {
        Err(error) if error.is_unreachable() => Err(error),
        other => Ok(other),
    }
}

/// Do the mode bits alone allow it to the daemon's user? (The kernel asks only where it does not check by
/// itself, and then only for that user.) A "no" is left to the source, which knows of ACLs.
fn mode_allows(stat: &Stat, mask: i32) -> bool {
    let bits = mask as u32 & 7;
    let user = nix::unistd::geteuid();
    if user.is_root() {
        return bits & 1 == 0 || stat.is_dir() || stat.mode & 0o111 != 0;
    }
    user.as_raw() == stat.uid && (stat.mode >> 6) & bits == bits
}
