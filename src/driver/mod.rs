//! The one task that owns the engine.
//!
//! Every arm of its `select!` only turns a wake-up into an [`Event`] or a bookkeeping step; the engine
//! decides; effects are performed here. It is also the one that reaps.
//!
//! ```text
//! host ── commands ──▶ ┌────────┐ ── Event ──▶ engine ── Effect ──▶ spawn, signal, report
//! SIGCHLD ───────────▶ │ driver │
//! inits ─────────────▶ │        │ ── status, sample, events ──▶ board ──▶ host, plugins
//! timer, sample tick ▶ └────────┘
//! ```
//! Order of the end: plugins (engine: users, services, telemetry, which first sends what is left of the
//! records that leave by it) → their last output → those that have not left are counted → final status → the
//! host has acknowledged status and logs, or 5 s have passed → the last inits are reaped → `net` → exit.

mod children;
mod listener;
mod network;
mod notify;
mod probes;
mod readings;
mod report;
mod running;
mod sampler;
mod standby;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use enclave_protocol::{
    control::{BOOT_FAILED, Condition, DrainRequest, ManifestAccepted, Phase, PluginPhase, Pod, Status},
    manifest::{Plugin, PluginKind, TELEMETRY},
    metrics::{ATTRIBUTE_INSTANCE, ATTRIBUTE_POD_NAMESPACE, LABEL_DEPLOYMENT, LABEL_NAMESPACE, LABEL_NED},
    transport::{Host, Stream},
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};

use self::{
    children::{Children, Ended},
    network::{Network, Setup, SocketSource},
    notify::Notices,
    probes::Probes,
    running::{Running, Told},
    sampler::Sampler,
};
use crate::{
    clock::Clock,
    control::{
        accept::{Candidate, Judge},
        board::{Acceptance, Board, Command},
        routes::Caller,
        server::{Shared, serve_inside},
    },
    deployment::{self, Deployment, Ground, PrepareError},
    engine::{Effect, Engine, Event, Outcome, PluginId},
    logs::{
        capture::{Capture, Ends},
        outlets::Outlets,
    },
    options::Exit,
    sys::nsm::{MANIFEST_PCR, Nsm, NsmError, pcr_name},
};

/// How long the end waits for the host to acknowledge the final status and the last log record.
const FINAL_ACK_MAX: Duration = Duration::from_secs(5);
/// Children reaped before anything else gets its turn.
const REAPED_AT_ONCE_MAX: usize = 256;
/// How long the end waits for inits that have told of their plugins' ends and are on their way out.
const FINAL_REAP_MAX: Duration = Duration::from_secs(1);
/// How long the end waits for output that is still in the plugins' pipes.
const FINAL_OUTPUT_MAX: Duration = Duration::from_secs(1);

/// What the driver is made of.
pub struct Parts {
    /// What readers see.
    pub shared: Arc<Shared>,
    /// What a manifest was judged by.
    pub judge: Arc<Judge>,
    /// Requests from connections.
    pub commands: mpsc::Receiver<Command>,
    /// Ingress connections of the hybrid transport.
    pub ingress: mpsc::Receiver<Stream>,
    /// Listening socket for ingress over vsock.
    pub ingress_listener: Option<std::os::fd::OwnedFd>,
    /// The host, for egress.
    pub host: Host,
    /// What the machine offers to plugins.
    pub ground: Ground,
    /// Time between samples.
    pub sample_interval: Duration,
    /// What SIGTERM gives.
    pub drain_grace: u32,
    /// Seed of the restart jitter.
    pub seed: u64,
    /// Records that standard error did not take.
    pub stderr_lost: Arc<std::sync::atomic::AtomicU64>,
    /// Measures the manifest before anything starts.
    pub nsm: Option<Nsm>,
}

/// Why a candidate does not become the running deployment.
#[derive(Debug, thiserror::Error)]
enum BeginError {
    /// It cannot be laid out. Nothing has happened, and another may be tried.
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    /// No spawner.
    #[error("cannot start the spawner: {0}")]
    Spawner(#[from] std::io::Error),
    /// No token.
    #[error("no random bytes: {0}")]
    Random(#[from] getrandom::Error),
    /// The register may have been extended and cannot be extended again: this machine is of no use any more.
    #[error("the manifest cannot be measured: {0}")]
    Measure(#[from] NsmError),
}

/// See the module.
pub struct Driver {
    /// Dropped before what it stands on: a control group is removed when there are none within it any more.
    running: Option<Running>,
    parts: Parts,
    clock: Clock,
    sockets: JoinSet<()>,
    sampler: Sampler,
    /// The last look for ended children stopped at its bound.
    more_to_reap: bool,
    outcome: Option<Outcome>,
}

/// What woke the driver.
enum Wake {
    Command(Command),
    Ingress(Stream),
    ChildEnded,
    Told(Told),
    Deadline,
    SampleDue,
    WatchDue,
    Terminate,
}

impl Driver {
    /// A driver that waits for a manifest.
    pub fn new(parts: Parts, clock: Clock) -> Self {
        let stderr_lost = Arc::clone(&parts.stderr_lost);
        let sampler = Sampler::new(clock, parts.sample_interval, stderr_lost);
        Self {
            running: None,
            parts,
            clock,
            sockets: JoinSet::new(),
            sampler,
            more_to_reap: false,
            outcome: None,
        }
    }

    /// Runs until the workload has ended and the host knows, or until SIGTERM before there is one.
    pub async fn run(mut self) -> std::io::Result<Exit> {
        let mut child_ended = signal(SignalKind::child())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        while self.outcome.is_none() {
            let wake = self.wake(&mut child_ended, &mut terminate, &mut interrupt).await;
            if matches!(wake, Wake::Terminate) && self.running.is_none() {
                return Ok(Exit::Ok);
            }
            self.handle(wake);
        }
        Ok(self.end(&mut child_ended).await)
    }

    async fn wake(
        &mut self,
        child_ended: &mut Signal,
        terminate: &mut Signal,
        interrupt: &mut Signal,
    ) -> Wake {
        let deadline = self.deadline();
        let (sample, watch) = (self.sampler.due(), self.sampler.watch_due());
        let Self { parts, running, more_to_reap, .. } = self;
        let hearing = async {
            match running.as_mut() {
                Some(running) => running.hear().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(()) = child_ended.recv() => Wake::ChildEnded,
            () = std::future::ready(()), if *more_to_reap => Wake::ChildEnded,
            told = hearing => Wake::Told(told),
            () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => Wake::Deadline,
            Some(()) = terminate.recv() => Wake::Terminate,
            Some(()) = interrupt.recv() => Wake::Terminate,
            Some(command) = parts.commands.recv() => Wake::Command(command),
            Some(stream) = parts.ingress.recv() => Wake::Ingress(stream),
            () = sleep_until(sample) => Wake::SampleDue,
            () = sleep_until(watch.unwrap_or(sample)), if watch.is_some() => Wake::WatchDue,
        }
    }

    /// The earliest of the engine's timer, the next start of `net` and the next run to be prepared.
    fn deadline(&self) -> Option<Instant> {
        let running = self.running.as_ref()?;
        let engine = running.engine.next_deadline();
        let moment = [engine, running.network.due(), running.standby_due].into_iter().flatten().min()?;
        Some(self.clock.instant(moment))
    }

    fn handle(&mut self, wake: Wake) {
        match wake {
            Wake::Command(Command::Accept(candidate, answer)) => self.accept(&candidate, answer),
            Wake::Command(Command::Drain(DrainRequest { grace_seconds })) => self.drain(grace_seconds),
            Wake::Ingress(stream) => {
                if let Some(running) = &self.running {
                    running.network.ingress(stream);
                }
            }
            Wake::ChildEnded => self.reap(),
            Wake::Told(told) => {
                let events = self.running.as_mut().map(|running| running.settle(told));
                for event in events.into_iter().flatten() {
                    self.step(event);
                }
            }
            Wake::Deadline => self.deadline_reached(),
            Wake::SampleDue => self.sample(),
            Wake::WatchDue => self.watch(),
            Wake::Terminate => self.drain(self.parts.drain_grace),
        }
    }

    fn board(&self) -> &Arc<Board> {
        &self.parts.shared.board
    }

    fn accept(&mut self, candidate: &Candidate, answer: oneshot::Sender<Acceptance>) {
        let acceptance = match &self.running {
            Some(running) if running.accepted.digest == candidate.digest.to_string() => {
                Acceptance::Accepted(Box::new(running.accepted.clone()))
            }
            Some(running) => Acceptance::Conflict { digest: running.accepted.digest.clone() },
            None => match self.begin(candidate) {
                Ok(accepted) => Acceptance::Accepted(Box::new(accepted)),
                Err(BeginError::Measure(error)) => {
                    tracing::error!(%error, "nothing will run here");
                    self.outcome = Some(Outcome::Failed);
                    let condition = Condition { kind: BOOT_FAILED.to_owned(), message: error.to_string() };
                    self.board().status.send_modify(|status| {
                        let status = Arc::make_mut(status);
                        status.phase = Phase::Failed;
                        status.conditions.push(condition);
                    });
                    Acceptance::NotMeasured(error.to_string())
                }
                Err(error @ (BeginError::Prepare(_) | BeginError::Spawner(_) | BeginError::Random(_))) => {
                    tracing::error!(%error, "the accepted manifest cannot be run; waiting for another");
                    Acceptance::Failed(error.to_string())
                }
            },
        };
        let begun = matches!(acceptance, Acceptance::Accepted(_));
        // The host that asked may be gone; it asks again.
        answer.send(acceptance).ok();
        if begun {
            // The engine takes it once.
            self.step(Event::Start);
        }
    }

    /// Makes a candidate the running deployment. Nothing is started yet.
    fn begin(&mut self, candidate: &Candidate) -> Result<ManifestAccepted, BeginError> {
        let board = Arc::clone(self.board());
        let boot_id = board.status.borrow().boot_id.clone();
        let catalog = &self.parts.judge.catalog;
        let prepared = deployment::prepare(candidate, catalog, &self.parts.ground, &boot_id)?;
        let manifest = &candidate.manifest;
        let accepted = ManifestAccepted {
            digest: candidate.digest.to_string(),
            boot_id,
            token: board.token()?.to_owned(),
            plan: manifest.plan(),
            conditions: candidate.conditions.clone(),
        };
        let mut children = Children::new()?;
        self.measure(candidate)?;
        let Deployment { plugins, egress, peers, ingress, networks, state } = prepared;
        board.logs.route_own(manifest.supervisor_logs);
        let now = self.clock.now();
        let (mut probes, mut notices) = (Probes::default(), Notices::new());
        for (id, (plugin, manifest)) in plugins.into_iter().zip(&manifest.plugins).enumerate() {
            if let Some((listener, grants)) = plugin.socket {
                let shared = Arc::clone(&self.parts.shared);
                self.sockets.spawn(serve_inside(listener, shared, Caller::Inside(grants)));
            }
            if let Some(socket) = plugin.notify {
                notices.add(PluginId(id), socket);
            }
            probes.add(manifest);
            let capture = capture(manifest, &board.logs);
            children.add(plugin.name, plugin.recipe, plugin.cgroup, capture, now);
        }
        let setup = Setup {
            host: self.parts.host.clone(),
            egress_port: candidate.egress_port,
            egress,
            peers,
            ingress,
            ingress_listener: self.parts.ingress_listener.take(),
            sockets: SocketSource::new(move |plugin, count| networks.sockets(plugin, count)),
        };
        let mut network = Network::new(setup, board.logs.rings(manifest.supervisor_logs).cloned());
        network.start(now);
        let (labels, resource) = identity(candidate);
        tracing::info!(deployment = manifest.name, digest = accepted.digest, "manifest accepted");
        // Readers see whose numbers these are from now on, not only from the next sample.
        board.sample.send_modify(|sample| {
            if let Some(sample) = sample {
                let sample = Arc::make_mut(sample);
                (sample.labels, sample.resource) = (labels.clone(), resource.clone());
            }
        });
        self.sampler.begin(children.has_memory_limits());
        self.running = Some(Running {
            engine: Engine::new(report::specs(manifest), self.parts.seed),
            children,
            probes,
            notices,
            network,
            accepted: accepted.clone(),
            name: manifest.name.clone(),
            labels,
            resource,
            since: now,
            standby_due: None,
            _state: state,
        });
        Ok(accepted)
    }

    /// Binds what will run to what the machine attests. The last thing that can fail: what is measured runs.
    fn measure(&self, candidate: &Candidate) -> Result<(), NsmError> {
        let Some(nsm) = &self.parts.nsm else { return Ok(()) };
        let value = nsm.measure(candidate.digest.as_bytes())?;
        self.board().status.send_modify(|status| {
            Arc::make_mut(status).measurements.insert(pcr_name(MANIFEST_PCR), value);
        });
        Ok(())
    }

    fn drain(&mut self, grace_seconds: u32) {
        self.step(Event::Drain { grace: Duration::from_secs(grace_seconds.into()) });
    }

    fn deadline_reached(&mut self) {
        let now = self.clock.now();
        if let Some(running) = &mut self.running
            && running.network.due().is_some_and(|due| due <= now)
        {
            running.network.start(now);
        }
        self.step(Event::DeadlineReached);
    }

    /// Reaps what has ended; one SIGCHLD may stand for many. Bounded, so that a storm of orphans leaves
    /// everything else its turn.
    fn reap(&mut self) {
        self.more_to_reap = false;
        for _ in 0..REAPED_AT_ONCE_MAX {
            let mut owner = None;
            let is_ours = |pid| {
                owner = self.running.as_ref().and_then(|running| running.children.owner(pid));
                owner.is_some()
            };
            let Some(reaped) = crate::sys::reaper::reap_one(is_ours) else { return };
            let now = self.clock.now();
            let Some(running) = &mut self.running else { continue };
            if running.network.ended(reaped.pid, now) {
                tracing::warn!(pid = reaped.pid, ending = ?reaped.ending, "net ended; starting it again");
                let message = format!("the net process ended ({:?}); open streams are reset", reaped.ending);
                self.board().events.push(self.clock.wall(), None, "NetRestarted", message);
                continue;
            }
            // An adopted orphan answers to nobody.
            match running.children.ended(owner, &reaped) {
                Ended::Plugin(Some(event)) => self.step(event),
                Ended::Plugin(None) | Ended::Orphan => {}
            }
        }
        self.more_to_reap = true;
    }

    /// Lets the engine decide and performs what it says.
    fn step(&mut self, event: Event) {
        let now = self.clock.now();
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let Some(running) = &mut self.running else { return };
            // First what is to be done, then what is to be said: a restart does not wait for its records.
            let effects = running.engine.step(now, event).into_iter();
            let (said, done): (Vec<_>, Vec<_>) =
                effects.partition(|effect| matches!(effect, Effect::Report(_)));
            for effect in done.into_iter().chain(said) {
                let board = &self.parts.shared.board;
                let ended = running.perform(effect, board, self.clock, &mut events);
                self.outcome = self.outcome.or(ended);
            }
        }
        if let Some(running) = &mut self.running {
            running.stand_by(now);
        }
        self.publish_status();
    }

    fn publish_status(&self) {
        let Some(running) = &self.running else { return };
        let board = self.board();
        let status = running.status(board, self.clock);
        if only_telemetry_is_left(&status) {
            board.logs.export.last_call();
        }
        board.status.send_replace(Arc::new(status));
    }

    /// Takes a sample and puts it on the board.
    fn sample(&mut self) {
        let board = Arc::clone(self.board());
        self.watch();
        self.sampler.sample(self.running.as_mut(), &board);
    }

    /// Looks at the plugins' memory limits.
    fn watch(&mut self) {
        let board = Arc::clone(self.board());
        self.sampler.watched();
        if let Some(running) = &mut self.running {
            running.watch_memory(&board, self.clock);
        }
    }

    /// What comes after the last plugin: see the order in the module's description.
    async fn end(&mut self, child_ended: &mut Signal) -> Exit {
        let outcome = self.outcome.unwrap_or(Outcome::Drained);
        if let Some(running) = &mut self.running
            && timeout(FINAL_OUTPUT_MAX, running.children.output_ended()).await.is_err()
        {
            tracing::warn!("a process outlived its plugin and holds its output open");
        }
        log_end(&self.board().status.borrow().clone());
        self.retire_export();
        self.sample();
        self.publish_status();
        let exit = match outcome {
            Outcome::Completed | Outcome::Drained => Exit::Ok,
            Outcome::Failed => Exit::Workload,
        };
        let board = Arc::clone(self.board());
        let (log_seq, status_seq) = (board.logs.host.last_seq(), board.status.borrow().seq);
        let mut acknowledged = board.acknowledged.subscribe();
        let known = acknowledged.wait_for(|ack| ack.log_seq >= log_seq && ack.status_seq >= status_seq);
        let known = timeout(FINAL_ACK_MAX, known).await.is_ok_and(|known| known.is_ok());
        if !known {
            tracing::warn!("the host has not acknowledged the final status and the last log record");
        }
        if timeout(FINAL_REAP_MAX, self.reap_all(child_ended)).await.is_err() {
            tracing::warn!("an init outlived its plugin; its control group stays");
        }
        if let Some(running) = &mut self.running {
            running.network.stop();
        }
        exit
    }

    /// Tells the host how many log records the telemetry plugin has left behind, and nothing of what they
    /// say.
    fn retire_export(&self) {
        let board = self.board();
        let left = board.logs.export.retire();
        if left > 0 {
            let message = format!(
                "{left} log records were to leave by OTLP and had not when the telemetry plugin ended"
            );
            board.events.push(self.clock.wall(), None, "LogRecordsDropped", message);
        }
    }

    /// Waits until no init is left: a control group with a process in it cannot be removed.
    async fn reap_all(&mut self, child_ended: &mut Signal) {
        loop {
            self.reap();
            if self.running.as_ref().is_none_or(|running| running.children.all_gone()) {
                return;
            }
            child_ended.recv().await;
        }
    }
}

/// Whose numbers a deployment's are: the labels of every point, and what stands on the resource alone.
fn identity(candidate: &Candidate) -> (BTreeMap<String, String>, BTreeMap<String, String>) {
    let manifest = &candidate.manifest;
    let labels = [
        (LABEL_DEPLOYMENT, &manifest.name),
        (LABEL_NED, &manifest.name),
        (LABEL_NAMESPACE, &manifest.namespace),
    ];
    let pod = candidate.pod.iter().flat_map(Pod::attributes);
    let resource = [
        (ATTRIBUTE_INSTANCE, candidate.instance_id.as_str()),
        (ATTRIBUTE_POD_NAMESPACE, manifest.namespace.as_str()),
    ];
    (
        labels.map(|(name, value)| (name.to_owned(), value.clone())).into(),
        resource.into_iter().chain(pod).map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
    )
}

/// Whether the deployment stops and only the plugin still runs that sends the others' log records.
fn only_telemetry_is_left(status: &Status) -> bool {
    let ended = |phase| matches!(phase, PluginPhase::Completed | PluginPhase::Failed | PluginPhase::Stopped);
    status.phase == Phase::Stopping
        && status.plugins.iter().all(|plugin| plugin.name == TELEMETRY || ended(plugin.phase))
}

/// What reads a plugin's output. The telemetry plugin reads the others' records until the last.
fn capture(plugin: &Plugin, outlets: &Outlets) -> Capture {
    let ends = match plugin.kind {
        PluginKind::Telemetry => Ends::WithReader,
        PluginKind::Service | PluginKind::User => Ends::BeforeReader,
    };
    Capture::new(outlets.rings(plugin.logs).cloned(), &plugin.name, ends)
}

/// The last word, with every plugin's own exit.
fn log_end(status: &Status) {
    for plugin in &status.plugins {
        let exit = plugin.last_exit.as_ref();
        tracing::info!(
            plugin = plugin.name,
            phase = ?plugin.phase,
            code = exit.and_then(|exit| exit.code),
            signal = exit.and_then(|exit| exit.signal),
            oom = exit.is_some_and(|exit| exit.oom),
            restarts = plugin.restarts,
            "final state"
        );
    }
    tracing::info!(phase = ?status.phase, "the deployment has ended");
}
