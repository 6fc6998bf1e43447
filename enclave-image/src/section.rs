//! Reads an image file's header and sections. The file may be anybody's: everything is compared with the
//! file's real length before it is believed.
//!
//! A loader goes by the header's table, AWS's tools walk from section to section. A file on which the two
//! disagree would boot something else than what was measured, and is refused.

use std::{fs::File, io::Read as _, path::Path, sync::Arc};

use aws_nitro_enclaves_image_format::defs::{
    CURRENT_VERSION, EIF_HDR_ARCH_ARM64, EIF_MAGIC, EifHeader, EifSectionHeader, EifSectionType,
    MAX_NUM_SECTIONS,
};
use flate2::Crc;

use crate::{
    failure::{Failure, Outcome},
    program::Machine,
    spool::Content,
};

/// Bytes read at a time.
const CHUNK_BYTES: usize = 64 << 10;
/// The checksum is the header's last field, and covers everything else.
const CRC_BYTES: usize = 4;

/// One section.
#[derive(Debug, Clone)]
pub struct Section {
    /// What it is.
    pub kind: EifSectionType,
    /// Its flags; none are defined.
    pub flags: u16,
    /// Where it begins, its header included.
    pub offset: u64,
    /// Its bytes.
    pub content: Content,
}

/// An image file whose structure holds.
#[derive(Debug, Clone)]
pub struct ImageFile {
    /// Bytes in all.
    pub len: u64,
    /// Version of the format.
    pub version: u16,
    /// What it is for.
    pub machine: Machine,
    /// In the order of the file.
    pub sections: Vec<Section>,
    /// Whether the checksum is right.
    pub is_crc_right: bool,
}

/// A section's name for people.
pub fn name(kind: EifSectionType) -> &'static str {
    match kind {
        EifSectionType::EifSectionInvalid => "invalid",
        EifSectionType::EifSectionKernel => "kernel",
        EifSectionType::EifSectionCmdline => "cmdline",
        EifSectionType::EifSectionRamdisk => "ramdisk",
        EifSectionType::EifSectionSignature => "signature",
        EifSectionType::EifSectionMetadata => "metadata",
    }
}

impl ImageFile {
    /// Opens an image file.
    pub fn open(path: &Path) -> Outcome<Self> {
        let bad = |error: &dyn std::fmt::Display| Failure::input(path, error);
        let file = File::open(path).map_err(|error| bad(&error))?;
        let meta = file.metadata().map_err(|error| bad(&error))?;
        if !meta.is_file() {
            return Err(bad(&"no regular file"));
        }
        read(&Content::part(Arc::new(file), 0, meta.len())).map_err(|error| bad(&error))
    }

    /// The sections of a kind.
    pub fn of(&self, kind: EifSectionType) -> impl Iterator<Item = &Content> {
        self.sections.iter().filter(move |section| section.kind == kind).map(|section| &section.content)
    }
}

fn read(whole: &Content) -> Result<ImageFile, String> {
    let start = bytes(whole, 0, EifHeader::size()).ok_or("too short for an enclave image file")?;
    let header = EifHeader::from_be_bytes(&start)?;
    if header.magic != EIF_MAGIC {
        return Err("no enclave image file: it does not begin with .eif".to_owned());
    }
    if header.version > CURRENT_VERSION {
        return Err(format!("version {} of the format is unknown", header.version));
    }
    let count = usize::from(header.num_sections);
    if count > MAX_NUM_SECTIONS {
        return Err(format!("{count} sections: the format has room for {MAX_NUM_SECTIONS}"));
    }
    let mut at = EifHeader::size() as u64;
    let mut sections = Vec::new();
    for index in 0..count {
        let bad = |cause: &str| format!("section {index}: {cause}");
        if header.section_offsets[index] != at {
            return Err(bad("it does not begin where the one before it ends"));
        }
        let start = bytes(whole, at, EifSectionHeader::size()).ok_or_else(|| bad("beyond the end"))?;
        let section = EifSectionHeader::from_be_bytes(&start).map_err(|error| bad(&error))?;
        if section.section_size != header.section_sizes[index] {
            return Err(bad("its size differs from the one in the header's table"));
        }
        let content = whole.sub(at + EifSectionHeader::size() as u64, section.section_size);
        let content = content.ok_or_else(|| bad("beyond the end"))?;
        let offset = at;
        at += EifSectionHeader::size() as u64 + content.len();
        sections.push(Section { kind: section.section_type, flags: section.flags, offset, content });
    }
    if at != whole.len() {
        return Err(format!("{} bytes after the last section", whole.len() - at));
    }
    let is_arm = header.flags & EIF_HDR_ARCH_ARM64 != 0;
    Ok(ImageFile {
        len: whole.len(),
        version: header.version,
        machine: if is_arm { Machine::Aarch64 } else { Machine::X86_64 },
        sections,
        is_crc_right: crc(whole).map_err(|error| error.to_string())? == header.eif_crc32,
    })
}

fn bytes(whole: &Content, offset: u64, len: usize) -> Option<Vec<u8>> {
    whole.sub(offset, len as u64)?.bytes(len as u64).ok()
}

fn crc(whole: &Content) -> std::io::Result<u32> {
    let mut crc = Crc::new();
    let mut reader = whole.reader();
    let mut start = vec![0; EifHeader::size()];
    reader.read_exact(&mut start)?;
    crc.update(&start[..start.len() - CRC_BYTES]);
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match reader.read(&mut chunk)? {
            0 => return Ok(crc.sum()),
            count => crc.update(&chunk[..count]),
        }
    }
}
