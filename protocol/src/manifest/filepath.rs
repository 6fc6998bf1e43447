//! Paths within a plugin's root file system.

use super::scalar::quoted;

/// Longest path, the kernel's `PATH_MAX` without its end.
const PATH_BYTES_MAX: usize = 4095;
/// Longest component, the kernel's `NAME_MAX`.
const COMPONENT_BYTES_MAX: usize = 255;
/// Directories that belong to the kernel or the supervisor, with everything beneath.
const RESERVED: [&str; 4] = ["/proc", "/sys", "/dev", "/run/enclave"];

/// An absolute path in its one form: no `.`, no `..`, no repeated or trailing slash.
pub(super) fn absolute(text: &str) -> Result<String, String> {
    let Some(rest) = text.strip_prefix('/') else {
        return Err(format!("{} is no absolute path", quoted(text)));
    };
    components(text, rest).map(|parts| format!("/{}", parts.join("/")))
}

/// Where a volume may be mounted.
pub(super) fn mount_point(text: &str) -> Result<String, String> {
    let path = absolute(text)?;
    if path == "/" {
        return Err("a volume cannot replace the root file system".to_owned());
    }
    let beneath =
        |dir: &&str| path.strip_prefix(dir).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    // A mount on a parent would hide the reserved directory itself.
    let above = |dir: &&str| dir.strip_prefix(path.as_str()).is_some_and(|rest| rest.starts_with('/'));
    if let Some(dir) = RESERVED.iter().find(|dir| beneath(dir) || above(dir)) {
        let relation = if beneath(dir) { "lies in" } else { "would hide" };
        return Err(format!("{} {relation} {dir}, which is the runtime's own", quoted(text)));
    }
    Ok(path)
}

/// A path beneath a mount point.
pub(super) fn relative(text: &str) -> Result<String, String> {
    if text.starts_with('/') {
        return Err(format!("{} must be relative to the volume's containerPath", quoted(text)));
    }
    let parts = components(text, text)?;
    if parts.is_empty() {
        return Err(format!("{} names no file", quoted(text)));
    }
    Ok(parts.join("/"))
}

fn components<'t>(text: &str, rest: &'t str) -> Result<Vec<&'t str>, String> {
    if text.len() > PATH_BYTES_MAX || rest.split('/').any(|part| part.len() > COMPONENT_BYTES_MAX) {
        return Err(format!("{} is longer than a path can be", quoted(text)));
    }
    if rest.split('/').any(|part| part == "..") {
        return Err(format!("{} must not hold \"..\"", quoted(text)));
    }
    Ok(rest.split('/').filter(|part| !matches!(*part, "" | ".")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_point_is_absolute_normal_and_the_plugins_own() {
        for (text, expected) in [
            ("/etc/oblv", Ok("/etc/oblv")),
            ("/etc//oblv/./x/", Ok("/etc/oblv/x")),
            ("/process", Ok("/process")),
            ("/run/enclaves", Ok("/run/enclaves")),
            ("etc", Err("absolute")),
            ("", Err("absolute")),
            ("/", Err("root file system")),
            ("/.", Err("root file system")),
            ("/etc/../proc", Err("\"..\"")),
            ("/proc", Err("lies in /proc")),
            ("/proc/self", Err("lies in /proc")),
            ("//sys/fs", Err("lies in /sys")),
            ("/dev/", Err("lies in /dev")),
            ("/run/enclave", Err("lies in /run/enclave")),
            ("/run/enclave/x", Err("lies in /run/enclave")),
            ("/run", Err("would hide /run/enclave")),
        ] {
            match (mount_point(text), expected) {
                (Ok(found), Ok(path)) => assert_eq!(found, path, "{text}"),
                (Err(found), Err(part)) => assert!(found.contains(part), "{text}: {found}"),
                (found, _) => panic!("{text}: {found:?}"),
            }
        }
        assert!(mount_point(&format!("/{}", "a".repeat(256))).is_err());
        assert!(mount_point(&"/a".repeat(2048)).is_err());
    }

    #[test]
    fn an_item_stays_beneath_its_volume() {
        assert_eq!(relative("a/./b"), Ok("a/b".to_owned()));
        for text in ["", ".", "/a", "../a", "a/../b", "a/.."] {
            assert!(relative(text).is_err(), "{text}");
        }
    }
}
