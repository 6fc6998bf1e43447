//! The host's own reading of the manifest: the plan that it compares with the enclave's, and the egress
//! rules.

use std::{collections::BTreeMap, fs::File, io::Read as _, path::Path};

use enclave_protocol::{
    bundle::{Bundle, BundleError},
    control::{Diagnostic, EgressRule, Files, Plan},
    digest::digest,
    manifest::{self, Context},
    signature::Signature,
};

use crate::policy::normalise;

/// Longest signature file, in bytes: the text has 96, and editors add a newline.
const SIGNATURE_FILE_MAX: u64 = 1024;

/// A manifest that this side has read and checked by itself.
#[derive(Debug, Clone)]
pub(crate) struct Reading {
    /// What goes to the enclave.
    pub(crate) bundle: Bundle,
    /// What goes with it, for the enclave's policy. Whose it is, only the enclave can tell.
    pub(crate) signature: Option<Signature>,
    /// `metadata.name`.
    pub(crate) deployment: String,
    /// What the manifest comes down to.
    pub(crate) plan: Plan,
    /// Lower-case hexadecimal SHA-384.
    pub(crate) digest: String,
}

/// Why there is no reading.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadingError {
    /// The files cannot be had.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The signature cannot be had, or is none.
    #[error("signature {path}: {reason}")]
    Signature {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The manifest has mistakes.
    #[error("the manifest has {} mistake(s)", .0.len())]
    Invalid(Vec<Diagnostic>),
}

impl Reading {
    /// Checks the manifest. `reserved` are the ports on which this program listens itself.
    pub(crate) fn of(bundle: Bundle, reserved: &[u16]) -> Result<Self, ReadingError> {
        let (deployment, plan, digest) =
            understand(&bundle.manifest, &bundle.files, reserved).map_err(ReadingError::Invalid)?;
        Ok(Self { bundle, signature: None, deployment, plan, digest })
    }
}

/// Reads a signature from a file, with or without a newline at its end. Blocking.
pub(crate) fn read_signature(path: &Path) -> Result<Signature, ReadingError> {
    let failed = |reason: String| ReadingError::Signature { path: path.display().to_string(), reason };
    let mut text = String::new();
    let file = File::open(path).map_err(|error| failed(error.to_string()))?;
    file.take(SIGNATURE_FILE_MAX).read_to_string(&mut text).map_err(|error| failed(error.to_string()))?;
    text.trim_end().parse().map_err(|error| failed(format!("{error}")))
}

/// The one place that asks the shared parser: name, plan and digest of a manifest.
fn understand(
    text: &str,
    files: &Files,
    reserved: &[u16],
) -> Result<(String, Plan, String), Vec<Diagnostic>> {
    let context =
        Context { files: Some(files), baked: None, reserved_host_ports: reserved, ..Context::default() };
    let manifest = manifest::parse(text, &context)?;
    let digest = digest(&manifest, files).to_string();
    Ok((manifest.name.clone(), manifest.plan(), digest))
}

/// The destinations that the manifest allows, by name and port. Which plugin may use which is the enclave's
/// check.
#[derive(Debug, Default)]
pub(crate) struct EgressRules(BTreeMap<(String, u16), usize>);

impl EgressRules {
    /// From a plan. Names that are no DNS names are left out: nothing can ask for them.
    pub(crate) fn new(rules: &[EgressRule]) -> Self {
        let mut numbered = BTreeMap::new();
        for rule in rules {
            if let Some(name) = normalise(&rule.fqdn) {
                let next = numbered.len();
                numbered.entry((name, rule.port)).or_insert(next);
            }
        }
        Self(numbered)
    }

    /// The number of the rule that allows this destination; `name` is normalised.
    pub(crate) fn allows(&self, name: &str, port: u16) -> Option<usize> {
        self.0.get(&(name.to_owned(), port)).copied()
    }

    /// How many destinations there are; their numbers are below it.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(plugin: &str, fqdn: &str, port: u16) -> EgressRule {
        EgressRule { plugin: plugin.into(), fqdn: fqdn.into(), port, tls: false }
    }

    #[test]
    fn a_destination_is_allowed_by_name_and_port_together() {
        let rules = EgressRules::new(&[
            rule("a", "Api.Example.com.", 443),
            rule("b", "api.example.com", 443),
            rule("b", "api.example.com", 8443),
        ]);
        assert_eq!(rules.len(), 2);
        assert!(rules.allows("api.example.com", 443).is_some());
        assert_ne!(rules.allows("api.example.com", 443), rules.allows("api.example.com", 8443));
        for (name, port) in
            [("api.example.com", 80), ("example.com", 443), ("x.api.example.com", 443), ("", 443)]
        {
            assert_eq!(rules.allows(name, port), None, "{name}:{port}");
        }
    }
}
