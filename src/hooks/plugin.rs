//! What a plugin is, and the worker that runs one.
//!
//! Each plugin has a queue and a thread of its own, so a slow one delays no other, and events reach it in order. At the
//! end of a mount it is given what its queue still holds, then [`Plugin::finish`]; [`Worker::stop`] waits for that no
//! longer than it is told to, then calls [`Stopper::stop`], and then leaves the thread behind.

use super::action::Action;
use super::event::Delivery;
use super::queue::{Queue, Took};
use crossbeam_channel::{Receiver, RecvTimeoutError};
use parking_lot::Mutex;
use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Most events that are handed over at once: enough to make one write of many small ones, few enough to be handed
/// back soon.
const BATCH_MAX: usize = 256;

/// How often a plugin that gets no events is given a chance to look after itself.
const TICK: Duration = Duration::from_millis(250);

/// While events keep coming, the worker looks for them this often instead of being woken for each: waking a thread costs
/// the one who reads or writes more than all the rest of telling (4 KiB reads past the page cache took a fifth longer).
/// The first event after a pause of [`LULL`] is taken at once.
const LINGER: Duration = Duration::from_millis(1);
const LULL: Duration = Duration::from_millis(10);

/// Shorter queues could be full by then.
const LINGER_QUEUE: usize = 1024;

/// Bad lines and bad actions that are logged one by one, in each [`REPORTS_PER`]; the rest of them is counted.
const REPORTS_MAX: u64 = 10;
const REPORTS_PER: Duration = Duration::from_secs(10);

/// Acts on events. Called from one thread, in the order in which the events of each file happened.
pub trait Plugin: Send + 'static {
    /// Take some events, at least one. An error disables the plugin; the mount goes on.
    fn events(&mut self, batch: &[Delivery], host: &Host) -> Result<(), Disable>;

    /// Nothing waits at the moment. Called after each batch that emptied the queue, and now and then.
    fn idle(&mut self, host: &Host) -> Result<(), Disable> {
        let _ = host;
        Ok(())
    }

    /// Open files again: they may have been moved away (SIGHUP).
    fn reopen(&mut self) {}

    /// The mount ends. `seq` is the number of the last event that was offered, `lost` how many up to it were lost
    /// since the last that was delivered.
    fn finish(&mut self, seq: u64, lost: u64, host: &Host) {
        let _ = (seq, lost, host);
    }

    /// What ends a call of this plugin that hangs.
    fn stopper(&self) -> Option<Arc<dyn Stopper>> {
        None
    }
}

/// Ends what a plugin is waiting for. Called from another thread.
pub trait Stopper: Send + Sync {
    /// The mount wants to end.
    fn stop(&self);
}

/// A plugin cannot go on, and why.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Disable(pub String);

impl fmt::Display for Disable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A closure is a plugin: it is called with each event.
impl<F: FnMut(&Delivery, &Host) + Send + 'static> Plugin for F {
    fn events(&mut self, batch: &[Delivery], host: &Host) -> Result<(), Disable> {
        for delivery in batch {
            self(delivery, host);
        }
        Ok(())
    }
}

/// Carries out actions. The mount does; a test may only write them down.
pub trait Act: Send + Sync + 'static {
    /// Do it, or see to it that it is done; `fail` is called with one line when it cannot be. Waits for no more than room
    /// among the actions that are under way.
    fn act(&self, action: &Action, fail: Box<dyn FnOnce(String) + Send>);
}

/// What surrounds a plugin: its name, and the way back to the mount. Cheap to clone.
#[derive(Clone)]
pub struct Host(Arc<Inner>);

struct Inner {
    name: String,
    act: Arc<dyn Act>,
    stopping: AtomicBool,
    began: Instant,
    /// The period that `reported` counts in.
    period: AtomicU64,
    reported: AtomicU64,
    complaints: AtomicU64,
    disabled: Mutex<Option<String>>,
}

impl Host {
    /// For a plugin of this name.
    pub fn new(name: &str, act: Arc<dyn Act>) -> Host {
        Host(Arc::new(Inner {
            name: name.to_owned(),
            act,
            stopping: AtomicBool::new(false),
            began: Instant::now(),
            period: AtomicU64::new(0),
            reported: AtomicU64::new(0),
            complaints: AtomicU64::new(0),
            disabled: Mutex::default(),
        }))
    }

    /// The plugin's name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Does the mount end?
    pub fn is_stopping(&self) -> bool {
        self.0.stopping.load(Ordering::Acquire)
    }

    /// Do what the plugin asks for. What goes wrong is logged, and changes nothing.
    pub fn act(&self, action: &Action) {
        let (host, shown) = (self.clone(), action.to_string());
        let fail = move |error| host.report(format_args!("{shown}: {error}"));
        self.0.act.act(action, Box::new(fail));
    }

    /// A line that the plugin wrote: an action to be done, or the number of an acknowledgement.
    pub fn line(&self, line: &[u8]) -> Option<u64> {
        match Action::parse(line) {
            Ok(Action::Ack(seq)) => return Some(seq),
            Ok(action) => self.act(&action),
            Err(error) => {
                let shown = String::from_utf8_lossy(&line[..line.len().min(200)]);
                self.report(format_args!("line {shown:?}: {error}"));
            }
        }
        None
    }

    pub(super) fn complaints(&self) -> u64 {
        self.0.complaints.load(Ordering::Relaxed)
    }

    pub(super) fn disabled(&self) -> Option<String> {
        self.0.disabled.lock().clone()
    }

    /// Log what a plugin did wrong; not more than some in each period, because a plugin may do nothing else.
    pub fn report(&self, what: fmt::Arguments<'_>) {
        self.0.complaints.fetch_add(1, Ordering::Relaxed);
        let period = self.0.began.elapsed().as_secs() / REPORTS_PER.as_secs() + 1;
        if self.0.period.swap(period, Ordering::Relaxed) != period {
            let before = self.0.reported.swap(0, Ordering::Relaxed);
            if before > REPORTS_MAX {
                tracing::warn!(
                    "plugin {}: {} more were not logged",
                    self.name(),
                    before - REPORTS_MAX
                );
            }
        }
        if self.0.reported.fetch_add(1, Ordering::Relaxed) < REPORTS_MAX {
            tracing::warn!("plugin {}: {what}", self.name());
        }
    }
}

/// A plugin that runs on its own thread.
pub(super) struct Worker {
    pub(super) name: String,
    pub(super) queue: Arc<Queue>,
    pub(super) host: Host,
    stopper: Option<Arc<dyn Stopper>>,
    reopen: Arc<AtomicBool>,
    ended: Receiver<()>,
}

impl Worker {
    pub(super) fn start(
        plugin: Box<dyn Plugin>,
        host: Host,
        (events_max, bytes_max): (usize, usize),
    ) -> std::io::Result<Worker> {
        let (queue, taker) = Queue::new(events_max, bytes_max);
        let queue = Arc::new(queue);
        let (end, ended) = crossbeam_channel::bounded::<()>(0);
        let worker = Worker {
            name: host.name().to_owned(),
            queue: queue.clone(),
            host: host.clone(),
            stopper: plugin.stopper(),
            reopen: Arc::default(),
            ended,
        };
        let reopen = worker.reopen.clone();
        std::thread::Builder::new()
            .name("warmfs-plugin".into())
            .spawn(move || {
                let mut running = Running {
                    plugin: Some(plugin),
                    host,
                    queue,
                };
                running.run(&taker, &reopen);
                drop(end);
            })?;
        Ok(worker)
    }

    pub(super) fn reopen(&self) {
        self.reopen.store(true, Ordering::Release);
    }

    /// No more events from now on.
    pub(super) fn end(&self) {
        self.host.0.stopping.store(true, Ordering::Release);
        self.queue.end();
    }

    /// Wait until it has dealt with all it has; false when it did not come to an end.
    pub(super) fn stop(&self, deadline: Instant, grace: Duration) -> bool {
        let has_ended = |until| {
            let outcome = self.ended.recv_deadline(until);
            outcome != Err(RecvTimeoutError::Timeout)
        };
        if has_ended(deadline) {
            return true;
        }
        self.queue.close();
        if let Some(stopper) = &self.stopper {
            stopper.stop();
        }
        has_ended(Instant::now() + grace)
    }
}

struct Running {
    /// Gone when it was disabled.
    plugin: Option<Box<dyn Plugin>>,
    host: Host,
    queue: Arc<Queue>,
}

impl Running {
    fn run(&mut self, taker: &super::queue::Taker, reopen: &AtomicBool) {
        let mut batch = Vec::with_capacity(BATCH_MAX);
        let mut wait = Duration::ZERO;
        let mut last: Option<Instant> = None;
        loop {
            if taker.capacity() >= LINGER_QUEUE
                && taker.len() < BATCH_MAX
                && last.is_some_and(|last| last.elapsed() < LULL)
                && !self.host.is_stopping()
            {
                std::thread::sleep(LINGER);
            }
            if reopen.swap(false, Ordering::AcqRel) {
                self.guarded(|plugin, _| {
                    plugin.reopen();
                    Ok(())
                });
            }
            match taker.take(&self.queue, &mut batch, BATCH_MAX, wait) {
                Took::Some => {
                    self.guarded(|plugin, host| plugin.events(&batch, host));
                    // Outside of any lock, and before anything is waited for: the data may be large.
                    batch.clear();
                    wait = Duration::ZERO;
                    last = Some(Instant::now());
                }
                Took::Nothing => {
                    self.guarded(|plugin, host| plugin.idle(host));
                    wait = TICK;
                }
                Took::End => break,
            }
        }
        let (seq, lost) = self.queue.last_gap();
        self.guarded(|plugin, host| {
            plugin.finish(seq, lost, host);
            Ok(())
        });
        self.plugin = None;
    }

    /// Call the plugin; one that fails or panics is disabled.
    fn guarded(&mut self, call: impl FnOnce(&mut dyn Plugin, &Host) -> Result<(), Disable>) {
        let Some(plugin) = &mut self.plugin else {
            return;
        };
        // Unwind safe: the plugin is not used again after a panic.
        let outcome = catch_unwind(AssertUnwindSafe(|| call(&mut **plugin, &self.host)));
        let reason = match outcome {
            Ok(Ok(())) => return,
            Ok(Err(Disable(reason))) => reason,
            Err(panic) => format!("it panicked: {}", panic_text(&*panic)),
        };
        tracing::error!(
            "plugin {} is disabled: {reason}; the mount goes on without it",
            self.host.name()
        );
        self.queue.close();
        *self.host.0.disabled.lock() = Some(reason);
        self.plugin = None;
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a message")
}
