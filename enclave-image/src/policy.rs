//! The `policy.json` of an image, written from options and read back by the protocol before it is used.

use enclave_protocol::{digest::Digest, policy::Policy};
use serde_json::json;

use crate::{
    failure::{Failure, Outcome},
    options::PolicyKind,
};

/// The file's bytes.
pub fn write(kind: PolicyKind, keys: &[String], digest: &Digest) -> Outcome<Vec<u8>> {
    let file = match kind {
        PolicyKind::Signed if keys.is_empty() => {
            return Err(Failure::Input("--policy signed needs at least one --policy-key".to_owned()));
        }
        PolicyKind::Pinned | PolicyKind::Any if !keys.is_empty() => {
            return Err(Failure::Input("--policy-key belongs to --policy signed".to_owned()));
        }
        PolicyKind::Pinned => json!({ "manifest": "pinned", "digest": digest.to_string() }),
        PolicyKind::Any => json!({ "manifest": "any" }),
        PolicyKind::Signed => json!({ "manifest": "signed", "keys": keys }),
    };
    let bytes = format!("{file}\n").into_bytes();
    Policy::parse(&bytes).map_err(|error| {
        let source = std::error::Error::source(&error).map(|source| format!(": {source}"));
        Failure::Input(format!("--policy-key: {error}{}", source.unwrap_or_default()))
    })?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_written_and_keys_are_checked() {
        let digest: Digest = "00".repeat(48).parse().unwrap();
        let text = |kind, keys: &[&str]| {
            let keys: Vec<String> = keys.iter().map(|&key| key.to_owned()).collect();
            write(kind, &keys, &digest).map(|bytes| String::from_utf8(bytes).unwrap())
        };
        assert!(text(PolicyKind::Pinned, &[]).unwrap().contains("\"digest\":\"0000"));
        assert_eq!(text(PolicyKind::Any, &[]).unwrap(), "{\"manifest\":\"any\"}\n");
        let key = "ed25519:FpSz2h8tCESZSFvA68+qNEWj1bS8Aln+yZKpMLK3xdE=";
        assert!(text(PolicyKind::Signed, &[key]).unwrap().contains(key));
        for wrong in [&[][..], &["ed25519:AAAA"], &["rsa:x"]] {
            assert!(text(PolicyKind::Signed, wrong).is_err(), "{wrong:?}");
        }
        assert!(text(PolicyKind::Any, &[key]).is_err());
    }
}
