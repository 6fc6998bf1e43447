//! /metrics, the probes and the admin socket.

use std::process::Stdio;

use enclave_host_proxy::Exit;
use enclave_protocol::{
    control::{Condition, LastExit, PluginPhase, ProbeKind, ProbeStatus},
    telemetry::{TelemetryReport, TelemetryStatus},
    timestamp::Timestamp,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::timeout,
};

use crate::{
    enclave::Enclave,
    scene::{PATIENCE, Scene, exchange, get},
};

#[tokio::test]
async fn metrics_are_flat_json_by_default_and_prometheus_text_for_a_scraper() {
    let scene = Scene::new().await;
    let enclave = Enclave::start(scene.dir.path(), "boot-1");
    let running = scene.start(&[]).await;
    running.until_ready_is(200).await;
    let expected = json!({"nitro_enclave_cpu_usage": 0.5, "nitro_enclave_memory_usage": 0.25,
        "MemAvailable": 750.0, "MemTotal": 1000.0, "time": "1970-01-01T00:00:01Z"});
    for accept in ["*/*", "application/json", "text/html,*/*;q=0.8"] {
        let (status, body) = get(running.metrics, "/metrics", accept).await;
        assert_eq!((status, serde_json::from_str::<Value>(&body).unwrap()), (200, expected.clone()));
    }
    let scraper = "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
    let (status, page) = get(running.metrics, "/metrics", scraper).await;
    assert_eq!(status, 200);
    assert!(page.contains("nitro_enclave_cpu_usage{oblv_deployment_name=\"hello\"} 0.5\n"), "{page}");
    assert!(page.contains("enclave_host_enclave_up{oblv_deployment_name=\"hello\"} 1\n"), "{page}");
    assert!(
        page.contains("enclave_host_manifests_accepted_total{oblv_deployment_name=\"hello\"} 1\n"),
        "{page}"
    );
    for label in ["instance=", "job=", "exported_"] {
        assert!(
            !page.contains(&format!("{{{label}")) && !page.contains(&format!(",{label}")),
            "{label}: {page}"
        );
    }
    assert!(page.contains("\nk8s_node_memory_usage_bytes{oblv_deployment_name=\"hello\"} 600\n"), "{page}");
    let mut names: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
    let all = names.len();
    names.dedup();
    assert_eq!(names.len(), all, "every family comes once");

    assert_eq!(get(running.metrics, "/", "*/*").await.0, 404);
    let post = "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    assert_eq!(exchange(running.metrics, post).await.0, 405);
    drop(enclave);
}

#[tokio::test]
async fn without_an_enclave_json_is_503_and_text_says_that_it_is_down() {
    let scene = Scene::new().await;
    let running = scene.start(&[]).await;
    assert_eq!(get(running.metrics, "/metrics", "*/*").await.0, 503);
    let (status, page) = get(running.metrics, "/metrics", "text/plain").await;
    assert_eq!(status, 200);
    assert!(page.lines().any(|line| line == "enclave_host_enclave_up 0"), "{page}");
    assert!(!page.contains("nitro_enclave_cpu_usage"));
    assert_eq!(get(running.health, "/healthz", "*/*").await.0, 200);
    let (status, body) = running.ready().await;
    assert_eq!(status, 503);
    assert!(body.contains("EnclaveNotReached"), "{body}");
    assert_eq!(get(running.health, "/other", "*/*").await.0, 404);
}

#[tokio::test]
async fn a_collector_that_takes_nothing_is_seen_and_makes_nobody_unready() {
    let scene = Scene::new().await;
    let enclave = Enclave::start(scene.dir.path(), "boot-1");
    let running = scene.start(&[]).await;
    assert_eq!(running.until_ready_is(200).await, "ok\n");
    enclave.change_status(|status| {
        let message = "metrics: status 503; nothing has arrived yet".to_owned();
        status.conditions.push(Condition { kind: "TelemetryExportFailing".to_owned(), message });
        let report = TelemetryReport::default();
        status.telemetry = Some(TelemetryStatus { time: Timestamp(0), report });
    });
    let wanted = "ok\napp: ready\n! TelemetryExportFailing: metrics: status 503; nothing has arrived yet\n";
    let seen = async {
        while get(running.health, "/readyz?verbose", "*/*").await != (200, wanted.to_owned()) {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, seen).await.unwrap();
    assert_eq!(get(running.health, "/readyz", "*/*").await, (200, "ok\n".to_owned()));
}

#[tokio::test]
async fn readiness_follows_the_plugins_and_names_the_one_that_is_not_ready_with_its_probe() {
    let scene = Scene::new().await;
    let enclave = Enclave::start(scene.dir.path(), "boot-1");
    let running = scene.start(&[]).await;
    assert_eq!(running.until_ready_is(200).await, "ok\n");

    enclave.change_plugin(|plugin| {
        plugin.ready = false;
        plugin.reason = Some("ReadinessProbeFailed".into());
        let (kind, message) = (ProbeKind::Readiness, Some("HTTP 503".into()));
        plugin.probes = vec![ProbeStatus { kind, passing: Some(false), failures: 3, message }];
    });
    let body = running.until_ready_is(503).await;
    assert_eq!(body, "app: ReadinessProbeFailed: readiness failing (3): HTTP 503\n");
    let (status, body) = get(running.health, "/readyz", "application/json").await;
    assert_eq!(
        (status, serde_json::from_str::<Value>(&body).unwrap()),
        (
            503,
            json!({"ready": false, "reasons": [{"plugin": "app", "reason": "ReadinessProbeFailed",
                "message": "readiness failing (3): HTTP 503"}]})
        )
    );

    enclave.change_plugin(|plugin| {
        plugin.ready = true;
        plugin.reason = None;
        plugin.probes.clear();
    });
    assert_eq!(running.until_ready_is(200).await, "ok\n");
    assert_eq!(get(running.health, "/readyz?verbose", "*/*").await, (200, "ok\napp: ready\n".into()));
    assert_eq!(get(running.health, "/healthz?verbose", "*/*").await, (200, "ok\n".into()));

    enclave.change_plugin(|plugin| {
        plugin.ready = false;
        plugin.phase = PluginPhase::BackingOff;
        plugin.reason = Some("CrashLoopBackOff".into());
        let time = Timestamp(0);
        plugin.last_exit = Some(LastExit { code: Some(3), signal: None, oom: false, error: None, time });
        plugin.next_restart = Some(Timestamp(0));
    });
    assert_eq!(running.until_ready_is(503).await, "app: CrashLoopBackOff, again now: exit 3\n");
    enclave.change_plugin(|plugin| plugin.ready = true);
    running.until_ready_is(200).await;
    enclave.power_off().await;
    assert!(running.until_ready_is(503).await.contains("EnclaveNotAnswering"));
}

/// The program itself, as a person starts it.
#[expect(clippy::disallowed_types, reason = "the test of a command line starts it")]
fn program(scene: &Scene, args: &[&str]) -> std::process::Command {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_enclave-host-proxy"));
    command.args(args).arg("--admin").arg(scene.dir.path().join("admin.sock"));
    command.env_clear().stdin(Stdio::null());
    command
}

async fn output(scene: &Scene, args: &[&str]) -> (i32, String, String) {
    let mut command = program(scene, args);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[tokio::test]
async fn a_person_gets_status_logs_and_a_drain_from_the_command_line() {
    let scene = Scene::new().await;
    let enclave = Enclave::start(scene.dir.path(), "boot-1");
    let mut running = scene.start(&["--instance-id=pod-1"]).await;
    running.until_ready_is(200).await;
    enclave.log("hello there");
    running.line().await;

    let (code, table, _) = output(&scene, &["status"]).await;
    assert_eq!(code, 0);
    assert!(table.starts_with("hello  Running, ready  (pod-1)\ncpu 50.0 %  memory 25.0 %\n"), "{table}");
    assert!(table.contains("NAME  PHASE"), "{table}");
    let with_events = async {
        // They come by their own stream.
        while !output(&scene, &["status", "--events"]).await.1.contains(" ago  app: Started: as pid 2\n") {}
    };
    timeout(PATIENCE, with_events).await.expect("the event is shown");
    let (_, report, _) = output(&scene, &["status", "-o", "json"]).await;
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!((&report["status"]["bootId"], &report["synced"]), (&json!("boot-1"), &json!(true)));
    let (_, logs, _) = output(&scene, &["logs"]).await;
    assert!(logs.contains("\"text\":\"hello there\""), "{logs}");

    let drained = output(&scene, &["drain", "--grace", "7"]);
    let inside = async {
        let inside = enclave.until(|inside| !inside.drains.is_empty()).await;
        enclave.set_plugin(PluginPhase::Stopped, false, None);
        enclave.set_phase(enclave_protocol::control::Phase::Completed);
        inside
    };
    let ((code, progress, error), inside) = tokio::join!(drained, inside);
    assert_eq!((code, error.as_str()), (0, ""));
    assert_eq!(inside.drains[0].grace_seconds, 7);
    assert!(progress.ends_with("Completed: app Stopped\nthe workload completed\n"), "{progress}");
    assert_eq!(running.exit().await, Exit::Ok);
    let (code, _, error) = output(&scene, &["status"]).await;
    assert_eq!(code, 3);
    assert!(error.contains("no proxy answers"), "{error}");
}

#[tokio::test]
async fn a_failed_workload_is_the_exit_code_of_drain_as_well() {
    let scene = Scene::new().await;
    let enclave = Enclave::start(scene.dir.path(), "boot-1");
    let running = scene.start(&[]).await;
    running.until_ready_is(200).await;
    let exit = LastExit { code: Some(3), signal: None, oom: false, error: None, time: Timestamp(0) };
    let inside = async {
        enclave.until(|inside| !inside.drains.is_empty()).await;
        enclave.set_plugin(PluginPhase::Failed, false, Some(exit));
        enclave.set_phase(enclave_protocol::control::Phase::Failed);
    };
    let ((code, ..), ()) = tokio::join!(output(&scene, &["drain"]), inside);
    assert_eq!(code, 4);
}

#[tokio::test]
async fn the_admin_socket_answers_nonsense_with_an_error() {
    let scene = Scene::new().await;
    let _running = scene.start(&[]).await;
    for (request, status) in
        [("GET /x", "404"), ("DELETE /status", "405"), ("GET /drain", "405"), ("POST /drain?grace=x", "400")]
    {
        let mut stream = UnixStream::connect(scene.dir.path().join("admin.sock")).await.unwrap();
        let request = format!("{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).await.unwrap();
        assert!(response.starts_with(&format!("HTTP/1.1 {status}")), "{request}{response}");
    }
}
