//! What waits for the collector, bounded by number and bytes.
//!
//! Two lines: our own batches drop the oldest when full, since only freshness matters for cumulative numbers;
//! a plugin's batches are refused instead, and never push out the supervisor's.

use std::{
    collections::VecDeque,
    io::Write as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use prost::Message as _;
use tokio::sync::Notify;

use crate::{
    ledger::{Dropped, Ledger},
    otlp::{self, Export},
};

/// Ten minutes at the default interval: beyond Prometheus' look-back nothing is worth keeping.
pub(crate) const OWN_BATCHES_MAX: usize = 60;
/// A compressed batch of a busy enclave is about 4 KiB.
const OWN_BYTES_MAX: usize = 2 << 20;
/// Batches of the plugins together.
pub(crate) const APP_BATCHES_MAX: usize = 60;
/// The same in bytes.
const APP_BYTES_MAX: usize = 4 << 20;

/// One export, encoded and compressed.
#[derive(Debug, Clone)]
pub(crate) struct Batch {
    /// The gzip body.
    pub(crate) body: Bytes,
    /// How many data points are in it.
    pub(crate) points: u64,
    /// How often it was tried.
    pub(crate) attempts: u32,
    origin: Origin,
}

/// Whose line a batch stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// Supervisor's and our own numbers.
    Own,
    /// A plugin's.
    App,
}

impl Batch {
    /// Encodes `export`.
    pub(crate) fn new(export: &Export) -> Self {
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        let body = gzip.write_all(&export.encode_to_vec()).and_then(|()| gzip.finish());
        let body = body.expect("invariant: writing into a Vec cannot fail");
        Self { body: body.into(), points: otlp::count(export), attempts: 0, origin: Origin::Own }
    }
}

/// The queue between those who export and the sender.
#[derive(Debug)]
pub(crate) struct Outbox {
    lines: Mutex<Lines>,
    changed: Notify,
    closing: Notify,
    ledger: Arc<Ledger>,
}

#[derive(Debug, Default)]
struct Lines {
    own: Line,
    apps: Line,
    /// Points of the batch that the sender holds.
    in_flight: u64,
    closed: bool,
}

#[derive(Debug, Default)]
struct Line {
    batches: VecDeque<Batch>,
    bytes: usize,
}

impl Line {
    fn push(&mut self, batch: Batch) {
        self.bytes += batch.body.len();
        self.batches.push_back(batch);
    }

    fn push_front(&mut self, batch: Batch) {
        self.bytes += batch.body.len();
        self.batches.push_front(batch);
    }

    fn pop(&mut self) -> Option<Batch> {
        let batch = self.batches.pop_front()?;
        self.bytes -= batch.body.len();
        Some(batch)
    }

    fn has_room(&self, bytes: usize, batches_max: usize, bytes_max: usize) -> bool {
        self.batches.len() < batches_max && self.bytes + bytes <= bytes_max
    }

    fn points(&self) -> u64 {
        self.batches.iter().map(|batch| batch.points).sum()
    }
}

impl Outbox {
    /// Empty and open.
    pub(crate) fn new(ledger: Arc<Ledger>) -> Self {
        Self { lines: Mutex::default(), changed: Notify::new(), closing: Notify::new(), ledger }
    }

    /// Queues our own batch; the oldest ones make room.
    pub(crate) fn push(&self, batch: Batch) {
        let mut lines = self.lines();
        let mut dropped = 0;
        while !lines.own.has_room(batch.body.len(), OWN_BATCHES_MAX, OWN_BYTES_MAX) {
            let Some(oldest) = lines.own.pop() else { break };
            dropped += oldest.points;
        }
        if lines.own.has_room(batch.body.len(), OWN_BATCHES_MAX, OWN_BYTES_MAX) {
            lines.own.push(batch);
        } else {
            dropped += batch.points;
        }
        drop(lines);
        if dropped > 0 {
            self.ledger.dropped(Dropped::QueueFull, dropped);
        }
        self.changed.notify_one();
    }

    /// Queues a plugin's batch, or says that there is no room.
    pub(crate) fn offer(&self, batch: Batch) -> Result<(), Full> {
        let mut lines = self.lines();
        if lines.closed || !lines.apps.has_room(batch.body.len(), APP_BATCHES_MAX, APP_BYTES_MAX) {
            return Err(Full);
        }
        lines.apps.push(Batch { origin: Origin::App, ..batch });
        drop(lines);
        self.changed.notify_one();
        Ok(())
    }

    /// The next batch, ours first; none when the outbox is closed and empty. One caller only.
    pub(crate) async fn next(&self) -> Option<Batch> {
        loop {
            {
                let mut lines = self.lines();
                lines.in_flight = 0;
                if let Some(batch) = lines.own.pop().or_else(|| lines.apps.pop()) {
                    lines.in_flight = batch.points;
                    return Some(batch);
                }
                if lines.closed {
                    return None;
                }
            }
            self.changed.notified().await;
        }
    }

    /// Takes back a batch that failed, to the front of its line. Between two attempts at a plugin's batch our
    /// own go out, so that one which the collector cannot digest holds up nothing but itself.
    pub(crate) fn put_back(&self, batch: Batch) {
        let mut lines = self.lines();
        lines.in_flight = 0;
        match batch.origin {
            // One more than the bound, for the one that the sender held.
            Origin::App => lines.apps.push_front(batch),
            Origin::Own if lines.own.has_room(batch.body.len(), OWN_BATCHES_MAX, OWN_BYTES_MAX) => {
                lines.own.push_front(batch);
            }
            // It is the oldest.
            Origin::Own => self.ledger.dropped(Dropped::QueueFull, batch.points),
        }
    }

    /// From here on the sender empties the queue and ends.
    pub(crate) fn close(&self) {
        self.lines().closed = true;
        self.changed.notify_one();
        self.closing.notify_waiters();
    }

    /// Returns when the outbox is closed.
    pub(crate) async fn closed(&self) {
        let closing = self.closing.notified();
        tokio::pin!(closing);
        // Registered before looking, so that a close in between is not missed.
        closing.as_mut().enable();
        if !self.is_closed() {
            closing.await;
        }
    }

    /// Whether it is closed.
    pub(crate) fn is_closed(&self) -> bool {
        self.lines().closed
    }

    /// Waiting batches and their bytes.
    pub(crate) fn depth(&self) -> (usize, usize) {
        let lines = self.lines();
        (lines.own.batches.len() + lines.apps.batches.len(), lines.own.bytes + lines.apps.bytes)
    }

    /// Points that have not been delivered, the sender's batch included.
    pub(crate) fn undelivered(&self) -> u64 {
        let lines = self.lines();
        lines.own.points() + lines.apps.points() + lines.in_flight
    }

    fn lines(&self) -> MutexGuard<'_, Lines> {
        // No code that can panic runs between two changes that belong together.
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// There is no room for a plugin's batch.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Full;

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(byte: u8, len: usize) -> Batch {
        Batch { body: vec![byte; len].into(), points: 1, attempts: 0, origin: Origin::Own }
    }

    fn outbox() -> Outbox {
        Outbox::new(Arc::new(Ledger::new()))
    }

    #[tokio::test]
    async fn the_oldest_of_our_own_batches_makes_room_and_is_counted() {
        let outbox = outbox();
        for n in 0..OWN_BATCHES_MAX + 3 {
            outbox.push(batch(u8::try_from(n).unwrap(), 10));
        }
        assert_eq!(outbox.depth(), (OWN_BATCHES_MAX, OWN_BATCHES_MAX * 10));
        assert_eq!(outbox.ledger.dropped_total(), 3);
        assert_eq!(outbox.next().await.unwrap().body[0], 3);
    }

    #[test]
    fn bytes_are_bounded_as_well_as_batches() {
        let outbox = outbox();
        for n in 0..10 {
            outbox.push(batch(n, OWN_BYTES_MAX / 3));
        }
        assert_eq!(outbox.depth(), (3, OWN_BYTES_MAX / 3 * 3));
        assert_eq!(outbox.ledger.dropped_total(), 7);
        outbox.push(batch(0, OWN_BYTES_MAX + 1));
        assert_eq!(outbox.depth(), (0, 0));
        assert_eq!(outbox.ledger.dropped_total(), 11);
    }

    #[tokio::test]
    async fn plugins_are_refused_and_never_push_out_our_own() {
        let outbox = outbox();
        outbox.push(batch(1, 10));
        for _ in 0..APP_BATCHES_MAX {
            outbox.offer(batch(2, 10)).unwrap();
        }
        assert_eq!(outbox.offer(batch(2, 10)), Err(Full));
        assert_eq!(outbox.ledger.dropped_total(), 0);
        assert_eq!(outbox.next().await.unwrap().body[0], 1, "our own go first");
        assert_eq!(outbox.next().await.unwrap().body[0], 2);
    }

    #[tokio::test]
    async fn a_batch_that_failed_goes_to_the_front_of_its_own_line() {
        let outbox = outbox();
        outbox.offer(batch(1, 10)).unwrap();
        outbox.offer(batch(2, 10)).unwrap();
        let failed = outbox.next().await.unwrap();
        outbox.push(batch(3, 10));
        outbox.put_back(failed);
        let mut order = Vec::new();
        for _ in 0..3 {
            order.push(outbox.next().await.unwrap().body[0]);
        }
        assert_eq!(order, [3, 1, 2]);
        let held = batch(4, 10);
        (0..OWN_BATCHES_MAX).for_each(|_| outbox.push(batch(5, 10)));
        outbox.put_back(held);
        assert_eq!((outbox.depth().0, outbox.ledger.dropped_total()), (OWN_BATCHES_MAX, 1));
    }

    #[tokio::test]
    async fn a_closed_outbox_gives_what_it_holds_and_then_ends() {
        let outbox = outbox();
        outbox.push(batch(1, 1));
        outbox.close();
        outbox.closed().await;
        assert_eq!(outbox.offer(batch(2, 1)), Err(Full));
        assert!(outbox.next().await.is_some());
        assert_eq!(outbox.undelivered(), 1);
        assert!(outbox.next().await.is_none());
        assert_eq!(outbox.undelivered(), 0);
    }
}
