//! `cargo xtask test`: the stages of CI, in order, each under a heading.

use std::path::PathBuf;

use crate::{
    binaries::{self, Profile},
    cargo, deny,
    failure::Failure,
    old_kernel, packages,
    stopwatch::Stopwatch,
    terminal,
    tool::Tool,
};

/// Options of `cargo xtask test`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Runs only the tests whose names contain this, and no other stage.
    filter: Option<String>,
}

/// The directory of the static binaries, for the tests that start processes.
const BINARIES_VARIABLE: &str = "ENCLAVE_TEST_BIN_DIR";
/// The directory of `enclave-image`, for the tests on real machines.
const IMAGE_TOOL_VARIABLE: &str = "ENCLAVE_TEST_IMAGE_TOOL";
/// Their vsock device.
const VHOST_VARIABLE: &str = "ENCLAVE_TEST_VHOST_DEVICE_VSOCK";
/// A directory whose `run-eif` boots image files on a machine that is like Nitro, where there is one.
const LAB_VARIABLE: &str = "ENCLAVE_TEST_LAB";
/// Where such a directory is looked for beside the repository, when the variable names none.
const LAB_BESIDE: &str = "../shared/lab";

/// The vsock device of the machines that are booted here, as Unix sockets on this side.
pub(crate) const VHOST_DEVICE_VSOCK: Tool =
    Tool { name: "vhost-device-vsock", version: "0.3.0", arguments: &[] };

/// A part of the test run.
struct Stage {
    name: &'static str,
    run: fn() -> Result<(), Failure>,
}

/// Everything before the tests themselves, which come last so that the output ends with cargo's own summary.
const STAGES: [Stage; 6] = [
    Stage { name: "system packages", run: system_packages },
    Stage { name: "fmt", run: || cargo::run(cargo::cargo().args(["fmt", "--all", "--check"])) },
    Stage { name: "clippy", run: clippy },
    Stage { name: "tidy", run: tidy },
    Stage { name: "doc", run: doc },
    Stage { name: "deny", run: deny::check },
];

/// Runs everything CI runs, or the tests that match the filter.
pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    let total = Stopwatch::start();
    let ourselves = old_kernel::ourselves()?;
    let stages: &[Stage] = if options.filter.is_some() { &[] } else { &STAGES };
    let count = stages.len() + 2 + usize::from(options.filter.is_none());
    for (index, stage) in stages.iter().enumerate() {
        let watch = Stopwatch::start();
        terminal::heading(&format!("{}/{count} {}", index + 1, stage.name));
        (stage.run)().map_err(|failure| Failure::new(format!("stage {}: {failure}", stage.name)))?;
        terminal::say(&format!("    {}: ok, {watch}", stage.name));
    }
    terminal::heading(&format!("{}/{count} programs for the tests", stages.len() + 1));
    let binaries = binaries::build(Profile::Demo)?;
    let image_tool = binaries::build_image_tool()?;
    let vhost = VHOST_DEVICE_VSOCK.program()?;
    if options.filter.is_none() {
        let watch = Stopwatch::start();
        terminal::heading(&format!("{}/{count} process tests as on Linux 4.14", count - 1));
        old_kernel::test(&ourselves, |test| {
            test.env(BINARIES_VARIABLE, &binaries.directory);
        })?;
        terminal::say(&format!("    process tests as on Linux 4.14: ok, {watch}"));
    }
    terminal::heading(&format!("{count}/{count} tests ({total} so far)"));
    let mut test = cargo::cargo();
    test.args(["test", "--workspace", "--locked"]).args(&options.filter);
    test.env(BINARIES_VARIABLE, &binaries.directory);
    test.env(IMAGE_TOOL_VARIABLE, image_tool.parent().unwrap_or(&image_tool)).env(VHOST_VARIABLE, vhost);
    if let Some(lab) = lab() {
        test.env(LAB_VARIABLE, lab);
    }
    // Nothing is said after it: the output ends with cargo's own summary.
    cargo::run(&mut test)
}

fn system_packages() -> Result<(), Failure> {
    let mut needs = [&packages::NAMESPACES[..], &packages::PROCESS_TESTS].concat();
    needs.extend(packages::IMAGE_BUILD);
    needs.extend(packages::MACHINES);
    if lab().is_some() {
        needs.extend(packages::LAB);
    }
    packages::ensure(&needs)
}

/// The lab's directory.
fn lab() -> Option<PathBuf> {
    let named = std::env::var_os(LAB_VARIABLE).map(PathBuf::from);
    let lab = named.unwrap_or_else(|| cargo::workspace_root().join(LAB_BESIDE));
    lab.join("run-eif").is_file().then(|| lab.canonicalize().ok())?
}

fn clippy() -> Result<(), Failure> {
    let mut clippy = cargo::cargo();
    clippy.args(["clippy", "--workspace", "--all-targets", "--locked", "--", "--deny", "warnings"]);
    cargo::run(&mut clippy)
}

fn tidy() -> Result<(), Failure> {
    cargo::run(cargo::cargo().args(["test", "--quiet", "--locked", "--package", "xtask", "--test", "tidy"]))
}

fn doc() -> Result<(), Failure> {
    let mut doc = cargo::cargo();
    doc.args(["doc", "--workspace", "--no-deps", "--locked", "--quiet"])
        .env("RUSTDOCFLAGS", "--deny warnings");
    cargo::run(&mut doc)
}
