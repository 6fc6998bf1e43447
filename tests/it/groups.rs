//! The control groups that a supervisor makes on this machine.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Those of one boot. Dropped once the supervisor is gone, they are removed: one that a test kills leaves
/// them, and hundreds of empty groups make every control group of the machine slower.
pub(crate) struct Groups(pub(crate) String);

impl Drop for Groups {
    fn drop(&mut self) {
        for directory in groups(&self.0) {
            for within in fs::read_dir(&directory).into_iter().flatten().filter_map(Result::ok) {
                // Its files cannot be removed and need not be.
                fs::remove_dir(within.path()).ok();
            }
            fs::remove_dir(directory).ok();
        }
    }
}

/// The directories of a boot's control groups.
pub(crate) fn groups(boot_id: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(directory) = left.pop() {
        // Others come and go meanwhile.
        let entries = fs::read_dir(&directory).into_iter().flatten().filter_map(Result::ok);
        let directories = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        for path in directories.map(|entry| entry.path()) {
            if is_of(&path, boot_id) { found.push(path) } else { left.push(path) }
        }
    }
    found
}

fn is_of(path: &Path, boot_id: &str) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.strip_prefix("enclave-").is_some_and(|id| id.len() >= 8 && boot_id.starts_with(id))
}
