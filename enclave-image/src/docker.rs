//! What `docker save` writes: `manifest.json` names the config and the layers.

use std::path::Path;

use serde::Deserialize;

use crate::{
    archive::Archive,
    failure::Outcome,
    image::{self, Image},
    limits::Limits,
    spool::Spool,
};

/// Names the images of the archive.
const MANIFEST: &str = "manifest.json";

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Named {
    config: String,
    #[serde(default)]
    layers: Vec<String>,
}

/// Reads the archive's only image.
pub(crate) fn read(
    path: &Path,
    limits: &Limits,
    spool: &mut Spool,
    remark: &mut dyn FnMut(&str),
) -> Outcome<Image> {
    let archive = Archive::open(path, limits)?;
    let images: Vec<Named> = archive.json(MANIFEST)?;
    let [named] = images.as_slice() else {
        return Err(archive.failure(format!("it holds {} images, and one is needed", images.len())));
    };
    let mut layers = Vec::new();
    for name in &named.layers {
        layers.push((name.clone(), archive.content(name)?));
    }
    image::assemble(path, archive.json(&named.config)?, &layers, limits, spool, remark)
}
