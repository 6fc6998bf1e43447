//! The heart: asks for a sample, has it encoded when an export is due, queues it. One task, no state shared
//! but counters.

use std::{collections::BTreeMap, future::Future, sync::Arc, time::Duration};

use enclave_protocol::metrics::{CPU_USAGE, Family, Sample};
use prost::Message as _;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout},
};

use crate::{
    cadence::{Cadence, Due},
    clock,
    identity::Identity,
    ledger::{Dropped, Ledger, SELF_PREFIX},
    otlp::{self, Export},
    outbox::{Batch, Outbox, SUPERVISOR},
    pipeline::{Pipeline, PipelineError},
    retry,
    sender::chain,
    series::Series,
    signal::Signal,
    source::Source,
    times::Times,
};

/// First pause after a failed question.
const BACKOFF_INITIAL: Duration = Duration::from_millis(250);
/// Longest pause: the supervisor is on this machine.
const BACKOFF_MAX: Duration = Duration::from_secs(4);
/// How long the last question may take, when the supervisor may be stopping too.
const LAST_FETCH_TIMEOUT: Duration = Duration::from_secs(1);

/// From samples to batches.
pub(crate) struct Pump {
    source: Source,
    /// Attributes of the resource beside the identity.
    resource: BTreeMap<String, String>,
    interval: Duration,
    cadence: Cadence,
    ledger: Arc<Ledger>,
    outbox: Arc<Outbox>,
    identity: watch::Sender<Option<Identity>>,
    pipeline: Option<Pipeline>,
    latest: Option<Sample>,
    times: Times,
    /// The supervisor's series and the plugin's own, as far as a receiver may still believe in them.
    series: Series,
    failures: u32,
}

impl Pump {
    /// A pump that has seen no sample.
    pub(crate) fn new(
        source: Source,
        resource: BTreeMap<String, String>,
        interval: Duration,
        ledger: Arc<Ledger>,
        outbox: Arc<Outbox>,
        identity: watch::Sender<Option<Identity>>,
    ) -> Self {
        Self {
            source,
            resource,
            interval,
            cadence: Cadence::new(interval, Instant::now()),
            ledger,
            outbox,
            identity,
            pipeline: None,
            latest: None,
            times: Times::default(),
            series: Series::default(),
            failures: 0,
        }
    }

    /// Runs until `stop`, then exports once more and ends every series.
    pub(crate) async fn run(mut self, stop: impl Future<Output = ()>) {
        tokio::pin!(stop);
        loop {
            let begun = Instant::now();
            let fetched = tokio::select! {
                () = &mut stop => break,
                fetched = self.source.fetch() => fetched,
            };
            let wait = match fetched {
                Ok(sample) => self.answered(sample),
                Err(error) => self.missed(&chain(&error)),
            };
            match self.cadence.due(Instant::now()) {
                Due::Nothing => {}
                due @ (Due::Sample | Due::OwnAlone) => self.export(due).await,
            }
            tokio::select! {
                () = &mut stop => break,
                () = sleep_until(begun + wait) => {}
            }
        }
        self.finish().await;
    }

    /// Keeps a sample if it is new; returns how long to wait for the next one.
    fn answered(&mut self, sample: Option<Sample>) -> Duration {
        let identity = sample.as_ref().map(Identity::of);
        if identity == Some(None) {
            return self.missed("the sample does not say whose it is");
        }
        if std::mem::take(&mut self.failures) > 0 {
            tracing::info!("the supervisor answers again");
        }
        if let (Some(sample), Some(Some(identity))) = (sample, identity) {
            self.take(sample, identity);
        }
        self.cadence.poll()
    }

    fn take(&mut self, sample: Sample, identity: Identity) {
        // The same reading once more does not make it younger.
        if self.latest.as_ref().is_some_and(|latest| latest.time == sample.time) {
            return;
        }
        if self.identity.borrow().as_ref() != Some(&identity) {
            self.identity.send_replace(Some(identity));
        }
        let told = Some(sample.interval_millis).filter(|millis| *millis > 0).map(Duration::from_millis);
        self.cadence.sampled(sample.value(CPU_USAGE).is_some(), told, Instant::now());
        self.ledger.sampled(self.cadence.stale_after());
        self.latest = Some(sample);
    }

    /// Counts a failure; returns how long to wait.
    fn missed(&mut self, why: &str) -> Duration {
        if self.failures == 0 {
            tracing::warn!(why, "the supervisor gives no sample, trying again");
        }
        self.failures = self.failures.saturating_add(1);
        retry::doubled(BACKOFF_INITIAL, self.interval.min(BACKOFF_MAX), self.failures, retry::chance())
    }

    /// The plugin's own counters, and the newest sample where it is due. What the supervisor tells of this
    /// plugin would be the same counters a second time.
    fn families(&self, due: Due) -> Vec<Family> {
        let mut families = self.ledger.families();
        let sample = self.latest.as_ref().filter(|_| due == Due::Sample);
        let theirs = sample.iter().flat_map(|sample| &sample.families);
        families.extend(theirs.filter(|family| !family.name.starts_with(SELF_PREFIX)).cloned());
        families
    }

    async fn export(&mut self, due: Due) {
        let Some(identity) = self.identity.borrow().clone() else { return };
        let families = self.families(due);
        let points = families.iter().map(|family| family.points.len() as u64).sum();
        let (mut export, surplus) = match self.encode(identity, families).await {
            Ok(encoded) => encoded,
            Err(error) => {
                // Nothing from outside leads here; it would come back each interval, which is what it
                // deserves.
                tracing::error!(error = chain(&error), "metrics could not be encoded");
                return self.ledger.lost(Signal::Metrics, Dropped::Encoding, points);
            }
        };
        if surplus > 0 {
            self.ledger.lost(Signal::Metrics, Dropped::TooManySeries, surplus);
        }
        self.stamp(&mut export, due);
        self.queue(&export);
    }

    async fn encode(
        &mut self,
        identity: Identity,
        families: Vec<Family>,
    ) -> Result<(Export, u64), PipelineError> {
        let pipeline = match self.pipeline.take().filter(|pipeline| *pipeline.identity() == identity) {
            Some(pipeline) => pipeline,
            None => Pipeline::new(identity, &self.resource)?,
        };
        self.pipeline.insert(pipeline).export(families).await
    }

    /// Gives every point the time of this export, and ends the series that are not in it.
    fn stamp(&mut self, export: &mut Export, due: Due) {
        let (now, sample) = (clock::now(), self.latest.as_ref());
        let stamped = match sample.filter(|_| due == Due::Sample) {
            Some(sample) => self.times.of_sample(sample.time, now),
            None => self.times.next(now),
        };
        if let Some(back) = stamped.back {
            tracing::warn!(
                ?back,
                "the clock went back: the collector may refuse points until it is passed again"
            );
        }
        let own = self.ledger.started();
        let theirs = sample.map_or(own, |sample| sample.started);
        otlp::stamp(export, stamped.time, |name| if name.starts_with(SELF_PREFIX) { own } else { theirs });
        let ended = self.series.end_missing(export, stamped.time);
        export.resource_metrics.extend(ended.resource_metrics);
    }

    fn queue(&self, export: &Export) {
        self.outbox.push(Batch::new(export.encode_to_vec(), otlp::count(export)).in_stream(SUPERVISOR));
    }

    /// The last sample if it is a new one, then the marker that nothing will follow. The plugin's own
    /// counters ride with the sample or not at all: alone they would only delay the marker.
    async fn finish(mut self) {
        if let Ok(Ok(sample)) = timeout(LAST_FETCH_TIMEOUT, self.source.fetch()).await {
            self.answered(sample);
        }
        if self.cadence.has_new() {
            self.export(Due::Sample).await;
        }
        let ended = self.series.end(clock::now());
        if otlp::count(&ended) > 0 {
            self.queue(&ended);
        }
    }
}
