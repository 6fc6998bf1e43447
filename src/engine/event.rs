//! What goes into the engine and what comes out: moments, ids, events, effects.

use std::time::Duration;

use super::change::Change;
use super::spec::ProbeKind;

/// Monotonic time since the supervisor's start. The engine never asks for it: the driver passes it in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Moment(
    /// Since the supervisor's start.
    pub Duration,
);

impl Moment {
    /// The moment `wait` later; the end of time rather than an overflow.
    #[must_use]
    pub fn after(self, wait: Duration) -> Self {
        Self(self.0.saturating_add(wait))
    }

    /// The moment `span` earlier; the supervisor's start rather than an underflow.
    #[must_use]
    pub fn before(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(span))
    }

    /// How long ago `earlier` was; zero if it is yet to come.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

/// A plugin, by its index in the list of specs the engine was made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PluginId(
    /// The index.
    pub usize,
);

/// One run of one plugin: unique within an engine and growing, so that a late or repeated answer about an
/// earlier run is recognised and changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunId(
    /// The engine counts from 1.
    pub u64,
);

/// One question of one probe: unique within an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProbeId(
    /// The engine counts from 1.
    pub u64,
);

/// What came out of one probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ProbeResult {
    /// It is well.
    Success,
    /// It is not, or did not answer in time.
    Failure,
    /// The probe could not be performed, which says nothing about the plugin and counts as neither.
    Unknown,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ExitReason {
    /// By itself, with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// By the kernel's out-of-memory killer.
    OutOfMemory,
}

impl ExitReason {
    /// Whether the run counts as a success: exit code 0 and nothing else.
    pub fn is_success(self) -> bool {
        self == Self::Code(0)
    }
}

/// Why a process could not be made. The engine carries it to whoever asks and does not look inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SpawnError {
    /// The step that failed, in the words of the spawning code: `exec`, `cgroup`, …
    pub stage: &'static str,
    /// The errno of that step.
    pub errno: i32,
}

/// How a run ended, or that it never began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RunEnd {
    /// The process ended.
    Exited(ExitReason),
    /// There was no process.
    SpawnFailed(SpawnError),
}

impl RunEnd {
    /// Whether the run counts as a success. A failed spawn is a failed run.
    pub fn is_success(self) -> bool {
        match self {
            Self::Exited(exit) => exit.is_success(),
            Self::SpawnFailed(_) => false,
        }
    }
}

/// What the engine is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// The manifest is accepted: run its plugins.
    Start,
    /// The run asked for with [`Effect::Spawn`] has a process.
    Spawned {
        /// Whose.
        plugin: PluginId,
        /// Which run.
        run: RunId,
        /// Its process.
        pid: u32,
    },
    /// The run asked for with [`Effect::Spawn`] could not be started.
    SpawnFailed {
        /// Whose.
        plugin: PluginId,
        /// Which run.
        run: RunId,
        /// Where and why.
        error: SpawnError,
    },
    /// A run's process ended. May overtake its `Spawned`, which is then ignored.
    Exited {
        /// Whose.
        plugin: PluginId,
        /// Which run.
        run: RunId,
        /// How.
        exit: ExitReason,
    },
    /// The answer to [`Effect::Probe`], or of a probe that was cancelled meanwhile, which is ignored.
    Probed {
        /// Whose.
        plugin: PluginId,
        /// Which run.
        run: RunId,
        /// Which probe.
        kind: ProbeKind,
        /// Of the question.
        id: ProbeId,
        /// What came out.
        result: ProbeResult,
    },
    /// The plugin said `READY=1`. May overtake the run's `Spawned`.
    Notified {
        /// Who.
        plugin: PluginId,
        /// Which run.
        run: RunId,
    },
    /// What [`Effect::PreStop`] asked for is done, or failed: both count alike.
    PreStopEnded {
        /// Whose.
        plugin: PluginId,
        /// Which run.
        run: RunId,
    },
    /// The moment of [`Engine::next_deadline`](super::Engine::next_deadline) has come. Harmless at any other
    /// time, and not needed where another event arrives first: every step handles all that is due.
    DeadlineReached,
    /// Stop everything in order, within `grace` as a whole.
    Drain {
        /// From now to [`Effect::End`] at the latest.
        grace: Duration,
    },
}

/// What the driver is to do. Effects are performed in the order of the list; reports may come after the
/// others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Make a process for this plugin; answer with [`Event::Spawned`] or [`Event::SpawnFailed`].
    Spawn {
        /// Whose.
        plugin: PluginId,
        /// To be given back with every event about this run.
        run: RunId,
    },
    /// Send a signal to the run's process, to nobody else, and not at all if that process has been reaped.
    Signal {
        /// Whose.
        plugin: PluginId,
        /// Which run.
        run: RunId,
        /// Ask or force.
        signal: Stop,
    },
    /// Perform one probe now; answer with [`Event::Probed`]. No answer within the probe's timeout is a
    /// failure; the engine gives up on an answer itself [`PROBE_SLACK`](super::PROBE_SLACK) later.
    Probe {
        /// Whose.
        plugin: PluginId,
        /// Which run.
        run: RunId,
        /// Which probe.
        kind: ProbeKind,
        /// To be given back with the answer.
        id: ProbeId,
    },
    /// Give up a probe that is not answered yet, and what it left behind. Its answer is of no use any more.
    CancelProbe {
        /// Whose.
        plugin: PluginId,
        /// Which run.
        run: RunId,
        /// Which probe.
        kind: ProbeKind,
        /// Of the question.
        id: ProbeId,
    },
    /// Do what is to be done before the plugin is told to stop; answer with [`Event::PreStopEnded`]. It may
    /// take until TERM or KILL is sent to the run, or the run ends: then it is to be given up.
    PreStop {
        /// Whose.
        plugin: PluginId,
        /// Which run.
        run: RunId,
    },
    /// One visible transition, for status, events and logs.
    Report(Change),
    /// Everything is over: the last effect an engine ever returns.
    End(Outcome),
}

/// The two ways of stopping a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stop {
    /// SIGTERM to the plugin's first process.
    Term,
    /// SIGKILL to everything of the plugin.
    Kill,
}

/// How a deployment ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Every user plugin ended and succeeded.
    Completed,
    /// No user plugin can run again, and at least one of them failed for good or never could start.
    Failed,
    /// A drain stopped it.
    Drained,
}
