//! Tells the kernel what to drop, from a thread of its own.

use crate::overlay::{Invalidate, NodeId};
use fuser::INodeNo;
use parking_lot::{Condvar, Mutex};
use std::collections::BTreeSet;
use std::ffi::OsString;

/// What the kernel is to drop.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Target {
    Attributes(NodeId),
    Content(NodeId),
    Entry(NodeId, OsString),
}

/// Sends invalidations to the kernel from a thread of its own: the kernel waits for pages that are being read,
/// and those reads may wait for us. The queue is a set, so it is never longer than the number of nodes and
/// names, and adding to it never blocks.
#[derive(Default)]
pub struct Invalidator {
    queue: Mutex<(BTreeSet<Target>, bool)>,
    work: Condvar,
}

impl Invalidator {
    /// Send what is queued until [`Invalidator::stop`].
    pub fn run(&self, notifier: &fuser::Notifier) {
        let mut queue = self.queue.lock();
        while !queue.1 {
            let Some(target) = queue.0.pop_first() else {
                self.work.wait(&mut queue);
                continue;
            };
            parking_lot::MutexGuard::unlocked(&mut queue, || {
                let told = match &target {
                    // A negative offset leaves the pages alone (fuse_reverse_inval_inode of Linux).
                    Target::Attributes(id) => notifier.inval_inode(INodeNo(id.0), -1, 0),
                    Target::Content(id) => notifier.inval_inode(INodeNo(id.0), 0, 0),
                    Target::Entry(parent, name) => notifier.inval_entry(INodeNo(parent.0), name),
                };
                // What the kernel does not know it need not drop.
                if let Err(error) = told {
                    tracing::debug!("invalidating {target:?}: {error}");
                }
            });
        }
    }

    /// End [`Invalidator::run`].
    pub fn stop(&self) {
        self.queue.lock().1 = true;
        self.work.notify_all();
    }
}

impl Invalidator {
    fn push(&self, target: Target) {
        self.queue.lock().0.insert(target);
        self.work.notify_one();
    }
}

impl Invalidate for Invalidator {
    fn attributes(&self, node: NodeId) {
        self.push(Target::Attributes(node));
    }

    fn content(&self, node: NodeId) {
        self.push(Target::Content(node));
    }

    fn entry(&self, parent: NodeId, name: OsString) {
        self.push(Target::Entry(parent, name));
    }
}
