//! Questions about names that are under way: who asks the same one waits for that answer instead of asking again.
//!
//! A program that looks names up and a sweep that runs ahead of it meet all the time. Each question about a name of a
//! directory is asked once; whoever comes second waits until the first has its answer, and finds it in memory. (When it is
//! not there, because a change of ours made it doubtful, or because nothing is believed with `ttl = 0`, he asks himself.)

use super::NodeId;
use parking_lot::{Condvar, Mutex};
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::sync::Arc;

#[derive(Default)]
struct Latch {
    answered: Mutex<bool>,
    changed: Condvar,
}

/// The questions that are under way.
#[derive(Default)]
pub(super) struct Questions(Mutex<HashMap<(NodeId, OsString), Arc<Latch>>>);

/// The right and duty to ask; whoever waits is woken when it is dropped.
pub(super) struct Asking<'a> {
    questions: &'a Questions,
    about: (NodeId, OsString),
}

impl Questions {
    /// Ask about `name` in `parent`; or `None`, after somebody else's answer has come.
    pub(super) fn begin(&self, parent: NodeId, name: &OsStr) -> Option<Asking<'_>> {
        let about = (parent, name.to_owned());
        let latch = {
            let mut under_way = self.0.lock();
            match under_way.get(&about) {
                Some(latch) => latch.clone(),
                None => {
                    under_way.insert(about.clone(), Arc::default());
                    return Some(Asking {
                        questions: self,
                        about,
                    });
                }
            }
        };
        let mut answered = latch.answered.lock();
        while !*answered {
            latch.changed.wait(&mut answered);
        }
        None
    }

    /// Is somebody asking about `name` in `parent`?
    pub(super) fn is_under_way(&self, parent: NodeId, name: &OsStr) -> bool {
        self.0.lock().contains_key(&(parent, name.to_owned()))
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        if let Some(latch) = self.questions.0.lock().remove(&self.about) {
            *latch.answered.lock() = true;
            latch.changed.notify_all();
        }
    }
}
