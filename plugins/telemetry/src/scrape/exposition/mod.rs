//! Prometheus' exposition formats: text 0.0.4 and OpenMetrics 1.0, read line by line without copying.
//!
//! Prometheus' own lexers are the reference, strictness included: what fails a scrape there fails it here. A
//! page is untrusted, so that work is linear in its bytes and nothing is allocated beside one list of labels
//! and the texts that have escapes.

mod cursor;
mod number;
mod parser;

#[cfg(test)]
mod tests;

use std::borrow::Cow;

pub(crate) use number::value as parse_value;
pub(crate) use parser::Parser;

/// Most labels of one sample. A page whose samples have more is refused before the configured limit is looked
/// at.
pub(crate) const LABELS_MAX: usize = 256;

/// Which of the two formats a page is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// Prometheus text 0.0.4, and 1.0.0 with its quoted names.
    Text,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Dialect {
    /// The dialect that a `Content-Type` names; text for everything but OpenMetrics, as Prometheus 2 did.
    pub(crate) fn of(content_type: Option<&str>) -> Self {
        let media = content_type.and_then(|text| text.split(';').next()).unwrap_or_default().trim();
        if media.eq_ignore_ascii_case("application/openmetrics-text") {
            Self::OpenMetrics
        } else {
            Self::Text
        }
    }
}

/// The type that a `# TYPE` line gives a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Only goes up.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Cumulative buckets.
    Histogram,
    /// Buckets that go up and down.
    GaugeHistogram,
    /// Quantiles.
    Summary,
    /// Labels that are the information.
    Info,
    /// One of several states.
    StateSet,
    /// Untyped, or without a `# TYPE` line.
    #[default]
    Unknown,
}

impl Kind {
    /// The word in OpenMetrics, and in the metadata of the exported metric.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
            Self::GaugeHistogram => "gaugehistogram",
            Self::Summary => "summary",
            Self::Info => "info",
            Self::StateSet => "stateset",
            Self::Unknown => "unknown",
        }
    }
}

/// One label, unescaped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Label<'a> {
    pub(crate) name: Cow<'a, str>,
    pub(crate) value: Cow<'a, str>,
}

/// One line that means something. The labels of a sample are in [`Parser::labels`].
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Entry<'a> {
    Help { family: Cow<'a, str>, text: Cow<'a, str> },
    Type { family: Cow<'a, str>, kind: Kind },
    Unit { family: Cow<'a, str>, unit: &'a str },
    Sample(Sample<'a>),
}

/// One sample.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sample<'a> {
    pub(crate) name: Cow<'a, str>,
    pub(crate) value: f64,
    /// Milliseconds since 1970, where the page says.
    pub(crate) time: Option<i64>,
    /// The exemplar's value and time; its labels are in [`Parser::exemplar_labels`].
    pub(crate) exemplar: Option<Exemplar>,
}

/// The numbers of an exemplar.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Exemplar {
    pub(crate) value: f64,
    pub(crate) time: Option<i64>,
}

/// Why a page cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {why}")]
pub(crate) struct ParseError {
    /// Counted from 1.
    pub(crate) line: usize,
    pub(crate) why: &'static str,
}
