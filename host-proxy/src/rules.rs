//! The host's own reading of the manifest: the plan that it compares with the enclave's, and the egress
//! rules.

use std::{collections::BTreeMap, path::Path};

use enclave_protocol::{
    bundle::{Bundle, BundleError},
    control::{Diagnostic, EgressRule, Files, Plan},
    digest::digest,
    manifest::{self, Context},
};

use crate::policy::normalise;

/// A manifest that this side has read and checked by itself.
#[derive(Debug, Clone)]
pub(crate) struct Reading {
    /// What goes to the enclave.
    pub(crate) bundle: Bundle,
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
    /// The manifest has mistakes.
    #[error("the manifest has {} mistake(s)", .0.len())]
    Invalid(Vec<Diagnostic>),
}

impl Reading {
    /// Reads the files and the manifest. `reserved` are the ports on which this program listens itself.
    /// Blocking.
    pub(crate) fn read(
        manifest: &Path,
        config_dir: Option<&Path>,
        reserved: &[u16],
    ) -> Result<Self, ReadingError> {
        Self::of(Bundle::read(manifest, config_dir)?, reserved)
    }

    /// The same for files that are read already.
    pub(crate) fn of(bundle: Bundle, reserved: &[u16]) -> Result<Self, ReadingError> {
        let (deployment, plan, digest) =
            understand(&bundle.manifest, &bundle.files, reserved).map_err(ReadingError::Invalid)?;
        Ok(Self { bundle, deployment, plan, digest })
    }
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
