//! What the random histories have found, and what was found by thinking about them: each bug reduced to its story.

use crate::ops::Op;
use crate::plain::Code;
use crate::play;
use crate::view::{TTL, View, caller};
use bytes::Bytes;
use nix::errno::Errno;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, SystemTime};
use warmfs::backing::{BackingFile, Call, Intercept, Source};
use warmfs::cache::{Cache, Version};
use warmfs::clock::Clock;
use warmfs::file::CachedFile;
use warmfs::overlay::{How, NodeId, Overlay};
use warmfs::span::Span;
use warmfs::stats::Stats;

#[track_caller]
fn assert_like_a_plain_directory(ops: &[Op]) {
    if let Err(difference) = play(ops) {
        panic!("{difference}");
    }
}

/// The overlay remembered the first descriptor of a file only. When that was closed, a file without a name was gone
/// for those who had it open by another one.
#[test]
fn a_file_without_a_name_is_known_by_each_of_its_descriptors() {
    // In slot 1 it has been open since the beginning.
    let second = [
        Op::Open(2, "d/a", libc::O_RDONLY),
        Op::Unlink("d/a"),
        Op::Close(1),
        Op::StatOpen(2),
    ];
    assert_like_a_plain_directory(&second);
    // Opened from memory, with the descriptor that is kept for reading.
    let kept = [
        Op::Open(2, "d/a", libc::O_RDONLY),
        Op::Close(2),
        Op::Open(2, "d/a", libc::O_RDONLY),
        Op::Close(1),
        Op::Unlink("d/a"),
        Op::StatOpen(2),
    ];
    assert_like_a_plain_directory(&kept);
}

/// A file has two names, and a stranger puts a directory at one of them: opening the file for writing by the other one
/// gave EISDIR.
#[test]
fn another_file_at_one_of_its_names_is_no_error_of_a_file() {
    let other = Op::Outside(
        Box::new(Op::Rename("d/a", "d/d", libc::RENAME_EXCHANGE)),
        vec![],
    );
    let open = Op::Open(0, "b", libc::O_WRONLY);
    assert_like_a_plain_directory(&[Op::Unlink("d/a"), Op::Link("b", "d/a"), other, open]);
}

/// The same with access(2): it was answered for whatever file had the name.
#[test]
fn access_is_asked_of_the_file_itself() {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let at = |name: &str| dir.path().join(name);
    std::fs::write(at("f"), "").expect("write");
    std::fs::hard_link(at("f"), at("g")).expect("link");
    let view = View::new(dir.path());
    let node = ["f", "g"].map(|name| view.lookup(NodeId::ROOT, name.as_ref()).expect(name).node)[0];
    let executable = std::fs::Permissions::from_mode(0o755);
    std::fs::write(at("other"), "").expect("write");
    std::fs::set_permissions(at("other"), executable).expect("chmod");
    std::fs::rename(at("other"), at("g")).expect("rename");
    let access = view.overlay.access(node, libc::X_OK);
    assert_eq!(access.map_err(|error| error.errno()), Err(Errno::EACCES));
}

/// `open(O_RDONLY | O_CREAT | O_TRUNC)` of a file that somebody else made while it was believed absent: a file opened
/// for reading only cannot be cut through that descriptor.
#[test]
fn opening_for_reading_can_truncate() {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let view = View::new(dir.path());
    std::fs::write(dir.path().join("f"), "content").expect("write");
    let (flags, name) = (libc::O_RDONLY | libc::O_TRUNC, "f".as_ref());
    let made = view
        .overlay
        .create(caller(), NodeId::ROOT, name, (0o600, 0), flags);
    let (entry, _) = made.expect("create");
    assert_eq!(view.getattr(entry.node).expect("getattr").size, 0);
    assert_eq!(std::fs::read(dir.path().join("f")).expect("read"), b"");
}

/// Only so many names of a file are kept. One of the others, met again, was taken for known, and led nowhere: opening
/// the file gave ESTALE each time.
#[test]
fn a_file_opens_by_each_of_very_many_names() {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let names: Vec<String> = (0..40).map(|number| format!("link {number}")).collect();
    std::fs::write(dir.path().join(&names[0]), "content").expect("write");
    for name in &names[1..] {
        std::fs::hard_link(dir.path().join(&names[0]), dir.path().join(name)).expect("link");
    }
    let view = View::new(dir.path());
    let open = |name: &str| {
        let entry = view.lookup(NodeId::ROOT, name.as_ref()).expect(name);
        let opened = view.open(entry.node, libc::O_RDWR);
        drop(view.overlay.release(opened.expect(name)));
        drop(view.overlay.forget(entry.node, 1));
    };
    let others: Vec<String> = (0..20).map(|number| format!("other {number}")).collect();
    for name in &others {
        std::fs::write(dir.path().join(name), "").expect("write");
    }
    names.iter().for_each(|name| open(name));
    for name in &names {
        // The file is forgotten for others.
        others.iter().for_each(|name| open(name));
        open(name);
    }
}

/// Two changes of one file at once: the one that ended last told the attributes that it had seen, which were from
/// before the other one. A program that had made a file longer was shown the old size.
#[test]
fn attributes_are_not_older_than_a_change_that_has_returned() {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let hook = Arc::new(Once::default());
    let view = View::with(dir.path(), Some(hook.clone()));
    let made = view.overlay.create(
        caller(),
        NodeId::ROOT,
        "f".as_ref(),
        (0o600, 0),
        libc::O_RDWR,
    );
    let (entry, opened) = made.expect("create");
    let write = move |overlay: &Overlay, pos: u64| {
        overlay
            .write(
                opened.handle,
                pos,
                Bytes::from_static(b"0123"),
                How::default(),
            )
            .expect("write");
    };
    let (overlay, stat) = (view.overlay.clone(), hook.clone());
    hook.set(Call::Write, true, move || {
        stat.set(Call::Stat, true, move || write(&overlay, 4));
    });
    write(&view.overlay, 0);
    assert_eq!(view.getattr(entry.node).expect("getattr").size, 8);
}

/// A name is made while another change of the directory is under way. That was not remembered, for good reason, but
/// that the name had been absent was not forgotten either.
#[test]
fn a_name_that_was_made_is_not_absent() {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let hook = Arc::new(Once::default());
    let view = View::with(dir.path(), Some(hook.clone()));
    let absent = view.lookup(NodeId::ROOT, "f".as_ref());
    assert_eq!(absent.map(drop), Err(Code(Errno::ENOENT)));
    let overlay = view.overlay.clone();
    hook.set(Call::Create, false, move || {
        let made = overlay.mkdir(caller(), NodeId::ROOT, "f".as_ref(), (0o700, 0));
        made.expect("mkdir");
    });
    let other = view
        .overlay
        .mkdir(caller(), NodeId::ROOT, "other".as_ref(), (0o700, 0));
    other.expect("mkdir");
    view.lookup(NodeId::ROOT, "f".as_ref())
        .expect("it is there");
}

/// What was asked before a change of ours, and answered during it, is not remembered after it.
#[test]
fn an_answer_from_before_a_change_is_not_remembered() {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let hook = Arc::new(Once::default());
    let view = View::with(dir.path(), Some(hook.clone()));
    let (root, f) = (NodeId::ROOT, OsStr::new("f"));
    // The name was absent when it was asked for.
    let overlay = view.overlay.clone();
    let (made, handle) = mpsc::channel();
    hook.set(Call::Stat, true, move || {
        let created = overlay.create(caller(), root, f, (0o600, 0), libc::O_RDWR);
        made.send(created.expect("create").1.handle)
            .expect("the test waits");
    });
    assert_eq!(view.lookup(root, f).map(drop), Err(Code(Errno::ENOENT)));
    let entry = view.lookup(root, f).expect("it was created");
    // It was empty.
    let (overlay, handle) = (view.overlay.clone(), handle.recv().expect("a handle"));
    hook.set(Call::Stat, true, move || {
        overlay
            .write(handle, 0, Bytes::from_static(b"0123"), How::default())
            .expect("write");
    });
    view.clock.advance(TTL);
    view.overlay.getattr(entry.node).expect("getattr");
    assert_eq!(view.getattr(entry.node).expect("getattr").size, 4);
    // It was there.
    let overlay = view.overlay.clone();
    hook.set(Call::Stat, true, move || {
        overlay.unlink(root, f).expect("unlink")
    });
    view.clock.advance(TTL);
    view.lookup(root, f).expect("it was there");
    assert_eq!(view.lookup(root, f).map(drop), Err(Code(Errno::ENOENT)));
}

/// A stranger puts another directory in the place of one that the kernel knows.
#[test]
fn a_directory_is_not_taken_for_another_one_at_its_name() {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let at = |name: &str| dir.path().join(name);
    for name in ["d", "e", "e/f"] {
        std::fs::create_dir(at(name)).expect("mkdir");
    }
    let view = View::new(dir.path());
    let entry = view.lookup(NodeId::ROOT, "d".as_ref()).expect("lookup");
    std::fs::rename(at("d"), at("moved")).expect("rename");
    std::fs::rename(at("e"), at("d")).expect("rename");
    let found = view.lookup(entry.node, "f".as_ref());
    assert_eq!(found.map(drop), Err(Code(Errno::ESTALE)));
}

type Hook = Box<dyn FnOnce() + Send>;

/// Does something once, before or after a call on the source.
#[derive(Default)]
struct Once(Mutex<Option<(Call, bool, Hook)>>);

impl Once {
    fn set(&self, call: Call, after: bool, hook: impl FnOnce() + Send + 'static) {
        *self.0.lock().expect("not poisoned") = Some((call, after, Box::new(hook)));
    }

    fn run(&self, call: Call, after: bool) {
        let due = {
            let mut hook = self.0.lock().expect("not poisoned");
            let is_due = matches!(*hook, Some((due, when, _)) if (due, when) == (call, after));
            if is_due { hook.take() } else { None }
        };
        if let Some((_, _, hook)) = due {
            hook();
        }
    }
}

impl Intercept for Once {
    fn before(&self, call: Call) -> nix::Result<()> {
        self.run(call, false);
        Ok(())
    }

    fn after(&self, call: Call) {
        self.run(call, true);
    }
}

/// One file, opened twice through one cache.
struct Pair {
    dir: tempfile::TempDir,
    clock: Clock,
    files: [Arc<CachedFile>; 2],
    hooks: [Arc<Once>; 2],
}

impl Pair {
    fn new(content: &str) -> Pair {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        std::fs::write(dir.path().join("f"), content).expect("write");
        let clock = Clock::manual(SystemTime::now() + Duration::from_secs(3600));
        let stats = Arc::new(Stats::default());
        let cache = Arc::new(Cache::new(1 << 20, TTL, clock.clone(), stats.clone()));
        let hooks = [Arc::new(Once::default()), Arc::new(Once::default())];
        let files = hooks.each_ref().map(|hook| {
            let source = Source::open(dir.path(), Some(hook.clone()), stats.clone()).expect("open");
            let file = std::fs::File::options()
                .read(true)
                .write(true)
                .open(dir.path().join("f"));
            let fd: OwnedFd = file.expect("open").into();
            let id = Version::of(&source.stat(&fd, true).expect("stat")).id;
            let record = cache.open(id, || "f".into());
            Arc::new(CachedFile::new(
                record,
                BackingFile::opened(Arc::new(source), Arc::new(fd)),
            ))
        });
        Pair {
            dir,
            clock,
            files,
            hooks,
        }
    }

    fn assert_read(&self, content: &str) {
        self.clock.advance(TTL);
        let bytes = self.files[0].read_at(Span::new(0, 100)).expect("read");
        assert_eq!(String::from_utf8_lossy(&bytes), content);
    }
}

fn stranger(dir: &Path, at: u64, bytes: &str) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::options()
        .write(true)
        .open(dir.join("f"))
        .expect("open");
    crate::next_tick(dir);
    file.write_all_at(bytes.as_bytes(), at).expect("write");
}

/// Before a write the file is compared with the source. When another write of ours ended meanwhile the comparison
/// said nothing, and the write's own version then covered up what a stranger had done: his bytes were never seen.
#[test]
fn a_write_after_an_unsettled_comparison_hides_no_strangers_change() {
    let pair = Pair::new("0123456789");
    pair.assert_read("0123456789");
    let (other, dir) = (pair.files[1].clone(), pair.dir.path().to_owned());
    pair.hooks[0].set(Call::Stat, false, move || {
        other
            .write_at(0, Bytes::from_static(b"A"), false)
            .expect("write");
        stranger(&dir, 5, "X");
    });
    pair.files[0]
        .write_at(9, Bytes::from_static(b"B"), false)
        .expect("write");
    pair.assert_read("A1234X678B");
}

/// A write asks nobody when nothing is cached. A read under way, which had the bytes from before a stranger's change,
/// then brought them, and the write's version declared them to be current.
#[test]
fn a_read_under_way_brings_nothing_that_a_write_declares_current() {
    let pair = Pair::new("0123456789");
    let (fetched, has_fetched) = mpsc::channel();
    let (go_on, may_go_on) = mpsc::channel();
    pair.hooks[0].set(Call::Read, true, move || {
        fetched.send(()).expect("the test waits");
        may_go_on.recv().expect("the test goes on");
    });
    let reading = pair.files[0].clone();
    let reader = std::thread::spawn(move || reading.read_at(Span::new(0, 100)).map(drop));
    has_fetched.recv().expect("it reads");
    stranger(pair.dir.path(), 5, "X");
    pair.hooks[1].set(Call::Write, false, move || {
        go_on.send(()).expect("it waits");
        reader.join().expect("it ends").expect("it reads");
    });
    pair.files[1]
        .write_at(9, Bytes::from_static(b"B"), false)
        .expect("write");
    pair.assert_read("01234X678B");
}
