//! What the engine must know about a plugin: a small part of the manifest's model.

use std::time::Duration;

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
    /// Plugins that must be ready before this one starts for the first time.
    pub depends_on: Vec<PluginId>,
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
