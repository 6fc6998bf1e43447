//! `cargo deny`: licences, duplicate crates, sources, and known vulnerabilities.

use std::path::{Path, PathBuf};

use crate::{cargo, failure::Failure, packages, stopwatch::Stopwatch, terminal};

/// The version that `deny.toml` is written for and that CI installs.
const VERSION: &str = "0.20.2";
/// Where the advisory database is; `deny.toml` names the same.
const DATABASE: &str = "https://github.com/RustSec/advisory-db";
/// How long fetching the database may take, in seconds: it is a few megabytes.
const FETCH_SECONDS_MAX: &str = "120";

/// Checks the dependencies. The advisories need a database from the network; without it, one line says that
/// they were not checked, and everything else still is.
pub(crate) fn check() -> Result<(), Failure> {
    let program = program()?;
    run(&program, &["licenses", "bans", "sources"])?;
    let mut fetch = cargo::command("timeout");
    fetch.arg(FETCH_SECONDS_MAX).arg(&program).args(["--locked", "--log-level", "off", "fetch", "db"]);
    if cargo::capture(fetch.stderr(std::process::Stdio::null())).is_err() {
        terminal::say(&format!("advisories NOT CHECKED: {DATABASE} cannot be fetched from this machine"));
        return Ok(());
    }
    run(&program, &["advisories"])
}

fn run(program: &Path, checks: &[&str]) -> Result<(), Failure> {
    let mut command = cargo::command(program);
    cargo::run(
        command
            .args(["--workspace", "--all-features", "--locked", "check", "--hide-inclusion-graph"])
            .args(checks),
    )
}

/// Finds cargo-deny, or installs it beneath the target directory.
fn program() -> Result<PathBuf, Failure> {
    let root = cargo::target_directory().join("tools");
    let installed = root.join("bin/cargo-deny");
    for candidate in [Some(installed.clone()), packages::find("cargo-deny")].into_iter().flatten() {
        if candidate.is_file() && is_wanted(&cargo::capture(cargo::command(&candidate).arg("--version"))?) {
            return Ok(candidate);
        }
    }
    let watch = Stopwatch::start();
    terminal::say(&format!(
        "cargo-deny {VERSION} is missing: installing it into {} (one to two minutes on two cores, once)",
        root.display()
    ));
    let mut install = cargo::cargo();
    // Unoptimised: it runs for a second, and an optimised build of it takes many minutes. Its default
    // features are a second git implementation in Rust and C; the git program does.
    install.args([
        "install",
        "cargo-deny",
        "--version",
        VERSION,
        "--locked",
        "--debug",
        "--no-default-features",
    ]);
    install.args(["--config", "profile.dev.debug=false", "--root"]).arg(&root);
    // In its own build directory: `cargo install` picks a temporary one otherwise and begins anew after a
    // failure.
    install.env("CARGO_TARGET_DIR", root.join("build"));
    cargo::run(&mut install)?;
    // Half a gigabyte that the next run has no use for.
    std::fs::remove_dir_all(root.join("build")).ok();
    terminal::say(&format!("installed in {watch}"));
    Ok(installed)
}

fn is_wanted(version_line: &str) -> bool {
    version_line.split_whitespace().nth(1) == Some(VERSION)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_pinned_version_will_do() {
        assert!(is_wanted("cargo-deny 0.20.2\n"));
        assert!(!is_wanted("cargo-deny 0.20.20"));
        assert!(!is_wanted(""));
    }
}
