//! Rules, queues and plugins together, without a mount; and what the tests of the plugins share.

use super::*;
use crate::span::Span;
use bytes::Bytes;
use parking_lot::{Condvar, Mutex, MutexGuard};

/// Writes down what plugins ask for.
#[derive(Default)]
pub(super) struct Actions(Mutex<Vec<String>>, Condvar);

impl Actions {
    pub(super) fn lock(&self) -> MutexGuard<'_, Vec<String>> {
        self.0.lock()
    }

    pub(super) fn wait_for(&self, count: usize) {
        let mut done = self.0.lock();
        while done.len() < count {
            let late = self
                .1
                .wait_for(&mut done, Duration::from_secs(60))
                .timed_out();
            assert!(!late, "{done:?}");
        }
    }
}

impl Act for Actions {
    fn act(&self, action: &Action, _: Box<dyn FnOnce(String) + Send>) {
        self.0.lock().push(action.to_string());
        self.1.notify_all();
    }
}

pub(super) fn host() -> Host {
    acted().0
}

pub(super) fn acted() -> (Host, Arc<Actions>) {
    let actions = Arc::new(Actions::default());
    (Host::new("test", actions.clone()), actions)
}

/// Hooks with one closure as plugin for each rule, and what they saw: number, gap, path, data.
type Seen = Arc<Mutex<Vec<(u64, u64, String, Option<Bytes>)>>>;

fn hooks(rules: Vec<Rule>) -> (Hooks, Vec<Seen>) {
    let mut plugins = Vec::new();
    let mut seen = Vec::new();
    for number in 0..=rules.iter().map(|rule| rule.plugin).max().unwrap_or(0) {
        let list = Seen::default();
        let writing = list.clone();
        let plugin = move |delivery: &Delivery, _: &Host| {
            let path = delivery.event.path.display().to_string();
            writing.lock().push((
                delivery.seq,
                delivery.lost,
                path,
                delivery.event.data.clone(),
            ));
        };
        plugins.push((
            format!("p{number}"),
            Box::new(plugin) as Box<dyn Plugin>,
            (1000, 1 << 20),
        ));
        seen.push(list);
    }
    let act: Arc<dyn Act> = Arc::new(Actions::default());
    (
        Hooks::start(Setup { rules, plugins }, &act).expect("starts"),
        seen,
    )
}

fn on(include: &str, kinds: &[Kind], plugin: usize) -> Rule {
    Rule::all(kinds, plugin)
        .on(&[include.into()], &[])
        .expect("valid")
}

fn read(hooks: &Hooks, path: &str) {
    let watch = hooks.watch(Path::new(path)).expect("watched");
    let mut event = Event::new(Kind::Read, Path::new(path));
    event.span = Some(Span::new(0, 5));
    event.data = Some(Bytes::from_static(b"hello"));
    assert!(hooks.moved(&watch, event).is_none());
}

#[test]
fn each_plugin_gets_what_its_rules_name() {
    let mut with_data = on("*.txt", &[Kind::Read], 0);
    with_data.data_max = 2;
    let rules = vec![
        with_data,
        on("a*", &[Kind::Read], 0),
        on("*", &[Kind::Write], 1),
    ];
    let (hooks, seen) = hooks(rules);
    assert!(hooks.watch(Path::new("x/b.txt")).expect("watched").reads());
    assert!(hooks.wants(Kind::Read) && !hooks.wants(Kind::Evict));
    read(&hooks, "b.txt");
    read(&hooks, "a.txt");
    read(&hooks, "a.jpg");
    hooks.stop(Duration::from_secs(60));
    let told = |seq, path: &str, data: Option<&'static [u8]>| {
        (seq, 0, path.to_owned(), data.map(Bytes::from_static))
    };
    let expected = [
        told(1, "b.txt", Some(b"he")),
        // Both rules name it: it comes once, as the first has it.
        told(2, "a.txt", Some(b"he")),
        told(3, "a.jpg", None),
    ];
    assert_eq!(*seen[0].lock(), expected);
    assert_eq!(*seen[1].lock(), []);
}

#[test]
fn a_rename_concerns_both_names() {
    let (hooks, seen) = hooks(vec![on("in/", &[Kind::Rename], 0)]);
    for (from, to) in [
        ("in/a", "out/a"),
        ("out/b", "in/b"),
        ("out/c", "out/d"),
        ("in/e", "in/f"),
    ] {
        let mut event = Event::new(Kind::Rename, Path::new(from));
        event.to = Some(Path::new(to).into());
        hooks.tell_now(event);
    }
    hooks.stop(Duration::from_secs(60));
    let paths: Vec<String> = seen[0].lock().iter().map(|seen| seen.2.clone()).collect();
    assert_eq!(paths, ["in/a", "out/b", "in/e"]);
}

#[test]
fn a_plugin_that_panics_is_disabled_and_the_rest_goes_on() {
    let act: Arc<dyn Act> = Arc::new(Actions::default());
    let panics = |_: &Delivery, _: &Host| panic!("a bug");
    let good = Seen::default();
    let writing = good.clone();
    let works = move |delivery: &Delivery, _: &Host| {
        writing
            .lock()
            .push((delivery.seq, delivery.lost, String::new(), None));
    };
    let rules = vec![Rule::all(&[Kind::Open], 0), Rule::all(&[Kind::Open], 1)];
    let plugins: Vec<Ready> = vec![
        ("panics".into(), Box::new(panics), (10, 10)),
        ("works".into(), Box::new(works), (10, 10)),
    ];
    let hooks = Hooks::start(Setup { rules, plugins }, &act).expect("starts");
    for _ in 0..5 {
        hooks.tell_now(Event::new(Kind::Open, Path::new("f")));
    }
    hooks.stop(Duration::from_secs(60));
    assert_eq!(good.lock().len(), 5);
}

/// The whole way, with a queue that is much too small: what comes out and what is counted as lost are all there is.
#[test]
fn with_block_nothing_is_lost_and_with_drop_all_is_counted() {
    for full in [Full::Block(Duration::from_secs(60)), Full::Drop] {
        let sums = Arc::new(Mutex::new((0_u64, 0_u64, 0_u64)));
        let counting = sums.clone();
        let plugin = move |delivery: &Delivery, _: &Host| {
            let mut sums = counting.lock();
            assert_eq!(delivery.seq, sums.2 + delivery.lost + 1);
            *sums = (sums.0 + 1, sums.1 + delivery.lost, delivery.seq);
        };
        let act: Arc<dyn Act> = Arc::new(Actions::default());
        let mut rule = Rule::all(&[Kind::Write], 0);
        rule.full = full;
        let plugins: Vec<Ready> = vec![("counts".into(), Box::new(plugin), (16, 1 << 20))];
        let hooks = Hooks::start(
            Setup {
                rules: vec![rule],
                plugins,
            },
            &act,
        )
        .expect("starts");
        std::thread::scope(|scope| {
            for file in ["a", "b", "c", "d"] {
                let hooks = &hooks;
                scope.spawn(move || {
                    let watch = hooks.watch(Path::new(file)).expect("watched");
                    for _ in 0..20_000 {
                        if let Some(blocked) =
                            hooks.moved(&watch, Event::new(Kind::Write, Path::new(file)))
                        {
                            blocked.wait();
                        }
                    }
                });
            }
        });
        hooks.stop(Duration::from_secs(60));
        let (delivered, lost, _) = *sums.lock();
        let counts = hooks.reports()[0].counts;
        assert_eq!(counts.offered, 80_000);
        assert_eq!(counts.delivered, delivered);
        assert_eq!(counts.delivered + counts.lost, counts.offered);
        assert!(lost <= counts.lost, "the last gap has no event behind it");
        if full != Full::Drop {
            assert_eq!(counts.lost, 0);
        }
    }
}
