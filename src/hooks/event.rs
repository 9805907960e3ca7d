//! Events: what happened on a mount, and how it is written down.
//!
//! The schema, version [`SCHEMA`]: one JSON object per line. Fields are never renamed and never change their meaning
//! within a version; new ones may appear. Absent means "does not apply".
//!
//! | field | type | in | meaning |
//! |---|---|---|---|
//! | `v` | number | all | version of the schema |
//! | `seq` | number | all | number of the event at this plugin, from 1 on, without holes: lost ones are counted too |
//! | `event` | string | all | one of [`EVENTS`], or `gap` |
//! | `time` | number | all but `gap` | when it was over, seconds since 1970 (UTC), with microseconds |
//! | `path` | string | all but `gap` | below the mount point, without a leading slash; `""` is the mount point itself; what is no UTF-8 is replaced by U+FFFD |
//! | `path_bytes` | string | | base64 of the path, when it is not UTF-8 |
//! | `to`, `to_bytes` | string | `on_rename` | the new path, in the same way |
//! | `pos`, `size` | number | `on_read`, `on_write`, `on_evict` | offset and number of bytes that were moved; `on_truncate` has the new `size` |
//! | `data` | string | `on_read`, `on_write` | base64 of the bytes, as many as the rule lets travel |
//! | `from` | string | `on_read` | `memory` or `source`: where the bytes came from |
//! | `took_ns` | number | requests | nanoseconds from the request to its answer |
//! | `pid`, `uid`, `gid` | number | requests | who asked: its thread, user and group; `pid` is 0 when the kernel asked for itself |
//! | `error`, `doing` | string | `on_error` | the name of the errno, and what warmfs was doing |
//! | `lost` | number | `gap` | how many events were lost in a row, the last of them with this `seq` |

use crate::error::Error;
use crate::span::Span;
use crate::sys::Caller;
use base64::display::Base64Display;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Serialize;
use std::borrow::Cow;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Version of the schema of events and actions.
pub const SCHEMA: u32 = 1;

/// What can happen on a mount. (A stream of [`crate::fileio`] has the first two.)
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Kind {
    /// A program read, from memory or from the source.
    Read,
    /// A program wrote (or copied within the mount, or punched a hole), and it is in the source.
    Write,
    /// A file was opened.
    Open,
    /// A file, directory, link or node was made.
    Create,
    /// A name was removed.
    Remove,
    /// A name was changed.
    Rename,
    /// The size of a file was set.
    Truncate,
    /// A slot left the memory tier, to make room.
    Evict,
    /// The source had changed a file behind our back; its slots were dropped.
    Stale,
    /// The source failed.
    Error,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 10] = [
        Kind::Read,
        Kind::Write,
        Kind::Open,
        Kind::Create,
        Kind::Remove,
        Kind::Rename,
        Kind::Truncate,
        Kind::Evict,
        Kind::Stale,
        Kind::Error,
    ];

    /// Its name in [`EVENTS`].
    pub const fn as_str(self) -> &'static str {
        match self {
            Kind::Read => "on_read",
            Kind::Write => "on_write",
            Kind::Open => "on_open",
            Kind::Create => "on_create",
            Kind::Remove => "on_remove",
            Kind::Rename => "on_rename",
            Kind::Truncate => "on_truncate",
            Kind::Evict => "on_evict",
            Kind::Stale => "on_stale",
            Kind::Error => "on_error",
        }
    }
}

/// Names of all events of a mount. The first two are those of [`crate::fileio::VALID_EVENTS`].
pub const EVENTS: [&str; 10] = {
    let mut names = [""; 10];
    let mut at = 0;
    while at < names.len() {
        names[at] = Kind::ALL[at].as_str();
        at += 1;
    }
    names
};

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(name: &str) -> Result<Kind, String> {
        let kind = Kind::ALL.into_iter().find(|kind| kind.as_str() == name);
        kind.ok_or_else(|| format!("unknown event '{name}'; there are {}", EVENTS.join(", ")))
    }
}

/// Where the bytes of a read came from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Served {
    /// All of them were cached.
    Memory,
    /// Some of them had to be fetched.
    Source,
}

/// A request of a program: who asked, and how long the answer took.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Asked {
    /// Who.
    pub by: Caller,
    /// From the arrival of the request to its answer.
    pub took: Duration,
}

/// Something that happened.
#[derive(Clone, Debug)]
pub struct Event {
    /// What.
    pub kind: Kind,
    /// To which file, below the mount point.
    pub path: Arc<Path>,
    /// Its new name (`on_rename`).
    pub to: Option<Arc<Path>>,
    /// The bytes that were moved or evicted.
    pub span: Option<Span>,
    /// The bytes themselves, as far as the rule lets them travel.
    pub data: Option<Bytes>,
    /// Where they came from (`on_read`).
    pub served: Option<Served>,
    /// The request, when there was one.
    pub asked: Option<Asked>,
    /// What went wrong (`on_error`).
    pub error: Option<Error>,
    /// When it was over.
    pub time: SystemTime,
}

impl Event {
    /// An event of now, with nothing but a path.
    pub fn new(kind: Kind, path: impl Into<Arc<Path>>) -> Event {
        Event {
            kind,
            path: path.into(),
            to: None,
            span: None,
            data: None,
            served: None,
            asked: None,
            error: None,
            time: SystemTime::now(),
        }
    }
}

/// An event on its way to one plugin.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// Its number at this plugin.
    pub seq: u64,
    /// How many were lost right before it.
    pub lost: u64,
    /// What happened.
    pub event: Event,
}

impl Delivery {
    /// Append it as a line of JSON, after a line for the gap before it.
    pub fn write_json(&self, lines: &mut Vec<u8>) {
        if self.lost > 0 {
            write_gap(lines, self.seq - 1, self.lost);
        }
        let event = &self.event;
        let (path, path_bytes) = text(&event.path);
        let (to, to_bytes) = event.to.as_deref().map_or((None, None), |to| {
            let (text, bytes) = text(to);
            (Some(text), bytes)
        });
        let time = event.time.duration_since(UNIX_EPOCH).unwrap_or_default();
        append(
            lines,
            &Line {
                v: SCHEMA,
                seq: self.seq,
                event: event.kind.as_str(),
                // Microseconds are what a double can hold for the next centuries.
                time: time.as_micros() as f64 / 1e6,
                path,
                path_bytes,
                to,
                to_bytes,
                pos: event
                    .span
                    .filter(|_| event.kind != Kind::Truncate)
                    .map(|span| span.pos),
                size: event.span.map(|span| span.size),
                from: event.served.map(|served| match served {
                    Served::Memory => "memory",
                    Served::Source => "source",
                }),
                took_ns: event.asked.map(|asked| asked.took.as_nanos() as u64),
                pid: event.asked.map(|asked| asked.by.pid),
                uid: event.asked.map(|asked| asked.by.uid),
                gid: event.asked.map(|asked| asked.by.gid),
                error: event.error.map(|error| Shown(error.errno())),
                doing: event.error.map(Error::doing),
                data: event.data.as_deref().map(Base64),
            },
        );
    }
}

/// Append the line that says that `lost` events in a row are missing, the last of them number `seq`.
pub fn write_gap(lines: &mut Vec<u8>, seq: u64, lost: u64) {
    append(
        lines,
        &Gap {
            v: SCHEMA,
            seq,
            event: "gap",
            lost,
        },
    );
}

fn append(lines: &mut Vec<u8>, line: &impl Serialize) {
    let before = lines.len();
    // Numbers and strings into memory: nothing of that can fail. If it did, half a line must not stay.
    if serde_json::to_writer(&mut *lines, line).is_err() {
        lines.truncate(before);
        return;
    }
    lines.push(b'\n');
}

#[derive(Serialize)]
struct Line<'a> {
    v: u32,
    seq: u64,
    event: &'static str,
    time: f64,
    path: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_bytes: Option<Base64<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    to_bytes: Option<Base64<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pos: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    took_ns: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Shown<nix::errno::Errno>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    doing: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Base64<'a>>,
}

#[derive(Serialize)]
struct Gap {
    v: u32,
    seq: u64,
    event: &'static str,
    lost: u64,
}

/// Bytes as base64 text, without a copy in between.
struct Base64<'a>(&'a [u8]);

impl Serialize for Base64<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&Base64Display::new(self.0, &STANDARD))
    }
}

/// The name of an errno, like `EIO`.
struct Shown<T>(T);

impl<T: fmt::Debug> Serialize for Shown<T> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:?}", self.0))
    }
}

fn text(path: &Path) -> (Cow<'_, str>, Option<Base64<'_>>) {
    match path.to_str() {
        Some(text) => (Cow::Borrowed(text), None),
        None => (
            path.to_string_lossy(),
            Some(Base64(path.as_os_str().as_bytes())),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;

    fn json(delivery: &Delivery) -> Vec<serde_json::Value> {
        let mut lines = Vec::new();
        delivery.write_json(&mut lines);
        let lines = String::from_utf8(lines).expect("JSON is UTF-8");
        let parse = |line| serde_json::from_str(line).expect("a JSON object");
        lines.lines().map(parse).collect()
    }

    #[test]
    fn names_lead_back_to_their_events() {
        for (kind, name) in Kind::ALL.into_iter().zip(EVENTS) {
            assert_eq!(name.parse(), Ok(kind));
        }
        assert_eq!(EVENTS[..2], ["on_read", "on_write"]);
        let error = "on_reed".parse::<Kind>().expect_err("unknown");
        assert!(
            error.contains("on_reed") && error.contains("on_evict"),
            "{error}"
        );
    }

    #[test]
    fn a_line_has_what_applies_and_nothing_else() {
        let mut event = Event::new(Kind::Read, Path::new("a/b"));
        event.span = Some(Span::new(4, 3));
        event.data = Some(Bytes::from_static(b"xyz"));
        event.served = Some(Served::Memory);
        event.time = UNIX_EPOCH + Duration::from_micros(1_764_039_600_123_456);
        let lines = json(&Delivery {
            seq: 9,
            lost: 2,
            event,
        });
        assert_eq!(
            lines[0],
            serde_json::json!({"v": 1, "seq": 8, "event": "gap", "lost": 2})
        );
        assert_eq!(
            lines[1],
            serde_json::json!({"v": 1, "seq": 9, "event": "on_read", "time": 1_764_039_600.123_456_f64,
                "path": "a/b", "pos": 4, "size": 3, "from": "memory", "data": "eHl6"})
        );
    }

    #[test]
    fn a_path_that_is_not_text_survives() {
        let name = OsStr::from_bytes(b"caf\xe9\n.txt");
        let lines = json(&Delivery {
            seq: 1,
            lost: 0,
            event: Event::new(Kind::Open, Path::new(name)),
        });
        assert_eq!(lines.len(), 1);
        assert_eq!(lines[0]["path"], "caf\u{fffd}\n.txt");
        use base64::Engine;
        let bytes = STANDARD
            .decode(lines[0]["path_bytes"].as_str().expect("text"))
            .expect("base64");
        assert_eq!(bytes, name.as_bytes());
    }
}
