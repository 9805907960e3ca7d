//! The `command` plugin: any program, events on its standard input, actions from its standard output.
//!
//! * [`Always`]: one process that lives as long as the mount. When it dies it is started again, after a pause that doubles
//!   up to [`BACKOFF_MAX`]. What it was sent and had not dealt with is lost then, unless it asked for
//!   acknowledgement (`ack`): then everything after the last `ack SEQ` that it wrote is sent again.
//! * [`Runs`]: a process for each event or batch, several at once, but those for one file one after another.
//!
//! In both, standard error goes to our log; what it writes that is no action is logged, and a process that writes much of
//! that is read slowly, so that it waits and not the machine. A process is the leader of a process group of its own,
//! and the group is ended with it.

use super::event::Delivery;
use super::plugin::{Disable, Host, Plugin, Stopper};
use crossbeam_channel::{Sender, bounded};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A process that died is started again after this long, twice as long each time, up to the most. One that ran
/// for the most begins anew.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// Longest line that a plugin may write.
const LINE_MAX: usize = 64 << 10;

/// Bad lines, and lines for the log, that are read at full speed in each second.
const CHATTER_MAX: u32 = 50;

/// Runs at once, when the configuration does not say.
pub(super) const PARALLEL: usize = 2;

/// Events in one run of a batch.
pub(super) const BATCH: usize = 256;

/// How long one run may take.
pub(super) const TIMEOUT: Duration = Duration::from_secs(60);

/// How often is looked whether a process has ended, or acknowledged, or the mount ends.
const POLL: Duration = Duration::from_millis(10);

/// What to run.
#[derive(Clone, Debug)]
pub(super) struct Spec {
    pub(super) words: Vec<String>,
    pub(super) dir: PathBuf,
    pub(super) env: Vec<(String, OsString)>,
    pub(super) ack: bool,
    /// Events, and bytes of their lines, that may be sent and not acknowledged.
    pub(super) window: (usize, usize),
    pub(super) parallel: usize,
    pub(super) timeout: Duration,
}

impl Spec {
    fn spawn(&self) -> Result<Child, String> {
        let (program, arguments) = self.words.split_first().ok_or("there is no command")?;
        Command::new(program)
            .args(arguments)
            .current_dir(&self.dir)
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|error| format!("cannot run {program}: {error}"))
    }
}

/// A process and what it wrote last.
#[derive(Default)]
struct Life {
    child: Option<Child>,
    /// Number of the last event that it dealt with.
    acked: u64,
    /// Which process in the row of those that were started.
    number: u64,
}

/// What is shared with the threads that read what the process writes, and with who ends it.
#[derive(Default)]
struct Shared {
    life: Mutex<Life>,
    news: Condvar,
    stopped: AtomicBool,
}

impl Shared {
    fn signal(&self, signal: Signal) {
        if let Some(child) = &self.life.lock().child {
            signal_group(child, signal);
        }
    }
}

/// The process was not waited for yet, so its number, and that of its group, are its own.
fn signal_group(child: &Child, signal: Signal) {
    // It may have ended already.
    let _ = killpg(Pid::from_raw(child.id() as i32), signal);
}

impl Stopper for Shared {
    fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.signal(Signal::SIGKILL);
        self.news.notify_all();
    }
}

/// A process that lives as long as the mount.
pub(super) struct Always {
    spec: Spec,
    shared: Arc<Shared>,
    stdin: Option<ChildStdin>,
    /// Sent, and not acknowledged: for the next process, should this one die.
    unacked: VecDeque<(u64, Vec<u8>)>,
    /// Bytes of these lines.
    unacked_bytes: usize,
    backoff: Duration,
    /// When the process was started, or may be started again.
    since: Instant,
}

impl Always {
    /// Start it. The threads that read its output are started with the first events.
    pub(super) fn start(spec: Spec) -> Result<Always, String> {
        let mut child = spec.spawn()?;
        let stdin = child.stdin.take();
        let always = Always {
            spec,
            shared: Arc::default(),
            stdin,
            unacked: VecDeque::new(),
            unacked_bytes: 0,
            backoff: BACKOFF_MIN,
            since: Instant::now(),
        };
        always.shared.life.lock().child = Some(child);
        Ok(always)
    }

    /// Read what the process writes, on threads of their own.
    fn listen(&self, host: &Host) {
        let (stdout, stderr, number) = {
            let mut life = self.shared.life.lock();
            let number = life.number;
            match &mut life.child {
                Some(child) => (child.stdout.take(), child.stderr.take(), number),
                None => return,
            }
        };
        if let Some(stdout) = stdout {
            let (shared, host) = (self.shared.clone(), host.clone());
            spawn(move || {
                read_actions(stdout, &host, |seq| {
                    let mut life = shared.life.lock();
                    // What a process said before it died says nothing about its follower, but it did say it.
                    life.acked = life.acked.max(seq);
                    shared.news.notify_all();
                });
                let _ = number;
            });
        }
        if let Some(stderr) = stderr {
            let host = host.clone();
            spawn(move || read_log(stderr, &host));
        }
    }

    /// Has the process ended? Then note it, and when the next one may start.
    fn has_died(&mut self, host: &Host) -> bool {
        let status = {
            let mut life = self.shared.life.lock();
            let Some(child) = &mut life.child else {
                return true;
            };
            match child.try_wait() {
                Ok(None) => return false,
                Ok(Some(status)) => {
                    life.child = None;
                    status
                }
                Err(_) => return false,
            }
        };
        self.stdin = None;
        if !host.is_stopping() {
            if self.since.elapsed() >= BACKOFF_MAX {
                self.backoff = BACKOFF_MIN;
            }
            host.report(format_args!(
                "it ended ({status}); started again in {:?}",
                self.backoff
            ));
            self.since = Instant::now() + self.backoff;
            self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
        }
        true
    }

    /// Start the next process, when its time has come, and send it what the last one had not dealt with.
    fn restart(&mut self, host: &Host) -> bool {
        if Instant::now() < self.since && !host.is_stopping() {
            return false;
        }
        match self.spec.spawn() {
            Ok(mut child) => {
                self.stdin = child.stdin.take();
                let mut life = self.shared.life.lock();
                life.child = Some(child);
                life.number += 1;
            }
            Err(error) => {
                host.report(format_args!("{error}"));
                self.since = Instant::now() + self.backoff;
                self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
                return false;
            }
        }
        self.since = Instant::now();
        self.listen(host);
        self.forget_acked();
        let again: Vec<u8> = self
            .unacked
            .iter()
            .flat_map(|(_, line)| line.iter().copied())
            .collect();
        again.is_empty() || self.write(&again)
    }

    fn write(&mut self, lines: &[u8]) -> bool {
        match &mut self.stdin {
            Some(stdin) => stdin.write_all(lines).is_ok(),
            None => false,
        }
    }

    fn forget_acked(&mut self) {
        let acked = self.shared.life.lock().acked;
        while self.unacked.front().is_some_and(|(seq, _)| *seq <= acked) {
            let acked = self.unacked.pop_front();
            self.unacked_bytes -= acked.map_or(0, |(_, line)| line.len());
        }
    }

    /// A process to write to. `None` when the mount ends first.
    fn ready(&mut self, host: &Host) -> Option<()> {
        // The write that failed told before the process could be waited for.
        let broken = self.stdin.is_none();
        loop {
            if self.shared.stopped.load(Ordering::Acquire) {
                return None;
            }
            if !self.has_died(host) {
                if !broken || self.stdin.is_some() {
                    return Some(());
                }
                // It closed its standard input and lives on: of no use any more.
                self.shared.signal(Signal::SIGTERM);
            } else if self.restart(host) {
                return Some(());
            } else if host.is_stopping() {
                return None;
            }
            std::thread::sleep(POLL);
        }
    }

    /// Wait until few enough events are unacknowledged.
    fn wait_for_window(&mut self, host: &Host) {
        loop {
            self.forget_acked();
            let (events, bytes) = self.spec.window;
            let has_room = self.unacked.len() < events && self.unacked_bytes < bytes;
            if has_room || self.shared.stopped.load(Ordering::Acquire) {
                return;
            }
            if self.ready(host).is_none() {
                return;
            }
            let mut life = self.shared.life.lock();
            let acked = life.acked;
            if self.unacked.front().is_some_and(|(seq, _)| *seq > acked) {
                self.shared.news.wait_for(&mut life, POLL);
            }
        }
    }

    fn send(&mut self, lines: &[u8], host: &Host) {
        if self.ready(host).is_some() && !self.write(lines) {
            self.stdin = None;
            if self.spec.ack {
                // The next process gets it from the unacknowledged.
                self.ready(host);
            }
        }
    }
}

impl Plugin for Always {
    fn events(&mut self, batch: &[Delivery], host: &Host) -> Result<(), Disable> {
        self.listen(host);
        let mut lines = Vec::new();
        for delivery in batch {
            let from = lines.len();
            delivery.write_json(&mut lines);
            if self.spec.ack {
                self.wait_for_window(host);
                let line = lines.split_off(from);
                self.unacked_bytes += line.len();
                self.unacked.push_back((delivery.seq, line.clone()));
                self.send(&line, host);
            }
        }
        if !lines.is_empty() {
            self.send(&lines, host);
        }
        Ok(())
    }

    fn idle(&mut self, host: &Host) -> Result<(), Disable> {
        self.listen(host);
        if self.has_died(host) {
            self.restart(host);
        }
        Ok(())
    }

    fn finish(&mut self, seq: u64, lost: u64, host: &Host) {
        if lost > 0 {
            let mut gap = Vec::new();
            super::event::write_gap(&mut gap, seq, lost);
            self.write(&gap);
        }
        // It is given all it has not dealt with, as long as the mount waits.
        while self.spec.ack && !self.unacked.is_empty() {
            if self.ready(host).is_none() {
                break;
            }
            self.forget_acked();
            std::thread::sleep(POLL);
        }
        // End of file is the sign that all is over. Whoever waits for us calls the stopper when this takes long.
        self.stdin = None;
        while !self.has_died(host) {
            std::thread::sleep(POLL);
        }
    }

    fn stopper(&self) -> Option<Arc<dyn Stopper>> {
        Some(self.shared.clone())
    }
}

impl Drop for Always {
    fn drop(&mut self) {
        self.shared.stop();
        if let Some(child) = &mut self.shared.life.lock().child {
            // Killed just now.
            let _ = child.wait();
        }
    }
}

/// A process for each event, or each batch.
pub(super) struct Runs {
    lines: Vec<Sender<Vec<Delivery>>>,
    running: Arc<Running>,
    most: usize,
    done: crossbeam_channel::Receiver<()>,
    /// The runners, until the first events say who the host is.
    start: Option<Start>,
}

struct Start {
    spec: Spec,
    jobs: Vec<crossbeam_channel::Receiver<Vec<Delivery>>>,
    done: Sender<()>,
}

/// Processes that run now, to be killed at the end.
#[derive(Default)]
struct Running {
    groups: Mutex<Vec<u32>>,
    stopped: AtomicBool,
}

impl Stopper for Running {
    fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        // Each is taken off the list before it is waited for, so the numbers are still theirs.
        for group in &*self.groups.lock() {
            let _ = killpg(Pid::from_raw(*group as i32), Signal::SIGKILL);
        }
    }
}

impl Runs {
    /// Ready to run the command for up to `most` events at once.
    pub(super) fn start(spec: Spec, most: usize) -> Result<Runs, String> {
        let program = spec.words.first().ok_or("there is no command")?;
        find(program, &spec).ok_or_else(|| format!("there is no program {program}"))?;
        let (done_sender, done) = bounded(0);
        // One waits while one runs.
        let (lines, jobs) = (0..spec.parallel).map(|_| bounded(1)).unzip();
        Ok(Runs {
            lines,
            running: Arc::default(),
            most,
            done,
            start: Some(Start {
                spec,
                jobs,
                done: done_sender,
            }),
        })
    }

    fn begin(&mut self, host: &Host) {
        let Some(Start { spec, jobs, done }) = self.start.take() else {
            return;
        };
        for jobs in jobs {
            let (spec, running, host, done) = (
                spec.clone(),
                self.running.clone(),
                host.clone(),
                done.clone(),
            );
            spawn(move || {
                for batch in jobs {
                    if !running.stopped.load(Ordering::Acquire) {
                        run_once(&spec, &running, &batch, &host);
                    }
                }
                drop(done);
            });
        }
    }
}

/// Would the program be found?
fn find(program: &str, spec: &Spec) -> Option<PathBuf> {
    if program.contains('/') {
        return Some(spec.dir.join(program)).filter(|path| path.is_file());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(program))
        .find(|path| path.is_file())
}

impl Plugin for Runs {
    fn events(&mut self, batch: &[Delivery], host: &Host) -> Result<(), Disable> {
        self.begin(host);
        // A file always goes to the same runner: its events stay in order.
        let mut shares = vec![Vec::new(); self.lines.len()];
        for delivery in batch {
            let share = hash(&delivery.event.path) as usize % self.lines.len();
            shares[share].push(delivery.clone());
        }
        for (line, share) in self.lines.iter().zip(shares) {
            for chunk in share.chunks(self.most) {
                if line.send(chunk.to_vec()).is_err() {
                    return Err(Disable("no thread could be started for it".into()));
                }
            }
        }
        Ok(())
    }

    fn finish(&mut self, _seq: u64, _lost: u64, _host: &Host) {
        self.lines.clear();
        self.start = None;
        // Disconnected when the last runner is through.
        let _ = self.done.recv();
    }

    fn stopper(&self) -> Option<Arc<dyn Stopper>> {
        Some(self.running.clone())
    }
}

fn hash(path: &std::path::Path) -> u64 {
    use std::hash::{Hash, Hasher};
    let mut hasher = std::hash::DefaultHasher::new();
    path.hash(&mut hasher);
    hasher.finish()
}

fn run_once(spec: &Spec, running: &Running, batch: &[Delivery], host: &Host) {
    let mut child = match spec.spawn() {
        Ok(child) => child,
        Err(error) => return host.report(format_args!("{error}")),
    };
    let group = child.id();
    running.groups.lock().push(group);
    let mut lines = Vec::new();
    for delivery in batch {
        delivery.write_json(&mut lines);
    }
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let outcome = std::thread::scope(|scope| {
        // A program need not read what it is not interested in.
        scope.spawn(|| stdin.map(|mut stdin| stdin.write_all(&lines)));
        scope.spawn(|| stdout.map(|stdout| read_actions(stdout, host, |_| {})));
        scope.spawn(|| stderr.map(|stderr| read_log(stderr, host)));
        let outcome = wait_for(&mut child, running, spec.timeout);
        running.groups.lock().retain(|other| *other != group);
        // What it started must not keep our pipes open.
        signal_group(&child, Signal::SIGKILL);
        outcome.map(|()| child.wait())
    });
    match outcome {
        Some(Ok(status)) if !status.success() && !running.stopped.load(Ordering::Acquire) => {
            host.report(format_args!("a run ended with {status}"));
        }
        Some(Ok(_)) => {}
        Some(Err(error)) => host.report(format_args!("a run could not be waited for: {error}")),
        None => {
            host.report(format_args!(
                "a run took more than {:?} and was ended",
                spec.timeout
            ));
            let _ = child.wait();
        }
    }
}

/// Wait until the process has ended, without collecting it: its number stays its own. `None` when it takes too long.
fn wait_for(child: &mut Child, running: &Running, timeout: Duration) -> Option<()> {
    let deadline = Instant::now() + timeout;
    let mut pause = Duration::from_millis(1);
    loop {
        if crate::sys::has_ended(child.id()) {
            return Some(());
        }
        if Instant::now() >= deadline || running.stopped.load(Ordering::Acquire) {
            return None;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(POLL);
    }
}

fn spawn(work: impl FnOnce() + Send + 'static) {
    let name = String::from("warmfs-plugin");
    if let Err(error) = std::thread::Builder::new().name(name).spawn(work) {
        tracing::warn!("cannot start a thread for a plugin: {error}");
    }
}

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

fn read_actions(stdout: impl Read, host: &Host, mut acked: impl FnMut(u64)) {
    let mut pace = Pace::new();
    let end = each_line(stdout, |line| match line {
        Ok(line) => match super::action::Action::parse(line) {
            Ok(super::action::Action::Ack(seq)) => acked(seq),
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

fn read_log(stderr: impl Read, host: &Host) {
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
    use super::super::event::{Event, Kind};
    use super::super::tests::{acted, host};
    use super::*;
    use std::path::Path;

    fn spec(script: &str) -> Spec {
        Spec {
            words: ["sh", "-c", script].map(String::from).to_vec(),
            dir: "/".into(),
            env: Vec::new(),
            ack: false,
            window: (100, 1 << 20),
            parallel: 2,
            timeout: Duration::from_secs(60),
        }
    }

    fn batch(seqs: std::ops::RangeInclusive<u64>, path: &str) -> Vec<Delivery> {
        let event = |seq| Delivery {
            seq,
            lost: 0,
            event: Event::new(Kind::Open, Path::new(path)),
        };
        seqs.map(event).collect()
    }

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

    #[test]
    fn it_gets_events_and_its_answers_are_done() {
        let (host, actions) = acted();
        let script = "while read -r line; do echo \"evict file$((n += 1))\"; done";
        let mut plugin = Always::start(spec(script)).expect("starts");
        plugin.events(&batch(1..=3, "f"), &host).expect("goes on");
        plugin.finish(3, 0, &host);
        drop(plugin);
        actions.wait_for(3);
        assert_eq!(
            *actions.lock(),
            ["evict file1", "evict file2", "evict file3"]
        );
    }

    #[test]
    fn after_a_death_the_next_one_gets_what_was_not_acknowledged() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let out = dir.path().join("seen");
        // Each process deals with two events, and dies on the third without a word.
        let script = format!(
            r#"n=0; while read -r line; do
                seq=${{line#*\"seq\":}}; seq=${{seq%%,*}}
                [ $((n += 1)) -gt 2 ] && exit 1
                echo $seq >> {}; echo ack $seq
            done"#,
            out.display()
        );
        let mut plugin = Always::start(Spec {
            ack: true,
            ..spec(&script)
        })
        .expect("starts");
        plugin.backoff = Duration::from_millis(1);
        plugin.events(&batch(1..=5, "f"), &host()).expect("goes on");
        plugin.finish(5, 0, &host());
        let seen = std::fs::read_to_string(&out).expect("written");
        assert_eq!(seen.lines().collect::<Vec<_>>(), ["1", "2", "3", "4", "5"]);
    }

    #[test]
    fn one_that_hangs_is_ended_with_all_that_it_started() {
        // It reads nothing, so that writing to it hangs; and has a child that would survive it.
        let mut plugin = Always::start(spec("sleep 1000 & sleep 1000")).expect("starts");
        let stopper = plugin.stopper().expect("has one");
        let host = host();
        let worker = std::thread::spawn(move || {
            for _ in 0..100 {
                plugin.events(&batch(1..=256, "f"), &host).expect("goes on");
            }
        });
        stopper.stop();
        worker.join().expect("ends");
    }

    #[test]
    fn a_program_that_is_not_there_is_said_so() {
        let mut missing = spec("");
        missing.words = vec!["no-such-program".into()];
        for error in [
            Always::start(missing.clone()).err(),
            Runs::start(missing, 1).err(),
        ] {
            assert!(error.expect("refused").contains("no-such-program"));
        }
    }

    #[test]
    fn runs_keep_the_order_of_each_file() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let script = format!(
            r#"read -r line; seq=${{line#*\"seq\":}}; path=${{line#*\"path\":\"}}
            echo ${{seq%%,*}} >> {}/${{path%%\"*}}"#,
            dir.path().display()
        );
        let mut plugin = Runs::start(spec(&script), 1).expect("starts");
        let mut events = Vec::new();
        for seq in 1..=20 {
            events.extend(batch(seq..=seq, ["a", "b", "c"][seq as usize % 3]));
        }
        plugin.events(&events, &host()).expect("goes on");
        plugin.finish(20, 0, &host());
        let mut all = Vec::new();
        for name in ["a", "b", "c"] {
            let text = std::fs::read_to_string(dir.path().join(name)).expect("written");
            let seqs: Vec<u64> = text
                .lines()
                .map(|line| line.parse().expect("a number"))
                .collect();
            assert!(seqs.is_sorted(), "{name}: {seqs:?}");
            all.extend(seqs);
        }
        all.sort_unstable();
        assert_eq!(all, (1..=20).collect::<Vec<_>>());
    }

    #[test]
    fn a_run_that_takes_too_long_is_ended() {
        let spec = Spec {
            timeout: Duration::from_millis(20),
            ..spec("sleep 1000")
        };
        let mut plugin = Runs::start(spec, 1).expect("starts");
        plugin.events(&batch(1..=1, "f"), &host()).expect("goes on");
        plugin.finish(1, 0, &host());
    }
}
