//! The reference: the operations done on a plain directory, with the system's own calls.

use crate::ops::{NOWHERE, Op, Place, SLOTS, bytes};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, FallocateFlags, OFlag, RenameFlags};
use nix::sys::stat::{Mode, SFlag, UtimensatFlags};
use nix::sys::time::TimeSpec;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use warmfs::sys::{self, XattrAnswer};

/// What an operation gave.
pub(crate) type Answer = Result<Value, Errno>;

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
    pub(crate) nlink: u32,
    /// Not of directories: the file system chooses it.
    pub(crate) size: u64,
    /// When it was set: by the system it never is that old.
    pub(crate) mtime: Option<i64>,
    /// What is wrong with the attributes by themselves.
    pub(crate) wrong: Option<String>,
}

impl Attr {
    pub(crate) fn new(mode: u32, nlink: u32, size: u64, mtime: i64) -> Attr {
        Attr {
            mode,
            nlink,
            size: if mode & libc::S_IFMT == libc::S_IFDIR {
                0
            } else {
                size
            },
            mtime: (mtime < 1_000_000_000).then_some(mtime),
            wrong: None,
        }
    }

    fn of(meta: &Metadata) -> Attr {
        Attr::new(meta.mode(), meta.nlink() as u32, meta.size(), meta.mtime())
    }
}

/// A directory, and the files in it that are open.
pub(crate) struct Plain {
    root: PathBuf,
    slots: [Option<(File, i32)>; SLOTS],
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().expect("system calls fail with a code"))
}

fn io<T>(result: std::io::Result<T>) -> Result<T, Errno> {
    result.map_err(|error| errno(&error))
}

pub(crate) fn xattr(answer: Result<XattrAnswer, Errno>) -> Answer {
    answer.map(|answer| match answer {
        XattrAnswer::Size(size) => Value::Count(size as usize),
        XattrAnswer::Data(data) => Value::Bytes(data),
    })
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

    fn meta(&self, place: Place) -> Result<Metadata, Errno> {
        io(fs::symlink_metadata(self.at(place)))
    }

    /// The file in a slot, if it was opened for reading (writing).
    fn slot(&self, slot: usize, writing: bool) -> Result<&File, Errno> {
        match &self.slots[slot] {
            Some((file, flags)) if allows(*flags, writing) => Ok(file),
            _ => Err(Errno::EBADF),
        }
    }

    fn open(&self, place: Place, flags: i32) -> Result<File, Errno> {
        let meta = self.meta(place);
        if flags & libc::O_EXCL == 0
            && let Ok(meta) = meta
            && !meta.is_symlink()
            && !meta.is_file()
        {
            return Err(if meta.is_dir() {
                Errno::EISDIR
            } else {
                Errno::ENXIO
            });
        }
        let flags = OFlag::from_bits_retain(flags) | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        nix::fcntl::open(&self.at(place), flags, Mode::from_bits_retain(0o644)).map(File::from)
    }

    fn named(&self, place: Place) -> Result<OwnedFd, Errno> {
        nix::fcntl::open(
            &self.at(place),
            OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
            Mode::empty(),
        )
    }

    /// What is there and is no symbolic link, which many operations would follow.
    fn no_link(&self, place: Place) -> Result<PathBuf, Errno> {
        match self.meta(place)?.is_symlink() {
            true => Err(Errno::ELOOP),
            false => Ok(self.at(place)),
        }
    }

    fn list(&self, place: Place) -> Result<BTreeMap<String, Attr>, Errno> {
        let mut found = BTreeMap::new();
        for entry in io(fs::read_dir(self.no_link(place)?))? {
            let entry = io(entry)?;
            let name = entry.file_name().into_string().expect("names are ASCII");
            found.insert(name, Attr::of(&io(entry.metadata())?));
        }
        Ok(found)
    }

    pub(crate) fn apply(&mut self, op: &Op) -> Answer {
        let done = |()| Value::Nothing;
        match *op {
            Op::Open(slot, place, flags) => {
                self.slots[slot] = None;
                self.slots[slot] = Some((self.open(place, flags)?, flags));
                Ok(Value::Nothing)
            }
            Op::Close(slot) => self.slots[slot]
                .take()
                .map(|_| Value::Nothing)
                .ok_or(Errno::EBADF),
            Op::Read(slot, (pos, size)) => {
                let mut buffer = vec![0; size as usize];
                let got = io(self.slot(slot, false)?.read_at(&mut buffer, pos))?;
                buffer.truncate(got);
                Ok(Value::Bytes(buffer))
            }
            Op::Write(slot, (pos, size), seed) => {
                // With O_APPEND the position means nothing here, too.
                io(self.slot(slot, true)?.write_at(&bytes(size, seed), pos)).map(Value::Count)
            }
            Op::Cut(slot, size) => match self.slot(slot, true) {
                Ok(file) => io(file.set_len(size)).map(done),
                Err(_) => Err(Errno::EINVAL),
            },
            Op::Allocate(slot, mode, (pos, size)) => nix::fcntl::fallocate(
                self.slot(slot, true)?,
                FallocateFlags::from_bits_retain(mode),
                pos as i64,
                size as i64,
            )
            .map(done),
            Op::Copy(from, (from_pos, size), to, to_pos) => {
                let (from, to) = (self.slot(from, false)?, self.slot(to, true)?);
                let (from, to) = ((from.as_fd(), from_pos), (to.as_fd(), to_pos));
                sys::copy_file_range(from, to, size as usize).map(Value::Count)
            }
            Op::StatOpen(slot) => match &self.slots[slot] {
                Some((file, _)) => Ok(Value::Attr(Attr::of(&io(file.metadata())?))),
                None => Err(Errno::EBADF),
            },
            Op::Stat(place) => self.meta(place).map(|meta| Value::Attr(Attr::of(&meta))),
            Op::List(place) => {
                let found = self.list(place)?.into_iter();
                Ok(Value::Names(
                    found
                        .map(|(name, attr)| (name, attr.mode & libc::S_IFMT))
                        .collect(),
                ))
            }
            Op::ListPlus(place) => self.list(place).map(Value::Attrs),
            Op::Put(place, (pos, size), seed) => {
                let file = self.open(place, libc::O_WRONLY | libc::O_CREAT)?;
                io(file.write_at(&bytes(size, seed), pos)).map(Value::Count)
            }
            Op::Truncate(place, size) => {
                nix::unistd::truncate(&self.no_link(place)?, size as i64).map(done)
            }
            Op::Mkdir(place) => {
                nix::unistd::mkdir(&self.at(place), Mode::from_bits_retain(0o755)).map(done)
            }
            Op::Mkfifo(place) => nix::sys::stat::mknod(
                &self.at(place),
                SFlag::S_IFIFO,
                Mode::from_bits_retain(0o644),
                0,
            )
            .map(done),
            Op::Rmdir(place) => io(fs::remove_dir(self.at(place))).map(done),
            Op::Unlink(place) => nix::unistd::unlink(&self.at(place)).map(done),
            Op::Rename(from, to, flags) => nix::fcntl::renameat2(
                AT_FDCWD,
                &self.at(from),
                AT_FDCWD,
                &self.at(to),
                RenameFlags::from_bits_retain(flags),
            )
            .map(done),
            Op::Link(old, new) => nix::unistd::linkat(
                AT_FDCWD,
                &self.at(old),
                AT_FDCWD,
                &self.at(new),
                AtFlags::empty(),
            )
            .map(done),
            Op::Symlink(place) => io(std::os::unix::fs::symlink(NOWHERE, self.at(place))).map(done),
            Op::Readlink(place) => io(fs::read_link(self.at(place)))
                .map(|text| Value::Bytes(text.into_os_string().into_encoded_bytes())),
            Op::Chmod(place, mode) => {
                let path = self.no_link(place)?;
                nix::sys::stat::fchmodat(
                    AT_FDCWD,
                    &path,
                    Mode::from_bits_retain(mode),
                    nix::sys::stat::FchmodatFlags::FollowSymlink,
                )
                .map(done)
            }
            Op::SetTime(place, secs) => nix::sys::stat::utimensat(
                AT_FDCWD,
                &self.at(place),
                &TimeSpec::UTIME_OMIT,
                &TimeSpec::new(secs, 5),
                UtimensatFlags::NoFollowSymlink,
            )
            .map(done),
            Op::SetXattr(place, name, size, flags) => {
                let named = self.named(place)?;
                sys::setxattr_named(
                    named.as_fd(),
                    OsStr::new(name),
                    &bytes(size as u64, 0),
                    flags,
                    0,
                )
                .map(done)
            }
            Op::GetXattr(place, name, size) => xattr(sys::getxattr_named(
                self.named(place)?.as_fd(),
                OsStr::new(name),
                size as usize,
            )),
            Op::ListXattr(place) => xattr(sys::listxattr_named(self.named(place)?.as_fd(), 1000)),
            Op::RemoveXattr(place, name) => {
                sys::removexattr_named(self.named(place)?.as_fd(), OsStr::new(name)).map(done)
            }
            Op::Outside(_) | Op::Wait(_) | Op::Sweep => Ok(Value::Nothing),
        }
    }

    /// Everything below the directory: attributes, and content or text or names of extended attributes.
    pub(crate) fn tree(&self) -> BTreeMap<PathBuf, (Attr, Vec<u8>)> {
        let mut found = BTreeMap::new();
        let mut todo = vec![PathBuf::new()];
        while let Some(below) = todo.pop() {
            let path = self.root.join(&below);
            let meta = fs::symlink_metadata(&path).expect("it was listed");
            let content = if meta.is_file() {
                fs::read(&path).expect("files can be read")
            } else if meta.is_symlink() {
                fs::read_link(&path)
                    .expect("links can be read")
                    .into_os_string()
                    .into_encoded_bytes()
            } else {
                Vec::new()
            };
            if meta.is_dir() {
                let entries = fs::read_dir(&path).expect("directories can be read");
                todo.extend(entries.map(|entry| below.join(entry.expect("an entry").file_name())));
            }
            found.insert(below, (Attr::of(&meta), content));
        }
        found
    }
}

/// Do the flags of open(2) allow reading (writing)?
pub(crate) fn allows(flags: i32, writing: bool) -> bool {
    match flags & libc::O_ACCMODE {
        libc::O_RDWR => true,
        libc::O_WRONLY => writing,
        _ => !writing,
    }
}
