//! The `log` plugin: each event a line of JSON, to a file, to standard error, or to the journal.
//!
//! Promises of the file:
//! * It holds whole lines only, also after the disk was full: what could not be written is cut off again, counted, and
//!   told as a `gap` as soon as there is room.
//! * It is rotated before it grows beyond `max_size`, or when it is older than `max_age`: `FILE` becomes `FILE.1`, that
//!   `FILE.2`, and so on up to `keep` old files. After SIGHUP it is opened again by its name, for those who
//!   rotate with logrotate(8).

use super::event::{Delivery, write_gap};
use super::plugin::{Disable, Host, Plugin};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Where journald listens (its "native journal protocol").
const JOURNAL: &str = "/run/systemd/journal/socket";

/// A datagram that the journal does not take within this time is lost.
const JOURNAL_PATIENCE: Duration = Duration::from_secs(1);

/// When a file is rotated.
#[derive(Clone, Debug)]
pub(super) struct Rotation {
    pub(super) size_max: u64,
    pub(super) age_max: Option<Duration>,
    pub(super) keep: u32,
}

/// Writes events down.
pub(super) struct Log {
    target: Target,
    /// Reused for each batch.
    lines: Vec<u8>,
    /// What the target did not take: the last number, and how many.
    missing: (u64, u64),
}

enum Target {
    Stderr,
    Journal(UnixDatagram),
    File(LogFile),
}

struct LogFile {
    path: PathBuf,
    rotation: Rotation,
    /// `None` after it could not be opened; tried again with the next events.
    open: Option<(File, SystemTime)>,
}

impl Log {
    pub(super) fn stderr() -> Log {
        Log::to(Target::Stderr)
    }

    pub(super) fn journal() -> io::Result<Log> {
        Log::journal_at(Path::new(JOURNAL))
    }

    fn journal_at(socket: &Path) -> io::Result<Log> {
        let datagrams = UnixDatagram::unbound()?;
        datagrams.connect(socket)?;
        datagrams.set_write_timeout(Some(JOURNAL_PATIENCE))?;
        Ok(Log::to(Target::Journal(datagrams)))
    }

    pub(super) fn file(path: PathBuf, rotation: Rotation) -> io::Result<Log> {
        let open = Some(open(&path)?);
        Ok(Log::to(Target::File(LogFile {
            path,
            rotation,
            open,
        })))
    }

    fn to(target: Target) -> Log {
        Log {
            target,
            lines: Vec::new(),
            missing: (0, 0),
        }
    }

    /// Write what is in `lines`, which stand for `count` events up to number `seq`.
    fn put(&mut self, seq: u64, count: u64, host: &Host) {
        let (before, missing) = self.missing;
        if missing > 0 {
            let mut gap = Vec::new();
            write_gap(&mut gap, before, missing);
            self.lines.splice(..0, gap);
        }
        match self.target.write(&self.lines) {
            Ok(()) if missing > 0 => {
                tracing::warn!(
                    "plugin {}: writes again; {missing} events are missing",
                    host.name()
                );
                self.missing = (0, 0);
            }
            Ok(()) => {}
            Err(error) => {
                if missing == 0 {
                    tracing::warn!(
                        "plugin {}: cannot write events: {error}; they are counted until it works again",
                        host.name()
                    );
                }
                self.missing = (seq, missing + count);
            }
        }
        self.lines.clear();
    }
}

impl Plugin for Log {
    fn events(&mut self, batch: &[Delivery], host: &Host) -> Result<(), Disable> {
        let Some(last) = batch.last() else {
            return Ok(());
        };
        for delivery in batch {
            delivery.write_json(&mut self.lines);
        }
        // With those that were lost on the way here: should the write fail, their gaps are lost too.
        let count = batch.iter().map(|delivery| 1 + delivery.lost).sum();
        self.put(last.seq, count, host);
        Ok(())
    }

    fn reopen(&mut self) {
        if let Target::File(file) = &mut self.target {
            file.open = None;
        }
    }

    fn finish(&mut self, seq: u64, lost: u64, host: &Host) {
        if lost > 0 {
            write_gap(&mut self.lines, seq, lost);
        }
        if lost > 0 || self.missing.1 > 0 {
            self.put(seq, lost, host);
        }
    }
}

impl Target {
    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        match self {
            Target::Stderr => io::stderr().lock().write_all(lines),
            Target::Journal(socket) => {
                let mut result = Ok(());
                for line in lines
                    .split(|byte| *byte == b'\n')
                    .filter(|line| !line.is_empty())
                {
                    let mut entry = b"SYSLOG_IDENTIFIER=warmfs\nPRIORITY=6\nMESSAGE=".to_vec();
                    entry.extend_from_slice(line);
                    entry.push(b'\n');
                    result = result.and(socket.send(&entry).map(drop));
                }
                result
            }
            Target::File(file) => file.write(lines),
        }
    }
}

impl LogFile {
    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        let (file, since) = match self.open.take() {
            Some(open) => open,
            None => open(&self.path)?,
        };
        let size = file.metadata()?.len();
        let old = self
            .rotation
            .age_max
            .is_some_and(|most| since.elapsed().unwrap_or_default() >= most);
        let full = size + lines.len() as u64 > self.rotation.size_max;
        if size > 0 && (full || old) {
            drop(file);
            self.rotate()?;
            return self.write_to(open(&self.path)?, 0, lines);
        }
        self.write_to((file, since), size, lines)
    }

    fn write_to(
        &mut self,
        (mut file, since): (File, SystemTime),
        size: u64,
        lines: &[u8],
    ) -> io::Result<()> {
        let result = file.write_all(lines);
        if result.is_err() {
            // Whole lines only. That fails where writing does, but for a full disk it does not.
            let _ = file.set_len(size);
        }
        self.open = Some((file, since));
        result
    }

    fn rotate(&self) -> io::Result<()> {
        let numbered = |number: u32| {
            let mut name = self.path.clone().into_os_string();
            name.push(format!(".{number}"));
            PathBuf::from(name)
        };
        if self.rotation.keep == 0 {
            return std::fs::remove_file(&self.path);
        }
        for number in (1..self.rotation.keep).rev() {
            match std::fs::rename(numbered(number), numbered(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        std::fs::rename(&self.path, numbered(1))
    }
}

/// Open for appending; with the time from which its age counts. Events name files: nobody else's business.
fn open(path: &Path) -> io::Result<(File, SystemTime)> {
    use std::os::unix::fs::OpenOptionsExt;
    let file = File::options()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)?;
    let metadata = file.metadata()?;
    let since = metadata.created().ok().filter(|_| metadata.len() > 0);
    Ok((file, since.unwrap_or_else(SystemTime::now)))
}

#[cfg(test)]
mod tests {
    use super::super::event::{Event, Kind};
    use super::super::tests::host;
    use super::*;

    fn batch(seqs: std::ops::Range<u64>) -> Vec<Delivery> {
        let event = |seq| Delivery {
            seq,
            lost: 0,
            event: Event::new(Kind::Open, Path::new("f")),
        };
        seqs.map(event).collect()
    }

    fn seqs(path: &Path) -> Vec<u64> {
        let text = std::fs::read_to_string(path).expect("a log");
        let seq = |line| {
            let value: serde_json::Value = serde_json::from_str(line).expect("whole lines");
            value["seq"].as_u64().expect("a number")
        };
        text.lines().map(seq).collect()
    }

    fn log(path: &Path, size_max: u64, keep: u32) -> Log {
        let rotation = Rotation {
            size_max,
            age_max: None,
            keep,
        };
        Log::file(path.into(), rotation).expect("open")
    }

    #[test]
    fn it_is_rotated_before_it_grows_too_large() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("log");
        let mut log = log(&path, 150, 2);
        for seq in 1..=8 {
            log.events(&batch(seq..seq + 1), &host()).expect("goes on");
        }
        let old = |number| seqs(&dir.path().join(format!("log.{number}")));
        assert_eq!(
            (seqs(&path), old(1), old(2)),
            (vec![7, 8], vec![5, 6], vec![3, 4])
        );
        assert!(!dir.path().join("log.3").exists());
        assert!(std::fs::metadata(&path).expect("stat").len() <= 150);
    }

    #[test]
    fn it_is_rotated_when_it_is_old() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("log");
        let rotation = Rotation {
            size_max: u64::MAX,
            age_max: Some(Duration::ZERO),
            keep: 1,
        };
        let mut log = Log::file(path.clone(), rotation).expect("open");
        log.events(&batch(1..3), &host()).expect("goes on");
        log.events(&batch(3..4), &host()).expect("goes on");
        assert_eq!(seqs(&path), [3]);
        assert_eq!(seqs(&dir.path().join("log.1")), [1, 2]);
    }

    #[test]
    fn after_reopening_it_is_the_file_of_that_name() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (path, moved) = (dir.path().join("log"), dir.path().join("moved"));
        let mut log = log(&path, u64::MAX, 1);
        log.events(&batch(1..2), &host()).expect("goes on");
        std::fs::rename(&path, &moved).expect("rename");
        log.events(&batch(2..3), &host()).expect("goes on");
        log.reopen();
        log.events(&batch(3..4), &host()).expect("goes on");
        assert_eq!((seqs(&moved), seqs(&path)), (vec![1, 2], vec![3]));
    }

    /// /dev/full takes nothing, as a full disk does.
    #[test]
    fn what_could_not_be_written_is_told_as_a_gap() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("log");
        std::os::unix::fs::symlink("/dev/full", &path).expect("symlink");
        let mut log = log(&path, u64::MAX, 1);
        log.events(&batch(1..4), &host()).expect("goes on");
        log.events(&batch(4..6), &host()).expect("goes on");
        std::fs::remove_file(&path).expect("unlink");
        log.reopen();
        log.events(&batch(6..7), &host()).expect("goes on");
        let text = std::fs::read_to_string(&path).expect("a log");
        assert!(
            text.starts_with(r#"{"v":1,"seq":5,"event":"gap","lost":5}"#),
            "{text}"
        );
        assert_eq!(seqs(&path), [5, 6]);
    }

    #[test]
    fn the_journal_gets_one_entry_for_each_event() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let socket = dir.path().join("socket");
        let journal = UnixDatagram::bind(&socket).expect("bind");
        let mut log = Log::journal_at(&socket).expect("connect");
        log.events(&batch(1..3), &host()).expect("goes on");
        for seq in [1, 2] {
            let mut entry = [0; 1000];
            let size = journal.recv(&mut entry).expect("an entry");
            let entry = String::from_utf8_lossy(&entry[..size]).into_owned();
            let (_, message) = entry.split_once("MESSAGE=").expect("a message");
            assert!(message.starts_with(&format!(r#"{{"v":1,"seq":{seq},"event":"on_open""#)));
        }
    }
}
