//! How a deployment stops: in order, within its time, whoever asks.

use enclave_protocol::control::Phase;
use nix::sys::signal::Signal;
use serde_json::json;

use crate::scene::{Scene, deployment, deployment_with, idle, image, script, with};

#[test]
fn a_plugin_that_ignores_term_is_killed_after_its_grace() {
    let mut enclave = Scene::with_app().start();
    let app = with(
        script("app", "trap '' TERM; echo ready; while :; do sleep 1; done"),
        json!({"terminationGracePeriodSeconds": 1}),
    );
    enclave.run(&deployment(json!([app])));
    enclave.line("app", "ready");
    enclave.drain(60);
    let end = enclave.finish();
    let (told, killed, gone) = (end.at("app", "Stopping"), end.at("app", "Killed"), end.at("app", "Stopped"));
    assert!(told < killed && killed < gone, "{:#?}", end.events);
    let waited = end.events[killed].time.0 - end.events[told].time.0;
    assert!((900_000_000..20_000_000_000).contains(&waited), "{waited}");
    assert_eq!(end.final_state("app")["signal"], 9);
    assert_eq!(end.final_state("app")["oom"], false);
    assert_eq!(end.exit.code(), Some(0), "a drain that ends in order is no failure");
}

#[test]
fn a_plugin_that_answers_term_ends_with_its_own_code() {
    let mut enclave = Scene::with_app().start();
    let app = script("app", "trap 'echo told; exit 7' TERM; echo ready; while :; do sleep 1; done");
    enclave.run(&deployment(json!([app])));
    enclave.line("app", "ready");
    enclave.drain(60);
    enclave.line("app", "told");
    let end = enclave.finish();
    assert!(!end.events.iter().any(|event| event.reason == "Killed"), "{:#?}", end.events);
    assert_eq!(end.final_state("app")["code"], 7);
    assert_eq!(end.final_state("app")["phase"], "Stopped");
}

#[test]
fn a_drain_stops_users_then_services_then_telemetry() {
    let scene = Scene::new();
    for plugin in ["telemetry", "cache", "web", "worker"] {
        scene.busybox(plugin, json!({}));
    }
    let mut enclave = scene.start();
    let service = |name| json!({"image": image(name), "command": ["/bin/sleep", "1000"]});
    // The user plugin takes its time, so that an order by chance would show.
    let slow = script("web", "trap 'usleep 300000; exit 0' TERM; echo ready; while :; do usleep 50000; done");
    let users = json!([slow, with(idle("worker"), json!({"dependsOn": ["web"]}))]);
    let plugins = json!({"plugins": {"telemetry": service("telemetry"), "cache": service("cache")}});
    enclave.run(&deployment_with(users, plugins));
    enclave.line("web", "ready");
    enclave.started("worker");
    enclave.drain(60);
    let end = enclave.finish();
    let order = ["worker", "web", "cache", "telemetry"];
    for pair in order.windows(2) {
        assert!(end.at(pair[0], "Stopped") < end.at(pair[1], "Stopping"), "{pair:?}: {:#?}", end.events);
    }
    assert_eq!(end.exit.code(), Some(0));
    for plugin in order {
        assert_eq!(end.final_state(plugin)["phase"], "Stopped");
    }
}

#[test]
fn a_drain_of_no_grace_kills_everything_at_once() {
    let mut enclave = Scene::with_app().start();
    enclave.run(&deployment(json!([script("app", "trap '' TERM; echo ready; while :; do sleep 1; done")])));
    enclave.line("app", "ready");
    enclave.drain(0);
    let end = enclave.finish();
    assert_eq!(end.exit.code(), Some(0));
    assert!(end.events.iter().any(|event| event.reason == "Draining"));
}

#[test]
fn sigterm_to_the_supervisor_drains() {
    let mut enclave = Scene::with_app().start();
    enclave.run(&deployment(json!([script(
        "app",
        "trap 'exit 5' TERM; echo ready; while :; do usleep 50000; done"
    )])));
    enclave.line("app", "ready");
    enclave.signal(Signal::SIGTERM);
    let end = enclave.finish();
    assert!(end.events.iter().any(|event| event.reason == "Draining"), "{:#?}", end.events);
    assert_eq!(end.final_state("app")["code"], 5);
    assert_eq!(end.exit.code(), Some(0));
}

#[test]
fn sigterm_before_a_manifest_ends_the_supervisor() {
    let mut enclave = Scene::with_app().start();
    assert_eq!(enclave.client.status().phase, Phase::AwaitingManifest);
    enclave.signal(Signal::SIGTERM);
    assert_eq!(enclave.end().code(), Some(0));
}

#[test]
fn a_host_that_never_acknowledges_does_not_hold_up_the_end() {
    let mut enclave = Scene::with_app().start();
    enclave.run(&deployment(json!([with(script("app", "exit 0"), json!({"restartPolicy": "Never"}))])));
    assert_eq!(enclave.end().code(), Some(0));
    let said = crate::enclave::records(&enclave.process);
    assert!(
        said.iter().any(|record| record["message"].as_str().unwrap().contains("has not acknowledged")),
        "{said:#?}"
    );
}
