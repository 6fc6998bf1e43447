//! Real machines: images built by `enclave-image`, booted under QEMU's software emulation, with the test and
//! host-proxy as their host over a real virtio-vsock. One machine runs at a time, so that each has the cores.
//!
//! Two kinds: `Stock` is Debian's QEMU (q35) and kernel, where the parent's CID is 2 and there is no Nitro
//! Secure Module; `Lab` boots the very EIF on QEMU's nitro-enclave machine, where the directory for it is
//! given (`ENCLAVE_TEST_LAB`). What needs the lab says `not run` without it.

#![expect(clippy::disallowed_types, reason = "the tests start the product's programs from outside")]
#![expect(clippy::disallowed_methods, reason = "real machines live in real time; a wait needs its deadline")]
#![expect(clippy::unwrap_used, reason = "a failure anywhere in a test is the test's failure")]
#![expect(clippy::needless_pass_by_value, reason = "manifests are written where they are handed over")]
#![expect(clippy::print_stderr, reason = "a test explains itself")]

#[path = "../it/client.rs"]
#[expect(dead_code, reason = "the process tests use more of it")]
mod client;
#[path = "../it/collector.rs"]
#[expect(dead_code, reason = "the process tests use more of it")]
mod collector;
#[path = "../it/otlp.rs"]
mod otlp;
#[path = "../it/patience.rs"]
mod patience;
#[path = "../it/process.rs"]
#[expect(dead_code, reason = "the process tests use more of it")]
mod process;
#[path = "../it/scene.rs"]
mod scene;

mod aws_init;
mod docker;
mod failures;
mod image;
mod lab;
mod machine;
mod main_path;
mod plugins;
mod proxy;

/// Says that a test cannot run here, past the capture of its output: a test is never skipped in silence.
fn not_run(why: &str) {
    use std::io::Write as _;
    // With standard error gone nobody reads it anyway.
    writeln!(std::io::stderr(), "not run: {why}").ok();
}
