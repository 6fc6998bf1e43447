//! Log shipping: pull from the enclave's ring, write to stdout, flush, and only then acknowledge.
//!
//! At least once: the position is stored before it is acknowledged, so that what the enclave may forget is
//! never beyond what a restarted proxy knows to be written. `{bootId, seq}` tells a record that comes twice.
//! When stdout blocks nothing more is read, and the enclave's ring, which is bounded and counts what it
//! drops, fills instead of our memory.

use std::{io, sync::Arc, sync::atomic::Ordering::Relaxed, time::Duration};

use bytes::Bytes;
use enclave_protocol::{
    control::{AckRequest, FileBytes, LogRecord, LogStream},
    timestamp::Timestamp,
};
use serde::Serialize;
use tokio::{
    io::{AsyncWrite, AsyncWriteExt},
    sync::{Mutex, watch},
    time::{sleep, timeout},
};

use crate::{
    backoff::Backoff,
    control::ControlError,
    counters::count,
    state::{Durability, Session},
    throttle::Throttle,
    view::Shared,
};

/// An acknowledgement is sent after so many records …
const ACK_RECORDS: u64 = 200;
/// … but not before this time after the first one that waits for it: each is a small file and a round trip …
const ACK_INTERVAL_MIN: Duration = Duration::from_millis(50);
/// … and in any case after this much more.
const ACK_DELAY: Duration = Duration::from_millis(150);

/// Standard output, written in whole lines.
#[derive(Debug)]
pub(crate) struct Sink<W> {
    out: W,
    /// A write was given up or failed, so half a line may stand there.
    torn: bool,
}

impl<W: AsyncWrite + Unpin> Sink<W> {
    /// Nothing is written yet.
    pub(crate) fn new(out: W) -> Self {
        Self { out, torn: false }
    }

    /// Writes whole lines and flushes them. After a write that did not come to its end, dropped or failed, a
    /// newline keeps what it left behind from spoiling the next line.
    pub(crate) async fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        if std::mem::replace(&mut self.torn, true) {
            self.out.write_all(b"\n").await?;
        }
        self.out.write_all(lines).await?;
        self.out.flush().await?;
        self.torn = false;
        Ok(())
    }
}

/// Ships the records of one boot.
#[derive(Debug)]
pub(crate) struct Shipper<W> {
    /// The rest of the proxy.
    pub(crate) shared: Arc<Shared>,
    /// Standard output.
    pub(crate) sink: Arc<Mutex<Sink<W>>>,
    /// The boot.
    pub(crate) session: Session,
    /// Records up to here are written and flushed.
    pub(crate) position: watch::Sender<u64>,
    /// Keeps a lasting failure from filling our own log.
    pub(crate) failures: Throttle,
}

/// Why a pass ended early.
#[derive(Debug, thiserror::Error)]
enum ShipError {
    #[error("the enclave stopped answering")]
    Outage,
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error("stdout: {0}")]
    Sink(#[from] io::Error),
}

/// One record as it goes to stdout.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    boot_id: &'a str,
    deployment: &'a str,
    instance: &'a str,
    seq: u64,
    time: Timestamp,
    plugin: &'a str,
    stream: LogStream,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    base64: Option<&'a FileBytes>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    partial: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    dropped: Option<u64>,
}

/// Records of one chunk.
#[derive(Default)]
struct Batch {
    lines: Vec<Bytes>,
    /// The newest of them.
    cursor: u64,
}

impl<W: AsyncWrite + Send + Unpin + 'static> Shipper<W> {
    /// Follows the log until `finish` turns true, and gives the shipper back for [`Self::rest`].
    pub(crate) async fn run(self, mut finish: watch::Receiver<bool>) -> Self {
        let mut backoff = Backoff::default();
        let mut outages = self.shared.outages.subscribe();
        while !*finish.borrow() {
            let before = *self.position.borrow();
            outages.mark_unchanged();
            if let Err(error) = self.pass(true, &mut finish, &mut outages).await {
                self.note(&error);
            }
            if *self.position.borrow() > before {
                backoff.reset();
            }
            // A stream that ends at once, again and again, must not become a busy loop.
            timeout(backoff.next(), finish.wait_for(|finish| *finish)).await.ok();
        }
        self
    }

    /// Takes what is there now; answers whether all of it is written.
    pub(crate) async fn rest(&self) -> bool {
        let (mut finish, mut outages) = (watch::channel(false).1, self.shared.outages.subscribe());
        match self.pass(false, &mut finish, &mut outages).await {
            Ok(()) => true,
            Err(error) => {
                self.note(&error);
                false
            }
        }
    }

    fn note(&self, error: &ShipError) {
        if matches!(error, ShipError::Sink(_)) {
            count(&self.shared.counters.log_sink_errors);
            self.shared.view.send_if_modified(|view| !std::mem::replace(&mut view.sink_broken, true));
        }
        match error {
            // The enclave answers, but not with its log: something for a person to look at.
            ShipError::Control(ControlError::Refused(_)) | ShipError::Sink(_) => {
                if let Some(suppressed) = self.failures.pass() {
                    tracing::warn!(%error, suppressed, "log records cannot be shipped");
                }
            }
            ShipError::Control(_) | ShipError::Outage => tracing::debug!(%error, "the log stream ended"),
        }
    }

    /// One request: until the stream ends, or (`follow`) until `finish`. An outage means that the connection
    /// may be dead without a sign; then reading is given up. Writing never is, since half a line would
    /// stay behind.
    async fn pass(
        &self,
        follow: bool,
        finish: &mut watch::Receiver<bool>,
        outages: &mut watch::Receiver<u64>,
    ) -> Result<(), ShipError> {
        let mut cursor = *self.position.borrow();
        count(&self.shared.counters.log_streams);
        let mut lines = tokio::select! {
            biased;
            opened = self.shared.control.logs(cursor, follow, &self.session.token) => opened?,
            _ = finish.wait_for(|finish| *finish), if follow => return Ok(()),
        };
        loop {
            let mut batch = Batch { lines: Vec::new(), cursor };
            let more = tokio::select! {
                biased;
                more = lines.next(|line| self.take(line, &mut batch)) => more?,
                _ = finish.wait_for(|finish| *finish), if follow => return Ok(()),
                _ = outages.changed() => return Err(ShipError::Outage),
            };
            cursor = batch.cursor;
            if !batch.lines.is_empty() {
                self.write(batch).await?;
            }
            if !more {
                return Ok(());
            }
        }
    }

    /// One line of the stream into the batch.
    fn take(&self, line: &[u8], batch: &mut Batch) {
        let counters = &self.shared.counters;
        let Ok(record) = serde_json::from_slice::<LogRecord>(line) else {
            return count(&counters.log_malformed);
        };
        if record.seq <= batch.cursor {
            return count(&counters.log_duplicates);
        }
        let jumped = record.seq - batch.cursor - 1;
        counters.log_dropped.fetch_add(record.dropped, Relaxed);
        // The enclave's sequence has no holes but those that it reports, so this stays zero.
        counters.log_skipped.fetch_add(jumped.saturating_sub(record.dropped), Relaxed);
        batch.cursor = record.seq;
        let line = Line {
            boot_id: &self.session.boot_id,
            deployment: &self.session.deployment,
            instance: &self.shared.instance,
            seq: record.seq,
            time: record.time,
            plugin: &record.plugin,
            stream: record.stream,
            text: record.text.as_deref(),
            base64: record.base64.as_ref(),
            partial: record.partial,
            dropped: (record.dropped > 0).then_some(record.dropped),
        };
        let mut json = serde_json::to_vec(&line).expect("invariant: strings and numbers always serialise");
        json.push(b'\n');
        batch.lines.push(Bytes::from(json));
    }

    async fn write(&self, batch: Batch) -> Result<(), ShipError> {
        let bytes = batch.lines.concat();
        self.sink.lock().await.write(&bytes).await?;
        let counters = &self.shared.counters;
        counters.log_records.fetch_add(batch.lines.len() as u64, Relaxed);
        counters.log_bytes.fetch_add(bytes.len() as u64, Relaxed);
        for line in batch.lines {
            self.shared.recent.push(line);
        }
        self.position.send_replace(batch.cursor);
        self.shared.view.send_if_modified(|view| std::mem::replace(&mut view.sink_broken, false));
        Ok(())
    }
}

/// Stores and acknowledges what is written, in batches, until the shipper is gone.
pub(crate) async fn acknowledge(shared: Arc<Shared>, session: Session, mut position: watch::Receiver<u64>) {
    let mut acknowledged = session.log_seq;
    let mut backoff = Backoff::default();
    while position.wait_for(|seq| *seq > acknowledged).await.is_ok() {
        sleep(ACK_INTERVAL_MIN).await;
        let enough = position.wait_for(|seq| *seq >= acknowledged + ACK_RECORDS);
        // Either enough, or time is up; the shipper's end shows at the next turn.
        timeout(ACK_DELAY, enough).await.map(drop).ok();
        let log_seq = *position.borrow_and_update();
        if let Err(error) = shared.persist(&session, log_seq, Durability::Process).await {
            // Losing the position costs repeated records after a restart; keeping the ring full costs new
            // ones.
            tracing::warn!(%error, "the log position cannot be stored");
        }
        let ack = AckRequest { boot_id: session.boot_id.clone(), log_seq, status_seq: None };
        match shared.control.ack(&ack, &session.token).await {
            Ok(()) => {
                acknowledged = log_seq;
                backoff.reset();
            }
            Err(error) => {
                tracing::debug!(%error, "an acknowledgement failed");
                sleep(backoff.next()).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, duplex};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_write_that_was_given_up_does_not_spoil_the_next_line() {
        let (mut reader, out) = duplex(4);
        let mut sink = Sink::new(out);
        timeout(Duration::from_secs(1), sink.write(b"{\"long\": 1}\n")).await.unwrap_err();
        let (written, read) = tokio::join!(
            async {
                sink.write(b"{}\n").await.unwrap();
                drop(sink);
            },
            async {
                let mut text = String::new();
                reader.read_to_string(&mut text).await.unwrap();
                text
            }
        );
        assert_eq!((written, read.as_str()), ((), "{\"lo\n{}\n"));
    }
}
