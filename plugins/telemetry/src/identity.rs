//! Whose numbers these are: the labels on every data point, which nobody else may set.

use std::collections::BTreeMap;

use enclave_protocol::metrics::{ATTRIBUTE_INSTANCE, LABEL_DEPLOYMENT, LABEL_NAMESPACE, LABEL_NED, Sample};

/// Labels that Prometheus and the Collector make of the resource; a point that carries one of them costs its
/// whole family.
const LABEL_INSTANCE: &str = "instance";
const LABEL_JOB: &str = "job";
/// What a reserved name becomes when somebody else uses it, as Prometheus does with a scraped label.
const EXPORTED: &str = "exported_";
/// Labels that say where a point comes from: ours to set, in points that come from an app.
const ORIGIN: [&str; 3] = ["plugin", "scrape_job", "scrape_target"];
/// Metric names that are the supervisor's and ours alone, by their canonical beginning.
const OWN_METRICS: [&str; 2] = ["nitro_enclave", "enclave"];

/// The deployment's labels as the supervisor told them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    labels: BTreeMap<String, String>,
    /// What stands on the resource alone.
    resource: BTreeMap<String, String>,
}

impl Identity {
    /// The identity that `sample` carries; none without the name that an autoscaler selects on.
    pub(crate) fn of(sample: &Sample) -> Option<Self> {
        sample
            .labels
            .contains_key(LABEL_DEPLOYMENT)
            .then(|| Self { labels: sample.labels.clone(), resource: sample.resource.clone() })
    }

    /// The identity of nobody, to try a pipeline with.
    pub(crate) fn nobody() -> Self {
        Self { labels: BTreeMap::new(), resource: BTreeMap::new() }
    }

    /// Name and value, to be put on every point.
    pub(crate) fn labels(&self) -> impl Iterator<Item = (&str, &str)> {
        self.labels.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// What stands on the resource beside the labels: `service.name`, `service.namespace`,
    /// `service.instance.id` and what the host tells of the pod, as far as they are known.
    pub(crate) fn service(&self) -> impl Iterator<Item = (&str, &str)> {
        let named = [(SERVICE_NAME, LABEL_DEPLOYMENT), (SERVICE_NAMESPACE, LABEL_NAMESPACE)];
        let named = named
            .into_iter()
            .filter_map(|(attribute, label)| Some((attribute, self.labels.get(label)?.as_str())));
        named.chain(self.resource.iter().map(|(key, value)| (key.as_str(), value.as_str())))
    }

    /// Whether `key`, once Prometheus has rewritten it, would be one of the identity's labels.
    pub(crate) fn reserves(&self, key: &str) -> bool {
        let key = canonical(key);
        [LABEL_DEPLOYMENT, LABEL_NED, LABEL_NAMESPACE, LABEL_INSTANCE, LABEL_JOB].contains(&key.as_str())
            || self.labels.contains_key(&key)
    }
}

/// The deployment, in the resource.
pub(crate) const SERVICE_NAME: &str = "service.name";
/// Its namespace. Prometheus makes `job` of both.
pub(crate) const SERVICE_NAMESPACE: &str = "service.namespace";
/// The enclave. Prometheus overwrites the label `instance` with it, so that it must be ours.
pub(crate) const SERVICE_INSTANCE: &str = ATTRIBUTE_INSTANCE;

/// Whether `key` says where a point comes from, which an app must not claim.
pub(crate) fn names_origin(key: &str) -> bool {
    ORIGIN.contains(&canonical(key).as_str())
}

/// Whether a metric of this name would pass for one of the supervisor's. An autoscaler acts on them.
pub(crate) fn is_own_metric(name: &str) -> bool {
    let name = canonical(name);
    OWN_METRICS
        .iter()
        .any(|own| name.strip_prefix(own).is_some_and(|rest| rest.is_empty() || rest.starts_with(['_', ':'])))
}

/// Where the value of a reserved name goes; again and again, while that name is taken too.
pub(crate) fn exported(key: &str, taken: impl Fn(&str) -> bool) -> String {
    let mut moved = format!("{EXPORTED}{key}");
    while taken(&moved) {
        moved.insert_str(0, EXPORTED);
    }
    moved
}

/// `name` as Prometheus' OTLP translation writes it: runs of other characters become one `_`, none at the
/// ends. Without it `oblv.deployment.name` would pass here and collide there.
fn canonical(name: &str) -> String {
    let words = name.split(|c: char| !c.is_ascii_alphanumeric() && c != ':').filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join("_")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::sample;

    #[test]
    fn a_reserved_label_is_known_by_what_prometheus_would_make_of_it() {
        let identity = Identity::of(&sample(1)).unwrap();
        for key in ["oblv_deployment_name", "oblv.deployment.name", "_ned__name_", "namespace", "instance"] {
            assert!(identity.reserves(key), "{key}");
        }
        for key in ["deployment", "Instance", "service.name", "exported_instance", ""] {
            assert!(!identity.reserves(key), "{key}");
        }
    }

    #[test]
    fn a_metric_that_would_pass_for_the_supervisors_is_known() {
        for name in [
            "nitro_enclave_cpu_usage",
            "nitro.enclave.cpu_usage",
            "__nitro_enclave_x",
            "enclave_up",
            "enclave",
        ] {
            assert!(is_own_metric(name), "{name}");
        }
        for name in ["enclaves_total", "app_nitro_enclave_cpu_usage", "http.server.duration", ""] {
            assert!(!is_own_metric(name), "{name}");
        }
    }

    #[test]
    fn a_moved_label_never_lands_on_another_one() {
        assert_eq!(exported("instance", |_| false), "exported_instance");
        assert_eq!(exported("instance", |key| key == "exported_instance"), "exported_exported_instance");
    }
}
