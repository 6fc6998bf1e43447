//! Log records that leave by the telemetry plugin: whose they are, until when they are kept, and what the
//! host sees of them. A shell stands for the telemetry plugin, the test for its reader.

use enclave_protocol::control::{LogRecord, Phase, PluginPhase};
use serde_json::{Value, json};

use crate::{
    client::{Answer, Feed, connect, exchange},
    enclave::{Enclave, is, is_line},
    patience::eventually,
    scene::{Scene, deployment_with, idle, image, script, with},
};

const HEAD: &str = "HTTP/1.1\r\nhost: supervisor\r\n";

/// A deployment whose telemetry plugin is a shell that runs `text`.
fn exported(text: &str, users: Value, more: Value) -> (Scene, Value) {
    let scene = Scene::with_app();
    for plugin in ["telemetry", "viewer", "other"] {
        scene.busybox(plugin, json!({}));
    }
    let telemetry = json!({
        "command": ["/bin/sh", "-c", text],
        "env": [{"name": "EXPORTER_URL", "value": "https://collector.example:4318"}],
        "outboundConnections": [{"fqdn": "collector.example", "port": 4318}],
        // The socket comes with the records, whatever else is granted.
        "supervisorAccess": [],
    });
    let viewer =
        json!({"image": image("viewer"), "command": ["/bin/sleep", "1000"], "supervisorAccess": ["logs"]});
    let plugins = json!({"telemetry": telemetry, "viewer": viewer});
    (scene, deployment_with(users, with(json!({"plugins": plugins}), more)))
}

fn ask(enclave: &Enclave, plugin: &str, method: &str, path: &str, body: &str) -> Answer {
    let socket = enclave.inside(plugin, "/run/enclave/supervisor.sock");
    exchange(connect(&socket), &format!("{method} {path} {HEAD}connection: close\r\n"), body.as_bytes())
}

/// What a plugin reads from the first record on, followed.
fn read(enclave: &Enclave, plugin: &str) -> Feed<LogRecord> {
    let socket = enclave.inside(plugin, "/run/enclave/supervisor.sock");
    Feed::open(connect(&socket), &format!("GET /v1/logs?follow=true {HEAD}"))
}

fn acknowledge(enclave: &Enclave, seq: u64) {
    let body = json!({"bootId": enclave.client.status().boot_id, "logSeq": seq}).to_string();
    assert_eq!(ask(enclave, "telemetry", "POST", "/v1/ack", &body).status, 204);
}

fn sources(records: &[LogRecord]) -> Vec<&str> {
    let mut sources: Vec<_> = records.iter().map(|record| record.plugin.as_str()).collect();
    sources.sort_unstable();
    sources.dedup();
    sources
}

#[test]
fn each_record_has_one_reader_and_the_hosts_sequence_has_no_hole_for_the_others() {
    let secret = with(script("app", "echo a secret; exec sleep 1000"), json!({"logs": "otlp"}));
    let silent = with(script("other", "echo for all; exec sleep 1000"), json!({}));
    let logs = json!({"logs": {"supervisor": "otlp"}});
    let (scene, manifest) = exported("exec sleep 1000", json!([secret, silent]), logs);
    let mut enclave = scene.start();
    let accepted = enclave.run(&manifest);
    assert!(accepted.conditions.iter().any(|condition| condition.kind == "LogsByOtlp"), "{accepted:?}");
    enclave.started("app");

    let sent = read(&enclave, "telemetry").up_to("the line", |record| is_line(record, "app", "a secret"));
    assert_eq!(sources(&sent), ["app", "supervisor"]);
    let says = |words: &str| sent.iter().any(|record| record.text.as_ref().unwrap().contains(words));
    assert!(says("waiting for a manifest") && says("manifest accepted"), "those of the boot too: {sent:#?}");
    let seqs: Vec<u64> = sent.iter().map(|record| record.seq).collect();
    assert_eq!(seqs, (1..=seqs.len() as u64).collect::<Vec<_>>());

    let host = enclave.logs().up_to("the line", |record| is_line(record, "other", "for all"));
    assert_eq!((sources(&host), host.last().unwrap().seq), (vec!["other"], host.len() as u64));
    assert!(host.iter().all(|record| record.dropped == 0));
    let viewed = read(&enclave, "viewer").up_to("the line", |record| is_line(record, "other", "for all"));
    assert_eq!(viewed, host, "a plugin with the grant reads what the host does");

    // Neither reader's word counts for the other.
    let all = json!({"bootId": accepted.boot_id, "logSeq": u64::MAX});
    assert_eq!(enclave.client.call("POST", "/v1/ack", &all).status, 204);
    assert_eq!(read(&enclave, "telemetry").next().unwrap().seq, 1);
    assert_eq!(ask(&enclave, "viewer", "POST", "/v1/ack", &all.to_string()).status, 403);
    acknowledge(&enclave, seqs.len() as u64);
    assert!(read(&enclave, "telemetry").next().is_none_or(|record| record.seq > seqs.len() as u64));
    let stale = json!({"bootId": "another", "logSeq": 1}).to_string();
    let answer = ask(&enclave, "telemetry", "POST", "/v1/ack", &stale);
    assert_eq!((answer.status, answer.problem().kind.as_str()), (409, "BootIdMismatch"));
    let long = format!("{{\"bootId\": \"{}\", \"logSeq\": 1}}", "x".repeat(20_000));
    assert_eq!(ask(&enclave, "telemetry", "POST", "/v1/ack", &long).status, 413);
    let answer = ask(&enclave, "telemetry", "GET", "/v1/metrics", "");
    assert_eq!((answer.status, answer.problem().kind.as_str()), (403, "NotGranted"));
    let head = ask(&enclave, "telemetry", "GET", "/v1/logs?after=18446744073709551615", "").head;
    assert!(head.contains(&format!("enclave-boot-id: {}", accepted.boot_id)), "{head}");
}

#[test]
fn the_telemetry_plugins_feed_ends_after_the_last_word_and_what_it_leaves_is_counted_for_the_host() {
    let app = "trap 'seq 1 1000; echo last word; exit 0' TERM; echo ready; while :; do usleep 20000; done";
    let app = with(script("app", app), json!({"logs": "otlp"}));
    // It ends when the test has seen all that there is to be seen.
    let text = "mkfifo /tmp/gate; exec 3<>/tmp/gate; trap 'read go <&3; exit 0' TERM; while :; do usleep 20000; done";
    let (scene, manifest) =
        exported(text, json!([app, idle("other")]), json!({"logs": {"supervisor": "otlp"}}));
    let mut enclave = scene.start();
    enclave.run(&manifest);
    enclave.started("telemetry");
    let mut feed = read(&enclave, "telemetry");
    feed.until("the first line", |record| is_line(record, "app", "ready"));
    enclave.drain(20);
    let rest: Vec<LogRecord> = feed.by_ref().collect();
    assert_eq!(enclave.plugin("telemetry").phase, PluginPhase::Stopping, "it still runs");
    let lines: Vec<&str> =
        rest.iter().filter(|r| r.plugin == "app").map(|r| r.text.as_deref().unwrap()).collect();
    assert_eq!((lines.len(), *lines.last().unwrap()), (1001, "last word"));
    let last = rest.iter().rfind(|record| record.plugin == "app").unwrap().seq;
    acknowledge(&enclave, last - 5);
    // The supervisor's records stand between the app's.
    let apps = rest.iter().filter(|record| record.plugin == "app" && record.seq > last - 5).count();
    std::fs::write(enclave.inside("telemetry", "/tmp/gate"), b"go\n").unwrap();

    let event = enclave.events().until("the count", |event| event.reason == "LogRecordsDropped");
    let left: u64 = event.message.split(' ').next().unwrap().parse().unwrap();
    // The five, and what the supervisor had to say since.
    assert!(left >= 5 && !event.message.contains("word"), "{event:?}");
    let app = [("plugin", "app")];
    enclave.client.until_is("enclave_plugin_log_dropped_total", &app, apps as f64);
    assert_eq!(
        enclave.client.logs(0, false).filter(|r| r.plugin == "app" || r.plugin == "supervisor").count(),
        0
    );
    let end = enclave.finish();
    assert_eq!(end.exit.code(), Some(0));
    // Standard error is the machine's console, and has them all the same.
    assert_eq!(end.final_state("app")["code"], 0);
}

#[test]
fn a_reader_that_comes_again_finds_everything_that_it_had_not_acknowledged() {
    let app = with(script("app", "seq 1 100; exec sleep 1000"), json!({"logs": "otlp"}));
    let (scene, manifest) =
        exported("exec sleep 1000", json!([app, idle("other")]), json!({"logs": {"host": "none"}}));
    let mut enclave = scene.start();
    enclave.run(&manifest);
    enclave.started("app");
    let first = read(&enclave, "telemetry").up_to("the last line", |record| is_line(record, "app", "100"));
    acknowledge(&enclave, first[39].seq);
    let again = read(&enclave, "telemetry").up_to("the last line", |record| is_line(record, "app", "100"));
    assert_eq!(again, first[40..]);
    assert_eq!((sources(&first), first.len()), (vec!["app"], 100), "the supervisor's go nowhere");
    assert_eq!(enclave.client.logs(0, false).count(), 0);
    enclave.drain(1);
    eventually("the end", || (enclave.client.status().phase != Phase::Running).then_some(()));
    enclave.events().until("the end of app", |event| is(event, "app", "Stopped") || event.reason == "End");
}
