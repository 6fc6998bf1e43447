//! Programs of the operating system that a task needs, and how it gets them.

use std::{fmt::Write as _, path::PathBuf};

use crate::{cargo, failure::Failure, terminal};

/// A program and where it comes from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Need {
    /// Its name in PATH.
    pub(crate) program: &'static str,
    /// The Debian package that holds it.
    pub(crate) package: &'static str,
    /// What it is for.
    pub(crate) purpose: &'static str,
}

/// What the demo and the process tests need to put a supervisor into namespaces of its own.
pub(crate) const NAMESPACES: [Need; 2] = [
    Need {
        program: "unshare",
        package: "util-linux",
        purpose: "starts the supervisor in namespaces of its own",
    },
    Need {
        program: "setpriv",
        package: "util-linux",
        purpose: "ends the supervisor if its parent is killed",
    },
];

/// What the process tests need beside [`NAMESPACES`].
pub(crate) const PROCESS_TESTS: [Need; 3] = [
    Need {
        program: "busybox",
        package: "busybox-static",
        purpose: "is the root file system of the plugins in the process tests",
    },
    Need {
        program: "protoc",
        package: "protobuf-compiler",
        purpose: "decodes what arrives at the tests' OTLP collector, independently of this repository",
    },
    Need { program: "openssl", package: "openssl", purpose: "signs manifests as the README shows it" },
];

/// Looks a program up in PATH.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(program)).find(|file| file.is_file())
}

/// Makes sure that the programs are there: as root with apt-get, said first; otherwise it says what to
/// install.
pub(crate) fn ensure(needs: &[Need]) -> Result<(), Failure> {
    let missing: Vec<Need> = needs.iter().copied().filter(|need| find(need.program).is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages = package_names(&missing);
    if !nix::unistd::geteuid().is_root() || find("apt-get").is_none() {
        return Err(Failure::new(explanation(&missing)));
    }
    terminal::say(&format!("missing: {}", names(&missing)));
    terminal::say(&format!("installing as root: apt-get install {}", packages.join(" ")));
    let mut update = cargo::command("apt-get");
    cargo::run(update.args(["update", "-qq"]))?;
    let mut install = cargo::command("apt-get");
    install.env("DEBIAN_FRONTEND", "noninteractive");
    cargo::run(install.args(["install", "-y", "-qq", "--no-install-recommends"]).args(&packages))?;
    missing.iter().find(|need| find(need.program).is_none()).map_or(Ok(()), |need| {
        Err(Failure::new(format!(
            "apt-get installed {}, but there is still no {}",
            need.package, need.program
        )))
    })
}

fn package_names(missing: &[Need]) -> Vec<&'static str> {
    let mut packages: Vec<&str> = missing.iter().map(|need| need.package).collect();
    packages.sort_unstable();
    packages.dedup();
    packages
}

fn names(missing: &[Need]) -> String {
    missing.iter().map(|need| need.program).collect::<Vec<_>>().join(", ")
}

fn explanation(missing: &[Need]) -> String {
    let mut text = String::from("programs are missing that this task needs:\n");
    for Need { program, package, purpose } in missing {
        // Writing to a String cannot fail.
        writeln!(text, "  {program} ({purpose}), from the package {package}").ok();
    }
    text.push_str("install them and start again; on Debian and Ubuntu: sudo apt-get install ");
    text.push_str(&package_names(missing).join(" "));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_not_install_is_told_what_to_install() {
        expect_test::expect![[r"
            programs are missing that this task needs:
              unshare (starts the supervisor in namespaces of its own), from the package util-linux
              setpriv (ends the supervisor if its parent is killed), from the package util-linux
            install them and start again; on Debian and Ubuntu: sudo apt-get install util-linux"]]
        .assert_eq(&explanation(&NAMESPACES));
    }

    #[test]
    fn the_process_tests_need_debian_packages_of_their_own() {
        assert_eq!(package_names(&PROCESS_TESTS), ["busybox-static", "openssl", "protobuf-compiler"]);
    }

    #[test]
    fn a_program_is_found_in_the_path() {
        assert!(find("sh").is_some());
        assert!(find("no-such-program-anywhere").is_none());
    }
}
