//! Measures the way of a scraped page without its network: parse, map, encode, compress.
//!
//! `scrape_bench FILE TIMES` reads the page `FILE` (OpenMetrics if it ends in `# EOF`) and prints, for each
//! of the two stages `parse` (the parser alone) and `scrape` (all of it), CPU seconds and MB/s. `scrape_bench
//! --page SERIES` prints a page of an app with about so many series; `scrape_bench --dump FILE` prints a
//! page's samples as JSON.

use std::{
    error::Error,
    fmt::Write as _,
    io::{self, Write as _},
};

use enclave_telemetry::bench::Bench;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let (first, second) = (args.next().unwrap_or_default(), args.next().unwrap_or_default());
    if first == "--page" {
        io::stdout().write_all(page(second.parse()?)?.as_bytes())?;
        return Ok(());
    }
    if first == "--dump" {
        let page = std::fs::read_to_string(&second)?;
        let bench = Bench::new(page.trim_end().ends_with("# EOF"));
        io::stdout().write_all(bench.dump(&page)?.as_bytes())?;
        return Ok(());
    }
    let page = std::fs::read_to_string(&first)?;
    let times: u32 = second.parse()?;
    let mut bench = Bench::new(page.trim_end().ends_with("# EOF"));
    let megabytes = page.len() as f64 * f64::from(times) / 1e6;
    let begun = cpu()?;
    let mut samples = 0;
    for _ in 0..times {
        samples = bench.parse(&page)?;
    }
    let parse = cpu()? - begun;
    let begun = cpu()?;
    let mut last = None;
    for n in 0..times {
        last = Some(bench.pass(&page, 1_700_000_000_000_000_000 + u64::from(n) * 15_000_000_000)?);
    }
    let scrape = cpu()? - begun;
    let mut out = io::stdout();
    writeln!(out, "page bytes={} samples={samples} times={times}", page.len())?;
    writeln!(out, "parse cpu_seconds={parse:.3} mb_per_second={:.0}", megabytes / parse)?;
    writeln!(out, "scrape cpu_seconds={scrape:.3} mb_per_second={:.0}", megabytes / scrape)?;
    if let Some(pass) = last {
        let each = 1e3 * scrape / f64::from(times);
        writeln!(out, "each milliseconds={each:.2} points={} gzip_bytes={}", pass.points, pass.bytes)?;
    }
    Ok(())
}

/// CPU time of this process's one thread, in seconds.
fn cpu() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/self/schedstat")?;
    let nanos: u64 = text.split_whitespace().next().unwrap_or_default().parse()?;
    Ok(nanos as f64 / 1e9)
}

/// Half counters, a quarter gauges, a quarter histograms with ten buckets, as a web app has them.
fn page(series: usize) -> Result<String> {
    let mut out = String::new();
    let per = series / 4;
    let paths = ["/", "/login", "/api/v1/items", "/api/v1/items/{id}", "/api/v1/orders", "/healthz"];
    writeln!(
        out,
        "# HELP http_requests_total Requests that were answered.\n# TYPE http_requests_total counter"
    )?;
    for n in 0..2 * per {
        let (path, code) = (paths[n % paths.len()], 200 + n % 7);
        let value = n * 7919 % 1_000_003;
        writeln!(
            out,
            "http_requests_total{{method=\"GET\",path=\"{path}\",code=\"{code}\",tenant=\"t{n}\"}} {value}"
        )?;
    }
    writeln!(out, "# HELP queue_depth Jobs that wait.\n# TYPE queue_depth gauge")?;
    for n in 0..per {
        writeln!(out, "queue_depth{{queue=\"q{n}\",priority=\"{}\"}} {}.{}", n % 3, n % 97, n % 10)?;
    }
    writeln!(out, "# HELP request_seconds Time to answer.\n# TYPE request_seconds histogram")?;
    for n in 0..per / 13 {
        let labels = format!("path=\"{}\",tenant=\"t{n}\"", paths[n % paths.len()]);
        let mut count = 0;
        for (k, le) in
            ["0.005", "0.01", "0.025", "0.05", "0.1", "0.25", "0.5", "1", "2.5", "5"].iter().enumerate()
        {
            count += (n * 31 + k * 17) % 100;
            writeln!(out, "request_seconds_bucket{{{labels},le=\"{le}\"}} {count}")?;
        }
        writeln!(out, "request_seconds_bucket{{{labels},le=\"+Inf\"}} {}", count + n % 5)?;
        writeln!(out, "request_seconds_sum{{{labels}}} {}.5", count * 3)?;
        writeln!(out, "request_seconds_count{{{labels}}} {}", count + n % 5)?;
    }
    Ok(out)
}
