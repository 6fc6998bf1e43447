//! The visible transitions: what people see as events.

use std::fmt;
use std::time::Duration;

use super::event::{ExitReason, Outcome, PluginId, SpawnError};
use super::snapshot::Reason;
use super::spec::ProbeKind;

/// One visible transition of a plugin or of the deployment. `Display` is a message for people, without the
/// plugin's name; [`reason`](Self::reason) the word programs branch on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Change {
    /// A run has its process.
    Started {
        /// Who.
        plugin: PluginId,
        /// The process.
        pid: u32,
        /// How many restarts that makes, this one included.
        restarts: u32,
    },
    /// A run's process ended.
    Exited {
        /// Who.
        plugin: PluginId,
        /// How.
        exit: ExitReason,
        /// How long it ran.
        ran_for: Duration,
    },
    /// A run has no process.
    SpawnFailed {
        /// Who.
        plugin: PluginId,
        /// Why.
        error: SpawnError,
    },
    /// Another run is decided.
    BackOff {
        /// Who.
        plugin: PluginId,
        /// The n of the backoff formula.
        n: u32,
        /// The wait, jitter included; zero for the first.
        delay: Duration,
    },
    /// From now on the plugin counts as in a crash loop.
    CrashLoop {
        /// Who.
        plugin: PluginId,
    },
    /// It ran long enough to count as out of its crash loop.
    Steady {
        /// Who.
        plugin: PluginId,
    },
    /// Everything that its readiness depends on has come true. Only of plugins that are not ready as soon as
    /// they run.
    Ready {
        /// Who.
        plugin: PluginId,
    },
    /// A probe failed as often in a row as its threshold says. A startup or liveness probe ends the run, a
    /// readiness probe makes it not ready.
    ProbeFailed {
        /// Who.
        plugin: PluginId,
        /// Which.
        kind: ProbeKind,
        /// How often in a row.
        failures: u32,
    },
    /// It succeeded and stays down.
    Completed {
        /// Who.
        plugin: PluginId,
    },
    /// It failed and its policy is not to start it again.
    Failed {
        /// Who.
        plugin: PluginId,
    },
    /// It ended again after the last restart that `maxRestarts` allows.
    GaveUp {
        /// Who.
        plugin: PluginId,
        /// The streak of restarts that is spent.
        restarts: u32,
    },
    /// It can never start, because of a dependency.
    DependencyFailed {
        /// Who.
        plugin: PluginId,
        /// The dependency that failed for good or cannot start either; the plugin itself where its
        /// dependencies could never be met (a cycle).
        dependency: PluginId,
    },
    /// What is to be done before it is told to stop has begun.
    PreStop {
        /// Who.
        plugin: PluginId,
        /// What it has as a whole until it is killed.
        kill_in: Duration,
    },
    /// It was told to stop.
    Stopping {
        /// Who.
        plugin: PluginId,
        /// What it has until it is killed.
        kill_in: Duration,
    },
    /// It was killed, because it did not stop in time.
    Killed {
        /// Who.
        plugin: PluginId,
    },
    /// It has not died of being killed, or its start was never answered: the stop goes on without it.
    Unkillable {
        /// Who.
        plugin: PluginId,
    },
    /// It is down because of a stop.
    Stopped {
        /// Who.
        plugin: PluginId,
    },
    /// A drain began, or was made shorter.
    Draining {
        /// The bound of what is to come.
        grace: Duration,
    },
    /// No user plugin can run again: the rest is stopped now.
    WorkloadEnded {
        /// How it ended.
        outcome: Outcome,
    },
    /// Everything is down or given up.
    End {
        /// How it ended.
        outcome: Outcome,
    },
}

impl Change {
    /// The plugin it is about; none for the deployment.
    pub fn plugin(&self) -> Option<PluginId> {
        match *self {
            Self::Started { plugin, .. }
            | Self::Exited { plugin, .. }
            | Self::SpawnFailed { plugin, .. }
            | Self::BackOff { plugin, .. }
            | Self::CrashLoop { plugin }
            | Self::Steady { plugin }
            | Self::Ready { plugin }
            | Self::ProbeFailed { plugin, .. }
            | Self::Completed { plugin }
            | Self::Failed { plugin }
            | Self::GaveUp { plugin, .. }
            | Self::DependencyFailed { plugin, .. }
            | Self::PreStop { plugin, .. }
            | Self::Stopping { plugin, .. }
            | Self::Killed { plugin }
            | Self::Unkillable { plugin }
            | Self::Stopped { plugin } => Some(plugin),
            Self::Draining { .. } | Self::WorkloadEnded { .. } | Self::End { .. } => None,
        }
    }

    /// Whether somebody should look at it: the log has it as a warning.
    pub fn is_failure(&self) -> bool {
        match self {
            Self::Exited { exit, .. } => *exit == ExitReason::OutOfMemory,
            Self::WorkloadEnded { outcome } | Self::End { outcome } => *outcome == Outcome::Failed,
            Self::SpawnFailed { .. }
            | Self::CrashLoop { .. }
            | Self::ProbeFailed { .. }
            | Self::Failed { .. }
            | Self::GaveUp { .. }
            | Self::DependencyFailed { .. }
            | Self::Killed { .. }
            | Self::Unkillable { .. } => true,
            Self::Started { .. }
            | Self::BackOff { .. }
            | Self::Steady { .. }
            | Self::Ready { .. }
            | Self::Completed { .. }
            | Self::PreStop { .. }
            | Self::Stopping { .. }
            | Self::Stopped { .. }
            | Self::Draining { .. } => false,
        }
    }

    /// One word for the contract's event stream.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Started { .. } => "Started",
            Self::Exited { exit: ExitReason::OutOfMemory, .. } => Reason::OutOfMemory.as_str(),
            Self::Exited { .. } => "Exited",
            Self::SpawnFailed { .. } => "SpawnFailed",
            Self::BackOff { .. } => "BackOff",
            Self::CrashLoop { .. } => "CrashLoop",
            Self::Steady { .. } => "Steady",
            Self::Ready { .. } => "Ready",
            Self::ProbeFailed { kind, .. } => Reason::probe_failed(*kind).as_str(),
            Self::Completed { .. } => "Completed",
            Self::Failed { .. } => "Failed",
            Self::GaveUp { .. } => "GaveUp",
            Self::DependencyFailed { .. } => "DependencyFailed",
            Self::PreStop { .. } => "PreStop",
            Self::Stopping { .. } => "Stopping",
            Self::Killed { .. } => "Killed",
            Self::Unkillable { .. } => "Unkillable",
            Self::Stopped { .. } => "Stopped",
            Self::Draining { .. } => "Draining",
            Self::WorkloadEnded { .. } => "WorkloadEnded",
            Self::End { .. } => "End",
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Started { pid, restarts: 0, .. } => write!(f, "started as pid {pid}"),
            Self::Started { pid, restarts, .. } => write!(f, "started as pid {pid}, restart {restarts}"),
            Self::Exited { exit, ran_for, .. } => write!(f, "{exit} after {}", Seconds(*ran_for)),
            Self::SpawnFailed { error, .. } => write!(f, "could not be started: {error}"),
            Self::BackOff { n, delay, .. } if delay.is_zero() => write!(f, "restart {n} at once"),
            Self::BackOff { n, delay, .. } => write!(f, "restart {n} in {}", Seconds(*delay)),
            Self::CrashLoop { .. } => {
                f.write_str("restarted again without a long run in between: in a crash loop")
            }
            Self::Steady { .. } => f.write_str("runs longer than it last waited: out of its crash loop"),
            Self::Ready { .. } => f.write_str("ready"),
            Self::ProbeFailed { kind, failures, .. } => {
                let (word, end) = match kind {
                    ProbeKind::Startup => ("startup", "the run is ended"),
                    ProbeKind::Liveness => ("liveness", "the run is ended"),
                    ProbeKind::Readiness => ("readiness", "not ready"),
                };
                let times = if *failures == 1 { "time" } else { "times" };
                write!(f, "{word} probe failed {failures} {times} in a row: {end}")
            }
            Self::Completed { .. } => f.write_str("succeeded and stays down"),
            Self::Failed { .. } => f.write_str("failed and stays down"),
            Self::GaveUp { restarts, .. } => write!(f, "stays down: all {restarts} restarts are spent"),
            Self::DependencyFailed { .. } => {
                f.write_str("cannot start: a plugin it depends on failed for good")
            }
            Self::PreStop { kill_in, .. } => {
                write!(f, "runs its preStop hook, to stop within {}", Seconds(*kill_in))
            }
            Self::Stopping { kill_in, .. } => write!(f, "told to stop within {}", Seconds(*kill_in)),
            Self::Killed { .. } => f.write_str("killed: it did not stop in time"),
            Self::Unkillable { .. } => f.write_str("did not end in time; the stop goes on without it"),
            Self::Stopped { .. } => f.write_str("stopped"),
            Self::Draining { grace } => write!(f, "stopping everything within {}", Seconds(*grace)),
            Self::WorkloadEnded { outcome } => {
                write!(f, "no user plugin can run again: {}", outcome_word(*outcome))
            }
            Self::End { outcome } => f.write_str(outcome_word(*outcome)),
        }
    }
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exited with code {code}"),
            Self::Signal(signal) => write!(f, "ended by signal {signal}"),
            Self::OutOfMemory => f.write_str("killed by the out-of-memory killer (OOMKilled)"),
        }
    }
}

impl fmt::Display for SpawnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: errno {}", self.stage, self.errno)
    }
}

/// A duration to the millisecond.
struct Seconds(Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03}s", self.0.as_secs(), self.0.subsec_millis())
    }
}

fn outcome_word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Completed => "completed",
        Outcome::Failed => "failed",
        Outcome::Drained => "drained",
    }
}
