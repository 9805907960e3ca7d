//! Which bytes a program will read next: pure logic over the reads of one open file, no I/O and no clock.
//!
//! [`Streams`] sees every read and answers with a [`Plan`]: how far a miss may be widened, and which spans to fetch
//! ahead. Promises:
//! * Sequential reading is found at the second read from the start of the file (at the first, when that asks for a whole
//!   [`UNIT`]) and at the second adjoining read elsewhere. Then a window opens, of one unit, and doubles with each refill.
//! * Up to [`STREAMS_MAX`] streams of one file are told apart. Each runs forward or backward; requests that the kernel
//!   sends out of order, small seeks ahead and rewinds leave it as it is. Reads at equal distances are met ahead, too.
//! * Reading ahead wastes little: what was fetched ahead and not read never exceeds [`WASTE_MAX`] times what was asked,
//!   plus [`WASTE_FREE`]. A program that reads at random soon gets nothing but what it asks for.
//! * A refill comes once in half a window, so most reads cost a few comparisons and allocate nothing.

use crate::span::Span;
use smallvec::SmallVec;

/// What one request ahead asks for, and where such requests begin and end: the size that the kernel and most network file
/// systems ask for at a time. Common borders let a reader and the requests ahead of him meet in one flight.
pub(crate) const UNIT: u64 = 128 << 10;

/// Streams of one open file that are told apart: as many as a player, an archiver or a merge of sorted runs has places.
const STREAMS_MAX: usize = 8;

/// Bytes ahead that may remain unread for each byte that was asked for: so at most four are fetched for one.
const WASTE_MAX: u64 = 3;

/// What may remain unread of a program that has hardly read anything: enough for a window to open.
const WASTE_FREE: u64 = UNIT;

/// A stream that was not read for so many reads of the file has been left: what is still queued for it is not fetched.
const AWAY_MAX: u64 = 32;

/// Pieces that are fetched ahead of reads at equal distances: as many as there are requests in flight by default.
const STRIDE_PIECES_MAX: u64 = 32;

/// Backward streams are forward ones seen in a mirror at this offset, which no file reaches.
const MIRROR: u64 = 1 << 63;

/// What to do about a read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Plan {
    /// What to fetch if the read misses: all that was asked for, and what of the units that it touches would be fetched
    /// ahead anyway.
    pub(crate) demand: Span,
    /// What to fetch ahead, in this order.
    pub(crate) ahead: SmallVec<[Span; 2]>,
    /// The read is one of a stream that has a window.
    pub(crate) is_open: bool,
    /// Who wants that: to be handed back to [`Streams::begin`] and [`Streams::end`].
    pub(crate) stream: u32,
}

/// How a fetch ahead went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fetched {
    /// The bytes are here, or on their way to somebody.
    Yes,
    /// There was no room for it.
    No,
    /// The source failed.
    Failed,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Course {
    Forward,
    Backward,
}

impl Course {
    /// A span of the file as the stream sees it, and the way back.
    fn turn(self, span: Span) -> Span {
        match self {
            Course::Forward => span,
            Course::Backward => Span::between(MIRROR - span.end(), MIRROR - span.pos),
        }
    }
}

/// Reads that follow one another. All positions are as its course sees them: it runs upwards.
#[derive(Debug)]
struct Stream {
    number: u32,
    course: Course,
    /// What has been read, or skipped.
    passed: Span,
    /// Up to here bytes were asked for ahead; at least the end of `passed`.
    edge: u64,
    /// How far ahead to be; 0 until it is known to be a stream.
    window: u64,
    /// It goes on after a jump back in a stream that had a window.
    is_known: bool,
    /// Reads that adjoined at the end, and at the start.
    after: u32,
    before: u32,
    /// Fetches ahead that are queued or under way.
    pending: u32,
    /// Number of the last read in it.
    last: u64,
}

impl Stream {
    fn is_open(&self) -> bool {
        self.window > 0
    }

    fn unread(&self) -> u64 {
        self.edge - self.passed.end()
    }

    /// Does this read, in file positions, go on in the stream?
    fn has(&self, span: Span) -> bool {
        let span = self.course.turn(span);
        if self.is_open() {
            return self.passed.pos <= span.pos && span.pos <= self.edge;
        }
        self.adjoins(span) || span.end() == self.passed.pos || self.passed.covers(span)
    }

    /// Right behind the last, or with some bytes of it once more.
    fn adjoins(&self, span: Span) -> bool {
        self.passed.pos < span.pos
            && span.pos <= self.passed.end()
            && self.passed.end() < span.end()
    }

    /// A read that goes on, before there is a window. It may open one.
    fn learn(&mut self, span: Span) {
        if self.adjoins(span) {
            self.after += 1;
        } else if span.end() == self.passed.pos {
            self.before += 1;
        }
        let start = self.passed.pos.min(span.pos);
        self.passed = Span::between(start, self.passed.end().max(span.end()));
        self.edge = self.passed.end();
        if self.before >= 2 && self.after == 0 {
            self.course = Course::Backward;
            self.passed = self.course.turn(self.passed);
            self.edge = self.passed.end();
            self.window = UNIT;
        } else if self.after >= 2
            || (self.after >= 1 && (self.is_known || self.passed.pos == 0))
            || (self.passed.pos == 0 && self.passed.size >= UNIT)
        {
            self.window = if self.is_known { 4 * UNIT } else { UNIT };
        }
    }

    /// A read in an open stream. Returns how many bytes are given up that were fetched ahead.
    fn advance(&mut self, span: Span, hit: bool) -> u64 {
        let end = self.passed.end();
        let mut lost = span.pos.saturating_sub(end);
        self.passed = Span::between(self.passed.pos, end.max(span.end()));
        let was_promised = end < span.end() && span.end() <= self.edge;
        if !hit && was_promised && self.pending == 0 {
            // It was fetched, and has gone before it was read: there is less room than the window takes.
            lost += self.unread();
            self.edge = self.passed.end();
            self.window = (self.window / 2).max(UNIT);
        }
        self.edge = self.edge.max(self.passed.end());
        lost
    }

    /// The bytes to be asked for now, when half of the window has been read. `spare`: so many may be.
    fn refill(&mut self, end: u64, limit: u64, spare: u64, is_new: bool) -> Span {
        let nothing = Span::new(self.edge, 0);
        let window = self.window.min(limit);
        if window < UNIT || self.unread() > window / 2 || self.edge >= end {
            return nothing;
        }
        let window = if is_new {
            window
        } else {
            (2 * window).min(limit)
        };
        let until = |size: u64| (self.passed.end() + size) / UNIT * UNIT;
        let wanted = Span::between(self.edge, until(window)).clip(end);
        let granted = if wanted.size > spare {
            wanted.clip((self.edge + spare) / UNIT * UNIT)
        } else {
            self.window = window;
            wanted
        };
        self.edge = self.edge.max(granted.end());
        granted
    }

    /// What the units of a missing read have that is wanted anyway.
    fn widen(&self, span: Span) -> Span {
        let end = span.end().next_multiple_of(UNIT).min(self.edge);
        Span::between(span.pos, end.max(span.end()))
    }

    /// This was not fetched after all: it is to be asked for again when reading goes on.
    fn give_back(&mut self, unit: Span) {
        self.edge = self.edge.min(unit.pos.max(self.passed.end()));
    }
}

/// Reads of one size at one distance from each other.
#[derive(Debug, Default)]
struct Stride {
    number: u32,
    last: Span,
    distance: i64,
    /// How often it was that distance.
    times: u32,
    /// Pieces asked for ahead of the last read.
    ahead: u64,
    /// How many to be ahead.
    window: u64,
    read: u64,
}

impl Stride {
    fn at(&self, index: u64) -> Option<Span> {
        let distance = self.distance.checked_mul(i64::try_from(index).ok()?)?;
        let pos = self.last.pos.checked_add_signed(distance)?;
        Some(Span::new(pos, self.last.size))
    }

    fn unread(&self) -> u64 {
        self.ahead * self.last.size
    }
}

/// The streams of one open file.
#[derive(Debug)]
pub(crate) struct Streams {
    streams: Vec<Stream>,
    stride: Stride,
    numbers: u32,
    reads: u64,
    /// Bytes that may be fetched ahead and never be read. Reading earns it, up to twice the longest window: what was read
    /// long ago does not pay for reading ahead of a program that reads at random now.
    credit: u64,
}

impl Default for Streams {
    fn default() -> Streams {
        Streams {
            streams: Vec::new(),
            stride: Stride::default(),
            numbers: 0,
            reads: 0,
            credit: WASTE_FREE,
        }
    }
}

impl Streams {
    /// `span` of a file of `size` bytes is read, and `hit` when it was in memory. No window is longer than `limit`.
    pub(crate) fn read(&mut self, span: Span, size: u64, limit: u64, hit: bool) -> Plan {
        let span = span.clip(size);
        let mut plan = Plan {
            demand: span,
            ahead: SmallVec::new(),
            is_open: false,
            stream: 0,
        };
        if span.is_empty() {
            return plan;
        }
        self.reads += 1;
        self.credit = (self.credit + WASTE_MAX * span.size).min(2 * limit + WASTE_FREE);
        let Some(index) = self.find(span) else {
            let index = self.begin_stream(span, false);
            self.step(span, size, limit, &mut plan);
            self.go_on(index, limit, size, (true, hit), &mut plan);
            return plan;
        };
        self.streams[index].last = self.reads;
        let stream = &mut self.streams[index];
        let turned = stream.course.turn(span);
        let is_new = !stream.is_open();
        if is_new {
            stream.learn(turned);
        } else {
            let behind = turned.end() <= stream.passed.end();
            if behind && !hit && stream.pending == 0 {
                // Back to what has gone from memory meanwhile: whether reading goes on from there is to be seen.
                stream.passed = Span::new(stream.passed.end(), 0);
                let index = self.begin_stream(span, true);
                self.go_on(index, limit, size, (true, hit), &mut plan);
                return plan;
            }
            let lost = stream.advance(turned, hit);
            self.waste(lost);
        }
        self.go_on(index, limit, size, (is_new, hit), &mut plan);
        plan
    }

    /// The stream that the read belongs to: best the one whose end it adjoins.
    fn find(&self, span: Span) -> Option<usize> {
        let adjoining = self.streams.iter().position(|stream| {
            let turned = stream.course.turn(span);
            stream.passed.end() == turned.pos
        });
        adjoining.or_else(|| self.streams.iter().position(|stream| stream.has(span)))
    }

    fn begin_stream(&mut self, span: Span, is_known: bool) -> usize {
        if self.streams.len() == STREAMS_MAX {
            // Single reads here and there must not push out what is known to go on.
            let open = self.streams.iter().filter(|s| s.is_open()).count();
            let spares_open = open <= STREAMS_MAX / 2;
            let streams = self.streams.iter().enumerate();
            let oldest = streams.min_by_key(|(_, s)| (spares_open && s.is_open(), s.last));
            if let Some((oldest, _)) = oldest {
                let gone = self.streams.swap_remove(oldest);
                self.waste(gone.unread());
            }
        }
        self.numbers += 1;
        let whole = span.pos == 0 && span.size >= UNIT;
        self.streams.push(Stream {
            number: self.numbers,
            course: Course::Forward,
            passed: span,
            edge: span.end(),
            window: if whole { UNIT } else { 0 },
            is_known,
            after: 0,
            before: 0,
            pending: 0,
            last: self.reads,
        });
        self.streams.len() - 1
    }

    /// Bytes that may still be fetched ahead without any being read.
    fn spare(&self) -> u64 {
        let unread: u64 = self.streams.iter().map(Stream::unread).sum();
        self.credit.saturating_sub(unread + self.stride.unread())
    }

    /// So much was fetched ahead in vain.
    fn waste(&mut self, bytes: u64) {
        self.credit = self.credit.saturating_sub(bytes);
    }

    /// Refill the window of a stream that was read.
    fn go_on(
        &mut self,
        index: usize,
        limit: u64,
        size: u64,
        (is_new, hit): (bool, bool),
        plan: &mut Plan,
    ) {
        let stream = &self.streams[index];
        if !stream.is_open() {
            return;
        }
        plan.is_open = true;
        if limit < UNIT {
            return;
        }
        let end = match stream.course {
            Course::Forward => size,
            Course::Backward => MIRROR,
        };
        // Most reads end here.
        if stream.unread() <= stream.window.min(limit) / 2 && stream.edge < end {
            let spare = self.spare();
            let now = self.reads;
            let active = |s: &&Stream| s.is_open() && now - s.last <= AWAY_MAX;
            let share = limit / self.streams.iter().filter(active).count().max(1) as u64;
            let stream = &mut self.streams[index];
            let granted = stream.refill(end, share, spare, is_new);
            cut(stream.course, granted, &mut plan.ahead);
            stream.pending += plan.ahead.len() as u32;
            plan.stream = stream.number;
        }
        let stream = &self.streams[index];
        if !hit {
            let turned = stream.course.turn(plan.demand);
            plan.demand = stream.course.turn(stream.widen(turned));
        }
    }

    /// A read that belongs to no stream: is it at the distance that the last ones had?
    fn step(&mut self, span: Span, size: u64, limit: u64, plan: &mut Plan) {
        let stride = &mut self.stride;
        let distance = span.pos.wrapping_sub(stride.last.pos) as i64;
        if stride.times > 0 && stride.distance == distance && stride.last.size == span.size {
            stride.times += 1;
            stride.ahead = stride.ahead.saturating_sub(1);
        } else {
            self.numbers += 1;
            let next = Stride {
                number: self.numbers,
                distance,
                times: u32::from(stride.last.size == span.size),
                ..Stride::default()
            };
            let left = std::mem::replace(stride, next);
            self.waste(left.unread());
        }
        let stride = &mut self.stride;
        stride.last = span;
        stride.read = self.reads;
        let most = STRIDE_PIECES_MAX.min(limit / span.size);
        // A read of the first unit begins a stream.
        let is_stream = span.pos == 0 && span.size >= UNIT;
        if limit < UNIT || is_stream || stride.times < 2 || stride.ahead > stride.window / 2 {
            return;
        }
        stride.window = (2 * stride.window).clamp(1, most.max(1));
        plan.stream = stride.number;
        let mut spare = self.spare().min(limit);
        let stride = &mut self.stride;
        while stride.ahead < stride.window.min(most) && spare >= span.size {
            let Some(piece) = stride.at(stride.ahead + 1).filter(|s| s.end() <= size) else {
                return;
            };
            cut(Course::Forward, piece, &mut plan.ahead);
            stride.ahead += 1;
            spare -= span.size;
        }
    }

    /// A fetch that was planned for `stream` may start: is it still wanted? If not it is over with that.
    pub(crate) fn begin(&mut self, number: u32, unit: Span) -> bool {
        let now = self.reads;
        if self.stride.number == number {
            return now - self.stride.read <= AWAY_MAX;
        }
        let Some(stream) = self.streams.iter_mut().find(|s| s.number == number) else {
            return false;
        };
        let unit = stream.course.turn(unit);
        if unit.end() <= stream.passed.end() {
            stream.pending = stream.pending.saturating_sub(1);
            return false;
        }
        if now - stream.last > AWAY_MAX {
            stream.pending = stream.pending.saturating_sub(1);
            stream.give_back(unit);
            return false;
        }
        true
    }

    /// So many of the fetches that were planned are not needed: the bytes are here.
    pub(crate) fn skip(&mut self, number: u32, count: u32) {
        if let Some(stream) = self.streams.iter_mut().find(|s| s.number == number) {
            stream.pending = stream.pending.saturating_sub(count);
        }
    }

    /// A fetch that [`Streams::begin`] let start is over.
    pub(crate) fn end(&mut self, number: u32, unit: Span, fetched: Fetched) {
        let Some(stream) = self.streams.iter_mut().find(|s| s.number == number) else {
            return;
        };
        stream.pending = stream.pending.saturating_sub(1);
        if fetched != Fetched::Yes {
            stream.give_back(stream.course.turn(unit));
        }
        if fetched == Fetched::Failed {
            stream.window = stream.window.min(UNIT);
        }
    }
}

/// Cut what a course wants into units, in the order in which they will be read.
fn cut(course: Course, wanted: Span, units: &mut SmallVec<[Span; 2]>) {
    let mut at = wanted.pos;
    while at < wanted.end() {
        let unit = Span::between(at, wanted.end().min((at / UNIT + 1) * UNIT));
        at = unit.end();
        units.push(course.turn(unit));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KIB: u64 = 1 << 10;
    const MIB: u64 = 1 << 20;
    const SIZE: u64 = 1 << 30;
    const LIMIT: u64 = 8 * MIB;

    /// Streams whose fetches all arrive, and what they have asked for.
    #[derive(Default)]
    struct Bench {
        streams: Streams,
        /// In the order in which it was planned.
        ahead: Vec<Span>,
        asked: u64,
    }

    impl Bench {
        fn read(&mut self, pos: u64, size: u64) -> Vec<Span> {
            let span = Span::new(pos, size);
            let mut at = pos;
            while let Some(unit) = self
                .ahead
                .iter()
                .rev()
                .find(|unit| unit.covers(Span::new(at, 1)))
            {
                at = unit.end();
            }
            self.read_as(span, SIZE, LIMIT, at >= span.end())
        }

        fn read_as(&mut self, span: Span, size: u64, limit: u64, hit: bool) -> Vec<Span> {
            let plan = self.streams.read(span, size, limit, hit);
            assert!(plan.demand.covers(span.clip(size)), "{plan:?} of {span:?}");
            self.asked += span.clip(size).size;
            for &unit in &plan.ahead {
                assert!(
                    !unit.is_empty() && unit.end() <= size && unit.size <= UNIT,
                    "{unit:?}"
                );
                if self.streams.begin(plan.stream, unit) {
                    self.streams.end(plan.stream, unit, Fetched::Yes);
                }
            }
            self.ahead.extend(&plan.ahead);
            plan.ahead.to_vec()
        }

        /// Read `[pos, end)` in steps.
        fn run(&mut self, pos: u64, end: u64, step: u64) {
            for at in (pos..end).step_by(step as usize) {
                self.read(at, step);
            }
        }

        /// End of what was asked for ahead.
        fn edge(&self) -> u64 {
            self.ahead.iter().map(|unit| unit.end()).max().unwrap_or(0)
        }

        fn fetched(&self) -> u64 {
            self.ahead.iter().map(|unit| unit.size).sum()
        }
    }

    #[test]
    fn from_the_start_the_second_read_opens_a_window_of_a_unit() {
        let mut b = Bench::default();
        assert_eq!(b.read(0, 4 * KIB), []);
        assert_eq!(b.read(4 * KIB, 4 * KIB), [Span::between(8 * KIB, UNIT)]);
    }

    #[test]
    fn a_first_read_of_a_whole_unit_opens_it_at_once() {
        let mut b = Bench::default();
        assert_eq!(b.read(0, UNIT), [Span::new(UNIT, UNIT)]);
    }

    #[test]
    fn elsewhere_it_takes_two_adjoining_reads() {
        let mut b = Bench::default();
        assert_eq!(b.read(10 * MIB, UNIT), []);
        assert_eq!(b.read(10 * MIB + UNIT, UNIT), []);
        assert_eq!(
            b.read(10 * MIB + 2 * UNIT, UNIT),
            [Span::new(10 * MIB + 3 * UNIT, UNIT)]
        );
    }

    /// Each byte is asked for once, in whole units, and the window grows to the limit and no further.
    #[test]
    fn sequential_reading_doubles_the_window_to_its_limit() {
        for step in [4 * KIB, 20 * KIB, UNIT, MIB] {
            let mut b = Bench::default();
            let mut longest = 0;
            for at in (0..64 * MIB / step * step).step_by(step as usize) {
                b.read(at, step);
                longest = longest.max(b.edge().saturating_sub(at + step));
            }
            assert!(
                longest <= LIMIT && longest > LIMIT - UNIT,
                "{longest} with {step}"
            );
            for pair in b.ahead.windows(2) {
                assert!(pair[0].end() <= pair[1].pos, "{pair:?} with {step}");
                assert_eq!(pair[0].end() % UNIT, 0, "{pair:?} with {step}");
            }
            assert!(b.fetched() <= b.asked + LIMIT);
        }
    }

    #[test]
    fn refills_are_rare() {
        let mut b = Bench::default();
        b.run(0, 64 * MIB, 4 * KIB);
        let refills = (64 * MIB..128 * MIB)
            .step_by(4096)
            .filter(|&at| !b.read(at, 4 * KIB).is_empty());
        assert!(refills.count() <= 2 * (64 * MIB / LIMIT) as usize + 1);
    }

    #[test]
    fn the_end_of_the_file_is_the_end() {
        let mut b = Bench::default();
        let size = 5 * MIB + 123;
        for at in (0..size).step_by(UNIT as usize) {
            b.read_as(Span::new(at, UNIT), size, LIMIT, true);
        }
        assert_eq!(b.edge(), size);
        assert_eq!(b.read_as(Span::new(size, UNIT), size, LIMIT, true), []);
        // It shrinks.
        assert_eq!(b.read_as(Span::new(0, UNIT), MIB, LIMIT, true), []);
        assert_eq!(b.read_as(Span::new(MIB - UNIT, MIB), MIB, LIMIT, false), []);
    }

    #[test]
    fn a_limit_of_nothing_reads_nothing_ahead() {
        let mut b = Bench::default();
        for at in (0..64 * MIB).step_by(UNIT as usize) {
            assert_eq!(b.read_as(Span::new(at, UNIT), SIZE, 0, false), []);
        }
    }

    #[test]
    fn requests_out_of_order_are_one_stream() {
        let mut b = Bench::default();
        for at in (0..256).step_by(2) {
            b.read((at + 1) * UNIT, UNIT);
            b.read(at * UNIT, UNIT);
        }
        let unread = b.edge() - 256 * UNIT;
        assert!((LIMIT / 2..=LIMIT).contains(&unread), "{unread}");
        assert!(b.fetched() <= b.edge());
    }

    #[test]
    fn eight_streams_are_told_apart() {
        let mut b = Bench::default();
        for step in 0..64 {
            for stream in 0..8 {
                b.read(stream * 100 * MIB + step * UNIT, UNIT);
            }
        }
        for stream in 0..8 {
            let of = Span::new(stream * 100 * MIB, 100 * MIB);
            let units = b.ahead.iter().filter(|unit| of.covers(**unit));
            let edge = units.map(|unit| unit.end()).max().expect("there are some");
            // They share one limit.
            let unread = edge - of.pos - 64 * UNIT;
            assert!(
                (LIMIT / 8 / 2..=LIMIT / 8).contains(&unread),
                "{stream}: {unread}"
            );
        }
    }

    #[test]
    fn single_reads_elsewhere_do_not_end_a_stream() {
        let mut b = Bench::default();
        for step in 0..100 {
            b.read(step * UNIT, UNIT);
            for other in 0..10 {
                b.read(
                    (step * 7919 + other * 104_729) % 4096 * UNIT + 512 * MIB,
                    4 * KIB,
                );
            }
        }
        assert!(b.edge() >= 100 * UNIT + MIB, "{}", b.edge());
    }

    #[test]
    fn backward_reading_is_met_ahead() {
        let mut b = Bench::default();
        for at in (0..64).rev() {
            b.read(100 * MIB + at * UNIT, UNIT);
        }
        let lowest = b.ahead.iter().map(|unit| unit.pos).min().expect("some");
        let unread = 100 * MIB - lowest;
        assert!((MIB..=LIMIT).contains(&unread), "{unread}");
        for pair in b.ahead.windows(2) {
            assert_eq!(pair[0].pos, pair[1].end());
        }
        // Down to the start, and not beyond.
        let mut b = Bench::default();
        for at in (0..64).rev() {
            b.read(at * UNIT, UNIT);
        }
        assert_eq!(b.ahead.last().map(|unit| unit.pos), Some(0));
    }

    #[test]
    fn reads_at_equal_distances_are_met_ahead() {
        for distance in [MIB as i64, -(MIB as i64), 8 * KIB as i64] {
            let mut b = Bench::default();
            let mut hits = 0;
            for index in 0..64 {
                let at = (500 * MIB).saturating_add_signed(index * distance);
                hits += usize::from(b.ahead.contains(&Span::new(at, 4 * KIB)));
                b.read(at, 4 * KIB);
            }
            assert!(hits >= 61, "{hits} at {distance}");
            assert!(b.fetched() <= 100 * 4 * KIB);
        }
    }

    #[test]
    fn random_reads_get_what_they_ask_for() {
        let mut b = Bench::default();
        let mut word = 1u64;
        for _ in 0..20_000 {
            word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            b.read((word >> 33) % (SIZE / 4096) * 4096, 4 * KIB);
        }
        assert!(b.fetched() < b.asked / 10, "{} of {}", b.fetched(), b.asked);
    }

    /// A long scan earns no right to read ahead of what follows it at random.
    #[test]
    fn random_reads_after_a_scan_soon_get_what_they_ask_for() {
        let mut b = Bench::default();
        b.run(0, 512 * MIB, UNIT);
        let before = b.fetched();
        let mut word = 1u64;
        for _ in 0..2000 {
            word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let at = (word >> 33) % (SIZE / 65536) * 65536;
            for part in 0..3 {
                let span = Span::new(at + part * 4 * KIB, 4 * KIB);
                b.read_as(span, SIZE, LIMIT, false);
            }
        }
        let (fetched, asked) = (b.fetched() - before, 2000 * 3 * 4 * KIB);
        assert!(fetched <= 4 * asked + 2 * LIMIT, "{fetched} of {asked}");
    }

    /// A player: reads, jumps ahead a little, goes back ten seconds, reads on.
    #[test]
    fn small_seeks_and_rewinds_keep_the_window() {
        let mut b = Bench::default();
        b.run(0, 16 * MIB, UNIT);
        let edge = b.edge();
        assert!(edge - 16 * MIB >= LIMIT / 2);
        // Back: all of it is here, and nothing is to be fetched.
        let known = b.ahead.len();
        b.run(10 * MIB, 16 * MIB, UNIT);
        assert_eq!(b.ahead.len(), known);
        // On, with a gap: the window goes on where it was.
        b.run(17 * MIB, 30 * MIB, UNIT);
        assert!(b.edge() - 30 * MIB >= LIMIT / 2);
        for pair in b.ahead.windows(2) {
            assert_eq!(
                pair[0].end(),
                pair[1].pos,
                "nothing twice, nothing left out"
            );
        }
    }

    #[test]
    fn what_went_from_memory_before_it_was_read_is_asked_for_again() {
        let mut b = Bench::default();
        b.run(0, 16 * MIB, UNIT);
        let again = b.read_as(Span::new(16 * MIB, UNIT), SIZE, LIMIT, false);
        assert_eq!(again.first().map(|unit| unit.pos), Some(16 * MIB + UNIT));
        // Far back: it takes one more read to see that reading goes on there.
        assert_eq!(b.read_as(Span::new(MIB, UNIT), SIZE, LIMIT, false), []);
        let again = b.read_as(Span::new(MIB + UNIT, UNIT), SIZE, LIMIT, false);
        assert_eq!(again.first().map(|unit| unit.pos), Some(MIB + 2 * UNIT));
    }

    #[test]
    fn a_missing_read_in_the_window_takes_its_whole_unit() {
        let mut streams = Streams::default();
        streams.read(Span::new(0, UNIT), SIZE, LIMIT, false);
        // Still queued.
        let plan = streams.read(Span::new(UNIT, 4 * KIB), SIZE, LIMIT, false);
        assert_eq!(plan.demand, Span::new(UNIT, UNIT));
    }

    #[test]
    fn what_is_queued_for_a_stream_that_was_left_is_not_fetched() {
        let mut streams = Streams::default();
        let plan = streams.read(Span::new(0, UNIT), SIZE, LIMIT, false);
        for index in 1..=AWAY_MAX + 1 {
            streams.read(Span::new(index * 13 * MIB, 4 * KIB), SIZE, LIMIT, false);
        }
        assert!(!streams.begin(plan.stream, plan.ahead[0]));
        // When reading goes on after all it is asked for again.
        let plan = streams.read(Span::new(UNIT, 4 * KIB), SIZE, LIMIT, false);
        assert_eq!(plan.ahead[0].end(), 2 * UNIT);
    }

    #[test]
    fn a_failure_makes_the_window_small() {
        let mut b = Bench::default();
        b.run(0, 16 * MIB, UNIT);
        let plan = b
            .streams
            .read(Span::new(b.edge() - UNIT, UNIT), SIZE, LIMIT, true);
        assert!(plan.ahead.len() > 4);
        for &unit in &plan.ahead {
            assert!(b.streams.begin(plan.stream, unit));
            b.streams.end(plan.stream, unit, Fetched::Failed);
        }
        let plan = b.streams.read(plan.ahead[0], SIZE, LIMIT, false);
        assert!(plan.ahead.len() <= 2, "{plan:?}");
    }

    fn reads() -> impl Strategy<Value = Vec<(u64, u64, bool)>> {
        // Positions as programs have them: in few places, often right behind or before the last.
        let place = prop_oneof![0..64u64, Just(1000u64), Just(1001u64), Just(1002u64)];
        prop::collection::vec((place, 1..64u64, any::<bool>()), 1..400)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        /// Whatever is read: not more than four bytes are fetched for one, beside what a window begins with.
        #[test]
        fn reading_ahead_is_bounded(reads in reads(), limit in 0..LIMIT) {
            let mut b = Bench::default();
            let mut last = Span::default();
            for (place, size, hit) in reads {
                let size = size * 4 * KIB;
                let pos = match place {
                    1000 => last.end(),
                    1001 => last.pos.saturating_sub(size),
                    1002 => last.end() + size,
                    _ => place * 3 * MIB,
                };
                last = Span::new(pos, size);
                b.read_as(last, SIZE, limit, hit);
                prop_assert!(b.fetched() <= 4 * b.asked + WASTE_FREE, "{} of {}", b.fetched(), b.asked);
            }
        }
    }
}
