//! Plugins that misbehave: each is ended or borne, and its neighbour and the supervisor go on.

use std::{fs, os::unix::fs::PermissionsExt};

use enclave_protocol::control::PluginPhase;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

use crate::{
    enclave::{Enclave, How, is},
    patience::eventually,
    process::{children, kill_9},
    scene::{Scene, deployment, idle, script, with},
    witness::{Pair, count, marker},
};

fn once(app: Value) -> Value {
    with(app, json!({"restartPolicy": "Never"}))
}

/// Four daemons, in the ways a shell knows: in the background, in a session of its own, and twice removed.
fn daemons(marker: &str) -> String {
    format!(
        "sleep {marker} & setsid sleep {marker} & (setsid sleep {marker} &)\n\
         setsid sh -c '(setsid sleep {marker} </dev/null >/dev/null 2>&1 &); exit 0'"
    )
}

/// Waits until all four run.
fn daemons_run(marker: &str) {
    eventually("four daemons", || (count(&["sleep", marker]) == 4).then_some(()));
}

#[test]
fn what_a_plugin_leaves_behind_dies_with_it() {
    let marker = marker(2001);
    let text = format!("{}; until [ -e /tmp/go ]; do usleep 20000; done", daemons(&marker));
    let pair = Pair::start(once(script("app", &text)));
    pair.enclave.started("app");
    daemons_run(&marker);
    fs::write(pair.enclave.inside("app", "/tmp/go"), "").unwrap();
    pair.enclave.events().until("its end", |event| is(event, "app", "Completed"));
    assert_eq!(count(&["sleep", &marker]), 0);
    pair.finish();
}

#[test]
fn daemons_die_with_a_plugin_that_is_killed_and_do_not_disturb_its_successor() {
    let marker = marker(2002);
    let pair = Pair::start(script("app", &format!("{}; exec sleep 1000", daemons(&marker))));
    pair.enclave.started("app");
    daemons_run(&marker);
    kill_9(pair.enclave.plugin("app").pid.unwrap());
    pair.enclave.events().until("its end", |event| is(event, "app", "Exited"));
    // The successor's alone.
    daemons_run(&marker);
    assert_eq!(pair.enclave.plugin("app").restarts, 1);
    pair.finish();
    assert_eq!(count(&["sleep", &marker]), 0);
}

#[test]
fn a_plugin_all_of_whose_processes_ignore_every_signal_is_killed_after_its_grace() {
    let marker = marker(2003);
    let text = format!(
        "for signal in $(seq 1 64); do trap '' $signal; done 2>/dev/null\n\
         (setsid sleep {marker} &); echo ready; while :; do sleep {marker}; done"
    );
    let pair = Pair::start(with(script("app", &text), json!({"terminationGracePeriodSeconds": 1})));
    pair.enclave.line("app", "ready");
    let end = pair.finish();
    assert!(end.at("app", "Stopping") < end.at("app", "Killed"));
    assert_eq!(end.final_state("app")["signal"], 9);
    assert_eq!(count(&["sleep", &marker]), 0);
}

#[test]
fn a_plugin_that_stops_itself_is_killed_after_its_grace() {
    let text = "echo ready; kill -STOP $$$$; echo went on";
    let pair = Pair::start(with(script("app", text), json!({"terminationGracePeriodSeconds": 1})));
    pair.enclave.line("app", "ready");
    eventually("it to stop", || {
        let pid = i32::try_from(pair.enclave.plugin("app").pid?).ok()?;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.contains(") T ").then_some(())
    });
    let end = pair.finish();
    assert_eq!(end.final_state("app")["signal"], 9);
}

#[test]
fn a_plugin_whose_init_is_stopped_from_outside_is_killed_after_its_grace() {
    let app = with(idle("app"), json!({"terminationGracePeriodSeconds": 1}));
    let pair = Pair::start(app);
    pair.enclave.started("app");
    let init = pair.init();
    kill(Pid::from_raw(init), Signal::SIGSTOP).unwrap();
    let end = pair.finish();
    assert_eq!(end.final_state("app")["signal"], 9);
}

#[test]
fn an_init_that_is_killed_takes_its_plugin_along_and_has_a_successor() {
    let marker = marker(2004);
    let pair = Pair::start(script("app", &format!("sleep {marker} & exec sleep {marker}")));
    pair.enclave.started("app");
    kill_9(pair.init());
    let exited = pair.enclave.events().until("its end", |event| is(event, "app", "Exited"));
    assert!(exited.message.starts_with("ended by signal 9"), "{}", exited.message);
    eventually("the successor alone", || (count(&["sleep", &marker]) == 2).then_some(()));
    assert_eq!(pair.enclave.plugin("app").restarts, 1);
    pair.finish();
}

#[test]
fn a_plugin_cannot_end_its_init_from_inside() {
    let text = "kill -9 1; kill -STOP 1; kill -SEGV 1; kill -9 -1; echo still here; exec sleep 1000";
    // Other signals come back to it: it is the one that they are meant for.
    let pair = Pair::start(script("app", &format!("trap '' SEGV; {text}")));
    pair.enclave.line("app", "still here");
    assert_eq!(pair.enclave.plugin("app").restarts, 0);
    pair.finish();
}

#[test]
fn an_init_that_is_buried_in_signals_still_does_its_work() {
    let text = "trap '' USR1 USR2 HUP; trap 'exit 6' TERM\n\
                for n in 1 2 3; do (while :; do kill -USR1 1; kill -HUP 1; kill -34 1; done) & done\n\
                trap '' 34 2>/dev/null; echo buried; while :; do usleep 20000; done";
    let probe = json!({"exec": {"command": ["/bin/true"]}, "periodSeconds": 1});
    let pair = Pair::start(with(script("app", text), json!({"readinessProbe": probe})));
    pair.enclave.line("app", "buried");
    pair.enclave.events().until("readiness", |event| is(event, "app", "Ready"));
    let end = pair.finish();
    assert_eq!(end.final_state("app")["code"], 6, "it was told to stop");
}

#[test]
fn a_line_without_an_end_is_read_for_as_long_as_it_goes_on() {
    let pair = Pair::start(script("app", "exec tr '\\000' x < /dev/zero"));
    let labels = [("plugin", "app")];
    pair.enclave.client.until_sampled("enclave_plugin_log_bytes_total", &labels, |value| value > 64e6);
    assert_eq!(pair.enclave.plugin("app").restarts, 0);
    pair.finish();
}

#[test]
fn much_log_does_not_push_out_a_neighbours_lines() {
    const BYTES: u64 = 64 << 20;
    let scene = Scene::with_app();
    scene.busybox("quiet", json!({}));
    let mut enclave = scene.start();
    let loud = once(script("app", &format!("yes all work and no play | head -c {BYTES}")));
    let quiet = "echo before; until [ -e /tmp/go ]; do usleep 20000; done; echo after; exec sleep 1000";
    enclave.run(&deployment(json!([script("quiet", quiet), loud])));
    enclave.events().until("the end of the noise", |event| is(event, "app", "Completed"));
    let lines = BYTES / 21;
    enclave.client.until_sampled("enclave_plugin_log_bytes_total", &[("plugin", "app")], |value| {
        value >= (BYTES - lines) as f64 - 21.0
    });
    fs::write(enclave.inside("quiet", "/tmp/go"), "").unwrap();
    enclave.line("quiet", "after");
    let kept: Vec<_> = enclave.client.logs(0, false).filter(|record| record.plugin == "quiet").collect();
    assert_eq!(
        kept.iter().filter_map(|record| record.text.as_deref()).collect::<Vec<_>>(),
        ["before", "after"]
    );
}

#[test]
fn a_plugin_that_closes_its_output_runs_on() {
    let pair = Pair::start(script("app", "echo closing; exec >&- 2>&- <&-; echo lost; exec sleep 1000"));
    pair.enclave.line("app", "closing");
    let sleeps = || {
        let pid = pair.enclave.plugin("app").pid?;
        fs::read(format!("/proc/{pid}/cmdline")).ok()?.starts_with(b"sleep").then_some(())
    };
    eventually("it to run on", sleeps);
    assert_eq!(pair.enclave.plugin("app").restarts, 0);
    pair.finish();
}

#[test]
fn what_cannot_be_executed_is_a_start_error_that_names_it() {
    let scene = Scene::with_app();
    scene.busybox("witness", json!({}));
    let etc = scene.root("app").join("etc");
    for (name, text, mode) in [
        ("text", "no program\n", 0o755),
        ("plain", "#!/bin/sh\n", 0o644),
        ("orphan", "#!/bin/none\n", 0o755),
        ("empty", "", 0o755),
        ("broken", "\x7fELF\x02\x01\x01", 0o755),
    ] {
        fs::write(etc.join(name), text).unwrap();
        fs::set_permissions(etc.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    let mut users = vec![idle("witness")];
    let wrong = [
        ("/etc/text", "ENOEXEC"),
        ("/etc/plain", "EACCES"),
        ("/etc/orphan", "ENOENT"),
        ("/etc/empty", "ENOEXEC"),
        ("/etc/broken", "ENOEXEC"),
        ("/etc", "EACCES"),
        ("none", "ENOENT"),
    ];
    for (index, (command, _)) in wrong.iter().enumerate() {
        let name = format!("app-{index}");
        fs::create_dir_all(scene.root(&name).parent().unwrap()).unwrap();
        fs::create_dir_all(scene.root(&name)).unwrap();
        for directory in ["bin", "etc"] {
            copy(&scene.root("app").join(directory), &scene.root(&name).join(directory));
        }
        let config = json!({"image": format!("test/{name}:1"), "config": {}});
        scene.write(&format!("plugins/{name}/config.json"), &config.to_string());
        users.push(once(with(idle(&name), json!({"command": [command]}))));
    }
    let mut enclave = scene.start();
    enclave.run(&deployment(json!(users)));
    let witness = enclave.started("witness");
    for (index, (command, errno)) in wrong.iter().enumerate() {
        let name = format!("app-{index}");
        enclave.events().until("the end", |event| is(event, &name, "Failed"));
        let plugin = enclave.plugin(&name);
        assert_eq!((plugin.phase, plugin.reason.as_deref()), (PluginPhase::Failed, Some("StartError")));
        let error = plugin.last_exit.unwrap().error.unwrap();
        assert!(error.starts_with(&format!("execute {command:?}: {errno} ")), "{error}");
    }
    assert_eq!(enclave.plugin("witness").pid, Some(witness));
    enclave.drain(1);
    assert_eq!(enclave.finish().exit.code(), Some(0));
}

/// Copies a directory of files and symbolic links.
fn copy(from: &std::path::Path, to: &std::path::Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let copy = to.join(path.file_name().unwrap());
        match fs::read_link(&path) {
            Ok(target) => std::os::unix::fs::symlink(target, copy).unwrap(),
            Err(_) => drop(fs::copy(&path, copy).unwrap()),
        }
    }
}

#[test]
fn a_pid_that_is_reused_is_the_new_runs() {
    if !nix::unistd::geteuid().is_root() {
        return crate::not_run("only root chooses the next process id of a namespace");
    }
    // Its own PID namespace, so that hardly anybody takes the number first.
    let app = with(idle("app"), json!({"restart": {"initialDelay": "10ms", "maxDelay": "20ms"}}));
    let pair = Pair::start_as(app, How { as_init: true, ..How::default() });
    let enclave = &pair.enclave;
    // The pair waits for its witness alone.
    enclave.started("app");
    let mut events = enclave.events();
    let mut reused = 0;
    for restarts in 1..=20 {
        let (init, number) = init_of_app(enclave);
        reuse(enclave.pid, number);
        kill_9(init);
        let again = format!("restart {restarts}");
        events.until("the next", |event| is(event, "app", "Started") && event.message.ends_with(&again));
        assert_eq!(enclave.plugin("app").restarts, restarts);
        reused += u32::from(init_of_app(enclave).1 == number);
        if reused == 3 {
            pair.finish();
            return;
        }
    }
    panic!("the number was reused {reused} times");
}

/// The init of app as the test sees it, and as the supervisor does.
fn init_of_app(enclave: &Enclave) -> (i32, u32) {
    let command = enclave.plugin("app").pid;
    let has = |init: i32| children(init).into_iter().any(|child| pid_within(child.pid) == command);
    let found = children(enclave.pid).into_iter().find(|child| has(child.pid)).unwrap().pid;
    (found, pid_within(found).unwrap())
}

/// What the supervisor, one namespace below, calls a process.
fn pid_within(pid: i32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("NSpid:"))?.split_whitespace().nth(1)?.parse().ok()
}

/// Makes `pid` the next one of a namespace that is given, if nobody has it by then.
fn reuse(namespace: i32, pid: u32) {
    let last = format!("echo {} > /proc/sys/kernel/ns_last_pid", pid - 1);
    let mut command = std::process::Command::new("nsenter");
    command.args([&format!("--target={namespace}"), "--pid", "--mount", "--", "sh", "-c", &last]);
    assert!(command.status().unwrap().success());
}
