//! The pure state machine of all plugins: everything that decides about a plugin's life, and nothing that
//! acts.
//!
//! [`Engine::step`] takes what happened and returns what is to be done. It knows no clock, no task, no file,
//! no process and no environment; chance comes from a seed. It is total: any event in any state has the
//! result written down here, the number of effects is bounded (a small multiple of the number of plugins),
//! and nothing panics.
//!
//! # The pair of states
//!
//! Each plugin has a *desired* and an *actual* state, as dinit's services have. The desired state is the
//! engine's own and only ever moves to the right:
//!
//! ```text
//!   Run ────────────▶ Finish ────────────▶ Stop{kill_limit, limit} ────────────▶ Abandon
//!       a stop began           its turn came                      it was given up
//! ```
//!
//! The actual state is what the driver was asked for and has answered:
//!
//! ```text
//!                                          its turn, or      PreStopEnded,
//!             spawn             Spawned    a probe failed    or kill_at           kill_at
//!  Waiting ─────────▶ Spawning ─────────▶ Running ─────▶ PreStopping ─────▶ Terminating ─────▶ Killing
//!     │                  ▲  │                │    └───────────┼──────────────▶ │                  │
//!     │ a dependency     │  │ SpawnFailed,   │ Exited         │ Exited         │ Exited           │ Exited
//!     │ failed for good  │  │ Exited         │                │                │                  │
//!     ▼            until │  └────────────────┴───── the run ended ─────────────┴──────────────────┘
//!  Blocked               │                           │
//!                        └────── BackingOff ◀────────┴───────▶ Completed, Failed, Stopped
//! ```
//!
//! `PreStopping` is left out where there is no preStop hook, and `Running` goes to `Killing` at once where
//! there is no time for anything else.
//!
//! What each pair means, and what is done about it within the same step. `·` cannot be reached and does
//! nothing.
//!
//! | actual ＼ desired | `Run` | `Finish` | `Stop` | `Abandon` |
//! |---|---|---|---|---|
//! | `Waiting` | spawned when its role and its dependencies allow | · (→ `Stopped` as the stop began) | · | ·
//! |
//! | `Blocked` | for ever: a dependency failed for good | stays, so that status tells why it never ran |
//! stays | · |
//! | `Spawning` | asked for, not yet answered | the answer is awaited | the answer is awaited until it is
//! given up | no longer awaited; a process that comes late is killed |
//! | `Running` | runs and is probed; a failed startup or liveness probe ends the run as a turn does | runs
//! on, is not started again; of its probes readiness alone is asked | → `PreStopping`, → `Terminating` with
//! TERM, or → `Killing` if there is no time left | → `Killing` with KILL |
//! | `PreStopping` | a probe ended it: TERM at `kill_at` | as under `Run` | TERM at `kill_at`, KILL where the
//! limit leaves no time for it | · |
//! | `Terminating` | a probe ended it: KILL at `kill_at` | as under `Run` | KILL at `kill_at` | · |
//! | `Killing` | awaited for ever: another run beside it would be worse | awaited | awaited until it is given
//! up | no longer awaited (D state) |
//! | `BackingOff` | spawned at `until` | · (→ `Stopped` as the stop began) | · | · |
//! | `Completed`, `Failed` | for good | for good | for good | · |
//! | `Stopped` | · | for good | for good | for good |
//!
//! # Events × states
//!
//! `–`: ignored. An event about a run that is not the plugin's present one, or about a plugin that does not
//! exist, is ignored in every state. After `End` every event is.
//!
//! | event | `Waiting` `Blocked` `BackingOff` | `Spawning` | `Running` | `PreStopping` `Terminating`
//! `Killing` | `Completed` `Failed` `Stopped` |
//! |---|---|---|---|---|---|
//! | `Spawned` | – | → `Running` (and on at once, by the table above) | – | – | – |
//! | `SpawnFailed` | – | run ended: a failed run of no duration | – | – | – |
//! | `Exited` | – | run ended, of no known duration (it overtook its `Spawned`) | run ended | run ended | – |
//! | `Probed` | – | – | counted if it answers the open question; a failure may end the run | – | – |
//! | `Notified` | – | kept for the run (it overtook its `Spawned`) | counts for readiness | – | – |
//! | `PreStopEnded` | – | – | – | `PreStopping` → `Terminating`; else – | – |
//! | `DeadlineReached` | whatever is due, as in every step | the same | the same | the same | – |
//! | `Start` | deployment `Idle`: → `Running`; else – | – | – | – | – |
//! | `Drain` | → `Stopped` (`Blocked` stays) | desired `Finish` | desired `Finish` | may only shorten | – |
//!
//! *Run ended* means: desired `Stop` or `Abandon` → `Stopped`. Desired `Run` or `Finish` → by the restart
//! policy: `Completed`, `Failed`, or another run, which is `BackingOff` under `Run` and `Stopped` under
//! `Finish`. A run that a probe ended is a failed run, whatever its exit code.
//!
//! # Decisions
//!
//! - **Restarts.** `maxRestarts` bounds n, the restarts since the last run of at least `resetAfter`; status
//!   counts all of them. Unlimited unless given, also for `Always`. A wait of nothing (n = 1) is spawned in
//!   the same step.
//! - **Crash loop.** A plugin enters it when n ≥ 2 is decided and leaves it when a run has lasted as long as
//!   the last wait (jitter included), or `resetAfter` if that is shorter. In between it shows
//!   `CrashLoopBackOff` and is not ready, running or not. So a plugin that runs for less time than it waits
//!   never looks ready.
//! - **Probes** are kubelet's. Until the startup probe succeeds the others are not asked; delays count from
//!   the start of the run, periods from question to question, thresholds in a row. Liveness counts as passing
//!   until it fails, readiness as failing until it passes. A question is open until it is answered, or given
//!   up [`PROBE_SLACK`] after its timeout, which is a failure; there is never a second one beside it. A probe
//!   that could not be performed counts as neither.
//! - **Ready** is what runs, is not in a crash loop, and whose startup probe, readiness probe and `READY=1`
//!   have come, those that it has. All of them start over with each run and are gone as soon as it is told to
//!   stop. Readiness never ends anything.
//! - **A probe ends a run** as a turn to stop would, within the probe's own grace if it has one. Once a stop
//!   began elsewhere, startup and liveness probes are not asked any more, as kubelet does not when a pod is
//!   deleted: there would not be another run.
//! - **preStop** runs within the grace. Whatever it leaves of it, TERM has [`TERM_AFTER_PRE_STOP`] before
//!   KILL, unless the limit of the turn is nearer.
//! - **Start.** Telemetry, then services, then user plugins. A later role starts when every plugin of the
//!   earlier ones is *settled*: its first spawn has been answered, however; or has gone unanswered for
//!   [`SPAWN_PATIENCE`]; or it waits for a dependency that is not ready, or that belongs to a later role. So
//!   no death of telemetry or a service holds back the workload, and no hanging start for longer than that
//!   (once per link where they wait for one another), and neither does one that never gets ready or never
//!   ends. A role that may start once may start for good.
//! - **Dependencies** gate the first start only; a restart does not wait for them again. A dependency is met
//!   when it has completed, or is ready. That one of `restartPolicy` `OnFailure` or `Never` is ready counts
//!   only if it has a readiness probe or says `READY=1`: else it is a piece of work, as an init container is,
//!   and that it runs means that it is not done.
//! - **End of the workload.** When every user plugin is `Blocked`, `Completed` or `Failed`, the rest is
//!   stopped as a drain stops it, with time enough for everyone's full grace. No user plugins at all count as
//!   completed.
//! - **Stop.** Users, services, telemetry; within a role dependants before what they depend on, independent
//!   ones together. The module `stop` says how the time is shared. An exit before the plugin's own turn is
//!   judged by its policy, except that there is no other run.

mod change;
mod ending;
mod event;
mod health;
mod order;
mod plugin;
mod probe;
mod random;
mod restart;
mod snapshot;
mod spec;
mod stop;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub use change::Change;
pub use event::{
    Effect, Event, ExitReason, Moment, Outcome, PluginId, ProbeId, ProbeResult, RunEnd, RunId, SpawnError,
    Stop,
};
pub use probe::PROBE_SLACK;
pub use snapshot::{DeploymentPhase, LastExit, PluginPhase, PluginSnapshot, ProbeSnapshot, Reason, Snapshot};
pub use spec::{ProbeKind, ProbeSpec, Probes, RestartCurve, RestartPolicy, Role, Spec};
pub use stop::{KILL_MARGIN, KILL_PATIENCE, TERM_AFTER_PRE_STOP, TURN_RESERVE};

use order::Order;
use plugin::{Actual, Desired, Plugin};
use random::Random;
use stop::StopPlan;

/// How long an unanswered first spawn of telemetry or a service holds back the later roles. The driver
/// answers within milliseconds; this is for a file system or a kernel that hangs.
pub const SPAWN_PATIENCE: Duration = Duration::from_secs(10);

/// What the deployment does; [`DeploymentPhase`] is the part of it that is shown.
#[derive(Debug, Clone)]
enum Phase {
    Idle,
    Running,
    Stopping(StopPlan),
    Ended(Outcome),
}

/// The state of all plugins of one deployment.
#[derive(Debug, Clone)]
pub struct Engine {
    plugins: Vec<Plugin>,
    order: Order,
    phase: Phase,
    /// The latest moment seen: time does not go back, whatever is passed in.
    now: Moment,
    run_last: RunId,
    probe_last: ProbeId,
    /// The latest role whose plugins may start. Once open it stays so: a service that starts late, behind a
    /// dependency, does not hold back the user plugins that are still to come.
    open: Role,
    deadline: Option<Moment>,
}

impl Engine {
    /// An engine at rest. The same specs, seed and events give the same effects.
    pub fn new(specs: Vec<Spec>, seed: u64) -> Self {
        let order = Order::new(&specs);
        let plugins = (0..).zip(specs);
        let plugins = plugins
            .enumerate()
            .map(|(index, (stream, spec))| Plugin::new(PluginId(index), spec, Random::new(seed, stream)));
        Self {
            plugins: plugins.collect(),
            order,
            phase: Phase::Idle,
            now: Moment::default(),
            run_last: RunId(0),
            probe_last: ProbeId(0),
            open: Role::Telemetry,
            deadline: None,
        }
    }

    /// Takes in one event, handles everything that is due at `now`, and says what to do.
    #[must_use = "effects that are not performed are processes that are never started or stopped"]
    pub fn step(&mut self, now: Moment, event: Event) -> Vec<Effect> {
        let mut out = Vec::new();
        if let Phase::Ended(_) = self.phase {
            return out;
        }
        self.now = self.now.max(now);
        self.take(event, &mut out);
        self.fire_due(&mut out);
        self.block_dependants(&mut out);
        self.end_spent_workload(&mut out);
        self.start_in_order(&mut out);
        self.stop_in_order(&mut out);
        self.ask_probes(&mut out);
        self.deadline = self.earliest_deadline();
        out
    }

    /// When to send [`Event::DeadlineReached`]; always later than the last step. None: only other events
    /// matter.
    pub fn next_deadline(&self) -> Option<Moment> {
        self.deadline
    }

    /// From when on it is worth having a plugin's next run prepared: were its present one to fail then, the
    /// next would start at once. None when it would not, whenever that is.
    pub fn standby_from(&self, plugin: PluginId) -> Option<Moment> {
        self.plugins.get(plugin.0)?.standby_from()
    }

    /// The state as people see it.
    pub fn snapshot(&self) -> Snapshot {
        let plugins: Vec<_> = self.plugins.iter().map(Plugin::snapshot).collect();
        let mut users = self.plugins.iter().filter(|plugin| plugin.spec.role == Role::User);
        let some_ready = users.clone().any(Plugin::is_ready);
        let running = matches!(self.phase, Phase::Running);
        let ready = running && some_ready && users.all(Plugin::is_ready_or_completed);
        let phase = match &self.phase {
            Phase::Idle => DeploymentPhase::Idle,
            Phase::Running => DeploymentPhase::Running,
            Phase::Stopping(plan) => {
                DeploymentPhase::Stopping { deadline: plan.deadline, outcome: plan.outcome }
            }
            Phase::Ended(outcome) => DeploymentPhase::Ended(*outcome),
        };
        Snapshot { phase, ready, plugins }
    }

    fn take(&mut self, event: Event, out: &mut Vec<Effect>) {
        let now = self.now;
        match event {
            Event::Start => {
                if let Phase::Idle = self.phase {
                    self.phase = Phase::Running;
                }
            }
            Event::Spawned { plugin, run, pid } => {
                if let Some(plugin) = self.plugins.get_mut(plugin.0) {
                    plugin.spawned(now, run, pid, out);
                }
            }
            Event::SpawnFailed { plugin, run, error } => {
                if let Some(plugin) = self.plugins.get_mut(plugin.0) {
                    plugin.run_ended(now, run, RunEnd::SpawnFailed(error), out);
                }
            }
            Event::Exited { plugin, run, exit } => {
                if let Some(plugin) = self.plugins.get_mut(plugin.0) {
                    plugin.run_ended(now, run, RunEnd::Exited(exit), out);
                }
            }
            Event::Probed { plugin, run, kind, id, result } => {
                if let Some(plugin) = self.plugins.get_mut(plugin.0) {
                    plugin.probed(now, (run, kind, id), result, out);
                }
            }
            Event::Notified { plugin, run } => {
                if let Some(plugin) = self.plugins.get_mut(plugin.0) {
                    plugin.notified(run);
                }
            }
            Event::PreStopEnded { plugin, run } => {
                if let Some(plugin) = self.plugins.get_mut(plugin.0) {
                    plugin.pre_stop_ended(now, run, out);
                }
            }
            Event::DeadlineReached => {}
            Event::Drain { grace } => self.drain(grace, out),
        }
    }

    /// The timers of plugins whose turn to stop has not come; the others follow in order.
    fn fire_due(&mut self, out: &mut Vec<Effect>) {
        for plugin in &mut self.plugins {
            plugin.give_up_overdue_probes(self.now, out);
            match plugin.desired {
                Desired::Run | Desired::Finish => plugin.pursue_stop(self.now, out),
                Desired::Stop(_) | Desired::Abandon => {}
            }
            if run_deadline(plugin).is_some_and(|due| due <= self.now) {
                if let Actual::BackingOff { .. } = plugin.actual {
                    self.run_last.0 += 1;
                    plugin.spawn(self.now, self.run_last, out);
                } else {
                    plugin.steady(out);
                }
            }
            plugin.tell_readiness(out);
        }
    }

    /// Last of all, so that nobody is asked who is told to stop in the same step.
    fn ask_probes(&mut self, out: &mut Vec<Effect>) {
        for plugin in &mut self.plugins {
            plugin.ask_probes(self.now, &mut self.probe_last, out);
        }
    }

    /// Whoever waits for a plugin that failed for good waits for ever, and so do those that wait for him.
    fn block_dependants(&mut self, out: &mut Vec<Effect>) {
        let Phase::Running = self.phase else { return };
        for &index in &self.order.impossible {
            if self.plugins[index].actual == Actual::Waiting {
                self.plugins[index].block(self.now, PluginId(index), out);
            }
        }
        for &index in &self.order.by_dependency {
            if self.plugins[index].actual != Actual::Waiting {
                continue;
            }
            let hopeless = |&&PluginId(other): &&PluginId| {
                self.plugins[other].is_spent() && !self.plugins[other].satisfies_dependants()
            };
            let by = self.plugins[index].spec.depends_on.iter().find(hopeless).copied();
            if let Some(by) = by {
                self.plugins[index].block(self.now, by, out);
            }
        }
    }

    fn start_in_order(&mut self, out: &mut Vec<Effect>) {
        let Phase::Running = self.phase else { return };
        for role in Role::START_ORDER {
            if role > self.open && !self.earlier_roles_settled(role) {
                return;
            }
            self.open = self.open.max(role);
            for &index in &self.order.start {
                let plugin = &self.plugins[index];
                let ready = |&PluginId(other): &PluginId| self.plugins[other].satisfies_dependants();
                if plugin.spec.role == role
                    && plugin.actual == Actual::Waiting
                    && plugin.spec.depends_on.iter().all(ready)
                {
                    self.run_last.0 += 1;
                    self.plugins[index].spawn(self.now, self.run_last, out);
                }
            }
        }
    }

    /// Whether nothing of the roles before `role` holds it back any more.
    fn earlier_roles_settled(&self, role: Role) -> bool {
        self.plugins.iter().filter(|plugin| plugin.spec.role < role).all(|plugin| {
            match plugin.actual {
                // What holds it back is settled itself, or keeps the role closed on its own account.
                Actual::Waiting => plugin.spec.depends_on.iter().any(|&PluginId(other)| {
                    let dependency = &self.plugins[other];
                    dependency.spec.role > plugin.spec.role || !dependency.satisfies_dependants()
                }),
                Actual::Spawning { asked, .. } => {
                    plugin.restarts > 0 || asked.after(SPAWN_PATIENCE) <= self.now
                }
                Actual::Blocked
                | Actual::Running(_)
                | Actual::PreStopping { .. }
                | Actual::Terminating { .. }
                | Actual::Killing { .. }
                | Actual::BackingOff { .. }
                | Actual::Completed
                | Actual::Failed { .. }
                | Actual::Stopped => true,
            }
        })
    }

    fn earliest_deadline(&self) -> Option<Moment> {
        if let Phase::Ended(_) = self.phase {
            return None;
        }
        let deadlines = |plugin: &Plugin| {
            let due = [
                run_deadline(plugin),
                patience_deadline(plugin),
                plugin.probe_deadline(),
                plugin.stop_deadline(),
            ];
            due.into_iter().flatten().filter(|&due| due > self.now).min()
        };
        self.plugins.iter().filter_map(deadlines).min()
    }
}

/// When something is due about a plugin that is to run: its restart, or the end of its crash loop.
fn run_deadline(plugin: &Plugin) -> Option<Moment> {
    if plugin.desired != Desired::Run {
        return None;
    }
    match plugin.actual {
        Actual::BackingOff { until } => Some(until),
        Actual::Running(process) => plugin.steady_after.map(|wait| process.started.after(wait)),
        Actual::Waiting
        | Actual::Blocked
        | Actual::Spawning { .. }
        | Actual::PreStopping { .. }
        | Actual::Terminating { .. }
        | Actual::Killing { .. }
        | Actual::Completed
        | Actual::Failed { .. }
        | Actual::Stopped => None,
    }
}

/// When an unanswered first spawn stops holding back the later roles.
fn patience_deadline(plugin: &Plugin) -> Option<Moment> {
    match plugin.actual {
        Actual::Spawning { asked, .. } if plugin.restarts == 0 && plugin.desired == Desired::Run => {
            Some(asked.after(SPAWN_PATIENCE))
        }
        Actual::Spawning { .. }
        | Actual::Waiting
        | Actual::Blocked
        | Actual::Running(_)
        | Actual::PreStopping { .. }
        | Actual::Terminating { .. }
        | Actual::Killing { .. }
        | Actual::BackingOff { .. }
        | Actual::Completed
        | Actual::Failed { .. }
        | Actual::Stopped => None,
    }
}
