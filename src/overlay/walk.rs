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
//! * What is fetched ahead takes a quarter of its ttl to fetch, as far as can be told, or it would be asked for twice:
//!   fewer names are fetched ahead of a slower source.
//! * Small files fetched ahead take at most an eighth of the memory tier.
//! * Everything happens on the pool for requests ahead of programs. An error of it is nobody's.

mod fetch;

use super::NodeId;
use super::sweep::Order;
use crate::clock::Moment;
use lru::LruCache;
use parking_lot::Mutex;
use std::ffi::{OsStr, OsString};
use std::num::NonZeroUsize;
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
    /// Small files that were opened, one after the other.
    opened: u32,
    last_opened: Option<NodeId>,
    files_ahead: usize,
    /// The one behind which files were fetched last.
    fetched_after: Option<OsString>,
    /// Up to the end of the directory: who opens one again finds it, or does without.
    all_fetched: bool,
    /// How far in the order of the files they were fetched.
    fetched_to: usize,
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
            fetched_after: None,
            all_fetched: false,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use std::time::UNIX_EPOCH;

    const TREE: NodeId = NodeId(10);

    struct World {
        walk: Walk,
        clock: Clock,
    }

    impl World {
        fn new() -> World {
            World {
                walk: Walk::default(),
                clock: Clock::manual(UNIX_EPOCH),
            }
        }

        /// Visit the directory with this number, in `parent`; returns how far to run ahead of it.
        fn visit(&mut self, dir: u64, parent: NodeId) -> usize {
            self.clock.advance(Duration::from_millis(100));
            let name = dir.to_string();
            let runs = self
                .walk
                .visit(NodeId(dir), (parent, name.as_ref()), self.clock.now());
            if runs { self.walk.window } else { 0 }
        }

        fn fetched(&mut self, dir: u64, names: usize) {
            let key = (TREE, dir.to_string().into());
            self.walk.ahead.put(key, (self.clock.now(), names));
        }
    }

    #[test]
    fn two_visits_that_fit_are_a_walk_and_it_doubles_with_what_is_used() {
        let mut w = World::new();
        assert_eq!(w.visit(10, NodeId::ROOT), 0, "one visit is none");
        assert_eq!(w.visit(11, TREE), DIRS_FIRST, "a child of the last");
        assert_eq!(w.visit(12, TREE), DIRS_FIRST, "a sibling");
        for (dir, window) in [(13, 4), (14, 8), (15, 16), (16, 32), (17, 64), (18, 64)] {
            w.fetched(dir, 10);
            assert_eq!(w.visit(dir, TREE), window);
        }
        assert_eq!(
            w.visit(19, TREE),
            64,
            "one that was not fetched in time changes nothing"
        );
        assert_eq!(w.visit(19, TREE), 0, "nor does the same directory again");
    }

    #[test]
    fn a_jump_or_a_pause_ends_it() {
        let mut w = World::new();
        w.visit(11, TREE);
        assert_eq!(w.visit(12, TREE), DIRS_FIRST);
        w.walk.looks_at_attributes = true;
        assert_eq!(w.visit(99, NodeId(98)), 0);
        assert_eq!(w.walk.level(), Level::Names);
        w.clock.advance(PAUSE);
        assert_eq!(w.visit(13, TREE), 0);
    }

    #[test]
    fn what_was_fetched_counts_until_it_is_visited_or_expires() {
        let mut w = World::new();
        w.visit(11, TREE);
        w.fetched(12, 30);
        w.fetched(13, 20);
        let ahead = |w: &World| w.walk.names_ahead(w.clock.now(), Duration::from_secs(1));
        assert_eq!(ahead(&w), 50);
        w.visit(12, TREE);
        assert_eq!(ahead(&w), 20);
        w.clock.advance(Duration::from_secs(1));
        assert_eq!(ahead(&w), 0);
    }

    #[test]
    fn contents_are_wanted_by_who_has_just_opened_files() {
        let mut w = World::new();
        w.visit(11, TREE);
        w.walk.looks_at_attributes = true;
        w.walk.visits.get_mut(&NodeId(11)).expect("visited").opened = 2;
        assert_eq!(w.walk.level(), Level::Contents);
        for dir in 12..15 {
            assert_eq!(w.walk.level(), Level::Contents);
            w.visit(dir, TREE);
        }
        assert_eq!(
            w.walk.level(),
            Level::Attributes,
            "three directories without"
        );
    }

    /// What is looked for in each directory is remembered, what is looked for once is not.
    #[test]
    fn absent_names_are_remembered_when_they_are_a_habit() {
        let mut walk = Walk::default();
        for number in 0..10 {
            walk.probed(OsStr::new(".gitignore"));
            walk.probed(OsStr::new(&format!("once {number}")));
        }
        assert!(walk.probes.len() <= PROBES_MAX);
        assert!(
            walk.probes
                .iter()
                .any(|(name, dirs)| name == ".gitignore" && *dirs == 10)
        );
    }
}
