//! The kernel's side of the slow source: each request becomes a job that passes the gate, works on the tree and
//! answers.
//!
//! No request is answered on the thread that received it, so any number can wait at the same time.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, SystemTime};

use crossbeam_channel::{Receiver, Sender, TrySendError};
use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileAttr, FileHandle, Filesystem, FopenFlags,
    Generation, INodeNo, InitFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use nix::sys::stat::{Mode, SFlag, mknod};
use nix::sys::statvfs::statvfs;
use nix::unistd::{Whence, lseek};

use super::gate::Kind;
use super::tree::{self, Caller, Change, Tree};

/// How long the kernel may keep what it was told. Nothing, so that every access becomes a request.
const TTL: Duration = Duration::ZERO;
/// No page cache, and writes to one file side by side.
const OPEN_FLAGS: FopenFlags =
    FopenFlags::FOPEN_DIRECT_IO.union(FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES);
/// Requests that wait at one time. More clients than that wait in the kernel's queue.
const THREADS_MAX: usize = 1024;
/// An idle thread ends after this time: long enough to serve the next burst, short enough to leave no crowd behind.
const THREAD_IDLE: Duration = Duration::from_secs(5);
/// The kernel's own queue of asynchronous requests; its default of 12 would hide how parallel a client really is.
const BACKGROUND_MAX: u16 = 1024;
type Job = Box<dyn FnOnce() + Send>;

/// The kernel's side: turns each request into a job that passes the gate, works on the tree and answers.
pub(super) struct Face {
    tree: Arc<Tree>,
    /// A rendezvous, so that handing over a job succeeds only when a thread is idle.
    jobs: Sender<Job>,
    waiting: Receiver<Job>,
    threads: Arc<AtomicUsize>,
    max_read: u32,
}

impl Face {
    pub(super) fn new(tree: Tree, max_read: u32) -> Face {
        let (jobs, waiting) = crossbeam_channel::bounded(0);
        Face {
            tree: Arc::new(tree),
            jobs,
            waiting,
            threads: Arc::default(),
            max_read,
        }
    }

    /// Hands a request over and returns at once, so that the next one can arrive while this one waits.
    fn submit<T: 'static>(
        &self,
        kind: Kind,
        path: PathBuf,
        work: impl FnOnce(&Tree) -> io::Result<T> + Send + 'static,
        answer: impl FnOnce(Result<T, Errno>) + Send + 'static,
    ) {
        let asked = self.tree.gate.arrive(kind, path);
        let tree = Arc::clone(&self.tree);
        self.run(Box::new(move || {
            let outcome = if asked.late {
                let done = work(&tree);
                tree.gate.pass(&asked).and(done)
            } else {
                tree.gate.pass(&asked).and_then(|()| work(&tree))
            };
            tree.gate.leave();
            answer(outcome.map_err(Errno::from));
        }));
    }

    /// For a request on a node.
    fn on_node<T: 'static>(
        &self,
        kind: Kind,
        ino: INodeNo,
        work: impl FnOnce(&Tree) -> io::Result<T> + Send + 'static,
        answer: impl FnOnce(Result<T, Errno>) + Send + 'static,
    ) {
        self.submit(kind, self.tree.path_hint(ino), work, answer);
    }

    /// For a request on a name in a directory; it gets that name as its own.
    fn on_name<T: 'static>(
        &self,
        kind: Kind,
        parent: INodeNo,
        name: &OsStr,
        work: impl FnOnce(&Tree, &OsStr) -> io::Result<T> + Send + 'static,
        answer: impl FnOnce(Result<T, Errno>) + Send + 'static,
    ) {
        let name = name.to_os_string();
        let path = self.tree.path_hint(parent).join(&name);
        self.submit(kind, path, move |tree| work(tree, &name), answer);
    }

    fn run(&self, job: Job) {
        let job = match self.jobs.try_send(job) {
            Ok(()) | Err(TrySendError::Disconnected(_)) => return,
            Err(TrySendError::Full(job)) => job,
        };
        if self.threads.load(Relaxed) >= THREADS_MAX {
            // The receiver lives as long as this sender, so the job is taken sooner or later.
            let _ = self.jobs.send(job);
            return;
        }
        self.threads.fetch_add(1, Relaxed);
        let (waiting, threads) = (self.waiting.clone(), Arc::clone(&self.threads));
        let worker = move || {
            let mut next = Some(job);
            while let Some(job) = next {
                job();
                next = waiting.recv_timeout(THREAD_IDLE).ok();
            }
            threads.fetch_sub(1, Relaxed);
        };
        if thread::Builder::new()
            .name("slow".into())
            .spawn(worker)
            .is_err()
        {
            // The dropped job has answered EIO.
            self.threads.fetch_sub(1, Relaxed);
        }
    }
}

fn entry(reply: ReplyEntry) -> impl FnOnce(Result<FileAttr, Errno>) {
    |outcome| match outcome {
        Ok(attr) => reply.entry(&TTL, &attr, Generation(0)),
        Err(errno) => reply.error(errno),
    }
}

fn empty(reply: ReplyEmpty) -> impl FnOnce(Result<(), Errno>) {
    |outcome| match outcome {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

fn data(reply: ReplyData) -> impl FnOnce(Result<Vec<u8>, Errno>) {
    |outcome| match outcome {
        Ok(data) => reply.data(&data),
        Err(errno) => reply.error(errno),
    }
}

fn attributes(reply: ReplyAttr) -> impl FnOnce(Result<FileAttr, Errno>) {
    |outcome| match outcome {
        Ok(attr) => reply.attr(&TTL, &attr),
        Err(errno) => reply.error(errno),
    }
}

fn opened(reply: ReplyOpen, flags: FopenFlags) -> impl FnOnce(Result<FileHandle, Errno>) {
    move |outcome| match outcome {
        Ok(handle) => reply.opened(handle, flags),
        Err(errno) => reply.error(errno),
    }
}

fn written(reply: ReplyWrite) -> impl FnOnce(Result<u32, Errno>) {
    |outcome| match outcome {
        Ok(count) => reply.written(count),
        Err(errno) => reply.error(errno),
    }
}

impl Filesystem for Face {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Each is refused where the kernel knows it not, and then things are only slower.
        // One page more than a request holds: a buffer that does not begin on a page touches one more, and would
        // be split in two requests otherwise. Reads are limited by the mount option `max_read` all the same.
        let _ = config.set_max_write(self.max_read + 4096);
        let _ = config.set_max_readahead(self.max_read);
        let _ = config.set_max_background(BACKGROUND_MAX);
        for flag in [
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
        ] {
            let _ = config.add_capabilities(flag);
        }
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.on_name(
            Kind::Lookup,
            parent,
            name,
            move |tree, name| tree.entry(tree.child(parent, name)?),
            entry(reply),
        );
    }

    fn forget(&self, _: &Request, ino: INodeNo, count: u64) {
        self.tree.forget(ino, count);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, handle: Option<FileHandle>, reply: ReplyAttr) {
        self.on_node(
            Kind::Getattr,
            ino,
            move |tree| tree.getattr(ino, handle),
            attributes(reply),
        );
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let change = Change {
            mode,
            uid,
            gid,
            size,
            atime,
            mtime,
        };
        self.on_node(
            Kind::Setattr,
            ino,
            move |tree| tree.setattr(ino, handle, change),
            attributes(reply),
        );
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        let work = move |tree: &Tree| {
            Ok(fs::read_link(tree.locate(ino)?)?
                .into_os_string()
                .into_encoded_bytes())
        };
        self.on_node(Kind::Readlink, ino, work, data(reply));
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let caller = Caller::of(request);
        let kind = SFlag::from_bits_truncate(mode as _) & SFlag::S_IFMT;
        let work = move |tree: &Tree, name: &OsStr| {
            tree.make(parent, name, mode, caller, |path| {
                Ok(mknod(path, kind, Mode::S_IRUSR, rdev as _)?)
            })
        };
        self.on_name(Kind::Mknod, parent, name, work, entry(reply));
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        let caller = Caller::of(request);
        let work = move |tree: &Tree, name: &OsStr| {
            tree.make(parent, name, mode, caller, |path| fs::create_dir(path))
        };
        self.on_name(Kind::Mkdir, parent, name, work, entry(reply));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let work = move |tree: &Tree, name: &OsStr| fs::remove_file(tree.child(parent, name)?);
        self.on_name(Kind::Unlink, parent, name, work, empty(reply));
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let work = move |tree: &Tree, name: &OsStr| fs::remove_dir(tree.child(parent, name)?);
        self.on_name(Kind::Rmdir, parent, name, work, empty(reply));
    }

    fn symlink(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let (caller, target) = (Caller::of(request), target.to_path_buf());
        let work = move |tree: &Tree, name: &OsStr| {
            tree.make(parent, name, 0, caller, |path| symlink(target, path))
        };
        self.on_name(Kind::Symlink, parent, name, work, entry(reply));
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let new_name = new_name.to_os_string();
        let work = move |tree: &Tree, name: &OsStr| {
            tree.rename((parent, name), (new_parent, &new_name), flags)
        };
        self.on_name(Kind::Rename, parent, name, work, empty(reply));
    }

    fn link(&self, _: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let work = move |tree: &Tree, name: &OsStr| {
            let path = tree.child(parent, name)?;
            fs::hard_link(tree.locate(ino)?, &path)?;
            tree.entry(path)
        };
        self.on_name(Kind::Link, parent, name, work, entry(reply));
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let caller = Caller::of(request);
        let work = move |tree: &Tree, name: &OsStr| tree.create(parent, name, mode, flags, caller);
        self.on_name(Kind::Create, parent, name, work, |outcome| match outcome {
            Ok((attr, handle)) => reply.created(&TTL, &attr, Generation(0), handle, OPEN_FLAGS),
            Err(errno) => reply.error(errno),
        });
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.on_node(
            Kind::Open,
            ino,
            move |tree| tree.open(ino, flags.0),
            opened(reply, OPEN_FLAGS),
        );
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.on_node(
            Kind::Read,
            ino,
            move |tree| tree.read(ino, handle, offset, size),
            data(reply),
        );
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        bytes: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let bytes = bytes.to_vec();
        self.on_node(
            Kind::Write,
            ino,
            move |tree| tree.write(handle, offset, &bytes),
            written(reply),
        );
    }

    fn flush(
        &self,
        _: &Request,
        ino: INodeNo,
        handle: FileHandle,
        _owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        self.on_node(
            Kind::Flush,
            ino,
            move |tree| tree.file(handle).map(drop),
            empty(reply),
        );
    }

    fn release(
        &self,
        _: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.tree.close_file(handle);
        reply.ok();
    }

    fn fsync(
        &self,
        _: &Request,
        ino: INodeNo,
        handle: FileHandle,
        data_only: bool,
        reply: ReplyEmpty,
    ) {
        let work = move |tree: &Tree| {
            let file = tree.file(handle)?;
            if data_only {
                file.sync_data()
            } else {
                file.sync_all()
            }
        };
        self.on_node(Kind::Fsync, ino, work, empty(reply));
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.on_node(
            Kind::Opendir,
            ino,
            move |tree| tree.opendir(ino),
            opened(reply, FopenFlags::empty()),
        );
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let work = move |tree: &Tree| tree.listing(ino, handle, offset);
        self.on_node(Kind::Readdir, ino, work, move |outcome| match outcome {
            Ok(listing) => {
                for (next, (ino, kind, name)) in (1u64..).zip(listing.iter()).skip(offset as usize)
                {
                    if reply.add(INodeNo(*ino), next, *kind, name) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(errno) => reply.error(errno),
        });
    }

    fn releasedir(
        &self,
        _: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.tree.close_dir(handle);
        reply.ok();
    }

    fn fsyncdir(
        &self,
        _: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        _data_only: bool,
        reply: ReplyEmpty,
    ) {
        self.on_node(
            Kind::Fsyncdir,
            ino,
            move |tree| fs::File::open(tree.locate(ino)?)?.sync_all(),
            empty(reply),
        );
    }

    #[allow(clippy::unnecessary_cast, reason = "macOS counts blocks in 32 bits")]
    fn statfs(&self, _: &Request, ino: INodeNo, reply: ReplyStatfs) {
        self.on_node(
            Kind::Statfs,
            ino,
            |tree| Ok(statvfs(tree.source())?),
            |outcome| match outcome {
                Ok(all) => reply.statfs(
                    all.blocks() as u64,
                    all.blocks_free() as u64,
                    all.blocks_available() as u64,
                    all.files() as u64,
                    all.files_free() as u64,
                    all.block_size() as u32,
                    all.name_max() as u32,
                    all.fragment_size() as u32,
                ),
                Err(errno) => reply.error(errno),
            },
        );
    }

    fn fallocate(
        &self,
        _: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let work = move |tree: &Tree| tree::allocate(&*tree.file(handle)?, mode, offset, length);
        self.on_node(Kind::Fallocate, ino, work, empty(reply));
    }

    fn lseek(
        &self,
        _: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let work = move |tree: &Tree| {
            // The kernel answers every other kind of seek itself.
            let whence = if whence == libc::SEEK_DATA {
                Whence::SeekData
            } else {
                Whence::SeekHole
            };
            Ok(lseek(tree.file(handle)?, offset, whence)?)
        };
        self.on_node(Kind::Lseek, ino, work, |outcome| match outcome {
            Ok(position) => reply.offset(position),
            Err(errno) => reply.error(errno),
        });
    }

    fn copy_file_range(
        &self,
        _: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        _to_ino: INodeNo,
        to_handle: FileHandle,
        to_offset: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let work =
            move |tree: &Tree| tree.copy_range((handle, offset), (to_handle, to_offset), len);
        self.on_node(Kind::CopyRange, ino, work, written(reply));
    }

    // ENOSYS makes the kernel remember that there are none, and never ask again: not before each write either.

    fn getxattr(&self, _: &Request, ino: INodeNo, _name: &OsStr, _size: u32, reply: ReplyXattr) {
        if !self.tree.gate.answers_xattrs() {
            return reply.error(Errno::ENOSYS);
        }
        let none = |_: &Tree| Err::<(), _>(nix::errno::Errno::ENODATA.into());
        self.on_node(Kind::Getxattr, ino, none, |outcome| match outcome {
            Ok(()) => reply.size(0),
            Err(errno) => reply.error(errno),
        });
    }

    fn listxattr(&self, _: &Request, _ino: INodeNo, _size: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn setxattr(
        &self,
        _: &Request,
        _ino: INodeNo,
        _name: &OsStr,
        _value: &[u8],
        _flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn removexattr(&self, _: &Request, _ino: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }
}
