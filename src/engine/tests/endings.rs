//! Examples of how a run is ended: by its preStop hook and TERM, by a probe, by a stop that comes on top.

use expect_test::expect;

use super::check;

#[test]
fn the_hook_runs_before_term_and_within_the_grace() {
    check(
        "app user always prestop liveness grace=5",
        "0 start
         0 app up
         10 drain 60
         12 status
         13 app hook
         16 tick",
        &expect![[r#"
            0.000    app  SPAWN
            0.000    app  Started: started as pid 1
            0.000    app  PROBE Liveness 1
            2.000    app  CANCEL Liveness 1
            10.000   app  PROBE Liveness 2
            10.000   -    Draining: stopping everything within 60.000s
            10.000   app  CANCEL Liveness 2
            10.000   app  PRESTOP
            10.000   app  PreStop: runs its preStop hook, to stop within 5.000s
            12.000   = Stopping { deadline: Moment(70s), outcome: Drained }, ready false
            12.000   = app  Stopping since 10, -, ready false, restarts 0, liveness - 1
            13.000   app  TERM
            13.000   app  Stopping: told to stop within 2.000s
            15.000   app  KILL
            15.000   app  Killed: killed: it did not stop in time
        "#]],
    );
}

#[test]
fn a_hook_that_takes_all_of_the_grace_leaves_term_two_seconds_to_work() {
    check(
        "app user always prestop grace=5",
        "0 start
         0 app up
         10 drain 60
         15.5 app hook
         16 app signal=15",
        &expect![[r#"
            0.000    app  SPAWN
            0.000    app  Started: started as pid 1
            10.000   -    Draining: stopping everything within 60.000s
            10.000   app  PRESTOP
            10.000   app  PreStop: runs its preStop hook, to stop within 5.000s
            15.000   app  TERM
            15.000   app  Stopping: told to stop within 2.000s
            16.000   app  Exited: ended by signal 15 after 16.000s
            16.000   app  Stopped: stopped
            16.000   -    End: drained
            16.000   -    END Drained
        "#]],
    );
    check(
        "app user always prestop grace=5",
        "0 start\n0 app up\n10 drain 60\n14.5 app hook\n30 tick",
        &expect![[r#"
            0.000    app  SPAWN
            0.000    app  Started: started as pid 1
            10.000   -    Draining: stopping everything within 60.000s
            10.000   app  PRESTOP
            10.000   app  PreStop: runs its preStop hook, to stop within 5.000s
            14.500   app  TERM
            14.500   app  Stopping: told to stop within 2.000s
            16.500   app  KILL
            16.500   app  Killed: killed: it did not stop in time
            21.500   app  Unkillable: did not end in time; the stop goes on without it
            21.500   -    End: drained
            21.500   -    END Drained
        "#]],
    );
}

#[test]
fn a_hook_that_hangs_cannot_make_a_drain_longer() {
    check(
        "t   telemetry always
         app user always prestop grace=60",
        "0 start
         0 t up
         0 app up
         10 drain 20
         11 drain 10
         30 tick",
        &expect![[r#"
            0.000    t    SPAWN
            0.000    t    Started: started as pid 1
            0.000    app  SPAWN
            0.000    app  Started: started as pid 2
            10.000   -    Draining: stopping everything within 20.000s
            10.000   app  PRESTOP
            10.000   app  PreStop: runs its preStop hook, to stop within 14.000s
            11.000   -    Draining: stopping everything within 10.000s
            15.000   app  KILL
            15.000   app  Killed: killed: it did not stop in time
            16.000   app  Unkillable: did not end in time; the stop goes on without it
            16.000   t    TERM
            16.000   t    Stopping: told to stop within 4.000s
            20.000   t    KILL
            20.000   t    Killed: killed: it did not stop in time
            21.000   t    Unkillable: did not end in time; the stop goes on without it
            21.000   -    End: drained
            21.000   -    END Drained
        "#]],
    );
    check(
        "app user always prestop",
        "0 start\n0 app up\n10 drain 0",
        &expect![[r#"
        0.000    app  SPAWN
        0.000    app  Started: started as pid 1
        10.000   -    Draining: stopping everything within 0.000s
        10.000   app  KILL
        10.000   app  Killed: killed: it did not stop in time
        10.000   app  Unkillable: did not end in time; the stop goes on without it
        10.000   -    End: drained
        10.000   -    END Drained
    "#]],
    );
}

#[test]
fn a_plugin_that_ends_during_its_hook_is_just_over() {
    check(
        "app user always prestop",
        "0 start
         0 app up
         10 drain 60
         11 app code=0
         12 app hook",
        &expect![[r#"
            0.000    app  SPAWN
            0.000    app  Started: started as pid 1
            10.000   -    Draining: stopping everything within 60.000s
            10.000   app  PRESTOP
            10.000   app  PreStop: runs its preStop hook, to stop within 10.000s
            11.000   app  Exited: exited with code 0 after 11.000s
            11.000   app  Stopped: stopped
            11.000   -    End: drained
            11.000   -    END Drained
        "#]],
    );
}

#[test]
fn the_hook_runs_as_well_when_a_probe_ends_the_run() {
    check(
        "app user always prestop liveness=fail:1,grace:4",
        "0 start
         0 app up
         1 app liveness=bad
         2 app hook
         2.5 status
         3 app code=0",
        &expect![[r#"
            0.000    app  SPAWN
            0.000    app  Started: started as pid 1
            0.000    app  PROBE Liveness 1
            1.000    app  LivenessProbeFailed: liveness probe failed 1 time in a row: the run is ended
            1.000    app  PRESTOP
            1.000    app  PreStop: runs its preStop hook, to stop within 4.000s
            2.000    app  TERM
            2.000    app  Stopping: told to stop within 3.000s
            2.500    = Running, ready false
            2.500    = app  Stopping since 1, LivenessProbeFailed, ready false, restarts 0, liveness failing 1
            3.000    app  Exited: exited with code 0 after 3.000s
            3.000    app  BackOff: restart 1 at once
            3.000    app  SPAWN
        "#]],
    );
}

#[test]
fn a_stop_takes_over_a_run_that_a_probe_is_ending_and_nobody_is_told_twice() {
    check(
        "s   service always liveness=fail:1 grace=100
         app user always grace=3",
        "0 start
         0 s up
         0 app up
         0 s liveness=bad
         1 drain 20
         2 app code=0
         30 tick",
        &expect![[r#"
            0.000    s    SPAWN
            0.000    s    Started: started as pid 1
            0.000    app  SPAWN
            0.000    s    PROBE Liveness 1
            0.000    app  Started: started as pid 2
            0.000    s    LivenessProbeFailed: liveness probe failed 1 time in a row: the run is ended
            0.000    s    TERM
            0.000    s    Stopping: told to stop within 100.000s
            1.000    -    Draining: stopping everything within 20.000s
            1.000    app  TERM
            1.000    app  Stopping: told to stop within 3.000s
            2.000    app  Exited: exited with code 0 after 2.000s
            2.000    app  Stopped: stopped
            20.000   s    KILL
            20.000   s    Killed: killed: it did not stop in time
            21.000   s    Unkillable: did not end in time; the stop goes on without it
            21.000   -    End: drained
            21.000   -    END Drained
        "#]],
    );
}

#[test]
fn once_a_stop_began_liveness_is_not_asked_any_more_and_readiness_is() {
    check(
        "s   service always liveness readiness=period:1
         app user always grace=3",
        "0 start
         0 s up
         0 s readiness=ok
         0 app up
         0.5 drain 20
         1 s readiness=ok
         2 s readiness=bad
         2.5 app code=0
         3 s liveness=bad",
        &expect![[r#"
            0.000    s    SPAWN
            0.000    s    Started: started as pid 1
            0.000    app  SPAWN
            0.000    s    PROBE Liveness 1
            0.000    s    PROBE Readiness 2
            0.000    s    Ready: ready
            0.000    app  Started: started as pid 2
            0.500    -    Draining: stopping everything within 20.000s
            0.500    s    CANCEL Liveness 1
            0.500    app  TERM
            0.500    app  Stopping: told to stop within 3.000s
            1.000    s    PROBE Readiness 3
            2.000    s    PROBE Readiness 4
            2.500    app  Exited: exited with code 0 after 2.500s
            2.500    app  Stopped: stopped
            2.500    s    TERM
            2.500    s    Stopping: told to stop within 10.000s
        "#]],
    );
}

#[test]
fn a_run_that_does_not_die_of_kill_is_awaited_and_given_up_by_a_stop_alone() {
    check(
        "app user always liveness=fail:1 grace=2",
        "0 start
         0 app up
         0 app liveness=bad
         50 status
         60 drain 20",
        &expect![[r#"
            0.000    app  SPAWN
            0.000    app  Started: started as pid 1
            0.000    app  PROBE Liveness 1
            0.000    app  LivenessProbeFailed: liveness probe failed 1 time in a row: the run is ended
            0.000    app  TERM
            0.000    app  Stopping: told to stop within 2.000s
            2.000    app  KILL
            2.000    app  Killed: killed: it did not stop in time
            50.000   = Running, ready false
            50.000   = app  Stopping since 0, LivenessProbeFailed, ready false, restarts 0, liveness failing 1
            60.000   -    Draining: stopping everything within 20.000s
            60.000   app  Unkillable: did not end in time; the stop goes on without it
            60.000   -    End: drained
            60.000   -    END Drained
        "#]],
    );
}
