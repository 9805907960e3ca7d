//! The overlay against a plain directory: the same operations on both, with the same results, in thousands of random
//! histories. There is no kernel and no mount here; the tests in `it` have those.
//!
//! A failure prints the shortest history that fails, which [`play`] runs again, and how to repeat the search.
//! `PROPTEST_CASES` says how many histories to try.

#![cfg(target_os = "linux")]

mod metadata;
mod ops;
mod plain;
mod stories;
mod threads;
mod view;

use ops::{Op, beginning, ending, history};
use plain::Plain;
use proptest::test_runner::{Config, RngSeed, TestCaseError, TestError, TestRunner};
use std::hash::{BuildHasher, RandomState};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use view::{TTL, View};

/// Make the next change of a file get a later time than all before: two changes in the same tick of the file system's
/// clock cannot be told from one. (For that the overlay looks at the wall clock, which is far ahead here.)
fn next_tick(dir: &Path) {
    let probe = dir.join("probe");
    let stamp = || {
        std::fs::write(&probe, "").expect("the probe can be written");
        let meta = std::fs::metadata(&probe).expect("it was just written");
        (meta.ctime(), meta.ctime_nsec())
    };
    let before = stamp();
    while stamp() <= before {}
}

/// Do `ops` in the overlay and in a plain directory, between the beginning and the ending; says what differs.
fn play(ops: &[Op]) -> Result<(), String> {
    nix::sys::stat::umask(nix::sys::stat::Mode::empty());
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let [source, twin] = ["source", "twin"].map(|name| dir.path().join(name));
    for root in [&source, &twin] {
        std::fs::create_dir(root).expect("mkdir");
    }
    let (mut view, mut plain) = (View::new(&source), Plain::new(&twin));
    let mut stranger = Plain::new(&source);
    let (first, last) = (beginning(), ending());
    let all = first.iter().chain(ops).chain(&last);
    for (number, op) in all.enumerate() {
        let (got, wanted) = match op {
            Op::Outside(op, asked) => {
                next_tick(dir.path());
                let answers = (stranger.apply(op), plain.apply(op));
                for question in asked {
                    let _ = view.apply(question);
                }
                view.clock.advance(TTL);
                answers
            }
            op => {
                if matches!(op, Op::SetXattr(..) | Op::RemoveXattr(..)) {
                    // Their values are remembered by the time of the change.
                    next_tick(dir.path());
                }
                (view.apply(op), plain.apply(op))
            }
        };
        if got != wanted {
            return Err(format!(
                "operation {number}, {op:?}: {got:?} instead of {wanted:?}"
            ));
        }
        view.overlay.cache().assert_invariants();
    }
    let (got, wanted) = (Plain::new(&source).tree(), Plain::new(&twin).tree());
    if got != wanted {
        return Err(format!("the source is {got:?} instead of {wanted:?}"));
    }
    view.close()
}

#[test]
fn like_a_plain_directory() {
    let given = Config::default();
    let seed = match given.rng_seed {
        RngSeed::Fixed(seed) => seed,
        RngSeed::Random => RandomState::new().hash_one(0),
    };
    let config = Config {
        cases: if std::env::var_os("PROPTEST_CASES").is_some() {
            given.cases
        } else {
            600
        },
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(seed),
        max_shrink_iters: 20_000,
        ..given
    };
    let cases = config.cases;
    let mut runner = TestRunner::new(config);
    let result = runner.run(&history(), |ops| play(&ops).map_err(TestCaseError::fail));
    if let Err(TestError::Fail(reason, ops)) = result {
        let ops: String = ops.iter().map(|op| format!("    {op:?},\n")).collect();
        panic!("{reason}\n[\n{ops}]\nrepeat with PROPTEST_RNG_SEED={seed} PROPTEST_CASES={cases}");
    }
    result.expect("histories can be made");
}
