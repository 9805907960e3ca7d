//! What happens to files, told to the hooks of the mount.
//!
//! The overlay knows the rules and the names; the face knows who asked, when, and when the answer is due.

use super::handles::Watched;
use super::{NodeId, Overlay};
use crate::cache::{Key, Observe};
use crate::hooks::{Event, Hooks, Kind, Watch};
use crate::span::Span;
use parking_lot::Mutex;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// An open file that somebody watches.
#[derive(Clone, Debug)]
pub struct Watching {
    /// Which rules name it.
    pub watch: Arc<Watch>,
    /// What it is called.
    pub path: Arc<Path>,
}

impl Overlay {
    /// Tell `hooks` from now on. The first ones stay; a mount sets them once, before its first request.
    pub fn set_hooks(self: &Arc<Self>, hooks: Arc<Hooks>) {
        let cache_is_told = hooks.wants(Kind::Evict) || hooks.wants(Kind::Stale);
        if self.hooks.set(hooks).is_ok() && cache_is_told {
            let overlay = Arc::downgrade(self);
            self.cache.set_observer(overlay);
        }
    }

    /// Who is told.
    pub fn hooks(&self) -> Option<&Arc<Hooks>> {
        self.hooks.get()
    }

    /// What a file is called, below the mount point.
    pub fn path(&self, id: NodeId) -> PathBuf {
        self.inodes.lock().path(id)
    }

    /// The rules for an open file, and its name; `None` when no rule names it.
    pub fn watching(&self, handle: u64) -> Option<Watching> {
        self.hooks.get()?;
        let open = self.files.get(handle).ok()?;
        let watched = open.watched.as_ref()?;
        let now = self.names.load(Ordering::Acquire);
        let mut path = watched.path.lock();
        if path.0 != now {
            let found = self.path(open.node);
            // One that was removed keeps its last name.
            if !found.as_os_str().is_empty() {
                path.1 = found.into();
            }
            path.0 = now;
        }
        Some(Watching {
            watch: watched.watch.clone(),
            path: path.1.clone(),
        })
    }

    pub(super) fn watch(&self, id: NodeId) -> Option<Watched> {
        let hooks = self.hooks.get()?;
        if !hooks.wants(Kind::Read) && !hooks.wants(Kind::Write) {
            return None;
        }
        let names = self.names.load(Ordering::Acquire);
        let path = self.path(id);
        Some(Watched {
            watch: hooks.watch(&path)?,
            path: Mutex::new((names, path.into())),
        })
    }

    pub(super) fn names_changed(&self) {
        self.names.fetch_add(1, Ordering::AcqRel);
    }
}

impl Observe for Overlay {
    fn evicted(&self, key: Key) {
        if let Some(hooks) = self.hooks.get().filter(|hooks| hooks.wants(Kind::Evict)) {
            let mut event = Event::new(Kind::Evict, key.path);
            event.span = Some(Span::new(key.pos, key.size));
            hooks.tell_now(event);
        }
    }

    fn stale(&self, path: Arc<Path>) {
        if let Some(hooks) = self.hooks.get().filter(|hooks| hooks.wants(Kind::Stale)) {
            hooks.tell_now(Event::new(Kind::Stale, path));
        }
    }
}
