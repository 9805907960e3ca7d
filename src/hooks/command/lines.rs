//! What processes write, line by line, and no faster than is good for the machine.

use crate::hooks::action::Action;
use crate::hooks::plugin::Host;
use std::io::{self, BufRead, BufReader, Read};
use std::time::{Duration, Instant};

/// Longest line that a plugin may write.
const LINE_MAX: usize = 64 << 10;

/// Bad lines, and lines for the log, that are read at full speed in each second.
const CHATTER_MAX: u32 = 50;

/// Lines at most so often in a second; more of them wait.
struct Pace {
    second: Instant,
    lines: u32,
}

impl Pace {
    fn new() -> Pace {
        Pace {
            second: Instant::now(),
            lines: 0,
        }
    }

    fn line(&mut self) {
        const SECOND: Duration = Duration::from_secs(1);
        if self.second.elapsed() >= SECOND {
            *self = Pace::new();
        }
        self.lines += 1;
        if self.lines > CHATTER_MAX {
            std::thread::sleep(SECOND.saturating_sub(self.second.elapsed()));
        }
    }
}

pub(super) fn read_actions(stdout: impl Read, host: &Host, mut acked: impl FnMut(u64)) {
    let mut pace = Pace::new();
    let end = each_line(stdout, |line| match line {
        Ok(line) => match Action::parse(line) {
            Ok(Action::Ack(seq)) => acked(seq),
            Ok(action) => host.act(&action),
            Err(_) => {
                host.line(line);
                pace.line();
            }
        },
        Err(start) => {
            let start = String::from_utf8_lossy(&start[..start.len().min(100)]);
            host.report(format_args!(
                "a line of more than {LINE_MAX} bytes, it begins with {start:?}"
            ));
            pace.line();
        }
    });
    if let Err(error) = end {
        host.report(format_args!("its output could not be read: {error}"));
    }
}

pub(super) fn read_log(stderr: impl Read, host: &Host) {
    let mut pace = Pace::new();
    let end = each_line(stderr, |line| {
        let line = String::from_utf8_lossy(line.unwrap_or_else(|start| start));
        tracing::warn!("plugin {}: {line}", host.name());
        pace.line();
    });
    if let Err(error) = end {
        host.report(format_args!(
            "its standard error could not be read: {error}"
        ));
    }
}

/// Call `f` with each line, without its line break; with the start of one that is too long as an error, once.
fn each_line(input: impl Read, mut f: impl FnMut(Result<&[u8], &[u8]>)) -> io::Result<()> {
    let mut input = BufReader::new(input);
    let mut line = Vec::new();
    loop {
        line.clear();
        input
            .by_ref()
            .take(LINE_MAX as u64 + 1)
            .read_until(b'\n', &mut line)?;
        match line.last() {
            None => return Ok(()),
            Some(b'\n') => f(Ok(&line[..line.len() - 1])),
            Some(_) if line.len() <= LINE_MAX => f(Ok(&line)),
            Some(_) => {
                f(Err(&line));
                skip_line(&mut input)?;
            }
        }
    }
}

fn skip_line(input: &mut impl BufRead) -> io::Result<()> {
    loop {
        let buffer = input.fill_buf()?;
        if buffer.is_empty() {
            return Ok(());
        }
        let end = buffer.iter().position(|byte| *byte == b'\n');
        let skip = end.map_or(buffer.len(), |at| at + 1);
        input.consume(skip);
        if end.is_some() {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_split_and_those_without_end_are_cut() {
        let long = "x".repeat(3 * LINE_MAX);
        let text = format!("one\n\ntwo\n{long}\nlast");
        let mut seen = Vec::new();
        each_line(text.as_bytes(), |line| {
            seen.push(line.map(<[u8]>::to_vec).map_err(<[u8]>::len))
        })
        .expect("memory");
        let lines = ["one", "", "two"].map(|line| Ok(line.into()));
        assert_eq!(seen[..3], lines);
        assert_eq!(seen[3..], [Err(LINE_MAX + 1), Ok(b"last".to_vec())]);
    }
}
