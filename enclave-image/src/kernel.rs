//! The kernel of an image: which file, for which machine, with which command line and modules.

use std::{
    fs::{self, File},
    io::Read as _,
    path::{Path, PathBuf},
};

use crate::{
    failure::{Failure, Outcome},
    module::{self, Module},
    program::Machine,
};

/// Largest kernel, in bytes. Real ones have 5 to 40 MiB.
const KERNEL_BYTES_MAX: u64 = 512 << 20;
/// Longest command line with its end: `COMMAND_LINE_SIZE` on x86 and arm64.
pub const CMDLINE_BYTES_MAX: usize = 2048;
/// Longest kernel configuration, in bytes. Debian's has 270 KiB.
const CONFIG_BYTES_MAX: u64 = 4 << 20;

/// What AWS starts enclaves with: a restart ends the enclave, a panic does so in 30 seconds, there is no PCI
/// and no keyboard to look for, and the processor's random numbers are trusted. `nomodules` is AWS's word,
/// which the kernel hands to init.
const NITRO_X86_64: &str = "reboot=k panic=30 pci=off nomodules console=ttyS0 i8042.noaux i8042.nomux \
                            i8042.nopnp i8042.dumbkbd random.trust_cpu=on";
/// The same where there is no keyboard controller.
const NITRO_AARCH64: &str = "reboot=k panic=30 pci=off nomodules console=ttyS0 random.trust_cpu=on";
/// A distribution's kernel on an ordinary virtual machine: its devices are on PCI and its drivers modules.
const DISTRIBUTION: &str = "reboot=k panic=30 console=ttyS0 random.trust_cpu=on";

/// Where the kernel is from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// This file, with every driver built in, and its configuration beside it as `FILE.config`.
    File(PathBuf),
    /// The directory of Nitro CLI's blobs: `bzImage` or `Image`, its `.config`, `cmdline`, `nsm.ko`.
    Blobs(PathBuf),
    /// Debian's newest cloud kernel beneath this root.
    Debian(PathBuf),
}

/// A kernel that was read.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// Where from.
    pub path: PathBuf,
    /// The file.
    pub bytes: Vec<u8>,
    /// What it runs on.
    pub machine: Machine,
    /// Its version, for people.
    pub version: String,
    /// Its command line, without ours.
    pub cmdline: String,
    /// In the order in which they are loaded.
    pub modules: Vec<Module>,
}

impl Choice {
    /// Reads the kernel and what belongs to it.
    pub fn read(&self) -> Outcome<Kernel> {
        match self {
            Self::File(path) => {
                let mut config = path.clone().into_os_string();
                config.push(".config");
                read(path, Path::new(&config), None, Vec::new())
            }
            Self::Blobs(dir) => blobs(dir),
            Self::Debian(root) => debian(root),
        }
    }
}

fn blobs(dir: &Path) -> Outcome<Kernel> {
    let image = ["bzImage", "Image"].into_iter().find(|name| dir.join(name).is_file());
    let image = image.ok_or_else(|| Failure::input(dir, "it holds neither bzImage nor Image"))?;
    let cmdline = match fs::read_to_string(dir.join("cmdline")) {
        Ok(text) => Some(text.trim().to_owned()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(Failure::input(dir.join("cmdline"), error)),
    };
    let nsm = dir.join("nsm.ko");
    let modules = if nsm.is_file() { vec![Module::read(&nsm, "lib/modules/nsm.ko")?] } else { Vec::new() };
    read(&dir.join(image), &dir.join(format!("{image}.config")), cmdline, modules)
}

/// The newest `/boot/vmlinuz-*-cloud-amd64` whose modules are there.
fn debian(root: &Path) -> Outcome<Kernel> {
    let suffix = format!("-cloud-{}", Machine::here().oci());
    let boot = root.join("boot");
    let missing = || {
        let advice = format!("apt-get install linux-image{suffix}, or --kernel FILE, or --blobs DIR");
        Failure::input(&boot, format!("it holds no kernel vmlinuz-*{suffix}: {advice}"))
    };
    let mut versions: Vec<String> = Vec::new();
    for entry in fs::read_dir(&boot).map_err(|_| missing())? {
        let name = entry.map_err(|error| Failure::input(&boot, error))?.file_name();
        let version = name.to_str().and_then(|name| name.strip_prefix("vmlinuz-"));
        versions.extend(version.filter(|version| version.ends_with(&suffix)).map(str::to_owned));
    }
    versions.sort_by_cached_key(|version| numbers(version));
    let version = versions.pop().ok_or_else(missing)?;
    let modules = module::resolve(root, &version)?;
    let (image, config) = (boot.join(format!("vmlinuz-{version}")), boot.join(format!("config-{version}")));
    read(&image, &config, Some(DISTRIBUTION.to_owned()), modules)
}

/// The numbers in a version, which compare as people expect: 6.12 is after 6.9.
fn numbers(version: &str) -> Vec<u64> {
    let digits = version.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty());
    digits.map(|digits| digits.parse().unwrap_or(u64::MAX)).collect()
}

fn read(path: &Path, config: &Path, cmdline: Option<String>, modules: Vec<Module>) -> Outcome<Kernel> {
    let bad = |error: &dyn std::fmt::Display| Failure::input(path, error);
    let file = File::open(path).map_err(|error| bad(&error))?;
    let mut bytes = Vec::new();
    file.take(KERNEL_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| bad(&error))?;
    if bytes.len() as u64 > KERNEL_BYTES_MAX {
        return Err(bad(&format!("more than {KERNEL_BYTES_MAX} bytes")));
    }
    let machine = machine(&bytes).ok_or_else(|| bad(&"neither an x86 bzImage nor an arm64 Image"))?;
    let nitro = match machine {
        Machine::X86_64 => NITRO_X86_64,
        Machine::Aarch64 => NITRO_AARCH64,
    };
    let configured = version(config)?;
    let version = banner(&bytes).or(configured).unwrap_or_else(|| "unknown".to_owned());
    Ok(Kernel {
        path: path.to_owned(),
        machine,
        version,
        cmdline: cmdline.unwrap_or_else(|| nitro.to_owned()),
        modules,
        bytes,
    })
}

/// Told by the magic numbers of the boot protocols.
fn machine(bytes: &[u8]) -> Option<Machine> {
    if bytes.get(0x202..0x206) == Some(b"HdrS") {
        Some(Machine::X86_64)
    } else if bytes.get(0x38..0x3c) == Some(b"ARM\x64") {
        Some(Machine::Aarch64)
    } else {
        None
    }
}

/// The version in the first lines of a kernel configuration: `# Linux/x86_64 6.12.1 Kernel Configuration`.
fn version(config: &Path) -> Outcome<Option<String>> {
    let file = match File::open(config) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Failure::input(config, error)),
    };
    let mut text = Vec::new();
    file.take(CONFIG_BYTES_MAX).read_to_end(&mut text).map_err(|error| Failure::input(config, error))?;
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().take(5).find_map(|line| line.strip_prefix("# Linux/"));
    Ok(line.and_then(|line| line.split_whitespace().nth(1)).map(str::to_owned))
}

/// The version in a bzImage's own header.
fn banner(bytes: &[u8]) -> Option<String> {
    let offset = u16::from_le_bytes(bytes.get(0x20e..0x210)?.try_into().ok()?);
    if machine(bytes)? != Machine::X86_64 || offset == 0 {
        return None;
    }
    let text = bytes.get(usize::from(offset) + 0x200..)?;
    let text = &text[..text.iter().take(256).position(|byte| *byte == 0 || *byte == b' ')?];
    (!text.is_empty()).then(|| String::from_utf8_lossy(text).into_owned())
}

/// A whole command line: the kernel's own words and ours. Refuses what the boot protocol cannot carry.
pub fn cmdline(words: &[&str]) -> Outcome<String> {
    let line =
        words.iter().map(|word| word.trim()).filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
    if let Some(bad) = line.chars().find(|c| c.is_control()) {
        return Err(Failure::Input(format!("the kernel command line has a {bad:?}")));
    }
    if line.len() >= CMDLINE_BYTES_MAX {
        return Err(Failure::Input(format!(
            "the kernel command line has {} bytes: the limit is {}",
            line.len(),
            CMDLINE_BYTES_MAX - 1
        )));
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_is_told_by_its_magic_number_and_its_version_by_its_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bzImage");
        let mut bytes = vec![0; 0x400];
        bytes[0x202..0x206].copy_from_slice(b"HdrS");
        fs::write(&path, &bytes).unwrap();
        fs::write(
            dir.path().join("bzImage.config"),
            "#\n# Auto\n# Linux/x86 4.14.256 Kernel Configuration\n",
        )
        .unwrap();
        fs::write(dir.path().join("cmdline"), "reboot=k panic=30\n").unwrap();
        fs::write(dir.path().join("nsm.ko"), "module").unwrap();
        let kernel = Choice::Blobs(dir.path().to_owned()).read().unwrap();
        assert_eq!((kernel.version.as_str(), kernel.cmdline.as_str()), ("4.14.256", "reboot=k panic=30"));
        assert_eq!(kernel.modules[0].path, "lib/modules/nsm.ko");
        bytes[0x20e..0x210].copy_from_slice(&0x100_u16.to_le_bytes());
        bytes[0x300..0x30a].copy_from_slice(b"6.1.2-x #1");
        fs::write(&path, &bytes).unwrap();
        let kernel = Choice::File(path.clone()).read().unwrap();
        assert_eq!((kernel.machine, kernel.version.as_str()), (Machine::X86_64, "6.1.2-x"));
        fs::write(&path, "text").unwrap();
        assert!(Choice::File(path).read().unwrap_err().to_string().contains("neither an x86 bzImage"));
    }

    #[test]
    fn the_newest_kernel_of_debian_is_chosen_by_its_numbers() {
        assert!(numbers("6.12.117+deb12-cloud-amd64") > numbers("6.9.7+bpo-cloud-amd64"));
        let dir = tempfile::tempdir().unwrap();
        let error = Choice::Debian(dir.path().to_owned()).read().unwrap_err().to_string();
        assert!(error.contains("apt-get install linux-image-cloud-"), "{error}");
    }

    #[test]
    fn a_command_line_is_one_line_and_bounded() {
        assert_eq!(cmdline(&[" a  b", "", "c "]).unwrap(), "a  b c");
        assert!(cmdline(&["a\nb"]).is_err());
        assert!(cmdline(&["a\0b"]).is_err());
        assert!(cmdline(&[&"a".repeat(CMDLINE_BYTES_MAX)]).is_err());
    }
}
