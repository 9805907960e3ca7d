//! What can go wrong with a stream.

use nix::errno::Errno;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// Result with [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// One line for a person; [`Error::errno`] for a program.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operation needs an open file.
    #[error("{} is not open; call open() first", .0.display())]
    Closed(Arc<Path>),
    /// The mode does not let it read.
    #[error("{} was opened for writing only; open it with mode \"r+b\" to read it, too", .0.display())]
    NotReadable(Arc<Path>),
    /// The mode does not let it write.
    #[error("{} was opened for reading only; open it with mode \"r+b\" to write it, too", .0.display())]
    NotWritable(Arc<Path>),
    /// Not one of Python's mode strings.
    #[error("unknown mode {given:?}; valid are {valid}")]
    UnknownMode {
        /// What was asked for.
        given: String,
        /// The valid ones.
        valid: &'static str,
    },
    /// Not one of [`VALID_EVENTS`](super::VALID_EVENTS).
    #[error("unknown event {0:?}; valid are on_read and on_write")]
    UnknownEvent(String),
    /// Nothing would ever move.
    #[error("chunk_size is 0; give at least 1 byte")]
    ChunkSize,
    /// A position before the start of the file, or behind every file's end.
    #[error("cannot seek to {0}; a position is between 0 and 2^63 - 1")]
    Position(i128),
    /// A synchronous stream would block the asynchronous runtime that it is used in.
    #[error("{0}")]
    InAsyncContext(String),
    /// An asynchronous stream needs a running runtime for what may block.
    #[error("{} is used outside of a tokio runtime, or while it ends", .0.display())]
    NoRuntime(Arc<Path>),
    /// Not something with bytes at positions.
    #[error("{} is not a regular file", .0.display())]
    NotRegular(Arc<Path>),
    /// The operating system said no.
    #[error("{}: {error}", path.display())]
    Os {
        /// The file.
        path: Arc<Path>,
        /// What it was asked, and what it said.
        error: crate::error::Error,
    },
}

impl Error {
    /// The operating system's code, or the one that stands for this error.
    pub fn errno(&self) -> Errno {
        match self {
            Error::Closed(_) | Error::NotReadable(_) | Error::NotWritable(_) => Errno::EBADF,
            Error::UnknownMode { .. }
            | Error::UnknownEvent(_)
            | Error::ChunkSize
            | Error::Position(_)
            | Error::NotRegular(_) => Errno::EINVAL,
            Error::InAsyncContext(_) => Errno::EDEADLK,
            Error::NoRuntime(_) => Errno::EIO,
            Error::Os { error, .. } => error.errno(),
        }
    }
}

/// An error of the operating system keeps its code; the others keep their text.
impl From<Error> for io::Error {
    fn from(error: Error) -> io::Error {
        let kind = match &error {
            Error::Os { error, .. } => return (*error).into(),
            Error::UnknownMode { .. }
            | Error::UnknownEvent(_)
            | Error::ChunkSize
            | Error::Position(_)
            | Error::NotRegular(_) => io::ErrorKind::InvalidInput,
            Error::NotReadable(_) | Error::NotWritable(_) => io::ErrorKind::PermissionDenied,
            Error::Closed(_) | Error::InAsyncContext(_) | Error::NoRuntime(_) => {
                io::ErrorKind::Other
            }
        };
        io::Error::new(kind, error)
    }
}
