//! A file tree in memory: what an image's layers make, and what a ramdisk holds. A path leads to a node of
//! this tree or nowhere, so an archive cannot reach this machine's files whatever it says.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
};

use crate::spool::Content;

/// Longest path in the enclave with its end: `PATH_MAX`; the kernel passes over a longer one without a word.
pub const PATH_BYTES_MAX: usize = 4096;
/// Longest name of a file: `NAME_MAX`.
pub const NAME_BYTES_MAX: usize = 255;
/// Symlinks that one path may go through, as in the kernel.
const SYMLINKS_MAX: usize = 40;

/// Who may do what, and since when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meta {
    /// Permissions with set-user-id, set-group-id and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time in Unix seconds; a newc archive has 32 bits for it.
    pub mtime: u32,
}

impl Meta {
    /// Root's, with these permissions.
    pub fn root(mode: u32, mtime: u32) -> Self {
        Self { mode, uid: 0, gid: 0, mtime }
    }
}

/// What a path leads to.
#[derive(Debug, Clone)]
pub enum Node {
    /// A directory; its children are the paths beneath it.
    Directory,
    /// A regular file. Names with the same content are hard links to one file.
    File(Content),
    /// A symbolic link.
    Symlink(Vec<u8>),
    /// A character device: made by the image builder alone, never taken from an archive.
    Device {
        /// The driver.
        major: u32,
        /// Its device.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
}

/// A node, its attributes and where it is from.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Attributes.
    pub meta: Meta,
    /// What it is.
    pub node: Node,
    /// The layer that it was last written by.
    pub layer: usize,
}

/// Paths and what they lead to. A path has no slash at its ends, no empty part, no `.` and no `..`; the root
/// is the empty path.
#[derive(Debug, Clone)]
pub struct Tree {
    entries: BTreeMap<Vec<u8>, Entry>,
    weight: usize,
}

impl Default for Tree {
    fn default() -> Self {
        let root = Entry { meta: Meta::root(0o755, 0), node: Node::Directory, layer: 0 };
        Self { entries: BTreeMap::from([(Vec::new(), root)]), weight: 0 }
    }
}

impl Tree {
    /// How many paths there are, the root among them.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is the root alone.
    pub fn is_empty(&self) -> bool {
        self.len() == 1
    }

    /// Bytes of all paths and of what symlinks lead to: what the tree takes of this machine's memory.
    pub fn weight(&self) -> usize {
        self.weight
    }

    /// What is at this path; symlinks are not followed.
    pub fn get(&self, path: &[u8]) -> Option<&Entry> {
        self.entries.get(path)
    }

    /// Everything by path: a directory comes before what is in it.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &Entry)> {
        self.entries.iter().map(|(path, entry)| (path.as_slice(), entry))
    }

    /// Changes the attributes of everything.
    pub fn change(&mut self, change: &mut dyn FnMut(&mut Meta)) {
        self.entries.values_mut().for_each(|entry| change(&mut entry.meta));
    }

    /// Puts an entry at a path whose parents are real directories or missing (see [`Tree::resolve`]).
    /// Missing ones are made, as root's with the mode 0755. A directory over a directory keeps the children;
    /// everything else that changes its kind loses them.
    pub fn insert(&mut self, path: &[u8], entry: Entry) {
        for at in slashes(path).filter(|at| !self.entries.contains_key(&path[..*at])).collect::<Vec<_>>() {
            let meta = Meta::root(0o755, entry.meta.mtime);
            self.put(path[..at].to_vec(), Entry { meta, node: Node::Directory, layer: entry.layer });
        }
        if !matches!(entry.node, Node::Directory) {
            for below in self.below(path) {
                self.remove(&below);
            }
        }
        self.put(path.to_vec(), entry);
    }

    fn put(&mut self, path: Vec<u8>, entry: Entry) {
        self.weight += weight(&path, &entry);
        if let Some(old) = self.entries.get(&path) {
            self.weight -= weight(&path, old);
        }
        self.entries.insert(path, entry);
    }

    fn remove(&mut self, path: &[u8]) {
        if let Some(entry) = self.entries.remove(path) {
            self.weight -= weight(path, &entry);
        }
    }

    /// Removes what layers before `layer` put beneath `path`, and at it when `itself`. What `layer` wrote
    /// stays, with the directories on its way. Answers how many paths were looked at.
    pub fn remove_older(&mut self, path: &[u8], layer: usize, itself: bool) -> usize {
        let mut doomed = self.below(path);
        if itself && self.entries.contains_key(path) {
            doomed.insert(0, path.to_vec());
        }
        // From the leaves up: a directory with something left in it stays.
        let mut parents: BTreeSet<Vec<u8>> = BTreeSet::new();
        for path in doomed.iter().rev() {
            let is_newer = self.entries.get(path).is_some_and(|entry| entry.layer >= layer);
            if is_newer || parents.contains(path) {
                parents.extend(slashes(path).map(|at| path[..at].to_vec()));
            } else {
                self.remove(path);
            }
        }
        doomed.len()
    }

    /// The paths beneath `path`, in order.
    fn below(&self, path: &[u8]) -> Vec<Vec<u8>> {
        let mut prefix = path.to_vec();
        if !path.is_empty() {
            prefix.push(b'/');
        }
        let from =
            if path.is_empty() { Bound::Excluded(Vec::new()) } else { Bound::Included(prefix.clone()) };
        let rest = self.entries.range((from, Bound::Unbounded));
        rest.take_while(|(path, _)| path.starts_with(&prefix)).map(|(path, _)| path.clone()).collect()
    }

    /// Copies `other` beneath `prefix`; its root becomes the directory `prefix`.
    pub fn graft(&mut self, prefix: &[u8], other: &Tree) {
        for (path, entry) in other.iter() {
            self.insert(&join(prefix, path), entry.clone());
        }
    }

    /// The path that `path` means once the symlinks among its parents are followed within this tree, as a
    /// chroot follows them; the last part is never followed. A link that climbs above the root is refused,
    /// and so is a way through something that is no directory.
    pub fn resolve(&self, path: &[u8]) -> Result<Vec<u8>, String> {
        let mut resolved: Vec<u8> = Vec::new();
        let mut left: Vec<Vec<u8>> = path.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec).collect();
        let mut symlinks = 0;
        while let Some(part) = left.pop() {
            match part.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    if resolved.is_empty() {
                        return Err("a symlink on its way leads out of the image".to_owned());
                    }
                    resolved.truncate(resolved.iter().rposition(|byte| *byte == b'/').unwrap_or(0));
                    continue;
                }
                _ => {}
            }
            let here = join(&resolved, &part);
            if left.is_empty() {
                return Ok(here);
            }
            match self.entries.get(&here).map(|entry| &entry.node) {
                None | Some(Node::Directory) => resolved = here,
                Some(Node::Symlink(target)) => {
                    symlinks += 1;
                    if symlinks > SYMLINKS_MAX {
                        return Err("too many symlinks on its way".to_owned());
                    }
                    if target.starts_with(b"/") {
                        resolved.clear();
                    }
                    left.extend(target.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec));
                    if left.len() > PATH_BYTES_MAX {
                        return Err("too many symlinks on its way".to_owned());
                    }
                }
                Some(Node::File(_) | Node::Device { .. } | Node::Fifo) => {
                    return Err(format!("{} on its way is no directory", shown(&here)));
                }
            }
        }
        Ok(resolved)
    }
}

fn weight(path: &[u8], entry: &Entry) -> usize {
    match &entry.node {
        Node::Symlink(target) => path.len() + target.len(),
        Node::Directory | Node::File(_) | Node::Device { .. } | Node::Fifo => path.len(),
    }
}

/// Where the slashes are.
fn slashes(path: &[u8]) -> impl Iterator<Item = usize> {
    path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at)
}

/// Two paths as one.
pub fn join(prefix: &[u8], path: &[u8]) -> Vec<u8> {
    match (prefix.is_empty(), path.is_empty()) {
        (true, _) => path.to_vec(),
        (_, true) => prefix.to_vec(),
        (false, false) => [prefix, b"/", path].concat(),
    }
}

/// A path for people: what is not printable ASCII is escaped.
pub fn shown(path: &[u8]) -> String {
    path.escape_ascii().to_string()
}

/// Reads a path of an archive: relative, `./` in front and slashes at the end allowed, no `..`, bounded.
pub fn normalize(path: &[u8]) -> Result<Vec<u8>, String> {
    if path.starts_with(b"/") {
        return Err("an absolute path".to_owned());
    }
    if path.contains(&0) {
        return Err("a path with a NUL byte".to_owned());
    }
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err("a path with ..".to_owned()),
            _ if part.len() > NAME_BYTES_MAX => {
                return Err(format!("a name longer than {NAME_BYTES_MAX} bytes"));
            }
            _ => parts.push(part),
        }
    }
    let path = parts.join(&b'/');
    if path.len() >= PATH_BYTES_MAX {
        return Err(format!("a path longer than {PATH_BYTES_MAX} bytes"));
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(node: Node, layer: usize) -> Entry {
        Entry { meta: Meta::root(0o755, 0), node, layer }
    }

    fn tree(paths: &[(&str, usize)]) -> Tree {
        let mut tree = Tree::default();
        for (path, layer) in paths {
            let node = if path.ends_with('/') { Node::Directory } else { Node::Fifo };
            tree.insert(path.trim_end_matches('/').as_bytes(), entry(node, *layer));
        }
        tree
    }

    fn paths(tree: &Tree) -> String {
        let paths: Vec<String> = tree.iter().skip(1).map(|(path, _)| shown(path)).collect();
        paths.join(" ")
    }

    #[test]
    fn a_directory_comes_before_its_children_and_missing_ones_are_made() {
        assert_eq!(paths(&tree(&[("a/b/c", 0), ("a-b", 0), ("a/b.d", 0)])), "a a-b a/b a/b.d a/b/c");
    }

    #[test]
    fn a_file_over_a_directory_takes_its_children_away_and_a_directory_over_one_does_not() {
        let mut tree = tree(&[("a/b", 0), ("ab", 0)]);
        tree.insert(b"a", entry(Node::Directory, 1));
        assert_eq!(paths(&tree), "a a/b ab");
        tree.insert(b"a", entry(Node::Fifo, 1));
        assert_eq!(paths(&tree), "a ab");
        tree.insert(b"a", entry(Node::Symlink(b"ab".to_vec()), 1));
        assert_eq!(tree.weight(), 5);
    }

    #[test]
    fn what_the_newest_layer_wrote_outlives_the_removal_of_the_older() {
        let mut tree =
            tree(&[("d/", 0), ("d/old", 0), ("d/x/y/new", 1), ("d/x/old", 0), ("d/x-", 1), ("e", 0)]);
        tree.remove_older(b"d", 1, true);
        assert_eq!(paths(&tree), "d d/x d/x- d/x/y d/x/y/new e");
        tree.remove_older(b"d", 2, true);
        assert_eq!(paths(&tree), "e");
    }

    #[test]
    fn a_path_is_resolved_as_in_a_chroot_and_a_climb_above_the_root_is_refused() {
        let mut tree = tree(&[("usr/lib/", 0), ("file", 0)]);
        for (path, target) in
            [("lib", "usr/lib"), ("abs", "/usr/lib"), ("up", "../etc"), ("usr/back", "../lib"), ("l", "l")]
        {
            tree.insert(path.as_bytes(), entry(Node::Symlink(target.into()), 0));
        }
        let resolved = |path: &str| tree.resolve(path.as_bytes()).map(|path| shown(&path));
        assert_eq!(resolved("lib/x").unwrap(), "usr/lib/x");
        assert_eq!(resolved("abs/x").unwrap(), "usr/lib/x");
        assert_eq!(resolved("usr/back/x").unwrap(), "usr/lib/x");
        assert_eq!(resolved("lib").unwrap(), "lib");
        assert_eq!(resolved("new/x").unwrap(), "new/x");
        assert!(resolved("up/passwd").unwrap_err().contains("out of the image"));
        assert!(resolved("l/x").unwrap_err().contains("too many symlinks"));
        assert!(resolved("file/x").unwrap_err().contains("no directory"));
    }

    #[test]
    fn a_path_of_an_archive_is_relative_and_bounded() {
        assert_eq!(normalize(b"./a//b/").unwrap(), b"a/b");
        assert_eq!(normalize(b"./").unwrap(), b"");
        for bad in [&b"/a"[..], b"a/../b", b"..", b"a\0b", &[b'a'; 256], &b"a/".repeat(3000)] {
            assert!(normalize(bad).is_err(), "{}", shown(bad));
        }
    }
}
