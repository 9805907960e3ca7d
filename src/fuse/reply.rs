//! Answers, in the form that the kernel wants.

use crate::error::{Error, Result};
use crate::overlay::{DirEntry, Entry, NodeId, Overlay};
use crate::sys::{self, SetTime, Stat, Time, XattrAnswer};
use fuser::{
    Errno, FileAttr, FileType, Generation, INodeNo, ReplyAttr, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyStatfs, ReplyWrite, ReplyXattr, TimeOrNow,
};
use std::ffi::OsStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub(super) fn code(error: Error) -> Errno {
    if error.errno() == nix::errno::Errno::EIO {
        tracing::debug!("{error}");
    }
    Errno::from_i32(error.raw())
}

/// What a program asked for by ioctl(2).
pub(super) fn send_words(reply: ReplyIoctl, result: Result<sys::Words>) {
    match result {
        Ok(words) => reply.ioctl(0, words.map(u64::to_ne_bytes).as_flattened()),
        Err(error) => reply.error(code(error)),
    }
}

pub(super) fn system_time(time: Time) -> SystemTime {
    let nanos = Duration::from_nanos(u64::from(time.nanos));
    match u64::try_from(time.secs) {
        Ok(secs) => UNIX_EPOCH + Duration::from_secs(secs) + nanos,
        Err(_) => UNIX_EPOCH - Duration::from_secs(time.secs.unsigned_abs()) + nanos,
    }
}

/// A time that the kernel wants set. fuser turns seconds before 1970 into a `SystemTime` by subtracting the
/// nanoseconds instead of adding them; this undoes exactly that.
pub(super) fn set_time(time: TimeOrNow) -> SetTime {
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

pub(super) fn file_type(mode: u32) -> FileType {
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

pub(super) fn file_attr(stat: &Stat) -> FileAttr {
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

pub(super) fn send_entry(reply: ReplyEntry, result: Result<Entry>) {
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
pub(super) fn send_lookup(
    overlay: &Overlay,
    at: (NodeId, &OsStr),
    reply: ReplyEntry,
    result: Result<Entry>,
) {
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

pub(super) const ABSENT: FileAttr = FileAttr {
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

pub(super) fn send_attr(reply: ReplyAttr, result: Result<(Stat, Duration)>) {
    match result {
        Ok((stat, ttl)) => reply.attr(&ttl, &file_attr(&stat)),
        Err(error) => reply.error(code(error)),
    }
}

pub(super) fn send_empty(reply: ReplyEmpty, result: Result<()>) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(code(error)),
    }
}

pub(super) fn send_count(reply: ReplyWrite, result: Result<usize>) {
    match result {
        Ok(count) => reply.written(count as u32),
        Err(error) => reply.error(code(error)),
    }
}

pub(super) fn send_xattr(reply: ReplyXattr, result: Result<XattrAnswer>) {
    match result {
        Ok(XattrAnswer::Size(size)) => reply.size(size),
        Ok(XattrAnswer::Data(data)) => reply.data(&data),
        Err(error) => reply.error(code(error)),
    }
}

pub(super) fn send_statfs(reply: ReplyStatfs, result: Result<nix::sys::statvfs::Statvfs>) {
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

pub(super) fn send_readdir(
    overlay: &Overlay,
    mut reply: ReplyDirectory,
    result: Result<Vec<DirEntry>>,
) {
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

pub(super) fn send_readdirplus(
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
