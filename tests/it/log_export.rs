//! Log records by OTLP, with the real telemetry plugin, host-proxy and a collector: what arrives, what the
//! host sees, and what is left when something in between dies.

use std::collections::BTreeMap;

use serde_json::json;

use crate::{
    enclave::{How, is},
    otlp::LogRecord,
    process::kill_9,
    proxy::Whole,
    scene::{Scene, image},
};

/// Two plugins that write numbered lines until they are told to stop, of which one's go by OTLP.
fn with_writers(manifest: &str) -> String {
    let writer = |name: &str, route: &str| {
        let script = format!(
            "trap 'echo {name} last $n; exit 0' TERM; n=0; while :; do n=$((n+1)); echo {name} line $n; usleep 10000; done"
        );
        format!(
            "    - name: {name}\n      image: {}\n      logs: {route}\n      command: [\"/bin/sh\", \"-c\", {}]\n",
            image(name),
            json!(script)
        )
    };
    let writers = writer("sealed", "otlp") + &writer("open", "host");
    manifest.replace("  plugins:\n", &format!("{writers}  plugins:\n"))
}

fn start() -> Whole {
    let scene = Scene::new();
    scene.busybox("sealed", json!({}));
    scene.busybox("open", json!({}));
    Whole::start_with(scene, How::default(), |manifest| with_writers(&manifest))
}

/// The bodies of the sealed plugin's records, by sequence number: that is how repetitions are removed.
fn lines(records: &[LogRecord]) -> BTreeMap<u64, String> {
    let attribute = |record: &LogRecord, name: &str| record.attributes.get(name).cloned().unwrap_or_default();
    let sealed = records.iter().filter(|record| attribute(record, "plugin") == "sealed");
    sealed
        .map(|record| (attribute(record, "enclave.log.seq").parse().unwrap(), record.body.clone()))
        .collect()
}

/// The lines are numbered from one without a hole, and the last word says how many there are.
fn check_complete(lines: &BTreeMap<u64, String>) {
    let mut bodies: Vec<&str> = lines.values().map(String::as_str).collect();
    let last = bodies.pop().unwrap();
    let expected: Vec<String> = (1..=bodies.len()).map(|number| format!("sealed line {number}")).collect();
    assert_eq!(bodies, expected);
    // The trap may run between a number and its line.
    let told: usize = last.strip_prefix("sealed last ").expect("a last word").parse().unwrap();
    assert!(told == bodies.len() || told == bodies.len() + 1, "{last} after {}", bodies.len());
}

fn until_lines(whole: &mut Whole, more: usize) {
    let now = lines(&whole.collector.log_records()).len();
    whole.collector.until_logs("more lines", |records| (lines(records).len() >= now + more).then_some(()));
}

#[test]
fn a_sealed_plugins_lines_reach_the_collector_and_never_the_host_until_its_last_word() {
    let mut whole = start();
    until_lines(&mut whole, 100);
    let shown = whole.proxy.stdout.wait("the open plugin's lines", |lines| {
        lines.iter().any(|line| line.contains("open line 20")).then(|| lines.to_vec())
    });
    assert!(!shown.iter().any(|line| line.contains("sealed line")), "{shown:#?}");
    let (exit, last, supervisor) = whole.stop();
    assert_eq!((exit.code(), supervisor.code()), (Some(0), Some(0)), "{last:#}");
    assert!(!whole.proxy.stdout.to_end().iter().any(|line| line.contains("sealed line")));
    let records = whole.collector.log_records();
    check_complete(&lines(&records));
    assert_eq!(lines(&records).len(), records.len(), "nothing died, so nothing came twice");
    for record in &records {
        assert_eq!(record.resource["oblv_deployment_name"], "hello-fastapi");
        assert_eq!(record.attributes["k8s.container.name"], "sealed");
        assert_eq!((record.attributes["log.iostream"].as_str(), record.severity), ("stdout", 0));
        assert!(record.time > 0 && record.resource["enclave.boot.id"].len() == 32);
    }
}

#[test]
fn a_telemetry_plugin_that_is_killed_loses_no_line() {
    let mut whole = start();
    for _ in 0..2 {
        until_lines(&mut whole, 50);
        kill_9(whole.enclave.plugin("telemetry").pid.unwrap());
    }
    let again = |event: &_| is(event, "telemetry", "Started") && event.message.contains("restart 2");
    whole.enclave.events().until("another telemetry", again);
    until_lines(&mut whole, 50);
    let (exit, last, _) = whole.stop();
    assert_eq!(exit.code(), Some(0), "{last:#}");
    check_complete(&lines(&whole.collector.log_records()));
}

#[test]
fn lines_wait_while_the_collector_takes_nothing_and_arrive_once_it_does() {
    let mut whole = start();
    until_lines(&mut whole, 20);
    whole.collector.refuse(true);
    whole.collector.until_refused(3);
    whole.collector.refuse(false);
    until_lines(&mut whole, 100);
    let (exit, last, _) = whole.stop();
    assert_eq!(exit.code(), Some(0), "{last:#}");
    check_complete(&lines(&whole.collector.log_records()));
}
