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
    timestamp::Timestamp,
};
use tokio::time::Instant;

use crate::{clock, signal::Signal};

/// The beginning of the names of the plugin's own metrics.
pub(crate) const SELF_PREFIX: &str = "enclave_telemetry_";

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
    /// The wall clock's time then.
    pub(crate) last_success_time: Option<Timestamp>,
    /// The last failure, unless a success came after it.
    pub(crate) last_error: Option<String>,
}

impl Account {
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
    /// A batch was queued and went out again at once, to make place or for want of an exporter.
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
}

#[derive(Debug, Default)]
struct Facts {
    accounts: [Account; Signal::ALL.len()],
    unsupported_jobs: usize,
    last_sample: Option<Instant>,
    stale_after: Duration,
}

impl Ledger {
    /// All zero, counting from now.
    pub(crate) fn new() -> Self {
        Self { started: clock::now(), facts: Mutex::default() }
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
                account.last_success = Some(Instant::now());
                account.last_success_time = Some(clock::now());
                account.last_error = None;
            }
        }
        account.queued -= items;
        account.queued_bytes -= bytes;
        account.queued_batches -= 1;
    }

    /// How the last attempt of `signal` failed.
    pub(crate) fn failed(&self, signal: Signal, error: String) {
        self.facts().accounts[signal.index()].last_error = Some(error);
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

    /// How many jobs of the configuration are not run.
    pub(crate) fn unsupported(&self, jobs: usize) {
        self.facts().unsupported_jobs = jobs;
    }

    /// Age of the newest sample.
    pub(crate) fn sample_age(&self) -> Option<Duration> {
        self.facts().last_sample.map(|at| at.elapsed())
    }

    /// The accounts as metric families.
    pub(crate) fn families(&self) -> Vec<Family> {
        let facts = self.facts();
        let mut families = Vec::new();
        for signal in Signal::ALL {
            families.extend(counters(signal, &facts.accounts[signal.index()]));
        }
        let by_signal = |value: &dyn Fn(&Account) -> Option<f64>| {
            let points = Signal::ALL.iter().filter_map(|signal| {
                let value = value(&facts.accounts[signal.index()])?;
                Some(Point::labelled([("signal", signal.name())], value))
            });
            points.collect::<Vec<_>>()
        };
        families.push(gauge(
            "queue_batches",
            "Batches that wait for the collector",
            by_signal(&|account| Some(account.queued_batches as f64)),
        ));
        families.push(gauge(
            "queue_bytes",
            "Compressed size of the batches that wait for the collector",
            by_signal(&|account| Some(account.queued_bytes as f64)),
        ));
        families.push(gauge(
            "last_success_age_seconds",
            "Time since the collector last accepted a batch",
            by_signal(&|account| account.last_success.map(|at| at.elapsed().as_secs_f64())),
        ));
        let unsupported = vec![Point::bare(facts.unsupported_jobs as f64)];
        families.push(gauge("config_unsupported", "Configured scrape jobs that are not run", unsupported));
        families
    }

    fn facts(&self) -> MutexGuard<'_, Facts> {
        // Plain numbers: a panic elsewhere cannot leave them half changed.
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The families of one signal.
fn counters(signal: Signal, account: &Account) -> Vec<Family> {
    let counter = |name: &str, does: &str, points| {
        let name = format!("{SELF_PREFIX}{}_{name}_total", signal.items());
        Family::counter(&name, &format!("{} {does}", signal.items_text()), points)
    };
    let one = |value: u64| vec![Point::bare(value as f64)];
    let dropped = Dropped::ALL
        .iter()
        .map(|reason| Point::labelled([("reason", reason.label())], account.dropped(*reason) as f64));
    vec![
        counter("produced", "that were to be exported", one(account.produced)),
        counter("received", "that apps sent as OTLP", one(account.received)),
        counter("sent", "that the collector accepted", one(account.sent)),
        counter("retried", "that were sent once more", one(account.retried)),
        counter("dropped", "that never arrived, by reason", dropped.collect()),
        gauge(
            &format!("{}_queued", signal.items()),
            &format!("{} that wait for the collector", signal.items_text()),
            one(account.queued),
        ),
    ]
}

fn gauge(name: &str, help: &str, points: Vec<Point>) -> Family {
    Family::gauge(&format!("{SELF_PREFIX}{name}"), help, points)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_stands_at_its_index() {
        for (index, reason) in Dropped::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
        }
    }
}
