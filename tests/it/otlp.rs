//! Reads an OTLP body with `gzip` and `protoc` alone, which share no code with this repository.

use std::{
    collections::BTreeMap,
    io::Write,
    path::Path,
    process::{Command, Stdio},
    str::Lines,
    thread,
};

/// One data point with what stands around it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Point {
    pub(crate) metric: String,
    pub(crate) unit: String,
    /// `gauge` or `sum`.
    pub(crate) kind: String,
    /// None is `NO_RECORDED_VALUE`.
    pub(crate) value: Option<f64>,
    pub(crate) time: u64,
    pub(crate) flags: u32,
    pub(crate) attributes: BTreeMap<String, String>,
    pub(crate) resource: BTreeMap<String, String>,
}

/// One log record with what stands around it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct LogRecord {
    pub(crate) body: String,
    pub(crate) severity: u32,
    pub(crate) time: u64,
    pub(crate) attributes: BTreeMap<String, String>,
    pub(crate) resource: BTreeMap<String, String>,
}

/// A message in protoc's text format.
#[derive(Debug, Default)]
struct Message(Vec<(String, Field)>);

#[derive(Debug)]
enum Field {
    Scalar(String),
    Message(Message),
}

/// Every data point of a gzip-compressed export.
pub(crate) fn decode(body: &[u8]) -> Vec<Point> {
    points(&message("ExportMetricsServiceRequest", body))
}

/// Every log record of a gzip-compressed export.
pub(crate) fn decode_logs(body: &[u8]) -> Vec<LogRecord> {
    let mut records = Vec::new();
    for group in message("ExportLogsServiceRequest", body).all("resource_logs") {
        let resource = group.all("resource").next().map(attributes).unwrap_or_default();
        for record in group.all("scope_logs").flat_map(|scope| scope.all("log_records")) {
            let number = |name| record.text(name).map_or(0, |text| text.parse().unwrap());
            let body = record.all("body").next().and_then(|body| body.text("string_value"));
            records.push(LogRecord {
                body: body.unwrap_or_default(),
                severity: u32::try_from(number("severity_number")).unwrap(),
                time: number("time_unix_nano"),
                attributes: attributes(record),
                resource: resource.clone(),
            });
        }
    }
    records
}

fn message(kind: &str, body: &[u8]) -> Message {
    let plain = filter(Command::new("gzip").arg("-dc"), body);
    let proto = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it");
    let mut protoc = Command::new("protoc");
    protoc.arg(format!("--decode=otlp.{kind}")).arg("--proto_path").arg(proto).arg("otlp.proto");
    let text = String::from_utf8(filter(&mut protoc, &plain)).unwrap();
    Message::parse(&mut text.lines())
}

fn filter(command: &mut Command, input: &[u8]) -> Vec<u8> {
    let program = command.get_program().to_string_lossy().into_owned();
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn();
    let mut child = child.unwrap_or_else(|error| panic!("{program}: {error}; run `cargo xtask test`"));
    let mut stdin = child.stdin.take().unwrap();
    let output = thread::scope(|scope| {
        // Dropped at the end of the thread, which is the end of the input.
        scope.spawn(move || stdin.write_all(input).unwrap());
        child.wait_with_output().unwrap()
    });
    assert!(output.status.success(), "{program}: {}", output.status);
    output.stdout
}

fn points(export: &Message) -> Vec<Point> {
    let mut points = Vec::new();
    for group in export.all("resource_metrics") {
        let resource = group.all("resource").next().map(attributes).unwrap_or_default();
        let metrics = group.all("scope_metrics").flat_map(|scope| scope.all("metrics"));
        for metric in metrics {
            let text = |name| metric.text(name).unwrap_or_default();
            let kinds =
                ["gauge", "sum"].into_iter().flat_map(|kind| metric.all(kind).map(move |data| (kind, data)));
            let before = points.len();
            for (kind, data) in kinds {
                points.extend(data.all("data_points").map(|point| Point {
                    metric: text("name"),
                    unit: text("unit"),
                    kind: kind.to_owned(),
                    value: number(point, "as_double").or_else(|| number(point, "as_int")),
                    time: point.text("time_unix_nano").expect("every point has its time").parse().unwrap(),
                    flags: point.text("flags").map_or(0, |text| text.parse().unwrap()),
                    attributes: attributes(point),
                    resource: resource.clone(),
                }));
            }
            assert!(
                points.len() > before,
                "a metric without points, or of a kind that is not ours: {metric:?}"
            );
        }
    }
    points
}

fn number(message: &Message, name: &str) -> Option<f64> {
    message.text(name).map(|text| text.parse().unwrap())
}

fn attributes(message: &Message) -> BTreeMap<String, String> {
    let pair = |attribute: &Message| {
        let value = attribute.all("value").next().expect("every attribute has a value");
        let value = value.text("string_value").or_else(|| value.text("int_value"));
        (attribute.text("key").unwrap(), value.expect("our attributes are strings and whole numbers"))
    };
    let pairs: Vec<_> = message.all("attributes").map(pair).collect();
    let map: BTreeMap<_, _> = pairs.iter().cloned().collect();
    assert_eq!(map.len(), pairs.len(), "an attribute is there twice: {pairs:?}");
    map
}

impl Message {
    /// Reads lines up to this message's brace.
    fn parse(lines: &mut Lines<'_>) -> Self {
        let mut message = Self::default();
        while let Some(line) = lines.next().map(str::trim).filter(|line| *line != "}") {
            let (name, field) = if let Some(name) = line.strip_suffix(" {") {
                (name, Field::Message(Self::parse(lines)))
            } else {
                let (name, value) = line.split_once(": ").unwrap_or_else(|| panic!("no field: {line:?}"));
                (name, Field::Scalar(value.trim_matches('"').to_owned()))
            };
            assert!(
                !name.starts_with(|c: char| c.is_ascii_digit()),
                "a field that otlp.proto does not know: {line}"
            );
            message.0.push((name.to_owned(), field));
        }
        message
    }

    fn all<'a>(&'a self, wanted: &'a str) -> impl Iterator<Item = &'a Self> {
        self.0.iter().filter_map(move |(name, field)| match field {
            Field::Message(message) if name == wanted => Some(message),
            Field::Message(_) | Field::Scalar(_) => None,
        })
    }

    fn text(&self, wanted: &str) -> Option<String> {
        self.0.iter().find_map(|(name, field)| match field {
            Field::Scalar(text) if name == wanted => Some(text.clone()),
            Field::Message(_) | Field::Scalar(_) => None,
        })
    }
}
