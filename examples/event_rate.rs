//! How many events per second go from reads to the log: cargo run --release --example event_rate [EVENTS [THREADS]]
//!
//! Each thread reads 4 KiB at a time from its own file, out of the memory tier, without a kernel in between; every read is
//! told to the `log` plugin, which writes to a file, and a full queue is waited for. The time ends when the last line
//! is in the file.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use warmfs::hooks::{Act, Action, Asked, Config, Event, Hooks, Kind, Served};
use warmfs::overlay::{Caller, NodeId, Overlay};
use warmfs::{backing::Source, cache::Cache, cache::Trust, clock::Clock, config, span::Span};

const FILE: u64 = 4 << 20;
const BLOCK: u64 = 4096;

/// The log asks for nothing.
struct Nothing;

impl Act for Nothing {
    fn act(&self, _: &Action, _: Box<dyn FnOnce(String) + Send>) {}
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let mut number = |default: u64| args.next().map_or(Ok(default), |text| text.parse());
    let (events, threads) = (number(2_000_000)?, number(1)?);

    let dir = tempfile::tempdir_in("/var/tmp")?;
    let files = dir.path().join("files");
    std::fs::create_dir(&files)?;
    let stats = Arc::new(warmfs::stats::Stats::default());
    let source = Source::open(&files, None, stats.clone())?;
    let ttl = Duration::from_secs(3600);
    let cache = Cache::new(1 << 30, ttl, Clock::system(), stats);
    let overlay = Arc::new(Overlay::new(
        Arc::new(source),
        Arc::new(cache),
        &config::limits(1024),
    )?);
    let rule = r#"events=["on_read"], full="block", block_seconds=60,
                  plugin={type="log", file="log.jsonl", max_size="100G"}"#;
    let rule = rule.replace('\n', " ");
    let setup = Config::parse(None, &[rule], dir.path())?.start(&[])?;
    let act: Arc<dyn Act> = Arc::new(Nothing);
    let hooks = Arc::new(Hooks::start(setup, &act)?);
    overlay.set_hooks(hooks.clone());

    let mut handles = Vec::new();
    for file in 0..threads {
        let name = format!("f{file}");
        std::fs::write(files.join(&name), vec![7; FILE as usize])?;
        let entry = overlay.lookup(NodeId::ROOT, name.as_ref())?;
        let opened = overlay.open(CALLER, entry.node, 0)?;
        overlay.read(opened.handle, Span::new(0, FILE))?;
        handles.push(opened.handle);
    }

    let begun = Instant::now();
    std::thread::scope(|scope| {
        for handle in handles {
            let (overlay, hooks) = (&overlay, &hooks);
            scope.spawn(move || {
                for n in 0..events / threads {
                    read_and_tell(overlay, hooks, handle, n * BLOCK % FILE);
                }
            });
        }
    });
    hooks.stop(Duration::from_secs(60));
    let took = begun.elapsed().as_secs_f64();

    let counts = hooks.reports()[0].counts;
    let lines = count_lines(&dir.path().join("log.jsonl"))?;
    println!(
        "{} events, {} lines in the log, {} lost, {took:.2} s: {:.0} events/s",
        counts.delivered,
        lines,
        counts.lost,
        counts.delivered as f64 / took
    );
    Ok(())
}

const CALLER: Caller = Caller {
    uid: 0,
    gid: 0,
    pid: 0,
};

/// What the kernel's face does for each read.
fn read_and_tell(overlay: &Arc<Overlay>, hooks: &Hooks, handle: u64, pos: u64) {
    let begun = Instant::now();
    let watching = overlay.watching(handle);
    let span = Span::new(pos, BLOCK);
    let data = overlay.read_known(handle, span, Trust::Ttl);
    if let (Some(watching), Some(data)) = (watching, data) {
        let mut event = Event::new(Kind::Read, watching.path.clone());
        event.span = Some(span);
        event.data = Some(data);
        event.served = Some(Served::Memory);
        event.asked = Some(Asked {
            by: CALLER,
            took: begun.elapsed(),
        });
        if let Some(blocked) = hooks.moved(&watching.watch, event) {
            blocked.wait();
        }
    }
}

fn count_lines(path: &Path) -> std::io::Result<usize> {
    use std::io::{BufRead, BufReader};
    let lines = BufReader::new(std::fs::File::open(path)?).split(b'\n');
    Ok(lines.count())
}
