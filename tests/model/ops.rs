//! What can happen: operations of programs on a file system, as values that proptest makes and shrinks.
//!
//! Places and sizes are few and small, and the first operations are always the same, so that operations meet: in a
//! wide space almost every one would only find that nothing is there.

use crate::view::TTL;
use proptest::prelude::*;
use proptest::sample::select;

/// A path below the root.
pub(crate) type Place = &'static str;

/// Places where mostly files are, those where mostly directories are, and odd ones.
const FILES: [Place; 8] = ["a", "a", "d/a", "d/a", "b", "d/b", "e/a", "d/d/a"];
const DIRS: [Place; 5] = ["d", "e", "d/d", "e/d", "a"];
const ODD: [Place; 6] = ["a/b", "d/a/b", "e/d/a", "e/d/d", "d/e/a", "d/d/b"];
const XATTRS: [&str; 2] = ["user.x", "user.y"];

/// Files that a program can have open at once.
pub(crate) const SLOTS: usize = 3;

/// Of every symbolic link: there is no such place, so nothing is found through one.
pub(crate) const NOWHERE: &str = "nowhere";

/// Bytes of a file: offset and number.
pub(crate) type Part = (u64, u64);

/// One operation. The first number of those on open files is the slot that the file is kept in.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    /// With flags of open(2). What was open in the slot is closed before.
    Open(usize, Place, i32),
    Close(usize),
    Read(usize, Part),
    /// At the end instead, when the file was opened so. The last number is what the bytes are made from.
    Write(usize, Part, u8),
    Cut(usize, u64),
    /// With a mode of fallocate(2).
    Allocate(usize, i32, Part),
    /// To an offset of the file in another slot.
    Copy(usize, Part, usize, u64),
    StatOpen(usize),
    Stat(Place),
    List(Place),
    /// With attributes.
    ListPlus(Place),
    /// Open, made if need be; write; close.
    Put(Place, Part, u8),
    Truncate(Place, u64),
    Mkdir(Place),
    Mkfifo(Place),
    Rmdir(Place),
    Unlink(Place),
    /// With flags of renameat2(2).
    Rename(Place, Place, u32),
    Link(Place, Place),
    Symlink(Place),
    Readlink(Place),
    Chmod(Place, u32),
    /// Set the time of the last change, in seconds.
    SetTime(Place, i64),
    /// So many bytes, with flags of setxattr(2).
    SetXattr(Place, &'static str, usize, i32),
    /// With a buffer of so many bytes.
    GetXattr(Place, &'static str, u32),
    ListXattr(Place),
    RemoveXattr(Place, &'static str),
    /// Somebody else does it, in the source itself. What is asked meanwhile may be answered either way; then the time
    /// passes for which anything is believed.
    Outside(Box<Op>, Vec<Op>),
    /// So many milliseconds pass.
    Wait(u64),
    /// What is kept open for later is closed.
    Sweep,
}

/// The bytes of a write.
pub(crate) fn bytes(size: u64, seed: u8) -> Vec<u8> {
    (0..size)
        .map(|at| seed.wrapping_add(at as u8) | 1)
        .collect()
}

fn part() -> impl Strategy<Value = Part> {
    let pos = prop_oneof![9 => 0..120u64, 1 => select(&[4096u64, 4095, 8192][..])];
    let size = prop_oneof![9 => 1..60u64, 1 => select(&[4096u64, 5000][..])];
    (pos, size)
}

fn file() -> impl Strategy<Value = Place> {
    prop_oneof![12 => select(&FILES[..]), 2 => select(&DIRS[..]), 1 => select(&ODD[..])]
}

fn dir() -> impl Strategy<Value = Place> {
    prop_oneof![12 => select(&DIRS[..]), 2 => select(&FILES[..]), 1 => select(&ODD[..])]
}

fn place() -> impl Strategy<Value = Place> {
    prop_oneof![8 => select(&FILES[..]), 5 => select(&DIRS[..]), 1 => select(&ODD[..])]
}

fn on_files() -> impl Strategy<Value = Op> {
    use libc::{O_APPEND, O_CREAT, O_EXCL, O_RDONLY, O_RDWR, O_TRUNC, O_WRONLY};
    let access = select(
        &[
            O_RDONLY,
            O_RDONLY,
            O_WRONLY,
            O_RDWR,
            O_RDWR,
            O_RDWR | O_APPEND,
        ][..],
    );
    let how = select(
        &[
            0,
            0,
            0,
            O_CREAT,
            O_CREAT,
            O_TRUNC,
            O_CREAT | O_TRUNC,
            O_CREAT | O_EXCL,
        ][..],
    );
    let slot = || 0..SLOTS;
    // Also those that the kernel would refuse for us: the overlay promises them.
    let modes = select(&[0, 0x01, 0x03, 0x08, 0x10, 0x11, 0x20][..]);
    prop_oneof![
        6 => (slot(), file(), access, how)
            .prop_map(|(slot, place, access, how)| Op::Open(slot, place, access | how)),
        1 => slot().prop_map(Op::Close),
        7 => (slot(), part()).prop_map(|(slot, part)| Op::Read(slot, part)),
        7 => (slot(), part(), any::<u8>()).prop_map(|(slot, part, seed)| Op::Write(slot, part, seed)),
        1 => (slot(), 0..150u64).prop_map(|(slot, size)| Op::Cut(slot, size)),
        1 => (slot(), modes, part()).prop_map(|(slot, mode, part)| Op::Allocate(slot, mode, part)),
        1 => (slot(), part(), slot(), 0..120u64).prop_map(|(from, part, to, pos)| Op::Copy(from, part, to, pos)),
        3 => slot().prop_map(Op::StatOpen),
    ]
}

fn changes() -> impl Strategy<Value = Op> {
    let xattr = || select(&XATTRS[..]);
    let flags = || select(&[0u32, 0, 0, 1, 2][..]);
    // Whoever runs the test may read, write and enter everything.
    let modes = select(&[0o700u32, 0o744, 0o711, 0o755][..]);
    prop_oneof![
        5 => (file(), part(), any::<u8>()).prop_map(|(place, part, seed)| Op::Put(place, part, seed)),
        2 => (file(), 0..150u64).prop_map(|(place, size)| Op::Truncate(place, size)),
        4 => dir().prop_map(Op::Mkdir),
        1 => place().prop_map(Op::Mkfifo),
        2 => dir().prop_map(Op::Rmdir),
        3 => file().prop_map(Op::Unlink),
        4 => (file(), file(), flags()).prop_map(|(from, to, flags)| Op::Rename(from, to, flags)),
        3 => (place(), place(), flags()).prop_map(|(from, to, flags)| Op::Rename(from, to, flags)),
        3 => (file(), file()).prop_map(|(old, new)| Op::Link(old, new)),
        2 => file().prop_map(Op::Symlink),
        2 => (place(), modes).prop_map(|(place, mode)| Op::Chmod(place, mode)),
        1 => (place(), 1..1_000_000_000i64).prop_map(|(place, secs)| Op::SetTime(place, secs)),
        3 => (file(), xattr(), 1..40usize, select(&[0, 0, 1, 2][..]))
            .prop_map(|(place, name, size, flags)| Op::SetXattr(place, name, size, flags)),
        1 => (file(), xattr()).prop_map(|(place, name)| Op::RemoveXattr(place, name)),
    ]
}

fn questions() -> impl Strategy<Value = Op> {
    let listed = || prop_oneof![1 => Just(""), 2 => dir()];
    let (xattr, sizes) = (select(&XATTRS[..]), select(&[0u32, 5, 100][..]));
    prop_oneof![
        4 => prop_oneof![9 => place(), 1 => Just("")].prop_map(Op::Stat),
        2 => listed().prop_map(Op::List),
        2 => listed().prop_map(Op::ListPlus),
        1 => file().prop_map(Op::Readlink),
        3 => (file(), xattr, sizes).prop_map(|(place, name, size)| Op::GetXattr(place, name, size)),
        1 => place().prop_map(Op::ListXattr),
    ]
}

/// What every history begins with.
pub(crate) fn beginning() -> Vec<Op> {
    let dirs = ["d", "e", "d/d"].map(Op::Mkdir);
    let files = ["a", "d/a", "d/b"].map(|place| Op::Put(place, (0, 100), 7));
    let open = |slot: usize, place: Place| Op::Open(slot, place, libc::O_RDWR | libc::O_CREAT);
    let mut ops = Vec::from(dirs);
    ops.extend(files);
    ops.extend([open(0, "a"), open(1, "d/a"), open(2, "b")]);
    ops
}

/// A look at everything that may be there, after all trust has ended.
pub(crate) fn ending() -> Vec<Op> {
    let mut ops = vec![Op::Wait(TTL.as_millis() as u64)];
    let places = FILES.iter().chain(&DIRS).chain(&ODD);
    ops.extend(["", "d", "e", "d/d", "e/d"].map(Op::ListPlus));
    for place in places {
        let open = Op::Open(0, place, libc::O_RDONLY);
        ops.extend([
            Op::Stat(place),
            Op::ListXattr(place),
            open,
            Op::Read(0, (0, 20_000)),
        ]);
    }
    ops
}

/// Some 60 operations in between.
pub(crate) fn history() -> impl Strategy<Value = Vec<Op>> {
    let asked = prop_oneof![
        questions(),
        (0..SLOTS, part()).prop_map(|(slot, part)| Op::Read(slot, part))
    ];
    let op = prop_oneof![
        10 => on_files(),
        8 => changes(),
        5 => questions(),
        2 => (changes(), prop::collection::vec(asked, 0..4))
            .prop_map(|(op, asked)| Op::Outside(Box::new(op), asked)),
        1 => (0..1500u64).prop_map(Op::Wait),
        1 => Just(Op::Sweep),
    ];
    prop::collection::vec(op, 1..120)
}
