//! What runs and how it is kept running: command, environment, restart, probes, grace.

use expect_test::expect;

use enclave_protocol::manifest::{Handler, Probes};

use crate::{check, plugin, with_plugin};

#[test]
fn an_empty_command_means_the_images_own() {
    let with = plugin("command: [a, '']\nargs: []\nworkingDir: /srv//app/");
    assert_eq!(with.command.unwrap(), ["a", ""]);
    assert_eq!(with.args, None);
    assert_eq!(with.working_dir.as_deref(), Some("/srv/app"));
    assert_eq!(plugin("command: []").command, None);
    check(
        &with_plugin("workingDir: srv"),
        expect![[r#"
        8:19: spec.userPlugins[0].workingDir: "srv" is no absolute path
    "#]],
    );
    check(
        &with_plugin("workingDir: /srv/.."),
        expect![[r#"
        8:19: spec.userPlugins[0].workingDir: "/srv/.." must not hold ".."
    "#]],
    );
}

#[test]
fn environment_names_are_kubernetes_names_and_set_once() {
    check(
        &with_plugin(
            "env:\n- {name: A, value: x}\n- {name: A, value: y}\n- {name: 1A}\n- {name: \"A=B\"}\n- {value: x}\n- {name: B, valueFrom: {}}",
        ),
        expect![[r#"
            10:16: spec.userPlugins[0].env[1].name: the variable A is already set at spec.userPlugins[0].env[0].name
            11:16: spec.userPlugins[0].env[2].name: "1A" is no name of an environment variable: letters, digits, '_', '-' and '.', not beginning with a digit
            12:16: spec.userPlugins[0].env[3].name: "A=B" is no name of an environment variable: letters, digits, '_', '-' and '.', not beginning with a digit
            13:9: spec.userPlugins[0].env[4]: the field name is required
            14:19: spec.userPlugins[0].env[5].valueFrom: unknown field "valueFrom"
        "#]],
    );
}

#[test]
fn a_string_that_no_process_can_be_given_is_refused() {
    let long = "x".repeat(131_070);
    assert_eq!(plugin(&format!("env: [{{name: A, value: {}}}]\nargs: [{long}]", &long[2..])).env.len(), 1);
    check(
        &with_plugin(&format!("env: [{{name: A, value: {long}}}]\nargs: [{long}xx]")),
        expect![[r#"
        8:13: spec.userPlugins[0].env[0]: longer than a process can be given: 131071 bytes
        9:14: spec.userPlugins[0].args[0]: longer than a process can be given: 131071 bytes
    "#]],
    );
}

#[test]
fn restart_has_the_defaults_of_the_contract() {
    expect![[r#"
        Restart {
            policy: Always,
            delay_initial: 1s,
            factor_thousandths: 2000,
            delay_max: 60s,
            reset_after: 600s,
            restarts_max: None,
            jitter_thousandths: 100,
        }
    "#]]
    .assert_debug_eq(&plugin("").restart);
    expect![[r#"
        Restart {
            policy: OnFailure,
            delay_initial: 500ms,
            factor_thousandths: 1500,
            delay_max: 90s,
            reset_after: 3600s,
            restarts_max: Some(
                3,
            ),
            jitter_thousandths: 0,
        }
    "#]].assert_debug_eq(
        &plugin("restartPolicy: OnFailure\nrestart: {initialDelay: 500ms, factor: 1.5, maxDelay: 1m30s, resetAfter: 1h, maxRestarts: 3, jitter: 0}").restart,
    );
    assert_eq!(plugin("restart: {maxRestarts: unlimited}").restart.restarts_max, None);
}

#[test]
fn restart_values_have_ranges() {
    check(
        &with_plugin(
            "restartPolicy: onfailure\nrestart: {initialDelay: 1ms, factor: 0.5, maxDelay: 1, resetAfter: 1w, maxRestarts: -1, jitter: 1.1, max: 2}",
        ),
        expect![[r#"
            8:22: spec.userPlugins[0].restartPolicy: expected one of Always, OnFailure, Never, found "onfailure"; did you mean OnFailure?
            9:31: spec.userPlugins[0].restart.initialDelay: "1ms" is out of range: 10ms to 168h
            9:44: spec.userPlugins[0].restart.factor: 0.5 is out of range: 1 to 100
            9:59: spec.userPlugins[0].restart.maxDelay: expected a duration such as "1s", found the number 1; add the unit
            9:74: spec.userPlugins[0].restart.resetAfter: "1w" is no duration: write for example 500ms, 1s, 1m30s or 1h
            9:91: spec.userPlugins[0].restart.maxRestarts: expected a whole number from 0 to 4294967295, found the number -1
            9:103: spec.userPlugins[0].restart.jitter: 1.1 is out of range: 0 to 1
            9:108: spec.userPlugins[0].restart.max: unknown field "max"
        "#]],
    );
    check(
        &with_plugin("restart: {initialDelay: 2m}"),
        expect![[r#"
        8:16: spec.userPlugins[0].restart: maxDelay is shorter than initialDelay
    "#]],
    );
    check(
        &with_plugin("restart: {initialDelay: 2s, maxDelay: 1s, factor: 2x, jitter: 0.0001}"),
        expect![[r#"
            8:45: spec.userPlugins[0].restart.maxDelay: maxDelay is shorter than initialDelay
            8:57: spec.userPlugins[0].restart.factor: expected a number, found the string "2x"
            8:69: spec.userPlugins[0].restart.jitter: "0.0001" is no decimal number with at most three decimals
        "#]],
    );
    check(
        &with_plugin("restart: {maxDelay: 169h, resetAfter: 0s, maxRestarts: many}"),
        expect![[r#"
        8:27: spec.userPlugins[0].restart.maxDelay: "169h" is out of range: 10ms to 168h
        8:45: spec.userPlugins[0].restart.resetAfter: "0s" is out of range: 1s to 168h
        8:62: spec.userPlugins[0].restart.maxRestarts: expected a whole number, found the string "many"
    "#]],
    );
}

#[test]
fn grace_is_a_number_of_seconds() {
    assert_eq!(plugin("").grace.as_secs(), 30);
    assert_eq!(plugin("terminationGracePeriodSeconds: 0").grace.as_secs(), 0);
    check(
        &with_plugin("terminationGracePeriodSeconds: 3601"),
        expect![[r#"
        8:38: spec.userPlugins[0].terminationGracePeriodSeconds: expected a whole number from 0 to 3600, found the number 3601
    "#]],
    );
}

#[test]
fn probes_have_the_defaults_of_kubernetes() {
    expect![[r#"
        Some(
            Probe {
                handler: HttpGet(
                    HttpGet {
                        path: "/",
                        port: 80,
                        https: false,
                        headers: [],
                    },
                ),
                initial_delay_seconds: 0,
                period_seconds: 10,
                timeout_seconds: 1,
                failure_threshold: 3,
                success_threshold: 1,
                termination_grace_seconds: None,
            },
        )
    "#]]
    .assert_debug_eq(&plugin("livenessProbe: {httpGet: {port: 80}}").probes.liveness);
}

#[test]
fn every_field_of_a_probe_is_read() {
    expect![[r#"
        Probes {
            startup: Some(
                Probe {
                    handler: Exec(
                        [
                            "test",
                            "-e",
                            "/x",
                        ],
                    ),
                    initial_delay_seconds: 0,
                    period_seconds: 10,
                    timeout_seconds: 1,
                    failure_threshold: 3,
                    success_threshold: 1,
                    termination_grace_seconds: Some(
                        7,
                    ),
                },
            ),
            liveness: None,
            readiness: Some(
                Probe {
                    handler: HttpGet(
                        HttpGet {
                            path: "/ready?x=1",
                            port: 443,
                            https: true,
                            headers: [
                                (
                                    "X-A",
                                    "b c",
                                ),
                            ],
                        },
                    ),
                    initial_delay_seconds: 1,
                    period_seconds: 2,
                    timeout_seconds: 3,
                    failure_threshold: 4,
                    success_threshold: 5,
                    termination_grace_seconds: None,
                },
            ),
        }
    "#]]
    .assert_debug_eq(
        &plugin(
            "readinessProbe:
  httpGet: {path: /ready?x=1, port: 443, scheme: HTTPS, httpHeaders: [{name: X-A, value: b c}]}
  initialDelaySeconds: 1
  periodSeconds: 2
  timeoutSeconds: 3
  failureThreshold: 4
  successThreshold: 5
startupProbe: {exec: {command: [test, -e, /x]}, terminationGracePeriodSeconds: 7}
lifecycle: {preStop: {httpGet: {port: 80}}}",
        )
        .probes,
    );
}

#[test]
fn probes_have_the_ranges_of_kubernetes() {
    check(
        &with_plugin(
            "startupProbe: {}
livenessProbe:
  exec: {command: []}
  tcpSocket: {port: http}
  periodSeconds: 0
  timeoutSeconds: 0
  initialDelaySeconds: -1
  failureThreshold: 0
  successThreshold: 2
readinessProbe:
  terminationGracePeriodSeconds: 1
  httpGet: {path: ready, port: 0, scheme: http, host: x, httpHeaders: [{name: 'a b', value: \"x\\ny\"}, {name: b}]}
lifecycle: {preStop: {tcpSocket: {port: 1}}, postStart: {}}",
        ),
        expect![[r#"
            8:21: spec.userPlugins[0].startupProbe: exactly one of exec, httpGet and tcpSocket is required, 0 are given
            10:9: spec.userPlugins[0].livenessProbe: exactly one of exec, httpGet and tcpSocket is required, 2 are given
            10:25: spec.userPlugins[0].livenessProbe.exec.command: a command has at least one word
            12:24: spec.userPlugins[0].livenessProbe.periodSeconds: expected a whole number from 1 to 86400, found the number 0
            13:25: spec.userPlugins[0].livenessProbe.timeoutSeconds: expected a whole number from 1 to 86400, found the number 0
            14:30: spec.userPlugins[0].livenessProbe.initialDelaySeconds: expected a whole number from 0 to 86400, found the number -1
            15:27: spec.userPlugins[0].livenessProbe.failureThreshold: expected a whole number from 1 to 86400, found the number 0
            16:27: spec.userPlugins[0].livenessProbe.successThreshold: must be 1 for startup and liveness probes
            18:40: spec.userPlugins[0].readinessProbe.terminationGracePeriodSeconds: a readiness probe ends nothing: the field belongs to startup and liveness probes
            19:25: spec.userPlugins[0].readinessProbe.httpGet.path: expected an absolute path of visible ASCII characters
            19:38: spec.userPlugins[0].readinessProbe.httpGet.port: expected a whole number from 1 to 65535, found the number 0
            19:49: spec.userPlugins[0].readinessProbe.httpGet.scheme: expected one of HTTP, HTTPS, found "http"; did you mean HTTP?
            19:55: spec.userPlugins[0].readinessProbe.httpGet.host: unknown field "host"
            19:85: spec.userPlugins[0].readinessProbe.httpGet.httpHeaders[0].name: no name of an HTTP header
            19:99: spec.userPlugins[0].readinessProbe.httpGet.httpHeaders[0].value: an HTTP header has no control characters
            19:108: spec.userPlugins[0].readinessProbe.httpGet.httpHeaders[1]: the field value is required
            20:28: spec.userPlugins[0].lifecycle.preStop: exactly one of exec and httpGet is required, 0 are given
            20:29: spec.userPlugins[0].lifecycle.preStop.tcpSocket: unknown field "tcpSocket"
            20:52: spec.userPlugins[0].lifecycle.postStart: unknown field "postStart"
        "#]],
    );
}

#[test]
fn no_number_of_a_probe_goes_beyond_a_day_or_is_written_as_text() {
    check(
        &with_plugin(
            "startupProbe:
  tcpSocket: {port: 80}
  initialDelaySeconds: 86401
  periodSeconds: 86401
  timeoutSeconds: 1.5
  failureThreshold: '3'
  successThreshold: 0
  terminationGracePeriodSeconds: 0
livenessProbe:
  tcpSocket: {port: 80}
  initialDelaySeconds: 99999999999999999999
  periodSeconds: 10s
  timeoutSeconds: -5
  failureThreshold: 4294967296
  successThreshold: -1
  terminationGracePeriodSeconds: 86401
readinessProbe:
  tcpSocket: {port: 80}
  timeoutSeconds: [1]
  periodSeconds: true
  successThreshold: 86401",
        ),
        expect![[r#"
            10:30: spec.userPlugins[0].startupProbe.initialDelaySeconds: expected a whole number from 0 to 86400, found the number 86401
            11:24: spec.userPlugins[0].startupProbe.periodSeconds: expected a whole number from 1 to 86400, found the number 86401
            12:25: spec.userPlugins[0].startupProbe.timeoutSeconds: expected a whole number, found the number 1.5
            13:27: spec.userPlugins[0].startupProbe.failureThreshold: expected a whole number, found the string "3"; remove the quotes
            14:27: spec.userPlugins[0].startupProbe.successThreshold: expected a whole number from 1 to 86400, found the number 0
            15:40: spec.userPlugins[0].startupProbe.terminationGracePeriodSeconds: expected a whole number from 1 to 86400, found the number 0
            18:30: spec.userPlugins[0].livenessProbe.initialDelaySeconds: expected a whole number from 0 to 86400, found the number 99999999999999999999
            19:24: spec.userPlugins[0].livenessProbe.periodSeconds: expected a whole number, found the string "10s"
            20:25: spec.userPlugins[0].livenessProbe.timeoutSeconds: expected a whole number from 1 to 86400, found the number -5
            21:27: spec.userPlugins[0].livenessProbe.failureThreshold: expected a whole number from 1 to 86400, found the number 4294967296
            22:27: spec.userPlugins[0].livenessProbe.successThreshold: expected a whole number from 1 to 86400, found the number -1
            23:40: spec.userPlugins[0].livenessProbe.terminationGracePeriodSeconds: expected a whole number from 1 to 86400, found the number 86401
            26:25: spec.userPlugins[0].readinessProbe.timeoutSeconds: expected a whole number, found a list
            27:24: spec.userPlugins[0].readinessProbe.periodSeconds: expected a whole number, found the boolean true
            28:27: spec.userPlugins[0].readinessProbe.successThreshold: expected a whole number from 1 to 86400, found the number 86401
        "#]],
    );
    let at_the_bounds = plugin(
        "livenessProbe: {tcpSocket: {port: 65535}, periodSeconds: 86400, terminationGracePeriodSeconds: 86400}",
    );
    assert_eq!(at_the_bounds.probes.liveness.unwrap().period_seconds, 86_400);
}

#[test]
fn every_wrong_handler_of_a_probe_is_named_with_its_place() {
    check(
        &with_plugin(
            "startupProbe: 5
livenessProbe: {exec: [cat, /x]}
readinessProbe: {grpc: {port: 80}}",
        ),
        expect![[r#"
            8:21: spec.userPlugins[0].startupProbe: expected a mapping, found the number 5
            9:29: spec.userPlugins[0].livenessProbe.exec: expected a mapping, found a list
            10:23: spec.userPlugins[0].readinessProbe: exactly one of exec, httpGet and tcpSocket is required, 0 are given
            10:24: spec.userPlugins[0].readinessProbe.grpc: unknown field "grpc"
        "#]],
    );
    check(
        &with_plugin(
            "startupProbe: {exec: {}}
livenessProbe: {exec: {command: cat /x}}
readinessProbe: {exec: {command: [cat, 5, \"a\\0b\", {}], timeout: 1}}",
        ),
        expect![[r#"
            8:28: spec.userPlugins[0].startupProbe.exec: the field command is required
            9:39: spec.userPlugins[0].livenessProbe.exec.command: expected a list, found the string "cat /x"
            10:46: spec.userPlugins[0].readinessProbe.exec.command[1]: expected a string, found the number 5; put it in quotes
            10:49: spec.userPlugins[0].readinessProbe.exec.command[2]: a string must not hold a NUL character
            10:57: spec.userPlugins[0].readinessProbe.exec.command[3]: expected a string, found a mapping
            10:62: spec.userPlugins[0].readinessProbe.exec.timeout: unknown field "timeout"
        "#]],
    );
    check(
        &with_plugin(
            "startupProbe: {tcpSocket: {}}
livenessProbe: {tcpSocket: {port: http, host: x}}
readinessProbe: {tcpSocket: 80}",
        ),
        expect![[r#"
            8:33: spec.userPlugins[0].startupProbe.tcpSocket: the field port is required
            9:41: spec.userPlugins[0].livenessProbe.tcpSocket.port: expected a whole number, found the string "http"
            9:47: spec.userPlugins[0].livenessProbe.tcpSocket.host: unknown field "host"
            10:35: spec.userPlugins[0].readinessProbe.tcpSocket: expected a mapping, found the number 80
        "#]],
    );
    check(
        &with_plugin(
            "startupProbe: {httpGet: {path: /}}
livenessProbe: {httpGet: {path: 'http://x/', port: 65536, httpHeaders: {a: b}}}
readinessProbe: {httpGet: {path: '/a b', port: '80', scheme: FTP, httpHeaders: [{value: x}, 5]}}",
        ),
        expect![[r#"
            8:31: spec.userPlugins[0].startupProbe.httpGet: the field port is required
            9:39: spec.userPlugins[0].livenessProbe.httpGet.path: expected an absolute path of visible ASCII characters
            9:58: spec.userPlugins[0].livenessProbe.httpGet.port: expected a whole number from 1 to 65535, found the number 65536
            9:78: spec.userPlugins[0].livenessProbe.httpGet.httpHeaders: expected a list, found a mapping
            10:40: spec.userPlugins[0].readinessProbe.httpGet.path: expected an absolute path of visible ASCII characters
            10:54: spec.userPlugins[0].readinessProbe.httpGet.port: expected a whole number, found the string "80"; remove the quotes
            10:68: spec.userPlugins[0].readinessProbe.httpGet.scheme: expected one of HTTP, HTTPS, found "FTP"
            10:87: spec.userPlugins[0].readinessProbe.httpGet.httpHeaders[0]: the field name is required
            10:99: spec.userPlugins[0].readinessProbe.httpGet.httpHeaders[1]: expected a mapping, found the number 5
        "#]],
    );
    let headers = "{name: A, value: b}, ".repeat(33);
    check(
        &with_plugin(&format!("livenessProbe: {{httpGet: {{port: 1, httpHeaders: [{headers}]}}}}")),
        expect![[r#"
            8:55: spec.userPlugins[0].livenessProbe.httpGet.httpHeaders: 33 items are too many: the limit is 32
        "#]],
    );
}

#[test]
fn a_field_of_a_probe_that_nobody_knows_gets_a_hint_and_null_means_none() {
    check(
        &with_plugin("livenessProbe: {tcpSocket: {port: 1}, periodSecond: 1}\nreadynessProbe: {}"),
        expect![[r#"
            8:45: spec.userPlugins[0].livenessProbe.periodSecond: unknown field "periodSecond"; did you mean periodSeconds?
            9:7: spec.userPlugins[0].readynessProbe: unknown field "readynessProbe"; did you mean readinessProbe?
        "#]],
    );
    let none = plugin("livenessProbe: null\nreadinessProbe:\nlifecycle: {preStop: }");
    assert_eq!(none.probes, Probes::default());
    assert_eq!(none.pre_stop, None);
}

#[test]
fn every_wrong_hook_is_named_with_its_place() {
    check(
        &with_plugin(
            "lifecycle: {preStop: {exec: {command: []}, httpGet: {port: 0}, sleep: {seconds: 1}}, stop: {}}",
        ),
        expect![[r#"
            8:28: spec.userPlugins[0].lifecycle.preStop: exactly one of exec and httpGet is required, 2 are given
            8:45: spec.userPlugins[0].lifecycle.preStop.exec.command: a command has at least one word
            8:70: spec.userPlugins[0].lifecycle.preStop.sleep: unknown field "sleep"
            8:92: spec.userPlugins[0].lifecycle.stop: unknown field "stop"
        "#]],
    );
    check(
        &with_plugin("lifecycle: {preStop: [/stop]}"),
        expect![[r#"
        8:28: spec.userPlugins[0].lifecycle.preStop: expected a mapping, found a list
    "#]],
    );
    check(
        &with_plugin("lifecycle: /stop"),
        expect![[r#"
        8:18: spec.userPlugins[0].lifecycle: expected a mapping, found the string "/stop"
    "#]],
    );
    let handler = plugin("lifecycle: {preStop: {httpGet: {path: /stop, port: 80}}}").pre_stop;
    assert!(matches!(handler, Some(Handler::HttpGet(get)) if get.path == "/stop" && !get.https));
}

#[test]
fn a_plugin_says_itself_that_it_is_ready_only_if_asked_to() {
    assert!(plugin("notifyReady: true").notify_ready);
    assert!(!plugin("notifyReady: false").notify_ready && !plugin("").notify_ready);
    check(
        &with_plugin("notifyReady: 'true'"),
        expect![[r#"
        8:20: spec.userPlugins[0].notifyReady: expected true or false, found the string "true"; remove the quotes
    "#]],
    );
    check(
        &with_plugin("notifyReady: 1"),
        expect![[r#"
        8:20: spec.userPlugins[0].notifyReady: expected true or false, found the number 1
    "#]],
    );
    check(
        &with_plugin("notifyready: true"),
        expect![[r#"
        8:7: spec.userPlugins[0].notifyready: unknown field "notifyready"; did you mean notifyReady?
    "#]],
    );
}
