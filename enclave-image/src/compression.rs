//! Which compression a stream has, told by its first bytes, and its decompressed bytes up to a bound.

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::MultiGzDecoder;

use crate::zstd::{self, Frames};

/// First bytes of a gzip stream.
pub const GZIP: [u8; 2] = [0x1f, 0x8b];
/// Reads `source` decompressed. More than `bytes_max` bytes are an error of the reader's.
pub fn open<'a>(source: impl Read + 'a, bytes_max: u64) -> io::Result<Box<dyn Read + 'a>> {
    let mut source = BufReader::new(source);
    let start = source.fill_buf()?;
    if start.starts_with(&zstd::MAGIC) {
        return Ok(Box::new(Bounded { source: Frames::new(source), left: bytes_max, bytes_max }));
    }
    if start.starts_with(&GZIP) {
        return Ok(Box::new(Bounded { source: MultiGzDecoder::new(source), left: bytes_max, bytes_max }));
    }
    Ok(Box::new(Bounded { source, left: bytes_max, bytes_max }))
}

/// Fails where more comes than is allowed, unlike `Read::take`, which ends.
struct Bounded<R> {
    source: R,
    left: u64,
    bytes_max: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(buffer)?;
        self.left = self.left.checked_sub(count as u64).ok_or_else(|| {
            io::Error::other(format!("more than {} bytes when decompressed", self.bytes_max))
        })?;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn read(bytes: &[u8], bytes_max: u64) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        open(bytes, bytes_max)?.read_to_end(&mut all).map(|_| all)
    }

    #[test]
    fn plain_gzip_and_zstd_are_read_and_a_bomb_ends_at_the_bound() {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        gzip.write_all(&vec![0; 1 << 20]).unwrap();
        let gzip = gzip.finish().unwrap();
        assert_eq!(read(b"plain", 5).unwrap(), b"plain");
        assert_eq!(read(&gzip, 1 << 20).unwrap().len(), 1 << 20);
        assert!(read(&gzip, (1 << 20) - 1).unwrap_err().to_string().contains("more than 1048575 bytes"));
        assert!(read(&gzip[..gzip.len() - 1], 1 << 20).is_err());
        let zstd =
            ruzstd::encoding::compress_to_vec(&[0; 9][..], ruzstd::encoding::CompressionLevel::Fastest);
        assert_eq!(read(&zstd, 9).unwrap(), [0; 9]);
        assert!(read(&zstd, 8).unwrap_err().to_string().contains("more than 8 bytes"));
    }
}
