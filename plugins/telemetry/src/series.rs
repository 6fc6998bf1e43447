//! The series that a receiver may still believe in, so that each of them can be ended. Without a marker a
//! dead enclave's last value is served for minutes.
//!
//! ```text
//! resource ─▶ scope ─▶ metric ─▶ attributes ─▶ newest time
//! ```
//! Every level is kept as its encoded bytes: they are the identity of a series, and cost less than the
//! messages.

use std::{
    collections::{BTreeMap, btree_map},
    time::Duration,
};

use enclave_protocol::timestamp::Timestamp;
use opentelemetry_proto::tonic::{
    common::v1::KeyValue,
    metrics::v1::{
        AggregationTemporality, DataPointFlags, ExponentialHistogram, ExponentialHistogramDataPoint, Gauge,
        Histogram, HistogramDataPoint, Metric, NumberDataPoint, ResourceMetrics, ScopeMetrics, Sum, Summary,
        SummaryDataPoint, metric::Data, summary_data_point::ValueAtQuantile,
    },
};
use prost::Message as _;
use tokio::time::Instant;

use crate::otlp::Export;

/// Most series that are kept. One request has 10,000 points at most.
pub(crate) const SERIES_MAX: usize = 10_000;
/// Most bytes of their identities.
pub(crate) const SERIES_BYTES_MAX: usize = 2 << 20;
/// A series that was not seen for so long is forgotten when room is needed: Prometheus looks back five
/// minutes.
const LOOKBACK: Duration = Duration::from_mins(5);
/// Shortest time between two searches for forgotten series, which visit all of them.
const SWEEP_PAUSE: Duration = Duration::from_mins(1);
/// Receivers keep milliseconds; a marker with the time of the value before it is a duplicate.
const STEP_NANOS: u64 = 1_000_000;
/// Longest name and unit of a metric that is written once for each of its series as they end: the Collector's
/// Prometheus exporter looks at the first marker in a metric alone. Ten thousand of them are 2.5 MiB.
const SINGLE_NAME_MAX: usize = 256;
/// What a series costs beside the bytes of its key: its entry, and its share of a node of the map.
const ENTRY_BYTES: usize = 96;
/// The same of a level above it.
const LEVEL_BYTES: usize = 64;
/// The number of the attributes in a [`SummaryDataPoint`], in whose form they are kept.
const ATTRIBUTES_TAG: u32 = 7;

/// What is known of the series of some sender.
#[derive(Debug, Default)]
pub(crate) struct Series {
    resources: BTreeMap<Vec<u8>, Scopes>,
    count: usize,
    bytes: usize,
    untracked: u64,
    swept: Option<Instant>,
}

type Scopes = BTreeMap<Vec<u8>, Metrics>;
type Metrics = BTreeMap<MetricKey, Points>;
/// Sorted attributes, encoded, and the newest of the series.
type Points = BTreeMap<Vec<u8>, Newest>;

/// The identity of a metric. A receiver that translates names looks at each of these.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct MetricKey {
    name: String,
    unit: String,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Gauge,
    Sum { is_monotonic: bool },
    Histogram,
    ExponentialHistogram,
    Summary,
}

#[derive(Debug)]
struct Newest {
    time: u64,
    seen: Instant,
    /// Bounds of a histogram, quantiles of a summary: each is a series of its own to Prometheus.
    parts: Vec<f64>,
}

/// One point, as far as a series is concerned.
struct Seen<'a> {
    attributes: &'a [KeyValue],
    time: u64,
    flags: u32,
    parts: Vec<f64>,
}

impl Series {
    /// Takes note of every series in `export`, with the newest time of each. A point that ends its series
    /// ends it here as well. Series with delta temporality are passed over: they have no value that stays.
    pub(crate) fn seen(&mut self, export: &Export) {
        for group in &export.resource_metrics {
            let bare = ResourceMetrics {
                resource: group.resource.clone(),
                schema_url: group.schema_url.clone(),
                ..ResourceMetrics::default()
            };
            let resource = bare.encode_to_vec();
            for scope in &group.scope_metrics {
                let bare = ScopeMetrics {
                    scope: scope.scope.clone(),
                    schema_url: scope.schema_url.clone(),
                    ..ScopeMetrics::default()
                };
                let bare = bare.encode_to_vec();
                for metric in &scope.metrics {
                    self.seen_metric(&resource, &bare, metric);
                }
            }
        }
    }

    /// How many series are kept.
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// How many points belonged to series for which there was no room: those end without a marker.
    pub(crate) fn untracked(&self) -> u64 {
        self.untracked
    }

    /// The end of every series, and forgets them: one `NO_RECORDED_VALUE` point each, at `now`, and at least
    /// a millisecond after its newest time.
    pub(crate) fn end(&mut self, now: Timestamp) -> Export {
        (self.count, self.bytes) = (0, 0);
        let resources = std::mem::take(&mut self.resources);
        Export {
            resource_metrics: resources
                .into_iter()
                .map(|(key, scopes)| resource(&key, scopes, now))
                .collect(),
        }
    }

    /// The end of the series that `present` does not have, and forgets them.
    pub(crate) fn end_missing(&mut self, present: &Export, now: Timestamp) -> Export {
        let mut gone = std::mem::take(self);
        self.untracked = gone.untracked;
        self.seen(present);
        for (resource, scopes) in &self.resources {
            for (scope, metrics) in scopes {
                for (key, points) in metrics {
                    for attributes in points.keys() {
                        gone.forget(resource, scope, key, attributes);
                    }
                }
            }
        }
        gone.end(now)
    }

    fn seen_metric(&mut self, resource: &[u8], scope: &[u8], metric: &Metric) {
        let Some((kind, points)) = points_of(metric) else { return };
        let key = MetricKey { name: metric.name.clone(), unit: metric.unit.clone(), kind };
        for point in points {
            let attributes = encoded(point.attributes);
            if point.flags & DataPointFlags::NoRecordedValueMask as u32 != 0 {
                self.forget(resource, scope, &key, &attributes);
            } else {
                self.note(resource, scope, &key, attributes, point);
            }
        }
    }

    fn note(&mut self, resource: &[u8], scope: &[u8], key: &MetricKey, attributes: Vec<u8>, point: Seen<'_>) {
        let seen = Instant::now();
        let known = self.resources.get_mut(resource).and_then(|scopes| scopes.get_mut(scope));
        let known = known.and_then(|metrics| metrics.get_mut(key));
        if let Some(newest) = known.and_then(|points| points.get_mut(&attributes)) {
            newest.time = newest.time.max(point.time);
            newest.seen = seen;
            // Bounds that come or go with a new version of the app would need an account of their bytes.
            if newest.parts.len() == point.parts.len() {
                newest.parts = point.parts;
            }
            return;
        }
        let newest = Newest { time: point.time, seen, parts: point.parts };
        // An upper bound: levels that are there already are not stored again.
        let most = resource.len() + scope.len() + key.bytes() + newest.bytes(&attributes) + 3 * LEVEL_BYTES;
        if !self.has_room(most) {
            self.sweep(seen);
            if !self.has_room(most) {
                self.untracked = self.untracked.saturating_add(1);
                return;
            }
        }
        let scopes = level(&mut self.resources, resource.to_vec(), resource.len(), &mut self.bytes);
        let metrics = level(scopes, scope.to_vec(), scope.len(), &mut self.bytes);
        let points = level(metrics, key.clone(), key.bytes(), &mut self.bytes);
        self.bytes += newest.bytes(&attributes);
        self.count += 1;
        points.insert(attributes, newest);
    }

    fn forget(&mut self, resource: &[u8], scope: &[u8], key: &MetricKey, attributes: &[u8]) {
        let Some(scopes) = self.resources.get_mut(resource) else { return };
        let Some(metrics) = scopes.get_mut(scope) else { return };
        let Some(points) = metrics.get_mut(key) else { return };
        let Some(newest) = points.remove(attributes) else { return };
        self.count -= 1;
        self.bytes -= newest.bytes(attributes);
        if points.is_empty() {
            metrics.remove(key);
            self.bytes -= key.bytes() + LEVEL_BYTES;
        }
        if metrics.is_empty() {
            scopes.remove(scope);
            self.bytes -= scope.len() + LEVEL_BYTES;
        }
        if scopes.is_empty() {
            self.resources.remove(resource);
            self.bytes -= resource.len() + LEVEL_BYTES;
        }
    }

    fn has_room(&self, bytes: usize) -> bool {
        self.count < SERIES_MAX && self.bytes + bytes <= SERIES_BYTES_MAX
    }

    /// Forgets what no receiver believes in any more.
    fn sweep(&mut self, now: Instant) {
        if self.swept.is_some_and(|swept| now - swept < SWEEP_PAUSE) {
            return;
        }
        self.swept = Some(now);
        let (mut count, mut bytes) = (0, 0);
        self.resources.retain(|resource, scopes| {
            scopes.retain(|scope, metrics| {
                metrics.retain(|key, points| {
                    points.retain(|attributes, newest| {
                        let stays = now - newest.seen < LOOKBACK;
                        count += usize::from(stays);
                        bytes += if stays { newest.bytes(attributes) } else { 0 };
                        stays
                    });
                    keep(!points.is_empty(), key.bytes(), &mut bytes)
                });
                keep(!metrics.is_empty(), scope.len(), &mut bytes)
            });
            keep(!scopes.is_empty(), resource.len(), &mut bytes)
        });
        (self.count, self.bytes) = (count, bytes);
    }
}

impl MetricKey {
    fn bytes(&self) -> usize {
        self.name.len() + self.unit.len()
    }
}

impl Newest {
    fn bytes(&self, attributes: &[u8]) -> usize {
        attributes.len() + self.parts.len() * size_of::<f64>() + ENTRY_BYTES
    }
}

/// The next level down, made and accounted for if it is new.
fn level<'a, K: Ord, V: Default>(
    map: &'a mut BTreeMap<K, V>,
    key: K,
    key_bytes: usize,
    bytes: &mut usize,
) -> &'a mut V {
    match map.entry(key) {
        btree_map::Entry::Occupied(known) => known.into_mut(),
        btree_map::Entry::Vacant(new) => {
            *bytes += key_bytes + LEVEL_BYTES;
            new.insert(V::default())
        }
    }
}

fn keep(stays: bool, key_bytes: usize, bytes: &mut usize) -> bool {
    *bytes += if stays { key_bytes + LEVEL_BYTES } else { 0 };
    stays
}

/// Attributes as bytes that are the same in whatever order they come.
fn encoded(attributes: &[KeyValue]) -> Vec<u8> {
    let mut sorted: Vec<&KeyValue> = attributes.iter().collect();
    sorted.sort_by(|a, b| a.key.cmp(&b.key));
    let mut bytes = Vec::new();
    for attribute in sorted {
        prost::encoding::message::encode(ATTRIBUTES_TAG, attribute, &mut bytes);
    }
    bytes
}

/// The points of a metric whose values stay until the next one; none for a delta.
fn points_of(metric: &Metric) -> Option<(Kind, Vec<Seen<'_>>)> {
    let is_delta = |temporality| temporality == AggregationTemporality::Delta as i32;
    Some(match metric.data.as_ref()? {
        Data::Gauge(gauge) => (Kind::Gauge, gauge.data_points.iter().map(Seen::number).collect()),
        Data::Sum(sum) if !is_delta(sum.aggregation_temporality) => {
            let kind = Kind::Sum { is_monotonic: sum.is_monotonic };
            (kind, sum.data_points.iter().map(Seen::number).collect())
        }
        Data::Histogram(histogram) if !is_delta(histogram.aggregation_temporality) => {
            (Kind::Histogram, histogram.data_points.iter().map(Seen::histogram).collect())
        }
        Data::ExponentialHistogram(histogram) if !is_delta(histogram.aggregation_temporality) => {
            (Kind::ExponentialHistogram, histogram.data_points.iter().map(Seen::exponential).collect())
        }
        Data::Summary(summary) => (Kind::Summary, summary.data_points.iter().map(Seen::summary).collect()),
        Data::Sum(_) | Data::Histogram(_) | Data::ExponentialHistogram(_) => return None,
    })
}

impl<'a> Seen<'a> {
    fn number(point: &'a NumberDataPoint) -> Self {
        let NumberDataPoint { attributes, time_unix_nano, flags, .. } = point;
        Self { attributes, time: *time_unix_nano, flags: *flags, parts: Vec::new() }
    }

    fn histogram(point: &'a HistogramDataPoint) -> Self {
        let HistogramDataPoint { attributes, time_unix_nano, flags, explicit_bounds, .. } = point;
        Self { attributes, time: *time_unix_nano, flags: *flags, parts: explicit_bounds.clone() }
    }

    fn exponential(point: &'a ExponentialHistogramDataPoint) -> Self {
        let ExponentialHistogramDataPoint { attributes, time_unix_nano, flags, .. } = point;
        Self { attributes, time: *time_unix_nano, flags: *flags, parts: Vec::new() }
    }

    fn summary(point: &'a SummaryDataPoint) -> Self {
        let SummaryDataPoint { attributes, time_unix_nano, flags, quantile_values, .. } = point;
        let parts = quantile_values.iter().map(|value| value.quantile).collect();
        Self { attributes, time: *time_unix_nano, flags: *flags, parts }
    }
}

fn resource(key: &[u8], scopes: Scopes, now: Timestamp) -> ResourceMetrics {
    let bare = ResourceMetrics::decode(key).expect("invariant: the key is such a message, encoded");
    let scope_metrics = scopes.into_iter().map(|(key, metrics)| scope(&key, metrics, now)).collect();
    ResourceMetrics { scope_metrics, ..bare }
}

fn scope(key: &[u8], metrics: Metrics, now: Timestamp) -> ScopeMetrics {
    let bare = ScopeMetrics::decode(key).expect("invariant: the key is such a message, encoded");
    let metrics = metrics.into_iter().flat_map(|(key, points)| {
        let parts: Vec<Points> = if key.bytes() <= SINGLE_NAME_MAX {
            points.into_iter().map(|point| Points::from([point])).collect()
        } else {
            vec![points]
        };
        parts.into_iter().map(move |points| {
            let (name, unit, data) = (key.name.clone(), key.unit.clone(), ended(key.kind, points, now));
            Metric { name, unit, data: Some(data), ..Metric::default() }
        })
    });
    ScopeMetrics { metrics: metrics.collect(), ..bare }
}

/// A metric whose points all say that there is no value any more.
fn ended(kind: Kind, points: Points, now: Timestamp) -> Data {
    let flags = DataPointFlags::NoRecordedValueMask as u32;
    let cumulative = AggregationTemporality::Cumulative as i32;
    let points = points.into_iter().map(|(attributes, newest)| {
        let time = now.0.max(newest.time.saturating_add(STEP_NANOS));
        // A SummaryDataPoint has its attributes under the same number as the key.
        let attributes = SummaryDataPoint::decode(attributes.as_slice());
        (attributes.expect("invariant: the key is attributes, encoded").attributes, time, newest.parts)
    });
    let numbers = |(attributes, time_unix_nano, _)| NumberDataPoint {
        attributes,
        time_unix_nano,
        flags,
        ..NumberDataPoint::default()
    };
    match kind {
        Kind::Gauge => Data::Gauge(Gauge { data_points: points.map(numbers).collect() }),
        Kind::Sum { is_monotonic } => Data::Sum(Sum {
            data_points: points.map(numbers).collect(),
            aggregation_temporality: cumulative,
            is_monotonic,
        }),
        Kind::Histogram => {
            let data_points =
                points.map(|(attributes, time_unix_nano, explicit_bounds)| HistogramDataPoint {
                    attributes,
                    time_unix_nano,
                    flags,
                    // Without one Prometheus leaves the series of the sum as it is.
                    sum: Some(0.0),
                    bucket_counts: vec![0; explicit_bounds.len() + 1],
                    explicit_bounds,
                    ..HistogramDataPoint::default()
                });
            Data::Histogram(Histogram {
                data_points: data_points.collect(),
                aggregation_temporality: cumulative,
            })
        }
        Kind::ExponentialHistogram => {
            let data_points = points.map(|(attributes, time_unix_nano, _)| ExponentialHistogramDataPoint {
                attributes,
                time_unix_nano,
                flags,
                ..ExponentialHistogramDataPoint::default()
            });
            Data::ExponentialHistogram(ExponentialHistogram {
                data_points: data_points.collect(),
                aggregation_temporality: cumulative,
            })
        }
        Kind::Summary => {
            let data_points = points.map(|(attributes, time_unix_nano, quantiles)| SummaryDataPoint {
                attributes,
                time_unix_nano,
                flags,
                quantile_values: quantiles
                    .into_iter()
                    .map(|quantile| ValueAtQuantile { quantile, value: 0.0 })
                    .collect(),
                ..SummaryDataPoint::default()
            });
            Data::Summary(Summary { data_points: data_points.collect() })
        }
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::{
        common::v1::{AnyValue, any_value},
        metrics::v1::number_data_point::Value,
    };

    use super::*;
    use crate::otlp;

    fn attribute(key: &str, value: &str) -> KeyValue {
        let value = AnyValue { value: Some(any_value::Value::StringValue(value.to_owned())) };
        KeyValue { key: key.to_owned(), value: Some(value), ..KeyValue::default() }
    }

    fn gauge(points: &[(&[(&str, &str)], u64)]) -> Data {
        let points = points.iter().map(|(attributes, time)| NumberDataPoint {
            attributes: attributes.iter().map(|(key, value)| attribute(key, value)).collect(),
            time_unix_nano: *time,
            value: Some(Value::AsDouble(1.0)),
            ..NumberDataPoint::default()
        });
        Data::Gauge(Gauge { data_points: points.collect() })
    }

    fn export(metrics: Vec<(&str, Data)>) -> Export {
        let metrics = metrics.into_iter().map(|(name, data)| Metric {
            name: name.to_owned(),
            data: Some(data),
            ..Metric::default()
        });
        let scope = ScopeMetrics { metrics: metrics.collect(), ..ScopeMetrics::default() };
        Export {
            resource_metrics: vec![ResourceMetrics {
                scope_metrics: vec![scope],
                ..ResourceMetrics::default()
            }],
        }
    }

    const MS: u64 = 1_000_000;

    #[tokio::test]
    async fn every_series_ends_once_at_a_time_of_its_own() {
        let mut series = Series::default();
        let points: &[(&[(&str, &str)], u64)] = &[(&[("a", "1"), ("b", "2")], 5 * MS), (&[], 90 * MS)];
        series.seen(&export(vec![("g", gauge(points))]));
        // The same series with its attributes in another order, and an older time.
        series.seen(&export(vec![("g", gauge(&[(&[("b", "2"), ("a", "1")], 4 * MS)]))]));
        assert_eq!(series.len(), 2);
        expect_test::expect![[r#"
            resource 
            scope @
            g gauge unit=""
              {} None 0..91000000 flags=1
            g gauge unit=""
              {a=1,b=2} None 0..50000000 flags=1
        "#]]
        .assert_eq(&otlp::show(&series.end(Timestamp(50 * MS))));
        assert_eq!((series.len(), series.bytes), (0, 0));
        assert_eq!(otlp::count(&series.end(Timestamp(60 * MS))), 0);
    }

    #[tokio::test]
    async fn a_histogram_ends_with_all_its_buckets_and_a_summary_with_all_its_quantiles() {
        let histogram = HistogramDataPoint {
            bucket_counts: vec![3, 4, 5],
            explicit_bounds: vec![0.5, 1.0],
            ..HistogramDataPoint::default()
        };
        let quantile_values = vec![ValueAtQuantile { quantile: 0.99, value: 7.0 }];
        let summary = SummaryDataPoint { quantile_values, ..SummaryDataPoint::default() };
        let exponential = ExponentialHistogramDataPoint { count: 9, scale: 3, ..Default::default() };
        let mut series = Series::default();
        series.seen(&export(vec![
            ("h", Data::Histogram(Histogram { data_points: vec![histogram], aggregation_temporality: 2 })),
            ("q", Data::Summary(Summary { data_points: vec![summary] })),
            (
                "e",
                Data::ExponentialHistogram(ExponentialHistogram {
                    data_points: vec![exponential],
                    aggregation_temporality: 2,
                }),
            ),
        ]));
        let end = series.end(Timestamp(9));
        let metrics = &end.resource_metrics[0].scope_metrics[0].metrics;
        let [exponential, histogram, summary] = metrics.as_slice() else { panic!("{metrics:?}") };
        let Some(Data::Histogram(histogram)) = &histogram.data else { panic!("{histogram:?}") };
        let point = &histogram.data_points[0];
        assert_eq!(
            (point.explicit_bounds.as_slice(), point.bucket_counts.as_slice()),
            (&[0.5, 1.0][..], &[0; 3][..])
        );
        assert_eq!((point.flags, point.time_unix_nano, point.sum), (1, MS, Some(0.0)));
        let Some(Data::Summary(summary)) = &summary.data else { panic!("{summary:?}") };
        assert_eq!(summary.data_points[0].quantile_values, [ValueAtQuantile { quantile: 0.99, value: 0.0 }]);
        let Some(Data::ExponentialHistogram(exponential)) = &exponential.data else {
            panic!("{exponential:?}")
        };
        assert_eq!((exponential.data_points[0].flags, exponential.data_points[0].count), (1, 0));
    }

    #[tokio::test]
    async fn deltas_and_series_that_have_ended_get_no_marker() {
        let delta = Sum {
            data_points: vec![NumberDataPoint::default()],
            aggregation_temporality: AggregationTemporality::Delta as i32,
            is_monotonic: true,
        };
        let mut series = Series::default();
        series.seen(&export(vec![("d", Data::Sum(delta)), ("g", gauge(&[(&[], 1)]))]));
        assert_eq!(series.len(), 1);
        let mut once = Series::default();
        once.seen(&export(vec![("g", gauge(&[(&[], 1)]))]));
        series.seen(&once.end(Timestamp(2)));
        assert_eq!((series.len(), series.bytes), (0, 0));
    }

    #[tokio::test]
    async fn what_is_missing_ends_and_the_rest_stays() {
        let mut series = Series::default();
        series.seen(&export(vec![("g", gauge(&[(&[("a", "1")], MS), (&[("a", "2")], MS)]))]));
        let present = export(vec![("g", gauge(&[(&[("a", "2")], 2 * MS)]))]);
        let text = otlp::show(&series.end_missing(&present, Timestamp(3 * MS)));
        assert!(text.contains("{a=1} None 0..3000000 flags=1") && !text.contains("a=2"), "{text}");
        assert_eq!(series.len(), 1);
        let text = otlp::show(&series.end(Timestamp(0)));
        assert!(text.contains("{a=2} None 0..3000000 flags=1") && !text.contains("a=1"), "{text}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_registry_has_a_bound_and_forgets_what_prometheus_has_forgotten() {
        let mut series = Series::default();
        let many = |from: usize, count: usize| {
            let points = (from..from + count).map(|n| NumberDataPoint {
                attributes: vec![attribute("n", &n.to_string())],
                ..NumberDataPoint::default()
            });
            export(vec![("g", Data::Gauge(Gauge { data_points: points.collect() }))])
        };
        series.seen(&many(0, SERIES_MAX + 3));
        assert_eq!((series.len(), series.untracked()), (SERIES_MAX, 3));
        assert!(series.bytes <= SERIES_BYTES_MAX);
        tokio::time::advance(LOOKBACK).await;
        series.seen(&many(SERIES_MAX, 5));
        assert_eq!((series.len(), series.untracked()), (5, 3));
        let long = "x".repeat(SERIES_BYTES_MAX);
        series.seen(&export(vec![(long.as_str(), gauge(&[(&[], 1)]))]));
        assert_eq!((series.len(), series.untracked()), (5, 4));
    }
}
