//! Programs and files of the operating system that a task needs, and how it gets them.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use crate::{
    cargo,
    failure::{Failure, While as _},
    terminal,
};

/// A program or file and where it comes from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Need {
    /// Its name in PATH, or with a slash the path of a file, whose name may have one `*`.
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

/// What `enclave-image` needs to be built: AWS's crate for image files links OpenSSL.
pub(crate) const IMAGE_BUILD: [Need; 2] = [
    Need { program: "pkg-config", package: "pkg-config", purpose: "finds OpenSSL for enclave-image" },
    Need {
        program: "/usr/include/openssl/ssl.h",
        package: "libssl-dev",
        purpose: "is linked by enclave-image, which signs image files with it",
    },
];

/// What the tests on real machines need.
pub(crate) const MACHINES: [Need; 4] = [
    Need {
        program: "qemu-system-x86_64",
        package: "qemu-system-x86",
        purpose: "boots the images of the tests under software emulation",
    },
    Need {
        program: "/boot/vmlinuz-*-cloud-amd64",
        package: "linux-image-6.12-cloud-amd64",
        purpose: "is the kernel of the images of the tests",
    },
    Need { program: "buildah", package: "buildah", purpose: "builds Dockerfile.eif without a Docker engine" },
    Need { program: "openssl", package: "openssl", purpose: "makes keys and certificates for the tests" },
];

/// What the lab's own QEMU needs.
pub(crate) const LAB: [Need; 7] = [
    Need {
        program: "/usr/lib/x86_64-linux-gnu/libglib-2.0.so.*",
        package: "libglib2.0-0",
        purpose: "is linked by the lab's QEMU",
    },
    Need { program: "python3", package: "python3", purpose: "runs the lab's script" },
    Need {
        program: "/usr/lib/x86_64-linux-gnu/libcbor.so.0.*",
        package: "libcbor0.8",
        purpose: "is linked by the lab's QEMU",
    },
    Need {
        program: "/usr/lib/x86_64-linux-gnu/libgnutls.so.*",
        package: "libgnutls30",
        purpose: "is linked by the lab's QEMU",
    },
    Need {
        program: "/usr/lib/x86_64-linux-gnu/libfdt.so.*",
        package: "libfdt1",
        purpose: "is linked by the lab's QEMU",
    },
    Need { program: "/usr/share/seabios/*.bin", package: "seabios", purpose: "is the lab's firmware" },
    Need {
        program: "/usr/share/qemu/linuxboot_dma.bin",
        package: "qemu-system-data",
        purpose: "is the lab's firmware",
    },
];

/// The peers of the supervision benchmark whose installation starts nothing, and what the others need.
pub(crate) const SUPERVISORS: [Need; 8] = [
    Need { program: "unshare", package: "util-linux", purpose: "starts a peer in namespaces of its own" },
    Need { program: "cc", package: "gcc", purpose: "makes the benchmark's static child" },
    Need {
        program: "/usr/lib/python3/dist-packages/pkg_resources/__init__.py",
        package: "python3-pkg-resources",
        purpose: "is used by supervisord",
    },
    Need { program: "s6-svscan", package: "s6", purpose: "is a peer of the supervisor" },
    Need { program: "svscan", package: "daemontools", purpose: "is a peer of the supervisor" },
    Need { program: "tini", package: "tini", purpose: "is a peer of the supervisor as an init" },
    Need { program: "dumb-init", package: "dumb-init", purpose: "is a peer of the supervisor as an init" },
    Need { program: "catatonit", package: "catatonit", purpose: "is a peer of the supervisor as an init" },
];

/// The peers whose installation would start services on this machine.
pub(crate) const SERVICES: [&str; 2] = ["runit", "supervisor"];

/// Whether it is there.
fn is_there(need: &Need) -> bool {
    if !need.program.contains('/') {
        return find(need.program).is_some();
    }
    let path = Path::new(need.program);
    let (Some(directory), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str()))
    else {
        return false;
    };
    let Some((start, end)) = name.split_once('*') else { return path.is_file() };
    // A directory that is not there has no such file.
    let mut entries = std::fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok);
    entries.any(|entry| {
        let name = entry.file_name();
        name.to_str().is_some_and(|name| name.starts_with(start) && name.ends_with(end))
    })
}

/// Looks a program up in PATH.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(program)).find(|file| file.is_file())
}

/// Makes sure that the programs are there: as root with apt-get, said first; otherwise it says what to
/// install.
pub(crate) fn ensure(needs: &[Need]) -> Result<(), Failure> {
    let missing: Vec<Need> = needs.iter().copied().filter(|need| !is_there(need)).collect();
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
    // A kernel for a guest needs no initial file system of this machine's, which takes half a minute to make.
    install.env("INITRD", "No");
    cargo::run(install.args(["install", "-y", "-qq", "--no-install-recommends"]).args(&packages))?;
    missing.iter().find(|need| !is_there(need)).map_or(Ok(()), |need| {
        Err(Failure::new(format!(
            "apt-get installed {}, but there is still no {}",
            need.package, need.program
        )))
    })
}

/// Unpacks packages beneath the target directory, which installs and starts nothing; the directory.
pub(crate) fn unpack(packages: &[&str]) -> Result<PathBuf, Failure> {
    let root = cargo::target_directory().join("tools/debian");
    std::fs::create_dir_all(&root).while_doing(root.display())?;
    for package in packages {
        let done = root.join(format!("{package}.unpacked"));
        if done.exists() {
            continue;
        }
        terminal::say(&format!("unpacking {package} into {}", root.display()));
        let directory = tempfile::tempdir().while_doing("a directory for a package")?;
        let mut download = cargo::command("apt-get");
        download.current_dir(directory.path()).args(["-qq", "download", package]);
        // Without root it may not change to its own user, and says so.
        cargo::run(download.args(["-o", "APT::Sandbox::User=root"]))?;
        let file = std::fs::read_dir(directory.path()).while_doing(package)?.next();
        let file = file.ok_or_else(|| Failure::new(format!("apt-get downloaded no {package}")))?;
        let file = file.while_doing(package)?.path();
        cargo::run(cargo::command("dpkg").arg("--extract").arg(file).arg(&root))?;
        std::fs::write(&done, "").while_doing(done.display())?;
    }
    Ok(root)
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
    fn a_file_is_found_by_its_path_or_a_pattern_of_its_name() {
        let need = |program| Need { program, package: "p", purpose: "p" };
        assert!(is_there(&need("/etc/passwd")) && is_there(&need("/etc/pass*")) && is_there(&need("sh")));
        assert!(!is_there(&need("/etc/passwd*x")) && !is_there(&need("/nonexistent/*")));
    }

    #[test]
    fn a_program_is_found_in_the_path() {
        assert!(find("sh").is_some());
        assert!(find("no-such-program-anywhere").is_none());
    }
}
