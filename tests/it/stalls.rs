//! Peers that stall: closed within their limits, while others are served.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use enclave_protocol::control::{CONTROL_PORT, Phase, REQUEST_SECONDS_MAX};
use serde_json::json;

use crate::{
    client::read_answer,
    enclave::{Enclave, How, Killer},
    scene::{Scene, deployment, idle},
};

/// A request's head has 10 s; a loaded machine gets some more.
const HEAD_LIMIT: Duration = Duration::from_secs(20);

/// The same for a body.
const BODY_LIMIT: Duration = Duration::from_secs(REQUEST_SECONDS_MAX + 15);

/// Begins a request whose body never comes to its end.
fn stall(enclave: &Enclave, method: &str, path: &str) -> UnixStream {
    let mut stream = enclave.client.dial(CONTROL_PORT);
    let head = enclave.client.head(method, path);
    write!(stream, "{head}content-length: 1000\r\nconnection: close\r\n\r\n{{\"boot").unwrap();
    stream.set_read_timeout(Some(BODY_LIMIT)).unwrap();
    stream
}

fn is_closed_as_too_slow(stream: &UnixStream) {
    let answer = read_answer(stream);
    assert_eq!((answer.status, answer.problem().kind.as_str()), (408, "BodyTooSlow"));
}

#[test]
fn a_stalled_head_and_a_stalled_body_are_closed_within_their_limits_and_others_are_served() {
    let mut enclave = Scene::with_app().start_as(How { killer: Killer::Anywhere, ..How::default() });
    let begun = Instant::now();
    let mut head = enclave.client.dial(CONTROL_PORT);
    head.write_all(b"GET /v1/status HTTP/1.1\r\nhost: enc").unwrap();
    // A whole deployment's life goes on beside it, and beside the stalled body.
    enclave.run(&deployment(json!([idle("app")])));
    let body = stall(&enclave, "POST", "/v1/ack");
    enclave.started("app");

    let mut rest = Vec::new();
    head.read_to_end(&mut rest).expect("closed, not left open");
    assert!(begun.elapsed() < HEAD_LIMIT, "{:?}", begun.elapsed());
    assert!(enclave.client.status().ready);
    is_closed_as_too_slow(&body);
    let malformed = [("reason", "malformed")];
    enclave.client.until_is("enclave_control_refusals_total", &malformed, 2.0);
    enclave.drain(5);
    assert_eq!(enclave.finish().exit.code(), Some(0));
}

#[test]
fn a_stalled_manifest_keeps_nobody_out_and_is_closed_within_its_limit() {
    let mut enclave = Scene::with_app().start_as(How { killer: Killer::Anywhere, ..How::default() });
    let stalled = stall(&enclave, "PUT", "/v1/manifest");
    let broken = enclave.put_text("no manifest", &json!({}));
    assert_eq!(broken.status, 422);
    assert_eq!(enclave.client.status().phase, Phase::AwaitingManifest);
    enclave.run(&deployment(json!([idle("app")])));
    enclave.started("app");
    is_closed_as_too_slow(&stalled);
}
