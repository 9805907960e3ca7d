//! What happens on a mount is told to plugins, exactly; and what plugins ask for is done.

use crate::fixture::{
    Mount, SOON, Slow, assert_bytes, eventually, let_age, pattern, python, run, tempdir, umount,
    warmfs, within,
};
use crate::slow_source::Kind;
use serde_json::Value;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A configuration in a directory of its own, where logs can be, too.
struct Rules(TempDir);

impl Rules {
    /// `{dir}` in the text stands for the directory.
    fn new(text: &str) -> Rules {
        let dir = tempdir();
        let place = dir.path().to_str().expect("plain");
        fs::write(dir.path().join("hooks.toml"), text.replace("{dir}", place)).expect("write");
        Rules(dir)
    }

    /// All of these events go to a log.
    fn log(events: &str, more: &str) -> Rules {
        Rules::new(&format!(
            r#"
            [[hook]]
            events = [{events}]
            {more}
            plugin = "log"
            [plugin.log]
            type = "log"
            file = "log.jsonl"
            "#
        ))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn config(&self) -> String {
        self.path("hooks.toml").to_str().expect("plain").into()
    }

    /// Whole lines that are in the log now.
    fn events(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.path("log.jsonl")).unwrap_or_default();
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let parse = |line| serde_json::from_str(line).expect("a JSON object");
        whole.lines().map(parse).collect()
    }

    /// As tuples of event, path, pos and size, when `count` of them are there.
    fn short(&self, count: usize) -> Vec<(String, String, i64, i64)> {
        eventually("the events are in the log", SOON, || {
            let events = self.events();
            if events.len() >= count {
                Ok(events)
            } else {
                Err(format!("{events:#?}"))
            }
        })
        .iter()
        .map(short)
        .collect()
    }
}

fn short(event: &Value) -> (String, String, i64, i64) {
    let text = |name: &str| event[name].as_str().unwrap_or_default().to_owned();
    let number = |name: &str| event[name].as_i64().unwrap_or(-1);
    (text("event"), text("path"), number("pos"), number("size"))
}

fn told(event: &str, path: &str, pos: i64, size: i64) -> (String, String, i64, i64) {
    (event.into(), path.into(), pos, size)
}

/// Four programs read known spans and four write some, at once; the log has these and no others, in each file's order.
#[test]
fn the_log_has_exactly_what_programs_did() {
    const EACH: u64 = 1500;
    for (full, queue) in [("block", 64), ("drop", 16)] {
        let rules = Rules::new(&format!(
            r#"
            [[hook]]
            events = ["on_read", "on_write"]
            full = "{full}"
            plugin = {{ type = "log", file = "log.jsonl", queue = {queue} }}
            "#
        ));
        let mount = Mount::with(&["--config", &rules.config()], |source| {
            for file in 0..4 {
                fs::write(source.join(format!("r{file}")), pattern(1 << 20, file)).expect("write");
            }
        });
        let place = |file: u64, n: u64| {
            let pos = (n * 7919 + file * 13) % 1_000_000;
            (pos, 1 + (n * 31) % 4096)
        };
        std::thread::scope(|scope| {
            for file in 0..4 {
                let (read, written) = (
                    File::open(mount.view(format!("r{file}"))).expect("open"),
                    File::create(mount.view(format!("w{file}"))).expect("create"),
                );
                scope.spawn(move || {
                    let mut buffer = vec![0; 4096];
                    for n in 0..EACH {
                        let (pos, size) = place(file, n);
                        read.read_exact_at(&mut buffer[..size as usize], pos)
                            .expect("read");
                    }
                });
                scope.spawn(move || {
                    for n in 0..EACH {
                        let (pos, size) = place(file, n);
                        written
                            .write_all_at(&vec![7; size as usize], pos)
                            .expect("write");
                    }
                });
            }
        });
        umount(mount.at()).ok();
        let events = eventually("the daemon is gone", SOON, || {
            // It writes its last line before it ends; the numbers tell when all are there.
            let events = rules.events();
            let last = events.last().and_then(|event| event["seq"].as_u64());
            if last == Some(EACH * 8) {
                Ok(events)
            } else {
                Err(format!("last is {last:?}"))
            }
        });
        let lost: u64 = events
            .iter()
            .filter_map(|event| event["lost"].as_u64())
            .sum();
        let delivered = events
            .iter()
            .filter(|event| event["event"] != "gap")
            .count() as u64;
        assert_eq!(delivered + lost, EACH * 8, "{full}");
        for (name, kind) in [("r", "on_read"), ("w", "on_write")] {
            for file in 0..4 {
                let path = format!("{name}{file}");
                let seen: Vec<_> = events
                    .iter()
                    .filter(|event| event["path"] == *path)
                    .map(short)
                    .collect();
                let wanted: Vec<_> = (0..EACH)
                    .map(|n| place(file, n))
                    .map(|(pos, size)| told(kind, &path, pos as i64, size as i64))
                    .collect();
                if full == "block" {
                    assert!(seen == wanted, "{path}: {} events", seen.len());
                } else {
                    // What is there is there in order.
                    let mut rest = wanted.iter();
                    assert!(
                        seen.iter().all(|one| rest.any(|other| other == one)),
                        "{path}"
                    );
                }
            }
        }
        if full == "block" {
            assert_eq!(lost, 0);
        }
    }
}

/// The kernel's page cache must not answer in our place for files that a rule names; for all others it must.
#[test]
fn every_read_of_a_named_file_is_told_and_no_other() {
    let rules = Rules::log(r#""on_read""#, r#"include = ["*.named"]"#);
    let mount = Mount::with(&["--config", &rules.config()], |source| {
        fs::write(source.join("a.named"), "hello").expect("write");
        fs::write(source.join("other"), "hello").expect("write");
    });
    let (named, other) = (
        File::open(mount.view("a.named")).expect("open"),
        File::open(mount.view("other")).expect("open"),
    );
    let mut buffer = [0; 3];
    for pos in [0, 1, 0] {
        named.read_exact_at(&mut buffer, pos).expect("read");
        other.read_exact_at(&mut buffer, pos).expect("read");
    }
    let wanted = [0, 1, 0].map(|pos| told("on_read", "a.named", pos, 3));
    assert_eq!(rules.short(3), wanted);
    assert_eq!(rules.events()[2]["from"], "memory");
}

/// Direct I/O alone would take mmap away from programs.
#[test]
fn a_named_file_can_be_mapped() {
    let rules = Rules::log(r#""on_read", "on_write""#, "");
    let mount = Mount::with(&["--config", &rules.config()], |source| {
        fs::write(source.join("f"), "hello").expect("write");
    });
    let program = r#"
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
with mmap.mmap(fd, 5) as mapped:
    assert mapped[:] == b"hello", mapped[:]
    mapped[0:1] = b"J"
    mapped.flush()
assert os.pread(fd, 5, 0) == b"Jello"
"#;
    run(&mut python(program, [mount.view("f")])).ok();
    mount.assert_content("f", b"Jello");
    assert!(rules.short(3).contains(&told("on_write", "f", 0, 5)));
}

/// The kernel believes that the file ends where it saw its end. Somebody else has appended meanwhile.
#[test]
fn an_append_is_told_where_it_went() {
    let rules = Rules::log(r#""on_write""#, r#"data = "1K""#);
    let mount = Mount::with(&["--config", &rules.config(), "--ttl", "1000"], |source| {
        fs::write(source.join("f"), "0123").expect("write")
    });
    let append = |path: PathBuf| File::options().append(true).open(path).expect("open");
    let mut through = append(mount.view("f"));
    append(mount.source("f")).write_all(b"45").expect("write");
    through.write_all(b"ab").expect("write");
    assert_eq!(rules.short(1), [told("on_write", "f", 6, 2)]);
    assert_eq!(rules.events()[0]["data"], "YWI=");
    mount.assert_content("f", b"012345ab");
}

#[test]
fn names_sizes_and_their_changes_are_told() {
    let rules = Rules::log(
        r#""on_open", "on_create", "on_remove", "on_rename", "on_truncate", "on_write""#,
        r#"exclude = ["*.tmp"]"#,
    );
    let mount = Mount::with(&["--config", &rules.config()], |source| {
        fs::write(source.join("f"), "hello").expect("write");
    });
    fs::create_dir(mount.view("d")).expect("mkdir");
    let file = File::create_new(mount.view("d/a.tmp")).expect("create");
    drop(file);
    fs::rename(mount.view("d/a.tmp"), mount.view("d/a")).expect("rename");
    let file = File::options()
        .write(true)
        .open(mount.view("d/a"))
        .expect("open");
    // An open file has the name that it has now.
    fs::rename(mount.view("d"), mount.view("e")).expect("rename");
    file.write_all_at(b"hi", 3).expect("write");
    file.set_len(1).expect("truncate");
    fs::remove_file(mount.view("e/a")).expect("unlink");
    fs::hard_link(mount.view("f"), mount.view("g")).expect("link");
    let wanted = [
        told("on_create", "d", -1, -1),
        told("on_rename", "d/a.tmp", -1, -1),
        told("on_open", "d/a", -1, -1),
        told("on_rename", "d", -1, -1),
        told("on_write", "e/a", 3, 2),
        told("on_truncate", "e/a", -1, 1),
        told("on_remove", "e/a", -1, -1),
        told("on_create", "g", -1, -1),
    ];
    assert_eq!(rules.short(wanted.len()), wanted);
    let events = rules.events();
    assert_eq!(events[1]["to"], "d/a");
    assert_eq!(events[1]["uid"], nix::unistd::geteuid().as_raw());
}

#[test]
fn what_the_cache_and_the_source_do_is_told_too() {
    let rules = Rules::log(r#""on_evict", "on_stale", "on_error""#, "");
    let slow = Slow::with(&["--config", &rules.config(), "--memory", "1M"], |disk| {
        fs::write(disk.join("f"), "old").expect("write");
        fs::write(disk.join("large"), pattern(3 << 20, 1)).expect("write");
    });
    let_age(&slow.disk("f"));
    assert_bytes(&slow.view("f"), b"old");
    fs::write(slow.disk("f"), "newer").expect("write");
    eventually("the change is seen", SOON, || {
        match fs::read(slow.view("f")).expect("read") == b"newer" {
            true => Ok(()),
            false => Err("old".to_owned()),
        }
    });
    assert_bytes(&slow.view("large"), &pattern(3 << 20, 1));
    slow.control().fail_kind(Kind::Read, Some(libc::EIO));
    fs::write(slow.disk("bad"), "bad").expect("write");
    fs::read(slow.view("bad")).expect_err("the source fails");
    let events = eventually("all three are told", SOON, || {
        let events = rules.events();
        let has = |kind: &str| events.iter().any(|event| event["event"] == kind);
        if ["on_stale", "on_evict", "on_error"].into_iter().all(has) {
            Ok(events.clone())
        } else {
            Err(format!("{events:#?}"))
        }
    });
    let of = |kind: &str| {
        events
            .iter()
            .find(|event| event["event"] == kind)
            .expect("is there")
    };
    assert_eq!(of("on_stale")["path"], "f");
    assert!(of("on_evict")["size"].as_u64() > Some(0));
    assert_eq!(
        (&of("on_error")["path"], &of("on_error")["error"]),
        (&"bad".into(), &"EIO".into())
    );
}

/// Read past the kernel's page cache, which would hide what the memory tier holds.
#[track_caller]
fn assert_direct(path: &Path, wanted: &[u8]) {
    let program = r#"
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)
buffer = mmap.mmap(-1, 1 << 20)
size = os.preadv(fd, [buffer], 0)
sys.stdout.buffer.write(buffer[:size])
"#;
    let said = python(program, [path]).output().expect("python3");
    crate::fixture::assert_equal_bytes("read directly", &said.stdout, wanted);
}

/// A named pipe whose lines are what the plugin answers.
struct Pipe(PathBuf);

impl Pipe {
    fn rules() -> (Rules, Pipe) {
        let rules = Rules::new(
            r#"
            [[hook]]
            events = ["on_open"]
            include = ["nothing"]
            plugin = { type = "command", command = ["sh", "-c", "while :; do cat {dir}/pipe; done"] }
            "#,
        );
        let pipe = rules.path("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::from_bits_retain(0o600)).expect("mkfifo");
        (rules, Pipe(pipe))
    }

    fn say(&self, line: &str) {
        let path = self.0.clone();
        let line = format!("{line}\n");
        within("the plugin reads its pipe", SOON, move || {
            let mut pipe = File::options().write(true).open(path).expect("open");
            pipe.write_all(line.as_bytes()).expect("write");
        });
    }
}

#[test]
fn a_plugin_can_fetch_evict_and_pin() {
    let (rules, plugin) = Pipe::rules();
    let content = pattern(300_000, 1);
    let slow = Slow::with(
        &[
            "--config",
            &rules.config(),
            "--memory",
            "2M",
            "--ttl",
            "1000",
        ],
        |disk| {
            fs::create_dir(disk.join("a b")).expect("mkdir");
            fs::write(disk.join("a b/f"), &content).expect("write");
            fs::write(disk.join("large"), pattern(6 << 20, 2)).expect("write");
            for name in ["a b/f", "large"] {
                let_age(&disk.join(name));
            }
        },
    );
    let source = slow.control();
    let fetched = |what: &str, wanted: u64| {
        eventually(what, SOON, || match source.bytes_read() {
            seen if seen >= wanted => Ok(()),
            seen => Err(format!("{seen} of {wanted} bytes")),
        });
    };
    plugin.say("prefetch a b/f\t0:100000");
    fetched("a span is fetched", 100_000);
    plugin.say("prefetch a b/f");
    fetched("the rest is fetched", 300_000);
    let before = source.bytes_read();
    let direct = || assert_direct(&slow.view("a b/f"), &content);
    direct();
    assert_eq!(source.bytes_read(), before, "all of it was there");
    // Pinned, it survives what would push it out.
    plugin.say("pin a b/f");
    plugin.say("prefetch large");
    fetched("as much as makes sense is fetched", before + (1 << 20));
    assert_bytes(&slow.view("large"), &pattern(6 << 20, 2));
    let before = source.bytes_read();
    direct();
    assert_eq!(source.bytes_read(), before, "it stayed");
    plugin.say("evict a b/f");
    eventually("it is gone", SOON, || {
        direct();
        if source.bytes_read() > before {
            Ok(())
        } else {
            Err("still there".to_owned())
        }
    });
}

/// With a ttl of an hour a change in the source is not seen; the plugin knows better.
#[test]
fn a_plugin_can_say_that_something_changed() {
    let (rules, plugin) = Pipe::rules();
    let mount = Mount::with(&["--config", &rules.config(), "--ttl", "3600"], |source| {
        fs::write(source.join("f"), "old").expect("write");
        let_age(&source.join("f"));
    });
    assert_bytes(&mount.view("f"), b"old");
    fs::write(mount.source("f"), "newer").expect("write");
    assert_bytes(&mount.view("f"), b"old");
    plugin.say("invalidate f");
    eventually("the change is seen", SOON, || {
        match &fs::read(mount.view("f")).expect("read")[..] {
            b"newer" => Ok(()),
            other => Err(String::from_utf8_lossy(other).into_owned()),
        }
    });
}

#[test]
fn a_bad_action_is_logged_with_its_line_and_nothing_else_happens() {
    let (rules, plugin) = Pipe::rules();
    let mount = Mount::with(&["--config", &rules.config()], |source| {
        fs::write(source.join("f"), "hello").expect("write");
    });
    for (line, reason) in [
        ("evict ../../etc/passwd", "outside of the mount"),
        ("explode f", "not an action"),
        ("prefetch missing", "No such file"),
        ("pin .", "outside of the mount"),
    ] {
        plugin.say(line);
        eventually("it is logged", SOON, || {
            let log = mount.log();
            let said = |text: &&str| {
                text.contains("plugin hook-1") && text.contains(line) && text.contains(reason)
            };
            if log.lines().any(|text| said(&text)) {
                Ok(())
            } else {
                Err(log)
            }
        });
    }
    mount.assert_content("f", b"hello");
}

/// Plugins that misbehave, each in its way. Programs notice nothing, and the mount ends.
#[test]
fn a_plugin_that_misbehaves_disturbs_nobody() {
    for script in [
        "sleep 1000",
        "exit 1",
        "while :; do echo nonsense; done",
        "head -c 100000000 /dev/zero; sleep 1000",
        "trap '' TERM; while :; do sleep 1; done",
    ] {
        let rules = Rules::new(&format!(
            r#"
            [[hook]]
            events = ["on_read"]
            data = "1M"
            plugin = {{ type = "command", command = ["sh", "-c", "{script}"], queue = 100 }}
            "#
        ));
        let mount = Mount::with(&["--config", &rules.config()], |source| {
            fs::write(source.join("f"), pattern(100_000, 1)).expect("write");
        });
        let view = mount.view("f");
        within("reads go on", SOON, move || {
            for _ in 0..500 {
                assert_bytes(&view, &pattern(100_000, 1));
            }
        });
        let at = mount.at().to_owned();
        within("the mount ends", SOON, move || umount(&at).ok());
        eventually("the daemon and the plugin are gone", SOON, || {
            let said = run(std::process::Command::new("pgrep").args(["-f", &rules.config()]));
            if said.status.success() {
                Err(format!("{said:?}"))
            } else {
                Ok(())
            }
        });
    }
}

#[test]
fn a_log_on_a_full_disk_disturbs_nobody() {
    let rules = Rules::log(r#""on_read""#, "");
    std::os::unix::fs::symlink("/dev/full", rules.path("log.jsonl")).expect("symlink");
    let mount = Mount::with(&["--config", &rules.config()], |source| {
        fs::write(source.join("f"), "hello").expect("write");
    });
    for _ in 0..100 {
        assert_bytes(&mount.view("f"), b"hello");
    }
    eventually("it is said once", SOON, || {
        let log = mount.log();
        match log.matches("cannot write events").count() {
            1 => Ok(()),
            _ => Err(log),
        }
    });
}

/// logrotate(8) moves the file away and sends SIGHUP; without a log file that signal ends the mount, as ever.
#[test]
fn a_hangup_opens_the_log_again() {
    let rules = Rules::log(r#""on_open""#, "");
    let mount = Mount::with(&["--config", &rules.config()], |source| {
        fs::write(source.join("f"), "hello").expect("write");
    });
    assert_bytes(&mount.view("f"), b"hello");
    rules.short(1);
    fs::rename(rules.path("log.jsonl"), rules.path("moved")).expect("rename");
    let pid = nix::unistd::Pid::from_raw(mount.pid() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGHUP).expect("kill");
    eventually("there is a new file", SOON, || {
        assert_bytes(&mount.view("f"), b"hello");
        if rules.events().is_empty() {
            Err("none".to_owned())
        } else {
            Ok(())
        }
    });
    assert!(!fs::read(rules.path("moved")).expect("read").is_empty());
}

#[test]
fn mistakes_in_hooks_are_one_line_before_anything_is_mounted() {
    let dir = tempdir();
    let (source, view) = (dir.path().join("source"), dir.path().join("view"));
    fs::create_dir(&source).expect("mkdir");
    fs::create_dir(&view).expect("mkdir");
    let inside = format!(
        r#"events=["on_read"], plugin={{type="log", file="{}/log"}}"#,
        view.display()
    );
    for (rule, reason) in [
        (r#"events=["on_reed"], plugin={type="log"}"#, "on_reed"),
        (
            r#"events=["on_read"], plugin={type="command", command=["no-such-program"]}"#,
            "no-such-program",
        ),
        (
            r#"events=["on_read"], plugin={type="wasm", module="no-such-module"}"#,
            "no-such-module",
        ),
        (&inside, "on the mount itself"),
    ] {
        let mut command = warmfs(["mount", "--hook", rule]);
        let said = run(command.arg(&source).arg(&view));
        assert_eq!(said.status.code(), Some(1), "{rule}: {said:?}");
        assert!(
            said.stderr.contains(reason) && said.stderr.lines().count() == 1,
            "{said:?}"
        );
        assert!(crate::fixture::mount_at(&view).is_none());
    }
    let open = dir.path().join("open.toml");
    fs::write(&open, "").expect("write");
    fs::set_permissions(&open, std::os::unix::fs::PermissionsExt::from_mode(0o666)).expect("chmod");
    let mut command = warmfs(["mount", "--config"]);
    let said = run(command.arg(&open).arg(&source).arg(&view));
    assert!(said.stderr.contains("chmod go-w"), "{said:?}");
}

// ---- the plugins in examples/plugins, as they are shipped ----

/// A copy, because the directory of the checkout may be open to others. `change` edits the configuration.
fn shipped(name: &str, change: impl Fn(String) -> String) -> Rules {
    let dir = tempdir();
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/plugins");
    for entry in fs::read_dir(from).expect("examples/plugins") {
        let entry = entry.expect("an entry");
        fs::copy(entry.path(), dir.path().join(entry.file_name())).expect("copy");
    }
    let text = fs::read_to_string(dir.path().join(format!("{name}.toml"))).expect("read");
    fs::write(dir.path().join("hooks.toml"), change(text)).expect("write");
    Rules(dir)
}

#[test]
fn next_track_fetches_the_next_track() {
    let rules = shipped("next-track", |text| text);
    let slow = Slow::with(&["--config", &rules.config()], |disk| {
        fs::create_dir(disk.join("album")).expect("mkdir");
        for (name, size) in [
            ("01.flac", 100_000),
            ("02.flac", 200_000),
            ("cover.jpg", 1000),
            ("03.flac", 50_000),
        ] {
            fs::write(disk.join("album").join(name), pattern(size, size as u64)).expect("write");
        }
    });
    assert_bytes(&slow.view("album/01.flac"), &pattern(100_000, 100_000));
    eventually("the second is fetched", SOON, || {
        match slow.control().bytes_read() {
            300_000 => Ok(()),
            other => Err(format!("{other} bytes")),
        }
    });
}

#[test]
fn checksum_on_write_knows_the_sums_of_what_was_written() {
    let rules = shipped("checksum-on-write", |text| {
        text.replace("/tmp/sums.txt", "sums.txt")
    });
    let mount = Mount::with(&["--config", &rules.config()], |_| {});
    fs::write(mount.view("small"), "hello").expect("write");
    fs::write(mount.view("large"), pattern(20_000_000, 1)).expect("write");
    fs::write(mount.view("with blanks in it"), "").expect("write");
    fs::write(mount.view("gone"), "x").expect("write");
    fs::remove_file(mount.view("gone")).expect("unlink");
    fs::write(mount.view("new"), "x").expect("write");
    fs::rename(mount.view("new"), mount.view("renamed")).expect("rename");
    let sums = eventually("the sums are written", SOON, || {
        let sums = fs::read_to_string(rules.path("sums.txt")).unwrap_or_default();
        if sums.lines().count() == 4 && sums.contains("  renamed\n") {
            Ok(sums)
        } else {
            Err(sums)
        }
    });
    assert!(!sums.contains('#'), "{sums}");
    let mut check = std::process::Command::new("sha256sum");
    check
        .args(["--check", "--strict"])
        .arg(rules.path("sums.txt"))
        .current_dir(mount.at());
    run(&mut check).ok();
}

#[test]
fn pin_indexes_keeps_indexes() {
    let rules = shipped("pin-indexes", |text| text);
    let slow = Slow::with(
        &[
            "--config",
            &rules.config(),
            "--memory",
            "2M",
            "--ttl",
            "1000",
        ],
        |disk| {
            fs::write(disk.join("a.idx"), pattern(100_000, 1)).expect("write");
            fs::write(disk.join("large"), pattern(6 << 20, 2)).expect("write");
            for name in ["a.idx", "large"] {
                let_age(&disk.join(name));
            }
        },
    );
    let file = File::open(slow.view("a.idx")).expect("open");
    let mut content = vec![0; 100_000];
    file.read_exact_at(&mut content, 0).expect("read");
    let source = slow.control();
    eventually("it stays while others are read", SOON, || {
        assert_bytes(&slow.view("large"), &pattern(6 << 20, 2));
        let before = source.bytes_read();
        assert_direct(&slow.view("a.idx"), &content);
        if source.bytes_read() == before {
            Ok(())
        } else {
            Err("it was fetched again".to_owned())
        }
    });
}

/// Without a mount: what a configuration means, and what its plugins say.
#[test]
fn hook_test_shows_what_would_happen() {
    let rules = shipped("pin-indexes", |text| text);
    let said = run(&mut warmfs(["hook", "test", &rules.config()]));
    assert!(said.status.success(), "{said:?}");
    assert!(said.stdout.contains("would do: pin sample.idx"), "{said:?}");
    let bad = r#"events=["on_open"], plugin={type="command", command=["echo", "explode"]}"#;
    let said = run(&mut warmfs(["hook", "test", "--hook", bad]));
    assert_eq!(said.status.code(), Some(1), "{said:?}");
    assert!(said.stderr.contains("explode"), "{said:?}");
}
