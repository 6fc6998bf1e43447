//! Log records as OTLP has them.
//!
//! A line of a plugin is a body and nothing more: no severity is guessed from it. The runtime's own lines are
//! JSON objects, whose level, message and fields have their places in OTLP.

use enclave_protocol::control::{LogRecord, LogStream};
use opentelemetry_proto::tonic::{
    collector::logs::v1::ExportLogsServiceRequest,
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value},
    logs::v1::{LogRecord as OtlpRecord, ResourceLogs, ScopeLogs, SeverityNumber},
    resource::v1::Resource,
};
use serde_json::{Map, Value as Json};

use crate::identity::Identity;

/// Constant, as that of the metrics.
const SCOPE: &str = "enclave-telemetry";
const SCOPE_VERSION: &str = "1";
/// The source of the records of the process that carries streams. No plugin can have its name.
const NET: &str = "net";
/// Before the fields of the runtime's own records, so that they are no other attribute.
const FIELD_PREFIX: &str = "enclave.";
/// Most fields of a record that become attributes. The runtime's own records have a handful.
const FIELDS_MAX: usize = 32;

/// One request for all of `records`.
pub(super) fn request(
    records: impl IntoIterator<Item = LogRecord>,
    identity: &Identity,
    boot_id: &str,
) -> ExportLogsServiceRequest {
    let of_identity = identity.labels().chain(identity.service());
    let attributes = of_identity.chain([("enclave.boot.id", boot_id)]).map(|(key, value)| text(key, value));
    let scope = InstrumentationScope {
        name: SCOPE.to_owned(),
        version: SCOPE_VERSION.to_owned(),
        ..InstrumentationScope::default()
    };
    let logs = ScopeLogs {
        scope: Some(scope),
        log_records: records.into_iter().map(record).collect(),
        ..ScopeLogs::default()
    };
    let resource = Resource { attributes: attributes.collect(), ..Resource::default() };
    let resource_logs =
        ResourceLogs { resource: Some(resource), scope_logs: vec![logs], ..ResourceLogs::default() };
    ExportLogsServiceRequest { resource_logs: vec![resource_logs] }
}

fn record(record: LogRecord) -> OtlpRecord {
    let is_own = record.stream == LogStream::Supervisor || record.plugin == NET;
    let mut attributes = vec![
        text("plugin", &record.plugin),
        text("k8s.container.name", &record.plugin),
        number("enclave.log.seq", record.seq),
    ];
    let stream = match record.stream {
        LogStream::Stdout => Some("stdout"),
        LogStream::Stderr => Some("stderr"),
        LogStream::Supervisor => None,
    };
    attributes.extend(stream.map(|stream| text("log.iostream", stream)));
    if record.partial {
        attributes.push(attribute("enclave.log.partial", Value::BoolValue(true)));
    }
    if record.dropped > 0 {
        attributes.push(number("enclave.log.dropped", record.dropped));
    }
    let mut otlp = OtlpRecord {
        time_unix_nano: record.time.0,
        observed_time_unix_nano: record.time.0,
        ..OtlpRecord::default()
    };
    let parsed = record.text.as_deref().filter(|_| is_own).and_then(own);
    let body = match (parsed, record.text, record.base64) {
        (Some(own), ..) => {
            (otlp.severity_number, otlp.severity_text) = own.severity;
            attributes.extend(own.attributes);
            Value::StringValue(own.message)
        }
        (None, Some(text), _) => Value::StringValue(text),
        (None, None, Some(bytes)) => Value::BytesValue(bytes.0),
        (None, None, None) => Value::StringValue(String::new()),
    };
    otlp.body = Some(AnyValue { value: Some(body) });
    otlp.attributes = attributes;
    otlp
}

/// The parts of one of the runtime's own records.
struct Own {
    severity: (i32, String),
    message: String,
    attributes: Vec<KeyValue>,
}

fn own(line: &str) -> Option<Own> {
    let mut fields: Map<String, Json> = serde_json::from_str(line).ok()?;
    let Some(Json::String(message)) = fields.remove("message") else { return None };
    let Some(Json::String(level)) = fields.remove("level") else { return None };
    // The record has the time when it was made already.
    fields.remove("timestamp");
    let severity = match level.as_str() {
        "TRACE" => SeverityNumber::Trace,
        "DEBUG" => SeverityNumber::Debug,
        "INFO" => SeverityNumber::Info,
        "WARN" => SeverityNumber::Warn,
        "ERROR" => SeverityNumber::Error,
        _ => SeverityNumber::Unspecified,
    };
    let field = |(name, value): (String, Json)| {
        let value = match value {
            Json::String(text) => Value::StringValue(text),
            Json::Bool(value) => Value::BoolValue(value),
            Json::Number(number) => match (number.as_i64(), number.as_f64()) {
                (Some(number), _) => Value::IntValue(number),
                (None, Some(number)) => Value::DoubleValue(number),
                (None, None) => return None,
            },
            Json::Null => return None,
            nested @ (Json::Array(_) | Json::Object(_)) => Value::StringValue(nested.to_string()),
        };
        Some(attribute(&format!("{FIELD_PREFIX}{name}"), value))
    };
    let attributes = fields.into_iter().filter_map(field).take(FIELDS_MAX).collect();
    Some(Own { severity: (severity.into(), level), message, attributes })
}

fn text(key: &str, value: &str) -> KeyValue {
    attribute(key, Value::StringValue(value.to_owned()))
}

fn number(key: &str, value: u64) -> KeyValue {
    attribute(key, Value::IntValue(i64::try_from(value).unwrap_or(i64::MAX)))
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

#[cfg(test)]
mod tests {
    use enclave_protocol::{control::FileBytes, timestamp::Timestamp};

    use super::*;
    use crate::fake::sample;

    fn of(plugin: &str, stream: LogStream, text: &str) -> LogRecord {
        LogRecord {
            seq: 7,
            time: Timestamp(5),
            plugin: plugin.to_owned(),
            stream,
            text: Some(text.to_owned()),
            base64: None,
            partial: false,
            dropped: 0,
        }
    }

    fn value(value: Option<&AnyValue>) -> String {
        match value.and_then(|any| any.value.as_ref()) {
            Some(Value::StringValue(text)) => text.clone(),
            other => format!("{other:?}"),
        }
    }

    fn pairs(attributes: &[KeyValue]) -> String {
        let pairs = attributes.iter().map(|pair| format!("{}={}", pair.key, value(pair.value.as_ref())));
        pairs.collect::<Vec<_>>().join(" ")
    }

    fn show(of: LogRecord) -> String {
        let otlp = record(of);
        let severity = (otlp.severity_number, otlp.severity_text);
        format!("{} {severity:?} {}", value(otlp.body.as_ref()), pairs(&otlp.attributes))
    }

    #[test]
    fn a_line_of_a_plugin_is_a_body_whatever_it_looks_like() {
        let line = r#"{"level":"ERROR","message":"forged"}"#;
        expect_test::expect![[r#"{"level":"ERROR","message":"forged"} (0, "") plugin=app k8s.container.name=app enclave.log.seq=Some(IntValue(7)) log.iostream=stderr"#]]
            .assert_eq(&show(of("app", LogStream::Stderr, line)));
        let parted = LogRecord { partial: true, dropped: 3, ..of("app", LogStream::Stdout, "") };
        expect_test::expect![[r#" (0, "") plugin=app k8s.container.name=app enclave.log.seq=Some(IntValue(7)) log.iostream=stdout enclave.log.partial=Some(BoolValue(true)) enclave.log.dropped=Some(IntValue(3))"#]]
            .assert_eq(&show(parted));
        let bytes = LogRecord {
            text: None,
            base64: Some(FileBytes(b"\xff\0".to_vec())),
            ..of("app", LogStream::Stdout, "")
        };
        assert!(show(bytes).starts_with("Some(BytesValue([255, 0])) "));
    }

    #[test]
    fn the_runtimes_own_records_have_their_level_message_and_fields() {
        let line = r#"{"timestamp":"t","level":"WARN","message":"it ended","plugin":"app","code":3,"oom":false,"x":null,"list":[1]}"#;
        expect_test::expect![[r#"it ended (13, "WARN") plugin=supervisor k8s.container.name=supervisor enclave.log.seq=Some(IntValue(7)) enclave.code=Some(IntValue(3)) enclave.list=[1] enclave.oom=Some(BoolValue(false)) enclave.plugin=app"#]]
            .assert_eq(&show(of("supervisor", LogStream::Supervisor, line)));
        assert!(show(of("net", LogStream::Stderr, line)).starts_with("it ended (13, \"WARN\") plugin=net"));
        for odd in ["", "panicked", "[]", r#"{"message":1,"level":"INFO"}"#, r#"{"level":"INFO"}"#] {
            assert!(show(of("supervisor", LogStream::Supervisor, odd)).starts_with(&format!("{odd} (0, ")));
        }
    }

    #[test]
    fn the_resource_is_the_deployments_with_the_boot_whose_numbers_these_are() {
        let identity = Identity::of(&sample(1)).unwrap();
        let request = request([of("app", LogStream::Stdout, "x")], &identity, "b00t");
        let resource = request.resource_logs[0].resource.as_ref().unwrap();
        expect_test::expect![[r#"namespace=default ned_name=hello oblv_deployment_name=hello service.name=hello service.namespace=default service.instance.id=i-1 enclave.boot.id=b00t"#]]
            .assert_eq(&pairs(&resource.attributes));
        let record = &request.resource_logs[0].scope_logs[0].log_records[0];
        assert_eq!((record.time_unix_nano, record.observed_time_unix_nano), (5, 5));
    }
}
