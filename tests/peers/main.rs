//! The real programs that a user runs beside this project: the OpenTelemetry Collector, Prometheus,
//! prometheus-adapter and a Kubernetes control plane, with real enclaves (a supervisor with `--init
//! container`, host-proxy, telemetry and a user plugin), on the files of `examples/autoscaling`.
//!
//! Every test, or all tests that share the control plane, has a network namespace of its own, so ports are
//! fixed and never taken. `cargo xtask peers` builds the programs, and `cargo xtask test` says where they
//! are (`ENCLAVE_TEST_PEER_…`); without them a test says `not run`.

#![expect(clippy::disallowed_types, reason = "the tests start the programs from outside")]
#![expect(clippy::disallowed_methods, reason = "real processes live in real time; a wait needs its deadline")]
#![expect(clippy::unwrap_used, reason = "a failure anywhere in a test is the test's failure")]
#![expect(clippy::needless_pass_by_value, reason = "manifests are written where they are handed over")]
#![expect(clippy::print_stderr, reason = "a test explains itself")]

#[path = "../it/client.rs"]
#[expect(dead_code, reason = "the process tests use more of it")]
mod client;
#[path = "../it/enclave.rs"]
#[expect(dead_code, reason = "the process tests use more of it")]
mod enclave;
#[path = "../it/groups.rs"]
mod groups;
#[path = "../it/patience.rs"]
mod patience;
#[path = "../it/process.rs"]
#[expect(dead_code, reason = "the process tests use more of it")]
mod process;
#[path = "../it/scene.rs"]
#[expect(dead_code, reason = "the process tests use more of it")]
mod scene;

mod arrived;
mod autoscaling;
mod backend;
mod boundary;
mod cluster;
mod deployment;
mod ends;
mod families;
mod fastapi;
mod headline;
mod network;
mod node_exporter;
mod outage;
mod programs;
mod prometheus;
mod web;

/// Says that a test cannot run here, past the capture of its output: a test is never skipped in silence.
fn not_run(why: &str) {
    use std::io::Write as _;
    // With standard error gone nobody reads it anyway.
    writeln!(std::io::stderr(), "not run: {why}").ok();
}
