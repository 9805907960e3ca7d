//! A connection as if it went a long way: bytes arrive late, and as many at a time as were sent.
//!
//! ```text
//! delay_proxy --delay-ms 10 /usr/lib/openssh/sftp-server      each connection talks to a command of its own
//! delay_proxy --delay-ms 10 --to 127.0.0.1:2049               each connection goes on to this address
//! ```
//!
//! Every piece of data is handed on the delay after it came, each way, so that a question and its answer take twice
//! the delay. Pieces wait side by side: the delay limits no throughput. The first line of output names the address
//! that it listens on, a free port unless `--listen` names one. It takes and makes connections on this machine only,
//! without any access control, and runs until it is ended. An sshfs over it needs neither sshd nor ssh:
//!
//! ```text
//! sshfs -o directport=PORT localhost:DIRECTORY MOUNTPOINT
//! ```

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use clap::Parser;

/// Bytes of one piece at most. More in one piece would make the first of them wait for the last.
const PIECE_BYTES: usize = 32 * 1024;
/// Pieces under way in one direction. At 100 ms this is 1.3 GB/s, or 40,000 small messages a second; beyond it the
/// sender has to wait, and nobody fills the memory.
const PIECES_MAX: usize = 4096;

/// Hands connections on with a delay.
#[derive(Parser)]
struct Arguments {
    /// How long every byte is under way, each way, in milliseconds.
    #[arg(long, value_name = "MS", default_value = "10", value_parser = milliseconds)]
    delay_ms: Duration,
    /// Where to listen: an address of this machine's loopback.
    #[arg(long, value_name = "ADDRESS", default_value_t = SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), value_parser = loopback)]
    listen: SocketAddr,
    /// Where connections go: an address of this machine's loopback.
    #[arg(long, value_name = "ADDRESS", value_parser = loopback, conflicts_with = "command", required_unless_present = "command")]
    to: Option<SocketAddr>,
    /// What to run for each connection, which is its standard input and output.
    #[arg(trailing_var_arg = true)]
    command: Vec<String>,
}

fn milliseconds(text: &str) -> Result<Duration, String> {
    let wrong = |_| format!("{text} is not a number of milliseconds");
    let number: f64 = text.parse().map_err(|_| wrong(()))?;
    Duration::try_from_secs_f64(number / 1e3).map_err(|_| wrong(()))
}

fn loopback(text: &str) -> Result<SocketAddr, String> {
    match text.parse::<SocketAddr>() {
        Ok(address) if address.ip().is_loopback() => Ok(address),
        _ => Err(format!("{text} is no address like 127.0.0.1:2049")),
    }
}

/// Where a connection goes.
enum Target {
    Address(SocketAddr),
    Command(Vec<String>),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let target = match arguments.to {
        Some(address) => Target::Address(address),
        None => Target::Command(arguments.command),
    };
    match TcpListener::bind(arguments.listen)
        .and_then(|listener| serve(&listener, arguments.delay_ms, &target))
    {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("delay_proxy: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(listener: &TcpListener, delay: Duration, target: &Target) -> io::Result<()> {
    println!("{}", listener.local_addr()?);
    for client in listener.incoming() {
        if let Err(error) = client.and_then(|client| connect(client, delay, target)) {
            eprintln!("delay_proxy: {error}");
        }
    }
    Ok(())
}

/// Joins a client with its target; both directions then run on threads of their own.
fn connect(client: TcpStream, delay: Duration, target: &Target) -> io::Result<()> {
    client.set_nodelay(true)?;
    match target {
        Target::Address(address) => {
            let server = TcpStream::connect(address)?;
            server.set_nodelay(true)?;
            forward(client.try_clone()?, server.try_clone()?, delay);
            forward(server, client, delay);
        }
        Target::Command(words) => {
            let (mut child, from, to) = start(words)?;
            forward(client.try_clone()?, to, delay);
            let back = forward(from, client, delay);
            // Nobody else waits for it.
            thread::spawn(move || {
                let _ = back.join();
                let _ = child.wait();
            });
        }
    }
    Ok(())
}

/// Starts a command, with its output and its input.
fn start(words: &[String]) -> io::Result<(Child, impl Source, impl Sink)> {
    let [program, arguments @ ..] = words else {
        return Err(io::Error::other("no command"));
    };
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| io::Error::new(error.kind(), format!("{program}: {error}")))?;
    match (child.stdout.take(), child.stdin.take()) {
        (Some(from), Some(to)) => Ok((child, from, to)),
        _ => Err(io::Error::other("no pipes")),
    }
}

/// Where one direction comes from.
trait Source: Read + Send + 'static {
    /// Nobody reads from it any more.
    fn stop(&mut self) {}
}

/// Where one direction goes to.
trait Sink: Write + Send + 'static {
    /// Nothing more comes.
    fn end(&mut self) {}
}

impl Source for TcpStream {
    fn stop(&mut self) {
        let _ = self.shutdown(Shutdown::Read);
    }
}

impl Sink for TcpStream {
    fn end(&mut self) {
        let _ = self.shutdown(Shutdown::Write);
    }
}

// A pipe ends when it is dropped.
impl Source for std::process::ChildStdout {}
impl Sink for std::process::ChildStdin {}

/// One direction: a thread that takes, and one that gives each piece when it is due. Ends when either end does, and
/// tells the other.
fn forward(mut from: impl Source, mut to: impl Sink, delay: Duration) -> JoinHandle<()> {
    let (pieces, arriving) = crossbeam_channel::bounded::<(Instant, Vec<u8>)>(PIECES_MAX);
    thread::spawn(move || {
        let mut buffer = vec![0; PIECE_BYTES];
        loop {
            let count = match from.read(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Ok(0) | Err(_) => break,
                Ok(count) => count,
            };
            let piece = (Instant::now() + delay, buffer[..count].to_vec());
            if pieces.send(piece).is_err() {
                break;
            }
        }
        from.stop();
    });
    thread::spawn(move || {
        for (due, piece) in arriving {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            if to.write_all(&piece).is_err() {
                break;
            }
        }
        to.end();
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DELAY: Duration = Duration::from_millis(20);

    /// A connection through a proxy to a target.
    fn through(target: Target) -> TcpStream {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind");
        let address = listener.local_addr().expect("address");
        thread::spawn(move || serve(&listener, DELAY, &target));
        TcpStream::connect(address).expect("connect")
    }

    /// A server that sends back what it gets, until the client has no more.
    fn echo() -> Target {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind");
        let address = listener.local_addr().expect("address");
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let mut from = client.try_clone().expect("clone");
                let mut to = client;
                let _ = io::copy(&mut from, &mut to);
                to.end();
            }
        });
        Target::Address(address)
    }

    #[test]
    fn a_question_and_its_answer_take_the_delay_twice() {
        let mut stream = through(echo());
        for _ in 0..3 {
            let asked = Instant::now();
            let mut answer = [0; 4];
            stream.write_all(b"ping").expect("write");
            stream.read_exact(&mut answer).expect("read");
            assert_eq!(&answer, b"ping");
            assert!(asked.elapsed() >= 2 * DELAY, "{:?}", asked.elapsed());
        }
    }

    #[test]
    fn bytes_survive_in_order_and_wait_side_by_side() {
        for target in [echo(), Target::Command(vec!["cat".into()])] {
            let mut stream = through(target);
            let sent: Vec<u8> = (0..8_u32 << 20)
                .map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8)
                .collect();
            let asked = Instant::now();
            let mut writer = stream.try_clone().expect("clone");
            let copy = sent.clone();
            let writing = thread::spawn(move || {
                writer.write_all(&copy).expect("write");
                writer.end();
            });
            let mut got = Vec::new();
            stream.read_to_end(&mut got).expect("read");
            writing.join().expect("joined");
            assert!(got == sent, "{} bytes of {}", got.len(), sent.len());
            // One piece after the other would take 256 times the delay and more.
            assert!(asked.elapsed() < 128 * DELAY, "{:?}", asked.elapsed());
        }
    }

    #[test]
    fn a_client_that_leaves_ends_its_command() {
        let mut stream = through(Target::Command(
            ["sh", "-c", "cat; echo end"].map(String::from).to_vec(),
        ));
        stream.write_all(b"last ").expect("write");
        stream.end();
        let mut got = String::new();
        stream.read_to_string(&mut got).expect("read");
        assert_eq!(got, "last end\n");
    }

    #[test]
    fn only_this_machine() {
        assert!(loopback("127.0.0.1:22").is_ok() && loopback("[::1]:22").is_ok());
        for other in ["0.0.0.0:22", "192.0.2.1:22", "localhost", ""] {
            assert!(loopback(other).is_err(), "{other}");
        }
    }
}
