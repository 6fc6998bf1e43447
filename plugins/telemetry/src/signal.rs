//! The three kinds of data that OTLP carries, and the words for each.

/// One of OTLP's signals. Each has an outbox, a sender and an account of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Signal {
    /// Data points.
    Metrics,
    /// Log records.
    Logs,
    /// Spans.
    Traces,
}

impl Signal {
    /// Every signal, in the order of their discriminants.
    pub(crate) const ALL: [Self; 3] = [Self::Metrics, Self::Logs, Self::Traces];

    /// The path of the OTLP/HTTP specification, appended to a base URL.
    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::Metrics => "/v1/metrics",
            Self::Logs => "/v1/logs",
            Self::Traces => "/v1/traces",
        }
    }

    /// The signal's name: in a label, in a log record.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Metrics => "metrics",
            Self::Logs => "logs",
            Self::Traces => "traces",
        }
    }

    /// The signal's part of a family's name, for example of `enclave_telemetry_points_sent_total`.
    pub(crate) fn items(self) -> &'static str {
        match self {
            Self::Metrics => "points",
            Self::Logs => "log_records",
            Self::Traces => "spans",
        }
    }

    /// The signal's place in an array of one entry for each.
    pub(crate) fn index(self) -> usize {
        self as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signal_stands_at_its_index() {
        for (index, signal) in Signal::ALL.into_iter().enumerate() {
            assert_eq!(signal.index(), index);
        }
    }
}
