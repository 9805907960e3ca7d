//! The one error type: an operating-system code and the operation that met it, side by side.
//!
//! What a program on the mount sees is the code, so it must survive every layer: there is no way to
//! build an [`Error`] without one, and no conversion that drops it.

use nix::errno::Errno;
use std::fmt;

/// An errno and what was being done when it appeared.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Error {
    errno: Errno,
    doing: &'static str,
}

/// Result with [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// `errno`, met while `doing` something ("open", "read source").
    pub const fn new(errno: Errno, doing: &'static str) -> Error {
        Error { errno, doing }
    }

    /// From an `io::Error`. One without an OS code (a short write, bad UTF-8) becomes `EIO`.
    pub fn io(error: &std::io::Error, doing: &'static str) -> Error {
        Error::new(
            error.raw_os_error().map_or(Errno::EIO, Errno::from_raw),
            doing,
        )
    }

    /// The operating system's code.
    pub const fn errno(self) -> Errno {
        self.errno
    }

    /// What was being done.
    pub const fn doing(self) -> &'static str {
        self.doing
    }

    /// The code as the kernel wants it.
    pub const fn raw(self) -> i32 {
        self.errno as i32
    }

    /// True when the error says that the source could not be *reached*, which proves nothing about its
    /// files: what is cached stays, and may be served.
    pub fn is_unreachable(self) -> bool {
        matches!(
            self.errno,
            Errno::EIO
                | Errno::ETIMEDOUT
                | Errno::ENOTCONN
                | Errno::ECONNABORTED
                | Errno::ECONNREFUSED
                | Errno::ECONNRESET
                | Errno::EHOSTDOWN
                | Errno::EHOSTUNREACH
                | Errno::ENETDOWN
                | Errno::ENETUNREACH
                | Errno::EAGAIN
                | Errno::EMFILE
                | Errno::ENFILE
                | Errno::ENOMEM
        ) || is_unreachable_here(self.errno)
    }
}

#[cfg(target_os = "linux")]
fn is_unreachable_here(errno: Errno) -> bool {
    errno == Errno::EREMOTEIO
}

#[cfg(not(target_os = "linux"))]
fn is_unreachable_here(_: Errno) -> bool {
    false
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.doing, self.errno.desc())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:?}", self.doing, self.errno)
    }
}

impl std::error::Error for Error {}

impl From<Error> for std::io::Error {
    fn from(error: Error) -> std::io::Error {
        std::io::Error::from_raw_os_error(error.raw())
    }
}

/// Attach what was being done to a bare errno: `pread(..).doing("read source")?`.
pub trait Doing<T> {
    /// Name the operation.
    fn doing(self, what: &'static str) -> Result<T>;
}

impl<T> Doing<T> for nix::Result<T> {
    fn doing(self, what: &'static str) -> Result<T> {
        self.map_err(|errno| Error::new(errno, what))
    }
}

impl<T> Doing<T> for std::io::Result<T> {
    fn doing(self, what: &'static str) -> Result<T> {
        self.map_err(|error| Error::io(&error, what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_survives_conversion_and_text() {
        let error = Error::new(Errno::ENOSPC, "write source");
        assert_eq!(error.raw(), libc::ENOSPC);
        assert_eq!(
            std::io::Error::from(error).raw_os_error(),
            Some(libc::ENOSPC)
        );
        assert!(error.to_string().starts_with("write source: "));
    }

    #[test]
    fn unreachable_is_not_deleted() {
        assert!(Error::new(Errno::EIO, "stat").is_unreachable());
        assert!(!Error::new(Errno::ENOENT, "stat").is_unreachable());
        assert!(!Error::new(Errno::EACCES, "stat").is_unreachable());
    }
}
