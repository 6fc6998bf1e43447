//! What one seed stands for: plugins, the habits of their processes, and when a drain comes.

use std::time::Duration;

use enclave_supervisor::engine::{
    ExitReason, PluginId, ProbeResult, ProbeSpec, Probes, RestartCurve, RestartPolicy, Role, Spec,
};

use crate::dice::Dice;

/// How the processes of one plugin behave. Chances are in percent, times in milliseconds.
#[derive(Debug, Clone)]
pub(crate) struct Habits {
    pub(crate) spawn_fails: u64,
    pub(crate) spawn_is_never_answered: u64,
    pub(crate) spawn_takes_max: u64,
    /// The exit is told before the spawn is answered.
    pub(crate) exit_overtakes: u64,
    pub(crate) lives_forever: u64,
    pub(crate) lives_max: u64,
    pub(crate) succeeds: u64,
    pub(crate) ignores_term: u64,
    pub(crate) term_takes_max: u64,
    /// The D state: KILL does nothing, or nothing for a while.
    pub(crate) survives_kill: u64,
    pub(crate) kill_takes_max: u64,
    /// An answer to a probe; the rest are successes.
    pub(crate) probe_fails: u64,
    pub(crate) probe_is_unknown: u64,
    pub(crate) probe_hangs: u64,
    /// May be longer than the probe's timeout.
    pub(crate) probe_takes_max: u64,
    pub(crate) notifies: u64,
    pub(crate) notify_takes_max: u64,
    pub(crate) hook_hangs: u64,
    pub(crate) hook_takes_max: u64,
    /// Of this plugin alone, so that what others do does not change its fate.
    pub(crate) dice: Dice,
}

impl Habits {
    fn any(dice: &mut Dice, own: Dice) -> Self {
        Self {
            spawn_fails: dice.pick(&[0, 0, 0, 20, 100]),
            spawn_is_never_answered: dice.pick(&[0, 0, 0, 0, 3, 50]),
            spawn_takes_max: dice.pick(&[1, 20, 20, 3000, 40_000]),
            exit_overtakes: dice.pick(&[0, 0, 20]),
            lives_forever: dice.pick(&[0, 20, 100]),
            lives_max: dice.pick(&[1, 100, 3000, 60_000, 2_000_000]),
            succeeds: dice.pick(&[0, 30, 70, 100]),
            ignores_term: dice.pick(&[0, 0, 50, 100]),
            term_takes_max: dice.pick(&[1, 500, 20_000]),
            survives_kill: dice.pick(&[0, 0, 0, 30, 100]),
            kill_takes_max: dice.pick(&[1, 100, 12_000]),
            probe_fails: dice.pick(&[0, 0, 10, 50, 100]),
            probe_is_unknown: dice.pick(&[0, 0, 0, 20, 100]),
            probe_hangs: dice.pick(&[0, 0, 0, 20, 100]),
            probe_takes_max: dice.pick(&[1, 10, 500, 5000, 30_000]),
            notifies: dice.pick(&[0, 50, 100, 100]),
            notify_takes_max: dice.pick(&[1, 100, 5000, 60_000]),
            hook_hangs: dice.pick(&[0, 0, 20, 100]),
            hook_takes_max: dice.pick(&[1, 500, 5000, 40_000]),
            dice: own,
        }
    }

    /// Starts at once, lives until it is told to stop, and obeys.
    pub(crate) fn healthy(own: Dice) -> Self {
        Self {
            spawn_fails: 0,
            spawn_is_never_answered: 0,
            spawn_takes_max: 5,
            exit_overtakes: 0,
            lives_forever: 100,
            lives_max: 1,
            succeeds: 100,
            ignores_term: 0,
            term_takes_max: 5,
            survives_kill: 0,
            kill_takes_max: 5,
            probe_fails: 0,
            probe_is_unknown: 0,
            probe_hangs: 0,
            probe_takes_max: 5,
            notifies: 100,
            notify_takes_max: 5,
            hook_hangs: 0,
            hook_takes_max: 5,
            dice: own,
        }
    }

    /// Milliseconds below `max`, to the microsecond.
    pub(crate) fn time(&mut self, max: u64) -> Duration {
        Duration::from_micros(self.dice.below(max * 1000))
    }

    pub(crate) fn probe_result(&mut self) -> ProbeResult {
        if self.dice.percent(self.probe_fails) {
            ProbeResult::Failure
        } else if self.dice.percent(self.probe_is_unknown) {
            ProbeResult::Unknown
        } else {
            ProbeResult::Success
        }
    }

    pub(crate) fn exit(&mut self) -> ExitReason {
        if self.dice.percent(self.succeeds) {
            return ExitReason::Code(0);
        }
        self.dice.pick(&[
            ExitReason::Code(1),
            ExitReason::Code(-1),
            ExitReason::Signal(11),
            ExitReason::OutOfMemory,
        ])
    }
}

/// One plugin of a scenario.
#[derive(Debug, Clone)]
pub(crate) struct Actor {
    pub(crate) spec: Spec,
    pub(crate) habits: Habits,
}

/// Everything a seed decides before the first step.
#[derive(Debug, Clone)]
pub(crate) struct Scenario {
    pub(crate) seed: u64,
    pub(crate) actors: Vec<Actor>,
    /// Drains at these moments; a last one comes anyway when nothing else ends the run.
    pub(crate) drains: Vec<(Duration, Duration)>,
    pub(crate) horizon: Duration,
    /// How late the timer may fire, in milliseconds.
    pub(crate) timer_late_max: u64,
    /// Chance of a stale or senseless event after each step, in percent.
    pub(crate) noise: u64,
    pub(crate) steps_max: usize,
    pub(crate) dice: Dice,
}

impl Scenario {
    pub(crate) fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed, 0);
        let dice = &mut dice;
        let count = 1 + dice.index(12);
        let mut specs: Vec<_> = (0..count).map(|index| any_spec(dice, index)).collect();
        any_dependencies(dice, &mut specs);
        let actors = (1..).zip(specs).map(|(stream, spec)| {
            let own = Dice::new(seed, stream);
            let habits = if dice.percent(25) { Habits::healthy(own) } else { Habits::any(dice, own) };
            Actor { spec, habits }
        });
        let actors = actors.collect();
        let horizon_max = dice.pick(&[5, 100, 3000]);
        let drains = (0..dice.pick(&[0, 0, 1, 1, 2, 4]))
            .map(|_| (Duration::from_millis(dice.below(horizon_max * 1000)), any_drain_grace(dice)));
        Self {
            seed,
            actors,
            drains: drains.collect(),
            horizon: Duration::from_secs(horizon_max),
            timer_late_max: dice.pick(&[1, 1, 50, 2000]),
            noise: dice.pick(&[0, 10, 40]),
            steps_max: dice.pick(&[20, 60, 150]),
            dice: dice.clone(),
        }
    }

    /// No drain, no noise, an exact timer, and user plugins that depend on user plugins alone: the ground on
    /// which two runs can be compared.
    pub(crate) fn comparable(seed: u64) -> Self {
        let mut scenario = Self::new(seed);
        let roles: Vec<_> = scenario.actors.iter().map(|actor| actor.spec.role).collect();
        for actor in &mut scenario.actors {
            if actor.spec.role == Role::User {
                actor.spec.depends_on.retain(|other| roles.get(other.0) == Some(&Role::User));
            }
        }
        scenario.drains.clear();
        scenario.horizon = Duration::from_secs(100);
        scenario.timer_late_max = 0;
        scenario.noise = 0;
        scenario.steps_max = 800;
        scenario
    }
}

pub(crate) fn any_drain_grace(dice: &mut Dice) -> Duration {
    Duration::from_millis(dice.pick(&[0, 1, 300, 5000, 30_000, 120_000]) + dice.below(1000))
}

fn any_spec(dice: &mut Dice, index: usize) -> Spec {
    let curve = RestartCurve {
        initial_delay: Duration::from_millis(dice.pick(&[0, 1, 1000, 1000, 10_000, 90_000])),
        factor_milli: dice.pick(&[0, 500, 1000, 1001, 1500, 2000, 2000, 10_000, u32::MAX]),
        max_delay: Duration::from_millis(dice.pick(&[0, 500, 60_000, 60_000, 300_000])),
        reset_after: Duration::from_millis(dice.pick(&[0, 100, 10_000, 600_000])),
        max_restarts: dice.pick(&[None, None, None, Some(0), Some(1), Some(3), Some(10)]),
        jitter_milli: dice.pick(&[0, 100, 100, 1000, 5000]),
    };
    Spec {
        name: format!("p{index}"),
        role: dice.pick(&[Role::Telemetry, Role::Service, Role::Service, Role::User, Role::User, Role::User]),
        restart: dice.pick(&[
            RestartPolicy::Always,
            RestartPolicy::Always,
            RestartPolicy::OnFailure,
            RestartPolicy::Never,
        ]),
        curve,
        grace: Duration::from_millis(dice.pick(&[0, 50, 2000, 30_000, 30_000, 600_000])),
        depends_on: Vec::new(),
        probes: any_probes(dice),
        notify: dice.percent(20),
        pre_stop: dice.percent(30),
    }
}

/// Half of the plugins have none.
fn any_probes(dice: &mut Dice) -> Probes {
    if dice.percent(50) {
        return Probes::default();
    }
    let mut some = |chance| dice.percent(chance).then(|| any_probe(dice));
    Probes { startup: some(40), liveness: some(60), readiness: some(60) }
}

fn any_probe(dice: &mut Dice) -> ProbeSpec {
    ProbeSpec {
        initial_delay: Duration::from_millis(dice.pick(&[0, 0, 1000, 30_000])),
        period: Duration::from_millis(dice.pick(&[1000, 5000, 10_000, 10_000, 100_000])),
        timeout: Duration::from_millis(dice.pick(&[1000, 1000, 5000, 20_000])),
        failure_threshold: dice.pick(&[0, 1, 1, 3, 3, 10]),
        success_threshold: dice.pick(&[0, 1, 1, 1, 2, 5]),
        grace: dice.pick(&[None, None, Some(0), Some(3), Some(100)]).map(Duration::from_secs),
    }
}

/// Mostly sound graphs within or across roles; now and then a cycle, or a dependency that does not exist.
fn any_dependencies(dice: &mut Dice, specs: &mut [Spec]) {
    let count = specs.len();
    let density = dice.pick(&[0, 0, 10, 30, 60]);
    let unsound = dice.percent(4);
    for index in 0..count {
        for other in 0..count {
            let forward = other < index || (unsound && dice.percent(20));
            let sensible = specs[other].role <= specs[index].role || dice.percent(10);
            if forward && sensible && dice.percent(density) {
                specs[index].depends_on.push(PluginId(other));
            }
        }
        if unsound && dice.percent(5) {
            specs[index].depends_on.push(PluginId(count + dice.index(3)));
        }
    }
}
