//! Where log records go, and that the digest knows.

use std::collections::BTreeSet;

use enclave_protocol::control::{Files, LogRoute};
use enclave_protocol::digest::{canonical_json, digest};
use enclave_protocol::manifest::Context;
use expect_test::expect;

use crate::{check, outcome, parsed, with_spec};

/// A manifest with a telemetry plugin that sends, fields of `spec.logs`, of telemetry and of the plugin `a`.
fn with_logs(logs: &str, telemetry: &str, a: &str) -> String {
    with_url("https", logs, telemetry, a)
}

fn with_url(scheme: &str, logs: &str, telemetry: &str, a: &str) -> String {
    with_spec(&format!(
        "logs: {{{logs}}}
plugins:
  telemetry:
    env: [{{name: EXPORTER_URL, value: '{scheme}://otel.example:4318'}}]
    outboundConnections: [{{fqdn: otel.example, port: 4318}}]
    {telemetry}
userPlugins:
- {{name: a, image: x, {a}}}
- {{name: b, image: x}}"
    ))
}

/// The routes of `supervisor`, `telemetry`, `a` and `b`.
fn routes(text: &str) -> String {
    let manifest = parsed(text);
    let plugins = manifest.plugins.iter().map(|plugin| plugin.logs);
    let routes: Vec<_> = [manifest.supervisor_logs].into_iter().chain(plugins).map(LogRoute::word).collect();
    routes.join(" ")
}

fn digest_of(text: &str) -> String {
    digest(&parsed(text), &Files::default()).to_string()
}

#[test]
fn a_plugins_own_word_comes_before_the_defaults_and_the_hosts_field_is_the_last_of_them() {
    for (logs, telemetry, a, expected) in [
        ("", "", "", "host host host host"),
        ("host: all", "", "logs: none", "host host none host"),
        ("host: supervisor", "", "", "host none none none"),
        ("host: none", "", "logs: otlp", "none none otlp none"),
        ("host: supervisor", "logs: host", "logs: otlp", "host host otlp none"),
        ("plugins: otlp", "", "logs: host", "host otlp host otlp"),
        ("plugins: otlp, supervisor: otlp", "", "", "otlp otlp otlp otlp"),
        ("host: none, supervisor: host", "", "", "host none none none"),
        ("supervisor: none", "spec: {logs: otlp}", "", "none otlp host host"),
    ] {
        assert_eq!(routes(&with_logs(logs, telemetry, a)), expected, "{logs} {telemetry} {a}");
    }
}

#[test]
fn otlp_wants_a_telemetry_plugin_that_sends() {
    check(
        &with_spec(
            "logs: {plugins: otlp, supervisor: otlp}
plugins: {telemetry: {logs: host}}
userPlugins:
- {name: a, image: x, logs: otlp}
- {name: b, image: x, logs: none}",
        ),
        expect![[r#"
            5:19: spec.logs.plugins: otlp wants spec.plugins.telemetry with EXPORTER_URL in its env: it sends the records
            5:37: spec.logs.supervisor: otlp wants spec.plugins.telemetry with EXPORTER_URL in its env: it sends the records
            8:31: spec.userPlugins[0].logs: otlp wants spec.plugins.telemetry with EXPORTER_URL in its env: it sends the records
        "#]],
    );
    check(
        &with_spec("userPlugins: [{name: a, image: x, logs: otlp}]"),
        expect![[r#"
            5:43: spec.userPlugins[0].logs: otlp wants spec.plugins.telemetry with EXPORTER_URL in its env: it sends the records
        "#]],
    );
}

#[test]
fn a_route_that_is_none_of_the_three_is_named_with_its_place() {
    check(
        &with_spec(
            "logs: {plugins: oltp, supervisor: all, plugin: none}
userPlugins: [{name: a, image: x, logs: {host: none}}]",
        ),
        expect![[r#"
            5:19: spec.logs.plugins: expected one of host, otlp, none, found "oltp"; did you mean otlp?
            5:37: spec.logs.supervisor: expected one of host, otlp, none, found "all"
            5:42: spec.logs.plugin: unknown field "plugin"; did you mean plugins?
            6:43: spec.userPlugins[0].logs: expected a string, found a mapping
        "#]],
    );
}

#[test]
fn whoever_reads_the_status_is_told_whose_records_the_host_does_not_get() {
    let of = |text: &str| outcome(text, &Context::default());
    expect![[r#"
        ok
        LogsByOtlp: log records of supervisor, a are sent by the telemetry plugin; the host gets none of them
    "#]]
    .assert_eq(&of(&with_logs("supervisor: otlp", "", "logs: otlp")));
    expect![[r#"
        ok
        LogsByOtlp: log records of a are sent by the telemetry plugin; the host gets none of them
        LogsInClear: log records leave the enclave in clear, since EXPORTER_URL is not https: the host can read them on their way
    "#]]
    .assert_eq(&of(&with_url("http", "", "", "logs: otlp")));
    assert_eq!(of(&with_url("http", "host: none", "", "logs: none")), "ok\n");
}

#[test]
fn every_choice_has_its_digest_and_a_default_that_is_written_out_has_none_of_its_own() {
    let all = [
        ("", "", ""),
        ("", "", "logs: otlp"),
        ("", "", "logs: none"),
        ("", "logs: otlp", ""),
        ("supervisor: otlp", "", ""),
        ("supervisor: none", "", ""),
        ("plugins: otlp", "", ""),
        ("plugins: none", "", ""),
        ("host: supervisor", "", ""),
        ("host: supervisor", "", "logs: host"),
        ("host: none", "", ""),
        ("host: none, supervisor: host", "", ""),
    ];
    let digests: BTreeSet<String> =
        all.iter().map(|(logs, telemetry, a)| digest_of(&with_logs(logs, telemetry, a))).collect();
    assert_eq!(digests.len(), all.len());
    for (one, other) in [
        (("", "", ""), ("host: all, plugins: host, supervisor: host", "logs: host", "logs: host")),
        (
            ("host: supervisor", "", ""),
            ("host: supervisor, plugins: none, supervisor: host", "", "logs: none"),
        ),
        (("", "logs: host", "logs: otlp"), ("plugins: host", "", "logs: otlp")),
    ] {
        let of = |(logs, telemetry, a): (&str, &str, &str)| digest_of(&with_logs(logs, telemetry, a));
        assert_eq!(of(one), of(other), "{one:?} {other:?}");
    }
}

#[test]
fn the_canonical_text_has_only_what_differs_from_the_hosts_field() {
    let canonical = |text: &str| canonical_json(&parsed(text), &Files::default());
    let text = canonical(&with_logs("supervisor: otlp", "", "logs: otlp"));
    assert!(text.contains(r#""logs":{"host":"all","supervisor":"otlp"}"#), "{text}");
    assert_eq!(text.matches(r#""logs":"otlp""#).count(), 1, "{text}");
    let text = canonical(&with_logs("host: none", "", ""));
    assert_eq!(text.matches("logs").count(), 1, "{text}");
}
