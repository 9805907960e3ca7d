//! Trying hooks without a mount: each rule gets one sample of each of its events, and what the plugins answer is shown.
//!
//! Programs and modules really run. A log is not written to; its lines are shown.

use super::event::{Asked, Event, Kind, Served};
use super::plugin::{Act, Host, Plugin};
use super::rules::{Config, Rule, Wrong};
use super::{Action, Delivery, Hooks, Setup};
use crate::error::Error;
use crate::span::Span;
use crate::sys::Caller;
use bytes::Bytes;
use nix::errno::Errno;
use parking_lot::Mutex;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How long the plugins may take for all of it.
const PATIENCE: Duration = Duration::from_secs(10);

/// Writes down what would be done.
#[derive(Default)]
struct Shown(Mutex<Vec<String>>);

impl Act for Shown {
    fn act(&self, action: &Action, _: Box<dyn FnOnce(String) + Send>) {
        self.0.lock().push(format!("would do: {action}"));
    }
}

/// Check, run, show. False when a plugin did something wrong.
pub fn run(config: &Config, path: Option<&Path>, out: &mut dyn Write) -> Result<bool, Wrong> {
    let unwritten = |error: std::io::Error| Wrong(format!("cannot write: {error}"));
    let shown = Arc::new(Shown::default());
    let mut setup = Setup {
        rules: config.rules.clone(),
        plugins: Vec::new(),
    };
    for spec in &config.plugins {
        let plugin = spec.start(&[])?;
        let plugin = if spec.is_log() {
            let (shown, name) = (shown.clone(), spec.name.clone());
            Box::new(move |delivery: &Delivery, _: &Host| {
                let mut line = Vec::new();
                delivery.write_json(&mut line);
                let line = String::from_utf8_lossy(&line);
                let said = format!("{name} would write: {}", line.trim_end());
                shown.0.lock().push(said);
            }) as Box<dyn Plugin>
        } else {
            plugin
        };
        setup.plugins.push((spec.name.clone(), plugin, spec.queue));
    }
    let act: Arc<dyn Act> = shown.clone();
    let hooks = Hooks::start(setup, &act)?;
    for (number, rule) in config.rules.iter().enumerate() {
        let spec = &config.plugins[rule.plugin];
        writeln!(out, "rule {}: {}: {}", number + 1, spec.name, spec.about).map_err(unwritten)?;
        let path = path.map_or_else(|| rule.sample(), Path::to_path_buf);
        if !rule.matches(&path) {
            writeln!(out, "  does not match {}", path.display()).map_err(unwritten)?;
            continue;
        }
        for kind in &rule.events {
            writeln!(out, "  {kind} {}", path.display()).map_err(unwritten)?;
            send(&hooks, rule, sample(*kind, &path));
        }
    }
    hooks.stop(PATIENCE);
    for line in shown.0.lock().iter() {
        writeln!(out, "{line}").map_err(unwritten)?;
    }
    let mut is_good = true;
    for report in hooks.reports() {
        let counts = report.counts;
        let mut said = format!(
            "{}: {} events delivered, {} lost",
            report.plugin, counts.delivered, counts.lost
        );
        if report.complaints > 0 {
            said += &format!(", {} complaints (above)", report.complaints);
        }
        if let Some(reason) = &report.disabled {
            said += &format!(", disabled: {reason}");
        }
        writeln!(out, "{said}").map_err(unwritten)?;
        is_good &= report.complaints == 0 && report.disabled.is_none() && counts.lost == 0;
    }
    Ok(is_good)
}

fn send(hooks: &Hooks, rule: &Rule, event: Event) {
    let data = rule.data_max > 0;
    let event = Event {
        data: event.data.filter(|_| data),
        ..event
    };
    if let Some(blocked) = hooks.send_by(rule, event) {
        blocked.wait();
    }
}

/// An event as it could happen.
fn sample(kind: Kind, path: &Path) -> Event {
    let mut event = Event::new(kind, path);
    let content = Bytes::from_static(b"sample\n");
    match kind {
        Kind::Read | Kind::Write => {
            event.span = Some(Span::new(0, content.len() as u64));
            event.data = Some(content);
        }
        Kind::Evict => event.span = Some(Span::new(0, 1 << 17)),
        Kind::Truncate => event.span = Some(Span::new(0, 7)),
        Kind::Rename => event.to = Some(path.with_extension("renamed").into()),
        Kind::Error => event.error = Some(Error::new(Errno::EIO, "read source")),
        Kind::Open | Kind::Create | Kind::Remove | Kind::Stale => {}
    }
    if kind == Kind::Read {
        event.served = Some(Served::Memory);
    }
    if !matches!(kind, Kind::Evict | Kind::Stale | Kind::Error) {
        let by = Caller {
            uid: nix::unistd::geteuid().as_raw(),
            gid: nix::unistd::getegid().as_raw(),
            pid: std::process::id(),
        };
        let took = Duration::from_micros(10);
        event.asked = Some(Asked { by, took });
    }
    event
}
