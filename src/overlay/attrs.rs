//! What was last seen of a file or directory, and until when it is believed.

use super::inodes::Epoch;
use super::sweep::Order;
use crate::backing::Listed;
use crate::cache::Version;
use crate::clock::Moment;
use crate::sys::Stat;
use nix::errno::Errno;
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// How long something is believed while a watch would tell of its change: for ever, in numbers that the kernel can add to
/// its own time.
pub(super) const UNTIL_TOLD: Duration = Duration::from_secs(10 * 366 * 24 * 3600);

/// When the source was asked something, by each of the clocks that matter.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    /// Changes of ours that had ended by then.
    pub(super) epoch: Epoch,
    /// How long ago that is.
    pub(super) at: Moment,
    /// What the time stamps of files are compared with.
    pub(super) wall: i128,
}

/// Attributes and the moment at which the source was asked for them.
#[derive(Clone, Copy, Debug)]
pub struct Attr {
    /// What it said.
    pub stat: Stat,
    /// When it was asked.
    pub checked: Moment,
    /// When it had answered.
    answered: Moment,
    /// The file could have changed once more without a trace.
    racy: bool,
    /// For how long they are believed; set where they are stored.
    trust: Duration,
}

impl Attr {
    /// What the source said to a question, by `now`.
    pub(super) fn new(stat: Stat, asked: &Asked, now: Moment) -> Attr {
        Attr {
            stat,
            checked: asked.at,
            answered: now,
            racy: Version::of(&stat).is_racy(asked.wall),
            trust: Duration::ZERO,
        }
    }

    /// The same, believed until told.
    pub(super) fn vouched(self) -> Attr {
        Attr {
            trust: UNTIL_TOLD,
            ..self
        }
    }

    /// Are they believed until told?
    pub(super) fn is_vouched(&self) -> bool {
        self.trust == UNTIL_TOLD
    }

    /// Could the file have changed once more, when it was asked for, without a trace?
    pub(super) fn is_racy(&self) -> bool {
        self.racy
    }

    /// How much longer the attributes may be believed at `now`.
    pub fn ttl_left(&self, now: Moment) -> Duration {
        if self.is_vouched() {
            return UNTIL_TOLD;
        }
        self.trust.saturating_sub(now.since(self.checked))
    }

    /// For how long they are believed in all.
    pub(super) fn trust(&self) -> Duration {
        self.trust
    }

    /// The same, believed as `trust` says. `before` is what was known of the file until now.
    pub(super) fn trusted(self, before: Option<&Attr>, trust: &Trusting) -> Attr {
        let unchanged = before
            .filter(|before| !before.is_vouched())
            .filter(|before| Version::of(&before.stat) == Version::of(&self.stat))
            .filter(|_| !self.racy);
        Attr {
            trust: trust.next(
                unchanged.map(|before| (before.checked, before.trust)),
                self.checked,
            ),
            ..self
        }
    }
}

/// How long something is believed, as NFS does between `acregmin` and `acregmax` (nfs(5)): for `ttl` at first, and twice as
/// long each time that it was found unchanged after that time had passed, up to `ttl_max`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trusting {
    pub(super) ttl: Duration,
    pub(super) ttl_max: Duration,
    /// Names are held by the version of their directory no longer than this: some file systems (object stores) do not
    /// change a directory's times when a name comes or goes.
    pub(super) names_max: Duration,
}

impl Trusting {
    /// For how long something is believed that was asked for `now`. `unchanged`: when it was found to be the same before,
    /// and for how long that was believed.
    fn next(&self, unchanged: Option<(Moment, Duration)>, now: Moment) -> Duration {
        match unchanged {
            Some((then, trust)) if now.since(then) >= trust => (trust * 2).min(self.ttl_max),
            Some((_, trust)) => trust,
            None => self.ttl,
        }
    }
}

/// The version that a directory has, and since when: its names hold while it does. What was learned of a name since then is
/// as good as what is known of the version.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    /// `None`: it was racy, or a change of ours has ended since. The next comparison begins anew.
    pub(super) version: Option<Version>,
    /// When the source had said so: a name that was asked for later was asked for in this version.
    since: Moment,
    /// When the source was asked last.
    checked: Moment,
    trust: Duration,
}

impl Held {
    /// The directory was seen with `attr`, and `before` with something else or the same.
    pub(super) fn observe(before: Option<Held>, attr: &Attr, trusting: &Trusting) -> Held {
        let version = Version::of(&attr.stat);
        match before.filter(|held| held.version == Some(version) && !attr.racy) {
            Some(held) => Held {
                trust: trusting.next(Some((held.checked, held.trust)), attr.checked),
                checked: held.checked.max(attr.checked),
                ..held
            },
            None => Held {
                version: (!attr.racy).then_some(version),
                since: attr.answered,
                checked: attr.checked,
                trust: trusting.ttl,
            },
        }
    }

    /// For how long it is believed in all.
    pub(super) fn trust(&self) -> Duration {
        self.trust
    }

    /// How much longer a name may be believed at `now` that was asked for at `asked`.
    pub(super) fn name_left(
        held: Option<&Held>,
        asked: Moment,
        now: Moment,
        trusting: &Trusting,
    ) -> Duration {
        match held {
            Some(held) if asked > held.since && now.since(asked) < trusting.names_max => held
                .trust
                .saturating_sub(now.since(held.checked.max(asked))),
            _ => trusting.ttl.saturating_sub(now.since(asked)),
        }
    }
}

/// A directory's entries as of one version of the directory.
#[derive(Debug)]
pub struct Listing {
    /// All but `.` and `..`.
    pub entries: Vec<Listed>,
    /// The directory's version before it was read.
    pub(super) version: Version,
    /// Read within a tick of the directory's last change: not believed beyond its ttl.
    pub(super) racy: bool,
    /// Places of the entries, in the order of their names.
    by_name: OnceLock<Vec<u32>>,
    /// Places of the directories among them, as listed and by name.
    dirs: [OnceLock<Vec<u32>>; 2],
}

impl Listing {
    pub(super) fn new(entries: Vec<Listed>, version: Version, racy: bool) -> Listing {
        Listing {
            entries,
            version,
            racy,
            by_name: OnceLock::new(),
            dirs: Default::default(),
        }
    }

    /// Places of the entries, in the order of their names (bytewise, as git and rsync go).
    pub(super) fn by_name(&self) -> &[u32] {
        self.by_name.get_or_init(|| {
            let mut places: Vec<u32> = (0..self.entries.len() as u32).collect();
            places.sort_unstable_by(|a, b| {
                let name = |place: &u32| &self.entries[*place as usize].name;
                name(a).cmp(name(b))
            });
            places
        })
    }

    /// Places of the directories, in one of the two orders.
    pub(super) fn dirs(&self, order: Order) -> &[u32] {
        let is_dir = |place: &u32| self.entries[*place as usize].kind == crate::sys::S_IFDIR;
        self.dirs[order as usize].get_or_init(|| match order {
            Order::Listed => (0..self.entries.len() as u32).filter(is_dir).collect(),
            Order::Named => self.by_name().iter().copied().filter(is_dir).collect(),
        })
    }

    /// The name of the entry at a place.
    pub(super) fn name(&self, place: u32) -> &OsStr {
        &self.entries[place as usize].name
    }

    /// How many directories of [`Listing::dirs`] come up to and with `name`.
    pub(super) fn dirs_up_to(&self, name: &OsStr, order: Order) -> Option<usize> {
        let rank = self.rank(name)?;
        let dirs = self.dirs(order);
        Some(match order {
            Order::Listed => {
                let own = self.by_name()[rank];
                dirs.partition_point(|place| *place <= own)
            }
            Order::Named => dirs.partition_point(|place| self.name(*place) <= name),
        })
    }

    /// Where `name` stands in [`Listing::by_name`].
    pub(super) fn rank(&self, name: &OsStr) -> Option<usize> {
        let by_name = self.by_name();
        let found = by_name
            .binary_search_by(|place| self.entries[*place as usize].name.as_os_str().cmp(name));
        found.ok()
    }
}

/// What is known of a directory's entries.
#[derive(Debug)]
pub(super) struct KnownListing {
    pub(super) listing: Arc<Listing>,
    /// When the source was asked for it.
    pub(super) read: Moment,
    /// Until when changes of ours went into `edits`.
    edits: HashMap<OsString, Option<u32>>,
}

/// A change of ours to a directory's names.
#[derive(Clone, Copy, Debug)]
pub(super) enum Edit<'a> {
    /// A name of this kind (`S_IFMT` bits), also in place of another.
    Add(&'a OsStr, u32),
    /// A name went.
    Remove(&'a OsStr),
}

impl KnownListing {
    /// A longer listing than this is read again after a change of ours, rather than copied under a lock.
    const EDITABLE_MAX: usize = 4096;

    pub(super) fn new(listing: Arc<Listing>, read: Moment) -> KnownListing {
        KnownListing {
            listing,
            read,
            edits: HashMap::new(),
        }
    }

    /// False when it cannot be kept. Until it is read again it is believed for as long as it would have been without them.
    pub(super) fn edit(&mut self, edits: &[Edit<'_>], held: Option<&Held>) -> bool {
        if let Some(held) = self.holding(held) {
            self.read = self.read.max(held.checked);
        }
        for edit in edits {
            match *edit {
                Edit::Add(name, kind) => self.edits.insert(name.to_owned(), Some(kind)),
                Edit::Remove(name) => self.edits.insert(name.to_owned(), None),
            };
        }
        self.listing.entries.len() + self.edits.len() <= KnownListing::EDITABLE_MAX
    }

    /// Is it what the source said, without changes of ours?
    pub(super) fn is_plain(&self) -> bool {
        self.edits.is_empty()
    }

    /// The entries with our changes. `ino` says the number of a name; `None` when it does not know one of them.
    pub(super) fn edited(&mut self, ino: impl Fn(&OsStr) -> Option<u64>) -> Option<Arc<Listing>> {
        if self.is_plain() {
            return Some(self.listing.clone());
        }
        let kept = self.listing.entries.iter();
        let kept = kept.filter(|listed| !self.edits.contains_key(&listed.name));
        let mut entries: Vec<Listed> = kept.cloned().collect();
        for (name, kind) in self.edits.drain() {
            if let Some(kind) = kind {
                let ino = ino(&name)?;
                entries.push(Listed { name, ino, kind });
            }
        }
        // Racy: the version is not that of these entries, so it must not vouch for them.
        let edited = Listing::new(entries, self.listing.version, true);
        self.listing = Arc::new(edited);
        Some(self.listing.clone())
    }

    /// The directory's version, when it vouches for these entries.
    fn holding<'a>(&self, held: Option<&'a Held>) -> Option<&'a Held> {
        let is_same = |held: &&Held| held.version == Some(self.listing.version);
        held.filter(is_same)
            .filter(|_| self.is_plain() && !self.listing.racy)
    }

    /// Is this what a name was last known to be? `Some`: its kind and, where it is known, its number.
    pub(super) fn agrees(&self, name: &OsStr, is: Option<(u32, u64)>) -> bool {
        if let Some(edit) = self.edits.get(name) {
            return *edit == is.map(|(kind, _)| kind);
        }
        let rank = self.listing.rank(name);
        let entry = rank.map(|rank| self.listing.by_name()[rank] as usize);
        match (entry.map(|place| &self.listing.entries[place]), is) {
            (None, None) => true,
            (Some(entry), Some((kind, ino))) => {
                (entry.kind == kind || entry.kind == 0) && entry.ino == ino
            }
            _ => false,
        }
    }

    /// How much longer it may be believed at `now`.
    pub(super) fn left(&self, held: Option<&Held>, now: Moment, trusting: &Trusting) -> Duration {
        match self.holding(held) {
            Some(held) if now.since(self.read) < trusting.names_max => held
                .trust
                .saturating_sub(now.since(held.checked.max(self.read))),
            _ => trusting.ttl.saturating_sub(now.since(self.read)),
        }
    }
}

/// Extended attributes that programs asked for. The kernel and `ls -l` ask for the same absent ones
/// (`security.capability`, `system.posix_acl_access`) again and again.
#[derive(Debug, Default)]
pub(super) struct Xattrs {
    /// Values, or why there is none.
    pub(super) values: HashMap<OsString, std::result::Result<Vec<u8>, Errno>>,
    /// The list of names.
    pub(super) list: Option<Vec<u8>>,
}

impl Xattrs {
    /// Names remembered per file, and the longest value: what programs ask for unasked is few and short.
    pub(super) const NAMES_MAX: usize = 8;
    /// Bytes of the longest value that is remembered.
    pub(super) const VALUE_MAX: usize = 1024;
}
