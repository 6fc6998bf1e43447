//! One plugin's image, wherever it is from: its file tree and what it says about running it.

use std::{
    fmt::Write as _,
    io::{self, Read},
    path::{Path, PathBuf},
    str::FromStr,
};

use enclave_protocol::{image::ImageConfig, timestamp::Timestamp};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use crate::{
    compression, directory, docker,
    failure::{Failure, Outcome},
    layer::Stack,
    limits::Limits,
    oci,
    program::Machine,
    spool::{Content, Spool},
    tree::Tree,
};

/// Where an image is read from: `dir:D`, `docker-archive:F` or `oci-archive:F`, the words of skopeo and
/// buildah.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A root file system, or `rootfs/` and `config.json` in one directory.
    Directory(PathBuf),
    /// What `docker save` writes.
    DockerArchive(PathBuf),
    /// An OCI image layout in a tar archive.
    OciArchive(PathBuf),
}

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let forms = "expected dir:DIRECTORY, docker-archive:FILE or oci-archive:FILE";
        match text.split_once(':') {
            Some((_, "")) | None => Err(forms.to_owned()),
            Some(("dir", path)) => Ok(Self::Directory(path.into())),
            Some(("docker-archive", path)) => Ok(Self::DockerArchive(path.into())),
            Some(("oci-archive", path)) => Ok(Self::OciArchive(path.into())),
            Some((other, _)) => Err(format!("{other:?} is no kind of image: {forms}")),
        }
    }
}

impl Source {
    /// The file or directory.
    pub fn path(&self) -> &Path {
        match self {
            Self::Directory(path) | Self::DockerArchive(path) | Self::OciArchive(path) => path,
        }
    }
}

/// The image config of OCI and Docker, which are alike in these fields.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ConfigFile {
    pub(crate) architecture: Option<String>,
    pub(crate) created: Option<Timestamp>,
    pub(crate) config: Option<ImageConfig>,
    pub(crate) rootfs: Option<Layers>,
}

/// The digests of the layers, decompressed.
#[derive(Debug, Deserialize)]
pub(crate) struct Layers {
    diff_ids: Vec<String>,
}

/// An image in memory.
#[derive(Debug, Clone)]
pub struct Image {
    /// Its root file system.
    pub tree: Tree,
    /// What it says about running it.
    pub config: ImageConfig,
    /// When it was made, in Unix seconds.
    pub created: Option<u64>,
    /// The processor it is for, as OCI names it.
    pub architecture: Option<String>,
}

/// Reads an image for `machine`. `remark` hears what cannot be kept.
pub fn read(
    source: &Source,
    machine: Machine,
    limits: &Limits,
    spool: &mut Spool,
    remark: &mut dyn FnMut(&str),
) -> Outcome<Image> {
    let image = match source {
        Source::Directory(path) => directory::read(path, limits, spool),
        Source::DockerArchive(path) => docker::read(path, limits, spool, remark),
        Source::OciArchive(path) => oci::read(path, machine, limits, spool, remark),
    }?;
    if let Some(other) = image.architecture.as_deref().filter(|other| *other != machine.oci()) {
        let cause = format!("an image for {other}, and the kernel is for {}", machine.oci());
        return Err(Failure::input(source.path(), cause));
    }
    Ok(image)
}

/// Puts an archive's layers on each other, comparing each with its digest.
pub(crate) fn assemble(
    path: &Path,
    file: ConfigFile,
    layers: &[(String, Content)],
    limits: &Limits,
    spool: &mut Spool,
    remark: &mut dyn FnMut(&str),
) -> Outcome<Image> {
    let bad = |cause: String| Failure::input(path, cause);
    if layers.len() > limits.layers {
        return Err(bad(format!("{} layers are too many: the limit is {}", layers.len(), limits.layers)));
    }
    let digests = file.rootfs.map(|layers| layers.diff_ids);
    if digests.as_ref().is_none_or(|digests| digests.len() != layers.len()) {
        return Err(bad(format!("its config does not name the digests of its {} layers", layers.len())));
    }
    let mut stack = Stack::new(spool, limits);
    for ((name, content), digest) in layers.iter().zip(digests.iter().flatten()) {
        let bad = |cause: String| bad(format!("layer {name}: {cause}"));
        let plain = compression::open(content.reader(), limits.layer_bytes);
        let mut hashing =
            Hashing { source: plain.map_err(|error| bad(error.to_string()))?, hash: Sha256::new() };
        stack.apply(&mut hashing).map_err(bad)?;
        // A digest covers what comes after the archive's end too.
        io::copy(&mut hashing, &mut io::sink()).map_err(|error| bad(error.to_string()))?;
        let found = sha256_text(&hashing.hash.finalize());
        if found != *digest {
            return Err(bad(format!("its digest is {found}, and the image's config says {digest}")));
        }
    }
    for text in &stack.remarks {
        remark(&format!("{}: {text}", path.display()));
    }
    Ok(Image {
        tree: stack.tree,
        config: file.config.unwrap_or_default(),
        created: file.created.map(|created| created.0 / 1_000_000_000),
        architecture: file.architecture,
    })
}

/// A SHA-256 digest as OCI writes it.
pub(crate) fn sha256_text(digest: &[u8]) -> String {
    digest.iter().fold("sha256:".to_owned(), |mut text, byte| {
        // A String takes every write.
        write!(text, "{byte:02x}").ok();
        text
    })
}

/// Hashes what is read through it.
pub(crate) struct Hashing<R> {
    pub(crate) source: R,
    pub(crate) hash: Sha256,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(buffer)?;
        self.hash.update(&buffer[..count]);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_named_as_skopeo_names_it() {
        assert_eq!("dir:/a:b".parse(), Ok(Source::Directory("/a:b".into())));
        assert_eq!("oci-archive:f".parse(), Ok(Source::OciArchive("f".into())));
        for wrong in ["", "dir", "dir:", "/path", "docker://x"] {
            assert!(wrong.parse::<Source>().unwrap_err().contains("docker-archive:FILE"), "{wrong}");
        }
    }
}
