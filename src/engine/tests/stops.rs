//! Examples of stopping everything: a drain, or the end of the workload.

use expect_test::expect;

use super::check;

#[test]
fn a_drain_stops_dependants_first_then_services_then_telemetry_and_kills_what_does_not_stop() {
    check(
        "t   telemetry always
         s   service always
         db  user always
         app user always after=db grace=3
         odd user always",
        "0 start
         0 t up
         0 s up
         0 db up
         0 app up
         0 odd up
         100 drain 60
         100.1 odd code=0
         103.1 app signal=9
         104 db code=0
         104 status
         105 s code=0
         106 t code=0",
        &expect![[r#"
            0.000    t    SPAWN
            0.000    t    Started: started as pid 1
            0.000    s    SPAWN
            0.000    s    Started: started as pid 2
            0.000    db   SPAWN
            0.000    odd  SPAWN
            0.000    db   Started: started as pid 3
            0.000    app  SPAWN
            0.000    app  Started: started as pid 5
            0.000    odd  Started: started as pid 4
            100.000  -    Draining: stopping everything within 60.000s
            100.000  app  TERM
            100.000  app  Stopping: told to stop within 3.000s
            100.000  odd  TERM
            100.000  odd  Stopping: told to stop within 10.000s
            100.100  odd  Exited: exited with code 0 after 100.100s
            100.100  odd  Stopped: stopped
            103.000  app  KILL
            103.000  app  Killed: killed: it did not stop in time
            103.100  app  Exited: ended by signal 9 after 103.100s
            103.100  app  Stopped: stopped
            103.100  db   TERM
            103.100  db   Stopping: told to stop within 10.000s
            104.000  db   Exited: exited with code 0 after 104.000s
            104.000  db   Stopped: stopped
            104.000  s    TERM
            104.000  s    Stopping: told to stop within 10.000s
            104.000  = Stopping { deadline: Moment(160s), outcome: Drained }, ready false
            104.000  = t    Running since 0, -, ready true, restarts 0
            104.000  = s    Stopping since 104, -, ready false, restarts 0
            104.000  = db   Stopped since 104, -, ready false, restarts 0
            104.000  = app  Stopped since 103.1, -, ready false, restarts 0
            104.000  = odd  Stopped since 100.1, -, ready false, restarts 0
            105.000  s    Exited: exited with code 0 after 105.000s
            105.000  s    Stopped: stopped
            105.000  t    TERM
            105.000  t    Stopping: told to stop within 10.000s
            106.000  t    Exited: exited with code 0 after 106.000s
            106.000  t    Stopped: stopped
            106.000  -    End: drained
            106.000  -    END Drained
        "#]],
    );
}

#[test]
fn a_short_drain_is_shared_between_the_turns_and_ends_although_nothing_dies() {
    check(
        "t   telemetry always
         s   service always
         app user always",
        "0 start
         0 t up
         0 s up
         0 app up
         100 drain 6
         110 status",
        &expect![[r#"
            0.000    t    SPAWN
            0.000    t    Started: started as pid 1
            0.000    s    SPAWN
            0.000    s    Started: started as pid 2
            0.000    app  SPAWN
            0.000    app  Started: started as pid 3
            100.000  -    Draining: stopping everything within 6.000s
            100.000  app  TERM
            100.000  app  Stopping: told to stop within 1.000s
            101.000  app  KILL
            101.000  app  Killed: killed: it did not stop in time
            102.000  app  Unkillable: did not end in time; the stop goes on without it
            102.000  s    TERM
            102.000  s    Stopping: told to stop within 1.000s
            103.000  s    KILL
            103.000  s    Killed: killed: it did not stop in time
            104.000  s    Unkillable: did not end in time; the stop goes on without it
            104.000  t    TERM
            104.000  t    Stopping: told to stop within 1.000s
            105.000  t    KILL
            105.000  t    Killed: killed: it did not stop in time
            106.000  t    Unkillable: did not end in time; the stop goes on without it
            106.000  -    End: drained
            106.000  -    END Drained
            110.000  = Ended(Drained), ready false
            110.000  = t    Stopping since 104, Unkillable, ready false, restarts 0
            110.000  = s    Stopping since 102, Unkillable, ready false, restarts 0
            110.000  = app  Stopping since 100, Unkillable, ready false, restarts 0
        "#]],
    );
}

#[test]
fn a_drain_without_grace_kills_and_ends_within_one_step() {
    check(
        "t   telemetry always
         app user always",
        "0 start
         0 t up
         0 app up
         1 drain 0
         2 app signal=9",
        &expect![[r#"
            0.000    t    SPAWN
            0.000    t    Started: started as pid 1
            0.000    app  SPAWN
            0.000    app  Started: started as pid 2
            1.000    -    Draining: stopping everything within 0.000s
            1.000    app  KILL
            1.000    app  Killed: killed: it did not stop in time
            1.000    app  Unkillable: did not end in time; the stop goes on without it
            1.000    t    KILL
            1.000    t    Killed: killed: it did not stop in time
            1.000    t    Unkillable: did not end in time; the stop goes on without it
            1.000    -    End: drained
            1.000    -    END Drained
        "#]],
    );
}

#[test]
fn a_drain_stops_what_backs_off_at_once_and_what_is_being_spawned_as_it_comes() {
    check(
        "a user always
         b user always
         c user always after=b",
        "0 start
         0 a up
         0 a code=1
         0 a code=1
         0.5 drain 20
         1 b up
         2 b signal=15",
        &expect![[r#"
            0.000    a    SPAWN
            0.000    b    SPAWN
            0.000    a    Started: started as pid 1
            0.000    a    Exited: exited with code 1 after 0.000s
            0.000    a    BackOff: restart 1 at once
            0.000    a    SPAWN
            0.000    a    Exited: exited with code 1 after 0.000s
            0.000    a    BackOff: restart 2 in 1.000s
            0.000    a    CrashLoop: restarted again without a long run in between: in a crash loop
            0.500    -    Draining: stopping everything within 20.000s
            0.500    a    Stopped: stopped
            0.500    c    Stopped: stopped
            1.000    b    Started: started as pid 2
            1.000    b    TERM
            1.000    b    Stopping: told to stop within 10.000s
            2.000    b    Exited: ended by signal 15 after 1.000s
            2.000    b    Stopped: stopped
            2.000    -    End: drained
            2.000    -    END Drained
        "#]],
    );
}

#[test]
fn a_second_drain_only_shortens() {
    check(
        "app user always grace=30",
        "0 start
         0 app up
         10 drain 60
         11 drain 100
         12 drain 8
         30 tick",
        &expect![[r#"
            0.000    app  SPAWN
            0.000    app  Started: started as pid 1
            10.000   -    Draining: stopping everything within 60.000s
            10.000   app  TERM
            10.000   app  Stopping: told to stop within 30.000s
            12.000   -    Draining: stopping everything within 8.000s
            19.000   app  KILL
            19.000   app  Killed: killed: it did not stop in time
            20.000   app  Unkillable: did not end in time; the stop goes on without it
            20.000   -    End: drained
            20.000   -    END Drained
        "#]],
    );
}

#[test]
fn a_drain_during_the_end_of_the_workload_shortens_it_and_keeps_the_outcome() {
    check(
        "t   telemetry always
         app user never",
        "0 start
         0 t up
         0 app up
         1 app code=0
         2 drain 4
         9 tick",
        &expect![[r#"
            0.000    t    SPAWN
            0.000    t    Started: started as pid 1
            0.000    app  SPAWN
            0.000    app  Started: started as pid 2
            1.000    app  Exited: exited with code 0 after 1.000s
            1.000    app  Completed: succeeded and stays down
            1.000    -    WorkloadEnded: no user plugin can run again: completed
            1.000    t    TERM
            1.000    t    Stopping: told to stop within 10.000s
            2.000    -    Draining: stopping everything within 4.000s
            5.000    t    KILL
            5.000    t    Killed: killed: it did not stop in time
            6.000    t    Unkillable: did not end in time; the stop goes on without it
            6.000    -    End: completed
            6.000    -    END Completed
        "#]],
    );
}
