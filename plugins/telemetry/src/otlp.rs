//! What we do to decoded OTLP messages: true times, the shutdown marker, identity labels, counting.
//!
//! The SDK encodes our own metrics, but it has no way to set a point's time, to leave a start time unknown or
//! to flag `NO_RECORDED_VALUE`; its data types cannot be built or changed from outside. That is done here, on
//! the messages.

use enclave_protocol::timestamp::Timestamp;
use opentelemetry_proto::tonic::{
    collector::metrics::v1::ExportMetricsServiceRequest,
    common::v1::{AnyValue, KeyValue, any_value},
    metrics::v1::{Metric, NumberDataPoint, metric::Data},
};

use crate::{
    identity::{self, Identity},
    times,
};

/// An OTLP export, decoded.
pub(crate) type Export = ExportMetricsServiceRequest;

/// How many data points there are.
pub(crate) fn count(export: &Export) -> u64 {
    let points = metrics(export).map(|metric| match &metric.data {
        None => 0,
        Some(Data::Gauge(gauge)) => gauge.data_points.len(),
        Some(Data::Sum(sum)) => sum.data_points.len(),
        Some(Data::Histogram(histogram)) => histogram.data_points.len(),
        Some(Data::ExponentialHistogram(histogram)) => histogram.data_points.len(),
        Some(Data::Summary(summary)) => summary.data_points.len(),
    });
    points.sum::<usize>() as u64
}

/// Gives our own points their time, and sums the start of which `start` knows by the metric's name. The SDK would
/// say when it collected, and that a counter began with this process.
pub(crate) fn stamp(export: &mut Export, time: Timestamp, start: impl Fn(&str) -> Timestamp) {
    for metric in metrics_mut(export) {
        let is_sum = matches!(metric.data, Some(Data::Sum(_)));
        let start = if is_sum { times::start(start(&metric.name), time).0 } else { 0 };
        for point in numbers_mut(metric) {
            (point.start_time_unix_nano, point.time_unix_nano) = (start, time.0);
        }
    }
}

/// Puts the identity on an app's export: on every resource and every point of every type. What the app itself
/// says under a reserved name is kept as `exported_…`; so is a metric that would pass for the supervisor's.
pub(crate) fn identify(export: &mut Export, identity: &Identity) {
    for group in &mut export.resource_metrics {
        let resource = &mut group.resource.get_or_insert_default().attributes;
        let named = resource.iter().any(|attribute| attribute.key == identity::SERVICE_NAME);
        // An app's own service.name stays: it alone keeps two apps' series of one name apart.
        let service = identity.service().filter(|(key, _)| !(named && *key == identity::SERVICE_NAME));
        let service: Vec<_> = service.map(|(key, value)| text(key, value)).collect();
        relabel(resource, identity, |key| {
            identity.reserves(key)
                || key == identity::SERVICE_INSTANCE
                || key == identity::SERVICE_NAMESPACE
                || identity::names_origin(key)
        });
        resource.extend(service);
    }
    for metric in metrics_mut(export) {
        if identity::is_own_metric(&metric.name) {
            metric.name = identity::exported(&metric.name, |_| false);
        }
        for attributes in attributes_mut(metric) {
            relabel(attributes, identity, |key| identity.reserves(key) || identity::names_origin(key));
        }
    }
}

/// Moves reserved names away and adds the identity.
fn relabel(attributes: &mut Vec<KeyValue>, identity: &Identity, reserved: impl Fn(&str) -> bool) {
    for index in 0..attributes.len() {
        if reserved(&attributes[index].key) {
            let key =
                identity::exported(&attributes[index].key, |key| attributes.iter().any(|a| a.key == key));
            attributes[index].key = key;
        }
    }
    attributes.extend(identity.labels().map(|(key, value)| text(key, value)));
}

fn text(key: &str, value: &str) -> KeyValue {
    let value = AnyValue { value: Some(any_value::Value::StringValue(value.to_owned())) };
    KeyValue { key: key.to_owned(), value: Some(value), ..KeyValue::default() }
}

fn metrics(export: &Export) -> impl Iterator<Item = &Metric> {
    export.resource_metrics.iter().flat_map(|group| &group.scope_metrics).flat_map(|scope| &scope.metrics)
}

fn metrics_mut(export: &mut Export) -> impl Iterator<Item = &mut Metric> {
    let groups = export.resource_metrics.iter_mut();
    groups.flat_map(|group| &mut group.scope_metrics).flat_map(|scope| &mut scope.metrics)
}

/// The points of a gauge or a sum; our own metrics are nothing else.
fn numbers_mut(metric: &mut Metric) -> &mut [NumberDataPoint] {
    match &mut metric.data {
        Some(Data::Gauge(gauge)) => &mut gauge.data_points,
        Some(Data::Sum(sum)) => &mut sum.data_points,
        None | Some(Data::Histogram(_) | Data::ExponentialHistogram(_) | Data::Summary(_)) => &mut [],
    }
}

/// The attributes of every point.
fn attributes_mut(metric: &mut Metric) -> Vec<&mut Vec<KeyValue>> {
    match &mut metric.data {
        None => Vec::new(),
        Some(Data::Gauge(gauge)) => gauge.data_points.iter_mut().map(|p| &mut p.attributes).collect(),
        Some(Data::Sum(sum)) => sum.data_points.iter_mut().map(|p| &mut p.attributes).collect(),
        Some(Data::Histogram(histogram)) => {
            histogram.data_points.iter_mut().map(|p| &mut p.attributes).collect()
        }
        Some(Data::ExponentialHistogram(histogram)) => {
            histogram.data_points.iter_mut().map(|p| &mut p.attributes).collect()
        }
        Some(Data::Summary(summary)) => summary.data_points.iter_mut().map(|p| &mut p.attributes).collect(),
    }
}

/// The times of the points of gauges and sums, for tests.
#[cfg(test)]
pub(crate) fn times(export: &Export) -> impl Iterator<Item = u64> {
    metrics(export).flat_map(|metric| {
        let mut metric = metric.clone();
        numbers_mut(&mut metric).iter().map(|point| point.time_unix_nano).collect::<Vec<_>>()
    })
}

/// An export as text, for tests: the resource, then one line per point.
#[cfg(test)]
pub(crate) fn show(export: &Export) -> String {
    use std::fmt::Write as _;
    let list = |attributes: &[KeyValue]| {
        let mut words: Vec<_> = attributes
            .iter()
            .map(|a| match a.value.as_ref().and_then(|v| v.value.as_ref()) {
                Some(any_value::Value::StringValue(value)) => format!("{}={value}", a.key),
                other => format!("{}={other:?}", a.key),
            })
            .collect();
        words.sort();
        words.join(",")
    };
    let mut out = String::new();
    for group in &export.resource_metrics {
        writeln!(out, "resource {}", list(&group.resource.clone().unwrap_or_default().attributes)).unwrap();
        for scope in &group.scope_metrics {
            let name = scope.scope.clone().unwrap_or_default();
            writeln!(out, "scope {}@{}", name.name, name.version).unwrap();
            for metric in &scope.metrics {
                let mut metric = metric.clone();
                let kind = match &metric.data {
                    Some(Data::Gauge(_)) => "gauge".to_owned(),
                    Some(Data::Sum(sum)) => {
                        format!(
                            "sum(temporality={},monotonic={})",
                            sum.aggregation_temporality, sum.is_monotonic
                        )
                    }
                    other => format!("{other:?}"),
                };
                writeln!(out, "{} {kind} unit={:?}", metric.name, metric.unit).unwrap();
                let mut lines: Vec<_> = numbers_mut(&mut metric)
                    .iter()
                    .map(|p| {
                        let (start, time) = (p.start_time_unix_nano, p.time_unix_nano);
                        format!(
                            "  {{{}}} {:?} {start}..{time} flags={}",
                            list(&p.attributes),
                            p.value,
                            p.flags
                        )
                    })
                    .collect();
                lines.sort();
                for line in lines {
                    writeln!(out, "{line}").unwrap();
                }
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::{
        metrics::v1::{
            ExponentialHistogram, ExponentialHistogramDataPoint, Gauge, Histogram, HistogramDataPoint,
            ResourceMetrics, ScopeMetrics, Sum, Summary, SummaryDataPoint,
        },
        resource::v1::Resource,
    };

    use super::*;
    use crate::fake::sample;

    fn app_export(metrics: Vec<Metric>) -> Export {
        let resource = Resource {
            attributes: vec![
                text("service.name", "app"),
                text("service.instance.id", "me"),
                text("ned.name", "x"),
            ],
            ..Resource::default()
        };
        Export {
            resource_metrics: vec![ResourceMetrics {
                resource: Some(resource),
                scope_metrics: vec![ScopeMetrics { metrics, ..ScopeMetrics::default() }],
                ..ResourceMetrics::default()
            }],
        }
    }

    fn metric(name: &str, data: Data) -> Metric {
        Metric { name: name.to_owned(), data: Some(data), ..Metric::default() }
    }

    #[test]
    fn every_type_of_point_gets_the_identity_and_keeps_its_own_values_as_exported() {
        let attributes =
            vec![text("instance", "mine"), text("oblv.deployment.name", "evil"), text("plugin", "other")];
        let a = || attributes.clone();
        let mut export = app_export(vec![
            metric(
                "g",
                Data::Gauge(Gauge {
                    data_points: vec![NumberDataPoint { attributes: a(), ..Default::default() }],
                }),
            ),
            metric(
                "s",
                Data::Sum(Sum {
                    data_points: vec![NumberDataPoint { attributes: a(), ..Default::default() }],
                    ..Default::default()
                }),
            ),
            metric(
                "h",
                Data::Histogram(Histogram {
                    data_points: vec![HistogramDataPoint { attributes: a(), ..Default::default() }],
                    ..Default::default()
                }),
            ),
            metric(
                "e",
                Data::ExponentialHistogram(ExponentialHistogram {
                    data_points: vec![ExponentialHistogramDataPoint {
                        attributes: a(),
                        ..Default::default()
                    }],
                    ..Default::default()
                }),
            ),
            metric(
                "q",
                Data::Summary(Summary {
                    data_points: vec![SummaryDataPoint { attributes: a(), ..Default::default() }],
                }),
            ),
        ]);
        identify(&mut export, &Identity::of(&sample(1)).unwrap());
        assert_eq!(count(&export), 5);
        for metric in metrics_mut(&mut export) {
            for attributes in attributes_mut(metric) {
                let mut keys: Vec<_> = attributes.iter().map(|a| a.key.as_str()).collect();
                keys.sort_unstable();
                assert_eq!(
                    keys,
                    [
                        "exported_instance",
                        "exported_oblv.deployment.name",
                        "exported_plugin",
                        "namespace",
                        "ned_name",
                        "oblv_deployment_name"
                    ]
                );
            }
        }
    }

    #[test]
    fn an_apps_resource_keeps_its_service_name_and_nothing_else_that_is_ours() {
        let mut export = app_export(vec![]);
        identify(&mut export, &Identity::of(&sample(1)).unwrap());
        expect_test::expect![[r"
            resource exported_ned.name=x,exported_service.instance.id=me,namespace=default,ned_name=hello,oblv_deployment_name=hello,service.instance.id=i-1,service.name=app,service.namespace=default
            scope @
        "]]
        .assert_eq(&show(&export));
    }

    #[test]
    fn an_app_cannot_send_the_headline_metric() {
        let mut export = app_export(vec![metric("nitro.enclave.cpu_usage", Data::Gauge(Gauge::default()))]);
        identify(&mut export, &Identity::of(&sample(1)).unwrap());
        assert_eq!(metrics(&export).next().unwrap().name, "exported_nitro.enclave.cpu_usage");
    }
}
