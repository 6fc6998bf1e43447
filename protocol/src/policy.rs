//! Which manifest an enclave image runs: `policy.json`, measured with the image.

use serde::Deserialize;

use crate::{
    digest::Digest,
    signature::{KeyError, PublicKey, Signature, SignatureError},
};

/// Longest policy file, in bytes: [`KEYS_MAX`] keys and room to write them apart.
pub const POLICY_BYTES_MAX: usize = 16 << 10;
/// How many keys a signed policy may name.
pub const KEYS_MAX: usize = 16;

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
    /// A key that cannot be used.
    #[error("key {index}")]
    Key {
        /// Which, from 0.
        index: usize,
        /// What is wrong with it.
        source: KeyError,
    },
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
    /// The policy wants a signature.
    #[error("the policy wants a signed manifest, and no signature came with it")]
    Unsigned,
    /// What came with the manifest is no signature.
    #[error("the policy wants a signed manifest: {0}")]
    Signature(SignatureError),
    /// A stranger's signature, or one of another manifest.
    #[error("no key of the policy made this signature of the manifest with digest {found}")]
    Unknown {
        /// The manifest's.
        found: Digest,
    },
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
                let key = |(index, text): (usize, &String)| {
                    text.parse().map_err(|source| PolicyError::Key { index, source })
                };
                Ok(Self::Signed { keys: keys.iter().enumerate().map(key).collect::<Result<_, _>>()? })
            }
            Wire::Any {} => Ok(Self::Any),
        }
    }

    /// Whether the manifest with this digest may run. The comparisons may take varying time: digests, keys
    /// and signatures are public. A signature that the policy does not ask for is not looked at.
    pub fn decide(&self, digest: &Digest, signature: Option<&str>) -> Result<(), Refusal> {
        match self {
            Self::Any => Ok(()),
            Self::Pinned { digest: pinned } if pinned == digest => Ok(()),
            Self::Pinned { digest: pinned } => Err(Refusal::Digest { pinned: *pinned, found: *digest }),
            Self::Signed { keys } => {
                let signature: Signature =
                    signature.ok_or(Refusal::Unsigned)?.parse().map_err(Refusal::Signature)?;
                let is_known = keys.iter().any(|key| key.signed(digest, &signature));
                if is_known { Ok(()) } else { Err(Refusal::Unknown { found: *digest }) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use base64::{Engine as _, prelude::BASE64_STANDARD};
    use ed25519_dalek::{Signer as _, SigningKey};

    use super::*;
    use crate::signature::signing_input;

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
        check(r#"{"manifest": "signed", "keys": ["ed25519:AAAA"]}"#, "error: key 0");
        check(&" ".repeat(POLICY_BYTES_MAX + 1), "error: 16385 bytes are too long: the limit is 16384");
    }

    #[test]
    fn a_pinned_policy_decides_by_digest() {
        let one: Digest = HEX.parse().unwrap();
        let other: Digest = HEX.replace('0', "1").parse().unwrap();
        assert_eq!(Policy::Any.decide(&one, None), Ok(()));
        let pinned = Policy::Pinned { digest: one };
        assert_eq!(pinned.decide(&one, None), Ok(()));
        assert_eq!(pinned.decide(&one, Some("whatever this is")), Ok(()));
        assert_eq!(pinned.decide(&other, None), Err(Refusal::Digest { pinned: one, found: other }));
    }

    #[test]
    fn a_signed_policy_accepts_what_any_of_its_keys_signed_and_nothing_else() {
        let secrets = [1_u8, 2, 3].map(|byte| SigningKey::from_bytes(&[byte; 32]));
        let text = |bytes: &[u8]| format!("ed25519:{}", BASE64_STANDARD.encode(bytes));
        let [first, second, stranger] = secrets.each_ref().map(|s| text(s.verifying_key().as_bytes()));
        let signed = |digest: &Digest| {
            let input = signing_input(digest);
            secrets.each_ref().map(|secret| text(&secret.sign(input.as_bytes()).to_bytes()))
        };
        let policy = format!(r#"{{"manifest": "signed", "keys": ["{first}", "{second}"]}}"#);
        let policy = Policy::parse(policy.as_bytes()).unwrap();
        let one: Digest = HEX.parse().unwrap();
        let other: Digest = HEX.replace('0', "1").parse().unwrap();
        let [by_first, by_second, by_stranger] = signed(&one);
        assert_eq!(policy.decide(&one, Some(&by_first)), Ok(()));
        assert_eq!(policy.decide(&one, Some(&by_second)), Ok(()));
        assert_eq!(policy.decide(&one, Some(&by_stranger)), Err(Refusal::Unknown { found: one }));
        assert_eq!(policy.decide(&other, Some(&by_first)), Err(Refusal::Unknown { found: other }));
        assert_eq!(policy.decide(&one, None), Err(Refusal::Unsigned));
        for malformed in ["", "ed25519:AAAA", &stranger, by_first.trim_start_matches("ed25519:")] {
            assert_eq!(policy.decide(&one, Some(malformed)), Err(Refusal::Signature(SignatureError)));
        }
    }
}
