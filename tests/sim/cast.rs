//! What the checker knows of each plugin, from the events told and the effects seen, without asking the
//! engine.

use std::time::Duration;

use enclave_supervisor::engine::{
    KILL_PATIENCE, Moment, PluginId, PluginPhase, PluginSnapshot, ProbeId, RestartPolicy, Role, RunId,
    SPAWN_PATIENCE, Snapshot, Spec, TERM_AFTER_PRE_STOP,
};

use crate::health::{Health, Watched};

/// A process or the wish for one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Run {
    pub(crate) id: RunId,
    pub(crate) asked: Moment,
    pub(crate) up: Option<(Moment, u32)>,
    /// When its end began, and the grace that counts from then.
    pub(crate) left: Option<(Moment, Duration)>,
    /// The preStop hook began.
    pub(crate) hooked: bool,
    pub(crate) hook_ended: bool,
    pub(crate) term: Option<Moment>,
    pub(crate) killed: bool,
}

impl Run {
    pub(crate) fn new(id: RunId, asked: Moment) -> Self {
        Self { id, asked, up: None, left: None, hooked: false, hook_ended: false, term: None, killed: false }
    }

    /// When its end must go on at the latest: TERM after the hook, KILL after TERM.
    pub(crate) fn end_goes_on_by(&self) -> Option<Moment> {
        let (left, grace) = self.left.filter(|_| !self.killed)?;
        let due = left.after(grace);
        let least = self.term.filter(|_| self.hooked).map(|term| term.after(TERM_AFTER_PRE_STOP));
        Some(least.map_or(due, |least| least.max(due)))
    }
}

/// What must become of a plugin whose run ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Due {
    /// Restart n, after a wait between these two, in seconds.
    Restart {
        n: u32,
        least: f64,
        most: f64,
    },
    Completed,
    Failed,
    GaveUp,
    /// A stop is on.
    Stopped,
}

#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub(crate) spec: Spec,
    pub(crate) run: Option<Run>,
    /// Of the present run, or of the next.
    pub(crate) health: Health,
    /// Questions about a run that is over, to be cancelled in the same step.
    pub(crate) to_cancel: Vec<ProbeId>,
    pub(crate) spawns: u32,
    pub(crate) answered: bool,
    pub(crate) n: u32,
    /// The end of the last run, for which the engine owes a verdict in the same step.
    pub(crate) owed: Option<Due>,
    pub(crate) restart_due: Option<Moment>,
    /// In a crash loop, until it has run this long.
    pub(crate) loops: Option<Duration>,
    pub(crate) final_phase: Option<PluginPhase>,
    /// Can never start: its dependencies lead into a cycle or out of the list.
    pub(crate) impossible: bool,
    pub(crate) abandoned: bool,
}

impl Member {
    pub(crate) fn new(spec: Spec, impossible: bool) -> Self {
        Self {
            health: Health::new(&spec),
            to_cancel: Vec::new(),
            spec,
            run: None,
            spawns: 0,
            answered: false,
            n: 0,
            owed: None,
            restart_due: None,
            loops: None,
            final_phase: None,
            impossible,
            abandoned: false,
        }
    }

    /// Whether a stop still has to wait for it.
    pub(crate) fn in_the_way(&self) -> bool {
        self.run.is_some() && !self.abandoned
    }

    /// The restart rules, straight from the contract, in floating point.
    pub(crate) fn verdict(&mut self, success: bool, ran_for: Duration) -> Due {
        if ran_for >= self.spec.curve.reset_after {
            self.n = 0;
            self.loops = None;
        }
        let again = match self.spec.restart {
            RestartPolicy::Always => true,
            RestartPolicy::OnFailure => !success,
            RestartPolicy::Never => false,
        };
        let curve = self.spec.curve;
        if !again {
            return if success { Due::Completed } else { Due::Failed };
        }
        if curve.max_restarts.is_some_and(|max| self.n >= max) {
            return Due::GaveUp;
        }
        self.n += 1;
        let mut wait = 0.0;
        if self.n >= 2 {
            let factor = f64::from(curve.factor_milli) / 1000.0;
            // Below infinity, which a delay of nothing must not be multiplied with.
            let power =
                factor.powi(i32::try_from(self.n - 2).expect("invariant: a run has few restarts")).min(1e300);
            wait = (curve.initial_delay.as_secs_f64() * power).min(curve.max_delay.as_secs_f64());
        }
        let jitter = f64::from(curve.jitter_milli.min(1000)) / 1000.0;
        Due::Restart { n: self.n, least: wait * (1.0 - jitter) - 1e-6, most: wait * (1.0 + jitter) + 1e-6 }
    }

    /// What the stop of this plugin may take when nobody is in a hurry.
    pub(crate) fn stop_takes_max(&self, now: Moment) -> Duration {
        let Some(run) = self.run else { return Duration::ZERO };
        let own = run.end_goes_on_by().map_or(self.spec.grace, |due| due.since(now));
        let after_hook = if self.spec.pre_stop { TERM_AFTER_PRE_STOP } else { Duration::ZERO };
        own + after_hook + KILL_PATIENCE
    }

    /// What its run has to do with its probes.
    pub(crate) fn watched(&self, stopping: bool) -> Watched {
        let present = self.run.filter(|run| run.left.is_none());
        Watched { up: present.and_then(|run| run.up).map(|(up, _)| up), stopping }
    }

    /// Whether its run has not been told to stop.
    pub(crate) fn run_stays(&self) -> bool {
        self.run.is_some_and(|run| run.left.is_none())
    }

    /// Whether it runs and all that its readiness takes has come.
    pub(crate) fn is_ready(&self) -> bool {
        self.watched(false).up.is_some() && self.loops.is_none() && self.health.conditions_are_met()
    }
}

/// All of them.
#[derive(Debug, Clone)]
pub(crate) struct Cast(pub(crate) Vec<Member>);

impl Cast {
    pub(crate) fn new(specs: Vec<Spec>) -> Self {
        let mut possible = vec![false; specs.len()];
        for _ in 0..specs.len() {
            for (index, spec) in specs.iter().enumerate() {
                possible[index] = spec.depends_on.iter().all(|other| possible.get(other.0) == Some(&true));
            }
        }
        Self(specs.into_iter().zip(possible).map(|(spec, possible)| Member::new(spec, !possible)).collect())
    }

    /// Whether a plugin can never start, because of what it depends on.
    pub(crate) fn is_blocked(&self, index: usize) -> bool {
        let member = &self.0[index];
        if member.impossible {
            return true;
        }
        member.spawns == 0
            && member.spec.depends_on.iter().any(|&PluginId(other)| {
                self.0[other].final_phase == Some(PluginPhase::Failed) || self.is_blocked(other)
            })
    }

    pub(crate) fn is_done(&self, index: usize) -> bool {
        self.0[index].final_phase.is_some() || self.is_blocked(index)
    }

    /// Whether its dependencies let it start, by the status of this step.
    pub(crate) fn dependencies_ready(&self, index: usize, snapshot: &Snapshot) -> bool {
        let met = |&PluginId(other): &PluginId| {
            snapshot.plugins.get(other).is_some_and(|plugin| satisfied(&self.0[other].spec, plugin))
        };
        !self.0[index].impossible && self.0[index].spec.depends_on.iter().all(met)
    }

    /// Whether every plugin of an earlier role is settled, as the engine's header has it.
    pub(crate) fn role_may_start(&self, role: Role, now: Moment, snapshot: &Snapshot) -> bool {
        (0..self.0.len())
            .all(|other| self.0[other].spec.role >= role || self.is_settled(other, now, snapshot))
    }

    fn is_settled(&self, index: usize, now: Moment, snapshot: &Snapshot) -> bool {
        let member = &self.0[index];
        if member.answered || self.is_blocked(index) {
            return true;
        }
        if let Some(run) = member.run {
            return run.asked.after(SPAWN_PATIENCE) <= now;
        }
        member.spec.depends_on.iter().any(|&PluginId(other)| {
            let spec = &self.0[other].spec;
            spec.role > member.spec.role || !satisfied(spec, &snapshot.plugins[other])
        })
    }

    /// Whether `other` must be down before `index` is told to stop: a later role, or a dependant, however
    /// indirect.
    pub(crate) fn stops_before(&self, other: usize, index: usize) -> bool {
        let (first, second) = (&self.0[other].spec, &self.0[index].spec);
        first.role > second.role || (first.role == second.role && self.leads_to(other, index))
    }

    fn leads_to(&self, from: usize, to: usize) -> bool {
        let role = self.0[to].spec.role;
        !self.0[from].impossible
            && self.0[from].spec.depends_on.iter().any(|&PluginId(next)| {
                next == to || (self.0[next].spec.role == role && self.leads_to(next, to))
            })
    }
}

/// A piece of work that cannot say that it is ready has to be done.
fn satisfied(spec: &Spec, plugin: &PluginSnapshot) -> bool {
    let is_work = spec.restart != RestartPolicy::Always && spec.probes.readiness.is_none() && !spec.notify;
    plugin.phase == PluginPhase::Completed || (plugin.ready && !is_work)
}
