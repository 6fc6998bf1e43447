//! Whose numbers these are: the labels on every data point, which nobody else may set.

use std::collections::{BTreeMap, BTreeSet};

use enclave_protocol::metrics::{
    ATTRIBUTE_INSTANCE, LABEL_DEPLOYMENT, LABEL_NAMESPACE, LABEL_NED, Sample,
    prometheus::{self, Shape},
};

/// Labels that Prometheus and the Collector make of the resource; a point that carries one of them costs its
/// whole family.
const LABEL_INSTANCE: &str = "instance";
const LABEL_JOB: &str = "job";
/// The beginning of the labels that they make of the scope.
const LABEL_SCOPE: &str = "otel_scope_";
/// The prefix of a reserved name that somebody else uses, as Prometheus does it with a scraped label.
const EXPORTED: &str = "exported_";
/// Labels that say where a point comes from: ours to set, in points that come from an app.
const ORIGIN: [&str; 4] = ["plugin", "scrape_job", "scrape_target", "k8s_container_name"];
/// Labels and resource attributes that say which pod it is, whether the host tells them or not.
const POD: [&str; 4] = ["k8s_namespace_name", "k8s_node_name", "k8s_pod_name", "k8s_pod_uid"];
/// Attributes of the resource that make `job` and `instance`, and that are ours.
const SERVICE: [&str; 2] = ["service_instance_id", "service_namespace"];
/// Families that are the supervisor's and ours alone, by the words that their names begin with.
const OWN_FAMILIES: [&[&str]; 6] = [
    &["nitro", "enclave"],
    &["enclave"],
    &["k8s", "node"],
    &["k8s", "pod"],
    &["k8s", "container"],
    &["container"],
];
/// The same for what Prometheus makes itself: of a scrape, of a resource, of a scope, of an alert.
const PROMETHEUS_FAMILIES: [&[&str]; 4] =
    [&["scrape"], &["target", "info"], &["otel", "scope", "info"], &["ALERTS"]];
/// Prometheus' word about a target: this name alone, not those that begin with it.
const UP: &str = "up";
/// Words of the longest beginning above.
const WORDS_MAX: usize = 3;

/// The deployment's labels as the supervisor told them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    labels: BTreeMap<String, String>,
    /// Attributes of the resource alone.
    resource: BTreeMap<String, String>,
    /// The names of both in the form in which names are compared.
    label_names: BTreeSet<String>,
    resource_names: BTreeSet<String>,
}

impl Identity {
    /// The identity that `sample` carries; none without the name that an autoscaler selects on.
    pub(crate) fn of(sample: &Sample) -> Option<Self> {
        let is_named = sample.labels.contains_key(LABEL_DEPLOYMENT);
        is_named.then(|| Self::new(sample.labels.clone(), sample.resource.clone()))
    }

    /// The identity of nobody, to try a pipeline with.
    pub(crate) fn nobody() -> Self {
        Self::new(BTreeMap::new(), BTreeMap::new())
    }

    fn new(labels: BTreeMap<String, String>, resource: BTreeMap<String, String>) -> Self {
        let names = |of: &BTreeMap<String, String>| of.keys().map(|key| canonical(key)).collect();
        Self { label_names: names(&labels), resource_names: names(&resource), labels, resource }
    }

    /// Name and value, to be put on every point.
    pub(crate) fn labels(&self) -> impl Iterator<Item = (&str, &str)> {
        self.labels.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// Attributes of the resource beside the labels: `service.name`, `service.namespace`,
    /// `service.instance.id` and what the host tells of the pod, as far as they are known.
    pub(crate) fn service(&self) -> impl Iterator<Item = (&str, &str)> {
        let named = [(SERVICE_NAME, LABEL_DEPLOYMENT), (SERVICE_NAMESPACE, LABEL_NAMESPACE)];
        let named = named
            .into_iter()
            .filter_map(|(attribute, label)| Some((attribute, self.labels.get(label)?.as_str())));
        named.chain(self.resource.iter().map(|(key, value)| (key.as_str(), value.as_str())))
    }

    /// Whether a point's attribute, once a reader has made a label of it, would be one of the identity's, or
    /// one that readers make of resource and scope.
    pub(crate) fn reserves(&self, key: &str) -> bool {
        // `__name__` and its like are Prometheus' own.
        if prometheus::label_name(key).starts_with("__") {
            return true;
        }
        let label = canonical(key);
        [LABEL_DEPLOYMENT, LABEL_NED, LABEL_NAMESPACE, LABEL_INSTANCE, LABEL_JOB].contains(&label.as_str())
            || POD.contains(&label.as_str())
            || label.starts_with(LABEL_SCOPE)
            || self.label_names.contains(&label)
    }

    /// The same for an attribute of a resource, which may become a label as well.
    pub(crate) fn reserves_on_resource(&self, key: &str) -> bool {
        let label = canonical(key);
        self.reserves(key) || SERVICE.contains(&label.as_str()) || self.resource_names.contains(&label)
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

/// Which part of an app's metric would make it pass for one of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Forgery {
    /// The name alone.
    Name,
    /// The name with its unit, which readers append.
    Unit,
}

/// Whether a reader could make of `name` and `unit` the name of one of the supervisor's families, ours, or
/// Prometheus' own. An autoscaler acts on them.
///
/// Readers differ in what they build: with or without unit and suffixes, runs of `_` collapsed or not, dots
/// kept or not. All of these begin with the same words, in this order, but for `total` and `ratio`, which are
/// moved to the end. So the words are judged: of the name, then of the unit.
pub(crate) fn forgery(name: &str, unit: &str) -> Option<Forgery> {
    let is_own = |unit: &str| {
        let words: Vec<&str> = words(name).chain(words(unit)).take(WORDS_MAX).collect();
        let begins = |own: &[&str], same: fn(&str, &str) -> bool| {
            words.len() >= own.len() && words.iter().zip(own).all(|(word, own)| same(word, own))
        };
        OWN_FAMILIES.iter().any(|own| begins(own, str::eq_ignore_ascii_case))
            || PROMETHEUS_FAMILIES.iter().any(|own| begins(own, |word, own| word == own))
            || words.first() == Some(&UP) && is_up(name, unit)
    };
    if is_own("") { Some(Forgery::Name) } else { is_own(unit).then_some(Forgery::Unit) }
}

fn is_up(name: &str, unit: &str) -> bool {
    let shapes = [Shape::Gauge, Shape::MonotonicSum, Shape::Other];
    shapes.into_iter().any(|shape| prometheus::metric_name(name, unit, shape) == UP)
}

/// The words of a metric's name or unit that come first in the reader's form.
fn words(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric());
    words.filter(|word| !word.is_empty() && *word != "total" && *word != "ratio")
}

/// Where the value of a reserved name goes; again and again, while that name is taken too.
pub(crate) fn exported(key: &str, taken: impl Fn(&str) -> bool) -> String {
    let mut moved = format!("{EXPORTED}{key}");
    while taken(&moved) {
        moved.insert_str(0, EXPORTED);
    }
    moved
}

/// `key` as a label, in the one form in which labels are compared: readers differ in runs of `_`, in those at
/// the ends, and some storages in upper and lower case.
fn canonical(key: &str) -> String {
    let words = key.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    let mut label = words.collect::<Vec<_>>().join("_");
    label.make_ascii_lowercase();
    label
}

#[cfg(test)]
mod tests;
