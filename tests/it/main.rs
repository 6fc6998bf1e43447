//! The whole system as real processes: the supervisor in a network namespace of its own, plugins with root
//! file systems of busybox or of the product's own programs, and the test as the host.
//!
//! Every test has its own directory and its own processes, so they run side by side. A wait is for an event,
//! and bounded; what has no event (a counter in a sample, the process table) is asked for again and again.

#![expect(clippy::disallowed_types, reason = "the tests start the product's programs from outside")]
#![expect(clippy::disallowed_methods, reason = "real processes live in real time; a wait needs its deadline")]
#![expect(clippy::unwrap_used, reason = "a failure anywhere in a test is the test's failure")]
#![expect(clippy::needless_pass_by_value, reason = "manifests are written where they are handed over")]
#![expect(clippy::print_stderr, reason = "a test explains itself")]

mod bad_plugins;
mod chaos;
mod client;
mod collector;
mod command_line;
mod control;
#[path = "../sim/dice.rs"]
mod dice;
mod enclave;
mod environment;
mod export;
mod grants;
mod groups;
mod host;
mod isolation;
mod limits;
mod log_export;
mod logs;
mod main_path;
mod manifests;
mod network;
mod oom;
mod orphans;
mod otlp;
mod patience;
mod probes;
mod process;
mod proxy;
mod scene;
mod signed;
mod stalls;
mod standby;
mod stopping;
mod supervision;
mod witness;

/// Says that a test cannot run here, past the capture of its output: a test is never skipped in silence.
fn not_run(why: &str) {
    use std::io::Write as _;
    // With standard error gone nobody reads it anyway.
    writeln!(std::io::stderr(), "not run: {why}").ok();
}
