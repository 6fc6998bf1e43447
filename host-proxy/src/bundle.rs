//! The manifest and its files as they lie on disk. Knows directories and bounds, not what a manifest means.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use enclave_protocol::control::{FILES_BYTES_MAX, FILES_MAX, FileBytes, FileTree, Files, MANIFEST_BYTES_MAX};

/// A manifest's text and the files beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bundle {
    /// The YAML text.
    pub(crate) manifest: String,
    /// The synced files.
    pub(crate) files: Files,
}

/// Why the bundle cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BundleError {
    /// The operating system says why.
    #[error("{path}: {source}")]
    Io {
        /// Which file or directory.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// Too large for the enclave.
    #[error("{path}: more than {limit} bytes")]
    TooLarge {
        /// Which file, or the directory that has too much in all.
        path: PathBuf,
        /// The bound.
        limit: usize,
    },
    /// Too many for the enclave.
    #[error("{0}: more than {FILES_MAX} files")]
    TooMany(PathBuf),
    /// Not UTF-8 where text is needed.
    #[error("{0}: not UTF-8")]
    NotText(PathBuf),
    /// Something that is not a regular file, or a symlink that leaves its directory.
    #[error("{0}: neither a regular file nor a symlink to one within its own directory")]
    NotAFile(PathBuf),
}

impl Bundle {
    /// Reads both. Blocking; the bounds are the control API's.
    pub(crate) fn read(manifest: &Path, config_dir: Option<&Path>) -> Result<Self, BundleError> {
        let bytes = read_bounded(manifest, MANIFEST_BYTES_MAX)?;
        let manifest = String::from_utf8(bytes).map_err(|_| BundleError::NotText(manifest.to_owned()))?;
        let mut budget = Budget { bytes: FILES_BYTES_MAX, files: FILES_MAX };
        let files = match config_dir {
            Some(dir) => {
                // A directory that was named must be there; what it lacks is no error.
                std::fs::read_dir(dir).map_err(|source| BundleError::Io { path: dir.to_owned(), source })?;
                Files {
                    config_maps: read_tree(&dir.join("configmaps"), &mut budget)?,
                    secrets: read_tree(&dir.join("secrets"), &mut budget)?,
                }
            }
            None => Files::default(),
        };
        Ok(Self { manifest, files })
    }
}

/// What may still be read.
struct Budget {
    bytes: usize,
    files: usize,
}

fn read_tree(dir: &Path, budget: &mut Budget) -> Result<FileTree, BundleError> {
    let mut tree = FileTree::new();
    for (name, path) in entries(dir)? {
        // Kubernetes swaps `..data` atomically: reading through one resolved target never mixes two versions.
        let own = path.canonicalize().map_err(|source| BundleError::Io { path: path.clone(), source })?;
        let current = match own.join("..data").canonicalize() {
            Ok(current) if current.starts_with(&own) => current,
            Ok(_) => return Err(BundleError::NotAFile(path.join("..data"))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => own.clone(),
            Err(source) => return Err(BundleError::Io { path: path.join("..data"), source }),
        };
        let group = tree.entry(name).or_default();
        for (key, file) in entries(&current)? {
            let target =
                file.canonicalize().map_err(|source| BundleError::Io { path: file.clone(), source })?;
            if !target.starts_with(&own) {
                return Err(BundleError::NotAFile(file));
            }
            budget.files = budget.files.checked_sub(1).ok_or_else(|| BundleError::TooMany(dir.to_owned()))?;
            let bytes = read_bounded(&target, budget.bytes).map_err(|error| match error {
                BundleError::TooLarge { .. } => {
                    BundleError::TooLarge { path: dir.to_owned(), limit: FILES_BYTES_MAX }
                }
                BundleError::Io { .. }
                | BundleError::TooMany(_)
                | BundleError::NotText(_)
                | BundleError::NotAFile(_) => error,
            })?;
            budget.bytes -= bytes.len();
            group.insert(key, FileBytes(bytes));
        }
    }
    Ok(tree)
}

/// The entries of a directory without those that start with a dot; none when it does not exist.
fn entries(dir: &Path) -> Result<Vec<(String, PathBuf)>, BundleError> {
    let error = |source| BundleError::Io { path: dir.to_owned(), source };
    let listing = match std::fs::read_dir(dir) {
        Ok(listing) => listing,
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(error(source)),
    };
    let mut found = Vec::new();
    for entry in listing {
        let entry = entry.map_err(error)?;
        let name = entry.file_name().into_string().map_err(|_| BundleError::NotText(entry.path()))?;
        if name.starts_with('.') {
            continue;
        }
        if found.len() == FILES_MAX {
            return Err(BundleError::TooMany(dir.to_owned()));
        }
        found.push((name, entry.path()));
    }
    Ok(found)
}

/// Reads a regular file of at most `limit` bytes.
fn read_bounded(path: &Path, limit: usize) -> Result<Vec<u8>, BundleError> {
    let error = |source| BundleError::Io { path: path.to_owned(), source };
    // Looked at before it is opened: opening a FIFO would wait for its writer.
    if !std::fs::metadata(path).map_err(error)?.is_file() {
        return Err(BundleError::NotAFile(path.to_owned()));
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(error)?;
    file.take(limit as u64 + 1).read_to_end(&mut bytes).map_err(error)?;
    if bytes.len() > limit {
        return Err(BundleError::TooLarge { path: path.to_owned(), limit });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    fn scene() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("m.yaml"), "kind: x\n").unwrap();
        fs::create_dir_all(dir.path().join("c/configmaps/app")).unwrap();
        dir
    }

    fn read(dir: &tempfile::TempDir) -> Result<Bundle, BundleError> {
        Bundle::read(&dir.path().join("m.yaml"), Some(&dir.path().join("c")))
    }

    #[test]
    fn a_kubernetes_mount_is_read_through_its_symlinks_and_its_dotfiles_are_skipped() {
        let dir = scene();
        let app = dir.path().join("c/configmaps/app");
        fs::create_dir(app.join("..2026_01")).unwrap();
        fs::write(app.join("..2026_01/key.yaml"), "new").unwrap();
        symlink("..2026_01", app.join("..data")).unwrap();
        symlink("..data/key.yaml", app.join("key.yaml")).unwrap();
        fs::create_dir_all(dir.path().join("c/secrets/plain")).unwrap();
        fs::write(dir.path().join("c/secrets/plain/token"), [0xff, 0]).unwrap();
        let bundle = read(&dir).unwrap();
        assert_eq!(bundle.manifest, "kind: x\n");
        assert_eq!(bundle.files.config_maps["app"]["key.yaml"].0, b"new");
        assert_eq!(bundle.files.config_maps["app"].len(), 1);
        assert_eq!(bundle.files.secrets["plain"]["token"].0, [0xff, 0]);
    }

    #[test]
    fn a_symlink_that_leaves_its_directory_is_refused() {
        let dir = scene();
        symlink("/etc/passwd", dir.path().join("c/configmaps/app/key")).unwrap();
        assert!(matches!(read(&dir), Err(BundleError::NotAFile(_))));
        let dir = scene();
        symlink("/etc", dir.path().join("c/configmaps/app/..data")).unwrap();
        assert!(matches!(read(&dir), Err(BundleError::NotAFile(_))));
        let dir = scene();
        fs::create_dir(dir.path().join("c/configmaps/app/sub")).unwrap();
        assert!(matches!(read(&dir), Err(BundleError::NotAFile(_))));
    }

    #[test]
    fn the_bounds_of_the_control_api_hold_on_disk() {
        let dir = scene();
        File::create(dir.path().join("m.yaml")).unwrap().set_len(MANIFEST_BYTES_MAX as u64 + 1).unwrap();
        assert!(matches!(read(&dir), Err(BundleError::TooLarge { .. })));
        let dir = scene();
        for key in ["a", "b"] {
            let file = File::create(dir.path().join("c/configmaps/app").join(key)).unwrap();
            file.set_len(FILES_BYTES_MAX as u64 / 2 + 1).unwrap();
        }
        assert!(matches!(read(&dir), Err(BundleError::TooLarge { .. })));
        let dir = scene();
        for key in 0..=FILES_MAX {
            File::create(dir.path().join("c/configmaps/app").join(key.to_string())).unwrap();
        }
        assert!(matches!(read(&dir), Err(BundleError::TooMany(_))));
    }

    #[test]
    fn a_missing_manifest_or_config_directory_is_named() {
        let dir = scene();
        fs::remove_file(dir.path().join("m.yaml")).unwrap();
        assert!(read(&dir).unwrap_err().to_string().contains("m.yaml"));
        let dir = scene();
        fs::remove_dir_all(dir.path().join("c")).unwrap();
        assert!(matches!(read(&dir), Err(BundleError::Io { .. })));
    }
}
