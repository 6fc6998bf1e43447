//! The table, and what it says against the goals: a ratio is a must, an absolute figure a goal that is
//! reported as measured.

use std::fmt::Write as _;

use super::{Figures, SERIES};
use crate::bench::Table;

/// Most of the Collector's CPU time for a scrape and its push.
const CPU_RATIO_MAX: f64 = 0.25;
/// Most of its resident memory while nothing can be pushed.
const MEMORY_RATIO_MAX: f64 = 0.2;
/// Most of its bytes for each series and push.
const BYTES_RATIO_MAX: f64 = 1.0;
/// Resident memory while nothing can be pushed, in KiB.
const MEMORY_KIB_GOAL: u64 = 24 << 10;

struct Row {
    label: &'static str,
    unit: &'static str,
    ours: f64,
    theirs: f64,
    /// Most of theirs that ours may be.
    ratio_max: Option<f64>,
}

/// Ours against the Collector.
pub(super) fn table(ours: &Figures, collector: &Figures) -> Table {
    let mut text = format!(
        "| {SERIES} series scraped and pushed | enclave-telemetry | Collector | ratio | |\n\
         |---|---:|---:|---:|---|\n"
    );
    let mut complaints = Vec::new();
    for row in rows(ours, collector) {
        let ratio = row.ours / row.theirs;
        let verdict = match row.ratio_max {
            None => "–".to_owned(),
            Some(max) if ratio <= max => format!("≤ {max} ×: kept"),
            Some(max) => {
                complaints.push(format!("{}: {ratio:.2} × the Collector's, at most {max}", row.label));
                format!("≤ {max} ×: MISSED")
            }
        };
        let Row { label, unit, ours, theirs, .. } = row;
        // Writing to a String cannot fail.
        writeln!(text, "| {label}, {unit} | {ours:.1} | {theirs:.1} | {ratio:.2} | {verdict} |").ok();
    }
    let met = if ours.rss_down_kib <= MEMORY_KIB_GOAL { "met" } else { "not met" };
    writeln!(text, "\nGoal of ≤ {} MiB resident with the collector down: {met}.", MEMORY_KIB_GOAL >> 10).ok();
    Table { text, complaints }
}

fn rows(ours: &Figures, collector: &Figures) -> [Row; 5] {
    let mib = |kib: u64| kib as f64 / 1024.0;
    let row = |label, unit, value: fn(&Figures) -> f64, ratio_max| Row {
        label,
        unit,
        ours: value(ours),
        theirs: value(collector),
        ratio_max,
    };
    let memory = |label, kib: fn(&Figures) -> u64, ratio_max| Row {
        label,
        unit: "MiB",
        ours: mib(kib(ours)),
        theirs: mib(kib(collector)),
        ratio_max,
    };
    [
        row("CPU time of a scrape and its push", "ms", |f| f.cpu.as_secs_f64() * 1e3, Some(CPU_RATIO_MAX)),
        row(
            "bytes after gzip for each series and push",
            "bytes",
            |f| f.bytes_per_series,
            Some(BYTES_RATIO_MAX),
        ),
        memory("resident", |f| f.rss_up_kib, None),
        memory("resident, sink down for 20 scrapes", |f| f.rss_middle_kib, None),
        memory("resident, sink down for 40 scrapes", |f| f.rss_down_kib, Some(MEMORY_RATIO_MAX)),
    ]
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn figures(ms: u64, kib: u64) -> Figures {
        Figures {
            cpu: Duration::from_millis(ms),
            bytes_per_series: 20.0,
            rss_up_kib: kib,
            rss_middle_kib: kib,
            rss_down_kib: kib,
        }
    }

    #[test]
    fn a_ratio_over_its_budget_is_flagged() {
        let kept = table(&figures(10, 10 << 10), &figures(100, 200 << 10));
        assert!(kept.complaints.is_empty() && kept.text.contains("≤ 0.25 ×: kept"), "{kept:?}");
        assert!(kept.text.contains("collector down: met."), "{kept:?}");
        let missed = table(&figures(90, 100 << 10), &figures(100, 200 << 10));
        assert_eq!(missed.complaints.len(), 2, "{missed:?}");
        assert!(missed.text.contains("not met."), "{missed:?}");
    }
}
