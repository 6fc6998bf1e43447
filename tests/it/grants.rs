//! The supervisor's socket inside: mounted by grant alone, and good for what was granted alone.

use enclave_protocol::{control::Status, metrics::Sample, telemetry::TelemetryReport};
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
fn telemetry_alone_reports_its_exports_and_a_dead_collector_is_seen_outside() {
    let scene = Scene::new();
    for plugin in ["telemetry", "viewer", "app"] {
        scene.busybox(plugin, json!({}));
    }
    let mut enclave = scene.start();
    let service =
        |name, more: Value| with(json!({"image": image(name), "command": ["/bin/sleep", "1000"]}), more);
    let plugins = json!({"plugins": {
        "telemetry": service("telemetry", json!({"supervisorAccess": ["metrics"]})),
        "viewer": service("viewer", json!({"supervisorAccess": ["metrics", "status", "logs"]})),
    }});
    enclave.run(&deployment_with(json!([idle("app")]), plugins));
    enclave.started("app");
    let put = |plugin: &str, body: &str| {
        let socket = enclave.inside(plugin, "/run/enclave/supervisor.sock");
        let head = "PUT /v1/telemetry HTTP/1.1\r\nhost: supervisor\r\nconnection: close\r\n";
        exchange(connect(&socket), head, body.as_bytes())
    };
    let mut report = TelemetryReport { export_interval_millis: 1000, ..TelemetryReport::default() };
    report.metrics.queued = 7;
    report.metrics.last_error = Some("connecting to c:4318\u{1b}[2J".to_owned());
    let body = serde_json::to_string(&report).unwrap();
    assert_eq!(put("viewer", &body).status, 403);
    assert_eq!(put("telemetry", &format!("{body}{}", " ".repeat(4096))).status, 413);
    assert_eq!(put("telemetry", "{\"nitro_enclave_cpu_usage\":1}").status, 400);
    assert!(enclave.client.status().telemetry.is_none());
    assert_eq!(put("telemetry", &body).status, 204);

    let status = enclave.client.status();
    let telemetry = status.telemetry.unwrap();
    assert_eq!(telemetry.report.metrics.queued, 7);
    let failing = status.conditions.iter().find(|condition| condition.kind == "TelemetryExportFailing");
    let message = &failing.unwrap().message;
    assert!(message.starts_with("metrics: connecting to c:4318\\u{1b}[2J; nothing has"), "{message}");
    eventually("the report's families in the sample", || {
        let sample: Sample =
            ask(&enclave, "viewer", "GET", "/v1/metrics", "accept: application/json\r\n").json();
        (sample.value("enclave_telemetry_points_queued") == Some(7.0)).then_some(())
    });
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
