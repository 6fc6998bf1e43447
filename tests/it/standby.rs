//! The next run of a plugin that has been up for a while waits for its turn.

use std::fs;

use enclave_protocol::control::PluginPhase;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

use crate::{
    enclave::{Enclave, is},
    patience::eventually,
    process::{Entry, children, command_line, kill_9},
    scene::{script, with},
    witness::{Pair, marker},
};

/// Stays. It marks its file system, and says there if it was marked before.
fn stays(marker: &str) -> Value {
    let text = format!("[ -e /tmp/seen ] && touch /tmp/old; touch /tmp/seen; exec sleep {marker}");
    with(script("app", &text), json!({"restart": {"resetAfter": "1s"}}))
}

/// The inits of plugins with this word, zombies not among them.
fn inits(enclave: &Enclave, marker: &str) -> Vec<Entry> {
    let has = |entry: &Entry| {
        let line = command_line(entry.pid);
        line.first().is_some_and(|name| name == "enclave-init") && line.concat().contains(marker)
    };
    children(enclave.pid).into_iter().filter(|entry| entry.state != 'Z' && has(entry)).collect()
}

/// The one whose run has not begun, once it waits for that.
fn standby(enclave: &Enclave, marker: &str) -> i32 {
    eventually("the next run to stand by", || {
        let idle = inits(enclave, marker).into_iter().find(|init| children(init.pid).is_empty())?;
        // Its program has been executed, and it waits in a system call.
        (idle.state == 'S').then_some(idle.pid)
    })
}

fn restarted(pair: &Pair) {
    let again = |event: &_| is(event, "app", "Started") && event.message.ends_with("restart 1");
    let seen = pair.enclave.events().up_to("the next run", again);
    assert!(!seen.iter().any(|event| event.reason == "SpawnFailed"), "{seen:#?}");
    let app = pair.enclave.plugin("app");
    assert_eq!((app.phase, app.restarts, app.ready), (PluginPhase::Running, 1, true));
}

#[test]
fn a_killed_plugins_successor_is_the_one_that_stood_by_and_finds_nothing_of_it() {
    let marker = marker(3001);
    let pair = Pair::start(stays(&marker));
    let enclave = &pair.enclave;
    let touched = || enclave.inside("app", "/tmp/seen").exists().then_some(());
    let first = enclave.started("app");
    eventually("the first run's file", touched);
    let next = standby(enclave, &marker);
    kill_9(first);
    restarted(&pair);
    assert_eq!(pair.init(), next);
    eventually("the second run's file", touched);
    assert!(!enclave.inside("app", "/tmp/old").exists());
    // And so on.
    assert_ne!(standby(enclave, &marker), next);
    pair.finish();
}

#[test]
fn a_next_run_that_is_lost_is_made_anew_when_it_is_needed() {
    let marker = marker(3002);
    let pair = Pair::start(stays(&marker));
    let first = pair.enclave.started("app");
    kill_9(standby(&pair.enclave, &marker));
    eventually("it to be reaped", || (inits(&pair.enclave, &marker).len() == 1).then_some(()));
    kill_9(first);
    restarted(&pair);
    pair.finish();
}

#[test]
fn a_next_run_that_is_lost_together_with_the_present_one_is_made_anew() {
    let marker = marker(3003);
    let pair = Pair::start(stays(&marker));
    let first = pair.enclave.started("app");
    let next = standby(&pair.enclave, &marker);
    // Stopped it takes the word and does not answer; dead it is not known to be before that.
    kill(Pid::from_raw(next), Signal::SIGSTOP).unwrap();
    kill_9(first);
    pair.enclave.events().until("its end", |event| is(event, "app", "Exited"));
    kill_9(next);
    restarted(&pair);
    pair.finish();
}

#[test]
fn nothing_stands_by_for_a_plugin_that_has_ended_for_good() {
    let marker = marker(3004);
    let text = format!("until [ -e /tmp/go ]; do usleep 20000; done; exit 0 # {marker}");
    let pair = Pair::start(with(script("app", &text), json!({"restartPolicy": "OnFailure"})));
    pair.enclave.started("app");
    standby(&pair.enclave, &marker);
    fs::write(pair.enclave.inside("app", "/tmp/go"), "").unwrap();
    pair.enclave.events().until("its end", |event| is(event, "app", "Completed"));
    eventually("both inits to go", || inits(&pair.enclave, &marker).is_empty().then_some(()));
    pair.finish();
}

#[test]
fn a_plugin_that_needs_most_of_its_memory_for_files_has_it_again_in_its_next_run() {
    let marker = marker(3005);
    // Most of what the file system may hold, which is half of all.
    let text = format!("head -c 30000000 /dev/zero > /tmp/full && echo full; exec sleep {marker}");
    let limits = json!({"resources": {"limits": {"memory": "64Mi"}}, "restart": {"resetAfter": "1s"}});
    let pair = Pair::start(with(script("app", &text), limits));
    let enclave = &pair.enclave;
    let mut logs = enclave.logs();
    for restarts in 1..=3 {
        logs.until("the file", |record| record.text.as_deref() == Some("full"));
        standby(enclave, &marker);
        kill_9(enclave.plugin("app").pid.unwrap());
        let again = format!("restart {restarts}");
        enclave
            .events()
            .until("the next run", |event| is(event, "app", "Started") && event.message.ends_with(&again));
    }
    logs.until("the last file", |record| record.text.as_deref() == Some("full"));
    assert_eq!((enclave.plugin("app").restarts, enclave.plugin("app").oom_kills), (3, 0));
    pair.finish();
}
