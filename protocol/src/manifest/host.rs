//! The fields that the host reads: host-proxy and the chart. The enclave checks their form and forgets them,
//! and the digest leaves them out.

use super::cursor::{Cursor, Mapping};
use super::name;
use super::node::Value;
use super::quantity;

/// More replicas than this are a mistake.
const REPLICAS_MAX: u32 = 10_000;
/// More CPUs than this no parent instance has.
const CPUS_MAX: u32 = 1024;
/// More pull secrets than this are a mistake.
const PULL_SECRETS_MAX: usize = 16;

/// What the host side of a deployment is to be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostSide {
    /// How many enclaves.
    pub replicas: Option<u32>,
    /// The pod's service account.
    pub service_account: Option<String>,
    /// Huge pages of 1 GiB, in bytes.
    pub hugepages_1gi: Option<u64>,
    /// Huge pages of 2 MiB, in bytes.
    pub hugepages_2mi: Option<u64>,
    /// vCPUs of each enclave.
    pub enclave_cpu_count: Option<u32>,
    /// Names of secrets that hold registry credentials.
    pub image_pull_secrets: Vec<String>,
    /// `caCertDetails.enclaveCertType`.
    pub enclave_cert_type: Option<String>,
}

pub(super) fn check(spec: &mut Mapping<'_>) -> HostSide {
    let pull_secrets = ["imagePullSecret", "imagePullSecrets"]
        .map(|field| spec.field(field).map(|c| check_pull_secrets(&c)).unwrap_or_default());
    let host = HostSide {
        replicas: spec.field("replicas").and_then(|c| c.integer(0..=REPLICAS_MAX)),
        service_account: spec.field("serviceAccount").and_then(|c| c.checked(name::subdomain(c.string()?))),
        hugepages_1gi: spec.field("hugepages-1Gi").and_then(|c| quantity::check_whole(&c)),
        hugepages_2mi: spec.field("hugepages-2Mi").and_then(|c| quantity::check_whole(&c)),
        enclave_cpu_count: spec.field("enclaveCpuCount").and_then(|c| c.integer(1..=CPUS_MAX)),
        image_pull_secrets: pull_secrets.concat(),
        enclave_cert_type: spec.field("caCertDetails").and_then(|c| check_certificate(&c)),
    };
    // The ingress controller's own; its shape is the vendor's and the enclave has no part in it.
    if let Some(ingress) = spec.field("ingress") {
        ingress.entries();
    }
    host
}

/// The certificate's other details are for the vendor's controller.
fn check_certificate(cursor: &Cursor<'_>) -> Option<String> {
    cursor.entries().iter().find(|(key, ..)| *key == "enclaveCertType").and_then(|(_, _, value)| {
        (!value.node.is_null()).then(|| value.string()).flatten().map(str::to_owned)
    })
}

/// A name, `{name}`, or a list of them.
pub(super) fn check_pull_secrets(cursor: &Cursor<'_>) -> Vec<String> {
    match &cursor.node.value {
        Value::Sequence(_) => cursor.items(PULL_SECRETS_MAX).iter().filter_map(check_pull_secret).collect(),
        Value::Scalar(_) | Value::Mapping(_) | Value::Refused => {
            check_pull_secret(cursor).into_iter().collect()
        }
    }
}

fn check_pull_secret(cursor: &Cursor<'_>) -> Option<String> {
    if !matches!(cursor.node.value, Value::Mapping(_)) {
        return cursor.checked(name::object(cursor.string_of("the name of a Secret")?));
    }
    let mut fields = cursor.mapping()?;
    let name = fields.required("name");
    fields.finish();
    let name = name?;
    name.checked(name::object(name.string()?))
}
