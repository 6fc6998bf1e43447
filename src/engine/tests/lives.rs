//! Examples of starting, restarting and ending, one per decision of the module's header.

use expect_test::expect;

use std::time::Duration;

use super::{check, specs};
use crate::engine::{Effect, Engine, Event, ExitReason, Moment, PluginId, RunId};

#[test]
fn the_first_restart_is_immediate_and_the_others_follow_the_curve() {
    check(
        "app user always",
        "0 start
         0 app up
         5 app signal=9
         5.1 app up
         5.2 app code=1
         6.3 app up
         6.4 app oom
         8.5 app fail
         9 status",
        &expect![[r#"
            0.000    app  SPAWN
            0.000    app  Started: started as pid 1
            5.000    app  Exited: ended by signal 9 after 5.000s
            5.000    app  BackOff: restart 1 at once
            5.000    app  SPAWN
            5.100    app  Started: started as pid 2, restart 1
            5.200    app  Exited: exited with code 1 after 0.100s
            5.200    app  BackOff: restart 2 in 1.000s
            5.200    app  CrashLoop: restarted again without a long run in between: in a crash loop
            6.200    app  SPAWN
            6.300    app  Started: started as pid 3, restart 2
            6.400    app  OOMKilled: killed by the out-of-memory killer (OOMKilled) after 0.100s
            6.400    app  BackOff: restart 3 in 2.000s
            8.400    app  SPAWN
            8.500    app  SpawnFailed: could not be started: exec: errno 2
            8.500    app  BackOff: restart 4 in 4.000s
            9.000    = Running, ready false
            9.000    = app  BackingOff since 8.5, CrashLoopBackOff, ready false, restarts 3
        "#]],
    );
}

#[test]
fn a_crash_loop_is_left_by_running_longer_than_the_last_wait_and_n_goes_on() {
    check(
        "app user always",
        "0 start
         0 app up
         1 app code=1
         1 app up
         2 app code=1
         3 app up
         3.5 status
         4.5 status
         5 app code=1
         6 status",
        &expect![[r#"
            0.000    app  SPAWN
            0.000    app  Started: started as pid 1
            1.000    app  Exited: exited with code 1 after 1.000s
            1.000    app  BackOff: restart 1 at once
            1.000    app  SPAWN
            1.000    app  Started: started as pid 2, restart 1
            2.000    app  Exited: exited with code 1 after 1.000s
            2.000    app  BackOff: restart 2 in 1.000s
            2.000    app  CrashLoop: restarted again without a long run in between: in a crash loop
            3.000    app  SPAWN
            3.000    app  Started: started as pid 3, restart 2
            3.500    = Running, ready false
            3.500    = app  Running since 3, CrashLoopBackOff, ready false, restarts 2
            4.000    app  Steady: runs longer than it last waited: out of its crash loop
            4.500    = Running, ready true
            4.500    = app  Running since 3, -, ready true, restarts 2
            5.000    app  Exited: exited with code 1 after 2.000s
            5.000    app  BackOff: restart 3 in 2.000s
            5.000    app  CrashLoop: restarted again without a long run in between: in a crash loop
            6.000    = Running, ready false
            6.000    = app  BackingOff since 5, CrashLoopBackOff, ready false, restarts 2
        "#]],
    );
}

#[test]
fn n_starts_over_after_a_run_of_reset_after() {
    check(
        "app user always max=2",
        "0 start
         0 app up
         1 app code=1
         1 app up
         2 app code=1
         3 app up
         602.999 status
         603 app code=1
         603 app up
         604 app code=1
         605 app up
         606 app code=1",
        &expect![[r#"
            0.000    app  SPAWN
            0.000    app  Started: started as pid 1
            1.000    app  Exited: exited with code 1 after 1.000s
            1.000    app  BackOff: restart 1 at once
            1.000    app  SPAWN
            1.000    app  Started: started as pid 2, restart 1
            2.000    app  Exited: exited with code 1 after 1.000s
            2.000    app  BackOff: restart 2 in 1.000s
            2.000    app  CrashLoop: restarted again without a long run in between: in a crash loop
            3.000    app  SPAWN
            3.000    app  Started: started as pid 3, restart 2
            4.000    app  Steady: runs longer than it last waited: out of its crash loop
            602.999  = Running, ready true
            602.999  = app  Running since 3, -, ready true, restarts 2
            603.000  app  Exited: exited with code 1 after 600.000s
            603.000  app  BackOff: restart 1 at once
            603.000  app  SPAWN
            603.000  app  Started: started as pid 4, restart 3
            604.000  app  Exited: exited with code 1 after 1.000s
            604.000  app  BackOff: restart 2 in 1.000s
            604.000  app  CrashLoop: restarted again without a long run in between: in a crash loop
            605.000  app  SPAWN
            605.000  app  Started: started as pid 5, restart 4
            606.000  app  Steady: runs longer than it last waited: out of its crash loop
            606.000  app  Exited: exited with code 1 after 1.000s
            606.000  app  GaveUp: stays down: all 2 restarts are spent
            606.000  -    WorkloadEnded: no user plugin can run again: failed
            606.000  -    End: failed
            606.000  -    END Failed
        "#]],
    );
}

#[test]
fn policies_decide_by_how_a_run_ended_and_the_last_user_plugin_ends_the_deployment() {
    check(
        "t    telemetry always
         job  user never
         once user on-failure
         bad  user never",
        "0 start
         0 t up
         0 job up
         0 once up
         0 bad up
         1 job code=0
         2 once code=3
         2 once up
         3 once code=0
         4 bad fail
         4.5 t code=0
         5 status",
        &expect![[r#"
            0.000    t    SPAWN
            0.000    t    Started: started as pid 1
            0.000    job  SPAWN
            0.000    once SPAWN
            0.000    bad  SPAWN
            0.000    job  Started: started as pid 2
            0.000    once Started: started as pid 3
            0.000    bad  Started: started as pid 4
            1.000    job  Exited: exited with code 0 after 1.000s
            1.000    job  Completed: succeeded and stays down
            2.000    once Exited: exited with code 3 after 2.000s
            2.000    once BackOff: restart 1 at once
            2.000    once SPAWN
            2.000    once Started: started as pid 5, restart 1
            3.000    once Exited: exited with code 0 after 1.000s
            3.000    once Completed: succeeded and stays down
            4.500    t    Exited: exited with code 0 after 4.500s
            4.500    t    BackOff: restart 1 at once
            4.500    t    SPAWN
            5.000    = Running, ready true
            5.000    = t    Starting since 4.5, -, ready false, restarts 1
            5.000    = job  Completed since 1, Completed, ready false, restarts 0
            5.000    = once Completed since 3, Completed, ready false, restarts 1
            5.000    = bad  Running since 0, -, ready true, restarts 0
        "#]],
    );
}

#[test]
fn roles_start_one_after_the_other_and_a_failing_telemetry_holds_nobody_back() {
    check(
        "app  user always
         log  service always
         auth service always after=log
         t    telemetry always",
        "0 start
         1 t fail
         1.5 t fail
         2 log fail
         2 app up
         2 log up
         3 auth up",
        &expect![[r#"
            0.000    t    SPAWN
            1.000    t    SpawnFailed: could not be started: exec: errno 2
            1.000    t    BackOff: restart 1 at once
            1.000    t    SPAWN
            1.000    log  SPAWN
            1.500    t    SpawnFailed: could not be started: exec: errno 2
            1.500    t    BackOff: restart 2 in 1.000s
            1.500    t    CrashLoop: restarted again without a long run in between: in a crash loop
            2.000    log  SpawnFailed: could not be started: exec: errno 2
            2.000    log  BackOff: restart 1 at once
            2.000    log  SPAWN
            2.000    app  SPAWN
            2.000    app  Started: started as pid 5
            2.000    log  Started: started as pid 4, restart 1
            2.000    auth SPAWN
            2.500    t    SPAWN
            3.000    auth Started: started as pid 6
        "#]],
    );
}

#[test]
fn a_spawn_that_is_never_answered_holds_the_workload_back_for_a_while_only() {
    check(
        "t   telemetry always
         app user never",
        "0 start
         10.5 app up
         11 app code=0
         40 tick",
        &expect![[r#"
            0.000    t    SPAWN
            10.000   app  SPAWN
            10.500   app  Started: started as pid 2
            11.000   app  Exited: exited with code 0 after 0.500s
            11.000   app  Completed: succeeded and stays down
            11.000   -    WorkloadEnded: no user plugin can run again: completed
            26.000   t    Unkillable: did not end in time; the stop goes on without it
            26.000   -    End: completed
            26.000   -    END Completed
        "#]],
    );
}

#[test]
fn a_plugin_waits_until_its_dependencies_are_ready_or_have_completed() {
    check(
        "init user never
         db   user always
         app  user always after=init,db",
        "0 start
         0 init up
         0 init code=0
         0 db up
         0 db code=1
         0.1 db fail
         1.1 status
         1.2 db up
         2.2 tick
         2.3 app up
         3 db code=1
         3 status",
        &expect![[r#"
            0.000    init SPAWN
            0.000    db   SPAWN
            0.000    init Started: started as pid 1
            0.000    init Exited: exited with code 0 after 0.000s
            0.000    init Completed: succeeded and stays down
            0.000    db   Started: started as pid 2
            0.000    app  SPAWN
            0.000    db   Exited: exited with code 1 after 0.000s
            0.000    db   BackOff: restart 1 at once
            0.000    db   SPAWN
            0.100    db   SpawnFailed: could not be started: exec: errno 2
            0.100    db   BackOff: restart 2 in 1.000s
            0.100    db   CrashLoop: restarted again without a long run in between: in a crash loop
            1.100    db   SPAWN
            1.100    = Running, ready false
            1.100    = init Completed since 0, Completed, ready false, restarts 0
            1.100    = db   Starting since 1.1, CrashLoopBackOff, ready false, restarts 2
            1.100    = app  Starting since 0, -, ready false, restarts 0
            1.200    db   Started: started as pid 5, restart 2
            2.200    db   Steady: runs longer than it last waited: out of its crash loop
            2.300    app  Started: started as pid 3
            3.000    db   Exited: exited with code 1 after 1.800s
            3.000    db   BackOff: restart 3 in 2.000s
            3.000    db   CrashLoop: restarted again without a long run in between: in a crash loop
            3.000    = Running, ready false
            3.000    = init Completed since 0, Completed, ready false, restarts 0
            3.000    = db   BackingOff since 3, CrashLoopBackOff, ready false, restarts 2
            3.000    = app  Running since 2.3, -, ready true, restarts 0
        "#]],
    );
}

#[test]
fn what_waits_for_a_plugin_that_failed_for_good_counts_as_unable_to_run() {
    check(
        "init user never
         app  user always after=init
         ui   user always after=app",
        "0 start
         0.5 status
         1 init fail",
        &expect![[r#"
            0.000    init SPAWN
            0.500    = Running, ready false
            0.500    = init Starting since 0, -, ready false, restarts 0
            0.500    = app  Waiting since 0, StartOrder, ready false, restarts 0
            0.500    = ui   Waiting since 0, StartOrder, ready false, restarts 0
            1.000    init SpawnFailed: could not be started: exec: errno 2
            1.000    init Failed: failed and stays down
            1.000    app  DependencyFailed: cannot start: a plugin it depends on failed for good
            1.000    ui   DependencyFailed: cannot start: a plugin it depends on failed for good
            1.000    -    WorkloadEnded: no user plugin can run again: failed
            1.000    -    End: failed
            1.000    -    END Failed
        "#]],
    );
}

#[test]
fn plugins_in_a_cycle_never_start_and_break_nothing() {
    check(
        "a   user always after=b
         b   user always after=a
         c   user never",
        "0 start
         0 c up
         1 c code=0",
        &expect![[r#"
            0.000    a    DependencyFailed: cannot start: a plugin it depends on failed for good
            0.000    b    DependencyFailed: cannot start: a plugin it depends on failed for good
            0.000    c    SPAWN
            0.000    c    Started: started as pid 1
            1.000    c    Exited: exited with code 0 after 1.000s
            1.000    c    Completed: succeeded and stays down
            1.000    -    WorkloadEnded: no user plugin can run again: failed
            1.000    -    End: failed
            1.000    -    END Failed
        "#]],
    );
}

#[test]
fn before_the_start_and_after_the_end_nothing_happens() {
    check(
        "app user always",
        "0 app up\n1 app code=0\n2 drain 5\n3 start\n4 drain 1",
        &expect![[r#"
            2.000    -    Draining: stopping everything within 5.000s
            2.000    app  Stopped: stopped
            2.000    -    End: drained
            2.000    -    END Drained
        "#]],
    );
    check(
        "t telemetry always",
        "0 start\n1 t up",
        &expect![[r#"
            0.000    -    WorkloadEnded: no user plugin can run again: completed
            0.000    t    Stopped: stopped
            0.000    -    End: completed
            0.000    -    END Completed
        "#]],
    );
}

#[test]
fn an_exit_that_overtakes_its_spawned_ends_the_run() {
    check(
        "app user never",
        "0 start\n1 app code=0\n2 app up",
        &expect![[r#"
            0.000    app  SPAWN
            1.000    app  Exited: exited with code 0 after 0.000s
            1.000    app  Completed: succeeded and stays down
            1.000    -    WorkloadEnded: no user plugin can run again: completed
            1.000    -    End: completed
            1.000    -    END Completed
        "#]],
    );
}

#[test]
fn a_next_run_is_worth_preparing_where_it_would_start_at_once() {
    let second = |seconds: u64| Moment(Duration::from_secs(seconds));
    let standby = |policy: &str| {
        let mut engine = Engine::new(specs(&format!("app user {policy}")), 1);
        let (plugin, mut run, mut seen) = (PluginId(0), RunId(1), vec![engine.standby_from(PluginId(0))]);
        let mut step = |engine: &mut Engine, seconds, event| {
            let effects = engine.step(second(seconds), event);
            let spawned =
                |effect: &Effect| if let Effect::Spawn { run, .. } = effect { Some(*run) } else { None };
            run = effects.iter().find_map(spawned).unwrap_or(run);
            seen.push(engine.standby_from(plugin));
            run
        };
        let run = step(&mut engine, 0, Event::Start);
        let run = step(&mut engine, 5, Event::Spawned { plugin, run, pid: 1 });
        let exit = ExitReason::Signal(9);
        let run = step(&mut engine, 9, Event::Exited { plugin, run, exit });
        step(&mut engine, 9, Event::Spawned { plugin, run, pid: 2 });
        step(&mut engine, 10, Event::Drain { grace: Duration::from_secs(30) });
        seen
    };
    // Up since 5 s; then up since 9 s, where only a long run would be followed at once.
    let from = [None, None, Some(second(6)), None, Some(second(609)), None];
    assert_eq!(standby("always"), from);
    assert_eq!(standby("on-failure"), from);
    assert_eq!(standby("never"), [None; 6]);
    assert_eq!(standby("always max=0"), [None; 6]);
}
