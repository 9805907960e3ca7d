//! Threads: the pool that may wait for the source, and the timer that does not wait for anything.
//!
//! Promises of [`Pool`]:
//! * Submitting never blocks: it is called from FUSE threads, which must stay free for hits. What the kernel
//!   can have outstanding bounds the queue.
//! * Threads are started when a job finds none idle, up to the limit, and end after a while without work.
//! * One file cannot take them all: a key (the file) holds at most a share of the threads; its further jobs
//!   wait in a line of their own. So requests that hang in one place leave the rest of the source usable.
//! * Fair between files: keys that have jobs waiting take turns, whoever of them has the longer line.
//! * Shutdown runs what was accepted, and waits for it no longer than it is told to: a thread that hangs in
//!   a system call cannot be ended, only left behind.

use parking_lot::{Condvar, Mutex};
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Idle threads end after this long: long enough to survive the pauses of interactive work.
const IDLE_MAX: Duration = Duration::from_secs(10);

type Job = Box<dyn FnOnce() + Send>;

struct State {
    /// Keys whose next job may run, in the order of their turns. A key stands here at most once.
    turns: VecDeque<u64>,
    /// Jobs running, by key, and the jobs of that key that wait.
    keys: HashMap<u64, Line>,
    /// Jobs that wait for nothing but a thread.
    runnable: usize,
    threads: usize,
    idle: usize,
    stopping: bool,
    closed: bool,
}

#[derive(Default)]
struct Line {
    running: usize,
    waiting: VecDeque<Job>,
    /// The key stands in `turns`.
    has_turn: bool,
}

impl Line {
    fn runnable(&self, per_key_max: usize) -> usize {
        let places = per_key_max.saturating_sub(self.running);
        self.waiting.len().min(places)
    }
}

impl State {
    /// Change the line of `key`; then it stands in line for a turn if it has a job that may run.
    fn change<T>(
        &mut self,
        key: u64,
        per_key_max: usize,
        change: impl FnOnce(&mut Line) -> T,
    ) -> T {
        let line = self.keys.entry(key).or_default();
        let before = line.runnable(per_key_max);
        let result = change(line);
        let after = line.runnable(per_key_max);
        self.runnable = self.runnable + after - before;
        if after > 0 && !line.has_turn {
            line.has_turn = true;
            self.turns.push_back(key);
        }
        if line.running == 0 && line.waiting.is_empty() {
            self.keys.remove(&key);
        }
        result
    }

    /// The job whose turn it is.
    fn next(&mut self, per_key_max: usize) -> Option<(u64, Job)> {
        let key = self.turns.pop_front()?;
        let job = self.change(key, per_key_max, |line| {
            line.has_turn = false;
            line.running += 1;
            line.waiting.pop_front()
        });
        job.map(|job| (key, job))
    }

    /// A job of `key` is done: the next in its line may go.
    fn finish(&mut self, key: u64, per_key_max: usize) {
        self.change(key, per_key_max, |line| line.running -= 1);
    }
}

struct Shared {
    state: Mutex<State>,
    work: Condvar,
    ended: Condvar,
    threads_max: usize,
    per_key_max: usize,
}

/// Threads that may block in the source.
#[derive(Clone)]
pub struct Pool(Arc<Shared>);

impl Pool {
    /// A pool of at most `threads_max` threads (at least 4), of which one key holds at most a quarter.
    pub fn new(threads_max: usize) -> Pool {
        let threads_max = threads_max.max(4);
        Pool::shared_out(threads_max, threads_max / 4)
    }

    /// A pool of at most `threads_max` threads, of which one key holds at most `per_key_max`.
    pub fn shared_out(threads_max: usize, per_key_max: usize) -> Pool {
        Pool(Arc::new(Shared {
            state: Mutex::new(State {
                turns: VecDeque::new(),
                keys: HashMap::new(),
                runnable: 0,
                threads: 0,
                idle: 0,
                stopping: false,
                closed: false,
            }),
            work: Condvar::new(),
            ended: Condvar::new(),
            threads_max: threads_max.max(1),
            per_key_max: per_key_max.max(1),
        }))
    }

    /// Most threads, and so most jobs at once.
    pub fn threads_max(&self) -> usize {
        self.0.threads_max
    }

    /// Run `job` on a thread of the pool, after earlier jobs of the same `key` were at least started.
    pub fn submit(&self, key: u64, job: impl FnOnce() + Send + 'static) {
        let mut state = self.0.state.lock();
        if state.closed {
            return;
        }
        let before = state.runnable;
        let job: Job = Box::new(job);
        state.change(key, self.0.per_key_max, |line| line.waiting.push_back(job));
        if state.runnable == before {
            // Its key has all the threads that it may have.
        } else if state.idle >= state.runnable {
            self.0.work.notify_one();
        } else if state.threads < self.0.threads_max {
            state.threads += 1;
            let shared = self.0.clone();
            drop(state);
            let spawned = std::thread::Builder::new()
                .name("warmfs-io".into())
                .spawn(move || shared.run());
            if let Err(error) = spawned {
                // The threads that there are will come to it. Without any, the job runs here: better a
                // blocked caller than a request without an answer.
                tracing::warn!("cannot start an I/O thread: {error}");
                let mut state = self.0.state.lock();
                state.threads -= 1;
                if state.threads == 0 {
                    drop(state);
                    self.0.run_one_here();
                }
            }
        }
    }

    /// Do jobs of this key already wait for others of it? Then one more would only wait longer.
    pub fn is_clogged(&self, key: u64) -> bool {
        let state = self.0.state.lock();
        let line = state.keys.get(&key);
        line.is_some_and(|line| line.running >= self.0.per_key_max && !line.waiting.is_empty())
    }

    /// Drop what waits, and take nothing more: for work that nobody is answered about.
    pub fn close(&self) {
        let dropped: Vec<VecDeque<Job>> = {
            let mut state = self.0.state.lock();
            (state.stopping, state.closed) = (true, true);
            state.turns.clear();
            state.runnable = 0;
            let lines = state.keys.values_mut();
            lines
                .map(|line| std::mem::take(&mut line.waiting))
                .collect()
        };
        self.0.work.notify_all();
        drop(dropped);
    }

    /// Run what was accepted, then end; false when some thread did not come back in time.
    pub fn stop(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut state = self.0.state.lock();
        state.stopping = true;
        self.0.work.notify_all();
        while state.threads > 0 {
            if self.0.ended.wait_until(&mut state, deadline).timed_out() {
                return state.threads == 0;
            }
        }
        true
    }
}

impl Shared {
    fn run(&self) {
        let mut state = self.state.lock();
        loop {
            if let Some((key, job)) = state.next(self.per_key_max) {
                drop(state);
                job();
                state = self.state.lock();
                state.finish(key, self.per_key_max);
                continue;
            }
            if state.stopping {
                break;
            }
            state.idle += 1;
            let timed_out = self.work.wait_for(&mut state, IDLE_MAX).timed_out();
            state.idle -= 1;
            if timed_out && state.runnable == 0 {
                break;
            }
        }
        state.threads -= 1;
        self.ended.notify_all();
    }

    fn run_one_here(&self) {
        let next = self.state.lock().next(self.per_key_max);
        if let Some((key, job)) = next {
            job();
            self.state.lock().finish(key, self.per_key_max);
        }
    }
}

struct Due {
    at: Instant,
    job: Job,
}

impl PartialEq for Due {
    fn eq(&self, other: &Due) -> bool {
        self.at == other.at
    }
}
impl Eq for Due {}
impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Due) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Due {
    /// Reversed: the heap's greatest is the one that is due first.
    fn cmp(&self, other: &Due) -> std::cmp::Ordering {
        other.at.cmp(&self.at)
    }
}

/// How late a job of the timer may be.
const TIMER_GRAIN: Duration = Duration::from_millis(1);

struct Clockwork {
    heap: Mutex<(BinaryHeap<Due>, bool)>,
    earlier: Condvar,
}

/// One thread that runs small jobs when their time has come. The jobs must not block.
pub struct Timer(Arc<Clockwork>);

impl Timer {
    /// Start the thread. It ends when this handle is dropped; jobs that are not due by then do not run.
    pub fn start() -> std::io::Result<Timer> {
        let clockwork = Arc::new(Clockwork {
            heap: Mutex::new((BinaryHeap::new(), false)),
            earlier: Condvar::new(),
        });
        let thread = clockwork.clone();
        std::thread::Builder::new()
            .name("warmfs-timer".into())
            .spawn(move || thread.run())?;
        Ok(Timer(clockwork))
    }

    /// Run `job` after `delay`.
    pub fn after(&self, delay: Duration, job: impl FnOnce() + Send + 'static) {
        let due = Due {
            at: Instant::now() + delay,
            job: Box::new(job),
        };
        let mut heap = self.0.heap.lock();
        // Waking the thread costs a context switch: only for a job that is due before all others.
        let wake = heap.0.peek().is_none_or(|first| due.at < first.at);
        heap.0.push(due);
        if wake {
            self.0.earlier.notify_one();
        }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.0.heap.lock().1 = true;
        self.0.earlier.notify_one();
    }
}

impl Clockwork {
    fn run(&self) {
        let mut heap = self.heap.lock();
        while !heap.1 {
            match heap.0.peek().map(|due| due.at) {
                None => self.earlier.wait(&mut heap),
                Some(at) if at > Instant::now() => {
                    // Jobs come in swarms that are due microseconds apart: one waking serves many.
                    self.earlier.wait_until(&mut heap, at + TIMER_GRAIN);
                }
                Some(_) => {
                    let due = heap.0.pop();
                    parking_lot::MutexGuard::unlocked(&mut heap, || {
                        if let Some(due) = due {
                            (due.job)();
                        }
                    });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam_channel::bounded;

    #[test]
    fn one_file_that_hangs_leaves_threads_for_the_others() {
        let pool = Pool::new(8);
        let (release, blocked) = bounded::<()>(0);
        for _ in 0..20 {
            let blocked = blocked.clone();
            pool.submit(1, move || {
                let _ = blocked.recv();
            });
        }
        let (done, finished) = bounded(20);
        for key in 2..12 {
            let done = done.clone();
            pool.submit(key, move || done.send(key).expect("the test listens"));
        }
        for _ in 2..12 {
            finished
                .recv_timeout(Duration::from_secs(10))
                .expect("other keys run while key 1 hangs");
        }
        assert!(!pool.stop(Duration::from_millis(1)), "key 1 still hangs");
        drop(release);
        assert!(pool.stop(Duration::from_secs(10)), "all accepted jobs ran");
    }

    /// A file with a thousand jobs, and one with a single one that came last: it is the second to run, not the last.
    #[test]
    fn files_take_turns() {
        let pool = Pool::shared_out(1, 1);
        let (release, blocked) = bounded::<()>(0);
        pool.submit(0, move || {
            let _ = blocked.recv();
        });
        let (done, order) = bounded(1001);
        for number in 0..1000 {
            let done = done.clone();
            pool.submit(1, move || done.send(number).expect("the test listens"));
        }
        pool.submit(2, move || done.send(5000).expect("the test listens"));
        drop(release);
        let seen: Vec<i32> = order.iter().collect();
        assert_eq!(seen[..3], [0, 5000, 1]);
        assert_eq!(seen.len(), 1001);
    }

    #[test]
    fn a_closed_pool_runs_nothing_more() {
        let pool = Pool::shared_out(1, 1);
        let (release, blocked) = bounded::<()>(0);
        let (started, running) = bounded(0);
        pool.submit(0, move || {
            started.send(()).expect("the test listens");
            let _ = blocked.recv();
        });
        running.recv().expect("it starts");
        pool.submit(0, || panic!("dropped, not run"));
        pool.close();
        pool.submit(1, || panic!("not taken"));
        drop(release);
        assert!(pool.stop(Duration::from_secs(10)));
    }

    #[test]
    fn what_was_accepted_runs_before_the_end() {
        let pool = Pool::new(4);
        let count = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        for key in 0..1000 {
            let count = count.clone();
            pool.submit(key % 3, move || {
                count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            });
        }
        assert!(pool.stop(Duration::from_secs(10)));
        assert_eq!(count.load(std::sync::atomic::Ordering::SeqCst), 1000);
    }

    #[test]
    fn the_timer_runs_jobs_in_the_order_of_their_time() {
        let timer = Timer::start().expect("threads can be started");
        let (done, order) = bounded(3);
        for (name, delay) in [("late", 40), ("early", 1), ("middle", 20)] {
            let done = done.clone();
            timer.after(Duration::from_millis(delay), move || {
                done.send(name).expect("the test listens");
            });
        }
        let seen: Vec<_> = (0..3).map(|_| order.recv().expect("runs")).collect();
        assert_eq!(seen, ["early", "middle", "late"]);
    }
}
