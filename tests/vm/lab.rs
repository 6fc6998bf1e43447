//! The very EIF on a nitro-enclave machine: heartbeat, measurements, policy.

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha384};

use crate::{
    client::Client,
    image,
    machine::{Bed, Machine, lab},
    proxy::Proxy,
    scene::{Scene, deployment, idle, script, with},
};

fn kernel(lab: &std::path::Path) -> String {
    format!("--kernel={}", lab.join("bzImage").display())
}

/// A register after one extension of a new one, both in hexadecimal.
fn extended(digest: &str) -> String {
    let pairs = (0..digest.len()).step_by(2).map(|at| u8::from_str_radix(&digest[at..at + 2], 16).unwrap());
    format!("{:x}", Sha384::new().chain_update([0; 48]).chain_update(pairs.collect::<Vec<_>>()).finalize())
}

#[test]
fn an_eif_measures_what_was_built_and_what_it_runs_and_takes_one_manifest() {
    let Some(lab) = lab() else { return };
    let scene = Scene::with_app();
    let manifest = deployment(json!([idle("app")]));
    let image = image::build(&scene, &manifest, &[&kernel(&lab)]);
    let mut machine = Machine::boot(&scene, &image, Bed::Lab, "");
    machine.answers();

    let put = |manifest: &Value| {
        let client = Client { path: machine.socket.clone(), token: None };
        let body = json!({
            "manifest": manifest.to_string(), "files": {}, "egressPort": 100_002, "instanceId": "vm-1",
        });
        client.call("PUT", "/v1/manifest", &body)
    };
    let other = deployment(json!([with(idle("app"), json!({"env": [{"name": "A", "value": "1"}]}))]));
    assert_eq!(put(&other).problem().kind, "PolicyRefused");

    let mut proxy = Proxy::start(&scene, None);
    proxy.until_accepted();
    let status = machine.answers();
    for (name, value) in &image.pcrs {
        assert_eq!(status.measurements.get(name), Some(value), "{name}: {:#?}", status.measurements);
    }
    assert_eq!(status.measurements["PCR16"], extended(&status.digest.unwrap()));
    // The token is in use by now: without it nobody is heard.
    assert_eq!(put(&other).problem().kind, "Unauthorized");
    let state: Value =
        serde_json::from_slice(&std::fs::read(scene.path("state/state.json")).unwrap()).unwrap();
    let token = state["session"]["token"].as_str().map(str::to_owned);
    let client = Client { path: machine.socket.clone(), token };
    let body = json!({
        "manifest": other.to_string(), "files": {}, "egressPort": 100_002, "instanceId": "vm-1",
    });
    assert_eq!(client.call("PUT", "/v1/manifest", &body).problem().kind, "PolicyRefused");

    proxy.process.signal(Signal::SIGTERM);
    assert_eq!(proxy.end().0.code(), Some(0));
    let (_, events) = machine.end();
    assert!(events.iter().any(|event| event["event"] == "heartbeat"), "{events:#?}");
    assert!(machine.console().contains("the parent has echoed the boot heartbeat"));
}

#[test]
fn a_second_manifest_is_a_conflict_whatever_the_policy() {
    let Some(lab) = lab() else { return };
    let scene = Scene::with_app();
    let manifest = deployment(json!([script("app", "cat /proc/self/cgroup; exec sleep 1000")]));
    let append = "--append=enclave.cgroup=v1";
    let image = image::build(&scene, &manifest, &[&kernel(&lab), "--policy=any", append]);
    let mut machine = Machine::boot(&scene, &image, Bed::Lab, "");
    machine.answers();
    let put = |client: &Client, manifest: &Value| {
        let body = json!({
            "manifest": manifest.to_string(), "files": {}, "egressPort": 100_002, "instanceId": "vm-1",
        });
        client.call("PUT", "/v1/manifest", &body)
    };
    let mut client = Client { path: machine.socket.clone(), token: None };
    let accepted: Value = put(&client, &manifest).json();
    client.token = accepted["token"].as_str().map(str::to_owned);
    let pcr16 = client.status().measurements["PCR16"].clone();
    let other = deployment(json!([idle("app")]));
    assert_eq!(put(&client, &other).problem().kind, "ManifestConflict");
    assert_eq!(put(&client, &manifest).status, 200, "the same one again is no second one");
    assert_eq!(client.status().measurements["PCR16"], pcr16, "the register is locked");
    // Version 1 of control groups, as it was asked for: a hierarchy of its own for each controller.
    client.logs(0, true).until("the memory controller's hierarchy", |record| {
        record.text.as_ref().is_some_and(|text| text.contains(":memory:/"))
    });
    assert_eq!(client.call("POST", "/v1/drain", &json!({"graceSeconds": 1})).status, 202);
    let all = json!({"bootId": accepted["bootId"], "logSeq": u64::MAX, "statusSeq": u64::MAX});
    assert_eq!(client.call("POST", "/v1/ack", &all).status, 204);
    machine.end();
}
