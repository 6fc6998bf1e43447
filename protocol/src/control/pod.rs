//! Which pod an enclave belongs to. The host tells it; nothing in the enclave can check it, and nothing
//! measures it.

use serde::{Deserialize, Serialize};

use crate::{
    manifest::subdomain,
    metrics::{ATTRIBUTE_NODE_NAME, ATTRIBUTE_POD_NAME, ATTRIBUTE_POD_UID},
};

/// Longest uid, in bytes: those of Kubernetes have 36, those of static pods 32.
const UID_BYTES_MAX: usize = 64;

/// The pod, as Kubernetes' downward API tells it to host-proxy.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Pod {
    /// Its name: a DNS-1123 subdomain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its uid: letters, digits and hyphens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// The name of the node that it is on: a DNS-1123 subdomain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
}

impl Pod {
    /// Checks a name of a pod or a node.
    pub fn name(text: &str) -> Result<String, String> {
        subdomain(text)
    }

    /// Checks a uid.
    pub fn uid(text: &str) -> Result<String, String> {
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        if (1..=UID_BYTES_MAX).contains(&text.len()) && text.bytes().all(legal) {
            return Ok(text.to_owned());
        }
        // What came in is not given back: it may be long.
        Err(format!("expected 1 to {UID_BYTES_MAX} letters, digits and hyphens"))
    }

    /// Checks all of it; the error names the field.
    pub fn check(&self) -> Result<(), String> {
        let named = |field: &str, value: &Option<String>, check: fn(&str) -> Result<String, String>| {
            let checked = value.as_deref().map_or(Ok(String::new()), check);
            checked.map(drop).map_err(|error| format!("invalid {field}: {error}"))
        };
        named("pod.name", &self.name, Self::name)?;
        named("pod.uid", &self.uid, Self::uid)?;
        named("pod.node", &self.node, Self::name)
    }

    /// Whether nothing is known of it.
    pub fn is_unknown(&self) -> bool {
        *self == Self::default()
    }

    /// As attributes of the resource.
    pub fn attributes(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let all = [
            (ATTRIBUTE_POD_NAME, &self.name),
            (ATTRIBUTE_POD_UID, &self.uid),
            (ATTRIBUTE_NODE_NAME, &self.node),
        ];
        all.into_iter().filter_map(|(attribute, value)| Some((attribute, value.as_deref()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, uid: &str, node: &str) -> Pod {
        let some = |text: &str| Some(text.to_owned());
        Pod { name: some(name), uid: some(uid), node: some(node) }
    }

    #[test]
    fn a_pod_is_named_as_kubernetes_names_it_and_in_no_other_way() {
        let uid = "6fa0d37c-5b4e-4d8c-9d7f-2f4f2f0a1a11";
        assert_eq!(pod("hello-7d9f-x2x", uid, "ip-10-0-0-1.eu-west-1.compute.internal").check(), Ok(()));
        assert_eq!(Pod::default().check(), Ok(()));
        let long = "a".repeat(254);
        for (bad, field) in [
            (pod("", uid, "n"), "pod.name"),
            (pod("A", uid, "n"), "pod.name"),
            (pod(&long, uid, "n"), "pod.name"),
            (pod("p", "", "n"), "pod.uid"),
            (pod("p", "a b", "n"), "pod.uid"),
            (pod("p", &long, "n"), "pod.uid"),
            (pod("p", uid, "n\n"), "pod.node"),
        ] {
            let error = bad.check().unwrap_err();
            assert!(error.starts_with(&format!("invalid {field}: ")) && error.len() < 500, "{error}");
        }
    }

    #[test]
    fn what_is_not_known_is_no_attribute() {
        let one = Pod { node: Some("n".to_owned()), ..Pod::default() };
        assert_eq!(one.attributes().collect::<Vec<_>>(), [("k8s.node.name", "n")]);
        assert!(!one.is_unknown() && Pod::default().is_unknown());
    }
}
