//! Work for several threads, which ends when nothing is left and nobody can add more.

use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;

struct State<T> {
    items: VecDeque<T>,
    /// Those who may still add: takers of items that are not done with them, and others that were counted in.
    feeders: usize,
}

/// A queue of work.
pub(super) struct Queue<T> {
    state: Mutex<State<T>>,
    /// An item has come, or the end.
    work: Condvar,
    /// An item has gone.
    room: Condvar,
}

/// An item that was taken, and may lead to more. Dropped when it is done.
pub(super) struct Feeder<'a, T>(&'a Queue<T>);

impl<T> Drop for Feeder<'_, T> {
    fn drop(&mut self) {
        self.0.leave();
    }
}

impl<T> Queue<T> {
    /// A queue with one feeder from outside, until [`Queue::leave`].
    pub(super) fn fed() -> Queue<T> {
        Queue {
            state: Mutex::new(State {
                items: VecDeque::new(),
                feeders: 1,
            }),
            work: Condvar::new(),
            room: Condvar::new(),
        }
    }

    /// One feeder less.
    pub(super) fn leave(&self) {
        let mut state = self.state.lock();
        state.feeders -= 1;
        if state.feeders == 0 && state.items.is_empty() {
            self.work.notify_all();
        }
    }

    /// Add `items` before all others, in their order.
    pub(super) fn put_first(&self, items: impl DoubleEndedIterator<Item = T>) {
        let mut state = self.state.lock();
        for item in items.rev() {
            state.items.push_front(item);
        }
        drop(state);
        self.work.notify_all();
    }

    /// Add `item` behind all others, as soon as there are fewer than `most`.
    pub(super) fn put_last(&self, item: T, most: usize) {
        let mut state = self.state.lock();
        while state.items.len() >= most {
            self.room.wait(&mut state);
        }
        state.items.push_back(item);
        drop(state);
        self.work.notify_one();
    }

    /// The next item; waits while there may be one. `None`: there will be none.
    pub(super) fn take(&self) -> Option<(T, Feeder<'_, T>)> {
        let mut state = self.state.lock();
        loop {
            if let Some(item) = state.items.pop_front() {
                state.feeders += 1;
                drop(state);
                self.room.notify_one();
                return Some((item, Feeder(self)));
            }
            if state.feeders == 0 {
                return None;
            }
            self.work.wait(&mut state);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// Each item leads to two smaller ones; all threads end, and no item is lost.
    #[test]
    fn it_ends_when_nothing_is_left() {
        let queue = Queue::fed();
        let seen = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    while let Some((item, _feeder)) = queue.take() {
                        seen.fetch_add(1, Ordering::Relaxed);
                        if item > 0 {
                            queue.put_first([item - 1, item - 1].into_iter());
                        }
                    }
                });
            }
            queue.put_last(10, 1);
            queue.put_last(0, 2000);
            queue.leave();
        });
        assert_eq!(seen.into_inner(), (1 << 11) - 1 + 1);
    }
}
