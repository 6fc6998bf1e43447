//! OTLP bodies from plugins, which are not trusted: bounded before they are unpacked and before they are decoded.

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
    /// Gauge and Sum, Histogram, ExponentialHistogram, Summary: field 1 holds the points.
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
    /// ArrayValue and KeyValueList.
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
            (Self::NumberPoint, 5) | (Self::HistogramPoint, 8) | (Self::ExponentialPoint, 11) => Self::Exemplar,
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
                match child {
                    Shape::Leaf | Shape::Buckets => {}
                    child => weigh(inner, child, depth, budget)?,
                }
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
        assert_eq!(read(&Batch::new(&export).body, true).unwrap(), export);
        assert_eq!(read(b"", false).unwrap(), Export::default());
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
