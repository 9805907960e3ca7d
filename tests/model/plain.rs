//! The reference: the operations done on a plain directory, with the system's own calls.

use crate::ops::{NOWHERE, Op, Place, SLOTS, bytes};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, FallocateFlags, OFlag, RenameFlags};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, UtimensatFlags};
use nix::sys::time::TimeSpec;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use warmfs::sys::{self, XattrAnswer};

/// What an operation gave.
pub(crate) type Answer = Result<Value, Code>;

/// The code that it failed with.
#[derive(PartialEq, Clone, Copy, Debug)]
pub(crate) struct Code(pub(crate) Errno);

#[derive(PartialEq, Debug)]
pub(crate) enum Value {
    Nothing,
    Count(usize),
    Bytes(Vec<u8>),
    Attr(Attr),
    /// Names and types in a directory.
    Names(BTreeMap<String, u32>),
    Attrs(BTreeMap<String, Attr>),
}

/// What two files have in common that saw the same operations.
#[derive(PartialEq, Clone, Debug)]
pub(crate) struct Attr {
    pub(crate) mode: u32,
    nlink: u32,
    /// Not of directories: the file system chooses it.
    size: u64,
    /// When it was set: by the system it never is that old.
    mtime: Option<i64>,
    /// What is wrong with the attributes by themselves.
    pub(crate) wrong: Option<String>,
}

impl Attr {
    pub(crate) fn new(mode: u32, nlink: u32, size: u64, mtime: i64) -> Attr {
        let is_dir = mode & libc::S_IFMT == libc::S_IFDIR;
        Attr {
            mode,
            nlink,
            size: if is_dir { 0 } else { size },
            mtime: (mtime < 1_000_000_000).then_some(mtime),
            wrong: None,
        }
    }

    fn of(meta: &Metadata) -> Attr {
        Attr::new(meta.mode(), meta.nlink() as u32, meta.size(), meta.mtime())
    }
}

impl From<Errno> for Code {
    fn from(errno: Errno) -> Code {
        Code(errno)
    }
}

impl From<io::Error> for Code {
    fn from(error: io::Error) -> Code {
        Code(Errno::from_raw(
            error
                .raw_os_error()
                .expect("the system failed, with a code"),
        ))
    }
}

impl From<()> for Value {
    fn from((): ()) -> Value {
        Value::Nothing
    }
}

impl From<usize> for Value {
    fn from(count: usize) -> Value {
        Value::Count(count)
    }
}

impl From<Vec<u8>> for Value {
    fn from(bytes: Vec<u8>) -> Value {
        Value::Bytes(bytes)
    }
}

impl From<XattrAnswer> for Value {
    fn from(answer: XattrAnswer) -> Value {
        match answer {
            XattrAnswer::Size(size) => Value::Count(size as usize),
            XattrAnswer::Data(data) => Value::Bytes(data),
        }
    }
}

/// Do the flags of open(2) allow reading (writing)?
pub(crate) fn allows(flags: i32, writing: bool) -> bool {
    let access = flags & libc::O_ACCMODE;
    access == libc::O_RDWR || (access == libc::O_WRONLY) == writing
}

/// A directory, and the files in it that are open.
pub(crate) struct Plain {
    root: PathBuf,
    slots: [Option<(File, i32)>; SLOTS],
}

impl Plain {
    pub(crate) fn new(root: &Path) -> Plain {
        Plain {
            root: root.to_owned(),
            slots: Default::default(),
        }
    }

    fn at(&self, place: Place) -> PathBuf {
        self.root.join(place)
    }

    /// The file in a slot, if it was opened for reading (writing).
    fn slot(&self, slot: usize, writing: bool) -> Result<&File, Code> {
        match &self.slots[slot] {
            Some((file, flags)) if allows(*flags, writing) => Ok(file),
            _ => Err(Code(Errno::EBADF)),
        }
    }

    fn open(&self, place: Place, flags: i32) -> Result<File, Code> {
        // Opening a directory or a FIFO is another thing.
        if let Ok(meta) = fs::symlink_metadata(self.at(place))
            && !meta.is_symlink()
            && !meta.is_file()
            && flags & libc::O_EXCL == 0
        {
            return Err(Code(if meta.is_dir() {
                Errno::EISDIR
            } else {
                Errno::ENXIO
            }));
        }
        let flags = OFlag::from_bits_retain(flags) | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        Ok(nix::fcntl::open(&self.at(place), flags, Mode::from_bits_retain(0o644))?.into())
    }

    fn named(&self, place: Place) -> Result<OwnedFd, Code> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        Ok(nix::fcntl::open(&self.at(place), flags, Mode::empty())?)
    }

    /// Where no symbolic link is, which some calls would follow.
    fn no_link(&self, place: Place) -> Result<PathBuf, Code> {
        match fs::symlink_metadata(self.at(place))?.is_symlink() {
            true => Err(Code(Errno::ELOOP)),
            false => Ok(self.at(place)),
        }
    }

    fn list(&self, place: Place) -> Result<BTreeMap<String, Attr>, Code> {
        let mut found = BTreeMap::new();
        for entry in fs::read_dir(self.no_link(place)?)? {
            let entry = entry?;
            let name = entry.file_name().into_string().expect("names are ASCII");
            found.insert(name, Attr::of(&entry.metadata()?));
        }
        Ok(found)
    }

    pub(crate) fn apply(&mut self, op: &Op) -> Answer {
        let mode = Mode::from_bits_retain;
        Ok(match *op {
            Op::Open(slot, place, flags) => {
                self.slots[slot] = None;
                self.slots[slot] = Some((self.open(place, flags)?, flags));
                Value::Nothing
            }
            Op::Close(slot) => self.slots[slot]
                .take()
                .map(drop)
                .ok_or(Errno::EBADF)?
                .into(),
            Op::Read(slot, (pos, size)) => {
                let mut buffer = vec![0; size as usize];
                let got = self.slot(slot, false)?.read_at(&mut buffer, pos)?;
                buffer.truncate(got);
                buffer.into()
            }
            // With O_APPEND the position means nothing to pwrite(2), either.
            Op::Write(slot, (pos, size), seed) => self
                .slot(slot, true)?
                .write_at(&bytes(size, seed), pos)?
                .into(),
            Op::Cut(slot, size) => self.slot(slot, true)?.set_len(size)?.into(),
            Op::Allocate(slot, mode, (pos, size)) => {
                let (mode, file) = (
                    FallocateFlags::from_bits_retain(mode),
                    self.slot(slot, true)?,
                );
                nix::fcntl::fallocate(file, mode, pos as i64, size as i64)?.into()
            }
            Op::Copy(from, (from_pos, size), to, to_pos) => {
                let (from, to) = (
                    self.slot(from, false)?.as_fd(),
                    self.slot(to, true)?.as_fd(),
                );
                sys::copy_file_range((from, from_pos), (to, to_pos), size as usize)?.into()
            }
            Op::StatOpen(slot) => {
                let (file, _) = self.slots[slot].as_ref().ok_or(Errno::EBADF)?;
                Value::Attr(Attr::of(&file.metadata()?))
            }
            Op::Stat(place) => Value::Attr(Attr::of(&fs::symlink_metadata(self.at(place))?)),
            Op::List(place) => {
                let kinds = self.list(place)?.into_iter();
                Value::Names(
                    kinds
                        .map(|(name, attr)| (name, attr.mode & libc::S_IFMT))
                        .collect(),
                )
            }
            Op::ListPlus(place) => Value::Attrs(self.list(place)?),
            Op::Put(place, (pos, size), seed) => {
                let file = self.open(place, libc::O_WRONLY | libc::O_CREAT)?;
                file.write_at(&bytes(size, seed), pos)?.into()
            }
            Op::Truncate(place, size) => {
                nix::unistd::truncate(&self.no_link(place)?, size as i64)?.into()
            }
            Op::Mkdir(place) => nix::unistd::mkdir(&self.at(place), mode(0o755))?.into(),
            Op::Mkfifo(place) => {
                nix::sys::stat::mknod(&self.at(place), SFlag::S_IFIFO, mode(0o644), 0)?.into()
            }
            Op::Symlink(place) => std::os::unix::fs::symlink(NOWHERE, self.at(place))?.into(),
            Op::Link(old, new) => {
                let (old, new) = (self.at(old), self.at(new));
                nix::unistd::linkat(AT_FDCWD, &old, AT_FDCWD, &new, AtFlags::empty())?.into()
            }
            Op::Rmdir(place) => fs::remove_dir(self.at(place))?.into(),
            Op::Unlink(place) => nix::unistd::unlink(&self.at(place))?.into(),
            Op::Rename(from, to, flags) => {
                let (from, to, flags) = (
                    self.at(from),
                    self.at(to),
                    RenameFlags::from_bits_retain(flags),
                );
                nix::fcntl::renameat2(AT_FDCWD, &from, AT_FDCWD, &to, flags)?.into()
            }
            Op::Readlink(place) => fs::read_link(self.at(place))?
                .into_os_string()
                .into_encoded_bytes()
                .into(),
            Op::Chmod(place, bits) => {
                let path = self.no_link(place)?;
                nix::sys::stat::fchmodat(AT_FDCWD, &path, mode(bits), FchmodatFlags::FollowSymlink)?
                    .into()
            }
            Op::SetTime(place, secs) => {
                let (path, flags) = (self.at(place), UtimensatFlags::NoFollowSymlink);
                let (atime, mtime) = (TimeSpec::UTIME_OMIT, TimeSpec::new(secs, 5));
                nix::sys::stat::utimensat(AT_FDCWD, &path, &atime, &mtime, flags)?.into()
            }
            // The standard library and nix have no extended attributes.
            Op::SetXattr(place, name, size, flags) => {
                let (named, value) = (self.named(place)?, bytes(size as u64, 0));
                sys::setxattr_named(named.as_fd(), OsStr::new(name), &value, flags, 0)?.into()
            }
            Op::GetXattr(place, name, size) => {
                sys::getxattr_named(self.named(place)?.as_fd(), OsStr::new(name), size as usize)?
                    .into()
            }
            Op::ListXattr(place) => sys::listxattr_named(self.named(place)?.as_fd(), 1000)?.into(),
            Op::RemoveXattr(place, name) => {
                sys::removexattr_named(self.named(place)?.as_fd(), OsStr::new(name))?.into()
            }
            Op::Outside(..) | Op::Wait(_) | Op::Sweep => Value::Nothing,
        })
    }

    /// Everything below the directory: attributes, and content or text.
    pub(crate) fn tree(&self) -> BTreeMap<PathBuf, (Attr, Vec<u8>)> {
        let mut found = BTreeMap::new();
        let mut todo = vec![PathBuf::new()];
        while let Some(below) = todo.pop() {
            let path = self.root.join(&below);
            let meta = fs::symlink_metadata(&path).expect("it was listed");
            let mut content = Vec::new();
            if meta.is_file() {
                content = fs::read(&path).expect("files can be read");
            } else if meta.is_symlink() {
                let text = fs::read_link(&path).expect("links can be read");
                content = text.into_os_string().into_encoded_bytes();
            } else if meta.is_dir() {
                let entries = fs::read_dir(&path).expect("directories can be read");
                todo.extend(entries.map(|entry| below.join(entry.expect("an entry").file_name())));
            }
            found.insert(below, (Attr::of(&meta), content));
        }
        found
    }
}
