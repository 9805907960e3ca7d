//! The source directory: every system call on it, beneath one directory handle.
//!
//! Promises:
//! * Nothing here leaves the source. Every call but two takes a directory descriptor and *one* name, never a path,
//!   and never follows a symbolic link in that name; so a name that is swapped for a link meanwhile leads
//!   nowhere. (Mount points inside the source are followed, as any program would.)
//!   The two, [`Source::open_path`] and [`Source::stat_path`], are for the streams of the library, whose caller
//!   names a file by its path and means what any program means by it.
//! * Every call keeps its errno.
//! * Every call first asks the [`Intercept`], when there is one: the public seam through which tests (and
//!   whoever wants to see what the cache costs the source) delay, fail, hold or count calls.
//!
//! It holds no state but the root's descriptor, and caches nothing.

use crate::error::{Doing, Error, Result};
use crate::stats::Stats;
use crate::sys::{self, Stat, XattrAnswer};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, OnceLock};

/// Kinds of calls on the source, as the [`Intercept`] sees them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[allow(missing_docs, reason = "the names are those of the system calls")]
pub enum Call {
    Stat,
    Open,
    List,
    Readlink,
    Read,
    Write,
    Sync,
    Create,
    Remove,
    Rename,
    Link,
    SetAttr,
    Xattr,
    Statfs,
    Allocate,
    Copy,
    Seek,
}

/// Called around every system call on the source, on the thread that makes it.
///
/// An implementation may block (a hung server), fail (a broken one) or count. It must not call back into
/// the file system that it is attached to.
pub trait Intercept: Send + Sync + 'static {
    /// Before the call; an error is returned in its place.
    fn before(&self, call: Call) -> nix::Result<()>;
    /// After the call came back.
    fn after(&self, _call: Call) {}
}

/// One entry of a directory listing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listed {
    /// Name, any bytes but `/` and NUL.
    pub name: OsString,
    /// Inode number as the directory has it (below a mount point: that of the covered directory).
    pub ino: u64,
    /// `S_IFMT` bits, 0 when the file system does not say.
    pub kind: u32,
}

/// A directory (or any file named without being opened) of the source.
pub type Handle = OwnedFd;

/// The source.
pub struct Source {
    root: Option<Handle>,
    intercept: Option<Arc<dyn Intercept>>,
    stats: Arc<Stats>,
}

const HERE: &str = "";

impl Source {
    /// Open the directory `path` as the source.
    pub fn open(
        path: &Path,
        intercept: Option<Arc<dyn Intercept>>,
        stats: Arc<Stats>,
    ) -> Result<Source> {
        let root = sys::open_root(path).doing("open source")?;
        Ok(Source {
            root: Some(root),
            intercept,
            stats,
        })
    }

    /// No directory: for files that are opened by their paths.
    pub fn everywhere(intercept: Option<Arc<dyn Intercept>>, stats: Arc<Stats>) -> Source {
        Source {
            root: None,
            intercept,
            stats,
        }
    }

    /// The root's descriptor. Holding it pins the source's own mount: an unmounted server directory is
    /// then never mistaken for an empty one.
    pub fn root(&self) -> Result<&Handle> {
        let none = Error::new(Errno::ENOTDIR, "use a source without a directory");
        self.root.as_ref().ok_or(none)
    }

    fn call<T>(
        &self,
        call: Call,
        doing: &'static str,
        f: impl FnOnce() -> nix::Result<T>,
    ) -> Result<T> {
        self.stats.source_calls.add(1);
        let result = match &self.intercept {
            None => f(),
            Some(intercept) => intercept.before(call).and_then(|()| {
                let result = f();
                intercept.after(call);
                result
            }),
        };
        // The program on the mount has descriptors left; it is the daemon that ran out.
        result
            .map_err(|errno| match errno {
                Errno::EMFILE => Errno::ENFILE,
                other => other,
            })
            .doing(doing)
    }

    /// Attributes of `name` in `dir`. `fresh` bypasses a network file system's own attribute cache.
    pub fn stat_at(&self, dir: &impl AsFd, name: &OsStr, fresh: bool) -> Result<Stat> {
        self.call(Call::Stat, "stat", || {
            sys::stat_at(dir.as_fd(), name, fresh)
        })
    }

    /// Attributes of an open file or named handle.
    pub fn stat(&self, file: &impl AsFd, fresh: bool) -> Result<Stat> {
        self.call(Call::Stat, "stat", || {
            sys::stat_at(file.as_fd(), OsStr::new(HERE), fresh)
        })
    }

    /// Attributes of the file that `path` leads to; symbolic links are followed.
    pub fn stat_path(&self, path: &Path, fresh: bool) -> Result<Stat> {
        self.call(Call::Stat, "stat", || sys::stat_path(path, fresh))
    }

    /// Open the file that `path` leads to; symbolic links are followed. A FIFO does not block the call: the caller
    /// looks at what was opened.
    pub fn open_path(&self, path: &Path, flags: OFlag, mode: u32) -> Result<OwnedFd> {
        let call = if flags.contains(OFlag::O_CREAT) {
            Call::Create
        } else {
            Call::Open
        };
        let flags = flags | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let mode = Mode::from_bits_truncate(mode as libc::mode_t);
        self.call(call, "open", || nix::fcntl::open(path, flags, mode))
    }

    /// A handle for names below the directory `name` in `dir`.
    pub fn open_dir(&self, dir: &impl AsFd, name: &OsStr) -> Result<Handle> {
        self.call(Call::Open, "open directory", || {
            sys::open_dir(dir.as_fd(), name)
        })
    }

    /// A handle that names `name` in `dir`, whatever it is, without opening its content.
    pub fn name(&self, dir: &impl AsFd, name: &OsStr) -> Result<Handle> {
        self.call(Call::Open, "open", || sys::open_name(dir.as_fd(), name))
    }

    /// Open the regular file `name` in `dir` for I/O. Something else that took the name meanwhile (a
    /// FIFO, say) does not block the call; the caller compares identities.
    pub fn open_file(&self, dir: &impl AsFd, name: &OsStr, flags: OFlag) -> Result<OwnedFd> {
        let flags =
            flags | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        self.call(Call::Open, "open", || {
            nix::fcntl::openat(dir, name, flags, Mode::empty())
        })
    }

    /// Open for I/O what a handle names.
    pub fn reopen(&self, named: &impl AsFd, flags: OFlag) -> Result<OwnedFd> {
        self.call(Call::Open, "open", || sys::reopen(named.as_fd(), flags))
    }

    /// Create the regular file `name` in `dir`; fails when it exists and `flags` has `O_EXCL`.
    pub fn create(
        &self,
        dir: &impl AsFd,
        name: &OsStr,
        flags: OFlag,
        mode: u32,
    ) -> Result<OwnedFd> {
        let flags = flags | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        self.call(Call::Create, "create", || {
            nix::fcntl::openat(
                dir,
                name,
                flags,
                Mode::from_bits_truncate(mode as libc::mode_t),
            )
        })
    }

    /// All entries of a directory but `.` and `..`.
    pub fn list(&self, dir: &impl AsFd) -> Result<Vec<Listed>> {
        self.call(Call::List, "read directory", || {
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            let mut open = nix::dir::Dir::openat(dir, ".", flags, Mode::empty())?;
            let mut entries = Vec::new();
            for entry in open.iter() {
                let entry = entry?;
                let name = sys::os(entry.file_name());
                if name != "." && name != ".." {
                    entries.push(Listed {
                        name: name.to_owned(),
                        ino: entry.ino(),
                        kind: entry.file_type().map_or(0, kind_bits),
                    });
                }
            }
            Ok(entries)
        })
    }

    /// Fill `buffer` from `pos` on; returns how many bytes there were. Less than asked means end of file.
    pub fn read(&self, file: &impl AsFd, buffer: &mut [u8], pos: u64) -> Result<usize> {
        let got = self.call(Call::Read, "read", || {
            let mut done = 0;
            while done < buffer.len() {
                let at = sys::offset(pos + done as u64)?;
                match nix::sys::uio::pread(file, &mut buffer[done..], at) {
                    Ok(0) => break,
                    Ok(n) => done += n,
                    Err(Errno::EINTR) => {}
                    Err(errno) => return Err(errno),
                }
            }
            Ok(done)
        })?;
        self.stats.fetched_bytes.add(got as u64);
        Ok(got)
    }

    /// Append `data`; returns how many bytes went in, as [`Source::write`].
    pub fn append(&self, file: &impl AsFd, data: &[u8]) -> Result<usize> {
        let put = self.call(Call::Write, "write", || {
            let mut done = 0;
            while done < data.len() {
                match sys::append(file.as_fd(), &data[done..]) {
                    Ok(0) => break,
                    Ok(n) => done += n,
                    Err(Errno::EINTR) => {}
                    Err(_) if done > 0 => break,
                    Err(errno) => return Err(errno),
                }
            }
            Ok(done)
        })?;
        self.stats.written_bytes.add(put as u64);
        Ok(put)
    }

    /// Write `data` at `pos`; returns how many bytes went in. Fewer than given means that the next byte met
    /// an error, which a repeated call would report.
    pub fn write(&self, file: &impl AsFd, data: &[u8], pos: u64) -> Result<usize> {
        let put = self.call(Call::Write, "write", || {
            let mut done = 0;
            while done < data.len() {
                let at = sys::offset(pos + done as u64)?;
                match nix::sys::uio::pwrite(file, &data[done..], at) {
                    Ok(0) => break,
                    Ok(n) => done += n,
                    Err(Errno::EINTR) => {}
                    Err(_) if done > 0 => break,
                    Err(errno) => return Err(errno),
                }
            }
            Ok(done)
        })?;
        self.stats.written_bytes.add(put as u64);
        Ok(put)
    }

    /// fsync(2), or fdatasync(2) when only the content matters.
    pub fn sync(&self, file: &impl AsFd, data_only: bool) -> Result<()> {
        self.call(Call::Sync, "sync", || {
            #[cfg(target_os = "linux")]
            if data_only {
                return nix::unistd::fdatasync(file);
            }
            let _ = data_only;
            nix::unistd::fsync(file)
        })
    }

    /// fsync(2) of a directory.
    pub fn sync_dir(&self, dir: &impl AsFd) -> Result<()> {
        self.call(Call::Sync, "sync directory", || {
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            let open = nix::fcntl::openat(dir, ".", flags, Mode::empty())?;
            nix::unistd::fsync(&open)
        })
    }

    /// What close(2) of the last descriptor would report.
    pub fn flush(&self, file: &impl AsFd) -> Result<()> {
        self.call(Call::Sync, "close", || sys::flush_by_close(file.as_fd()))
    }

    /// ftruncate(2).
    pub fn truncate(&self, file: &impl AsFd, size: u64) -> Result<()> {
        self.call(Call::SetAttr, "truncate", || {
            nix::unistd::ftruncate(file, sys::offset(size)?)
        })
    }

    /// chmod(2) of what a handle names.
    pub fn chmod(&self, named: &impl AsFd, mode: u32) -> Result<()> {
        self.call(Call::SetAttr, "chmod", || {
            sys::chmod_named(named.as_fd(), mode)
        })
    }

    /// chown(2) of what a handle names.
    pub fn chown(&self, named: &impl AsFd, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
        self.call(Call::SetAttr, "chown", || {
            sys::chown_named(named.as_fd(), uid, gid)
        })
    }

    /// utimensat(2) of what a handle names.
    pub fn utimens(
        &self,
        named: &impl AsFd,
        atime: sys::SetTime,
        mtime: sys::SetTime,
    ) -> Result<()> {
        self.call(Call::SetAttr, "set times", || {
            sys::utimens_named(named.as_fd(), atime, mtime)
        })
    }

    /// mkdirat(2).
    pub fn mkdir(&self, dir: &impl AsFd, name: &OsStr, mode: u32) -> Result<()> {
        self.call(Call::Create, "mkdir", || {
            nix::sys::stat::mkdirat(dir, name, Mode::from_bits_truncate(mode as libc::mode_t))
        })
    }

    /// mknod(2); `device` is in FUSE's encoding.
    pub fn mknod(&self, dir: &impl AsFd, name: &OsStr, mode: u32, device: u32) -> Result<()> {
        self.call(Call::Create, "mknod", || {
            #[cfg(target_os = "linux")]
            {
                use nix::sys::stat::SFlag;
                nix::sys::stat::mknodat(
                    dir,
                    name,
                    SFlag::from_bits_truncate(mode & libc::S_IFMT),
                    Mode::from_bits_truncate(mode),
                    sys::decode_device(device),
                )
            }
            #[cfg(target_os = "macos")]
            {
                // macOS 12 has no mknodat in the versions that we support; FIFOs are what programs make.
                let _ = device;
                if mode & crate::sys::S_IFMT != crate::sys::S_IFIFO {
                    return Err(Errno::EPERM);
                }
                crate::sys::mkfifo_at(dir.as_fd(), name, mode)
            }
        })
    }

    /// symlinkat(2).
    pub fn symlink(&self, dir: &impl AsFd, name: &OsStr, target: &Path) -> Result<()> {
        self.call(Call::Create, "symlink", || {
            nix::unistd::symlinkat(target, dir, name)
        })
    }

    /// Text of the symbolic link `name` in `dir`.
    pub fn readlink(&self, dir: &impl AsFd, name: &OsStr) -> Result<OsString> {
        self.call(Call::Readlink, "readlink", || {
            nix::fcntl::readlinkat(dir, name)
        })
    }

    /// linkat(2): `new` becomes another name of `old`; a symbolic link is linked itself.
    pub fn link(&self, old: (&impl AsFd, &OsStr), new: (&impl AsFd, &OsStr)) -> Result<()> {
        self.call(Call::Link, "link", || {
            nix::unistd::linkat(old.0, old.1, new.0, new.1, nix::fcntl::AtFlags::empty())
        })
    }

    /// unlinkat(2).
    pub fn unlink(&self, dir: &impl AsFd, name: &OsStr) -> Result<()> {
        self.call(Call::Remove, "unlink", || {
            nix::unistd::unlinkat(dir, name, nix::unistd::UnlinkatFlags::NoRemoveDir)
        })
    }

    /// unlinkat(2) with `AT_REMOVEDIR`.
    pub fn rmdir(&self, dir: &impl AsFd, name: &OsStr) -> Result<()> {
        self.call(Call::Remove, "rmdir", || {
            nix::unistd::unlinkat(dir, name, nix::unistd::UnlinkatFlags::RemoveDir)
        })
    }

    /// renameat2(2); `flags` in Linux numbers.
    pub fn rename(
        &self,
        from: (&impl AsFd, &OsStr),
        to: (&impl AsFd, &OsStr),
        flags: u32,
    ) -> Result<()> {
        self.call(Call::Rename, "rename", || {
            sys::rename((from.0.as_fd(), from.1), (to.0.as_fd(), to.1), flags)
        })
    }

    /// getxattr(2) of what a handle names; `size` 0 asks for the length.
    pub fn getxattr(&self, named: &impl AsFd, name: &OsStr, size: u32) -> Result<XattrAnswer> {
        self.call(Call::Xattr, "getxattr", || {
            sys::getxattr_named(named.as_fd(), name, size as usize)
        })
    }

    /// listxattr(2) of what a handle names; `size` 0 asks for the length.
    pub fn listxattr(&self, named: &impl AsFd, size: u32) -> Result<XattrAnswer> {
        self.call(Call::Xattr, "listxattr", || {
            sys::listxattr_named(named.as_fd(), size as usize)
        })
    }

    /// setxattr(2) of what a handle names.
    pub fn setxattr(
        &self,
        named: &impl AsFd,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        position: u32,
    ) -> Result<()> {
        self.call(Call::Xattr, "setxattr", || {
            sys::setxattr_named(named.as_fd(), name, value, flags, position)
        })
    }

    /// removexattr(2) of what a handle names.
    pub fn removexattr(&self, named: &impl AsFd, name: &OsStr) -> Result<()> {
        self.call(Call::Xattr, "removexattr", || {
            sys::removexattr_named(named.as_fd(), name)
        })
    }

    /// faccessat(2) of `name` in `dir` with the daemon's own rights.
    pub fn access(&self, dir: &impl AsFd, name: &OsStr, mask: i32) -> Result<()> {
        self.call(Call::Stat, "access", || {
            nix::unistd::faccessat(
                dir,
                name,
                nix::unistd::AccessFlags::from_bits_truncate(mask),
                nix::fcntl::AtFlags::empty(),
            )
        })
    }

    /// statvfs(3) of the file system below `file`.
    pub fn statfs(&self, file: &impl AsFd) -> Result<nix::sys::statvfs::Statvfs> {
        self.call(Call::Statfs, "statfs", || nix::sys::statvfs::fstatvfs(file))
    }

    /// fallocate(2) with raw mode bits.
    pub fn allocate(&self, file: &impl AsFd, mode: i32, pos: u64, size: u64) -> Result<()> {
        self.call(Call::Allocate, "fallocate", || {
            sys::fallocate(file.as_fd(), mode, pos, size)
        })
    }

    /// copy_file_range(2).
    pub fn copy(
        &self,
        from: (&impl AsFd, u64),
        to: (&impl AsFd, u64),
        size: usize,
    ) -> Result<usize> {
        self.call(Call::Copy, "copy_file_range", || {
            sys::copy_file_range((from.0.as_fd(), from.1), (to.0.as_fd(), to.1), size)
        })
    }

    /// lseek(2) with SEEK_DATA or SEEK_HOLE.
    pub fn seek(&self, file: &impl AsFd, pos: i64, whence: i32) -> Result<i64> {
        self.call(Call::Seek, "lseek", || sys::seek(file.as_fd(), pos, whence))
    }
}

fn kind_bits(kind: nix::dir::Type) -> u32 {
    use nix::dir::Type;
    match kind {
        Type::Fifo => sys::S_IFIFO,
        Type::CharacterDevice => sys::S_IFCHR,
        Type::Directory => sys::S_IFDIR,
        Type::BlockDevice => sys::S_IFBLK,
        Type::File => sys::S_IFREG,
        Type::Symlink => sys::S_IFLNK,
        Type::Socket => sys::S_IFSOCK,
    }
}

type Opener = Box<dyn Fn() -> Result<Arc<OwnedFd>> + Send + Sync>;

/// A file of the source as the data path uses it: open, or to be opened when it is first needed.
pub struct BackingFile {
    source: Arc<Source>,
    fd: OnceLock<Arc<OwnedFd>>,
    opener: Option<Opener>,
}

impl BackingFile {
    /// An open file.
    pub fn opened(source: Arc<Source>, fd: Arc<OwnedFd>) -> BackingFile {
        BackingFile {
            source,
            fd: OnceLock::from(fd),
            opener: None,
        }
    }

    /// A file that `opener` opens when a read misses. A file whose content is cached can so be opened and
    /// read while the source does not answer.
    pub fn lazy(
        source: Arc<Source>,
        opener: impl Fn() -> Result<Arc<OwnedFd>> + Send + Sync + 'static,
    ) -> BackingFile {
        BackingFile {
            source,
            fd: OnceLock::new(),
            opener: Some(Box::new(opener)),
        }
    }

    /// The source that it belongs to.
    pub fn source(&self) -> &Arc<Source> {
        &self.source
    }

    /// The descriptor, opened now when it was not.
    pub fn fd(&self) -> Result<BorrowedFd<'_>> {
        if let Some(fd) = self.fd.get() {
            return Ok(fd.as_fd());
        }
        let opener = self
            .opener
            .as_ref()
            .ok_or(Error::new(Errno::EBADF, "open"))?;
        let fd = opener()?;
        Ok(self.fd.get_or_init(|| fd).as_fd())
    }

    /// Would dropping this file close no descriptor?
    pub fn is_shared(&self) -> bool {
        self.fd.get().is_none_or(|fd| Arc::strong_count(fd) > 1)
    }

    /// The descriptor when it is open already.
    pub fn fd_if_open(&self) -> Option<BorrowedFd<'_>> {
        self.fd.get().map(|fd| fd.as_fd())
    }
}

/// Where the descriptor came from is the caller's business; two files are one when their stat says so.
impl std::fmt::Debug for BackingFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BackingFile")
            .field("fd", &self.fd.get())
            .finish_non_exhaustive()
    }
}
