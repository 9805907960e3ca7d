//! Single flight: several readers of one gap share one read of the source.
//!
//! A flight belongs to the generation in which it began. A reader joins only a flight of the record's
//! current generation (clause 4 of the coherence rule): one from before a finished write may bring bytes
//! from before that write.

use crate::error::{Error, Result};
use crate::span::Span;
use bytes::Bytes;
use nix::errno::Errno;
use parking_lot::{Condvar, Mutex};
use std::sync::atomic::{AtomicBool, Ordering};

/// A read of the source that is under way.
#[derive(Debug)]
pub struct Flight {
    span: Span,
    /// It was begun ahead of any reader: what it meets at the source is nobody's error yet.
    is_ahead: bool,
    joined: AtomicBool,
    outcome: Mutex<Option<Result<Bytes>>>,
    landed: Condvar,
}

impl Flight {
    pub(super) fn new(span: Span, is_ahead: bool) -> Flight {
        Flight {
            span,
            is_ahead,
            joined: AtomicBool::new(false),
            outcome: Mutex::new(None),
            landed: Condvar::new(),
        }
    }

    /// What is being read.
    pub fn span(&self) -> Span {
        self.span
    }

    /// Was it begun ahead of any reader?
    pub fn is_ahead(&self) -> bool {
        self.is_ahead
    }

    /// A reader waits for it.
    pub(super) fn join(&self) {
        self.joined.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_joined(&self) -> bool {
        self.joined.load(Ordering::Relaxed)
    }

    pub(super) fn land(&self, outcome: Result<Bytes>) {
        let mut slot = self.outcome.lock();
        if slot.is_none() {
            *slot = Some(outcome);
            self.landed.notify_all();
        }
    }

    /// Wait until the read came back; bytes from `pos` on, empty when the file ended before it.
    pub fn wait(&self, pos: u64) -> Result<Bytes> {
        let mut outcome = self.outcome.lock();
        while outcome.is_none() {
            self.landed.wait(&mut outcome);
        }
        let bytes = outcome
            .clone()
            .unwrap_or(Err(Error::new(Errno::EIO, "read")))?;
        let skip = (pos - self.span.pos) as usize;
        Ok(bytes.slice(skip.min(bytes.len())..))
    }
}
