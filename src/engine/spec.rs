//! What the engine must know about a plugin: a small part of the manifest's model.

use std::time::Duration;

use enclave_protocol::control;

use super::event::PluginId;

/// One plugin, as far as its life is concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// For people; the engine tells plugins apart by [`PluginId`].
    pub name: String,
    /// When it starts and stops relative to the others.
    pub role: Role,
    /// Whether it is started again when a run ends.
    pub restart: RestartPolicy,
    /// When it is started again.
    pub curve: RestartCurve,
    /// From TERM to KILL.
    pub grace: Duration,
    /// Plugins that must be ready, or have completed, before this one starts for the first time.
    pub depends_on: Vec<PluginId>,
    /// How it is asked how it is.
    pub probes: Probes,
    /// Whether it is ready only once it has said so itself, with `READY=1`.
    pub notify: bool,
    /// Whether something is to be done before it is told to stop.
    pub pre_stop: bool,
}

impl Spec {
    /// Whether it has a way to say that it is ready before it ends; without one, that it runs says nothing
    /// about a plugin that is to run to completion.
    pub(super) fn tells_readiness(&self) -> bool {
        self.notify || self.probes.readiness.is_some()
    }
}

/// The probes of a plugin, with Kubernetes' meanings.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Probes {
    /// The others wait until it succeeds; its failure ends the run.
    pub startup: Option<ProbeSpec>,
    /// Its failure ends the run.
    pub liveness: Option<ProbeSpec>,
    /// Its failure makes the plugin not ready.
    pub readiness: Option<ProbeSpec>,
}

/// When a probe is asked and what its answers come to. What it asks is the driver's business.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProbeSpec {
    /// From the start of the run to the first question.
    pub initial_delay: Duration,
    /// From one question to the next.
    pub period: Duration,
    /// How long the driver waits for an answer.
    pub timeout: Duration,
    /// So many failures in a row count.
    pub failure_threshold: u32,
    /// So many successes in a row count.
    pub success_threshold: u32,
    /// Instead of the plugin's own grace when this probe ends the run.
    pub grace: Option<Duration>,
}

/// Which of the probes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProbeKind {
    /// `startupProbe`.
    Startup,
    /// `livenessProbe`.
    Liveness,
    /// `readinessProbe`.
    Readiness,
}

impl From<ProbeKind> for control::ProbeKind {
    fn from(kind: ProbeKind) -> Self {
        match kind {
            ProbeKind::Startup => Self::Startup,
            ProbeKind::Liveness => Self::Liveness,
            ProbeKind::Readiness => Self::Readiness,
        }
    }
}

/// What a plugin is for, in start order; the stop order is the reverse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// The telemetry plugin: up first, down last, so that it sees the others' whole life.
    Telemetry,
    /// Any other plugin under `spec.plugins`: logging, auth, …
    Service,
    /// A plugin under `spec.userPlugins`: the workload, the only role whose end is the deployment's end.
    User,
}

impl Role {
    /// All of them, in start order.
    pub const START_ORDER: [Self; 3] = [Self::Telemetry, Self::Service, Self::User];
}

/// Whether a plugin is started again when a run ends; kubelet's meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RestartPolicy {
    /// However it ended.
    Always,
    /// Unless it ended with exit code 0.
    OnFailure,
    /// Not at all.
    Never,
}

/// When a plugin is started again. The first restart is immediate; restart n ≥ 2 waits
/// `min(max_delay, initial_delay · factor^(n−2)) · U[1−jitter, 1+jitter]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RestartCurve {
    /// What the second restart waits.
    pub initial_delay: Duration,
    /// The factor from one wait to the next, in thousandths.
    pub factor_milli: u32,
    /// No wait is longer, jitter aside.
    pub max_delay: Duration,
    /// n starts over when a run lasted this long.
    pub reset_after: Duration,
    /// The highest n; unlimited if absent. It bounds the streak n, not the restarts of a lifetime: a plugin
    /// that fails once a month is not given up on after `max_restarts` months.
    pub max_restarts: Option<u32>,
    /// In thousandths; more than 1000 counts as 1000.
    pub jitter_milli: u32,
}

impl Default for RestartCurve {
    /// The contract's defaults (those of Kubernetes' KEP-4603): 1 s, doubling, to 60 s; over again after 10
    /// min.
    fn default() -> Self {
        Self {
            initial_delay: Duration::from_secs(1),
            factor_milli: 2000,
            max_delay: Duration::from_mins(1),
            reset_after: Duration::from_mins(10),
            max_restarts: None,
            jitter_milli: 100,
        }
    }
}
