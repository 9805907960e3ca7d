//! The control socket: lines in, lines out.
//!
//! ```text
//! delay 20ms            wait of each request from now on
//! hang on | off         hold every request, or let all go (also those held by path or kind)
//! hang path NAME        hold requests on paths that contain NAME
//! hang kind KIND        hold requests of one kind: lookup, getattr, open, read, write, readdir ...
//! fail EIO | off        fail every request with this errno; off ends every kind of failing
//! fail after N EIO      fail all but the next N requests
//! fail kind KIND EIO    fail requests of one kind
//! short on | off        reads return, and writes take, less than asked
//! late on | off         do the work first, then wait and answer
//! xattrs on | off       files might have extended attributes, and have none: each question costs a request
//! stats                 one line of JSON: requests, bytes (also those read more than once), requests by kind
//! reset                 set the counters to zero
//! ```

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;

use crate::fs::{Control, Kind};

/// Nobody types more than this in one line.
const LINE_BYTES_MAX: u64 = 4096;

/// Listens until the process ends; the socket's file is removed when this is dropped.
pub(crate) struct Server {
    path: PathBuf,
}

impl Server {
    /// Makes the socket, in place of one that an earlier run left behind.
    pub(crate) fn start(path: &Path, control: Control) -> io::Result<Server> {
        if UnixStream::connect(path)
            .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
        {
            std::fs::remove_file(path)?;
        }
        let listener = UnixListener::bind(path)?;
        thread::Builder::new()
            .name("control".into())
            .spawn(move || {
                for client in listener.incoming().flatten() {
                    let control = control.clone();
                    // One thread each: a client that is silent must not keep the next one out.
                    let _ = thread::Builder::new()
                        .name("control".into())
                        .spawn(move || serve(client, &control));
                }
            })?;
        Ok(Server {
            path: path.to_path_buf(),
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn serve(client: UnixStream, control: &Control) -> io::Result<()> {
    let mut lines = BufReader::new(client.try_clone()?);
    let mut client = client;
    loop {
        let mut line = String::new();
        if lines.by_ref().take(LINE_BYTES_MAX).read_line(&mut line)? == 0 {
            return Ok(());
        }
        let answer = obey(&line, control).unwrap_or_else(|text| format!("error: {text}"));
        client.write_all(format!("{answer}\n").as_bytes())?;
    }
}

/// Sends one command to the socket at `path` and waits for the answer.
pub(crate) fn ask(path: &Path, command: &str) -> io::Result<String> {
    let mut stream = UnixStream::connect(path)?;
    stream.write_all(format!("{command}\n").as_bytes())?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    Ok(answer.trim_end().to_string())
}

/// Does what one line says.
fn obey(line: &str, control: &Control) -> Result<String, String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words[..] {
        ["delay", text] => control.set_delay(duration(text)?),
        ["hang", "on"] => control.hang(true),
        ["hang", "off"] => {
            control.hang(false);
            control.hang_path(None);
            Kind::ALL
                .iter()
                .for_each(|kind| control.hang_kind(*kind, false));
        }
        ["hang", "path", ..] => control.hang_path(Some(rest(line, 2))),
        ["hang", "kind", name] => control.hang_kind(kind(name)?, true),
        ["fail", "off"] => {
            control.fail(None);
            Kind::ALL
                .iter()
                .for_each(|kind| control.fail_kind(*kind, None));
        }
        ["fail", "after", count, name] => {
            control.fail_after(
                count
                    .parse()
                    .map_err(|_| format!("{count} is not a count"))?,
                errno(name)?,
            );
        }
        ["fail", "kind", of, name] => control.fail_kind(kind(of)?, Some(errno(name)?)),
        ["fail", name] => control.fail(Some(errno(name)?)),
        ["short", word @ ("on" | "off")] => {
            control.short_reads(word == "on");
            control.short_writes(word == "on");
        }
        ["late", word @ ("on" | "off")] => control.answer_late(word == "on"),
        ["xattrs", word @ ("on" | "off")] => control.answer_xattrs(word == "on"),
        ["stats"] => return Ok(stats(control)),
        ["reset"] => control.reset_counters(),
        _ => return Err(format!("unknown command: {}", line.trim())),
    }
    Ok("ok".into())
}

/// What follows the first `count` words, with its spaces.
fn rest(line: &str, count: usize) -> &str {
    (0..count).fold(line.trim(), |left, _| {
        left.split_once(char::is_whitespace)
            .map_or("", |(_, after)| after.trim())
    })
}

fn stats(control: &Control) -> String {
    let kinds: Vec<String> = Kind::ALL
        .iter()
        .filter(|kind| control.count(**kind) > 0)
        .map(|kind| format!("\"{}\":{}", kind.name(), control.count(*kind)))
        .collect();
    format!(
        "{{\"requests\":{},\"bytes_read\":{},\"bytes_read_again\":{},\"bytes_written\":{},\"held\":{},\"peak\":{},\"kinds\":{{{}}}}}",
        control.requests(),
        control.bytes_read(),
        control.bytes_read_again(),
        control.bytes_written(),
        control.held(),
        control.peak(),
        kinds.join(",")
    )
}

fn kind(name: &str) -> Result<Kind, String> {
    let found = Kind::ALL.iter().find(|kind| kind.name() == name);
    found.copied().ok_or_else(|| {
        let names: Vec<&str> = Kind::ALL.iter().map(|kind| kind.name()).collect();
        format!(
            "{name} is not a kind of request; there are {}",
            names.join(", ")
        )
    })
}

/// An errno by its name (EIO) or number.
fn errno(name: &str) -> Result<i32, String> {
    // nix prints the names; every system keeps its numbers below 256.
    let by_name = (1..256).find(|number| format!("{:?}", Errno::from_raw(*number)) == name);
    by_name
        .or_else(|| name.parse().ok().filter(|number| (1..256).contains(number)))
        .ok_or_else(|| format!("{name} is not an errno; try EIO, ENOSPC, ETIMEDOUT"))
}

/// A duration such as `20ms`, `1.5s` or `300us`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text} is not a duration; try 20ms, 1.5s, 300us");
    let digits = text.trim_end_matches(char::is_alphabetic);
    let unit = match &text[digits.len()..] {
        "s" => 1.0,
        "ms" => 1e-3,
        "us" => 1e-6,
        "" if digits == "0" => 0.0,
        _ => return Err(wrong()),
    };
    let value: f64 = digits.parse().map_err(|_| wrong())?;
    Duration::try_from_secs_f64(value * unit).map_err(|_| wrong())
}

/// A size such as `4096`, `128K` or `1M`.
pub(crate) fn size(text: &str) -> Result<u32, String> {
    let wrong = || format!("{text} is not a size; try 4096, 128K, 1M");
    let digits = text.trim_end_matches(char::is_alphabetic);
    let unit: u32 = match &text[digits.len()..] {
        "" => 1,
        "k" | "K" => 1024,
        "m" | "M" => 1024 * 1024,
        _ => return Err(wrong()),
    };
    digits
        .parse::<u32>()
        .ok()
        .and_then(|value| value.checked_mul(unit))
        .ok_or_else(wrong)
}
