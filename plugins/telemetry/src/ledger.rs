//! The account of all that was to be exported: for `enclave_telemetry_*`, `/healthz` and the export report.
//!
//! The unit is the item: a data point, a log record, a span. The numbers of one signal change together, under
//! one lock, so that `produced = sent + dropped + queued` holds at every moment. An item that a sender holds
//! is queued. The outbox is the only caller that moves items; others only report what never got there.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use enclave_protocol::{
    metrics::{Family, Point},
    telemetry::{self, DroppedItems, SignalReport, TelemetryReport},
    timestamp::Timestamp,
};
use tokio::{sync::Notify, time::Instant};

use crate::{clock, signal::Signal};

/// The beginning of the names of the plugin's own metrics.
pub(crate) const SELF_PREFIX: &str = telemetry::PREFIX;

/// Why items never reached the collector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Dropped {
    /// The queue was full; the oldest went.
    QueueFull,
    /// They waited longer than a reader looks back.
    TooOld,
    /// The collector answered with a status that must not be retried.
    Refused,
    /// The collector asked to come again for as long as a batch is kept.
    RetriesExhausted,
    /// The collector took the batch but not these items.
    Rejected,
    /// No `EXPORTER_URL` is set.
    NoExporter,
    /// The time for the last flush was over, or the sender was ended.
    Shutdown,
    /// A family had more points than are kept apart.
    TooManySeries,
    /// They could not be encoded.
    Encoding,
}

impl Dropped {
    /// Every reason, in the order of their discriminants.
    pub(crate) const ALL: [Self; 9] = [
        Self::QueueFull,
        Self::TooOld,
        Self::Refused,
        Self::RetriesExhausted,
        Self::Rejected,
        Self::NoExporter,
        Self::Shutdown,
        Self::TooManySeries,
        Self::Encoding,
    ];

    /// The label `reason`.
    #[cfg(test)]
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::TooOld => "too_old",
            Self::Refused => "refused",
            Self::RetriesExhausted => "retries_exhausted",
            Self::Rejected => "rejected",
            Self::NoExporter => "no_exporter",
            Self::Shutdown => "shutdown",
            Self::TooManySeries => "too_many_series",
            Self::Encoding => "encoding",
        }
    }
}

/// The numbers of one signal at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Account {
    /// Items that were to be exported.
    pub(crate) produced: u64,
    /// Of them, those that apps sent.
    pub(crate) received: u64,
    /// Items that the collector accepted.
    pub(crate) sent: u64,
    /// Items that were sent once more.
    pub(crate) retried: u64,
    /// Items that never arrived, by [`Dropped`].
    dropped: [u64; Dropped::ALL.len()],
    /// Items that wait, those in the sender's hand included.
    pub(crate) queued: u64,
    /// Their batches.
    pub(crate) queued_batches: u64,
    /// Their compressed size.
    pub(crate) queued_bytes: u64,
    /// When the collector accepted last.
    pub(crate) last_success: Option<Instant>,
    /// The last failure, unless a success came after it.
    pub(crate) last_error: Option<String>,
}

impl Account {
    fn report(&self, now: Timestamp) -> SignalReport {
        let ago = |at: Instant| u64::try_from(at.elapsed().as_nanos()).unwrap_or(u64::MAX);
        SignalReport {
            produced: self.produced,
            received: self.received,
            sent: self.sent,
            retried: self.retried,
            dropped: DroppedItems {
                queue_full: self.dropped(Dropped::QueueFull),
                too_old: self.dropped(Dropped::TooOld),
                refused: self.dropped(Dropped::Refused),
                retries_exhausted: self.dropped(Dropped::RetriesExhausted),
                rejected: self.dropped(Dropped::Rejected),
                no_exporter: self.dropped(Dropped::NoExporter),
                shutdown: self.dropped(Dropped::Shutdown),
                too_many_series: self.dropped(Dropped::TooManySeries),
                encoding: self.dropped(Dropped::Encoding),
            },
            queued: self.queued,
            queue_batches: self.queued_batches,
            queue_bytes: self.queued_bytes,
            // By the monotonic clock, so that the age is right whatever happened to the other one.
            last_success: self.last_success.map(|at| Timestamp(now.0.saturating_sub(ago(at)))),
            last_error: self.last_error.clone(),
        }
    }

    /// Items dropped for `reason`.
    pub(crate) fn dropped(&self, reason: Dropped) -> u64 {
        self.dropped[reason as usize]
    }

    /// Items dropped for any reason.
    pub(crate) fn dropped_total(&self) -> u64 {
        self.dropped.iter().sum()
    }
}

/// A change of an account, by the outbox.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Move {
    /// A batch was queued, for an app or for ourselves.
    Queued {
        /// Whether an app sent it.
        received: bool,
    },
    /// A batch was queued and went out again at once, to make place or without an exporter.
    Lost(Dropped),
    /// A queued batch is given up.
    Dropped(Dropped),
    /// The collector took a queued batch, except for so many items.
    Sent {
        /// Items that it rejected.
        rejected: u64,
    },
    /// A batch in the sender's hand waits for another attempt.
    Retried,
}

/// The accounts, shared by all tasks.
#[derive(Debug)]
pub(crate) struct Ledger {
    started: Timestamp,
    facts: Mutex<Facts>,
    turned: Notify,
}

#[derive(Debug, Default)]
struct Facts {
    accounts: [Account; Signal::ALL.len()],
    config_errors: usize,
    last_sample: Option<Instant>,
    stale_after: Duration,
}

impl Ledger {
    /// All zero, counting from now.
    pub(crate) fn new() -> Self {
        Self { started: clock::now(), facts: Mutex::default(), turned: Notify::new() }
    }

    /// Since when it counts.
    pub(crate) fn started(&self) -> Timestamp {
        self.started
    }

    /// The numbers of `signal` now.
    pub(crate) fn account(&self, signal: Signal) -> Account {
        self.facts().accounts[signal.index()].clone()
    }

    /// Items that were to be exported and never became a batch.
    pub(crate) fn lost(&self, signal: Signal, reason: Dropped, items: u64) {
        self.change(signal, Move::Lost(reason), items, 0);
    }

    /// Applies a move of a batch with so many items and bytes.
    pub(crate) fn change(&self, signal: Signal, change: Move, items: u64, bytes: usize) {
        let bytes = bytes as u64;
        let mut facts = self.facts();
        let account = &mut facts.accounts[signal.index()];
        match change {
            Move::Queued { received } => {
                account.produced += items;
                account.received += if received { items } else { 0 };
                account.queued += items;
                account.queued_bytes += bytes;
                account.queued_batches += 1;
                return;
            }
            Move::Lost(reason) => {
                account.produced += items;
                account.dropped[reason as usize] += items;
                return;
            }
            Move::Retried => {
                account.retried += items;
                return;
            }
            Move::Dropped(reason) => account.dropped[reason as usize] += items,
            Move::Sent { rejected } => {
                let rejected = rejected.min(items);
                account.sent += items - rejected;
                account.dropped[Dropped::Rejected as usize] += rejected;
                if account.last_success.replace(Instant::now()).is_none()
                    || account.last_error.take().is_some()
                {
                    self.turned.notify_one();
                }
            }
        }
        account.queued -= items;
        account.queued_bytes -= bytes;
        account.queued_batches -= 1;
    }

    /// How the last attempt of `signal` failed.
    pub(crate) fn failed(&self, signal: Signal, error: &str) {
        let error = telemetry::error_text(error);
        if self.facts().accounts[signal.index()].last_error.replace(error).is_none() {
            self.turned.notify_one();
        }
    }

    /// A new sample came; it is stale from this age on.
    pub(crate) fn sampled(&self, stale_after: Duration) {
        let mut facts = self.facts();
        (facts.last_sample, facts.stale_after) = (Some(Instant::now()), stale_after);
    }

    /// Whether there is a sample that is not stale.
    pub(crate) fn is_fresh(&self) -> bool {
        let facts = self.facts();
        facts.last_sample.is_some_and(|at| at.elapsed() <= facts.stale_after)
    }

    /// How many mistakes the configuration has.
    pub(crate) fn misconfigured(&self, errors: usize) {
        self.facts().config_errors = errors;
    }

    /// Age of the newest sample.
    pub(crate) fn sample_age(&self) -> Option<Duration> {
        self.facts().last_sample.map(|at| at.elapsed())
    }

    /// The accounts as they are told to the supervisor.
    pub(crate) fn report(&self, export_interval: Duration) -> TelemetryReport {
        let (facts, now) = (self.facts(), clock::now());
        let signal = |signal: Signal| facts.accounts[signal.index()].report(now);
        TelemetryReport {
            started: self.started,
            export_interval_millis: u64::try_from(export_interval.as_millis()).unwrap_or(u64::MAX),
            metrics: signal(Signal::Metrics),
            logs: signal(Signal::Logs),
            traces: signal(Signal::Traces),
        }
    }

    /// The accounts as metric families.
    pub(crate) fn families(&self) -> Vec<Family> {
        let mut families = self.report(Duration::ZERO).families(clock::now());
        let mistakes = vec![Point::bare(self.facts().config_errors as f64)];
        let name = format!("{SELF_PREFIX}config_errors");
        families.push(Family::gauge(&name, "Mistakes in config.yaml; with one, no job is run", mistakes));
        families
    }

    /// Returns when exports of a signal began to fail, or to succeed.
    pub(crate) async fn turned(&self) {
        self.turned.notified().await;
    }

    fn facts(&self) -> MutexGuard<'_, Facts> {
        // Plain numbers: a panic elsewhere cannot leave them half changed.
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_stands_at_its_index_and_is_reported_under_its_name() {
        for (index, reason) in Dropped::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
            let ledger = Ledger::new();
            ledger.lost(Signal::Logs, reason, 3);
            let dropped = ledger.report(Duration::ZERO).logs.dropped.by_reason();
            let told: Vec<_> = dropped.into_iter().filter(|(_, items)| *items > 0).collect();
            assert_eq!(told, [(reason.label(), 3)]);
        }
    }
}
