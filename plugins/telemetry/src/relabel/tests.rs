//! What comes out carries the identity, and costs no more than its bytes.

use opentelemetry_proto::tonic::{
    collector::{logs::v1::ExportLogsServiceRequest, trace::v1::ExportTraceServiceRequest},
    logs::v1::{LogRecord, ResourceLogs, ScopeLogs},
    metrics::v1::{
        ExponentialHistogram, ExponentialHistogramDataPoint, Gauge, Histogram, HistogramDataPoint,
        NumberDataPoint, ResourceMetrics, ScopeMetrics, Sum, Summary, SummaryDataPoint,
    },
    trace::v1::{ResourceSpans, ScopeSpans, Span},
};

use enclave_protocol::metrics::prometheus;
use proptest::prelude::*;

use super::*;
use crate::{
    fake::sample,
    intake::{self, Form},
    otlp,
    signal::Signal,
};

fn identity() -> Identity {
    Identity::of(&sample(1)).unwrap()
}

fn resource(attributes: &[(&str, &str)]) -> Resource {
    let attributes = attributes.iter().map(|(key, value)| text(key, value)).collect();
    Resource { attributes, ..Resource::default() }
}

fn export(attributes: &[(&str, &str)], metrics: Vec<Metric>) -> Export {
    Export {
        resource_metrics: vec![ResourceMetrics {
            resource: Some(resource(attributes)),
            scope_metrics: vec![ScopeMetrics { metrics, ..ScopeMetrics::default() }],
            ..ResourceMetrics::default()
        }],
    }
}

fn gauge(name: &str, unit: &str, attributes: Vec<KeyValue>) -> Metric {
    let point = NumberDataPoint { attributes, ..NumberDataPoint::default() };
    let data = Some(Data::Gauge(Gauge { data_points: vec![point] }));
    Metric { name: name.to_owned(), unit: unit.to_owned(), data, ..Metric::default() }
}

#[test]
fn every_type_of_point_gets_the_identity_and_keeps_its_own_values_as_exported() {
    let attributes = vec![
        text("instance", "mine"),
        text("oblv:deployment:name", "evil"),
        text("plugin", "other"),
        text("le", "1"),
    ];
    let a = || attributes.clone();
    let number = || NumberDataPoint { attributes: a(), ..Default::default() };
    let metric = |name: &str, data| Metric { name: name.to_owned(), data: Some(data), ..Metric::default() };
    let mut export = export(
        &[],
        vec![
            metric("g", Data::Gauge(Gauge { data_points: vec![number()] })),
            metric("s", Data::Sum(Sum { data_points: vec![number()], ..Default::default() })),
            metric(
                "h",
                Data::Histogram(Histogram {
                    data_points: vec![HistogramDataPoint { attributes: a(), ..Default::default() }],
                    ..Default::default()
                }),
            ),
            metric(
                "e",
                Data::ExponentialHistogram(ExponentialHistogram {
                    data_points: vec![ExponentialHistogramDataPoint {
                        attributes: a(),
                        ..Default::default()
                    }],
                    ..Default::default()
                }),
            ),
            metric(
                "q",
                Data::Summary(Summary {
                    data_points: vec![SummaryDataPoint { attributes: a(), ..Default::default() }],
                }),
            ),
        ],
    );
    metrics(&mut export, &identity()).unwrap();
    assert_eq!(otlp::count(&export), 5);
    for metric in &mut export.resource_metrics[0].scope_metrics[0].metrics {
        let le = if ["h", "e"].contains(&metric.name.as_str()) { "exported_le" } else { "le" };
        for attributes in attributes_mut(metric) {
            let keys: Vec<_> = attributes.iter().map(|a| a.key.as_str()).collect();
            assert_eq!(
                keys,
                [
                    "exported_instance",
                    "exported_oblv:deployment:name",
                    "exported_plugin",
                    le,
                    "namespace",
                    "ned_name",
                    "oblv_deployment_name"
                ]
            );
        }
    }
}

#[test]
fn an_apps_resource_keeps_its_service_name_and_nothing_else_that_is_ours() {
    let own =
        [("service.name", "app"), ("service.instance.id", "me"), ("ned.name", "x"), ("k8s.pod.name", "p")];
    let mut export = export(&own, vec![gauge("g", "", vec![])]);
    metrics(&mut export, &identity()).unwrap();
    expect_test::expect![[r#"
        resource exported_k8s.pod.name=p,exported_ned.name=x,exported_service.instance.id=me,namespace=default,ned_name=hello,oblv_deployment_name=hello,service.instance.id=i-1,service.name=app,service.namespace=default
        scope @
        g gauge unit=""
          {exported_instance=me,namespace=default,ned_name=hello,oblv_deployment_name=hello} None 0..0 flags=0
    "#]]
    .assert_eq(&otlp::show(&export));
}

#[test]
fn an_app_cannot_send_the_headline_metric() {
    for (name, unit, expected) in [
        ("nitro.enclave.cpu_usage", "", ("exported_nitro.enclave.cpu_usage", "")),
        ("nitro", "enclave_cpu_usage", ("exported_nitro", "")),
        ("", "nitro_enclave_cpu_usage", ("exported_", "")),
        ("k8s.node.memory.usage", "By", ("exported_k8s.node.memory.usage", "By")),
        ("http.requests", "{request}", ("http.requests", "{request}")),
    ] {
        let mut export = export(&[("service.name", "hello")], vec![gauge(name, unit, vec![])]);
        metrics(&mut export, &identity()).unwrap();
        let metric = &export.resource_metrics[0].scope_metrics[0].metrics[0];
        assert_eq!((metric.name.as_str(), metric.unit.as_str()), expected, "{name} {unit}");
    }
}

#[test]
fn duplicate_keys_and_too_many_attributes_are_refused() {
    let twice = vec![text("a", "1"), text("a", "2")];
    let mut bad = export(&[], vec![gauge("g", "", twice)]);
    assert!(matches!(metrics(&mut bad, &identity()), Err(IntakeError::Duplicate)));
    let mut bad = export(&[("a", "1"), ("a", "1")], vec![gauge("g", "", vec![])]);
    assert!(matches!(metrics(&mut bad, &identity()), Err(IntakeError::Duplicate)));
    for (count, fits) in [(ATTRIBUTES_MAX, true), (ATTRIBUTES_MAX + 1, false)] {
        let many = (0..count).map(|n| text(&format!("k{n}"), "v")).collect();
        let mut export = export(&[], vec![gauge("g", "", many)]);
        assert_eq!(metrics(&mut export, &identity()).is_ok(), fits);
    }
    // The key that took the cube of its number: T4 of the review.
    let cube = (0..3000).map(|_| text("instance", "x")).collect();
    let mut bad = export(&[], vec![gauge("g", "", cube)]);
    assert!(matches!(metrics(&mut bad, &identity()), Err(IntakeError::Attributes)));
}

#[test]
fn a_chain_of_taken_names_is_followed_once() {
    let chain = (0..ATTRIBUTES_MAX).map(|n| text(&format!("{}instance", "exported_".repeat(n)), "x"));
    let mut export = export(&[], vec![gauge("g", "", chain.collect())]);
    metrics(&mut export, &identity()).unwrap();
    let Some(Data::Gauge(gauge)) = &export.resource_metrics[0].scope_metrics[0].metrics[0].data else {
        panic!()
    };
    let keys: HashSet<_> = gauge.data_points[0].attributes.iter().map(|a| &a.key).collect();
    assert_eq!(keys.len(), ATTRIBUTES_MAX + 3);
    assert!(keys.contains(&format!("{}instance", "exported_".repeat(ATTRIBUTES_MAX))));
}

#[test]
fn what_has_no_items_costs_the_collector_nothing() {
    let empty = ResourceMetrics::default();
    let mut export = export(&[], vec![gauge("g", "", vec![]), Metric::default()]);
    export.resource_metrics.extend(std::iter::repeat_n(empty, 90_000));
    export.resource_metrics[0].scope_metrics.push(ScopeMetrics::default());
    metrics(&mut export, &identity()).unwrap();
    assert_eq!(export.resource_metrics.len(), 1);
    assert_eq!(export.resource_metrics[0].scope_metrics.len(), 1);
    assert_eq!(export.resource_metrics[0].scope_metrics[0].metrics.len(), 1);

    let mut logs = logs(&[("host.name", "h")]);
    logs.resource_logs[0].scope_logs.push(ScopeLogs::default());
    logs.resource_logs.extend(std::iter::repeat_n(ResourceLogs::default(), 90_000));
    let out = groups(&logs.encode_to_vec(), &identity()).unwrap();
    let out = ExportLogsServiceRequest::decode(out.as_slice()).unwrap();
    assert_eq!((out.resource_logs.len(), out.resource_logs[0].scope_logs.len()), (1, 1));
}

fn logs(attributes: &[(&str, &str)]) -> ExportLogsServiceRequest {
    let record = LogRecord { severity_text: "INFO".to_owned(), ..LogRecord::default() };
    let scope = ScopeLogs { log_records: vec![record], schema_url: "s".to_owned(), ..ScopeLogs::default() };
    let resource_logs = vec![ResourceLogs {
        resource: Some(resource(attributes)),
        scope_logs: vec![scope],
        schema_url: "r".to_owned(),
    }];
    ExportLogsServiceRequest { resource_logs }
}

#[test]
fn logs_and_traces_get_the_identity_on_the_resource_and_are_the_same_otherwise() {
    let mut logs = logs(&[("service.name", "app"), ("namespace", "other")]);
    let out = groups(&logs.encode_to_vec(), &identity()).unwrap();
    let mut out = ExportLogsServiceRequest::decode(out.as_slice()).unwrap();
    let shown: Vec<_> =
        out.resource_logs[0].resource.take().unwrap().attributes.into_iter().map(|a| a.key).collect();
    let keys = [
        "service.name",
        "exported_namespace",
        "namespace",
        "ned_name",
        "oblv_deployment_name",
        "service.namespace",
        "service.instance.id",
    ];
    assert_eq!(shown, keys);
    logs.resource_logs[0].resource = None;
    assert_eq!(out, logs);

    let span = Span { trace_id: vec![1; 16], span_id: vec![2; 8], name: "GET".to_owned(), ..Span::default() };
    let scope = ScopeSpans { spans: vec![span], ..ScopeSpans::default() };
    let spans = ResourceSpans { scope_spans: vec![scope], ..ResourceSpans::default() };
    let traces = ExportTraceServiceRequest { resource_spans: vec![spans] };
    let out = groups(&traces.encode_to_vec(), &identity()).unwrap();
    let mut out = ExportTraceServiceRequest::decode(out.as_slice()).unwrap();
    let resource = out.resource_spans[0].resource.take().unwrap();
    assert!(resource.attributes.contains(&text("service.name", "hello")));
    assert_eq!(out, traces);
}

/// A message in field `number` of another one.
fn within(number: u32, content: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    encode_key(number, WireType::LengthDelimited, &mut out);
    encode_varint(content.len() as u64, &mut out);
    out.extend_from_slice(content);
    out
}

/// The bodies that the bounds allow, filled up with one kind of message.
fn largest() -> Vec<(&'static str, Signal, Vec<u8>)> {
    let frame = |fields: &[u32], content: Vec<u8>| fields.iter().fold(content, |c, field| within(*field, &c));
    let fill = |message: Vec<u8>| message.repeat((BODY_BYTES_MAX - 100) / message.len());
    let short = |message: Vec<u8>, count: usize| message.repeat(count);
    let attribute = |key: &str| within(1, key.as_bytes());
    // One resource with one point, and up to the body's length of something in it.
    let keys = |number: u32, count: usize, width: usize| {
        let keys = (0..count).map(|n| within(number, &attribute(&format!("{n:0width$}instance."))));
        keys.collect::<Vec<_>>().concat()
    };
    vec![
        ("empty resources", Signal::Metrics, short(within(1, b""), 99_990)),
        ("empty scopes", Signal::Metrics, frame(&[1], short(within(2, b""), 99_990))),
        ("empty metrics", Signal::Metrics, frame(&[2, 1], short(within(2, b""), 99_990))),
        ("empty points", Signal::Metrics, frame(&[5, 2, 2, 1], short(within(1, b""), 10_000))),
        ("points with a label", Signal::Metrics, {
            let point = within(1, &within(7, &attribute("instance")));
            frame(&[5, 2, 2, 1], short(point, 10_000))
        }),
        ("points of many metrics", Signal::Metrics, {
            let metric = within(2, &[within(1, b"nitro"), within(5, &within(1, b""))].concat());
            frame(&[2, 1], short(metric, 10_000))
        }),
        ("labels of one point", Signal::Metrics, frame(&[1, 5, 2, 2, 1], keys(7, 128, 30_000))),
        ("too many labels of one point", Signal::Metrics, frame(&[1, 5, 2, 2, 1], keys(7, 50_000, 8))),
        ("resource attributes", Signal::Logs, {
            let resource = within(1, &keys(1, 128, 30_000));
            frame(&[1], [resource, within(2, &within(2, b""))].concat())
        }),
        ("log records", Signal::Logs, frame(&[2, 1], short(within(2, b""), 10_000))),
        ("resources of logs", Signal::Logs, short(within(1, &within(2, &within(2, b""))), 10_000)),
        ("a long log record", Signal::Logs, frame(&[5, 2, 2, 1], fill(within(1, b"x")))),
        ("spans", Signal::Traces, {
            let span = within(2, &[within(1, &[1; 16]), within(2, &[1; 8])].concat());
            frame(&[2, 1], short(span, 10_000))
        }),
        ("events of a span", Signal::Traces, {
            let ids = [within(1, &[1; 16]), within(2, &[1; 8])].concat();
            frame(&[2, 2, 1], [ids, short(within(11, b""), 99_990)].concat())
        }),
    ]
}

/// T4 and T5 of the review. The limit is generous: the fault took minutes for a hundredth of it.
#[test]
fn the_largest_bodies_take_no_time_and_no_room() {
    let identity = identity();
    for (name, signal, body) in largest() {
        assert!(body.len() <= BODY_BYTES_MAX, "{name}: {}", body.len());
        let begun = tokio::time::Instant::now();
        let result = intake::check(&body, false, Form::Protobuf, signal).and_then(|request| match signal {
            Signal::Metrics => {
                let mut export = intake::decode(&request)?;
                metrics(&mut export, &identity)?;
                Ok(export.encode_to_vec())
            }
            Signal::Logs | Signal::Traces => groups(&request.bytes, &identity),
        });
        let took = begun.elapsed();
        match result {
            Ok(out) => assert!(out.len() <= BODY_BYTES_MAX, "{name}: {}", out.len()),
            Err(IntakeError::TooLarge | IntakeError::TooMany | IntakeError::Attributes) => {}
            Err(error) => panic!("{name}: {error}"),
        }
        assert!(took.as_secs() < 10, "{name}: {took:?}");
    }
}

#[test]
fn what_the_identity_adds_is_bounded_before_it_is_there() {
    // Twenty bytes each, two hundred with the identity.
    let many = (0..10_000).map(|n| gauge(&format!("metric_{n}"), "", vec![])).collect();
    let long = [("service.instance.id", "i".repeat(1000))];
    let long: Vec<(&str, &str)> = long.iter().map(|(key, value)| (*key, value.as_str())).collect();
    let mut export = export(&long, many);
    assert!(export.encoded_len() < BODY_BYTES_MAX / 10);
    assert!(matches!(metrics(&mut export, &identity()), Err(IntakeError::TooLarge)));
}

/// Keys made of the words of our labels and of what readers fold away.
fn keys() -> impl Strategy<Value = Vec<String>> {
    let piece = prop::sample::select(vec![
        "oblv",
        "deployment",
        "name",
        "ned",
        "namespace",
        "instance",
        "job",
        "plugin",
        "service",
        "id",
        "exported",
        "_",
        ".",
        ":",
        "-",
        "__",
        "k8s",
        "pod",
        "a",
    ]);
    let key = prop::collection::vec(piece, 1..6).prop_map(|pieces| pieces.concat());
    prop::collection::btree_set(key, 0..6).prop_map(|keys| keys.into_iter().collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// Readers join the values of attributes that become one label: ours must be alone.
    #[test]
    fn every_label_of_the_identity_is_there_once_with_our_value(on_resource in keys(), on_point in keys()) {
        let app = |keys: &[String]| keys.iter().map(|key| text(key, "forged")).collect::<Vec<_>>();
        let mut export = export(&[], vec![gauge("g", "", app(&on_point))]);
        export.resource_metrics[0].resource.as_mut().unwrap().attributes = app(&on_resource);
        metrics(&mut export, &identity()).unwrap();
        let group = &mut export.resource_metrics[0];
        let resource = &group.resource.as_ref().unwrap().attributes;
        let point = &*attributes_mut(&mut group.scope_metrics[0].metrics[0])[0];
        prop_assert!(resource.len() >= on_resource.len() && point.len() >= on_point.len(), "nothing is lost");
        let ours = [("oblv_deployment_name", "hello"), ("ned_name", "hello"), ("namespace", "default")];
        let made = [("service_instance_id", "i-1"), ("service_namespace", "default")];
        for (attributes, labels) in [(resource, &ours[..]), (point, &ours[..]), (resource, &made[..])] {
            for (label, value) in labels {
                let same: Vec<_> = attributes.iter().filter(|a| prometheus::label_name(&a.key) == *label).collect();
                prop_assert_eq!(same.len(), 1, "{}: {:?}", label, attributes);
                prop_assert_eq!(same[0].value.clone(), text("", value).value);
            }
        }
        for label in ["instance", "job", "plugin"] {
            prop_assert!(!point.iter().any(|a| prometheus::label_name(&a.key) == label), "{label}: {point:?}");
        }
    }
}
