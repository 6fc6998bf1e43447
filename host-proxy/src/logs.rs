//! Log shipping: pull from the enclave's ring, write to stdout, flush, and only then acknowledge.
//!
//! At least once: the position is stored before it is acknowledged, so that what the enclave may forget is never
//! beyond what a restarted proxy knows to be written. `{bootId, seq}` tells a record that comes twice. When stdout
//! blocks nothing more is read, and the enclave's ring, which is bounded and counts what it drops, fills instead
//! of our memory.

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
    view::Shared,
};

/// An acknowledgement is sent after so many records …
const ACK_RECORDS: u64 = 200;
/// … but not before this time after the first one that waits for it: each is a small file and a round trip …
const ACK_INTERVAL_MIN: Duration = Duration::from_millis(50);
/// … and in any case after this much more.
const ACK_DELAY: Duration = Duration::from_millis(150);

/// Ships the records of one boot.
#[derive(Debug)]
pub(crate) struct Shipper<W> {
    /// The rest of the proxy.
    pub(crate) shared: Arc<Shared>,
    /// Standard output.
    pub(crate) sink: Arc<Mutex<W>>,
    /// The boot.
    pub(crate) session: Session,
    /// Records up to here are written and flushed.
    pub(crate) position: watch::Sender<u64>,
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
    /// Follows the log until `finish` turns true, then takes what is left and returns whether it got all of it.
    pub(crate) async fn run(self, mut finish: watch::Receiver<bool>) -> bool {
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
        outages.mark_unchanged();
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
        tracing::debug!(%error, "the log stream ended");
    }

    /// One request: until the stream ends, or (`follow`) until `finish`. An outage means that the connection may
    /// be dead without a sign; then reading is given up. Writing never is, since half a line would stay behind.
    async fn pass(
        &self,
        follow: bool,
        finish: &mut watch::Receiver<bool>,
        outages: &mut watch::Receiver<u64>,
    ) -> Result<(), ShipError> {
        let mut cursor = *self.position.borrow();
        count(&self.shared.counters.log_streams);
        let mut lines = self.shared.control.logs(cursor, follow, &self.session.token).await?;
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
        // Records that the manifest keeps inside the enclave (`spec.logs.host`) leave holes as well.
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
        {
            let mut sink = self.sink.lock().await;
            sink.write_all(&bytes).await?;
            sink.flush().await?;
        }
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
            // Losing the position costs repeated records after a restart; keeping the ring full costs new ones.
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
