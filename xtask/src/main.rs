//! `cargo xtask`: the one entry point for people and CI. It depends on no other member of the workspace and
//! drives their binaries from outside, as a user does.

mod bench;
mod binaries;
mod cargo;
mod demo;
mod deny;
mod failure;
mod old_kernel;
mod packages;
mod peers;
mod python;
mod stages;
mod stopwatch;
mod terminal;
mod tool;

use std::process::ExitCode;

use clap::Parser;

use crate::failure::Failure;

/// Builds, shows, tests and measures this repository; installs what that needs and says so first.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", version, about)]
enum Task {
    /// Runs the whole system on this machine, with no VM, and shows its metrics arriving at an OTLP
    /// collector.
    Demo(demo::Options),
    /// Runs everything CI runs.
    Test(stages::Options),
    /// Measures the release build.
    Bench(bench::Options),
    /// Builds the real Collector, Prometheus, prometheus-adapter and Kubernetes control plane for the tests,
    /// unpacks a real FastAPI, and prints where they are.
    Peers(peers::Options),
    /// Runs a command without the system calls that are younger than Linux 4.14.
    #[command(hide = true)]
    OldKernel(old_kernel::Options),
}

fn run(task: Task) -> Result<ExitCode, Failure> {
    match task {
        Task::Demo(options) => demo::run(&options),
        Task::Test(options) => stages::run(&options).map(|()| ExitCode::SUCCESS),
        Task::Bench(options) => bench::run(&options).map(|()| ExitCode::SUCCESS),
        Task::Peers(options) => peers::run(&options).map(|()| ExitCode::SUCCESS),
        Task::OldKernel(options) => Err(old_kernel::run(&options)),
    }
}

fn main() -> ExitCode {
    run(Task::parse()).unwrap_or_else(|failure| {
        terminal::complain(&failure.to_string());
        ExitCode::FAILURE
    })
}
