//! Measures an image file as Nitro does: PCR 0 all of it, PCR 1 kernel, command line and first ramdisk, PCR 2
//! the other ramdisks, PCR 8 the certificate. Independent of the code that writes images.

use std::io::{self, Write};

use aws_nitro_enclaves_image_format::defs::EifSectionType;
use sha2::{Digest as _, Sha384};

use crate::{section::ImageFile, spool::Content};

/// The measurements of an image file, in hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pcrs {
    /// The image.
    pub pcr0: String,
    /// Kernel, command line, first ramdisk.
    pub pcr1: String,
    /// The other ramdisks.
    pub pcr2: String,
}

/// A register that was zero and extended once with the hash of all bytes.
#[derive(Debug, Default, Clone)]
struct Register(Sha384);

impl Register {
    fn value(self) -> String {
        extend(&self.0.finalize())
    }
}

impl Write for Register {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Extends a register that is zero.
fn extend(digest: &[u8]) -> String {
    let mut hash = Sha384::new();
    hash.update([0; 48]);
    hash.update(digest);
    hash.finalize().iter().fold(String::new(), |mut text, byte| {
        use std::fmt::Write as _;
        // A String takes every write.
        write!(text, "{byte:02x}").ok();
        text
    })
}

/// PCR 8: of a certificate in DER.
pub fn certificate(der: &[u8]) -> String {
    extend(&Sha384::digest(der))
}

/// PCR 0 to 2. Kernel, command line and ramdisks in the order of the file.
pub fn pcrs(file: &ImageFile) -> io::Result<Pcrs> {
    let mut registers: [Register; 3] = Default::default();
    let mut extend = |content: &Content, which: &[usize]| -> io::Result<()> {
        for index in which {
            content.copy_to(&mut registers[*index])?;
        }
        Ok(())
    };
    let mut ramdisks = 0;
    for section in &file.sections {
        match section.kind {
            EifSectionType::EifSectionKernel | EifSectionType::EifSectionCmdline => {
                extend(&section.content, &[0, 1])?;
            }
            EifSectionType::EifSectionRamdisk => {
                extend(&section.content, if ramdisks == 0 { &[0, 1] } else { &[0, 2] })?;
                ramdisks += 1;
            }
            EifSectionType::EifSectionInvalid
            | EifSectionType::EifSectionSignature
            | EifSectionType::EifSectionMetadata => {}
        }
    }
    let [pcr0, pcr1, pcr2] = registers.map(Register::value);
    Ok(Pcrs { pcr0, pcr1, pcr2 })
}
