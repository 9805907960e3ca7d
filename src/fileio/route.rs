//! How a stream gets at its file: everything that may block, for both kinds of streams.
//!
//! A [`Route`] knows the path, the mode and the cache; an [`OpenFile`] is what it opened. Both are shared with the jobs
//! that an asynchronous stream hands to other threads, so nothing here knows the stream's position.

use super::{Error, Mode, Result};
use crate::backing::{BackingFile, Source};
use crate::cache::{Cache, Compared, FileId, Key as CacheKey, Seen, Trust, Version};
use crate::clock::Moment;
use crate::error::Error as OsError;
use crate::file::CachedFile;
use crate::span::Span;
use crate::sys::{self, Stat};
use bytes::Bytes;
use nix::errno::Errno;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Permissions of a file that a stream creates, before the process's umask.
const CREATE_MODE: u32 = 0o666;

/// The way to a file.
pub(super) struct Route {
    /// As the user wrote it.
    pub(super) path: Arc<Path>,
    /// The same, but it means the same after chdir(2).
    pub(super) target: PathBuf,
    pub(super) mode: Mode,
    /// Most bytes that one sized read or one step of a write moves.
    pub(super) chunk_size: usize,
    pub(super) cache: Arc<Cache>,
    pub(super) source: Arc<Source>,
    /// When the path names another file, go on with that one. For reading only: what a writer continues must be the
    /// file that it began.
    pub(super) follows: bool,
}

/// A file that a stream has open.
pub(super) struct OpenFile {
    pub(super) file: CachedFile,
    /// On a file system of the machine's own, where stat(2) of an open file does not wait.
    pub(super) is_local: bool,
}

/// A read that went through.
pub(super) struct Got {
    pub(super) bytes: Bytes,
    /// What they are bytes of.
    pub(super) seen: Option<Seen>,
    /// Where they are from: another file than before when the path leads to another.
    pub(super) open: Arc<OpenFile>,
    /// When the path was last seen to lead there.
    pub(super) followed: Moment,
}

/// A write that went through.
pub(super) struct Put {
    /// Bytes that are in the file now.
    pub(super) count: usize,
    /// Offset behind them.
    pub(super) end: u64,
    pub(super) seen: Option<Seen>,
}

/// Result of asking the source whether what is cached may be believed.
pub(super) enum Asked {
    Compared(Compared),
    /// The path leads to another file now.
    Replaced,
}

impl OpenFile {
    pub(super) fn id(&self) -> FileId {
        self.file.id()
    }
}

impl Route {
    pub(super) fn os_error(&self, error: OsError) -> Error {
        Error::Os {
            path: self.path.clone(),
            error,
        }
    }

    pub(super) fn key(&self, span: Span) -> CacheKey {
        CacheKey {
            path: self.path.clone(),
            pos: span.pos,
            size: span.size,
        }
    }

    /// What a read of `size` bytes asks for: `None` means all the rest.
    pub(super) fn span(&self, pos: u64, size: Option<usize>) -> Span {
        match size {
            Some(size) => Span::new(pos, size.min(self.chunk_size) as u64),
            None => Span::from(pos),
        }
    }

    pub(super) fn open(&self) -> Result<Arc<OpenFile>> {
        let mode = self.mode;
        let open = || -> crate::error::Result<_> {
            let when = self.cache.clock().now();
            let fd = self
                .source
                .open_path(&self.target, mode.flags(), CREATE_MODE)?;
            let stat = self.source.stat(&fd, true)?;
            if stat.is_dir() {
                return Err(OsError::new(Errno::EISDIR, "open"));
            }
            Ok((fd, stat, when))
        };
        let (fd, stat, when) = open().map_err(|error| self.os_error(error))?;
        if !stat.is_file() {
            return Err(Error::NotRegular(self.path.clone()));
        }
        let version = Version::of(&stat);
        let record = self.cache.open(version.id, || self.path.to_path_buf());
        self.cache.confirm(version, when, self.cache.ttl());
        let is_local = sys::is_local(sys::fs_magic(fd.as_fd()));
        let backing = BackingFile::opened(self.source.clone(), Arc::new(fd));
        let file = CachedFile::new(record, backing);
        if mode.truncates() && stat.size > 0 {
            file.truncate(0).map_err(|error| self.os_error(error))?;
        }
        Ok(Arc::new(OpenFile { file, is_local }))
    }

    /// Close, with what close(2) has to say about earlier writes. A file system of the machine's own has nothing.
    pub(super) fn close(&self, open: &OpenFile) -> Result<()> {
        if self.mode.writes() && !open.is_local {
            let flush = |fd| self.source.flush(&fd);
            let flushed = open.file.backing().fd().and_then(flush);
            flushed.map_err(|error| self.os_error(error))?;
        }
        Ok(())
    }

    /// What the path leads to; `None` when there is nothing.
    pub(super) fn stat(&self) -> Result<Option<Stat>> {
        match self.source.stat_path(&self.target, true) {
            Ok(stat) => Ok(Some(stat)),
            Err(error) if matches!(error.errno(), Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
            Err(error) => Err(self.os_error(error)),
        }
    }

    /// Size of the file that the next read is of. While it is believed, as the cache knows it.
    pub(super) fn size(&self, open: &OpenFile, followed: Moment) -> Result<u64> {
        if self.is_believed(open, followed)
            && let Some(version) = self.cache.version(open.id())
        {
            return Ok(version.size);
        }
        if self.follows
            && let Ok(stat) = self.source.stat_path(&self.target, true)
            && stat.is_file()
        {
            return Ok(stat.size);
        }
        let backing = open.file.backing();
        let stat = backing.fd().and_then(|fd| backing.source().stat(&fd, true));
        Ok(stat.map_err(|error| self.os_error(error))?.size)
    }

    /// Ask the source, with one stat(2).
    pub(super) fn ask(&self, open: &OpenFile) -> crate::error::Result<Asked> {
        if self.follows {
            let check = self.cache.begin_check(open.id());
            match self.source.stat_path(&self.target, true) {
                Ok(stat) if Version::of(&stat).id == open.id() => {
                    let compared = self.cache.finish_check(check, Version::of(&stat));
                    return Ok(Asked::Compared(compared));
                }
                Ok(stat) if stat.is_file() => return Ok(Asked::Replaced),
                // Removed, or out of reach: the file that is open is as good as ever.
                Ok(_) | Err(_) => {}
            }
        }
        open.file.compare(true).map(Asked::Compared)
    }

    /// Was `open` compared, and the path followed, less than `ttl` ago?
    pub(super) fn is_believed(&self, open: &OpenFile, followed: Moment) -> bool {
        let now = self.cache.clock().now();
        self.cache.is_trusted(open.id())
            && (!self.follows || now.since(followed) < self.cache.ttl())
    }

    /// Read `span`, after asking the source whether what is cached is current.
    pub(super) fn read(&self, open: &Arc<OpenFile>, span: Span, followed: Moment) -> Result<Got> {
        let mut open = open.clone();
        let now = self.cache.clock().now();
        let (asked, followed) = if self.is_believed(&open, followed) {
            (Ok(Asked::Compared(Compared::Same)), followed)
        } else {
            (self.ask(&open), now)
        };
        let compared = match asked {
            Ok(Asked::Compared(compared)) => Ok(compared),
            Ok(Asked::Replaced) => {
                open = self.open()?;
                open.file.compare(true)
            }
            Err(error) => Err(error),
        };
        let compared = match compared {
            Ok(compared) => compared,
            Err(error) => {
                // Unreachable is not changed: what is here is given, and asked for again next time.
                if error.is_unreachable()
                    && let Some(hit) = open.file.hit(span, Trust::Any)
                {
                    self.cache.stats().served_unchecked.add(1);
                    return Ok(Got {
                        bytes: hit.pieces.into_bytes(),
                        seen: Some(hit.seen),
                        open,
                        followed,
                    });
                }
                return Err(self.os_error(error));
            }
        };
        // Before the bytes: a write that ends meanwhile makes this state an old one.
        let seen = self.cache.seen(open.id());
        let read = open.file.read_compared(span, compared);
        Ok(Got {
            bytes: read.map_err(|error| self.os_error(error))?,
            seen,
            open,
            followed,
        })
    }

    /// Write all of `data` at `pos`, or at the end of the file when the mode says so, in steps of `chunk_size`. When
    /// a later step fails, what went in before is reported, and the next write meets the error again.
    pub(super) fn write(&self, open: &OpenFile, pos: u64, data: Bytes) -> Result<Put> {
        let append = self.mode.appends();
        let mut put = Put {
            count: 0,
            end: if append && !data.is_empty() {
                self.size(open, self.cache.clock().now())?
            } else {
                pos
            },
            seen: None,
        };
        while put.count < data.len() {
            let step = self.chunk_size.min(data.len() - put.count);
            // A slot that shares the whole of a large buffer would keep all of it in memory.
            let part = if step == data.len() {
                data.clone()
            } else {
                Bytes::copy_from_slice(&data[put.count..put.count + step])
            };
            match open.file.write_at(put.end, part, append) {
                Ok(changed) => {
                    put.count += changed.value;
                    put.end = if append {
                        changed.stat.size
                    } else {
                        put.end + changed.value as u64
                    };
                    put.seen = Some(self.stamped(&changed.stat));
                    if changed.value < step {
                        break;
                    }
                }
                Err(_) if put.count > 0 => break,
                Err(error) => return Err(self.os_error(error)),
            }
        }
        Ok(put)
    }

    /// The state after a change of ours that left the file with `stat`.
    pub(super) fn stamped(&self, stat: &Stat) -> Seen {
        let version = Version::of(stat);
        match self.cache.seen(version.id) {
            Some(seen) if seen.version == version => seen,
            // Another change followed at once: nothing that was read is of this state.
            _ => Seen {
                version,
                generation: u64::MAX,
            },
        }
    }
}
