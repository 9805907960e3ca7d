//! Names that change under those who use them.

use crate::fixture::{Mount, Repeating, SOON, names, pattern, tempdir, within};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, RenameFlags, open, openat, renameat2};
use nix::sys::stat::{Mode, fstatat};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long each race is run. All that were ever seen show within a fraction of it.
const RACE: Duration = Duration::from_secs(3);

/// Run `racer` again and again on another thread while `look` looks, for the length of a race. Returns how often each
/// ran.
fn race(racer: impl FnMut(u64) + Send + 'static, mut look: impl FnMut(u64)) -> (u64, u64) {
    let racing = Repeating::start(racer);
    let begun = Instant::now();
    let mut looks = 0;
    while begun.elapsed() < RACE && racing.is_running() {
        look(looks);
        looks += 1;
    }
    (racing.stop(), looks)
}

/// Replace `view` through `dir` while it is read.
#[track_caller]
fn assert_replaced_whole(ttl: &str, in_source: bool) {
    const SIZE: usize = 20_000;
    let mount = Mount::with(&["--ttl", ttl], |source| {
        fs::write(source.join("f"), pattern(SIZE, 0)).expect("write");
    });
    let dir = if in_source {
        mount.source("")
    } else {
        mount.view("")
    };
    let view = mount.view("f");
    let replace = move |round: u64| {
        fs::write(dir.join("tmp"), pattern(SIZE, round)).expect("write");
        fs::rename(dir.join("tmp"), dir.join("f")).expect("rename");
    };
    let rounds = race(replace, |look| {
        let bytes =
            fs::read(&view).unwrap_or_else(|error| panic!("read {look} with ttl {ttl}: {error}"));
        assert_eq!(bytes.len(), SIZE, "read {look} with ttl {ttl}");
        // Each eight bytes follow from those before.
        let first = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
        let mut word = first;
        for (at, part) in bytes.chunks_exact(8).enumerate().skip(1) {
            word ^= word << 13;
            word ^= word >> 7;
            word ^= word << 17;
            assert_eq!(part, word.to_le_bytes(), "mixed from byte {} on", at * 8);
        }
        fs::metadata(&view).unwrap_or_else(|error| panic!("stat {look} with ttl {ttl}: {error}"));
    });
    assert!(rounds.0 > 10 && rounds.1 > 10, "{rounds:?}");
}

/// How programs save so that nobody ever sees half a file: write another, rename it over. A reader sees the old or
/// the new one, never none and never a mix.
#[test]
fn a_file_that_is_replaced_is_never_missing_and_never_mixed() {
    for ttl in ["1", "0"] {
        assert_replaced_whole(ttl, false);
    }
}

/// The same when somebody else does it in the source.
#[test]
fn a_file_that_is_replaced_in_the_source_is_never_missing_and_never_mixed() {
    for ttl in ["1", "0"] {
        assert_replaced_whole(ttl, true);
    }
}

fn stat_and_read(dir: impl std::os::fd::AsFd, path: &str) -> nix::Result<String> {
    fstatat(&dir, path, AtFlags::empty())?;
    let fd = openat(&dir, path, OFlag::O_RDONLY, Mode::empty())?;
    let mut text = String::new();
    File::from(fd)
        .read_to_string(&mut text)
        .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or_default()))?;
    Ok(text)
}

/// A directory is renamed back and forth while programs that stand in it, or hold it open, use what is below.
#[test]
fn a_renamed_directory_does_not_disturb_those_who_are_in_it() {
    for ttl in ["1", "0"] {
        let mount = Mount::with(&["--ttl", ttl], |source| {
            fs::create_dir_all(source.join("a/sub/deep")).expect("mkdir");
            for name in ["a/f", "a/sub/f", "a/sub/deep/f"] {
                fs::write(source.join(name), "content").expect("write");
            }
        });
        let folder = OFlag::O_DIRECTORY | OFlag::O_RDONLY;
        let dir = open(&mount.view("a"), folder, Mode::empty()).expect("open");
        let sub = openat(&dir, "sub", folder, Mode::empty()).expect("open");
        let (a, b) = (mount.view("a"), mount.view("b"));
        let back_and_forth = move |_| {
            fs::rename(&a, &b).expect("rename");
            fs::rename(&b, &a).expect("rename");
        };
        let rounds = race(back_and_forth, |look| {
            for path in ["f", "sub/f", "sub/deep/f", "sub/deep/../f"] {
                assert_eq!(
                    stat_and_read(&dir, path),
                    Ok("content".into()),
                    "{path}, look {look}, ttl {ttl}"
                );
            }
            for path in ["f", "deep/f", "../f"] {
                assert_eq!(
                    stat_and_read(&sub, path),
                    Ok("content".into()),
                    "{path} from sub, look {look}, ttl {ttl}"
                );
            }
        });
        assert!(rounds.0 > 10 && rounds.1 > 10, "{rounds:?}");
    }
}

/// Two directories change places at once, as when a new release is put in. Every path leads somewhere at every moment.
#[test]
fn exchanged_directories_are_never_missing() {
    for ttl in ["1", "0"] {
        let mount = Mount::with(&["--ttl", ttl], |source| {
            for dir in ["a", "b"] {
                fs::create_dir_all(source.join(dir).join("sub")).expect("mkdir");
                fs::write(source.join(dir).join("f"), dir).expect("write");
                fs::write(source.join(dir).join("sub/f"), dir).expect("write");
            }
        });
        let (a, b) = (mount.view("a"), mount.view("b"));
        let exchange = move |_| {
            renameat2(AT_FDCWD, &a, AT_FDCWD, &b, RenameFlags::RENAME_EXCHANGE).expect("exchange");
        };
        let root = open(mount.at(), OFlag::O_DIRECTORY, Mode::empty()).expect("open");
        let rounds = race(exchange, |look| {
            for path in ["a/f", "b/f", "a/sub/f", "b/sub/f"] {
                let text = stat_and_read(&root, path)
                    .unwrap_or_else(|errno| panic!("{path}, look {look}, ttl {ttl}: {errno}"));
                assert!(text == "a" || text == "b", "{path}: {text}");
            }
        });
        assert!(rounds.0 > 10 && rounds.1 > 10, "{rounds:?}");
    }
}

/// Programs open files that nobody has open while others rename some. What is known of names and what is known of
/// content are two tables with a lock each; taken in different orders they stopped the whole mount.
#[test]
fn opening_and_renaming_at_once_does_not_stop_the_mount() {
    const FILES: u64 = 8;
    let mount = Mount::with(&["--ttl", "0"], |source| {
        for index in 0..FILES {
            // Empty: nothing is kept of them once they are closed.
            fs::write(source.join(format!("opened-{index}")), "").expect("write");
            fs::write(source.join(format!("renamed-{index}")), "").expect("write");
        }
    });
    let each = |work: fn(PathBuf, u64)| {
        [0, 1, 2, 3].map(|thread| {
            let dir = mount.view("");
            Repeating::start(move |round| work(dir.clone(), (4 * round + thread) % FILES))
        })
    };
    let opening = each(|dir, index| {
        File::open(dir.join(format!("opened-{index}"))).expect("open");
    });
    let renaming = each(|dir, index| {
        let name = |what: &str| dir.join(format!("{what}-{index}"));
        fs::rename(name("renamed"), name("moved")).expect("rename");
        fs::rename(name("moved"), name("renamed")).expect("rename");
    });
    let begun = Instant::now();
    while begun.elapsed() < RACE {
        let view = mount.view("");
        within("the mount is listed", SOON, move || names(&view));
    }
    for side in [opening, renaming] {
        for thread in side {
            assert!(thread.stop() > 0);
        }
    }
}

/// Somebody who may write in the source swaps names for links that lead out of it, while the daemon, which may be
/// root, works with those names. Nothing from outside is ever shown or changed.
#[test]
fn a_link_out_of_the_source_is_never_followed_by_the_daemon() {
    let outside = tempdir();
    fs::write(outside.path().join("f"), "OUTSIDE").expect("write");
    for ttl in ["0", "1"] {
        let mount = Mount::with(&["--ttl", ttl], |source| {
            fs::create_dir(source.join("real")).expect("mkdir");
            fs::write(source.join("real/f"), "inside").expect("write");
            fs::write(source.join("file"), "inside").expect("write");
            symlink(outside.path(), source.join("dir")).expect("symlink");
            symlink(outside.path().join("f"), source.join("g")).expect("symlink");
        });
        let name = |name: &str| mount.source(name);
        let (real, dir, file, g) = (name("real"), name("dir"), name("file"), name("g"));
        let swap = move |_| {
            let exchange = |a: &Path, b: &Path| {
                renameat2(AT_FDCWD, a, AT_FDCWD, b, RenameFlags::RENAME_EXCHANGE).expect("swap");
            };
            exchange(&real, &dir);
            exchange(&file, &g);
        };
        let nofollow = OFlag::O_NOFOLLOW;
        let mut inside = 0;
        let root = open(mount.at(), OFlag::O_DIRECTORY, Mode::empty()).expect("open");
        let rounds = race(swap, |look| {
            // This program follows no link either, so whatever it gets was given to it by the daemon.
            for path in ["dir", "g", "real", "file"] {
                let Ok(mut fd) = openat(&root, path, nofollow | OFlag::O_RDWR, Mode::empty())
                    .or_else(|_| openat(&root, path, nofollow | OFlag::O_RDONLY, Mode::empty()))
                else {
                    continue;
                };
                if matches!(path, "dir" | "real") {
                    let Ok(below) = openat(&fd, "f", nofollow | OFlag::O_RDWR, Mode::empty())
                    else {
                        continue;
                    };
                    fd = below;
                }
                let mut file = File::from(fd);
                let mut text = String::new();
                if file.read_to_string(&mut text).is_ok() {
                    assert_eq!(text, "inside", "{path}, look {look}, ttl {ttl}");
                    inside += 1;
                    // Whatever this hits, it must not be outside.
                    let _ = std::os::unix::fs::FileExt::write_all_at(&file, b"inside", 0);
                }
            }
        });
        let text = fs::read_to_string(outside.path().join("f")).expect("read");
        assert_eq!(text, "OUTSIDE");
        assert!(
            rounds.0 > 10 && inside > 10,
            "{rounds:?}, {inside} looks found a file"
        );
    }
}
