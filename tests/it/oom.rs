//! A plugin that the kernel's out-of-memory killer ends.

use std::{fs, path::PathBuf};

use crate::{
    client::exchange,
    enclave::{How, Killer, is},
    host::ingress,
    scene::{Scene, deployment, image, with},
};
use serde_json::json;

/// A memory cgroup of the test's own. It is removed when this is dropped; its processes must be gone by then.
struct Cgroup(PathBuf);

impl Cgroup {
    /// Version 1 or 2, whichever the machine has; none when the test may not make one.
    fn new(bytes_max: u64) -> Option<Self> {
        let name = format!("enclave-it-{}", std::process::id());
        for (mount, limit) in
            [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")]
        {
            let group = Self(PathBuf::from(mount).join(&name));
            if fs::create_dir(&group.0).is_ok()
                && fs::write(group.0.join(limit), bytes_max.to_string()).is_ok()
            {
                return Some(group);
            }
        }
        None
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Not empty yet: at worst an empty group stays behind.
        fs::remove_dir(&self.0).ok();
    }
}

#[test]
fn a_plugin_that_the_out_of_memory_killer_ends_is_reported_as_such() {
    let Some(group) = Cgroup::new(64 << 20) else {
        crate::not_run("a memory cgroup cannot be made here, so there is no out-of-memory kill to report");
        return;
    };
    let scene = Scene::new();
    scene.hello("app");
    let mut enclave = scene.start_as(How { killer: Killer::Here, ..How::default() });
    let app = json!({
        "name": "app", "image": image("app"), "command": ["/hello"], "ports": [{"containerPort": 8001, "hostPort": 4455}],
        "restart": {"initialDelay": "20s", "maxDelay": "20s"},
    });
    enclave.run(&deployment(json!([with(app, json!({}))])));
    enclave.line("app", "hello: pid");
    let pid = enclave.plugin("app").pid.unwrap();
    fs::write(group.0.join("cgroup.procs"), pid.to_string()).unwrap();
    // Asks for four times what the group may have; there is no answer.
    let stream = ingress(&enclave.client, "app", 8001).unwrap();
    let request = "GET /alloc?mib=256 HTTP/1.1\r\nhost: h\r\nconnection: close\r\n";
    std::thread::scope(|scope| {
        scope.spawn(|| std::panic::catch_unwind(|| exchange(stream, request, b"")));
        enclave.events().until("the end", |event| is(event, "app", "Exited"));
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
