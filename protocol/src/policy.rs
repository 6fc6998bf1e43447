//! Which manifest an enclave image runs: `policy.json`, measured with the image.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde::Deserialize;

use crate::digest::Digest;

/// Longest policy file, in bytes: [`KEYS_MAX`] keys and room to write them apart.
pub const POLICY_BYTES_MAX: usize = 16 << 10;
/// How many keys a signed policy may name.
pub const KEYS_MAX: usize = 16;
/// Bytes of an Ed25519 public key.
const KEY_BYTES: usize = 32;

/// What the image's owner decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Policy {
    /// This manifest with these files.
    Pinned {
        /// Its digest.
        digest: Digest,
    },
    /// Any manifest that one of these keys signed.
    Signed {
        /// Ed25519 public keys.
        keys: Vec<PublicKey>,
    },
    /// Any manifest; relying parties look at PCR 16.
    Any,
}

/// An Ed25519 public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublicKey(
    /// The key's bytes.
    pub [u8; KEY_BYTES],
);

/// Why a policy file cannot be used. The enclave then accepts no manifest.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// Longer than [`POLICY_BYTES_MAX`].
    #[error("{0} bytes are too long: the limit is {POLICY_BYTES_MAX}")]
    TooLong(usize),
    /// Not JSON of this form.
    #[error("not a policy")]
    Form(#[from] serde_json::Error),
    /// `digest` is none.
    #[error("field digest")]
    Digest(#[from] crate::digest::DigestError),
    /// A signed policy without keys would refuse everything; more than [`KEYS_MAX`] are a mistake.
    #[error("{0} keys: 1 to {KEYS_MAX} are needed")]
    KeyCount(usize),
    /// A key is not `ed25519:` and the base64 of 32 bytes.
    #[error("key {0}: expected ed25519: and the base64 of {KEY_BYTES} bytes")]
    Key(usize),
}

/// Why a manifest may not run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Another manifest, or other files, than the pinned ones.
    #[error("the policy pins the manifest with digest {pinned}, this one has {found}")]
    Digest {
        /// The policy's.
        pinned: Digest,
        /// The manifest's.
        found: Digest,
    },
    /// This build cannot check signatures, and so accepts none.
    #[error("signed policies are not supported yet: this image accepts no manifest")]
    SignedUnsupported,
}

#[derive(Deserialize)]
#[serde(tag = "manifest", rename_all = "lowercase", deny_unknown_fields)]
enum Wire {
    Pinned { digest: String },
    Signed { keys: Vec<String> },
    // Braces, because serde ignores unknown fields beside the tag of a unit variant.
    Any {},
}

impl Policy {
    /// Reads `policy.json`.
    pub fn parse(bytes: &[u8]) -> Result<Self, PolicyError> {
        if bytes.len() > POLICY_BYTES_MAX {
            return Err(PolicyError::TooLong(bytes.len()));
        }
        match serde_json::from_slice(bytes)? {
            Wire::Pinned { digest } => Ok(Self::Pinned { digest: digest.parse()? }),
            Wire::Signed { keys } if !(1..=KEYS_MAX).contains(&keys.len()) => {
                Err(PolicyError::KeyCount(keys.len()))
            }
            Wire::Signed { keys } => {
                let key = |(i, text): (usize, &String)| parse_key(text).ok_or(PolicyError::Key(i));
                Ok(Self::Signed { keys: keys.iter().enumerate().map(key).collect::<Result<_, _>>()? })
            }
            Wire::Any {} => Ok(Self::Any),
        }
    }

    /// Whether the manifest with this digest may run. The comparison may take varying time: digests are
    /// public.
    pub fn decide(&self, digest: &Digest, _signature: Option<&str>) -> Result<(), Refusal> {
        match self {
            Self::Any => Ok(()),
            Self::Pinned { digest: pinned } if pinned == digest => Ok(()),
            Self::Pinned { digest: pinned } => Err(Refusal::Digest { pinned: *pinned, found: *digest }),
            Self::Signed { .. } => Err(Refusal::SignedUnsupported),
        }
    }
}

fn parse_key(text: &str) -> Option<PublicKey> {
    let bytes = BASE64_STANDARD.decode(text.strip_prefix("ed25519:")?).ok()?;
    bytes.try_into().ok().map(PublicKey)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str =
        "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f202122232425262728292a2b2c2d2e2f";

    fn check(json: &str, expected: &str) {
        let shown = match Policy::parse(json.as_bytes()) {
            Ok(policy) => format!("{policy:?}"),
            Err(error) => format!("error: {error}"),
        };
        assert_eq!(shown.split(" at line").next().unwrap_or_default(), expected, "{json}");
    }

    #[test]
    fn each_form_of_policy_is_read_and_everything_else_is_refused() {
        check(r#"{"manifest": "any"}"#, "Any");
        check(
            &format!(r#"{{"manifest": "pinned", "digest": "{HEX}"}}"#),
            &format!("Pinned {{ digest: Digest({HEX}) }}"),
        );
        for wrong in [
            "",
            "null",
            "[]",
            r#""any""#,
            r#"{"manifest": "some"}"#,
            r#"{"manifest": "any", "digest": "x"}"#,
            r#"{"manifest": "any", "manifest": "pinned"}"#,
            r#"{"digest": "x"}"#,
            r#"{"manifest": "pinned"}"#,
            r#"{"manifest": "pinned", "digest": "x", "keys": []}"#,
            r#"{"manifest": "any"} {}"#,
        ] {
            check(wrong, "error: not a policy");
        }
        let digest = "error: field digest";
        check(r#"{"manifest": "pinned", "digest": ""}"#, digest);
        check(&format!(r#"{{"manifest": "pinned", "digest": "{}"}}"#, HEX.to_uppercase()), digest);
        check(&format!(r#"{{"manifest": "pinned", "digest": "{HEX}00"}}"#), digest);
        check(&format!(r#"{{"manifest": "pinned", "digest": "{}"}}"#, &HEX[1..]), digest);
        check(r#"{"manifest": "signed", "keys": []}"#, "error: 0 keys: 1 to 16 are needed");
        check(
            r#"{"manifest": "signed", "keys": ["ed25519:AAAA"]}"#,
            "error: key 0: expected ed25519: and the base64 of 32 bytes",
        );
        check(&" ".repeat(POLICY_BYTES_MAX + 1), "error: 16385 bytes are too long: the limit is 16384");
    }

    #[test]
    fn a_policy_decides_by_digest_and_refuses_what_it_cannot_check() {
        let one: Digest = HEX.parse().unwrap();
        let other: Digest = HEX.replace('0', "1").parse().unwrap();
        assert_eq!(Policy::Any.decide(&one, None), Ok(()));
        let pinned = Policy::Pinned { digest: one };
        assert_eq!(pinned.decide(&one, None), Ok(()));
        assert_eq!(pinned.decide(&other, None), Err(Refusal::Digest { pinned: one, found: other }));
        let key = format!("ed25519:{}", BASE64_STANDARD.encode([7; KEY_BYTES]));
        let signed =
            Policy::parse(format!(r#"{{"manifest": "signed", "keys": ["{key}"]}}"#).as_bytes()).unwrap();
        assert_eq!(signed, Policy::Signed { keys: vec![PublicKey([7; KEY_BYTES])] });
        assert_eq!(signed.decide(&one, Some("anything")), Err(Refusal::SignedUnsupported));
    }
}
