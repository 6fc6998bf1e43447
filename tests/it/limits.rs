//! Limits of memory, CPU and processes: who exceeds them is ended or slowed down, and nobody else notices.

use std::time::Duration;

use enclave_protocol::control::PluginPhase;
use serde_json::{Value, json};

use crate::{
    client::point,
    enclave::{Enclave, How, Killer, is},
    patience::eventually,
    scene::{Scene, deployment, script, with},
    witness::Pair,
};

/// Whether plugins can be limited in this here: by root, in whichever version of control groups there is.
fn limits(controller: &str) -> bool {
    let root = std::path::Path::new("/sys/fs/cgroup");
    let unified = std::fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
    let offered = root.join(controller).is_dir() || unified.split_whitespace().any(|name| name == controller);
    let can = nix::unistd::geteuid().is_root() && offered;
    if !can {
        crate::not_run(&format!("there can be no control groups for {controller} here"));
    }
    can
}

const KILLER: How = How {
    killer: Killer::Here,
    as_init: false,
    through: Vec::new(),
    sample_interval: None,
    without_init: false,
    bare: false,
};

fn limited(app: Value, limits: Value) -> Value {
    // It waits before it does the same again.
    let restart = json!({"initialDelay": "30s", "maxDelay": "30s", "maxRestarts": 1});
    with(app, json!({"resources": {"limits": limits}, "restart": restart, "restartPolicy": "OnFailure"}))
}

#[test]
fn a_plugin_that_exceeds_its_memory_is_shown_as_killed_for_it_and_its_neighbour_goes_on() {
    if !limits("memory") {
        return;
    }
    // `tail` keeps the last line, and this one has no end.
    let app = with(
        limited(script("app", "exec tail /dev/zero"), json!({"memory": "64Mi"})),
        json!({"restartPolicy": "Never"}),
    );
    let pair = Pair::start_as(app, KILLER);
    let enclave = &pair.enclave;
    let exited = enclave.events().until("its end", |event| is(event, "app", "OOMKilled"));
    let message = "killed by the out-of-memory killer (OOMKilled) after ";
    assert!(exited.message.starts_with(message), "{}", exited.message);
    let plugin = enclave.plugin("app");
    assert_eq!((plugin.phase, plugin.reason.as_deref()), (PluginPhase::Failed, Some("OOMKilled")));
    let exit = plugin.last_exit.unwrap();
    assert_eq!((exit.code, exit.signal, exit.oom, plugin.oom_kills), (None, Some(9), true, 1));
    enclave.client.until_is("enclave_plugin_oom_kills_total", &[("plugin", "app")], 1.0);
    enclave.client.until_is("enclave_plugin_oom_kills_total", &[("plugin", "witness")], 0.0);
    pair.finish();
}

#[test]
fn a_plugin_that_grows_is_told_to_be_near_its_limit_before_it_is_killed() {
    if !limits("memory") {
        return;
    }
    // From 54 MiB on it writes one more each half second: 90 % of the limit are 3 s before its end.
    let text = "dd if=/dev/zero of=/dev/shm/fill bs=65536 count=640 2>/dev/null\n\
                dd if=/dev/zero of=/fill bs=65536 count=224 2>/dev/null\n\
                i=0; while dd if=/dev/zero of=/more$i bs=65536 count=16 2>/dev/null; do i=$((i+1)); sleep 0.5; done\n\
                exit 1";
    let app =
        with(limited(script("app", text), json!({"memory": "64Mi"})), json!({"restartPolicy": "Never"}));
    let pair = Pair::start_as(app, KILLER);
    let enclave = &pair.enclave;
    let mut events = enclave.events();
    let near = events.until("the warning", |event| is(event, "app", "MemoryNearLimit"));
    assert!(near.message.ends_with(" % of its memory limit of 64 MiB"), "{}", near.message);
    let labels = [("plugin", "app"), ("k8s.container.name", "app")];
    enclave.client.until_is("k8s.container.memory.limit.current", &labels, f64::from(64 << 20));
    let killed = events.until("its end", |event| is(event, "app", "OOMKilled"));
    assert!(near.time < killed.time && near.seq < killed.seq);
    let told = enclave.events().up_to("its end", |event| is(event, "app", "OOMKilled"));
    assert_eq!(told.iter().filter(|event| is(event, "app", "MemoryNearLimit")).count(), 1);
    pair.finish();
}

#[test]
fn a_plugin_killed_at_once_is_told_to_have_been_at_its_limit_first() {
    if !limits("memory") {
        return;
    }
    let app = with(
        limited(script("app", "exec tail /dev/zero"), json!({"memory": "64Mi"})),
        json!({"restartPolicy": "Never"}),
    );
    let pair = Pair::start_as(app, KILLER);
    let told = pair.enclave.events().up_to("its end", |event| is(event, "app", "OOMKilled"));
    let reasons: Vec<&str> = told
        .iter()
        .filter(|event| event.plugin.as_deref() == Some("app"))
        .map(|event| event.reason.as_str())
        .collect();
    assert_eq!(reasons, ["Started", "MemoryNearLimit", "OOMKilled"]);
    pair.finish();
}

#[test]
fn files_in_memory_count_and_a_child_that_is_killed_is_not_the_plugins_end() {
    if !limits("memory") {
        return;
    }
    let text = "dd if=/dev/zero of=/dev/shm/fill bs=65536 count=640 2>&1 | grep -v records\n\
                tail /dev/zero; echo ended with $?; rm /dev/shm/fill; exec sleep 1000";
    let pair = Pair::start_as(limited(script("app", text), json!({"memory": "64Mi"})), KILLER);
    assert_eq!(pair.enclave.line("app", "ended with"), "ended with 137");
    assert_eq!(pair.enclave.plugin("app").restarts, 0);
    pair.finish();
}

#[test]
fn a_fork_bomb_ends_at_its_limit_and_can_be_drained() {
    if !limits("pids") {
        return;
    }
    // Each shell starts two more; as soon as one cannot, it says so and waits.
    let text = "echo 'trap \"\" TERM; sh /tmp/bomb & sh /tmp/bomb & wait; exec sleep 1000' > /tmp/bomb\n\
                sh /tmp/bomb 2>&1 | head -n 1; exec sleep 1000";
    let app = limited(script("app", text), json!({"pids": 64}));
    let pair = Pair::start(app);
    pair.enclave.line("app", "/tmp/bomb: ");
    let processes = [("plugin", "app")];
    // Shells that cannot start another end, and make room for more: how many there are comes and goes.
    let within = |value: f64| (1.0..=64.0).contains(&value);
    pair.enclave.client.until_sampled("enclave_plugin_processes", &processes, within);
    assert_eq!(pair.enclave.plugin("app").restarts, 0);
    pair.finish();
}

#[test]
fn a_plugin_without_a_limit_of_its_own_still_has_one_for_processes() {
    if !limits("pids") {
        return;
    }
    let text = "i=0; while sleep 1000 & do i=$((i+1)); done 2>&1 | head -n 1; exec sleep 1000";
    let pair = Pair::start(limited(script("app", text), json!({})));
    pair.enclave.line("app", "/bin/sh: can't fork");
    pair.finish();
}

/// The plugin's CPU seconds and the time of the sample.
fn cpu(enclave: &Enclave) -> Option<(f64, u64)> {
    let sample = enclave.client.sample()?;
    Some((point(&sample, "container.cpu.time", &[("plugin", "app")])?, sample.time.0))
}

/// The part of a core that the plugin app uses from now on, for a few seconds.
fn share(enclave: &Enclave) -> f64 {
    const WINDOW: Duration = Duration::from_secs(3);
    let (before, begun) = eventually("a first sample", || cpu(enclave).filter(|(cpu, _)| *cpu > 0.0));
    eventually("a window's samples", || {
        let (now, time) = cpu(enclave)?;
        let window = Duration::from_nanos(time.checked_sub(begun)?);
        (window >= WINDOW).then(|| (now - before) / window.as_secs_f64())
    })
}

#[test]
fn a_busy_loop_gets_the_part_of_a_core_that_it_may_have() {
    if !limits("cpu") {
        return;
    }
    let app = limited(script("app", "echo busy; while :; do :; done"), json!({"cpu": "200m"}));
    let pair = Pair::start(app);
    pair.enclave.line("app", "busy");
    let share = share(&pair.enclave);
    // A loaded machine may give it less.
    assert!(share > 0.0 && share < 0.35, "{share}");
    pair.finish();
}

#[test]
fn a_killed_plugin_s_successor_is_limited_as_it_was() {
    if !limits("cpu") {
        return;
    }
    // It ignores TERM, and once its liveness fails. A killed plugin may use all CPU it needs to die.
    let once = "[ -e /state/once ] || { touch /state/once; false; }";
    let probe = json!({
        "exec": {"command": ["/bin/sh", "-c", once]}, "initialDelaySeconds": 1, "periodSeconds": 1,
        "failureThreshold": 1, "terminationGracePeriodSeconds": 1, "timeoutSeconds": 30,
    });
    let state = json!({"configMap": {"name": "state", "items": [{"key": "seen", "path": "seen"}]}});
    let app = with(
        limited(script("app", "trap '' TERM; while :; do :; done"), json!({"cpu": "200m"})),
        json!({
            "livenessProbe": probe,
            "volumes": [{"name": "state", "containerPath": "/state", "readOnly": false, "source": state}],
        }),
    );
    let mut enclave = Scene::with_app().start();
    enclave.run_with(&deployment(json!([app])), &json!({"configMaps": {"state": {"seen": ""}}}));
    enclave
        .events()
        .until("a restart", |event| is(event, "app", "Started") && event.message.contains("restart 1"));
    let share = share(&enclave);
    assert!(share > 0.0 && share < 0.35, "{share}");
    enclave.drain(0);
    enclave.finish();
}

#[test]
fn a_plugin_that_opens_all_it_may_harms_nobody() {
    // It opens the same file again and again, and keeps them all.
    let text = "ulimit -n 512; exec tail -f $(yes /dev/null | head -n 600) 2>&1";
    let pair = Pair::start(limited(script("app", text), json!({})));
    let said = pair.enclave.line("app", "tail:");
    assert_eq!(said, "tail: can't open '/dev/null': Too many open files");
    pair.finish();
}

#[test]
fn a_plugin_that_fills_its_file_system_harms_nobody() {
    if !limits("memory") {
        return;
    }
    let text = "dd if=/dev/zero of=/fill bs=65536 2>&1 | grep -v records; echo x > /more || exec sleep 1000";
    let app = limited(script("app", text), json!({"memory": "32Mi"}));
    let pair = Pair::start(app);
    pair.enclave.line("app", "dd: error writing '/fill': No space left on device");
    assert_eq!((pair.enclave.plugin("app").restarts, pair.enclave.plugin("app").oom_kills), (0, 0));
    pair.finish();
}
