//! An OCI image layout in a tar archive. Every blob is compared with the digest that names it.

use std::{io, path::Path};

use serde::{Deserialize, de::DeserializeOwned};
use sha2::{Digest as _, Sha256};

use crate::{
    archive::Archive,
    failure::Outcome,
    image::{self, ConfigFile, Hashing, Image},
    limits::{JSON_BYTES_MAX, Limits},
    program::Machine,
    spool::{Content, Spool},
};

/// Names the images of the layout.
const INDEX: &str = "index.json";
/// An index may name another one, as tools for several platforms write it.
const INDEXES_MAX: usize = 4;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    platform: Option<Platform>,
}

#[derive(Debug, Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

#[derive(Debug, Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

/// Reads the archive's only image, or of several the only one for `machine`.
pub(crate) fn read(
    path: &Path,
    machine: Machine,
    limits: &Limits,
    spool: &mut Spool,
    remark: &mut dyn FnMut(&str),
) -> Outcome<Image> {
    let archive = Archive::open(path, limits)?;
    let mut index: Index = archive.json(INDEX)?;
    for _ in 0..INDEXES_MAX {
        let descriptor = choose(&archive, index, machine)?;
        if descriptor.media_type.contains("index") || descriptor.media_type.contains("manifest.list") {
            index = document(&archive, &descriptor)?;
            continue;
        }
        let manifest: Manifest = document(&archive, &descriptor)?;
        let config: ConfigFile = document(&archive, &manifest.config)?;
        let mut layers = Vec::new();
        for layer in manifest.layers.iter().take(limits.layers + 1) {
            layers.push((layer.digest.clone(), blob(&archive, layer)?));
        }
        return image::assemble(path, config, &layers, limits, spool, remark);
    }
    Err(archive.failure(format!("{INDEX}: more than {INDEXES_MAX} indexes within each other")))
}

fn choose(archive: &Archive, index: Index, machine: Machine) -> Outcome<Descriptor> {
    let mut images = index.manifests;
    let count = images.len();
    if count > 1 {
        images.retain(|image| {
            image.platform.as_ref().is_some_and(|p| p.os == "linux" && p.architecture == machine.oci())
        });
    }
    match (images.pop(), images.is_empty()) {
        (Some(image), true) => Ok(image),
        _ => Err(archive.failure(format!("{INDEX}: it holds {count} images, and one is needed"))),
    }
}

fn document<T: DeserializeOwned>(archive: &Archive, descriptor: &Descriptor) -> Outcome<T> {
    let bad = |error: &dyn std::fmt::Display| archive.failure(format!("{}: {error}", descriptor.digest));
    let bytes = blob(archive, descriptor)?.bytes(JSON_BYTES_MAX).map_err(|error| bad(&error))?;
    serde_json::from_slice(&bytes).map_err(|error| bad(&error))
}

/// A blob whose bytes have the size and digest that were announced.
fn blob(archive: &Archive, descriptor: &Descriptor) -> Outcome<Content> {
    let digest = &descriptor.digest;
    let bad = |cause: String| archive.failure(format!("blob {digest}: {cause}"));
    let hex = digest.strip_prefix("sha256:").filter(|hex| hex.len() == 64);
    let hex = hex.filter(|hex| hex.bytes().all(|byte| byte.is_ascii_hexdigit()));
    let hex = hex.ok_or_else(|| bad("only sha256 digests are supported".to_owned()))?;
    let content = archive.content(&format!("blobs/sha256/{hex}"))?;
    if content.len() != descriptor.size {
        return Err(bad(format!("it has {} bytes, not {}", content.len(), descriptor.size)));
    }
    let mut hashing = Hashing { source: content.reader(), hash: Sha256::new() };
    io::copy(&mut hashing, &mut io::sink()).map_err(|error| bad(error.to_string()))?;
    let found = image::sha256_text(&hashing.hash.finalize());
    if found != *digest {
        return Err(bad(format!("its bytes have the digest {found}")));
    }
    Ok(content)
}
