//! The coherence rule, run: every interleaving of small histories on the real cache, against a file that is
//! a plain array.
//!
//! Each actor (a write, a read, a comparison ...) is a row of steps: its critical sections in the cache and its
//! calls on the source, in the order of [`crate::file`]. [`explore`] runs them in every order. It replays each
//! order from the start and does not go on from a state that it has seen. After each step:
//!
//! * Whatever [`Cache::get`] hands out was in the source at or after the change that a byte's *floor* names:
//!   the last change that returned to its caller or, when a stranger made it, was there at a comparison.
//! * A read that ended got such bytes too, by the floors at its beginning. Where it stopped, the file ended.
//! * The invariants of the index hold.
//!
//! At the end of each history one more comparison is made, and then what is handed out is the source exactly.
//!
//! One limit is built in: a stranger who writes between the comparison before a write of ours and the end of
//! that write cannot be told from us by any `stat`. Strangers keep out of that window here.

use super::*;
use crate::cache::{Check, Compared, Found, Hit, OpenRecord, SLOT_OVERHEAD, Step, Trust};
use crate::clock::Clock;
use crate::stats::Stats;
use crate::sys::Time;
use std::collections::HashSet;
use std::collections::hash_map::RandomState;
use std::fmt::Write as _;
use std::hash::BuildHasher;
use std::time::{Duration, UNIX_EPOCH};

/// No file here grows beyond this offset.
const END: usize = 6;
/// Size of the file at the beginning.
const SIZE: u64 = 4;
const ID: FileId = FileId { dev: 1, ino: 2 };

/// How the source stamps changes. Its clock stands an hour before the cache's, so no fill is racy.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Ticks {
    /// Each change has a time of its own.
    Fine,
    /// Two changes of ours in a row share one.
    Shared,
    /// The same, in whole seconds, as file systems with coarse times stamp.
    Coarse,
}

/// The file of the source.
struct Source {
    /// Its content after each change; the last is what it has now.
    past: Vec<Vec<u8>>,
    ticks: Ticks,
    time: u32,
    /// The time may be used by one more change of ours.
    shares: bool,
}

impl Source {
    fn stamp(&mut self, ours: bool) {
        if ours && self.shares {
            self.shares = false;
        } else {
            self.time += 1;
            self.shares = ours && self.ticks != Ticks::Fine;
        }
    }

    /// Change the content; the number of the change.
    fn change(&mut self, ours: bool, change: impl FnOnce(&mut Vec<u8>)) -> usize {
        self.stamp(ours);
        let mut content = self.now().clone();
        change(&mut content);
        assert!(content.len() <= END);
        self.past.push(content);
        self.past.len() - 1
    }

    fn now(&self) -> &Vec<u8> {
        self.past.last().expect("it began with a content")
    }

    fn version(&self) -> Version {
        let time = match self.ticks {
            Ticks::Coarse => Time {
                secs: i64::from(self.time),
                nanos: 0,
            },
            _ => Time {
                secs: 1,
                nanos: self.time,
            },
        };
        Version {
            id: ID,
            size: self.now().len() as u64,
            mtime: time,
            ctime: time,
        }
    }

    fn read(&self, span: Span) -> Bytes {
        let part = span.clip(self.now().len() as u64);
        Bytes::copy_from_slice(&self.now()[part.within(0)])
    }
}

fn put(content: &mut Vec<u8>, span: Span, byte: u8) {
    content.resize(content.len().max(span.end() as usize), 0);
    content[span.within(0)].fill(byte);
}

/// How a write ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum How {
    Whole,
    /// It went through, and the ticket is told no bytes.
    Unknown,
    /// Only the first byte went in.
    Short,
    /// The source refused.
    Failed,
}

/// What an actor does.
#[derive(Clone, Copy, Debug)]
enum Act {
    /// A write without the comparison before it, for histories without strangers.
    Write(Span, How),
    /// A write as the data path does it.
    CarefulWrite(Span, How),
    /// An append of so many bytes by one who believes that the file has its first size.
    Append(u64),
    Truncate(u64),
    Read(Span),
    Compare,
    /// A change of attributes that carries the slots over.
    Chmod,
    Evict,
    Stranger(Span),
}

/// Where an actor is. `usize` is the number of a change of the source.
enum State {
    Start,
    Compare(Check),
    Stat(Check, Version, usize),
    BeginWrite,
    Change(Write),
    AfterChange(Write, Option<usize>),
    Commit(Write, usize, Version),
    Chmod(Version),
    StatAgain(Version),
    Restamp(Version, Version),
    Look,
    Next(Vec<u8>),
    Fetch(Vec<u8>, Fill),
    Fetched(Vec<u8>, Fill, Bytes),
    Wait(Vec<u8>, Arc<Flight>),
    ReadSource,
    Done,
}

struct Actor {
    act: Act,
    state: State,
    /// The floors when it began.
    floors: [usize; END],
    /// Comparisons that said nothing.
    unsettled: u32,
    /// Its change of the source, once that counts: it has returned, or a comparison has seen it.
    change: Option<usize>,
}

impl Actor {
    /// What it writes.
    fn span(&self) -> Span {
        match self.act {
            Act::Write(span, _)
            | Act::CarefulWrite(span, _)
            | Act::Stranger(span)
            | Act::Read(span) => span,
            Act::Append(size) => Span::new(SIZE, size),
            Act::Truncate(size) => Span::from(size),
            Act::Compare | Act::Chmod | Act::Evict => Span::new(0, 0),
        }
    }

    fn how(&self) -> How {
        match self.act {
            Act::Write(_, how) | Act::CarefulWrite(_, how) => how,
            _ => How::Unknown,
        }
    }

    /// Is it between a stat and a later one that will declare what is held to be current?
    fn keeps_strangers_out(&self) -> bool {
        match self.state {
            State::Stat(..) => matches!(self.act, Act::CarefulWrite(..)),
            State::BeginWrite | State::Change(_) | State::AfterChange(..) | State::Commit(..) => {
                true
            }
            State::Chmod(_) | State::StatAgain(_) => true,
            _ => false,
        }
    }

    /// Has it a change of the source ahead?
    fn will_change(&self) -> bool {
        match (&self.state, self.act) {
            (_, Act::Read(_) | Act::Compare | Act::Evict) => false,
            (State::Start | State::BeginWrite | State::Change(_) | State::Chmod(_), _) => true,
            (State::Compare(_) | State::Stat(..), _) => true,
            _ => false,
        }
    }

    /// Does its next step only look at the source?
    fn only_looks(&self) -> bool {
        matches!(
            (&self.state, self.how()),
            (
                State::Compare(_) | State::StatAgain(_) | State::Fetch(..) | State::ReadSource,
                _
            ) | (State::AfterChange(..), How::Whole | How::Unknown)
        )
    }

    /// Everything that its next steps depend on, as text.
    fn mark(&self, all: &[Actor], text: &mut String) {
        let _ = match &self.state {
            State::Start => write!(text, "|start"),
            State::Compare(check) => write!(text, "|compare {check:?}"),
            State::Stat(check, version, seen) => {
                write!(text, "|stat {check:?} {version:?} {seen}")
            }
            State::BeginWrite => write!(text, "|begin"),
            State::Change(w) => write!(text, "|change {}", w.generation),
            State::AfterChange(w, change) => write!(text, "|after {} {change:?}", w.generation),
            State::Commit(w, change, version) => {
                write!(text, "|commit {} {change} {version:?}", w.generation)
            }
            State::Chmod(version) => write!(text, "|chmod {version:?}"),
            State::StatAgain(version) => write!(text, "|again {version:?}"),
            State::Restamp(before, after) => write!(text, "|restamp {before:?} {after:?}"),
            State::Look => write!(text, "|look"),
            State::Next(got) => write!(text, "|next {got:?}"),
            State::Fetch(got, fill) => {
                write!(text, "|fetch {got:?} {:?} {}", fill.span, fill.generation)
            }
            State::Fetched(got, fill, bytes) => {
                let (span, generation) = (fill.span, fill.generation);
                write!(text, "|fetched {got:?} {span:?} {generation} {bytes:?}")
            }
            State::Wait(got, flight) => {
                // Whose flight it is; what it brought, if it has landed, is in its text.
                let leader = all.iter().position(|actor| match &actor.state {
                    State::Fetch(_, fill) | State::Fetched(_, fill, _) => {
                        Arc::ptr_eq(&fill.flight, flight)
                    }
                    _ => false,
                });
                write!(text, "|wait {got:?} {leader:?} {flight:?}")
            }
            State::ReadSource => write!(text, "|read"),
            State::Done => write!(text, "|done"),
        };
        if self.is_reading() {
            let _ = write!(text, "{:?}", self.floors);
        }
        if self.unsettled > 0 {
            text.push_str("again");
        }
    }

    fn is_reading(&self) -> bool {
        matches!(self.act, Act::Read(_)) && !matches!(self.state, State::Start | State::Done)
    }
}

/// One history under way. When it fails, its text is the steps so far.
struct World {
    cache: Arc<Cache>,
    _record: OpenRecord,
    source: Source,
    actors: Vec<Actor>,
    /// For each byte, the change that every read from now on must see, or a later one.
    floors: [usize; END],
    /// Changes by strangers, and who made them.
    strangers: Vec<(usize, usize)>,
    landed: Vec<Arc<Flight>>,
    steps: Vec<(usize, &'static str)>,
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let acts: Vec<Act> = self.actors.iter().map(|actor| actor.act).collect();
            eprintln!("actors {acts:?}, times {:?}; steps:", self.source.ticks);
            for (who, step) in &self.steps {
                eprintln!("  {who} {step}");
            }
            eprintln!("source {:?}, floors {:?}", self.source.past, self.floors);
        }
    }
}

impl World {
    /// `warm`: spans that are cached at the beginning.
    fn new(acts: &[Act], warm: &[Span], ticks: Ticks, memory: u64) -> World {
        let clock = Clock::manual(UNIX_EPOCH + Duration::from_secs(3600));
        let ttl = Duration::from_secs(1);
        let cache = Arc::new(Cache::new(memory, ttl, clock, Arc::new(Stats::default())));
        let record = cache.open(ID, || "f".into());
        let first = (0..SIZE as u8).map(|at| b'0' + at).collect();
        let source = Source {
            past: vec![first],
            ticks,
            time: 1,
            shares: false,
        };
        let check = cache.begin_check(ID);
        cache.finish_check(check, source.version());
        for &span in warm {
            match cache.next(ID, span) {
                Step::Lead(fill) => fill.complete(source.read(span)),
                other => panic!("a gap is expected, not {other:?}"),
            }
        }
        let actor = |act: &Act| Actor {
            act: *act,
            state: State::Start,
            floors: [0; END],
            unsettled: 0,
            change: None,
        };
        World {
            cache,
            _record: record,
            source,
            actors: acts.iter().map(actor).collect(),
            floors: [0; END],
            strangers: Vec::new(),
            landed: Vec::new(),
            steps: Vec::new(),
        }
    }

    fn can_step(&self, who: usize) -> bool {
        match (&self.actors[who].state, self.actors[who].act) {
            (State::Done, _) => false,
            (State::Wait(_, flight), _) => self.landed.iter().any(|l| Arc::ptr_eq(l, flight)),
            (_, Act::Stranger(_)) => !self.actors.iter().any(Actor::keeps_strangers_out),
            _ => true,
        }
    }

    /// Who may go on. A step that nobody's later step can disturb, nor be disturbed by, need not be tried in
    /// any other place of the order: it comes alone.
    fn choices(&self) -> Vec<usize> {
        let able: Vec<usize> = (0..self.actors.len())
            .filter(|&who| self.can_step(who))
            .collect();
        let settled = !self.actors.iter().any(Actor::will_change);
        let alone = able.iter().find(|&&who| {
            let actor = &self.actors[who];
            matches!(actor.state, State::Wait(..)) || (settled && actor.only_looks())
        });
        alone.map_or(able.clone(), |&who| vec![who])
    }

    fn step(&mut self, who: usize) {
        let state = std::mem::replace(&mut self.actors[who].state, State::Done);
        let name = match &state {
            State::Start => "start",
            State::Compare(_) => "stat",
            State::Stat(..) => "finish_check",
            State::BeginWrite => "begin_write",
            State::Change(_) | State::Chmod(_) => "change",
            State::AfterChange(..) | State::StatAgain(_) => "stat or give up",
            State::Commit(..) => "commit",
            State::Restamp(..) => "restamp",
            State::Look => "get",
            State::Next(_) => "next",
            State::Fetch(..) | State::ReadSource => "read source",
            State::Fetched(..) => "complete",
            State::Wait(..) => "landed",
            State::Done => unreachable!("it has ended"),
        };
        self.steps.push((who, name));
        self.actors[who].state = self.advance(who, state);
    }

    fn advance(&mut self, who: usize, state: State) -> State {
        let (act, span, how) = (
            self.actors[who].act,
            self.actors[who].span(),
            self.actors[who].how(),
        );
        let byte = b'A' + who as u8;
        match state {
            State::Start => self.start(who),
            State::Compare(check) => {
                State::Stat(check, self.source.version(), self.source.past.len() - 1)
            }
            State::Stat(check, version, seen) => {
                let compared = self.cache.finish_check(check, version);
                self.assert_ours(compared);
                if compared != Compared::Unsettled {
                    for (stranger, change) in self.strangers.clone() {
                        if change <= seen {
                            self.returned(stranger, Some(change));
                        }
                    }
                }
                match act {
                    Act::Read(_) if compared == Compared::Unsettled => State::ReadSource,
                    Act::Read(_) => State::Look,
                    Act::CarefulWrite(..) => {
                        if compared == Compared::Unsettled {
                            self.actors[who].unsettled += 1;
                            // Once more; then forget, so that there is nothing to be covered up.
                            if self.actors[who].unsettled == 1 {
                                return self.start(who);
                            }
                            self.cache.forget(ID);
                        }
                        State::BeginWrite
                    }
                    _ => State::Done,
                }
            }
            State::BeginWrite => State::Change(self.cache.begin_write(ID, span)),
            State::Change(ticket) => {
                let change = match (act, how) {
                    (_, How::Failed) => None,
                    (Act::Truncate(size), _) => Some(
                        self.source
                            .change(true, |content| content.resize(size as usize, 0)),
                    ),
                    (Act::Append(size), _) => Some(self.source.change(true, |content| {
                        put(content, Span::new(content.len() as u64, size), byte);
                    })),
                    (_, How::Short) => Some(
                        self.source
                            .change(true, |c| put(c, Span::new(span.pos, 1), byte)),
                    ),
                    _ => Some(self.source.change(true, |content| put(content, span, byte))),
                };
                State::AfterChange(ticket, change)
            }
            State::AfterChange(ticket, change) => match (how, change) {
                (How::Whole | How::Unknown, Some(change)) => {
                    State::Commit(ticket, change, self.source.version())
                }
                _ => {
                    drop(ticket);
                    self.returned(who, change);
                    State::Done
                }
            },
            State::Commit(ticket, change, version) => {
                let data = || Bytes::from(vec![byte; span.size as usize]);
                match act {
                    Act::Append(_) if version.size == span.end() => {
                        ticket.commit_append(&data(), version);
                    }
                    _ if how == How::Whole => ticket.commit(&data(), version),
                    _ => ticket.commit_unknown(version),
                }
                self.returned(who, Some(change));
                State::Done
            }
            State::Chmod(before) => {
                self.source.stamp(true);
                State::StatAgain(before)
            }
            State::StatAgain(before) => State::Restamp(before, self.source.version()),
            State::Restamp(before, after) => {
                self.cache.restamp(before, after);
                State::Done
            }
            State::Look => self.look(who),
            State::Next(got) => self.next(who, got),
            State::Fetch(got, fill) => {
                let bytes = self.source.read(fill.span());
                State::Fetched(got, fill, bytes)
            }
            State::Fetched(got, fill, bytes) => {
                if (bytes.len() as u64) < fill.span().size {
                    self.cache.distrust(ID);
                }
                self.landed.push(fill.flight.clone());
                fill.complete(bytes.clone());
                self.got(who, got, &bytes)
            }
            State::Wait(got, flight) => {
                let at = span.pos + got.len() as u64;
                let bytes = flight.wait(at).expect("no read fails here");
                let wanted = Span::between(at, span.end().min(flight.span().end()));
                let bytes = bytes.slice(..bytes.len().min(wanted.size as usize));
                self.got(who, got, &bytes)
            }
            State::ReadSource => {
                let bytes = self.source.read(span);
                self.ended(who, &bytes)
            }
            State::Done => unreachable!("it has ended"),
        }
    }

    fn start(&mut self, who: usize) -> State {
        self.actors[who].floors = self.floors;
        let span = self.actors[who].span();
        match self.actors[who].act {
            Act::Write(..) | Act::Truncate(_) => State::Change(self.cache.begin_write(ID, span)),
            Act::Append(_) => State::Change(self.cache.begin_write(ID, Span::from(span.pos))),
            Act::CarefulWrite(..) if self.cache.holds(ID) => {
                State::Compare(self.cache.begin_check(ID))
            }
            Act::CarefulWrite(..) => State::BeginWrite,
            Act::Read(_) if self.cache.is_trusted(ID) => self.look(who),
            Act::Read(_) | Act::Compare => State::Compare(self.cache.begin_check(ID)),
            Act::Chmod if self.cache.holds(ID) => State::Chmod(self.source.version()),
            Act::Chmod => {
                self.source.stamp(true);
                State::Done
            }
            Act::Evict => {
                self.cache.evict(ID);
                State::Done
            }
            Act::Stranger(span) => {
                let change = self
                    .source
                    .change(false, |content| put(content, span, b'A' + who as u8));
                self.strangers.push((who, change));
                State::Done
            }
        }
    }

    /// The bytes that a change changed.
    fn differing(&self, change: usize) -> impl Iterator<Item = usize> + use<> {
        let (before, after) = (
            self.source.past[change - 1].clone(),
            self.source.past[change].clone(),
        );
        (0..END).filter(move |&at| before.get(at) != after.get(at))
    }

    /// The change by actor `who` has returned to its caller.
    fn returned(&mut self, who: usize, change: Option<usize>) {
        self.actors[who].change = change;
        let cutting = |a: &Actor| matches!(a.act, Act::Truncate(_)) && a.change.is_none();
        let is_cut = self.actors.iter().any(cutting);
        for actor in &self.actors {
            let Some(change) = actor.change else { continue };
            for at in self.differing(change) {
                // A hole that a write left behind the end, as a truncation that has not returned made it.
                let is_hole = is_cut && !actor.span().covers(Span::new(at as u64, 1));
                if !is_hole {
                    self.floors[at] = self.floors[at].max(change);
                }
            }
        }
    }

    fn look(&mut self, who: usize) -> State {
        match self.cache.get(ID, self.actors[who].span(), Trust::Any) {
            Found::Hit(hit) => self.ended(who, &hit.pieces.into_bytes()),
            Found::Miss => State::Next(Vec::new()),
        }
    }

    fn next(&mut self, who: usize, got: Vec<u8>) -> State {
        let span = self.actors[who].span();
        let rest = Span::between(span.pos + got.len() as u64, span.end());
        match self.cache.next(ID, rest) {
            Step::Cached(bytes) => self.got(who, got, &bytes),
            Step::Lead(fill) => State::Fetch(got, fill),
            Step::Join(flight) => State::Wait(got, flight),
            Step::End => self.ended(who, &got),
        }
    }

    fn got(&mut self, who: usize, mut got: Vec<u8>, bytes: &[u8]) -> State {
        got.extend_from_slice(bytes);
        if bytes.is_empty() || got.len() as u64 == self.actors[who].span().size {
            return self.ended(who, &got);
        }
        State::Next(got)
    }

    fn ended(&mut self, who: usize, got: &[u8]) -> State {
        let actor = &self.actors[who];
        self.assert_allowed(actor.span(), got, &actor.floors, "a read returned");
        State::Done
    }

    /// `got` is what was found from the start of `span` on; after it, the end of the file.
    fn assert_allowed(&self, span: Span, got: &[u8], floors: &[usize; END], what: &str) {
        let range = span.pos as usize..(span.end() as usize).min(END);
        for (at, &floor) in floors.iter().enumerate() {
            if !range.contains(&at) {
                continue;
            }
            let byte = got.get(at - range.start);
            assert!(
                self.source.past[floor..]
                    .iter()
                    .any(|content| content.get(at) == byte),
                "{what} {byte:?} at {at}, which is older than change {floor}"
            );
        }
    }

    /// Our own writes are not taken for a stranger's, which would cost everything that is cached.
    fn assert_ours(&self, compared: Compared) {
        let only_ours = self.source.ticks == Ticks::Fine
            && self.actors.iter().all(|actor| {
                matches!(
                    actor.act,
                    Act::Write(_, How::Whole) | Act::Read(_) | Act::Compare
                )
            });
        assert!(
            !only_ours || compared != Compared::Changed,
            "our own write was taken for a stranger's"
        );
    }

    /// What is handed out now.
    fn check(&self) {
        self.cache.assert_invariants();
        for at in 0..END as u64 {
            let span = Span::new(at, 1);
            if let Found::Hit(Hit { pieces, .. }) = self.cache.get(ID, span, Trust::Any) {
                self.assert_allowed(span, &pieces.into_bytes(), &self.floors, "the cache holds");
            }
        }
    }

    /// Everything has ended: is something cached, and is it right?
    fn check_end(&self) -> bool {
        let check = self.cache.begin_check(ID);
        let compared = self.cache.finish_check(check, self.source.version());
        assert_ne!(compared, Compared::Unsettled, "nothing is under way");
        self.assert_ours(compared);
        for at in 0..END as u64 {
            let span = Span::new(at, 1);
            if let Found::Hit(Hit { pieces, .. }) = self.cache.get(ID, span, Trust::Any) {
                assert_eq!(pieces.into_bytes(), self.source.read(span), "at {at}");
            }
        }
        self.cache.assert_invariants();
        self.cache.holds(ID)
    }

    /// A number for everything that the rest of the history depends on.
    fn mark(&self) -> u64 {
        let mut text = String::with_capacity(1024);
        let reads = self.actors.iter().filter(|actor| actor.is_reading());
        let floors = reads.flat_map(|actor| &actor.floors).chain(&self.floors);
        let oldest = floors.min().expect("there are floors");
        let (source, index) = (&self.source, self.cache.index.lock());
        let _ = write!(
            text,
            "{:?} {} {} {} {:?} {:?} {:?}",
            *index,
            source.past.len(),
            source.time,
            source.shares,
            &source.past[*oldest..],
            self.floors,
            self.strangers
        );
        for actor in &self.actors {
            actor.mark(&self.actors, &mut text);
        }
        // FNV-1a over words: the standard hasher is several times slower in a debug build.
        let (words, rest) = text.as_bytes().as_chunks::<8>();
        let mut hash =
            0xcbf2_9ce4_8422_2325 ^ rest.iter().fold(0, |sum, &byte| sum << 8 | u64::from(byte));
        for word in words {
            hash = (hash ^ u64::from_le_bytes(*word))
                .wrapping_mul(0x0100_0000_01b3)
                .rotate_left(29);
        }
        hash
    }
}

/// Memory for everything.
const PLENTY: u64 = 1 << 20;

/// Run `acts` in every order.
fn explore(acts: &[Act], warm: &[Span], ticks: Ticks) {
    let mut seen = HashSet::new();
    let mut ends_warm = 0;
    let mut orders: Vec<Vec<usize>> = vec![Vec::new()];
    while let Some(mut order) = orders.pop() {
        let mut world = World::new(acts, warm, ticks, PLENTY);
        order.iter().for_each(|&who| world.step(who));
        while seen.insert(world.mark()) {
            world.check();
            let choices = world.choices();
            let Some((&first, others)) = choices.split_first() else {
                assert!(
                    world.actors.iter().all(|a| matches!(a.state, State::Done)),
                    "all wait"
                );
                ends_warm += usize::from(world.check_end());
                break;
            };
            orders.extend(others.iter().map(|&who| [&order[..], &[who]].concat()));
            order.push(first);
            world.step(first);
        }
    }
    // A cache that forgets everything would pass, too.
    assert!(
        ends_warm > 0,
        "no history of {acts:?} ends with anything cached"
    );
}

const ALL: Span = Span::new(0, 6);
const FOUND: Span = Span::new(0, SIZE);
const LEFT: Span = Span::new(0, 3);
const MIDDLE: Span = Span::new(1, 2);
const RIGHT: Span = Span::new(2, 2);
/// Leaves a hole behind the end.
const BEHIND: Span = Span::new(5, 1);

const COLD: &[Span] = &[];
const HALF: &[Span] = &[Span::new(0, 2)];
const WARM: &[Span] = &[FOUND];

fn wrote(span: Span) -> Act {
    Act::Write(span, How::Whole)
}

/// Each end of a write beside a whole one, and beside reads of which one can join the other.
#[test]
fn two_writes_and_two_reads() {
    for (how, warm, ticks) in [
        (How::Whole, COLD, Ticks::Fine),
        (How::Whole, WARM, Ticks::Coarse),
        (How::Unknown, HALF, Ticks::Shared),
        (How::Short, WARM, Ticks::Fine),
        (How::Failed, HALF, Ticks::Shared),
    ] {
        let (write, reads) = (
            Act::Write(MIDDLE, how),
            [Act::Read(FOUND), Act::Read(RIGHT)],
        );
        explore(&[wrote(LEFT), write, reads[0], reads[1]], warm, ticks);
    }
}

#[test]
fn three_writes_and_a_read() {
    for (how, warm, ticks) in [
        (How::Whole, COLD, Ticks::Fine),
        (How::Whole, WARM, Ticks::Shared),
        (How::Failed, HALF, Ticks::Fine),
    ] {
        let write = Act::Write(RIGHT, how);
        explore(
            &[wrote(LEFT), wrote(MIDDLE), write, Act::Read(FOUND)],
            warm,
            ticks,
        );
    }
}

/// The end of the file moves both ways while it is written and read.
#[test]
fn truncations_and_writes_behind_the_end() {
    for (warm, ticks) in [
        (COLD, Ticks::Fine),
        (HALF, Ticks::Coarse),
        (WARM, Ticks::Shared),
    ] {
        let (write, cut) = (wrote(BEHIND), Act::Truncate(2));
        explore(&[write, cut, Act::Read(ALL), Act::Read(RIGHT)], warm, ticks);
    }
    for ticks in [Ticks::Fine, Ticks::Shared] {
        let cuts = [Act::Truncate(1), Act::Truncate(5)];
        explore(
            &[wrote(RIGHT), cuts[0], cuts[1], Act::Read(ALL)],
            WARM,
            ticks,
        );
    }
}

/// A comparison that a write overtakes says nothing.
#[test]
fn comparisons_while_writes_are_under_way() {
    for (how, warm) in [(How::Whole, COLD), (How::Short, WARM), (How::Failed, HALF)] {
        let write = Act::Write(RIGHT, how);
        explore(
            &[wrote(LEFT), write, Act::Compare, Act::Read(FOUND)],
            warm,
            Ticks::Fine,
        );
    }
}

/// A write that fails leaves the version unknown. A write beside it, whose stat was older, used to declare its
/// own version in spite of that, and so an end of the file before the bytes that had gone in.
#[test]
fn partial_writes() {
    for how in [How::Short, How::Failed] {
        let write = Act::Write(Span::new(4, 2), how);
        explore(&[wrote(LEFT), write, Act::Read(ALL)], WARM, Ticks::Fine);
        let inside = Act::Write(Span::new(3, 1), how);
        explore(&[wrote(LEFT), inside, Act::Read(FOUND)], WARM, Ticks::Fine);
        explore(&[wrote(BEHIND), wrote(LEFT), write], WARM, Ticks::Shared);
    }
}

#[test]
fn forgetting_is_always_allowed() {
    for warm in [COLD, WARM] {
        let acts = [wrote(LEFT), wrote(MIDDLE), Act::Evict, Act::Read(ALL)];
        explore(&acts, warm, Ticks::Fine);
    }
}

/// A change of attributes carries the slots over to the new version, unless something else happened meanwhile.
#[test]
fn changes_of_attributes_beside_writes() {
    for ticks in [Ticks::Fine, Ticks::Shared] {
        explore(
            &[wrote(LEFT), Act::Chmod, Act::Chmod, Act::Read(ALL)],
            WARM,
            ticks,
        );
        let write = Act::CarefulWrite(LEFT, How::Whole);
        explore(
            &[write, Act::Chmod, Act::Stranger(RIGHT), Act::Read(ALL)],
            HALF,
            ticks,
        );
    }
}

/// A change by somebody else is found by the next comparison, whatever we write meanwhile. (A read that had
/// fetched the old bytes, and brought them after the write had looked and found nothing worth a comparison,
/// used to have them declared current by that write.)
#[test]
fn strangers_are_found_out() {
    let writes = [LEFT, RIGHT].map(|span| Act::CarefulWrite(span, How::Whole));
    explore(
        &[writes[0], writes[1], Act::Stranger(ALL)],
        WARM,
        Ticks::Fine,
    );
    // Overtaken twice, beside a read that has the bytes from before.
    let (late, stranger) = (Act::CarefulWrite(BEHIND, How::Whole), Act::Stranger(RIGHT));
    explore(
        &[late, writes[0], stranger, Act::Read(FOUND)],
        HALF,
        Ticks::Fine,
    );
    for how in [How::Whole, How::Unknown, How::Short, How::Failed] {
        for warm in [COLD, WARM] {
            let (write, stranger) = (Act::CarefulWrite(LEFT, how), Act::Stranger(RIGHT));
            explore(
                &[write, stranger, Act::Stranger(BEHIND), Act::Read(ALL)],
                warm,
                Ticks::Fine,
            );
            explore(
                &[write, stranger, Act::Compare, Act::Read(ALL)],
                warm,
                Ticks::Fine,
            );
        }
    }
}

/// Appends know where their bytes are only afterwards. A write of ours to the same place, right after an append,
/// used to be overwritten in the cache with what had been appended before it.
#[test]
fn appends_beside_other_writes() {
    let acts = [Act::Append(1), wrote(Span::new(4, 1)), Act::Read(ALL)];
    explore(&acts, WARM, Ticks::Fine);
    // Cut by two bytes, the appends end below where they were believed to begin. Cut by one, the second of them
    // makes the size look as if the first had landed there.
    for size in [2, 3] {
        let cut = Act::Truncate(size);
        let acts = [Act::Append(1), Act::Append(1), cut, Act::Read(ALL)];
        explore(&acts, WARM, Ticks::Fine);
    }
}

/// Numbers from a seed (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ z >> 31) % limit as u64) as usize
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    fn span(&mut self) -> Span {
        let pos = self.below(END - 1) as u64;
        Span::new(pos, 1 + self.below(END - pos as usize) as u64)
    }
}

/// Says how to repeat a history that failed.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "repeat with: WARMFS_SEED={} cargo test --lib longer_histories",
                self.0
            );
        }
    }
}

/// Longer histories than can be run in every order, in some orders: three writes, two reads, and whatever else
/// there is, with memory for a few slots only. `WARMFS_RUNS` says how many.
#[test]
fn longer_histories() {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    let (first, runs) = match number("WARMFS_SEED") {
        Some(seed) => (seed, 1),
        None => (
            RandomState::new().hash_one(0),
            number("WARMFS_RUNS").unwrap_or(2000),
        ),
    };
    for run in 0..runs {
        let seed = Seed(first.wrapping_add(run));
        let mut random = Random(seed.0);
        let mut acts = Vec::new();
        let with_stranger = random.below(2) == 0;
        for _ in 0..3 {
            let how = random.of(&[
                How::Whole,
                How::Whole,
                How::Unknown,
                How::Short,
                How::Failed,
            ]);
            let span = random.span();
            acts.push(match random.below(4) {
                _ if with_stranger => Act::CarefulWrite(span, how),
                0 => Act::Truncate(span.pos),
                _ => Act::Write(span, how),
            });
        }
        acts.extend([
            Act::Read(random.span()),
            Act::Read(random.span()),
            Act::Evict,
            Act::Compare,
        ]);
        acts.push(if with_stranger {
            Act::Stranger(random.span())
        } else {
            Act::Chmod
        });
        let warm = random.of(&[COLD, HALF, WARM]);
        let ticks = random.of(&[Ticks::Fine, Ticks::Shared, Ticks::Coarse]);
        let memory = 2 * SLOT_OVERHEAD + 2 + random.below(2 * END) as u64;
        let mut world = World::new(&acts, warm, ticks, memory);
        loop {
            world.check();
            let able: Vec<usize> = (0..acts.len()).filter(|&who| world.can_step(who)).collect();
            if able.is_empty() {
                break;
            }
            world.step(random.of(&able));
        }
        world.check_end();
    }
}
