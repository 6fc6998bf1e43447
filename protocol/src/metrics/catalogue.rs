//! Every metric family that this project makes, once: name, kind, unit, labels, meaning and source. Families
//! are made from its entries, and `docs/metrics.md` is generated from them.
//!
//! Names, units and kinds of `k8s.*` and `container.*` are those of the Collector's kubeletstats receiver,
//! else those of OpenTelemetry's semantic conventions (k8s-metrics, container-metrics). The one exception is
//! uptime, a gauge as in the conventions: the receiver's sum would have to begin at each run's own start.

use std::fmt::Write as _;

use super::{Family, Kind, Point, prometheus};

/// Makes the statics of a section and their list. An entry's documentation is its help text.
macro_rules! entries {
    ($($(#[doc = $help:literal])+ $name:ident: $kind:ident $otel:literal $unit:literal
        [$($label:literal),*] $source:literal;)+) => {
        $(
            $(#[doc = $help])+
            pub static $name: $crate::metrics::catalogue::Entry = $crate::metrics::catalogue::Entry {
                name: $otel,
                kind: $crate::metrics::Kind::$kind,
                unit: $unit,
                labels: &[$($label),*],
                help: concat!($($help),+),
                source: $source,
            };
        )+
        pub(super) static ALL: &[&$crate::metrics::catalogue::Entry] = &[$(&$name),+];
    };
}

pub mod container;
pub mod enclave;
pub mod host;
pub mod plugin;
pub mod relay;
pub mod telemetry;

/// One family of the catalogue.
#[derive(Debug, PartialEq, Eq)]
pub struct Entry {
    /// As in [`Family::name`].
    pub name: &'static str,
    /// As in [`Family::kind`].
    pub kind: Kind,
    /// As in [`Family::unit`].
    pub unit: &'static str,
    /// Labels of its points, beside those that every point has.
    pub labels: &'static [&'static str],
    help: &'static str,
    /// Where the numbers come from, and where there are none.
    pub source: &'static str,
}

impl Entry {
    /// The meaning, for people, in one line.
    pub fn help(&self) -> &'static str {
        self.help.trim()
    }

    /// A family with these points.
    pub fn family(&self, points: Vec<Point>) -> Family {
        Family::new(self.kind, self.name, self.unit, self.help(), points)
    }

    /// A family with one point without labels, or with none.
    pub fn bare(&self, value: impl Into<Option<f64>>) -> Family {
        self.family(value.into().map(Point::bare).into_iter().collect())
    }

    /// The name under which Prometheus shows the family.
    pub fn prometheus_name(&self) -> String {
        prometheus::metric_name(self.name, self.unit, self.kind)
    }
}

/// The sections: title, introduction, entries.
static SECTIONS: [(&str, &str, &[&Entry]); 6] = [
    (
        "The enclave",
        "The enclave is the node, the deployment the pod. Made by the supervisor at every sample.",
        enclave::ALL,
    ),
    (
        "Plugins, by the conventions' names",
        "A plugin is the container; `plugin` and `k8s.container.name` have the same value. \"Group\" is the \
         plugin's control group, which lives from the manifest to the end, over all runs. Without control \
         groups (a supervisor that is not root) numbers are sums over the plugin's processes in /proc.",
        container::ALL,
    ),
    ("Plugins, beyond the conventions", "Also made by the supervisor.", plugin::ALL),
    (
        "Streams and the supervisor itself",
        "`egress` leaves the enclave, `ingress` enters it, `peer` goes from plugin to plugin. `sent` is from \
         whoever connected.",
        relay::ALL,
    ),
    (
        "Telemetry",
        "Made by the telemetry plugin. `produced = sent + dropped + queued` at every moment.",
        telemetry::ALL,
    ),
    ("host-proxy", "On host-proxy's `/metrics` alone.", host::ALL),
];

/// All entries, in the order of the reference.
pub fn all() -> impl Iterator<Item = &'static Entry> {
    SECTIONS.iter().flat_map(|(_, _, entries)| entries.iter().copied())
}

/// The entry with this name.
pub fn find(name: &str) -> Option<&'static Entry> {
    all().find(|entry| entry.name == name)
}

const HEAD: &str = "# Metrics

Generated from `protocol/src/metrics/catalogue`; change it there and run
`UPDATE_EXPECT=1 cargo test -p enclave-protocol`.

Every point carries `oblv_deployment_name`, `ned_name` and `namespace`, and never `instance` or `job`:
those two are made by the reader, of `service.name` and `service.instance.id`. The resource carries
`k8s.pod.name`, `k8s.pod.uid` and `k8s.node.name` where host-proxy is told them (`--pod-name`,
`--pod-uid`, `--node-name`, from the downward API). **They are the host's word: nothing measures them.**
The Prometheus name is the one that the Collector's exporters, Prometheus' OTLP receiver and
host-proxy's page show. A counter starts at zero with the program that counts. A family without a source
has no points; it is never zero instead.
";

/// The reference of all metrics, in Markdown.
pub fn to_markdown() -> String {
    let mut text = HEAD.to_owned();
    for (title, introduction, entries) in &SECTIONS {
        // Writing to a String cannot fail.
        write!(text, "\n## {title}\n\n{introduction}\n\n").ok();
        text.push_str("| OpenTelemetry | Prometheus | type | unit | labels | meaning | source |\n");
        text.push_str("|---|---|---|---|---|---|---|\n");
        for entry in *entries {
            row(&mut text, entry);
        }
    }
    text
}

fn row(text: &mut String, entry: &Entry) {
    let kind = match entry.kind {
        Kind::Gauge => "gauge",
        Kind::Counter => "counter",
        Kind::UpDownCounter => "updowncounter",
    };
    let code = |word: &str| if word.is_empty() { "–".to_owned() } else { format!("`{word}`") };
    let labels: Vec<String> = entry.labels.iter().map(|label| code(label)).collect();
    let labels = if labels.is_empty() { "–".to_owned() } else { labels.join(", ") };
    let (name, prometheus, unit) = (code(entry.name), code(&entry.prometheus_name()), code(entry.unit));
    let (help, source) = (entry.help(), entry.source);
    writeln!(text, "| {name} | {prometheus} | {kind} | {unit} | {labels} | {help} | {source} |").ok();
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_reference_of_all_metrics_is_what_the_catalogue_says() {
        expect_test::expect_file!["../../../docs/metrics.md"].assert_eq(&to_markdown());
    }

    #[test]
    fn no_two_families_have_one_name_here_or_in_prometheus() {
        let names: BTreeSet<&str> = all().map(|entry| entry.name).collect();
        let shown: BTreeSet<String> = all().map(Entry::prometheus_name).collect();
        assert_eq!((names.len(), shown.len()), (all().count(), all().count()));
    }

    #[test]
    fn no_family_has_a_label_that_the_reader_or_the_identity_gives() {
        for entry in all() {
            for label in entry.labels {
                let label = prometheus::label_name(label);
                let reserved = ["instance", "job", "oblv_deployment_name", "ned_name", "namespace"];
                assert!(!reserved.contains(&label.as_str()), "{} {label}", entry.name);
            }
            assert!(!entry.help().contains('|') && !entry.source.contains('|'), "{}", entry.name);
        }
    }

    #[test]
    fn the_vendors_autoscaler_finds_the_name_it_selects() {
        assert_eq!(enclave::MEMORY_USAGE.prometheus_name(), "k8s_node_memory_usage_bytes");
        assert_eq!(enclave::NITRO_CPU_USAGE.prometheus_name(), "nitro_enclave_cpu_usage");
    }
}
