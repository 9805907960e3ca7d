//! Requests, told to the hooks before their answer is sent: so events are in the order in which programs see things happen.
//!
//! An event that has to wait for room in a queue (`full = "block"`) waits on an I/O worker, and the answer with it. FUSE
//! threads stay free for the files that no rule names.

use super::Face;
use crate::error::{Error, Result};
use crate::hooks::{Asked, Event, Hooks, Kind, Served};
use crate::overlay::{Caller, NodeId, Overlay, Watching};
use crate::span::Span;
use crate::workers::Pool;
use bytes::Bytes;
use fuser::{FileHandle, INodeNo, Request};
use nix::errno::Errno;
use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

/// A request that hooks are to be told of, from its arrival on.
#[derive(Clone)]
pub(super) struct Telling {
    hooks: Arc<Hooks>,
    pool: Pool,
    key: u64,
    /// For reads and writes: who wants to know.
    watching: Option<Watching>,
    by: Caller,
    begun: Instant,
    event: Event,
}

impl Telling {
    /// Tell, then go on: with `then`, which sends the answer.
    fn tell(mut self, then: impl FnOnce() + Send + 'static) {
        self.event.time = SystemTime::now();
        self.event.asked = Some(Asked {
            by: self.by,
            took: self.begun.elapsed(),
        });
        let blocked = match &self.watching {
            Some(watching) => self.hooks.moved(&watching.watch, self.event),
            None => self.hooks.tell(self.event),
        };
        match blocked {
            Some(blocked) => blocked.wait_on(&self.pool, self.key, then),
            None => then(),
        }
    }

    /// Tell of bytes that were moved, at `pos`.
    pub(super) fn moved(
        mut self,
        pos: u64,
        data: Bytes,
        served: Option<Served>,
        then: impl FnOnce() + Send + 'static,
    ) {
        self.event.span = Some(Span::new(pos, data.len() as u64));
        self.event.data = Some(data);
        self.event.served = served;
        self.tell(then);
    }
}

/// Tell of a request that went well, if anybody wants to know; then go on.
pub(super) fn told<T>(
    telling: Option<Telling>,
    result: &Result<T>,
    then: impl FnOnce() + Send + 'static,
) {
    match telling {
        Some(telling) if result.is_ok() => telling.tell(then),
        _ => then(),
    }
}

/// Tell of bytes that the source moved by itself: `pos`, and how many.
pub(super) fn told_span(
    telling: Option<Telling>,
    span: Option<Span>,
    then: impl FnOnce() + Send + 'static,
) {
    match (telling, span) {
        (Some(mut telling), Some(span)) => {
            telling.event.span = Some(span);
            telling.tell(then);
        }
        _ => then(),
    }
}

/// Looks at answers for signs that the source is in trouble.
pub(super) struct Errors(Option<(Arc<Hooks>, Arc<Overlay>, NodeId)>);

impl Errors {
    pub(super) fn look<T>(&self, answer: Result<T>) -> Result<T> {
        if let (Some((hooks, overlay, node)), Err(error)) = (&self.0, &answer)
            && is_trouble(*error)
        {
            let mut event = Event::new(Kind::Error, overlay.path(*node));
            event.error = Some(*error);
            hooks.tell_now(event);
        }
        answer
    }
}

/// An error that is no answer to the question. That a file is not there, or may not be read, is one.
fn is_trouble(error: Error) -> bool {
    error.is_unreachable() || matches!(error.errno(), Errno::ENOSPC | Errno::EDQUOT | Errno::EROFS)
}

impl Face {
    pub(super) fn tells(&self, kind: Kind) -> bool {
        self.hooks.as_ref().is_some_and(|hooks| hooks.wants(kind))
    }

    pub(super) fn errors(&self, node: INodeNo) -> Errors {
        let hooks = self.hooks.as_ref().filter(|hooks| hooks.wants(Kind::Error));
        Errors(hooks.map(|hooks| (hooks.clone(), self.overlay.clone(), NodeId(node.0))))
    }

    fn telling(
        &self,
        request: &Request,
        kind: Kind,
        node: INodeNo,
        path: Arc<Path>,
    ) -> Option<Telling> {
        let hooks = self.hooks.as_ref()?;
        Some(Telling {
            hooks: hooks.clone(),
            pool: self.patience.pool().clone(),
            key: node.0,
            watching: None,
            by: super::caller(request),
            begun: Instant::now(),
            event: Event::new(kind, path),
        })
    }

    /// A read from or a write to an open file, if a rule names it.
    pub(super) fn telling_of_bytes(
        &self,
        request: &Request,
        kind: Kind,
        node: INodeNo,
        handle: FileHandle,
    ) -> Option<Telling> {
        if !self.tells(kind) {
            return None;
        }
        let watching = self.overlay.watching(handle.0)?;
        let wanted = match kind {
            Kind::Read => watching.watch.reads(),
            _ => watching.watch.writes(),
        };
        if !wanted {
            return None;
        }
        let mut telling = self.telling(request, kind, node, watching.path.clone())?;
        telling.watching = Some(watching);
        Some(telling)
    }

    /// Something done to a file.
    pub(super) fn telling_of(
        &self,
        request: &Request,
        kind: Kind,
        node: INodeNo,
    ) -> Option<Telling> {
        if !self.tells(kind) {
            return None;
        }
        let path = self.overlay.path(NodeId(node.0));
        self.telling(request, kind, node, path.into())
    }

    /// A size that was set.
    pub(super) fn telling_of_size(
        &self,
        request: &Request,
        node: INodeNo,
        size: Option<u64>,
    ) -> Option<Telling> {
        let mut telling = self.telling_of(request, Kind::Truncate, node)?;
        telling.event.span = Some(Span::new(0, size?));
        Some(telling)
    }

    /// Something done to a name.
    pub(super) fn telling_of_name(
        &self,
        request: &Request,
        kind: Kind,
        at: (INodeNo, &OsStr),
    ) -> Option<Telling> {
        if !self.tells(kind) {
            return None;
        }
        let path = self.overlay.path(NodeId(at.0.0)).join(at.1);
        self.telling(request, kind, at.0, path.into())
    }

    /// A rename.
    pub(super) fn telling_of_rename(
        &self,
        request: &Request,
        from: (INodeNo, &OsStr),
        to: (INodeNo, &OsStr),
    ) -> Option<Telling> {
        let mut telling = self.telling_of_name(request, Kind::Rename, from)?;
        let path = self.overlay.path(NodeId(to.0.0)).join(to.1);
        telling.event.to = Some(path.into());
        Some(telling)
    }
}
