//! A plugin that the kernel's out-of-memory killer ends.

use crate::{
    client::exchange,
    enclave::{How, Killer, is},
    host::ingress,
    scene::{Scene, deployment, image},
};
use nix::unistd::geteuid;
use serde_json::json;

#[test]
fn a_plugin_that_the_out_of_memory_killer_ends_is_reported_as_such() {
    if !geteuid().is_root() {
        crate::not_run("without root there is no control group, and so no out-of-memory kill to report");
        return;
    }
    let scene = Scene::new();
    scene.hello("app");
    let mut enclave = scene.start_as(How { killer: Killer::Here, ..How::default() });
    let app = json!({
        "name": "app", "image": image("app"), "command": ["/hello"], "ports": [{"containerPort": 8001, "hostPort": 4455}],
        "restart": {"initialDelay": "20s", "maxDelay": "20s"}, "resources": {"limits": {"memory": "64Mi"}},
    });
    enclave.run(&deployment(json!([app])));
    enclave.line("app", "hello: pid");
    // Asks for four times what it may have; there is no answer.
    let stream = ingress(&enclave.client, "app", 8001).unwrap();
    let request = "GET /alloc?mib=256 HTTP/1.1\r\nhost: h\r\nconnection: close\r\n";
    std::thread::scope(|scope| {
        scope.spawn(|| std::panic::catch_unwind(|| exchange(stream, request, b"")));
        enclave.events().until("the end", |event| is(event, "app", "OOMKilled"));
    });
    let exit = enclave.plugin("app").last_exit.unwrap();
    assert_eq!((exit.signal, exit.oom, exit.code), (Some(9), true, None));
    let killed = [("plugin", "app")];
    enclave.client.until_is("enclave_plugin_oom_kills_total", &killed, 1.0);
    enclave
        .events()
        .until("a restart", |event| is(event, "app", "Started") && event.message.contains("restart 1"));
    // The second strike finds a plugin that has no wait left: it shows its reason.
    let pid = enclave.plugin("app").pid.unwrap();
    assert_ne!(pid, 0);
    enclave.drain(5);
    enclave.finish();
}
