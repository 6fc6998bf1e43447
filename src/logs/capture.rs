//! Reads a plugin's output until its end. It is drained always, also when nobody keeps the lines: a full pipe
//! would stop the plugin.

use std::{cell::RefCell, os::fd::OwnedFd, sync::Arc};

use enclave_protocol::control::LogStream;
use tokio::{net::unix::pipe, task::JoinSet};

use super::ring::{Line, Rings};
use crate::clock;

/// Longest record, in bytes; a longer line goes on in the next record.
pub const LINE_MAX: usize = 16 << 10;
/// Bytes read at once: a pipe holds 64 KiB, and one wake-up should empty a good part of it.
const CHUNK: usize = 16 << 10;
/// Streams of earlier runs that may stay open, held by processes that outlived them.
const STREAMS_MAX: usize = 16;

thread_local! {
    static CHUNK_BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; CHUNK]);
}

/// The output streams of one plugin, of all its runs.
#[derive(Debug)]
pub struct Capture {
    rings: Arc<Rings>,
    source: Arc<str>,
    keep: bool,
    streams: JoinSet<()>,
}

impl Capture {
    /// Captures for `source`. Without `keep` everything is read and forgotten.
    pub fn new(rings: Arc<Rings>, source: &str, keep: bool) -> Self {
        Self { rings, source: source.into(), keep, streams: JoinSet::new() }
    }

    /// Reads `pipe` until its end.
    pub fn add(&mut self, pipe: OwnedFd, stream: LogStream) -> std::io::Result<()> {
        let receiver = pipe::Receiver::from_owned_fd(pipe)?;
        while self.streams.try_join_next().is_some() {}
        if self.streams.len() >= STREAMS_MAX {
            self.streams.abort_all();
        }
        let keep = self.keep.then(|| Arc::clone(&self.rings));
        self.streams.spawn(read(receiver, keep, Arc::clone(&self.source), stream));
        Ok(())
    }

    /// Waits until every stream has ended.
    pub async fn ended(&mut self) {
        while self.streams.join_next().await.is_some() {}
    }
}

async fn read(pipe: pipe::Receiver, rings: Option<Arc<Rings>>, source: Arc<str>, stream: LogStream) {
    let mut splitter = Splitter::default();
    loop {
        // The buffer belongs to the thread: an idle stream holds none. `readable` first, then one read.
        if pipe.readable().await.is_err() {
            return;
        }
        let got = CHUNK_BUFFER.with_borrow_mut(|buffer| {
            let got = pipe.try_read(buffer);
            if let (Ok(count), Some(rings)) = (&got, &rings) {
                splitter.push(&buffer[..*count], |bytes, partial| {
                    rings.push(&Line { source: &source, stream, bytes, partial, time: clock::wall() });
                });
            }
            got
        });
        match got {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => break,
        }
        // Fair to the other tasks of this thread, however fast the plugin writes.
        tokio::task::yield_now().await;
    }
    if let Some(rings) = rings {
        splitter.end(|bytes, partial| {
            rings.push(&Line { source: &source, stream, bytes, partial, time: clock::wall() });
        });
    }
}

/// Splits bytes into lines of at most [`LINE_MAX`] bytes.
#[derive(Debug, Default)]
struct Splitter {
    begun: Vec<u8>,
}

impl Splitter {
    /// Takes bytes; `line(bytes, partial)` for every line that is complete or full.
    fn push(&mut self, mut bytes: &[u8], mut line: impl FnMut(&[u8], bool)) {
        while !bytes.is_empty() {
            let room = LINE_MAX - self.begun.len();
            let newline = bytes.iter().take(room + 1).position(|byte| *byte == b'\n');
            let (part, rest, ended) = match newline {
                Some(at) => (&bytes[..at], &bytes[at + 1..], Some(false)),
                None if bytes.len() > room => (&bytes[..room], &bytes[room..], Some(true)),
                None => (bytes, &[][..], None),
            };
            bytes = rest;
            match ended {
                None => self.begun.extend_from_slice(part),
                Some(partial) if self.begun.is_empty() => line(part, partial),
                Some(partial) => {
                    self.begun.extend_from_slice(part);
                    line(&self.begun, partial);
                    self.begun = Vec::new();
                }
            }
        }
    }

    /// The stream has ended: what is left is a line without its newline.
    fn end(&mut self, mut line: impl FnMut(&[u8], bool)) {
        if !self.begun.is_empty() {
            line(&self.begun, false);
            self.begun = Vec::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use proptest::prelude::*;

    use super::*;

    fn split(chunks: &[&[u8]]) -> Vec<(Vec<u8>, bool)> {
        let mut splitter = Splitter::default();
        let mut lines = Vec::new();
        for chunk in chunks {
            splitter.push(chunk, |bytes, partial| lines.push((bytes.to_vec(), partial)));
        }
        splitter.end(|bytes, partial| lines.push((bytes.to_vec(), partial)));
        lines
    }

    #[test]
    fn lines_are_split_at_newlines_wherever_the_reads_end() {
        let lines = split(&[b"one\ntw", b"o\n", b"\nlast"]);
        let texts: Vec<&[u8]> = lines.iter().map(|(line, _)| line.as_slice()).collect();
        assert_eq!(texts, [&b"one"[..], b"two", b"", b"last"]);
    }

    #[test]
    fn a_line_too_long_is_cut_and_marked_partial() {
        let long = vec![b'x'; LINE_MAX * 2 + 5];
        let lines = split(&[&long, b"\n"]);
        let shape: Vec<(usize, bool)> = lines.iter().map(|(line, partial)| (line.len(), *partial)).collect();
        assert_eq!(shape, [(LINE_MAX, true), (LINE_MAX, true), (5, false)]);
        let exact = vec![b'x'; LINE_MAX];
        assert_eq!(split(&[&exact, b"\n"]), [(exact.clone(), false)]);
    }

    proptest! {
        #[test]
        fn no_byte_is_lost_however_the_stream_is_cut(
            bytes in prop::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..5000),
            size in 1usize..700,
        ) {
            let chunks: Vec<&[u8]> = bytes.chunks(size).collect();
            let mut joined = Vec::new();
            for (line, partial) in split(&chunks) {
                prop_assert!(line.len() <= LINE_MAX);
                joined.extend_from_slice(&line);
                if !partial {
                    joined.push(b'\n');
                }
            }
            let mut expected = bytes.clone();
            if expected.last().is_some_and(|last| *last != b'\n') {
                expected.push(b'\n');
            }
            prop_assert_eq!(joined, expected);
        }
    }

    #[tokio::test]
    async fn output_is_drained_to_its_end_also_when_nothing_is_kept() {
        for keep in [true, false] {
            let rings = Arc::new(Rings::new());
            let mut capture = Capture::new(Arc::clone(&rings), "p", keep);
            let (reader, mut writer) = std::io::pipe().unwrap();
            capture.add(reader.into(), LogStream::Stderr).unwrap();
            let text = vec![b'a'; 300_000];
            let write = tokio::task::spawn_blocking(move || {
                writer.write_all(b"first\n").unwrap();
                writer.write_all(&text).unwrap();
            });
            capture.ended().await;
            write.await.unwrap();
            let total = rings.totals().get("p").map_or(0, |totals| totals.bytes);
            assert_eq!(total, if keep { 300_005 } else { 0 });
        }
    }
}
