//! A root file system with Python, FastAPI, `prometheus_client` and the OpenTelemetry SDK, for the user
//! plugin of a test in `tests/peers`.
//!
//! Debian's packages are downloaded with everything that they depend on and unpacked, never installed. What
//! Debian does not have comes from PyPI, with the versions and hashes in `xtask/peers/fastapi`. The result is
//! kept beside the other peers.

#![expect(clippy::disallowed_types, reason = "as the module `cargo`")]

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use sha2::{Digest as _, Sha256};

use crate::{
    cargo,
    failure::{Failure, While as _},
    packages::{self, Need},
    peers,
    stopwatch::Stopwatch,
    terminal,
};

/// Its name as a peer.
pub(crate) const NAME: &str = "fastapi";
/// Debian's packages in it, which bring what they depend on.
const PACKAGES: [&str; 3] = ["python3-fastapi", "python3-uvicorn", "python3-prometheus-client"];
/// The pins of what comes from PyPI.
const REQUIREMENTS: &str = "xtask/peers/fastapi/requirements.txt";
/// What is needed to make it.
const NEEDS: [Need; 1] =
    [Need { program: "pip3", package: "python3-pip", purpose: "fetches the OpenTelemetry SDK for a test" }];
/// This file is a part of what the result is made from.
const RECIPE: &str = include_str!("python.rs");
/// Directories of the root that are links into `usr` where Debian's packages do not bring them themselves.
const USR_LINKS: [&str; 3] = ["bin", "lib", "lib64"];
/// Proves that the interpreter starts and finds everything.
const IMPORTS: &str = "import fastapi, uvicorn, prometheus_client, opentelemetry.sdk, \
     opentelemetry.exporter.otlp.proto.http";
/// Characters of the hash in the directory's name.
const HASH_CHARACTERS: usize = 16;

/// The root file system, if it has been made before.
pub(crate) fn cached() -> Option<PathBuf> {
    home().ok().map(|home| home.join("rootfs")).filter(|root| root.is_dir())
}

/// Makes it if it is missing; its path.
pub(crate) fn ensure() -> Result<PathBuf, Failure> {
    if let Some(root) = cached() {
        return Ok(root);
    }
    packages::ensure(&NEEDS)?;
    let (home, directory) = (home()?, peers::directory()?);
    fs::create_dir_all(&directory).while_doing(directory.display())?;
    terminal::say(&format!(
        "making {NAME}: Debian's {} with what they depend on, and from PyPI {}: about 20 s and 25 MB to \
         download; unpacked, with nothing installed, in {}",
        PACKAGES.join(", "),
        requirements()?.lines().filter_map(pinned).collect::<Vec<_>>().join(", "),
        home.display()
    ));
    let _alone = peers::lock(&directory)?;
    if cached().is_none() {
        let watch = Stopwatch::start();
        let unfinished = tempfile::Builder::new().prefix("unfinished-").tempdir_in(&directory);
        let unfinished = unfinished.while_doing(directory.display())?;
        make(unfinished.path())?;
        // A run that is killed leaves nothing under the final name.
        fs::rename(unfinished.keep(), &home).while_doing(home.display())?;
        terminal::say(&format!("{NAME}: made in {watch}"));
    }
    cached().ok_or_else(|| Failure::new(format!("{NAME} was made and is gone")))
}

fn home() -> Result<PathBuf, Failure> {
    let mut hash = Sha256::new();
    for part in [RECIPE, &requirements()?, std::env::consts::ARCH] {
        // The length keeps two parts apart from one that holds both.
        hash.update(format!("{}\n{part}", part.len()));
    }
    let hash = format!("{:x}", hash.finalize());
    Ok(peers::directory()?.join(format!("{NAME}-{}", &hash[..HASH_CHARACTERS])))
}

fn requirements() -> Result<String, Failure> {
    let path = cargo::workspace_root().join(REQUIREMENTS);
    fs::read_to_string(&path).while_doing(path.display())
}

/// The package and version of a line of the pins.
fn pinned(line: &str) -> Option<&str> {
    line.split_whitespace().next().filter(|word| word.contains("=="))
}

fn make(directory: &Path) -> Result<(), Failure> {
    let root = directory.join("rootfs");
    fs::create_dir(&root).while_doing(root.display())?;
    let archives = directory.join("archives");
    download(directory, &archives)?;
    for file in sorted(&archives)?.iter().filter(|file| file.extension().is_some_and(|end| end == "deb")) {
        cargo::run(cargo::command("dpkg").arg("--extract").arg(file).arg(&root))?;
    }
    fs::remove_dir_all(&archives).while_doing(archives.display())?;
    for name in USR_LINKS {
        if !root.join(name).exists() && root.join("usr").join(name).exists() {
            symlink(Path::new("usr").join(name), root.join(name)).while_doing(name)?;
        }
    }
    let link = root.join("usr/bin/python3");
    let python = fs::read_link(&link).while_doing(link.display())?;
    let python = python.to_string_lossy().into_owned();
    // As in the images with Python that manifests are written for.
    let local = root.join("usr/local/bin");
    fs::create_dir_all(&local).while_doing(local.display())?;
    symlink("/usr/bin/python3", local.join("python")).while_doing(local.display())?;
    let packages = root.join("usr/local/lib").join(&python).join("dist-packages");
    cargo::run(&mut pip(&packages, python.trim_start_matches("python")))?;
    cargo::run(inside(&root).args(["-c", IMPORTS]))?;
    // A plugin cannot keep what it compiles: its root is new at each run.
    cargo::run(inside(&root).args(["-m", "compileall", "-q", "/usr/lib", "/usr/local/lib"]))
}

/// Downloads the packages with all that they depend on, as for a machine on which nothing is installed.
fn download(directory: &Path, archives: &Path) -> Result<(), Failure> {
    let partial = archives.join("partial");
    fs::create_dir_all(&partial).while_doing(partial.display())?;
    let nothing = directory.join("status");
    fs::write(&nothing, "").while_doing(nothing.display())?;
    let mut install = cargo::command("apt-get");
    install.args(["install", "--download-only", "--yes", "-qq", "--no-install-recommends"]);
    for option in [
        format!("Dir::State::status={}", nothing.display()),
        format!("Dir::Cache::archives={}", archives.display()),
        // Nothing of this machine is changed, and without root its lock cannot be taken.
        "Debug::NoLocking=1".to_owned(),
        "APT::Sandbox::User=root".to_owned(),
    ] {
        install.args(["-o", &option]);
    }
    install.args(PACKAGES);
    if cargo::run(&mut install).is_err() {
        // The lists are missing or older than what the archive has.
        if nix::unistd::geteuid().is_root() {
            cargo::run(cargo::command("apt-get").args(["update", "-qq"]))?;
        }
        cargo::run(&mut install)?;
    }
    fs::remove_file(&nothing).while_doing(nothing.display())
}

fn sorted(directory: &Path) -> Result<Vec<PathBuf>, Failure> {
    let files: Result<Vec<PathBuf>, _> = fs::read_dir(directory)
        .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.path())).collect());
    let mut files = files.while_doing(directory.display())?;
    files.sort();
    Ok(files)
}

/// The installation of the pins for this version of Python, whichever this machine's `pip3` runs on.
fn pip(target: &Path, version: &str) -> Command {
    let mut pip = cargo::command("pip3");
    pip.args(["install", "--quiet", "--disable-pip-version-check", "--no-input", "--no-compile"]);
    pip.args(["--no-deps", "--require-hashes", "--only-binary=:all:", "--python-version", version]);
    pip.arg(format!("--platform=manylinux2014_{}", std::env::consts::ARCH));
    pip.arg("--target").arg(target).arg("--requirement").arg(REQUIREMENTS);
    // It is not this machine that is installed into.
    pip.env("PIP_ROOT_USER_ACTION", "ignore");
    pip
}

/// The root file system's Python.
fn inside(root: &Path) -> Command {
    let mut command = if nix::unistd::geteuid().is_root() {
        cargo::command("chroot")
    } else {
        let mut unshare = cargo::command("unshare");
        unshare.args(["--map-root-user", "chroot"]);
        unshare
    };
    command.arg(root).arg("/usr/bin/python3");
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pin_has_a_version_and_a_hash() {
        let text = requirements().unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let pins: Vec<usize> = (0..lines.len()).filter(|at| pinned(lines[*at]).is_some()).collect();
        assert!(pins.len() > 2, "{text}");
        for at in pins {
            assert!(lines[at].ends_with(" \\") && lines[at + 1].contains("--hash=sha256:"), "{}", lines[at]);
        }
        assert_eq!(pinned("idna==3.20 \\"), Some("idna==3.20"));
        assert_eq!((pinned("# a comment"), pinned("    --hash=sha256:00")), (None, None));
    }
}
