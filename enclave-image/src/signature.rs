//! The signature section of an image file: who signed, and whether it is for this image.

use aws_nitro_enclaves_image_format::{
    defs::{PcrInfo, PcrSignature},
    utils::PcrSignatureChecker,
};
use ciborium::Value;
use openssl::x509::{X509, X509NameRef};
use serde::Serialize;

use crate::measure;

/// Longest signature section, in bytes: a certificate and a signature, each byte written as a number.
pub const SIGNATURE_BYTES_MAX: u64 = 1 << 20;

/// Who signed an image, and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Signature {
    /// PCR 8: the certificate.
    #[serde(rename = "PCR8")]
    pub pcr8: String,
    /// The certificate's subject.
    pub subject: String,
    /// Valid from.
    pub not_before: String,
    /// Valid until.
    pub not_after: String,
    /// Why it does not hold; nothing when it does.
    pub problem: Option<String>,
}

/// Reads a signature section of an image with this PCR 0. Never believes a byte of it.
pub fn read(section: &[u8], pcr0: &str) -> Result<Signature, String> {
    let signatures: Vec<PcrSignature> =
        ciborium::from_reader(section).map_err(|error| format!("the signature section: {error}"))?;
    let [signature] = signatures.as_slice() else {
        return Err(format!("the signature section has {} signatures, not one", signatures.len()));
    };
    let certificate = X509::from_pem(&signature.signing_certificate);
    let certificate = certificate.map_err(|_| "the signature's certificate is not in PEM".to_owned())?;
    let der = certificate.to_der().map_err(|error| error.to_string())?;
    let problem = PcrSignatureChecker::new(signature).verify().err();
    Ok(Signature {
        pcr8: measure::certificate(&der),
        subject: name(certificate.subject_name()),
        not_before: certificate.not_before().to_string(),
        not_after: certificate.not_after().to_string(),
        problem: problem.or_else(|| is_for(&signature.signature, pcr0).err()),
    })
}

/// `CN=a, O=b`.
fn name(name: &X509NameRef) -> String {
    let entry = |entry: &openssl::x509::X509NameEntryRef| {
        let key = entry.object().nid().short_name().unwrap_or("?");
        format!("{key}={}", String::from_utf8_lossy(entry.data().as_slice()))
    };
    name.entries().map(entry).collect::<Vec<_>>().join(", ")
}

/// Whether the signed payload is this image's PCR 0: a right signature of another image is none.
fn is_for(sign1: &[u8], pcr0: &str) -> Result<(), String> {
    const MALFORMED: &str = "its signature is malformed";
    let value: Value = ciborium::from_reader(sign1).map_err(|_| MALFORMED)?;
    let value = if let Value::Tag(_, inner) = value { *inner } else { value };
    let parts = value.as_array().ok_or(MALFORMED)?;
    let payload = parts.get(2).and_then(Value::as_bytes).ok_or(MALFORMED)?;
    let info: PcrInfo = ciborium::from_reader(payload.as_slice()).map_err(|_| MALFORMED)?;
    if info.register_index != 0 || info.register_value != unhex(pcr0) {
        return Err("it signs another image".to_owned());
    }
    Ok(())
}

/// The bytes of our own hexadecimal digits.
fn unhex(text: &str) -> Vec<u8> {
    let pairs = (0..text.len() / 2).filter_map(|at| text.get(2 * at..2 * at + 2));
    pairs.filter_map(|pair| u8::from_str_radix(pair, 16).ok()).collect()
}
