//! Machines that are not as they should be: each goes on with a remark, or ends with its reason told.

use serde_json::json;

use crate::{
    image,
    machine::{Bed, Machine},
    proxy::Proxy,
    scene::{Scene, deployment, idle, script},
};

/// Boots an idle deployment with these words on the kernel's command line.
fn booted(append: &str) -> (Scene, Machine) {
    let scene = Scene::with_app();
    let image = image::build(&scene, &deployment(json!([idle("app")])), &["--policy=any"]);
    let machine = Machine::boot(&scene, &image, Bed::Stock, append);
    (scene, machine)
}

/// A machine that cannot be used: host-proxy ends with code 4 and the reason, and the machine is reset.
fn ends_with(append: &str, reason: &str) {
    let (scene, mut machine) = booted(append);
    let mut proxy = Proxy::start(&scene, None);
    let (exit, last) = proxy.end();
    assert_eq!(exit.code(), Some(4), "{last:#}");
    assert!(last.to_string().contains(reason), "{last:#}");
    machine.end();
    let console = machine.console();
    assert!(console.contains("the machine is reset"), "{console}");
    assert!(!console.contains("Kernel panic"), "{console}");
}

#[test]
fn a_missing_nsm_ends_a_machine_that_needs_one_and_the_host_is_told() {
    ends_with("enclave.nsm=required", "no Nitro Secure Module");
}

#[test]
fn a_value_that_an_option_cannot_have_ends_the_machine_and_the_host_is_told() {
    ends_with("enclave.sample-interval=often", "invalid value 'often'");
}

#[test]
fn nonsense_on_the_kernel_command_line_is_remarked_and_the_machine_goes_on() {
    let words = "net shim run --help = enclave enclave. enclave.colour=red ENCLAVE=1 check \"a b";
    let (scene, mut machine) = booted(words);
    let proxy = Proxy::start(&scene, None);
    proxy.until_accepted();
    let status = machine.answers();
    let unknown: Vec<&str> = status
        .conditions
        .iter()
        .filter(|condition| condition.kind == "UnknownKernelOption")
        .map(|condition| condition.message.as_str())
        .collect();
    assert!(unknown.iter().any(|message| message.contains("enclave.colour")), "{status:#?}");
    // Nothing was measured here, and nobody is told otherwise.
    assert!(status.conditions.iter().any(|condition| condition.kind == "NoNsm"), "{status:#?}");
    assert!(status.measurements.is_empty());
    proxy.process.signal(nix::sys::signal::Signal::SIGTERM);
    machine.end();
}

#[test]
fn plugins_run_on_a_kernel_without_overlayfs_and_terminals_and_it_is_remarked() {
    let scene = Scene::with_app();
    let write = "echo kept > /written; cat /written; exec sleep 1000";
    let image = image::build(&scene, &deployment(json!([script("app", write)])), &["--policy=any"]);
    let append = "module_blacklist=overlay initcall_blacklist=init_devpts_fs";
    let mut machine = Machine::boot(&scene, &image, Bed::Stock, append);
    let mut proxy = Proxy::start(&scene, None);
    assert_eq!(proxy.line("app", "kept"), "kept");
    let status = machine.answers();
    let told = |kind: &str, text: &str| {
        status.conditions.iter().any(|known| known.kind == kind && known.message.contains(text))
    };
    assert!(told("NoWritableLayer", "overlayfs"), "{status:#?}");
    assert!(told("MountFailed", "/dev/pts"), "{status:#?}");
    proxy.process.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(proxy.end().0.code(), Some(0));
    machine.end();
}

#[test]
fn a_machine_without_a_vsock_device_ends_with_the_reason_on_its_console() {
    // The driver of the bus that the device is on does not start.
    let (_scene, mut machine) = booted("initcall_blacklist=virtio_pci_driver_init");
    machine.end();
    let console = machine.console();
    assert!(console.contains("no vsock device"), "{console}");
    assert!(console.contains("the machine is reset"), "{console}");
}

#[test]
fn a_host_that_never_asks_does_not_keep_a_broken_machine_alive() {
    let (_scene, mut machine) = booted("enclave.nsm=required");
    machine.says("this boot fails");
    machine.end();
    assert!(machine.console().contains("the host has not asked why this boot failed"));
}

#[test]
fn a_full_root_file_system_is_the_plugins_own_trouble() {
    let scene = Scene::with_app();
    let fill = "dd if=/dev/zero of=/fill bs=64k 2>&1 | grep -o 'No space left on device'; echo full; exec sleep 1000";
    let image = image::build(&scene, &deployment(json!([script("app", fill)])), &["--policy=any"]);
    let mut machine = Machine::boot(&scene, &image, Bed::Stock, "");
    let mut proxy = Proxy::start(&scene, None);
    assert_eq!(proxy.line("app", "No space"), "No space left on device");
    proxy.line("app", "full");
    let status = machine.answers();
    assert!(status.ready, "{status:#?}");
    proxy.process.signal(nix::sys::signal::Signal::SIGTERM);
    let (exit, _) = proxy.end();
    assert_eq!(exit.code(), Some(0));
    machine.end();
}

#[test]
fn the_host_sets_the_clock_once_and_then_moves_it_no_further_than_it_can_have_drifted() {
    const DAY: u64 = 24 * 60 * 60 * 1_000_000_000;
    let scene = Scene::with_app();
    let date = "while :; do date -u +%s; usleep 200000; done";
    let manifest = deployment(json!([script("app", date)]));
    let image = image::build(&scene, &manifest, &["--policy=any", "--build-time=1700000000"]);
    let mut machine = Machine::boot(&scene, &image, Bed::Stock, "");
    let status = machine.answers();
    let mut client = crate::client::Client { path: machine.socket.clone(), token: None };
    let body =
        json!({"manifest": manifest.to_string(), "files": {}, "egressPort": 100_002, "instanceId": "vm-1"});
    let accepted: serde_json::Value = client.call("PUT", "/v1/manifest", &body).json();
    client.token = accepted["token"].as_str().map(str::to_owned);
    let set = |nanos: u64| client.call("PUT", "/v1/clock", &json!({"unixNanos": nanos}));
    let built = 1_700_000_000_000_000_000;
    assert_eq!(set(built - 1).problem().kind, "ClockRefused");
    assert_eq!(set(built + 365 * DAY).status, 204);
    client
        .logs(0, true)
        .until("the new date", |record| record.text.as_ref().is_some_and(|text| text.starts_with("1731536")));
    assert_eq!(set(built + 366 * DAY).problem().kind, "ClockRefused");
    assert_eq!(set(built).problem().kind, "ClockRefused");
    assert_eq!(client.call("POST", "/v1/drain", &json!({"graceSeconds": 1})).status, 202);
    let all = json!({"bootId": status.boot_id, "logSeq": u64::MAX, "statusSeq": u64::MAX});
    assert_eq!(client.call("POST", "/v1/ack", &all).status, 204);
    machine.end();
}
