//! What is believed of names, attributes and listings, for how long, and what the source is asked for. The clock is moved
//! by hand, and each call on the source is counted.

use crate::view::{TTL, View, caller};
use nix::errno::Errno;
use std::ffi::OsStr;
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;
use warmfs::cache::Trust;
use warmfs::overlay::{KeepDir, NodeId, Opened};
use warmfs::span::Span;

const MOMENT: Duration = Duration::from_millis(1);

struct World {
    dir: TempDir,
    view: View,
}

impl World {
    fn new() -> World {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let view = View::new(dir.path());
        World { dir, view }
    }

    fn at(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        crate::next_tick(Path::new("/tmp"));
        std::fs::write(self.at(name), text).expect("write");
    }

    /// Calls on the source that `f` makes.
    fn calls(&self, f: impl FnOnce()) -> u64 {
        let calls = &self.view.overlay.cache().stats().source_calls;
        let before = calls.get();
        f();
        calls.get() - before
    }

    fn pass(&self, time: Duration) {
        self.view.clock.advance(time);
    }

    fn names(&self) -> Vec<String> {
        let list = self.view.list("", false).expect("the root is listed");
        list.into_keys().collect()
    }

    fn is_absent(&self, name: &str) -> bool {
        let found = self.view.lookup(NodeId::ROOT, OsStr::new(name));
        found.is_err_and(|code| code.0 == Errno::ENOENT)
    }

    fn read(&self, handle: u64) -> Result<Vec<u8>, crate::plain::Code> {
        self.view.read(handle, Span::new(0, 10))
    }

    /// Read the file, close it, and let no descriptor of it stay.
    fn cache(&self, node: NodeId) {
        let overlay = &self.view.overlay;
        let opened = overlay.open(caller(), node, libc::O_RDONLY).expect("open");
        self.read(opened.handle).expect("read");
        drop(overlay.release(opened.handle));
        overlay.close_idle(Duration::ZERO);
    }

    /// Open a file for reading without asking the source.
    #[track_caller]
    fn open_known(&self, node: NodeId) -> Opened {
        let opened = self
            .view
            .overlay
            .open_known(node, libc::O_RDONLY, Trust::Ttl);
        opened.expect("it is known")
    }

    fn node(&self, name: &str) -> NodeId {
        let entry = self.view.lookup(NodeId::ROOT, OsStr::new(name));
        entry
            .unwrap_or_else(|error| panic!("{name}: {error:?}"))
            .node
    }

    /// The kernel asks for the attributes of a directory before it looks into it.
    fn look_at_root(&self) {
        self.view.getattr(NodeId::ROOT).expect("the root is there");
    }
}

/// Looking for what is not there (a module in a search path, a `.gitignore`) costs one question each, and from then on
/// one for the directory.
#[test]
fn names_hold_while_the_directorys_version_holds() {
    let w = World::new();
    w.pass(TTL);
    w.look_at_root();
    w.pass(MOMENT);
    for name in ["a", "b", "c"] {
        assert!(w.is_absent(name));
    }
    for _ in 0..5 {
        w.pass(TTL);
        assert_eq!(w.calls(|| w.look_at_root()), 1);
        let calls = w.calls(|| assert!(["a", "b", "c"].iter().all(|name| w.is_absent(name))));
        assert_eq!(calls, 0, "the directory vouches for its names");
    }
    w.write("b", "here now");
    w.pass(TTL);
    w.look_at_root();
    assert!(w.is_absent("a") && !w.is_absent("b"));
}

/// The directory was asked first, and answered last: a name that came to be in between was absent when it was asked for.
#[test]
fn a_name_that_was_asked_for_before_its_directory_is_asked_for_again() {
    let w = World::new();
    assert!(w.is_absent("f"));
    w.write("f", "");
    w.look_at_root();
    w.pass(TTL);
    w.look_at_root();
    assert!(!w.is_absent("f"));
}

/// Where directories do not change their times with their names, as on some object stores, a listing that is held is
/// read again after a minute.
#[test]
fn names_are_not_held_for_ever() {
    let w = World::new();
    w.write("f", "");
    w.pass(TTL);
    assert_eq!(w.names(), ["f"]);
    let is_local = w.view.overlay.is_local();
    w.view.overlay.set_ttl_max(TTL);
    w.pass(Duration::from_secs(30));
    let unchanged = w.calls(|| assert_eq!(w.names(), ["f"]));
    w.pass(Duration::from_secs(31));
    let again = w.calls(|| assert_eq!(w.names(), ["f"]));
    assert_eq!(
        again - unchanged,
        u64::from(!is_local),
        "one more: the listing"
    );
}

/// A build makes and removes files in the directory that it lists: each change edits the listing that memory has.
#[test]
fn changes_of_ours_edit_the_listing() {
    let w = World::new();
    for name in ["old", "gone", "moves"] {
        w.write(name, "");
    }
    w.pass(TTL);
    assert_eq!(w.names(), ["gone", "moves", "old"]);
    for name in ["gone", "moves"] {
        w.node(name);
    }
    let overlay = &w.view.overlay;
    let (root, name) = (NodeId::ROOT, OsStr::new);
    overlay.unlink(root, name("gone")).expect("unlink");
    overlay
        .rename((root, name("moves")), (root, name("moved")), 0)
        .expect("rename");
    overlay
        .mkdir(caller(), root, name("dir"), (0o755, 0))
        .expect("mkdir");
    let made = overlay.create(caller(), root, name("new"), (0o644, 0), libc::O_RDWR);
    drop(overlay.release(made.expect("create").1.handle));
    let calls = w.calls(|| {
        let list = w.view.list("", false).expect("list");
        let kinds: Vec<_> = list
            .iter()
            .map(|(name, (kind, _))| (name.as_str(), *kind))
            .collect();
        let (file, dir) = (libc::S_IFREG, libc::S_IFDIR);
        assert_eq!(
            kinds,
            [("dir", dir), ("moved", file), ("new", file), ("old", file)]
        );
    });
    assert_eq!(calls, 0, "nothing is asked of the source");
    // And what the edits cannot know is seen when the ttl has passed.
    w.write("foreign", "");
    w.pass(TTL);
    assert_eq!(w.names(), ["dir", "foreign", "moved", "new", "old"]);
}

/// As NFS does between acregmin and acregmax.
#[test]
fn attributes_of_a_file_that_stays_as_it_is_are_believed_for_longer_and_longer() {
    let w = World::new();
    w.write("f", "content");
    w.view.overlay.set_ttl_max(TTL * 6);
    let node = w.node("f");
    let asked_after = |time| {
        w.pass(time);
        w.calls(|| assert!(w.view.getattr(node).is_ok())) > 0
    };
    assert!(!asked_after(TTL - MOMENT));
    for believed in [1, 2, 4, 6, 6] {
        assert!(
            asked_after(TTL * believed),
            "{believed} times the ttl have passed"
        );
        assert!(!asked_after(TTL * believed - MOMENT) || believed == 1);
        w.pass(MOMENT);
    }
    w.write("f", "other content");
    w.pass(TTL * 6);
    assert_eq!(w.view.getattr(node).expect("getattr").size, 13);
    assert!(!asked_after(TTL - MOMENT));
    assert!(
        asked_after(MOMENT),
        "what has changed is believed no longer than the ttl"
    );
}

/// A file that is cached whole: opening it, reading and closing ask the source for nothing, also when no descriptor is
/// left of it.
#[test]
fn a_file_that_is_cached_whole_is_opened_from_memory() {
    let w = World::new();
    w.write("f", "0123");
    w.pass(TTL);
    let node = w.node("f");
    let overlay = &w.view.overlay;
    w.cache(node);
    let calls = w.calls(|| {
        let opened = w.open_known(node);
        assert!(opened.unbacked);
        assert_eq!(w.read(opened.handle).expect("read"), b"0123");
        drop(overlay.release(opened.handle));
    });
    assert_eq!(calls, 0);
    // Our own removal and replacement find the file before its last name goes.
    let opened = w.open_known(node);
    overlay
        .unlink(NodeId::ROOT, OsStr::new("f"))
        .expect("unlink");
    w.pass(TTL);
    assert_eq!(w.read(opened.handle).expect("it is still open"), b"0123");
    drop(overlay.release(opened.handle));
}

/// Somebody else replaces it before it was opened in the source: what memory has of it is still the file that was opened.
#[test]
fn a_file_opened_from_memory_stays_that_file() {
    let w = World::new();
    w.write("f", "0123");
    w.pass(TTL);
    let node = w.node("f");
    let overlay = &w.view.overlay;
    w.cache(node);
    let opened = w.open_known(node);
    w.write("other", "other");
    std::fs::rename(w.at("other"), w.at("f")).expect("rename");
    w.pass(TTL);
    assert_eq!(w.read(opened.handle).expect("read"), b"0123");
    drop(overlay.release(opened.handle));
    assert_eq!(w.view.getattr(w.node("f")).expect("getattr").size, 5);
}

/// The kernel lists a directory by itself while it is the listing that it was given, and no longer than the attributes
/// are believed that came with it.
#[test]
fn the_kernel_keeps_a_listing_while_it_is_current() {
    let w = World::new();
    w.write("f", "");
    w.pass(TTL);
    let open = || {
        let known = w.view.overlay.opendir_known(NodeId::ROOT, Trust::Ttl);
        let opened =
            known.unwrap_or_else(|| w.view.overlay.opendir(NodeId::ROOT).expect("opendir"));
        w.view.overlay.releasedir(opened.handle);
        opened.keep
    };
    assert_eq!(
        [open(), open(), open()],
        [KeepDir::New, KeepDir::Yes, KeepDir::Yes]
    );
    w.pass(TTL);
    assert_eq!([open(), open()], [KeepDir::New, KeepDir::Yes]);
    let name = OsStr::new("g");
    w.view
        .overlay
        .mkdir(caller(), NodeId::ROOT, name, (0o700, 0))
        .expect("mkdir");
    assert_eq!(open(), KeepDir::No, "an edited listing has no version");
    w.write("h", "");
    w.pass(TTL);
    assert_eq!([open(), open()], [KeepDir::New, KeepDir::Yes]);
    // Somebody reads the old listing while there is a new one: the kernel could take his entries for those.
    let reader = w.view.overlay.opendir(NodeId::ROOT).expect("opendir");
    w.write("i", "");
    w.pass(TTL);
    assert_eq!(open(), KeepDir::No);
    w.view.overlay.releasedir(reader.handle);
    assert_eq!([open(), open()], [KeepDir::New, KeepDir::Yes]);
}

/// Two names change places, and one of them has just been forgotten: it was taken for absent from then on.
#[test]
fn an_exchange_with_a_name_that_is_not_known_leaves_none_missing() {
    let w = World::new();
    for name in ["a", "b"] {
        w.write(name, name);
    }
    w.node("a");
    let (a, b) = (OsStr::new("a"), OsStr::new("b"));
    let root = NodeId::ROOT;
    w.view
        .overlay
        .rename((root, a), (root, b), libc::RENAME_EXCHANGE)
        .expect("exchange");
    assert!(!w.is_absent("a") && !w.is_absent("b"));
}
