//! Beside `node_exporter`: the headline gauges are what its readings of the same machine give.

use std::{
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::{
    backend::{Backend, Ports, Way},
    deployment::{Deployment, Plan},
    network::Network,
    patience::eventually,
    process::Process,
    programs::{at_hand, word},
    web,
};

const PORT: u16 = 9100;
/// The window of CPU time that is compared.
const WINDOW: Duration = Duration::from_secs(30);
/// Between two looks at `node_exporter`.
const LOOK: Duration = Duration::from_millis(200);
const CPU_APART_MAX: f64 = 0.02;
const MEMORY_APART_MAX: f64 = 0.005;
/// Memory moves between two readings that are not of the same moment: the closest of so many counts.
const MEMORY_LOOKS: usize = 20;

/// The sum of a metric's samples on `node_exporter`'s page whose line has this part.
fn sum(page: &str, metric: &str, part: &str) -> f64 {
    let lines = page.lines().filter(|line| line.starts_with(metric) && line.contains(part));
    lines.map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()).sum()
}

/// CPU seconds altogether, and those in which nothing ran.
fn cpu(page: &str) -> (f64, f64) {
    let metric = "node_cpu_seconds_total{";
    (sum(page, metric, ""), sum(page, metric, "mode=\"idle\"") + sum(page, metric, "mode=\"iowait\""))
}

/// The counters at a moment between two looks.
fn between(looks: &[(f64, (f64, f64))], at: f64) -> (f64, f64) {
    let next = looks.partition_point(|(time, _)| *time < at).clamp(1, looks.len() - 1);
    let [(from, a), (to, b)] = [looks[next - 1], looks[next]];
    let part = (at - from) / (to - from);
    (a.0 + (b.0 - a.0) * part, a.1 + (b.1 - a.1) * part)
}

/// Seconds since the epoch, as Prometheus counts.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

#[test]
fn cpu_and_memory_are_those_of_node_exporter_under_the_same_load() {
    if !at_hand(&["otelcol", "prometheus", "node-exporter"]) {
        return;
    }
    let _network = Network::enter_new();
    let words = [
        word("node-exporter"),
        format!("--web.listen-address=127.0.0.1:{PORT}"),
        "--collector.disable-defaults".to_owned(),
        "--collector.cpu".to_owned(),
        "--collector.meminfo".to_owned(),
    ];
    let _node_exporter = Process::start("node_exporter", &words);
    web::until_ok("node_exporter", PORT, "/metrics");
    let page = || web::get(PORT, "/metrics").text();
    let directory = tempfile::tempdir().unwrap();
    let backend = Backend::start(Way::Otlp, Ports(10_000), directory.path());
    let enclave = Deployment::start(&Plan::new("hello-fastapi", "hello-0"), &backend);
    let prometheus = backend.prometheus;
    prometheus.until("nitro_enclave_cpu_usage", |_| true);

    let port = enclave.host_port;
    let half = WINDOW.as_millis() / 2;
    let load = thread::spawn(move || {
        crate::deployment::try_ask(port, "GET", &format!("/work?ms={half}&threads=1")).unwrap();
    });
    // Its counters all the time: the moments of our samples lie between two looks.
    let begun = now();
    let mut looks = vec![(begun, cpu(&page()))];
    while looks.last().is_some_and(|(at, _)| *at < begun + WINDOW.as_secs_f64()) {
        thread::park_timeout(LOOK);
        looks.push((now(), cpu(&page())));
    }
    load.join().unwrap();
    let at =
        |moment: &str| prometheus.number(&format!("timestamp(nitro_enclave_cpu_usage @ {moment})")).unwrap();
    let (before, after) = (at(&(begun + 2.0).to_string()), at(&(begun + WINDOW.as_secs_f64()).to_string()));
    let (first, last) = (between(&looks, before), between(&looks, after));
    let expected = 1.0 - (last.1 - first.1) / (last.0 - first.0);
    let seconds = (after - before - 0.5).floor();
    let told =
        prometheus.number(&format!("avg_over_time(nitro_enclave_cpu_usage[{seconds}s] @ {after})")).unwrap();
    assert!((told - expected).abs() < CPU_APART_MAX, "cpu: {told} told, {expected} by node_exporter");

    let apart = (0..MEMORY_LOOKS).map(|_| {
        let known = prometheus.number("timestamp(nitro_enclave_memory_usage)").unwrap();
        let (told, page) = eventually("a new reading", || {
            let page = page();
            let at = prometheus.number("timestamp(nitro_enclave_memory_usage)")?;
            (at > known).then(|| (prometheus.number("nitro_enclave_memory_usage"), page))
        });
        let expected = 1.0
            - sum(&page, "node_memory_MemAvailable_bytes", "") / sum(&page, "node_memory_MemTotal_bytes", "");
        (told.unwrap() - expected).abs()
    });
    let closest = apart.fold(f64::INFINITY, f64::min);
    assert!(closest < MEMORY_APART_MAX, "memory: {closest} apart");
}
