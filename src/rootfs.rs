//! Paths inside a plugin's root file system: resolved without ever leaving it, and made ready as mount
//! points.
//!
//! Everything here runs before the plugin's first start, while nothing in its tree can change underneath.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Component, Path, PathBuf},
};

/// Symlinks followed on one path, as the kernel's own limit.
const SYMLINKS_MAX: usize = 40;

/// Why a path has no place beneath a root file system.
#[derive(Debug, thiserror::Error)]
pub enum PathError {
    /// A symlink points to an absolute path or climbs above the root.
    #[error("the symlink {link} in the image leads out of the root file system (to {target:?})")]
    LeadsOut {
        /// The symlink, as a path inside the root.
        link: String,
        /// Where it points.
        target: PathBuf,
    },
    /// Too many symlinks, most likely in a circle.
    #[error("too many symlinks")]
    TooManyLinks,
    /// A part of the path is a file.
    #[error("{0} in the image is not a directory")]
    NotADirectory(String),
    /// The file system's own answer.
    #[error("{path}: {source}")]
    Io {
        /// The path outside.
        path: String,
        /// The answer.
        source: io::Error,
    },
}

/// Where `path` lies beneath `root`, outside view. Symlinks that stay inside are followed; the rest may not
/// exist yet.
///
/// An absolute symlink is refused although the plugin's root would keep it inside: the same tree is also
/// walked from outside, and there it leads out.
pub fn resolve(root: &Path, path: &str) -> Result<PathBuf, PathError> {
    let mut left: Vec<PathBuf> = parts(Path::new(path));
    let mut inside = PathBuf::new();
    let mut links = 0;
    while let Some(part) = left.pop() {
        if part == Path::new("..") {
            // Only a symlink's target brings these here; the manifest checker has refused its own.
            if !inside.pop() {
                return Err(PathError::LeadsOut { link: path.to_owned(), target: part });
            }
            continue;
        }
        let here = root.join(&inside).join(&part);
        match fs::symlink_metadata(&here) {
            Ok(meta) if meta.is_symlink() => {
                links += 1;
                if links > SYMLINKS_MAX {
                    return Err(PathError::TooManyLinks);
                }
                let target = fs::read_link(&here).map_err(|source| io_error(&here, source))?;
                let link = Path::new("/").join(&inside).join(&part).display().to_string();
                if target.is_absolute() || climbs(&inside, &target) {
                    return Err(PathError::LeadsOut { link, target });
                }
                left.extend(parts(&target));
            }
            Ok(meta) if !meta.is_dir() && !left.is_empty() => {
                return Err(PathError::NotADirectory(
                    Path::new("/").join(&inside).join(&part).display().to_string(),
                ));
            }
            Ok(_) => inside.push(part),
            Err(error) if error.kind() == io::ErrorKind::NotFound => inside.push(part),
            Err(source) => return Err(io_error(&here, source)),
        }
    }
    Ok(root.join(inside))
}

/// Whether a relative target climbs above the root from the directory `inside`.
fn climbs(inside: &Path, target: &Path) -> bool {
    let mut depth = inside.components().count();
    for component in target.components() {
        match component {
            Component::ParentDir if depth == 0 => return true,
            Component::ParentDir => depth -= 1,
            Component::Normal(_) => depth += 1,
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    false
}

/// The parts of a path, last first.
fn parts(path: &Path) -> Vec<PathBuf> {
    let normal = |part: Component<'_>| match part {
        Component::Normal(name) => Some(PathBuf::from(name)),
        Component::ParentDir => Some(PathBuf::from("..")),
        Component::CurDir | Component::RootDir | Component::Prefix(_) => None,
    };
    let mut parts: Vec<PathBuf> = path.components().filter_map(normal).collect();
    parts.reverse();
    parts
}

/// Makes the directory `path` beneath `root`, with its parents, and answers where it is.
pub fn directory(root: &Path, path: &str) -> Result<PathBuf, PathError> {
    let there = resolve(root, path)?;
    let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(&there);
    made.map_err(|source| io_error(&there, source))?;
    Ok(there)
}

/// Makes an empty file `path` beneath `root` to mount over, unless there is one.
///
/// A symlink in its place is replaced: many images bring an `/etc/resolv.conf` that points nowhere.
pub fn file(root: &Path, path: &str) -> Result<PathBuf, PathError> {
    let path = Path::new(path);
    let (parent, name) =
        (path.parent().unwrap_or_else(|| Path::new("/")), path.file_name().unwrap_or_default());
    let there = directory(root, &parent.to_string_lossy())?.join(name);
    match fs::symlink_metadata(&there) {
        Ok(meta) if meta.is_symlink() => {
            fs::remove_file(&there).map_err(|source| io_error(&there, source))?;
        }
        Ok(meta) if meta.is_dir() => return Err(PathError::NotADirectory(path.display().to_string())),
        Ok(_) => return Ok(there),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(io_error(&there, source)),
    }
    match fs::File::create_new(&there) {
        Ok(_) => Ok(there),
        Err(source) => Err(io_error(&there, source)),
    }
}

fn io_error(path: &Path, source: io::Error) -> PathError {
    PathError::Io { path: path.display().to_string(), source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("rootfs");
        fs::create_dir_all(root.join("usr/lib")).unwrap();
        fs::create_dir_all(root.join("var")).unwrap();
        fs::write(root.join("file"), "").unwrap();
        symlink("usr/lib", root.join("lib")).unwrap();
        symlink("../usr/lib", root.join("var/lib")).unwrap();
        symlink("/etc", root.join("abs")).unwrap();
        symlink("../../..", root.join("var/up")).unwrap();
        symlink("round", root.join("about")).unwrap();
        symlink("about", root.join("round")).unwrap();
        dir
    }

    #[test]
    fn a_path_is_found_beneath_the_root_through_symlinks_that_stay_inside() {
        let dir = tree();
        let root = dir.path().join("rootfs");
        assert_eq!(resolve(&root, "/lib/x/y").unwrap(), root.join("usr/lib/x/y"));
        assert_eq!(resolve(&root, "/var/lib").unwrap(), root.join("usr/lib"));
        assert_eq!(resolve(&root, "/new/dir").unwrap(), root.join("new/dir"));
    }

    #[test]
    fn a_path_that_leads_out_is_refused_and_nothing_is_made_there() {
        let dir = tree();
        let root = dir.path().join("rootfs");
        let said = |path: &str| directory(&root, path).unwrap_err().to_string();
        assert_eq!(
            said("/abs/x"),
            "the symlink /abs in the image leads out of the root file system (to \"/etc\")"
        );
        assert!(said("/var/up/etc").contains("/var/up"));
        assert_eq!(said("/about/x"), "too many symlinks");
        assert_eq!(said("/file/x"), "/file in the image is not a directory");
        assert!(!dir.path().join("etc").exists());
    }

    #[test]
    fn a_dangling_symlink_is_replaced_by_a_file_to_mount_over() {
        let dir = tree();
        let root = dir.path().join("rootfs");
        fs::create_dir(root.join("etc")).unwrap();
        symlink("/run/resolvconf/resolv.conf", root.join("etc/resolv.conf")).unwrap();
        let made = file(&root, "/etc/resolv.conf").unwrap();
        assert!(fs::symlink_metadata(made).unwrap().is_file());
    }
}
