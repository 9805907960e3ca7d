//! The asynchronous stream: what it gives at once, what it waits for elsewhere, and futures that are dropped.

use crate::support::{World, on_disk};
use nix::errno::Errno;
use std::future::Future;
use std::io::SeekFrom;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};
use warmfs::backing::Call;
use warmfs::fileio::{AsyncFileIoStream, Error};

/// Poll once, without a runtime to go on.
fn poll_once<F: Future>(future: F) -> Option<F::Output> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}

impl World {
    fn task(&self, name: &str, mode: &str) -> AsyncFileIoStream {
        let builder = self.builder(self.path(name)).mode(mode);
        builder.build_async().expect("the file opens")
    }
}

#[tokio::test]
async fn the_operations_are_those_of_the_synchronous_stream() {
    let w = World::new();
    w.file("f", "ABCDEFGH");
    let mut stream = AsyncFileIoStream::builder(w.path("f"))
        .cache(w.cache.clone())
        .mode("r+b")
        .build_async()
        .expect("a stream");
    assert!(matches!(stream.read(None).await, Err(Error::Closed(_))));
    assert!(matches!(stream.write(b"x").await, Err(Error::Closed(_))));
    stream.async_open().await.expect("open");
    stream
        .async_open()
        .await
        .expect("open again changes nothing");
    assert_eq!(stream.read(Some(4)).await.expect("read"), "ABCD");
    assert_eq!(stream.tell(), 4);
    assert_eq!(stream.write(b"xy").await.expect("write"), 2);
    assert_eq!(stream.read(None).await.expect("read"), "GH");
    stream.seek(SeekFrom::Start(3)).expect("seek");
    assert_eq!(stream.read(None).await.expect("read"), "DxyGH");
    assert!(!stream.is_modified().expect("stat"));
    stream.truncate(2).await.expect("truncate");
    stream.sync().await.expect("sync");
    assert_eq!(on_disk(&w.path("f")), "AB");
    stream.close().await.expect("close");
    assert!(!stream.is_open());
    assert!(matches!(stream.read(None).await, Err(Error::Closed(_))));
}

#[tokio::test]
async fn an_async_write_is_warm() {
    let w = World::new();
    let mut stream = w.task("f", "w+b");
    stream.write(b"new content").await.expect("write");
    stream.update_pos(0);
    let fetched = w.cache.stats().fetched_bytes.get();
    assert_eq!(stream.read(Some(11)).await.expect("read"), "new content");
    assert_eq!(w.cache.stats().fetched_bytes.get(), fetched);
}

/// There is no runtime here: a hit that left the task would be an error.
#[test]
fn a_hit_never_leaves_the_task() {
    for ttl in [Duration::from_secs(1), Duration::ZERO] {
        let w = World::with(1 << 20, ttl);
        w.file("f", "ABCDEFGH");
        w.reader(w.path("f")).read(None).expect("read");
        let mut stream = w.task("f", "rb");
        for expected in ["ABC", "DEF", "GH", ""] {
            let polled = poll_once(stream.read(Some(3))).expect("ready at once");
            assert_eq!(polled.expect("read"), expected);
        }
    }
}

#[test]
fn a_miss_without_a_runtime_says_so() {
    let w = World::new();
    w.file("f", "ABC");
    let mut stream = w.task("f", "rb");
    let polled = poll_once(stream.read(None)).expect("ready at once");
    assert!(matches!(polled, Err(Error::NoRuntime(_))));
}

#[tokio::test]
async fn a_miss_never_blocks_the_runtime() {
    let w = Arc::new(World::new());
    w.file("f", "ABC");
    w.gate.hold(Call::Read);
    let mut stream = w.task("f", "rb");
    let reading = tokio::spawn(async move { stream.read(None).await });
    // The only thread of the runtime goes on while the read hangs, or this would be the end.
    let other = w.clone();
    tokio::spawn(async move { other.gate.release() });
    assert_eq!(reading.await.expect("no panic").expect("read"), "ABC");
}

#[tokio::test]
async fn a_read_that_is_dropped_has_not_moved_the_position() {
    let w = World::new();
    w.file("f", "ABCDEFGH");
    let mut stream = w.task("f", "rb");
    stream.seek(SeekFrom::Start(2)).expect("seek");
    w.gate.hold(Call::Read);
    tokio::select! {
        biased;
        _ = stream.read(Some(4)) => panic!("it hangs"),
        () = tokio::task::yield_now() => {}
    }
    assert_eq!(stream.tell(), 2);
    // Another read does not wait for it to be of use; that of the same bytes joins it.
    stream.update_pos(0);
    tokio::select! {
        biased;
        _ = stream.read(Some(1)) => panic!("it hangs, too"),
        () = tokio::task::yield_now() => {}
    }
    w.gate.release();
    stream.update_pos(2);
    assert_eq!(stream.read(Some(4)).await.expect("read"), "CDEF");
    assert_eq!(stream.tell(), 6);
}

/// Found by the random histories: what a dropped read had brought was given to the next one, after a write.
#[tokio::test]
async fn a_read_after_a_dropped_one_sees_what_was_written_in_between() {
    for through_the_trait in [false, true] {
        let w = World::new();
        let path = w.file("f", "ABCD");
        let mut stream = w.task("f", "rb");
        let mut buffer = [0; 4];
        // Held, so that it cannot have ended by the time of its first poll.
        w.gate.hold(Call::Read);
        tokio::select! {
            biased;
            _ = async {
                if through_the_trait {
                    AsyncReadExt::read(&mut stream, &mut buffer).await.map(drop).map_err(drop)
                } else {
                    stream.read(Some(4)).await.map(drop).map_err(drop)
                }
            } => panic!("it leaves the task"),
            () = std::future::ready(()) => {}
        }
        w.gate.release();
        // It has brought its bytes before the write begins: this read joins it, or finds what it left.
        let mut other = w.task("f", "rb");
        assert_eq!(other.read(Some(4)).await.expect("read"), "ABCD");
        let writing = path.clone();
        let cache = w.cache.clone();
        let write = move || {
            let builder = warmfs::fileio::FileIoStream::builder(writing)
                .mode("r+b")
                .cache(cache);
            let builder = builder.open_now(true).allow_in_async_context(true);
            builder
                .build()
                .expect("open")
                .write(b"abcd")
                .expect("write");
        };
        tokio::task::spawn_blocking(write).await.expect("no panic");
        let count = AsyncReadExt::read(&mut stream, &mut buffer)
            .await
            .expect("read");
        assert_eq!(&buffer[..count], b"abcd");
    }
}

/// With async hooks even a hit has something to wait for.
#[tokio::test]
async fn a_read_whose_hook_was_dropped_has_not_moved_the_position() {
    let w = World::new();
    w.file("f", "ABCD");
    let (calls, gate) = (
        Arc::new(AtomicUsize::new(0)),
        Arc::new(tokio::sync::Notify::new()),
    );
    let mut stream = w.task("f", "rb");
    stream.read(None).await.expect("read");
    stream.update_pos(0);
    let (calling, waiting) = (calls.clone(), gate.clone());
    stream
        .hook_async("on_read", move |_, _, _| {
            let (calls, gate) = (calling.clone(), waiting.clone());
            async move {
                calls.fetch_add(1, Ordering::SeqCst);
                gate.notified().await;
            }
        })
        .expect("an event");
    tokio::select! {
        biased;
        _ = stream.read(Some(4)) => panic!("its hook hangs"),
        () = std::future::ready(()) => {}
    }
    assert_eq!((stream.tell(), calls.load(Ordering::SeqCst)), (0, 1));
    gate.notify_one();
    assert_eq!(stream.read(Some(4)).await.expect("read"), "ABCD");
    assert_eq!(stream.tell(), 4);
}

#[tokio::test]
async fn a_write_that_is_dropped_ends_before_the_next_operation() {
    let w = World::new();
    let path = w.file("f", "ABCDEFGH");
    let mut stream = w.task("f", "r+b");
    stream.read(None).await.expect("read");
    stream.update_pos(2);
    w.gate.hold(Call::Write);
    tokio::select! {
        biased;
        _ = stream.write(b"xyz") => panic!("it hangs"),
        () = tokio::task::yield_now() => {}
    }
    assert_eq!(stream.tell(), 2);
    w.gate.release();
    assert_eq!(stream.read(Some(2)).await.expect("read"), "FG");
    assert_eq!(on_disk(&path), "ABxyzFGH");
    stream.update_pos(0);
    assert_eq!(stream.read(None).await.expect("read"), "ABxyzFGH");
}

#[tokio::test]
async fn a_position_that_was_set_after_a_dropped_write_stays() {
    let w = World::new();
    w.file("f", "ABCDEFGH");
    let mut stream = w.task("f", "r+b");
    w.gate.hold(Call::Write);
    tokio::select! {
        biased;
        _ = stream.write(b"xyz") => panic!("it hangs"),
        () = tokio::task::yield_now() => {}
    }
    stream.update_pos(1);
    w.gate.release();
    assert_eq!(stream.read(Some(3)).await.expect("read"), "yzD");
}

#[tokio::test]
async fn a_write_that_was_never_polled_has_not_happened() {
    let w = World::new();
    let path = w.file("f", "ABC");
    let mut stream = w.task("f", "r+b");
    drop(stream.write(b"x"));
    assert_eq!(stream.read(None).await.expect("read"), "ABC");
    assert_eq!(on_disk(&path), "ABC");
}

#[tokio::test]
async fn an_error_of_a_dropped_write_is_reported_by_the_next_one() {
    let w = World::new();
    w.file("f", "ABC");
    let mut stream = w.task("f", "r+b");
    w.gate.hold(Call::Write);
    w.gate.fail(Some(Call::Write), Errno::ENOSPC);
    tokio::select! {
        biased;
        _ = stream.write(b"x") => panic!("it hangs"),
        () = tokio::task::yield_now() => {}
    }
    w.gate.release();
    assert_eq!(stream.read(Some(1)).await.expect("reads go on"), "A");
    w.gate.recover();
    let error = stream.write(b"y").await.expect_err("of the one before");
    assert_eq!(error.errno(), Errno::ENOSPC);
    assert_eq!(stream.write(b"y").await.expect("write"), 1);
    assert_eq!(on_disk(&w.path("f")), "AyC");
}

#[tokio::test]
async fn a_failed_write_is_an_error_and_moves_nothing() {
    let w = World::new();
    w.file("f", "ABC");
    let mut stream = w.task("f", "r+b");
    w.gate.fail(Some(Call::Write), Errno::EDQUOT);
    let error = stream.write(b"x").await.expect_err("it fails");
    assert_eq!(error.errno(), Errno::EDQUOT);
    assert_eq!(stream.tell(), 0);
    w.gate.recover();
    stream.close().await.expect("the error was told already");
}

#[tokio::test]
async fn tokio_reads_writes_and_seeks_through_a_stream() {
    let w = World::new();
    let content: Vec<u8> = (0..300_000_u32).map(|n| (n % 249) as u8).collect();
    w.file("from", &content);
    let (mut from, mut to) = (w.task("from", "rb"), w.task("to", "w+b"));
    let copied = tokio::io::copy(&mut from, &mut to).await.expect("copy");
    assert_eq!(copied, content.len() as u64);
    to.flush().await.expect("flush");
    assert!(on_disk(&w.path("to")) == content);
    assert_eq!(
        AsyncSeekExt::seek(&mut to, SeekFrom::End(-5))
            .await
            .expect("seek"),
        299_995
    );
    let mut tail = Vec::new();
    to.read_to_end(&mut tail).await.expect("read");
    assert_eq!(tail, &content[299_995..]);
    AsyncSeekExt::seek(&mut to, SeekFrom::Start(0))
        .await
        .expect("seek");
    AsyncSeekExt::seek(&mut to, SeekFrom::Current(-1))
        .await
        .expect_err("before the start");
    to.write_all(b"start").await.expect("write");
    let mut next = [0; 3];
    to.read_exact(&mut next)
        .await
        .expect("what was written comes first");
    assert_eq!(next, content[5..8]);
    assert_eq!(&on_disk(&w.path("to"))[..5], b"start");
    to.shutdown().await.expect("shutdown");
}

/// As with tokio's own files, the bytes are taken, and the error comes with the flush.
#[tokio::test]
async fn an_error_of_an_async_write_is_reported_by_the_flush() {
    let w = World::new();
    let mut stream = w.task("f", "wb");
    w.gate.fail(Some(Call::Write), Errno::ENOSPC);
    AsyncWriteExt::write_all(&mut stream, b"x")
        .await
        .expect("taken");
    let error = stream.flush().await.expect_err("it failed");
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    stream.flush().await.expect("told once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_tasks_see_each_others_writes() {
    let w = Arc::new(World::new());
    w.file("f", vec![0; 64 * 512]);
    let tasks: Vec<_> = (0..16_u64)
        .map(|n| {
            let w = w.clone();
            tokio::spawn(async move {
                let mut stream = w.task("f", "r+b");
                for round in 1..=20_u8 {
                    stream.update_pos(n * 2048);
                    stream.write(&[round; 2048]).await.expect("write");
                    let mut other = w.task("f", "rb");
                    other.update_pos(n * 2048);
                    let seen = other.read(Some(2048)).await.expect("read");
                    assert!(
                        seen.iter().all(|&byte| byte == round),
                        "task {n}, round {round}"
                    );
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("no panic");
    }
    w.cache.assert_invariants();
    assert_eq!(on_disk(&w.path("f")), vec![20; 64 * 512]);
}

#[tokio::test]
async fn a_stream_may_be_dropped_while_it_writes() {
    let w = World::new();
    let path = w.file("f", "ABC");
    let mut stream = w.task("f", "r+b");
    w.gate.hold(Call::Write);
    tokio::select! {
        biased;
        _ = stream.write(b"xyz") => panic!("it hangs"),
        () = tokio::task::yield_now() => {}
    }
    drop(stream);
    w.gate.release();
    // The write that was begun goes on by itself; the next reader waits for nothing, and sees one or the other.
    let mut reader = w.task("f", "rb");
    while reader.read(None).await.expect("read") != "xyz" {
        reader.update_pos(0);
        tokio::task::yield_now().await;
    }
    assert_eq!(on_disk(&path), "xyz");
}
