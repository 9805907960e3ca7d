//! Watches by FSEvents, through the crate `notify`.
//!
//! FSEvents watches trees and starts anew for each one, so the whole source is one watch, and it tells of paths: which of
//! them are of interest is kept here. It does not say which way a renamed path went; that directory and those below it
//! are lost then, and watched anew by the path that they have.

use super::{Dir, Notice, Queue, Unwatched};
use crate::cache::FileId;
use notify::event::{EventKind, ModifyKind, RenameMode};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

struct Shared {
    /// Directories of interest. An entry is made before its path is compared, so that the loss of one never goes unseen.
    dirs: Mutex<BTreeMap<PathBuf, Dir>>,
    queue: Arc<Queue>,
}

pub(super) struct Watches {
    base: PathBuf,
    shared: Arc<Shared>,
    /// `None` once it has ended.
    watcher: Mutex<Option<RecommendedWatcher>>,
    most: usize,
}

impl Watches {
    pub(super) fn start(base: &Path, most: usize, queue: Arc<Queue>) -> Result<Watches, String> {
        let shared = Arc::new(Shared {
            dirs: Mutex::default(),
            queue,
        });
        let taking = shared.clone();
        // Told paths are real ones.
        let base = base.canonicalize().map_err(|error| error.to_string())?;
        let watcher = notify::recommended_watcher(move |event| taking.take_in(event));
        let watcher = watcher.and_then(|mut watcher| {
            watcher.watch(&base, RecursiveMode::Recursive)?;
            Ok(watcher)
        });
        let watcher = watcher.map_err(|error| error.to_string())?;
        Ok(Watches {
            base,
            shared,
            watcher: Mutex::new(Some(watcher)),
            most,
        })
    }

    pub(super) fn set(
        &self,
        id: Dir,
        file: FileId,
        _dir: BorrowedFd<'_>,
        path: &Path,
    ) -> Result<(), Unwatched> {
        let path = self.base.join(path);
        {
            let mut dirs = self.shared.dirs.lock();
            if dirs.len() >= self.most {
                return Err(Unwatched::Own(self.most));
            }
            dirs.insert(path.clone(), id);
        }
        // What is called so by now may be another directory.
        let is_file = std::fs::metadata(&path)
            .is_ok_and(|meta| (meta.dev(), meta.ino()) == (file.dev, file.ino));
        if !is_file {
            self.take(id);
        }
        Ok(())
    }

    pub(super) fn take(&self, id: Dir) {
        self.shared.dirs.lock().retain(|_, known| *known != id);
    }

    pub(super) fn has(&self, id: Dir) -> bool {
        self.shared.dirs.lock().values().any(|known| *known == id)
    }

    pub(super) fn len(&self) -> usize {
        self.shared.dirs.lock().len()
    }

    pub(super) fn stop(&self) {
        drop(self.watcher.lock().take());
    }
}

impl Shared {
    fn take_in(&self, event: notify::Result<notify::Event>) {
        let event = match event {
            Ok(event) if event.need_rescan() => return self.queue.overflow(),
            Ok(event) => event,
            Err(error) => {
                tracing::warn!("watching the source: {error}; all that is known is asked for anew");
                return self.queue.push([Notice::Everything]);
            }
        };
        // Who opens or reads a file changes nothing.
        if let EventKind::Access(_) = event.kind {
            return;
        }
        let leaves = matches!(
            event.kind,
            EventKind::Remove(_)
                | EventKind::Modify(ModifyKind::Name(RenameMode::From | RenameMode::Any))
        );
        let names = !matches!(
            event.kind,
            EventKind::Modify(ModifyKind::Data(_) | ModifyKind::Metadata(_))
        );
        for path in &event.paths {
            self.queue.push(self.notices_of(path, names, leaves));
        }
    }

    /// `names`: a name came or went; `leaves`: it went.
    fn notices_of(&self, path: &Path, names: bool, leaves: bool) -> Vec<Notice> {
        let mut notices = Vec::new();
        let mut dirs = self.dirs.lock();
        if let (Some(parent), Some(name)) = (path.parent(), path.file_name())
            && let Some(dir) = dirs.get(parent)
        {
            notices.push(Notice::Name(*dir, name.to_owned()));
            // Which changed the directory, too.
            notices.extend(names.then_some(Notice::Dir(*dir)));
        }
        if !leaves {
            notices.extend(dirs.get(path).map(|dir| Notice::Dir(*dir)));
            return notices;
        }
        let below = dirs.range(path.to_owned()..);
        let lost: Vec<PathBuf> = below
            .take_while(|(below, _)| below.starts_with(path))
            .map(|(below, _)| below.clone())
            .collect();
        let lost = lost.iter().filter_map(|path| dirs.remove(path));
        notices.extend(lost.map(Notice::Lost));
        notices
    }
}
