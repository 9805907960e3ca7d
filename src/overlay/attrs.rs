//! What was last seen of a file or directory, and until when it is believed.

use crate::backing::Listed;
use crate::cache::Version;
use crate::clock::Moment;
use crate::sys::Stat;
use nix::errno::Errno;
use std::collections::HashMap;
use std::ffi::OsString;
use std::time::Duration;

/// Attributes and the moment at which the source was asked for them.
#[derive(Clone, Copy, Debug)]
pub struct Attr {
    /// What it said.
    pub stat: Stat,
    /// When it was asked.
    pub checked: Moment,
}

impl Attr {
    /// How much longer the attributes may be believed at `now`.
    pub fn ttl_left(&self, now: Moment, ttl: Duration) -> Duration {
        ttl.saturating_sub(now.since(self.checked))
    }
}

/// A directory's entries as of one version of the directory.
#[derive(Debug)]
pub struct Listing {
    /// All but `.` and `..`.
    pub entries: Vec<Listed>,
    /// The directory's version before it was read.
    pub(super) version: Version,
    /// Read within a tick of the directory's last change: not believed beyond its ttl.
    pub(super) racy: bool,
}

/// Extended attributes that programs asked for. The kernel and `ls -l` ask for the same absent ones
/// (`security.capability`, `system.posix_acl_access`) again and again.
#[derive(Debug, Default)]
pub(super) struct Xattrs {
    /// Values, or why there is none.
    pub(super) values: HashMap<OsString, std::result::Result<Vec<u8>, Errno>>,
    /// The list of names.
    pub(super) list: Option<Vec<u8>>,
}

impl Xattrs {
    /// Names remembered per file, and the longest value: what programs ask for unasked is few and short.
    pub(super) const NAMES_MAX: usize = 8;
    /// Bytes of the longest value that is remembered.
    pub(super) const VALUE_MAX: usize = 1024;
}
