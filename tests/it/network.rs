//! The streams of the plugins, with the test as the host.

use std::{
    io::{Read, Write},
    time::{Duration, Instant},
};

use enclave_protocol::{
    control::INGRESS_PORT,
    stream::{Header, Kind, ReplyStatus},
};
use enclave_supervisor::net::{
    limits::Limits,
    link::{HostAddress, Link, Message},
};
use expect_test::expect;
use serde_json::{Value, json};

use crate::{
    client::exchange,
    enclave::Enclave,
    host::{Egress, ingress, reply},
    patience::eventually,
    process::kill_9,
    scene::{Scene, deployment, image, product, script, with},
};

/// The enclave's limit for a header is 1 s; a loaded machine gets some more.
const HEADER_LIMIT: Duration = Duration::from_secs(5);

fn out(fqdn: &str, port: u16) -> Value {
    json!({"outboundConnections": [{"fqdn": fqdn, "port": port}]})
}

fn hello() -> (Enclave, u32) {
    let scene = Scene::new();
    scene.hello("app");
    let mut enclave = scene.start();
    let app =
        json!({"name": "app", "image": image("app"), "ports": [{"containerPort": 8001, "hostPort": 4455}]});
    enclave.run(&deployment(json!([with(app, out("api.example", 7000))])));
    enclave.line("app", "hello: pid");
    let pid = enclave.plugin("app").pid.unwrap();
    (enclave, pid)
}

fn get(enclave: &Enclave, path: &str) -> String {
    let stream = ingress(&enclave.client, "app", 8001).expect("the declared port is served");
    exchange(stream, &format!("GET {path} HTTP/1.1\r\nhost: h\r\nconnection: close\r\n"), b"").text()
}

#[test]
fn egress_by_name_reaches_the_host_and_carries_data_and_half_closes_both_ways() {
    let scene = Scene::with_app();
    let host = Egress::listen(&scene.path("v.sock"));
    let mut enclave = scene.start();
    let text = "mkfifo /tmp/in; (printf ping; cat /tmp/in) | nc api.example 7000; echo nc ended with $?; exec sleep 1000";
    enclave.run(&deployment(json!([with(script("app", text), out("api.example", 7000))])));
    let (mut stream, header) = host.accept();
    assert_eq!((header.kind, header.port, header.name.as_str()), (Kind::Egress, 7000, "api.example"));
    reply(&mut stream, ReplyStatus::Connected);
    let mut ping = [0; 4];
    stream.read_exact(&mut ping).unwrap();
    assert_eq!(&ping, b"ping");
    stream.write_all(b"one\n").unwrap();
    assert_eq!(enclave.line("app", "one"), "one");
    // The plugin ends its direction; ours goes on.
    std::fs::write(enclave.inside("app", "/tmp/in"), b" last").unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b" last");
    stream.write_all(b"two\n").unwrap();
    assert_eq!(enclave.line("app", "two"), "two");
    drop(stream);
    assert_eq!(enclave.line("app", "nc ended"), "nc ended with 0");
    let labels = [("plugin", "app"), ("destination", "api.example:7000")];
    enclave.client.until_is("enclave_egress_sent_bytes_total", &labels, 9.0);
    enclave.client.until_is("enclave_egress_received_bytes_total", &labels, 8.0);
    enclave.client.until_is("enclave_egress_connections_active", &labels, 0.0);
}

#[test]
fn the_hosts_half_close_reaches_the_plugin_and_its_direction_goes_on() {
    let scene = Scene::with_app();
    let host = Egress::listen(&scene.path("v.sock"));
    let mut enclave = scene.start();
    // cat ends at the host's end of data; what follows still goes out.
    let text =
        "mkfifo /tmp/in; exec 3<>/tmp/in; nc api.example 7000 <&3 | cat; echo host ended; exec sleep 1000";
    enclave.run(&deployment(json!([with(script("app", text), out("api.example", 7000))])));
    let (mut stream, _) = host.accept();
    reply(&mut stream, ReplyStatus::Connected);
    stream.write_all(b"all of it\n").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(enclave.line("app", "all of it"), "all of it");
    enclave.line("app", "host ended");
}

#[test]
fn a_refusal_is_a_reset_for_the_plugin_and_counted() {
    let (enclave, pid) = hello();
    let host = Egress::listen(&enclave.scene.path("v.sock"));
    for (status, reason) in [
        (ReplyStatus::NotAllowed, "not_allowed"),
        (ReplyStatus::Unresolved, "unresolved"),
        (ReplyStatus::ForbiddenAddress, "forbidden_address"),
    ] {
        let answer = std::thread::scope(|scope| {
            let asked = scope.spawn(|| get(&enclave, "/egress?url=http://api.example:7000/x"));
            let (mut stream, _) = host.accept();
            reply(&mut stream, status);
            asked.join().unwrap()
        });
        assert!(answer.contains("reset"), "{answer}");
        let labels = [("plugin", "app"), ("reason", reason)];
        enclave.client.until_is("enclave_egress_refused_total", &labels, 1.0);
    }
    assert_eq!(enclave.plugin("app").pid, Some(pid));
}

#[test]
fn an_absent_host_is_a_reset_for_the_plugin_and_nothing_worse() {
    let (enclave, pid) = hello();
    let answer = get(&enclave, "/egress?url=http://api.example:7000/x");
    assert!(answer.contains("reset"), "{answer}");
    enclave.client.until_is("enclave_egress_refused_total", &[("reason", "host_unreachable")], 1.0);
    let answer = get(&enclave, "/egress?url=http://elsewhere.example:7000/x");
    assert!(answer.contains("resolving elsewhere.example"), "{answer}");
    assert_eq!((enclave.plugin("app").pid, enclave.plugin("app").restarts), (Some(pid), 0));
}

#[test]
fn ingress_reaches_a_declared_port_and_no_other() {
    let (enclave, _) = hello();
    // In its own PID namespace it comes after its init.
    assert!(get(&enclave, "/").starts_with("hello from pid 2"));
    for (plugin, port) in [("app", 8002), ("other", 8001), ("app", 22)] {
        let refusal = ingress(&enclave.client, plugin, port).unwrap_err();
        assert_eq!(refusal.status, ReplyStatus::NotAllowed, "{plugin}:{port}");
    }
    enclave.client.until_is("enclave_ingress_refused_total", &[("reason", "not_allowed")], 3.0);
    enclave.client.until_is("enclave_ingress_connections_total", &[("plugin", "app"), ("port", "8001")], 1.0);
}

#[test]
fn a_declared_port_that_nobody_serves_is_refused_with_its_errno() {
    let mut enclave = Scene::with_app().start();
    let app =
        with(script("app", "exec sleep 1000"), json!({"ports": [{"containerPort": 8001, "hostPort": 4455}]}));
    enclave.run(&deployment(json!([app])));
    let refusal = ingress(&enclave.client, "app", 8001).unwrap_err();
    assert_eq!((refusal.status, i32::from(refusal.errno)), (ReplyStatus::ConnectFailed, 111), "ECONNREFUSED");
}

#[test]
fn a_garbage_or_late_header_is_closed_in_time_and_counted_and_others_are_served() {
    let (enclave, _) = hello();
    let egress = Header { kind: Kind::Egress, port: 8001, trace_id: 1, name: "app".into() }.encode().unwrap();
    let wrong_name = [&egress[..3], &[2], &egress[4..16], &b"A/p"[..]].concat();
    let begun = Instant::now();
    let mut silent = enclave.client.dial(INGRESS_PORT);
    silent.write_all(&egress[..10]).unwrap();
    for garbage in [&b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"[..], &[0xff; 300], &egress, &wrong_name] {
        let mut stream = enclave.client.dial(INGRESS_PORT);
        stream.write_all(garbage).unwrap();
        let mut answer = Vec::new();
        // What it did not read makes a reset of the end.
        stream.read_to_end(&mut answer).ok();
        assert_eq!(answer, [1, 0, 0, 0], "malformed: {garbage:?}");
    }
    assert!(get(&enclave, "/").starts_with("hello from pid"));
    let mut rest = Vec::new();
    silent.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"");
    assert!(begun.elapsed() < HEADER_LIMIT, "{:?}", begun.elapsed());
    enclave.client.until_is("enclave_ingress_refused_total", &[("reason", "malformed")], 4.0);
    enclave.client.until_is("enclave_ingress_refused_total", &[("reason", "header_timeout")], 1.0);
}

#[test]
fn a_killed_net_is_started_again_and_the_plugins_do_not_notice() {
    let (enclave, pid) = hello();
    let mut open = ingress(&enclave.client, "app", 8001).unwrap();
    let first = enclave.net();
    // A signal to the supervisor's own group, such as a terminal's Ctrl-C, is not for it.
    let group = nix::unistd::getpgid(Some(nix::unistd::Pid::from_raw(first))).unwrap();
    assert_eq!(group.as_raw(), first);
    kill_9(first);
    let event = enclave.events().until("the restart of net", |event| event.reason == "NetRestarted");
    assert_eq!(event.plugin, None);
    assert!(event.message.contains("Signal(9)"), "{}", event.message);
    let mut rest = Vec::new();
    // Reset or closed, but not left open.
    open.read_to_end(&mut rest).ok();
    assert_eq!(rest, b"");
    let second = eventually("another net", || Some(enclave.net()).filter(|pid| *pid != first));
    assert_ne!(first, second);
    // A stream that comes while there is none is closed; the next one is served.
    eventually("ingress to work again", || {
        let stream = std::panic::catch_unwind(|| ingress(&enclave.client, "app", 8001)).ok()?;
        Some(exchange(stream.ok()?, "GET / HTTP/1.1\r\nhost: h\r\nconnection: close\r\n", b""))
    });
    let status = enclave.plugin("app");
    assert_eq!((status.pid, status.restarts, status.ready), (Some(pid), 0, true));
    enclave.client.until_is("enclave_net_restarts_total", &[], 1.0);
    // Egress listens on the very sockets it had.
    let host = Egress::listen(&enclave.scene.path("v.sock"));
    let answer = std::thread::scope(|scope| {
        let asked = scope.spawn(|| get(&enclave, "/egress?url=http://api.example:7000/x"));
        let (mut stream, _) = host.accept();
        reply(&mut stream, ReplyStatus::Connected);
        // The request's head, so that the answer is not sent before its question.
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nagain").unwrap();
        asked.join().unwrap()
    });
    assert_eq!(answer, "again");
}

/// The lines of a process's status that say what it may do.
fn powers(pid: i32) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let of_interest = ["Uid:", "Gid:", "Groups:", "CapPrm:", "CapEff:", "NoNewPrivs:"];
    let lines = status.lines().filter(|line| of_interest.iter().any(|start| line.starts_with(start)));
    lines.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ") + "\n").collect()
}

#[test]
fn net_gains_no_privileges_and_leaves_no_core() {
    let (enclave, _) = hello();
    let net = enclave.net();
    eventually("the end of its beginning", || powers(net).contains("NoNewPrivs: 1").then_some(()));
    let core = eventually("the limit of its core", || {
        let limits = std::fs::read_to_string(format!("/proc/{net}/limits")).unwrap();
        let core = limits.lines().find(|line| line.starts_with("Max core file size"))?.to_owned();
        core.contains(" 0 ").then_some(core)
    });
    let words: Vec<_> = core.split_whitespace().collect();
    assert_eq!(words[4..6], ["0", "0"], "{core}");
}

#[test]
fn a_net_whose_host_is_on_vsock_is_not_root_and_has_no_capability() {
    if !nix::unistd::Uid::effective().is_root() {
        return crate::not_run("only root has something to give up");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let powers = runtime.block_on(async {
        let (link, theirs) = Link::pair().unwrap();
        let mut command = std::process::Command::new(product("enclave-supervisor"));
        let mut net = command.arg("net").stdin(theirs).spawn().unwrap();
        // No stream follows, so nothing is dialled.
        let host = HostAddress::Vsock(3);
        let configure = Message::Configure { host, egress_port: 1, limits: Limits::default() };
        link.send(&configure, &[]).await.unwrap();
        assert_eq!(link.recv().await.unwrap().unwrap().0, Message::Ready);
        let powers = powers(i32::try_from(net.id()).unwrap());
        drop(link);
        assert!(net.wait().unwrap().success());
        powers
    });
    expect![[r#"
        Uid: 65531 65531 65531 65531
        Gid: 65531 65531 65531 65531
        Groups:
        CapPrm: 0000000000000000
        CapEff: 0000000000000000
        NoNewPrivs: 1
    "#]]
    .assert_eq(&powers);
}
