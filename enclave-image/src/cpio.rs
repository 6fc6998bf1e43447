//! Writes a tree as a newc cpio archive, the form in which Linux takes an initramfs. Inode numbers, order and
//! padding follow from the tree alone, so that equal trees give equal bytes.

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use crate::tree::{Entry, Node, Tree};

/// The magic number of the form "newc".
pub const MAGIC: &[u8; 6] = b"070701";
/// The name of the last member.
pub const TRAILER: &[u8] = b"TRAILER!!!";
/// File type bits of a mode.
pub const TYPE_MASK: u32 = 0o170_000;
/// A directory.
pub const DIRECTORY: u32 = 0o040_000;
/// A regular file.
pub const FILE: u32 = 0o100_000;
/// A symbolic link.
pub const SYMLINK: u32 = 0o120_000;
/// A character device.
pub const DEVICE: u32 = 0o020_000;
/// A named pipe.
pub const FIFO: u32 = 0o010_000;

/// The fields of a header that differ from member to member.
#[derive(Debug, Default)]
struct Header {
    inode: u32,
    mode: u32,
    uid: u32,
    gid: u32,
    links: u32,
    mtime: u32,
    size: u32,
    device: (u32, u32),
}

/// Writes all of `tree` but its root, which is the enclave's own.
pub fn write(tree: &Tree, out: &mut dyn Write) -> io::Result<()> {
    // Hard links: how many names a file has, and how many of them were written.
    let mut names: BTreeMap<u64, u32> = BTreeMap::new();
    for (_, entry) in tree.iter() {
        if let Node::File(content) = &entry.node {
            *names.entry(content.id()).or_default() += 1;
        }
    }
    let mut written: BTreeMap<u64, (u32, u32)> = BTreeMap::new();
    let mut inodes = 0;
    for (path, entry) in tree.iter().filter(|(path, _)| !path.is_empty()) {
        let Entry { meta, node, .. } = entry;
        let (kind, links) = match node {
            Node::Directory => (DIRECTORY, 2),
            Node::File(content) => (FILE, names[&content.id()]),
            Node::Symlink(_) => (SYMLINK, 1),
            Node::Device { .. } => (DEVICE, 1),
            Node::Fifo => (FIFO, 1),
        };
        let mut header = Header {
            mode: kind | meta.mode,
            uid: meta.uid,
            gid: meta.gid,
            mtime: meta.mtime,
            links,
            ..Header::default()
        };
        let mut content = None;
        if let Node::File(bytes) = node {
            let (number, count) = written.entry(bytes.id()).or_insert_with(|| {
                inodes += 1;
                (inodes, 0)
            });
            *count += 1;
            header.inode = *number;
            // The last name carries the bytes, as GNU cpio writes it.
            content = (*count == links).then_some(bytes);
        } else {
            inodes += 1;
            header.inode = inodes;
        }
        match node {
            Node::Symlink(target) => {
                header.size = size(target.len() as u64)?;
                member(out, &header, path)?;
                out.write_all(target)?;
            }
            Node::Device { major, minor } => {
                header.device = (*major, *minor);
                member(out, &header, path)?;
            }
            Node::File(_) | Node::Directory | Node::Fifo => {
                header.size = size(content.map_or(0, crate::spool::Content::len))?;
                member(out, &header, path)?;
                content.map_or(Ok(()), |content| content.copy_to(out))?;
            }
        }
        pad(out, u64::from(header.size))?;
    }
    member(out, &Header { links: 1, ..Header::default() }, TRAILER)
}

fn size(bytes: u64) -> io::Result<u32> {
    u32::try_from(bytes).map_err(|_| io::Error::other("a ramdisk holds files below 4 GiB"))
}

/// Writes a header with its name.
fn member(out: &mut dyn Write, header: &Header, name: &[u8]) -> io::Result<()> {
    let Header { inode, mode, uid, gid, links, mtime, size, device: (major, minor) } = *header;
    let name_size = self::size(name.len() as u64 + 1)?;
    let fields = [inode, mode, uid, gid, links, mtime, size, 0, 0, major, minor, name_size, 0];
    out.write_all(MAGIC)?;
    for field in fields {
        write!(out, "{field:08x}")?;
    }
    out.write_all(name)?;
    out.write_all(&[0])?;
    pad(out, HEADER_BYTES as u64 + u64::from(name_size))
}

/// Bytes of a header without its name.
pub const HEADER_BYTES: usize = 110;

/// Fills up to a multiple of four.
fn pad(out: &mut dyn Write, bytes: u64) -> io::Result<()> {
    let missing = usize::try_from(bytes.wrapping_neg() % 4).unwrap_or(0);
    out.write_all(&[0; 3][..missing])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{spool::Spool, tree::Meta};

    #[test]
    fn a_file_with_two_names_is_written_once_and_a_device_keeps_its_numbers() {
        let mut spool = Spool::new(100).unwrap();
        let file = Node::File(spool.add(b"bytes").unwrap());
        let mut tree = Tree::default();
        let entry = |node: &Node| Entry { meta: Meta::root(0o644, 1), node: node.clone(), layer: 0 };
        tree.insert(b"a", entry(&file));
        tree.insert(b"b", entry(&file));
        tree.insert(b"dev/console", entry(&Node::Device { major: 5, minor: 1 }));
        let mut bytes = Vec::new();
        write(&tree, &mut bytes).unwrap();
        let text = bytes.escape_ascii().to_string().replace("070701", "\n070701");
        expect_test::expect![[r#"

            07070100000001000081a40000000000000000000000020000000100000000000000000000000000000000000000000000000200000000a\x00
            07070100000001000081a40000000000000000000000020000000100000005000000000000000000000000000000000000000200000000b\x00bytes\x00\x00\x00
            07070100000002000041ed0000000000000000000000020000000100000000000000000000000000000000000000000000000400000000dev\x00\x00\x00
            07070100000003000021a40000000000000000000000010000000100000000000000000000000000000005000000010000000c00000000dev/console\x00\x00\x00
            07070100000000000000000000000000000000000000010000000000000000000000000000000000000000000000000000000b00000000TRAILER!!!\x00\x00\x00\x00"#]].assert_eq(&text);
        assert_eq!(bytes.len() % 4, 0);
    }
}
