//! The driver's place taken by a virtual clock and fake processes.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use enclave_supervisor::engine::{
    Change, Effect, Engine, Event, ExitReason, Moment, PluginId, ProbeId, ProbeKind, ProbeResult, RunId,
    SpawnError, Stop,
};

use crate::invariants::{Checker, ensure};
use crate::scenario::{Scenario, any_drain_grace};

pub(crate) const PROBE_KINDS: [ProbeKind; 3] =
    [ProbeKind::Startup, ProbeKind::Liveness, ProbeKind::Readiness];

/// How many events a run may take after its last drain began: answers, timers, late processes.
const WIND_DOWN_STEPS_MAX: usize = 2000;

/// One event and what came of it.
#[derive(Debug, Clone, Hash)]
pub(crate) struct Step {
    pub(crate) now: Moment,
    pub(crate) event: Event,
    pub(crate) effects: Vec<Effect>,
}

/// A failed run for which a successor was to be prepared has it at once, and no other that was up has.
fn standby_is_of_use(
    now: Moment,
    event: Event,
    standby: Option<Moment>,
    effects: &[Effect],
) -> Result<(), String> {
    let Event::Exited { plugin, exit, .. } = event else { return Ok(()) };
    let lasted = |effect: &Effect| {
        let Effect::Report(Change::Exited { plugin: other, ran_for, .. }) = effect else { return None };
        (*other == plugin).then_some(*ran_for)
    };
    let lasted = effects.iter().find_map(lasted).filter(|_| !exit.is_success());
    let Some(lasted) = lasted else { return Ok(()) };
    let spawns = |effect: &Effect| matches!(effect, Effect::Spawn { plugin: other, .. } if *other == plugin);
    let follows = effects.iter().any(spawns);
    let due = standby.is_some_and(|from| from <= now);
    ensure!(follows || !due, "WhatIsPreparedIsNeeded", "{plugin:?} from {standby:?}, ended at {now:?}");
    // One that was told to run and ended before that was known has no successor in mind yet.
    let was_up = lasted > Duration::ZERO;
    ensure!(!follows || !was_up || standby.is_some(), "WhatIsNeededIsPrepared", "{plugin:?} at {now:?}");
    Ok(())
}

pub(crate) struct World {
    scenario: Scenario,
    engine: Engine,
    checker: Checker,
    now: Moment,
    /// What will happen, by time and then by the order in which it was arranged.
    queue: BTreeMap<(Moment, u64), Event>,
    arranged: u64,
    timer: Option<Moment>,
    run_last: RunId,
    probe_last: ProbeId,
    ended: bool,
    pub(crate) trace: Vec<Step>,
}

impl World {
    pub(crate) fn new(scenario: Scenario) -> Self {
        let specs: Vec<_> = scenario.actors.iter().map(|actor| actor.spec.clone()).collect();
        let mut world = Self {
            engine: Engine::new(specs.clone(), scenario.seed),
            checker: Checker::new(specs, Duration::from_millis(scenario.timer_late_max)),
            now: Moment::default(),
            queue: BTreeMap::new(),
            arranged: 0,
            timer: None,
            run_last: RunId(0),
            probe_last: ProbeId(0),
            ended: false,
            trace: Vec::new(),
            scenario,
        };
        world.arrange(Duration::ZERO, Event::Start);
        for (when, grace) in world.scenario.drains.clone() {
            world.arrange(when, Event::Drain { grace });
        }
        world
    }

    /// Runs the scenario to its end and a little beyond. `Err` names the invariant that does not hold.
    pub(crate) fn run(&mut self) -> Result<(), String> {
        self.run_to_horizon()?;
        if !self.ended {
            let wait = Duration::from_millis(self.scenario.dice.below(100));
            let grace = any_drain_grace(&mut self.scenario.dice);
            self.arrange(wait, Event::Drain { grace });
        }
        let mut steps_left = WIND_DOWN_STEPS_MAX;
        while !self.ended {
            let next = self.next(Moment(Duration::MAX));
            let (when, event) = next.ok_or("EndIsReached: nothing is due, nothing will happen")?;
            self.step(when, event)?;
            steps_left = steps_left.checked_sub(1).ok_or("EndIsReached: still going on")?;
        }
        for _ in 0..10 {
            let event = self.nonsense();
            self.step(self.now.after(Duration::from_secs(1)), event)?;
        }
        Ok(())
    }

    /// Runs up to the horizon, or the end if that comes before.
    pub(crate) fn run_to_horizon(&mut self) -> Result<(), String> {
        let horizon = Moment(self.scenario.horizon);
        while !self.ended && self.trace.len() < self.scenario.steps_max {
            let Some((when, event)) = self.next(horizon) else { return Ok(()) };
            self.step(when, event)?;
        }
        Ok(())
    }

    pub(crate) fn trace_hash(&self) -> u64 {
        // Fixed keys: the same on every run.
        let mut hasher = DefaultHasher::new();
        self.trace.hash(&mut hasher);
        hasher.finish()
    }

    fn arrange(&mut self, wait: Duration, event: Event) {
        self.arranged += 1;
        self.queue.insert((self.now.after(wait), self.arranged), event);
    }

    /// What comes next up to `until`: an event, or the one timer. What was due while the clock went on
    /// without it comes late.
    fn next(&mut self, until: Moment) -> Option<(Moment, Event)> {
        let first = self.queue.keys().next().copied().filter(|(when, _)| *when <= until);
        let timer = self.timer.filter(|when| *when <= until);
        match (first, timer) {
            (None, None) => None,
            (Some(key), timer) if timer.is_none_or(|timer| key.0 <= timer) => {
                self.queue.remove(&key).map(|event| (key.0.max(self.now), event))
            }
            (_, timer) => timer.map(|timer| (timer.max(self.now), Event::DeadlineReached)),
        }
    }

    fn step(&mut self, now: Moment, event: Event) -> Result<(), String> {
        self.tell(now, event)?;
        if self.scenario.dice.percent(self.scenario.noise) {
            let noise = self.nonsense();
            self.tell(now, noise)?;
        }
        Ok(())
    }

    fn tell(&mut self, now: Moment, event: Event) -> Result<(), String> {
        self.now = now;
        let standby =
            if let Event::Exited { plugin, .. } = event { self.engine.standby_from(plugin) } else { None };
        let effects = self.engine.step(now, event);
        self.trace.push(Step { now, event, effects: effects.clone() });
        standby_is_of_use(now, event, standby, &effects)?;
        self.checker.check(now, event, &effects, &self.engine.snapshot(), self.engine.next_deadline())?;
        for effect in effects {
            match effect {
                Effect::Spawn { plugin, run } => self.spawn(plugin, run),
                Effect::Signal { plugin, run, signal } => self.signal(plugin, run, signal),
                Effect::PreStop { plugin, run } => self.pre_stop(plugin, run),
                Effect::Probe { plugin, run, kind, id } => self.probe(plugin, run, kind, id),
                // What is on its way comes all the same, and must change nothing.
                Effect::CancelProbe { .. } | Effect::Report(_) => {}
                Effect::End(_) => self.ended = true,
            }
        }
        let late = Duration::from_millis(self.scenario.dice.below(self.scenario.timer_late_max));
        self.timer = self.engine.next_deadline().map(|due| due.after(late));
        Ok(())
    }

    fn spawn(&mut self, plugin: PluginId, run: RunId) {
        self.run_last = run;
        let habits = &mut self.scenario.actors[plugin.0].habits;
        let answer = habits.time(habits.spawn_takes_max);
        if habits.dice.percent(habits.spawn_is_never_answered) {
            return;
        }
        if habits.dice.percent(habits.spawn_fails) {
            let error = SpawnError { stage: "exec", errno: 2 };
            return self.arrange(answer, Event::SpawnFailed { plugin, run, error });
        }
        let pid = u32::try_from(plugin.0).expect("invariant: a scenario has few plugins") + 100;
        let overtaken = habits.dice.percent(habits.exit_overtakes);
        let life = habits.time(habits.lives_max);
        let forever = habits.dice.percent(habits.lives_forever);
        let exit = habits.exit();
        let notifies = habits.dice.percent(habits.notifies);
        let notice = habits.time(habits.notify_takes_max);
        if notifies {
            // May overtake the answer.
            self.arrange(notice, Event::Notified { plugin, run });
        }
        if overtaken {
            self.arrange(answer, Event::Exited { plugin, run, exit });
            self.arrange(answer, Event::Spawned { plugin, run, pid });
        } else {
            self.arrange(answer, Event::Spawned { plugin, run, pid });
            if !forever {
                self.arrange(answer + life, Event::Exited { plugin, run, exit });
            }
        }
    }

    fn probe(&mut self, plugin: PluginId, run: RunId, kind: ProbeKind, id: ProbeId) {
        self.probe_last = id;
        let habits = &mut self.scenario.actors[plugin.0].habits;
        let (hangs, wait) = (habits.dice.percent(habits.probe_hangs), habits.time(habits.probe_takes_max));
        let result = habits.probe_result();
        if !hangs {
            self.arrange(wait, Event::Probed { plugin, run, kind, id, result });
        }
    }

    fn pre_stop(&mut self, plugin: PluginId, run: RunId) {
        let habits = &mut self.scenario.actors[plugin.0].habits;
        let (hangs, wait) = (habits.dice.percent(habits.hook_hangs), habits.time(habits.hook_takes_max));
        if !hangs {
            self.arrange(wait, Event::PreStopEnded { plugin, run });
        }
    }

    fn signal(&mut self, plugin: PluginId, run: RunId, signal: Stop) {
        let habits = &mut self.scenario.actors[plugin.0].habits;
        let (immune, takes_max, exit) = match signal {
            // Who obeys may well end as if it had done what it was to do.
            Stop::Term if habits.dice.percent(habits.succeeds) => {
                (habits.ignores_term, habits.term_takes_max, ExitReason::Code(0))
            }
            Stop::Term => (habits.ignores_term, habits.term_takes_max, ExitReason::Signal(15)),
            Stop::Kill => (habits.survives_kill, habits.kill_takes_max, ExitReason::Signal(9)),
        };
        if !habits.dice.percent(immune) {
            // The process may end by itself before; then this one is a repeated exit, which must change
            // nothing.
            let wait = habits.time(takes_max);
            self.arrange(wait, Event::Exited { plugin, run, exit });
        }
    }

    /// Something that must change nothing: about a plugin that is not there, a run that is not the present
    /// one, or at the wrong time.
    fn nonsense(&mut self) -> Event {
        let dice = &mut self.scenario.dice;
        let plugin = PluginId(dice.index(self.scenario.actors.len() + 2));
        let run = match dice.below(3) {
            0 => RunId(0),
            1 => RunId(self.run_last.0 + 1 + dice.below(5)),
            _ => self.checker.stale_run(plugin, RunId(dice.below(self.run_last.0 + 1))),
        };
        let kind = dice.pick(&PROBE_KINDS);
        let id = ProbeId(dice.below(self.probe_last.0 + 2));
        let result = dice.pick(&[ProbeResult::Success, ProbeResult::Failure, ProbeResult::Unknown]);
        match dice.below(8) {
            0 => Event::Start,
            1 => Event::DeadlineReached,
            2 => Event::Spawned { plugin, run, pid: 1 },
            3 => Event::Notified { plugin, run },
            4 => Event::PreStopEnded { plugin, run },
            5 => Event::Probed { plugin, run, kind, id, result },
            6 => Event::SpawnFailed { plugin, run, error: SpawnError { stage: "fork", errno: 11 } },
            _ => Event::Exited { plugin, run, exit: ExitReason::Code(0) },
        }
    }
}
