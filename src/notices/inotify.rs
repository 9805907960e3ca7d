//! Watches by inotify ([inotify(7)](https://man7.org/linux/man-pages/man7/inotify.7.html)).
//!
//! A watch is set on the directory that a descriptor stands for and stays with it wherever it is moved, so no path can
//! mislead it. Setting one is a system call of whoever asks: it waits for nobody, however fast events come in. (A
//! watcher with one thread for both leaves off answering while events come faster than it takes them in.)

use super::{Dir, Notice, Queue, Unwatched};
use crate::cache::FileId;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;

/// Names of ours that come or go; what changes attributes or content. A file that was mapped tells of no store, but of
/// its close after the last page was unmapped.
const ASKED_FOR: AddWatchFlags = AddWatchFlags::IN_CREATE
    .union(AddWatchFlags::IN_DELETE)
    .union(AddWatchFlags::IN_MOVE)
    .union(AddWatchFlags::IN_ATTRIB)
    .union(AddWatchFlags::IN_MODIFY)
    .union(AddWatchFlags::IN_CLOSE_WRITE)
    .union(AddWatchFlags::IN_ONLYDIR);

/// After which the names in the directory are others.
const OF_NAMES: AddWatchFlags = AddWatchFlags::IN_CREATE
    .union(AddWatchFlags::IN_DELETE)
    .union(AddWatchFlags::IN_MOVE);

#[derive(Default)]
struct Known {
    by_watch: HashMap<WatchDescriptor, Dir>,
    by_dir: HashMap<Dir, WatchDescriptor>,
}

struct Shared {
    inotify: Inotify,
    stop: EventFd,
    known: Mutex<Known>,
    queue: Arc<Queue>,
}

pub(super) struct Watches {
    shared: Arc<Shared>,
    /// Held while a watch is set or taken away, so that the two are in order. Taking in events does not need it.
    setting: Mutex<()>,
    most: usize,
}

impl Watches {
    pub(super) fn start(_base: &Path, most: usize, queue: Arc<Queue>) -> Result<Watches, String> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK);
        let inotify = inotify.map_err(|errno| match errno {
            Errno::EMFILE => "the limit of inotify instances is reached; raise it: sysctl \
                              fs.inotify.max_user_instances=1024"
                .to_owned(),
            errno => errno.desc().to_owned(),
        })?;
        let stop = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|errno| errno.desc().to_owned())?;
        let shared = Arc::new(Shared {
            inotify,
            stop,
            known: Mutex::default(),
            queue,
        });
        let taking = shared.clone();
        std::thread::Builder::new()
            .name("warmfs-inotify".into())
            .spawn(move || taking.take_in())
            .map_err(|error| error.to_string())?;
        Ok(Watches {
            shared,
            setting: Mutex::default(),
            most,
        })
    }

    pub(super) fn set(
        &self,
        id: Dir,
        _file: FileId,
        dir: BorrowedFd<'_>,
        _path: &Path,
    ) -> Result<(), Unwatched> {
        let _setting = self.setting.lock();
        if self.len() >= self.most {
            return Err(Unwatched::Own(self.most));
        }
        let path = format!("/proc/self/fd/{}", dir.as_raw_fd());
        let added = self.shared.inotify.add_watch(path.as_str(), ASKED_FOR);
        // An event that comes before this is known tells of what nobody has asked about yet.
        let watch = added.map_err(|errno| match errno {
            Errno::ENOSPC => Unwatched::System,
            errno => Unwatched::Refused(errno.into()),
        })?;
        let mut known = self.shared.known.lock();
        if let Some(before) = known.by_watch.insert(watch, id) {
            known.by_dir.remove(&before);
        }
        known.by_dir.insert(id, watch);
        Ok(())
    }

    pub(super) fn take(&self, id: Dir) {
        let _setting = self.setting.lock();
        let watch = {
            let mut known = self.shared.known.lock();
            let watch = known.by_dir.remove(&id);
            if let Some(watch) = &watch {
                known.by_watch.remove(watch);
            }
            watch
        };
        if let Some(watch) = watch {
            // It may have gone by itself.
            let _ = self.shared.inotify.rm_watch(watch);
        }
    }

    pub(super) fn has(&self, id: Dir) -> bool {
        self.shared.known.lock().by_dir.contains_key(&id)
    }

    pub(super) fn len(&self) -> usize {
        self.shared.known.lock().by_dir.len()
    }

    pub(super) fn stop(&self) {
        // It fails only if it has been written to.
        let _ = self.shared.stop.write(1);
    }
}

impl Drop for Watches {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn take_in(&self) {
        let of_interest = |fd| PollFd::new(fd, PollFlags::POLLIN);
        loop {
            let mut fds = [
                of_interest(self.stop.as_fd()),
                of_interest(self.inotify.as_fd()),
            ];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return self.give_up(errno),
            }
            if fds[0].any() == Some(true) {
                return;
            }
            match self.inotify.read_events() {
                Ok(events) => {
                    for event in events {
                        self.tell(event);
                    }
                }
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(errno) => return self.give_up(errno),
            }
        }
    }

    fn give_up(&self, errno: Errno) {
        tracing::warn!("reading inotify events: {errno}; the source is polled as --ttl says");
        let mut known = self.known.lock();
        known.by_watch.clear();
        let lost = std::mem::take(&mut known.by_dir);
        drop(known);
        self.queue.push(lost.into_keys().map(Notice::Lost));
    }

    fn tell(&self, event: InotifyEvent) {
        if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
            return self.queue.overflow();
        }
        let mut known = self.known.lock();
        let Some(&dir) = known.by_watch.get(&event.wd) else {
            return;
        };
        // The kernel has ended the watch, because the directory or its file system went.
        if event.mask.contains(AddWatchFlags::IN_IGNORED) {
            known.by_watch.remove(&event.wd);
            known.by_dir.remove(&dir);
            drop(known);
            return self.queue.push([Notice::Lost(dir)]);
        }
        drop(known);
        // Changed names change the directory, too.
        let is_dir = event.name.is_none() || event.mask.intersects(OF_NAMES);
        let name = event.name.map(|name| Notice::Name(dir, name));
        let itself = is_dir.then_some(Notice::Dir(dir));
        self.queue.push(name.into_iter().chain(itself));
    }
}
