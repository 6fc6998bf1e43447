//! The plugins that are baked into the image: `--plugins DIR` holds `NAME/rootfs/` and `NAME/config.json`.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use enclave_protocol::image::{BakedConfig, ImageConfig};

/// Longest `config.json`, in bytes. Real ones have a few KiB.
const CONFIG_BYTES_MAX: u64 = 1 << 20;

/// One baked plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Baked {
    /// The reference it was baked from.
    pub image: String,
    /// It belongs to the base image and stands in for whatever reference the manifest names.
    pub base: bool,
    /// Its root file system.
    pub root: PathBuf,
    /// What the image says about running it.
    pub config: ImageConfig,
}

/// Why a plugin's directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("plugin {name:?} in the image is unusable: {reason}")]
pub struct CatalogError {
    /// The directory's name.
    pub name: String,
    /// What is wrong with it.
    pub reason: String,
}

/// All baked plugins by name.
#[derive(Debug, Clone, Default)]
pub struct Catalog(BTreeMap<String, Baked>);

impl Catalog {
    /// Reads `dir`. A plugin that cannot be used is left out and reported; the others are there.
    pub fn read(dir: &Path) -> std::io::Result<(Self, Vec<CatalogError>)> {
        let mut plugins = BTreeMap::new();
        let mut errors = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            let Some(name) = path.file_name().and_then(|name| name.to_str()).map(str::to_owned) else {
                continue;
            };
            if !path.is_dir() || name.starts_with('.') {
                continue;
            }
            match read_plugin(&path) {
                Ok(baked) => drop(plugins.insert(name, baked)),
                Err(reason) => errors.push(CatalogError { name, reason }),
            }
        }
        Ok((Self(plugins), errors))
    }

    /// The plugin of this name.
    pub fn get(&self, name: &str) -> Option<&Baked> {
        self.0.get(name)
    }

    /// The references that a manifest must name, by plugin name; the base image's own plugins are not among
    /// them.
    pub fn images(&self) -> BTreeMap<String, String> {
        let given = self.0.iter().filter(|(_, baked)| !baked.base);
        given.map(|(name, baked)| (name.clone(), baked.image.clone())).collect()
    }
}

fn read_plugin(dir: &Path) -> Result<Baked, String> {
    let root = dir.join("rootfs");
    match std::fs::symlink_metadata(&root) {
        Ok(meta) if meta.is_dir() => {}
        Ok(_) => return Err("rootfs is not a directory".to_owned()),
        Err(error) => return Err(format!("rootfs: {error}")),
    }
    let root = root.canonicalize().map_err(|error| format!("rootfs: {error}"))?;
    let file = File::open(dir.join("config.json")).map_err(|error| format!("config.json: {error}"))?;
    let mut text = Vec::new();
    let read = file.take(CONFIG_BYTES_MAX + 1).read_to_end(&mut text);
    read.map_err(|error| format!("config.json: {error}"))?;
    if text.len() as u64 > CONFIG_BYTES_MAX {
        return Err(format!("config.json is longer than {CONFIG_BYTES_MAX} bytes"));
    }
    let file: BakedConfig = serde_json::from_slice(&text).map_err(|error| format!("config.json: {error}"))?;
    Ok(Baked { image: file.image, base: file.base, root, config: file.config })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plugin(dir: &Path, name: &str, config: &str) {
        std::fs::create_dir_all(dir.join(name).join("rootfs")).unwrap();
        std::fs::write(dir.join(name).join("config.json"), config).unwrap();
    }

    #[test]
    fn an_image_config_is_read_as_docker_writes_it() {
        let dir = tempfile::tempdir().unwrap();
        let config = r#"{"image": "r/a:1", "architecture": "amd64", "rootfs": {"type": "layers"},
            "config": {"Entrypoint": ["/a"], "Cmd": null, "Env": ["A=1"], "WorkingDir": "/w", "User": "7"}}"#;
        plugin(dir.path(), "a", config);
        plugin(dir.path(), "b", r#"{"image": "r/b:1"}"#);
        let (catalog, errors) = Catalog::read(dir.path()).unwrap();
        assert!(errors.is_empty());
        let config = &catalog.get("a").unwrap().config;
        assert_eq!((config.entrypoint.as_slice(), config.cmd.len()), (&["/a".to_owned()][..], 0));
        assert_eq!((config.working_dir.as_str(), config.user.as_str()), ("/w", "7"));
        assert_eq!(catalog.images()["b"], "r/b:1");
    }

    #[test]
    fn a_corrupt_plugin_is_reported_and_the_others_are_there() {
        let dir = tempfile::tempdir().unwrap();
        plugin(dir.path(), "good", r#"{"image": "g"}"#);
        plugin(dir.path(), "garbled", "{");
        plugin(dir.path(), "noroot", r#"{"image": "n"}"#);
        std::fs::remove_dir(dir.path().join("noroot/rootfs")).unwrap();
        std::fs::write(dir.path().join("stray"), "").unwrap();
        let (catalog, mut errors) = Catalog::read(dir.path()).unwrap();
        errors.sort_by(|a, b| a.name.cmp(&b.name));
        assert_eq!(catalog.images().len(), 1);
        let names: Vec<&str> = errors.iter().map(|error| error.name.as_str()).collect();
        assert_eq!(names, ["garbled", "noroot"]);
        assert!(errors[1].reason.contains("rootfs"), "{}", errors[1]);
    }
}
