//! The restart decision and the counting of probes against reference models that are too simple to be wrong:
//! one plugin, runs of known length, answers that come at once.

use proptest::prelude::*;

use super::*;

/// What the model says about one run's end.
#[derive(Debug, PartialEq)]
enum Expected {
    Restart { wait_nanos: u128 },
    Completed,
    Failed,
}

/// Straight from the contract's words, in whole nanoseconds and without a thought to overflow.
struct Model {
    spec: Spec,
    n: u32,
}

impl Model {
    fn ended(&mut self, success: bool, ran_for: Duration) -> Expected {
        if self.spec.restart == RestartPolicy::Never
            || (self.spec.restart == RestartPolicy::OnFailure && success)
        {
            return if success { Expected::Completed } else { Expected::Failed };
        }
        if ran_for >= self.spec.curve.reset_after {
            self.n = 0;
        }
        self.n += 1;
        if self.spec.curve.max_restarts.is_some_and(|max| self.n > max) {
            return Expected::Failed;
        }
        let curve = &self.spec.curve;
        let doublings = curve.factor_milli / 1000;
        let wait_nanos = match self.n {
            1 => 0,
            n => curve
                .max_delay
                .as_nanos()
                .min(curve.initial_delay.as_nanos() * u128::from(doublings).pow(n - 2)),
        };
        Expected::Restart { wait_nanos }
    }
}

prop_compose! {
    fn any_spec()(
        restart in prop_oneof![
            Just(RestartPolicy::Always),
            Just(RestartPolicy::OnFailure),
            Just(RestartPolicy::Never),
        ],
        initial in 1..5000_u64,
        factor in 1..5_u32,
        max in 1..100_000_u64,
        reset in 1..600_000_u64,
        max_restarts in proptest::option::of(0..20_u32),
    ) -> Spec {
        let curve = RestartCurve {
            initial_delay: Duration::from_millis(initial),
            factor_milli: factor * 1000,
            max_delay: Duration::from_millis(max),
            reset_after: Duration::from_millis(reset),
            max_restarts,
            jitter_milli: 0,
        };
        Spec {
            name: "app".into(),
            role: Role::User,
            restart,
            curve,
            grace: Duration::ZERO,
            depends_on: vec![],
            probes: Probes::default(),
            notify: false,
            pre_stop: false,
        }
    }
}

fn any_end() -> impl Strategy<Value = (RunEnd, Duration)> {
    let failure = RunEnd::SpawnFailed(SpawnError { stage: "exec", errno: 2 });
    let end = prop_oneof![
        Just(RunEnd::Exited(ExitReason::Code(0))),
        Just(RunEnd::Exited(ExitReason::Code(1))),
        Just(RunEnd::Exited(ExitReason::Signal(9))),
        Just(RunEnd::Exited(ExitReason::OutOfMemory)),
        Just(failure),
    ];
    (end, prop_oneof![0..1000_u64, 0..700_000_u64])
        .prop_map(|(end, millis)| (end, Duration::from_millis(millis)))
}

proptest! {
    #[test]
    fn the_engine_restarts_as_the_reference_model_says(
        spec in any_spec(),
        ends in proptest::collection::vec(any_end(), 1..40),
    ) {
        let plugin = PluginId(0);
        let mut engine = Engine::new(vec![spec.clone()], 1);
        let mut model = Model { spec, n: 0 };
        let mut now = Moment::default();
        let mut effects = engine.step(now, Event::Start);
        for (end, ran_for) in ends {
            let Some(&Effect::Spawn { run, .. }) = effects.iter().find(|effect| matches!(effect, Effect::Spawn { .. }))
            else { panic!("no spawn in {effects:?}") };
            let (event, ran_for) = match end {
                RunEnd::SpawnFailed(error) => (Event::SpawnFailed { plugin, run, error }, Duration::ZERO),
                RunEnd::Exited(exit) => {
                    let started = engine.step(now, Event::Spawned { plugin, run, pid: 1 });
                    prop_assert_eq!(started.len(), 1);
                    (Event::Exited { plugin, run, exit }, ran_for)
                }
            };
            now = now.after(ran_for);
            effects = engine.step(now, event);
            let after = &engine.snapshot().plugins[0];
            match model.ended(end.is_success(), ran_for) {
                Expected::Completed => prop_assert_eq!(after.phase, PluginPhase::Completed),
                Expected::Failed => prop_assert_eq!(after.phase, PluginPhase::Failed),
                Expected::Restart { wait_nanos: 0 } => prop_assert_eq!(after.phase, PluginPhase::Starting),
                Expected::Restart { wait_nanos } => {
                    prop_assert_eq!(after.phase, PluginPhase::BackingOff);
                    let due = after.next_restart.unwrap();
                    prop_assert_eq!(due.since(now).as_nanos(), wait_nanos);
                    prop_assert_eq!(engine.next_deadline(), Some(due));
                    now = due;
                    effects = engine.step(now, Event::DeadlineReached);
                }
            }
            if engine.snapshot().phase != DeploymentPhase::Running {
                break;
            }
        }
    }
}

/// Whether a probe passes after these answers: what the latest row says that is long enough to count.
fn passing(answers: &[bool], success_threshold: usize, failure_threshold: usize) -> Option<bool> {
    let counts = |&end: &usize| {
        let last = answers[end - 1];
        let threshold = if last { success_threshold } else { failure_threshold };
        end >= threshold && answers[end - threshold..end].iter().all(|answer| *answer == last)
    };
    (1..=answers.len()).rev().find(counts).map(|end| answers[end - 1])
}

fn any_answer() -> impl Strategy<Value = ProbeResult> {
    prop_oneof![
        4 => Just(ProbeResult::Success),
        4 => Just(ProbeResult::Failure),
        1 => Just(ProbeResult::Unknown),
    ]
}

proptest! {
    #[test]
    fn answers_count_as_the_reference_model_says(
        kind in prop_oneof![Just(ProbeKind::Startup), Just(ProbeKind::Liveness), Just(ProbeKind::Readiness)],
        success_threshold in 1..4_usize,
        failure_threshold in 1..5_usize,
        results in proptest::collection::vec(any_answer(), 1..40),
    ) {
        let thresholds = (u32::try_from(success_threshold)?, u32::try_from(failure_threshold)?);
        let probe = ProbeSpec {
            initial_delay: Duration::from_secs(3),
            period: Duration::from_secs(10),
            timeout: Duration::from_secs(1),
            success_threshold: thresholds.0,
            failure_threshold: thresholds.1,
            grace: None,
        };
        let of = |this| (kind == this).then_some(probe);
        let probes = Probes {
            startup: of(ProbeKind::Startup),
            liveness: of(ProbeKind::Liveness),
            readiness: of(ProbeKind::Readiness),
        };
        let mut spec = specs("app user always").remove(0);
        spec.probes = probes;
        let mut engine = Engine::new(vec![spec], 1);
        let (plugin, run) = (PluginId(0), RunId(1));
        let start = Moment::default();
        drop(engine.step(start, Event::Start));
        drop(engine.step(start, Event::Spawned { plugin, run, pid: 1 }));
        let mut answers = Vec::new();
        for (number, result) in (0..).zip(results) {
            let due = Moment(probe.initial_delay + probe.period * number);
            prop_assert_eq!(engine.next_deadline(), Some(due));
            let asked = engine.step(due, Event::DeadlineReached);
            let Some(&Effect::Probe { id, .. }) = asked.first() else { panic!("nothing asked: {asked:?}") };
            let effects = engine.step(due, Event::Probed { plugin, run, kind, id, result });
            match result {
                ProbeResult::Success => answers.push(true),
                ProbeResult::Failure => answers.push(false),
                ProbeResult::Unknown => {}
            }
            let expected = passing(&answers, success_threshold, failure_threshold);
            let failures = answers.iter().rev().take_while(|answer| !**answer).count();
            let shown = &engine.snapshot().plugins[0];
            prop_assert_eq!(shown.probes[0].passing, expected);
            prop_assert_eq!(shown.probes[0].failures, u32::try_from(failures)?);
            prop_assert_eq!(shown.ready, match kind {
                ProbeKind::Startup | ProbeKind::Readiness => expected == Some(true),
                ProbeKind::Liveness => expected != Some(false),
            });
            let ends = kind != ProbeKind::Readiness && expected == Some(false);
            let term = Effect::Signal { plugin, run, signal: Stop::Term };
            prop_assert_eq!(effects.contains(&term), ends);
            if ends || (kind == ProbeKind::Startup && expected == Some(true)) {
                let asked = engine.step(due.after(Duration::from_secs(1)), Event::DeadlineReached);
                prop_assert!(asked.is_empty());
                break;
            }
        }
    }
}
