//! Signatures of manifests: what a `signed` policy checks.
//!
//! What is signed is the ASCII text `enclave-manifest-v1:` followed by the manifest's digest as 96 lower-case
//! hexadecimal digits, with no newline: 116 bytes, which `enclave-supervisor digest FILE --signing-input`
//! prints. The words before the digest keep a key's other signatures from being taken for this one.
//!
//! Keys and signatures are texts: `ed25519:` and the base64 of their 32 or 64 bytes.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use ed25519_dalek::{SIGNATURE_LENGTH, VerifyingKey};

use crate::digest::Digest;

/// The text before the digest. Another form of signature gets another version.
const CONTEXT: &str = "enclave-manifest-v1:";
/// The text before the base64 of keys and signatures.
const ALGORITHM: &str = "ed25519:";

/// The message to sign for the manifest with this digest.
pub fn signing_input(digest: &Digest) -> String {
    format!("{CONTEXT}{digest}")
}

/// An Ed25519 public key that can tell signatures apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublicKey(VerifyingKey);

/// Why a text is no public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not written as a key is.
    #[error("expected ed25519: and the base64 of 32 bytes")]
    Form,
    /// No point of the curve, or one of small order, for which anybody can sign anything.
    #[error("these 32 bytes are no public key")]
    Point,
}

impl std::str::FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let key = VerifyingKey::from_bytes(&decode(text).ok_or(KeyError::Form)?);
        key.ok().filter(|key| !key.is_weak()).map(Self).ok_or(KeyError::Point)
    }
}

/// An Ed25519 signature that has the right form; whose it is, is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signature(ed25519_dalek::Signature);

/// A text is no signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a signature is ed25519: and the base64 of {SIGNATURE_LENGTH} bytes")]
pub struct SignatureError;

impl std::str::FromStr for Signature {
    type Err = SignatureError;

    fn from_str(text: &str) -> Result<Self, SignatureError> {
        let bytes: [u8; SIGNATURE_LENGTH] = decode(text).ok_or(SignatureError)?;
        Ok(Self(ed25519_dalek::Signature::from_bytes(&bytes)))
    }
}

impl std::fmt::Display for Signature {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{ALGORITHM}{}", BASE64_STANDARD.encode(self.0.to_bytes()))
    }
}

impl PublicKey {
    /// Whether this key signed the manifest with this digest. Strict: of the encodings that lenient verifiers
    /// take for the same signature, one is accepted.
    pub fn signed(&self, digest: &Digest, signature: &Signature) -> bool {
        self.0.verify_strict(signing_input(digest).as_bytes(), &signature.0).is_ok()
    }
}

fn decode<const BYTES: usize>(text: &str) -> Option<[u8; BYTES]> {
    BASE64_STANDARD.decode(text.strip_prefix(ALGORITHM)?).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::{Signer as _, SigningKey};
    use proptest::prelude::*;

    use super::*;

    /// The public key of a private one, as text.
    fn key(secret: &SigningKey) -> String {
        format!("{ALGORITHM}{}", BASE64_STANDARD.encode(secret.verifying_key().as_bytes()))
    }

    fn sign(secret: &SigningKey, digest: &Digest) -> Signature {
        Signature(secret.sign(signing_input(digest).as_bytes()))
    }

    fn digest() -> Digest {
        include_str!("../testdata/digest/hello.digest").trim().parse().unwrap()
    }

    #[test]
    fn what_the_openssl_program_signed_is_accepted() {
        let text = |name: &str| {
            let path = format!("{}/testdata/signature/{name}", env!("CARGO_MANIFEST_DIR"));
            std::fs::read_to_string(path).unwrap()
        };
        assert_eq!(text("message"), signing_input(&digest()), "this is what it signed");
        let key: PublicKey = text("key").trim().parse().unwrap();
        let signature: Signature = text("signature").trim().parse().unwrap();
        assert!(key.signed(&digest(), &signature));
        assert_eq!(signature.to_string(), text("signature").trim());
    }

    /// Test 3 of RFC 8032 §7.1: the signature is of another text, and so of no manifest.
    #[test]
    fn another_text_that_the_key_signed_is_no_manifest() {
        let hex = |text: &str| -> Vec<u8> {
            text.as_bytes()
                .chunks(2)
                .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
                .collect()
        };
        let key = hex("fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025");
        let signature = hex("6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac\
             18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a");
        let key: PublicKey = format!("ed25519:{}", BASE64_STANDARD.encode(key)).parse().unwrap();
        let signature: Signature = format!("ed25519:{}", BASE64_STANDARD.encode(signature)).parse().unwrap();
        assert!(key.0.verify_strict(&[0xaf, 0x82], &signature.0).is_ok(), "the vector itself");
        assert!(!key.signed(&digest(), &signature));
    }

    #[test]
    fn keys_that_accept_any_signature_and_texts_of_another_form_are_refused() {
        let key = |bytes: [u8; 32]| {
            format!("ed25519:{}", BASE64_STANDARD.encode(bytes)).parse::<PublicKey>().map(drop)
        };
        // The neutral element: of order 1.
        let mut neutral = [0; 32];
        neutral[0] = 1;
        assert_eq!(key(neutral), Err(KeyError::Point));
        // y = 2 has no x.
        let mut nowhere = [0; 32];
        nowhere[0] = 2;
        assert_eq!(key(nowhere), Err(KeyError::Point));
        for text in ["", "ed25519:", "ed25519:AAAA", "rsa:AAAA", "AAAA", " ed25519:AAAA"] {
            assert_eq!(text.parse::<PublicKey>(), Err(KeyError::Form), "{text:?}");
            assert_eq!(text.parse::<Signature>(), Err(SignatureError), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn a_signature_is_one_keys_for_one_manifest_and_no_bit_of_it_may_change(
            secret in any::<[u8; 32]>(),
            other in any::<[u8; 32]>(),
            bit in 0..8 * SIGNATURE_LENGTH,
            digit in 0..96_usize,
        ) {
            prop_assume!(secret != other);
            let (secret, other) = (SigningKey::from_bytes(&secret), SigningKey::from_bytes(&other));
            let public: PublicKey = key(&secret).parse().unwrap();
            let signature = sign(&secret, &digest());
            prop_assert!(public.signed(&digest(), &signature));
            prop_assert!(!key(&other).parse::<PublicKey>().unwrap().signed(&digest(), &signature));

            let mut flipped = signature.0.to_bytes();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let flipped = Signature(ed25519_dalek::Signature::from_bytes(&flipped));
            prop_assert!(!public.signed(&digest(), &flipped));

            let mut text = digest().to_string();
            let changed = if &text[digit..=digit] == "0" { "1" } else { "0" };
            text.replace_range(digit..=digit, changed);
            prop_assert!(!public.signed(&text.parse().unwrap(), &signature));
        }
    }
}
