//! The control API as the host uses and misuses it.

use enclave_protocol::control::{
    BODY_MAX, CONTROL_PORT, EgressRule, IngressRule, MANIFEST_BODY_MAX, ManifestAccepted, Phase, Plan,
};
use serde_json::json;
use std::io::{Read, Write};

use crate::{
    client::{Client, connect},
    scene::{Scene, deployment, idle, with},
};

#[test]
fn the_first_manifest_is_accepted_with_its_plan_and_the_same_one_again_with_the_same_token() {
    let mut enclave = Scene::with_app().start();
    let app = with(
        idle("app"),
        json!({"ports": [{"containerPort": 8001, "hostPort": 4455}],
               "outboundConnections": [{"fqdn": "API.example.", "port": 443, "tls": true}]}),
    );
    let manifest = deployment(json!([app]));
    let first = enclave.run(&manifest);
    let plan = Plan {
        plugins: vec!["app".into()],
        egress: vec![EgressRule { plugin: "app".into(), fqdn: "api.example".into(), port: 443, tls: true }],
        ingress: vec![IngressRule { host_port: 4455, plugin: "app".into(), container_port: 8001 }],
    };
    assert_eq!(first.plan, plan);
    assert_eq!((first.token.len(), first.digest.len()), (64, 96));
    assert_eq!(first.conditions, []);
    let again = enclave.put(&manifest);
    assert_eq!(again.status, 200, "{}", again.text());
    assert_eq!(again.json::<ManifestAccepted>(), first);
    enclave.started("app");
    let starts = enclave.client.events(0).take(1).count();
    assert_eq!(starts, 1);
    assert_eq!(enclave.client.status().seq, 1, "nothing was started twice");
}

#[test]
fn another_manifest_is_a_conflict_and_changes_nothing() {
    let mut enclave = Scene::with_app().start();
    let manifest = deployment(json!([idle("app")]));
    let accepted = enclave.run(&manifest);
    let pid = enclave.started("app");
    let answer = enclave.put(&deployment(json!([with(idle("app"), json!({"args": ["more"]}))])));
    assert_eq!((answer.status, answer.problem().kind.as_str()), (409, "ManifestConflict"));
    assert!(answer.problem().detail.contains(&accepted.digest));
    assert_eq!(enclave.plugin("app").pid, Some(pid));
    let host_side = with(manifest, json!({"metadata": {"name": "test", "labels": {"a": "b"}}}));
    assert_eq!(enclave.put(&host_side).status, 200, "what the digest leaves out may differ");
}

#[test]
fn every_call_but_status_needs_the_token_and_refusals_are_counted() {
    let mut enclave = Scene::with_app().start();
    enclave.run(&deployment(json!([idle("app")])));
    enclave.started("app");
    let stranger = |token: Option<&str>| Client { token: token.map(str::to_owned), ..enclave.client.clone() };
    let nobody = stranger(None);
    let guesser = stranger(Some(&"0".repeat(64)));
    let near = stranger(enclave.client.token.as_ref().map(|token| &token[1..]));
    let calls = [
        ("GET", "/v1/events"),
        ("GET", "/v1/logs"),
        ("GET", "/v1/metrics"),
        ("POST", "/v1/ack"),
        ("POST", "/v1/drain"),
        ("PUT", "/v1/manifest"),
        ("PUT", "/v1/clock"),
    ];
    // From its first use on the token is needed for a repeated manifest too.
    assert!(enclave.client.sample().is_some());
    let mut refused = 0;
    for client in [&nobody, &guesser, &near] {
        for (method, path) in calls {
            let answer = client.call(method, path, &json!({"graceSeconds": 0}));
            assert_eq!(
                (answer.status, answer.problem().kind.as_str()),
                (401, "Unauthorized"),
                "{method} {path}"
            );
            refused += 1;
        }
        assert_eq!(client.get("/v1/status").status, 200);
    }
    assert_eq!(enclave.client.status().phase, Phase::Running);
    let counter = "enclave_control_refusals_total";
    let unauthorized =
        enclave.client.until_sampled(counter, &[("reason", "unauthorized")], |value| value > 20.0);
    assert_eq!(unauthorized.to_string(), refused.to_string());
}

#[test]
fn before_a_manifest_there_is_nothing_to_drain_and_nothing_to_read_but_status() {
    let enclave = Scene::with_app().start();
    let status = enclave.client.status();
    assert_eq!(
        (status.phase, status.ready, status.digest, status.seq),
        (Phase::AwaitingManifest, false, None, 0)
    );
    assert_eq!(status.boot_id.len(), 32);
    for (method, path) in
        [("POST", "/v1/drain"), ("GET", "/v1/logs"), ("GET", "/v1/metrics"), ("POST", "/v1/ack")]
    {
        assert_eq!(
            enclave.client.call(method, path, &json!({"graceSeconds": 1})).status,
            401,
            "{method} {path}"
        );
    }
    assert_eq!(enclave.client.status().phase, Phase::AwaitingManifest);
}

#[test]
fn an_acknowledgement_for_another_boot_is_refused() {
    let mut enclave = Scene::with_app().start();
    let accepted = enclave.run(&deployment(json!([idle("app")])));
    let ack =
        |boot_id: &str| enclave.client.call("POST", "/v1/ack", &json!({"bootId": boot_id, "logSeq": 1}));
    let answer = ack("another");
    assert_eq!((answer.status, answer.problem().kind.as_str()), (409, "BootIdMismatch"));
    assert!(answer.problem().detail.contains(&accepted.boot_id));
    assert_eq!(ack(&accepted.boot_id).status, 204);
}

#[test]
fn an_oversized_body_is_refused_and_counted() {
    let mut enclave = Scene::with_app().start();
    let long = vec![b' '; MANIFEST_BODY_MAX + 1];
    let answer = enclave.client.send("PUT", "/v1/manifest", "", &long);
    assert_eq!((answer.status, answer.problem().kind.as_str()), (413, "BodyTooLarge"));
    let long = format!("# {}\n{}", "x".repeat(1 << 20), deployment(json!([idle("app")])));
    let answer = enclave.put_text(&long, &json!({}));
    assert_eq!(answer.status, 422);
    assert!(answer.problem().errors[0].message.contains("the limit is 1048576"), "{}", answer.text());
    let many: serde_json::Map<_, _> = (0..1001).map(|i| (format!("k{i}"), json!(""))).collect();
    let answer =
        enclave.put_text(&deployment(json!([idle("app")])).to_string(), &json!({"configMaps": {"c": many}}));
    assert_eq!((answer.status, answer.problem().kind.as_str()), (413, "FilesTooLarge"));
    assert_eq!(enclave.client.status().phase, Phase::AwaitingManifest);

    enclave.run(&deployment(json!([idle("app")])));
    let answer = enclave.client.send("POST", "/v1/ack", "", &vec![b' '; BODY_MAX + 1]);
    assert_eq!((answer.status, answer.problem().kind.as_str()), (413, "BodyTooLarge"));
    let malformed = [("reason", "malformed")];
    let counted =
        enclave.client.until_sampled("enclave_control_refusals_total", &malformed, |value| value > 2.0);
    assert_eq!(counted.to_string(), "3");
}

#[test]
fn what_is_no_call_of_the_api_is_said_so() {
    let mut enclave = Scene::with_app().start();
    enclave.run(&deployment(json!([idle("app")])));
    let client = &enclave.client;
    for (method, path, status, kind) in [
        ("GET", "/", 404, "NotFound"),
        ("GET", "/v1/statusx", 404, "NotFound"),
        ("GET", "/v1/../v1/status", 404, "NotFound"),
        ("DELETE", "/v1/manifest", 405, "MethodNotAllowed"),
        ("POST", "/v1/status", 405, "MethodNotAllowed"),
        ("GET", "/v1/drain", 405, "MethodNotAllowed"),
        ("PUT", "/v1/clock", 409, "ClockNotManaged"),
        ("GET", "/v1/logs?after=minus", 400, "BadQuery"),
        ("GET", "/v1/events?since=1", 400, "BadQuery"),
        ("POST", "/v1/drain", 400, "BadBody"),
        ("POST", "/v1/ack", 400, "BadBody"),
    ] {
        let answer = client.call(method, path, &json!({"unknown": 1}));
        assert_eq!((answer.status, answer.problem().kind.as_str()), (status, kind), "{method} {path}");
    }
    assert_eq!(client.status().phase, Phase::Running);
}

#[test]
fn a_broken_handshake_is_closed_and_counted() {
    let mut enclave = Scene::with_app().start();
    enclave.run(&deployment(json!([idle("app")])));
    let broken: [&[u8]; 6] = [
        b"GET / HTTP/1.1\r\n\r\n",
        b"CONNECT\n",
        b"CONNECT 80\n",
        b"CONNECT 99999999999999\n",
        b"CONNECT 100000 CONNECT 100000 CONNECT\n",
        &[0; 64],
    ];
    for bytes in broken {
        let mut stream = connect(&enclave.client.path);
        stream.write_all(bytes).unwrap();
        let mut answer = Vec::new();
        // Closed with bytes unread, which may show as a reset.
        stream.read_to_end(&mut answer).ok();
        assert_eq!(answer, b"", "{}", String::from_utf8_lossy(bytes));
    }
    let silent = connect(&enclave.client.path);
    let mut byte = [0];
    assert_eq!((&silent).read(&mut byte).unwrap(), 0, "who says nothing is closed");
    let mut nonsense = enclave.client.dial(CONTROL_PORT);
    nonsense.write_all(b"\0\0\0 nonsense\r\n\r\n").unwrap();
    let mut answer = String::new();
    nonsense.read_to_string(&mut answer).ok();
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    let counter = "enclave_control_refusals_total";
    let connections = enclave.client.until_sampled(counter, &[("reason", "connection")], |value| value > 6.0);
    assert_eq!(connections.to_string(), "7");
    enclave.client.until_is(counter, &[("reason", "malformed")], 1.0);
}
