//! Everything that programs do with files, done in the mount and compared with the source.

mod attributes;
mod content;
mod listing;
mod names;
mod races;
mod sharing;

/// The errno of what must fail.
#[track_caller]
fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> i32 {
    let error = result.expect_err("it must fail");
    error.raw_os_error().expect("an error of the system")
}
