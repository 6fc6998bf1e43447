//! Examples of probes and readiness, one per decision of the module's header.

use expect_test::expect;

use super::check;

#[test]
fn a_startup_probe_holds_the_others_back_until_it_succeeds_and_then_all_make_the_plugin_ready() {
    check(
        "app user always startup=period:2 liveness=delay:1 readiness=delay:7,ok:2,period:5 notify",
        "0 start
         0 app up
         0.5 app startup=bad
         1 status
         2.5 app startup=ok
         2.6 app liveness=ok
         3 status
         3 app ready
         7 status
         7.1 app readiness=ok
         12.1 app readiness=ok
         12.2 status",
        &expect![[r#"
            0.000    app  SPAWN
            0.000    app  Started: started as pid 1
            0.000    app  PROBE Startup 1
            1.000    = Running, ready false
            1.000    = app  Running since 0, StartupProbePending, ready false, restarts 0, startup - 1, liveness - 0, readiness - 0, notify - 0
            2.000    app  PROBE Startup 2
            2.500    app  PROBE Liveness 3
            3.000    = Running, ready false
            3.000    = app  Running since 0, NotifyPending, ready false, restarts 0, startup passing 0, liveness passing 0, readiness - 0, notify - 0
            7.000    app  PROBE Readiness 4
            7.000    = Running, ready false
            7.000    = app  Running since 0, ReadinessProbePending, ready false, restarts 0, startup passing 0, liveness passing 0, readiness - 0, notify passing 0
            12.000   app  PROBE Readiness 5
            12.100   app  Ready: ready
            12.200   = Running, ready true
            12.200   = app  Running since 0, -, ready true, restarts 0, startup passing 0, liveness passing 0, readiness passing 0, notify passing 0
        "#]],
    );
}

#[test]
fn a_startup_probe_that_fails_too_often_ends_the_run_and_the_policy_takes_over() {
    check(
        "app user on-failure startup=fail:2,period:1",
        "0 start
         0 app up
         0 app startup=bad
         1 app startup=bad
         1 status
         1.5 app code=0
         1.5 app up
         1.5 app startup=bad
         2.5 app startup=ok
         3 status
         4 app code=0",
        &expect![[r#"
            0.000    app  SPAWN
            0.000    app  Started: started as pid 1
            0.000    app  PROBE Startup 1
            1.000    app  PROBE Startup 2
            1.000    app  StartupProbeFailed: startup probe failed 2 times in a row: the run is ended
            1.000    app  TERM
            1.000    app  Stopping: told to stop within 10.000s
            1.000    = Running, ready false
            1.000    = app  Stopping since 1, StartupProbeFailed, ready false, restarts 0, startup failing 2
            1.500    app  Exited: exited with code 0 after 1.500s
            1.500    app  BackOff: restart 1 at once
            1.500    app  SPAWN
            1.500    app  Started: started as pid 2, restart 1
            1.500    app  PROBE Startup 3
            2.500    app  PROBE Startup 4
            2.500    app  Ready: ready
            3.000    = Running, ready true
            3.000    = app  Running since 1.5, -, ready true, restarts 1, startup passing 0
            4.000    app  Exited: exited with code 0 after 2.500s
            4.000    app  Completed: succeeded and stays down
            4.000    -    WorkloadEnded: no user plugin can run again: completed
            4.000    -    End: completed
            4.000    -    END Completed
        "#]],
    );
}

#[test]
fn a_run_that_liveness_ended_is_a_failed_run_although_it_exits_with_0() {
    check(
        "app user never liveness=fail:1",
        "0 start
         0 app up
         0 app liveness=bad
         1 app code=0
         2 status",
        &expect![[r#"
            0.000    app  SPAWN
            0.000    app  Started: started as pid 1
            0.000    app  PROBE Liveness 1
            0.000    app  LivenessProbeFailed: liveness probe failed 1 time in a row: the run is ended
            0.000    app  TERM
            0.000    app  Stopping: told to stop within 10.000s
            1.000    app  Exited: exited with code 0 after 1.000s
            1.000    app  Failed: failed and stays down
            1.000    -    WorkloadEnded: no user plugin can run again: failed
            1.000    -    End: failed
            1.000    -    END Failed
            2.000    = Ended(Failed), ready false
            2.000    = app  Failed since 1, LivenessProbeFailed, ready false, restarts 0, liveness - 0
        "#]],
    );
}

#[test]
fn liveness_failures_back_off_like_any_other_and_kill_after_the_probe_s_own_grace() {
    check(
        "app user always liveness=fail:2,period:1,grace:3 grace=30",
        "0 start
         0 app up
         0 app liveness=ok
         1 app liveness=bad
         2 app liveness=ok
         3 app liveness=bad
         4 app liveness=bad
         6 status
         7.1 app signal=9
         7.1 app up
         7.1 app liveness=bad
         8.1 app liveness=bad
         8.2 app signal=15
         8.5 status
         9.2 app up
         9.3 status",
        &expect![[r#"
            0.000    app  SPAWN
            0.000    app  Started: started as pid 1
            0.000    app  PROBE Liveness 1
            1.000    app  PROBE Liveness 2
            2.000    app  PROBE Liveness 3
            3.000    app  PROBE Liveness 4
            4.000    app  PROBE Liveness 5
            4.000    app  LivenessProbeFailed: liveness probe failed 2 times in a row: the run is ended
            4.000    app  TERM
            4.000    app  Stopping: told to stop within 3.000s
            6.000    = Running, ready false
            6.000    = app  Stopping since 4, LivenessProbeFailed, ready false, restarts 0, liveness failing 2
            7.000    app  KILL
            7.000    app  Killed: killed: it did not stop in time
            7.100    app  Exited: ended by signal 9 after 7.100s
            7.100    app  BackOff: restart 1 at once
            7.100    app  SPAWN
            7.100    app  Started: started as pid 2, restart 1
            7.100    app  PROBE Liveness 6
            8.100    app  PROBE Liveness 7
            8.100    app  LivenessProbeFailed: liveness probe failed 2 times in a row: the run is ended
            8.100    app  TERM
            8.100    app  Stopping: told to stop within 3.000s
            8.200    app  Exited: ended by signal 15 after 1.100s
            8.200    app  BackOff: restart 2 in 1.000s
            8.200    app  CrashLoop: restarted again without a long run in between: in a crash loop
            8.500    = Running, ready false
            8.500    = app  BackingOff since 8.2, CrashLoopBackOff, ready false, restarts 1, liveness - 0
            9.200    app  SPAWN
            9.200    app  Started: started as pid 3, restart 2
            9.200    app  PROBE Liveness 8
            9.300    = Running, ready false
            9.300    = app  Running since 9.2, CrashLoopBackOff, ready false, restarts 2, liveness - 0
        "#]],
    );
}

#[test]
fn readiness_comes_and_goes_by_its_thresholds_and_ends_nothing() {
    check(
        "app user always readiness=fail:2,ok:2,period:1
         ui  user always after=app",
        "0 start
         0 app up
         0 app readiness=ok
         1 app readiness=bad
         2 app readiness=ok
         2.5 status
         3 app readiness=ok
         3 ui up
         4 app readiness=bad
         5 app readiness=bad
         6 app readiness=bad
         6.5 status
         7 app readiness=ok
         8 app readiness=ok
         8.5 status",
        &expect![[r#"
            0.000    app  SPAWN
            0.000    app  Started: started as pid 1
            0.000    app  PROBE Readiness 1
            1.000    app  PROBE Readiness 2
            2.000    app  PROBE Readiness 3
            2.500    = Running, ready false
            2.500    = app  Running since 0, ReadinessProbePending, ready false, restarts 0, readiness - 0
            2.500    = ui   Waiting since 0, StartOrder, ready false, restarts 0
            3.000    app  PROBE Readiness 4
            3.000    app  Ready: ready
            3.000    ui   SPAWN
            3.000    ui   Started: started as pid 2
            4.000    app  PROBE Readiness 5
            5.000    app  PROBE Readiness 6
            5.000    app  ReadinessProbeFailed: readiness probe failed 2 times in a row: not ready
            6.000    app  PROBE Readiness 7
            6.500    = Running, ready false
            6.500    = app  Running since 0, ReadinessProbeFailed, ready false, restarts 0, readiness failing 3
            6.500    = ui   Running since 3, -, ready true, restarts 0
            7.000    app  PROBE Readiness 8
            8.000    app  PROBE Readiness 9
            8.000    app  Ready: ready
            8.500    = Running, ready true
            8.500    = app  Running since 0, -, ready true, restarts 0, readiness passing 0
            8.500    = ui   Running since 3, -, ready true, restarts 0
        "#]],
    );
}

#[test]
fn an_answer_that_does_not_come_is_a_failure_and_one_that_comes_late_is_none() {
    check(
        "app user always liveness=fail:2,period:1,timeout:3",
        "0 start
         0 app up
         4 app liveness=ok,1
         4.5 app liveness=ok
         4.5 status
         9 tick",
        &expect![[r#"
            0.000    app  SPAWN
            0.000    app  Started: started as pid 1
            0.000    app  PROBE Liveness 1
            4.000    app  CANCEL Liveness 1
            4.000    app  PROBE Liveness 2
            4.500    = Running, ready true
            4.500    = app  Running since 0, -, ready true, restarts 0, liveness passing 0
            5.000    app  PROBE Liveness 3
            9.000    app  CANCEL Liveness 3
            9.000    app  PROBE Liveness 4
        "#]],
    );
}

#[test]
fn a_slow_answer_puts_the_next_question_off_and_nothing_is_asked_meanwhile() {
    check(
        "app user always readiness=period:2,timeout:9",
        "0 start
         0 app up
         0.5 app readiness=ok
         2.1 tick
         7.3 app readiness=ok
         7.4 app readiness=ok
         9.2 tick
         9.3 tick",
        &expect![[r#"
            0.000    app  SPAWN
            0.000    app  Started: started as pid 1
            0.000    app  PROBE Readiness 1
            0.500    app  Ready: ready
            2.000    app  PROBE Readiness 2
            7.300    app  PROBE Readiness 3
            9.300    app  PROBE Readiness 4
        "#]],
    );
}

#[test]
fn a_probe_that_cannot_be_performed_counts_as_neither() {
    check(
        "app user always liveness=fail:2,period:1",
        "0 start
         0 app up
         0 app liveness=bad
         1 app liveness=unknown
         2 app liveness=unknown
         2 status
         3 app liveness=bad",
        &expect![[r#"
            0.000    app  SPAWN
            0.000    app  Started: started as pid 1
            0.000    app  PROBE Liveness 1
            1.000    app  PROBE Liveness 2
            2.000    app  PROBE Liveness 3
            2.000    = Running, ready true
            2.000    = app  Running since 0, -, ready true, restarts 0, liveness - 1
            3.000    app  PROBE Liveness 4
            3.000    app  LivenessProbeFailed: liveness probe failed 2 times in a row: the run is ended
            3.000    app  TERM
            3.000    app  Stopping: told to stop within 10.000s
        "#]],
    );
}

#[test]
fn ready_of_an_earlier_run_does_not_count_and_one_that_overtakes_the_spawn_does() {
    check(
        "app user always notify
         ui  user always after=app",
        "0 start
         0.1 app ready
         0.2 app up
         0.2 ui up
         1 app code=0
         1.1 app up
         1.2 status
         1.3 app ready
         1.3 app ready
         1.4 status",
        &expect![[r#"
            0.000    app  SPAWN
            0.200    app  Started: started as pid 1
            0.200    app  Ready: ready
            0.200    ui   SPAWN
            0.200    ui   Started: started as pid 2
            1.000    app  Exited: exited with code 0 after 0.800s
            1.000    app  BackOff: restart 1 at once
            1.000    app  SPAWN
            1.100    app  Started: started as pid 3, restart 1
            1.200    = Running, ready false
            1.200    = app  Running since 1.1, NotifyPending, ready false, restarts 1, notify - 0
            1.200    = ui   Running since 0.2, -, ready true, restarts 0
            1.300    app  Ready: ready
            1.400    = Running, ready true
            1.400    = app  Running since 1.1, -, ready true, restarts 1, notify passing 0
            1.400    = ui   Running since 0.2, -, ready true, restarts 0
        "#]],
    );
}

#[test]
fn dependants_wait_for_the_completion_of_a_plugin_that_runs_to_completion() {
    check(
        "init user on-failure
         app  user always after=init",
        "0 start
         0 init up
         1 status
         2 init code=1
         2 init up
         3 init code=0",
        &expect![[r#"
            0.000    init SPAWN
            0.000    init Started: started as pid 1
            1.000    = Running, ready false
            1.000    = init Running since 0, -, ready true, restarts 0
            1.000    = app  Waiting since 0, StartOrder, ready false, restarts 0
            2.000    init Exited: exited with code 1 after 2.000s
            2.000    init BackOff: restart 1 at once
            2.000    init SPAWN
            2.000    init Started: started as pid 2, restart 1
            3.000    init Exited: exited with code 0 after 1.000s
            3.000    init Completed: succeeded and stays down
            3.000    app  SPAWN
        "#]],
    );
}

#[test]
fn ready_will_do_where_a_plugin_that_runs_to_completion_tells_readiness() {
    check(
        "job user never notify
         app user always after=job",
        "0 start
         0 job up
         1 job ready",
        &expect![[r#"
            0.000    job  SPAWN
            0.000    job  Started: started as pid 1
            1.000    job  Ready: ready
            1.000    app  SPAWN
        "#]],
    );
}

#[test]
fn telemetry_that_never_gets_ready_holds_back_only_those_that_depend_on_it() {
    check(
        "t   telemetry always readiness
         s   service always
         app user always
         ui  user always after=t",
        "0 start
         0 t up
         0 t readiness=bad
         0 s up
         0 app up
         1 status",
        &expect![[r#"
            0.000    t    SPAWN
            0.000    t    Started: started as pid 1
            0.000    s    SPAWN
            0.000    t    PROBE Readiness 1
            0.000    s    Started: started as pid 2
            0.000    app  SPAWN
            0.000    app  Started: started as pid 3
            1.000    = Running, ready false
            1.000    = t    Running since 0, ReadinessProbePending, ready false, restarts 0, readiness - 1
            1.000    = s    Running since 0, -, ready true, restarts 0
            1.000    = app  Running since 0, -, ready true, restarts 0
            1.000    = ui   Waiting since 0, StartOrder, ready false, restarts 0
        "#]],
    );
}
