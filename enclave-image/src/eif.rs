//! Writes an enclave image file with AWS's own crate. That crate panics on bad input, so everything is
//! looked at here first.

use std::{
    collections::BTreeMap,
    fs::File,
    path::{Path, PathBuf},
};

use aws_nitro_enclaves_image_format::{
    defs::{EIF_HDR_ARCH_ARM64, EifBuildInfo, EifIdentityInfo},
    utils::EifBuilder,
};
use enclave_protocol::timestamp::Timestamp;
use sha2::{Digest as _, Sha384};

use crate::{
    failure::{Failure, Outcome},
    kernel::Kernel,
    program::Machine,
    ramdisk,
    signing::Signing,
    tree::Tree,
};

/// What nitro-cli calls SHA-384.
const HASH_ALGORITHM: &str = "Sha384 { ... }";

/// A ramdisk.
#[derive(Debug)]
pub enum Ramdisk<'a> {
    /// To be made from a tree.
    Tree(&'a Tree),
    /// As it is, but for the padding.
    File(&'a Path),
}

/// Everything that an image file is made of.
#[derive(Debug)]
pub struct Parts<'a> {
    /// The kernel.
    pub kernel: &'a Kernel,
    /// Its whole command line.
    pub cmdline: String,
    /// The first is measured in PCR 1, the others in PCR 2.
    pub ramdisks: &'a [Ramdisk<'a>],
    /// The deployment's name.
    pub name: String,
    /// Unix seconds.
    pub build_time: u32,
    /// Said in the metadata, which is not measured.
    pub custom: serde_json::Value,
    /// Who signs, if anyone.
    pub signing: Option<Signing>,
}

/// Measurements by name, as nitro-cli prints them.
pub type Measurements = BTreeMap<String, String>;

/// Writes the image file, in a temporary file beside `output` first.
pub fn write(parts: Parts<'_>, output: &Path) -> Outcome<Measurements> {
    let failed = |error: std::io::Error| Failure::internal(output, error);
    let dir = output.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    let work = tempfile::Builder::new().prefix(".enclave-image-").tempdir_in(dir).map_err(failed)?;
    let kernel = work.path().join("kernel");
    std::fs::write(&kernel, &parts.kernel.bytes).map_err(failed)?;
    let mut ramdisks = Vec::new();
    for (index, source) in parts.ramdisks.iter().enumerate() {
        let path = work.path().join(format!("ramdisk{index}"));
        match source {
            Ramdisk::Tree(tree) => ramdisk::write(tree, &path)?,
            Ramdisk::File(file) => copy(file, &path)?,
        }
        ramdisks.push(path);
    }
    let made = work.path().join("eif");
    let measurements = assemble(parts, &kernel, &ramdisks, &made)?;
    std::fs::rename(&made, output).map_err(failed)?;
    Ok(measurements)
}

fn copy(from: &Path, to: &Path) -> Outcome<()> {
    std::fs::copy(from, to).map_err(|error| Failure::input(from, error))?;
    let file = File::options().append(true).open(to);
    file.and_then(|mut file| ramdisk::pad(&mut file)).map_err(|error| Failure::internal(to, error))
}

fn assemble(parts: Parts<'_>, kernel: &Path, ramdisks: &[PathBuf], output: &Path) -> Outcome<Measurements> {
    let metadata = EifIdentityInfo {
        img_name: parts.name,
        img_version: "1".to_owned(),
        build_info: EifBuildInfo {
            build_time: Timestamp(u64::from(parts.build_time) * 1_000_000_000).to_string(),
            build_tool: env!("CARGO_PKG_NAME").to_owned(),
            build_tool_version: env!("CARGO_PKG_VERSION").to_owned(),
            img_os: "Linux".to_owned(),
            img_kernel: parts.kernel.version.clone(),
        },
        docker_info: serde_json::Value::Null,
        custom_info: parts.custom,
    };
    let flags = match parts.kernel.machine {
        Machine::X86_64 => 0,
        Machine::Aarch64 => EIF_HDR_ARCH_ARM64,
    };
    let signing = parts.signing.map(Signing::into_key_data);
    let mut builder = EifBuilder::new(kernel, parts.cmdline, signing, Sha384::new(), flags, metadata);
    for path in ramdisks {
        builder.add_ramdisk(path);
    }
    let mut file = File::create_new(output).map_err(|error| Failure::internal(output, error))?;
    let mut measurements = builder.write_to(&mut file);
    // The crate prints its hasher, whose name has changed; nitro-cli's documents and scripts have this one.
    measurements.insert("HashAlgorithm".to_owned(), HASH_ALGORITHM.to_owned());
    file.sync_all().map_err(|error| Failure::internal(output, error))?;
    Ok(measurements)
}

/// The measurements as nitro-cli prints them.
pub fn json(measurements: &Measurements) -> String {
    format!("{:#}\n", serde_json::json!({ "Measurements": measurements }))
}
