//! An image from a directory: a root file system as it lies there, or our own layout, `rootfs/` with
//! `config.json` beside it.
//!
//! Everything belongs to root, as what a Dockerfile copies does: who built on which machine must not show.
//! Owners that matter come in an archive. Two names of one file become two files.

use std::{
    fs::{self, File, Metadata},
    io::Read as _,
    os::unix::{
        ffi::{OsStrExt as _, OsStringExt as _},
        fs::{FileTypeExt as _, MetadataExt as _},
    },
    path::Path,
};

use enclave_protocol::image::ImageConfig;

use crate::{
    failure::{Failure, Outcome},
    image::{ConfigFile, Image},
    limits::{FILE_BYTES_MAX, JSON_BYTES_MAX, Limits},
    spool::Spool,
    tree::{Entry, Meta, Node, PATH_BYTES_MAX, Tree, join, normalize},
};

/// Reads a directory.
pub(crate) fn read(path: &Path, limits: &Limits, spool: &mut Spool) -> Outcome<Image> {
    let (root, config) = (path.join("rootfs"), path.join("config.json"));
    if root.is_dir() && config.is_file() {
        let bad = |error: &dyn std::fmt::Display| Failure::input(&config, error);
        let mut text = Vec::new();
        let file = File::open(&config).map_err(|error| bad(&error))?;
        file.take(JSON_BYTES_MAX).read_to_end(&mut text).map_err(|error| bad(&error))?;
        let file: ConfigFile = serde_json::from_slice(&text).map_err(|error| bad(&error))?;
        return Ok(image(tree(&root, limits, spool)?, file.config.unwrap_or_default()));
    }
    Ok(image(tree(path, limits, spool)?, ImageConfig::default()))
}

fn image(tree: Tree, config: ImageConfig) -> Image {
    Image { tree, config, created: None, architecture: None }
}

fn tree(root: &Path, limits: &Limits, spool: &mut Spool) -> Outcome<Tree> {
    let mut tree = Tree::default();
    let meta = fs::metadata(root).map_err(|error| Failure::input(root, error))?;
    if !meta.is_dir() {
        return Err(Failure::input(root, "no directory"));
    }
    tree.insert(b"", Entry { meta: attributes(&meta), node: Node::Directory, layer: 0 });
    let mut directories = vec![Vec::new()];
    while let Some(directory) = directories.pop() {
        let here = root.join(std::ffi::OsStr::from_bytes(&directory));
        let listing = fs::read_dir(&here).map_err(|error| Failure::input(&here, error))?;
        for entry in listing {
            let entry = entry.map_err(|error| Failure::input(&here, error))?;
            let file = entry.path();
            if tree.len() >= limits.entries {
                return Err(Failure::input(root, format!("more than {} files", limits.entries)));
            }
            let path = normalize(&join(&directory, entry.file_name().as_bytes()));
            let path = path.map_err(|error| Failure::input(&file, error))?;
            let made = node(&file, spool)?;
            if matches!(made.node, Node::Directory) {
                directories.push(path.clone());
            }
            tree.insert(&path, made);
        }
    }
    Ok(tree)
}

fn node(file: &Path, spool: &mut Spool) -> Outcome<Entry> {
    let bad = |error: &dyn std::fmt::Display| Failure::input(file, error);
    let meta = fs::symlink_metadata(file).map_err(|error| bad(&error))?;
    let kind = meta.file_type();
    let node = if kind.is_dir() {
        Node::Directory
    } else if kind.is_symlink() {
        let target = fs::read_link(file).map_err(|error| bad(&error))?.into_os_string().into_vec();
        if target.len() >= PATH_BYTES_MAX {
            return Err(bad(&"a symlink to a path that is too long"));
        }
        Node::Symlink(target)
    } else if kind.is_file() {
        if meta.len() > FILE_BYTES_MAX {
            return Err(bad(&"a ramdisk holds files below 4 GiB"));
        }
        let mut source = File::open(file).map_err(|error| bad(&error))?;
        Node::File(spool.store(&mut source).map_err(|error| bad(&error))?)
    } else if kind.is_fifo() {
        Node::Fifo
    } else {
        return Err(bad(&"a device node or a socket; a plugin's /dev is made in the enclave"));
    };
    Ok(Entry { meta: attributes(&meta), node, layer: 0 })
}

fn attributes(meta: &Metadata) -> Meta {
    Meta::root(meta.mode() & 0o7777, u32::try_from(meta.mtime().max(0)).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;
    use crate::cpio;

    fn listing(root: &Path) -> Outcome<String> {
        let mut spool = Spool::new(1 << 20).unwrap();
        let image = read(root, &Limits::default(), &mut spool)?;
        let mut bytes = Vec::new();
        cpio::write(&image.tree, &mut bytes).unwrap();
        let paths: Vec<String> =
            image.tree.iter().skip(1).map(|(path, _)| crate::tree::shown(path)).collect();
        Ok(paths.join(" "))
    }

    #[test]
    fn a_directory_is_a_root_file_system_or_our_own_layout() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("rootfs/bin")).unwrap();
        fs::write(dir.path().join("rootfs/bin/a"), "a").unwrap();
        symlink("../bin", dir.path().join("rootfs/bin/loop")).unwrap();
        assert_eq!(listing(dir.path()).unwrap(), "rootfs rootfs/bin rootfs/bin/a rootfs/bin/loop");
        fs::write(dir.path().join("config.json"), r#"{"config": {"Cmd": ["/a"]}}"#).unwrap();
        assert_eq!(listing(dir.path()).unwrap(), "bin bin/a bin/loop");
        fs::write(dir.path().join("config.json"), "{").unwrap();
        assert!(listing(dir.path()).unwrap_err().to_string().contains("config.json: EOF"));
    }

    #[test]
    fn everything_is_root_s_and_modes_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("su"), "a").unwrap();
        fs::set_permissions(dir.path().join("su"), fs::Permissions::from_mode(0o4711)).unwrap();
        let mut spool = Spool::new(1 << 20).unwrap();
        let image = read(dir.path(), &Limits::default(), &mut spool).unwrap();
        let meta = image.tree.get(b"su").unwrap().meta;
        assert_eq!((meta.mode, meta.uid, meta.gid), (0o4711, 0, 0));
    }
}
