//! The heart: asks for a sample each interval, has it encoded, queues it. One task, no state shared but
//! counters.

use std::{future::Future, sync::Arc, time::Duration};

use enclave_protocol::metrics::{Family, Sample};
use prost::Message as _;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout},
};

use crate::{
    clock,
    identity::Identity,
    ledger::{Dropped, Ledger, SELF_PREFIX},
    otlp::{self, Export, Times},
    outbox::{Batch, Outbox, SUPERVISOR},
    pipeline::Pipeline,
    retry,
    sender::chain,
    signal::Signal,
    source::Source,
};

/// A sample older than this many intervals is not exported again.
pub(crate) const STALE_INTERVALS: u32 = 3;
/// First pause after a failed question.
const BACKOFF_INITIAL: Duration = Duration::from_millis(250);
/// How long the last question may take, when the supervisor may be stopping too.
const LAST_FETCH_TIMEOUT: Duration = Duration::from_secs(1);

/// From samples to batches.
pub(crate) struct Pump {
    source: Source,
    interval: Duration,
    ledger: Arc<Ledger>,
    outbox: Arc<Outbox>,
    identity: watch::Sender<Option<Identity>>,
    pipeline: Option<Pipeline>,
    latest: Option<Latest>,
    last_export: Option<Export>,
    failures: u32,
}

/// The newest sample, and when it was new.
struct Latest {
    sample: Sample,
    seen: Instant,
}

impl Pump {
    /// A pump that has seen no sample.
    pub(crate) fn new(
        source: Source,
        interval: Duration,
        ledger: Arc<Ledger>,
        outbox: Arc<Outbox>,
        identity: watch::Sender<Option<Identity>>,
    ) -> Self {
        let (pipeline, latest, last_export) = (None, None, None);
        Self { source, interval, ledger, outbox, identity, pipeline, latest, last_export, failures: 0 }
    }

    /// Runs until `stop`, then exports once more and queues the end marker.
    pub(crate) async fn run(mut self, stop: impl Future<Output = ()>) {
        tokio::pin!(stop);
        let mut exported = Instant::now();
        loop {
            let begun = Instant::now();
            let fetched = tokio::select! {
                () = &mut stop => break,
                fetched = self.source.fetch() => fetched,
            };
            let wait = match fetched {
                Ok(sample) => self.take(sample),
                Err(error) => self.missed(&chain(&error)),
            };
            // While the supervisor is away our own numbers still go out, at the usual pace.
            if self.failures == 0 || exported.elapsed() >= self.interval {
                exported = Instant::now();
                self.export().await;
            }
            tokio::select! {
                () = &mut stop => break,
                () = sleep_until(begun + wait) => {}
            }
        }
        self.finish().await;
    }

    /// Keeps a sample if it is new; returns how long to wait for the next one.
    fn take(&mut self, sample: Sample) -> Duration {
        let Some(identity) = Identity::of(&sample) else {
            return self.missed("the sample does not say whose it is");
        };
        if std::mem::take(&mut self.failures) > 0 {
            tracing::info!("the supervisor answers again");
        }
        // The same reading once more does not make it younger.
        if self.latest.as_ref().is_some_and(|latest| latest.sample.time == sample.time) {
            return self.interval;
        }
        if self.identity.borrow().as_ref() != Some(&identity) {
            self.identity.send_replace(Some(identity));
        }
        self.ledger.sampled();
        self.latest = Some(Latest { sample, seen: Instant::now() });
        self.interval
    }

    /// Counts a failure; returns how long to wait.
    fn missed(&mut self, why: &str) -> Duration {
        if self.failures == 0 {
            tracing::warn!(why, "the supervisor gives no sample, trying again");
        }
        self.failures = self.failures.saturating_add(1);
        retry::doubled(BACKOFF_INITIAL, self.interval, self.failures, retry::chance())
    }

    /// What is known now: the newest sample unless it is stale, and our own counters.
    fn families(&self) -> Vec<Family> {
        let mut families = self.ledger.families();
        let fresh = self.latest.as_ref().filter(|l| l.seen.elapsed() <= self.interval * STALE_INTERVALS);
        if let Some(latest) = fresh {
            families.extend(latest.sample.families.iter().cloned());
        }
        families
    }

    async fn export(&mut self) {
        let Some(identity) = self.identity.borrow().clone() else { return };
        let export = match self.encode(identity).await {
            Ok(export) => export,
            Err(error) => {
                // Nothing from outside leads here; it would come back each interval, which is what it
                // deserves.
                tracing::error!(error = chain(&error), "metrics could not be encoded");
                return;
            }
        };
        self.queue(&export);
        self.last_export = Some(export);
    }

    async fn encode(&mut self, identity: Identity) -> Result<Export, crate::pipeline::PipelineError> {
        let families = self.families();
        let pipeline = match self.pipeline.take().filter(|pipeline| *pipeline.identity() == identity) {
            Some(pipeline) => pipeline,
            None => Pipeline::new(identity)?,
        };
        let (mut export, surplus) = self.pipeline.insert(pipeline).export(families).await?;
        if surplus > 0 {
            self.ledger.lost(Signal::Metrics, Dropped::TooManySeries, surplus);
        }
        let now = clock::now();
        let sample = self.latest.as_ref().map(|latest| &latest.sample);
        let sampled =
            Times { start: sample.map(|sample| sample.started), time: sample.map_or(now, |s| s.time) };
        let started = self.ledger.started();
        otlp::stamp(&mut export, |name| {
            if name.starts_with(SELF_PREFIX) { Times { start: Some(started), time: now } } else { sampled }
        });
        Ok(export)
    }

    fn queue(&self, export: &Export) {
        self.outbox.push(Batch::new(export.encode_to_vec(), otlp::count(export)).in_stream(SUPERVISOR));
    }

    /// The last sample, then the marker that nothing will follow.
    async fn finish(mut self) {
        if let Ok(Ok(sample)) = timeout(LAST_FETCH_TIMEOUT, self.source.fetch()).await {
            self.take(sample);
        }
        self.export().await;
        if let Some(mut last) = self.last_export.take() {
            otlp::end(&mut last, clock::now());
            self.queue(&last);
        }
    }
}
