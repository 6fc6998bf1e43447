//! Scraping, against the Collector's `prometheus` receiver and `otlp_http` exporter in the same run: both
//! scrape the same page and push to the same sink.
//!
//! ```text
//! page (10,000 series) ◀─ scrape ─ telemetry plugin │ Collector ─ OTLP/HTTP, gzip ─▶ sink
//! ```
//! Only the contender's own process is measured. The interval is one second instead of fifteen, so that the
//! pushes of ten minutes fit into 40 seconds: what a contender queues while the sink is down is the same.

mod contender;
mod page;
mod report;
mod sink;
mod supervisor;

use std::time::Duration;

use super::Table;
use crate::{
    binaries::Binaries,
    failure::{Failure, While as _},
    peers,
};

use self::contender::{Contender, Programs};

/// Series of the page that is scraped.
pub(super) const SERIES: usize = 10_000;
/// Scrapes that are not counted: first connections, first allocations.
const WARM_UP: usize = 5;
/// Scrapes over which CPU time and bytes are taken.
const MEASURED: usize = 30;
/// Time between two scrapes.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long the sink is down: as many scrapes as ten minutes have at the usual fifteen seconds.
const DOWN: Duration = Duration::from_secs(40);

/// What is found out about one contender.
#[derive(Debug, Clone, Copy)]
struct Figures {
    /// CPU time of one scrape and its push.
    cpu: Duration,
    /// Compressed bytes of one push for each series.
    bytes_per_series: f64,
    /// Resident memory before the sink goes down, in KiB.
    rss_up_kib: u64,
    /// In the middle of the time for which it is down.
    rss_middle_kib: u64,
    /// At its end.
    rss_down_kib: u64,
}

/// The table, and what is over its budget.
pub(super) fn table(binaries: &Binaries) -> Result<Table, Failure> {
    let collector = peers::ensure_one("otelcol")?;
    let programs = Programs { telemetry: binaries.path("enclave-telemetry").to_owned(), collector };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.while_doing("a runtime for the benchmark")?;
    let ours = runtime.block_on(measure(Contender::Ours, &programs))?;
    let collector = runtime.block_on(measure(Contender::Collector, &programs))?;
    Ok(report::table(&ours, &collector))
}

async fn measure(contender: Contender, programs: &Programs) -> Result<Figures, Failure> {
    let directory = tempfile::tempdir().while_doing("a contender's directory")?;
    let page = page::Page::start(SERIES).await?;
    let mut sink = sink::Sink::start().await?;
    let running = contender.start(programs, directory.path(), page.address(), sink.address())?;
    let explain = |failure: Failure| Failure::new(format!("{contender}: {failure}\n{}", running.tails()));
    sink.wait_for_pushes(WARM_UP).await.map_err(explain)?;
    let before = running.cpu()?;
    let pushes = sink.wait_for_pushes(MEASURED).await.map_err(explain)?;
    let cpu = running.cpu()?.saturating_sub(before) / u32::try_from(MEASURED).unwrap_or(u32::MAX);
    let rss_up_kib = running.rss_kib()?;
    sink.stop().await;
    tokio::time::sleep(DOWN / 2).await;
    let rss_middle_kib = running.rss_kib()?;
    tokio::time::sleep(DOWN / 2).await;
    let rss_down_kib = running.rss_kib()?;
    let bytes_per_series = pushes.bytes as f64 / pushes.series as f64;
    Ok(Figures { cpu, bytes_per_series, rss_up_kib, rss_middle_kib, rss_down_kib })
}
