//! What a configuration says of hooks: rules and plugins, read from TOML and checked as a whole.
//!
//! ```toml
//! [[hook]]
//! events = ["on_read", "on_write"]
//! include = ["*.flac", "/albums/"]       # gitignore patterns; without them: everything
//! exclude = ["/albums/tmp/"]
//! data = "64K"                           # so many bytes of each event travel along; without it: none
//! full = "block"                         # or "drop" (the default): what to do when the plugin's queue is full
//! block_seconds = 1.0                    # how long a program waits at most with "block"
//! plugin = "audit"                       # a [plugin.NAME] below, or a table of its own
//!
//! [plugin.audit]
//! type = "log"
//! file = "audit.jsonl"                   # or target = "stderr" or "journal"
//! ```
//!
//! Where two rules send an event to one plugin, the first counts. Relative paths start at the directory of the file.
//! A rule on the command line (`--hook`) is the inside of one `[[hook]]` table, written in one line.

mod private;
mod text;

use super::Setup;
use super::command;
use super::event::{EVENTS, Kind};
use super::log::{Log, Rotation};
use super::plugin::Plugin;
use super::queue::Full;
use ignore::gitignore::{Gitignore, GitignoreBuilder};
use private::read_private;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use text::{
    FileText, FullText, LogTarget, PluginChoice, PluginKind, PluginText, RuleText, RunText,
    one_line, seconds_up_to,
};

/// Waiting longer for a plugin than this is a typing error: programs would be taken for dead.
const BLOCK_SECONDS_MAX: f64 = 60.0;

/// How long a program waits for a queue when a rule says `block` and no more: a restart of a plugin fits in.
const BLOCK_SECONDS: f64 = 1.0;

/// Events that wait for a plugin: at 300,000 in a second, some hundredths of a second, which a disk that is busy may
/// take; 16 MiB when they are all there.
pub(super) const QUEUE_EVENTS: usize = 16_384;

/// Bytes of data that wait with them.
pub(super) const QUEUE_BYTES: u64 = 64 << 20;

/// A log file is rotated at this size, and so many old ones stay.
const LOG_SIZE: u64 = 100 << 20;
const LOG_KEEP: u32 = 5;

/// Memory and instructions that a WASM module may use for an event: a policy needs some thousand instructions; a tenth
/// of a second is over before this many are counted.
#[cfg(feature = "wasm")]
const WASM_MEMORY: u64 = 16 << 20;
#[cfg(feature = "wasm")]
const WASM_FUEL: u64 = 10_000_000;

/// A configuration is wrong, and how: one line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wrong(pub String);

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Wrong {}

fn wrong<T>(text: String) -> Result<T, Wrong> {
    Err(Wrong(text))
}

/// Which events of which files a plugin wants, and how.
#[derive(Clone, Debug)]
pub struct Rule {
    /// The events.
    pub events: Vec<Kind>,
    /// Most bytes of data that travel along.
    pub data_max: usize,
    /// When the queue is full.
    pub full: Full,
    /// Which of the plugins.
    pub plugin: usize,
    paths: Paths,
    include: Vec<String>,
}

impl Rule {
    /// A rule that sends some events of all files to the plugin with that number.
    pub fn all(events: &[Kind], plugin: usize) -> Rule {
        Rule {
            events: events.to_vec(),
            data_max: 0,
            full: Full::Drop,
            plugin,
            paths: Paths {
                include: None,
                exclude: Gitignore::empty(),
            },
            include: Vec::new(),
        }
    }

    /// Only files that match one of the gitignore patterns in `include` (all, when there is none), and none in `exclude`.
    pub fn on(mut self, include: &[String], exclude: &[String]) -> Result<Rule, Wrong> {
        self.paths = Paths::new(include, exclude)?;
        self.include = include.to_vec();
        Ok(self)
    }

    /// Is it about this file?
    pub fn matches(&self, path: &Path) -> bool {
        self.paths.matches(path)
    }

    /// A path that it is about, for trying it out.
    pub fn sample(&self) -> PathBuf {
        let plain = |pattern: &String| {
            let pattern = pattern
                .trim_start_matches('/')
                .replace("**", "*")
                .replace('*', "sample");
            match pattern.strip_suffix('/') {
                Some(dir) => format!("{dir}/sample.txt"),
                None => pattern,
            }
        };
        let guesses = self.include.iter().map(plain).chain(["sample.txt".into()]);
        let guesses: Vec<PathBuf> = guesses.map(PathBuf::from).collect();
        let fits = guesses.iter().find(|path| self.matches(path));
        fits.or(guesses.first()).cloned().unwrap_or_default()
    }
}

#[derive(Clone, Debug)]
struct Paths {
    /// `None`: everything.
    include: Option<Gitignore>,
    exclude: Gitignore,
}

impl Paths {
    fn new(include: &[String], exclude: &[String]) -> Result<Paths, Wrong> {
        Ok(Paths {
            include: if include.is_empty() {
                None
            } else {
                Some(patterns(include)?)
            },
            exclude: patterns(exclude)?,
        })
    }

    fn matches(&self, path: &Path) -> bool {
        // Files and directories alike: an event does not say which it is about, and `dir/` also means what is in it.
        let in_list = |list: &Gitignore| list.matched_path_or_any_parents(path, false).is_ignore();
        self.include.as_ref().is_none_or(in_list) && !in_list(&self.exclude)
    }
}

fn patterns(lines: &[String]) -> Result<Gitignore, Wrong> {
    let mut builder = GitignoreBuilder::new("");
    for line in lines {
        if let Err(error) = builder.add_line(None, line) {
            return wrong(format!("pattern '{line}': {error}"));
        }
    }
    builder.build().map_err(|error| Wrong(error.to_string()))
}

/// A plugin that is to be started.
pub struct PluginSpec {
    /// Its name.
    pub name: String,
    /// What it is, in one line.
    pub about: String,
    /// Events and bytes that may wait for it.
    pub queue: (usize, usize),
    text: PluginText,
    base: PathBuf,
}

/// All rules and plugins of a mount, not started yet.
#[derive(Default)]
pub struct Config {
    /// The rules, in their order.
    pub rules: Vec<Rule>,
    /// The plugins that they name.
    pub plugins: Vec<PluginSpec>,
}

impl Config {
    /// From the text of a configuration file, and of rules on the command line. `base`: where relative paths start.
    pub fn parse(
        file: Option<(&str, &Path)>,
        flags: &[String],
        base: &Path,
    ) -> Result<Config, Wrong> {
        let mut config = Config::default();
        if let Some((text, base)) = file {
            let text: FileText = toml::from_str(text).map_err(|error| Wrong(one_line(&error)))?;
            config.add(text, base, "hook")?;
        }
        for (number, flag) in flags.iter().enumerate() {
            let named = |error: String| Wrong(format!("--hook '{flag}': {error}"));
            let rule: RuleText = toml::from_str(&format!("x = {{ {flag} }}"))
                .map_err(|error| named(one_line(&error)))
                .and_then(|mut table: BTreeMap<String, RuleText>| {
                    table.remove("x").ok_or_else(|| named("empty".into()))
                })?;
            let text = FileText {
                hook: vec![rule],
                plugin: BTreeMap::new(),
            };
            let place = format!("flag{}", number + 1);
            config
                .add(text, base, &place)
                .map_err(|Wrong(error)| named(error))?;
        }
        Ok(config)
    }

    /// Read the file, which nobody but its owner (the user of this process, or root) may write.
    pub fn load(path: Option<&Path>, flags: &[String]) -> Result<Config, Wrong> {
        let here = std::env::current_dir().map_err(|error| Wrong(error.to_string()))?;
        let Some(path) = path else {
            return Config::parse(None, flags, &here);
        };
        let in_file = |what: String| Wrong(format!("{}: {what}", path.display()));
        let path = std::path::absolute(path).map_err(|error| in_file(error.to_string()))?;
        let text = read_private(&path).map_err(in_file)?;
        let base = path.parent().unwrap_or(Path::new("/"));
        Config::parse(Some((&text, base)), flags, &here).map_err(|Wrong(error)| {
            if error.starts_with("--hook") {
                Wrong(error)
            } else {
                in_file(error)
            }
        })
    }

    /// Start the plugins. `env` is for the programs among them.
    pub fn start(&self, env: &[(String, OsString)]) -> Result<Setup, Wrong> {
        let mut setup = Setup {
            rules: self.rules.clone(),
            plugins: Vec::new(),
        };
        for spec in &self.plugins {
            let plugin = spec.start(env)?;
            setup.plugins.push((spec.name.clone(), plugin, spec.queue));
        }
        Ok(setup)
    }

    /// No log may be written through the mount at `mountpoint`: each line would be an event, and a line.
    pub fn check_logs(&self, mountpoint: &Path) -> Result<(), Wrong> {
        for plugin in &self.plugins {
            let Some(file) = plugin.log_file() else {
                continue;
            };
            let parent = file.parent().and_then(|parent| parent.canonicalize().ok());
            if parent.is_some_and(|parent| parent.starts_with(mountpoint)) {
                return wrong(format!(
                    "plugin {}: {} is on the mount itself, where each line would be an event; log elsewhere",
                    plugin.name,
                    file.display()
                ));
            }
        }
        Ok(())
    }

    /// Is there a log file, to be opened again on SIGHUP?
    pub fn has_log_file(&self) -> bool {
        self.plugins
            .iter()
            .any(|plugin| plugin.log_file().is_some())
    }

    fn add(&mut self, text: FileText, base: &Path, place: &str) -> Result<(), Wrong> {
        let first = self.plugins.len();
        for (name, plugin) in text.plugin {
            self.plugins.push(PluginSpec::new(name, plugin, base)?);
        }
        for (number, rule) in text.hook.into_iter().enumerate() {
            let place = format!("{place} {}", number + 1);
            let at = |Wrong(error): Wrong| Wrong(format!("{place}: {error}"));
            let plugin = match rule.plugin.clone() {
                PluginChoice::Own(own) => {
                    self.plugins
                        .push(PluginSpec::new(place.replace(' ', "-"), *own, base).map_err(at)?);
                    self.plugins.len() - 1
                }
                PluginChoice::Name(name) => {
                    match self.plugins[first..]
                        .iter()
                        .position(|plugin| plugin.name == name)
                    {
                        Some(at) => first + at,
                        None => return wrong(format!("{place}: there is no [plugin.{name}]")),
                    }
                }
            };
            self.rules.push(rule.check(plugin).map_err(at)?);
        }
        let unused =
            |(at, _): &(usize, &PluginSpec)| self.rules.iter().all(|rule| rule.plugin != *at);
        if let Some((_, plugin)) = self.plugins.iter().enumerate().find(unused) {
            return wrong(format!("no [[hook]] uses [plugin.{}]", plugin.name));
        }
        Ok(())
    }
}

impl RuleText {
    fn check(self, plugin: usize) -> Result<Rule, Wrong> {
        if self.events.is_empty() {
            return wrong(format!("events is empty; there are {}", EVENTS.join(", ")));
        }
        let parse = |name: &String| name.parse().map_err(Wrong);
        let events: Vec<Kind> = self.events.iter().map(parse).collect::<Result<_, _>>()?;
        let full = match (self.full, self.block_seconds) {
            (Some(FullText::Block), seconds) => Full::Block(seconds_up_to(
                "block_seconds",
                seconds.unwrap_or(BLOCK_SECONDS),
                BLOCK_SECONDS_MAX,
            )?),
            (_, Some(_)) => return wrong("block_seconds needs full = \"block\"".into()),
            _ => Full::Drop,
        };
        let data_max = usize::try_from(self.data.map_or(0, |size| size.0)).unwrap_or(usize::MAX);
        let rule = Rule {
            data_max,
            full,
            ..Rule::all(&events, plugin)
        };
        rule.on(&self.include, &self.exclude)
    }
}

impl PluginSpec {
    fn new(name: String, text: PluginText, base: &Path) -> Result<PluginSpec, Wrong> {
        text.check()
            .map_err(|error| Wrong(format!("plugin {name}: {error}")))?;
        let queue = text.queue.unwrap_or(QUEUE_EVENTS).clamp(1, 1 << 20);
        let bytes = text.queue_bytes.map_or(QUEUE_BYTES, |size| size.0);
        Ok(PluginSpec {
            about: text.about(),
            queue: (queue, usize::try_from(bytes).unwrap_or(usize::MAX)),
            text,
            base: base.to_owned(),
            name,
        })
    }

    /// Is it a log?
    pub fn is_log(&self) -> bool {
        self.text.kind == PluginKind::Log
    }

    /// The file that it writes to, if it is a log.
    pub fn log_file(&self) -> Option<PathBuf> {
        self.text.file.as_ref().map(|file| self.base.join(file))
    }

    /// Start it. `env` is for the programs that it runs.
    pub fn start(&self, env: &[(String, OsString)]) -> Result<Box<dyn Plugin>, Wrong> {
        let named = |error: String| Wrong(format!("plugin {}: {error}", self.name));
        self.start_it(env).map_err(named)
    }

    fn start_it(&self, env: &[(String, OsString)]) -> Result<Box<dyn Plugin>, String> {
        let text = &self.text;
        match text.kind {
            PluginKind::Log => match (self.log_file(), text.target) {
                (Some(path), _) => {
                    let rotation = Rotation {
                        size_max: text.max_size.map_or(LOG_SIZE, |size| size.0),
                        age_max: text.max_age_seconds.map(Duration::from_secs_f64),
                        keep: text.keep.unwrap_or(LOG_KEEP),
                    };
                    let log = Log::file(path.clone(), rotation);
                    let log =
                        log.map_err(|error| format!("cannot write {}: {error}", path.display()))?;
                    Ok(Box::new(log))
                }
                (None, Some(LogTarget::Journal)) => {
                    let log = Log::journal()
                        .map_err(|error| format!("there is no journal here: {error}"))?;
                    Ok(Box::new(log))
                }
                (None, _) => Ok(Box::new(Log::stderr())),
            },
            PluginKind::Command => {
                let mut env = env.to_vec();
                env.push(("WARMFS_PLUGIN".into(), self.name.clone().into()));
                let spec = command::Spec {
                    words: text.command.clone().unwrap_or_default(),
                    dir: self.base.clone(),
                    env,
                    ack: text.ack.unwrap_or(false),
                    window: self.queue,
                    parallel: text.parallel.unwrap_or(command::PARALLEL),
                    timeout: text
                        .timeout_seconds
                        .map_or(command::TIMEOUT, Duration::from_secs_f64),
                };
                match text.run.unwrap_or(RunText::Always) {
                    RunText::Always => {
                        command::Always::start(spec).map(|plugin| Box::new(plugin) as _)
                    }
                    RunText::Event => {
                        command::Runs::start(spec, 1).map(|plugin| Box::new(plugin) as _)
                    }
                    RunText::Batch => command::Runs::start(spec, command::BATCH)
                        .map(|plugin| Box::new(plugin) as _),
                }
            }
            PluginKind::Wasm => self.start_wasm(),
        }
    }

    #[cfg(feature = "wasm")]
    fn start_wasm(&self) -> Result<Box<dyn Plugin>, String> {
        let path = self
            .base
            .join(self.text.module.as_deref().unwrap_or(Path::new("")));
        let module = std::fs::read(&path)
            .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        let memory = self.text.memory.map_or(WASM_MEMORY, |size| size.0);
        let fuel = self.text.fuel.unwrap_or(WASM_FUEL);
        let module =
            super::wasm::Wasm::new(&module, usize::try_from(memory).unwrap_or(usize::MAX), fuel);
        let module = module.map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Box::new(module))
    }

    #[cfg(not(feature = "wasm"))]
    fn start_wasm(&self) -> Result<Box<dyn Plugin>, String> {
        Err("this warmfs was built without WASM; build it with: cargo build --features wasm".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, Wrong> {
        Config::parse(Some((text, Path::new("/etc/warmfs"))), &[], Path::new("/"))
    }

    fn rule(include: &[&str], exclude: &[&str]) -> Rule {
        let owned = |list: &[&str]| list.iter().map(|one| (*one).to_owned()).collect::<Vec<_>>();
        Rule::all(&[Kind::Read], 0)
            .on(&owned(include), &owned(exclude))
            .expect("valid")
    }

    #[test]
    fn patterns_are_those_of_gitignore() {
        let rule = rule(
            &["*.flac", "/albums/", "!demo.flac"],
            &["/albums/tmp/", "*.part"],
        );
        for (path, wanted) in [
            ("a.flac", true),
            ("deep/er/a.flac", true),
            ("albums/x.jpg", true),
            ("albums/tmp/x.jpg", false),
            ("other/albums/x.jpg", false),
            ("albums/x.part", false),
            ("a.mp3", false),
            ("demo.flac", false),
        ] {
            assert_eq!(rule.matches(Path::new(path)), wanted, "{path}");
        }
        assert!(super::tests::rule(&[], &[]).matches(Path::new("anything")));
    }

    #[test]
    fn a_sample_is_a_path_that_matches() {
        for (include, sample) in [
            (&["*.flac"][..], "sample.flac"),
            (&["/albums/"], "albums/sample.txt"),
            (&["a/**/b*"], "a/sample/bsample"),
            (&[], "sample.txt"),
        ] {
            let rule = rule(include, &[]);
            assert_eq!(rule.sample(), Path::new(sample));
            assert!(rule.matches(&rule.sample()), "{sample}");
        }
    }

    #[test]
    fn a_file_and_flags_make_one_configuration() {
        let text = r#"
            [[hook]]
            events = ["on_read"]
            data = "64K"
            full = "block"
            block_seconds = 0.5
            plugin = "a"
            [[hook]]
            events = ["on_write"]
            plugin = { type = "log", target = "stderr" }
            [plugin.a]
            type = "log"
            file = "a.jsonl"
        "#;
        let flag = r#"events=["on_error"], plugin={type="log", file="b.jsonl"}"#.to_owned();
        let file = Some((text, Path::new("/etc/warmfs")));
        let config = Config::parse(file, &[flag], Path::new("/home/me")).expect("valid");
        let names: Vec<&str> = config.plugins.iter().map(|plugin| &*plugin.name).collect();
        assert_eq!(names, ["a", "hook-2", "flag1-1"]);
        assert_eq!(
            config.plugins[0].log_file(),
            Some("/etc/warmfs/a.jsonl".into())
        );
        assert_eq!(
            config.plugins[2].log_file(),
            Some("/home/me/b.jsonl".into())
        );
        assert_eq!(config.rules[0].data_max, 65_536);
        assert_eq!(
            config.rules[0].full,
            Full::Block(Duration::from_millis(500))
        );
        assert_eq!(config.rules[2].plugin, 2);
    }

    #[test]
    fn mistakes_are_one_line_that_says_where() {
        let log = "plugin = { type = \"log\" }";
        for (text, part) in [
            (
                "[[hook]]\nevents = [\"on_reed\"]\nplugin = {type=\"log\"}",
                "on_reed",
            ),
            ("[[hook]]\nevents = []\nplugin = {type=\"log\"}", "on_read"),
            (
                "[[hook]]\nevents = [\"on_read\"]\nplugin = \"x\"",
                "[plugin.x]",
            ),
            (
                "[[hook]]\nevents = [\"on_read\"]\nblock_seconds = 1\nplugin = {type=\"log\"}",
                "block",
            ),
            (
                "[[hook]]\nevents = [\"on_read\"]\nfull = \"block\"\nblock_seconds = 1e9\nplugin = {type=\"log\"}",
                "at most 60",
            ),
            (
                "[[hook]]\nevents = [\"on_read\"]\nplugin = {type=\"log\", fil=\"f\"}",
                "unknown field `fil`",
            ),
            (
                "[[hook]]\nevents = [\"on_read\"]\nplugin = {type=\"logg\"}",
                "unknown variant `logg`",
            ),
            (
                "[[hook]]\nevents = [\"on_read\"]\nplugin = 1",
                "give the name",
            ),
            (
                "[[hook]]\nevents = [\"on_read\"]\ndata = \"64Q\"\nplugin = {type=\"log\"}",
                "like 64M",
            ),
            (
                "[[hook]]\nevents = [\"on_read\"]\ndata = -1\nplugin = {type=\"log\"}",
                "give bytes",
            ),
            (
                "[[hook]]\nevents = [\"on_read\"]\ninclude = [\"a[z-a]\"]\nplugin = {type=\"log\"}",
                "pattern 'a[z-a]'",
            ),
            ("[plugin.x]\ntype = \"log\"", "no [[hook]] uses [plugin.x]"),
            ("[plugin.x]\ntype = \"log\"\nfuel = 1", "fuel means nothing"),
            ("[plugin.x]\ntype = \"log\"\nkeep = 1", "needs a file"),
            ("[plugin.x]\ntype = \"command\"", "give command"),
            (
                "[plugin.x]\ntype = \"command\"\ncommand=[\"x\"]\nparallel = 2",
                "need run",
            ),
            ("[plugin.x]\ntype = \"wasm\"", "give module"),
            ("nonsense", "line 1"),
            ("[[hoook]]", "hoook"),
        ] {
            let Wrong(error) = parse(text).err().expect(text);
            assert!(
                error.contains(part) && !error.contains('\n'),
                "{text}: {error}"
            );
        }
        let Wrong(error) = Config::parse(None, &["events=[".into()], Path::new("/"))
            .err()
            .expect("wrong");
        assert!(error.contains("--hook 'events=['"), "{error}");
        assert!(
            Config::parse(
                None,
                &[format!("events=[\"on_read\"], {log}")],
                Path::new("/")
            )
            .is_ok()
        );
    }

    #[test]
    fn a_file_that_others_may_write_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("hooks.toml");
        std::fs::write(&path, "").expect("write");
        let chmod = |path: &Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("chmod");
        };
        for mode in [0o666, 0o620] {
            chmod(&path, mode);
            let Wrong(error) = Config::load(Some(&path), &[]).err().expect("refused");
            assert!(error.contains("chmod go-w"), "{error}");
        }
        chmod(&path, 0o644);
        assert!(Config::load(Some(&path), &[]).is_ok());
        chmod(dir.path(), 0o777);
        let Wrong(error) = Config::load(Some(&path), &[]).err().expect("refused");
        assert!(error.contains("its directory"), "{error}");
        chmod(dir.path(), 0o1777);
        assert!(Config::load(Some(&path), &[]).is_ok());
    }
}
