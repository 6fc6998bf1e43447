//! One example per decision of the module's header.

use expect_test::expect;

use super::check;

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
        &expect![[]],
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
        &expect![[]],
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
        &expect![[]],
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
        &expect![[]],
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
        &expect![[]],
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
        &expect![[]],
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
        &expect![[]],
    );
}

#[test]
fn what_waits_for_a_plugin_that_failed_for_good_counts_as_unable_to_run() {
    check(
        "init user never
         app  user always after=init
         ui   user always after=app",
        "0 start
         0 init up
         1 init code=1
         2 status",
        &expect![[]],
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
        &expect![[]],
    );
}

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
        &expect![[]],
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
        &expect![[]],
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
        &expect![[]],
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
        &expect![[]],
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
        &expect![[]],
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
        &expect![[]],
    );
}

#[test]
fn before_the_start_and_after_the_end_nothing_happens() {
    check("app user always", "0 app up\n1 app code=0\n2 drain 5\n3 start\n4 drain 1", &expect![[]]);
    check("t telemetry always", "0 start\n1 t up", &expect![[]]);
}

#[test]
fn an_exit_that_overtakes_its_spawned_ends_the_run() {
    check("app user never", "0 start\n1 app code=0\n2 app up", &expect![[]]);
}
