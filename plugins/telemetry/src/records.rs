//! Log records that the manifest sends by OTLP: read from the supervisor, sent in batches, acknowledged.
//!
//! At least once: the supervisor keeps a record until it is acknowledged, which is after the collector has
//! taken it or has said that it never will. While the collector takes nothing, a few batches wait here and
//! the rest in the supervisor's rings, which are bounded and count what they drop.
//!
//! ```text
//! supervisor.sock ─ feed ─▶ pending ─ encode ─▶ outbox (logs) ─▶ sender
//!        ▲                     waits for room        │ receipt: sent or refused
//!        └──── POST /v1/ack ◀──── window ◀───────────┘
//! ```
//! At the end the feed is read until the supervisor says that nothing more will come.

mod encode;
mod feed;
mod window;

use std::{path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use enclave_protocol::control::{AckRequest, LogRecord};
use http_body_util::Full;
use hyper::{Request, header};
use prost::Message as _;
use tokio::{
    net::UnixStream,
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout, timeout_at},
};

pub(crate) use self::window::{Receipt, Window};
use self::{
    feed::{Feed, FeedError, Line},
    window::IN_FLIGHT_MAX,
};
use crate::{
    identity::Identity,
    ledger::{Dropped, Ledger},
    link::Link,
    outbox::{Batch, OWN_BATCHES_MAX, OWN_BYTES_MAX, Outbox, SUPERVISOR},
    retry,
    sender::chain,
    signal::Signal,
};

/// Records of a batch.
const BATCH_RECORDS_MAX: usize = 512;
/// Text of a batch, in bytes.
const BATCH_BYTES_MAX: usize = 256 << 10;
/// How long the first record of a batch waits for others.
const BATCH_AGE_MAX: Duration = Duration::from_secs(1);
/// Pauses between attempts to read or to acknowledge.
const BACKOFF_INITIAL: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// How long the last records are waited for. By then every plugin has ended; only a process that outlived its
/// plugin may hold its output open.
const LAST_READ_MAX: Duration = Duration::from_secs(2);
/// How long one acknowledgement may take.
const ACK_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest answer to an acknowledgement, in bytes: a problem document.
const ANSWER_BYTES_MAX: usize = 16 << 10;

/// Bytes that OTLP's envelope adds to a record: attributes of our own and their names.
const RECORD_OVERHEAD: usize = 512;
// What is on its way finds room in its line, so that no newer batch pushes out an older one.
const _: () = assert!(
    IN_FLIGHT_MAX * (BATCH_BYTES_MAX + BATCH_RECORDS_MAX * RECORD_OVERHEAD) <= OWN_BYTES_MAX
        && IN_FLIGHT_MAX <= OWN_BATCHES_MAX
);

/// Both halves: one that reads, one that acknowledges.
pub(crate) fn halves(
    socket: PathBuf,
    identity: watch::Receiver<Option<Identity>>,
    outbox: Arc<Outbox>,
    ledger: Arc<Ledger>,
) -> (Reader, Acknowledger) {
    let (window, boot) = (Arc::new(Window::default()), watch::Sender::new(String::new()));
    let acknowledger =
        Acknowledger { socket: socket.clone(), window: Arc::clone(&window), boot: boot.subscribe() };
    let pending = Pending::default();
    (Reader { socket, identity, outbox, ledger, window, boot, pending, cursor: 0, told: false }, acknowledger)
}

/// Brings records into the outbox.
pub(crate) struct Reader {
    socket: PathBuf,
    identity: watch::Receiver<Option<Identity>>,
    outbox: Arc<Outbox>,
    ledger: Arc<Ledger>,
    window: Arc<Window>,
    boot: watch::Sender<String>,
    pending: Pending,
    /// Sequence number of the newest record that was read.
    cursor: u64,
    /// The present trouble was logged.
    told: bool,
}

/// Records that wait for others.
#[derive(Debug, Default)]
struct Pending {
    records: Vec<LogRecord>,
    bytes: usize,
    since: Option<Instant>,
}

impl Pending {
    fn add(&mut self, record: LogRecord) {
        self.bytes += record.text.as_ref().map_or(0, String::len);
        self.bytes += record.base64.as_ref().map_or(0, |bytes| bytes.0.len());
        self.since.get_or_insert_with(Instant::now);
        self.records.push(record);
    }

    /// When the batch is to leave; none while there is nothing.
    fn due(&self) -> Option<Instant> {
        let since = self.since?;
        let full = self.records.len() >= BATCH_RECORDS_MAX || self.bytes >= BATCH_BYTES_MAX;
        Some(if full { since } else { since + BATCH_AGE_MAX })
    }
}

impl Reader {
    /// Runs until `stop`, and then until there is nothing more to read.
    pub(crate) async fn run(mut self, stop: impl Future<Output = ()>) {
        let reading = async {
            let mut failures = 0;
            loop {
                let before = self.cursor;
                match self.pass().await {
                    Ok(()) => failures = 0,
                    // It is not asked again: the manifest does not change while we run.
                    Err(FeedError::NotGranted) => return std::future::pending().await,
                    Err(error) => self.note(&error),
                }
                failures = if self.cursor > before { 0 } else { failures + 1 };
                sleep(retry::doubled(BACKOFF_INITIAL, BACKOFF_MAX, failures, retry::chance())).await;
            }
        };
        tokio::select! {
            () = stop => {}
            () = reading => {}
        }
        self.finish().await;
    }

    fn note(&mut self, error: &FeedError) {
        if !std::mem::replace(&mut self.told, true) {
            tracing::warn!(error = chain(error), "log records cannot be read, trying again");
        }
    }

    /// Reads the feed to its end. What was read and not sent stays pending when the call is given up.
    async fn pass(&mut self) -> Result<(), FeedError> {
        let mut feed = self.open().await?;
        loop {
            let due = self.pending.due();
            if due.is_some_and(|due| due <= Instant::now()) {
                self.send().await;
                continue;
            }
            let line = tokio::select! {
                line = feed.next() => line?,
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => continue,
            };
            match line {
                Some(Line::Record(record)) if record.seq <= self.cursor => {}
                Some(Line::Record(record)) => {
                    self.cursor = record.seq;
                    self.pending.add(*record);
                }
                Some(Line::Malformed) => self.ledger.lost(Signal::Logs, Dropped::Encoding, 1),
                None => return Ok(()),
            }
        }
    }

    async fn open(&mut self) -> Result<Feed, FeedError> {
        let mut feed = Feed::open(&self.socket, self.cursor).await?;
        if *self.boot.borrow() != feed.boot_id {
            // Another boot's numbers begin again.
            self.boot.send_replace(feed.boot_id.clone());
            if std::mem::take(&mut self.cursor) > 0 {
                feed = Feed::open(&self.socket, 0).await?;
            }
        }
        if std::mem::take(&mut self.told) {
            tracing::info!("log records can be read again");
        }
        Ok(feed)
    }

    /// Queues what is pending, once it is known whose records these are and there is room on the way.
    async fn send(&mut self) {
        let Some(last) = self.pending.records.last().map(|record| record.seq) else { return };
        // An error means that the pump is gone: the plugin ends.
        let known = self.identity.wait_for(Option::is_some).await.map(|identity| identity.clone());
        let Ok(Some(identity)) = known else { return std::future::pending().await };
        let mut state = self.window.subscribe();
        // The window lives as long as we do.
        state.wait_for(|state| state.in_flight < IN_FLIGHT_MAX).await.ok();
        let records = std::mem::take(&mut self.pending).records;
        let items = records.len() as u64;
        let request = encode::request(records, &identity, &self.boot.borrow());
        let batch = Batch::new(request.encode_to_vec(), items).in_stream(SUPERVISOR);
        self.outbox.push(batch.with_receipt(self.window.enter(last)));
    }

    /// Reads what is left, within a bound.
    async fn finish(mut self) {
        let until = Instant::now() + LAST_READ_MAX;
        match timeout_at(until, self.pass()).await {
            Ok(Ok(()) | Err(FeedError::NotGranted)) => {}
            Ok(Err(error)) => self.note(&error),
            Err(_) => tracing::warn!("the supervisor has log records that could not be read in time"),
        }
        // What finds no room stays with the supervisor, which counts it.
        timeout(until.saturating_duration_since(Instant::now()), self.send()).await.ok();
    }
}

/// Tells the supervisor what it may forget.
pub(crate) struct Acknowledger {
    socket: PathBuf,
    window: Arc<Window>,
    boot: watch::Receiver<String>,
}

impl Acknowledger {
    /// Runs until `stop`, and then tells once more.
    pub(crate) async fn run(self, stop: impl Future<Output = ()>) {
        let mut state = self.window.subscribe();
        let (mut link, mut told, mut failures) = (None, 0, 0);
        let telling = async {
            // The window lives as long as we do.
            while state.wait_for(|state| state.settled > told).await.is_ok() {
                let settled = state.borrow_and_update().settled;
                if self.tell(&mut link, settled).await {
                    (told, failures) = (settled, 0);
                } else {
                    failures += 1;
                    sleep(retry::doubled(BACKOFF_INITIAL, BACKOFF_MAX, failures, retry::chance())).await;
                }
            }
        };
        tokio::select! {
            () = stop => {}
            () = telling => {}
        }
        let settled = self.window.subscribe().borrow().settled;
        if settled > 0 {
            // An acknowledgement under way was given up: the link may be in the middle of it.
            self.tell(&mut None, settled).await;
        }
    }

    /// Acknowledges every record up to `settled`; whether that has arrived.
    async fn tell(&self, link: &mut Option<Link>, settled: u64) -> bool {
        let boot_id = self.boot.borrow().clone();
        let ack = AckRequest { boot_id, log_seq: settled, status_seq: None };
        let body = serde_json::to_vec(&ack).expect("invariant: strings and numbers always serialise");
        let request = Request::post("/v1/ack")
            .header(header::HOST, "supervisor")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .expect("invariant: the parts are constants and well-formed");
        let asked = timeout(ACK_TIMEOUT, async {
            let mut open = match link.take().filter(Link::is_open) {
                Some(open) => open,
                None => Link::open(UnixStream::connect(&self.socket).await.ok()?).await.ok()?,
            };
            let (head, body) = open.ask(request, ANSWER_BYTES_MAX).await.ok()?;
            if body.is_ok() {
                *link = Some(open);
            }
            Some(head.status.is_success())
        });
        let arrived = asked.await.ok().flatten() == Some(true);
        if !arrived {
            tracing::debug!(settled, "an acknowledgement of log records failed");
        }
        arrived
    }
}

#[cfg(test)]
mod tests;
