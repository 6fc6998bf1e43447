//! Which user a plugin runs as: the manifest's `securityContext` before the image's `User`.

use std::{fs::File, io::Read, path::Path};

use crate::{rootfs, sys::confine::Identity};

/// Longest `/etc/passwd` or `/etc/group` of an image that is read, in bytes.
const DATABASE_BYTES_MAX: u64 = 1 << 20;

/// The user and group for an image's `user` (`uid`, `uid:gid`, `name`, `name:group` or empty), with the
/// manifest's numbers in their place where given.
pub fn resolve(
    root: &Path,
    user: &str,
    run_as_user: Option<u32>,
    run_as_group: Option<u32>,
) -> Result<Identity, String> {
    let (name, group) = match user.split_once(':') {
        Some((name, group)) => (name, Some(group)),
        None => (user, None),
    };
    let (uid, primary) = match (run_as_user, name.parse()) {
        // As Kubernetes: a number from the manifest does not bring the image user's group along.
        (Some(uid), _) => (uid, None),
        (None, _) if name.is_empty() => (0, None),
        (None, Ok(uid)) => (uid, primary_group(root, uid)),
        (None, Err(_)) => named_user(root, name)
            .ok_or_else(|| format!("the image's user {name:?} is not in its /etc/passwd"))?,
    };
    let gid = match (run_as_group, group) {
        (Some(gid), _) => gid,
        (None, Some(group)) if run_as_user.is_none() => match group.parse() {
            Ok(gid) => gid,
            Err(_) => named_group(root, group)
                .ok_or_else(|| format!("the image's group {group:?} is not in its /etc/group"))?,
        },
        (None, _) => primary.unwrap_or(0),
    };
    Ok(Identity { uid, gid })
}

fn named_user(root: &Path, name: &str) -> Option<(u32, Option<u32>)> {
    let line = find(root, "/etc/passwd", |fields| fields.first().is_some_and(|field| field == name))?;
    Some((line.get(2)?.parse().ok()?, line.get(3)?.parse().ok()))
}

fn primary_group(root: &Path, uid: u32) -> Option<u32> {
    let uid = uid.to_string();
    find(root, "/etc/passwd", |fields| fields.get(2) == Some(&uid))?.get(3)?.parse().ok()
}

fn named_group(root: &Path, name: &str) -> Option<u32> {
    find(root, "/etc/group", |fields| fields.first().is_some_and(|field| field == name))?.get(2)?.parse().ok()
}

/// The fields of the first line that matches. A file that cannot be read has none.
fn find(root: &Path, path: &str, wanted: impl Fn(&[String]) -> bool) -> Option<Vec<String>> {
    let mut text = String::new();
    let file = File::open(rootfs::resolve(root, path).ok()?).ok()?;
    file.take(DATABASE_BYTES_MAX).read_to_string(&mut text).ok()?;
    text.lines()
        .map(|line| line.split(':').map(str::to_owned).collect::<Vec<_>>())
        .find(|fields| wanted(fields))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(user: &str, run_as_user: Option<u32>, run_as_group: Option<u32>) -> Result<(u32, u32), String> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        std::fs::write(dir.path().join("etc/passwd"), "root:x:0:0::/:/sh\napp:x:100:101::/:/sh\n").unwrap();
        std::fs::write(dir.path().join("etc/group"), "root:x:0:\nweb:x:33:\n").unwrap();
        resolve(dir.path(), user, run_as_user, run_as_group).map(|identity| (identity.uid, identity.gid))
    }

    #[test]
    fn the_image_user_is_a_number_or_a_name_with_or_without_a_group() {
        assert_eq!(said("", None, None), Ok((0, 0)));
        assert_eq!(said("7", None, None), Ok((7, 0)));
        assert_eq!(said("100", None, None), Ok((100, 101)));
        assert_eq!(said("7:8", None, None), Ok((7, 8)));
        assert_eq!(said("app", None, None), Ok((100, 101)));
        assert_eq!(said("app:web", None, None), Ok((100, 33)));
    }

    #[test]
    fn the_manifest_comes_before_the_image() {
        assert_eq!(said("app:web", Some(5), None), Ok((5, 0)));
        assert_eq!(said("app", None, Some(6)), Ok((100, 6)));
    }

    #[test]
    fn a_name_that_the_image_does_not_know_is_an_error() {
        assert!(said("nobody", None, None).unwrap_err().contains("/etc/passwd"));
        assert!(said("app:nobody", None, None).unwrap_err().contains("/etc/group"));
    }
}
