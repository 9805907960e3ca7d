//! The kernel's face: each FUSE request becomes an [`Overlay`] call, its result a reply. No meaning here.
//!
//! Every callback follows one pattern. What memory knows is answered on the FUSE thread that received the
//! request. All else goes through [`Patience`], which knows where and for how long the source may be asked, so
//! that a source that hangs never takes all FUSE threads with it.

use crate::cache::Trust;
use crate::error::{Error, Result};
use crate::overlay::{
    Caller, DirEntry, Entry, Garbage, How, Invalidate, Keep, NodeId, Opened, Overlay, SetAttr,
};
use crate::patience::Patience;
use crate::span::Span;
use crate::sys::{self, SetTime, Stat, Time, XattrAnswer};
use bytes::Bytes;
use crossbeam_channel::Sender;
use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileAttr, FileHandle, FileType,
    Filesystem, FopenFlags, Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner,
    OpenFlags, PollEvents, PollFlags, PollNotifier, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen,
    ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use parking_lot::{Condvar, Mutex};
use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Largest read and write request: what Linux allows (256 pages, `fs.fuse.max_pages_limit`).
const REQUEST_BYTES_MAX: u32 = 1 << 20;

/// Background requests (read-ahead, releases) that the kernel keeps in flight. Its default of 12 is fewer
/// than a slow source needs to be kept busy, and a hung file could use them up.
const BACKGROUND_MAX: u16 = 64;

/// The file system as fuser calls it.
pub struct Face {
    overlay: Arc<Overlay>,
    patience: Arc<Patience>,
    /// The kernel checks permissions by mode bits and ACLs (`default_permissions`).
    kernel_checks: bool,
    /// `ttl = 0`: every read must come to us, where it is compared with the source.
    strict: bool,
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
        if self.strict {
            // Without mmap on direct files (Linux before 6.6) builds and databases would break, so there the
            // page cache stays, with attributes that expire at once.
            let can = config.add_capabilities(InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP);
            self.direct_io.store(can.is_ok(), Ordering::Relaxed);
        }
    }

    /// macFUSE applies the umask and checks permissions by mount option alone; mmap of direct files it does not
    /// have, so with `ttl = 0` the page cache stays, with attributes that expire at once.
    #[cfg(not(target_os = "linux"))]
    fn negotiate(&self, _config: &mut KernelConfig) {
        let (checks, strict) = (self.kernel_checks, self.strict);
        tracing::debug!("kernel checks permissions: {checks}; ttl 0: {strict}");
    }

    /// Answer with what the source says, however long it takes; requests of one `key` never take all workers.
    fn work<R: Send + 'static, T: Send + 'static>(
        &self,
        key: INodeNo,
        reply: R,
        ask: impl FnOnce(&Arc<Overlay>) -> T + Send + 'static,
        send: impl FnOnce(R, T) + Send + 'static,
    ) {
        let overlay = self.overlay.clone();
        self.patience.work(
            key.0,
            move || ask(&overlay),
            move |answer| send(reply, answer),
        );
    }

    /// The same for what is known to take long (syncing, copying, reserving): always on an I/O worker.
    fn work_long<R: Send + 'static, T: Send + 'static>(
        &self,
        key: INodeNo,
        reply: R,
        ask: impl FnOnce(&Arc<Overlay>) -> T + Send + 'static,
        send: impl FnOnce(R, T) + Send + 'static,
    ) {
        let overlay = self.overlay.clone();
        self.patience
            .pool()
            .submit(key.0, move || send(reply, ask(&overlay)));
    }

    fn dispose(&self, garbage: Garbage) {
        if !garbage.is_empty() {
            self.patience.work(0, move || drop(garbage), drop);
        }
    }

    fn open_flags(&self, opened: Opened, flags: i32) -> FopenFlags {
        let mut reply = FopenFlags::empty();
        if self.direct_io.load(Ordering::Relaxed) {
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

fn code(error: Error) -> Errno {
    if error.errno() == nix::errno::Errno::EIO {
        tracing::debug!("{error}");
    }
    Errno::from_i32(error.raw())
}

fn system_time(time: Time) -> SystemTime {
    let nanos = Duration::from_nanos(u64::from(time.nanos));
    match u64::try_from(time.secs) {
        Ok(secs) => UNIX_EPOCH + Duration::from_secs(secs) + nanos,
        Err(_) => UNIX_EPOCH - Duration::from_secs(time.secs.unsigned_abs()) + nanos,
    }
}

/// A time that the kernel wants set. fuser turns seconds before 1970 into a `SystemTime` by subtracting the
/// nanoseconds instead of adding them; this undoes exactly that.
fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::At(match time.duration_since(UNIX_EPOCH) {
            Ok(after) => Time {
                secs: after.as_secs() as i64,
                nanos: after.subsec_nanos(),
            },
            Err(before) => Time {
                secs: -(before.duration().as_secs() as i64),
                nanos: before.duration().subsec_nanos(),
            },
        }),
    }
}

fn file_type(mode: u32) -> FileType {
    match mode & sys::S_IFMT {
        sys::S_IFDIR => FileType::Directory,
        sys::S_IFLNK => FileType::Symlink,
        sys::S_IFIFO => FileType::NamedPipe,
        sys::S_IFSOCK => FileType::Socket,
        sys::S_IFCHR => FileType::CharDevice,
        sys::S_IFBLK => FileType::BlockDevice,
        _ => FileType::RegularFile,
    }
}

fn file_attr(stat: &Stat) -> FileAttr {
    FileAttr {
        ino: INodeNo(stat.ino),
        size: stat.size,
        blocks: stat.blocks,
        atime: system_time(stat.atime),
        mtime: system_time(stat.mtime),
        ctime: system_time(stat.ctime),
        crtime: system_time(stat.btime.unwrap_or(stat.ctime)),
        kind: file_type(stat.mode),
        perm: (stat.mode & 0o7777) as u16,
        nlink: stat.nlink,
        uid: stat.uid,
        gid: stat.gid,
        rdev: stat.rdev,
        blksize: stat.blksize,
        flags: 0,
    }
}

fn send_entry(reply: ReplyEntry, result: Result<Entry>) {
    match result {
        Ok(entry) => reply.entry(
            &entry.ttl,
            &file_attr(&entry.stat),
            Generation(entry.generation),
        ),
        Err(error) => reply.error(code(error)),
    }
}

/// The kernel remembers an absent name when it is answered as an entry with inode 0.
fn send_lookup(overlay: &Overlay, at: (NodeId, &OsStr), reply: ReplyEntry, result: Result<Entry>) {
    if let Err(error) = &result
        && error.errno() == nix::errno::Errno::ENOENT
    {
        let ttl = overlay.absence_ttl(at.0, at.1);
        if !ttl.is_zero() {
            reply.entry(&ttl, &ABSENT, Generation(0));
            return;
        }
    }
    send_entry(reply, result);
}

const ABSENT: FileAttr = FileAttr {
    ino: INodeNo(0),
    size: 0,
    blocks: 0,
    atime: UNIX_EPOCH,
    mtime: UNIX_EPOCH,
    ctime: UNIX_EPOCH,
    crtime: UNIX_EPOCH,
    kind: FileType::RegularFile,
    perm: 0,
    nlink: 0,
    uid: 0,
    gid: 0,
    rdev: 0,
    blksize: 0,
    flags: 0,
};

fn send_attr(reply: ReplyAttr, result: Result<(Stat, Duration)>) {
    match result {
        Ok((stat, ttl)) => reply.attr(&ttl, &file_attr(&stat)),
        Err(error) => reply.error(code(error)),
    }
}

fn send_empty(reply: ReplyEmpty, result: Result<()>) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(code(error)),
    }
}

fn send_count(reply: ReplyWrite, result: Result<usize>) {
    match result {
        Ok(count) => reply.written(count as u32),
        Err(error) => reply.error(code(error)),
    }
}

fn send_data(reply: ReplyData, result: Result<Bytes>) {
    match result {
        Ok(bytes) => reply.data(&bytes),
        Err(error) => reply.error(code(error)),
    }
}

fn send_xattr(reply: ReplyXattr, result: Result<XattrAnswer>) {
    match result {
        Ok(XattrAnswer::Size(size)) => reply.size(size),
        Ok(XattrAnswer::Data(data)) => reply.data(&data),
        Err(error) => reply.error(code(error)),
    }
}

fn send_statfs(reply: ReplyStatfs, result: Result<nix::sys::statvfs::Statvfs>) {
    match result {
        // The widths differ between platforms.
        #[allow(
            clippy::useless_conversion,
            clippy::unnecessary_cast,
            reason = "widths differ between platforms"
        )]
        Ok(s) => reply.statfs(
            s.blocks() as u64,
            s.blocks_free() as u64,
            s.blocks_available() as u64,
            s.files() as u64,
            s.files_free() as u64,
            s.block_size() as u32,
            s.name_max() as u32,
            s.fragment_size() as u32,
        ),
        Err(error) => reply.error(code(error)),
    }
}

fn send_readdir(overlay: &Overlay, mut reply: ReplyDirectory, result: Result<Vec<DirEntry>>) {
    match result {
        Ok(batch) => {
            for entry in &batch {
                let kind = file_type(entry.kind);
                if reply.add(INodeNo(entry.ino), entry.next, kind, &entry.name) {
                    break;
                }
            }
            reply.ok();
            overlay.put_back(batch);
        }
        Err(error) => reply.error(code(error)),
    }
}

fn send_readdirplus(
    overlay: &Overlay,
    mut reply: ReplyDirectoryPlus,
    result: Result<Vec<DirEntry>>,
) {
    match result {
        Ok(batch) => {
            let mut unsent = batch.into_iter();
            for item in unsent.by_ref() {
                let (attr, ttl, generation) = match &item.entry {
                    Some(entry) => (file_attr(&entry.stat), entry.ttl, entry.generation),
                    // `.` and `..`: the kernel looks at nothing but the number and the type.
                    None => (
                        FileAttr {
                            ino: INodeNo(item.ino),
                            kind: FileType::Directory,
                            ..ABSENT
                        },
                        Duration::ZERO,
                        0,
                    ),
                };
                let full = reply.add(
                    INodeNo(item.ino),
                    item.next,
                    &item.name,
                    &ttl,
                    &attr,
                    Generation(generation),
                );
                if full {
                    overlay.put_back([item]);
                    break;
                }
            }
            reply.ok();
            overlay.put_back(unsent);
        }
        Err(error) => reply.error(code(error)),
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
        ];
        for flag in wanted {
            // A kernel without it does more requests, with the same result.
            let _ = config.add_capabilities(flag);
        }
        self.negotiate(config);
        // Errors of these give the nearest possible value, which is what we want then.
        if let Err(most) = config.set_max_write(REQUEST_BYTES_MAX) {
            let _ = config.set_max_write(most);
        }
        let _ = config.set_max_background(BACKGROUND_MAX);
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
        self.patience.ask(
            parent.0,
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
        self.patience.ask(
            ino.0,
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
        self.work(
            ino,
            reply,
            move |overlay| overlay.setattr(who, node(ino), handle, &set),
            send_attr,
        );
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        let id = node(ino);
        if let Some(text) = self.overlay.readlink_known(id, Trust::Ttl) {
            return reply.data(text.as_bytes());
        }
        let overlay = self.overlay.clone();
        self.patience.ask(
            ino.0,
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
        let (who, name) = (caller(req), name.to_owned());
        self.work(
            parent,
            reply,
            move |overlay| overlay.mknod(who, node(parent), &name, (mode, umask), rdev),
            send_entry,
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
        let (who, name) = (caller(req), name.to_owned());
        self.work(
            parent,
            reply,
            move |overlay| overlay.mkdir(who, node(parent), &name, (mode, umask)),
            send_entry,
        );
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.to_owned();
        self.work(
            parent,
            reply,
            move |overlay| overlay.unlink(node(parent), &name),
            send_empty,
        );
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.to_owned();
        self.work(
            parent,
            reply,
            move |overlay| overlay.rmdir(node(parent), &name),
            send_empty,
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
        let (who, name, target) = (caller(req), link_name.to_owned(), target.to_owned());
        self.work(
            parent,
            reply,
            move |overlay| overlay.symlink(who, node(parent), &name, &target),
            send_entry,
        );
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (name, newname) = (name.to_owned(), newname.to_owned());
        let rename = move |overlay: &Arc<Overlay>| {
            let from = (node(parent), name.as_os_str());
            let to = (node(newparent), newname.as_os_str());
            overlay.rename(from, to, flags.bits())
        };
        self.work(parent, reply, rename, send_empty);
    }

    fn link(
        &self,
        _req: &Request,
        ino: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        let name = newname.to_owned();
        self.work(
            newparent,
            reply,
            move |overlay| overlay.link(node(ino), node(newparent), &name),
            send_entry,
        );
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let (id, flags, who) = (node(ino), flags.0, caller(req));
        if let Some(opened) = self.overlay.open_known(id, flags, Trust::Ttl) {
            return reply.opened(FileHandle(opened.handle), self.open_flags(opened, flags));
        }
        let (asking, undoing) = (self.overlay.clone(), self.overlay.clone());
        // `open_flags` depends on nothing that changes after the mount.
        let yes = self.open_flags(
            Opened {
                handle: 0,
                keep: Keep::Yes,
            },
            flags,
        );
        let no = self.open_flags(
            Opened {
                handle: 0,
                keep: Keep::No,
            },
            flags,
        );
        self.patience.ask(
            ino.0,
            reply,
            || self.overlay.open_known(id, flags, Trust::Any),
            move || asking.open(who, id, flags),
            move |reply: ReplyOpen, result: Result<Opened>| match result {
                Ok(opened) => {
                    let bits = if opened.keep == Keep::Yes { yes } else { no };
                    reply.opened(FileHandle(opened.handle), bits);
                }
                Err(error) => reply.error(code(error)),
            },
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
        let (who, name) = (caller(req), name.to_owned());
        let yes = self.open_flags(
            Opened {
                handle: 0,
                keep: Keep::Yes,
            },
            flags,
        );
        self.work(
            parent,
            reply,
            move |overlay| overlay.create(who, node(parent), &name, (mode, umask), flags),
            move |reply, result| match result {
                Ok((entry, opened)) => reply.created(
                    &entry.ttl,
                    &file_attr(&entry.stat),
                    Generation(entry.generation),
                    FileHandle(opened.handle),
                    yes & !FopenFlags::FOPEN_KEEP_CACHE,
                ),
                Err(error) => reply.error(code(error)),
            },
        );
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let span = Span::new(offset, u64::from(size));
        if let Some(bytes) = self.overlay.read_known(fh.0, span, Trust::Ttl) {
            return reply.data(&bytes);
        }
        let overlay = self.overlay.clone();
        self.patience.ask(
            ino.0,
            reply,
            || self.overlay.read_known(fh.0, span, Trust::Any),
            move || overlay.read(fh.0, span),
            send_data,
            drop,
        );
    }

    fn write(
        &self,
        _req: &Request,
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
        self.work(
            ino,
            reply,
            move |overlay| overlay.write(fh.0, offset, data, how),
            send_count,
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
        if let Some(handle) = self.overlay.opendir_known(id, Trust::Ttl) {
            return reply.opened(FileHandle(handle), FopenFlags::empty());
        }
        let (asking, undoing) = (self.overlay.clone(), self.overlay.clone());
        self.patience.ask(
            ino.0,
            reply,
            || self.overlay.opendir_known(id, Trust::Any),
            move || asking.opendir(id),
            |reply: ReplyOpen, result| match result {
                Ok(handle) => reply.opened(FileHandle(handle), FopenFlags::empty()),
                Err(error) => reply.error(code(error)),
            },
            move |handle| undoing.releasedir(handle),
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
        self.patience.ask(
            ino.0,
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
        self.patience.ask(
            ino.0,
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
        self.patience.ask(
            ino.0,
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
        self.patience.ask(
            ino.0,
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
        self.patience.ask(
            ino.0,
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
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        // "Not a device that knows this request" is what programs expect of a plain file.
        reply.error(Errno::ENOTTY);
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
        self.work_long(
            ino,
            reply,
            move |overlay| overlay.allocate(who, fh.0, mode, offset, length),
            send_empty,
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
        self.work_long(ino_out, reply, copy, send_count);
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

/// Sends invalidations to the kernel from a thread of its own: the kernel waits for pages that are being read,
/// and those reads may wait for us. The queue is a set, so it is never longer than the number of nodes, and
/// adding to it never blocks.
#[derive(Default)]
pub struct Invalidator {
    queue: Mutex<(BTreeSet<NodeId>, bool)>,
    work: Condvar,
}

impl Invalidator {
    /// Send what is queued until [`Invalidator::stop`].
    pub fn run(&self, notifier: &fuser::Notifier) {
        let mut queue = self.queue.lock();
        while !queue.1 {
            let Some(id) = queue.0.pop_first() else {
                self.work.wait(&mut queue);
                continue;
            };
            parking_lot::MutexGuard::unlocked(&mut queue, || {
                if let Err(error) = notifier.inval_inode(INodeNo(id.0), 0, 0) {
                    tracing::debug!("invalidating inode {}: {error}", id.0);
                }
            });
        }
    }

    /// End [`Invalidator::run`].
    pub fn stop(&self) {
        self.queue.lock().1 = true;
        self.work.notify_all();
    }
}

impl Invalidate for Invalidator {
    fn content(&self, id: NodeId) {
        self.queue.lock().0.insert(id);
        self.work.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// fuser hands over times before 1970 with the nanoseconds on the wrong side.
    #[test]
    fn times_before_1970_survive_both_ways() {
        let half_past = Time {
            secs: -2,
            nanos: 500_000_000,
        };
        assert_eq!(
            system_time(half_past),
            UNIX_EPOCH - Duration::from_millis(1500)
        );
        let as_fuser_says = UNIX_EPOCH - Duration::new(2, 500_000_000);
        assert_eq!(
            set_time(TimeOrNow::SpecificTime(as_fuser_says)),
            SetTime::At(half_past)
        );
    }
}
