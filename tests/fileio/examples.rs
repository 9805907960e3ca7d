//! The examples, run as their first lines say.

use crate::support::{World, let_age};
use sha2::{Digest, Sha256};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

/// Cargo builds it if it is not there yet, and takes its place.
fn example(name: &str) -> Command {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["run", "--quiet", "--locked", "--example", name]);
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    cargo.arg("--").current_dir(env!("CARGO_MANIFEST_DIR"));
    cargo
}

/// Ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn read_stream_says_that_the_second_time_nothing_came_from_the_files() {
    let w = World::new();
    let files = [w.file("a", vec![1; 300_000]), w.file("b", vec![2; 5])];
    for path in &files {
        let_age(path);
    }
    let output = example("read_stream").args(files).output().expect("cargo");
    let said = String::from_utf8_lossy(&output.stdout);
    let lines: Vec<_> = said.lines().collect();
    assert!(output.status.success(), "{output:?}");
    assert!(lines[0].starts_with("cold: 300005 bytes in "), "{said}");
    assert!(
        lines[0].ends_with("300005 of them from the files"),
        "{said}"
    );
    assert!(lines[1].ends_with(" 0 of them from the files"), "{said}");
}

#[test]
fn serve_gives_the_file_to_many_clients() {
    let w = World::new();
    let content: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 241) as u8).collect();
    let path = w.file("f", &content);
    let child = example("serve")
        .arg(&path)
        .arg("127.0.0.1:0")
        .stdout(Stdio::piped())
        .spawn()
        .expect("cargo");
    let mut server = Running(child);
    let mut said = BufReader::new(server.0.stdout.take().expect("a pipe"));
    let mut line = String::new();
    said.read_line(&mut line).expect("it says its address");
    let address = line.trim().rsplit("http://").next().expect("one");
    let address = address.trim_end_matches('/').to_owned();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut client = TcpStream::connect(&address).expect("connect");
                client.write_all(b"GET / HTTP/1.0\r\n\r\n").expect("send");
                let mut answer = Vec::new();
                client.read_to_end(&mut answer).expect("receive");
                let head = b"HTTP/1.0 200 OK\r\nContent-Length: 1000000\r\n\r\n";
                assert!(answer.starts_with(head) && answer[head.len()..] == content);
            });
        }
    });
    let pid = nix::unistd::Pid::from_raw(server.0.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).expect("kill");
    line.clear();
    said.read_line(&mut line).expect("it says what it did");
    assert!(line.contains("reads were hits"), "{line}");
    assert!(server.0.wait().expect("wait").success());
}

#[test]
fn hash_writes_prints_what_sha256sum_would() {
    let w = World::new();
    let content: Vec<u8> = (0..500_000_u32).map(|n| (n % 239) as u8).collect();
    let (from, to) = (w.file("from", &content), w.path("to"));
    let output = example("hash_writes")
        .arg(&to)
        .stdin(fs::File::open(from).expect("open"))
        .output()
        .expect("cargo");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(
        said,
        format!("{:x}  {}\n", Sha256::digest(&content), to.display())
    );
    assert!(fs::read(&to).expect("read") == content);
}
