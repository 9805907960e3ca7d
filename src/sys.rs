//! The few system calls that `nix` lacks, as safe functions: the only file with `unsafe`.
//!
//! Each wrapper passes pointers to live, correctly sized local buffers and turns `-1` into the errno;
//! that is the whole safety argument of most of them, and stands beside each block. What differs between
//! Linux and macOS is here too, one `cfg` per concern.

#![allow(
    unsafe_code,
    reason = "raw system calls; every block states why it is sound"
)]

use nix::errno::Errno;
use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

/// File types and mode bits in the width of [`Stat::mode`]; on macOS libc has them narrower.
#[allow(
    missing_docs,
    clippy::unnecessary_cast,
    reason = "the names are those of inode(7), and their width differs between platforms"
)]
mod mode {
    pub const S_IFMT: u32 = libc::S_IFMT as u32;
    pub const S_IFREG: u32 = libc::S_IFREG as u32;
    pub const S_IFDIR: u32 = libc::S_IFDIR as u32;
    pub const S_IFLNK: u32 = libc::S_IFLNK as u32;
    pub const S_IFIFO: u32 = libc::S_IFIFO as u32;
    pub const S_IFSOCK: u32 = libc::S_IFSOCK as u32;
    pub const S_IFCHR: u32 = libc::S_IFCHR as u32;
    pub const S_IFBLK: u32 = libc::S_IFBLK as u32;
    pub const S_ISGID: u32 = libc::S_ISGID as u32;
}
pub use mode::{S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG, S_IFSOCK, S_ISGID};

/// Result with a bare errno; the caller names the operation.
pub type Result<T> = nix::Result<T>;

/// Seconds and nanoseconds since 1970, as `struct timespec` has them: the nanoseconds count forward.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Time {
    /// Seconds, negative before 1970.
    pub secs: i64,
    /// Nanoseconds in `0..1_000_000_000`.
    pub nanos: u32,
}

impl Time {
    /// Nanoseconds since 1970.
    pub fn as_nanos(self) -> i128 {
        i128::from(self.secs) * 1_000_000_000 + i128::from(self.nanos)
    }
}

/// Has a child process ended? It stays to be waited for, and until then its number, and that of its process group, is its
/// own. (`waitid` is in nix for Linux only.)
pub fn has_ended(pid: u32) -> bool {
    // SAFETY: a struct of integers, and of a union with a pointer that is not looked at; all zero is valid.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: `info` outlives the call, which writes to nothing else.
    let result = unsafe { libc::waitid(libc::P_PID, pid, &raw mut info, options) };
    // With WNOHANG, no change is told as success with a zero signal number. An error means that there is no such child.
    result != 0 || info.si_signo != 0
}

/// The mode of fallocate(2) that reserves space and leaves the bytes, and maybe the size, as they are.
#[cfg(target_os = "linux")]
pub const ALLOCATE_ONLY: i32 = libc::FALLOC_FL_KEEP_SIZE;
/// macOS has no other.
#[cfg(not(target_os = "linux"))]
pub const ALLOCATE_ONLY: i32 = 0;

/// Who asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Caller {
    /// File-system user id.
    pub uid: u32,
    /// File-system group id.
    pub gid: u32,
    /// Thread id, 0 when the kernel itself asks.
    pub pid: u32,
}

/// What `statx` (Linux) or `fstatat` (macOS) says of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stat {
    /// Device that holds the file.
    pub dev: u64,
    /// Inode number on that device.
    pub ino: u64,
    /// Type and permission bits.
    pub mode: u32,
    /// Number of hard links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device node, in the encoding that FUSE uses (Linux `new_encode_dev`).
    pub rdev: u32,
    /// Bytes.
    pub size: u64,
    /// 512-byte units allocated.
    pub blocks: u64,
    /// Preferred I/O size.
    pub blksize: u32,
    /// Last access.
    pub atime: Time,
    /// Last change of the content.
    pub mtime: Time,
    /// Last change of content or attributes.
    pub ctime: Time,
    /// Creation, where the file system tells.
    pub btime: Option<Time>,
}

impl Stat {
    /// The `S_IFMT` part of the mode.
    pub fn kind(&self) -> u32 {
        self.mode & S_IFMT
    }

    /// Regular file?
    pub fn is_file(&self) -> bool {
        self.kind() == S_IFREG
    }

    /// Directory?
    pub fn is_dir(&self) -> bool {
        self.kind() == S_IFDIR
    }
}

/// A C string of a name. The kernel never sends NUL in names; a caller that does gets `EINVAL`.
pub fn cstr(name: &OsStr) -> Result<CString> {
    CString::new(name.as_bytes()).map_err(|_| Errno::EINVAL)
}

#[cfg(target_os = "linux")]
fn fd_path(fd: BorrowedFd<'_>) -> CString {
    // The text is digits and slashes: it holds no NUL.
    CString::new(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap_or_default()
}

/// `name` in `dir`, or `dir` itself when `name` is empty; a symbolic link is not followed.
///
/// `fresh` asks a network file system to look at the server instead of its own attribute cache
/// (`AT_STATX_FORCE_SYNC`, statx(2)); local file systems do the same either way.
pub fn stat_at(dir: BorrowedFd<'_>, name: &OsStr, fresh: bool) -> Result<Stat> {
    stat_from(dir.as_raw_fd(), name, false, fresh)
}

/// What `path` leads to; a symbolic link is followed.
pub fn stat_path(path: &std::path::Path, fresh: bool) -> Result<Stat> {
    stat_from(libc::AT_FDCWD, path.as_os_str(), true, fresh)
}

#[cfg(target_os = "linux")]
fn stat_from(dir: std::os::fd::RawFd, name: &OsStr, follow: bool, fresh: bool) -> Result<Stat> {
    let follow = if follow {
        0
    } else {
        libc::AT_EMPTY_PATH | libc::AT_SYMLINK_NOFOLLOW
    };
    let name = cstr(name)?;
    let sync = if fresh {
        libc::AT_STATX_FORCE_SYNC
    } else {
        libc::AT_STATX_SYNC_AS_STAT
    };
    let mut buffer = std::mem::MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: `name` is NUL-terminated and lives through the call; `buffer` is a writable statx.
    let status = unsafe {
        libc::statx(
            dir,
            name.as_ptr(),
            follow | libc::AT_NO_AUTOMOUNT | sync,
            libc::STATX_BASIC_STATS | libc::STATX_BTIME,
            buffer.as_mut_ptr(),
        )
    };
    Errno::result(status)?;
    // SAFETY: statx is plain data, zeroed before and filled by the successful call.
    let x = unsafe { buffer.assume_init() };
    let time = |t: libc::statx_timestamp| Time {
        secs: t.tv_sec,
        nanos: t.tv_nsec,
    };
    Ok(Stat {
        dev: libc::makedev(x.stx_dev_major, x.stx_dev_minor),
        ino: x.stx_ino,
        mode: u32::from(x.stx_mode),
        nlink: x.stx_nlink,
        uid: x.stx_uid,
        gid: x.stx_gid,
        rdev: encode_device(x.stx_rdev_major, x.stx_rdev_minor),
        size: x.stx_size,
        blocks: x.stx_blocks,
        blksize: x.stx_blksize,
        atime: time(x.stx_atime),
        mtime: time(x.stx_mtime),
        ctime: time(x.stx_ctime),
        btime: (x.stx_mask & libc::STATX_BTIME != 0).then(|| time(x.stx_btime)),
    })
}

/// See the Linux version. macOS has no way to ask for a fresh answer.
#[cfg(target_os = "macos")]
fn stat_from(dir: std::os::fd::RawFd, name: &OsStr, follow: bool, _fresh: bool) -> Result<Stat> {
    // SAFETY: the callers pass a descriptor that they hold for the length of the call, or AT_FDCWD.
    let dir = unsafe { BorrowedFd::borrow_raw(dir) };
    let flags = if follow {
        nix::fcntl::AtFlags::empty()
    } else {
        nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW
    };
    let s = if name.is_empty() && !follow {
        nix::sys::stat::fstat(dir)?
    } else {
        nix::sys::stat::fstatat(dir, name, flags)?
    };
    let time = |secs: i64, nanos: i64| Time {
        secs,
        nanos: nanos as u32,
    };
    Ok(Stat {
        dev: s.st_dev as u64,
        ino: s.st_ino,
        mode: u32::from(s.st_mode),
        nlink: u32::from(s.st_nlink),
        uid: s.st_uid,
        gid: s.st_gid,
        rdev: s.st_rdev as u32,
        size: s.st_size as u64,
        blocks: s.st_blocks as u64,
        blksize: s.st_blksize as u32,
        atime: time(s.st_atime, s.st_atime_nsec),
        mtime: time(s.st_mtime, s.st_mtime_nsec),
        ctime: time(s.st_ctime, s.st_ctime_nsec),
        btime: Some(time(s.st_birthtime, s.st_birthtime_nsec)),
    })
}

/// Major and minor as one word, as the kernel's `new_encode_dev` does and FUSE expects.
#[cfg(target_os = "linux")]
fn encode_device(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// The `dev_t` for mknod(2) from the word that FUSE sends.
#[cfg(target_os = "linux")]
pub fn decode_device(word: u32) -> libc::dev_t {
    let major = (word & 0x000f_ff00) >> 8;
    let minor = (word & 0xff) | ((word >> 12) & 0x000f_ff00);
    libc::makedev(major, minor)
}

/// The `dev_t` for mknod(2) from the word that FUSE sends.
#[cfg(target_os = "macos")]
pub fn decode_device(word: u32) -> libc::dev_t {
    word as libc::dev_t
}

/// A descriptor that names `name` in `dir` without opening its content, whatever its type; a symbolic
/// link is named itself. With an empty `name`, a second descriptor for `dir`.
#[cfg(target_os = "linux")]
pub fn open_name(dir: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd> {
    use nix::fcntl::OFlag;
    nix::fcntl::openat(
        dir,
        name,
        OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
        nix::sys::stat::Mode::empty(),
    )
}

/// See the Linux version. `O_EVTONLY` needs no read permission, `O_SYMLINK` opens the link itself.
#[cfg(target_os = "macos")]
pub fn open_name(dir: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd> {
    use nix::fcntl::OFlag;
    nix::fcntl::openat(
        dir,
        name,
        OFlag::from_bits_retain(libc::O_EVTONLY | libc::O_SYMLINK)
            | OFlag::O_NONBLOCK
            | OFlag::O_CLOEXEC,
        nix::sys::stat::Mode::empty(),
    )
}

/// A descriptor for resolving names below the directory `name` in `dir`; never through a symbolic link.
#[cfg(target_os = "linux")]
pub fn open_dir(dir: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd> {
    use nix::fcntl::OFlag;
    nix::fcntl::openat(
        dir,
        name,
        OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
        nix::sys::stat::Mode::empty(),
    )
}

/// See the Linux version.
#[cfg(target_os = "macos")]
pub fn open_dir(dir: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd> {
    use nix::fcntl::OFlag;
    nix::fcntl::openat(
        dir,
        name,
        OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
        nix::sys::stat::Mode::empty(),
    )
}

/// Open for I/O what a descriptor of [`open_name`] names: exactly that file, wherever it lives by now.
#[cfg(target_os = "linux")]
pub fn reopen(named: BorrowedFd<'_>, flags: nix::fcntl::OFlag) -> Result<OwnedFd> {
    // The magic link leads to the descriptor's own file; O_NOFOLLOW would refuse the link itself.
    nix::fcntl::open(
        fd_path(named).as_c_str(),
        (flags & !nix::fcntl::OFlag::O_NOFOLLOW) | nix::fcntl::OFlag::O_CLOEXEC,
        nix::sys::stat::Mode::empty(),
    )
}

/// See the Linux version: `/dev/fd` reopens on macOS, with the rights of the first opening.
#[cfg(target_os = "macos")]
pub fn reopen(named: BorrowedFd<'_>, flags: nix::fcntl::OFlag) -> Result<OwnedFd> {
    nix::fcntl::open(
        format!("/dev/fd/{}", named.as_raw_fd()).as_str(),
        (flags & !nix::fcntl::OFlag::O_NOFOLLOW) | nix::fcntl::OFlag::O_CLOEXEC,
        nix::sys::stat::Mode::empty(),
    )
}

/// chmod on a descriptor of [`open_name`].
#[cfg(target_os = "linux")]
pub fn chmod_named(named: BorrowedFd<'_>, mode: u32) -> Result<()> {
    // fchmod(2) refuses O_PATH descriptors, and fchmodat2 is newer than many kernels in use.
    let path = fd_path(named);
    // SAFETY: `path` is NUL-terminated and lives through the call.
    Errno::result(unsafe { libc::chmod(path.as_ptr(), mode as libc::mode_t) }).map(drop)
}

/// See the Linux version.
#[cfg(target_os = "macos")]
pub fn chmod_named(named: BorrowedFd<'_>, mode: u32) -> Result<()> {
    nix::sys::stat::fchmod(
        named,
        nix::sys::stat::Mode::from_bits_truncate(mode as libc::mode_t),
    )
}

/// chown on a descriptor of [`open_name`].
pub fn chown_named(named: BorrowedFd<'_>, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
    let keep = u32::MAX;
    #[cfg(target_os = "linux")]
    {
        // SAFETY: the empty path is NUL-terminated; AT_EMPTY_PATH makes the call act on the descriptor.
        let status = unsafe {
            libc::fchownat(
                named.as_raw_fd(),
                c"".as_ptr(),
                uid.unwrap_or(keep),
                gid.unwrap_or(keep),
                libc::AT_EMPTY_PATH | libc::AT_SYMLINK_NOFOLLOW,
            )
        };
        Errno::result(status).map(drop)
    }
    #[cfg(target_os = "macos")]
    {
        // SAFETY: no pointers.
        let status =
            unsafe { libc::fchown(named.as_raw_fd(), uid.unwrap_or(keep), gid.unwrap_or(keep)) };
        Errno::result(status).map(drop)
    }
}

/// A timestamp to set: leave it, now, or a given time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SetTime {
    /// `UTIME_OMIT`.
    Omit,
    /// `UTIME_NOW`.
    Now,
    /// This time.
    At(Time),
}

fn timespec(time: SetTime) -> libc::timespec {
    let (tv_sec, tv_nsec) = match time {
        SetTime::Omit => (0, libc::UTIME_OMIT),
        SetTime::Now => (0, libc::UTIME_NOW),
        SetTime::At(t) => (t.secs as libc::time_t, t.nanos as libc::c_long),
    };
    libc::timespec { tv_sec, tv_nsec }
}

/// utimensat on a descriptor of [`open_name`].
#[cfg(target_os = "linux")]
pub fn utimens_named(named: BorrowedFd<'_>, atime: SetTime, mtime: SetTime) -> Result<()> {
    let times = [timespec(atime), timespec(mtime)];
    // SAFETY: `times` has the two elements that the call reads; the empty path is NUL-terminated.
    let status = unsafe {
        libc::utimensat(
            named.as_raw_fd(),
            c"".as_ptr(),
            times.as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_SYMLINK_NOFOLLOW,
        )
    };
    match Errno::result(status) {
        // Linux before 5.8 has no AT_EMPTY_PATH here; there the magic link serves, symlinks excepted.
        Err(Errno::EINVAL) => {
            let path = fd_path(named);
            // SAFETY: as above, with a NUL-terminated path.
            Errno::result(unsafe {
                libc::utimensat(libc::AT_FDCWD, path.as_ptr(), times.as_ptr(), 0)
            })
            .map(drop)
        }
        other => other.map(drop),
    }
}

/// See the Linux version.
#[cfg(target_os = "macos")]
pub fn utimens_named(named: BorrowedFd<'_>, atime: SetTime, mtime: SetTime) -> Result<()> {
    let times = [timespec(atime), timespec(mtime)];
    // SAFETY: `times` has the two elements that the call reads.
    Errno::result(unsafe { libc::futimens(named.as_raw_fd(), times.as_ptr()) }).map(drop)
}

/// Value of an extended attribute. `size` 0 asks for the length only, as getxattr(2) does.
pub fn getxattr_named(named: BorrowedFd<'_>, name: &OsStr, size: usize) -> Result<XattrAnswer> {
    let name = cstr(name)?;
    xattr_answer(size, |buffer, size| {
        #[cfg(target_os = "linux")]
        // SAFETY: path and name are NUL-terminated, `buffer` has `size` writable bytes.
        unsafe {
            libc::getxattr(fd_path(named).as_ptr(), name.as_ptr(), buffer.cast(), size)
        }
        #[cfg(target_os = "macos")]
        // SAFETY: name is NUL-terminated, `buffer` has `size` writable bytes.
        unsafe {
            libc::fgetxattr(named.as_raw_fd(), name.as_ptr(), buffer.cast(), size, 0, 0)
        }
    })
}

/// Names of the extended attributes, each ended by NUL. `size` 0 asks for the length only.
pub fn listxattr_named(named: BorrowedFd<'_>, size: usize) -> Result<XattrAnswer> {
    xattr_answer(size, |buffer, size| {
        #[cfg(target_os = "linux")]
        // SAFETY: the path is NUL-terminated, `buffer` has `size` writable bytes.
        unsafe {
            libc::listxattr(fd_path(named).as_ptr(), buffer.cast(), size)
        }
        #[cfg(target_os = "macos")]
        // SAFETY: `buffer` has `size` writable bytes.
        unsafe {
            libc::flistxattr(named.as_raw_fd(), buffer.cast(), size, 0)
        }
    })
}

/// What the xattr calls answer: the length asked for, or the bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum XattrAnswer {
    /// Length in bytes.
    Size(u32),
    /// The value, or the names.
    Data(Vec<u8>),
}

fn xattr_answer(
    size: usize,
    call: impl FnOnce(*mut u8, usize) -> libc::ssize_t,
) -> Result<XattrAnswer> {
    // 64 KiB is the most that the kernel passes for a value or a list (XATTR_SIZE_MAX, xattr(7)).
    let mut buffer = vec![0u8; size.min(64 * 1024)];
    let got = Errno::result(call(buffer.as_mut_ptr(), buffer.len()))? as usize;
    if size == 0 {
        return Ok(XattrAnswer::Size(got as u32));
    }
    buffer.truncate(got);
    Ok(XattrAnswer::Data(buffer))
}

/// Set an extended attribute; `flags` as in setxattr(2).
pub fn setxattr_named(
    named: BorrowedFd<'_>,
    name: &OsStr,
    value: &[u8],
    flags: i32,
    position: u32,
) -> Result<()> {
    let name = cstr(name)?;
    #[cfg(target_os = "linux")]
    {
        // Resource forks, which have positions, exist on macOS only.
        let _ = position;
        // SAFETY: path and name are NUL-terminated, `value` is readable for its length.
        let status = unsafe {
            libc::setxattr(
                fd_path(named).as_ptr(),
                name.as_ptr(),
                value.as_ptr().cast(),
                value.len(),
                flags,
            )
        };
        Errno::result(status).map(drop)
    }
    #[cfg(target_os = "macos")]
    {
        // SAFETY: name is NUL-terminated, `value` is readable for its length.
        let status = unsafe {
            libc::fsetxattr(
                named.as_raw_fd(),
                name.as_ptr(),
                value.as_ptr().cast(),
                value.len(),
                position,
                flags,
            )
        };
        Errno::result(status).map(drop)
    }
}

/// Remove an extended attribute.
pub fn removexattr_named(named: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
    let name = cstr(name)?;
    #[cfg(target_os = "linux")]
    // SAFETY: path and name are NUL-terminated.
    let status = unsafe { libc::removexattr(fd_path(named).as_ptr(), name.as_ptr()) };
    #[cfg(target_os = "macos")]
    // SAFETY: name is NUL-terminated.
    let status = unsafe { libc::fremovexattr(named.as_raw_fd(), name.as_ptr(), 0) };
    Errno::result(status).map(drop)
}

/// Rename with the flags of renameat2(2), given as Linux numbers.
pub fn rename(
    from: (BorrowedFd<'_>, &OsStr),
    to: (BorrowedFd<'_>, &OsStr),
    flags: u32,
) -> Result<()> {
    let (from_name, to_name) = (cstr(from.1)?, cstr(to.1)?);
    if flags == 0 {
        // Plain renameat: renameat2 is refused by some file systems even with no flags.
        // SAFETY: both names are NUL-terminated and live through the call.
        let status = unsafe {
            libc::renameat(
                from.0.as_raw_fd(),
                from_name.as_ptr(),
                to.0.as_raw_fd(),
                to_name.as_ptr(),
            )
        };
        return Errno::result(status).map(drop);
    }
    #[cfg(target_os = "linux")]
    // SAFETY: both names are NUL-terminated and live through the call.
    let status = unsafe {
        libc::syscall(
            libc::SYS_renameat2,
            from.0.as_raw_fd(),
            from_name.as_ptr(),
            to.0.as_raw_fd(),
            to_name.as_ptr(),
            flags,
        )
    };
    #[cfg(target_os = "macos")]
    // SAFETY: both names are NUL-terminated and live through the call.
    let status = unsafe {
        let mut native = 0;
        if flags & RENAME_NOREPLACE != 0 {
            native |= libc::RENAME_EXCL;
        }
        if flags & RENAME_EXCHANGE != 0 {
            native |= libc::RENAME_SWAP;
        }
        libc::renameatx_np(
            from.0.as_raw_fd(),
            from_name.as_ptr(),
            to.0.as_raw_fd(),
            to_name.as_ptr(),
            native,
        )
    };
    Errno::result(status).map(drop)
}

/// Do not replace an existing target (renameat2(2)).
pub const RENAME_NOREPLACE: u32 = 1;
/// Exchange both names atomically (renameat2(2)).
pub const RENAME_EXCHANGE: u32 = 2;

/// fallocate(2) with its raw mode bits.
#[cfg(target_os = "linux")]
pub fn fallocate(fd: BorrowedFd<'_>, mode: i32, pos: u64, size: u64) -> Result<()> {
    let (pos, size) = (offset(pos)?, offset(size)?);
    // SAFETY: no pointers.
    Errno::result(unsafe { libc::fallocate(fd.as_raw_fd(), mode, pos, size) }).map(drop)
}

/// macOS preallocates with F_PREALLOCATE, which has no hole punching in these terms.
#[cfg(target_os = "macos")]
pub fn fallocate(fd: BorrowedFd<'_>, mode: i32, pos: u64, size: u64) -> Result<()> {
    if mode != 0 {
        return Err(Errno::ENOTSUP);
    }
    let end = offset(pos.checked_add(size).ok_or(Errno::EFBIG)?)?;
    let have = stat_at(fd, OsStr::new(""), false)?.size as i64;
    if end <= have {
        return Ok(());
    }
    let mut store = libc::fstore_t {
        fst_flags: libc::F_ALLOCATEALL,
        fst_posmode: libc::F_PEOFPOSMODE,
        fst_offset: 0,
        fst_length: end - have,
        fst_bytesalloc: 0,
    };
    // SAFETY: `store` is the structure that F_PREALLOCATE reads and writes.
    Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_PREALLOCATE, &mut store) })?;
    // SAFETY: no pointers.
    Errno::result(unsafe { libc::ftruncate(fd.as_raw_fd(), end) }).map(drop)
}

/// Write at the end of the file, wherever that is by now, in one step (`RWF_APPEND`, pwritev2(2)): as if the
/// descriptor had been opened with `O_APPEND`, which a program may also switch on and off later.
#[cfg(target_os = "linux")]
pub fn append(fd: BorrowedFd<'_>, data: &[u8]) -> Result<usize> {
    let vector = libc::iovec {
        iov_base: data.as_ptr().cast_mut().cast(),
        iov_len: data.len(),
    };
    // SAFETY: one iovec over a live slice that the call only reads.
    let put = unsafe { libc::pwritev2(fd.as_raw_fd(), &vector, 1, 0, libc::RWF_APPEND) };
    match Errno::result(put) {
        Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => append_at_end(fd, data),
        other => other.map(|n| n as usize),
    }
}

/// See the Linux version. Not one step: a stranger's append between the two calls is overwritten.
#[cfg(target_os = "macos")]
pub fn append(fd: BorrowedFd<'_>, data: &[u8]) -> Result<usize> {
    append_at_end(fd, data)
}

fn append_at_end(fd: BorrowedFd<'_>, data: &[u8]) -> Result<usize> {
    let end = stat_at(fd, OsStr::new(""), true)?.size;
    nix::sys::uio::pwrite(fd, data, offset(end)?)
}

/// Copy bytes between two files without bringing them here; returns how many were copied.
#[cfg(target_os = "linux")]
pub fn copy_file_range(
    from: (BorrowedFd<'_>, u64),
    to: (BorrowedFd<'_>, u64),
    size: usize,
) -> Result<usize> {
    let (mut from_pos, mut to_pos) = (offset(from.1)?, offset(to.1)?);
    // SAFETY: both offsets are live i64s that the call may write.
    let copied = unsafe {
        libc::copy_file_range(
            from.0.as_raw_fd(),
            &mut from_pos,
            to.0.as_raw_fd(),
            &mut to_pos,
            size,
            0,
        )
    };
    Errno::result(copied).map(|n| n as usize)
}

/// macOS has no such call; the kernel there never asks, and a caller copies by hand on `ENOTSUP`.
#[cfg(target_os = "macos")]
pub fn copy_file_range(
    _from: (BorrowedFd<'_>, u64),
    _to: (BorrowedFd<'_>, u64),
    _size: usize,
) -> Result<usize> {
    Err(Errno::ENOTSUP)
}

/// lseek(2) with a raw whence, for SEEK_DATA and SEEK_HOLE.
pub fn seek(fd: BorrowedFd<'_>, pos: i64, whence: i32) -> Result<i64> {
    // SAFETY: no pointers.
    Errno::result(unsafe { libc::lseek(fd.as_raw_fd(), pos, whence) })
}

/// A file offset for calls that take signed ones.
pub fn offset(pos: u64) -> Result<i64> {
    i64::try_from(pos).map_err(|_| Errno::EFBIG)
}

/// Close a duplicate: some file systems (NFS) report a failed write-back at close(2) only.
pub fn flush_by_close(fd: BorrowedFd<'_>) -> Result<()> {
    let copy = nix::unistd::dup(fd)?;
    nix::unistd::close(copy)
}

/// Sync the file system that `fd` lies on (Linux) or everything (macOS).
pub fn syncfs(fd: BorrowedFd<'_>) -> Result<()> {
    #[cfg(target_os = "linux")]
    {
        // SAFETY: no pointers.
        Errno::result(unsafe { libc::syncfs(fd.as_raw_fd()) }).map(drop)
    }
    #[cfg(target_os = "macos")]
    {
        let _ = fd;
        nix::unistd::sync();
        Ok(())
    }
}

/// A descriptor for `path` that resolves names below it.
pub fn open_root(path: &std::path::Path) -> Result<OwnedFd> {
    use nix::fcntl::OFlag;
    #[cfg(target_os = "linux")]
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    #[cfg(target_os = "macos")]
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    nix::fcntl::open(path, flags, nix::sys::stat::Mode::empty())
}

/// The magic number of the file system below `fd` (statfs(2)); 0 where there is none.
pub fn fs_magic(fd: BorrowedFd<'_>) -> u64 {
    #[cfg(target_os = "linux")]
    {
        nix::sys::statfs::fstatfs(fd).map_or(0, |s| s.filesystem_type().0 as u64)
    }
    #[cfg(target_os = "macos")]
    {
        let _ = fd;
        0
    }
}

/// Is this a file system of the machine's own disks or memory, which reports a failed write at once and has
/// nothing to add when a file is closed? (Magic numbers of statfs(2); when in doubt: no.)
pub fn is_local(magic: u64) -> bool {
    const EXT: u64 = 0xEF53;
    const XFS: u64 = 0x5846_5342;
    const BTRFS: u64 = 0x9123_683E;
    const TMPFS: u64 = 0x0102_1994;
    const F2FS: u64 = 0xF2F5_2010;
    matches!(magic, EXT | XFS | BTRFS | TMPFS | F2FS)
}

/// Redirect this process's standard input, output and error to `/dev/null`, as a daemon does.
pub fn detach_stdio() -> Result<()> {
    let null = nix::fcntl::open(
        "/dev/null",
        nix::fcntl::OFlag::O_RDWR,
        nix::sys::stat::Mode::empty(),
    )?;
    for target in 0..3 {
        // SAFETY: replaces a standard descriptor of this process with an open one; std keeps using the
        // numbers 0 to 2 and owns none of them.
        Errno::result(unsafe { libc::dup2(null.as_raw_fd(), target) })?;
    }
    Ok(())
}

/// Take over descriptor `raw` that the parent process passed to us.
pub fn inherit_fd(raw: i32) -> Result<OwnedFd> {
    nix::fcntl::fcntl(
        // SAFETY: only used for the check that the number is an open descriptor.
        unsafe { BorrowedFd::borrow_raw(raw) },
        nix::fcntl::FcntlArg::F_GETFD,
    )?;
    // SAFETY: the descriptor is open (checked above) and was passed to this process for this use alone.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// What a request of [`crate::ask`] takes along, and brings back in its place.
pub type Words = [u64; 4];

/// The ioctl(2) request that passes [`Words`] both ways: in its number are that size and the directions, which is all
/// that the kernel lets a FUSE file system have of the memory of the program that asks.
pub const fn ask_code(number: u8) -> u32 {
    nix::request_code_readwrite!(b'w', number, size_of::<Words>()) as u32
}

/// ioctl(2) with the request [`ask_code`] on an open file or directory (not on a device).
pub fn ask(fd: BorrowedFd<'_>, number: u8, words: &mut Words) -> Result<()> {
    let code = ask_code(number).into();
    // SAFETY: as the number says, the call reads and writes no more than `words`, which outlive it.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), code, words.as_mut_ptr()) }).map(drop)
}

/// Tell the allocator to give large buffers back to the system when they are freed.
///
/// glibc raises its mmap threshold whenever a large block is freed, after which slots would live on
/// fragmented heaps; a fixed threshold keeps the daemon's size at what the cache counts.
pub fn trim_allocator() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: mallopt only sets allocator parameters; called once at start, before other threads.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 64 * 1024);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 256 * 1024);
        libc::mallopt(libc::M_ARENA_MAX, 4);
    }
}

#[cfg(target_os = "linux")]
pub use identity::Identity;

/// Acting as the caller of a request, per thread (Linux).
#[cfg(target_os = "linux")]
mod identity {
    use super::{Errno, Result};
    use std::cell::RefCell;

    const CAP_FSETID: u32 = 4;
    /// securebits(7): switching the file-system uid does not touch capabilities.
    const SECBIT_NO_SETUID_FIXUP: libc::c_ulong = 1 << 2;

    /// The umask matters only to calls that create, and those name one: the daemon's own is left as it is.
    const DAEMON_UMASK: u32 = u32::MAX;

    #[derive(PartialEq, Clone)]
    struct Worn {
        uid: u32,
        gid: u32,
        groups: Vec<u32>,
        fsetid: bool,
        umask: u32,
    }

    struct Thread {
        worn: Worn,
        bare: Worn,
        root: bool,
    }

    thread_local! {
        static THREAD: RefCell<Option<Thread>> = const { RefCell::new(None) };
    }

    /// What system calls should be done as, for the length of one closure. Each part is switched only when
    /// the thread differs from it, so requests of the daemon's own user cost nothing.
    ///
    /// A daemon run by root takes the caller's file-system uid and gid (setfsuid(2)), so that new files
    /// belong to the caller from birth, while it keeps its capabilities: the permission check was the
    /// kernel's (`default_permissions`). It gives up CAP_FSETID when the caller is not root, so that the
    /// source itself clears set-user-id and set-group-id bits exactly where a local file system would.
    /// A daemon run by a user can only be that user; there it only sets the umask.
    #[derive(Clone, Copy, Debug)]
    pub struct Identity {
        uid: u32,
        gid: u32,
        groups_of: Option<u32>,
        keep_setid: bool,
        umask: u32,
    }

    impl Identity {
        /// The daemon's own.
        pub const DAEMON: Identity = Identity {
            uid: u32::MAX,
            gid: u32::MAX,
            groups_of: None,
            keep_setid: true,
            umask: DAEMON_UMASK,
        };

        /// New files and directories belong to `uid`:`gid`, with `umask` applied by the source (it knows
        /// where a default ACL overrides the mask, acl(5)).
        pub fn creating(uid: u32, gid: u32, umask: u32) -> Identity {
            Identity {
                uid,
                gid,
                groups_of: None,
                keep_setid: uid == 0,
                umask,
            }
        }

        /// The caller's supplementary groups matter too (a set-group-id bit in a directory whose group is
        /// one of them): they are read from `/proc/PID/status`.
        pub fn with_groups_of(self, pid: u32) -> Identity {
            Identity {
                groups_of: (self.uid != 0).then_some(pid),
                ..self
            }
        }

        /// Change content: set-user-id and set-group-id bits are cleared unless `keep_setid`.
        pub fn changing(keep_setid: bool) -> Identity {
            Identity {
                keep_setid,
                ..Identity::DAEMON
            }
        }

        /// Run `f` as this identity on the current thread.
        pub fn run<T>(self, f: impl FnOnce() -> T) -> T {
            if let Err(errno) = self.wear() {
                // Only possible when a container took CAP_SETUID or CAP_SETGID away from root: then files
                // are created as the daemon's user, as for a daemon that is not root.
                tracing::debug!("cannot act as uid {}: {errno}", self.uid);
            }
            let result = f();
            if let Err(errno) = Identity::DAEMON.wear() {
                tracing::warn!("cannot act as the daemon's user again: {errno}");
            }
            result
        }

        fn wear(self) -> Result<()> {
            THREAD.with_borrow_mut(|slot| {
                let thread = slot.get_or_insert_with(Thread::begin);
                if thread.root {
                    let want = Worn {
                        uid: if self.uid == u32::MAX {
                            thread.bare.uid
                        } else {
                            self.uid
                        },
                        gid: if self.gid == u32::MAX {
                            thread.bare.gid
                        } else {
                            self.gid
                        },
                        groups: match self.groups_of {
                            Some(pid) => groups_of(pid),
                            None => Vec::new(),
                        },
                        fsetid: self.keep_setid,
                        umask: if self.umask == DAEMON_UMASK {
                            thread.worn.umask
                        } else {
                            self.umask
                        },
                    };
                    thread.change(want)
                } else {
                    if self.umask != DAEMON_UMASK {
                        thread.set_umask(self.umask);
                    }
                    Ok(())
                }
            })
        }
    }

    impl Thread {
        fn begin() -> Thread {
            // The umask is shared by all threads of a process until they part (clone(2), CLONE_FS).
            if let Err(errno) = nix_unshare_fs() {
                tracing::debug!("umask stays shared between threads: {errno}");
            }
            let root = nix::unistd::geteuid().is_root();
            if root {
                // SAFETY: no pointers; affects this thread's credentials only.
                let status = unsafe {
                    libc::prctl(libc::PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP, 0, 0, 0)
                };
                if status < 0 {
                    tracing::debug!("securebits: {}", Errno::last());
                }
            }
            let own = Worn {
                uid: nix::unistd::geteuid().as_raw(),
                gid: nix::unistd::getegid().as_raw(),
                groups: Vec::new(),
                fsetid: true,
                umask: u32::MAX,
            };
            Thread {
                worn: own.clone(),
                bare: own,
                root,
            }
        }

        fn set_umask(&mut self, umask: u32) {
            if self.worn.umask != umask {
                nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(umask));
                self.worn.umask = umask;
            }
        }

        fn change(&mut self, want: Worn) -> Result<()> {
            self.set_umask(want.umask);
            if self.worn == want {
                return Ok(());
            }
            if self.worn.groups != want.groups {
                // The raw call: libc's setgroups changes every thread of the process (nptl(7)).
                // SAFETY: pointer and length of a live slice of gid_t.
                let status = unsafe {
                    libc::syscall(libc::SYS_setgroups, want.groups.len(), want.groups.as_ptr())
                };
                Errno::result(status)?;
            }
            if self.worn.gid != want.gid {
                // SAFETY: no pointers; per-thread by definition (setfsgid(2)).
                unsafe { libc::syscall(libc::SYS_setfsgid, want.gid) };
            }
            if self.worn.uid != want.uid {
                // SAFETY: no pointers; per-thread by definition (setfsuid(2)).
                unsafe { libc::syscall(libc::SYS_setfsuid, want.uid) };
            }
            if self.worn.fsetid != want.fsetid {
                set_effective(CAP_FSETID, want.fsetid)?;
            }
            self.worn = want;
            Ok(())
        }
    }

    fn nix_unshare_fs() -> Result<()> {
        // SAFETY: no pointers.
        Errno::result(unsafe { libc::unshare(libc::CLONE_FS) }).map(drop)
    }

    /// `_LINUX_CAPABILITY_VERSION_3` of capget(2).
    const CAPABILITY_VERSION: u32 = 0x2008_0522;

    #[repr(C)]
    struct CapHeader {
        version: u32,
        pid: i32,
    }

    #[repr(C)]
    #[derive(Clone, Copy, Default)]
    struct CapData {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }

    /// Raise or lower one of the first 32 capabilities of this thread.
    fn set_effective(cap: u32, on: bool) -> Result<()> {
        let mut header = CapHeader {
            version: CAPABILITY_VERSION,
            pid: 0,
        };
        let mut data = [CapData::default(); 2];
        // SAFETY: version 3 reads one header and writes two data elements, which is what is passed.
        Errno::result(unsafe { libc::syscall(libc::SYS_capget, &mut header, data.as_mut_ptr()) })?;
        if on {
            data[0].effective |= (1 << cap) & data[0].permitted;
        } else {
            data[0].effective &= !(1 << cap);
        }
        // SAFETY: as above, read only.
        Errno::result(unsafe { libc::syscall(libc::SYS_capset, &mut header, data.as_ptr()) })
            .map(drop)
    }

    /// Supplementary groups of a thread, empty when it is gone.
    fn groups_of(pid: u32) -> Vec<u32> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status
            .lines()
            .find_map(|line| line.strip_prefix("Groups:"))
            .map(|list| {
                list.split_whitespace()
                    .filter_map(|gid| gid.parse().ok())
                    .collect()
            })
            .unwrap_or_default()
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn groups_are_read_from_proc() {
            let own = groups_of(std::process::id());
            let libc_says = nix::unistd::getgroups().expect("getgroups cannot fail here");
            assert_eq!(own.len(), libc_says.len());
            assert!(groups_of(u32::MAX).is_empty());
        }

        #[test]
        fn magic_links_are_plain_paths() {
            use std::os::fd::AsFd;
            let file = std::fs::File::open("/").expect("the root directory opens");
            assert!(
                crate::sys::fd_path(file.as_fd())
                    .to_bytes()
                    .starts_with(b"/proc/self/fd/")
            );
        }
    }
}

#[cfg(target_os = "macos")]
pub use identity_macos::Identity;

/// macOS: the daemon acts as itself; the umask is applied to the mode by the caller of these functions.
#[cfg(target_os = "macos")]
mod identity_macos {
    /// See the Linux version: macOS has no per-thread file-system uid, so files belong to the user who
    /// mounted, which is also the only one whom macFUSE lets in by default.
    #[derive(Clone, Copy, Debug)]
    pub struct Identity;

    impl Identity {
        /// The daemon's own.
        pub const DAEMON: Identity = Identity;

        /// The kernel has applied the umask already (no FUSE_DONT_MASK there).
        pub fn creating(_uid: u32, _gid: u32, _umask: u32) -> Identity {
            Identity
        }

        /// Groups are the daemon's.
        pub fn with_groups_of(self, _pid: u32) -> Identity {
            self
        }

        /// The source clears set-id bits by its own rules.
        pub fn changing(_keep_setid: bool) -> Identity {
            Identity
        }

        /// Run `f`.
        pub fn run<T>(self, f: impl FnOnce() -> T) -> T {
            f()
        }
    }
}

/// mkfifo(2) in a directory.
#[cfg(target_os = "macos")]
pub fn mkfifo_at(dir: BorrowedFd<'_>, name: &OsStr, mode: u32) -> Result<()> {
    let name = cstr(name)?;
    // SAFETY: the name is NUL-terminated and lives through the call.
    let status = unsafe { libc::mkfifoat(dir.as_raw_fd(), name.as_ptr(), mode as libc::mode_t) };
    Errno::result(status).map(drop)
}

/// Name of a NUL-terminated C string as an [`OsStr`].
pub fn os(name: &CStr) -> &OsStr {
    OsStr::from_bytes(name.to_bytes())
}
