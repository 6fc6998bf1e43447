//! What happened to the points: counted for `enclave_telemetry_*` and for `/healthz`.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use enclave_protocol::{
    metrics::{Family, Point},
    timestamp::Timestamp,
};
use tokio::time::Instant;

use crate::clock;

/// What our own metrics' names begin with.
pub(crate) const SELF_PREFIX: &str = "enclave_telemetry_";

/// Why points never reached the collector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Dropped {
    /// The queue was full; the oldest went.
    QueueFull,
    /// The collector answered with a status that must not be retried.
    Refused,
    /// It was tried as often as allowed.
    RetriesExhausted,
    /// The collector took the batch but not these points.
    Rejected,
    /// No `EXPORTER_URL` is set.
    NoExporter,
    /// The time for the last flush was over.
    Shutdown,
    /// A family had more points than the SDK keeps apart.
    TooManySeries,
}

impl Dropped {
    const ALL: [Self; 7] = [
        Self::QueueFull,
        Self::Refused,
        Self::RetriesExhausted,
        Self::Rejected,
        Self::NoExporter,
        Self::Shutdown,
        Self::TooManySeries,
    ];

    fn label(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::Refused => "refused",
            Self::RetriesExhausted => "retries_exhausted",
            Self::Rejected => "rejected",
            Self::NoExporter => "no_exporter",
            Self::Shutdown => "shutdown",
            Self::TooManySeries => "too_many_series",
        }
    }
}

/// The counters, shared by all tasks.
#[derive(Debug)]
pub(crate) struct Ledger {
    started: Timestamp,
    facts: Mutex<Facts>,
}

#[derive(Debug, Default)]
struct Facts {
    sent: u64,
    received: u64,
    retried: u64,
    dropped: BTreeMap<Dropped, u64>,
    unsupported_jobs: usize,
    last_success: Option<Instant>,
    last_result: Option<String>,
    last_sample: Option<Instant>,
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

    /// The collector has these points.
    pub(crate) fn sent(&self, points: u64) {
        let mut facts = self.facts();
        facts.sent += points;
        facts.last_success = Some(Instant::now());
        facts.last_result = Some("ok".to_owned());
    }

    /// These points are lost.
    pub(crate) fn dropped(&self, reason: Dropped, points: u64) {
        *self.facts().dropped.entry(reason).or_default() += points;
    }

    /// These points wait for another attempt.
    pub(crate) fn retried(&self, points: u64) {
        self.facts().retried += points;
    }

    /// These points came from a plugin.
    pub(crate) fn received(&self, points: u64) {
        self.facts().received += points;
    }

    /// How the last export that failed ended.
    pub(crate) fn failed(&self, result: String) {
        self.facts().last_result = Some(result);
    }

    /// A new sample came.
    pub(crate) fn sampled(&self) {
        self.facts().last_sample = Some(Instant::now());
    }

    /// How many jobs of the configuration are not run.
    pub(crate) fn unsupported(&self, jobs: usize) {
        self.facts().unsupported_jobs = jobs;
    }

    /// Age of the newest sample.
    pub(crate) fn sample_age(&self) -> Option<Duration> {
        self.facts().last_sample.map(|at| at.elapsed())
    }

    /// How the last export ended.
    pub(crate) fn last_result(&self) -> Option<String> {
        self.facts().last_result.clone()
    }

    /// The sum of all drops.
    pub(crate) fn dropped_total(&self) -> u64 {
        self.facts().dropped.values().sum()
    }

    /// The counters as metric families, with what the queue holds.
    pub(crate) fn families(&self, queued_batches: usize, queued_bytes: usize) -> Vec<Family> {
        let facts = self.facts();
        let one = |value: u64| vec![Point::bare(value as f64)];
        let dropped = Dropped::ALL.iter().map(|reason| {
            let points = facts.dropped.get(reason).copied().unwrap_or_default();
            Point::labelled([("reason", reason.label())], points as f64)
        });
        let age = facts.last_success.map(|at| Point::bare(at.elapsed().as_secs_f64()));
        let counter =
            |name: &str, help, points| Family::counter(&format!("{SELF_PREFIX}{name}"), help, points);
        let gauge = |name: &str, help, points| Family::gauge(&format!("{SELF_PREFIX}{name}"), help, points);
        vec![
            counter("points_sent_total", "Data points that the collector accepted", one(facts.sent)),
            counter("points_received_total", "Data points that plugins sent as OTLP", one(facts.received)),
            counter("points_retried_total", "Data points sent once more", one(facts.retried)),
            counter("points_dropped_total", "Data points that never arrived, by reason", dropped.collect()),
            gauge("queue_batches", "Batches that wait for the collector", one(queued_batches as u64)),
            gauge("queue_bytes", "Their compressed size", one(queued_bytes as u64)),
            gauge(
                "last_success_age_seconds",
                "Time since the collector last accepted",
                age.into_iter().collect(),
            ),
            gauge(
                "config_unsupported",
                "Configured scrape jobs that are not run",
                one(facts.unsupported_jobs as u64),
            ),
        ]
    }

    fn facts(&self) -> MutexGuard<'_, Facts> {
        // Plain numbers: a panic elsewhere cannot leave them half changed.
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
