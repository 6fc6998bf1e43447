//! One plugin's pair of states and the transitions that concern it alone. When a transition is due is the
//! engine's business; here is what it does.

use std::time::Duration;

use super::change::Change;
use super::event::{Effect, Moment, PluginId, RunEnd, RunId};
use super::probe::Probing;
use super::random::Random;
use super::restart::{self, Verdict};
use super::snapshot::{LastExit, phase};
use super::spec::{ProbeKind, RestartPolicy, Spec};
use super::stop::Turn;

/// How long a run must last for its successor to be prepared: one that fails as it starts would have had it
/// for nothing, and the starts of others are not held up by it.
const STANDBY_AFTER: Duration = Duration::from_secs(1);

/// What the engine wants of a plugin. Only ever moves down this list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Desired {
    /// To run, and to be started again as its policy says.
    Run,
    /// A stop began elsewhere: to run on until its turn comes, but never to be started again.
    Finish,
    /// Its turn came: to end within the limits of its turn.
    Stop(Turn),
    /// Not waited for any more. If it has or gets a process, that one is killed.
    Abandon,
}

impl Desired {
    /// When a process is to be killed at the latest, whatever its grace.
    pub(super) fn kill_limit(self) -> Moment {
        match self {
            Self::Run | Self::Finish => Moment(Duration::MAX),
            Self::Stop(turn) => turn.kill_limit,
            Self::Abandon => Moment::default(),
        }
    }
}

/// A run that has its process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) run: RunId,
    pub(super) pid: u32,
    pub(super) started: Moment,
    /// The probe whose failure ends the run.
    pub(super) condemned: Option<ProbeKind>,
}

/// What a plugin does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Actual {
    Waiting,
    Blocked,
    Spawning { run: RunId, asked: Moment },
    Running(Process),
    PreStopping { process: Process, kill_at: Moment },
    Terminating { process: Process, kill_at: Moment },
    Killing { process: Process, killed_at: Moment },
    BackingOff { until: Moment },
    Completed,
    Failed { spent: bool },
    Stopped,
}

#[derive(Debug, Clone)]
pub(super) struct Plugin {
    pub(super) id: PluginId,
    pub(super) spec: Spec,
    pub(super) desired: Desired,
    pub(super) actual: Actual,
    /// Since when its phase is what it is.
    pub(super) since: Moment,
    /// All restarts; for status.
    pub(super) restarts: u32,
    /// Restarts since the last run of `reset_after`; the formula's n and what `max_restarts` bounds.
    streak: u32,
    /// While in a crash loop: how long a run must last to be out of it.
    pub(super) steady_after: Option<Duration>,
    pub(super) last_exit: Option<LastExit>,
    /// Of the present run, or of the next.
    pub(super) probing: Probing,
    /// Whether people were told that the present run is ready.
    pub(super) told_ready: bool,
    random: Random,
}

impl Plugin {
    pub(super) fn new(id: PluginId, spec: Spec, random: Random) -> Self {
        Self {
            id,
            probing: Probing::new(&spec),
            spec,
            desired: Desired::Run,
            actual: Actual::Waiting,
            since: Moment::default(),
            restarts: 0,
            streak: 0,
            steady_after: None,
            last_exit: None,
            told_ready: false,
            random,
        }
    }

    /// From when on the end of the present run would be followed by another at once.
    pub(super) fn standby_from(&self) -> Option<Moment> {
        let (Actual::Running(process)
        | Actual::PreStopping { process, .. }
        | Actual::Terminating { process, .. }
        | Actual::Killing { process, .. }) = self.actual
        else {
            return None;
        };
        let forgiven = restart::decide(self.spec.restart, self.spec.curve.max_restarts, 0, false);
        // The first restart of a streak alone does not wait, and a long run begins a new one.
        let wait = if self.streak == 0 { Duration::ZERO } else { self.spec.curve.reset_after };
        (self.desired == Desired::Run && matches!(forgiven, Verdict::Restart { .. }))
            .then(|| process.started.after(wait.max(STANDBY_AFTER)))
    }

    /// Whether there is a process, or one is being made.
    pub(super) fn is_live(&self) -> bool {
        match self.actual {
            Actual::Spawning { .. }
            | Actual::Running(_)
            | Actual::PreStopping { .. }
            | Actual::Terminating { .. }
            | Actual::Killing { .. } => true,
            Actual::Waiting
            | Actual::Blocked
            | Actual::BackingOff { .. }
            | Actual::Completed
            | Actual::Failed { .. }
            | Actual::Stopped => false,
        }
    }

    /// Whether it serves.
    pub(super) fn is_ready(&self) -> bool {
        matches!(self.actual, Actual::Running(_))
            && self.steady_after.is_none()
            && self.probing.unready().is_none()
    }

    /// Whether it serves, or has done what it was to do.
    pub(super) fn is_ready_or_completed(&self) -> bool {
        self.is_ready() || self.actual == Actual::Completed
    }

    /// Whether a plugin that depends on it may start.
    pub(super) fn satisfies_dependants(&self) -> bool {
        let ready_will_do = match self.spec.restart {
            RestartPolicy::Always => true,
            RestartPolicy::OnFailure | RestartPolicy::Never => self.spec.tells_readiness(),
        };
        self.actual == Actual::Completed || (ready_will_do && self.is_ready())
    }

    /// Whether it is down and nothing in this engine's life starts it again.
    pub(super) fn is_spent(&self) -> bool {
        match self.actual {
            Actual::Blocked | Actual::Completed | Actual::Failed { .. } | Actual::Stopped => true,
            Actual::Waiting
            | Actual::Spawning { .. }
            | Actual::Running(_)
            | Actual::PreStopping { .. }
            | Actual::Terminating { .. }
            | Actual::Killing { .. }
            | Actual::BackingOff { .. } => false,
        }
    }

    pub(super) fn spawn(&mut self, now: Moment, run: RunId, out: &mut Vec<Effect>) {
        // The first spawn alone comes out of Waiting.
        if self.actual != Actual::Waiting {
            self.restarts = self.restarts.saturating_add(1);
        }
        self.probing = Probing::new(&self.spec);
        self.enter(now, Actual::Spawning { run, asked: now });
        out.push(Effect::Spawn { plugin: self.id, run });
    }

    pub(super) fn spawned(&mut self, now: Moment, run: RunId, pid: u32, out: &mut Vec<Effect>) {
        let Actual::Spawning { run: expected, .. } = self.actual else { return };
        if run == expected {
            self.enter(now, Actual::Running(Process { run, pid, started: now, condemned: None }));
            self.probing.start(now);
            if self.desired != Desired::Run {
                self.probing.stop_judging(self.id, run, out);
            }
            out.push(Effect::Report(Change::Started { plugin: self.id, pid, restarts: self.restarts }));
        }
    }

    /// The run ended, or never began. The driver cannot know of an end that is not this plugin's live run's,
    /// so anything else is late or repeated and changes nothing.
    pub(super) fn run_ended(&mut self, now: Moment, ended: RunId, end: RunEnd, out: &mut Vec<Effect>) {
        let (run, ran_for, failed_probe) = match (self.actual, end) {
            (Actual::Spawning { run, .. }, RunEnd::Exited(_) | RunEnd::SpawnFailed(_)) => {
                (run, Duration::ZERO, None)
            }
            (
                Actual::Running(process)
                | Actual::PreStopping { process, .. }
                | Actual::Terminating { process, .. }
                | Actual::Killing { process, .. },
                RunEnd::Exited(_),
            ) => (process.run, now.since(process.started), process.condemned),
            (
                Actual::Running(_)
                | Actual::PreStopping { .. }
                | Actual::Terminating { .. }
                | Actual::Killing { .. },
                RunEnd::SpawnFailed(_),
            )
            | (
                Actual::Waiting
                | Actual::Blocked
                | Actual::BackingOff { .. }
                | Actual::Completed
                | Actual::Failed { .. }
                | Actual::Stopped,
                RunEnd::Exited(_) | RunEnd::SpawnFailed(_),
            ) => return,
        };
        if run != ended {
            return;
        }
        self.last_exit = Some(LastExit { end, at: now, ran_for, failed_probe });
        self.probing.stop(self.id, run, out);
        self.probing = Probing::new(&self.spec);
        self.told_ready = false;
        let plugin = self.id;
        out.push(Effect::Report(match end {
            RunEnd::Exited(exit) => Change::Exited { plugin, exit, ran_for },
            RunEnd::SpawnFailed(error) => Change::SpawnFailed { plugin, error },
        }));
        if ran_for >= self.spec.curve.reset_after {
            self.streak = 0;
            self.steady_after = None;
        }
        self.settle(now, end.is_success() && failed_probe.is_none(), out);
    }

    /// Where a plugin goes after a run: by its policy, unless it was told to stop.
    fn settle(&mut self, now: Moment, success: bool, out: &mut Vec<Effect>) {
        let plugin = self.id;
        let by_policy =
            restart::decide(self.spec.restart, self.spec.curve.max_restarts, self.streak, success);
        let (next, change) = match (self.desired, by_policy) {
            (Desired::Run, Verdict::Restart { n }) => return self.back_off(now, n, out),
            // It was told to end and did. How, is in last_exit.
            (
                Desired::Stop(_) | Desired::Abandon,
                Verdict::Restart { .. } | Verdict::Completed | Verdict::Failed | Verdict::Spent,
            )
            | (Desired::Finish, Verdict::Restart { .. }) => (Actual::Stopped, Change::Stopped { plugin }),
            (Desired::Run | Desired::Finish, Verdict::Completed) => {
                (Actual::Completed, Change::Completed { plugin })
            }
            (Desired::Run | Desired::Finish, Verdict::Failed) => {
                (Actual::Failed { spent: false }, Change::Failed { plugin })
            }
            (Desired::Run | Desired::Finish, Verdict::Spent) => {
                (Actual::Failed { spent: true }, Change::GaveUp { plugin, restarts: self.streak })
            }
        };
        self.steady_after = None;
        self.enter(now, next);
        out.push(Effect::Report(change));
    }

    /// Decides on restart `n` and its wait. A wait of nothing is over within the same step.
    fn back_off(&mut self, now: Moment, n: u32, out: &mut Vec<Effect>) {
        let plugin = self.id;
        let delay = restart::delay(&self.spec.curve, n, &mut self.random);
        self.streak = n;
        self.enter(now, Actual::BackingOff { until: now.after(delay) });
        out.push(Effect::Report(Change::BackOff { plugin, n, delay }));
        if n >= 2 {
            let entered = self.steady_after.is_none();
            self.steady_after = Some(delay.min(self.spec.curve.reset_after));
            if entered {
                out.push(Effect::Report(Change::CrashLoop { plugin }));
            }
        }
    }

    /// It ran as long as it last waited: out of the crash loop.
    pub(super) fn steady(&mut self, out: &mut Vec<Effect>) {
        self.steady_after = None;
        out.push(Effect::Report(Change::Steady { plugin: self.id }));
    }

    /// It can never start.
    pub(super) fn block(&mut self, now: Moment, dependency: PluginId, out: &mut Vec<Effect>) {
        self.enter(now, Actual::Blocked);
        out.push(Effect::Report(Change::DependencyFailed { plugin: self.id, dependency }));
    }

    /// A stop began: what has no process stays down, the rest runs on until its turn.
    pub(super) fn finish(&mut self, now: Moment, out: &mut Vec<Effect>) {
        self.desired = Desired::Finish;
        match self.actual {
            Actual::Waiting | Actual::BackingOff { .. } => {
                self.steady_after = None;
                self.enter(now, Actual::Stopped);
                out.push(Effect::Report(Change::Stopped { plugin: self.id }));
            }
            Actual::Running(process) => self.probing.stop_judging(self.id, process.run, out),
            Actual::Blocked
            | Actual::Spawning { .. }
            | Actual::PreStopping { .. }
            | Actual::Terminating { .. }
            | Actual::Killing { .. }
            | Actual::Completed
            | Actual::Failed { .. }
            | Actual::Stopped => {}
        }
    }

    pub(super) fn enter(&mut self, now: Moment, next: Actual) {
        if phase(self.actual) != phase(next) {
            self.since = now;
        }
        self.actual = next;
    }
}
