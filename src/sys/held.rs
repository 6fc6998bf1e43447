//! A file of /proc or of a control group that is read again and again through one descriptor: the kernel
//! makes its text anew for every read from the beginning.

use std::{fs::File, io, os::unix::fs::FileExt, path::Path, str};

/// See the module.
#[derive(Debug)]
pub struct Held(File);

impl Held {
    /// Opens the file.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        File::open(path).map(Self)
    }

    /// Its text now, as far as it fits, in whole lines. `buffer` is used again and again, too.
    pub fn read<'a>(&self, buffer: &'a mut [u8]) -> io::Result<&'a str> {
        let length = self.0.read_at(buffer, 0)?;
        let bytes = buffer.get(..length).unwrap_or_default();
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        // None of these files has anything but ASCII in the lines that are looked for.
        str::from_utf8(bytes.get(..whole).unwrap_or_default()).map_err(io::Error::other)
    }

    /// The one number that it is.
    pub fn number(&self, buffer: &mut [u8]) -> Option<u64> {
        self.read(buffer).ok()?.trim().parse().ok()
    }
}

/// Lines `key value` of a text; lines of another form are left out.
pub fn pairs(text: &str) -> impl Iterator<Item = (&str, u64)> {
    text.lines().filter_map(|line| {
        let (key, value) = line.split_once(' ')?;
        Some((key, value.parse().ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_does_not_fit_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stat");
        std::fs::write(&path, "a 1\nb 22\nodd\nc 333\n").unwrap();
        let held = Held::open(&path).unwrap();
        let read = |size: usize| {
            let mut buffer = vec![0; size];
            let pairs: Vec<_> =
                pairs(held.read(&mut buffer).unwrap()).map(|(key, value)| (key.to_owned(), value)).collect();
            format!("{pairs:?}")
        };
        assert_eq!(read(64), r#"[("a", 1), ("b", 22), ("c", 333)]"#);
        assert_eq!(read(15), r#"[("a", 1), ("b", 22)]"#);
        assert_eq!(read(2), "[]");
    }
}
