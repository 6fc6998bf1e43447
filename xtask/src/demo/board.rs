//! What the demo shows: pure text from what was observed. `screen` puts it on the terminal.

use std::{collections::VecDeque, fmt::Write as _, time::Duration};

use super::observed::{Gauge, Observed};
use crate::stopwatch::clock;

/// Cells of a bar.
const BAR_WIDTH: usize = 20;
/// Readings in a sparkline.
const SPARKLINE_WIDTH: usize = 40;
/// Lines of the board that are not events: titles, gauges, counters, table head, blank lines.
const FIXED_LINES: usize = 12;
/// Events that are shown even on a small terminal.
const EVENTS_MIN: usize = 3;
/// A memory sparkline shows at least this range, so that noise does not look like a mountain.
const MEMORY_SPAN_MIN: f64 = 0.01;

/// The whole board, cut to the terminal.
pub(crate) fn render(observed: &Observed, elapsed: Duration, width: usize, height: usize) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    writeln!(text, "enclave demo · {} · {}", observed.deployment, clock(elapsed)).ok();
    writeln!(text, "{}\n", observed.caption).ok();
    writeln!(text, "nitro_enclave_cpu_usage    {}", gauge(&observed.cpu, Some((0.0, 1.0)))).ok();
    writeln!(text, "nitro_enclave_memory_usage {}", gauge(&observed.memory, None)).ok();
    writeln!(text, "collector: {}", collector(observed)).ok();
    writeln!(text, "load: {} requests answered, {} failed\n", observed.requests, observed.request_errors)
        .ok();
    text.push_str(&plugins(observed));
    text.push('\n');
    let plugin_count = observed.status.as_ref().map_or(0, |status| status.plugins.len());
    let room = height.saturating_sub(FIXED_LINES + plugin_count).max(EVENTS_MIN);
    let first = observed.events.len().saturating_sub(room);
    for (time, event) in observed.events.iter().skip(first) {
        writeln!(text, "  {}  {event}", clock(*time)).ok();
    }
    // A longer line would wrap, and redrawing counts lines.
    text.lines().flat_map(|line| line.chars().take(width).chain(['\n'])).collect()
}

/// The state of the gauges in one line, for an output that cannot be redrawn.
pub(crate) fn summary(observed: &Observed) -> String {
    let value = |gauge: &Gauge| gauge.latest().map_or_else(|| "–".to_owned(), |value| format!("{value:.3}"));
    format!(
        "cpu {}  memory {}  collector: {}",
        value(&observed.cpu),
        value(&observed.memory),
        collector(observed)
    )
}

fn collector(observed: &Observed) -> String {
    let labels = match (&observed.unlabelled, observed.points) {
        (Some(metric), _) => format!("{metric} LACKS oblv_deployment_name"),
        (None, 0) => "none yet".to_owned(),
        (None, _) => format!("every one with oblv_deployment_name=\"{}\"", observed.deployment),
    };
    format!("{} points in {} exports, {labels}", observed.points, observed.exports)
}

fn gauge(gauge: &Gauge, scale: Option<(f64, f64)>) -> String {
    let Some(latest) = gauge.latest() else { return "waiting for its first point".to_owned() };
    let scale = scale.unwrap_or_else(|| range(&gauge.readings));
    format!("{latest:.3} [{}] {}", bar(latest), sparkline(&gauge.readings, scale))
}

/// The smallest and largest reading shown, at least [`MEMORY_SPAN_MIN`] apart.
fn range(readings: &VecDeque<f64>) -> (f64, f64) {
    let shown = || readings.iter().rev().take(SPARKLINE_WIDTH).copied();
    let low = shown().fold(f64::INFINITY, f64::min);
    (low, shown().fold(low + MEMORY_SPAN_MIN, f64::max))
}

/// A fraction as a bar of [`BAR_WIDTH`] cells.
fn bar(fraction: f64) -> String {
    let full = (1..=BAR_WIDTH).filter(|cell| *cell as f64 - 0.5 <= fraction * BAR_WIDTH as f64).count();
    format!("{}{}", "█".repeat(full), "░".repeat(BAR_WIDTH - full))
}

/// The newest readings, one character each.
fn sparkline(readings: &VecDeque<f64>, (low, high): (f64, f64)) -> String {
    const STEPS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let step = |reading: f64| {
        let fraction = (reading - low) / (high - low);
        // The highest step whose lower edge the reading reaches; the lowest for anything below the scale.
        (1..STEPS.len()).rev().find(|step| fraction >= *step as f64 / STEPS.len() as f64).unwrap_or(0)
    };
    let first = readings.len().saturating_sub(SPARKLINE_WIDTH);
    readings.iter().skip(first).map(|reading| STEPS[step(*reading)]).collect()
}

fn plugins(observed: &Observed) -> String {
    let Some(status) = &observed.status else {
        return "PLUGIN       (no status yet)\n".to_owned();
    };
    let mut table = format!(
        "{:<12} {:<11} {:<6} {:>8} {:>6}  {}\n",
        "PLUGIN", "PHASE", "READY", "RESTARTS", "PID", "LAST EXIT"
    );
    for plugin in &status.plugins {
        let pid = plugin.pid.map_or_else(|| "–".to_owned(), |pid| pid.to_string());
        let last_exit = plugin.last_exit.as_ref().map_or_else(|| "–".to_owned(), ToString::to_string);
        let ready = if plugin.ready { "yes" } else { "no" };
        // Writing to a String cannot fail.
        writeln!(
            table,
            "{:<12} {:<11} {ready:<6} {:>8} {pid:>6}  {last_exit}",
            plugin.name, plugin.phase, plugin.restarts
        )
        .ok();
    }
    table
}

#[cfg(test)]
mod tests {
    use super::{super::status, *};

    fn observed() -> Observed {
        let mut observed = Observed::new("hello-fastapi");
        observed.caption = "step 4 of 9: load into hello".to_owned();
        observed.status = Some(status::tests::example(1, 12));
        for (cpu, memory) in [(0.02, 0.131), (0.1, 0.132), (0.55, 0.131), (0.98, 0.145), (1.0, 0.15)] {
            observed.cpu.readings.push_back(cpu);
            observed.memory.readings.push_back(memory);
        }
        (observed.points, observed.exports, observed.requests) = (120, 5, 33);
        for second in 0..20 {
            observed.events.push_back((Duration::from_secs(second), format!("event {second}")));
        }
        observed
    }

    #[tokio::test]
    async fn the_board_shows_gauges_plugins_and_the_newest_events_that_fit() {
        expect_test::expect![[r#"
            enclave demo · hello-fastapi · 1:05
            step 4 of 9: load into hello

            nitro_enclave_cpu_usage    1.000 [████████████████████] ▁▁▅██
            nitro_enclave_memory_usage 0.150 [███░░░░░░░░░░░░░░░░░] ▁▁▁▆█
            collector: 120 points in 5 exports, every one with oblv_deployment_name="hello-fastapi"
            load: 33 requests answered, 0 failed

            PLUGIN       PHASE       READY  RESTARTS    PID  LAST EXIT
            telemetry    Running     yes           0      7  –
            fastapi      Running     yes           1     12  signal 9

              0:16  event 16
              0:17  event 17
              0:18  event 18
              0:19  event 19
        "#]]
        .assert_eq(&render(&observed(), Duration::from_secs(65), 100, 18));
    }

    #[tokio::test]
    async fn no_line_is_wider_than_the_terminal() {
        let board = render(&observed(), Duration::ZERO, 30, 24);
        assert!(board.lines().all(|line| line.chars().count() <= 30), "{board}");
        assert!(board.lines().count() <= 24, "{board}");
    }

    #[tokio::test]
    async fn the_summary_says_what_has_not_arrived_yet() {
        assert_eq!(
            summary(&Observed::new("d")),
            "cpu –  memory –  collector: 0 points in 0 exports, none yet"
        );
        let mut observed = observed();
        observed.unlabelled = Some("up".to_owned());
        assert_eq!(
            summary(&observed),
            "cpu 1.000  memory 0.150  collector: 120 points in 5 exports, up LACKS oblv_deployment_name"
        );
    }

    #[test]
    fn a_bar_is_empty_at_zero_and_full_at_one() {
        assert_eq!(bar(0.0), "░".repeat(20));
        assert_eq!(bar(1.0), "█".repeat(20));
        assert_eq!(bar(7.0), "█".repeat(20));
    }
}
