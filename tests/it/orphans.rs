//! Processes that lost their parents: whoever the supervisor is, their plugin's init takes them over and
//! leaves no zombie.

use serde_json::json;

use crate::{
    enclave::{Enclave, How, is},
    patience::eventually,
    process::{children, command_line, kill_9},
    scene::{Scene, deployment, script},
};

const ORPHANS: usize = 300;

/// Starts a plugin whose grandchildren lose their parents at once and end all together when the gate opens.
fn storm(how: How) -> Enclave {
    let mut enclave = Scene::with_app().start_as(how);
    let text = format!(
        "mkfifo /tmp/gate; exec 3<>/tmp/gate; i=0\n\
         while [ $i -lt {ORPHANS} ]; do (dd bs=1 count=1 <&3 >/dev/null 2>&1 &); i=$((i+1)); done\n\
         echo orphaned; exec sleep 1000 3<&-"
    );
    enclave.run(&deployment(json!([script("app", &text)])));
    enclave.line("app", "orphaned");
    enclave
}

fn survives_the_storm(how: How) {
    let mut enclave = storm(how);
    let named = |pid: i32, name: &str| command_line(pid).first().is_some_and(|word| word == name);
    let child = |parent: i32, name: &str| {
        eventually(name, || children(parent).into_iter().map(|child| child.pid).find(|pid| named(*pid, name)))
    };
    let init = child(enclave.pid, "enclave-init");
    let app = child(init, "sleep");
    // The shells between them and the plugin are gone: all are its init's now, and so not the supervisor's.
    eventually("the init to adopt them all", || (children(init).len() == ORPHANS + 1).then_some(()));
    std::fs::write(format!("/proc/{app}/root/tmp/gate"), vec![b'x'; ORPHANS]).unwrap();
    eventually("every orphan to be reaped", || (children(init).len() == 1).then_some(()));
    let before = children(enclave.pid);
    assert!(before.iter().all(|child| child.state != 'Z'), "{before:#?}");
    // The reaper still tells a plugin from an orphan.
    kill_9(app);
    enclave
        .events()
        .until("a restart", |event| is(event, "app", "Started") && event.message.contains("restart 1"));
    assert_eq!(enclave.plugin("app").restarts, 1);
    enclave.drain(0);
    assert_eq!(enclave.finish().exit.code(), Some(0));
}

#[test]
fn under_pid_1_a_plugin_s_init_reaps_a_storm_of_orphans() {
    survives_the_storm(How { as_init: true, ..How::default() });
}

#[test]
fn under_an_ordinary_process_a_plugin_s_init_reaps_a_storm_of_orphans() {
    survives_the_storm(How::default());
}
