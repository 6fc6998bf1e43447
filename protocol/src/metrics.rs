//! Metric families: one list of numbers, made in the supervisor, read by the telemetry plugin (JSON), by
//! host-proxy and by Prometheus (text). Whoever carries them need not know which metrics there are.

use std::{collections::BTreeMap, fmt::Write as _};

use serde::{Deserialize, Serialize};

use crate::timestamp::Timestamp;

pub mod catalogue;
mod labels;
pub mod prometheus;

pub use labels::Labels;

/// Fraction of CPU time used over all cores, 0.0–1.0.
pub const CPU_USAGE: &str = "nitro_enclave_cpu_usage";
/// 1 − `MemAvailable`/`MemTotal`, 0.0–1.0.
pub const MEMORY_USAGE: &str = "nitro_enclave_memory_usage";
/// Raw `MemAvailable`, in bytes.
pub const MEMORY_AVAILABLE: &str = "enclave_memory_available_bytes";
/// Raw `MemTotal`, in bytes.
pub const MEMORY_TOTAL: &str = "enclave_memory_total_bytes";

/// The label that an autoscaler selects on: the manifest's `metadata.name`.
pub const LABEL_DEPLOYMENT: &str = "oblv_deployment_name";
/// The same value; the vendor's HPA example selects on this one.
pub const LABEL_NED: &str = "ned_name";
/// The manifest's `metadata.namespace`.
pub const LABEL_NAMESPACE: &str = "namespace";
/// Resource attribute: unique per enclave. Never a label of a point: Prometheus and the Collector make
/// `instance` of it, and refuse a family whose points carry their own.
pub const ATTRIBUTE_INSTANCE: &str = "service.instance.id";

/// Resource attribute: the manifest's `metadata.namespace`.
pub const ATTRIBUTE_POD_NAMESPACE: &str = "k8s.namespace.name";
/// Resource attribute: the pod's name, as the host tells it.
pub const ATTRIBUTE_POD_NAME: &str = "k8s.pod.name";
/// Resource attribute: the pod's uid, as the host tells it.
pub const ATTRIBUTE_POD_UID: &str = "k8s.pod.uid";
/// Resource attribute: the node that the pod is on, as the host tells it.
pub const ATTRIBUTE_NODE_NAME: &str = "k8s.node.name";

/// All numbers of one moment: the JSON answer to `GET /v1/metrics`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// When the readings were taken.
    pub time: Timestamp,
    /// Since when the counters count: the start of the program that made the sample.
    pub started: Timestamp,
    /// Time between two samples, in milliseconds; 0 from a supervisor that does not tell. The first sample of
    /// a deployment comes sooner, so that readers cannot measure it.
    #[serde(default)]
    pub interval_millis: u64,
    /// On every point of every family.
    pub labels: BTreeMap<String, String>,
    /// On the resource alone, by their OpenTelemetry names: [`ATTRIBUTE_INSTANCE`], and what the host tells
    /// of the pod.
    #[serde(default)]
    pub resource: BTreeMap<String, String>,
    /// The families, each name once.
    pub families: Vec<Family>,
}

/// One metric with all its points.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Family {
    /// Our own families have legal Prometheus names; those of OpenTelemetry's conventions have dots.
    pub name: String,
    /// For people, one line.
    pub help: String,
    /// What kind of number.
    pub kind: Kind,
    /// The unit in UCUM (`s`, `By`, `{cpu}`), or empty: for a value whose name ends in its unit, and for the
    /// two headline gauges, which Prometheus would rename to `…_ratio` for the unit `1`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub unit: String,
    /// The points; label sets are unique.
    pub points: Vec<Point>,
}

/// What a number means over time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Kind {
    /// Goes up and down.
    Gauge,
    /// Only goes up, from zero at the supervisor's start.
    Counter,
    /// A sum over its points that goes up and down: OpenTelemetry's `UpDownCounter`, a gauge to Prometheus.
    UpDownCounter,
}

/// One number.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Beside the sample's own labels.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// The value.
    pub value: f64,
}

impl Point {
    /// A point with no labels of its own.
    pub fn bare(value: f64) -> Self {
        Self { labels: Labels::default(), value }
    }

    /// A point with these labels.
    pub fn labelled<const N: usize>(labels: [(&str, &str); N], value: f64) -> Self {
        Self { labels: Labels::from(labels), value }
    }
}

impl Family {
    /// A gauge.
    pub fn gauge(name: &str, help: &str, points: Vec<Point>) -> Self {
        Self::new(Kind::Gauge, name, "", help, points)
    }

    /// A counter.
    pub fn counter(name: &str, help: &str, points: Vec<Point>) -> Self {
        Self::new(Kind::Counter, name, "", help, points)
    }

    /// A family of any kind; `unit` is in UCUM.
    pub fn new(kind: Kind, name: &str, unit: &str, help: &str, points: Vec<Point>) -> Self {
        Self { name: name.to_owned(), help: help.to_owned(), kind, unit: unit.to_owned(), points }
    }

    /// The name under which Prometheus shows the family.
    pub fn prometheus_name(&self) -> String {
        prometheus::metric_name(&self.name, &self.unit, self.kind)
    }
}

impl Sample {
    /// The first point of `name`.
    pub fn value(&self, name: &str) -> Option<f64> {
        self.families.iter().find(|f| f.name == name)?.points.first().map(|p| p.value)
    }

    /// Prometheus text exposition format 0.0.4, with the names and labels that Prometheus makes of OTLP.
    pub fn to_prometheus(&self) -> String {
        let mut text = String::new();
        let label = |(name, value): (&str, &str)| {
            format!("{}=\"{}\"", prometheus::label_name(name), escape(value, true))
        };
        let identity: Vec<String> = self.labels.iter().map(|(k, v)| label((k, v))).collect();
        for family in self.families.iter().filter(|f| !f.points.is_empty()) {
            let kind = match family.kind {
                Kind::Gauge | Kind::UpDownCounter => "gauge",
                Kind::Counter => "counter",
            };
            let name = family.prometheus_name();
            // Writing to a String cannot fail.
            writeln!(text, "# HELP {name} {}", escape(&family.help, false)).ok();
            writeln!(text, "# TYPE {name} {kind}").ok();
            for point in &family.points {
                text.push_str(&name);
                // The sample's labels win: an identity cannot be overridden by a point.
                let own = point.labels.iter().filter(|(key, _)| !self.labels.contains_key(*key));
                let labels: Vec<String> = identity.iter().cloned().chain(own.map(label)).collect();
                if !labels.is_empty() {
                    write!(text, "{{{}}}", labels.join(",")).ok();
                }
                writeln!(text, " {}", point.value).ok();
            }
        }
        text
    }
}

/// Escapes a help text, or a label's value (`quotes`).
fn escape(text: &str, quotes: bool) -> String {
    let text = text.replace('\\', "\\\\").replace('\n', "\\n");
    if quotes { text.replace('"', "\\\"") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_reads_as_prometheus_text_with_its_labels_escaped() {
        let sample = Sample {
            time: Timestamp(0),
            started: Timestamp(0),
            interval_millis: 0,
            labels: [(LABEL_DEPLOYMENT.to_owned(), "hello".to_owned())].into(),
            resource: [(ATTRIBUTE_INSTANCE.to_owned(), "not a label".to_owned())].into(),
            families: vec![
                Family::gauge(CPU_USAGE, "CPU\nused", vec![Point::bare(0.25)]),
                Family::new(
                    Kind::UpDownCounter,
                    "k8s.node.memory.usage",
                    "By",
                    "m",
                    vec![Point::labelled([("k8s.container.name", "a")], 5.0)],
                ),
                Family::counter("c_total", "c", vec![Point::labelled([("plugin", "a\"b\\c")], 3.0)]),
                Family::gauge("none", "not shown", vec![]),
            ],
        };
        expect_test::expect![[r#"
            # HELP nitro_enclave_cpu_usage CPU\nused
            # TYPE nitro_enclave_cpu_usage gauge
            nitro_enclave_cpu_usage{oblv_deployment_name="hello"} 0.25
            # HELP k8s_node_memory_usage_bytes m
            # TYPE k8s_node_memory_usage_bytes gauge
            k8s_node_memory_usage_bytes{oblv_deployment_name="hello",k8s_container_name="a"} 5
            # HELP c_total c
            # TYPE c_total counter
            c_total{oblv_deployment_name="hello",plugin="a\"b\\c"} 3
        "#]]
        .assert_eq(&sample.to_prometheus());
    }
}
