//! A real FastAPI with `prometheus_client` and the OpenTelemetry SDK in the enclave, by the vendor's
//! manifest: its request counter is right in Prometheus across a restart, and its traces and logs have the
//! deployment's identity.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use crate::{
    arrived::{self, Item},
    backend::{Backend, Ports, Way},
    deployment::{Deployment, Plan, Python},
    network::Network,
    patience::eventually,
    process::{command_line, descendants, kill_9},
    programs::{at_hand, program},
    prometheus::Prometheus,
};

/// The deployment and the enclave.
const NAME: &str = "requests";
const INSTANCE: &str = "requests-0";
/// Requests before the restart and again after it, one every [`PACE`].
const REQUESTS: u32 = 200;
const PACE: Duration = Duration::from_millis(100);
/// A window that has the whole of a test in it.
const ALL: &str = "10m";
const RATE_WINDOW_SECONDS: u32 = 15;
/// How far the told rate may be from the true one. The page's samples have the time at which Prometheus
/// asked, up to two seconds after the app's own page was read, and the window holds two or three of them; by
/// OTLP they have the time of the reading, a second apart.
const APART_BY_PAGE_MAX: f64 = 0.25;
const APART_BY_OTLP_MAX: f64 = 0.1;
const SCRAPES: &str = "\
scrape_configs:
- job_name: app
  scrape_interval: 1s
  static_configs:
  - targets: [\"127.0.0.1:8001\"]
";

fn plan() -> Plan {
    let env = [
        "OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4318",
        "OTEL_SERVICE_NAME=app",
        "OTEL_METRIC_EXPORT_INTERVAL=1000",
        "OTEL_BSP_SCHEDULE_DELAY=500",
        "OTEL_BLRP_SCHEDULE_DELAY=500",
    ];
    let python = Python {
        root: program("fastapi").unwrap(),
        program: include_str!("fastapi/app.py"),
        env: env.map(str::to_owned).to_vec(),
        scrape_configs: SCRAPES,
    };
    Plan { python: Some(python), ..Plan::new(NAME, INSTANCE) }
}

/// Sends the requests of these numbers at the pace; how many there were in a second.
fn drive(enclave: &Deployment, numbers: std::ops::Range<u32>) -> f64 {
    let start = Instant::now();
    let count = numbers.len();
    for (sent, number) in (1..).zip(numbers) {
        let answer = enclave.ask("GET", &format!("/work?number={number}"));
        assert_eq!((answer.status, answer.text()), (200, format!("{{\"number\":{number}}}")));
        // The pace is time itself: there is nothing to wait for.
        thread::park_timeout((start + PACE * sent).saturating_duration_since(Instant::now()));
    }
    f64::from(u32::try_from(count).unwrap()) / start.elapsed().as_secs_f64()
}

/// Drives one half of the requests, and looks at the rate meanwhile and at the count afterwards.
fn check_half(enclave: &Deployment, prometheus: Prometheus, numbers: std::ops::Range<u32>, apart_max: f64) {
    let last = numbers.end;
    let sent = drive(enclave, numbers);
    let told = prometheus.number(&format!("rate(app_requests_total[{RATE_WINDOW_SECONDS}s])")).unwrap();
    eprintln!("{told:.2} requests a second by Prometheus, {sent:.2} sent");
    assert!((told / sent - 1.0).abs() < apart_max, "{told} requests a second told, {sent} sent");
    prometheus.until("app_requests_total", |count| count.to_bits() == f64::from(REQUESTS).to_bits());
    prometheus.until(&format!("sum(last_over_time(app_handled_total[{ALL}]))"), |count| {
        count.to_bits() == f64::from(last).to_bits()
    });
}

/// The app's own process, as the test sees it.
fn app(enclave: &Deployment) -> i32 {
    let is_app = |pid: &i32| {
        let words = command_line(*pid);
        words[0].ends_with("python") && words.iter().any(|word| word == "/app/uvicorn_runner.py")
    };
    eventually("the app's process", || descendants(enclave.enclave.pid).into_iter().find(is_app))
}

/// The counter of `prometheus_client` over the restart, and whose it is.
fn check_counter(prometheus: Prometheus) {
    let values = prometheus.values(&format!("app_requests_total[{ALL}]"));
    let resets: Vec<f64> = values.windows(2).filter(|pair| pair[1] < pair[0]).map(|pair| pair[0]).collect();
    let half = f64::from(REQUESTS);
    assert_eq!((values[0], values.last(), &resets[..]), (0.0, Some(&half), &[half][..]), "{values:?}");

    // Prometheus extrapolates by at most a little more than one interval between samples at each end.
    let increase = prometheus.number(&format!("increase(app_requests_total[{ALL}])")).unwrap();
    let intervals = f64::from(u32::try_from(values.len() - 1).unwrap());
    let range = 2.0 * half..=2.0 * half * (1.0 + 2.2 / intervals);
    eprintln!("increase {increase:.1} of {} requests, {intervals} intervals", 2 * REQUESTS);
    assert!(range.contains(&increase), "{increase} is not in {range:?}: {values:?}");

    let series = &prometheus.query("app_requests_total")[0];
    let identity = [
        ("oblv_deployment_name", NAME),
        ("ned_name", NAME),
        ("namespace", "default"),
        ("plugin", "fastapi"),
        ("scrape_job", "app"),
        ("scrape_target", "127.0.0.1:8001"),
        ("instance", INSTANCE),
    ];
    for (label, expected) in identity {
        assert_eq!(series.label(label), expected, "{label}: {series:?}");
    }
    let up = prometheus.values(&format!("up{{scrape_job=\"app\"}}[{ALL}]"));
    assert_eq!(up.last(), Some(&1.0), "{up:?}");
}

/// The OpenTelemetry SDK's own counter: a series for each of the app's two processes.
fn check_sdk_counter(prometheus: Prometheus) {
    let series = prometheus.query(&format!("last_over_time(app_handled_total[{ALL}])"));
    let processes: BTreeSet<&str> = series.iter().map(|series| series.label("exported_instance")).collect();
    assert_eq!((series.len(), processes.len(), processes.contains("")), (2, 2, false), "{series:#?}");
    for series in &series {
        assert_eq!(
            (series.label("oblv_deployment_name"), series.label("instance"), series.label("job")),
            (NAME, INSTANCE, "default/app"),
            "{series:?}"
        );
        assert_eq!(series.value.to_bits(), f64::from(REQUESTS).to_bits(), "{series:?}");
    }
}

/// The spans and the log records of the app by the number of the request, each of them with the identity.
fn by_number(items: Vec<Item>, number: impl Fn(&Item) -> Option<u32>) -> BTreeMap<u32, String> {
    let mut found = BTreeMap::new();
    for item in items {
        let Some(number) = number(&item) else { continue };
        let identity = [
            ("oblv_deployment_name", NAME),
            ("ned_name", NAME),
            ("namespace", "default"),
            ("service.namespace", "default"),
            ("service.instance.id", INSTANCE),
            ("service.name", "app"),
            ("telemetry.sdk.language", "python"),
        ];
        for (name, expected) in identity {
            assert_eq!(item.resource.get(name).map(String::as_str), Some(expected), "{name}: {item:#?}");
        }
        let trace = item.fields["traceId"].as_str().unwrap().to_owned();
        assert!(found.insert(number, trace).is_none(), "twice: {item:#?}");
    }
    found
}

fn spans(file: &Path) -> BTreeMap<u32, String> {
    by_number(arrived::spans(file), |span| {
        assert_eq!(span.fields["name"], "work", "{span:#?}");
        span.fields["attributes"][0]["value"]["intValue"].as_str()?.parse().ok()
    })
}

fn log_records(file: &Path) -> BTreeMap<u32, String> {
    by_number(arrived::log_records(file), |record| {
        record.fields["body"]["stringValue"].as_str()?.strip_prefix("request ")?.parse().ok()
    })
}

/// Waits until the spans and the log records of so many requests have arrived, and holds them together.
fn check_traces_and_logs(backend: &Backend, count: u32) {
    let file = backend.arrived();
    let all = |found: &BTreeMap<u32, String>| found.len() == usize::try_from(count).unwrap();
    let spans = eventually("all spans", || Some(spans(&file)).filter(all));
    let records = eventually("all log records", || Some(log_records(&file)).filter(all));
    assert!(spans.keys().copied().eq(0..count), "{:?}", spans.keys());
    assert_eq!(spans, records, "each log record is in the trace of its request");
}

fn check(way: Way, rate_apart_max: f64) {
    if !at_hand(&["otelcol", "prometheus", "fastapi"]) {
        return;
    }
    let has_collector = way != Way::Otlp;
    let _network = Network::enter_new();
    let directory = tempfile::tempdir().unwrap();
    let backend = Backend::start_with_all_signals(way, Ports(10_000), directory.path());
    let prometheus = backend.prometheus;
    let enclave = Deployment::start(&plan(), &backend);
    // The counter is known before the first request, so that nothing is counted before its first sample.
    prometheus.until("app_requests_total", |count| count == 0.0);
    prometheus.until("up{scrape_job=\"app\"}", |up| up > 0.0);

    check_half(&enclave, prometheus, 0..REQUESTS, rate_apart_max);
    if has_collector {
        check_traces_and_logs(&backend, REQUESTS);
    }
    let first = app(&enclave);
    kill_9(first);
    prometheus.until("app_requests_total", |count| count == 0.0);
    assert_ne!(app(&enclave), first);
    assert_eq!(enclave.enclave.plugin("fastapi").restarts, 1);

    check_half(&enclave, prometheus, REQUESTS..2 * REQUESTS, rate_apart_max);
    if has_collector {
        check_traces_and_logs(&backend, 2 * REQUESTS);
    }
    check_counter(prometheus);
    check_sdk_counter(prometheus);
}

#[test]
fn a_real_fastapi_has_the_right_rate_across_a_restart_and_its_traces_and_logs_have_the_identity() {
    check(Way::Page, APART_BY_PAGE_MAX);
}

#[test]
fn a_real_fastapi_has_the_right_rate_across_a_restart_by_prometheus_otlp_receiver() {
    check(Way::Otlp, APART_BY_OTLP_MAX);
}
