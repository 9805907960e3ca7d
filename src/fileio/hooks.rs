//! Hooks of a stream: what is called after each read and write, in the order in which it was registered.
//!
//! A hook gets `(facts of the stream, the bytes, their number)`. The bytes are shared, not copied. A hook that
//! panics is reported in the log and changes nothing for the stream or the other hooks.

use super::Error;
use bytes::Bytes;
use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
#[cfg(feature = "async")]
use std::{future::Future, pin::Pin};

/// Names of the events that a stream's hooks can be registered for.
pub const VALID_EVENTS: [&str; 2] = [Event::Read.as_str(), Event::Write.as_str()];

/// What happened to a stream.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Event {
    /// Bytes were read, from the cache or from the file.
    Read,
    /// Bytes were written, and are in the file.
    Write,
}

impl Event {
    /// Its name in [`VALID_EVENTS`].
    pub const fn as_str(self) -> &'static str {
        match self {
            Event::Read => "on_read",
            Event::Write => "on_write",
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Event {
    type Err = Error;

    fn from_str(name: &str) -> Result<Event, Error> {
        [Event::Read, Event::Write]
            .into_iter()
            .find(|event| event.as_str() == name)
            .ok_or_else(|| Error::UnknownEvent(name.to_owned()))
    }
}

/// The stream, as a hook is told of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Facts {
    /// What happened.
    pub event: Event,
    /// The stream's path.
    pub path: Arc<Path>,
    /// Offset of the first of the bytes in the file.
    pub pos: u64,
}

type Call = dyn Fn(&Facts, &Bytes, usize) + Send + Sync;
#[cfg(feature = "async")]
type Running = Pin<Box<dyn Future<Output = ()> + Send>>;
#[cfg(feature = "async")]
type Start = dyn Fn(Facts, Bytes, usize) -> Running + Send + Sync;

/// A hook: a closure, or one that returns a future.
#[derive(Clone)]
pub(super) enum Hook {
    Call(Arc<Call>),
    #[cfg(feature = "async")]
    Start(Arc<Start>),
}

impl Hook {
    pub(super) fn call(f: impl Fn(&Facts, &Bytes, usize) + Send + Sync + 'static) -> Hook {
        Hook::Call(Arc::new(f))
    }

    #[cfg(feature = "async")]
    pub(super) fn start<F, R>(f: F) -> Hook
    where
        F: Fn(Facts, Bytes, usize) -> R + Send + Sync + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        Hook::Start(Arc::new(move |facts, data, count| {
            Box::pin(f(facts, data, count))
        }))
    }
}

/// All hooks of a stream.
#[derive(Clone, Default)]
pub(super) struct Hooks {
    on_read: Vec<Hook>,
    on_write: Vec<Hook>,
}

impl Hooks {
    pub(super) fn add(&mut self, event: Event, hook: Hook) {
        match event {
            Event::Read => self.on_read.push(hook),
            Event::Write => self.on_write.push(hook),
        }
    }

    fn of(&self, event: Event) -> &[Hook] {
        match event {
            Event::Read => &self.on_read,
            Event::Write => &self.on_write,
        }
    }

    pub(super) fn is_empty(&self, event: Event) -> bool {
        self.of(event).is_empty()
    }

    /// Would [`Hooks::await_all`] have to wait for anything?
    #[cfg(feature = "async")]
    pub(super) fn has_async(&self, event: Event) -> bool {
        let is_async = |hook: &Hook| matches!(hook, Hook::Start(_));
        self.of(event).iter().any(is_async)
    }

    /// From a synchronous stream: closures are called here; futures are spawned on the runtime that is running, or
    /// run to their end when there is none.
    pub(super) fn fire(&self, facts: &Facts, data: &Bytes) {
        for hook in self.of(facts.event) {
            match hook {
                Hook::Call(f) => call(&**f, facts, data),
                #[cfg(feature = "async")]
                Hook::Start(f) => launch(f.clone(), facts.clone(), data.clone()),
            }
        }
    }

    /// From an asynchronous stream: one after another, each awaited.
    #[cfg(feature = "async")]
    pub(super) async fn await_all(&self, facts: &Facts, data: &Bytes) {
        for hook in self.of(facts.event) {
            match hook {
                Hook::Call(f) => call(&**f, facts, data),
                Hook::Start(f) => run(f.clone(), facts.clone(), data.clone()).await,
            }
        }
    }
}

impl fmt::Debug for Hooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hooks")
            .field("on_read", &self.on_read.len())
            .field("on_write", &self.on_write.len())
            .finish()
    }
}

fn call(f: &Call, facts: &Facts, data: &Bytes) {
    // Unwind safe: neither the stream nor the cache is borrowed by a hook.
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| f(facts, data, data.len()))) {
        report(facts, &*panic);
    }
}

/// The hook's future, with its panics caught.
#[cfg(feature = "async")]
async fn run(f: Arc<Start>, facts: Facts, data: Bytes) {
    let count = data.len();
    let begun = catch_unwind(AssertUnwindSafe(|| f(facts.clone(), data, count)));
    let outcome = match begun {
        Ok(mut running) => {
            std::future::poll_fn(|cx| {
                match catch_unwind(AssertUnwindSafe(|| running.as_mut().poll(cx))) {
                    Ok(poll) => poll.map(Ok),
                    Err(panic) => std::task::Poll::Ready(Err(panic)),
                }
            })
            .await
        }
        Err(panic) => Err(panic),
    };
    if let Err(panic) = outcome {
        report(&facts, &*panic);
    }
}

#[cfg(feature = "async")]
fn launch(f: Arc<Start>, facts: Facts, data: Bytes) {
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        drop(runtime.spawn(run(f, facts, data)));
        return;
    }
    // With timers and I/O as far as the program has compiled them in.
    match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime.block_on(run(f, facts, data)),
        Err(error) => tracing::error!(
            path = %facts.path.display(), event = %facts.event,
            "a hook was not run: cannot start a runtime for it: {error}"
        ),
    }
}

fn report(facts: &Facts, panic: &(dyn Any + Send)) {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no text");
    tracing::error!(
        path = %facts.path.display(), event = %facts.event, pos = facts.pos,
        "a hook panicked: {text}"
    );
}
