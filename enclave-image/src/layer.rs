//! One layer of an image over those before it: files, links, owners, and the whiteouts that take something
//! away again.
//!
//! Where a layer's path goes through a symlink of the image, the symlink is followed within the image, as
//! containerd does; one that leads out is refused. Named pipes are kept. Device nodes are refused: a plugin
//! finds those that it may use in its /dev. Sockets cannot be in a tar archive.

use std::io::Read;

use crate::{
    limits::{FILE_BYTES_MAX, Limits, REMARKS_MAX, WHITEOUT_PATHS_MAX},
    spool::Spool,
    tarball::{self, Kind, Member},
    tree::{Entry, Node, PATH_BYTES_MAX, Tree, join, normalize, shown},
};

/// In front of the name that is taken away.
const WHITEOUT: &[u8] = b".wh.";
/// Everything that older layers have in this directory is taken away.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Bookkeeping of the file systems that images were first made with.
const WHITEOUT_META: &[u8] = b".wh..wh.";

/// Builds the tree of one image.
#[derive(Debug)]
pub struct Stack<'a> {
    /// What the layers so far make.
    pub tree: Tree,
    spool: &'a mut Spool,
    limits: Limits,
    layer: usize,
    /// How many paths whiteouts have looked at.
    looked_at: usize,
    /// What cannot be kept, a remark each.
    pub remarks: Vec<String>,
}

impl<'a> Stack<'a> {
    /// No layer yet.
    pub fn new(spool: &'a mut Spool, limits: &Limits) -> Self {
        let (tree, remarks) = (Tree::default(), Vec::new());
        Self { tree, spool, limits: *limits, layer: 0, looked_at: 0, remarks }
    }

    /// Applies a layer's tar stream.
    pub fn apply(&mut self, layer: impl Read) -> Result<(), String> {
        self.layer += 1;
        tarball::read(layer, &mut |member, content| self.take(member, content))
    }

    fn take(&mut self, member: &Member, content: &mut dyn Read) -> Result<(), String> {
        // The root is nobody's file.
        if self.tree.len() > self.limits.entries {
            return Err(format!("more than {} files", self.limits.entries));
        }
        if self.tree.weight() > self.limits.paths_bytes {
            return Err(format!("paths of more than {} bytes", self.limits.paths_bytes));
        }
        let path = normalize(&member.path)?;
        if path.is_empty() {
            if member.kind != Kind::Directory {
                return Err("the root is no directory".to_owned());
            }
            let entry = Entry { meta: member.meta, node: Node::Directory, layer: self.layer };
            self.tree.insert(b"", entry);
            return Ok(());
        }
        let path = self.tree.resolve(&path)?;
        let name_at = path.iter().rposition(|byte| *byte == b'/').map_or(0, |at| at + 1);
        let (parent, name) = (&path[..name_at.saturating_sub(1)], &path[name_at..]);
        if name == OPAQUE {
            return self.take_away(parent, false);
        }
        if name.starts_with(WHITEOUT_META) {
            return Ok(());
        }
        if let Some(gone) = name.strip_prefix(WHITEOUT) {
            if matches!(gone, b"" | b"." | b"..") {
                return Err("a whiteout of no file".to_owned());
            }
            return self.take_away(&join(parent, gone), true);
        }
        for attribute in member.attributes.iter().filter(|attribute| *attribute != "security.selinux") {
            if self.remarks.len() < REMARKS_MAX {
                let path = shown(&path);
                self.remarks
                    .push(format!("/{path}: a ramdisk cannot hold its extended attribute {attribute}"));
            }
        }
        let entry = self.entry(member, content)?;
        self.tree.insert(&path, entry);
        Ok(())
    }

    fn take_away(&mut self, path: &[u8], itself: bool) -> Result<(), String> {
        self.looked_at += self.tree.remove_older(path, self.layer, itself);
        if self.looked_at > WHITEOUT_PATHS_MAX {
            return Err("too many whiteouts over too many files".to_owned());
        }
        Ok(())
    }

    fn entry(&mut self, member: &Member, content: &mut dyn Read) -> Result<Entry, String> {
        let node = match member.kind {
            Kind::Directory => Node::Directory,
            Kind::Fifo => Node::Fifo,
            Kind::File => {
                if member.size > FILE_BYTES_MAX {
                    return Err(format!("{} bytes: a ramdisk holds files below 4 GiB", member.size));
                }
                let content = self.spool.store(content).map_err(|error| error.to_string())?;
                if content.len() != member.size {
                    return Err("the archive ends early".to_owned());
                }
                Node::File(content)
            }
            Kind::Symlink => {
                let target = &member.link;
                if target.is_empty() || target.len() >= PATH_BYTES_MAX || target.contains(&0) {
                    return Err("a symlink to nothing, or to a path that is too long".to_owned());
                }
                Node::Symlink(target.clone())
            }
            Kind::HardLink => return self.linked(member),
            Kind::Device => {
                return Err("a device node; a plugin's /dev is made in the enclave".to_owned());
            }
        };
        Ok(Entry { meta: member.meta, node, layer: self.layer })
    }

    /// The file that a hard link names, which must be there already.
    fn linked(&self, member: &Member) -> Result<Entry, String> {
        let named = |error: String| format!("a hard link to {}: {error}", shown(&member.link));
        let target = normalize(&member.link).and_then(|path| self.tree.resolve(&path)).map_err(named)?;
        match self.tree.get(&target) {
            None => Err(named("no such file in the image".to_owned())),
            Some(entry) if matches!(entry.node, Node::Directory) => Err(named("a directory".to_owned())),
            Some(entry) => Ok(Entry { layer: self.layer, ..entry.clone() }),
        }
    }
}
