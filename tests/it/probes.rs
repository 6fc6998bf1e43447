//! Probes, notices and hooks as plugins meet them, and what status and events say of them.

use std::fs;

use enclave_protocol::control::{PluginPhase, ProbeStatus};
use serde_json::{Value, json};

use crate::{
    client::exchange,
    enclave::{Enclave, is},
    host::ingress,
    patience::eventually,
    scene::{Scene, deployment, idle, product, script, with},
    witness::count,
};

/// A probe that is asked every second and counts at once.
fn probe(handler: Value) -> Value {
    with(handler, json!({"periodSeconds": 1, "failureThreshold": 1}))
}

fn exec(text: &str) -> Value {
    json!({"exec": {"command": ["/bin/sh", "-c", text]}})
}

/// Succeeds while there is such a file, and else says what it misses.
fn exists(file: &str) -> Value {
    exec(&format!("[ -e {file} ] || {{ echo there is no {file}; exit 1; }}"))
}

/// Makes a file of the plugin's present run.
fn touch(enclave: &Enclave, plugin: &str, path: &str) {
    fs::write(enclave.inside(plugin, path), "").unwrap();
}

/// Waits until the plugin's only probe has found what fits.
fn until_probed(enclave: &Enclave, plugin: &str, fits: impl Fn(&ProbeStatus) -> bool) -> ProbeStatus {
    eventually("an answer of the probe", || {
        let probe = enclave.plugin(plugin).probes.into_iter().next()?;
        fits(&probe).then_some(probe)
    })
}

/// A scene whose plugin called app has hello beside busybox.
fn with_hello() -> Scene {
    let scene = Scene::with_app();
    fs::copy(product("hello"), scene.root("app").join("hello")).unwrap();
    scene
}

#[test]
fn an_exec_probe_makes_a_plugin_ready_and_not_ready_and_its_words_are_shown() {
    let mut enclave = Scene::with_app().start();
    enclave
        .run(&deployment(json!([with(idle("app"), json!({"readinessProbe": probe(exists("/tmp/ready"))}))])));
    let pid = enclave.started("app");
    let failing = until_probed(&enclave, "app", |probe| probe.passing == Some(false));
    assert_eq!(failing.message.as_deref(), Some("there is no /tmp/ready"));
    let status = enclave.client.status();
    let plugin = &status.plugins[0];
    assert_eq!((plugin.phase, plugin.ready, status.ready), (PluginPhase::Running, false, false));
    assert_eq!(plugin.reason.as_deref(), Some("ReadinessProbeFailed"));

    touch(&enclave, "app", "/tmp/ready");
    enclave.events().until("readiness", |event| is(event, "app", "Ready"));
    let status = enclave.client.status();
    let plugin = &status.plugins[0];
    assert_eq!((plugin.ready, plugin.reason.as_deref(), status.ready), (true, None, true));
    let passing = &plugin.probes[0];
    assert_eq!((passing.passing, passing.failures, passing.message.as_deref()), (Some(true), 0, None));

    fs::remove_file(enclave.inside("app", "/tmp/ready")).unwrap();
    let mut events = enclave.events();
    events.until("readiness", |event| is(event, "app", "Ready"));
    let lost = events.until("its loss", |event| is(event, "app", "ReadinessProbeFailed"));
    assert_eq!(lost.message, "readiness probe failed 1 time in a row: not ready: there is no /tmp/ready");
    let plugin = enclave.plugin("app");
    assert_eq!((plugin.ready, plugin.pid, plugin.restarts), (false, Some(pid), 0));
    enclave.client.until_sampled("enclave_plugin_probe_failures", &[("plugin", "app")], |value| value >= 1.0);
}

#[test]
fn an_http_probe_reads_the_status_and_gives_up_on_a_server_that_hangs() {
    let mut enclave = with_hello().start();
    let handler = json!({"httpGet": {"path": "/files?path=/tmp/ready", "port": 8001}});
    let app = json!({"command": ["/hello"], "ports": [{"containerPort": 8001, "hostPort": 4455}],
                     "readinessProbe": probe(handler)});
    enclave.run(&deployment(json!([with(idle("app"), app)])));
    enclave.line("app", "hello: pid");
    let said = |part: &str| {
        until_probed(&enclave, "app", |probe| {
            probe.message.as_deref().is_some_and(|message| message.contains(part))
        })
    };
    said("404");
    touch(&enclave, "app", "/tmp/ready");
    enclave.events().until("readiness", |event| is(event, "app", "Ready"));
    let stream = ingress(&enclave.client, "app", 8001).unwrap();
    exchange(stream, "POST /hang HTTP/1.1\r\nhost: h\r\nconnection: close\r\n", b"");
    said("no answer within 1s");
    assert!(!enclave.plugin("app").ready);
}

#[test]
fn a_startup_probe_holds_back_liveness_and_dependants_until_a_port_is_open() {
    let scene = with_hello();
    scene.busybox("after", json!({}));
    let mut enclave = scene.start();
    let startup =
        with(json!({"tcpSocket": {"port": 8001}}), json!({"periodSeconds": 1, "failureThreshold": 600}));
    let app = with(
        script("app", "until [ -e /tmp/up ]; do usleep 20000; done; exec /hello"),
        json!({"startupProbe": startup, "livenessProbe": probe(exec("echo > /tmp/asked"))}),
    );
    enclave.run(&deployment(json!([app, with(idle("after"), json!({"dependsOn": ["app"]}))])));
    enclave.started("app");
    let failing = until_probed(&enclave, "app", |probe| probe.failures >= 2);
    assert!(failing.message.unwrap().contains("refused"));
    let after = enclave.plugin("after");
    assert_eq!((after.phase, after.reason.as_deref()), (PluginPhase::Waiting, Some("StartOrder")));
    assert_eq!(enclave.plugin("app").reason.as_deref(), Some("StartupProbePending"));
    assert!(!enclave.inside("app", "/tmp/asked").exists(), "liveness is not asked yet");
    touch(&enclave, "app", "/tmp/up");
    let seen = enclave.events().up_to("the dependant", |event| is(event, "after", "Started"));
    assert!(seen.iter().any(|event| is(event, "app", "Ready")), "{seen:#?}");
    eventually("liveness to be asked", || enclave.inside("app", "/tmp/asked").exists().then_some(()));
    assert_eq!(enclave.plugin("app").restarts, 0);
}

#[test]
fn a_startup_probe_that_never_succeeds_ends_the_run() {
    let mut enclave = Scene::with_app().start();
    let app = with(
        idle("app"),
        json!({"startupProbe": probe(exec("echo no, thanks; exit 3")), "restartPolicy": "Never"}),
    );
    enclave.run(&deployment(json!([app])));
    let end = enclave.finish();
    assert!(end.at("app", "StartupProbeFailed") < end.at("app", "Failed"));
    assert_eq!(end.exit.code(), Some(4));
}

#[test]
fn a_failed_liveness_probe_ends_the_run_with_its_own_grace_and_the_next_one_lives() {
    let mut enclave = Scene::with_app().start();
    let liveness = with(
        probe(exec("[ ! -e /tmp/dead ] || { echo it is dead; exit 1; }")),
        json!({"terminationGracePeriodSeconds": 1}),
    );
    // It does not answer TERM, and its own grace is long.
    let app = with(
        script("app", "trap '' TERM; echo ready; while :; do sleep 1; done"),
        json!({"livenessProbe": liveness, "terminationGracePeriodSeconds": 1000}),
    );
    enclave.run(&deployment(json!([app])));
    enclave.line("app", "ready");
    let first = enclave.plugin("app").pid;
    touch(&enclave, "app", "/tmp/dead");
    let seen = enclave
        .events()
        .up_to("the restart", |event| is(event, "app", "Started") && event.message.contains("restart 1"));
    let reasons: Vec<_> = seen.iter().map(|event| event.reason.as_str()).collect();
    let expected = ["Started", "LivenessProbeFailed", "Stopping", "Killed", "Exited", "BackOff", "Started"];
    assert_eq!(reasons, expected, "{seen:#?}");
    assert_eq!(seen[1].message, "liveness probe failed 1 time in a row: the run is ended: it is dead");
    until_probed(&enclave, "app", |probe| probe.passing == Some(true));
    let plugin = enclave.plugin("app");
    assert_eq!((plugin.phase, plugin.restarts), (PluginPhase::Running, 1));
    assert_ne!(plugin.pid, first);
}

#[test]
fn a_probe_that_hangs_is_ended_with_all_it_started_and_never_piles_up() {
    let mut enclave = Scene::with_app().start();
    let marker = format!("1000.{}", std::process::id());
    let hangs = exec(&format!("trap '' TERM; sleep {marker} & sleep {marker}"));
    enclave.run(&deployment(json!([with(idle("app"), json!({"readinessProbe": probe(hangs)}))])));
    enclave.started("app");
    let words = ["sleep", marker.as_str()];
    for failures in 1..=3 {
        let failing = until_probed(&enclave, "app", |probe| probe.failures >= failures);
        assert_eq!(failing.message.as_deref(), Some("no end within 1 s"));
        let there = count(&words);
        assert!(there <= 2, "{there} processes after {failures} failures");
    }
    let plugin = enclave.plugin("app");
    assert_eq!((plugin.restarts, plugin.ready), (0, false));
    enclave.drain(2);
    assert_eq!(enclave.finish().exit.code(), Some(0));
    assert_eq!(count(&words), 0);
}

#[test]
fn a_probes_output_is_read_and_bounded_however_much_it_is() {
    let mut enclave = Scene::with_app().start();
    let much = exec("yes much to say | head -c 20000000; exit 1");
    let endless = exec("exec yes without end");
    let slow = |handler| with(probe(handler), json!({"timeoutSeconds": 20, "failureThreshold": 1000}));
    let app = json!({"readinessProbe": slow(much), "livenessProbe": with(probe(endless), json!({"failureThreshold": 1000}))});
    enclave.run(&deployment(json!([with(idle("app"), app)])));
    enclave.started("app");
    let both = eventually("both to fail", || {
        let probes = enclave.plugin("app").probes;
        probes.iter().all(|probe| probe.failures >= 2).then_some(probes)
    });
    let message = |at: usize| both[at].message.clone().unwrap_or_default();
    assert_eq!(message(0), "no end within 1 s");
    assert!(message(1).starts_with("much to say much to say") && message(1).len() <= 256, "{both:#?}");
    assert_eq!(enclave.plugin("app").restarts, 0);
}

#[test]
fn a_probe_whose_command_does_not_exist_fails() {
    let mut enclave = Scene::with_app().start();
    let none = json!({"exec": {"command": ["/none"]}});
    enclave.run(&deployment(json!([with(idle("app"), json!({"readinessProbe": probe(none)}))])));
    enclave.started("app");
    until_probed(&enclave, "app", |probe| probe.passing == Some(false));
}

#[test]
fn a_plugin_that_is_to_say_so_is_ready_when_it_does() {
    let scene = with_hello();
    scene.busybox("after", json!({}));
    let mut enclave = scene.start();
    let app = with(
        script("app", "until [ -e /tmp/up ]; do usleep 20000; done; exec /hello"),
        json!({"notifyReady": true}),
    );
    enclave.run(&deployment(json!([app, with(idle("after"), json!({"dependsOn": ["app"]}))])));
    enclave.started("app");
    let plugin = enclave.plugin("app");
    assert_eq!((plugin.ready, plugin.reason.as_deref()), (false, Some("NotifyPending")));
    assert_eq!(enclave.plugin("after").phase, PluginPhase::Waiting);
    touch(&enclave, "app", "/tmp/up");
    let seen = enclave.events().up_to("the dependant", |event| is(event, "after", "Started"));
    assert!(seen.iter().any(|event| is(event, "app", "Ready")), "{seen:#?}");
    assert!(enclave.plugin("app").ready);
    // Only who is to say so has the socket.
    assert!(!enclave.inside("after", "/run/enclave/notify.sock").exists());
}

#[test]
fn a_pre_stop_hook_ends_before_term_comes_and_its_time_is_the_plugins() {
    let mut enclave = Scene::with_app().start();
    let app = with(
        script("app", "trap 'cat /tmp/hook; exit 0' TERM; echo ready; while :; do usleep 20000; done"),
        json!({"lifecycle": {"preStop": exec("sleep 1; echo the hook has ended > /tmp/hook")},
               "terminationGracePeriodSeconds": 60}),
    );
    enclave.run(&deployment(json!([app])));
    enclave.line("app", "ready");
    enclave.drain(60);
    enclave.line("app", "the hook has ended");
    let end = enclave.finish();
    let (hook, told, gone) = (end.at("app", "PreStop"), end.at("app", "Stopping"), end.at("app", "Stopped"));
    assert!(hook < told && told < gone, "{:#?}", end.events);
    let seconds = |at: usize| {
        let message = &end.events[at].message;
        let number = message.rsplit(' ').next().unwrap().trim_end_matches('s');
        number.parse::<f64>().unwrap_or_else(|error| panic!("{error}: {message}"))
    };
    assert!(seconds(told) <= seconds(hook) - 1.0, "{:#?}", end.events);
    assert_eq!(end.final_state("app")["code"], 0);
}

#[test]
fn a_pre_stop_hook_that_hangs_has_the_grace_and_no_more() {
    let mut enclave = Scene::with_app().start();
    let marker = format!("1001.{}", std::process::id());
    let app = with(
        script("app", "trap 'echo told; exit 0' TERM; echo ready; while :; do usleep 20000; done"),
        json!({"lifecycle": {"preStop": exec(&format!("exec sleep {marker}"))},
               "terminationGracePeriodSeconds": 1}),
    );
    enclave.run(&deployment(json!([app])));
    enclave.line("app", "ready");
    enclave.drain(60);
    enclave.line("app", "told");
    let end = enclave.finish();
    assert!(end.at("app", "PreStop") < end.at("app", "Stopping"));
    assert_eq!(end.final_state("app")["code"], 0);
    assert_eq!(count(&["sleep", &marker]), 0);
}

#[test]
fn what_runs_once_comes_before_those_that_depend_on_it() {
    let scene = Scene::new();
    for plugin in ["setup", "app"] {
        scene.busybox(plugin, json!({}));
    }
    let mut enclave = scene.start();
    let setup = with(
        script("setup", "until [ -e /tmp/go ]; do usleep 20000; done"),
        json!({"restartPolicy": "Never"}),
    );
    enclave.run(&deployment(json!([with(idle("app"), json!({"dependsOn": ["setup"]})), setup])));
    enclave.started("setup");
    let app = enclave.plugin("app");
    assert_eq!((app.phase, app.reason.as_deref()), (PluginPhase::Waiting, Some("StartOrder")));
    touch(&enclave, "setup", "/tmp/go");
    let seen = enclave.events().up_to("the dependant", |event| is(event, "app", "Started"));
    assert!(seen.iter().any(|event| is(event, "setup", "Completed")), "{seen:#?}");
    assert!(enclave.client.status().ready);
}

#[test]
fn what_runs_once_and_fails_fails_those_that_depend_on_it() {
    let scene = Scene::new();
    for plugin in ["setup", "app"] {
        scene.busybox(plugin, json!({}));
    }
    let mut enclave = scene.start();
    let setup = with(script("setup", "exit 9"), json!({"restartPolicy": "Never"}));
    enclave.run(&deployment(json!([with(idle("app"), json!({"dependsOn": ["setup"]})), setup])));
    let end = enclave.finish();
    assert!(end.at("setup", "Failed") < end.at("app", "DependencyFailed"));
    assert!(!end.events.iter().any(|event| is(event, "app", "Started")));
    assert_eq!((end.final_state("setup")["code"].as_i64(), end.exit.code()), (Some(9), Some(4)));
}
