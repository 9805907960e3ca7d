//! The `command` plugin: any program, events on its standard input, actions from its standard output.
//!
//! * [`Always`]: one process that lives as long as the mount. When it dies it is started again, after a pause that doubles
//!   up to half a minute. What it was sent and had not dealt with is lost then, unless it asked for
//!   acknowledgement (`ack`): then everything after the last `ack SEQ` that it wrote is sent again.
//! * [`Runs`]: a process for each event or batch, several at once, but those for one file one after another.
//!
//! In both, standard error goes to our log; what it writes that is no action is logged, and a process that writes much of
//! that is read slowly, so that it waits and not the machine. A process is the leader of a process group of its own,
//! and the group is ended with it.

mod always;
mod lines;
mod runs;

pub(super) use always::Always;
pub(super) use runs::Runs;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

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

/// The process was not waited for yet, so its number, and that of its group, are its own.
fn signal_group(child: &Child, signal: Signal) {
    // It may have ended already.
    let _ = killpg(Pid::from_raw(child.id() as i32), signal);
}

fn spawn(work: impl FnOnce() + Send + 'static) {
    let name = String::from("warmfs-plugin");
    if let Err(error) = std::thread::Builder::new().name(name).spawn(work) {
        tracing::warn!("cannot start a thread for a plugin: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::super::event::{Delivery, Event, Kind};
    use super::super::plugin::Plugin;
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
