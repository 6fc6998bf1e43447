//! The programs that the demo, the tests and the benchmarks run.

#![expect(clippy::disallowed_types, reason = "as the module `cargo`")]

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use crate::{cargo, failure::Failure, packages, stopwatch::Stopwatch, terminal};

/// The programs of the product.
pub(crate) const PROGRAMS: [&str; 5] =
    ["enclave-supervisor", "enclave-init", "enclave-telemetry", "hello", "enclave-host-proxy"];

/// The package of one of [`PROGRAMS`]: of its own name, but for what comes with the supervisor.
fn package(program: &str) -> &str {
    if program == "enclave-init" { "enclave-supervisor" } else { program }
}

/// How they are built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    /// Quick to build, see `[profile.demo]` in Cargo.toml.
    Demo,
    /// What ships.
    Release,
}

impl Profile {
    fn name(self) -> &'static str {
        match self {
            Self::Demo => "demo",
            Self::Release => "release",
        }
    }
}

/// A target whose programs need no library of the system they run on: an enclave's root file system has none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StaticTarget {
    /// As rustc names it.
    pub(crate) triple: String,
    rustflags: Option<&'static str>,
}

impl StaticTarget {
    /// Sets what a build for this target needs beside its name.
    fn prepare(&self, build: &mut std::process::Command) {
        if let Some(flags) = self.rustflags {
            let target = self.triple.to_uppercase().replace('-', "_");
            build.env(format!("CARGO_TARGET_{target}_RUSTFLAGS"), flags);
        }
        set_c_compiler(build, &self.triple);
    }
}

/// Finds a static target, installing musl's standard library if it is missing.
pub(crate) fn static_target() -> Result<StaticTarget, Failure> {
    let arch = std::env::consts::ARCH;
    let musl = format!("{arch}-unknown-linux-musl");
    if is_installed(&musl)? {
        return Ok(StaticTarget { triple: musl, rustflags: None });
    }
    if packages::find("rustup").is_some() {
        terminal::say(&format!("Rust's standard library for {musl} is missing: rustup target add {musl}"));
        let added = cargo::run(cargo::command("rustup").args(["target", "add", &musl]));
        if added.is_ok() && is_installed(&musl)? {
            return Ok(StaticTarget { triple: musl, rustflags: None });
        }
    }
    let gnu = format!("{arch}-unknown-linux-gnu");
    terminal::say(&format!(
        "{musl} cannot be had here: building for {gnu} with -C target-feature=+crt-static instead. They \
         are static too, about a megabyte larger each."
    ));
    Ok(StaticTarget { triple: gnu, rustflags: Some("-C target-feature=+crt-static") })
}

fn is_installed(triple: &str) -> Result<bool, Failure> {
    let sysroot = cargo::capture(cargo::command("rustc").args(["--print", "sysroot"]))?;
    Ok(Path::new(sysroot.trim()).join("lib/rustlib").join(triple).join("lib").is_dir())
}

/// Built programs.
#[derive(Debug)]
pub(crate) struct Binaries {
    /// The directory all of them are in.
    pub(crate) directory: PathBuf,
    paths: BTreeMap<String, PathBuf>,
}

impl Binaries {
    /// The path of one of [`PROGRAMS`].
    pub(crate) fn path(&self, program: &str) -> &Path {
        self.paths.get(program).expect("invariant: `build` checked that every program is there")
    }
}

/// Builds [`PROGRAMS`] statically. One call of cargo for all, so that what they share is compiled once.
pub(crate) fn build(profile: Profile) -> Result<Binaries, Failure> {
    let target = static_target()?;
    let watch = Stopwatch::start();
    terminal::say(&format!(
        "building {} for {} (profile {}; a cold build takes some minutes on two cores)",
        PROGRAMS.join(", "),
        target.triple,
        profile.name()
    ));
    let mut build = cargo::cargo();
    build.args(["build", "--locked", "--profile", profile.name(), "--target", &target.triple]);
    for program in PROGRAMS {
        build.args(["--package", package(program), "--bin", program]);
    }
    target.prepare(&mut build);
    let mut paths = cargo::build(&mut build, count_crates(&target)?)?;
    paths.retain(|name, _| PROGRAMS.contains(&name.as_str()));
    if let Some(missing) = PROGRAMS.iter().find(|program| !paths.contains_key(**program)) {
        return Err(Failure::new(format!("cargo built no program named {missing}")));
    }
    terminal::say(&format!("built in {watch}"));
    let directory = cargo::target_directory().join(&target.triple).join(profile.name());
    Ok(Binaries { directory, paths })
}

/// Builds `enclave-image`, an ordinary program of this machine, as the tests of the workspace build it: AWS's
/// SDK comes with it, which nobody wants to compile twice.
pub(crate) fn build_image_tool() -> Result<PathBuf, Failure> {
    let name = "enclave-image";
    terminal::say(&format!("building {name} (some minutes when it is cold)"));
    let mut build = cargo::cargo();
    build.args(["build", "--locked", "--workspace", "--bin", name]);
    built(&mut build, name)
}

/// Builds the peer of the boot benchmark, statically and as it would ship.
pub(crate) fn build_bare_init() -> Result<PathBuf, Failure> {
    let (target, name) = (static_target()?, "bare-init");
    let mut build = cargo::cargo();
    build.args(["build", "--locked", "--profile", Profile::Release.name(), "--target", &target.triple]);
    build.args(["--package", "enclave-supervisor", "--example", name]);
    target.prepare(&mut build);
    built(&mut build, name)
}

fn built(build: &mut std::process::Command, name: &str) -> Result<PathBuf, Failure> {
    let expected = crates_in(&cargo::capture(cargo::cargo().args(["tree", "--locked", "--prefix", "none"]))?);
    let mut paths = cargo::build(build, expected)?;
    paths.remove(name).ok_or_else(|| Failure::new(format!("cargo built no program named {name}")))
}

/// The only C in the programs is ring's cryptography, which calls no C library: where there is no compiler
/// named for musl (Debian's musl-tools), the machine's own makes the same code, and nothing has to be
/// installed.
fn set_c_compiler(build: &mut std::process::Command, triple: &str) {
    let is_musl = triple.ends_with("-musl");
    let named = [format!("{}-linux-musl-gcc", std::env::consts::ARCH), "musl-gcc".to_owned()];
    let variable = format!("CC_{}", triple.replace('-', "_"));
    let is_chosen = std::env::var_os(&variable).is_some() || std::env::var_os("CC").is_some();
    if is_musl && !is_chosen && named.iter().all(|compiler| packages::find(compiler).is_none()) {
        build.env(variable, "cc");
    }
}

/// How many crates a build of [`PROGRAMS`] consists of, as `cargo tree` lists them.
fn count_crates(target: &StaticTarget) -> Result<usize, Failure> {
    let mut tree = cargo::cargo();
    tree.args([
        "tree",
        "--locked",
        "--prefix",
        "none",
        "--edges",
        "normal,build",
        "--target",
        &target.triple,
    ]);
    for program in PROGRAMS {
        tree.args(["--package", package(program)]);
    }
    Ok(crates_in(&cargo::capture(&mut tree)?))
}

/// The number of different crates in `cargo tree --prefix none`, which marks repetitions by ` (*)`.
fn crates_in(tree: &str) -> usize {
    tree.lines()
        .map(|line| line.trim_end_matches(" (*)"))
        .filter(|line| !line.is_empty())
        .collect::<std::collections::BTreeSet<_>>()
        .len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crate_that_the_tree_repeats_counts_once() {
        assert_eq!(crates_in("a v1.0.0\nb v1.0.0\nc v2.0.0\n\nd v1.0.0\nb v1.0.0 (*)\n"), 4);
    }
}
