//! A process for each event or batch.

use super::lines::{read_actions, read_log};
use super::{POLL, Spec, signal_group, spawn};
use crate::hooks::event::Delivery;
use crate::hooks::plugin::{Disable, Host, Plugin, Stopper};
use crossbeam_channel::{Receiver, Sender, bounded};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use parking_lot::Mutex;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A process for each event, or each batch.
pub(crate) struct Runs {
    lines: Vec<Sender<Vec<Delivery>>>,
    running: Arc<Running>,
    most: usize,
    done: Receiver<()>,
    /// The runners, until the first events say who the host is.
    start: Option<Start>,
}

struct Start {
    spec: Spec,
    jobs: Vec<Receiver<Vec<Delivery>>>,
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
    pub(crate) fn start(spec: Spec, most: usize) -> Result<Runs, String> {
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

fn hash(path: &Path) -> u64 {
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
