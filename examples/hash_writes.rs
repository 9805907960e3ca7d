//! Copies standard input to a file, and prints the SHA-256 of what was written, which a hook computed on the way.
//!
//! ```sh
//! cargo run --release --example hash_writes -- COPY < FILE
//! sha256sum COPY
//! ```

use sha2::{Digest, Sha256};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use warmfs::fileio::FileIoStream;

fn run() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args_os()
        .nth(1)
        .ok_or("usage: hash_writes COPY < FILE")?;
    let hash = Arc::new(Mutex::new(Sha256::new()));
    let hashing = hash.clone();
    let mut copy = FileIoStream::builder(&path)
        .mode("wb")
        .open_now(true)
        .hook("on_write", move |_facts, data, _count| {
            // A mutex, as a hook may be called from any thread; this one is not.
            if let Ok(mut hash) = hashing.lock() {
                hash.update(data);
            }
        })
        .build()?;
    std::io::copy(&mut std::io::stdin().lock(), &mut copy)?;
    copy.sync()?;
    copy.close()?;
    let digest = hash
        .lock()
        .map_err(|_| "the hook panicked")?
        .clone()
        .finalize();
    println!("{digest:x}  {}", path.display());
    Ok(())
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hash_writes: {error}");
            ExitCode::FAILURE
        }
    }
}
