//! The JSON form against the types that are generated from the .proto files.

use opentelemetry_proto::tonic::{
    collector::{logs::v1::ExportLogsServiceRequest, trace::v1::ExportTraceServiceRequest},
    common::v1::{AnyValue, ArrayValue, EntityRef, InstrumentationScope, KeyValue, KeyValueList, any_value},
    logs::v1::{LogRecord, ResourceLogs, ScopeLogs},
    metrics::v1::{
        Exemplar, ExponentialHistogram, ExponentialHistogramDataPoint, Gauge, Histogram, HistogramDataPoint,
        Metric, NumberDataPoint, ResourceMetrics, ScopeMetrics, Sum, Summary, SummaryDataPoint, exemplar,
        exponential_histogram_data_point::Buckets, metric::Data, number_data_point::Value,
        summary_data_point::ValueAtQuantile,
    },
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans, Span, Status, span},
};
use proptest::prelude::*;
use prost::Message as _;

use super::*;
use crate::{otlp::Export, schema, wire};

fn value(value: any_value::Value) -> AnyValue {
    AnyValue { value: Some(value) }
}

fn attribute(key: &str, value: any_value::Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(self::value(value)), ..KeyValue::default() }
}

/// Attributes with every kind of value.
fn attributes() -> Vec<KeyValue> {
    use any_value::Value as V;
    let inner = vec![attribute("inner", V::StringValue("\u{1f980} \"quoted\"\n".to_owned()))];
    vec![
        attribute("text", V::StringValue("v".to_owned())),
        attribute("bool", V::BoolValue(true)),
        attribute("int", V::IntValue(-1 << 60)),
        attribute("double", V::DoubleValue(1.5)),
        attribute("nan", V::DoubleValue(f64::NEG_INFINITY)),
        attribute(
            "array",
            V::ArrayValue(ArrayValue { values: vec![AnyValue::default(), value(V::IntValue(2))] }),
        ),
        attribute("map", V::KvlistValue(KeyValueList { values: inner })),
        attribute("bytes", V::BytesValue(vec![0, 255, 3, 4])),
    ]
}

fn resource() -> Resource {
    let reference = EntityRef {
        schema_url: "s".to_owned(),
        r#type: "service".to_owned(),
        id_keys: vec!["text".to_owned()],
        description_keys: vec!["bool".to_owned(), "int".to_owned()],
    };
    Resource { attributes: attributes(), dropped_attributes_count: 3, entity_refs: vec![reference] }
}

fn scope() -> InstrumentationScope {
    InstrumentationScope {
        name: "scope".to_owned(),
        version: "1".to_owned(),
        attributes: attributes(),
        dropped_attributes_count: 1,
    }
}

fn all_metrics() -> Export {
    let exemplars = vec![Exemplar {
        filtered_attributes: attributes(),
        time_unix_nano: 5,
        span_id: vec![7; 8],
        trace_id: vec![9; 16],
        value: Some(exemplar::Value::AsInt(-4)),
    }];
    let number = |value| NumberDataPoint {
        attributes: attributes(),
        start_time_unix_nano: 1,
        time_unix_nano: u64::MAX,
        exemplars: exemplars.clone(),
        flags: 1,
        value: Some(value),
    };
    let histogram = HistogramDataPoint {
        attributes: attributes(),
        start_time_unix_nano: 1,
        time_unix_nano: 2,
        count: 3,
        sum: Some(-1e300),
        bucket_counts: vec![1, 2, 0],
        explicit_bounds: vec![0.1, 1e9],
        exemplars: exemplars.clone(),
        flags: 0,
        min: Some(0.0),
        max: Some(2.0),
    };
    let buckets = |offset| Some(Buckets { offset, bucket_counts: vec![300, 0, u64::MAX] });
    let exponential = ExponentialHistogramDataPoint {
        attributes: attributes(),
        start_time_unix_nano: 1,
        time_unix_nano: 2,
        count: 3,
        sum: None,
        scale: -10,
        zero_count: 4,
        positive: buckets(-7),
        negative: buckets(7),
        flags: 1,
        exemplars: exemplars.clone(),
        min: Some(1.0),
        max: None,
        zero_threshold: 0.25,
    };
    let summary = SummaryDataPoint {
        attributes: attributes(),
        start_time_unix_nano: 1,
        time_unix_nano: 2,
        count: 3,
        sum: 4.5,
        quantile_values: vec![ValueAtQuantile { quantile: 0.5, value: 6.0 }],
        flags: 0,
    };
    let data = [
        Data::Gauge(Gauge {
            data_points: vec![number(Value::AsDouble(2.5)), number(Value::AsInt(i64::MIN))],
        }),
        Data::Sum(Sum {
            data_points: vec![number(Value::AsInt(0))],
            aggregation_temporality: 2,
            is_monotonic: true,
        }),
        Data::Histogram(Histogram { data_points: vec![histogram], aggregation_temporality: 1 }),
        Data::ExponentialHistogram(ExponentialHistogram {
            data_points: vec![exponential],
            aggregation_temporality: 2,
        }),
        Data::Summary(Summary { data_points: vec![summary] }),
    ];
    let metrics = data.map(|data| Metric {
        name: "name".to_owned(),
        description: "d".to_owned(),
        unit: "By".to_owned(),
        metadata: attributes(),
        data: Some(data),
    });
    let scope_metrics =
        vec![ScopeMetrics { scope: Some(scope()), metrics: metrics.into(), schema_url: "u".to_owned() }];
    Export {
        resource_metrics: vec![ResourceMetrics {
            resource: Some(resource()),
            scope_metrics,
            schema_url: "r".to_owned(),
        }],
    }
}

fn all_logs() -> ExportLogsServiceRequest {
    let record = LogRecord {
        time_unix_nano: 1,
        observed_time_unix_nano: 2,
        severity_number: 17,
        severity_text: "ERROR".to_owned(),
        body: Some(value(any_value::Value::StringValue("it broke".to_owned()))),
        attributes: attributes(),
        dropped_attributes_count: 4,
        flags: 0x101,
        trace_id: vec![0xab; 16],
        span_id: vec![0xcd; 8],
        event_name: "event".to_owned(),
    };
    let scope_logs =
        vec![ScopeLogs { scope: Some(scope()), log_records: vec![record], schema_url: "u".to_owned() }];
    ExportLogsServiceRequest {
        resource_logs: vec![ResourceLogs {
            resource: Some(resource()),
            scope_logs,
            schema_url: "r".to_owned(),
        }],
    }
}

fn all_traces() -> ExportTraceServiceRequest {
    let span = Span {
        trace_id: vec![1; 16],
        span_id: vec![2; 8],
        trace_state: "a=b".to_owned(),
        parent_span_id: vec![3; 8],
        flags: 0x301,
        name: "GET /".to_owned(),
        kind: 2,
        start_time_unix_nano: 10,
        end_time_unix_nano: 20,
        attributes: attributes(),
        dropped_attributes_count: 1,
        events: vec![span::Event {
            time_unix_nano: 15,
            name: "e".to_owned(),
            attributes: attributes(),
            dropped_attributes_count: 2,
        }],
        dropped_events_count: 3,
        links: vec![span::Link {
            trace_id: vec![4; 16],
            span_id: vec![5; 8],
            trace_state: "c=d".to_owned(),
            attributes: attributes(),
            dropped_attributes_count: 4,
            flags: 1,
        }],
        dropped_links_count: 5,
        status: Some(Status { message: "bad".to_owned(), code: 2 }),
    };
    let scope_spans =
        vec![ScopeSpans { scope: Some(scope()), spans: vec![span], schema_url: "u".to_owned() }];
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(resource()),
            scope_spans,
            schema_url: "r".to_owned(),
        }],
    }
}

/// The JSON form of a protobuf message, by the same tables. A field that they lack is a panic.
fn to_json(mut bytes: &[u8], message: &Message) -> serde_json::Value {
    let mut object = serde_json::Map::new();
    while !bytes.is_empty() {
        let key = prost::encoding::decode_varint(&mut bytes).unwrap();
        let field = message.fields.iter().find(|field| u64::from(field.number) == key >> 3);
        let field = field.unwrap_or_else(|| panic!("no field {} in {message:?}", key >> 3));
        let mut values = Vec::new();
        if key & 7 == 2 {
            let length = usize::try_from(prost::encoding::decode_varint(&mut bytes).unwrap()).unwrap();
            let (mut inner, rest) = bytes.split_at(length);
            bytes = rest;
            match field.kind {
                Kind::Message(message) => values.push(to_json(inner, message)),
                Kind::Text => values.push(std::str::from_utf8(inner).unwrap().into()),
                Kind::Id(_) => {
                    let digits: Vec<_> = inner.iter().map(|byte| format!("{byte:02X}")).collect();
                    values.push(digits.concat().into());
                }
                Kind::Bytes => values.push(base64(inner).into()),
                Kind::Bool | Kind::Integer | Kind::Zigzag | Kind::Fixed32 | Kind::Fixed64 | Kind::Double => {
                    while !inner.is_empty() {
                        values.push(number(&mut inner, field.kind));
                    }
                }
            }
        } else {
            values.push(number(&mut bytes, field.kind));
        }
        if field.is_repeated {
            let list = object.entry(field.name).or_insert_with(|| serde_json::json!([]));
            list.as_array_mut().unwrap().extend(values);
        } else {
            object.insert(field.name.to_owned(), values.pop().unwrap());
        }
    }
    object.into()
}

fn number(bytes: &mut &[u8], kind: Kind) -> serde_json::Value {
    let eight = |bytes: &mut &[u8]| {
        let (taken, rest) = bytes.split_at(8);
        *bytes = rest;
        u64::from_le_bytes(taken.try_into().unwrap())
    };
    match kind {
        Kind::Bool => (prost::encoding::decode_varint(bytes).unwrap() != 0).into(),
        Kind::Integer => prost::encoding::decode_varint(bytes).unwrap().cast_signed().to_string().into(),
        Kind::Zigzag => {
            let value = prost::encoding::decode_varint(bytes).unwrap();
            ((value >> 1).cast_signed() ^ -(value & 1).cast_signed()).into()
        }
        Kind::Fixed32 => {
            let (taken, rest) = bytes.split_at(4);
            *bytes = rest;
            u32::from_le_bytes(taken.try_into().unwrap()).into()
        }
        Kind::Fixed64 => eight(bytes).to_string().into(),
        Kind::Double => {
            let value = f64::from_bits(eight(bytes));
            if value.is_finite() {
                value.into()
            } else {
                format!("{value:?}").replace("inf", "Infinity").into()
            }
        }
        Kind::Message(_) | Kind::Text | Kind::Bytes | Kind::Id(_) => panic!("not a number"),
    }
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits =
            chunk.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for index in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * index) & 63) as usize];
            text.push(if index <= chunk.len() { digit.into() } else { '=' });
        }
    }
    text
}

fn round<M: prost::Message + Default>(message: &M, table: &'static Message) -> M {
    let encoded = message.encode_to_vec();
    let items = wire::check(&encoded, table).unwrap();
    let json = serde_json::to_vec(&to_json(&encoded, table)).unwrap();
    let back = to_protobuf(&json, table).unwrap();
    assert_eq!(wire::check(&back, table).unwrap(), items);
    M::decode(back.as_slice()).unwrap()
}

#[test]
fn every_field_of_every_message_survives_the_json_form() {
    assert_eq!(round(&all_metrics(), &schema::METRICS), all_metrics());
    assert_eq!(round(&all_logs(), &schema::LOGS), all_logs());
    assert_eq!(round(&all_traces(), &schema::TRACES), all_traces());
}

fn metrics(text: &str) -> Result<Export, IntakeError> {
    Ok(Export::decode(to_protobuf(text.as_bytes(), &schema::METRICS)?.as_slice()).unwrap())
}

fn point(fields: &str) -> Result<NumberDataPoint, IntakeError> {
    let text = format!(
        r#"{{"resourceMetrics":[{{"scopeMetrics":[{{"metrics":[{{"gauge":{{"dataPoints":[{{{fields}}}]}}}}]}}]}}]}}"#
    );
    let mut export = metrics(&text)?;
    let data = export.resource_metrics[0].scope_metrics[0].metrics[0].data.take();
    let Some(Data::Gauge(mut gauge)) = data else { panic!("{data:?}") };
    Ok(gauge.data_points.remove(0))
}

#[test]
fn numbers_come_as_numbers_or_as_text() {
    for (text, value) in [
        (r#""asInt": "7""#, Value::AsInt(7)),
        (r#""asInt": 7"#, Value::AsInt(7)),
        (r#""asInt": -7.0"#, Value::AsInt(-7)),
        (r#""asInt": "-9223372036854775808""#, Value::AsInt(i64::MIN)),
        (r#""asDouble": 7"#, Value::AsDouble(7.0)),
        (r#""asDouble": "1e3""#, Value::AsDouble(1000.0)),
        (r#""asDouble": "-Infinity""#, Value::AsDouble(f64::NEG_INFINITY)),
    ] {
        assert_eq!(point(text).unwrap().value, Some(value), "{text}");
    }
    let Some(Value::AsDouble(nan)) = point(r#""asDouble": "NaN""#).unwrap().value else { panic!() };
    assert!(nan.is_nan());
    assert_eq!(
        point(r#""timeUnixNano": 1795800556634000000"#).unwrap().time_unix_nano,
        1_795_800_556_634_000_000
    );
    for bad in [
        r#""asInt": 1.5"#,
        r#""asInt": 1e300"#,
        r#""asInt": "9223372036854775807000""#,
        r#""asInt": "seven""#,
        r#""asInt": true"#,
        r#""asInt": [1]"#,
        r#""asDouble": "inf""#,
        r#""asDouble": {}"#,
        r#""attributes": {"key": "a"}"#,
        r#""attributes": ["a"]"#,
        r#""attributes": [null]"#,
        r#""attributes": [[]]"#,
        r#""attributes": [{"key": 7}]"#,
        r#""attributes": [{"key": "a", "value": {"boolValue": "true"}}]"#,
        r#""attributes": [{"key": "a", "value": {"bytesValue": "?"}}]"#,
        r#""exemplars": [{"traceId": "xy"}]"#,
        r#""exemplars": [{"traceId": "abc"}]"#,
    ] {
        assert!(matches!(point(bad), Err(IntakeError::Json(_))), "{bad}");
    }
}

#[test]
fn null_is_nothing_and_unknown_names_are_skipped() {
    let text = r#""asInt": null, "flags": null, "new": {"deep": [1, {"a": "b"}]}, "time_unix_nano": 5, "attributes": null"#;
    assert_eq!(point(text).unwrap(), NumberDataPoint::default());
    assert_eq!(metrics("{}").unwrap(), Export::default());
    for bad in ["", "[]", "7", "{", "{}{}", "null", "\u{0}"] {
        assert!(matches!(metrics(bad), Err(IntakeError::Json(_))), "{bad}");
    }
}

#[test]
fn what_a_few_characters_can_become_is_bounded() {
    let deep = |depth: usize| {
        let (open, close) = (r#"{"arrayValue":{"values":["#, "]}}");
        format!(r#""attributes":[{{"key":"a","value":{}{{}}{}}}]"#, open.repeat(depth), close.repeat(depth))
    };
    assert!(point(&deep(6)).is_ok());
    assert!(matches!(point(&deep(12)), Err(IntakeError::TooMany)));
    assert!(point(&deep(100_000)).is_err());
    let many = format!(r#"{{"resourceMetrics":[{}{{}}]}}"#, "{},".repeat(100_000));
    assert!(matches!(metrics(&many), Err(IntakeError::TooMany)));
    let counts = format!(
        r#"{{"resourceMetrics":[{{"scopeMetrics":[{{"metrics":[{{"histogram":{{"dataPoints":[{{"bucketCounts":[{}0]}}]}}}}]}}]}}]}}"#,
        "0,".repeat(2_000_000)
    );
    assert!(counts.len() < BODY_BYTES_MAX);
    assert!(matches!(metrics(&counts), Err(IntakeError::TooLarge)));
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(
        which in 0usize..3,
        at in 0.0..1.0,
        length in 0usize..8,
        with in "[\\[\\]{}\",:0-9a-z\\\\ .eE+-]{0,8}",
    ) {
        let (json, table) = [
            (to_json(&all_metrics().encode_to_vec(), &schema::METRICS), &schema::METRICS),
            (to_json(&all_logs().encode_to_vec(), &schema::LOGS), &schema::LOGS),
            (to_json(&all_traces().encode_to_vec(), &schema::TRACES), &schema::TRACES),
        ][which].clone();
        let mut text = serde_json::to_vec(&json).unwrap();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index")]
        let at = (at * text.len() as f64) as usize;
        let end = (at + length).min(text.len());
        text.splice(at..end, with.into_bytes());
        if let Ok(bytes) = to_protobuf(&text, table) {
            prop_assert!(bytes.len() <= BODY_BYTES_MAX);
            match wire::check(&bytes, table) {
                Ok(_) | Err(IntakeError::Identifier) => {}
                Err(error) => prop_assert!(false, "{}", error),
            }
        }
    }

    #[test]
    fn any_bytes_survive_base64(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
        let text = base64(&bytes);
        let bare = text.trim_end_matches('=').replace('+', "-").replace('/', "_");
        prop_assert_eq!(from_base64(&text), Some(bytes.clone()));
        prop_assert_eq!(from_base64(&bare), Some(bytes));
    }
}
