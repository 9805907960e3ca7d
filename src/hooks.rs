//! Hooks: what happens on a mount is told to plugins, which may answer.
//!
//! A [`Rule`] says which events of which files go to which plugin. Each plugin has a bounded queue (crossbeam) and a worker
//! thread; it logs events (`log`), hands them to a program (`command`) or a sandboxed module (`wasm`), or is a
//! [`Plugin`] of the program that uses this library, for instance a closure. What it answers are [`Action`]s.
//!
//! Promises:
//! * **Order.** Events of one file reach a plugin in the order in which they happened: an event is in the queue before the
//!   program that caused it gets its answer. Events of requests that were under way at the same time have no order.
//! * **Nothing is lost in silence.** Each event that a plugin should have had is delivered, or counted in a gap that
//!   stands where it would have stood.
//! * **Who is not named pays nothing.** Without a rule that matches, a file is opened and read as if there were no hooks.
//!   A rule is applied to the name that the file has when it is opened.
//! * **Every read.** A file that a rule for `on_read` names is opened so that the kernel's page cache does not answer in our
//!   place (`FOPEN_DIRECT_IO`); only pages that are mapped (mmap) are read once for all. A read of more than 1 MiB
//!   arrives in parts, because the kernel sends it so.
//! * **With `drop`, no program waits for a plugin**; with `block`, at most for the time that the rule says.
//! * **A plugin can do no harm.** One that fails is restarted or disabled; one that hangs is ended with the mount, after
//!   [`STOP`].
//!
//! What it does not do: it does not change or refuse what programs do, and it reports nothing that happens in the source
//! without the mount, except that a cached file turned out to be stale.

pub mod action;
mod command;
pub mod event;
mod log;
pub mod plugin;
pub mod queue;
pub mod rules;
pub mod trial;
#[cfg(feature = "wasm")]
mod wasm;

pub use action::Action;
pub use event::{Asked, Delivery, EVENTS, Event, Kind, Served};
pub use plugin::{Act, Disable, Host, Plugin};
pub use queue::{Counts, Full};
pub use rules::{Config, Rule, Wrong};

use crate::workers::Pool;
use plugin::Worker;
use smallvec::SmallVec;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long the end of a mount waits for plugins to deal with what they have: long enough for a log and a well-behaved
/// program, short enough for a person.
pub const STOP: Duration = Duration::from_secs(3);

/// How long it waits once more for those that it had to end.
const GRACE: Duration = Duration::from_millis(500);

/// All rules of a mount and the plugins that they feed.
pub struct Hooks {
    rules: Vec<Rule>,
    workers: Vec<Worker>,
    wanted: u16,
}

/// Who wants to know of the events of one kind of one file: numbers of rules.
type Targets = SmallVec<[u16; 2]>;

/// Who wants to know what is read from and written to an open file.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Watch {
    read: Targets,
    write: Targets,
}

impl Watch {
    /// Must every read reach us?
    pub fn reads(&self) -> bool {
        !self.read.is_empty()
    }

    /// Does anybody want to know of writes?
    pub fn writes(&self) -> bool {
        !self.write.is_empty()
    }
}

/// What a plugin's queue saw, for those who want to know.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// The plugin's name.
    pub plugin: String,
    /// How often it did something wrong, and was not disabled for it.
    pub complaints: u64,
    /// Why it was disabled, if it was.
    pub disabled: Option<String>,
    /// Its events.
    pub counts: Counts,
}

/// A plugin before it runs: its name, itself, and how many events and bytes of data may wait for it.
pub type Ready = (String, Box<dyn Plugin>, (usize, usize));

/// Rules, and the plugins that they lead to, before they run.
#[derive(Default)]
pub struct Setup {
    /// The rules; each has the number of its plugin.
    pub rules: Vec<Rule>,
    /// The plugins.
    pub plugins: Vec<Ready>,
}

impl Setup {
    /// No rule at all?
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Add a plugin and the rule that leads to it.
    pub fn plugin(&mut self, name: &str, mut rule: Rule, plugin: impl Plugin) {
        rule.plugin = self.plugins.len();
        self.rules.push(rule);
        let queue = (rules::QUEUE_EVENTS, rules::QUEUE_BYTES as usize);
        self.plugins
            .push((name.to_owned(), Box::new(plugin), queue));
    }
}

impl Hooks {
    /// Start. `act` does what the plugins ask for.
    pub fn start(setup: Setup, act: &Arc<dyn Act>) -> Result<Hooks, Wrong> {
        let Setup { rules, plugins } = setup;
        if rules.len() > usize::from(u16::MAX) {
            return Err(Wrong("too many hook rules".into()));
        }
        if let Some(rule) = rules.iter().find(|rule| rule.plugin >= plugins.len()) {
            return Err(Wrong(format!("there is no plugin number {}", rule.plugin)));
        }
        let mut workers = Vec::new();
        for (name, plugin, queue) in plugins {
            let worker = Worker::start(plugin, Host::new(&name, act.clone()), queue);
            workers.push(worker.map_err(|error| Wrong(format!("cannot start a thread: {error}")))?);
        }
        let kinds = rules.iter().flat_map(|rule| &rule.events);
        let wanted = kinds.fold(0, |bits, kind| bits | bit(*kind));
        Ok(Hooks {
            rules,
            workers,
            wanted,
        })
    }

    /// Does any rule want such events?
    pub fn wants(&self, kind: Kind) -> bool {
        self.wanted & bit(kind) != 0
    }

    /// Who wants to know what is done with the file; `None` when nobody does.
    pub fn watch(&self, path: &Path) -> Option<Arc<Watch>> {
        let watch = Watch {
            read: self.targets(Kind::Read, path),
            write: self.targets(Kind::Write, path),
        };
        (watch != Watch::default()).then(|| Arc::new(watch))
    }

    /// The rules that want such an event of that file; of several that lead to one plugin, the first.
    fn targets(&self, kind: Kind, path: &Path) -> Targets {
        let mut targets = Targets::new();
        if !self.wants(kind) {
            return targets;
        }
        for (number, rule) in self.rules.iter().enumerate() {
            let has = |number: &u16| self.rules[usize::from(*number)].plugin == rule.plugin;
            if rule.events.contains(&kind) && !targets.iter().any(has) && rule.matches(path) {
                targets.push(number as u16);
            }
        }
        targets
    }

    /// Tell of what was read from or written to a watched file. What is given back has to be waited with.
    pub fn moved(&self, watch: &Watch, event: Event) -> Option<Blocked> {
        let targets = if event.kind == Kind::Read {
            &watch.read
        } else {
            &watch.write
        };
        self.offer(targets, event)
    }

    /// Tell of anything else, to whom it may concern.
    pub fn tell(&self, event: Event) -> Option<Blocked> {
        let mut targets = self.targets(event.kind, &event.path);
        if let Some(to) = &event.to {
            // A rename into the realm of a rule concerns it as well.
            for target in self.targets(event.kind, to) {
                let plugin = |number: u16| self.rules[usize::from(number)].plugin;
                if !targets.iter().any(|other| plugin(*other) == plugin(target)) {
                    targets.push(target);
                }
            }
        }
        self.offer(&targets, event)
    }

    /// As [`Hooks::tell`], where nobody can wait: what finds a full queue is lost.
    pub fn tell_now(&self, event: Event) {
        for (worker, _, event) in self.tell(event).into_iter().flat_map(|blocked| blocked.0) {
            worker.offer(event, Full::Drop);
        }
    }

    fn offer(&self, targets: &[u16], event: Event) -> Option<Blocked> {
        let mut blocked = Blocked(SmallVec::new());
        for target in targets {
            let rule = &self.rules[usize::from(*target)];
            let mut event = event.clone();
            event.data = event.data.filter(|_| rule.data_max > 0).map(|data| {
                let size = data.len().min(rule.data_max);
                data.slice(..size)
            });
            let queue = &self.workers[rule.plugin].queue;
            if let Some(event) = queue.offer(event, rule.full)
                && let Full::Block(patience) = rule.full
            {
                blocked.0.push((queue.clone(), patience, event));
            }
        }
        (!blocked.0.is_empty()).then_some(blocked)
    }

    /// Send an event by one rule, whatever it is about.
    fn send_by(&self, rule: &Rule, event: Event) -> Option<Blocked> {
        let same = |other: &Rule| other.plugin == rule.plugin && other.events == rule.events;
        let number = self.rules.iter().position(same)?;
        self.offer(&[number as u16], event)
    }

    /// Files are to be opened again (SIGHUP).
    pub fn reopen(&self) {
        self.workers.iter().for_each(Worker::reopen);
    }

    /// What each queue saw.
    pub fn reports(&self) -> Vec<Report> {
        let report = |worker: &Worker| Report {
            plugin: worker.name.clone(),
            complaints: worker.host.complaints(),
            disabled: worker.host.disabled(),
            counts: worker.queue.counts(),
        };
        self.workers.iter().map(report).collect()
    }

    /// No more events: let the plugins deal with what they have, for `patience` at most; then end them.
    pub fn stop(&self, patience: Duration) {
        self.workers.iter().for_each(Worker::end);
        let deadline = Instant::now() + patience;
        for worker in &self.workers {
            if !worker.stop(deadline, GRACE) {
                tracing::warn!("plugin {} hangs, and is left behind", worker.name);
            }
            let counts = worker.queue.counts();
            if counts.lost > 0 {
                tracing::warn!(
                    "plugin {}: {} events delivered, {} lost",
                    worker.name,
                    counts.delivered,
                    counts.lost
                );
            } else {
                tracing::info!(
                    "plugin {}: {} events delivered",
                    worker.name,
                    counts.delivered
                );
            }
        }
    }
}

impl Drop for Hooks {
    fn drop(&mut self) {
        self.workers.iter().for_each(Worker::end);
    }
}

fn bit(kind: Kind) -> u16 {
    1 << kind as u16
}

/// Events that found a full queue whose rule says `block`.
#[must_use = "an event that is not waited with is lost without being counted"]
pub struct Blocked(SmallVec<[(Arc<queue::Queue>, Duration, Event); 1]>);

impl Blocked {
    /// Wait for room, as long as each rule says.
    pub fn wait(self) {
        for (queue, patience, event) in self.0 {
            queue.wait(event, Instant::now() + patience);
        }
    }

    /// Wait on a worker, then go on there.
    pub fn wait_on(self, pool: &Pool, key: u64, then: impl FnOnce() + Send + 'static) {
        pool.submit(key, move || {
            self.wait();
            then();
        });
    }
}

#[cfg(test)]
mod tests;
