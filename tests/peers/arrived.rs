//! What a Collector received, as its file exporter wrote it: OTLP JSON, a request a line.

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::Value;

/// A data point of a metric.
#[derive(Debug, Clone)]
pub(crate) struct Point {
    pub(crate) metric: String,
    /// None is `NO_RECORDED_VALUE`.
    pub(crate) value: Option<f64>,
    pub(crate) time: u64,
}

/// A span or a log record.
#[derive(Debug, Clone)]
pub(crate) struct Item {
    /// The attributes of its resource that are text.
    pub(crate) resource: BTreeMap<String, String>,
    pub(crate) fields: Value,
}

/// The spans that have arrived.
pub(crate) fn spans(file: &Path) -> Vec<Item> {
    items(file, ["resourceSpans", "scopeSpans", "spans"])
}

/// The log records that have arrived.
pub(crate) fn log_records(file: &Path) -> Vec<Item> {
    items(file, ["resourceLogs", "scopeLogs", "logRecords"])
}

fn items(file: &Path, [resources, scopes, items]: [&str; 3]) -> Vec<Item> {
    let mut found = Vec::new();
    for request in requests(file) {
        for resource in array(&request, resources) {
            let attributes = array(&resource["resource"], "attributes").filter_map(|attribute| {
                let value = attribute["value"]["stringValue"].as_str()?;
                Some((attribute["key"].as_str()?.to_owned(), value.to_owned()))
            });
            let attributes: BTreeMap<String, String> = attributes.collect();
            let items = array(resource, scopes).flat_map(|scope| array(scope, items));
            found.extend(items.map(|item| Item { resource: attributes.clone(), fields: item.clone() }));
        }
    }
    found
}

/// The points of each request, in the order of their arrival.
pub(crate) fn exports(file: &Path) -> Vec<Vec<Point>> {
    let requests = requests(file).into_iter();
    requests.filter(|request| request["resourceMetrics"].is_array()).map(|request| points(&request)).collect()
}

/// Requests in the order of their arrival. A line that is being written is left out.
fn requests(file: &Path) -> Vec<Value> {
    let text = fs::read_to_string(file).unwrap_or_default();
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn array<'a>(value: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> {
    value[name].as_array().into_iter().flatten()
}

fn points(request: &Value) -> Vec<Point> {
    let scopes = array(request, "resourceMetrics").flat_map(|resource| array(resource, "scopeMetrics"));
    let metrics = scopes.flat_map(|scope| array(scope, "metrics"));
    let mut found = Vec::new();
    for metric in metrics {
        let data = metric["gauge"].as_object().or_else(|| metric["sum"].as_object());
        let data = data.unwrap_or_else(|| panic!("neither gauge nor sum: {metric}"));
        for point in data["dataPoints"].as_array().into_iter().flatten() {
            let integer = point["asInt"].as_str().and_then(|text| text.parse().ok());
            found.push(Point {
                metric: metric["name"].as_str().unwrap().to_owned(),
                value: point["asDouble"].as_f64().or(integer),
                time: point["timeUnixNano"].as_str().unwrap().parse().unwrap(),
            });
        }
    }
    found
}
