//! Batches that wait for the collector: one outbox for each signal, bounded by number, bytes and age.
//!
//! Two lines: the plugin's own batches drop the oldest when full, since the newest numbers matter; an app's
//! batches are refused instead, and never push out the supervisor's. The outbox also keeps the pauses between
//! attempts: a batch that the collector cannot digest holds up the batches of its own stream and no others.
//!
//! ```text
//!  push ─▶ own  ─┐              ┌─ sent ─▶ ledger
//!                ├─ next ─▶ Parcel ─ drop ─▶ ledger
//! offer ─▶ apps ─┘              └─ retry ─▶ front of its line, after a pause
//! ```

use std::{
    collections::{BTreeSet, VecDeque},
    io::Write as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

use crate::{
    ledger::{Dropped, Ledger, Move},
    records::Receipt,
    retry::{self, Pace},
    signal::Signal,
};

/// Ten minutes at the shortest useful interval, one second, and a scraped batch with each.
pub(crate) const OWN_BATCHES_MAX: usize = 1024;
/// Four minutes of 10,000 series every 15 s, of which a batch is 250 KiB; sixteen minutes of the supervisor's
/// own families each second.
pub(crate) const OWN_BYTES_MAX: usize = 4 << 20;
/// Batches of all apps together.
pub(crate) const APP_BATCHES_MAX: usize = 256;
/// The same in bytes. All lines of all signals together stay below 20 MiB.
pub(crate) const APP_BYTES_MAX: usize = 2 << 20;
/// Twice the five minutes that Prometheus looks back: nothing older is worth sending.
pub(crate) const AGE_MAX: Duration = Duration::from_mins(10);
/// Pause between attempts while flushing: the whole flush takes a few seconds at most.
const FLUSH_PAUSE: Duration = Duration::from_millis(200);

/// One export, encoded and compressed.
#[derive(Debug, Clone)]
pub(crate) struct Batch {
    body: Bytes,
    items: u64,
    stream: Option<u64>,
    receipt: Option<Receipt>,
}

impl Batch {
    /// Compresses an encoded OTLP request that carries so many items: data points, log records, spans.
    pub(crate) fn new(encoded: impl AsRef<[u8]>, items: u64) -> Self {
        // The fast level: within a tenth of the default's size, for a third of its time.
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        let body = gzip.write_all(encoded.as_ref()).and_then(|()| gzip.finish());
        let mut body = body.expect("invariant: writing into a Vec cannot fail");
        // A batch may wait for minutes: half of a Vec's growth would be bytes that no bound counts.
        body.shrink_to_fit();
        Self { body: body.into(), items, stream: None, receipt: None }
    }

    /// Keeps the order among the batches of one stream: while one of them waits for another attempt, the
    /// later ones wait too. Batches without a stream wait for no other.
    pub(crate) fn in_stream(self, stream: u64) -> Self {
        Self { stream: Some(stream), ..self }
    }

    /// Settles `receipt` when the collector has taken the batch or refused it. Until then it is kept whatever
    /// its age, since its origin waits for it and bounds how many there are.
    pub(crate) fn with_receipt(self, receipt: Receipt) -> Self {
        Self { receipt: Some(receipt), ..self }
    }

    fn settle(&self) {
        if let Some(receipt) = &self.receipt {
            receipt.settle();
        }
    }

    /// The gzip body.
    #[cfg(test)]
    pub(crate) fn body(&self) -> &Bytes {
        &self.body
    }

    /// A request that is compressed already.
    pub(crate) fn compressed(mut body: Vec<u8>, items: u64) -> Self {
        body.shrink_to_fit();
        Self { body: body.into(), items, stream: None, receipt: None }
    }
}

/// The stream of the supervisor's families and the plugin's own.
pub(crate) const SUPERVISOR: u64 = 0;

/// Why an attempt may be repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Setback {
    /// There is no connection: nothing else would arrive either.
    Unreachable,
    /// The connection broke or stayed silent: the way out, the collector, or this batch.
    NoAnswer,
    /// A status that may be tried again, after this time if the collector named one.
    Status(Option<Duration>),
}

/// Why an app's batch is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// There is no room now.
    Full,
    /// There will never be room for it.
    TooLarge,
    /// No `EXPORTER_URL` is set.
    NoExporter,
    /// The plugin is stopping.
    Closed,
}

/// The queue between those who export and the sender of one signal.
#[derive(Debug)]
pub(crate) struct Outbox {
    signal: Signal,
    ledger: Arc<Ledger>,
    pace: Pace,
    has_exporter: bool,
    lines: Mutex<Lines>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Lines {
    own: Line,
    apps: Line,
    /// After a failure that concerns everything.
    rest: Option<Rest>,
    /// Such failures in a row.
    failures: u32,
    closed: bool,
}

/// The line that a batch stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    Own,
    App,
}

#[derive(Debug, Default)]
struct Line {
    entries: VecDeque<Entry>,
    bytes: usize,
    rest: Option<Rest>,
    /// Failures in a row, over batches.
    failures: u32,
}

#[derive(Debug)]
struct Entry {
    batch: Batch,
    queued: Instant,
    rest: Option<Rest>,
    attempts: u32,
    /// Since when the collector has asked to come again.
    put_off: Option<Instant>,
}

/// A pause before the next attempt.
#[derive(Debug, Clone, Copy)]
struct Rest {
    since: Instant,
    until: Instant,
}

impl Rest {
    fn new(now: Instant, wait: Duration) -> Self {
        Self { since: now, until: now + wait }
    }

    /// The end of the pause; a flush does not wait as long.
    fn end(self, closed: bool) -> Instant {
        if closed { self.until.min(self.since + FLUSH_PAUSE) } else { self.until }
    }
}

/// The end of a pause that is not over.
fn pending(rest: Option<Rest>, closed: bool, now: Instant) -> Option<Instant> {
    rest.map(|rest| rest.end(closed)).filter(|end| *end > now)
}

impl Line {
    fn has_room(&self, bytes: usize, batches_max: usize, bytes_max: usize) -> bool {
        self.entries.len() < batches_max && self.bytes + bytes <= bytes_max
    }

    fn pop(&mut self) -> Option<Batch> {
        let entry = self.entries.pop_front()?;
        self.bytes -= entry.batch.body.len();
        Some(entry.batch)
    }

    /// Of the batches that neither wait themselves nor stand behind one of their stream, the one that was
    /// tried least often, so that none of them starves the others; or when to look again.
    fn take(&mut self, closed: bool, now: Instant) -> Result<Entry, Option<Instant>> {
        if let Some(end) = pending(self.rest, closed, now).filter(|_| !self.entries.is_empty()) {
            return Err(Some(end));
        }
        let (mut seen, mut again): (BTreeSet<u64>, Option<Instant>) = (BTreeSet::new(), None);
        let mut best: Option<(u32, usize)> = None;
        for (index, entry) in self.entries.iter().enumerate() {
            if entry.batch.stream.is_some_and(|stream| !seen.insert(stream)) {
                continue;
            }
            if let Some(end) = pending(entry.rest, closed, now) {
                again = Some(again.map_or(end, |other| other.min(end)));
            } else if best.is_none_or(|(attempts, _)| entry.attempts < attempts) {
                best = Some((entry.attempts, index));
            }
            if best.is_some_and(|(attempts, _)| attempts == 0) {
                break;
            }
        }
        let Some((_, index)) = best else { return Err(again) };
        let entry = self.entries.remove(index).expect("invariant: the index was found in the line");
        self.bytes -= entry.batch.body.len();
        Ok(entry)
    }
}

/// What the sender gets from its outbox.
enum Taken {
    Entry(Entry, Origin),
    /// Nothing before this time, or before something is queued.
    Wait(Option<Instant>),
    End,
}

impl Outbox {
    /// Empty and open.
    pub(crate) fn new(signal: Signal, ledger: Arc<Ledger>) -> Self {
        Self::paced(signal, ledger, Pace::default())
    }

    /// Empty and open, with pauses of its own.
    pub(crate) fn paced(signal: Signal, ledger: Arc<Ledger>, pace: Pace) -> Self {
        Self { signal, ledger, pace, has_exporter: true, lines: Mutex::default(), changed: Notify::new() }
    }

    /// An outbox without a way out: what is pushed is counted as dropped, what is offered is refused.
    pub(crate) fn without_exporter(signal: Signal, ledger: Arc<Ledger>) -> Self {
        Self { has_exporter: false, ..Self::new(signal, ledger) }
    }

    /// The signal whose batches these are.
    pub(crate) fn signal(&self) -> Signal {
        self.signal
    }

    /// Whether there is an `EXPORTER_URL`.
    pub(crate) fn has_exporter(&self) -> bool {
        self.has_exporter
    }

    /// Queues a batch of the plugin's own; the oldest ones make room.
    pub(crate) fn push(&self, batch: Batch) {
        let bytes = batch.body.len();
        let mut lines = self.lines();
        if !self.has_exporter || lines.closed {
            drop(lines);
            let reason = if self.has_exporter { Dropped::Shutdown } else { Dropped::NoExporter };
            return self.count(&batch, Move::Lost(reason));
        }
        if bytes > OWN_BYTES_MAX {
            drop(lines);
            return self.count(&batch, Move::Lost(Dropped::QueueFull));
        }
        self.expire(&mut lines);
        while !lines.own.has_room(bytes, OWN_BATCHES_MAX, OWN_BYTES_MAX) {
            let Some(oldest) = lines.own.pop() else { break };
            self.count(&oldest, Move::Dropped(Dropped::QueueFull));
        }
        self.enter(&mut lines, batch, Origin::Own);
    }

    /// Queues an app's batch, or says why not.
    pub(crate) fn offer(&self, batch: Batch) -> Result<(), Refusal> {
        let bytes = batch.body.len();
        let mut lines = self.lines();
        self.expire(&mut lines);
        if !self.has_exporter {
            return Err(Refusal::NoExporter);
        }
        if lines.closed {
            return Err(Refusal::Closed);
        }
        if bytes > APP_BYTES_MAX {
            return Err(Refusal::TooLarge);
        }
        if !lines.apps.has_room(bytes, APP_BATCHES_MAX, APP_BYTES_MAX) {
            return Err(Refusal::Full);
        }
        self.enter(&mut lines, batch, Origin::App);
        Ok(())
    }

    fn enter(&self, lines: &mut Lines, batch: Batch, origin: Origin) {
        self.count(&batch, Move::Queued { received: origin == Origin::App });
        let line = lines.line(origin);
        line.bytes += batch.body.len();
        let queued = Instant::now();
        line.entries.push_back(Entry { batch, queued, rest: None, attempts: 0, put_off: None });
        self.changed.notify_one();
    }

    /// The next batch that may be tried, own ones first; none when the outbox is closed and empty. One caller
    /// only.
    pub(crate) async fn next(&self) -> Option<Parcel<'_>> {
        loop {
            let until = match self.take() {
                Taken::Entry(entry, origin) => {
                    return Some(Parcel { outbox: self, entry: Some(entry), origin });
                }
                Taken::Wait(until) => until,
                Taken::End => return None,
            };
            let pause = async {
                match until {
                    Some(until) => sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.changed.notified() => {}
                () = pause => {}
            }
        }
    }

    fn take(&self) -> Taken {
        let mut lines = self.lines();
        self.expire(&mut lines);
        let (closed, now) = (lines.closed, Instant::now());
        if lines.is_empty() {
            return if closed { Taken::End } else { Taken::Wait(None) };
        }
        if let Some(end) = pending(lines.rest, closed, now) {
            return Taken::Wait(Some(end));
        }
        let mut again: Option<Instant> = None;
        for origin in [Origin::Own, Origin::App] {
            match lines.line(origin).take(closed, now) {
                Ok(entry) => return Taken::Entry(entry, origin),
                Err(Some(end)) => again = Some(again.map_or(end, |other| other.min(end))),
                Err(None) => {}
            }
        }
        Taken::Wait(again)
    }

    /// Drops what has waited too long.
    fn expire(&self, lines: &mut Lines) {
        for origin in [Origin::Own, Origin::App] {
            let line = lines.line(origin);
            let is_old = |entry: &Entry| entry.queued.elapsed() > AGE_MAX && entry.batch.receipt.is_none();
            while line.entries.front().is_some_and(is_old) {
                let Some(oldest) = line.pop() else { break };
                self.count(&oldest, Move::Dropped(Dropped::TooOld));
            }
        }
    }

    /// From here on the sender empties the queue and ends.
    pub(crate) fn close(&self) {
        self.lines().closed = true;
        self.changed.notify_one();
    }

    /// Drops all that still waits, and returns how many items that were.
    pub(crate) fn discard(&self, reason: Dropped) -> u64 {
        let mut lines = self.lines();
        let mut items = 0;
        for origin in [Origin::Own, Origin::App] {
            while let Some(batch) = lines.line(origin).pop() {
                items += batch.items;
                self.count(&batch, Move::Dropped(reason));
            }
        }
        items
    }

    fn count(&self, batch: &Batch, change: Move) {
        self.ledger.change(self.signal, change, batch.items, batch.body.len());
    }

    fn lines(&self) -> MutexGuard<'_, Lines> {
        // No code that can panic runs between two changes that belong together.
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lines {
    fn line(&mut self, origin: Origin) -> &mut Line {
        match origin {
            Origin::Own => &mut self.own,
            Origin::App => &mut self.apps,
        }
    }

    fn is_empty(&self) -> bool {
        self.own.entries.is_empty() && self.apps.entries.is_empty()
    }

    /// The collector answered: the way out is there.
    fn answered(&mut self) {
        self.rest = None;
        self.failures = 0;
    }
}

/// A batch in the sender's hand. It ends as sent, as dropped or back in its line; one that is lost with its
/// sender is counted as dropped.
#[derive(Debug)]
pub(crate) struct Parcel<'a> {
    outbox: &'a Outbox,
    entry: Option<Entry>,
    origin: Origin,
}

impl Parcel<'_> {
    /// The gzip body.
    pub(crate) fn body(&self) -> Bytes {
        self.entry().batch.body.clone()
    }

    /// How many items are in it.
    pub(crate) fn items(&self) -> u64 {
        self.entry().batch.items
    }

    fn entry(&self) -> &Entry {
        self.entry.as_ref().expect("invariant: only a method that consumes the parcel takes the entry")
    }

    /// The collector has it, except for `rejected` items.
    pub(crate) fn sent(mut self, rejected: u64) {
        let Some(entry) = self.entry.take() else { return };
        let mut lines = self.outbox.lines();
        lines.answered();
        let line = lines.line(self.origin);
        (line.rest, line.failures) = (None, 0);
        entry.batch.settle();
        self.outbox.count(&entry.batch, Move::Sent { rejected });
    }

    /// The collector will never take it.
    pub(crate) fn refused(mut self) {
        let Some(entry) = self.entry.take() else { return };
        let mut lines = self.outbox.lines();
        lines.answered();
        let line = lines.line(self.origin);
        (line.rest, line.failures) = (None, 0);
        entry.batch.settle();
        self.outbox.count(&entry.batch, Move::Dropped(Dropped::Refused));
    }

    /// Takes the batch back to the front of its line, after a pause, unless the collector has put it off for
    /// too long.
    pub(crate) fn retry(mut self, setback: Setback) {
        let Some(mut entry) = self.entry.take() else { return };
        let (outbox, now, chance) = (self.outbox, Instant::now(), retry::chance());
        let pace = &outbox.pace;
        entry.attempts = entry.attempts.saturating_add(1);
        let mut lines = outbox.lines();
        match setback {
            Setback::Unreachable => {
                lines.failures = lines.failures.saturating_add(1);
                lines.rest = Some(Rest::new(now, (pace.unreachable)(lines.failures, chance)));
            }
            Setback::NoAnswer => {
                lines.failures = lines.failures.saturating_add(1);
                let wait = (pace.unreachable)(lines.failures, chance);
                // Half of it for the others: if they arrive, it was the batch.
                lines.rest = Some(Rest::new(now, wait / 2));
                entry.rest = Some(Rest::new(now, wait));
            }
            Setback::Status(after) => {
                lines.answered();
                let line = lines.line(self.origin);
                line.failures = line.failures.saturating_add(1);
                let pause = |failures| after.unwrap_or_else(|| (pace.status)(failures, chance));
                line.rest = Some(Rest::new(now, pause(line.failures)));
                entry.rest = Some(Rest::new(now, pause(entry.attempts)));
                let since = *entry.put_off.get_or_insert(now);
                let is_kept = entry.batch.receipt.is_some();
                if now.saturating_duration_since(since) >= retry::PUT_OFF_MAX && !is_kept {
                    return outbox.count(&entry.batch, Move::Dropped(Dropped::RetriesExhausted));
                }
            }
        }
        let line = lines.line(self.origin);
        let bytes = entry.batch.body.len();
        if self.origin == Origin::Own && !line.has_room(bytes, OWN_BATCHES_MAX, OWN_BYTES_MAX) {
            // Newer ones took its room, and it is the oldest.
            return outbox.count(&entry.batch, Move::Dropped(Dropped::QueueFull));
        }
        outbox.count(&entry.batch, Move::Retried);
        // An app's batch may stand here as one more than the bound: the one that the sender held.
        line.bytes += bytes;
        line.entries.push_front(entry);
    }
}

impl Drop for Parcel<'_> {
    fn drop(&mut self) {
        if let Some(entry) = self.entry.take() {
            self.outbox.count(&entry.batch, Move::Dropped(Dropped::Shutdown));
        }
    }
}

/// The outboxes of all signals.
#[derive(Debug, Clone)]
pub(crate) struct Outboxes([Arc<Outbox>; Signal::ALL.len()]);

impl Outboxes {
    /// One for each signal, made by `make`.
    pub(crate) fn new(make: impl Fn(Signal) -> Outbox) -> Self {
        Self(Signal::ALL.map(|signal| Arc::new(make(signal))))
    }

    /// The outbox of `signal`.
    pub(crate) fn of(&self, signal: Signal) -> &Arc<Outbox> {
        &self.0[signal.index()]
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Outbox>> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests;
