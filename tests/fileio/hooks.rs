//! Hooks of the streams.

use crate::support::World;
use bytes::Bytes;
use std::sync::{Arc, Mutex};
use warmfs::fileio::{Error, Event, Facts, VALID_EVENTS};

type Log = Arc<Mutex<Vec<(String, u64, Bytes, usize)>>>;

fn note(log: &Log, name: &str) -> impl Fn(&Facts, &Bytes, usize) + Send + Sync + 'static {
    let (log, name) = (log.clone(), name.to_owned());
    move |facts, data, count| {
        let entry = (name.clone(), facts.pos, data.clone(), count);
        log.lock().expect("not poisoned").push(entry);
    }
}

fn taken(log: &Log) -> Vec<(String, u64, Bytes, usize)> {
    std::mem::take(&mut *log.lock().expect("not poisoned"))
}

fn entry(name: &str, pos: u64, data: &'static str) -> (String, u64, Bytes, usize) {
    (
        name.to_owned(),
        pos,
        Bytes::from_static(data.as_bytes()),
        data.len(),
    )
}

#[test]
fn on_read_fires_on_a_miss_and_on_a_hit() {
    let w = World::new();
    let log = Log::default();
    let mut stream = w.reader(w.file("f", "ABCDEFGH"));
    stream
        .hook("on_read", note(&log, "read"))
        .expect("an event");
    stream.read(Some(4)).expect("a miss");
    assert_eq!(taken(&log), [entry("read", 0, "ABCD")]);
    stream.update_pos(1);
    stream.read(Some(2)).expect("a hit");
    assert_eq!(taken(&log), [entry("read", 1, "BC")]);
    stream.update_pos(8);
    stream.read(None).expect("the end");
    assert_eq!(taken(&log), [entry("read", 8, "")]);
}

#[test]
fn on_write_fires_with_what_is_in_the_file() {
    let w = World::new();
    let log = Log::default();
    let path = w.file("f", "ABCDEFGH");
    let mut stream = w.writer(&path);
    stream
        .hook("on_write", note(&log, "write"))
        .expect("an event");
    stream.update_pos(6);
    stream.write(b"xyz").expect("write");
    assert_eq!(taken(&log), [entry("write", 6, "xyz")]);
    let mut appending = w.builder(&path).mode("ab").build().expect("open");
    appending
        .hook("on_write", note(&log, "append"))
        .expect("an event");
    appending.update_pos(0);
    appending.write(b"!").expect("write");
    assert_eq!(taken(&log), [entry("append", 9, "!")]);
}

#[test]
fn read_and_write_hooks_are_independent() {
    let w = World::new();
    let log = Log::default();
    let mut stream = w
        .builder(w.file("f", "AB"))
        .mode("r+b")
        .hook("on_read", note(&log, "read"))
        .hook("on_write", note(&log, "write"))
        .build()
        .expect("open");
    stream.read(Some(1)).expect("read");
    assert_eq!(taken(&log), [entry("read", 0, "A")]);
    stream.write(b"x").expect("write");
    assert_eq!(taken(&log), [entry("write", 1, "x")]);
}

#[test]
fn several_hooks_fire_in_the_order_of_registration() {
    let w = World::new();
    let log = Log::default();
    let mut stream = w.reader(w.file("f", "AB"));
    for name in ["first", "second", "third"] {
        stream.hook("on_read", note(&log, name)).expect("an event");
    }
    stream.read(None).expect("read");
    let names: Vec<_> = taken(&log).into_iter().map(|entry| entry.0).collect();
    assert_eq!(names, ["first", "second", "third"]);
}

#[test]
fn a_hook_is_told_path_and_event() {
    let w = World::new();
    let path = w.file("f", "AB");
    let told = Arc::new(Mutex::new(None));
    let telling = told.clone();
    let mut stream = w.reader(&path);
    stream
        .hook("on_read", move |facts: &Facts, _: &Bytes, _| {
            *telling.lock().expect("not poisoned") = Some(facts.clone());
        })
        .expect("an event");
    stream.read(None).expect("read");
    let facts = told
        .lock()
        .expect("not poisoned")
        .clone()
        .expect("it was called");
    assert_eq!(
        (&*facts.path, facts.pos, facts.event),
        (path.as_path(), 0, Event::Read)
    );
}

/// The bytes of a hit are those of the slot, not a copy.
#[test]
fn a_hook_gets_the_bytes_without_a_copy() {
    let w = World::new();
    let log = Log::default();
    let mut stream = w.reader(w.file("f", "ABCD"));
    stream
        .hook("on_read", note(&log, "read"))
        .expect("an event");
    let first = stream.read(None).expect("read");
    stream.update_pos(0);
    let second = stream.read(None).expect("read");
    for (.., data, _) in taken(&log) {
        assert_eq!(data.as_ptr(), first.as_ptr());
        assert_eq!(data.as_ptr(), second.as_ptr());
    }
}

#[test]
fn an_unknown_event_names_the_valid_ones() {
    let w = World::new();
    let mut stream = w.reader(w.file("f", "AB"));
    let error = stream.hook("on_close", |_, _, _| ()).expect_err("unknown");
    assert_eq!(error, Error::UnknownEvent("on_close".to_owned()));
    for event in VALID_EVENTS {
        assert!(error.to_string().contains(event), "{error}");
        stream.hook(event, |_, _, _| ()).expect("valid");
    }
    assert_eq!(VALID_EVENTS, ["on_read", "on_write"]);
    assert!(
        w.builder(w.path("f"))
            .hook("read", |_, _, _| ())
            .build()
            .is_err()
    );
    assert!(stream.fire_hooks("on_open", &Bytes::new()).is_err());
}

#[test]
fn fire_hooks_calls_them_with_the_given_bytes() {
    let w = World::new();
    let log = Log::default();
    let mut stream = w.reader(w.file("f", "AB"));
    stream
        .hook("on_write", note(&log, "write"))
        .expect("an event");
    stream.update_pos(7);
    let data = Bytes::from_static(b"xyz");
    stream.fire_hooks("on_write", &data).expect("an event");
    stream.fire_hooks("on_read", &data).expect("an event");
    assert_eq!(taken(&log), [entry("write", 7, "xyz")]);
}

#[test]
fn a_hook_that_panics_is_reported_and_poisons_nothing() {
    let w = World::new();
    let log = Log::default();
    let mut stream = w.writer(w.file("f", "ABCD"));
    stream
        .hook("on_read", |_, _, _| panic!("of its own fault"))
        .expect("an event");
    stream
        .hook("on_read", note(&log, "next"))
        .expect("an event");
    stream
        .hook_async("on_read", |_, _, _| async { panic!("of its own fault") })
        .expect("an event");
    stream
        .hook("on_read", note(&log, "last"))
        .expect("an event");
    assert_eq!(stream.read(Some(2)).expect("read"), "AB");
    assert_eq!(stream.tell(), 2);
    assert_eq!(
        taken(&log),
        [entry("next", 0, "AB"), entry("last", 0, "AB")]
    );
    assert_eq!(stream.read(Some(2)).expect("read"), "CD");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let mut stream = warmfs::fileio::to_async_fileio_stream(stream);
    stream.update_pos(0);
    taken(&log);
    let bytes = runtime.block_on(stream.read(Some(2)));
    assert_eq!(bytes.expect("read"), "AB");
    assert_eq!(
        taken(&log),
        [entry("next", 0, "AB"), entry("last", 0, "AB")]
    );
}

#[test]
fn an_async_hook_of_a_synchronous_stream_runs_to_its_end_without_a_runtime() {
    let w = World::new();
    let log = Log::default();
    let mut stream = w.reader(w.file("f", "AB"));
    let noting = Arc::new(note(&log, "async"));
    stream
        .hook_async("on_read", move |facts, data, count| {
            let noting = noting.clone();
            async move {
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                noting(&facts, &data, count);
            }
        })
        .expect("an event");
    stream.read(None).expect("read");
    assert_eq!(taken(&log), [entry("async", 0, "AB")]);
}

#[test]
fn an_async_hook_of_a_synchronous_stream_is_spawned_on_the_running_runtime() {
    let w = World::new();
    let path = w.file("f", "AB");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
        let mut stream = w
            .builder(&path)
            .allow_in_async_context(true)
            .hook_async("on_read", move |_, data, _| {
                let sender = sender.clone();
                async move { sender.send(data).expect("the test waits") }
            })
            .build()
            .expect("open");
        stream.read(None).expect("read");
        assert!(receiver.try_recv().is_err(), "it has not run yet");
        assert_eq!(receiver.recv().await.expect("it runs"), "AB");
    });
}

#[tokio::test]
async fn mixed_hooks_of_an_asynchronous_stream_are_awaited_in_order() {
    let w = World::new();
    let log = Log::default();
    let mut stream = w
        .builder(w.file("f", "AB"))
        .mode("r+b")
        .build_async()
        .expect("open");
    for event in VALID_EVENTS {
        for round in 0..2 {
            stream
                .hook(event, note(&log, &format!("sync {round}")))
                .expect("an event");
            let noting = Arc::new(note(&log, &format!("async {round}")));
            stream
                .hook_async(event, move |facts, data, count| {
                    let noting = noting.clone();
                    async move {
                        tokio::task::yield_now().await;
                        noting(&facts, &data, count);
                    }
                })
                .expect("an event");
        }
    }
    let names = |log: &Log| -> Vec<_> { taken(log).into_iter().map(|entry| entry.0).collect() };
    let expected = ["sync 0", "async 0", "sync 1", "async 1"];
    stream.read(None).await.expect("a miss");
    assert_eq!(names(&log), expected);
    stream.update_pos(0);
    stream.read(None).await.expect("a hit");
    assert_eq!(names(&log), expected);
    stream.write(b"x").await.expect("write");
    assert_eq!(names(&log), expected);
    stream
        .fire_hooks_async("on_read", &Bytes::from_static(b"y"))
        .await
        .expect("an event");
    assert_eq!(names(&log), expected);
}
