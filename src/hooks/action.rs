//! Actions: what a plugin may answer with, one line each.
//!
//! Plain words, for scripts:
//! ```text
//! prefetch PATH            read the file into the memory tier
//! prefetch PATH<TAB>POS:SIZE      only this span of it
//! evict PATH               drop its slots, and the kernel's pages
//! invalidate PATH          forget everything about it; the source is asked again
//! pin PATH, unpin PATH     keep its slots out of eviction, or no longer
//! ack SEQ                  all events up to this number are dealt with
//! ```
//! PATH is the rest of the line as it is, blanks included. What cannot be written so (a tab, a line break, bytes that are
//! no UTF-8) is written as JSON, with the field names of the events:
//! `{"action":"prefetch","path_bytes":"Y2Fm6Q==","pos":0,"size":4096}`.
//!
//! A path is relative to the mount point; one that leads outside is refused. Actions are begun in the order in which they
//! were asked for, and go on side by side; a fetch goes on while the next event is told.

use crate::span::Span;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

/// What a plugin wants done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// Read a span of the file, or as much of it as is sensible, into the memory tier.
    Prefetch(PathBuf, Option<Span>),
    /// Drop what is cached of the file's content.
    Evict(PathBuf),
    /// Forget what is known of it, so that the source is asked again.
    Invalidate(PathBuf),
    /// Keep its slots out of eviction, as far as the budget goes.
    Pin(PathBuf),
    /// No longer.
    Unpin(PathBuf),
    /// Events up to this number are dealt with.
    Ack(u64),
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Action::Prefetch(path, None) => write!(f, "prefetch {}", path.display()),
            Action::Prefetch(path, Some(span)) => {
                write!(f, "prefetch {}\t{}:{}", path.display(), span.pos, span.size)
            }
            Action::Evict(path) => write!(f, "evict {}", path.display()),
            Action::Invalidate(path) => write!(f, "invalidate {}", path.display()),
            Action::Pin(path) => write!(f, "pin {}", path.display()),
            Action::Unpin(path) => write!(f, "unpin {}", path.display()),
            Action::Ack(seq) => write!(f, "ack {seq}"),
        }
    }
}

/// An action written as JSON.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Json {
    action: String,
    path: Option<String>,
    path_bytes: Option<String>,
    pos: Option<u64>,
    size: Option<u64>,
    seq: Option<u64>,
}

impl Action {
    /// The action on a line, which comes without its line break.
    pub fn parse(line: &[u8]) -> Result<Action, String> {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.first() == Some(&b'{') {
            return Action::from_json(line);
        }
        let blank = line.iter().position(|byte| *byte == b' ');
        let (word, rest) = match blank {
            Some(at) => (&line[..at], &line[at + 1..]),
            None => (line, &line[line.len()..]),
        };
        let word = std::str::from_utf8(word).map_err(|_| String::from("not an action"))?;
        if word == "ack" {
            let number = std::str::from_utf8(rest)
                .ok()
                .and_then(|n| n.trim().parse().ok());
            return number
                .map(Action::Ack)
                .ok_or_else(|| "ack needs a number".into());
        }
        let (path, span) = match rest.iter().position(|byte| *byte == b'\t') {
            Some(at) => (&rest[..at], Some(parse_span(&rest[at + 1..])?)),
            None => (rest, None),
        };
        Action::of(word, OsString::from_vec(path.to_vec()), span)
    }

    fn from_json(line: &[u8]) -> Result<Action, String> {
        let json: Json = serde_json::from_slice(line).map_err(|error| error.to_string())?;
        if json.action == "ack" {
            return json
                .seq
                .map(Action::Ack)
                .ok_or_else(|| "ack needs a seq".into());
        }
        let path = match (json.path, json.path_bytes) {
            (_, Some(bytes)) => {
                let bytes = STANDARD
                    .decode(bytes)
                    .map_err(|error| format!("path_bytes: {error}"))?;
                OsString::from_vec(bytes)
            }
            (Some(path), None) => path.into(),
            (None, None) => return Err(format!("{} needs a path", json.action)),
        };
        let span = match (json.pos, json.size) {
            (None, None) => None,
            (pos, size) => Some(Span::new(pos.unwrap_or(0), size.unwrap_or(u64::MAX))),
        };
        Action::of(&json.action, path, span)
    }

    fn of(word: &str, path: OsString, span: Option<Span>) -> Result<Action, String> {
        let path = PathBuf::from(path);
        let action = match (word, span) {
            ("prefetch", span) => Action::Prefetch(path, span),
            ("evict", None) => Action::Evict(path),
            ("invalidate", None) => Action::Invalidate(path),
            ("pin", None) => Action::Pin(path),
            ("unpin", None) => Action::Unpin(path),
            ("evict" | "invalidate" | "pin" | "unpin", Some(_)) => {
                return Err(format!("{word} takes a path and nothing else"));
            }
            _ => {
                return Err(
                    "not an action; there are prefetch, evict, invalidate, pin, unpin, ack".into(),
                );
            }
        };
        action.path().map_or(Ok(()), check_path)?;
        Ok(action)
    }

    /// The file that it is about.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Action::Prefetch(path, _)
            | Action::Evict(path)
            | Action::Invalidate(path)
            | Action::Pin(path)
            | Action::Unpin(path) => Some(path),
            Action::Ack(_) => None,
        }
    }
}

/// `POS:SIZE`.
fn parse_span(text: &[u8]) -> Result<Span, String> {
    let text = std::str::from_utf8(text).unwrap_or_default();
    let numbers = text.split_once(':');
    let span =
        numbers.and_then(|(pos, size)| Some(Span::new(pos.parse().ok()?, size.parse().ok()?)));
    span.ok_or_else(|| format!("'{text}' is no span; give POS:SIZE in bytes"))
}

/// A path must lead from the mount point downwards, by names only.
fn check_path(path: &Path) -> Result<(), String> {
    if path.as_os_str().is_empty() {
        return Err("there is no path".into());
    }
    let inside = |component| matches!(component, Component::Normal(_));
    if path.components().all(inside) && !path.as_os_str().as_encoded_bytes().contains(&0) {
        return Ok(());
    }
    Err(format!(
        "'{}' is outside of the mount; give a path below it, without a leading slash and without ..",
        path.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_json_say_the_same() {
        let span = Span::new(4096, 100);
        for (line, action) in [
            (
                "prefetch a b/ü.flac",
                Action::Prefetch("a b/ü.flac".into(), None),
            ),
            (
                "prefetch a b\t4096:100",
                Action::Prefetch("a b".into(), Some(span)),
            ),
            ("evict x", Action::Evict("x".into())),
            ("invalidate x\r", Action::Invalidate("x".into())),
            ("pin x", Action::Pin("x".into())),
            ("unpin x", Action::Unpin("x".into())),
            ("ack 17", Action::Ack(17)),
            (r#"{"action":"ack","seq":17}"#, Action::Ack(17)),
            (
                r#"{"action":"pin","path":"x\ty"}"#,
                Action::Pin("x\ty".into()),
            ),
            (
                r#"{"action":"prefetch","path":"x","pos":4096,"size":100}"#,
                Action::Prefetch("x".into(), Some(span)),
            ),
        ] {
            assert_eq!(Action::parse(line.as_bytes()), Ok(action), "{line}");
        }
        let raw = Action::parse(br#"{"action":"evict","path_bytes":"Y2Fm6Q=="}"#).expect("valid");
        assert_eq!(
            raw,
            Action::Evict(OsString::from_vec(b"caf\xe9".to_vec()).into())
        );
    }

    #[test]
    fn what_leads_outside_or_says_nothing_is_refused() {
        for line in [
            "evict /etc/passwd",
            "evict ../x",
            "evict a/../../x",
            "pin .",
            "pin ",
            "pin",
            "evict a\t0:1",
            "prefetch a\tb",
            "prefetch a\t1",
            "ack x",
            "",
            "delete x",
            "{",
            r#"{"action":"pin"}"#,
            r#"{"action":"pin","path":"x","mode":1}"#,
            r#"{"action":"pin","path_bytes":"?"}"#,
            "evict a\0b",
        ] {
            assert!(Action::parse(line.as_bytes()).is_err(), "{line}");
        }
    }
}
