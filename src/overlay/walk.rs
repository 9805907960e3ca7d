//! Walks: a program that goes through a tree, directory by directory, and what is fetched before it gets there.
//!
//! `find`, `tar`, `rsync`, `git status`, a build or a thumbnailer all do the same: from one directory into its children, then
//! on to its siblings. Two visits in a row that fit are taken for a walk. From then on the directories that come next are
//! listed ahead, and, when the program has been seen to want that, their entries' attributes are fetched ([`Level`]), and
//! the contents of their small files.
//!
//! There are two kinds of visits, with a walk of its own for each: by listing a directory, and by asking for names in it
//! (`git` does first the one, then the other; what it wants in each differs).
//!
//! Promises:
//! * How far it runs ahead doubles with each directory that was fetched ahead and then visited, from [`DIRS_FIRST`] up to
//!   [`DIRS_MAX`] directories; a visit somewhere else ends it. So a person who opens a folder costs the source little.
//! * What is fetched ahead is needed within half of its ttl, as far as can be told, or it would be asked for twice:
//!   fewer names are fetched ahead of a slower source.
//! * Small files fetched ahead take at most an eighth of the memory tier.
//! * Everything happens on the pool for requests ahead of programs. An error of it is nobody's.

use super::attrs::Listing;
use super::sweep::{Order, order_of};
use super::{NodeId, Overlay, Trust};
use crate::clock::Moment;
use crate::span::Span;
use crate::sys::Stat;
use lru::LruCache;
use parking_lot::Mutex;
use std::ffi::{OsStr, OsString};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

/// Directories fetched ahead when a walk begins, and at most.
const DIRS_FIRST: usize = 2;
/// With 32 requests in flight and half a dozen for each directory, more than this cannot be under way.
const DIRS_MAX: usize = 64;

/// Names fetched ahead at most, however quick the source: what a fast program takes within a moment.
const NAMES_MAX: usize = 2048;
/// Entries of one directory whose attributes are fetched before it is visited; the sweep goes on when it is.
const NAMES_EACH: usize = 256;

/// What a directory costs beside its entries, in questions: its name, and opening, comparing and listing it.
const LISTING_COSTS: usize = 4;

/// Visits remembered: more than any program has directories in hand, with all its threads.
const VISITS: NonZeroUsize = NonZeroUsize::new(256).expect("not zero");

/// A program that has not visited anything for so long does something else; what was fetched for it was in vain.
const PAUSE: Duration = Duration::from_secs(5);

/// A file up to this size is fetched with one request, and whole.
pub(super) const SMALL: u64 = 128 << 10;

/// Small files of one directory that are fetched ahead, at first and at most.
const FILES_FIRST: usize = 8;
/// Four requests in flight for each file are twice the pool.
const FILES_MAX: usize = 64;

/// Absent names that are looked for in each directory, as git does for `.gitignore`.
const PROBES_MAX: usize = 4;

/// Places of directories that are looked at when the next ones are sought.
const STEPS_MAX: usize = 1024;

/// How a program visits directories.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum By {
    /// It lists them.
    Listing,
    /// It asks for names in them.
    Asking,
}

/// What a program wants of the directories that it visits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Level {
    /// Their names.
    Names,
    /// The attributes of their entries.
    Attributes,
    /// The contents of their small files.
    Contents,
}

/// Both walks of a mount.
#[derive(Default)]
pub(super) struct Walks([Mutex<Walk>; 2]);

impl Walks {
    fn of(&self, by: By) -> &Mutex<Walk> {
        &self.0[by as usize]
    }
}

struct Walk {
    visits: LruCache<NodeId, Visit>,
    /// Directories above those that were visited, and when.
    parents: LruCache<NodeId, Moment>,
    /// Fetched ahead and not visited yet: when, and how many names.
    ahead: LruCache<(NodeId, OsString), (Moment, usize)>,
    window: usize,
    /// Entries of a directory, as far as this walk has seen them: what one is taken for until it is listed.
    names_each: usize,
    looks_at_attributes: bool,
    /// Above zero: directories are visited in the order of their names.
    by_name: i32,
    /// Names that were looked for in vain, and in how many directories.
    probes: Vec<(OsString, u32)>,
}

impl Default for Walk {
    fn default() -> Walk {
        Walk {
            visits: LruCache::new(VISITS),
            parents: LruCache::new(VISITS),
            ahead: LruCache::new(VISITS),
            window: 0,
            names_each: 32,
            looks_at_attributes: false,
            by_name: 0,
            probes: Vec::new(),
        }
    }
}

struct Visit {
    at: Moment,
    /// Names that are there and were asked for.
    asked: u32,
    /// Small files that were opened, and the last one's name.
    opened: u32,
    last_opened: Option<OsString>,
    files_ahead: usize,
    /// How far in the order of the files they were fetched.
    fetched_to: usize,
}

/// A directory that comes next.
#[derive(Clone, Debug)]
struct Next {
    parent: NodeId,
    name: OsString,
}

impl Walk {
    fn order(&self) -> Order {
        if self.by_name > 0 {
            Order::Named
        } else {
            Order::Listed
        }
    }

    /// Has the program been there lately?
    fn is_visited(&self, dir: NodeId, now: Moment) -> bool {
        let visit = self.visits.peek(&dir);
        visit.is_some_and(|visit| now.since(visit.at) < PAUSE)
    }

    /// What the program will want of the next directory. Whether it looks at attributes is not seen any more once they are
    /// there before it asks; that it opens files is seen each time.
    fn level(&self) -> Level {
        let mut last = self.visits.iter().take(3);
        if last.any(|(_, visit)| visit.opened >= 2) {
            Level::Contents
        } else if self.looks_at_attributes {
            Level::Attributes
        } else {
            Level::Names
        }
    }

    /// A visit of `dir`, which is `name` in `parent`; false when there is nothing to do about it.
    fn visit(&mut self, dir: NodeId, (parent, name): (NodeId, &OsStr), now: Moment) -> bool {
        let recent = |at: &Moment| now.since(*at) < PAUSE;
        if let Some(visit) = self.visits.get_mut(&dir)
            && recent(&visit.at)
        {
            // Still, or once more: a program may open a directory twice.
            visit.at = now;
            return false;
        }
        let was_ahead = self.ahead.pop(&(parent, name.to_owned())).is_some();
        let is_near = self
            .visits
            .peek(&parent)
            .is_some_and(|visit| recent(&visit.at))
            || self.parents.peek(&parent).is_some_and(recent);
        self.window = if was_ahead {
            (self.window * 2).clamp(DIRS_FIRST, DIRS_MAX)
        } else if is_near {
            self.window.max(DIRS_FIRST)
        } else {
            self.looks_at_attributes = false;
            self.probes.clear();
            0
        };
        self.parents.put(parent, now);
        let visit = Visit {
            at: now,
            asked: 0,
            opened: 0,
            last_opened: None,
            files_ahead: 0,
            fetched_to: 0,
        };
        self.visits.put(dir, visit);
        self.window > 0
    }

    /// Names that are fetched ahead, and may still be believed when the program gets there.
    fn names_ahead(&self, now: Moment, ttl: Duration) -> usize {
        let wanted = self
            .ahead
            .iter()
            .filter(|(_, (at, _))| now.since(*at) < ttl);
        wanted.map(|(_, (_, names))| names).sum()
    }

    /// `name`, which is not in `dir`, was looked for.
    fn probed(&mut self, name: &OsStr) {
        match self.probes.iter_mut().find(|(known, _)| known == name) {
            Some((_, dirs)) => *dirs += 1,
            None => {
                if self.probes.len() >= PROBES_MAX {
                    self.probes.retain(|(_, dirs)| *dirs > 1);
                }
                if self.probes.len() < PROBES_MAX {
                    self.probes.push((name.to_owned(), 1));
                }
            }
        }
    }
}

impl Overlay {
    /// A program lists `dir`.
    pub(super) fn visited(&self, dir: NodeId) {
        if self.runs_ahead() {
            self.visit(By::Listing, dir);
        }
    }

    /// A program asked for `name` in `dir`, and this is what it is.
    pub(super) fn looked(&self, dir: NodeId, name: &OsStr, found: Option<&Stat>) {
        if !self.runs_ahead() {
            return;
        }
        let now = self.now();
        let by = self.visited_by(dir, now);
        if by == By::Asking {
            self.visit(By::Asking, dir);
        }
        let mut walk = self.walks.of(by).lock();
        if let Some(stat) = found {
            if stat.is_dir() {
                // On the way to somewhere else.
                return;
            }
            let Some(visit) = walk.visits.get_mut(&dir) else {
                return;
            };
            visit.asked += 1;
            if visit.asked == 2 {
                walk.looks_at_attributes = true;
            }
        } else {
            walk.probed(name);
        }
    }

    /// How `dir` is being visited: who has listed it asks for names in it, too.
    fn visited_by(&self, dir: NodeId, now: Moment) -> By {
        let lists = self.walks.of(By::Listing).lock();
        if lists.is_visited(dir, now) {
            By::Listing
        } else {
            By::Asking
        }
    }

    fn visit(&self, by: By, dir: NodeId) {
        let Some(at) = self.name_of(dir) else {
            // The root: where walks begin. It has no siblings.
            let now = self.now();
            self.walks
                .of(by)
                .lock()
                .visit(dir, (dir, OsStr::new("")), now);
            return;
        };
        let now = self.now();
        if !self.walks.of(by).lock().visit(dir, (at.0, &at.1), now) {
            return;
        }
        // Not here, on a FUSE thread: a large listing is put in order for it.
        self.ahead(dir, move |overlay| {
            overlay.vote(by, &at);
            overlay.run_ahead(by, dir);
        });
    }

    /// The name that a node was seen under last.
    pub(super) fn name_of(&self, id: NodeId) -> Option<(NodeId, OsString)> {
        self.inodes.lock().get(id)?.names.first().cloned()
    }

    /// Is it the one before in the listing, or the one before by name, that was visited lately?
    fn vote(&self, by: By, (parent, name): &(NodeId, OsString)) {
        let Some(listing) = self.listing_known(*parent, Trust::Any) else {
            return;
        };
        let before = |order| {
            let at = listing.dirs_up_to(name, order)?.checked_sub(2)?;
            let child = listing.name(*listing.dirs(order).get(at)?);
            self.child(*parent, child)
        };
        let [listed, named] = [before(Order::Listed), before(Order::Named)];
        let mut walk = self.walks.of(by).lock();
        let was_visited = |id: Option<NodeId>| id.is_some_and(|id| walk.visits.contains(&id));
        let vote = i32::from(was_visited(named)) - i32::from(was_visited(listed));
        walk.by_name = (walk.by_name + vote).clamp(-4, 4);
    }

    fn child(&self, parent: NodeId, name: &OsStr) -> Option<NodeId> {
        self.inodes.lock().get(parent)?.children.get(name)?.node
    }

    /// Fetch the directories that come after `dir`.
    fn run_ahead(&self, by: By, dir: NodeId) {
        let (window, order) = {
            let walk = self.walks.of(by).lock();
            (walk.window, walk.order())
        };
        let now = self.now();
        let names_max = self.names_ahead_max();
        tracing::trace!(
            "walk {by:?}: at {}, {window} ahead, {order:?}",
            self.path(dir).display()
        );
        for next in self.next_dirs(dir, window, order) {
            let child = self.child(next.parent, &next.name);
            {
                let mut walk = self.walks.of(by).lock();
                let key = (next.parent, next.name.clone());
                let fetched = walk.ahead.peek(&key);
                let fetched = fetched.is_some_and(|(at, _)| now.since(*at) < self.ttl().min(PAUSE));
                // The program may have overtaken this job.
                if fetched || child.is_some_and(|child| walk.is_visited(child, now)) {
                    continue;
                }
                let names_max = match walk.level() {
                    // An opening, a comparison and a read for each file, beside its attributes.
                    Level::Contents => names_max / 3,
                    _ => names_max,
                };
                if walk.names_ahead(now, self.ttl()) >= names_max {
                    return;
                }
                let names = match walk.level() {
                    Level::Names => LISTING_COSTS,
                    _ => LISTING_COSTS + walk.names_each,
                };
                walk.ahead.put(key, (now, names));
            }
            // A turn of its own: siblings need not wait for one another.
            let mut key = DefaultHasher::new();
            (next.parent.0, &next.name).hash(&mut key);
            self.ahead_in_turn(key.finish(), move |overlay| overlay.fetch_dir(by, &next));
        }
    }

    /// Names that can be fetched and used within half of their ttl.
    fn names_ahead_max(&self) -> usize {
        let threads = self.asking_ahead().map_or(0, |pool| pool.threads_max());
        let each = self.pace.usual().as_secs_f64().max(1e-6);
        let names = threads as f64 * self.ttl().as_secs_f64() / 2.0 / each;
        (names as usize).clamp(threads, NAMES_MAX)
    }

    /// The directories that a walk visits after `dir`: those in it, then its siblings, then those of the directories above.
    fn next_dirs(&self, dir: NodeId, count: usize, order: Order) -> Vec<Next> {
        let mut next = Vec::new();
        let mut steps = 0;
        self.dirs_in(dir, 0, order, count, &mut steps, &mut next);
        let mut at = dir;
        while next.len() < count && steps < STEPS_MAX {
            let Some((parent, name)) = self.name_of(at) else {
                break;
            };
            if let Some(listing) = self.listing_known(parent, Trust::Any)
                && let Some(from) = listing.dirs_up_to(&name, order)
            {
                self.dirs_in(parent, from, order, count, &mut steps, &mut next);
            }
            at = parent;
        }
        next
    }

    /// The directories in `dir`, each followed by those below it, as far as they are known.
    fn dirs_in(
        &self,
        dir: NodeId,
        from: usize,
        order: Order,
        count: usize,
        steps: &mut usize,
        next: &mut Vec<Next>,
    ) {
        let Some(listing) = self.listing_known(dir, Trust::Any) else {
            return;
        };
        for &place in listing.dirs(order).iter().skip(from) {
            *steps += 1;
            if next.len() >= count || *steps >= STEPS_MAX {
                return;
            }
            let name = listing.name(place).to_owned();
            let child = self.child(dir, &name);
            next.push(Next { parent: dir, name });
            if let Some(child) = child {
                self.dirs_in(child, 0, order, count, steps, next);
            }
        }
    }

    /// List a directory before the program gets there, and fetch what it will want of it.
    fn fetch_dir(&self, by: By, next: &Next) {
        self.await_name(next.parent, &next.name);
        let Some(dir) = self.child(next.parent, &next.name) else {
            return;
        };
        if self.walks.of(by).lock().is_visited(dir, self.now()) {
            // The program was faster.
            return;
        }
        tracing::trace!("walk {by:?}: fetching {}", next.name.display());
        let listing = match self.listing_now(dir) {
            Ok(listing) => listing,
            Err(error) => {
                tracing::debug!("walk: {error}");
                return;
            }
        };
        let (level, order, probes) = {
            let mut walk = self.walks.of(by).lock();
            let names = listing.entries.len().clamp(1, NAMES_EACH);
            walk.names_each = (walk.names_each * 3 + names).div_ceil(4);
            if let Some((_, ahead)) = walk.ahead.peek_mut(&(next.parent, next.name.clone()))
                && *ahead > LISTING_COSTS
            {
                *ahead = LISTING_COSTS + names;
            }
            let probes = walk.probes.iter().filter(|(_, dirs)| *dirs > 1);
            let probes: Vec<OsString> = probes.map(|(name, _)| name.clone()).collect();
            (walk.level(), walk.order(), probes)
        };
        for probe in probes {
            self.ahead(dir, move |overlay| overlay.fetch_name(dir, &probe));
        }
        if level >= Level::Attributes {
            self.sweep(dir, &listing, order, None, NAMES_EACH);
        }
        if level == Level::Contents {
            self.fetch_files(dir, &listing, order, 0, FILES_FIRST);
        }
    }

    /// A program opened the small file `id` for reading.
    pub(super) fn opened_small(&self, id: NodeId) {
        if !self.runs_ahead() {
            return;
        }
        let Some((dir, name)) = self.name_of(id) else {
            return;
        };
        let by = self.visited_by(dir, self.now());
        {
            let mut walk = self.walks.of(by).lock();
            let Some(visit) = walk.visits.get_mut(&dir) else {
                return;
            };
            visit.opened += 1;
            if visit.opened >= 2 {
                visit.files_ahead = (visit.files_ahead * 2).clamp(FILES_FIRST, FILES_MAX);
            }
            if walk.level() < Level::Contents {
                return;
            }
        }
        self.ahead(dir, move |overlay| {
            overlay.fetch_files_after(by, dir, &name)
        });
    }

    /// Fetch the small files that come after `name`.
    fn fetch_files_after(&self, by: By, dir: NodeId, name: &OsString) {
        let last = {
            let mut walk = self.walks.of(by).lock();
            let visit = walk.visits.get_mut(&dir);
            visit.and_then(|visit| visit.last_opened.replace(name.clone()))
        };
        let Some(listing) = self.listing_known(dir, Trust::Any) else {
            return;
        };
        let order = match &last {
            Some(last) => order_of(&listing, [Some(last), Some(name)]),
            None => self.walks.of(by).lock().order(),
        };
        let Some(rank) = listing.rank(name) else {
            return;
        };
        let behind = order.position(&listing, rank) + 1;
        let (from, count) = {
            let mut walk = self.walks.of(by).lock();
            let Some(visit) = walk.visits.get_mut(&dir) else {
                return;
            };
            let count = visit.files_ahead.max(FILES_FIRST);
            // Jumped back, or so far that nothing fetched is ahead any more.
            if visit.fetched_to < behind || visit.fetched_to > behind + FILES_MAX {
                visit.fetched_to = behind;
            }
            let from = visit.fetched_to;
            let to = (behind + count).min(listing.entries.len());
            visit.fetched_to = visit.fetched_to.max(to);
            (from, to.saturating_sub(from))
        };
        tracing::trace!(
            "walk {by:?}: {count} files of {} from {from} on, {order:?}",
            dir.0
        );
        self.fetch_files(dir, &listing, order, from, count);
    }

    /// Fetch the small ones among the next `count` entries.
    fn fetch_files(
        &self,
        dir: NodeId,
        listing: &Arc<Listing>,
        order: Order,
        from: usize,
        count: usize,
    ) {
        let Some(reads) = self.background() else {
            return;
        };
        let most = (self.cache.bytes_max() / 8 / SMALL) as usize;
        for at in (from..listing.entries.len()).take(count.min(most)) {
            let place = order.place(listing, at);
            if listing.entries[place as usize].kind != crate::sys::S_IFREG {
                continue;
            }
            let listing = listing.clone();
            self.submit(reads, dir.0, move |overlay| {
                overlay.fetch_small(dir, listing.name(place));
            });
        }
    }

    fn fetch_small(&self, dir: NodeId, name: &OsStr) {
        self.await_name(dir, name);
        let Some(id) = self.child(dir, name) else {
            return;
        };
        let Some((stat, _)) = self.getattr_known(id, Trust::Any) else {
            return;
        };
        let file = self.inodes.lock().get(id).map(|node| node.file);
        let is_there = file.is_some_and(|file| self.cache.holds(file));
        if !stat.is_file() || stat.size == 0 || stat.size > SMALL || is_there {
            return;
        }
        let span = Span::new(0, stat.size);
        if let Err(error) = self.file_to_read(id).and_then(|file| file.read_at(span)) {
            tracing::debug!("walk: {error}");
        }
    }
}
