//! The source directory behind node numbers and handles: what each request does, without waiting and without FUSE.
//!
//! A node is an inode number of the source with the paths under which it was looked up. A path counts only while it
//! still leads to that inode, so nothing here has to follow what others do to the directory.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, FileTimes, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{DirEntryExt, FileExt, MetadataExt, PermissionsExt, fchown, lchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileHandle, FileType, INodeNo, RenameFlags, Request, TimeOrNow};
use nix::fcntl::{AT_FDCWD, OFlag};
use nix::sys::stat::{Mode, UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{getegid, geteuid, truncate};
use parking_lot::Mutex;

use super::gate::Gate;

/// One inode that the kernel knows: how often it looked it up, and the paths under which it did.
#[derive(Default)]
struct Node {
    lookups: u64,
    paths: Vec<PathBuf>,
}

struct OpenFile {
    ino: u64,
    file: Arc<File>,
}

/// The names of a directory as they were when its listing began, so that a cookie stays valid while it changes.
pub(super) type Listing = Arc<Vec<(u64, FileType, OsString)>>;

/// Who asks, and so owns what is created.
#[derive(Clone, Copy)]
pub(super) struct Caller {
    uid: u32,
    gid: u32,
}

impl Caller {
    pub(super) fn of(request: &Request) -> Caller {
        Caller {
            uid: request.uid(),
            gid: request.gid(),
        }
    }
}

/// What one `setattr` changes.
pub(super) struct Change {
    pub(super) mode: Option<u32>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) size: Option<u64>,
    pub(super) atime: Option<TimeOrNow>,
    pub(super) mtime: Option<TimeOrNow>,
}

/// The source directory behind node numbers and handles.
pub(super) struct Tree {
    source: PathBuf,
    nodes: Mutex<HashMap<u64, Node>>,
    files: Mutex<HashMap<u64, OpenFile>>,
    dirs: Mutex<HashMap<u64, Option<Listing>>>,
    next_handle: AtomicU64,
    pub(super) gate: Arc<Gate>,
}

fn os_error(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}

impl Tree {
    pub(super) fn new(source: PathBuf, gate: Arc<Gate>) -> io::Result<Tree> {
        if !source.is_dir() {
            return Err(os_error(libc::ENOTDIR));
        }
        let next_handle = AtomicU64::new(1);
        Ok(Tree {
            source,
            nodes: Mutex::default(),
            files: Mutex::default(),
            dirs: Mutex::default(),
            next_handle,
            gate,
        })
    }

    /// A path that was seen for this node, whether or not it still leads there; for faults that name a path.
    pub(super) fn path_hint(&self, ino: INodeNo) -> PathBuf {
        if ino == INodeNo::ROOT {
            return self.source.clone();
        }
        self.nodes
            .lock()
            .get(&ino.0)
            .and_then(|node| node.paths.last().cloned())
            .unwrap_or_default()
    }

    /// A path that leads to this node now. Paths that no longer do are forgotten here, and nowhere else.
    pub(super) fn locate(&self, ino: INodeNo) -> io::Result<PathBuf> {
        if ino == INodeNo::ROOT {
            return Ok(self.source.clone());
        }
        let mut nodes = self.nodes.lock();
        let paths = &mut nodes
            .get_mut(&ino.0)
            .ok_or_else(|| os_error(libc::ESTALE))?
            .paths;
        paths.retain(|path| {
            path.symlink_metadata()
                .is_ok_and(|meta| meta.ino() == ino.0)
        });
        paths.last().cloned().ok_or_else(|| os_error(libc::ESTALE))
    }

    pub(super) fn child(&self, parent: INodeNo, name: &OsStr) -> io::Result<PathBuf> {
        Ok(self.locate(parent)?.join(name))
    }

    pub(super) fn file(&self, handle: FileHandle) -> io::Result<Arc<File>> {
        self.files
            .lock()
            .get(&handle.0)
            .map(|open| Arc::clone(&open.file))
            .ok_or_else(|| os_error(libc::EBADF))
    }

    /// The file by which the kernel asks, or any open one of this node: an unlinked file has no path any more.
    fn open_file(&self, ino: INodeNo, handle: Option<FileHandle>) -> io::Result<Arc<File>> {
        let files = self.files.lock();
        let named = handle.and_then(|handle| files.get(&handle.0));
        let open = named.or_else(|| files.values().find(|open| open.ino == ino.0));
        open.map(|open| Arc::clone(&open.file))
            .ok_or_else(|| os_error(libc::ESTALE))
    }

    /// Closes an open file.
    pub(super) fn close_file(&self, handle: FileHandle) {
        // The file itself is dropped after the lock.
        let _closed = self.files.lock().remove(&handle.0);
    }

    /// Ends a listing.
    pub(super) fn close_dir(&self, handle: FileHandle) {
        let _closed = self.dirs.lock().remove(&handle.0);
    }

    /// The source directory.
    pub(super) fn source(&self) -> &Path {
        &self.source
    }

    pub(super) fn getattr(&self, ino: INodeNo, handle: Option<FileHandle>) -> io::Result<FileAttr> {
        let meta = match self.locate(ino) {
            Ok(path) => path.symlink_metadata(),
            Err(_) => self.open_file(ino, handle).and_then(|file| file.metadata()),
        };
        Ok(attr(&meta?))
    }

    /// What `path` is, and one more lookup of it.
    pub(super) fn entry(&self, path: PathBuf) -> io::Result<FileAttr> {
        let attr = attr(&path.symlink_metadata()?);
        let mut nodes = self.nodes.lock();
        let node = nodes.entry(attr.ino.0).or_default();
        node.lookups += 1;
        if !node.paths.contains(&path) {
            node.paths.push(path);
        }
        Ok(attr)
    }

    pub(super) fn forget(&self, ino: INodeNo, count: u64) {
        let mut nodes = self.nodes.lock();
        if let Some(node) = nodes.get_mut(&ino.0) {
            node.lookups = node.lookups.saturating_sub(count);
            if node.lookups == 0 {
                nodes.remove(&ino.0);
            }
        }
    }

    /// Gives a new file to the caller, with exactly the mode that was asked for: the umask of this process must not
    /// count a second time. A set-group-id directory hands its group and, to directories, that bit on.
    fn adopt(&self, path: &Path, mode: u32, caller: Caller) -> io::Result<()> {
        let made = path.symlink_metadata()?;
        if (caller.uid, caller.gid) != (geteuid().as_raw(), getegid().as_raw()) {
            let parent = path
                .parent()
                .map_or(Ok(0), |parent| parent.metadata().map(|meta| meta.mode()))?;
            let group = (parent & 0o2000 == 0).then_some(caller.gid);
            lchown(path, Some(caller.uid), group)?;
        }
        if made.file_type().is_symlink() {
            return Ok(());
        }
        fs::set_permissions(
            path,
            Permissions::from_mode((made.mode() & 0o7000) | (mode & 0o7777)),
        )
    }

    pub(super) fn make(
        &self,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        caller: Caller,
        make: impl FnOnce(&Path) -> io::Result<()>,
    ) -> io::Result<FileAttr> {
        let path = self.child(parent, name)?;
        make(&path)?;
        self.adopt(&path, mode, caller)?;
        self.entry(path)
    }

    pub(super) fn setattr(
        &self,
        ino: INodeNo,
        handle: Option<FileHandle>,
        change: Change,
    ) -> io::Result<FileAttr> {
        match self.locate(ino) {
            Ok(path) => self.change_path(&path, handle, &change)?,
            Err(_) => change_file(&*self.open_file(ino, handle)?, &change)?,
        }
        self.getattr(ino, handle)
    }

    fn change_path(
        &self,
        path: &Path,
        handle: Option<FileHandle>,
        change: &Change,
    ) -> io::Result<()> {
        if change.uid.is_some() || change.gid.is_some() {
            lchown(path, change.uid, change.gid)?;
        }
        if let Some(mode) = change.mode {
            fs::set_permissions(path, Permissions::from_mode(mode & 0o7777))?;
        }
        if let Some(size) = change.size {
            // By the handle where there is one: its file may have become read-only since it was opened.
            match handle.map(|handle| self.file(handle)).transpose()? {
                Some(file) => file.set_len(size)?,
                None => truncate(path, size as i64)?,
            }
        }
        if change.atime.is_some() || change.mtime.is_some() {
            let [atime, mtime] = [change.atime, change.mtime].map(time_spec);
            utimensat(
                AT_FDCWD,
                path,
                &atime,
                &mtime,
                UtimensatFlags::NoFollowSymlink,
            )?;
        }
        Ok(())
    }

    pub(super) fn rename(
        &self,
        from: (INodeNo, &OsStr),
        to: (INodeNo, &OsStr),
        flags: RenameFlags,
    ) -> io::Result<()> {
        let (old, new) = (self.child(from.0, from.1)?, self.child(to.0, to.1)?);
        let mut nodes = self.nodes.lock();
        rename_with(&old, &new, flags)?;
        for path in nodes.values_mut().flat_map(|node| &mut node.paths) {
            if let Ok(rest) = path.strip_prefix(&old) {
                *path = join(&new, rest);
            } else if let Ok(rest) = path.strip_prefix(&new) {
                // Exchanged, or replaced: then this path leads nowhere, and `locate` drops it.
                *path = join(&old, rest);
            }
        }
        Ok(())
    }

    fn add_file(&self, ino: u64, file: File) -> FileHandle {
        let handle = self.next_handle.fetch_add(1, Relaxed);
        self.files.lock().insert(
            handle,
            OpenFile {
                ino,
                file: Arc::new(file),
            },
        );
        FileHandle(handle)
    }

    pub(super) fn open(&self, ino: INodeNo, flags: i32) -> io::Result<FileHandle> {
        // O_DIRECT would ask for aligned buffers; the rest has been done by the kernel.
        let kept = OFlag::from_bits_retain(flags)
            & !(OFlag::O_CREAT
                | OFlag::O_EXCL
                | OFlag::O_TRUNC
                | OFlag::O_NOCTTY
                | OFlag::from_bits_retain(O_DIRECT));
        let file = nix::fcntl::open(
            &self.locate(ino)?,
            kept | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW,
            Mode::empty(),
        )?;
        Ok(self.add_file(ino.0, file.into()))
    }

    pub(super) fn create(
        &self,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        flags: i32,
        caller: Caller,
    ) -> io::Result<(FileAttr, FileHandle)> {
        let path = self.child(parent, name)?;
        let kept =
            OFlag::from_bits_retain(flags & !O_DIRECT) | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        let existed = path.symlink_metadata().is_ok();
        let file = nix::fcntl::open(
            &path,
            kept | OFlag::O_CREAT,
            Mode::from_bits_truncate(mode as _),
        )?;
        if !existed {
            self.adopt(&path, mode, caller)?;
        }
        let attr = self.entry(path)?;
        Ok((attr, self.add_file(attr.ino.0, file.into())))
    }

    pub(super) fn read(
        &self,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
    ) -> io::Result<Vec<u8>> {
        let file = self.file(handle)?;
        let mut data = vec![0; shorter(size as usize, self.gate.shortens().0)];
        let mut filled = 0;
        while filled < data.len() {
            match file.read_at(&mut data[filled..], offset + filled as u64)? {
                0 => break,
                count => filled += count,
            }
        }
        data.truncate(filled);
        self.gate.count_read(ino.0, offset, filled);
        Ok(data)
    }

    pub(super) fn write(&self, handle: FileHandle, offset: u64, data: &[u8]) -> io::Result<u32> {
        let size = shorter(data.len(), self.gate.shortens().1);
        let count = self.file(handle)?.write_at(&data[..size], offset)?;
        self.gate.count_written(count);
        Ok(count as u32)
    }

    pub(super) fn opendir(&self, ino: INodeNo) -> io::Result<FileHandle> {
        fs::read_dir(self.locate(ino)?)?;
        let handle = self.next_handle.fetch_add(1, Relaxed);
        self.dirs.lock().insert(handle, None);
        Ok(FileHandle(handle))
    }

    /// The listing of this handle; offset 0 (also after a rewind) looks again.
    pub(super) fn listing(
        &self,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
    ) -> io::Result<Listing> {
        let kept = self.dirs.lock().get(&handle.0).cloned().flatten();
        if let (Some(listing), true) = (kept, offset > 0) {
            return Ok(listing);
        }
        let Ok(path) = self.locate(ino) else {
            return Ok(Listing::default());
        };
        let ino_of = |path: &Path| path.metadata().map(|meta| meta.ino());
        let above = if ino == INodeNo::ROOT {
            &path
        } else {
            path.parent().unwrap_or(&path)
        };
        let mut list = vec![
            (ino_of(&path)?, FileType::Directory, OsString::from(".")),
            (ino_of(above)?, FileType::Directory, OsString::from("..")),
        ];
        for entry in fs::read_dir(&path)? {
            let entry = entry?;
            let kind = entry
                .file_type()
                .ok()
                .and_then(FileType::from_std)
                .unwrap_or(FileType::RegularFile);
            list.push((entry.ino(), kind, entry.file_name()));
        }
        let listing = Arc::new(list);
        self.dirs
            .lock()
            .insert(handle.0, Some(Arc::clone(&listing)));
        Ok(listing)
    }

    /// Copies in one process; a piece per request, as large as one answer may report without hurting others.
    pub(super) fn copy_range(
        &self,
        from: (FileHandle, u64),
        to: (FileHandle, u64),
        len: u64,
    ) -> io::Result<u32> {
        let mut data = vec![0; len.min(4 * 1024 * 1024) as usize];
        let count = self.file(from.0)?.read_at(&mut data, from.1)?;
        self.file(to.0)?.write_all_at(&data[..count], to.1)?;
        Ok(count as u32)
    }
}

#[cfg(target_os = "linux")]
const O_DIRECT: i32 = libc::O_DIRECT;
#[cfg(not(target_os = "linux"))]
const O_DIRECT: i32 = 0;

/// `base/rest`, and no trailing slash when there is no rest.
fn join(base: &Path, rest: &Path) -> PathBuf {
    if rest.as_os_str().is_empty() {
        base.to_path_buf()
    } else {
        base.join(rest)
    }
}

/// A size that is less than asked for, but not none.
fn shorter(size: usize, short: bool) -> usize {
    if short && size > 1 { size / 2 } else { size }
}

#[cfg(target_os = "linux")]
fn rename_with(old: &Path, new: &Path, flags: RenameFlags) -> io::Result<()> {
    let flags = nix::fcntl::RenameFlags::from_bits_retain(flags.bits());
    Ok(nix::fcntl::renameat2(AT_FDCWD, old, AT_FDCWD, new, flags)?)
}

#[cfg(not(target_os = "linux"))]
fn rename_with(old: &Path, new: &Path, flags: RenameFlags) -> io::Result<()> {
    if flags.is_empty() {
        fs::rename(old, new)
    } else {
        Err(os_error(libc::EINVAL))
    }
}

#[cfg(target_os = "linux")]
pub(super) fn allocate(file: &File, mode: i32, offset: u64, length: u64) -> io::Result<()> {
    let mode = nix::fcntl::FallocateFlags::from_bits_retain(mode);
    Ok(nix::fcntl::fallocate(
        file,
        mode,
        offset as i64,
        length as i64,
    )?)
}

#[cfg(not(target_os = "linux"))]
pub(super) fn allocate(_file: &File, _mode: i32, _offset: u64, _length: u64) -> io::Result<()> {
    Err(os_error(libc::ENOTSUP))
}

fn change_file(file: &File, change: &Change) -> io::Result<()> {
    if change.uid.is_some() || change.gid.is_some() {
        fchown(file, change.uid, change.gid)?;
    }
    if let Some(mode) = change.mode {
        file.set_permissions(Permissions::from_mode(mode & 0o7777))?;
    }
    if let Some(size) = change.size {
        file.set_len(size)?;
    }
    let mut times = FileTimes::new();
    if let Some(atime) = change.atime {
        times = times.set_accessed(moment(atime));
    }
    if let Some(mtime) = change.mtime {
        times = times.set_modified(moment(mtime));
    }
    file.set_times(times)
}

fn moment(time: TimeOrNow) -> SystemTime {
    match time {
        TimeOrNow::SpecificTime(time) => time,
        TimeOrNow::Now => SystemTime::now(),
    }
}

fn time_spec(time: Option<TimeOrNow>) -> TimeSpec {
    match time {
        None => TimeSpec::UTIME_OMIT,
        Some(TimeOrNow::Now) => TimeSpec::UTIME_NOW,
        Some(TimeOrNow::SpecificTime(time)) => match time.duration_since(UNIX_EPOCH) {
            Ok(since) => TimeSpec::from_duration(since),
            Err(before) => {
                let before = before.duration();
                let carry = i64::from(before.subsec_nanos() > 0);
                let nanos = (1_000_000_000 - i64::from(before.subsec_nanos())) % 1_000_000_000;
                TimeSpec::new(-(before.as_secs() as i64) - carry, nanos)
            }
        },
    }
}

fn attr(meta: &Metadata) -> FileAttr {
    let time = |seconds: i64, nanos: i64| {
        let nanos = Duration::from_nanos(nanos as u64);
        let whole = Duration::from_secs(seconds.unsigned_abs());
        if seconds < 0 {
            UNIX_EPOCH - whole + nanos
        } else {
            UNIX_EPOCH + whole + nanos
        }
    };
    FileAttr {
        ino: INodeNo(meta.ino()),
        size: meta.size(),
        blocks: meta.blocks(),
        atime: time(meta.atime(), meta.atime_nsec()),
        mtime: time(meta.mtime(), meta.mtime_nsec()),
        ctime: time(meta.ctime(), meta.ctime_nsec()),
        crtime: UNIX_EPOCH,
        kind: FileType::from_std(meta.file_type()).unwrap_or(FileType::RegularFile),
        perm: (meta.mode() & 0o7777) as u16,
        nlink: meta.nlink() as u32,
        uid: meta.uid(),
        gid: meta.gid(),
        rdev: meta.rdev() as u32,
        blksize: meta.blksize() as u32,
        flags: 0,
    }
}
