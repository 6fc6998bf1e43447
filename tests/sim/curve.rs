//! The moments at which a plugin in a crash loop is started, against the contract's formula, written out.

use std::time::Duration;

use enclave_supervisor::engine::{
    Effect, Engine, Event, ExitReason, Moment, PluginId, ProbeResult, ProbeSpec, Probes, RestartCurve,
    RestartPolicy, Role, RunId, Spec,
};

/// The contract's defaults: 1 s, doubling, up to 60 s, the first restart at once.
const WAITS_MILLIS: [u64; 11] = [0, 1000, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000, 60_000, 60_000];
/// In thousandths, as the contract's default.
const JITTER_MILLI: u32 = 100;

const PLUGIN: PluginId = PluginId(0);

fn spec(jitter_milli: u32) -> Spec {
    Spec {
        name: "app".to_owned(),
        role: Role::User,
        restart: RestartPolicy::Always,
        curve: RestartCurve { jitter_milli, ..RestartCurve::default() },
        grace: Duration::from_secs(30),
        depends_on: Vec::new(),
        probes: Probes::default(),
        notify: false,
        pre_stop: false,
    }
}

/// When each run is asked for, if `end` ends each in the moment in which it comes up, and time passes by the
/// engine's own timer alone.
fn spawn_moments(
    spec: Spec,
    seed: u64,
    end: impl Fn(&mut Engine, Moment, RunId) -> Vec<Effect>,
) -> Vec<Moment> {
    let mut engine = Engine::new(vec![spec], seed);
    let mut now = Moment::default();
    let mut moments = Vec::new();
    let mut effects = engine.step(now, Event::Start);
    while moments.len() <= WAITS_MILLIS.len() {
        let spawn = effects.iter().find_map(|effect| match effect {
            Effect::Spawn { run, .. } => Some(*run),
            Effect::Signal { .. }
            | Effect::Probe { .. }
            | Effect::CancelProbe { .. }
            | Effect::PreStop { .. }
            | Effect::Report(_)
            | Effect::End(_) => None,
        });
        if let Some(run) = spawn {
            moments.push(now);
            effects = end(&mut engine, now, run);
        } else {
            now = engine.next_deadline().expect("invariant: a plugin in a crash loop is started again");
            effects = engine.step(now, Event::DeadlineReached);
        }
    }
    moments
}

fn exits(engine: &mut Engine, now: Moment, run: RunId) -> Vec<Effect> {
    drop(engine.step(now, Event::Spawned { plugin: PLUGIN, run, pid: 1 }));
    engine.step(now, Event::Exited { plugin: PLUGIN, run, exit: ExitReason::Code(1) })
}

/// Its first answer ends the run, which obeys.
fn fails_liveness(engine: &mut Engine, now: Moment, run: RunId) -> Vec<Effect> {
    let asked = engine.step(now, Event::Spawned { plugin: PLUGIN, run, pid: 1 });
    let question = asked.into_iter().find_map(|effect| match effect {
        Effect::Probe { kind, id, .. } => Some((kind, id)),
        Effect::Spawn { .. }
        | Effect::Signal { .. }
        | Effect::CancelProbe { .. }
        | Effect::PreStop { .. }
        | Effect::Report(_)
        | Effect::End(_) => None,
    });
    let (kind, id) = question.expect("invariant: the first question comes without a delay");
    drop(engine.step(now, Event::Probed { plugin: PLUGIN, run, kind, id, result: ProbeResult::Failure }));
    engine.step(now, Event::Exited { plugin: PLUGIN, run, exit: ExitReason::Code(0) })
}

fn waits(moments: &[Moment]) -> Vec<Duration> {
    moments.windows(2).map(|pair| pair[1].since(pair[0])).collect()
}

#[test]
fn a_crash_loop_is_started_at_the_contract_s_moments_to_the_millisecond() {
    let expected = WAITS_MILLIS.map(Duration::from_millis);
    assert_eq!(waits(&spawn_moments(spec(0), 1, exits)), expected);
}

#[test]
fn a_liveness_probe_that_always_fails_makes_the_same_crash_loop() {
    let liveness = ProbeSpec {
        initial_delay: Duration::ZERO,
        period: Duration::from_secs(10),
        timeout: Duration::from_secs(1),
        failure_threshold: 1,
        success_threshold: 1,
        grace: None,
    };
    let mut spec = spec(0);
    spec.probes.liveness = Some(liveness);
    let expected = WAITS_MILLIS.map(Duration::from_millis);
    assert_eq!(waits(&spawn_moments(spec, 1, fails_liveness)), expected);
}

#[test]
fn jitter_moves_each_moment_within_its_bounds_and_spreads_over_them() {
    let (mut early, mut late) = (0, 0);
    for seed in 0..200 {
        for (wait, millis) in
            waits(&spawn_moments(spec(JITTER_MILLI), seed, exits)).into_iter().zip(WAITS_MILLIS)
        {
            let base = Duration::from_millis(millis);
            let (least, most) = (base * (1000 - JITTER_MILLI) / 1000, base * (1000 + JITTER_MILLI) / 1000);
            assert!(
                (least..=most).contains(&wait),
                "seed {seed}: {wait:?} is not within {least:?}..{most:?}"
            );
            early += u32::from(wait < base * (1000 - JITTER_MILLI / 2) / 1000);
            late += u32::from(wait > base * (1000 + JITTER_MILLI / 2) / 1000);
        }
    }
    // A quarter of 2000 waits each, if it is spread evenly.
    assert!((400..600).contains(&early) && (400..600).contains(&late), "{early} early, {late} late");
}
