//! The export report: what the telemetry plugin says of itself to the supervisor, so that a collector that
//! takes nothing is seen in `status` and on host-proxy's page and not only at that collector.
//!
//! The plugin is not trusted: the report has a fixed form, and its texts are cut and cleaned where they come
//! in.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    control::Condition,
    glance,
    metrics::{
        Family, Point,
        catalogue::{Entry, telemetry as rows},
    },
    timestamp::Timestamp,
};

/// Longest body of `PUT /v1/telemetry`: all numbers at their longest, and three errors.
pub const REPORT_BYTES_MAX: usize = 4 << 10;
/// Longest error in a report, in characters once it is clean.
pub const ERROR_CHARS_MAX: usize = 160;
/// The beginning of the names of the plugin's families.
pub const PREFIX: &str = "enclave_telemetry_";
/// Type of the condition of a collector that takes nothing.
pub const EXPORT_FAILING: &str = "TelemetryExportFailing";
/// Type of the condition of a telemetry plugin that does not report any more.
pub const SILENT: &str = "TelemetrySilent";
/// So many export intervals without a success, and with an error, are a failure; so many without a report a
/// silence.
const INTERVALS: u32 = 3;
/// The shortest time for either: one retry, or one restart of the plugin, is none.
const FAILING_AFTER_MIN: Duration = Duration::from_secs(15);
/// Reports come every ten seconds at least.
const SILENT_AFTER_MIN: Duration = Duration::from_mins(1);
/// Longest export interval that is believed.
const INTERVAL_MAX: Duration = Duration::from_mins(5);

/// The body of `PUT /v1/telemetry`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TelemetryReport {
    /// When the plugin started: its counters count from there.
    pub started: Timestamp,
    /// Time between two exports.
    pub export_interval_millis: u64,
    /// Data points.
    pub metrics: SignalReport,
    /// Log records.
    pub logs: SignalReport,
    /// Spans.
    pub traces: SignalReport,
}

/// The account of one signal: `produced = sent + dropped + queued`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SignalReport {
    /// Items that were to be exported.
    pub produced: u64,
    /// Of them, those that apps sent.
    pub received: u64,
    /// Items that the collector accepted.
    pub sent: u64,
    /// Items that were sent once more.
    pub retried: u64,
    /// Items that never arrived.
    pub dropped: DroppedItems,
    /// Items that wait for the collector.
    pub queued: u64,
    /// Their batches.
    pub queue_batches: u64,
    /// Their compressed size.
    pub queue_bytes: u64,
    /// When the collector accepted last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_success: Option<Timestamp>,
    /// The last failure, unless a success came after it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

/// Items that never arrived, by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DroppedItems {
    /// The queue was full; the oldest went.
    pub queue_full: u64,
    /// They waited longer than a reader looks back.
    pub too_old: u64,
    /// The collector answered with a status that must not be retried.
    pub refused: u64,
    /// The collector asked to come again for as long as a batch is kept.
    pub retries_exhausted: u64,
    /// The collector took the batch but not these items.
    pub rejected: u64,
    /// No `EXPORTER_URL` is set.
    pub no_exporter: u64,
    /// The time for the last flush was over, or the sender was ended.
    pub shutdown: u64,
    /// A family had more points than are kept apart.
    pub too_many_series: u64,
    /// They could not be encoded.
    pub encoding: u64,
}

impl DroppedItems {
    /// The label `reason` and the number of each.
    pub fn by_reason(&self) -> [(&'static str, u64); 9] {
        [
            ("queue_full", self.queue_full),
            ("too_old", self.too_old),
            ("refused", self.refused),
            ("retries_exhausted", self.retries_exhausted),
            ("rejected", self.rejected),
            ("no_exporter", self.no_exporter),
            ("shutdown", self.shutdown),
            ("too_many_series", self.too_many_series),
            ("encoding", self.encoding),
        ]
    }

    /// Their sum.
    pub fn total(&self) -> u64 {
        self.by_reason().iter().fold(0, |sum, (_, items)| sum.saturating_add(*items))
    }
}

/// The newest report, in a status.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TelemetryStatus {
    /// When it came.
    pub time: Timestamp,
    /// Its content, cleaned.
    pub report: TelemetryReport,
}

impl TelemetryReport {
    /// The signals: name, word in the names of families, words for people, account.
    pub fn signals(&self) -> [(&'static str, &'static str, &'static str, &SignalReport); 3] {
        [
            ("metrics", "points", "Data points", &self.metrics),
            ("logs", "log_records", "Log records", &self.logs),
            ("traces", "spans", "Spans", &self.traces),
        ]
    }

    /// The report with its texts as they may be shown, and no time that lies ahead of `now`.
    #[must_use]
    pub fn cleaned(mut self, now: Timestamp) -> Self {
        self.started = self.started.min(now);
        for signal in [&mut self.metrics, &mut self.logs, &mut self.traces] {
            signal.last_success = signal.last_success.map(|time| time.min(now));
            signal.last_error = signal.last_error.take().map(|error| error_text(&error));
        }
        self
    }

    /// The families `enclave_telemetry_*`.
    pub fn families(&self, now: Timestamp) -> Vec<Family> {
        let rows = [
            [
                &rows::POINTS_PRODUCED,
                &rows::POINTS_RECEIVED,
                &rows::POINTS_SENT,
                &rows::POINTS_RETRIED,
                &rows::POINTS_DROPPED,
                &rows::POINTS_QUEUED,
            ],
            [
                &rows::LOG_RECORDS_PRODUCED,
                &rows::LOG_RECORDS_RECEIVED,
                &rows::LOG_RECORDS_SENT,
                &rows::LOG_RECORDS_RETRIED,
                &rows::LOG_RECORDS_DROPPED,
                &rows::LOG_RECORDS_QUEUED,
            ],
            [
                &rows::SPANS_PRODUCED,
                &rows::SPANS_RECEIVED,
                &rows::SPANS_SENT,
                &rows::SPANS_RETRIED,
                &rows::SPANS_DROPPED,
                &rows::SPANS_QUEUED,
            ],
        ];
        let signals = [&self.metrics, &self.logs, &self.traces];
        let mut families: Vec<Family> =
            rows.into_iter().zip(signals).flat_map(|(rows, signal)| counters(rows, signal)).collect();
        let by_signal = |value: &dyn Fn(&SignalReport) -> Option<f64>| {
            let point = |(name, _, _, signal): (_, _, _, &SignalReport)| {
                Some(Point::labelled([("signal", name)], value(signal)?))
            };
            self.signals().into_iter().filter_map(point).collect::<Vec<_>>()
        };
        let age = |at: Timestamp| Duration::from_nanos(now.0.saturating_sub(at.0)).as_secs_f64();
        families.push(rows::QUEUE_BATCHES.family(by_signal(&|signal| Some(signal.queue_batches as f64))));
        families.push(rows::QUEUE_BYTES.family(by_signal(&|signal| Some(signal.queue_bytes as f64))));
        families.push(rows::LAST_SUCCESS_AGE.family(by_signal(&|signal| signal.last_success.map(age))));
        families
    }

    fn interval(&self) -> Duration {
        Duration::from_millis(self.export_interval_millis).min(INTERVAL_MAX)
    }
}

impl TelemetryStatus {
    /// What is not as it should be, at `now`.
    pub fn conditions(&self, now: Timestamp) -> Vec<Condition> {
        let since = |at: Timestamp| Duration::from_nanos(now.0.saturating_sub(at.0));
        let intervals = self.report.interval() * INTERVALS;
        let mut conditions = Vec::new();
        let failing: Vec<String> = (self.report.signals().into_iter())
            .filter_map(|(name, _, _, signal)| {
                let error = signal.last_error.as_deref()?;
                let quiet = since(signal.last_success.unwrap_or(self.report.started));
                let last = signal.last_success.map_or_else(
                    || "nothing has arrived yet".to_owned(),
                    |at| format!("nothing has arrived since {at}"),
                );
                (quiet > intervals.max(FAILING_AFTER_MIN)).then(|| format!("{name}: {error}; {last}"))
            })
            .collect();
        if !failing.is_empty() {
            conditions.push(Condition { kind: EXPORT_FAILING.to_owned(), message: failing.join(". ") });
        }
        if since(self.time) > intervals.max(SILENT_AFTER_MIN) {
            let message = format!("the telemetry plugin has not reported since {}", self.time);
            conditions.push(Condition { kind: SILENT.to_owned(), message });
        }
        conditions
    }

    /// One line for people: a part for each signal that has carried something.
    pub fn line(&self, now: Timestamp) -> String {
        let part = |(name, _, _, signal): (&str, _, _, &SignalReport)| {
            let last = signal
                .last_success
                .map_or_else(|| "none arrived".to_owned(), |at| format!("{} ago", glance::age(now, at)));
            format!("{name} {last}, {} queued, {} dropped", signal.queued, signal.dropped.total())
        };
        let used = self.report.signals().into_iter().filter(|(name, _, _, signal)| {
            *name == "metrics" || signal.produced > 0 || signal.last_error.is_some()
        });
        used.map(part).collect::<Vec<_>>().join("; ")
    }
}

/// An error as it may stand in a report: cleaned, and cut.
pub fn error_text(error: &str) -> String {
    // Cleaning may make a character ten times as long: what is cut away anyway is not looked at.
    let start: String = error.chars().take(ERROR_CHARS_MAX + 1).collect();
    glance::cut(&glance::clean(&start), ERROR_CHARS_MAX)
}

/// The families of one signal, by the rows of the catalogue: produced, received, sent, retried, dropped,
/// queued.
fn counters(rows: [&Entry; 6], signal: &SignalReport) -> [Family; 6] {
    let [produced, received, sent, retried, dropped, queued] = rows;
    let by_reason = signal.dropped.by_reason();
    let by_reason =
        by_reason.iter().map(|(reason, items)| Point::labelled([("reason", *reason)], *items as f64));
    [
        produced.bare(signal.produced as f64),
        received.bare(signal.received as f64),
        sent.bare(signal.sent as f64),
        retried.bare(signal.retried as f64),
        dropped.family(by_reason.collect()),
        queued.bare(signal.queued as f64),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn at(seconds: u64) -> Timestamp {
        Timestamp(seconds * SECOND)
    }

    fn failing(error: &str) -> SignalReport {
        SignalReport {
            produced: u64::MAX,
            received: u64::MAX,
            sent: u64::MAX,
            retried: u64::MAX,
            queued: u64::MAX,
            queue_batches: u64::MAX,
            queue_bytes: u64::MAX,
            dropped: DroppedItems { queue_full: u64::MAX, refused: u64::MAX, ..DroppedItems::default() },
            last_success: Some(Timestamp(u64::MAX)),
            last_error: Some(error.to_owned()),
        }
    }

    #[test]
    fn the_longest_report_fits_and_a_hostile_one_is_bounded_and_clean() {
        let hostile = "\u{202e}\u{1b}[2J\n\"日".repeat(1000);
        let report = TelemetryReport {
            started: Timestamp(u64::MAX),
            export_interval_millis: u64::MAX,
            metrics: failing(&hostile),
            logs: failing(&hostile),
            traces: failing(&hostile),
        };
        let report = report.cleaned(at(5));
        let error = report.logs.last_error.as_deref().unwrap();
        assert!(error.chars().count() <= ERROR_CHARS_MAX && !error.contains(['\u{1b}', '\n', '\u{202e}']));
        assert_eq!((report.started, report.logs.last_success), (at(5), Some(at(5))));
        assert!(serde_json::to_vec(&report).unwrap().len() <= REPORT_BYTES_MAX);
        assert_eq!(report.logs.dropped.total(), u64::MAX);
        let status = TelemetryStatus { time: at(5), report };
        assert_eq!(status.conditions(at(5)), []);
        assert!(status.report.families(at(5)).iter().all(|family| family.name.starts_with(PREFIX)));
    }

    #[test]
    fn a_report_has_the_fields_it_has_and_no_others() {
        let good = serde_json::to_string(&TelemetryReport::default()).unwrap();
        assert!(serde_json::from_str::<TelemetryReport>(&good).is_ok());
        let more = good.replacen('{', "{\"nitro_enclave_cpu_usage\":1,", 1);
        assert!(serde_json::from_str::<TelemetryReport>(&more).is_err());
    }

    #[test]
    fn a_collector_that_takes_nothing_is_a_condition_until_it_does() {
        let mut report = TelemetryReport {
            started: at(100),
            export_interval_millis: 10_000,
            ..TelemetryReport::default()
        };
        report.metrics.last_error = Some("connecting to c:4318: refused".to_owned());
        let kinds = |report: &TelemetryReport, now: u64| -> Vec<String> {
            let status = TelemetryStatus { time: at(now), report: report.clone() };
            status.conditions(at(now)).into_iter().map(|c| format!("{}: {}", c.kind, c.message)).collect()
        };
        let none: Vec<String> = vec![];
        assert_eq!(kinds(&report, 130), none);
        expect_test::expect![
            "TelemetryExportFailing: metrics: connecting to c:4318: refused; nothing has arrived yet"
        ]
        .assert_eq(&kinds(&report, 131).concat());
        report.metrics.last_success = Some(at(120));
        assert_eq!(kinds(&report, 131), none);
        assert!(kinds(&report, 151).concat().ends_with("nothing has arrived since 1970-01-01T00:02:00Z"));
        report.metrics.last_error = None;
        assert_eq!(kinds(&report, 10_000), none, "nothing was to be sent");
    }

    #[test]
    fn a_plugin_that_reports_no_more_is_a_condition() {
        let status = TelemetryStatus { time: at(100), report: TelemetryReport::default() };
        assert_eq!(status.conditions(at(160)), []);
        assert_eq!(status.conditions(at(161))[0].kind, SILENT);
    }
}
