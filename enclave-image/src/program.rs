//! Programs of the base image: 64-bit ELF files without an interpreter, because nothing in the boot ramdisk
//! could load one.

use std::{fs::File, io::Read as _, path::Path};

use crate::failure::{Failure, Outcome};

/// Largest program, in bytes: it is held in memory. Ours have a few MiB.
const PROGRAM_BYTES_MAX: u64 = 512 << 20;
/// Bytes of an ELF header of 64 bits.
const HEADER_BYTES: usize = 64;
/// The program header that names a dynamic loader.
const PT_INTERP: u32 = 3;

/// Processors that enclaves run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Machine {
    /// Intel and AMD.
    X86_64,
    /// Graviton.
    Aarch64,
}

impl Machine {
    /// The machine of this program.
    pub fn here() -> Self {
        if cfg!(target_arch = "aarch64") { Self::Aarch64 } else { Self::X86_64 }
    }

    /// The word that OCI has for it.
    pub fn oci(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::Aarch64 => "arm64",
        }
    }

    /// The word that Rust's targets begin with.
    pub fn rust(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }

    fn elf(self) -> u16 {
        match self {
            Self::X86_64 => 62,
            Self::Aarch64 => 183,
        }
    }
}

/// Reads a static program for `machine`.
pub fn read(path: &Path, machine: Machine) -> Outcome<Vec<u8>> {
    let bad = |error: &dyn std::fmt::Display| Failure::input(path, error);
    let file = File::open(path).map_err(|error| bad(&error))?;
    let mut bytes = Vec::new();
    file.take(PROGRAM_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| bad(&error))?;
    if bytes.len() as u64 > PROGRAM_BYTES_MAX {
        return Err(bad(&format!("more than {PROGRAM_BYTES_MAX} bytes")));
    }
    check(&bytes, machine).map_err(|error| bad(&error))?;
    Ok(bytes)
}

fn check(bytes: &[u8], machine: Machine) -> Result<(), String> {
    let is_elf = bytes.len() >= HEADER_BYTES && bytes.starts_with(b"\x7fELF\x02\x01");
    if !is_elf {
        return Err("no 64-bit ELF program".to_owned());
    }
    let u16_at = |at: usize| Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    let u32_at = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?));
    let u64_at = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    if u16_at(18) != Some(machine.elf()) {
        return Err(format!("no program for {}, which the kernel is for", machine.rust()));
    }
    let table = u64_at(32).and_then(|at| usize::try_from(at).ok());
    let (Some(table), Some(size), Some(count)) = (table, u16_at(54), u16_at(56)) else {
        return Err("a garbled ELF header".to_owned());
    };
    for index in 0..usize::from(count) {
        let at = table.checked_add(index * usize::from(size)).and_then(u32_at);
        match at {
            None => return Err("a garbled ELF header".to_owned()),
            Some(PT_INTERP) => {
                return Err(format!(
                    "dynamically linked, and the enclave has no loader for it; build it with --target \
                     {}-unknown-linux-musl",
                    machine.rust()
                ));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF file with one program header of this type.
    pub(super) fn elf(machine: u16, header: u32) -> Vec<u8> {
        let mut bytes = vec![0; 120];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[18..20].copy_from_slice(&machine.to_le_bytes());
        bytes[32] = 64;
        bytes[54] = 56;
        bytes[56] = 1;
        bytes[64..68].copy_from_slice(&header.to_le_bytes());
        bytes
    }

    #[test]
    fn only_a_static_program_for_the_machine_will_do() {
        assert_eq!(check(&elf(62, 1), Machine::X86_64), Ok(()));
        assert_eq!(check(&elf(183, 1), Machine::Aarch64), Ok(()));
        let dynamic = check(&elf(62, PT_INTERP), Machine::X86_64).unwrap_err();
        assert!(dynamic.contains("--target x86_64-unknown-linux-musl"), "{dynamic}");
        assert!(check(&elf(183, 1), Machine::X86_64).unwrap_err().contains("x86_64"));
        assert!(check(b"#!/bin/sh", Machine::X86_64).is_err());
        let mut garbled = elf(62, 1);
        garbled[32..40].fill(0xff);
        assert!(check(&garbled, Machine::X86_64).is_err());
    }
}
