//! What a walk does: it is told what programs visit, ask for and open, and fetches what comes next.

use super::{
    By, FILES_FIRST, FILES_MAX, LISTING_COSTS, Level, NAMES_EACH, NAMES_MAX, PAUSE, SMALL,
    STEPS_MAX,
};
use crate::clock::Moment;
use crate::overlay::attrs::Listing;
use crate::overlay::sweep::{NEAR, Order, order_of};
use crate::overlay::{NodeId, Overlay, Trust};
use crate::span::Span;
use crate::sys::Stat;
use std::ffi::{OsStr, OsString};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

/// A directory that comes next.
#[derive(Clone, Debug)]
struct Next {
    parent: NodeId,
    name: OsString,
}

impl Overlay {
    /// A program lists `dir`.
    pub(in crate::overlay) fn visited(&self, dir: NodeId) {
        if self.runs_ahead() {
            self.visit(By::Listing, dir);
        }
    }

    /// A program asked for `name` in `dir`, and this is what it is.
    pub(in crate::overlay) fn looked(&self, dir: NodeId, name: &OsStr, found: Option<&Stat>) {
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
    pub(in crate::overlay) fn name_of(&self, id: NodeId) -> Option<(NodeId, OsString)> {
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

    /// Names that can be fetched within a quarter of their ttl: the rest is for the program to get there.
    fn names_ahead_max(&self) -> usize {
        let threads = self.asking_ahead().map_or(0, |pool| pool.threads_max());
        let each = self.pace.usual().as_secs_f64().max(1e-6);
        let names = threads as f64 * self.ttl().as_secs_f64() / 4.0 / each;
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
    pub(in crate::overlay) fn opened_small(&self, id: NodeId) {
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
            if visit.last_opened == Some(id) || visit.all_fetched {
                return;
            }
            visit.last_opened = Some(id);
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
            visit.and_then(|visit| visit.fetched_after.replace(name.clone()))
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
            visit.all_fetched = to == listing.entries.len();
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

    /// `ls -l` asks for the access control list of one entry after the other: when this is the second, fetch those that come
    /// next. (The kernel asks for one before each first write to a file, which says nothing about others.)
    pub(in crate::overlay) fn fetch_xattrs_after(&self, dir: NodeId, file: &OsStr, name: &OsStr) {
        let (file, name) = (file.to_owned(), name.to_owned());
        let about = (dir, name.clone());
        let Some(before) = self.xattrs_asked.lock().put(about, file.clone()) else {
            return;
        };
        self.ahead(dir, move |overlay| {
            let Some(listing) = overlay.listing_known(dir, Trust::Any) else {
                return;
            };
            let place = |file| Some(Order::Listed.position(&listing, listing.rank(file)?));
            let (Some(before), Some(last)) = (place(&before), place(&file)) else {
                return;
            };
            if !(before + 1..=before + NEAR).contains(&last) {
                return;
            }
            let from = last + 1;
            for place in (from..listing.entries.len()).take(FILES_MAX) {
                let (listing, name) = (listing.clone(), name.clone());
                overlay.ahead(dir, move |overlay| {
                    overlay.fetch_xattr(dir, listing.name(place as u32), &name);
                });
            }
        });
    }

    /// Only of what has been looked at: that a program wants the attributes of the others is not known.
    fn fetch_xattr(&self, dir: NodeId, file: &OsStr, name: &OsStr) {
        let Some(id) = self.child(dir, file) else {
            return;
        };
        let about = [file, name].join(OsStr::new("/"));
        if self.getattr_known(id, Trust::Ttl).is_none() || self.questions.is_under_way(dir, &about)
        {
            return;
        }
        if let Some(_asking) = self.questions.begin(dir, &about)
            && self.getxattr_known(id, name, 0, Trust::Ttl).is_none()
            && let Err(error) = self.getxattr_source(id, name, 0)
        {
            tracing::trace!("walk: {error}");
        }
    }
}
