//! What the engine shows of itself: the state behind `GET /v1/status`.

use std::time::Duration;

use enclave_protocol::control;
pub use enclave_protocol::control::PluginPhase;

use super::event::{ExitReason, Moment, Outcome, RunEnd};
use super::plugin::{Actual, Desired, Plugin};
use super::spec::ProbeKind;

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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PluginSnapshot {
    /// What it does.
    pub phase: PluginPhase,
    /// Why, where there is more to say than the phase.
    pub reason: Option<Reason>,
    /// Whether it counts as ready: it runs, is not in a crash loop, its startup probe has succeeded, its
    /// readiness probe passes and it has said so itself, as far as its spec asks for these.
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
    /// What its probes say of the present run; only those of its spec, in the order of the kinds.
    pub probes: Vec<ProbeSnapshot>,
}

/// One probe of a plugin's present run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProbeSnapshot {
    /// Which; that the plugin has to say itself that it is ready is one of them.
    pub kind: control::ProbeKind,
    /// Whether it counts as passing; none before it counts either way.
    pub passing: Option<bool>,
    /// Failures in a row up to now.
    pub failures: u32,
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
    /// Running: its startup probe has not succeeded yet.
    StartupProbePending,
    /// Running: it has not said yet that it is ready.
    NotifyPending,
    /// Running: its readiness probe has neither passed nor failed yet.
    ReadinessProbePending,
    /// Running: its readiness probe fails.
    ReadinessProbeFailed,
    /// Its startup probe failed: it is being stopped, or failed for good by it.
    StartupProbeFailed,
    /// Its liveness probe failed: it is being stopped, or failed for good by it.
    LivenessProbeFailed,
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
    /// The word for a probe that failed as often as its threshold says.
    pub fn probe_failed(kind: ProbeKind) -> Self {
        match kind {
            ProbeKind::Startup => Self::StartupProbeFailed,
            ProbeKind::Liveness => Self::LivenessProbeFailed,
            ProbeKind::Readiness => Self::ReadinessProbeFailed,
        }
    }

    /// The word of the contract's status, as Kubernetes spells it where it has one.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::StartOrder => "StartOrder",
            Self::DependencyFailed => "DependencyFailed",
            Self::CrashLoopBackOff => "CrashLoopBackOff",
            Self::StartupProbePending => "StartupProbePending",
            Self::NotifyPending => "NotifyPending",
            Self::ReadinessProbePending => "ReadinessProbePending",
            Self::ReadinessProbeFailed => "ReadinessProbeFailed",
            Self::StartupProbeFailed => "StartupProbeFailed",
            Self::LivenessProbeFailed => "LivenessProbeFailed",
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
    /// The probe whose failure ended it, which makes it a failed run however the process ended.
    pub failed_probe: Option<ProbeKind>,
}

impl Plugin {
    /// The state as people see it.
    pub(super) fn snapshot(&self) -> PluginSnapshot {
        let (pid, next_restart) = match self.actual {
            Actual::Running(process)
            | Actual::PreStopping { process, .. }
            | Actual::Terminating { process, .. }
            | Actual::Killing { process, .. } => (Some(process.pid), None),
            Actual::BackingOff { until } => (None, Some(until)),
            Actual::Waiting
            | Actual::Blocked
            | Actual::Spawning { .. }
            | Actual::Completed
            | Actual::Failed { .. }
            | Actual::Stopped => (None, None),
        };
        PluginSnapshot {
            phase: phase(self.actual),
            reason: self.reason(),
            ready: self.is_ready(),
            restarts: self.restarts,
            pid,
            last_exit: self.last_exit,
            next_restart,
            since: self.since,
            probes: self.probing.snapshot(),
        }
    }

    fn reason(&self) -> Option<Reason> {
        let crash_loop = self.steady_after.map(|_| Reason::CrashLoopBackOff);
        match self.actual {
            Actual::Waiting => Some(Reason::StartOrder),
            Actual::Blocked => Some(Reason::DependencyFailed),
            Actual::Spawning { .. }
            | Actual::PreStopping { .. }
            | Actual::Terminating { .. }
            | Actual::Killing { .. }
                if self.desired == Desired::Abandon =>
            {
                Some(Reason::Unkillable)
            }
            Actual::Spawning { .. } | Actual::BackingOff { .. } => crash_loop,
            Actual::Running(_) => crash_loop.or_else(|| self.probing.unready()),
            Actual::PreStopping { process, .. }
            | Actual::Terminating { process, .. }
            | Actual::Killing { process, .. } => process.condemned.map(Reason::probe_failed),
            Actual::Stopped => None,
            Actual::Completed => Some(Reason::Completed),
            Actual::Failed { spent: true } => Some(Reason::RestartsSpent),
            Actual::Failed { spent: false } => {
                self.last_exit.map(|last| match (last.failed_probe, last.end) {
                    (Some(kind), RunEnd::Exited(_) | RunEnd::SpawnFailed(_)) => Reason::probe_failed(kind),
                    (None, RunEnd::Exited(ExitReason::Code(_) | ExitReason::Signal(_))) => Reason::Error,
                    (None, RunEnd::Exited(ExitReason::OutOfMemory)) => Reason::OutOfMemory,
                    (None, RunEnd::SpawnFailed(_)) => Reason::StartError,
                })
            }
        }
    }
}

/// What is shown of an actual state.
pub(super) fn phase(actual: Actual) -> PluginPhase {
    match actual {
        Actual::Waiting | Actual::Blocked => PluginPhase::Waiting,
        Actual::Spawning { .. } => PluginPhase::Starting,
        Actual::Running(_) => PluginPhase::Running,
        Actual::PreStopping { .. } | Actual::Terminating { .. } | Actual::Killing { .. } => {
            PluginPhase::Stopping
        }
        Actual::BackingOff { .. } => PluginPhase::BackingOff,
        Actual::Completed => PluginPhase::Completed,
        Actual::Failed { .. } => PluginPhase::Failed,
        Actual::Stopped => PluginPhase::Stopped,
    }
}
