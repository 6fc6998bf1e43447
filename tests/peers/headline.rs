//! The README's by-hand section as it stands: telemetry exports every second, the supervisor samples every
//! five.

use std::{fs::File, thread};

use nix::sched::{CloneFlags, setns};

use crate::{
    arrived::exports,
    backend::{Backend, Ports, Way},
    deployment::{Deployment, Plan},
    network::Network,
    patience::eventually,
    programs::at_hand,
    web,
};

/// Exports that are looked at.
const EXPORTS: usize = 4;
/// The vendor's `HOST_PORT`.
const HEALTH: u16 = 4318;

/// The status of the telemetry plugin's `/healthz`, asked on its own loopback interface.
fn health(enclave: &Deployment) -> u16 {
    let pid = enclave.enclave.plugin("telemetry").pid.unwrap();
    // The supervisor counts in its own PID namespace.
    let outside = crate::process::descendants(enclave.enclave.pid).into_iter().find(|outside| {
        let status = std::fs::read_to_string(format!("/proc/{outside}/status")).unwrap_or_default();
        let inner = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
        inner.is_some_and(|pids| pids.split_whitespace().nth(1) == Some(&pid.to_string()))
    });
    let network = File::open(format!("/proc/{}/ns/net", outside.expect("telemetry's process"))).unwrap();
    let ask = move || {
        setns(network, CloneFlags::CLONE_NEWNET).unwrap();
        web::get(HEALTH, "/healthz").status
    };
    thread::spawn(ask).join().unwrap()
}

#[test]
fn with_the_readmes_intervals_the_headline_is_in_every_export_and_healthz_is_200_throughout() {
    if !at_hand(&["otelcol", "prometheus"]) {
        return;
    }
    let _network = Network::enter_new();
    let directory = tempfile::tempdir().unwrap();
    let backend = Backend::start(Way::Page, Ports(10_000), directory.path());
    let mut plan = Plan::new("hello-fastapi", "hello-0");
    plan.sample_seconds = 5;
    let enclave = Deployment::start(&plan, &backend);
    let has = |export: &[crate::arrived::Point], metric: &str| {
        export.iter().any(|point| point.metric == metric && point.value.is_some())
    };
    let headline = ["nitro_enclave_cpu_usage", "nitro_enclave_memory_usage"];
    let seen = eventually("exports", || {
        let exports = exports(&backend.arrived());
        let first = exports.iter().position(|export| headline.iter().all(|metric| has(export, metric)))?;
        assert_eq!(health(&enclave), 200, "after {} exports", exports.len());
        (exports.len() >= first + EXPORTS).then(|| exports[first..].to_vec())
    });
    for (at, export) in seen.iter().enumerate() {
        for metric in headline {
            assert!(has(export, metric), "{metric} is not in export {at} of {}", seen.len());
        }
    }
}
