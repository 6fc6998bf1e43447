//! `cargo xtask test`: the stages of CI, in order, each under a heading.

#![expect(clippy::disallowed_types, reason = "as the module `cargo`")]

use std::{path::PathBuf, process::Command};

use crate::{
    binaries::{self, Profile},
    cargo, deny,
    failure::Failure,
    old_kernel, packages, peers, python,
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
/// Why the real programs beside ours are not at hand, for the tests that need them.
const PEERS_NOT_HERE_VARIABLE: &str = "ENCLAVE_TEST_PEERS_NOT_HERE";
/// The path of Debian's `prometheus-node-exporter`, whose readings are compared with ours.
const NODE_EXPORTER_VARIABLE: &str = "ENCLAVE_TEST_PEER_NODE_EXPORTER";
/// Its package. Installing it would start a service.
const NODE_EXPORTER: &str = "prometheus-node-exporter";
/// The root file system with FastAPI.
const FASTAPI_VARIABLE: &str = "ENCLAVE_TEST_PEER_FASTAPI";
/// Set to `true` by every CI: there nothing may be left out.
const CI_VARIABLE: &str = "CI";
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
    let peers = Peers::find(options.filter.is_none());
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
    peers.tell(&mut test);
    // Nothing is said after it: the output ends with cargo's own summary.
    cargo::run(&mut test)?;
    if options.filter.is_none() { peers.confess() } else { Ok(()) }
}

/// The programs of the tier `tests/peers`, or why it does not run.
struct Peers {
    built: peers::Built,
    node_exporter: Option<PathBuf>,
    fastapi: Option<PathBuf>,
    not_here: Option<Failure>,
}

impl Peers {
    /// Builds them for a whole run. One that filters tests takes what has been built before: nobody who asked
    /// for one test waits a quarter of an hour.
    fn find(is_whole: bool) -> Self {
        let built = if !nix::unistd::geteuid().is_root() {
            Err(Failure::new("not root: the tests put the programs into a network namespace"))
        } else if is_whole {
            peers::ensure_all().and_then(|built| Ok((built, node_exporter()?, Some(python::ensure()?))))
        } else {
            let built = peers::cached();
            let why = || Failure::new("not built yet: `cargo xtask peers` does");
            if built.is_complete() {
                node_exporter().map(|exporter| (built, exporter, python::cached()))
            } else {
                Err(why())
            }
        };
        match built {
            Ok((built, exporter, fastapi)) => {
                Self { built, node_exporter: Some(exporter), fastapi, not_here: None }
            }
            Err(failure) => Self {
                built: peers::Built::default(),
                node_exporter: None,
                fastapi: None,
                not_here: Some(failure),
            },
        }
    }

    fn tell(&self, test: &mut Command) {
        self.built.tell(test);
        if let Some(path) = &self.node_exporter {
            test.env(NODE_EXPORTER_VARIABLE, path);
        }
        if let Some(path) = &self.fastapi {
            test.env(FASTAPI_VARIABLE, path);
        }
        if let Some(why) = &self.not_here {
            test.env(PEERS_NOT_HERE_VARIABLE, why.to_string().replace('\n', "; "));
        }
    }

    /// Where the tier did not run, the last lines of the output name it, within a summary of cargo's; in CI
    /// that is a failure.
    fn confess(&self) -> Result<(), Failure> {
        let Some(why) = &self.not_here else { return Ok(()) };
        if std::env::var(CI_VARIABLE).is_ok_and(|ci| ci == "true") {
            return Err(Failure::new(format!("tests/peers did not run, and {CI_VARIABLE}=true: {why}")));
        }
        terminal::say(
            "\nnot run: tests/peers, the tests with the real Collector, Prometheus and Kubernetes:",
        );
        let mut test = cargo::cargo();
        test.args(["test", "--quiet", "--locked", "--test", "peers", "the_real_programs_are_at_hand"]);
        self.tell(&mut test);
        cargo::run(&mut test)
    }
}

fn node_exporter() -> Result<PathBuf, Failure> {
    Ok(packages::unpack(&[NODE_EXPORTER])?.join("usr/bin").join(NODE_EXPORTER))
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
