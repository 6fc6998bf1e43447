//! `enclave-supervisor check` and `digest`: what can be said of a manifest without running it.

use std::{fmt::Write as _, path::Path};

use enclave_protocol::{
    bundle::Bundle,
    control::Diagnostic,
    digest,
    manifest::{self, Context},
};

use crate::{catalog::Catalog, options::Exit};

/// Text for standard output (`Ok`, mistakes in a manifest included) or for standard error, and the exit code.
pub type Said = Result<(String, Exit), (String, Exit)>;

/// Checks `file`, against the images in `plugins` where given. Every mistake is a line
/// `FILE:LINE:COL: path: message`.
pub fn check_file(file: &Path, plugins: Option<&Path>) -> Said {
    let text = Bundle::read(file, None).map_err(unusable)?.manifest;
    let baked = match plugins {
        Some(dir) => {
            let (catalog, errors) =
                Catalog::read(dir).map_err(|error| unusable(format!("{}: {error}", dir.display())))?;
            if let Some(error) = errors.first() {
                return Err(unusable(error));
            }
            Some(catalog.images())
        }
        None => None,
    };
    let context = Context { files: None, baked: baked.as_ref(), reserved_host_ports: &[] };
    match manifest::parse(&text, &context) {
        Ok(manifest) => {
            let mut said = format!("{}: ok\n", file.display());
            for condition in manifest.conditions() {
                // A String takes every write.
                writeln!(said, "{}: {}: {}", file.display(), condition.kind, condition.message).ok();
            }
            Ok((said, Exit::Ok))
        }
        Err(errors) => Ok((lines(file, &errors), Exit::Usage)),
    }
}

/// The digest of `file` with the files in `config_dir`; without one it covers no files.
pub fn digest_file(file: &Path, config_dir: Option<&Path>) -> Said {
    let Bundle { manifest, files } = Bundle::read(file, config_dir).map_err(unusable)?;
    let context = Context { files: config_dir.map(|_| &files), baked: None, reserved_host_ports: &[] };
    match manifest::parse(&manifest, &context) {
        Ok(manifest) => Ok((format!("{}\n", digest::digest(&manifest, &files)), Exit::Ok)),
        Err(errors) => Ok((lines(file, &errors), Exit::Usage)),
    }
}

fn lines(file: &Path, errors: &[Diagnostic]) -> String {
    errors.iter().map(|error| format!("{}:{error}\n", file.display())).collect()
}

fn unusable(error: impl std::fmt::Display) -> (String, Exit) {
    (format!("{error}\n"), Exit::Usage)
}
