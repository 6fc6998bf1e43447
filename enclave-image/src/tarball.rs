//! The members of a tar stream, one after the other, with the extensions of GNU tar and pax applied. Reads
//! headers through the `tar` crate in its raw mode: the crate's own handling of extensions has no bound.

use std::io::Read;

use crate::{
    limits::EXTENSION_BYTES_MAX,
    tree::{Meta, shown},
};

/// What a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link to `link`.
    Symlink,
    /// Another name of the member `link`.
    HardLink,
    /// A named pipe.
    Fifo,
    /// A device node.
    Device,
}

/// One member, its content aside.
#[derive(Debug, Clone)]
pub struct Member {
    /// Its path as written.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Where a link leads, as written.
    pub link: Vec<u8>,
    /// Its attributes.
    pub meta: Meta,
    /// Bytes of content.
    pub size: u64,
    /// Where its content begins in the stream.
    pub offset: u64,
    /// The names of its extended attributes.
    pub attributes: Vec<String>,
}

/// What extended headers say about the next member.
#[derive(Debug, Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<u32>,
    size: Option<u64>,
    attributes: Vec<String>,
}

/// Calls `visit` with every member and its content. Errors name the member.
pub fn read(
    source: impl Read,
    visit: &mut dyn FnMut(&Member, &mut dyn Read) -> Result<(), String>,
) -> Result<(), String> {
    let mut archive = tar::Archive::new(source);
    let entries = archive.entries().map_err(|error| error.to_string())?.raw(true);
    let mut extensions = Extensions::default();
    for entry in entries {
        let mut entry = entry.map_err(|error| format!("no tar archive: {error}"))?;
        match entry.header().entry_type().as_byte() {
            // Of the whole archive: a commit's name, a comment.
            b'g' => {}
            b'L' => extensions.path = Some(until_nul(extension(&mut entry)?)),
            b'K' => extensions.link = Some(until_nul(extension(&mut entry)?)),
            b'x' => extensions.read_pax(&extension(&mut entry)?)?,
            _ => {
                let member = member(&entry, std::mem::take(&mut extensions))?;
                visit(&member, &mut entry)
                    .map_err(|error| format!("the entry {}: {error}", shown(&member.path)))?;
            }
        }
    }
    Ok(())
}

/// The content of an extended header.
fn extension(entry: &mut tar::Entry<'_, impl Read>) -> Result<Vec<u8>, String> {
    if entry.size() > EXTENSION_BYTES_MAX {
        return Err(format!("an extended header of more than {EXTENSION_BYTES_MAX} bytes"));
    }
    let mut bytes = Vec::new();
    entry.read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    Ok(bytes)
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.truncate(bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len()));
    bytes
}

impl Extensions {
    /// Reads records of the form `LENGTH KEY=VALUE\n`; a value may hold any byte.
    fn read_pax(&mut self, mut records: &[u8]) -> Result<(), String> {
        const MALFORMED: &str = "a malformed extended header";
        while !records.is_empty() {
            let space = records.iter().position(|byte| *byte == b' ').ok_or(MALFORMED)?;
            let length = number(&records[..space]).and_then(|length| usize::try_from(length).ok());
            let length = length.filter(|length| (space + 2..=records.len()).contains(length));
            let (record, rest) = records.split_at(length.ok_or(MALFORMED)?);
            records = rest;
            let record = record[space + 1..].strip_suffix(b"\n").ok_or(MALFORMED)?;
            let equals = record.iter().position(|byte| *byte == b'=').ok_or(MALFORMED)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            match key {
                b"path" => self.path = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"uid" => self.uid = Some(number(value).ok_or(MALFORMED)?),
                b"gid" => self.gid = Some(number(value).ok_or(MALFORMED)?),
                b"size" => self.size = Some(number(value).ok_or(MALFORMED)?),
                b"mtime" => self.mtime = Some(seconds(value).ok_or(MALFORMED)?),
                _ if key.starts_with(b"GNU.sparse") => return Err("a sparse file".to_owned()),
                _ => {
                    let attribute = key.strip_prefix(b"SCHILY.xattr.");
                    self.attributes.extend(attribute.map(shown));
                }
            }
        }
        Ok(())
    }
}

fn number(digits: &[u8]) -> Option<u64> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Whole seconds of a decimal fraction, clamped to what a ramdisk can say.
fn seconds(text: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(text).ok()?;
    let whole: i64 = text.split('.').next()?.parse().ok()?;
    Some(u32::try_from(whole.max(0)).unwrap_or(u32::MAX))
}

fn member(entry: &tar::Entry<'_, impl Read>, extensions: Extensions) -> Result<Member, String> {
    let header = entry.header();
    let path = extensions.path.unwrap_or_else(|| header.path_bytes().into_owned());
    let bad = |what: &str| format!("the entry {}: {what}", shown(&path));
    let number = |value: std::io::Result<u64>, what: &str| value.map_err(|_| bad(what));
    let id = |value: u64| u32::try_from(value).map_err(|_| bad("an owner beyond 32 bits"));
    let kind = match header.entry_type().as_byte() {
        // Before POSIX a directory was a file whose name ends in a slash.
        b'0' | 0 if path.ends_with(b"/") => Kind::Directory,
        b'0' | 0 | b'7' => Kind::File,
        b'5' => Kind::Directory,
        b'2' => Kind::Symlink,
        b'1' => Kind::HardLink,
        b'6' => Kind::Fifo,
        b'3' | b'4' => Kind::Device,
        b'S' => return Err(bad("a sparse file")),
        other => return Err(bad(&format!("the unknown type {:?}", char::from(other)))),
    };
    // The reader of headers has gone by the header's size already.
    if extensions.size.is_some_and(|size| size != entry.size()) {
        return Err(bad("its extended header has another size"));
    }
    let uid = extensions.uid.map_or_else(|| number(header.uid(), "a malformed owner"), Ok)?;
    let gid = extensions.gid.map_or_else(|| number(header.gid(), "a malformed group"), Ok)?;
    // Dates before 1970 are written as negative numbers.
    let mtime = number(header.mtime(), "a malformed time")?;
    let mtime = if mtime > i64::MAX as u64 { 0 } else { u32::try_from(mtime).unwrap_or(u32::MAX) };
    let mode = header.mode().map_err(|_| bad("a malformed mode"))? & 0o7777;
    let link = header.link_name_bytes().map(std::borrow::Cow::into_owned);
    Ok(Member {
        kind,
        link: extensions.link.or(link).unwrap_or_default(),
        meta: Meta { mode, uid: id(uid)?, gid: id(gid)?, mtime: extensions.mtime.unwrap_or(mtime) },
        size: entry.size(),
        offset: entry.raw_file_position(),
        attributes: extensions.attributes,
        path,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pax(text: &[u8]) -> Result<Extensions, String> {
        let mut extensions = Extensions::default();
        extensions.read_pax(text).map(|()| extensions)
    }

    #[test]
    fn extended_headers_may_hold_any_byte_and_garbled_ones_are_refused() {
        let read = pax(b"14 path=a\nb=c\n22 mtime=1500000000.5\n").unwrap();
        assert_eq!((read.path.as_deref(), read.mtime), (Some(&b"a\nb=c"[..]), Some(1_500_000_000)));
        assert_eq!(pax(b"12 mtime=-3\n").unwrap().mtime, Some(0));
        assert_eq!(pax(b"28 SCHILY.xattr.user.a=\0\n\x02\xff\n").unwrap().attributes, ["user.a"]);
        for garbled in
            [&b"x"[..], b"0 a=b\n", b"99 a=b\n", b"6 a=b", b"5 ab\n", b"99999999999999999999 a=b\n"]
        {
            assert!(pax(garbled).is_err(), "{}", shown(garbled));
        }
    }
}
