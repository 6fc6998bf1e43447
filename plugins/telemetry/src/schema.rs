//! The messages of OTLP as tables: the names and numbers of their fields, and what is in them. One
//! description for the two forms of a request, protobuf and JSON.
//!
//! Taken from opentelemetry-proto 1.9 (`opentelemetry/proto/*/v1/*.proto`). A field that is not here is
//! unknown: skipped, as OTLP wants it.

/// A message.
#[derive(Debug)]
pub(crate) struct Message {
    /// The known fields.
    pub(crate) fields: &'static [Field],
    /// What the message stands for.
    pub(crate) role: Role,
}

/// What a message stands for in the account of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// An item of its signal: a data point or a log record.
    Item,
    /// A span: an item that needs the identifiers in its fields 1 and 2.
    Span,
    /// Everything else.
    Part,
}

/// A field of a message.
#[derive(Debug)]
pub(crate) struct Field {
    /// Its name in JSON.
    pub(crate) name: &'static str,
    /// Its number in protobuf.
    pub(crate) number: u32,
    /// What is in it.
    pub(crate) kind: Kind,
    /// Whether there may be any number of it.
    pub(crate) is_repeated: bool,
}

/// What is in a field.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    Message(&'static Message),
    Text,
    /// Bytes: base64 in JSON.
    Bytes,
    /// An identifier that is empty or so many bytes long: hexadecimal in JSON.
    Id(usize),
    Bool,
    /// `int32`, `int64`, `uint32`, `uint64` and enumerations: a varint.
    Integer,
    /// `sint32`: a varint, zigzag.
    Zigzag,
    Fixed32,
    /// `fixed64` and `sfixed64`.
    Fixed64,
    Double,
}

const fn one(name: &'static str, number: u32, kind: Kind) -> Field {
    Field { name, number, kind, is_repeated: false }
}

const fn many(name: &'static str, number: u32, kind: Kind) -> Field {
    Field { name, number, kind, is_repeated: true }
}

const fn part(fields: &'static [Field]) -> Message {
    Message { fields, role: Role::Part }
}

const fn item(fields: &'static [Field]) -> Message {
    Message { fields, role: Role::Item }
}

use Kind::{Bool, Bytes, Double, Fixed32, Fixed64, Id, Integer, Text, Zigzag};

/// Length of a trace's identifier.
const TRACE: usize = 16;
/// Length of a span's.
const SPAN: usize = 8;

/// `ExportMetricsServiceRequest`.
pub(crate) static METRICS: Message = part(&[many("resourceMetrics", 1, Kind::Message(&RESOURCE_METRICS))]);
/// `ExportLogsServiceRequest`.
pub(crate) static LOGS: Message = part(&[many("resourceLogs", 1, Kind::Message(&RESOURCE_LOGS))]);
/// `ExportTraceServiceRequest`.
pub(crate) static TRACES: Message = part(&[many("resourceSpans", 1, Kind::Message(&RESOURCE_SPANS))]);

static RESOURCE_METRICS: Message = part(&[
    one("resource", 1, Kind::Message(&RESOURCE)),
    many("scopeMetrics", 2, Kind::Message(&SCOPE_METRICS)),
    one("schemaUrl", 3, Text),
]);
static RESOURCE_LOGS: Message = part(&[
    one("resource", 1, Kind::Message(&RESOURCE)),
    many("scopeLogs", 2, Kind::Message(&SCOPE_LOGS)),
    one("schemaUrl", 3, Text),
]);
static RESOURCE_SPANS: Message = part(&[
    one("resource", 1, Kind::Message(&RESOURCE)),
    many("scopeSpans", 2, Kind::Message(&SCOPE_SPANS)),
    one("schemaUrl", 3, Text),
]);
static RESOURCE: Message = part(&[
    many("attributes", 1, Kind::Message(&KEY_VALUE)),
    one("droppedAttributesCount", 2, Integer),
    many("entityRefs", 3, Kind::Message(&ENTITY_REF)),
]);
static ENTITY_REF: Message = part(&[
    one("schemaUrl", 1, Text),
    one("type", 2, Text),
    many("idKeys", 3, Text),
    many("descriptionKeys", 4, Text),
]);
static SCOPE: Message = part(&[
    one("name", 1, Text),
    one("version", 2, Text),
    many("attributes", 3, Kind::Message(&KEY_VALUE)),
    one("droppedAttributesCount", 4, Integer),
]);
static KEY_VALUE: Message = part(&[one("key", 1, Text), one("value", 2, Kind::Message(&ANY_VALUE))]);
static ANY_VALUE: Message = part(&[
    one("stringValue", 1, Text),
    one("boolValue", 2, Bool),
    one("intValue", 3, Integer),
    one("doubleValue", 4, Double),
    one("arrayValue", 5, Kind::Message(&ARRAY_VALUE)),
    one("kvlistValue", 6, Kind::Message(&KEY_VALUE_LIST)),
    one("bytesValue", 7, Bytes),
]);
static ARRAY_VALUE: Message = part(&[many("values", 1, Kind::Message(&ANY_VALUE))]);
static KEY_VALUE_LIST: Message = part(&[many("values", 1, Kind::Message(&KEY_VALUE))]);

static SCOPE_METRICS: Message = part(&[
    one("scope", 1, Kind::Message(&SCOPE)),
    many("metrics", 2, Kind::Message(&METRIC)),
    one("schemaUrl", 3, Text),
]);
static METRIC: Message = part(&[
    one("name", 1, Text),
    one("description", 2, Text),
    one("unit", 3, Text),
    one("gauge", 5, Kind::Message(&NUMBERS)),
    one("sum", 7, Kind::Message(&NUMBERS)),
    one("histogram", 9, Kind::Message(&HISTOGRAM)),
    one("exponentialHistogram", 10, Kind::Message(&EXPONENTIAL)),
    one("summary", 11, Kind::Message(&SUMMARY)),
    many("metadata", 12, Kind::Message(&KEY_VALUE)),
]);
/// `Gauge` and `Sum`.
static NUMBERS: Message = part(&[
    many("dataPoints", 1, Kind::Message(&NUMBER_POINT)),
    one("aggregationTemporality", 2, Integer),
    one("isMonotonic", 3, Bool),
]);
static HISTOGRAM: Message = part(&[
    many("dataPoints", 1, Kind::Message(&HISTOGRAM_POINT)),
    one("aggregationTemporality", 2, Integer),
]);
static EXPONENTIAL: Message = part(&[
    many("dataPoints", 1, Kind::Message(&EXPONENTIAL_POINT)),
    one("aggregationTemporality", 2, Integer),
]);
static SUMMARY: Message = part(&[many("dataPoints", 1, Kind::Message(&SUMMARY_POINT))]);
static NUMBER_POINT: Message = item(&[
    one("startTimeUnixNano", 2, Fixed64),
    one("timeUnixNano", 3, Fixed64),
    one("asDouble", 4, Double),
    many("exemplars", 5, Kind::Message(&EXEMPLAR)),
    one("asInt", 6, Fixed64),
    many("attributes", 7, Kind::Message(&KEY_VALUE)),
    one("flags", 8, Integer),
]);
static HISTOGRAM_POINT: Message = item(&[
    one("startTimeUnixNano", 2, Fixed64),
    one("timeUnixNano", 3, Fixed64),
    one("count", 4, Fixed64),
    one("sum", 5, Double),
    many("bucketCounts", 6, Fixed64),
    many("explicitBounds", 7, Double),
    many("exemplars", 8, Kind::Message(&EXEMPLAR)),
    many("attributes", 9, Kind::Message(&KEY_VALUE)),
    one("flags", 10, Integer),
    one("min", 11, Double),
    one("max", 12, Double),
]);
static EXPONENTIAL_POINT: Message = item(&[
    many("attributes", 1, Kind::Message(&KEY_VALUE)),
    one("startTimeUnixNano", 2, Fixed64),
    one("timeUnixNano", 3, Fixed64),
    one("count", 4, Fixed64),
    one("sum", 5, Double),
    one("scale", 6, Zigzag),
    one("zeroCount", 7, Fixed64),
    one("positive", 8, Kind::Message(&BUCKETS)),
    one("negative", 9, Kind::Message(&BUCKETS)),
    one("flags", 10, Integer),
    many("exemplars", 11, Kind::Message(&EXEMPLAR)),
    one("min", 12, Double),
    one("max", 13, Double),
    one("zeroThreshold", 14, Double),
]);
static BUCKETS: Message = part(&[one("offset", 1, Zigzag), many("bucketCounts", 2, Integer)]);
static SUMMARY_POINT: Message = item(&[
    one("startTimeUnixNano", 2, Fixed64),
    one("timeUnixNano", 3, Fixed64),
    one("count", 4, Fixed64),
    one("sum", 5, Double),
    many("quantileValues", 6, Kind::Message(&QUANTILE)),
    many("attributes", 7, Kind::Message(&KEY_VALUE)),
    one("flags", 8, Integer),
]);
static QUANTILE: Message = part(&[one("quantile", 1, Double), one("value", 2, Double)]);
static EXEMPLAR: Message = part(&[
    one("timeUnixNano", 2, Fixed64),
    one("asDouble", 3, Double),
    one("spanId", 4, Id(SPAN)),
    one("traceId", 5, Id(TRACE)),
    one("asInt", 6, Fixed64),
    many("filteredAttributes", 7, Kind::Message(&KEY_VALUE)),
]);

static SCOPE_LOGS: Message = part(&[
    one("scope", 1, Kind::Message(&SCOPE)),
    many("logRecords", 2, Kind::Message(&LOG_RECORD)),
    one("schemaUrl", 3, Text),
]);
static LOG_RECORD: Message = item(&[
    one("timeUnixNano", 1, Fixed64),
    one("severityNumber", 2, Integer),
    one("severityText", 3, Text),
    one("body", 5, Kind::Message(&ANY_VALUE)),
    many("attributes", 6, Kind::Message(&KEY_VALUE)),
    one("droppedAttributesCount", 7, Integer),
    one("flags", 8, Fixed32),
    one("traceId", 9, Id(TRACE)),
    one("spanId", 10, Id(SPAN)),
    one("observedTimeUnixNano", 11, Fixed64),
    one("eventName", 12, Text),
]);

static SCOPE_SPANS: Message = part(&[
    one("scope", 1, Kind::Message(&SCOPE)),
    many("spans", 2, Kind::Message(&SPAN_MESSAGE)),
    one("schemaUrl", 3, Text),
]);
static SPAN_MESSAGE: Message = Message {
    role: Role::Span,
    fields: &[
        one("traceId", 1, Id(TRACE)),
        one("spanId", 2, Id(SPAN)),
        one("traceState", 3, Text),
        one("parentSpanId", 4, Id(SPAN)),
        one("name", 5, Text),
        one("kind", 6, Integer),
        one("startTimeUnixNano", 7, Fixed64),
        one("endTimeUnixNano", 8, Fixed64),
        many("attributes", 9, Kind::Message(&KEY_VALUE)),
        one("droppedAttributesCount", 10, Integer),
        many("events", 11, Kind::Message(&EVENT)),
        one("droppedEventsCount", 12, Integer),
        many("links", 13, Kind::Message(&LINK)),
        one("droppedLinksCount", 14, Integer),
        one("status", 15, Kind::Message(&STATUS)),
        one("flags", 16, Fixed32),
    ],
};
static EVENT: Message = part(&[
    one("timeUnixNano", 1, Fixed64),
    one("name", 2, Text),
    many("attributes", 3, Kind::Message(&KEY_VALUE)),
    one("droppedAttributesCount", 4, Integer),
]);
static LINK: Message = part(&[
    one("traceId", 1, Id(TRACE)),
    one("spanId", 2, Id(SPAN)),
    one("traceState", 3, Text),
    many("attributes", 4, Kind::Message(&KEY_VALUE)),
    one("droppedAttributesCount", 5, Integer),
    one("flags", 6, Fixed32),
]);
static STATUS: Message = part(&[one("message", 2, Text), one("code", 3, Integer)]);
