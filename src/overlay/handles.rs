//! Open files and directories of the mount, by the number that the kernel keeps for us.

use super::NodeId;
use super::attrs::Listing;
use crate::error::{Error, Result};
use crate::file::CachedFile;
use crate::hooks::Watch;
use nix::errno::Errno;
use parking_lot::{Mutex, RwLock};
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// An open file.
#[derive(Debug)]
pub struct OpenFile {
    /// The node that it is open on.
    pub node: NodeId,
    /// The data path.
    pub file: CachedFile,
    /// Opened from memory, without a descriptor.
    pub(super) unbacked: Option<Unbacked>,
    /// When somebody wants to know what is read and written.
    pub(super) watched: Option<Watched>,
}

/// An open file that has no descriptor, or had none when it was opened: it is that file as long as its node is of this
/// generation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unbacked(pub(super) u64);

/// An open file that a rule names.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) watch: Arc<Watch>,
    /// Where it was seen last, and how many names had changed by then.
    pub(super) path: Mutex<(u64, Arc<Path>)>,
}

impl std::fmt::Debug for CachedFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CachedFile")
            .field("id", &self.id())
            .finish_non_exhaustive()
    }
}

/// An open directory: one snapshot of its entries, so that the position of an entry never moves while
/// others come and go. Reading from the start again (rewinddir) takes a new snapshot.
#[derive(Debug)]
pub struct OpenDir {
    /// The node that it is open on.
    pub node: NodeId,
    pub(super) snapshot: Mutex<Arc<Listing>>,
    /// The snapshot was read from the start already.
    pub(super) used: std::sync::atomic::AtomicBool,
}

/// Handles of one kind.
#[derive(Debug)]
pub struct Handles<T> {
    open: RwLock<HashMap<u64, Arc<T>>>,
    next: AtomicU64,
}

impl<T> Default for Handles<T> {
    fn default() -> Self {
        Handles {
            open: RwLock::default(),
            next: AtomicU64::new(1),
        }
    }
}

impl<T> Handles<T> {
    /// Keep `value` until it is removed.
    pub fn insert(&self, value: T) -> u64 {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.open.write().insert(number, Arc::new(value));
        number
    }

    /// The handle; `EBADF` for a number that is not open.
    pub fn get(&self, number: u64) -> Result<Arc<T>> {
        self.open
            .read()
            .get(&number)
            .cloned()
            .ok_or(Error::new(Errno::EBADF, "handle"))
    }

    /// Close it; dropping what is returned may wait for the source.
    pub fn remove(&self, number: u64) -> Option<Arc<T>> {
        self.open.write().remove(&number)
    }

    /// How many are open.
    pub fn len(&self) -> usize {
        self.open.read().len()
    }

    /// None open?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
