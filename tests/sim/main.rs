//! The seeded simulator: the engine in a virtual world of processes that crash, hang, ignore TERM, survive
//! KILL, exit at once or are never spawned, whose probes pass, fail, flap, hang or answer late, and whose
//! preStop hooks hang, with every invariant checked after every step.
//!
//! `SIM_SEED=7 cargo test --test sim` replays one seed with its trace; `SIM_SEEDS=1000000` tries more of
//! them.

mod cast;
mod curve;
mod dice;
mod health;
mod invariants;
mod leaving;
mod scenario;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use enclave_supervisor::engine::{
    Change, Effect, Engine, Event, ExitReason, Moment, PluginId, ProbeId, ProbeResult, Role, RunId,
    SpawnError,
};

use dice::Dice;
use invariants::{EFFECTS_OF_DEPLOYMENT_MAX, EFFECTS_PER_PLUGIN_MAX};
use scenario::{Habits, Scenario};
use world::{PROBE_KINDS, World};

/// How many seeds a normal test run tries.
const SEEDS: u64 = 10_000;
/// Fewer where one seed means two runs.
const SEEDS_OF_PAIRS: u64 = 1000;

fn number_from(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is not a number: {text}")))
}

/// Tries every seed on two threads. A failure names the seed and how to see it again.
fn for_each_seed(seeds: u64, test: impl Fn(u64) -> Result<(), String> + Sync) {
    let one = |seed| {
        let outcome = catch_unwind(AssertUnwindSafe(|| test(seed)));
        let seen = match outcome {
            Ok(Ok(())) => return,
            Ok(Err(violation)) => violation,
            Err(_) => "NeverPanics: see above".to_owned(),
        };
        panic!("seed {seed}: {seen}\nreplay with: SIM_SEED={seed} cargo test --test sim");
    };
    if let Some(seed) = number_from("SIM_SEED") {
        return one(seed);
    }
    let seeds = number_from("SIM_SEEDS").unwrap_or(seeds);
    std::thread::scope(|scope| {
        scope.spawn(|| (0..seeds).step_by(2).for_each(one));
        (1..seeds).step_by(2).for_each(one);
    });
}

#[test]
fn every_invariant_holds_after_every_step_of_every_seed() {
    for_each_seed(SEEDS, |seed| {
        let mut world = World::new(Scenario::new(seed));
        let outcome = world.run();
        if number_from("SIM_SEED").is_some() {
            for actor in Scenario::new(seed).actors {
                println!("{:?}", actor.spec);
            }
            for step in &world.trace {
                println!("{:12.6} {:?}", step.now.0.as_secs_f64(), step.event);
                for effect in &step.effects {
                    println!("             -> {effect:?}");
                }
            }
        }
        outcome
    });
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for_each_seed(SEEDS_OF_PAIRS / 5, |seed| {
        let [one, other] = [(); 2].map(|()| {
            let mut world = World::new(Scenario::new(seed));
            world.run().map(|()| world.trace_hash())
        });
        if one? == other? { Ok(()) } else { Err("SameSeedSameTrace: they differ".to_owned()) }
    });
}

/// What became of the user plugins, and up to when that is all: times count from their first spawn, run ids
/// and the like are left out.
struct Fate {
    entries: Vec<(Duration, PluginId, String)>,
    known_for: Duration,
}

impl Fate {
    fn of_users(scenario: &Scenario) -> Result<Self, String> {
        let mut world = World::new(scenario.clone());
        world.run_to_horizon()?;
        let is_user = |plugin: PluginId| scenario.actors[plugin.0].spec.role == Role::User;
        let user_spawn = |step: &&world::Step| {
            step.effects
                .iter()
                .any(|effect| matches!(effect, Effect::Spawn { plugin, .. } if is_user(*plugin)))
        };
        let cut_short = world.trace.len() >= scenario.steps_max;
        let last = world.trace.last().map_or_else(Moment::default, |step| step.now);
        let end = if cut_short { last } else { Moment(scenario.horizon) };
        let first = world.trace.iter().find(user_spawn).map_or(end, |step| step.now);
        let mut fate = Self { entries: Vec::new(), known_for: end.since(first) };
        for step in &world.trace {
            let since = step.now.since(first);
            for effect in &step.effects {
                let (plugin, what) = match effect {
                    Effect::Spawn { plugin, .. } => (*plugin, "Spawn".to_owned()),
                    Effect::Signal { plugin, signal, .. } => (*plugin, format!("{signal:?}")),
                    Effect::Report(Change::WorkloadEnded { outcome }) => {
                        // Nothing that concerns users can follow.
                        fate.entries.push((since, PluginId(usize::MAX), format!("{outcome:?}")));
                        fate.known_for = Duration::MAX;
                        return Ok(fate);
                    }
                    Effect::Report(change) => match change.plugin() {
                        Some(plugin) => (plugin, format!("{change:?}")),
                        None => continue,
                    },
                    Effect::Probe { plugin, kind, .. } => (*plugin, format!("Probe {kind:?}")),
                    Effect::CancelProbe { plugin, kind, .. } => (*plugin, format!("CancelProbe {kind:?}")),
                    Effect::PreStop { plugin, .. } => (*plugin, "PreStop".to_owned()),
                    Effect::End(_) => continue,
                };
                if is_user(plugin) {
                    fate.entries.push((since, plugin, what));
                }
            }
        }
        Ok(fate)
    }
}

#[test]
fn no_death_of_telemetry_or_a_service_changes_a_user_plugin_s_fate() {
    for_each_seed(SEEDS_OF_PAIRS, |seed| {
        let troubled = Scenario::comparable(seed);
        let mut calm = troubled.clone();
        for (stream, actor) in (1..).zip(&mut calm.actors) {
            if actor.spec.role != Role::User {
                actor.habits = Habits::healthy(Dice::new(seed, stream));
            }
        }
        let (troubled, calm) = (Fate::of_users(&troubled)?, Fate::of_users(&calm)?);
        let known_for = troubled.known_for.min(calm.known_for);
        let [one, other] = [troubled, calm].map(|fate| {
            let known = fate.entries.into_iter().filter(|(since, ..)| *since < known_for);
            known.collect::<Vec<_>>()
        });
        let differs = (0..one.len().max(other.len())).find(|&index| one.get(index) != other.get(index));
        differs.map_or(Ok(()), |index| {
            Err(format!("UsersAreUntouched: {:?} instead of {:?}", one.get(index), other.get(index)))
        })
    });
}

#[test]
fn any_event_in_any_state_has_a_bounded_result() {
    for_each_seed(SEEDS_OF_PAIRS, |seed| {
        let specs: Vec<_> = Scenario::new(seed).actors.into_iter().map(|actor| actor.spec).collect();
        let mut dice = Dice::new(seed, u64::MAX);
        let (count, mut runs, mut probes) = (specs.len(), 0, 0);
        let mut engine = Engine::new(specs, seed);
        let mut latest = Moment::default();
        for _ in 0..80 {
            let plugin = PluginId(dice.index(count + 1));
            let run = RunId(runs + 2 - dice.below(runs.min(6) + 3).min(runs + 2));
            let (kind, id) = (dice.pick(&PROBE_KINDS), ProbeId(probes + 1 - dice.below(3).min(probes + 1)));
            let result = dice.pick(&[ProbeResult::Success, ProbeResult::Failure, ProbeResult::Unknown]);
            let event = match dice.below(18) {
                0 => Event::Start,
                1 | 2 => Event::DeadlineReached,
                3 if dice.percent(10) => Event::Drain { grace: any_time(&mut dice) },
                3..=6 => Event::Spawned { plugin, run, pid: 0 },
                7 => Event::SpawnFailed { plugin, run, error: SpawnError { stage: "", errno: i32::MIN } },
                8..=11 => Event::Probed { plugin, run, kind, id, result },
                12 => Event::Notified { plugin, run },
                13 => Event::PreStopEnded { plugin, run },
                _ => Event::Exited { plugin, run, exit: ExitReason::Code(i32::MIN) },
            };
            // Time may jump, stand still or go back.
            let now = if dice.percent(50) { latest } else { Moment(any_time(&mut dice)) };
            latest = latest.max(now);
            let effects = engine.step(now, event);
            runs += effects.iter().filter(|effect| matches!(effect, Effect::Spawn { .. })).count() as u64;
            probes += effects.iter().filter(|effect| matches!(effect, Effect::Probe { .. })).count() as u64;
            if effects.len() > count * EFFECTS_PER_PLUGIN_MAX + EFFECTS_OF_DEPLOYMENT_MAX {
                return Err(format!("EffectsAreBounded: {}", effects.len()));
            }
            if engine.next_deadline().is_some_and(|due| due <= latest) {
                return Err(format!("DeadlineLiesAhead: {:?} at {latest:?}", engine.next_deadline()));
            }
            if engine.snapshot().plugins.len() != count {
                return Err("StatusIsTrue: plugins are missing".to_owned());
            }
        }
        Ok(())
    });
}

/// From nothing to the end of time.
fn any_time(dice: &mut Dice) -> Duration {
    match dice.below(20) {
        0 => Duration::ZERO,
        1 => Duration::MAX,
        _ => Duration::from_millis(dice.roll() >> (24 + dice.below(40))),
    }
}
