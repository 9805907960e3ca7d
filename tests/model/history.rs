//! What can happen: operations of programs on a file system, as values that proptest makes and shrinks.
//!
//! Places and sizes are few and small, so that operations meet each other: in a wide space almost every one would
//! only find that nothing is there.

use proptest::prelude::*;
use proptest::sample::select;

/// A path below the root.
pub(crate) type Place = &'static str;

const PLACES: [Place; 18] = [
    "a", "b", "d", "e", "d/a", "d/b", "e/a", "e/b", "d/d", "d/e", "e/d", "d/d/a", "d/d/b", "e/d/a", "e/d/d", "d/e/a",
    "a/b", "d/a/b",
];

/// Open files that a program can have at once.
pub(crate) const SLOTS: usize = 4;

/// Bytes of a file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    pub(crate) pos: u64,
    pub(crate) size: u64,
}

/// One operation. The first number of those on open files is the slot that the file is kept in.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    /// Flags of open(2), with or without `O_CREAT`. What was open in the slot is closed before.
    Open(usize, Place, i32),
    Close(usize),
    Read(usize, Part),
    /// At the end, when the file was opened so. The bytes are made from the last number.
    Write(usize, Part, u8),
    Cut(usize, u64),
    Allocate(usize, i32, Part),
    Copy(usize, Part, usize, u64),
    StatOpen(usize),
    Stat(Place),
    List(Place),
    ListPlus(Place),
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
    /// Set the time of the last change.
    SetTime(Place, i64),
    SetXattr(Place, &'static str, u8, i32),
    /// Ask with a buffer of so many bytes.
    GetXattr(Place, &'static str, u32),
    ListXattr(Place),
    RemoveXattr(Place, &'static str),
    /// Somebody else does it, in the source itself; then the time passes for which anything is believed.
    Outside(Box<Op>),
    /// So many milliseconds pass.
    Wait(u64),
    /// Close the descriptors that are kept for later.
    Sweep,
}

/// Of every symbolic link: there is no such place, so nothing is found behind one.
pub(crate) const NOWHERE: &str = "nowhere";

/// The bytes of a write.
pub(crate) fn bytes(size: u64, seed: u8) -> Vec<u8> {
    (0..size).map(|at| seed.wrapping_add(at as u8) | 1).collect()
}

fn place() -> impl Strategy<Value = Place> {
    select(&PLACES[..])
}

fn part() -> impl Strategy<Value = Part> {
    let pos = prop_oneof![9 => 0..120u64, 1 => select(vec![4096u64, 4095, 8192])];
    let size = prop_oneof![9 => 1..60u64, 1 => select(vec![4096u64, 5000])];
    (pos, size).prop_map(|(pos, size)| Part { pos, size })
}

fn open() -> impl Strategy<Value = Op> {
    let access = select(vec![libc::O_RDONLY, libc::O_WRONLY, libc::O_RDWR, libc::O_RDWR, libc::O_RDWR | libc::O_APPEND]);
    let flags = select(vec![0, 0, libc::O_CREAT, libc::O_CREAT, libc::O_CREAT, libc::O_CREAT | libc::O_EXCL]);
    let cut = select(vec![0, 0, 0, libc::O_TRUNC]);
    (0..SLOTS, place(), access, flags, cut)
        .prop_map(|(slot, place, access, flags, cut)| Op::Open(slot, place, access | flags | cut))
}

/// On open files.
fn on_files() -> impl Strategy<Value = Op> {
    let modes = vec![0, 0x01, 0x03, 0x08, 0x10, 0x11, 0x20];
    prop_oneof![
        6 => (0..SLOTS, part()).prop_map(|(slot, part)| Op::Read(slot, part)),
        6 => (0..SLOTS, part(), any::<u8>()).prop_map(|(slot, part, seed)| Op::Write(slot, part, seed)),
        1 => (0..SLOTS, 0..150u64).prop_map(|(slot, size)| Op::Cut(slot, size)),
        1 => (0..SLOTS, select(modes), part()).prop_map(|(slot, mode, part)| Op::Allocate(slot, mode, part)),
        1 => (0..SLOTS, part(), 0..SLOTS, 0..120u64).prop_map(|(from, part, to, pos)| Op::Copy(from, part, to, pos)),
        2 => (0..SLOTS).prop_map(Op::StatOpen),
        1 => (0..SLOTS).prop_map(Op::Close),
    ]
}

/// Changes of names and attributes.
fn on_names() -> impl Strategy<Value = Op> {
    let flags = select(vec![0, 0, 0, 1, 2, 2]);
    let modes = select(vec![0o600, 0o644, 0o711, 0o755]);
    let xattr = || select(vec!["user.x", "user.y"]);
    prop_oneof![
        4 => place().prop_map(Op::Mkdir),
        1 => place().prop_map(Op::Mkfifo),
        2 => place().prop_map(Op::Rmdir),
        3 => place().prop_map(Op::Unlink),
        5 => (place(), place(), flags).prop_map(|(from, to, flags)| Op::Rename(from, to, flags)),
        2 => (place(), place()).prop_map(|(old, new)| Op::Link(old, new)),
        1 => place().prop_map(Op::Symlink),
        2 => (place(), 0..150u64).prop_map(|(place, size)| Op::Truncate(place, size)),
        2 => (place(), modes).prop_map(|(place, mode)| Op::Chmod(place, mode)),
        1 => (place(), 1..1_000_000_000i64).prop_map(|(place, secs)| Op::SetTime(place, secs)),
        2 => (place(), xattr(), 1..40u8, 0..3i32).prop_map(|(p, name, size, flags)| Op::SetXattr(p, name, size, flags)),
        1 => (place(), xattr()).prop_map(|(place, name)| Op::RemoveXattr(place, name)),
    ]
}

fn questions() -> impl Strategy<Value = Op> {
    let xattr = select(vec!["user.x", "user.y"]);
    prop_oneof![
        4 => place().prop_map(Op::Stat),
        2 => select(&["", "d", "e", "d/d", "a"][..]).prop_map(Op::List),
        2 => select(&["", "d", "e", "d/d", "a"][..]).prop_map(Op::ListPlus),
        1 => place().prop_map(Op::Readlink),
        2 => (place(), xattr, select(vec![0u32, 5, 100])).prop_map(|(p, name, size)| Op::GetXattr(p, name, size)),
        1 => place().prop_map(Op::ListXattr),
    ]
}

fn outside() -> impl Strategy<Value = Op> {
    // An outsider opens a file, writes to it and closes it: his slots are beyond ours.
    let write = (place(), part(), any::<u8>()).prop_map(|(place, part, seed)| {
        let open = Op::Open(SLOTS, place, libc::O_WRONLY | libc::O_CREAT);
        vec![open, Op::Write(SLOTS, part, seed), Op::Close(SLOTS)]
    });
    let change = on_names().prop_map(|op| vec![op]);
    prop_oneof![write, change].prop_map(|ops| Op::Outside(Box::new(Op::All(ops))))
}
