//! Fields that are accepted but not in force in this release.
//!
//! This table is the only place that says so: whoever puts a field in force deletes its row.

use super::node::{Node, Value};
use super::path;
use super::scalar::Kind;
use crate::control::Condition;

/// How many places one condition names.
const NAMED_MAX: usize = 8;

struct Row {
    place: Place,
    field: &'static str,
    when: When,
    instead: &'static str,
}

/// What the row's field is a field of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Spec,
    Plugin,
}

/// Which values ask for something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    Given,
    NotFalse,
    Is(&'static str),
}

const fn row(place: Place, field: &'static str, when: When, instead: &'static str) -> Row {
    Row { place, field, when, instead }
}

/// A client for it would weigh a quarter of the supervisor.
const OVER_TLS: &str = "a connection that is accepted counts as the answer";

const TABLE: [Row; 7] = [
    row(Place::Plugin, "startupProbe.httpGet.scheme", When::Is("HTTPS"), OVER_TLS),
    row(Place::Plugin, "livenessProbe.httpGet.scheme", When::Is("HTTPS"), OVER_TLS),
    row(Place::Plugin, "readinessProbe.httpGet.scheme", When::Is("HTTPS"), OVER_TLS),
    row(Place::Plugin, "lifecycle.preStop.httpGet.scheme", When::Is("HTTPS"), OVER_TLS),
    row(Place::Plugin, "logsAccess", When::NotFalse, "logs are read through supervisorAccess"),
    row(Place::Plugin, "proxyPort", When::Given, "no traffic is led through the plugin"),
    row(
        Place::Spec,
        "caCertDetails.enclaveCertType",
        When::Is("ENCLAVE_GENERATED"),
        "TLS does not end in the enclave unless a plugin ends it",
    ),
];

/// One condition for each row whose field the manifest uses.
pub(super) fn conditions(root: &Node) -> Vec<Condition> {
    let Some(spec) = root.get("spec") else { return Vec::new() };
    let specs = vec![("spec".to_owned(), spec)];
    let plugins = plugins(spec);
    let condition = |row: &Row| {
        let places = match row.place {
            Place::Spec => &specs,
            Place::Plugin => &plugins,
        };
        let used: Vec<String> = places.iter().filter_map(|(path, node)| row.find(path, node)).collect();
        let message =
            format!("{}: accepted but not in force in this release; {}", named(&used)?, row.instead);
        Some(Condition { kind: "NotImplemented".to_owned(), message })
    };
    TABLE.iter().filter_map(condition).collect()
}

impl Row {
    /// The path of the row's field beneath a node, when its value asks for something.
    fn find(&self, base: &str, node: &Node) -> Option<String> {
        let (mut path, mut node) = (base.to_owned(), node);
        for key in self.field.split('.') {
            (path, node) = (path::key(&path, key), node.get(key)?);
        }
        let asks = match (&node.value, self.when) {
            (Value::Scalar(scalar), When::NotFalse) => scalar.kind() != Kind::Bool(false),
            (Value::Scalar(scalar), When::Is(word)) => scalar.text == word,
            (_, When::Is(_)) => false,
            (_, When::Given | When::NotFalse) => true,
        };
        (asks && !node.is_null()).then_some(path)
    }
}

/// Every node that has a plugin's fields, with its path.
fn plugins(spec: &Node) -> Vec<(String, &Node)> {
    let mut all = Vec::new();
    if let Some(Value::Mapping(entries)) = spec.get("plugins").map(|node| &node.value) {
        for entry in entries {
            let path = path::key("spec.plugins", &entry.key);
            if let Some(nested) = entry.node.get("spec") {
                all.push((path::key(&path, "spec"), nested));
            }
            all.push((path, &entry.node));
        }
    }
    if let Some(Value::Sequence(items)) = spec.get("userPlugins").map(|node| &node.value) {
        let item = |(i, node)| (path::index("spec.userPlugins", i), node);
        all.extend(items.iter().enumerate().map(item));
    }
    all
}

/// The first few of `paths` as one text; none where there are none.
pub(super) fn named(paths: &[String]) -> Option<String> {
    let more = paths.len().saturating_sub(NAMED_MAX);
    let list = paths[..paths.len() - more].join(", ");
    match (paths, more) {
        ([], _) => None,
        (_, 0) => Some(list),
        (_, more) => Some(format!("{list} and {more} more")),
    }
}
