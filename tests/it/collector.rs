//! An OTLP/HTTP collector that keeps what it is sent, byte by byte.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use crate::{
    otlp::{self, LogRecord, Point},
    patience::{Deadline, eventually},
};

/// One request.
#[derive(Debug, Clone)]
struct Export {
    head: String,
    body: Vec<u8>,
}

#[derive(Default)]
struct Received {
    /// Those of metrics.
    exports: Mutex<Vec<Export>>,
    logs: Mutex<Vec<Export>>,
    more: Condvar,
    /// Log records are to come again later.
    refuses: AtomicBool,
    refused: AtomicUsize,
    closed: AtomicBool,
}

/// Dropping it stops listening.
pub(crate) struct Collector {
    pub(crate) address: SocketAddr,
    received: Arc<Received>,
    /// The points of each export so far.
    decoded: Vec<Vec<Point>>,
    log_records: Vec<LogRecord>,
    logs_decoded: usize,
}

impl Collector {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let received = Arc::<Received>::default();
        let keep = Arc::clone(&received);
        thread::spawn(move || {
            for stream in listener.incoming() {
                if keep.closed.load(Ordering::Relaxed) {
                    return;
                }
                let keep = Arc::clone(&keep);
                thread::spawn(move || serve(stream.unwrap(), &keep));
            }
        });
        Self { address, received, decoded: Vec::new(), log_records: Vec::new(), logs_decoded: 0 }
    }

    /// How many exports have arrived.
    pub(crate) fn count(&self) -> usize {
        self.received.exports.lock().unwrap().len()
    }

    /// Waits until the points of all exports so far, export by export, have an answer.
    pub(crate) fn until<T>(&mut self, what: &str, find: impl Fn(&[Vec<Point>]) -> Option<T>) -> T {
        let deadline = Deadline::new();
        loop {
            self.decode();
            if let Some(found) = find(&self.decoded) {
                return found;
            }
            let known = self.decoded.len();
            let exports = self.received.exports.lock().unwrap();
            let left = deadline.left();
            assert!(!left.is_zero(), "the collector waited in vain for {what}; {known} exports arrived");
            drop(
                self.received
                    .more
                    .wait_timeout_while(exports, left, |exports| exports.len() == known)
                    .unwrap(),
            );
        }
    }

    /// Waits for `more` exports than there are now.
    pub(crate) fn until_more(&mut self, more: usize) {
        let now = self.count();
        self.until("more exports", |exports| (exports.len() >= now + more).then_some(()));
    }

    /// Every point so far.
    pub(crate) fn points(&mut self) -> Vec<Point> {
        self.decode();
        self.decoded.concat()
    }

    /// Every log record so far.
    pub(crate) fn log_records(&mut self) -> Vec<LogRecord> {
        let new = self.received.logs.lock().unwrap()[self.logs_decoded..].to_vec();
        self.logs_decoded += new.len();
        self.log_records.extend(new.iter().flat_map(|export| otlp::decode_logs(&export.body)));
        self.log_records.clone()
    }

    /// Waits until the log records so far have an answer.
    pub(crate) fn until_logs<T>(&mut self, what: &str, find: impl Fn(&[LogRecord]) -> Option<T>) -> T {
        eventually(what, || find(&self.log_records()))
    }

    /// Whether exports of log records are to be sent again later, and are not kept.
    pub(crate) fn refuse(&self, refuses: bool) {
        self.received.refuses.store(refuses, Ordering::Relaxed);
    }

    /// Waits until `more` exports of log records were refused.
    pub(crate) fn until_refused(&self, more: usize) {
        let wanted = self.received.refused.load(Ordering::Relaxed) + more;
        eventually("refused exports", || {
            (self.received.refused.load(Ordering::Relaxed) >= wanted).then_some(())
        });
    }

    fn decode(&mut self) {
        let new = self.received.exports.lock().unwrap()[self.decoded.len()..].to_vec();
        for Export { head, body } in new {
            assert!(head.starts_with("POST /v1/metrics HTTP/1.1\r\n"), "{head}");
            for header in ["content-encoding: gzip", "content-type: application/x-protobuf"] {
                assert!(head.lines().any(|line| line.eq_ignore_ascii_case(header)), "{header}: {head}");
            }
            self.decoded.push(otlp::decode(&body));
        }
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.received.closed.store(true, Ordering::Relaxed);
        // Wakes the listener, which then ends.
        TcpStream::connect(self.address).ok();
    }
}

/// Answers every request on a connection until its end.
fn serve(stream: TcpStream, received: &Received) {
    let mut reader = BufReader::new(stream);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            // The exporter may go away at any time: it is killed in some tests.
            if reader.read_line(&mut head).unwrap_or(0) == 0 {
                return;
            }
        }
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            if name.eq_ignore_ascii_case("content-length") { value.trim().parse().ok() } else { None }
        });
        let mut body = vec![0; length.expect("an export has a length")];
        if reader.read_exact(&mut body).is_err() {
            return;
        }
        let is_logs = head.starts_with("POST /v1/logs HTTP/1.1\r\n");
        let refuses = is_logs && received.refuses.load(Ordering::Relaxed);
        let status = if refuses { "503 Service Unavailable" } else { "200 OK" };
        match (is_logs, refuses) {
            (_, true) => drop(received.refused.fetch_add(1, Ordering::Relaxed)),
            (true, false) => received.logs.lock().unwrap().push(Export { head, body }),
            (false, false) => received.exports.lock().unwrap().push(Export { head, body }),
        }
        received.more.notify_all();
        let answer =
            format!("HTTP/1.1 {status}\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n");
        reader.get_mut().write_all(answer.as_bytes()).ok();
    }
}
