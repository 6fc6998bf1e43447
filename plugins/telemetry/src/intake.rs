//! OTLP bodies from plugins, which are not trusted: bounded before they are unpacked and before they are
//! decoded.

use std::io::Read as _;

use flate2::read::MultiGzDecoder;
use prost::Message as _;

use crate::otlp::{self, Export};

/// Longest body, before and after decompression.
pub(crate) const BODY_BYTES_MAX: usize = 4 << 20;
/// Most data points in one request: each grows by the identity's labels.
const POINTS_MAX: u64 = 10_000;
/// Most nested messages in one request. Two bytes on the wire can become a struct of two hundred.
const MESSAGES_MAX: usize = 100_000;
/// Deepest nesting that is followed; an OTLP data point's attribute value lies at nine, arrays below it.
const DEPTH_MAX: u32 = 24;

/// Why a body is not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IntakeError {
    /// Not gzip although it says so.
    #[error("the body is not valid gzip")]
    Gzip(#[source] std::io::Error),
    /// Too long once unpacked.
    #[error("the body is longer than {BODY_BYTES_MAX} bytes once unpacked")]
    TooLarge,
    /// Too many messages or points.
    #[error("more than {MESSAGES_MAX} messages or {POINTS_MAX} data points in one request")]
    TooMany,
    /// Not an OTLP metrics request.
    #[error("the body is no ExportMetricsServiceRequest")]
    Malformed,
}

/// Unpacks and decodes one request body.
pub(crate) fn read(body: &[u8], is_gzip: bool) -> Result<Export, IntakeError> {
    let unpacked = if is_gzip { unpack(body)? } else { body.to_vec() };
    let mut budget = MESSAGES_MAX;
    weigh(&unpacked, Shape::Request, DEPTH_MAX, &mut budget)?;
    let export = Export::decode(unpacked.as_slice()).map_err(|_| IntakeError::Malformed)?;
    if otlp::count(&export) > POINTS_MAX { Err(IntakeError::TooMany) } else { Ok(export) }
}

fn unpack(body: &[u8]) -> Result<Vec<u8>, IntakeError> {
    let mut unpacked = Vec::new();
    let mut reader = MultiGzDecoder::new(body).take(BODY_BYTES_MAX as u64 + 1);
    reader.read_to_end(&mut unpacked).map_err(IntakeError::Gzip)?;
    if unpacked.len() > BODY_BYTES_MAX { Err(IntakeError::TooLarge) } else { Ok(unpacked) }
}

/// The messages of an OTLP metrics request, as far as they contain others.
#[derive(Debug, Clone, Copy)]
enum Shape {
    Request,
    ResourceMetrics,
    Resource,
    ScopeMetrics,
    Scope,
    Metric,
    /// Gauges and sums, histograms of both kinds, summaries: field 1 holds the points.
    Numbers,
    Histogram,
    Exponential,
    Summary,
    NumberPoint,
    HistogramPoint,
    ExponentialPoint,
    SummaryPoint,
    Exemplar,
    EntityRef,
    KeyValue,
    AnyValue,
    /// Lists of values.
    Array,
    KeyValueList,
    /// Packed numbers of one byte or more, eight in memory.
    Buckets,
    /// Strings, packed numbers of fixed size and messages of fixed size.
    Leaf,
}

impl Shape {
    /// What the length-delimited field `field` of this message is.
    fn child(self, field: u64) -> Self {
        match (self, field) {
            (Self::Request, 1) => Self::ResourceMetrics,
            (Self::ResourceMetrics, 1) => Self::Resource,
            (Self::ResourceMetrics, 2) => Self::ScopeMetrics,
            (Self::Resource, 1) | (Self::Scope, 3) | (Self::Metric, 12) => Self::KeyValue,
            (Self::Resource, 3) => Self::EntityRef,
            (Self::ScopeMetrics, 1) => Self::Scope,
            (Self::ScopeMetrics, 2) => Self::Metric,
            (Self::Metric, 5 | 7) => Self::Numbers,
            (Self::Metric, 9) => Self::Histogram,
            (Self::Metric, 10) => Self::Exponential,
            (Self::Metric, 11) => Self::Summary,
            (Self::Numbers, 1) => Self::NumberPoint,
            (Self::Histogram, 1) => Self::HistogramPoint,
            (Self::Exponential, 1) => Self::ExponentialPoint,
            (Self::Summary, 1) => Self::SummaryPoint,
            (Self::NumberPoint | Self::SummaryPoint | Self::Exemplar, 7)
            | (Self::HistogramPoint, 9)
            | (Self::ExponentialPoint, 1) => Self::KeyValue,
            (Self::NumberPoint, 5) | (Self::HistogramPoint, 8) | (Self::ExponentialPoint, 11) => {
                Self::Exemplar
            }
            (Self::ExponentialPoint, 8 | 9) => Self::Buckets,
            (Self::KeyValue, 2) => Self::AnyValue,
            (Self::AnyValue, 5) => Self::Array,
            (Self::AnyValue, 6) => Self::KeyValueList,
            (Self::Array, 1) => Self::AnyValue,
            (Self::KeyValueList, 1) => Self::KeyValue,
            _ => Self::Leaf,
        }
    }
}

/// Walks the wire format without allocating and counts what decoding would allocate.
fn weigh(mut bytes: &[u8], shape: Shape, depth: u32, budget: &mut usize) -> Result<(), IntakeError> {
    if matches!(shape, Shape::Leaf | Shape::Buckets) {
        return Ok(());
    }
    let depth = depth.checked_sub(1).ok_or(IntakeError::TooMany)?;
    while !bytes.is_empty() {
        let key = varint(&mut bytes)?;
        match key & 7 {
            0 => {
                varint(&mut bytes)?;
            }
            1 => skip(&mut bytes, 8)?,
            2 => {
                let length = usize::try_from(varint(&mut bytes)?).map_err(|_| IntakeError::Malformed)?;
                let inner = bytes.get(..length).ok_or(IntakeError::Malformed)?;
                bytes = &bytes[length..];
                let child = shape.child(key >> 3);
                let weight = if matches!(child, Shape::Buckets) { 1 + length / 4 } else { 1 };
                *budget = budget.checked_sub(weight).ok_or(IntakeError::TooMany)?;
                weigh(inner, child, depth, budget)?;
            }
            5 => skip(&mut bytes, 4)?,
            _ => return Err(IntakeError::Malformed),
        }
    }
    Ok(())
}

fn varint(bytes: &mut &[u8]) -> Result<u64, IntakeError> {
    prost::encoding::decode_varint(bytes).map_err(|_| IntakeError::Malformed)
}

fn skip(bytes: &mut &[u8], length: usize) -> Result<(), IntakeError> {
    *bytes = bytes.get(length..).ok_or(IntakeError::Malformed)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{fake::gauge_export, outbox::Batch};

    #[test]
    fn a_plain_and_a_packed_request_read_the_same() {
        let export = gauge_export("g", 1.0);
        assert_eq!(read(&export.encode_to_vec(), false).unwrap(), export);
        assert_eq!(read(Batch::new(export.encode_to_vec(), 1).body(), true).unwrap(), export);
        assert_eq!(read(b"", false).unwrap(), Export::default());
    }

    #[test]
    fn every_type_of_metric_passes_unchanged() {
        use opentelemetry_proto::tonic::{
            common::v1::{AnyValue, ArrayValue, KeyValue, any_value},
            metrics::v1::{
                Exemplar, ExponentialHistogram, ExponentialHistogramDataPoint, Histogram, HistogramDataPoint,
                Metric, Summary, SummaryDataPoint, exponential_histogram_data_point::Buckets, metric::Data,
                summary_data_point::ValueAtQuantile,
            },
        };
        let text = AnyValue { value: Some(any_value::Value::StringValue("v".to_owned())) };
        let list = any_value::Value::ArrayValue(ArrayValue { values: vec![text.clone(), text] });
        let attributes = vec![KeyValue {
            key: "k".to_owned(),
            value: Some(AnyValue { value: Some(list) }),
            ..KeyValue::default()
        }];
        let exemplars = vec![Exemplar { filtered_attributes: attributes.clone(), ..Exemplar::default() }];
        let buckets = Some(Buckets { offset: -1, bucket_counts: vec![1, 300, 0] });
        let histogram = HistogramDataPoint {
            attributes: attributes.clone(),
            exemplars: exemplars.clone(),
            bucket_counts: vec![1, 2, 3],
            explicit_bounds: vec![0.5, 1.5],
            ..HistogramDataPoint::default()
        };
        let exponential = ExponentialHistogramDataPoint {
            attributes: attributes.clone(),
            exemplars,
            positive: buckets.clone(),
            negative: buckets,
            ..ExponentialHistogramDataPoint::default()
        };
        let summary = SummaryDataPoint {
            attributes,
            quantile_values: vec![ValueAtQuantile { quantile: 0.5, value: 1.0 }],
            ..SummaryDataPoint::default()
        };
        let mut export = gauge_export("g", 1.0);
        let kinds = [
            Data::Histogram(Histogram { data_points: vec![histogram], aggregation_temporality: 2 }),
            Data::ExponentialHistogram(ExponentialHistogram {
                data_points: vec![exponential],
                aggregation_temporality: 2,
            }),
            Data::Summary(Summary { data_points: vec![summary] }),
        ];
        let metrics = kinds.map(|data| Metric { data: Some(data), ..Metric::default() });
        export.resource_metrics[0].scope_metrics[0].metrics.extend(metrics);
        assert_eq!(read(&export.encode_to_vec(), false).unwrap(), export);
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(at in 0usize..60, with in proptest::collection::vec(0u8.., 0..6)) {
            let mut bytes = gauge_export("some_name", 1.0).encode_to_vec();
            let at = at.min(bytes.len());
            let end = (at + with.len()).min(bytes.len());
            bytes.splice(at..end, with);
            match read(&bytes, false) {
                Ok(export) => assert!(otlp::count(&export) <= bytes.len() as u64),
                Err(error) => assert!(matches!(error, IntakeError::Malformed)),
            }
        }
    }

    #[test]
    fn garbage_is_malformed() {
        for bad in [&b"\xff\xff\xff\xff"[..], b"\x0a\x05ab", b"\x0b", b"{\"resourceMetrics\":[]}"] {
            assert!(matches!(read(bad, false), Err(IntakeError::Malformed)), "{bad:?}");
        }
        assert!(matches!(read(b"no gzip", true), Err(IntakeError::Gzip(_))));
    }

    #[test]
    fn a_bomb_is_refused_before_it_is_unpacked_or_decoded() {
        use std::io::Write as _;
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        gzip.write_all(&vec![0; 64 << 20]).unwrap();
        let bomb = gzip.finish().unwrap();
        assert!(bomb.len() < BODY_BYTES_MAX);
        assert!(matches!(read(&bomb, true), Err(IntakeError::TooLarge)));
        // Empty data points: two bytes each on the wire.
        let points: Vec<u8> = [0x0a, 0x00].repeat(MESSAGES_MAX);
        let mut message = points;
        for field in [5u8, 2, 2, 1] {
            let mut outer = vec![field << 3 | 2];
            prost::encoding::encode_varint(message.len() as u64, &mut outer);
            outer.extend(&message);
            message = outer;
        }
        assert!(message.len() < BODY_BYTES_MAX);
        assert!(matches!(read(&message, false), Err(IntakeError::TooMany)));
    }

    #[test]
    fn more_points_than_one_request_may_have_are_refused() {
        let mut export = gauge_export("g", 1.0);
        let metrics = &mut export.resource_metrics[0].scope_metrics[0].metrics;
        *metrics = std::iter::repeat_n(metrics[0].clone(), 10_001).collect();
        assert!(matches!(read(&export.encode_to_vec(), false), Err(IntakeError::TooMany)));
        export.resource_metrics[0].scope_metrics[0].metrics.pop();
        assert!(read(&export.encode_to_vec(), false).is_ok());
    }
}
