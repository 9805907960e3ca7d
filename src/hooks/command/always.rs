//! One process that lives as long as the mount.

use super::lines::{read_actions, read_log};
use super::{POLL, Spec, signal_group, spawn};
use crate::hooks::event::{Delivery, write_gap};
use crate::hooks::plugin::{Disable, Host, Plugin, Stopper};
use nix::sys::signal::Signal;
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::io::Write;
use std::process::{Child, ChildStdin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A process that died is started again after this long, twice as long each time, up to the most. One that ran
/// for the most begins anew.
pub(super) const BACKOFF_MIN: Duration = Duration::from_millis(100);
pub(super) const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// A process and what it wrote last.
#[derive(Default)]
struct Life {
    child: Option<Child>,
    /// Number of the last event that it dealt with.
    acked: u64,
    /// Which process in the row of those that were started.
    number: u64,
}

/// What is shared with the threads that read what the process writes, and with who ends it.
#[derive(Default)]
struct Shared {
    life: Mutex<Life>,
    news: Condvar,
    stopped: AtomicBool,
}

impl Shared {
    fn signal(&self, signal: Signal) {
        if let Some(child) = &self.life.lock().child {
            signal_group(child, signal);
        }
    }
}

impl Stopper for Shared {
    fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.signal(Signal::SIGKILL);
        self.news.notify_all();
    }
}

/// A process that lives as long as the mount.
pub(crate) struct Always {
    spec: Spec,
    shared: Arc<Shared>,
    stdin: Option<ChildStdin>,
    /// Sent, and not acknowledged: for the next process, should this one die.
    unacked: VecDeque<(u64, Vec<u8>)>,
    /// Bytes of these lines.
    unacked_bytes: usize,
    pub(super) backoff: Duration,
    /// When the process was started, or may be started again.
    since: Instant,
}

impl Always {
    /// Start it. The threads that read its output are started with the first events.
    pub(crate) fn start(spec: Spec) -> Result<Always, String> {
        let mut child = spec.spawn()?;
        let stdin = child.stdin.take();
        let always = Always {
            spec,
            shared: Arc::default(),
            stdin,
            unacked: VecDeque::new(),
            unacked_bytes: 0,
            backoff: BACKOFF_MIN,
            since: Instant::now(),
        };
        always.shared.life.lock().child = Some(child);
        Ok(always)
    }

    /// Read what the process writes, on threads of their own.
    fn listen(&self, host: &Host) {
        let (stdout, stderr, number) = {
            let mut life = self.shared.life.lock();
            let number = life.number;
            match &mut life.child {
                Some(child) => (child.stdout.take(), child.stderr.take(), number),
                None => return,
            }
        };
        if let Some(stdout) = stdout {
            let (shared, host) = (self.shared.clone(), host.clone());
            spawn(move || {
                read_actions(stdout, &host, |seq| {
                    let mut life = shared.life.lock();
                    // What a process said before it died says nothing about its follower, but it did say it.
                    life.acked = life.acked.max(seq);
                    shared.news.notify_all();
                });
                let _ = number;
            });
        }
        if let Some(stderr) = stderr {
            let host = host.clone();
            spawn(move || read_log(stderr, &host));
        }
    }

    /// Has the process ended? Then note it, and when the next one may start.
    fn has_died(&mut self, host: &Host) -> bool {
        let status = {
            let mut life = self.shared.life.lock();
            let Some(child) = &mut life.child else {
                return true;
            };
            match child.try_wait() {
                Ok(None) => return false,
                Ok(Some(status)) => {
                    life.child = None;
                    status
                }
                Err(_) => return false,
            }
        };
        self.stdin = None;
        if !host.is_stopping() {
            if self.since.elapsed() >= BACKOFF_MAX {
                self.backoff = BACKOFF_MIN;
            }
            host.report(format_args!(
                "it ended ({status}); started again in {:?}",
                self.backoff
            ));
            self.since = Instant::now() + self.backoff;
            self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
        }
        true
    }

    /// Start the next process, when its time has come, and send it what the last one had not dealt with.
    fn restart(&mut self, host: &Host) -> bool {
        if Instant::now() < self.since && !host.is_stopping() {
            return false;
        }
        match self.spec.spawn() {
            Ok(mut child) => {
                self.stdin = child.stdin.take();
                let mut life = self.shared.life.lock();
                life.child = Some(child);
                life.number += 1;
            }
            Err(error) => {
                host.report(format_args!("{error}"));
                self.since = Instant::now() + self.backoff;
                self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
                return false;
            }
        }
        self.since = Instant::now();
        self.listen(host);
        self.forget_acked();
        let again: Vec<u8> = self
            .unacked
            .iter()
            .flat_map(|(_, line)| line.iter().copied())
            .collect();
        again.is_empty() || self.write(&again)
    }

    fn write(&mut self, lines: &[u8]) -> bool {
        match &mut self.stdin {
            Some(stdin) => stdin.write_all(lines).is_ok(),
            None => false,
        }
    }

    fn forget_acked(&mut self) {
        let acked = self.shared.life.lock().acked;
        while self.unacked.front().is_some_and(|(seq, _)| *seq <= acked) {
            let acked = self.unacked.pop_front();
            self.unacked_bytes -= acked.map_or(0, |(_, line)| line.len());
        }
    }

    /// A process to write to. `None` when the mount ends first.
    fn ready(&mut self, host: &Host) -> Option<()> {
        // The write that failed told before the process could be waited for.
        let broken = self.stdin.is_none();
        loop {
            if self.shared.stopped.load(Ordering::Acquire) {
                return None;
            }
            if !self.has_died(host) {
                if !broken || self.stdin.is_some() {
                    return Some(());
                }
                // It closed its standard input and lives on: of no use any more.
                self.shared.signal(Signal::SIGTERM);
            } else if self.restart(host) {
                return Some(());
            } else if host.is_stopping() {
                return None;
            }
            std::thread::sleep(POLL);
        }
    }

    /// Wait until few enough events are unacknowledged.
    fn wait_for_window(&mut self, host: &Host) {
        loop {
            self.forget_acked();
            let (events, bytes) = self.spec.window;
            let has_room = self.unacked.len() < events && self.unacked_bytes < bytes;
            if has_room || self.shared.stopped.load(Ordering::Acquire) {
                return;
            }
            if self.ready(host).is_none() {
                return;
            }
            let mut life = self.shared.life.lock();
            let acked = life.acked;
            if self.unacked.front().is_some_and(|(seq, _)| *seq > acked) {
                self.shared.news.wait_for(&mut life, POLL);
            }
        }
    }

    fn send(&mut self, lines: &[u8], host: &Host) {
        if self.ready(host).is_some() && !self.write(lines) {
            self.stdin = None;
            if self.spec.ack {
                // The next process gets it from the unacknowledged.
                self.ready(host);
            }
        }
    }
}

impl Plugin for Always {
    fn events(&mut self, batch: &[Delivery], host: &Host) -> Result<(), Disable> {
        self.listen(host);
        let mut lines = Vec::new();
        for delivery in batch {
            let from = lines.len();
            delivery.write_json(&mut lines);
            if self.spec.ack {
                self.wait_for_window(host);
                let line = lines.split_off(from);
                self.unacked_bytes += line.len();
                self.unacked.push_back((delivery.seq, line.clone()));
                self.send(&line, host);
            }
        }
        if !lines.is_empty() {
            self.send(&lines, host);
        }
        Ok(())
    }

    fn idle(&mut self, host: &Host) -> Result<(), Disable> {
        self.listen(host);
        if self.has_died(host) {
            self.restart(host);
        }
        Ok(())
    }

    fn finish(&mut self, seq: u64, lost: u64, host: &Host) {
        if lost > 0 {
            let mut gap = Vec::new();
            write_gap(&mut gap, seq, lost);
            self.write(&gap);
        }
        // It is given all it has not dealt with, as long as the mount waits.
        while self.spec.ack && !self.unacked.is_empty() {
            if self.ready(host).is_none() {
                break;
            }
            self.forget_acked();
            std::thread::sleep(POLL);
        }
        // End of file is the sign that all is over. Whoever waits for us calls the stopper when this takes long.
        self.stdin = None;
        while !self.has_died(host) {
            std::thread::sleep(POLL);
        }
    }

    fn stopper(&self) -> Option<Arc<dyn Stopper>> {
        Some(self.shared.clone())
    }
}

impl Drop for Always {
    fn drop(&mut self) {
        self.shared.stop();
        if let Some(child) = &mut self.shared.life.lock().child {
            // Killed just now.
            let _ = child.wait();
        }
    }
}
