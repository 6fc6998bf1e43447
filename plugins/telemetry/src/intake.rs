//! OTLP bodies from plugins, which are not trusted: bounded before they are unpacked, before they are
//! decoded, and before anything is added to them.

use std::{borrow::Cow, io::Read as _};

use flate2::read::MultiGzDecoder;
use prost::Message as _;

use crate::{json, otlp::Export, schema, signal::Signal, wire};

/// Longest body: as it comes, unpacked, and with the identity added. A tenth of what the collector takes.
pub(crate) const BODY_BYTES_MAX: usize = 4 << 20;
/// Most data points, log records or spans in one request: a data point grows by the identity's labels. SDKs
/// send 512 log records or spans at once.
pub(crate) const ITEMS_MAX: u64 = 10_000;
/// Most nested messages in one request. Two bytes on the wire can become a struct of two hundred.
pub(crate) const MESSAGES_MAX: usize = 100_000;
/// Deepest nesting that is followed; an OTLP data point's attribute value lies at nine, arrays below it.
pub(crate) const DEPTH_MAX: u32 = 24;
/// Most attributes of one resource or one data point: the default limit of the SDKs.
pub(crate) const ATTRIBUTES_MAX: usize = 128;

/// Why a body is not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IntakeError {
    /// Not gzip although it says so.
    #[error("the body is not valid gzip")]
    Gzip(#[source] std::io::Error),
    /// Too long once unpacked.
    #[error("the body is longer than {BODY_BYTES_MAX} bytes once unpacked and labelled")]
    TooLarge,
    /// Too many messages or items.
    #[error("more than {MESSAGES_MAX} messages or {ITEMS_MAX} items in one request")]
    TooMany,
    /// Too many attributes.
    #[error("more than {ATTRIBUTES_MAX} attributes on a resource or a data point")]
    Attributes,
    /// OTLP forbids it, and receivers disagree about the value that counts.
    #[error("two attributes of a resource or a data point have the same key")]
    Duplicate,
    /// Not an OTLP request.
    #[error("the body is not a valid OTLP request of this signal")]
    Malformed,
    /// Not an OTLP request in JSON.
    #[error("the body is not a valid OTLP request in JSON: {0}")]
    Json(#[source] serde_json::Error),
    /// A span needs both of its identifiers.
    #[error("a trace id or a span id is missing or has the wrong length")]
    Identifier,
}

/// How the body is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Protobuf,
    Json,
}

/// A request as protobuf that has been looked through: well-formed, within the bounds, not decoded.
#[derive(Debug)]
pub(crate) struct Checked<'a> {
    /// The message.
    pub(crate) bytes: Cow<'a, [u8]>,
    /// Its data points, log records or spans.
    pub(crate) items: u64,
}

/// Unpacks one request body and looks through it.
pub(crate) fn check(
    body: &[u8],
    is_gzip: bool,
    form: Form,
    signal: Signal,
) -> Result<Checked<'_>, IntakeError> {
    let request = match signal {
        Signal::Metrics => &schema::METRICS,
        Signal::Logs => &schema::LOGS,
        Signal::Traces => &schema::TRACES,
    };
    let mut bytes = if is_gzip { Cow::Owned(unpack(body)?) } else { Cow::Borrowed(body) };
    if form == Form::Json {
        bytes = Cow::Owned(json::to_protobuf(&bytes, request)?);
    }
    let items = wire::check(&bytes, request)?;
    if items > ITEMS_MAX { Err(IntakeError::TooMany) } else { Ok(Checked { bytes, items }) }
}

/// Decodes a metrics request.
pub(crate) fn decode(request: &Checked<'_>) -> Result<Export, IntakeError> {
    Export::decode(request.bytes.as_ref()).map_err(|_| IntakeError::Malformed)
}

/// Unpacks and decodes one metrics request in protobuf.
#[cfg(test)]
pub(crate) fn read(body: &[u8], is_gzip: bool) -> Result<Export, IntakeError> {
    decode(&check(body, is_gzip, Form::Protobuf, Signal::Metrics)?)
}

fn unpack(body: &[u8]) -> Result<Vec<u8>, IntakeError> {
    let mut unpacked = Vec::new();
    let mut reader = MultiGzDecoder::new(body).take(BODY_BYTES_MAX as u64 + 1);
    reader.read_to_end(&mut unpacked).map_err(IntakeError::Gzip)?;
    if unpacked.len() > BODY_BYTES_MAX { Err(IntakeError::TooLarge) } else { Ok(unpacked) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{fake::gauge_export, otlp, outbox::Batch};

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
            for signal in Signal::ALL {
                for form in [Form::Protobuf, Form::Json] {
                    match check(&bytes, false, form, signal) {
                        Ok(request) => {
                            assert!(request.items <= bytes.len() as u64);
                            // A body that passed the check decodes.
                            if signal == Signal::Metrics {
                                assert_eq!(otlp::count(&decode(&request).unwrap()), request.items);
                            }
                        }
                        Err(IntakeError::Malformed | IntakeError::Json(_) | IntakeError::Identifier) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
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
