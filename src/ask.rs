//! What programs may ask of a mount: the requests of `warmfs warm` and `warmfs evict`, as ioctl(2) on an open file or
//! directory.
//!
//! That needs no socket, works in every namespace where the mount is seen and on read-only mounts, and leaves it to the
//! kernel who may ask: whoever may open the file for reading. Each request takes four words along and gets four back.

use crate::span::Span;
use crate::sys::{self, Result, Words};
use nix::errno::Errno;
use std::os::fd::BorrowedFd;

/// Changes whenever a request changes its meaning.
const PROTOCOL: u64 = 1;

/// "warmfs" and a line's end: the answer of another file system is not taken for ours.
const MAGIC: u64 = 0x7761_726d_6673_0a00;

const WARM: u8 = 1;
const EVICT: u8 = 2;
const ABOUT: u8 = 3;
const HELD: u8 = 4;

/// Most bytes of one [`Ask::Warm`]. A program that is told to end waits for the requests that it has made, so they
/// should be short; and long enough that the source has [`crate::config::PARALLEL_DEFAULT`] requests to do at once.
pub const SPAN_MAX: u64 = 4 << 20;

/// A request, as the daemon sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ask {
    /// Read a span of the open file into the cache; answered with [`Warmed`] when it is there.
    Warm(Span),
    /// Drop what is cached of the open file, or of all below the open directory; answered with [`Evicted`].
    Evict,
    /// Who are you? Answered with [`About`].
    About,
    /// Is all of a file, by its inode number and size, cached and believed? Of any file of the mount; answered from
    /// memory with the number of bytes, so that a file that is warm need not even be opened.
    Held(u64, u64),
}

impl Ask {
    /// The request with this number; `None` for what was not made by [`warm`], [`evict`] or [`about`].
    pub fn decode(code: u32, data: &[u8]) -> Option<Ask> {
        let (words, rest) = data.as_chunks();
        let &[pos, size, _, _] = words else {
            return None;
        };
        // Of a span; for `HELD` the first is the inode number.
        let (pos, size) = (u64::from_ne_bytes(pos), u64::from_ne_bytes(size));
        let is = |number| code == sys::ask_code(number);
        if !rest.is_empty() {
            None
        } else if is(WARM) && size <= SPAN_MAX {
            Some(Ask::Warm(Span::new(pos, size)))
        } else if is(EVICT) {
            Some(Ask::Evict)
        } else if is(ABOUT) {
            Some(Ask::About)
        } else if is(HELD) && size <= SPAN_MAX {
            Some(Ask::Held(pos, size))
        } else {
            None
        }
    }
}

/// What became of a span that was to be warmed: less than was asked for at the end of the file.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Warmed {
    /// Bytes that were in the cache.
    pub cached: u64,
    /// Bytes that the source was asked for.
    pub fetched: u64,
}

impl Warmed {
    /// As the answer to the request.
    pub fn encode(self) -> Words {
        [self.cached, self.fetched, 0, 0]
    }
}

/// What was dropped.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Evicted {
    /// Files that had something in the cache.
    pub files: u64,
    /// Bytes of them.
    pub bytes: u64,
}

impl Evicted {
    /// As the answer to the request.
    pub fn encode(self) -> Words {
        [self.files, self.bytes, 0, 0]
    }
}

/// The cache of a mount.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct About {
    /// Most bytes that it holds.
    pub bytes_max: u64,
    /// Bytes of it that plugins have pinned.
    pub bytes_pinned: u64,
}

impl About {
    /// As the answer to the request.
    pub fn encode(self) -> Words {
        [MAGIC, PROTOCOL, self.bytes_max, self.bytes_pinned]
    }
}

/// Read `span`, at most [`SPAN_MAX`] bytes, of an open file into the cache.
pub fn warm(file: BorrowedFd<'_>, span: Span) -> Result<Warmed> {
    let mut words = [span.pos, span.size, 0, 0];
    sys::ask(file, WARM, &mut words)?;
    let [cached, fetched, ..] = words;
    Ok(Warmed { cached, fetched })
}

/// Are the `size` bytes, at most [`SPAN_MAX`], of the file with this inode number all cached? It is on the mount of
/// `any`.
pub fn is_held(any: BorrowedFd<'_>, ino: u64, size: u64) -> bool {
    let mut words = [ino, size, 0, 0];
    // What went wrong here goes wrong again when the file is opened, and is told then.
    size <= SPAN_MAX && sys::ask(any, HELD, &mut words).is_ok() && words[0] == size
}

/// Drop what is cached of an open file, or of all below an open directory.
pub fn evict(file: BorrowedFd<'_>) -> Result<Evicted> {
    let mut words = Words::default();
    sys::ask(file, EVICT, &mut words)?;
    let [files, bytes, ..] = words;
    Ok(Evicted { files, bytes })
}

/// The cache of the mount that an open file or directory is on; `ENOTTY` when that is none that this program can talk
/// to.
pub fn about(file: BorrowedFd<'_>) -> Result<About> {
    let mut words = Words::default();
    sys::ask(file, ABOUT, &mut words)?;
    match words {
        [MAGIC, PROTOCOL, bytes_max, bytes_pinned] => Ok(About {
            bytes_max,
            bytes_pinned,
        }),
        _ => Err(Errno::ENOTTY),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_of_ours_asks_is_refused() {
        let data = |pos: u64, size: u64| {
            let words = [pos, size, 0, 0].map(u64::to_ne_bytes);
            words.as_flattened().to_vec()
        };
        let warm = sys::ask_code(WARM);
        let span = Span::new(5, SPAN_MAX);
        assert_eq!(Ask::decode(warm, &data(5, SPAN_MAX)), Some(Ask::Warm(span)));
        assert_eq!(Ask::decode(warm, &data(5, SPAN_MAX + 1)), None);
        assert_eq!(Ask::decode(warm, &data(5, 1)[1..]), None);
        assert_eq!(Ask::decode(warm, &[]), None);
        assert_eq!(Ask::decode(warm + 4, &data(5, 1)), None);
        assert_eq!(
            Ask::decode(sys::ask_code(EVICT), &data(0, 0)),
            Some(Ask::Evict)
        );
    }
}
