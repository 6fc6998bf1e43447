//! Changes to decoded OTLP messages of our own: true times, counting.
//!
//! The SDK encodes our own metrics, but it has no way to set a point's time, to leave a start time unknown or
//! to flag `NO_RECORDED_VALUE`; its data types cannot be built or changed from outside. That is done here, on
//! the messages.

use enclave_protocol::timestamp::Timestamp;
use opentelemetry_proto::tonic::{
    collector::metrics::v1::ExportMetricsServiceRequest,
    metrics::v1::{Metric, NumberDataPoint, metric::Data},
};

use crate::times;

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

/// Gives our own points their time, and sums the start of which `start` knows by the metric's name. The SDK
/// would say when it collected, and that a counter began with this process.
pub(crate) fn stamp(export: &mut Export, time: Timestamp, start: impl Fn(&str) -> Timestamp) {
    for metric in metrics_mut(export) {
        let is_sum = matches!(metric.data, Some(Data::Sum(_)));
        let start = if is_sum { times::start(start(&metric.name), time).0 } else { 0 };
        for point in numbers_mut(metric) {
            (point.start_time_unix_nano, point.time_unix_nano) = (start, time.0);
        }
    }
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

    use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};

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
