//! The invariants, checked after every step. Each has a name; a violation is `Name: what was seen`.

use std::time::Duration;

use enclave_supervisor::engine::{
    Change, DeploymentPhase, Effect, Event, ExitReason, Moment, Outcome, PluginId, PluginPhase, ProbeId,
    Reason, Role, RunEnd, RunId, SPAWN_PATIENCE, Snapshot, Spec, TURN_RESERVE,
};

use crate::cast::{Cast, Due, Member, Run};
use crate::health::Health;

/// More effects than this per plugin in one step would be a storm.
pub(crate) const EFFECTS_PER_PLUGIN_MAX: usize = 9;
/// What concerns the deployment: `Draining`, `WorkloadEnded`, the report of the end, the end.
pub(crate) const EFFECTS_OF_DEPLOYMENT_MAX: usize = 4;

/// A stop that is on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stopping {
    pub(crate) deadline: Moment,
    outcome: Outcome,
    /// What each turn is owed, at least.
    pub(crate) share: Duration,
}

pub(crate) struct Checker {
    pub(crate) timer_late_max: Duration,
    pub(crate) cast: Cast,
    pub(crate) now: Moment,
    started: bool,
    /// The latest role whose plugins may start.
    open: Role,
    pub(crate) stopping: Option<Stopping>,
    ended: bool,
    run_last: RunId,
    pub(crate) probe_last: ProbeId,
    last: Option<(Snapshot, Option<Moment>)>,
}

macro_rules! ensure {
    ($holds:expr, $name:literal, $($seen:tt)*) => {
        if !$holds {
            return Err(format!("{}: {}", $name, format_args!($($seen)*)));
        }
    };
}

pub(crate) use ensure;

impl Checker {
    pub(crate) fn new(specs: Vec<Spec>, timer_late_max: Duration) -> Self {
        Self {
            timer_late_max,
            cast: Cast::new(specs),
            now: Moment::default(),
            started: false,
            open: Role::Telemetry,
            stopping: None,
            ended: false,
            run_last: RunId(0),
            probe_last: ProbeId(0),
            last: None,
        }
    }

    /// `run`, unless that is the plugin's present one.
    pub(crate) fn stale_run(&self, plugin: PluginId, run: RunId) -> RunId {
        let present = self.cast.0.get(plugin.0).and_then(|member| member.run);
        if present.is_some_and(|present| present.id == run) { RunId(0) } else { run }
    }

    pub(crate) fn check(
        &mut self,
        now: Moment,
        event: Event,
        effects: &[Effect],
        snapshot: &Snapshot,
        next_deadline: Option<Moment>,
    ) -> Result<(), String> {
        let repeated_now = now == self.now && self.last.is_some();
        self.now = now;
        let bound = self.cast.0.len() * EFFECTS_PER_PLUGIN_MAX + EFFECTS_OF_DEPLOYMENT_MAX;
        ensure!(effects.len() <= bound, "EffectsAreBounded", "{} effects", effects.len());
        let heard = self.hear(event);
        if self.ended || (repeated_now && !heard) {
            let same =
                self.last.as_ref().is_some_and(|(last, due)| last == snapshot && *due == next_deadline);
            ensure!(
                effects.is_empty() && same,
                "SenselessEventsChangeNothing",
                "{event:?} led to {effects:?}"
            );
        }
        for effect in effects {
            ensure!(!self.ended, "NothingFollowsTheEnd", "{effect:?}");
            match *effect {
                Effect::Spawn { plugin, run } => self.spawned_in_turn(plugin, run)?,
                Effect::Signal { plugin, run, signal } => self.signalled_in_turn(plugin, run, signal)?,
                Effect::PreStop { plugin, run } => self.hooked_in_turn(plugin, run)?,
                Effect::Probe { plugin, run, kind, id } => self.asked(plugin, run, kind, id)?,
                Effect::CancelProbe { plugin, run, kind, id } => self.cancelled(plugin, run, kind, id)?,
                Effect::Report(change) => self.reported(change, event)?,
                Effect::End(outcome) => self.ended_in_turn(outcome)?,
            }
        }
        self.nothing_is_owed(snapshot)?;
        self.started_in_order(effects, snapshot)?;
        self.stopped_in_order()?;
        self.status_is_true(snapshot)?;
        ensure!(
            next_deadline.is_none_or(|due| due > now),
            "DeadlineLiesAhead",
            "{next_deadline:?} at {now:?}"
        );
        self.nothing_due_is_forgotten(snapshot, next_deadline)?;
        self.probes_are_settled(next_deadline)?;
        self.ends_go_on(next_deadline)?;
        self.last = Some((snapshot.clone(), next_deadline));
        Ok(())
    }

    /// Takes in what the event means by the rules. Whether it means anything.
    fn hear(&mut self, event: Event) -> bool {
        if self.ended {
            return false;
        }
        let now = self.now;
        let stopping = self.stopping.is_some();
        match event {
            Event::Start => {
                let starts = !self.started && !stopping;
                self.started |= starts;
                starts
            }
            Event::DeadlineReached => false,
            Event::Probed { plugin, run, kind, id, result } => self
                .present(plugin, run)
                .is_some_and(|member| member.run_stays() && member.health.hear_answer(kind, id, result)),
            Event::Notified { plugin, run } => self
                .present(plugin, run)
                .is_some_and(|member| member.run_stays() && member.health.hear_notified()),
            Event::PreStopEnded { plugin, run } => {
                let present = self.present(plugin, run).and_then(|member| member.run.as_mut());
                let awaited = present.filter(|run| run.hooked && run.term.is_none() && !run.killed);
                awaited.is_some_and(|run| !std::mem::replace(&mut run.hook_ended, true))
            }
            Event::Drain { .. } => true,
            Event::Spawned { plugin, run, pid } => {
                let Some(member) = self.cast.0.get_mut(plugin.0) else { return false };
                let Some(present) = member.run.as_mut().filter(|present| present.id == run) else {
                    return false;
                };
                member.answered = true;
                present.up.is_none() && present.up.replace((now, pid)).is_none()
            }
            Event::SpawnFailed { plugin, run, error } => {
                self.hear_end(plugin, run, RunEnd::SpawnFailed(error))
            }
            Event::Exited { plugin, run, exit } => self.hear_end(plugin, run, RunEnd::Exited(exit)),
        }
    }

    pub(crate) fn present(&mut self, plugin: PluginId, run: RunId) -> Option<&mut Member> {
        let member = self.cast.0.get_mut(plugin.0)?;
        member.run.is_some_and(|present| present.id == run).then_some(member)
    }

    fn hear_end(&mut self, plugin: PluginId, run: RunId, end: RunEnd) -> bool {
        let turn_is_on = self.stopping.is_some() && self.waits_for(plugin.0).is_none();
        let Some(member) = self.cast.0.get_mut(plugin.0) else { return false };
        let Some(present) = member.run.take_if(|present| present.id == run) else { return false };
        let condemned = member.health.condemned.is_some();
        let success = end == RunEnd::Exited(ExitReason::Code(0)) && !condemned;
        member.to_cancel = member.health.open();
        member.health = Health::new(&member.spec);
        let ran_for = present.up.map_or(Duration::ZERO, |(up, _)| self.now.since(up));
        member.answered = true;
        member.owed = Some(if turn_is_on { Due::Stopped } else { member.verdict(success, ran_for) });
        if let (Some(Due::Restart { .. }), true) = (member.owed, self.stopping.is_some()) {
            member.owed = Some(Due::Stopped);
        }
        true
    }

    /// Who must be down before this plugin's turn to stop comes.
    pub(crate) fn waits_for(&self, index: usize) -> Option<usize> {
        let in_the_way =
            |&other: &usize| self.cast.stops_before(other, index) && self.cast.0[other].in_the_way();
        (0..self.cast.0.len()).filter(|_| index < self.cast.0.len()).find(in_the_way)
    }

    fn spawned_in_turn(&mut self, plugin: PluginId, run: RunId) -> Result<(), String> {
        let now = self.now;
        let member = &mut self.cast.0[plugin.0];
        ensure!(member.run.is_none(), "OneLiveRunPerPlugin", "{plugin:?} has {:?}", member.run);
        ensure!(self.started && self.stopping.is_none(), "NoSpawnOnceAStopBegan", "{plugin:?}");
        ensure!(run > self.run_last, "RunIdsAreFresh", "{run:?} after {:?}", self.run_last);
        ensure!(member.final_phase.is_none(), "DoneIsDone", "{plugin:?} is {:?}", member.final_phase);
        if member.spawns > 0 {
            let due = member.restart_due.take();
            ensure!(
                due.is_some_and(|due| due <= now),
                "BackoffFollowsTheFormula",
                "{plugin:?} due {due:?} at {now:?}"
            );
        }
        self.run_last = run;
        member.spawns += 1;
        member.run = Some(Run::new(run, now));
        Ok(())
    }

    fn reported(&mut self, change: Change, event: Event) -> Result<(), String> {
        let now = self.now;
        let live = self.cast.0.iter().filter(|member| member.run.is_some()).count().max(1);
        let turns = u32::try_from(live).expect("invariant: a scenario has few plugins");
        let share = |whole: Duration| TURN_RESERVE.min(whole / turns);
        if let Some(plugin) = change.plugin() {
            return self.reported_of(plugin, change);
        }
        match change {
            Change::Draining { grace } => {
                ensure!(event == Event::Drain { grace }, "DrainsAreAskedFor", "{event:?}");
                let deadline = now.after(grace);
                let present = self.stopping.unwrap_or(Stopping {
                    deadline: Moment(Duration::MAX),
                    outcome: Outcome::Drained,
                    share: Duration::MAX,
                });
                ensure!(
                    deadline < present.deadline,
                    "ASecondDrainOnlyShortens",
                    "{deadline:?} after {present:?}"
                );
                self.stopping = Some(Stopping { deadline, outcome: present.outcome, share: share(grace) });
            }
            Change::WorkloadEnded { outcome } => {
                let users =
                    || (0..self.cast.0.len()).filter(|&index| self.cast.0[index].spec.role == Role::User);
                let open = users().find(|&index| !self.cast.is_done(index));
                ensure!(open.is_none(), "NoEndWhileAUserPluginShouldRun", "p{open:?}");
                ensure!(self.stopping.is_none(), "TheWorkloadEndsOnce", "{:?}", self.stopping);
                let completed =
                    users().all(|index| self.cast.0[index].final_phase == Some(PluginPhase::Completed));
                let expected = if completed { Outcome::Completed } else { Outcome::Failed };
                ensure!(outcome == expected, "OutcomeIsTrue", "{outcome:?}, not {expected:?}");
                let takes: Duration = self.cast.0.iter().map(|member| member.stop_takes_max(now)).sum();
                self.stopping = Some(Stopping { deadline: now.after(takes), outcome, share: share(takes) });
            }
            Change::End { outcome } => {
                let expected = self.stopping.map(|stopping| stopping.outcome);
                ensure!(Some(outcome) == expected, "OutcomeIsTrue", "{outcome:?}, not {expected:?}");
            }
            Change::Started { .. }
            | Change::Exited { .. }
            | Change::SpawnFailed { .. }
            | Change::BackOff { .. }
            | Change::CrashLoop { .. }
            | Change::Steady { .. }
            | Change::Ready { .. }
            | Change::ProbeFailed { .. }
            | Change::PreStop { .. }
            | Change::Completed { .. }
            | Change::Failed { .. }
            | Change::GaveUp { .. }
            | Change::DependencyFailed { .. }
            | Change::Stopping { .. }
            | Change::Killed { .. }
            | Change::Unkillable { .. }
            | Change::Stopped { .. } => return Err(format!("ReportsNameTheirPlugin: {change:?}")),
        }
        Ok(())
    }

    fn reported_of(&mut self, plugin: PluginId, change: Change) -> Result<(), String> {
        let now = self.now;
        let stopping = self.stopping.is_some();
        let blocked = self.cast.is_blocked(plugin.0);
        let member = &mut self.cast.0[plugin.0];
        let up = member.run.and_then(|run| run.up);
        let true_report = match change {
            Change::Completed { .. } => {
                return settle(member, change, Due::Completed, PluginPhase::Completed);
            }
            Change::Failed { .. } => return settle(member, change, Due::Failed, PluginPhase::Failed),
            Change::GaveUp { .. } => return settle(member, change, Due::GaveUp, PluginPhase::Failed),
            Change::BackOff { n, delay, .. } => return backed_off(member, now, n, delay),
            Change::Stopped { .. } => {
                ensure!(stopping && member.run.is_none(), "StoppedIsDown", "{plugin:?}");
                if member.owed.is_none() {
                    let idle = member.final_phase.is_none() && !blocked;
                    ensure!(idle, "StoppedIsDown", "{plugin:?} was {:?}", member.final_phase);
                    member.owed = Some(Due::Stopped);
                }
                return settle(member, change, Due::Stopped, PluginPhase::Stopped);
            }
            Change::Unkillable { .. } => {
                let in_the_way = member.in_the_way();
                member.abandoned = true;
                stopping && in_the_way
            }
            Change::Steady { .. } => {
                let wait = member.loops.take();
                wait.zip(up).is_some_and(|(wait, (up, _))| now.since(up) >= wait)
            }
            Change::Started { pid, restarts, .. } => up == Some((now, pid)) && restarts + 1 == member.spawns,
            Change::Exited { .. } | Change::SpawnFailed { .. } => member.owed.is_some(),
            Change::CrashLoop { .. } => member.loops.is_some(),
            Change::DependencyFailed { .. } => blocked,
            Change::PreStop { .. } => {
                member.run.is_some_and(|run| run.hooked && run.left.is_some_and(|(left, _)| left == now))
            }
            Change::Stopping { .. } => member.run.is_some_and(|run| run.term == Some(now)),
            Change::Killed { .. } => member.run.is_some_and(|run| run.killed),
            Change::Ready { .. } => {
                let conditions = member.health.has_conditions();
                member.is_ready() && conditions && !std::mem::replace(&mut member.health.told_ready, true)
            }
            Change::ProbeFailed { kind, failures, .. } => {
                return member.health.failed(kind, failures);
            }
            Change::Draining { .. } | Change::WorkloadEnded { .. } | Change::End { .. } => false,
        };
        ensure!(true_report, "ReportsAreTrue", "{change:?} of {member:?}");
        Ok(())
    }

    fn ended_in_turn(&mut self, outcome: Outcome) -> Result<(), String> {
        let Some(stopping) = self.stopping else { return Err("EndFollowsAStop: none began".to_owned()) };
        ensure!(outcome == stopping.outcome, "OutcomeIsTrue", "{outcome:?} of {stopping:?}");
        let left = self.cast.0.iter().position(Member::in_the_way);
        ensure!(left.is_none(), "EndLeavesNobodyBehind", "p{left:?}");
        self.ended = true;
        Ok(())
    }

    fn nothing_is_owed(&mut self, snapshot: &Snapshot) -> Result<(), String> {
        let owed = self.cast.0.iter().position(|member| member.owed.is_some());
        ensure!(owed.is_none(), "PolicyIsFollowed", "nothing was decided about p{owed:?}");
        if let Some(stopping) = self.stopping {
            let in_time = self.ended || self.now < stopping.deadline;
            ensure!(in_time, "EndComesByTheDeadline", "{stopping:?} at {:?}", self.now);
        } else if self.started {
            let mut users =
                (0..self.cast.0.len()).filter(|&index| self.cast.0[index].spec.role == Role::User);
            ensure!(
                users.any(|index| !self.cast.is_done(index)),
                "EndFollowsTheWorkload",
                "{:?}",
                snapshot.phase
            );
        }
        Ok(())
    }

    fn started_in_order(&mut self, effects: &[Effect], snapshot: &Snapshot) -> Result<(), String> {
        if !self.started || self.stopping.is_some() {
            return Ok(());
        }
        for role in Role::START_ORDER {
            if role > self.open && !self.cast.role_may_start(role, self.now, snapshot) {
                break;
            }
            self.open = self.open.max(role);
        }
        for effect in effects {
            let &Effect::Spawn { plugin: PluginId(index), .. } = effect else { continue };
            if self.cast.0[index].spawns == 1 {
                ensure!(self.cast.0[index].spec.role <= self.open, "StartOrderIsKept", "p{index} is early");
                ensure!(
                    self.cast.dependencies_ready(index, snapshot),
                    "DependenciesAreReady",
                    "p{index} is early"
                );
            }
        }
        for (index, member) in self.cast.0.iter().enumerate() {
            let held = member.spec.role > self.open || !self.cast.dependencies_ready(index, snapshot);
            ensure!(member.spawns > 0 || held, "NobodyWaitsInVain", "p{index}");
            let overdue = member.run.is_none() && member.restart_due.is_some_and(|due| due <= self.now);
            let steady = member.loops.zip(member.watched(false).up);
            let forgotten = steady.is_some_and(|(wait, up)| self.now.since(up) >= wait);
            ensure!(!forgotten, "CrashLoopIsLeftByRunning", "p{index} {steady:?}");
            ensure!(!overdue, "NobodyWaitsInVain", "p{index} {:?}", member.restart_due);
        }
        Ok(())
    }

    /// Whoever's turn it is has been told.
    fn stopped_in_order(&self) -> Result<(), String> {
        if self.stopping.is_none() {
            return Ok(());
        }
        for (index, member) in self.cast.0.iter().enumerate() {
            let Some(run) = member.run.filter(|run| run.up.is_some() && run.left.is_none()) else { continue };
            ensure!(self.waits_for(index).is_some(), "TurnsComeAtOnce", "p{index} {run:?}");
        }
        Ok(())
    }

    /// The one timer is armed for the earliest of all that is due.
    fn nothing_due_is_forgotten(&self, snapshot: &Snapshot, next: Option<Moment>) -> Result<(), String> {
        let by = |due: Moment| next.is_some_and(|next| next <= due);
        if let (DeploymentPhase::Stopping { deadline, .. }, false) = (snapshot.phase, self.ended) {
            ensure!(by(deadline), "NothingDueIsForgotten", "the end at {deadline:?}, timer {next:?}");
        }
        if !self.started || self.stopping.is_some() {
            return Ok(());
        }
        for (index, member) in self.cast.0.iter().enumerate() {
            let restart = member.restart_due.filter(|_| member.run.is_none());
            let steady = member.loops.zip(member.watched(false).up).map(|(wait, up)| up.after(wait));
            let first = member.run.filter(|_| !member.answered).map(|run| run.asked.after(SPAWN_PATIENCE));
            let first = first.filter(|&due| due > self.now);
            for due in [restart, steady, first].into_iter().flatten() {
                ensure!(by(due), "NothingDueIsForgotten", "p{index} at {due:?}, timer {next:?}");
            }
        }
        Ok(())
    }

    fn status_is_true(&self, snapshot: &Snapshot) -> Result<(), String> {
        for (index, (member, seen)) in self.cast.0.iter().zip(&snapshot.plugins).enumerate() {
            let blocked = self.started
                && self.cast.is_blocked(index)
                && member.final_phase != Some(PluginPhase::Stopped);
            let waiting = member.restart_due.map_or(PluginPhase::Waiting, |_| PluginPhase::BackingOff);
            let expected = match &member.run {
                Some(run) if run.left.is_some() => PluginPhase::Stopping,
                Some(Run { up: Some(_), .. }) => PluginPhase::Running,
                Some(_) => PluginPhase::Starting,
                None => member.final_phase.unwrap_or(waiting),
            };
            ensure!(seen.phase == expected, "StatusIsTrue", "p{index} is {expected:?}, not {:?}", seen.phase);
            let pid = member.run.and_then(|run| run.up).map(|(_, pid)| pid);
            ensure!(seen.pid == pid, "StatusIsTrue", "p{index} has {pid:?}, not {:?}", seen.pid);
            let restarts = member.spawns.saturating_sub(1);
            ensure!(
                seen.restarts == restarts,
                "StatusIsTrue",
                "p{index}: {restarts} restarts, not {}",
                seen.restarts
            );
            let due = member.restart_due.filter(|_| expected == PluginPhase::BackingOff);
            ensure!(
                seen.next_restart == due,
                "StatusIsTrue",
                "p{index}: {due:?}, not {:?}",
                seen.next_restart
            );
            let ready = member.is_ready();
            ensure!(seen.ready == ready, "ReadyIsTrue", "p{index} in {expected:?}: {ready}, {member:?}");
            let probes = member.health.snapshot();
            ensure!(seen.probes == probes, "StatusIsTrue", "p{index}: {probes:?}, not {:?}", seen.probes);
            let says_blocked = seen.reason == Some(Reason::DependencyFailed);
            ensure!(says_blocked == blocked, "StatusIsTrue", "p{index} blocked {blocked}: {:?}", seen.reason);
            ensure!(seen.since <= self.now, "StatusIsTrue", "p{index} since {:?}", seen.since);
        }
        let phase = match (self.stopping, self.started) {
            (Some(stopping), _) if self.ended => DeploymentPhase::Ended(stopping.outcome),
            (Some(Stopping { outcome, .. }), _) => match snapshot.phase {
                // The engine may well give itself less time than the checker's generous sum, never more.
                DeploymentPhase::Stopping { deadline, .. } => DeploymentPhase::Stopping { deadline, outcome },
                DeploymentPhase::Idle | DeploymentPhase::Running | DeploymentPhase::Ended(_) => {
                    return Err(format!("StatusIsTrue: {:?} while stopping", snapshot.phase));
                }
            },
            (None, true) => DeploymentPhase::Running,
            (None, false) => DeploymentPhase::Idle,
        };
        ensure!(snapshot.phase == phase, "StatusIsTrue", "{:?}, not {phase:?}", snapshot.phase);
        Ok(())
    }
}

/// The verdict on a run that ended, where it stays down.
fn settle(member: &mut Member, change: Change, expected: Due, phase: PluginPhase) -> Result<(), String> {
    let owed = member.owed.take();
    ensure!(owed == Some(expected), "PolicyIsFollowed", "owed {owed:?}: {change:?}");
    (member.final_phase, member.loops) = (Some(phase), None);
    Ok(())
}

/// The verdict on a run that ended, where another follows.
fn backed_off(member: &mut Member, now: Moment, n: u32, delay: Duration) -> Result<(), String> {
    let owed = member.owed.take();
    let Some(Due::Restart { n: expected, least, most }) = owed else {
        return Err(format!("PolicyIsFollowed: restarted, owed {owed:?}"));
    };
    let seconds = delay.as_secs_f64();
    let exact = n == expected && (least..=most).contains(&seconds);
    ensure!(exact, "BackoffFollowsTheFormula", "n {n} waits {seconds}; n {expected} waits {least}..{most}");
    member.restart_due = Some(now.after(delay));
    if n >= 2 {
        member.loops = Some(delay.min(member.spec.curve.reset_after));
    }
    Ok(())
}
