//! What the engine shows of itself: the state behind `GET /v1/status`.

use std::time::Duration;

pub use enclave_protocol::control::PluginPhase;

use super::event::{Moment, Outcome, RunEnd};

/// The whole deployment at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// What the deployment does.
    pub phase: DeploymentPhase,
    /// It runs, no user plugin is in a crash loop, and each is ready or has completed, at least one being
    /// ready.
    pub ready: bool,
    /// In the order of the list of specs.
    pub plugins: Vec<PluginSnapshot>,
}

/// The life of the deployment, as the engine knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeploymentPhase {
    /// Not started.
    Idle,
    /// Plugins run or are being started.
    Running,
    /// Plugins are being stopped in order.
    Stopping {
        /// The end comes at this moment at the latest.
        deadline: Moment,
        /// What the end will be.
        outcome: Outcome,
    },
    /// All over.
    Ended(Outcome),
}

/// One plugin at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PluginSnapshot {
    /// What it does.
    pub phase: PluginPhase,
    /// Why, where there is more to say than the phase.
    pub reason: Option<Reason>,
    /// Whether it counts as ready: it runs and is not in a crash loop.
    pub ready: bool,
    /// All restarts since the start, whatever became of the streak.
    pub restarts: u32,
    /// Its process.
    pub pid: Option<u32>,
    /// How the last run ended.
    pub last_exit: Option<LastExit>,
    /// When it is started again.
    pub next_restart: Option<Moment>,
    /// Since when it is in this phase.
    pub since: Moment,
}

/// Why a plugin is in its phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Waiting: a plugin of an earlier role is not up yet, or a dependency is not ready.
    StartOrder,
    /// Waiting for ever: a dependency failed for good.
    DependencyFailed,
    /// Starting, running or backing off with n ≥ 2, and not yet out of it.
    CrashLoopBackOff,
    /// Stopping: it has not died of KILL, or its start was never answered.
    Unkillable,
    /// It ended with success.
    Completed,
    /// It ended with another code or by a signal.
    Error,
    /// The kernel's out-of-memory killer ended it.
    OutOfMemory,
    /// It could not be started.
    StartError,
    /// All restarts that `maxRestarts` allows are spent.
    RestartsSpent,
}

impl Reason {
    /// The word of the contract's status, as Kubernetes spells it where it has one.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::StartOrder => "StartOrder",
            Self::DependencyFailed => "DependencyFailed",
            Self::CrashLoopBackOff => "CrashLoopBackOff",
            Self::Unkillable => "Unkillable",
            Self::Completed => "Completed",
            Self::Error => "Error",
            Self::OutOfMemory => "OOMKilled",
            Self::StartError => "StartError",
            Self::RestartsSpent => "RestartsSpent",
        }
    }
}

/// How the last run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastExit {
    /// How.
    pub end: RunEnd,
    /// When the engine was told.
    pub at: Moment,
    /// How long it ran; zero if it never did.
    pub ran_for: Duration,
}
