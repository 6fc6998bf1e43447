//! The life of a plugin: starts, ends, restarts, and what status, events and the exit code say of them.

use enclave_protocol::control::{EGRESS_PORT, ManifestAccepted, Phase, PluginPhase};
use serde_json::json;

use crate::{
    client::point,
    enclave::{How, is},
    patience::{Deadline, eventually},
    process::{children, kill_9},
    scene::{Scene, deployment, deployment_with, idle, image, script, with},
};

#[test]
fn a_killed_plugin_has_a_successor_and_the_events_say_why() {
    let mut enclave = Scene::with_app().start();
    enclave.run(&deployment(json!([idle("app")])));
    let first = enclave.started("app");
    kill_9(first);
    let mut events = enclave.events();
    let seen =
        events.up_to("the restart", |event| is(event, "app", "Started") && event.message.contains("restart"));
    let story: Vec<_> = seen.iter().map(|event| event.message.replace(&first.to_string(), "PID")).collect();
    let reasons: Vec<_> = seen.iter().map(|event| event.reason.as_str()).collect();
    assert_eq!(reasons, ["Started", "Exited", "BackOff", "Started"], "{story:#?}");
    assert_eq!((story[0].as_str(), story[2].as_str()), ("started as pid PID", "restart 1 at once"));
    assert!(story[1].starts_with("ended by signal 9 after "), "{story:#?}");
    let plugin = enclave.plugin("app");
    assert_eq!((plugin.phase, plugin.ready, plugin.restarts), (PluginPhase::Running, true, 1));
    assert_ne!(plugin.pid, Some(first));
    let exit = plugin.last_exit.unwrap();
    assert_eq!((exit.code, exit.signal, exit.oom, exit.error), (None, Some(9), false, None));
    let restarts = [("plugin", "app")];
    enclave.client.until_is("enclave_plugin_restarts_total", &restarts, 1.0);
}

#[test]
fn a_command_that_does_not_exist_is_named_with_its_errno_and_its_restarts_are_bounded() {
    let mut enclave = Scene::with_app().start();
    let app = with(
        idle("app"),
        json!({"command": ["/nope"], "restartPolicy": "OnFailure",
               "restart": {"maxRestarts": 2, "initialDelay": "10ms", "maxDelay": "20ms"}}),
    );
    enclave.run(&deployment(json!([app])));
    enclave.events().until("the end of all restarts", |event| is(event, "app", "GaveUp"));
    let plugin = enclave.plugin("app");
    assert_eq!((plugin.phase, plugin.restarts, plugin.pid), (PluginPhase::Failed, 2, None));
    assert_eq!(plugin.reason.as_deref(), Some("RestartsSpent"));
    let error = plugin.last_exit.unwrap().error.unwrap();
    assert_eq!(error, "execute \"/nope\": ENOENT (No such file or directory)");
    let end = enclave.finish();
    assert_eq!(end.exit.code(), Some(4));
    let failed: Vec<_> = end.events.iter().filter(|event| is(event, "app", "SpawnFailed")).collect();
    assert_eq!(failed.len(), 3);
    assert!(failed.iter().all(|event| event.message.contains("ENOENT")), "{failed:#?}");
    assert_eq!(end.final_state("app")["phase"], "Failed");
}

#[test]
fn a_command_that_may_not_be_executed_is_a_start_error_in_status() {
    let mut enclave = Scene::with_app().start();
    let app = with(idle("app"), json!({"command": ["/etc"]}));
    enclave.run(&deployment(json!([app])));
    enclave.events().until("a failed start", |event| is(event, "app", "SpawnFailed"));
    // Asked without a pause: also while it is being started again, which the first time is at once.
    let deadline = Deadline::new();
    loop {
        let plugin = enclave.plugin("app");
        let error = plugin.last_exit.unwrap().error.unwrap();
        assert!(error.contains("EACCES"), "{:?}: {error}", plugin.phase);
        assert!(!plugin.ready);
        if plugin.restarts > 1 {
            break;
        }
        assert!(!deadline.left().is_zero(), "it is not started again");
    }
}

#[test]
fn a_workload_that_succeeds_ends_the_supervisor_with_code_0() {
    let mut enclave = Scene::with_app().start();
    let app = with(script("app", "echo bye"), json!({"restartPolicy": "Never"}));
    enclave.run(&deployment(json!([app])));
    let end = enclave.finish();
    assert_eq!(end.exit.code(), Some(0));
    assert_eq!(end.final_state("app")["phase"], "Completed");
    assert_eq!(end.final_state("app")["code"], 0);
    assert!(end.events.iter().any(|event| event.reason == "WorkloadEnded"));
}

#[test]
fn a_workload_that_fails_ends_the_supervisor_with_code_4_and_its_own_code_in_the_last_records() {
    let mut enclave = Scene::with_app().start();
    let app = with(script("app", "exit 42"), json!({"restartPolicy": "Never"}));
    enclave.run(&deployment(json!([app])));
    let end = enclave.finish();
    assert_eq!(end.exit.code(), Some(4));
    assert_eq!(end.final_state("app")["code"], 42);
    assert_eq!(end.final_state("app")["phase"], "Failed");
}

#[test]
fn a_workload_that_a_signal_ends_has_the_signal_in_the_last_records() {
    let mut enclave = Scene::with_app().start();
    let app = with(script("app", "kill -SEGV $$$$"), json!({"restartPolicy": "Never"}));
    enclave.run(&deployment(json!([app])));
    let end = enclave.finish();
    assert_eq!(end.exit.code(), Some(4));
    assert_eq!(end.final_state("app")["signal"], 11);
}

#[test]
fn on_failure_restarts_what_fails_and_leaves_what_succeeds() {
    let mut enclave = Scene::with_app().start();
    // Fails until it has been here twice. A run finds nothing that the last one wrote, but in its volumes.
    let text = "echo x >> /tmp/seen; cat /tmp/seen >> /state/seen; [ $(grep -c x /state/seen) -ge 3 ]";
    let state = json!({"configMap": {"name": "state", "items": [{"key": "seen", "path": "seen"}]}});
    let app = with(
        script("app", text),
        json!({
            "restartPolicy": "OnFailure", "restart": {"initialDelay": "10ms", "maxDelay": "20ms"},
            "volumes": [{"name": "state", "containerPath": "/state", "readOnly": false, "source": state}],
        }),
    );
    enclave.run_with(&deployment(json!([app])), &json!({"configMaps": {"state": {"seen": ""}}}));
    let end = enclave.finish();
    assert_eq!(end.exit.code(), Some(0));
    let starts = end.events.iter().filter(|event| is(event, "app", "Started")).count();
    assert_eq!(starts, 3, "{:#?}", end.events);
    assert_eq!(end.final_state("app")["restarts"], 2);
}

#[test]
fn always_restarts_what_succeeds_too() {
    let mut enclave = Scene::with_app().start();
    enclave.run(&deployment(json!([script("app", "exit 0")])));
    enclave
        .events()
        .until("a restart", |event| is(event, "app", "Started") && event.message.contains("restart 1"));
    assert_eq!(enclave.client.status().phase, Phase::Running);
}

#[test]
fn a_crash_loop_is_visible_and_not_ready() {
    let mut enclave = Scene::with_app().start();
    let app = with(
        script("app", "exit 3"),
        json!({"restart": {"initialDelay": "20s", "maxDelay": "20s", "jitter": 0}}),
    );
    enclave.run(&deployment(json!([app])));
    enclave
        .events()
        .until("the wait", |event| is(event, "app", "BackOff") && event.message.contains("restart 2"));
    let status = enclave.client.status();
    let plugin = &status.plugins[0];
    assert_eq!((plugin.phase, plugin.ready, status.ready), (PluginPhase::BackingOff, false, false));
    assert_eq!(plugin.reason.as_deref(), Some("CrashLoopBackOff"));
    assert_eq!(plugin.last_exit.as_ref().unwrap().code, Some(3));
    let wait = plugin.next_restart.unwrap().0 - plugin.since.0;
    // Two readings of the wall clock lie between them.
    assert!(wait.abs_diff(20_000_000_000) < 1_000_000, "{wait}");
    let ready = [("plugin", "app")];
    enclave.client.until_is("enclave_plugin_ready", &ready, 0.0);
    enclave.client.until_is("enclave_plugin_last_exit_code", &ready, 3.0);
}

#[test]
fn plugins_start_in_the_order_telemetry_services_users_and_dependencies_first() {
    let scene = Scene::new();
    for plugin in ["telemetry", "cache", "first", "second"] {
        scene.busybox(plugin, json!({}));
    }
    let mut enclave = scene.start();
    let service = |name| json!({"image": image(name), "command": ["/bin/sleep", "1000"]});
    let users = json!([with(idle("first"), json!({"dependsOn": ["second"]})), idle("second")]);
    let plugins = json!({"plugins": {"telemetry": service("telemetry"), "cache": service("cache")}});
    let accepted = enclave.run(&deployment_with(users, plugins));
    let order = ["telemetry", "cache", "second", "first"];
    assert_eq!(accepted.plan.plugins, order);
    let seen = enclave.events().up_to("the last start", |event| is(event, "first", "Started"));
    let started: Vec<_> =
        seen.iter().filter(|event| event.reason == "Started").map(|event| event.plugin.clone()).collect();
    assert_eq!(started, order.map(|name| Some(name.to_owned())));
}

#[test]
fn a_supervisor_that_is_linked_dynamically_gives_each_plugin_a_copy_of_itself_for_its_init() {
    let mut enclave = Scene::with_app().start_as(How { without_init: true, ..How::default() });
    let text = "trap 'echo told; exit 5' TERM; echo up; while true; do sleep 0.1; done";
    let app = with(
        script("app", text),
        json!({"readinessProbe": {"exec": {"command": ["/bin/sh", "-c", "true"]}, "periodSeconds": 1}}),
    );
    let accepted = enclave.run(&deployment(json!([app])));
    // Built for a static target it has no need to.
    let copies = accepted.conditions.iter().any(|condition| condition.kind == "InitNotStatic");
    assert_eq!(copies, cfg!(target_env = "gnu"), "{:#?}", accepted.conditions);
    enclave.line("app", "up");
    enclave.events().until("the probe's answer", |event| is(event, "app", "Ready"));
    let pid = enclave.plugin("app").pid.unwrap();
    kill_9(i32::try_from(pid).unwrap());
    enclave
        .events()
        .until("a restart", |event| is(event, "app", "Started") && event.message.contains("restart 1"));
    enclave.drain(10);
    let end = enclave.finish();
    assert_eq!(end.final_state("app")["code"], 5);
}

#[test]
fn without_isolation_a_plugin_is_the_supervisor_s_own_child_and_its_life_is_the_same() {
    if !nix::unistd::geteuid().is_root() {
        crate::not_run("without root there is no isolation to be left out");
        return;
    }
    let mut enclave = Scene::with_app().start_as(How { bare: true, ..How::default() });
    let text = "trap 'exit 5' TERM; echo up; while true; do sleep 0.1; done";
    let accepted = enclave.run(&deployment(json!([script("app", text)])));
    let kinds: Vec<_> = accepted.conditions.iter().map(|condition| condition.kind.as_str()).collect();
    assert!(kinds.contains(&"NotIsolated"), "{kinds:?}");
    enclave.line("app", "up");
    let pid = i32::try_from(enclave.plugin("app").pid.unwrap()).unwrap();
    assert!(children(enclave.pid).iter().any(|child| child.pid == pid));
    kill_9(pid);
    enclave
        .events()
        .until("a restart", |event| is(event, "app", "Started") && event.message.contains("restart 1"));
    enclave.drain(10);
    assert_eq!(enclave.finish().final_state("app")["code"], 5);
}

#[test]
fn the_first_sample_has_cpu_use_and_the_pod_and_does_not_wait_for_the_interval() {
    // Longer than this test has patience.
    let how = How { sample_interval: Some(600), ..How::default() };
    let mut enclave = Scene::with_app().start_as(how);
    let body = json!({
        "manifest": deployment(json!([idle("app")])).to_string(), "files": {}, "egressPort": EGRESS_PORT,
        "instanceId": "it-1", "pod": {"name": "hello-1", "uid": "u-1", "node": "n.example"},
    });
    let answer = enclave.client.call("PUT", "/v1/manifest", &body);
    assert_eq!(answer.status, 200, "{}", answer.text());
    enclave.client.token = Some(answer.json::<ManifestAccepted>().token);
    let sample = eventually("a sample of the deployment", || {
        let sample = enclave.client.sample()?;
        point(&sample, "container.cpu.usage", &[("k8s.container.name", "app")])?;
        Some(sample)
    });
    let value = |name: &str| point(&sample, name, &[]).unwrap_or_else(|| panic!("{name} is not there"));
    assert!((0.0..=1.0).contains(&value("nitro_enclave_cpu_usage")));
    assert!(value("k8s.node.memory.usage") >= value("k8s.node.memory.working_set"));
    assert!((0.5..60.0).contains(&value("k8s.pod.uptime")), "{}", value("k8s.pod.uptime"));
    let resource: Vec<String> = sample.resource.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let expected = "k8s.namespace.name=default k8s.node.name=n.example k8s.pod.name=hello-1 k8s.pod.uid=u-1 \
                    service.instance.id=it-1";
    assert_eq!(resource.join(" "), expected);
    for family in &sample.families {
        let entry = enclave_protocol::metrics::catalogue::find(&family.name);
        assert!(entry.is_some(), "{} is not in the catalogue", family.name);
    }
    enclave.drain(0);
    enclave.finish();
}
