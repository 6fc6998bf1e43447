//! When samples are taken, and how one is put together.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use enclave_protocol::{
    metrics::{Family, Sample},
    timestamp::Timestamp,
};
use tokio::time::Instant;

use super::running::Running;
use crate::{
    clock::Clock,
    control::board::Board,
    logs::ring::SUPERVISOR,
    sample::{
        families,
        system::{Reading, System, Window},
    },
};

/// From an accepted manifest to its first sample. CPU use needs two readings, and the headline is to be in
/// the first export; a second has a hundred ticks for each CPU.
const FIRST_SAMPLE: Duration = Duration::from_secs(1);
/// Between two looks at the plugins' memory limits. A look is one short read for each limit, and one that
/// comes too late says after the kill what should have been said before it.
const MEMORY_WATCH: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub(super) struct Sampler {
    clock: Clock,
    interval: Duration,
    stderr_lost: Arc<AtomicU64>,
    started: Timestamp,
    due: Instant,
    watch_due: Option<Instant>,
    /// Opened at the first sample.
    system: Option<System>,
    window: Window,
    /// How many samples of the deployment there were.
    number: u64,
}

impl Sampler {
    /// The first sample is due at once.
    pub(super) fn new(clock: Clock, interval: Duration, stderr_lost: Arc<AtomicU64>) -> Self {
        Self {
            clock,
            interval,
            stderr_lost,
            started: clock.wall(),
            due: clock.instant(clock.now()),
            watch_due: None,
            system: None,
            window: Window::default(),
            number: 0,
        }
    }

    /// When the next sample is to be taken.
    pub(super) fn due(&self) -> Instant {
        self.due
    }

    /// When the next look at memory limits is.
    pub(super) fn watch_due(&self) -> Option<Instant> {
        self.watch_due
    }

    /// A deployment begins: its first sample does not wait for the interval.
    pub(super) fn begin(&mut self, has_memory_limits: bool) {
        let now = Instant::now();
        self.due = self.due.min(now + FIRST_SAMPLE);
        self.watch_due = has_memory_limits.then(|| now + MEMORY_WATCH);
    }

    /// Somebody looks at the memory limits.
    pub(super) fn watched(&mut self) {
        if let Some(due) = &mut self.watch_due {
            *due = Instant::now() + MEMORY_WATCH;
        }
    }

    /// Takes a sample and puts it on the board.
    pub(super) fn sample(&mut self, running: Option<&mut Running>, board: &Board) {
        self.due = Instant::now() + self.interval;
        let reading = match self.read() {
            Ok(reading) => reading,
            Err(error) => {
                tracing::warn!(%error, "cannot read /proc");
                return;
            }
        };
        let (first, usage) = self.window.take(self.clock.now(), reading.cpu);
        let mut all = families::system(&reading, first, usage);
        let logs = board.logs.totals();
        let (mut labels, mut resource) = (BTreeMap::new(), BTreeMap::new());
        let mut net_restarts = 0;
        if let Some(running) = running {
            self.number += 1;
            all.extend(self.deployment(running, &reading, board));
            net_restarts = running.network.restarts;
            (labels, resource) = (running.labels.clone(), running.resource.clone());
        }
        let own_log = logs.get(SUPERVISOR).copied().unwrap_or_default();
        let lost = self.stderr_lost.load(Ordering::Relaxed);
        all.extend(families::supervisor(&board.refusals, own_log, net_restarts, lost));
        if let Some(telemetry) = &*board.telemetry.borrow() {
            all.extend(telemetry.report.families(self.clock.wall()));
        }
        board.sample.send_replace(Some(Arc::new(Sample {
            time: self.clock.wall(),
            started: self.started,
            interval_millis: u64::try_from(self.interval.as_millis()).unwrap_or(u64::MAX),
            labels,
            resource,
            families: all,
        })));
    }

    /// The plugins, the pod that they are, and the streams.
    fn deployment(&self, running: &mut Running, reading: &Reading, board: &Board) -> Vec<Family> {
        let now = self.clock.now();
        running.network.request_report(self.number);
        let status = board.status.borrow().clone();
        let snapshot = running.engine.snapshot();
        let plugins = running.children.readings(
            (now, self.number),
            &status.plugins,
            &snapshot.plugins,
            reading.oom_kills,
        );
        let mut all = families::plugins(&plugins, &board.logs.totals());
        all.extend(families::pod(&plugins, reading.root, now.since(running.since)));
        let streams = running.network.families();
        all.extend(families::network(&streams));
        all.extend(streams);
        all
    }

    fn read(&mut self) -> std::io::Result<Reading> {
        match &mut self.system {
            Some(system) => system.read(),
            None => self.system.insert(System::open()?).read(),
        }
    }
}
