//! Pages in, decoded OTLP out.

mod http;
mod pages;

use std::{fmt::Write as _, io::Read as _};

use enclave_protocol::scrape::{Config, Limits};
use opentelemetry_proto::tonic::{
    common::v1::{KeyValue, any_value},
    metrics::v1::{Exemplar, metric::Data},
};

use super::{
    batch::Encoded,
    exposition::Dialect,
    fingerprint::Numbers,
    mapper::{Mapper, Mode, Outcome, PageError, Settings},
    origin::{Origin, TargetLabels},
    relabel::Compiled,
};
use crate::{fake::sample, identity::Identity, otlp::Export};

/// The time of a scrape in tests: 1,000 s.
const NOW: u64 = 1_000_000_000_000;

/// A target with its configuration, read page by page.
struct Rig {
    mapper: Mapper,
    origin: Origin,
    rules: Vec<Compiled>,
    limits: Limits,
    honor_timestamps: bool,
}

impl Rig {
    /// A target of the job `app`; `job` has further lines of its configuration.
    fn new(job: &str) -> Self {
        let config = config(job);
        let job = &config.jobs[0];
        let target = TargetLabels {
            job: job.name.clone(),
            target: "localhost:8001".to_owned(),
            plugin: Some("web".to_owned()),
            labels: job.groups[0].labels.clone(),
            external: config.external_labels.clone(),
            resource: vec![("server.port", "8001".to_owned())],
        };
        Self {
            mapper: Mapper::new(),
            origin: Origin::new(Identity::of(&sample(1)).unwrap(), target, job.honor_labels),
            rules: Compiled::all(&job.metric_relabel).unwrap(),
            limits: job.limits,
            honor_timestamps: job.honor_timestamps,
        }
    }

    fn read(
        &mut self,
        page: &str,
        dialect: Dialect,
        mode: Mode<'_>,
    ) -> Result<(Vec<Encoded>, Outcome), PageError> {
        let settings =
            Settings { limits: self.limits, honor_timestamps: self.honor_timestamps, rules: &self.rules };
        self.mapper.begin();
        let outcome = self.mapper.page(page, dialect, &mut self.origin, settings, mode, NOW)?;
        Ok((self.mapper.finish(&self.origin), outcome))
    }

    fn text(&mut self, page: &str) -> String {
        let (requests, _) = self.read(page, Dialect::Text, Mode::Points).unwrap();
        requests.iter().map(|request| show(&decode(request))).collect()
    }

    fn open_metrics(&mut self, page: &str) -> String {
        let (requests, _) = self.read(page, Dialect::OpenMetrics, Mode::Points).unwrap();
        requests.iter().map(|request| show(&decode(request))).collect()
    }

    /// The ends of the series of `before` that are not in `after`.
    fn ends(&mut self, before: &str, after: &str) -> String {
        let series = self.series(after);
        let (requests, _) = self.read(before, Dialect::Text, Mode::Ends(&series)).unwrap();
        requests.iter().map(|request| show(&decode(request))).collect()
    }

    fn series(&mut self, page: &str) -> Numbers {
        self.read(page, Dialect::Text, Mode::Points).unwrap().1.series
    }
}

fn config(job: &str) -> Config {
    let job = job.replace('\n', "\n  ");
    let text = format!("scrape_configs:\n- job_name: app\n  {job}\n");
    let text = if job.contains("static_configs") {
        text
    } else {
        format!("{text}  static_configs: [{{targets: ['localhost:8001']}}]\n")
    };
    enclave_protocol::scrape::parse(&text, &enclave_protocol::scrape::Context::default())
        .unwrap_or_else(|errors| panic!("{text}\n{errors:?}"))
}

fn decode(request: &Encoded) -> Export {
    let mut body = Vec::new();
    flate2::read::GzDecoder::new(request.body.as_slice()).read_to_end(&mut body).unwrap();
    // gRPC servers take no more by default.
    assert!(body.len() < 4 << 20, "{}", body.len());
    let export = <Export as prost::Message>::decode(body.as_slice()).unwrap();
    assert_eq!(crate::otlp::count(&export), request.items);
    export
}

/// An export as text: labels without those that every point has.
fn show(export: &Export) -> String {
    let mut out = String::new();
    for group in &export.resource_metrics {
        let resource = group.resource.clone().unwrap_or_default().attributes;
        let own = [
            "namespace",
            "ned_name",
            "oblv_deployment_name",
            "service.instance.id",
            "service.name",
            "service.namespace",
        ];
        for key in own {
            assert!(resource.iter().any(|a| a.key == key), "{key}: {resource:?}");
        }
        writeln!(out, "resource {}", list(resource.iter().filter(|a| !own.contains(&a.key.as_str()))))
            .unwrap();
        for scope in &group.scope_metrics {
            let name = scope.scope.clone().unwrap_or_default();
            if name.name != "enclave-telemetry" {
                writeln!(out, "scope {}@{}", name.name, name.version).unwrap();
            }
            for metric in &scope.metrics {
                let unit = if metric.unit.is_empty() { String::new() } else { format!(" [{}]", metric.unit) };
                let help = if metric.description.is_empty() {
                    String::new()
                } else {
                    format!(" {:?}", metric.description)
                };
                let metadata = list(metric.metadata.iter());
                writeln!(
                    out,
                    "{} {} ({metadata}){unit}{help}",
                    metric.name,
                    kind(metric.data.as_ref().unwrap())
                )
                .unwrap();
                points(metric.data.as_ref().unwrap(), &mut out);
            }
        }
    }
    out
}

fn kind(data: &Data) -> &'static str {
    match data {
        Data::Gauge(_) => "gauge",
        Data::Sum(sum) => match (sum.aggregation_temporality, sum.is_monotonic) {
            (2, true) => "monotonic sum",
            (2, false) => "sum",
            _ => "not cumulative",
        },
        Data::Histogram(histogram) if histogram.aggregation_temporality == 2 => "histogram",
        Data::Summary(_) => "summary",
        Data::Histogram(_) | Data::ExponentialHistogram(_) => "unexpected",
    }
}

fn points(data: &Data, out: &mut String) {
    match data {
        Data::Gauge(opentelemetry_proto::tonic::metrics::v1::Gauge { data_points })
        | Data::Sum(opentelemetry_proto::tonic::metrics::v1::Sum { data_points, .. }) => {
            for p in data_points {
                let value = p.value.map_or_else(|| "-".to_owned(), |value| format!("{value:?}"));
                let value = value.replace("AsDouble(", "").replace(')', "");
                let times = times(p.start_time_unix_nano, p.time_unix_nano, p.flags);
                writeln!(out, "  {{{}}} {value}{times}{}", own(&p.attributes), exemplars(&p.exemplars))
                    .unwrap();
            }
        }
        Data::Histogram(histogram) => {
            for p in &histogram.data_points {
                let times = times(p.start_time_unix_nano, p.time_unix_nano, p.flags);
                let (labels, bounds, counts) = (own(&p.attributes), &p.explicit_bounds, &p.bucket_counts);
                let (count, sum, exemplars) = (p.count, p.sum, exemplars(&p.exemplars));
                writeln!(
                    out,
                    "  {{{labels}}} {bounds:?} {counts:?} count={count} sum={sum:?}{times}{exemplars}"
                )
                .unwrap();
            }
        }
        Data::Summary(summary) => {
            for p in &summary.data_points {
                let times = times(p.start_time_unix_nano, p.time_unix_nano, p.flags);
                let quantiles: Vec<_> = p.quantile_values.iter().map(|q| (q.quantile, q.value)).collect();
                let (labels, count, sum) = (own(&p.attributes), p.count, p.sum);
                writeln!(out, "  {{{labels}}} {quantiles:?} count={count} sum={sum}{times}").unwrap();
            }
        }
        Data::ExponentialHistogram(_) => {}
    }
}

fn times(start: u64, time: u64, flags: u32) -> String {
    let mut out = String::new();
    if start > 0 {
        write!(out, " from {}", start / 1_000_000).unwrap();
    }
    if time != NOW {
        write!(out, " at {}", time / 1_000_000).unwrap();
    }
    if flags == 1 {
        out.push_str(" END");
    }
    out
}

fn exemplars(exemplars: &[Exemplar]) -> String {
    let show = |e: &Exemplar| {
        let value = format!("{:?}", e.value.unwrap()).replace("AsDouble(", "").replace(')', "");
        let time = times(0, e.time_unix_nano, 0);
        let ids = format!("{}/{}", e.trace_id.len(), e.span_id.len());
        format!(" # {{{}}} {value}{time} ids={ids}", list(e.filtered_attributes.iter()))
    };
    exemplars.iter().map(show).collect()
}

/// The labels beside those that every point of these tests has, which must be there.
fn own(attributes: &[KeyValue]) -> String {
    let fixed = [
        "oblv_deployment_name=hello",
        "ned_name=hello",
        "namespace=default",
        "plugin=web",
        "scrape_job=app",
        "scrape_target=localhost:8001",
    ];
    let text = list(attributes.iter());
    let words: Vec<&str> = text.split(',').collect();
    for word in &fixed[..4] {
        assert!(words.contains(word), "{word}: {text}");
    }
    let keys: std::collections::BTreeSet<_> = attributes.iter().map(|a| &a.key).collect();
    assert_eq!(keys.len(), attributes.len(), "a label twice: {text}");
    words.into_iter().filter(|word| !fixed.contains(word)).collect::<Vec<_>>().join(",")
}

fn list<'a>(attributes: impl Iterator<Item = &'a KeyValue>) -> String {
    let word = |a: &KeyValue| match a.value.as_ref().and_then(|v| v.value.as_ref()) {
        Some(any_value::Value::StringValue(value)) => format!("{}={value}", a.key),
        other => format!("{}={other:?}", a.key),
    };
    attributes.map(word).collect::<Vec<_>>().join(",")
}
