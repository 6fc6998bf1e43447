//! The archive around an image's layers: an index of its members, read from where they are.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::de::DeserializeOwned;

use crate::{
    compression::{self, GZIP},
    failure::{Failure, Outcome},
    limits::{JSON_BYTES_MAX, Limits, MEMBERS_MAX},
    spool::{Content, Spool},
    tarball::{self, Kind},
    tree::{join, normalize, shown},
};

/// Older versions of Docker write a repeated layer as a symlink to the first.
const LINKS_MAX: usize = 8;

/// An archive with its members' places.
#[derive(Debug)]
pub(crate) struct Archive {
    path: PathBuf,
    members: BTreeMap<Vec<u8>, Member>,
}

#[derive(Debug)]
enum Member {
    Content(Content),
    Link(Vec<u8>),
}

impl Archive {
    /// Reads the index of `path`, which may be compressed with gzip as a whole.
    pub(crate) fn open(path: &Path, limits: &Limits) -> Outcome<Self> {
        let bad = |error: &dyn std::fmt::Display| Failure::input(path, error);
        let file = File::open(path).map_err(|error| bad(&error))?;
        if !file.metadata().map_err(|error| bad(&error))?.is_file() {
            return Err(bad(&"no regular file"));
        }
        let mut whole = Content::part(Arc::new(file), 0, u64::MAX);
        let mut start = [0; GZIP.len()];
        if whole.reader().read_exact(&mut start).is_ok() && start == GZIP {
            let mut spool = Spool::new(limits.bytes).map_err(|error| bad(&error))?;
            let file = whole.file().try_clone().map_err(|error| bad(&error))?;
            let mut plain = compression::open(file, limits.bytes).map_err(|error| bad(&error))?;
            whole = spool.store(&mut plain).map_err(|error| bad(&error))?;
        } else {
            let len = whole.file().metadata().map_err(|error| bad(&error))?.len();
            whole = Content::part(whole.file(), 0, len);
        }
        let mut members = BTreeMap::new();
        let indexed = tarball::read(whole.reader(), &mut |member, _| {
            if members.len() == MEMBERS_MAX {
                return Err(format!("more than {MEMBERS_MAX} files around the layers"));
            }
            let path = normalize(&member.path)?;
            match member.kind {
                Kind::File => {
                    let content = whole.sub(member.offset, member.size);
                    members.insert(path, Member::Content(content.ok_or("the archive ends early")?));
                }
                Kind::Symlink | Kind::HardLink => {
                    members.insert(path.clone(), Member::Link(link(&path, &member.link, member.kind)?));
                }
                Kind::Directory => {}
                Kind::Fifo | Kind::Device => return Err("neither a file nor a directory".to_owned()),
            }
            Ok(())
        });
        indexed.map_err(|error| bad(&error))?;
        Ok(Self { path: path.to_owned(), members })
    }

    /// A failure of this archive.
    pub(crate) fn failure(&self, cause: impl std::fmt::Display) -> Failure {
        Failure::input(&self.path, cause)
    }

    /// The content of a member.
    pub(crate) fn content(&self, name: &str) -> Outcome<Content> {
        let mut name = name.as_bytes();
        for _ in 0..LINKS_MAX {
            match self.members.get(name) {
                Some(Member::Content(content)) => return Ok(content.clone()),
                Some(Member::Link(target)) => name = target,
                None => break,
            }
        }
        Err(self.failure(format!("it has no {}", shown(name))))
    }

    /// A JSON document in the archive, read by `name` in messages.
    pub(crate) fn json<T: DeserializeOwned>(&self, name: &str) -> Outcome<T> {
        let bytes = self.content(name)?.bytes(JSON_BYTES_MAX);
        let bytes = bytes.map_err(|error| self.failure(format!("{name}: {error}")))?;
        serde_json::from_slice(&bytes).map_err(|error| self.failure(format!("{name}: {error}")))
    }
}

/// The member that a link names: a symlink's target is relative to its own directory.
fn link(path: &[u8], target: &[u8], kind: Kind) -> Result<Vec<u8>, String> {
    if kind == Kind::HardLink {
        return normalize(target);
    }
    let mut directory: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
    directory.pop();
    let mut rest = target;
    while let Some(after) = rest.strip_prefix(b"../") {
        directory.pop().ok_or("a link out of the archive")?;
        rest = after;
    }
    Ok(join(&directory.join(&b'/'), &normalize(rest)?))
}
