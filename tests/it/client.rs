//! The host's side of the control API: plain blocking HTTP/1.1 over the hybrid socket.

use std::{
    io::{BufRead, BufReader, Read, Write},
    marker::PhantomData,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use enclave_protocol::{
    control::{CONTROL_PORT, Event, LogRecord, Problem, Status},
    metrics::{Point, Sample},
};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::patience::{Deadline, PATIENCE, eventually};

/// How long an attempt at a stream may take.
const HANDSHAKE_MAX: Duration = Duration::from_secs(2);

/// Talks to one supervisor.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    pub(crate) path: PathBuf,
    pub(crate) token: Option<String>,
}

/// An answer that is all there.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn json<T: DeserializeOwned>(&self) -> T {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The problem document, which must agree with the status line.
    pub(crate) fn problem(&self) -> Problem {
        assert!(self.head.contains("content-type: application/problem+json"), "{}", self.head);
        let problem: Problem = self.json();
        assert_eq!(problem.status, self.status);
        problem
    }
}

impl Client {
    /// A stream to the enclave's `port`. A device between the two may drop a connection while it is busy.
    pub(crate) fn dial(&self, port: u32) -> UnixStream {
        eventually(&format!("a stream to port {port}"), || self.try_dial(port).ok())
    }

    /// One attempt.
    pub(crate) fn try_dial(&self, port: u32) -> std::io::Result<UnixStream> {
        let mut stream = UnixStream::connect(&self.path)?;
        // A machine whose vsock is not up yet never answers.
        stream.set_read_timeout(Some(HANDSHAKE_MAX))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        writeln!(stream, "CONNECT {port}")?;
        let mut line = Vec::new();
        let mut byte = [0];
        while line.last() != Some(&b'\n') {
            stream.read_exact(&mut byte)?;
            line.push(byte[0]);
        }
        stream.set_read_timeout(Some(PATIENCE))?;
        if line.starts_with(b"OK ") { Ok(stream) } else { Err(std::io::ErrorKind::InvalidData.into()) }
    }

    /// The head of a request with this client's token.
    pub(crate) fn head(&self, method: &str, path: &str) -> String {
        let token = self.token.as_ref().map(|token| format!("authorization: Bearer {token}\r\n"));
        format!("{method} {path} HTTP/1.1\r\nhost: enclave\r\n{}", token.unwrap_or_default())
    }

    /// One request on a connection of its own.
    pub(crate) fn send(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> Answer {
        let stream = self.dial(CONTROL_PORT);
        let head = self.head(method, path);
        exchange(stream, &format!("{head}connection: close\r\n{headers}"), body)
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.send("GET", path, "", b"")
    }

    pub(crate) fn call(&self, method: &str, path: &str, body: &Value) -> Answer {
        self.send(method, path, "", body.to_string().as_bytes())
    }

    pub(crate) fn status(&self) -> Status {
        self.get("/v1/status").json()
    }

    /// The latest sample, once there is one.
    pub(crate) fn sample(&self) -> Option<Sample> {
        self.send("GET", "/v1/metrics", "accept: application/json\r\n", b"").json()
    }

    /// Waits for a sample in which `family` has a point with these labels and a value that fits.
    pub(crate) fn until_sampled(
        &self,
        family: &str,
        labels: &[(&str, &str)],
        fits: impl Fn(f64) -> bool,
    ) -> f64 {
        eventually(&format!("{family} {labels:?}"), || {
            let value = point(&self.sample()?, family, labels)?;
            fits(value).then_some(value)
        })
    }

    /// Waits for a sample in which the point has this value.
    pub(crate) fn until_is(&self, family: &str, labels: &[(&str, &str)], expected: f64) {
        self.until_sampled(family, labels, |value| (value - expected).abs() < 1e-9);
    }

    /// Events after `after`, followed.
    pub(crate) fn events(&self, after: u64) -> Feed<Event> {
        self.feed(&format!("/v1/events?after={after}&follow=true"))
    }

    /// Log records after `after`.
    pub(crate) fn logs(&self, after: u64, follow: bool) -> Feed<LogRecord> {
        self.feed(&format!("/v1/logs?after={after}&follow={follow}"))
    }

    fn feed<T: DeserializeOwned + std::fmt::Debug>(&self, path: &str) -> Feed<T> {
        Feed::open(self.dial(CONTROL_PORT), &self.head("GET", path))
    }
}

/// The value of the point with all of these labels.
pub(crate) fn point(sample: &Sample, family: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let family = sample.families.iter().find(|known| known.name == family)?;
    let has =
        |point: &&Point| labels.iter().all(|(key, value)| point.labels.get(key).is_some_and(|v| v == *value));
    family.points.iter().find(has).map(|point| point.value)
}

/// A connection with the test's patience.
pub(crate) fn connect(path: &Path) -> UnixStream {
    let stream = UnixStream::connect(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Sends a request, `head` without its last empty line, and reads the answer to its end.
pub(crate) fn exchange(mut stream: impl Read + Write, head: &str, body: &[u8]) -> Answer {
    let length = if body.is_empty() { String::new() } else { format!("content-length: {}\r\n", body.len()) };
    stream.write_all(format!("{head}{length}\r\n").as_bytes()).unwrap();
    // A server that refuses the request closes before it has read all of it.
    stream.write_all(body).ok();
    read_answer(stream)
}

/// Reads one answer to the end of the stream.
pub(crate) fn read_answer(stream: impl Read) -> Answer {
    let mut reader = BufReader::new(stream);
    let head = read_head(&mut reader);
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok());
    let mut body = Vec::new();
    // After a refusal the rest may be a reset: the server has not read all that was sent.
    reader.read_to_end(&mut body).ok();
    Answer { status: status.unwrap_or_else(|| panic!("no status: {head:?}")), head, body }
}

fn read_head(reader: &mut impl BufRead) -> String {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        let count = reader.read_line(&mut head).expect("an answer's head");
        assert!(count > 0, "the answer ended in its head: {head:?}");
    }
    head
}

/// An NDJSON feed in chunked encoding. It ends when the server ends it.
pub(crate) struct Feed<T> {
    reader: BufReader<UnixStream>,
    pending: Vec<u8>,
    ended: bool,
    item: PhantomData<T>,
}

impl<T: DeserializeOwned + std::fmt::Debug> Feed<T> {
    /// Asks with `head`, which lacks its last empty line.
    pub(crate) fn open(mut stream: UnixStream, head: &str) -> Self {
        stream.write_all(format!("{head}\r\n").as_bytes()).unwrap();
        let mut reader = BufReader::new(stream);
        let head = read_head(&mut reader);
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        assert!(head.contains("transfer-encoding: chunked"), "{head}");
        Self { reader, pending: Vec::new(), ended: false, item: PhantomData }
    }

    /// Reads on to the first item that fits, and answers it.
    pub(crate) fn until(&mut self, what: &str, fits: impl Fn(&T) -> bool) -> T {
        self.up_to(what, fits).pop().expect("the item that fits")
    }

    /// Reads on to the first item that fits; all that were read, it included.
    pub(crate) fn up_to(&mut self, what: &str, fits: impl Fn(&T) -> bool) -> Vec<T> {
        let deadline = Deadline::new();
        let mut seen = Vec::new();
        loop {
            let Some(item) = self.next() else { panic!("the feed ended before {what}: {seen:#?}") };
            let found = fits(&item);
            seen.push(item);
            if found {
                return seen;
            }
            assert!(!deadline.left().is_zero(), "not within {PATIENCE:?}: {what}");
        }
    }

    fn chunk(&mut self) {
        let mut size = String::new();
        let read = self.reader.read_line(&mut size);
        // The end of the supervisor ends its feeds without ceremony.
        let length = match read.map(|_| usize::from_str_radix(size.trim(), 16)) {
            Ok(Ok(length)) => length,
            Ok(Err(_)) if size.is_empty() => 0,
            Ok(Err(error)) => panic!("chunk {size:?}: {error}"),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => panic!("the feed is silent"),
            Err(_) => 0,
        };
        self.ended = length == 0;
        let mut bytes = vec![0; length + 2];
        if !self.ended {
            self.reader.read_exact(&mut bytes).expect("a whole chunk");
            self.pending.extend_from_slice(&bytes[..length]);
        }
    }
}

impl<T: DeserializeOwned + std::fmt::Debug> Iterator for Feed<T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        loop {
            if let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.pending.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).expect("a JSON line"));
            }
            if self.ended {
                return None;
            }
            self.chunk();
        }
    }
}
