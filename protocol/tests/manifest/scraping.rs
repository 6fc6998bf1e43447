//! The telemetry plugin's `config.yaml` beside the manifest, and by itself.

use std::time::Duration;

use enclave_protocol::control::{FileTree, Files};
use enclave_protocol::manifest::Context;
use enclave_protocol::scrape::{self, Auth, Limits, Scheme};
use expect_test::{Expect, expect};

use crate::{config_maps, outcome, tree, with_spec};

const SPEC: &str = "
outboundConnections: [{fqdn: metrics.example.com, port: 9100}]
userPlugins:
  - {name: web, image: 'web:1', ports: [{containerPort: 8001}]}
plugins:
  telemetry:
    ports: [{containerPort: 4318}]
    volumes:
      - {name: config, containerPath: /etc/oblv, source: {configMap: {name: c}}}";

fn with_config(text: &str, expected: Expect) {
    let files = config_maps(&[("c", "config.yaml", text)]);
    let context = Context { files: Some(&files), ..Context::default() };
    expected.assert_eq(&outcome(&with_spec(SPEC), &context));
}

#[test]
fn mistakes_in_the_scrape_configuration_are_mistakes_of_the_manifest() {
    let job = |targets: &str| {
        format!("scrape_configs:\n- job_name: a\n  static_configs: [{{targets: [{targets}]}}]\n")
    };
    with_config(
        &job("'localhost:8001', '127.0.0.1:8001', 'metrics.example.com:9100'"),
        expect![[r#"
        ok
    "#]],
    );
    with_config(
        &job(
            "'localhost:8002', '[::1]:4318', 'metrics.example.com:9101', 'other.example.com:9100', '169.254.169.254:80'",
        ),
        expect![[r#"
            10:7: spec.plugins.telemetry: config.yaml:3:117: scrape_configs[0].static_configs[0].targets[4]: "169.254.169.254:80" is an address outside of loopback: targets are plugins' ports or names
            10:7: spec.plugins.telemetry: config.yaml:3:31: scrape_configs[0].static_configs[0].targets[0]: no other plugin declares the port 8002
            10:7: spec.plugins.telemetry: config.yaml:3:49: scrape_configs[0].static_configs[0].targets[1]: no other plugin declares the port 4318
            10:7: spec.plugins.telemetry: config.yaml:3:63: scrape_configs[0].static_configs[0].targets[2]: no outboundConnection of the telemetry plugin allows metrics.example.com:9101
            10:7: spec.plugins.telemetry: config.yaml:3:91: scrape_configs[0].static_configs[0].targets[3]: no outboundConnection of the telemetry plugin allows other.example.com:9100
        "#]],
    );
    with_config(
        "remote_write: []\nscrape_config: []\n",
        expect![[r#"
        10:7: spec.plugins.telemetry: config.yaml:1:15: remote_write: remote_write is not supported: everything goes to EXPORTER_URL
        10:7: spec.plugins.telemetry: config.yaml:2:1: scrape_config: unknown field "scrape_config"; did you mean scrape_configs?
    "#]],
    );
}

#[test]
fn a_configuration_from_a_secret_is_checked_and_never_quoted() {
    let spec = SPEC.replace("configMap", "secret");
    let secrets = tree(&[(
        "c",
        "config.yaml",
        "scrape_configs:\n- job_name: a\n  basic_auth: {username: u, passwort: hunter2}\n",
    )]);
    let files = Files { config_maps: FileTree::new(), secrets };
    let context = Context { files: Some(&files), ..Context::default() };
    expect![[r#"
        10:7: spec.plugins.telemetry: config.yaml:3:29: a mistake
    "#]]
    .assert_eq(&outcome(&with_spec(&spec), &context));
}

fn check(text: &str, expected: Expect) {
    let said = match scrape::parse(text, &scrape::Context::default()) {
        Ok(config) => format!("{} jobs\n", config.jobs.len()),
        Err(mistakes) => mistakes.iter().map(|mistake| format!("{mistake}\n")).collect(),
    };
    expected.assert_eq(&said);
}

#[test]
fn a_job_has_prometheus_defaults_and_finite_limits() {
    let config = scrape::parse("scrape_configs: [{job_name: a}]", &scrape::Context::default()).unwrap();
    let job = &config.jobs[0];
    assert_eq!((job.interval, job.timeout), (Duration::from_mins(1), Duration::from_secs(10)));
    assert_eq!((job.scheme, job.path.as_str()), (Scheme::Http, "/metrics"));
    assert_eq!((job.honor_labels, job.honor_timestamps, job.compression), (false, true, true));
    assert_eq!(job.limits, Limits::DEFAULT);
}

#[test]
fn what_global_says_holds_for_jobs_that_say_nothing() {
    let text =
        "global: {scrape_interval: 15s, scrape_timeout: 5s, sample_limit: 7, external_labels: {zone: a}}
scrape_configs:
- {job_name: a}
- {job_name: b, scrape_interval: 3s, sample_limit: 0, body_size_limit: 1MiB}
- {job_name: c, scrape_interval: 1m30s, scrape_timeout: 1m}
";
    let config = scrape::parse(text, &scrape::Context::default()).unwrap();
    let seconds: Vec<_> =
        config.jobs.iter().map(|j| (j.interval.as_secs(), j.timeout.as_secs(), j.limits.samples)).collect();
    assert_eq!(seconds, [(15, 5, 7), (3, 3, 10_000), (90, 60, 7)]);
    assert_eq!(config.jobs[1].limits.body, 1 << 20);
    assert_eq!(config.external_labels["zone"], "a");
}

#[test]
fn credentials_are_read_and_never_shown() {
    let text = "scrape_configs:
- {job_name: a, basic_auth: {username: u, password: $ecret}}
- {job_name: b, authorization: {credentials: hunter2}}
";
    let config = scrape::parse(text, &scrape::Context::default()).unwrap();
    assert_eq!(config.jobs[0].auth, Some(Auth::Basic("u".to_owned(), "$ecret".to_owned())));
    assert_eq!(config.jobs[1].auth, Some(Auth::Token("Bearer".to_owned(), "hunter2".to_owned())));
    let shown = format!("{config:?}");
    assert!(!shown.contains("ecret") && !shown.contains("hunter2"));
}

#[test]
fn every_setting_that_is_not_supported_is_refused_with_its_reason() {
    check(
        "global:
  evaluation_interval: 15s
  scrape_interval: 1
  external_labels: {ned_name: x, 'a-b': y}
remote_write: [{url: x}]
rule_files: []
scrape_configs:
- job_name: a
  kubernetes_sd_configs: [{role: pod}]
  file_sd_configs: []
  proxy_url: http://x
  follow_redirects: true
  bearer_token_file: /x
  basic_auth: {username: u, password_file: /x}
  authorization: {credentials_file: /x}
  tls_config: {insecure_skip_verify: true, cert_file: /x}
  scrape_native_histograms: true
  body_size_limit: 1GB
  sample_limit: 1e3
  scrape_timeout: 2m
  metrics_path: metrics
  scheme: htttp
  metric_relabel_configs:
  - {action: hashmod, source_labels: [a], modulus: 8, target_label: b}
  - {action: replace, target_label: plugin}
  - {action: lowercase}
  - {action: lowercse}
  static_configs:
  - targets: [1, 'http://localhost:80', '10.0.0.1:80']
    labels: {oblv_deployment_name: x, scrape_job: y}
  - labels: {}
- job_name: a
  honor_label: true
",
        expect![[r#"
            2:24: global.evaluation_interval: evaluation_interval is not supported: the plugin evaluates no rules
            3:20: global.scrape_interval: "1" is not a valid duration: 15s, 1m30s, 1h
            4:21: global.external_labels.ned_name: the label ned_name is set by the runtime on every point
            4:34: global.external_labels.a-b: "a-b" is not a valid label name: letters, digits and _
            5:15: remote_write: remote_write is not supported: everything goes to EXPORTER_URL
            6:13: rule_files: rule_files is not supported: the plugin evaluates no rules
            9:3: scrape_configs[0].kubernetes_sd_configs: service discovery is not supported: write static_configs
            10:3: scrape_configs[0].file_sd_configs: service discovery is not supported: write static_configs
            11:14: scrape_configs[0].proxy_url: proxy_url is not supported: targets are in the enclave or allowed by an outbound connection
            12:21: scrape_configs[0].follow_redirects: redirects are not followed: write the final address
            13:22: scrape_configs[0].bearer_token_file: bearer_token_file is not supported: use authorization
            14:44: scrape_configs[0].basic_auth.password_file: password_file is not supported: write the value here and mount this file from a Secret
            15:18: scrape_configs[0].authorization: a job has either basic_auth or authorization
            16:15: scrape_configs[0].tls_config: tls_config without scheme: https has no effect
            16:38: scrape_configs[0].tls_config.insecure_skip_verify: certificates are always verified: name the authority in ca_file
            16:55: scrape_configs[0].tls_config.cert_file: cert_file is not supported: tls_config has ca_file and server_name
            17:29: scrape_configs[0].scrape_native_histograms: scrape_native_histograms is not supported: native histograms and protobuf are not read
            18:20: scrape_configs[0].body_size_limit: 1073741824 is more than the plugin allows: at most 67108864
            19:17: scrape_configs[0].sample_limit: expected a whole number, found the number 1e3
            20:19: scrape_configs[0].scrape_timeout: longer than the scrape_interval of 60s
            21:17: scrape_configs[0].metrics_path: "metrics" is not a valid path: it begins with / and has no blanks
            22:11: scrape_configs[0].scheme: expected one of http, https, found "htttp"; did you mean http?
            24:14: scrape_configs[0].metric_relabel_configs[0].action: the action hashmod is not supported: the plugin is the only one that scrapes
            25:37: scrape_configs[0].metric_relabel_configs[1].target_label: the label plugin is set by the runtime on every point
            26:5: scrape_configs[0].metric_relabel_configs[2]: the field target_label is required for this action
            27:14: scrape_configs[0].metric_relabel_configs[3].action: expected one of replace, keep, drop, keepequal, dropequal, labeldrop, labelkeep, labelmap, lowercase, uppercase, found "lowercse"; did you mean lowercase?
            29:15: scrape_configs[0].static_configs[0].targets[0]: expected host:port, found the number 1; put it in quotes
            29:18: scrape_configs[0].static_configs[0].targets[1]: "http://localhost:80" is not a valid target: write host:port, without scheme and path
            29:41: scrape_configs[0].static_configs[0].targets[2]: "10.0.0.1:80" is an address outside of loopback: targets are plugins' ports or names
            30:14: scrape_configs[0].static_configs[0].labels.oblv_deployment_name: the label oblv_deployment_name is set by the runtime on every point
            30:39: scrape_configs[0].static_configs[0].labels.scrape_job: the label scrape_job is set by the runtime on every point
            31:5: scrape_configs[0].static_configs[1]: the field targets is required
            32:3: scrape_configs[1]: the job_name "a" is already used at scrape_configs[0]
            33:3: scrape_configs[1].honor_label: unknown field "honor_label"; did you mean honor_labels?
        "#]],
    );
}

#[test]
fn a_hostile_configuration_is_refused_in_bounds() {
    check(
        &"scrape_configs: ".repeat(20_000),
        expect![[r#"
        1:1: (document): longer than 262144 bytes
    "#]],
    );
    check(
        "scrape_configs: &a [*a]",
        expect![[r#"
        1:20: scrape_configs: anchors are not supported: write the value out
        1:21: scrape_configs[0]: aliases are not supported: write the value out
    "#]],
    );
    let targets: String = (0..200).map(|n| format!("'localhost:{}',", n + 1)).collect();
    check(
        &format!("scrape_configs: [{{job_name: a, static_configs: [{{targets: [{targets}]}}]}}]"),
        expect![[r#"
        1:59: scrape_configs[0].static_configs[0].targets: 200 items are too many: the limit is 128
    "#]],
    );
}
