//! File contents of an image in one unnamed temporary file: an image may be larger than memory, and nothing
//! of a hostile archive ever gets a name on this machine.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::unix::fs::FileExt as _,
    sync::Arc,
};

/// Bytes copied at a time.
const COPY_BYTES: usize = 64 << 10;

/// Takes contents, up to a limit over all of them.
#[derive(Debug)]
pub struct Spool {
    file: Arc<File>,
    len: u64,
    bytes_max: u64,
    contents: u64,
}

/// The bytes of one file.
#[derive(Debug, Clone)]
pub struct Content {
    file: Arc<File>,
    id: u64,
    offset: u64,
    len: u64,
}

impl Spool {
    /// An empty one in the system's directory for temporary files.
    pub fn new(bytes_max: u64) -> io::Result<Self> {
        Ok(Self { file: Arc::new(tempfile::tempfile()?), len: 0, bytes_max, contents: 0 })
    }

    /// Takes everything that `source` has.
    pub fn store(&mut self, source: &mut dyn Read) -> io::Result<Content> {
        let offset = self.len;
        let mut chunk = vec![0; COPY_BYTES];
        loop {
            let count = match source.read(&mut chunk) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if self.len + count as u64 > self.bytes_max {
                return Err(io::Error::other(format!(
                    "the contents of all files together have more than {} bytes",
                    self.bytes_max
                )));
            }
            self.file.write_all_at(&chunk[..count], self.len)?;
            self.len += count as u64;
        }
        self.contents += 1;
        Ok(Content { file: self.file.clone(), id: self.contents, offset, len: self.len - offset })
    }

    /// Takes these bytes.
    pub fn add(&mut self, bytes: &[u8]) -> io::Result<Content> {
        self.store(&mut &*bytes)
    }
}

impl Content {
    /// A part of a file, which must not change any more.
    pub fn part(file: Arc<File>, offset: u64, len: u64) -> Self {
        Self { file, id: 0, offset, len }
    }

    /// Unique among the contents of one spool: the same content under two names is one file.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The file it is in.
    pub fn file(&self) -> Arc<File> {
        self.file.clone()
    }

    /// A part of this content; none if it reaches beyond the end.
    pub fn sub(&self, offset: u64, len: u64) -> Option<Self> {
        let end = offset.checked_add(len)?;
        (end <= self.len).then(|| Self::part(self.file(), self.offset + offset, len))
    }

    /// How many bytes there are.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Reads from the beginning. A file that has become shorter is an error of the reader's.
    pub fn reader(&self) -> Reader {
        Reader { content: self.clone(), at: 0 }
    }

    /// All bytes, if they are not more than `bytes_max`.
    pub fn bytes(&self, bytes_max: u64) -> io::Result<Vec<u8>> {
        if self.len > bytes_max {
            return Err(io::Error::other(format!("more than {bytes_max} bytes")));
        }
        let mut bytes = Vec::new();
        self.reader().read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Copies all bytes.
    pub fn copy_to(&self, out: &mut dyn Write) -> io::Result<()> {
        io::copy(&mut self.reader(), out).map(drop)
    }
}

/// Reads a [`Content`].
#[derive(Debug)]
pub struct Reader {
    content: Content,
    at: u64,
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.content.len - self.at;
        let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        if wanted == 0 {
            return Ok(0);
        }
        let count = self.content.file.read_at(&mut buffer[..wanted], self.content.offset + self.at)?;
        if count == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file ends early"));
        }
        self.at += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_come_back_and_their_sum_is_bounded() {
        let mut spool = Spool::new(8).unwrap();
        let (first, second) = (spool.add(b"abc").unwrap(), spool.add(b"defgh").unwrap());
        assert_eq!(first.bytes(8).unwrap(), b"abc");
        assert_eq!(second.bytes(8).unwrap(), b"defgh");
        assert!(second.bytes(4).is_err());
        assert!(spool.add(b"i").unwrap_err().to_string().contains("more than 8 bytes"));
        assert!(spool.add(b"").unwrap().is_empty());
    }
}
