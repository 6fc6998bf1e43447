//! Processes that lost their parents: whoever the supervisor is, it takes them over and leaves no zombie.

use serde_json::json;

use crate::{
    enclave::{Enclave, How, is},
    patience::eventually,
    process::{Entry, children, kill_9},
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

/// The supervisor's children that are neither the plugin nor `net`.
fn adopted(enclave: &Enclave, own: &[i32]) -> Vec<Entry> {
    children(enclave.pid).into_iter().filter(|child| !own.contains(&child.pid)).collect()
}

fn survives_the_storm(how: How) {
    let mut enclave = storm(how);
    let net = enclave.net();
    let app = eventually("the plugin among the children", || {
        let found = children(enclave.pid).into_iter().find(|child| {
            crate::process::command_line(child.pid).first().is_some_and(|word| word == "sleep")
        });
        found.map(|child| child.pid)
    });
    let own = [net, app];
    // The shells between them and the plugin are gone: all are the supervisor's now.
    eventually("the supervisor to adopt them all", || {
        (adopted(&enclave, &own).len() == ORPHANS).then_some(())
    });
    std::fs::write(enclave.scene.root("app").join("tmp/gate"), vec![b'x'; ORPHANS]).unwrap();
    eventually("every orphan to be reaped", || adopted(&enclave, &own).is_empty().then_some(()));
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
fn as_pid_1_it_reaps_a_storm_of_orphans() {
    survives_the_storm(How { as_init: true, ..How::default() });
}

#[test]
fn as_an_ordinary_process_it_adopts_and_reaps_a_storm_of_orphans() {
    survives_the_storm(How::default());
}
