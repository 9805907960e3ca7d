//! The configuration as it is written: what TOML makes of it, and which settings go together.

use super::{Wrong, wrong};
use serde::de::Error;
use serde::{Deserialize, Deserializer};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(Deserialize, Clone, Default, Debug)]
#[serde(deny_unknown_fields)]
pub(super) struct FileText {
    #[serde(default)]
    pub(super) hook: Vec<RuleText>,
    #[serde(default)]
    pub(super) plugin: BTreeMap<String, PluginText>,
}

#[derive(Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub(super) struct RuleText {
    pub(super) events: Vec<String>,
    #[serde(default)]
    pub(super) include: Vec<String>,
    #[serde(default)]
    pub(super) exclude: Vec<String>,
    pub(super) data: Option<Size>,
    pub(super) full: Option<FullText>,
    pub(super) block_seconds: Option<f64>,
    pub(super) plugin: PluginChoice,
}

#[derive(Deserialize, Clone, Copy, Debug)]
#[serde(rename_all = "lowercase")]
pub(super) enum FullText {
    Drop,
    Block,
}

/// A plugin by the name of its table, or in place.
#[derive(Clone, Debug)]
pub(super) enum PluginChoice {
    Name(String),
    Own(Box<PluginText>),
}

// By hand, because of an untagged enum serde can only say that nothing fits.
impl<'de> Deserialize<'de> for PluginChoice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<PluginChoice, D::Error> {
        match toml::Value::deserialize(deserializer)? {
            toml::Value::String(name) => Ok(PluginChoice::Name(name)),
            table @ toml::Value::Table(_) => match PluginText::deserialize(table) {
                Ok(text) => Ok(PluginChoice::Own(Box::new(text))),
                Err(error) => Err(D::Error::custom(format!("plugin: {}", error.message()))),
            },
            _ => Err(D::Error::custom(
                "plugin: give the name of a [plugin.NAME] table, or a table { type = ... }",
            )),
        }
    }
}

/// Bytes: a number, or text like "64K".
#[derive(Clone, Copy, Debug)]
pub(super) struct Size(pub(super) u64);

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Size, D::Error> {
        let bytes = match toml::Value::deserialize(deserializer)? {
            toml::Value::Integer(bytes) => u64::try_from(bytes).ok(),
            toml::Value::String(text) => {
                Some(crate::config::parse_memory(&text).map_err(D::Error::custom)?)
            }
            _ => None,
        };
        let wrong = || D::Error::custom("give bytes, or text with a unit like \"64K\"");
        bytes.map(Size).ok_or_else(wrong)
    }
}

#[derive(Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub(super) struct PluginText {
    #[serde(rename = "type")]
    pub(super) kind: PluginKind,
    /// Events, and bytes of their data, that may wait.
    pub(super) queue: Option<usize>,
    pub(super) queue_bytes: Option<Size>,
    // log
    pub(super) file: Option<PathBuf>,
    pub(super) target: Option<LogTarget>,
    pub(super) max_size: Option<Size>,
    pub(super) max_age_seconds: Option<f64>,
    pub(super) keep: Option<u32>,
    // command
    pub(super) command: Option<Vec<String>>,
    pub(super) run: Option<RunText>,
    pub(super) ack: Option<bool>,
    pub(super) parallel: Option<usize>,
    pub(super) timeout_seconds: Option<f64>,
    // wasm
    pub(super) module: Option<PathBuf>,
    pub(super) memory: Option<Size>,
    pub(super) fuel: Option<u64>,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "lowercase")]
pub(super) enum PluginKind {
    Log,
    Command,
    Wasm,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "lowercase")]
pub(super) enum LogTarget {
    Stderr,
    Journal,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "lowercase")]
pub(super) enum RunText {
    Always,
    Event,
    Batch,
}

impl PluginText {
    /// Each kind knows its own settings only; one that would do nothing is a mistake.
    pub(super) fn check(&self) -> Result<(), String> {
        let log = [
            ("file", self.file.is_some()),
            ("target", self.target.is_some()),
            ("max_size", self.max_size.is_some()),
            ("max_age_seconds", self.max_age_seconds.is_some()),
            ("keep", self.keep.is_some()),
        ];
        let command = [
            ("command", self.command.is_some()),
            ("run", self.run.is_some()),
            ("ack", self.ack.is_some()),
            ("parallel", self.parallel.is_some()),
            ("timeout_seconds", self.timeout_seconds.is_some()),
        ];
        let wasm = [
            ("module", self.module.is_some()),
            ("memory", self.memory.is_some()),
            ("fuel", self.fuel.is_some()),
        ];
        let (name, others): (_, [&[(&str, bool)]; 2]) = match self.kind {
            PluginKind::Log => ("log", [&command, &wasm]),
            PluginKind::Command => ("command", [&log, &wasm]),
            PluginKind::Wasm => ("wasm", [&log, &command]),
        };
        if let Some((setting, _)) = others.into_iter().flatten().find(|(_, given)| *given) {
            return Err(format!("{setting} means nothing with type = \"{name}\""));
        }
        for (setting, value) in [
            ("max_age_seconds", self.max_age_seconds),
            ("timeout_seconds", self.timeout_seconds),
        ] {
            if let Some(value) = value {
                seconds_up_to(setting, value, 366.0 * 86_400.0).map_err(|Wrong(error)| error)?;
            }
        }
        match self.kind {
            PluginKind::Log if self.file.is_some() && self.target.is_some() => {
                Err("give file or target, not both".into())
            }
            PluginKind::Log
                if self.file.is_none()
                    && (self.max_size.is_some()
                        || self.keep.is_some()
                        || self.max_age_seconds.is_some()) =>
            {
                Err("rotation needs a file".into())
            }
            PluginKind::Command if self.command.as_ref().is_none_or(Vec::is_empty) => {
                Err("give command = [\"PROGRAM\", \"ARGUMENT\", ...]".into())
            }
            PluginKind::Command if self.run.unwrap_or(RunText::Always) == RunText::Always => {
                if self.parallel.is_some() || self.timeout_seconds.is_some() {
                    return Err(
                        "parallel and timeout_seconds need run = \"event\" or \"batch\"".into(),
                    );
                }
                Ok(())
            }
            PluginKind::Command if self.ack.is_some() => Err("ack needs run = \"always\"".into()),
            PluginKind::Command if self.parallel.is_some_and(|n| !(1..=64).contains(&n)) => {
                Err("parallel is a number from 1 to 64".into())
            }
            PluginKind::Wasm if self.module.is_none() => Err("give module = \"FILE\"".into()),
            _ => Ok(()),
        }
    }

    pub(super) fn about(&self) -> String {
        match self.kind {
            PluginKind::Log => match (&self.file, self.target) {
                (Some(file), _) => format!("log to {}", file.display()),
                (None, Some(LogTarget::Journal)) => "log to the journal".into(),
                (None, _) => "log to standard error".into(),
            },
            PluginKind::Command => {
                let words = self.command.as_deref().unwrap_or_default().join(" ");
                match self.run.unwrap_or(RunText::Always) {
                    RunText::Always => format!("command, always running: {words}"),
                    RunText::Event => format!("command, one run per event: {words}"),
                    RunText::Batch => format!("command, one run per batch: {words}"),
                }
            }
            PluginKind::Wasm => {
                format!(
                    "wasm module {}",
                    self.module.as_deref().unwrap_or(Path::new("")).display()
                )
            }
        }
    }
}

pub(super) fn seconds_up_to(name: &str, seconds: f64, most: f64) -> Result<Duration, Wrong> {
    match Duration::try_from_secs_f64(seconds) {
        Ok(duration) if seconds > 0.0 && seconds <= most => Ok(duration),
        _ => wrong(format!(
            "{name} = {seconds}: give seconds, more than 0, at most {most}"
        )),
    }
}

/// An error of the TOML library tells where in several lines.
pub(super) fn one_line(error: &toml::de::Error) -> String {
    let text = error.to_string();
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    match lines.first().and_then(|first| first.split_once(" at ")) {
        Some(("TOML parse error", place)) => format!("{} ({place})", error.message()),
        _ => error.message().to_owned(),
    }
}
