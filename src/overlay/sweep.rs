//! Sweeps: the attributes of a directory's entries, asked for side by side.
//!
//! A program that looks at one entry of a directory after the other pays one round trip for each. When it has looked at two
//! that memory could not answer for, the directory is listed (one comparison, if the listing is known), and the attributes of
//! its entries are fetched in parallel, in the order in which the program goes: that of the listing (`ls -l`, `find`,
//! `tar`) or that of the names (git, rsync).
//!
//! Promises:
//! * A sweep runs ahead of the program by a window that doubles as the program uses what was fetched, and halves when it comes
//!   so late that the answer has expired; it stops when the program stops asking. So attributes are fetched twice only by
//!   mistake, and a source that is too slow for its ttl is not flooded with questions.
//! * A program never waits for a sweep, only for an answer that the sweep has asked for already.
//! * A source that answers quickly is not swept: handing over costs more than asking.
//! * Bounded: [`SWEEPS_MAX`] directories are remembered, and what they learn is in the table of nodes, which has its limit.

use super::attrs::Listing;
use super::{NodeId, Overlay, Trust};
use crate::clock::Moment;
use crate::error::Result;
use crate::workers::Pool;
use lru::LruCache;
use parking_lot::Mutex;
use std::ffi::{OsStr, OsString};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Directories whose questions are counted at once.
pub(super) const SWEEPS_MAX: NonZeroUsize = NonZeroUsize::new(256).expect("not zero");

/// Questions that memory could not answer before a directory is swept: two by the same program are a habit.
const ASKED_MIN: u32 = 2;

/// Entries that a sweep is ahead at first: half of what the source is asked at once.
const WINDOW_FIRST: usize = 16;
const WINDOW_MIN: usize = 1;
const WINDOW_MAX: usize = 256;

/// Threads that go through a directory together overtake each other by so much.
pub(super) const NEAR: usize = 4;

/// A program that has not asked for so long does something else.
const PAUSE: Duration = Duration::from_secs(3);

/// In which order a program goes through a directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Order {
    /// As the directory is listed.
    Listed,
    /// By name.
    Named,
}

/// All sweeps.
pub(super) struct Sweeps {
    tallies: Mutex<LruCache<NodeId, Tally>>,
    /// Sweeps that have names left: without any, an answer from memory need not be counted.
    active: AtomicUsize,
}

/// What was asked in one directory.
struct Tally {
    asked: u32,
    last: Moment,
    /// The last two names.
    names: [Option<OsString>; 2],
    state: State,
}

enum State {
    Idle,
    Listing,
    Sweeping(Arc<Sweep>),
}

/// A sweep of one directory.
pub(super) struct Sweep {
    dir: NodeId,
    listing: Arc<Listing>,
    order: Order,
    /// Where in that order it began; it goes round.
    start: usize,
    progress: Mutex<Progress>,
}

struct Progress {
    /// Names taken so far.
    next: usize,
    /// Behind the last name that the program asked for.
    used: usize,
    window: usize,
    running: usize,
}

/// What memory said to a question of a program.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Said {
    /// The answer.
    Answer,
    /// It is being asked already.
    Soon,
    /// Nothing, or nothing that may be believed any more.
    Nothing,
}

impl Default for Sweeps {
    fn default() -> Sweeps {
        Sweeps {
            tallies: Mutex::new(LruCache::new(SWEEPS_MAX)),
            active: AtomicUsize::new(0),
        }
    }
}

impl Sweeps {
    fn tally<'a>(
        &self,
        tallies: &'a mut LruCache<NodeId, Tally>,
        dir: NodeId,
        now: Moment,
    ) -> &'a mut Tally {
        if !tallies.contains(&dir)
            && tallies.len() >= SWEEPS_MAX.get()
            && let Some((_, mut oldest)) = tallies.pop_lru()
        {
            self.idle(&mut oldest);
        }
        tallies.get_or_insert_mut(dir, || Tally {
            asked: 0,
            last: now,
            names: [None, None],
            state: State::Idle,
        })
    }

    /// No sweep goes on there any more. (Requests of it that are under way come to their end.)
    fn idle(&self, tally: &mut Tally) {
        if matches!(tally.state, State::Sweeping(_)) {
            self.active.fetch_sub(1, Ordering::Relaxed);
        }
        tally.state = State::Idle;
    }
}

impl Sweep {
    fn len(&self) -> usize {
        self.listing.entries.len()
    }

    /// Where `name` stands in the order of the sweep.
    fn position(&self, name: &OsStr) -> Option<usize> {
        let rank = self.listing.rank(name)?;
        let at = self.order.position(&self.listing, rank);
        Some((at + self.len() - self.start) % self.len())
    }

    /// The program asked for `name`, and memory said this.
    fn asked(&self, name: &OsStr, said: Said) {
        let Some(at) = self.position(name) else {
            return;
        };
        let mut progress = self.progress.lock();
        let was_taken = at < progress.next;
        if was_taken && said == Said::Nothing {
            // It came too early, or the program is somewhere else: go on from there, with less.
            progress.window = (progress.window / 2).max(WINDOW_MIN);
            progress.next = at + 1;
            progress.used = at + 1;
        } else if at >= progress.used {
            if was_taken {
                progress.window = (progress.window * 2).min(WINDOW_MAX);
            }
            progress.next = progress.next.max(at + 1);
            progress.used = at + 1;
        }
    }

    /// How many more jobs it needs, to be `window` ahead.
    fn jobs(&self, jobs_max: usize) -> usize {
        let mut progress = self.progress.lock();
        let allowed = (progress.used + progress.window).min(self.len());
        let left = allowed.saturating_sub(progress.next);
        let jobs = left.min(jobs_max).saturating_sub(progress.running);
        progress.running += jobs;
        jobs
    }

    /// The next name; `None` when there is none, or it is too far ahead.
    fn take(&self) -> Option<&OsStr> {
        let mut progress = self.progress.lock();
        if progress.next >= (progress.used + progress.window).min(self.len()) {
            progress.running -= 1;
            return None;
        }
        let at = (self.start + progress.next) % self.len();
        progress.next += 1;
        drop(progress);
        Some(self.listing.name(self.order.place(&self.listing, at)))
    }

    fn is_done(&self) -> bool {
        let progress = self.progress.lock();
        progress.next >= self.len() && progress.running == 0
    }
}

/// The order that two names, asked one after the other, speak for.
pub(super) fn order_of(listing: &Listing, names: [Option<&OsStr>; 2]) -> Order {
    let [Some(before), Some(last)] = names else {
        return Order::Listed;
    };
    let (Some(a), Some(b)) = (listing.rank(before), listing.rank(last)) else {
        return Order::Listed;
    };
    let near = |a: usize, b: usize| a < b && b - a <= NEAR;
    let place = |rank: usize| listing.by_name()[rank] as usize;
    if near(a, b) && !near(place(a), place(b)) {
        Order::Named
    } else {
        Order::Listed
    }
}

impl Order {
    /// The place in the listing of the entry that stands at `at` in this order.
    pub(super) fn place(self, listing: &Listing, at: usize) -> u32 {
        match self {
            Order::Listed => at as u32,
            Order::Named => listing.by_name()[at],
        }
    }

    /// Where the entry with this rank by name stands in this order.
    pub(super) fn position(self, listing: &Listing, rank: usize) -> usize {
        match self {
            Order::Listed => listing.by_name()[rank] as usize,
            Order::Named => rank,
        }
    }
}

impl Overlay {
    /// A program asked about `name` in `dir`, and memory had no answer.
    pub(super) fn missed(&self, dir: NodeId, name: &OsStr) {
        if !self.runs_ahead() {
            return;
        }
        let now = self.now();
        let mut tallies = self.sweeps.tallies.lock();
        let tally = self.sweeps.tally(&mut tallies, dir, now);
        if now.since(tally.last) > PAUSE {
            tally.asked = 0;
            self.sweeps.idle(tally);
        }
        tally.last = now;
        // The same name again is on the way to somewhere else.
        if tally.names[1].as_deref() != Some(name) {
            tally.asked += 1;
            tally.names.swap(0, 1);
            tally.names[1] = Some(name.to_owned());
        }
        match &tally.state {
            State::Idle if tally.asked >= ASKED_MIN => {
                tally.state = State::Listing;
                let names = tally.names.clone();
                drop(tallies);
                self.ahead(dir, move |overlay| overlay.sweep_after(dir, &names));
            }
            State::Sweeping(sweep) => {
                let sweep = sweep.clone();
                drop(tallies);
                let is_soon = self.questions.is_under_way(dir, name);
                sweep.asked(name, if is_soon { Said::Soon } else { Said::Nothing });
                self.run_sweep(&sweep);
            }
            _ => {}
        }
    }

    /// A program asked in `dir`, and memory had the answer.
    pub(super) fn hit(&self, dir: NodeId, name: &OsStr) {
        if self.sweeps.active.load(Ordering::Relaxed) == 0 {
            return;
        }
        let sweep = {
            let mut tallies = self.sweeps.tallies.lock();
            let Some(tally) = tallies.peek_mut(&dir) else {
                return;
            };
            tally.last = self.now();
            match &tally.state {
                State::Sweeping(sweep) => sweep.clone(),
                _ => return,
            }
        };
        sweep.asked(name, Said::Answer);
        self.run_sweep(&sweep);
    }

    /// List `dir` and sweep it from the last of `names` on.
    fn sweep_after(&self, dir: NodeId, names: &[Option<OsString>; 2]) {
        match self.listing_now(dir) {
            Ok(listing) => {
                let names = names.each_ref().map(Option::as_deref);
                if names[1].is_none_or(|name| listing.rank(name).is_none()) {
                    // Looking for what is not there says nothing about what is.
                    return self.no_sweep(dir);
                }
                let order = order_of(&listing, names);
                self.sweep(dir, &listing, order, names[1], WINDOW_FIRST);
            }
            Err(error) => {
                tracing::debug!("sweep: {error}");
                self.no_sweep(dir);
            }
        }
    }

    fn no_sweep(&self, dir: NodeId) {
        if let Some(tally) = self.sweeps.tallies.lock().peek_mut(&dir) {
            tally.asked = 0;
            self.sweeps.idle(tally);
        }
    }

    /// The listing of `dir`, from memory if it may be believed.
    pub(super) fn listing_now(&self, dir: NodeId) -> Result<Arc<Listing>> {
        match self.listing_known(dir, Trust::Ttl) {
            Some(listing) => Ok(listing),
            None => self.listing_once(dir),
        }
    }

    /// Fetch the attributes of the entries of `dir` behind `from`, `window` of them at first.
    pub(super) fn sweep(
        &self,
        dir: NodeId,
        listing: &Arc<Listing>,
        order: Order,
        from: Option<&OsStr>,
        window: usize,
    ) {
        if listing.entries.is_empty() {
            return;
        }
        // Put in order here, and not when a FUSE thread first asks for a position.
        listing.by_name();
        let rank = from.and_then(|name| listing.rank(name));
        let start = rank.map_or(0, |rank| order.position(listing, rank) + 1);
        let sweep = Arc::new(Sweep {
            dir,
            order,
            start: start % listing.entries.len(),
            listing: listing.clone(),
            progress: Mutex::new(Progress {
                next: 0,
                used: 0,
                window,
                running: 0,
            }),
        });
        let now = self.now();
        let mut tallies = self.sweeps.tallies.lock();
        let tally = self.sweeps.tally(&mut tallies, dir, now);
        if let State::Sweeping(_) = tally.state {
            return;
        }
        tracing::trace!("sweep of {}, {order:?}, {window} ahead", dir.0);
        tally.last = now;
        tally.state = State::Sweeping(sweep.clone());
        self.sweeps.active.fetch_add(1, Ordering::Relaxed);
        drop(tallies);
        self.run_sweep(&sweep);
    }

    fn run_sweep(&self, sweep: &Arc<Sweep>) {
        let jobs_max = self.asking_ahead().map_or(0, |pool| pool.threads_max());
        for _ in 0..sweep.jobs(jobs_max) {
            let sweep = sweep.clone();
            self.ahead(sweep.dir, move |overlay| overlay.sweep_on(sweep));
        }
    }

    /// Fetch one name, and come back for the next when other directories have had their turn.
    fn sweep_on(&self, sweep: Arc<Sweep>) {
        if let Some(name) = sweep.take() {
            self.fetch_name(sweep.dir, name);
            self.ahead(sweep.dir, move |overlay| overlay.sweep_on(sweep));
        } else if sweep.is_done() {
            self.end_sweep(&sweep);
        }
    }

    /// Nothing is left to ask: what expires later is swept anew, at the first question.
    fn end_sweep(&self, sweep: &Arc<Sweep>) {
        let mut tallies = self.sweeps.tallies.lock();
        if let Some(tally) = tallies.peek_mut(&sweep.dir)
            && matches!(&tally.state, State::Sweeping(own) if Arc::ptr_eq(own, sweep))
        {
            self.sweeps.idle(tally);
        }
    }

    /// Learn what `name` in `dir` is, unless that is known or being asked already.
    pub(super) fn fetch_name(&self, dir: NodeId, name: &OsStr) {
        if !self.questions.is_under_way(dir, name) {
            self.await_name(dir, name);
        }
    }

    /// The same; when it is being asked, wait for the answer.
    pub(super) fn await_name(&self, dir: NodeId, name: &OsStr) {
        if !self.knows(dir, name)
            && let Ok(entry) = self.lookup_once(dir, name)
        {
            drop(self.forget(entry.node, 1));
        }
    }

    /// Would memory answer a lookup now?
    pub(super) fn knows(&self, dir: NodeId, name: &OsStr) -> bool {
        let now = self.now();
        let inodes = self.inodes.lock();
        let Some(child) = inodes.get(dir).and_then(|node| node.children.get(name)) else {
            return false;
        };
        let attr_left = |id| inodes.get(id)?.attr.map(|attr| attr.ttl_left(now));
        !inodes.name_left(dir, child, now).is_zero()
            && child
                .node
                .is_none_or(|id| attr_left(id).is_some_and(|left| !left.is_zero()))
    }

    /// Is it worth while to run ahead of programs?
    pub(super) fn runs_ahead(&self) -> bool {
        !self.ttl().is_zero() && self.asking_ahead().is_some() && self.pace.usual() >= SLOW_MIN
    }

    /// Run a job ahead of programs. Jobs about the same directory take turns with those about others.
    pub(super) fn ahead(&self, dir: NodeId, job: impl FnOnce(&Arc<Overlay>) + Send + 'static) {
        self.ahead_in_turn(dir.0, job);
    }

    /// The same, for a job that takes its turn as `key`.
    pub(super) fn ahead_in_turn(&self, key: u64, job: impl FnOnce(&Arc<Overlay>) + Send + 'static) {
        if let Some(pool) = self.asking_ahead() {
            self.submit(pool, key, job);
        }
    }

    /// Run a job on a pool, unless the mount has ended by then.
    pub(super) fn submit(
        &self,
        pool: &Pool,
        key: u64,
        job: impl FnOnce(&Arc<Overlay>) + Send + 'static,
    ) {
        let Some(this) = self.this.get().cloned() else {
            return;
        };
        pool.submit(key, move || {
            if let Some(overlay) = this.upgrade() {
                job(&overlay);
            }
        });
    }
}

/// A source that answers within this time is as well asked one question after the other: several times what a hand-over to
/// another thread costs (17 to 54 us on an idle machine).
const SLOW_MIN: Duration = Duration::from_micros(300);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backing::Listed;
    use crate::cache::{FileId, Version};

    fn listing(names: &[&str]) -> Listing {
        let entry = |name: &&str| Listed {
            name: name.into(),
            ino: 1,
            kind: crate::sys::S_IFREG,
        };
        let version = Version {
            id: FileId { dev: 1, ino: 1 },
            size: 0,
            mtime: Default::default(),
            ctime: Default::default(),
        };
        Listing::new(names.iter().map(entry).collect(), version, false)
    }

    fn name(text: &str) -> Option<&OsStr> {
        Some(text.as_ref())
    }

    #[test]
    fn the_order_is_that_of_the_program() {
        let listing = listing(&["m", "c", "z", "a", "k", "b", "y", "x", "d", "w"]);
        assert_eq!(order_of(&listing, [name("a"), name("b")]), Order::Listed);
        assert_eq!(order_of(&listing, [name("d"), name("k")]), Order::Named);
        assert_eq!(order_of(&listing, [name("m"), name("c")]), Order::Listed);
        assert_eq!(order_of(&listing, [None, name("c")]), Order::Listed);
        assert_eq!(order_of(&listing, [name("gone"), name("c")]), Order::Listed);
    }

    fn sweep(order: Order, from: &str, window: usize) -> Sweep {
        let listing = Arc::new(listing(&["m", "c", "z", "a", "k", "b", "y", "x", "d", "w"]));
        let rank = listing.rank(from.as_ref()).expect("it is there");
        Sweep {
            dir: NodeId::ROOT,
            order,
            start: order.position(&listing, rank) + 1,
            listing,
            progress: Mutex::new(Progress {
                next: 0,
                used: 0,
                window,
                running: 1,
            }),
        }
    }

    fn take_all(sweep: &Sweep) -> String {
        let names = std::iter::from_fn(|| sweep.take()).map(OsStr::to_string_lossy);
        let taken = names.collect();
        sweep.progress.lock().running = 1;
        taken
    }

    #[test]
    fn a_sweep_goes_round_in_its_order_and_no_further_than_it_may() {
        assert_eq!(take_all(&sweep(Order::Named, "w", 4)), "xyza");
        assert_eq!(take_all(&sweep(Order::Listed, "x", 4)), "dwmc");
        assert_eq!(take_all(&sweep(Order::Named, "b", 100)).len(), 10);
    }

    #[test]
    fn what_is_used_doubles_the_window_and_what_expired_halves_it() {
        let sweep = sweep(Order::Named, "a", 4);
        assert_eq!(take_all(&sweep), "bcdk");
        sweep.asked("b".as_ref(), Said::Answer);
        assert_eq!(take_all(&sweep), "mwxyz", "eight behind the first");
        // The program comes back to a name whose answer has expired.
        sweep.asked("c".as_ref(), Said::Nothing);
        assert_eq!(take_all(&sweep), "dkmw");
        sweep.asked("d".as_ref(), Said::Soon);
        assert_eq!(take_all(&sweep), "xyza");
        sweep.asked("not there".as_ref(), Said::Nothing);
        assert_eq!(take_all(&sweep), "");
    }
}
