//! Targets over real sockets: what is asked for, what is made of it, and what a target that misbehaves costs.

use std::{io::Write as _, sync::Arc, time::Duration};

use flate2::{Compression, write::GzEncoder};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::timeout,
};

use super::*;
use crate::scrape::{
    Scraper,
    fake::{Answer, App},
    ports,
};

/// Every wait of these tests; each takes a few hundred milliseconds.
const PATIENCE: Duration = Duration::from_secs(20);

/// A scraper of one target that runs.
struct Running {
    requests: mpsc::Receiver<String>,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
    _identity: watch::Sender<Option<Identity>>,
}

/// Runs a job with the app as its only target; `job` has further lines.
fn run(app: &App, job: &str) -> Running {
    let (port, job) = (app.port(), job.replace('\n', "\n  "));
    let text = format!(
        "scrape_configs:\n- job_name: app\n  scrape_interval: 100ms\n  static_configs: [{{targets: ['localhost:{port}']}}]\n  {job}\n"
    );
    let config =
        enclave_protocol::scrape::parse(&text, &enclave_protocol::scrape::Context::default()).unwrap();
    let ports = Some(ports(&format!("web={port}")));
    let (scraper, errors) = Scraper::new(&config, &ports, std::path::Path::new("/nonexistent"));
    assert_eq!((scraper.targets(), errors), (1, vec![]));
    let (identity, told) = watch::channel(Identity::of(&sample(1)));
    let (sender, requests) = mpsc::channel(1000);
    let sink: super::super::Sink = Arc::new(move |_, request| {
        // A test that has seen enough does not read on.
        sender.try_send(text_of(&request)).ok();
    });
    let stop = watch::Sender::new(false);
    let mut tasks = JoinSet::new();
    let stopped = stop.clone();
    tasks.spawn(scraper.run(told, sink, move || {
        let mut stopped = stopped.subscribe();
        async move {
            stopped.wait_for(|stop| *stop).await.ok();
        }
    }));
    Running { requests, stop, tasks, _identity: identity }
}

/// A request as lines `metric{own labels} value`.
fn text_of(request: &Encoded) -> String {
    let export = decode(request);
    let mut out = String::new();
    for metric in export.resource_metrics.iter().flat_map(|r| &r.scope_metrics).flat_map(|s| &s.metrics) {
        let mut text = String::new();
        points(metric.data.as_ref().unwrap(), &mut text);
        for line in text.lines() {
            let (line, end) = (line.trim(), line.ends_with("END"));
            let value = line.rsplit('}').next().unwrap_or_default().trim();
            let value = value.split(' ').next().unwrap_or_default();
            writeln!(out, "{} {}", metric.name, if end { "END" } else { value }).unwrap();
        }
    }
    out
}

impl Running {
    /// The next request with `word` in it.
    async fn with(&mut self, word: &str) -> String {
        let find = async {
            loop {
                let text = self.requests.recv().await.unwrap();
                if text.contains(word) {
                    return text;
                }
            }
        };
        timeout(PATIENCE, find).await.unwrap_or_else(|_| panic!("no {word:?} came"))
    }

    async fn stop(mut self) -> String {
        while self.requests.try_recv().is_ok() {}
        self.stop.send_replace(true);
        timeout(PATIENCE, self.tasks.join_next()).await.unwrap();
        let mut rest = String::new();
        while let Ok(text) = self.requests.try_recv() {
            rest.push_str(&text);
        }
        rest
    }
}

#[tokio::test]
async fn a_target_is_asked_as_prometheus_asks_over_one_connection() {
    let app = App::start().await;
    app.show("a 1\n");
    let job = "metrics_path: /probe\nparams: {module: [http, 'a b']}\nscrape_timeout: 100ms\nbasic_auth: {username: u, password: p}";
    let mut running = run(&app, job);
    for _ in 0..3 {
        running.with("a 1").await;
    }
    let request = app.last_request();
    let first = request.lines().next().unwrap();
    assert_eq!(first, "GET /probe?module=http&module=a%20b HTTP/1.1");
    for header in [
        &format!("host: localhost:{}", app.port()),
        "accept-encoding: gzip",
        "x-prometheus-scrape-timeout-seconds: 0.1",
        "authorization: Basic dTpw",
        "accept: application/openmetrics-text;version=1.0.0",
        "user-agent: enclave-telemetry/",
    ] {
        assert!(request.to_lowercase().contains(&header.to_lowercase()), "{header}: {request}");
    }
    assert_eq!(app.connections(), 1);
    running.stop().await;
}

#[tokio::test]
async fn each_scrape_tells_of_itself_and_what_is_gone_ends() {
    let app = App::start().await;
    app.show("a 1\nb 2\nb 3\n");
    let mut running =
        run(&app, "metric_relabel_configs: [{source_labels: [__name__], regex: b, action: drop}]");
    let text = running.with("a 1").await;
    for line in [
        "up 1",
        "scrape_samples_scraped 3",
        "scrape_samples_post_metric_relabeling 1",
        "scrape_series_added 1",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    app.show("c 1\n");
    let text = running.with("c 1").await;
    assert!(text.contains("a END") && text.contains("scrape_series_added 1"), "{text}");
    let text = running.with("c 1").await;
    assert!(!text.contains("END") && text.contains("scrape_series_added 0"), "{text}");
    let last = running.stop().await;
    for name in ["c", "up", "scrape_duration_seconds", "scrape_series_added"] {
        assert!(last.contains(&format!("{name} END")), "{name}: {last}");
    }
    assert!(!last.contains("a END"), "{last}");
}

#[tokio::test]
async fn a_scrape_that_fails_ends_all_series_once_and_says_down() {
    let app = App::start().await;
    let mut running = run(&app, "");
    let long = format!("a{{b=\"{}\"}} 1\n", "x".repeat(1 << 20));
    let not_utf8: &[u8] = b"a{b=\"\xff\"} 1\n";
    for (status, headers, body) in [
        (500, "", &b"a 1\n"[..]),
        (302, "Location: http://localhost:1/\r\n", b""),
        (200, "", b"a 1\nbroken"),
        (200, "", not_utf8),
        (200, "", long.as_bytes()),
        (200, "Content-Encoding: gzip\r\n", b"no gzip"),
        (200, "Content-Encoding: br\r\n", b"a 1\n"),
        (200, "Content-Type: application/openmetrics-text\r\n", b"a 1\n"),
    ] {
        app.show("a 1\n");
        running.with("a 1").await;
        app.answer(status, headers, body);
        let text = running.with("up 0").await;
        assert!(text.contains("a END"), "{status} {headers}: {text}");
        let text = running.with("up 0").await;
        assert!(!text.contains("a END"), "{status} {headers}: {text}");
    }
    running.stop().await;
}

#[tokio::test]
async fn a_packed_page_is_unpacked_within_its_limit() {
    let app = App::start().await;
    let packed = |page: &[u8]| {
        let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
        gzip.write_all(page).unwrap();
        gzip.finish().unwrap()
    };
    let mut running = run(&app, "body_size_limit: 1MB");
    app.answer(200, "Content-Encoding: gzip\r\n", &packed(b"a 1\n"));
    running.with("a 1").await;
    let bomb = packed(&b"#\n".repeat(50 << 20));
    assert!(bomb.len() < 1 << 20);
    app.answer(200, "Content-Encoding: gzip\r\n", &bomb);
    running.with("up 0").await;
    running.stop().await;
}

#[tokio::test]
async fn a_target_that_never_finishes_costs_its_timeout_and_no_more() {
    for answer in [Answer::Silence, Answer::Trickle, Answer::Endless] {
        let app = App::start().await;
        app.show("a 1\n");
        let mut running = run(&app, "scrape_timeout: 100ms\nbody_size_limit: 1MB");
        running.with("a 1").await;
        app.set(answer.clone());
        let text = running.with("up 0").await;
        assert!(text.contains("a END"), "{answer:?}: {text}");
        app.show("a 1\n");
        running.with("up 1").await;
        // A stop does not wait for a scrape.
        app.set(answer);
        let asked = app.requests();
        while app.requests() == asked {
            tokio::task::yield_now().await;
        }
        running.stop().await;
    }
}

#[tokio::test]
async fn a_target_that_closes_its_connections_is_asked_over_new_ones() {
    let app = App::start().await;
    app.answer(200, "Connection: close\r\n", b"a 1\n");
    let mut running = run(&app, "");
    for _ in 0..3 {
        running.with("up 1").await;
    }
    running.stop().await;
}

#[test]
fn targets_are_planned_by_their_labels_and_ports() {
    let plan = |job: &str, known: Option<&str>| {
        let config = config(job);
        let (planned, errors) =
            super::super::plan::plan(&config, &known.map(ports), std::path::Path::new("/none"));
        let mut out: Vec<String> = planned
            .iter()
            .map(|p| {
                format!("{} {} {:?} {:?}", p.labels.job, p.labels.target, p.labels.plugin, p.labels.labels)
            })
            .collect();
        out.extend(errors);
        out.join("\n")
    };
    let two = "static_configs: [{targets: ['localhost:8001', '127.0.0.1:8002'], labels: {team: t}}]";
    expect_test::expect![[r#"
        app localhost:8001 Some("web") {"team": "t"}
        app 127.0.0.1:8002 Some("db") {"team": "t"}"#]]
    .assert_eq(&plan(two, Some("web=8001,db=8002")));
    let rules = format!(
        "{two}\nrelabel_configs:
- {{source_labels: [__address__], regex: '.*:8001', action: keep}}
- {{source_labels: [__address__], regex: '(.*):.*', target_label: __address__, replacement: '$1:8002'}}
- {{source_labels: [team], target_label: instance}}
- {{target_label: job, replacement: other}}"
    );
    expect_test::expect![[r#"other t Some("db") {"team": "t"}"#]]
        .assert_eq(&plan(&rules, Some("web=8001,db=8002")));
    expect_test::expect!["job app: localhost:8001: no other plugin declares the port 8002"]
        .assert_eq(&plan(&rules, Some("web=8001")));
    let outside =
        format!("{two}\nrelabel_configs: [{{target_label: __address__, replacement: '10.0.0.1:80'}}]");
    expect_test::expect![[
        r#"job app: "10.0.0.1:80" is an address outside of loopback: targets are plugins' ports or names"#
    ]]
    .assert_eq(&plan(&outside, None));
    let twins = format!("{two}\nrelabel_configs: [{{target_label: instance, replacement: same}}]");
    expect_test::expect![[r#"
        app same None {"team": "t"}
        job app: 127.0.0.1:8002: another target has the same labels"#]]
    .assert_eq(&plan(&twins, None));
}

#[tokio::test]
async fn a_name_that_no_outbound_connection_allows_is_not_dialled() {
    let text = "scrape_configs: [{job_name: app, scrape_interval: 100ms, static_configs: [{targets: ['metrics.example.com:80']}]}]";
    let config =
        enclave_protocol::scrape::parse(text, &enclave_protocol::scrape::Context::default()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let hosts = dir.path().join("hosts");
    let job = &config.jobs[0];
    let address = enclave_protocol::scrape::Address::parse("metrics.example.com:80", 80).unwrap();
    for (line, message) in [
        ("127.0.0.1 localhost\n", "no outboundConnection allows metrics.example.com"),
        ("10.0.0.1 metrics.example.com\n", "no outboundConnection allows metrics.example.com"),
    ] {
        std::fs::write(&hosts, line).unwrap();
        let (scheme, path) = (enclave_protocol::scrape::Scheme::Http, "/metrics".to_owned());
        let fetcher = super::super::fetch::Fetcher::new(address.clone(), scheme, path, job, hosts.clone());
        let error = fetcher.unwrap().fetch().await.unwrap_err();
        assert!(error.to_string().starts_with(message), "{error}");
    }
}
