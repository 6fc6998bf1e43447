//! The demo's directory: plugins as an image would hold them, the deployment's files, sockets and logs.

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use serde_json::json;

use crate::{
    binaries::Binaries,
    failure::{Failure, While as _},
};

/// The vendor's manifest, with what the demo adds.
const MANIFEST: &str = include_str!("hello-fastapi.yaml");
/// `metadata.name` in it.
pub(crate) const DEPLOYMENT: &str = "hello-fastapi";
/// The name of the user plugin in it.
pub(crate) const USER_PLUGIN: &str = "fastapi";
/// The `hostPort` in it.
const HOST_PORT: u16 = 4455;
/// The telemetry plugin's configuration that the manifest mounts.
const TELEMETRY_CONFIG: &str = "scrape_configs: []\n";
/// Directories that a program expects in its root file system.
const ROOTFS_DIRECTORIES: [&str; 5] = ["etc", "proc", "dev", "tmp", "run"];

/// Where everything is.
#[derive(Debug)]
pub(crate) struct Layout {
    /// The directory that holds all the others.
    pub(crate) root: PathBuf,
    /// The port of the machine that leads to hello.
    pub(crate) host_port: u16,
}

impl Layout {
    /// Makes all files in an empty directory.
    pub(crate) fn create(root: &Path, binaries: &Binaries) -> Result<Self, Failure> {
        let layout = Self { root: root.to_owned(), host_port: free_host_port()? };
        layout.add_plugin(USER_PLUGIN, image(MANIFEST)?, binaries.path("hello"))?;
        layout.add_plugin("telemetry", "enclave-telemetry:demo", binaries.path("enclave-telemetry"))?;
        layout.write("hello-fastapi.yaml", &manifest(MANIFEST, layout.host_port)?)?;
        layout.write("config/configmaps/telemetry-config/config.yaml", TELEMETRY_CONFIG)?;
        layout.write("policy.json", "{\"manifest\": \"any\"}\n")?;
        layout.make_directory("state")?;
        Ok(layout)
    }

    /// A path in the demo's directory.
    pub(crate) fn path(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }

    /// A root file system with one static program, and the image configuration beside it.
    fn add_plugin(&self, plugin: &str, image: &str, program: &Path) -> Result<(), Failure> {
        let rootfs = format!("plugins/{plugin}/rootfs");
        for directory in ROOTFS_DIRECTORIES {
            self.make_directory(&format!("{rootfs}/{directory}"))?;
        }
        let name = program.file_name().expect("invariant: cargo built a file").to_string_lossy();
        let copy = self.path(&format!("{rootfs}/{name}"));
        fs::copy(program, &copy).while_doing(copy.display())?;
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).while_doing(copy.display())?;
        let config = json!({
            "image": image,
            "config": {
                "Entrypoint": [format!("/{name}")],
                "Cmd": [],
                "Env": ["PATH=/"],
                "WorkingDir": "/",
                "User": "",
            },
        });
        self.write(&format!("plugins/{plugin}/config.json"), &format!("{config:#}\n"))
    }

    fn make_directory(&self, relative: &str) -> Result<(), Failure> {
        let path = self.path(relative);
        fs::create_dir_all(&path).while_doing(path.display())
    }

    fn write(&self, relative: &str, text: &str) -> Result<(), Failure> {
        let path = self.path(relative);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).while_doing(parent.display())?;
        }
        fs::write(&path, text).while_doing(path.display())
    }
}

/// The manifest, with another `hostPort` if its own is taken on this machine.
fn manifest(text: &str, host_port: u16) -> Result<String, Failure> {
    let field = format!("hostPort: {HOST_PORT}");
    if text.matches(&field).count() != 1 {
        return Err(Failure::new(format!("the demo's manifest should say `{field}` once")));
    }
    Ok(text.replace(&field, &format!("hostPort: {host_port}")))
}

/// The image reference of the manifest's first user plugin: the demo's `config.json` must name the same.
fn image(text: &str) -> Result<&str, Failure> {
    let line = text.lines().find_map(|line| line.trim().strip_prefix("image: "));
    line.ok_or_else(|| Failure::new("the demo's manifest should name an image"))
}

fn free_host_port() -> Result<u16, Failure> {
    if TcpListener::bind(("127.0.0.1", HOST_PORT)).is_ok() { Ok(HOST_PORT) } else { free_port() }
}

/// A loopback port that was free a moment ago.
pub(crate) fn free_port() -> Result<u16, Failure> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).while_doing("a free port")?;
    Ok(listener.local_addr().while_doing("a free port")?.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_host_port_is_replaced_in_the_manifest_and_nothing_else_is() {
        let changed = manifest(MANIFEST, 40_000).unwrap();
        assert!(changed.contains("hostPort: 40000\n"));
        assert_eq!(changed.replace("hostPort: 40000", "hostPort: 4455"), MANIFEST);
    }

    #[test]
    fn the_manifest_names_what_the_demo_looks_for() {
        assert_eq!(image(MANIFEST).unwrap(), "public.ecr.aws/oblivious-ai/oblv-sample-fastapi:latest");
        for line in [format!("  name: {DEPLOYMENT}\n"), format!("    - name: {USER_PLUGIN}\n")] {
            assert!(MANIFEST.contains(&line), "{line}");
        }
    }
}
