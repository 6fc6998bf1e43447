//! One plugin's pair of states and the transitions that concern it alone. When a transition is due is the
//! engine's business; here is what it does.

use std::time::Duration;

use super::change::Change;
use super::event::{Effect, ExitReason, Moment, PluginId, RunEnd, RunId, Stop};
use super::random::Random;
use super::restart::{self, Verdict};
use super::snapshot::{LastExit, PluginPhase, PluginSnapshot, Reason};
use super::spec::Spec;

/// What the engine wants of a plugin. Only ever moves down this list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Desired {
    /// To run, and to be started again as its policy says.
    Run,
    /// A stop began elsewhere: to run on until its turn comes, but never to be started again.
    Finish,
    /// Its turn came: to end, with TERM at once and KILL at `kill_at`; not waited for after `give_up_at`.
    Stop { kill_at: Moment, give_up_at: Moment },
    /// Not waited for any more. If it has or gets a process, that one is killed.
    Abandon,
}

/// What a plugin does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Actual {
    Waiting,
    Blocked,
    Spawning { run: RunId, asked: Moment },
    Running { run: RunId, pid: u32, started: Moment },
    Terminating { run: RunId, pid: u32, started: Moment },
    Killing { run: RunId, pid: u32, started: Moment },
    BackingOff { until: Moment },
    Completed,
    Failed { spent: bool },
    Stopped,
}

#[derive(Debug, Clone)]
pub(super) struct Plugin {
    id: PluginId,
    pub(super) spec: Spec,
    pub(super) desired: Desired,
    pub(super) actual: Actual,
    /// Since when its phase is what it is.
    since: Moment,
    /// All restarts; for status.
    pub(super) restarts: u32,
    /// Restarts since the last run of `reset_after`; the formula's n and what `max_restarts` bounds.
    streak: u32,
    /// While in a crash loop: how long a run must last to be out of it.
    pub(super) steady_after: Option<Duration>,
    last_exit: Option<LastExit>,
    random: Random,
}

impl Plugin {
    pub(super) fn new(id: PluginId, spec: Spec, random: Random) -> Self {
        Self {
            id,
            spec,
            desired: Desired::Run,
            actual: Actual::Waiting,
            since: Moment::default(),
            restarts: 0,
            streak: 0,
            steady_after: None,
            last_exit: None,
            random,
        }
    }

    /// Whether there is a process, or one is being made.
    pub(super) fn is_live(&self) -> bool {
        match self.actual {
            Actual::Spawning { .. }
            | Actual::Running { .. }
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

    /// Whether it serves. Readiness probes are to be asked here and nowhere else.
    pub(super) fn is_ready(&self) -> bool {
        matches!(self.actual, Actual::Running { .. }) && self.steady_after.is_none()
    }

    /// Whether a plugin that depends on it may start.
    pub(super) fn satisfies_dependants(&self) -> bool {
        self.is_ready() || self.actual == Actual::Completed
    }

    /// Whether it is down and nothing in this engine's life starts it again.
    pub(super) fn is_spent(&self) -> bool {
        match self.actual {
            Actual::Blocked | Actual::Completed | Actual::Failed { .. } | Actual::Stopped => true,
            Actual::Waiting
            | Actual::Spawning { .. }
            | Actual::Running { .. }
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
        self.enter(now, Actual::Spawning { run, asked: now });
        out.push(Effect::Spawn { plugin: self.id, run });
    }

    pub(super) fn spawned(&mut self, now: Moment, run: RunId, pid: u32, out: &mut Vec<Effect>) {
        let Actual::Spawning { run: expected, .. } = self.actual else { return };
        if run == expected {
            self.enter(now, Actual::Running { run, pid, started: now });
            out.push(Effect::Report(Change::Started { plugin: self.id, pid, restarts: self.restarts }));
        }
    }

    /// The run ended, or never began. The driver cannot know of an end that is not this plugin's live run's,
    /// so anything else is late or repeated and changes nothing.
    pub(super) fn run_ended(&mut self, now: Moment, ended: RunId, end: RunEnd, out: &mut Vec<Effect>) {
        let (run, ran_for) = match (self.actual, end) {
            (Actual::Spawning { run, .. }, RunEnd::Exited(_) | RunEnd::SpawnFailed(_)) => {
                (run, Duration::ZERO)
            }
            (
                Actual::Running { run, started, .. }
                | Actual::Terminating { run, started, .. }
                | Actual::Killing { run, started, .. },
                RunEnd::Exited(_),
            ) => (run, now.since(started)),
            (
                Actual::Running { .. } | Actual::Terminating { .. } | Actual::Killing { .. },
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
        self.last_exit = Some(LastExit { end, at: now, ran_for });
        let plugin = self.id;
        out.push(Effect::Report(match end {
            RunEnd::Exited(exit) => Change::Exited { plugin, exit, ran_for },
            RunEnd::SpawnFailed(error) => Change::SpawnFailed { plugin, error },
        }));
        if ran_for >= self.spec.curve.reset_after {
            self.streak = 0;
            self.steady_after = None;
        }
        self.settle(now, end, out);
    }

    /// Where a plugin goes after a run: by its policy, unless it was told to stop.
    fn settle(&mut self, now: Moment, end: RunEnd, out: &mut Vec<Effect>) {
        let plugin = self.id;
        let by_policy =
            restart::decide(self.spec.restart, self.spec.curve.max_restarts, self.streak, end.is_success());
        let (next, change) = match (self.desired, by_policy) {
            (Desired::Run, Verdict::Restart { n }) => return self.back_off(now, n, out),
            // It was told to end and did. How, is in last_exit.
            (
                Desired::Stop { .. } | Desired::Abandon,
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
            Actual::Blocked
            | Actual::Spawning { .. }
            | Actual::Running { .. }
            | Actual::Terminating { .. }
            | Actual::Killing { .. }
            | Actual::Completed
            | Actual::Failed { .. }
            | Actual::Stopped => {}
        }
    }

    /// Its turn came and goes on: TERM, KILL and giving up, each at most once per run and as soon as it is
    /// due.
    pub(super) fn pursue_stop(&mut self, now: Moment, out: &mut Vec<Effect>) {
        let (kill_at, give_up_at) = match self.desired {
            Desired::Run | Desired::Finish => return,
            Desired::Stop { kill_at, give_up_at } => (kill_at, give_up_at),
            Desired::Abandon => (now, now),
        };
        let plugin = self.id;
        match self.actual {
            Actual::Running { run, pid, started } if now < kill_at => {
                self.enter(now, Actual::Terminating { run, pid, started });
                out.push(Effect::Signal { plugin, run, signal: Stop::Term });
                out.push(Effect::Report(Change::Stopping { plugin, kill_in: kill_at.since(now) }));
            }
            Actual::Running { run, pid, started } | Actual::Terminating { run, pid, started }
                if now >= kill_at =>
            {
                self.enter(now, Actual::Killing { run, pid, started });
                out.push(Effect::Signal { plugin, run, signal: Stop::Kill });
                out.push(Effect::Report(Change::Killed { plugin }));
            }
            Actual::Running { .. }
            | Actual::Terminating { .. }
            | Actual::Waiting
            | Actual::Blocked
            | Actual::Spawning { .. }
            | Actual::Killing { .. }
            | Actual::BackingOff { .. }
            | Actual::Completed
            | Actual::Failed { .. }
            | Actual::Stopped => {}
        }
        if now >= give_up_at && self.is_live() && self.desired != Desired::Abandon {
            self.desired = Desired::Abandon;
            out.push(Effect::Report(Change::Unkillable { plugin }));
        }
    }

    pub(super) fn snapshot(&self) -> PluginSnapshot {
        let (pid, next_restart) = match self.actual {
            Actual::Running { pid, .. } | Actual::Terminating { pid, .. } | Actual::Killing { pid, .. } => {
                (Some(pid), None)
            }
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
        }
    }

    fn reason(&self) -> Option<Reason> {
        match self.actual {
            Actual::Waiting => Some(Reason::StartOrder),
            Actual::Blocked => Some(Reason::DependencyFailed),
            Actual::Spawning { .. } | Actual::Terminating { .. } | Actual::Killing { .. }
                if self.desired == Desired::Abandon =>
            {
                Some(Reason::Unkillable)
            }
            Actual::Spawning { .. } | Actual::Running { .. } | Actual::BackingOff { .. } => {
                self.steady_after.map(|_| Reason::CrashLoopBackOff)
            }
            Actual::Terminating { .. } | Actual::Killing { .. } | Actual::Stopped => None,
            Actual::Completed => Some(Reason::Completed),
            Actual::Failed { spent: true } => Some(Reason::RestartsSpent),
            Actual::Failed { spent: false } => self.last_exit.map(|last| match last.end {
                RunEnd::Exited(ExitReason::Code(_) | ExitReason::Signal(_)) => Reason::Error,
                RunEnd::Exited(ExitReason::OutOfMemory) => Reason::OutOfMemory,
                RunEnd::SpawnFailed(_) => Reason::StartError,
            }),
        }
    }

    fn enter(&mut self, now: Moment, next: Actual) {
        if phase(self.actual) != phase(next) {
            self.since = now;
        }
        self.actual = next;
    }
}

fn phase(actual: Actual) -> PluginPhase {
    match actual {
        Actual::Waiting | Actual::Blocked => PluginPhase::Waiting,
        Actual::Spawning { .. } => PluginPhase::Starting,
        Actual::Running { .. } => PluginPhase::Running,
        Actual::Terminating { .. } | Actual::Killing { .. } => PluginPhase::Stopping,
        Actual::BackingOff { .. } => PluginPhase::BackingOff,
        Actual::Completed => PluginPhase::Completed,
        Actual::Failed { .. } => PluginPhase::Failed,
        Actual::Stopped => PluginPhase::Stopped,
    }
}
