//! Programs from crates.io that a task needs, each in one version, installed beneath the target directory.

use std::path::PathBuf;

use crate::{cargo, failure::Failure, packages, stopwatch::Stopwatch, terminal};

/// A program and how it is built.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tool {
    /// The program's and its package's name.
    pub(crate) name: &'static str,
    /// The one version that is used.
    pub(crate) version: &'static str,
    /// Further arguments of `cargo install`.
    pub(crate) arguments: &'static [&'static str],
}

impl Tool {
    /// Finds the program in this version, or installs it.
    pub(crate) fn program(&self) -> Result<PathBuf, Failure> {
        let Self { name, version, arguments } = self;
        let root = cargo::target_directory().join("tools");
        let installed = root.join("bin").join(name);
        for candidate in [Some(installed.clone()), packages::find(name)].into_iter().flatten() {
            let is_wanted = candidate.is_file()
                && self.is_version(&cargo::capture(cargo::command(&candidate).arg("--version"))?);
            if is_wanted {
                return Ok(candidate);
            }
        }
        let watch = Stopwatch::start();
        terminal::say(&format!(
            "{name} {version} is missing: installing it into {} (one to two minutes on two cores, once)",
            root.display()
        ));
        let mut install = cargo::cargo();
        // Unoptimised: an optimised build takes many minutes, and neither program has much to do.
        install.args(["install", name, "--version", version, "--locked", "--debug"]).args(*arguments);
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

    fn is_version(&self, line: &str) -> bool {
        line.split_whitespace().nth(1) == Some(self.version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_pinned_version_will_do() {
        let tool = Tool { name: "cargo-deny", version: "0.20.2", arguments: &[] };
        assert!(tool.is_version("cargo-deny 0.20.2\n"));
        assert!(!tool.is_version("cargo-deny 0.20.20"));
        assert!(!tool.is_version(""));
    }
}
