//! The restart decision against a reference model that is too simple to be wrong: one plugin, runs of known
//! length.

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
