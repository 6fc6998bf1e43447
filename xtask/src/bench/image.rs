//! What an image weighs, and the images that are measured.

#![expect(clippy::disallowed_types, reason = "the benchmark drives the product's programs from outside")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use super::Table;
use crate::{
    binaries::{self, Binaries},
    cargo,
    failure::{Failure, While as _},
};

/// Most that supervisor and telemetry may weigh in an image, compressed, in bytes. Memory for an enclave is
/// four times its image.
const BASE_BYTES_MAX: u64 = 8 << 20;

/// A directory with images in it.
pub(super) struct Studio {
    directory: tempfile::TempDir,
    tool: PathBuf,
}

impl Studio {
    /// Builds `enclave-image`, and lays out a plugin that does nothing.
    pub(super) fn new() -> Result<Self, Failure> {
        let tool = binaries::build_image_tool()?;
        let directory = tempfile::tempdir().while_doing("a directory for images")?;
        let studio = Self { directory, tool };
        fs::create_dir_all(studio.path("app/rootfs")).while_doing("a plugin's directory")?;
        let config = json!({"image": "bench/app:1", "config": {}});
        fs::write(studio.path("app/config.json"), config.to_string())
            .while_doing("a plugin's config.json")?;
        let plugin = json!({"name": "app", "image": "bench/app:1", "command": ["/nothing"]});
        let manifest = json!({
            "apiVersion": "k8s.oblv.com/v1alpha1",
            "kind": "NitroEnclaveDeployment",
            "metadata": {"name": "bench"},
            "spec": {"userPlugins": [plugin]},
        });
        fs::write(studio.path("manifest.yaml"), manifest.to_string()).while_doing("a manifest")?;
        Ok(studio)
    }

    /// A path in the directory.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A call of `enclave-image`.
    pub(super) fn tool(&self) -> std::process::Command {
        cargo::command(&self.tool)
    }

    /// Builds an image with this program as its first process; with `kernel` instead of Debian's.
    pub(super) fn build(
        &self,
        init: &Path,
        telemetry: &Path,
        kernel: Option<&Path>,
        output: &str,
    ) -> Result<PathBuf, Failure> {
        let output = self.path(output);
        let mut build = self.tool();
        build.arg("build").arg("--manifest").arg(self.path("manifest.yaml"));
        build.arg("--image").arg(format!("app=dir:{}", self.path("app").display()));
        build.args(["--policy", "any", "--nsm", "auto"]);
        build.arg("--supervisor").arg(init).arg("--telemetry").arg(telemetry).arg("--output").arg(&output);
        // Whatever the first process is, with the same init for the plugins: it is loaded too.
        build.arg("--plugin-init").arg(telemetry.with_file_name("enclave-init"));
        if let Some(kernel) = kernel {
            build.arg("--kernel").arg(kernel);
        }
        cargo::capture(&mut build)?;
        Ok(output)
    }
}

/// The table, and whether it is over its budget.
pub(super) fn table(binaries: &Binaries) -> Result<Table, Failure> {
    let studio = Studio::new()?;
    let kernel = studio.path("kernel");
    fs::write(&kernel, kernel_header()).while_doing("a kernel")?;
    let program = |name: &str| binaries.path(name);
    let image = studio.build(
        program("enclave-supervisor"),
        program("enclave-telemetry"),
        Some(&kernel),
        "base.eif",
    )?;
    let mut inspect = studio.tool();
    inspect.arg("inspect").arg(&image).args(["-o", "json"]);
    let inspected: Value =
        serde_json::from_str(&cargo::capture(&mut inspect)?).while_doing("enclave-image inspect")?;
    let bytes = ramdisk_bytes(&inspected).ok_or_else(|| Failure::new("inspect shows no ramdisk"))?;
    Ok(weigh(bytes))
}

/// Stands in for a kernel with every driver built in: the beginning of a bzImage, up to its magic number (see
/// the kernel's Documentation/arch/x86/boot.rst).
fn kernel_header() -> Vec<u8> {
    const MAGIC_AT: usize = 0x202;
    let mut header = vec![0; 1 << 10];
    header[MAGIC_AT..][..4].copy_from_slice(b"HdrS");
    header
}

fn ramdisk_bytes(inspected: &Value) -> Option<u64> {
    let sections = inspected.get("sections")?.as_array()?.iter();
    let ramdisks = sections.filter(|section| section["kind"].as_str() == Some("ramdisk"));
    let bytes: Vec<u64> = ramdisks.map(|section| section["bytes"].as_u64()).collect::<Option<_>>()?;
    (!bytes.is_empty()).then(|| bytes.iter().sum())
}

fn weigh(bytes: u64) -> Table {
    let verdict = if bytes <= BASE_BYTES_MAX { "kept" } else { "EXCEEDED" };
    let mebibytes = bytes as f64 / f64::from(1 << 20);
    let max = BASE_BYTES_MAX >> 20;
    let text = format!(
        "| image of supervisor and telemetry, without kernel | bytes | MiB | budget |\n|---|---:|---:|---|\n\
         | ramdisks, compressed | {bytes} | {mebibytes:.2} | ≤ {max} MiB: {verdict} |\n"
    );
    let complaint = format!("the base image has {bytes} bytes and may have {BASE_BYTES_MAX}");
    let complaints = if bytes <= BASE_BYTES_MAX { Vec::new() } else { vec![complaint] };
    Table { text, complaints }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ramdisks_of_an_image_are_added_up_and_held_against_the_budget() {
        let inspected = json!({"sections": [
            {"kind": "kernel", "bytes": 9_000_000}, {"kind": "ramdisk", "bytes": 2}, {"kind": "ramdisk", "bytes": 3},
        ]});
        assert_eq!(ramdisk_bytes(&inspected), Some(5));
        assert_eq!(ramdisk_bytes(&json!({"sections": []})), None);
        assert!(weigh(BASE_BYTES_MAX).complaints.is_empty());
        assert_eq!(weigh(BASE_BYTES_MAX + 1).complaints.len(), 1);
    }
}
