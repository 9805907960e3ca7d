//! The queue of one plugin: bounded in events and in bytes, in order, with every loss counted.
//!
//! Events travel through a bounded crossbeam channel. A gate in front of it gives them their numbers: a number is
//! taken when the event goes in or is lost, under one lock, so the numbers that come out rise, and what is missing
//! between two of them is told with the second ([`Delivery::lost`]). At any time, events offered = delivered +
//! waiting + lost.
//!
//! * [`Queue::offer`] never waits: a full queue loses the event, or gives it back when the rule says `block`.
//! * [`Queue::wait`] waits for room until a deadline, then loses the event. A plugin that lets one deadline pass
//!   without taking anything is *stuck*: until it takes something, nobody waits for it any more, so that a plugin
//!   that hangs costs one deadline and not one for each event.

use super::event::{Delivery, Event};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError};
use parking_lot::{Condvar, Mutex};
use std::time::{Duration, Instant};

/// What to do with an event when the queue is full.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Full {
    /// Lose it, and count it.
    Drop,
    /// Let the program wait, at most so long; then lose it.
    Block(Duration),
}

/// How many events a queue took and lost.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Counts {
    /// All that were offered.
    pub offered: u64,
    /// Those that the plugin was given.
    pub delivered: u64,
    /// Those that were lost: the queue was full, or the plugin disabled.
    pub lost: u64,
}

#[derive(Default)]
struct Gate {
    counts: Counts,
    /// Lost since the last event that went in.
    gap: u64,
    /// Bytes of data that wait.
    bytes: usize,
    /// Senders that wait for room.
    waiting: usize,
    stuck: bool,
    closed: bool,
}

impl Gate {
    fn lose(&mut self) {
        self.counts.offered += 1;
        self.counts.lost += 1;
        self.gap += 1;
    }
}

/// The sending end; shared by all who have events.
pub(super) struct Queue {
    gate: Mutex<Gate>,
    room: Condvar,
    /// Taken away at the end, so that the worker sees it.
    sender: Mutex<Option<Sender<Delivery>>>,
    bytes_max: usize,
}

/// The worker's end.
pub(super) struct Taker(Receiver<Delivery>);

impl Queue {
    pub(super) fn new(events_max: usize, bytes_max: usize) -> (Queue, Taker) {
        let (sender, receiver) = crossbeam_channel::bounded(events_max);
        let queue = Queue {
            gate: Mutex::default(),
            room: Condvar::new(),
            sender: Mutex::new(Some(sender)),
            bytes_max,
        };
        (queue, Taker(receiver))
    }

    /// Put `event` in, or lose it; with [`Full::Block`] a full queue gives it back, to be waited with.
    pub(super) fn offer(&self, event: Event, full: Full) -> Option<Event> {
        let mut gate = self.gate.lock();
        let event = self.put(&mut gate, event)?;
        if full == Full::Drop || gate.closed || gate.stuck {
            gate.lose();
            return None;
        }
        Some(event)
    }

    /// Wait for room until `deadline`, then lose the event.
    pub(super) fn wait(&self, mut event: Event, deadline: Instant) {
        let mut gate = self.gate.lock();
        while let Some(back) = self.put(&mut gate, event) {
            event = back;
            if gate.closed || gate.stuck {
                return gate.lose();
            }
            gate.waiting += 1;
            let late = self.room.wait_until(&mut gate, deadline).timed_out();
            gate.waiting -= 1;
            if late {
                gate.stuck = true;
            }
        }
    }

    /// The event back when there is no room.
    fn put(&self, gate: &mut Gate, event: Event) -> Option<Event> {
        let size = event.data.as_ref().map_or(0, |data| data.len());
        // One event with more than the limit must not wait for ever.
        if gate.closed || (gate.bytes > 0 && gate.bytes + size > self.bytes_max) {
            return Some(event);
        }
        let sender = self.sender.lock();
        let Some(sender) = sender.as_ref() else {
            return Some(event);
        };
        let delivery = Delivery {
            seq: gate.counts.offered + 1,
            lost: gate.gap,
            event,
        };
        match sender.try_send(delivery) {
            Ok(()) => {
                gate.counts.offered += 1;
                gate.gap = 0;
                gate.bytes += size;
                None
            }
            Err(TrySendError::Full(delivery) | TrySendError::Disconnected(delivery)) => {
                Some(delivery.event)
            }
        }
    }

    /// The worker has these from now on.
    fn took(&self, batch: &[Delivery]) {
        let size = |delivery: &Delivery| delivery.event.data.as_ref().map_or(0, |data| data.len());
        let mut gate = self.gate.lock();
        gate.counts.delivered += batch.len() as u64;
        gate.bytes -= batch.iter().map(size).sum::<usize>();
        gate.stuck = false;
        if gate.waiting > 0 {
            self.room.notify_all();
        }
    }

    /// No more events: the worker gets what is in, then the end.
    pub(super) fn end(&self) {
        *self.sender.lock() = None;
    }

    /// The plugin takes nothing any more: whatever comes is lost at once.
    pub(super) fn close(&self) {
        self.gate.lock().closed = true;
        self.room.notify_all();
    }

    pub(super) fn counts(&self) -> Counts {
        self.gate.lock().counts
    }

    /// Number of the last event offered, and how many up to it were lost without any after them.
    pub(super) fn last_gap(&self) -> (u64, u64) {
        let gate = self.gate.lock();
        (gate.counts.offered, gate.gap)
    }
}

/// What [`Taker::take`] found.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Took {
    /// Events are in the batch.
    Some,
    /// Nothing came in time.
    Nothing,
    /// Nothing will come any more.
    End,
}

impl Taker {
    /// How many events wait.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// How many can.
    pub(super) fn capacity(&self) -> usize {
        self.0.capacity().unwrap_or(usize::MAX)
    }

    /// Move up to `most` events into `batch`, which is empty; wait for the first at most so long.
    pub(super) fn take(
        &self,
        queue: &Queue,
        batch: &mut Vec<Delivery>,
        most: usize,
        wait: Duration,
    ) -> Took {
        match self.0.recv_timeout(wait) {
            Ok(first) => batch.push(first),
            Err(RecvTimeoutError::Timeout) => return Took::Nothing,
            Err(RecvTimeoutError::Disconnected) => return Took::End,
        }
        batch.extend(self.0.try_iter().take(most - 1));
        queue.took(batch);
        Took::Some
    }
}

#[cfg(test)]
mod tests {
    use super::super::event::Kind;
    use super::*;
    use bytes::Bytes;
    use std::path::Path;

    fn event(size: usize) -> Event {
        let mut event = Event::new(Kind::Write, Path::new("f"));
        event.data = (size > 0).then(|| Bytes::from(vec![0; size]));
        event
    }

    fn take(queue: &Queue, taker: &Taker, most: usize) -> Vec<(u64, u64)> {
        let mut batch = Vec::new();
        taker.take(queue, &mut batch, most, Duration::ZERO);
        batch
            .iter()
            .map(|delivery| (delivery.seq, delivery.lost))
            .collect()
    }

    #[test]
    fn what_is_lost_is_told_with_the_next_that_is_not() {
        let (queue, taker) = Queue::new(2, 1000);
        for _ in 0..5 {
            assert!(queue.offer(event(0), Full::Drop).is_none());
        }
        assert_eq!(take(&queue, &taker, 1), [(1, 0)]);
        queue.offer(event(0), Full::Drop);
        assert_eq!(take(&queue, &taker, 9), [(2, 0), (6, 3)]);
        let counts = queue.counts();
        assert_eq!((counts.offered, counts.delivered, counts.lost), (6, 3, 3));
    }

    #[test]
    fn bytes_are_bounded_too_but_one_event_always_fits() {
        let (queue, taker) = Queue::new(100, 10);
        for size in [50, 1, 0] {
            queue.offer(event(size), Full::Drop);
        }
        assert_eq!(take(&queue, &taker, 9), [(1, 0)]);
        queue.offer(event(6), Full::Drop);
        queue.offer(event(4), Full::Drop);
        queue.offer(event(1), Full::Drop);
        assert_eq!(take(&queue, &taker, 9), [(4, 2), (5, 0)]);
    }

    #[test]
    fn who_waits_gets_the_room_that_is_made() {
        let (queue, taker) = Queue::new(1, 1000);
        let block = Full::Block(Duration::from_secs(60));
        assert!(queue.offer(event(0), block).is_none());
        let back = queue.offer(event(0), block).expect("full");
        std::thread::scope(|scope| {
            scope.spawn(|| queue.wait(back, Instant::now() + Duration::from_secs(60)));
            let mut seen = Vec::new();
            while seen.len() < 2 {
                seen.extend(take(&queue, &taker, 1));
            }
            assert_eq!(seen, [(1, 0), (2, 0)]);
        });
    }

    #[test]
    fn a_plugin_that_hangs_costs_one_deadline() {
        let (queue, taker) = Queue::new(1, 1000);
        let block = Full::Block(Duration::from_millis(1));
        queue.offer(event(0), block);
        let back = queue.offer(event(0), block).expect("full");
        queue.wait(back, Instant::now() + Duration::from_millis(1));
        assert!(
            queue.offer(event(0), block).is_none(),
            "lost without waiting"
        );
        assert_eq!(queue.counts().lost, 2);
        // It takes something again: then it is waited for again.
        assert_eq!(take(&queue, &taker, 1), [(1, 0)]);
        queue.offer(event(0), block);
        assert!(queue.offer(event(0), block).is_some());
    }

    #[test]
    fn numbers_add_up_with_many_senders() {
        let (queue, taker) = Queue::new(64, 1 << 20);
        let (mut delivered, mut lost, mut last) = (0, 0, 0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..5000 {
                        queue.offer(event(0), Full::Drop);
                    }
                });
            }
            while queue.counts().offered < 20_000 || queue.counts().delivered > delivered {
                for (seq, gap) in take(&queue, &taker, 8) {
                    assert_eq!(seq, last + gap + 1);
                    (delivered, lost, last) = (delivered + 1, lost + gap, seq);
                }
            }
            for (seq, gap) in take(&queue, &taker, 64) {
                assert_eq!(seq, last + gap + 1);
                (delivered, lost, last) = (delivered + 1, lost + gap, seq);
            }
        });
        let (offered, gap) = queue.last_gap();
        assert_eq!(offered, 20_000);
        assert_eq!(delivered + lost + gap, offered);
    }
}
