//! An HTTP server that streams one file to many clients from one cache.
//!
//! ```sh
//! cargo run --release --example serve -- FILE [127.0.0.1:8080]
//! curl -o copy http://127.0.0.1:8080/
//! ```
//!
//! Each client has a stream of its own, at its own pace; what one of them has fetched from the file is a hit for all
//! others. Ctrl-C ends it and says how much came from the cache.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use warmfs::fileio::{AsyncFileIoStream, FILE_CACHE};

/// Answer one request, whatever it asks for, with the file.
async fn answer(mut client: TcpStream, path: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let (reader, mut writer) = client.split();
    let mut lines = BufReader::new(reader).lines();
    while lines
        .next_line()
        .await?
        .is_some_and(|line| !line.is_empty())
    {}

    let mut file = AsyncFileIoStream::new(path);
    file.async_open().await?;
    let size = file.seek(std::io::SeekFrom::End(0))?;
    file.update_pos(0);
    let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {size}\r\n\r\n");
    writer.write_all(head.as_bytes()).await?;
    loop {
        // The cached bytes themselves: nothing is copied on the way to the socket.
        let bytes = file.read(Some(256 << 10)).await?;
        if bytes.is_empty() {
            break;
        }
        writer.write_all(&bytes).await?;
    }
    file.close().await?;
    writer.shutdown().await?;
    Ok(())
}

async fn serve() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let path = PathBuf::from(arguments.next().ok_or("usage: serve FILE [ADDRESS:PORT]")?);
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:8080".into());
    let listener = TcpListener::bind(address.to_str().ok_or("no such address")?).await?;
    println!("{} at http://{}/", path.display(), listener.local_addr()?);
    loop {
        let client = tokio::select! {
            accepted = listener.accept() => accepted?.0,
            interrupted = tokio::signal::ctrl_c() => break interrupted?,
        };
        let path = path.clone();
        tokio::spawn(async move {
            if let Err(error) = answer(client, &path).await {
                eprintln!("a client was not served: {error}");
            }
        });
    }
    let stats = FILE_CACHE.stats();
    println!(
        "{} reads were hits, {} were not; {} bytes were read from the file",
        stats.hits.get(),
        stats.misses.get(),
        stats.fetched_bytes.get(),
    );
    Ok(())
}

#[tokio::main]
async fn main() -> ExitCode {
    match serve().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("serve: {error}");
            ExitCode::FAILURE
        }
    }
}
