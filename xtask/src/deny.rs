//! `cargo deny`: licences, duplicate crates, sources, and known vulnerabilities.

use std::path::Path;

use crate::{cargo, failure::Failure, terminal, tool::Tool};

/// In the version that `deny.toml` is written for. Its default features are a second git implementation in
/// Rust and C; the git program does.
const CARGO_DENY: Tool =
    Tool { name: "cargo-deny", version: "0.20.2", arguments: &["--no-default-features"] };
/// Where the advisory database is; `deny.toml` names the same.
const DATABASE: &str = "https://github.com/RustSec/advisory-db";
/// How long fetching the database may take, in seconds: it is a few megabytes.
const FETCH_SECONDS_MAX: &str = "120";

/// Checks the dependencies. The advisories need a database from the network; without it, one line says that
/// they were not checked, and everything else still is.
pub(crate) fn check() -> Result<(), Failure> {
    let program = CARGO_DENY.program()?;
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
