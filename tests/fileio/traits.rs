//! The traits that make other libraries work on a stream.

use crate::support::{World, on_disk};
use std::io::{BufRead, BufReader, BufWriter, Cursor, Read, Seek, SeekFrom, Write};
use std::sync::{Arc, Mutex};

#[test]
fn std_copies_and_buffers_through_a_stream() {
    let w = World::new();
    let text: String = (0..20_000).map(|n| format!("line {n}\n")).collect();
    let (from, to) = (w.file("from", &text), w.path("to"));
    let mut copy = w.builder(&to).mode("wb").build().expect("open");
    std::io::copy(&mut w.reader(&from), &mut copy).expect("copy");
    assert_eq!(on_disk(&to), text);
    let lines = BufReader::new(w.reader(&to)).lines();
    assert!(lines.map(|line| line.expect("utf-8")).eq(text.lines()));
    let mut writer = BufWriter::new(w.builder(w.path("third")).mode("wb").build().expect("open"));
    writer.write_all(text.as_bytes()).expect("write");
    writer.flush().expect("flush");
    assert_eq!(on_disk(&w.path("third")), text);
}

/// The window that is lent ends at a fixed place: a window of fixed length would miss a little at each line.
#[test]
fn a_stream_is_a_buffered_reader_itself() {
    let w = World::new();
    let text: String = (0..20_000).map(|n| format!("line {n}\n")).collect();
    let path = w.file("f", &text);
    let read = Arc::new(Mutex::new(Vec::new()));
    let reading = read.clone();
    let mut stream = w.reader(&path);
    stream
        .hook("on_read", move |facts: &_, data: &bytes::Bytes, _| {
            let facts: &warmfs::fileio::Facts = facts;
            let mut read = reading.lock().expect("not poisoned");
            assert_eq!(facts.pos, read.len() as u64);
            read.extend_from_slice(data);
        })
        .expect("an event");
    let misses = w.cache.stats().misses.get();
    let mut line = String::new();
    let mut lines = Vec::new();
    while stream.read_line(&mut line).expect("utf-8") > 0 {
        lines.push(std::mem::take(&mut line));
    }
    assert_eq!(lines.concat(), text);
    assert_eq!(stream.tell(), text.len() as u64);
    assert_eq!(*read.lock().expect("not poisoned"), text.as_bytes());
    let windows = text.len().div_ceil(64 << 10) as u64;
    assert!(w.cache.stats().misses.get() - misses <= windows + 1);
}

#[test]
fn what_a_buffered_reader_lends_is_current() {
    let w = World::new();
    let path = w.file("f", "one\ntwo\n");
    let mut stream = w.reader(&path);
    let mut line = String::new();
    stream.read_line(&mut line).expect("utf-8");
    let mut writer = w.writer(&path);
    writer.update_pos(4);
    writer.write(b"TWO").expect("write");
    line.clear();
    stream.read_line(&mut line).expect("utf-8");
    assert_eq!(line, "TWO\n");
}

#[test]
fn reads_into_a_buffer_cross_slots() {
    let w = World::new();
    let mut stream = w.reader(w.file("f", "0123456789"));
    for _ in 0..5 {
        stream.read(Some(2)).expect("read");
    }
    let mut buffer = [0; 7];
    Seek::seek(&mut stream, SeekFrom::Start(1)).expect("seek");
    stream.read_exact(&mut buffer).expect("read");
    assert_eq!(&buffer, b"1234567");
    stream.read_exact(&mut buffer).expect_err("two are left");
}

#[test]
fn errors_keep_their_code_in_io_errors() {
    let w = World::new();
    w.file("f", "x");
    let mut stream = w.reader(w.path("f"));
    let error = Write::write(&mut stream, b"y").expect_err("read only");
    assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
    assert!(
        error.to_string().contains("opened for reading only"),
        "{error}"
    );
    w.gate.fail(None, nix::errno::Errno::ENOSPC);
    let error = Read::read(&mut stream, &mut [0; 4]).expect_err("it fails");
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
}

#[test]
fn a_zip_archive_is_written_and_read_through_streams() {
    let w = World::new();
    let path = w.path("archive.zip");
    let stream = w.builder(&path).mode("w+b").build().expect("open");
    let mut zip = zip::ZipWriter::new(stream);
    let options = zip::write::SimpleFileOptions::default();
    for n in 0..10 {
        zip.start_file(format!("file {n}"), options).expect("start");
        zip.write_all(format!("content {n} ").repeat(1000).as_bytes())
            .expect("write");
    }
    zip.finish().expect("finish");
    let mut zip = zip::ZipArchive::new(w.reader(&path)).expect("an archive");
    let mut text = String::new();
    zip.by_name("file 7")
        .expect("there")
        .read_to_string(&mut text)
        .expect("utf-8");
    assert_eq!(text, "content 7 ".repeat(1000));
}

#[test]
fn an_image_is_written_and_read_through_streams() {
    let w = World::new();
    let path = w.path("image.png");
    let image = image::RgbImage::from_fn(64, 48, |x, y| image::Rgb([x as u8, y as u8, 7]));
    let mut stream = w.builder(&path).mode("w+b").build().expect("open");
    image
        .write_to(&mut stream, image::ImageFormat::Png)
        .expect("encode");
    let reader = image::ImageReader::new(w.reader(&path))
        .with_guessed_format()
        .expect("png");
    assert_eq!(reader.decode().expect("decode").into_rgb8(), image);
    let plain = image::load(Cursor::new(on_disk(&path)), image::ImageFormat::Png).expect("decode");
    assert_eq!(plain.into_rgb8(), image);
}
