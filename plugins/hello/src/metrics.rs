//! Counters, as Prometheus text.

use std::{
    fmt::Write as _,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// What is counted. One per process, shared by all requests.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    /// By path; paths are the known ones only, so that a client cannot make series.
    requests: Mutex<std::collections::BTreeMap<&'static str, u64>>,
    burn_micros: AtomicU64,
}

impl Metrics {
    /// Counts a request.
    pub(crate) fn request(&self, path: &'static str) {
        *self.requests.lock().unwrap_or_else(PoisonError::into_inner).entry(path).or_default() += 1;
    }

    /// Counts CPU time burnt on purpose.
    pub(crate) fn burnt(&self, time: Duration) {
        self.burn_micros.fetch_add(u64::try_from(time.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Prometheus text exposition format 0.0.4.
    pub(crate) fn to_prometheus(&self, held_bytes: usize, uptime: Duration) -> String {
        let mut text = String::from(
            "# HELP hello_requests_total Requests by path\n# TYPE hello_requests_total counter\n",
        );
        for (path, count) in &*self.requests.lock().unwrap_or_else(PoisonError::into_inner) {
            // Writing to a String cannot fail.
            writeln!(text, "hello_requests_total{{path=\"{path}\"}} {count}").ok();
        }
        let burnt = Duration::from_micros(self.burn_micros.load(Ordering::Relaxed)).as_secs_f64();
        for (name, kind, help, value) in [
            ("hello_burn_seconds_total", "counter", "CPU time burnt by /work", burnt),
            ("hello_memory_held_bytes", "gauge", "Memory held by /alloc", held_bytes as f64),
            ("hello_uptime_seconds", "gauge", "Time since the start", uptime.as_secs_f64()),
        ] {
            writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}").ok();
        }
        text
    }
}
