//! The supervisor's socket inside: mounted by grant alone, and good for what was granted alone.

use enclave_protocol::{control::Status, metrics::Sample};
use serde_json::{Value, json};

use crate::{
    client::{Answer, connect, exchange},
    enclave::Enclave,
    patience::eventually,
    scene::{Scene, deployment_with, idle, image, with},
};

fn ask(enclave: &Enclave, plugin: &str, method: &str, path: &str, headers: &str) -> Answer {
    let socket = enclave.inside(plugin, "/run/enclave/supervisor.sock");
    let head = format!("{method} {path} HTTP/1.1\r\nhost: supervisor\r\nconnection: close\r\n{headers}");
    exchange(connect(&socket), &head, b"")
}

#[test]
fn a_plugin_reads_what_it_was_granted_and_nothing_else() {
    let scene = Scene::new();
    for plugin in ["telemetry", "viewer", "app"] {
        scene.busybox(plugin, json!({}));
    }
    let mut enclave = scene.start();
    let service =
        |name, more: Value| with(json!({"image": image(name), "command": ["/bin/sleep", "1000"]}), more);
    let plugins = json!({"plugins": {
        "telemetry": service("telemetry", json!({})),
        "viewer": service("viewer", json!({"supervisorAccess": ["logs"]})),
    }});
    enclave.run(&deployment_with(json!([idle("app")]), plugins));
    enclave.started("app");

    let sample: Sample = eventually("a sample with the deployment's labels", || {
        let sample: Sample =
            ask(&enclave, "telemetry", "GET", "/v1/metrics", "accept: application/json\r\n").json();
        sample.labels.contains_key("oblv_deployment_name").then_some(sample)
    });
    assert_eq!(sample.labels["oblv_deployment_name"], "test");
    assert_eq!(sample.resource["service.instance.id"], "it-1");
    let status: Status = ask(&enclave, "telemetry", "GET", "/v1/status", "").json();
    assert_eq!(status.deployment.as_deref(), Some("test"));

    assert_eq!(ask(&enclave, "viewer", "GET", "/v1/logs", "").status, 200);
    for (plugin, method, path) in [
        ("telemetry", "GET", "/v1/logs"),
        ("viewer", "GET", "/v1/metrics"),
        ("viewer", "GET", "/v1/status"),
        ("viewer", "GET", "/v1/events"),
        ("telemetry", "POST", "/v1/drain"),
        ("telemetry", "PUT", "/v1/manifest"),
        ("telemetry", "POST", "/v1/ack"),
    ] {
        let answer = ask(&enclave, plugin, method, path, "");
        assert_eq!(
            (answer.status, answer.problem().kind.as_str()),
            (403, "NotGranted"),
            "{plugin} {method} {path}"
        );
    }
    let socket = enclave.inside("app", "/run/enclave/supervisor.sock");
    assert!(!socket.exists(), "a plugin without a grant has no socket");
    assert!(enclave.client.status().ready);
}
