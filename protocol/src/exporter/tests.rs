//! Tests of addresses and variables.

use super::*;

fn url(text: &str) -> String {
    match Url::base(text) {
        Ok(url) => format!("{} {} {} {:?} tls={}", url.host, url.port, url.authority, url.path, url.tls),
        Err(error) => error,
    }
}

#[test]
fn a_base_url_has_a_host_a_port_and_perhaps_a_path() {
    assert_eq!(url("http://collector:4318"), "collector 4318 collector:4318 \"\" tls=false");
    assert_eq!(url("https://c.example/otlp/"), "c.example 443 c.example \"/otlp\" tls=true");
    assert_eq!(url("http://[::1]:4318/"), "::1 4318 [::1]:4318 \"\" tls=false");
    assert_eq!(url("http://[::1]"), "::1 80 [::1] \"\" tls=false");
    assert_eq!(url("http://c/t@x"), "c 80 c \"/t@x\" tls=false", "a path may have an @");
}

#[test]
fn a_bad_url_is_refused_with_its_reason_and_without_its_password() {
    for (text, reason) in [
        ("collector:4318", "begins with http:// or https://"),
        ("ftp://collector", "begins with http:// or https://"),
        ("", "begins with http:// or https://"),
        ("http://", "no valid host"),
        ("http://:4318", "no valid host"),
        ("http://[::1", "no valid host"),
        ("http://[x]:1", "no valid host"),
        ("http://a:b:1", "no valid host"),
        ("http://127.0.0.1:99999", "no valid port"),
        ("http://127.0.0.1:", "no valid port"),
        ("http://127.0.0.1:0", "no valid port"),
        ("http://127.0.0.1:+1", "no valid port"),
        ("http://c:4318/?a=b", "no query"),
        ("http://c:4318#f", "no query"),
        ("http://c:4318/a b", "space"),
        ("http://user:secret@c", "user name or password"),
        ("http://c:4318/v1/metrics", "write the URL without /v1/metrics"),
        ("http://c:4318/otlp/v1/traces/", "write the URL without /v1/traces"),
        ("http://c/v1/logs", "write the URL without /v1/logs"),
    ] {
        let error = Url::base(text).unwrap_err();
        assert!(error.contains(reason), "{text}: {error}");
        assert!(!error.contains("secret"), "{error}");
    }
}

fn take(name: &str, value: &str) -> Result<Settings, String> {
    let mut settings = Settings::default();
    settings.take(name, value).map(|()| settings)
}

#[test]
fn headers_are_decoded_and_their_values_are_shown_nowhere() {
    let settings =
        take("OTEL_EXPORTER_OTLP_HEADERS", "Authorization=Bearer%20s3cr3t, x-scope-orgid = 7").unwrap();
    let headers = settings.headers.of(1).unwrap();
    let expected = [("authorization", "Bearer s3cr3t"), ("x-scope-orgid", "7")];
    assert_eq!(headers.0, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    assert!(!format!("{settings:?}").contains("s3cr3t"));
    for bad in ["s3cr3t", "a=%zz-s3cr3t", "a b=s3cr3t", "a=s3cr3t%0d%0ax: y", "host=s3cr3t", "=s3cr3t"] {
        let error = take("OTEL_EXPORTER_OTLP_HEADERS", bad).unwrap_err();
        assert!(!error.contains("s3cr3t"), "{error}");
    }
    let many = "a=1,".repeat(PAIRS_MAX + 1);
    assert!(headers_of(&many).is_err());
    assert_eq!(headers_of("a=1\nb=2\n").unwrap().0.len(), 2, "a file may have lines");
}

fn headers_of(text: &str) -> Result<Headers, String> {
    headers(text)
}

#[test]
fn a_signals_variable_replaces_the_common_one() {
    let mut settings = Settings::default();
    settings.take("OTEL_EXPORTER_OTLP_TIMEOUT", "2000").unwrap();
    settings.take("OTEL_EXPORTER_OTLP_LOGS_TIMEOUT", "3000").unwrap();
    settings.take("OTEL_EXPORTER_OTLP_COMPRESSION", "none").unwrap();
    settings.take("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://c/api/v1/otlp/v1/metrics").unwrap();
    let seconds = [0, 1, 2].map(|signal| settings.timeout.of(signal).unwrap().as_secs());
    assert_eq!(seconds, [2, 3, 2]);
    assert_eq!(settings.gzip.of(2), Some(&false));
    assert_eq!(settings.endpoint.of(0).unwrap().path, "/api/v1/otlp/v1/metrics");
    assert_eq!(settings.endpoint.of(1), None);
}

#[test]
fn every_standard_variable_is_obeyed_or_refused() {
    for (name, value) in [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
        ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "gzip"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/etc/ca.pem"),
        ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "Cumulative"),
        ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=prod,team=a%2Cb"),
        ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", ""),
        ("EXPORTER_URL", "others'"),
    ] {
        assert!(take(name, value).is_ok(), "{name}");
    }
    for (name, value) in [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318/v1/metrics"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "http/json"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "0"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "60001"),
        ("OTEL_EXPORTER_OTLP_LOGS_CERTIFICATE", "/etc/ca.pem"),
        ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "/key"),
        ("OTEL_EXPORTER_OTLP_INSECURE", "true"),
        ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "delta"),
        ("OTEL_EXPORTER_OTLP_TEMPORALITY_PREFERENCE", "cumulative"),
        ("OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION", "x"),
        ("OTEL_EXPORTER_OTLP_FUTURE", "x"),
        ("OTEL_SERVICE_NAME", "x"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "1"),
        ("OTEL_SDK_DISABLED", "true"),
        ("OTEL_RESOURCE_ATTRIBUTES", "oblv.deployment.name=x"),
        ("OTEL_RESOURCE_ATTRIBUTES", "service.instance.id=x"),
        ("OTEL_RESOURCE_ATTRIBUTES", "=x"),
    ] {
        assert!(take(name, value).is_err(), "{name}={value}");
    }
}
