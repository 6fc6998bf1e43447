//! `enclave-image inspect`: what is in an image file, measured and read back from the ramdisks themselves.
//! What is not measured (the metadata) is shown as such and never used for anything else.

use std::{
    collections::BTreeMap,
    io::{self, Read},
    path::Path,
};

use aws_nitro_enclaves_image_format::defs::EifSectionType;
use enclave_protocol::image::{BakedConfig, ImageConfig};
use serde::Serialize;

use crate::{
    cpio::{FILE, TYPE_MASK},
    failure::{Failure, Outcome},
    limits::{JSON_BYTES_MAX, Limits},
    listing::{self, Budget, Member},
    measure,
    ramdisk::{BUILD_TIME, MODULES, PLUGINS, POLICY},
    section::{self, ImageFile},
    signature::{self, SIGNATURE_BYTES_MAX, Signature},
    spool::Content,
    tree::{normalize, shown},
};

/// Longest command line that is shown, in bytes. The kernel takes 2,047.
const CMDLINE_BYTES_MAX: u64 = 64 << 10;
/// nitro-cli starts no enclave with less memory than this many times its image file.
const MEMORY_FACTOR: u64 = 4;
const MIB: u64 = 1 << 20;

/// Everything that is said of an image.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Inspection {
    /// Bytes of the file.
    pub bytes: u64,
    /// Version of the format.
    pub version: u16,
    /// The processor that it is for, as OCI names it.
    pub architecture: &'static str,
    /// Whether the checksum is right.
    pub crc_right: bool,
    /// PCR 0, 1, 2 and, of a signed image, 8.
    pub measurements: BTreeMap<String, String>,
    /// Who signed.
    pub signature: Option<Signature>,
    /// The kernel's command line.
    pub cmdline: String,
    /// In the order of the file.
    pub sections: Vec<Part>,
    /// Least memory in MiB by nitro-cli's rule: four times the file.
    pub memory_min_mib: u64,
    /// Least memory in MiB for what is unpacked: the root file system takes at most half of the memory.
    pub memory_unpacked_mib: u64,
    /// Bytes of all files, unpacked.
    pub unpacked_bytes: u64,
    /// The plugins, by name.
    pub plugins: BTreeMap<String, PluginPart>,
    /// Kernel modules in the order in which they are loaded.
    pub modules: Vec<String>,
    /// Which manifests run.
    pub policy: Option<serde_json::Value>,
    /// The image's build time in Unix seconds.
    pub build_time: Option<u64>,
    /// Not measured: anybody may have written it.
    pub unmeasured_metadata: Option<serde_json::Value>,
    /// Every file, if asked for.
    pub files: Option<Vec<FilePart>>,
}

/// One section.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Part {
    /// What it is.
    pub kind: &'static str,
    /// Where it begins.
    pub offset: u64,
    /// Bytes of its content.
    pub bytes: u64,
    /// Its flags.
    pub flags: u16,
}

/// One plugin.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PluginPart {
    /// The reference that a manifest must name for it.
    pub image: String,
    /// It is the base image's and stands in for any reference.
    pub base: bool,
    /// What its image says about running it.
    pub config: ImageConfig,
    /// Files of its root file system.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// One file.
#[derive(Debug, Clone, Serialize)]
pub struct FilePart {
    /// The ramdisk that it is in.
    pub ramdisk: usize,
    /// Its path, with bytes that are not printable ASCII escaped.
    pub path: String,
    /// Type and permissions.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes; 0 for the other names of a file.
    pub bytes: u32,
}

/// Inspects an image file; lists its files if `with_files`.
pub fn inspect(path: &Path, with_files: bool) -> Outcome<Inspection> {
    let file = ImageFile::open(path)?;
    look(&file, with_files).map_err(|cause| Failure::input(path, cause))
}

fn look(file: &ImageFile, with_files: bool) -> Result<Inspection, String> {
    let pcrs = measure::pcrs(file).map_err(|error| error.to_string())?;
    let signature = one(file, EifSectionType::EifSectionSignature, SIGNATURE_BYTES_MAX)?;
    let signature = signature.map(|section| signature::read(&section, &pcrs.pcr0)).transpose()?;
    let pairs = [("PCR0", pcrs.pcr0), ("PCR1", pcrs.pcr1), ("PCR2", pcrs.pcr2)];
    let mut measurements: BTreeMap<String, String> =
        pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    measurements.extend(signature.iter().map(|signature| ("PCR8".to_owned(), signature.pcr8.clone())));
    let cmdline = one(file, EifSectionType::EifSectionCmdline, CMDLINE_BYTES_MAX)?;
    let metadata = one(file, EifSectionType::EifSectionMetadata, JSON_BYTES_MAX)?;
    let metadata = metadata.map(|bytes| serde_json::from_slice(&bytes));
    let part = |section: &section::Section| Part {
        kind: section::name(section.kind),
        offset: section.offset,
        bytes: section.content.len(),
        flags: section.flags,
    };
    let mut inspection = Inspection {
        bytes: file.len,
        version: file.version,
        architecture: file.machine.oci(),
        crc_right: file.is_crc_right,
        measurements,
        signature,
        cmdline: String::from_utf8_lossy(&cmdline.unwrap_or_default()).into_owned(),
        sections: file.sections.iter().map(part).collect(),
        memory_min_mib: (MEMORY_FACTOR * file.len).div_ceil(MIB),
        memory_unpacked_mib: 0,
        unpacked_bytes: 0,
        plugins: BTreeMap::new(),
        modules: Vec::new(),
        policy: None,
        build_time: None,
        unmeasured_metadata: metadata.transpose().map_err(|error| format!("metadata: {error}"))?,
        files: with_files.then(Vec::new),
    };
    for (index, ramdisk) in file.of(EifSectionType::EifSectionRamdisk).enumerate() {
        inspection.unpack(index, ramdisk).map_err(|error| format!("ramdisk {index}: {error}"))?;
    }
    inspection.memory_unpacked_mib = (2 * inspection.unpacked_bytes).div_ceil(MIB);
    Ok(inspection)
}

/// The content of the only section of a kind.
fn one(file: &ImageFile, kind: EifSectionType, bytes_max: u64) -> Result<Option<Vec<u8>>, String> {
    let mut contents = file.of(kind);
    let (first, more) = (contents.next(), contents.next());
    if more.is_some() {
        return Err(format!("more than one {} section", section::name(kind)));
    }
    let read = |content: &Content| {
        content.bytes(bytes_max).map_err(|error| format!("section {}: {error}", section::name(kind)))
    };
    first.map(read).transpose()
}

impl Inspection {
    fn unpack(&mut self, index: usize, ramdisk: &Content) -> io::Result<()> {
        let Limits { entries, bytes, .. } = Limits::default();
        let budget = Budget { entries, bytes };
        listing::read(ramdisk.reader(), budget, &mut |member, content| self.take(index, member, content))
    }

    fn take(&mut self, ramdisk: usize, member: &Member, content: &mut dyn Read) -> io::Result<()> {
        self.unpacked_bytes += u64::from(member.size);
        if let Some(files) = &mut self.files {
            let &Member { mode, uid, gid, size, .. } = member;
            files.push(FilePart { ramdisk, path: shown(&member.path), mode, uid, gid, bytes: size });
        }
        // As the kernel sees it: relative to the root whatever it begins with.
        let path = member.path.iter().position(|byte| *byte != b'/').map_or(&[][..], |at| &member.path[at..]);
        let Ok(path) = normalize(path) else {
            return Err(io::Error::other(format!("the path {}", shown(&member.path))));
        };
        let Ok(path) = String::from_utf8(path) else { return Ok(()) };
        let is_file = member.mode & TYPE_MASK == FILE;
        if let Some(rest) = path.strip_prefix(PLUGINS).and_then(|rest| rest.strip_prefix('/')) {
            return self.take_plugin(rest, member, is_file, content);
        }
        if !is_file {
            return Ok(());
        }
        match path.as_str() {
            POLICY => self.policy = Some(json(&path, content)?),
            BUILD_TIME => self.build_time = text(content)?.trim().parse().ok(),
            MODULES => self.modules = text(content)?.lines().map(str::to_owned).collect(),
            _ => {}
        }
        Ok(())
    }

    fn take_plugin(
        &mut self,
        path: &str,
        member: &Member,
        is_file: bool,
        content: &mut dyn Read,
    ) -> io::Result<()> {
        let (name, path) = path.split_once('/').unwrap_or((path, ""));
        let plugin = self.plugins.entry(name.to_owned()).or_default();
        if path == "config.json" && is_file {
            let file: BakedConfig = json(&format!("{PLUGINS}/{name}/{path}"), content)?;
            (plugin.image, plugin.base, plugin.config) = (file.image, file.base, file.config);
        } else if path.starts_with("rootfs/") && is_file {
            plugin.files += 1;
            plugin.bytes += u64::from(member.size);
        }
        Ok(())
    }
}

fn text(content: &mut dyn Read) -> io::Result<String> {
    let mut bytes = Vec::new();
    content.take(JSON_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn json<T: serde::de::DeserializeOwned>(path: &str, content: &mut dyn Read) -> io::Result<T> {
    serde_json::from_str(&text(content)?).map_err(|error| io::Error::other(format!("{path}: {error}")))
}
