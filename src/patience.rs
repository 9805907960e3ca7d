//! How long an answer waits for the source when memory has one too.
//!
//! An answer that is cached but older than `ttl` should be compared with the source before it is given. The
//! rule here is: ask, and wait as long as the source usually takes, several times over ([`PATIENCE_MIN`] at
//! least); then answer from memory. From then on the source is *suspect*: cached answers are given at
//! once, while one request at a time keeps asking, until the source answers something. So a hung server
//! never stops warm files, one slow answer costs at most the patience, and a source that is only slow is
//! waited for. The comparison that was not waited for goes on, and corrects the caches when it comes back.
//!
//! Errors that only say "unreachable" (see [`crate::error::Error::is_unreachable`]) are no answer either:
//! memory's is given in their place.
//!
//! **Where it is asked.** Handing a request to another thread costs two context switches, more than a healthy
//! local source takes to answer. So while the source usually answers faster than [`HERE_MAX`], the FUSE
//! thread that has the request asks it itself; but at most so many at once that two FUSE threads are always
//! left for what memory can answer. When the source slows down, or hangs and takes those few with it,
//! everything goes to the I/O workers.
//!
//! With `ttl = 0` nothing is answered from memory unasked: who wants the source's word at every access gets it, or its error,
//! or waits.

use crate::error::Result;
use crate::pace::Pace;
use crate::stats::Stats;
use crate::workers::{Pool, Timer};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Least patience. Below 10 ms a person notices nothing; above a local file system's worst hiccup under
/// load, so that a healthy source is practically always heard.
pub const PATIENCE_MIN: Duration = Duration::from_millis(6);
/// Most patience, however slow the source usually is.
pub const PATIENCE_MAX: Duration = Duration::from_secs(2);

/// A source that usually answers faster than this is asked on the FUSE thread: the order of what the hand-over
/// would cost (17 to 54 us were measured for waking a thread on an idle processor).
pub const HERE_MAX: Duration = Duration::from_micros(100);

/// Asks the source, with the patience described above.
pub struct Patience {
    pool: Pool,
    timer: Timer,
    stats: Arc<Stats>,
    strict: bool,
    /// Requests that may be at the source on their own FUSE thread at once.
    here_max: usize,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    /// Requests at the source on FUSE threads now.
    here: AtomicUsize,
    /// How long an answer takes.
    usual: Pace,
    suspect: AtomicBool,
    probing: AtomicBool,
}

impl State {
    fn answered(&self, took: Duration) {
        self.usual.note(took);
        self.suspect.store(false, Ordering::Relaxed);
    }

    /// May the current thread go to the source itself?
    fn stay_here(self: &Arc<Self>, here_max: usize) -> Option<Here> {
        let usual = self.usual.usual();
        let quick = !usual.is_zero() && usual < HERE_MAX;
        if !quick || self.suspect.load(Ordering::Relaxed) {
            return None;
        }
        let here = Here(self.clone());
        (self.here.fetch_add(1, Ordering::AcqRel) < here_max).then_some(here)
    }

    fn patience(&self) -> Duration {
        (self.usual.usual() * 6).clamp(PATIENCE_MIN, PATIENCE_MAX)
    }
}

/// A place among the FUSE threads that may be at the source.
struct Here(Arc<State>);

impl Drop for Here {
    fn drop(&mut self) {
        self.0.here.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A reply that is sent once, by whoever comes first, and the answer from memory.
struct Race<R, T>(Mutex<Option<(R, Option<T>)>>);

impl Patience {
    /// Ask on `pool`, or on the caller's thread while no more than `here_max` do. `strict`: always wait for the
    /// source.
    pub fn new(
        pool: Pool,
        timer: Timer,
        stats: Arc<Stats>,
        strict: bool,
        here_max: usize,
    ) -> Patience {
        Patience {
            pool,
            timer,
            stats,
            strict,
            here_max,
            state: Arc::default(),
        }
    }

    /// The pool below, for what must reach the source in any case.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// The timer below.
    pub fn timer(&self) -> &Timer {
        &self.timer
    }

    /// Do what must reach the source in any case, then pass the answer on.
    pub fn work<T: 'static>(
        &self,
        key: u64,
        ask: impl FnOnce() -> T + Send + 'static,
        then: impl FnOnce(T) + Send + 'static,
    ) {
        let state = self.state.clone();
        let ask = move || {
            let begun = Instant::now();
            let answer = ask();
            state.usual.note(begun.elapsed());
            answer
        };
        self.place(key, ask, then);
    }

    /// Run `ask`, then `then`, here or on a worker, as the source's speed suggests. Only `ask` counts as being
    /// at the source: sending a reply wakes the program that waits, which may well run first.
    fn place<T: 'static>(
        &self,
        key: u64,
        ask: impl FnOnce() -> T + Send + 'static,
        then: impl FnOnce(T) + Send + 'static,
    ) {
        match self.state.stay_here(self.here_max) {
            Some(here) => {
                let answer = ask();
                drop(here);
                then(answer);
            }
            None => self.pool.submit(key, move || then(ask())),
        }
    }

    /// Answer `reply` through `send`: with what `ask` finds at the source, or with `known` from memory when
    /// that takes too long or cannot be reached. An answer that is not sent goes to `undo`.
    pub fn ask<R, T>(
        &self,
        key: u64,
        reply: R,
        known: impl FnOnce() -> Option<T>,
        ask: impl FnOnce() -> Result<T> + Send + 'static,
        send: impl FnOnce(R, Result<T>) + Clone + Send + 'static,
        undo: impl Fn(T) + Clone + Send + 'static,
    ) where
        R: Send + 'static,
        T: Send + 'static,
    {
        if self.strict {
            self.work(key, ask, move |answer| send(reply, answer));
            return;
        }
        let known = known();
        let state = self.state.clone();
        let suspect = state.suspect.load(Ordering::Relaxed);
        // Questions about this file that already wait in line will bring the same answer.
        let clogged = known.is_some() && self.pool.is_clogged(key);
        if known.is_some() && (suspect || clogged) {
            self.stats.served_unchecked.add(1);
            if let Some(known) = known {
                send(reply, Ok(known));
            }
            if !clogged {
                self.probe(key, ask, undo);
            }
            return;
        }
        let is_known = known.is_some();
        let race = Arc::new(Race(Mutex::new(Some((reply, known)))));
        let (late_race, late_send) = (race.clone(), send.clone());
        if is_known {
            let (state, stats) = (self.state.clone(), self.stats.clone());
            self.timer.after(self.state.patience(), move || {
                let taken = late_race.0.lock().take();
                if let Some((reply, Some(known))) = taken {
                    if !state.suspect.swap(true, Ordering::Relaxed) {
                        tracing::debug!("the source takes long; cached files stay readable");
                    }
                    stats.served_unchecked.add(1);
                    late_send(reply, Ok(known));
                }
            });
        }
        let asked = move || {
            let begun = Instant::now();
            let answer = ask();
            let reached = !matches!(&answer, Err(error) if error.is_unreachable());
            if reached {
                state.answered(begun.elapsed());
            }
            (answer, reached)
        };
        self.place(key, asked, move |(answer, reached)| {
            let taken = race.0.lock().take();
            match (taken, answer) {
                (Some((reply, Some(known))), Err(_)) if !reached => send(reply, Ok(known)),
                (Some((reply, known)), answer) => {
                    send(reply, answer);
                    known.into_iter().for_each(&undo);
                }
                (None, Ok(answer)) => undo(answer),
                (None, Err(_)) => {}
            }
        });
    }

    /// While the source is suspect, one question at a time finds out when it answers again.
    fn probe<T: 'static>(
        &self,
        key: u64,
        ask: impl FnOnce() -> Result<T> + Send + 'static,
        undo: impl Fn(T) + Send + 'static,
    ) {
        if self.state.probing.swap(true, Ordering::AcqRel) {
            return;
        }
        let state = self.state.clone();
        self.pool.submit(key, move || {
            let begun = Instant::now();
            let answer = ask();
            if !matches!(&answer, Err(error) if error.is_unreachable()) {
                state.answered(begun.elapsed());
                tracing::debug!("the source answers again");
            }
            state.probing.store(false, Ordering::Release);
            if let Ok(answer) = answer {
                undo(answer);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use crossbeam_channel::{Receiver, Sender, bounded};
    use nix::errno::Errno;

    struct Bench {
        patience: Patience,
        answers: Receiver<(u32, Result<&'static str>)>,
        reply: Sender<(u32, Result<&'static str>)>,
    }

    fn bench(strict: bool) -> Bench {
        let (reply, answers) = bounded(16);
        let timer = Timer::start().expect("threads can be started");
        Bench {
            patience: Patience::new(Pool::new(8), timer, Arc::default(), strict, 0),
            answers,
            reply,
        }
    }

    impl Bench {
        fn ask(
            &self,
            number: u32,
            known: Option<&'static str>,
            ask: impl FnOnce() -> Result<&'static str> + Send + 'static,
        ) {
            self.patience.ask(
                u64::from(number),
                self.reply.clone(),
                || known,
                ask,
                move |reply, answer| reply.send((number, answer)).expect("the test listens"),
                drop,
            );
        }

        fn answer(&self) -> (u32, Result<&'static str>) {
            self.answers
                .recv_timeout(Duration::from_secs(20))
                .expect("every request is answered")
        }
    }

    #[test]
    fn a_hung_source_does_not_hold_a_known_answer() {
        let b = bench(false);
        let (release, hung) = bounded::<()>(0);
        let again = hung.clone();
        b.ask(1, Some("old"), move || {
            let _ = hung.recv();
            Ok("new")
        });
        assert_eq!(b.answer(), (1, Ok("old")));
        // Suspect now: answered at once, on this thread.
        b.ask(2, Some("old"), move || {
            let _ = again.recv();
            Ok("new")
        });
        assert_eq!(
            b.answers.try_recv().expect("already answered"),
            (2, Ok("old"))
        );
        // What is not known must wait.
        b.ask(3, None, || Ok("fetched"));
        assert_eq!(b.answer(), (3, Ok("fetched")));
        // That was an answer of the source: trust in it returns.
        b.ask(4, Some("old"), || Ok("new"));
        assert_eq!(b.answer(), (4, Ok("new")));
        drop(release);
    }

    #[test]
    fn unreachable_is_no_answer_but_absent_is() {
        let b = bench(false);
        b.ask(1, Some("old"), || Err(Error::new(Errno::EIO, "stat")));
        assert_eq!(b.answer(), (1, Ok("old")));
        b.ask(2, None, || Err(Error::new(Errno::EIO, "stat")));
        assert_eq!(b.answer().1.expect_err("an error").errno(), Errno::EIO);
        b.ask(3, Some("old"), || Err(Error::new(Errno::ENOENT, "stat")));
        assert_eq!(b.answer().1.expect_err("an error").errno(), Errno::ENOENT);
    }

    #[test]
    fn strict_waits_for_the_word_of_the_source() {
        let b = bench(true);
        let (release, held) = bounded::<()>(0);
        b.ask(1, Some("old"), move || {
            let _ = held.recv();
            Ok("new")
        });
        b.ask(2, Some("old"), || Err(Error::new(Errno::EIO, "stat")));
        assert_eq!(b.answer().1.expect_err("an error").errno(), Errno::EIO);
        drop(release);
        assert_eq!(b.answer(), (1, Ok("new")));
    }
}
