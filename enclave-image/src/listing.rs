//! Reads ramdisks back: newc cpio archives one after the other, plain or in gzip, as the kernel unpacks them.
//! The file may be anybody's: names, counts and bytes are bounded, and what the kernel would pass over or
//! stop at is an error here.

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::GzDecoder;

use crate::{
    compression::GZIP,
    cpio::{HEADER_BYTES, MAGIC, TRAILER},
    tree::PATH_BYTES_MAX,
};

/// What may be read of one ramdisk.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// Members.
    pub entries: usize,
    /// Decompressed bytes.
    pub bytes: u64,
}

/// One member's header.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Member {
    /// Its path as written.
    pub path: Vec<u8>,
    /// Type and permissions.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Unix seconds.
    pub mtime: u32,
    /// Bytes of content; the other names of a file have none.
    pub size: u32,
    /// Major and minor number of a device.
    pub device: (u32, u32),
}

type Visit<'a> = &'a mut dyn FnMut(&Member, &mut dyn Read) -> io::Result<()>;

/// Calls `visit` with every member and its content. What it does not read is passed over.
pub fn read(source: impl Read, budget: Budget, visit: Visit<'_>) -> io::Result<()> {
    let mut source = Counted { source: BufReader::new(source), budget };
    loop {
        source.archives(visit)?;
        let start = source.source.fill_buf()?;
        if start.is_empty() {
            return Ok(());
        }
        if !start.starts_with(&GZIP[..start.len().min(2)]) {
            return Err(bad("neither cpio in the form newc nor gzip"));
        }
        let gzip = BufReader::new(GzDecoder::new(&mut source.source));
        let mut plain = Counted { source: gzip, budget: source.budget };
        plain.archives(visit)?;
        if !plain.source.fill_buf()?.is_empty() {
            return Err(bad("something that is no cpio in the form newc"));
        }
        source.budget = plain.budget;
    }
}

fn bad(cause: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, cause)
}

struct Counted<R> {
    source: R,
    budget: Budget,
}

impl<R: BufRead> Counted<R> {
    /// Reads archives and the zeros between them, up to the end or something else.
    fn archives(&mut self, visit: Visit<'_>) -> io::Result<()> {
        loop {
            let start = self.source.fill_buf()?;
            match start.first() {
                Some(0) => {
                    let zeros = start.iter().take_while(|byte| **byte == 0).count();
                    self.source.consume(zeros);
                    self.spend(zeros as u64)?;
                }
                Some(b'0') => while self.member(visit)? {},
                Some(_) | None => return Ok(()),
            }
        }
    }

    fn spend(&mut self, bytes: u64) -> io::Result<()> {
        let left = self.budget.bytes.checked_sub(bytes);
        self.budget.bytes = left.ok_or_else(|| bad("more bytes than an enclave could hold"))?;
        Ok(())
    }

    /// Reads one member; none follows the trailer.
    fn member(&mut self, visit: Visit<'_>) -> io::Result<bool> {
        let mut header = [0; HEADER_BYTES];
        self.source.read_exact(&mut header)?;
        let (magic, fields) = header.split_at(MAGIC.len());
        if magic != MAGIC {
            return Err(bad("a member without the magic number of the form newc"));
        }
        let mut numbers = [0; 13];
        for (number, digits) in numbers.iter_mut().zip(fields.chunks(8)) {
            *number = hexadecimal(digits).ok_or_else(|| bad("a malformed header"))?;
        }
        let [_, mode, uid, gid, _, mtime, size, _, _, major, minor, name_bytes, _] = numbers;
        let name_len = usize::try_from(name_bytes).ok().filter(|len| (1..=PATH_BYTES_MAX).contains(len));
        let name_len = name_len.ok_or_else(|| bad("a name of no length that the kernel would take"))?;
        self.budget.entries = self.budget.entries.checked_sub(1).ok_or_else(|| bad("too many members"))?;
        self.spend(HEADER_BYTES as u64 + u64::from(name_bytes) + u64::from(size))?;
        let mut path = vec![0; name_len];
        self.source.read_exact(&mut path)?;
        if path.pop() != Some(0) || path.contains(&0) {
            return Err(bad("a name without its end"));
        }
        self.skip((HEADER_BYTES as u64 + u64::from(name_bytes)).wrapping_neg() % 4)?;
        let member = Member { path, mode, uid, gid, mtime, size, device: (major, minor) };
        if member.path == TRAILER {
            self.skip(u64::from(size))?;
            return Ok(false);
        }
        let mut content = (&mut self.source).take(u64::from(size));
        visit(&member, &mut content)?;
        let left = content.limit();
        self.skip(left + u64::from(size).wrapping_neg() % 4)?;
        Ok(true)
    }

    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        let skipped = io::copy(&mut (&mut self.source).take(bytes), &mut io::sink())?;
        if skipped == bytes { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
}

/// Eight digits, as the kernel reads them.
fn hexadecimal(digits: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(digits).ok().filter(|text| !text.starts_with('+'))?;
    u32::from_str_radix(text, 16).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        cpio,
        spool::Spool,
        tree::{Entry, Meta, Node, Tree, shown},
    };

    const BUDGET: Budget = Budget { entries: 100, bytes: 1 << 20 };

    fn archive() -> Vec<u8> {
        let mut spool = Spool::new(100).unwrap();
        let mut tree = Tree::default();
        let file = Node::File(spool.add(b"bytes").unwrap());
        for (path, node) in [("a/b", file.clone()), ("a/c", file), ("l", Node::Symlink(b"a/b".to_vec()))] {
            tree.insert(path.as_bytes(), Entry { meta: Meta::root(0o644, 9), node, layer: 0 });
        }
        let mut bytes = Vec::new();
        cpio::write(&tree, &mut bytes).unwrap();
        bytes
    }

    fn list(bytes: &[u8], budget: Budget) -> io::Result<String> {
        let mut lines = Vec::new();
        read(bytes, budget, &mut |member, content| {
            let mut text = Vec::new();
            content.read_to_end(&mut text)?;
            lines.push(format!("{} {:o} {}", shown(&member.path), member.mode, shown(&text)));
            Ok(())
        })?;
        Ok(lines.join("\n"))
    }

    #[test]
    fn what_was_written_is_read_back_plain_or_in_gzip_and_one_after_the_other() {
        use std::io::Write as _;
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        gzip.write_all(&archive()).unwrap();
        let gzip = gzip.finish().unwrap();
        let expected = list(&archive(), BUDGET).unwrap();
        expect_test::expect![[r#"
            a 40755 
            a/b 100644 
            a/c 100644 bytes
            l 120644 a/b"#]]
        .assert_eq(&expected);
        let twice = format!("{expected}\n{expected}");
        assert_eq!(list(&gzip, BUDGET).unwrap(), expected);
        assert_eq!(list(&[&archive()[..], &[0; 4], &gzip, &[0; 3]].concat(), BUDGET).unwrap(), twice);
    }

    #[test]
    fn what_is_too_much_or_something_else_is_an_error() {
        let list = |bytes: &[u8], budget| list(bytes, budget).unwrap_err().to_string();
        assert!(list(&archive(), Budget { entries: 3, ..BUDGET }).contains("too many members"));
        assert!(list(&archive(), Budget { bytes: 300, ..BUDGET }).contains("more bytes"));
        assert!(list(b"junk", BUDGET).contains("neither cpio"));
        assert!(list(&[&archive()[..], b"junk"].concat(), BUDGET).contains("neither cpio"));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..400),
                                          at in 0_usize..800, is_mutated in any::<bool>()) {
            if is_mutated {
                let mut archive = archive();
                let at = at % archive.len();
                let count = bytes.len().min(archive.len() - at).min(9);
                archive[at..at + count].copy_from_slice(&bytes[..count]);
                bytes = archive;
            }
            // Any answer will do.
            list(&bytes, BUDGET).ok();
        }
    }
}
