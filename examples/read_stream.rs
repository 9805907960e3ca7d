//! Reads files twice through the streams, and says what the cache had of them the second time.
//!
//! ```sh
//! cargo run --release --example read_stream -- FILE...
//! ```

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};
use warmfs::cache::Cache;
use warmfs::fileio::FileIoStream;

/// Read a whole file in pieces of 128 KiB; returns how many bytes it has.
fn read(path: &Path, cache: &Arc<Cache>) -> warmfs::fileio::Result<u64> {
    let mut stream = FileIoStream::builder(path)
        .cache(cache.clone())
        .open_now(true)
        .build()?;
    while !stream.read(Some(128 << 10))?.is_empty() {}
    let size = stream.tell();
    stream.close()?;
    Ok(size)
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    let paths: Vec<_> = std::env::args_os().skip(1).collect();
    if paths.is_empty() {
        return Err("usage: read_stream FILE...".into());
    }
    // A cache of its own: 1 GiB, and a file that was compared is believed for a second.
    let cache = Cache::shared(1 << 30, Duration::from_secs(1));
    let stats = cache.stats();
    for round in ["cold", "warm"] {
        let (began, fetched, mut bytes) = (Instant::now(), stats.fetched_bytes.get(), 0);
        for path in &paths {
            bytes += read(path.as_ref(), &cache)?;
        }
        println!(
            "{round}: {bytes} bytes in {:.1} ms, {} of them from the files",
            began.elapsed().as_secs_f64() * 1e3,
            stats.fetched_bytes.get() - fetched,
        );
    }
    Ok(())
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("read_stream: {error}");
            ExitCode::FAILURE
        }
    }
}
