//! `config.yaml` of the telemetry plugin: the part of Prometheus' `scrape_configs` that is in force.
//!
//! Read through the manifest's own collecting checker, so that every mistake is told at once with line,
//! column and key. What Prometheus has beyond the part is refused by name: a setting that is silently ignored
//! is worse than one that is missing. Both the supervisor (before the first spawn) and the plugin check with
//! it.

mod job;
mod rule;
mod target;
mod units;

use std::{collections::BTreeMap, time::Duration};

use self::job::Inherited;
pub use self::job::{Auth, Group, Job, Scheme, Tls};
pub use self::rule::{Action, Rule};
pub use self::target::{Address, is_loopback};
use crate::{
    control::Diagnostic,
    manifest::{
        cursor::{Cursor, Mapping},
        node::Position,
        report::Report,
        scalar::quoted,
        yaml,
    },
    metrics::prometheus,
};

/// The file's place in the plugin.
pub const CONFIG_PATH: &str = "/etc/oblv/config.yaml";
/// Longest configuration. It comes with the manifest, whose files are 8 MiB together.
pub const CONFIG_BYTES_MAX: usize = 256 << 10;
/// More jobs than this are a mistake; each has a task for each of its targets.
pub const JOBS_MAX: usize = 64;
/// Most targets of all jobs together.
pub const TARGETS_MAX: usize = 128;
/// Prometheus' `scrape_interval`.
pub const INTERVAL: Duration = Duration::from_mins(1);
/// Shortest interval, as the plugin's own export interval.
pub const INTERVAL_MIN: Duration = Duration::from_millis(100);
/// Longest interval; Prometheus itself looks back five minutes.
pub const INTERVAL_MAX: Duration = Duration::from_hours(24);
/// Prometheus' `scrape_timeout`.
pub const TIMEOUT: Duration = Duration::from_secs(10);
/// Labels that are the runtime's, beside the identity's: they say where a point comes from.
const ORIGIN_LABELS: [&str; 3] = ["plugin", "scrape_job", "scrape_target"];
/// The identity's labels.
const IDENTITY_LABELS: [&str; 3] =
    [crate::metrics::LABEL_DEPLOYMENT, crate::metrics::LABEL_NED, crate::metrics::LABEL_NAMESPACE];

/// Judges something; an error is the mistake's message.
pub type Judge<'a, T> = &'a dyn Fn(&T) -> Result<(), String>;

/// What a configuration is checked against, as far as it is known.
#[derive(Clone, Copy, Default)]
pub struct Context<'a> {
    /// Whether a target can be reached: the ports of other plugins, and names that an outbound connection
    /// allows.
    pub reach: Option<Judge<'a, Address>>,
    /// Whether a regular expression compiles.
    pub regex: Option<Judge<'a, str>>,
}

impl std::fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Context(..)")
    }
}

/// A checked configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    /// `global.external_labels`: on every scraped point that has no label of that name.
    pub external_labels: BTreeMap<String, String>,
    /// The jobs, in the order of the file.
    pub jobs: Vec<Job>,
}

/// Bounds of one scrape; exceeding one fails it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the page, unpacked.
    pub body: usize,
    /// Samples after relabelling.
    pub samples: usize,
    /// Labels of a sample, its name and the target's included.
    pub labels: usize,
    /// Bytes of a label's name.
    pub name_bytes: usize,
    /// Bytes of a label's value.
    pub value_bytes: usize,
}

impl Limits {
    /// In force without a word in the file, where Prometheus has none: an enclave's memory is finite.
    pub const DEFAULT: Self =
        Self { body: 10 << 20, samples: 10_000, labels: 64, name_bytes: 512, value_bytes: 4096 };
    /// The most that can be asked for.
    pub const MAX: Self =
        Self { body: 64 << 20, samples: 200_000, labels: 256, name_bytes: 4096, value_bytes: 64 << 10 };
}

/// Reads and checks a configuration; answers every mistake at once, sorted by position. An empty file is an
/// empty configuration.
pub fn parse(text: &str, context: &Context<'_>) -> Result<Config, Vec<Diagnostic>> {
    let report = Report::default();
    if text.len() > CONFIG_BYTES_MAX {
        report.add(Position { line: 1, column: 1 }, "", format!("longer than {CONFIG_BYTES_MAX} bytes"));
        return Err(report.finish());
    }
    if is_empty(text) {
        return Ok(Config::default());
    }
    let Some(root) = yaml::read(text, &report) else { return Err(report.finish()) };
    let config = check(&Cursor::root(&root, &report), context);
    match config {
        Some(config) if report.is_empty() => Ok(config),
        _ => Err(report.finish()),
    }
}

/// Nothing but comments, blank lines and document markers.
fn is_empty(text: &str) -> bool {
    text.lines().all(|line| line.trim().is_empty() || line.starts_with('#') || line.trim_end() == "---")
}

fn check(root: &Cursor<'_>, context: &Context<'_>) -> Option<Config> {
    let mut fields = root.mapping()?;
    let mut inherited = Inherited::default();
    let mut external_labels = BTreeMap::new();
    if let Some(global) = fields.field("global") {
        external_labels = check_global(&global, &mut inherited).unwrap_or_default();
    }
    let jobs = fields.field("scrape_configs").map(|list| job::check_all(&list, &inherited, context));
    refuse(
        &mut fields,
        &[
            ("remote_write", "everything goes to EXPORTER_URL"),
            ("remote_read", "the plugin stores nothing"),
            ("rule_files", "the plugin evaluates no rules"),
            ("alerting", "the plugin evaluates no rules"),
            ("storage", "the plugin stores nothing"),
            ("tracing", "the plugin has no spans"),
            ("otlp", "labels are set on every point"),
            ("runtime", "there is no Go runtime"),
            ("scrape_config_files", "write the jobs here"),
        ],
    );
    fields.finish();
    Some(Config { external_labels, jobs: jobs.unwrap_or_default() })
}

fn check_global(global: &Cursor<'_>, inherited: &mut Inherited) -> Option<BTreeMap<String, String>> {
    let mut fields = global.mapping()?;
    inherited.read(&mut fields);
    let labels = fields.field("external_labels").map(|map| check_labels(&map)).unwrap_or_default();
    refuse(
        &mut fields,
        &[
            ("evaluation_interval", "the plugin evaluates no rules"),
            ("query_log_file", "there are no queries"),
            ("scrape_failure_log_file", "failures are log records"),
            ("scrape_protocols", "OpenMetrics and text are asked for"),
            ("metric_name_validation_scheme", "all names are accepted"),
            ("metric_name_escaping_scheme", "names are never escaped"),
        ],
    );
    fields.finish();
    Some(labels)
}

/// Reports the fields that Prometheus has and this plugin does not, each with the reason.
fn refuse(fields: &mut Mapping<'_>, names: &[(&'static str, &str)]) {
    for (name, why) in names {
        if let Some(cursor) = fields.field(name) {
            cursor.error(format!("{name} is not supported: {why}"));
        }
    }
}

/// Labels that the deployer sets.
fn check_labels(map: &Cursor<'_>) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    for (name, position, cursor) in map.entries() {
        if let Err(message) = settable(name) {
            cursor.error_at(position, message);
        }
        let Some(value) = cursor.string() else { continue };
        if value.len() > Limits::DEFAULT.value_bytes {
            cursor.error(format!("longer than {} bytes", Limits::DEFAULT.value_bytes));
        }
        labels.insert(name.to_owned(), value.to_owned());
    }
    labels
}

/// Whether a deployer may set this label on a target.
fn settable(name: &str) -> Result<(), String> {
    if !is_label_name(name) {
        return Err(format!("{} is not a valid label name: letters, digits and _", quoted(name)));
    }
    let canonical = prometheus::label_name(name);
    if ORIGIN_LABELS.contains(&canonical.as_str()) || IDENTITY_LABELS.contains(&canonical.as_str()) {
        return Err(format!("the label {name} is set by the runtime on every point"));
    }
    Ok(())
}

fn is_label_name(name: &str) -> bool {
    let first = |c: char| c.is_ascii_alphabetic() || c == '_';
    name.starts_with(first) && name.chars().all(|c| first(c) || c.is_ascii_digit())
}
