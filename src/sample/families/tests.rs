use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use enclave_protocol::{
    control::{LastExit, PluginPhase, PluginStatus, ProbeKind, ProbeStatus},
    metrics::{Family, Point, catalogue},
    timestamp::Timestamp,
};
use expect_test::{Expect, expect};

use super::*;
use crate::{
    sample::{
        plugin::{Detail, Names, Numbers},
        system::Memory,
    },
    sys::cgroup::{self, Limits, MemoryEvents, Pressure, Throttling},
};

fn check(families: &[Family], expected: &Expect) {
    let mut text = String::new();
    for family in families {
        let entry = catalogue::find(&family.name).unwrap_or_else(|| panic!("{} is unknown", family.name));
        for point in &family.points {
            let unknown = point.labels.keys().find(|label| !entry.labels.contains(label));
            assert_eq!(unknown, None, "{}", family.name);
            // The plugin's name stands in two labels.
            let labels: Vec<&str> =
                point.labels.iter().filter(|(key, _)| *key != "k8s.container.name").map(|(_, v)| v).collect();
            writeln!(text, "{} {} {}", family.name, labels.join(" "), point.value).unwrap();
        }
    }
    expected.assert_eq(&text);
}

fn status(phase: PluginPhase, reason: Option<&str>) -> PluginStatus {
    PluginStatus {
        name: "a".into(),
        phase,
        reason: reason.map(str::to_owned),
        ready: true,
        restarts: 3,
        pid: Some(1),
        last_exit: None,
        next_restart: None,
        since: Timestamp(0),
        message: None,
        oom_kills: 0,
        probes: Vec::new(),
    }
}

fn exit(code: Option<i32>, signal: Option<i32>, oom: bool) -> LastExit {
    LastExit { code, signal, oom, error: None, time: Timestamp(0) }
}

#[test]
fn the_enclave_is_a_node_and_has_no_cpu_use_before_the_second_reading() {
    let cpu = Cpu { user: 60, system: 20, idle: 300, iowait: 10, steal: 1 };
    let memory = Memory { total: 1000, free: 300, available: 600, inactive_file: 100, anonymous: 200 };
    let now = Reading {
        cpu,
        cpus: 4,
        memory,
        page_faults: Some(9),
        pressure: [Some(Pressure { some: Duration::from_secs(2), full: None }), None, None],
        root: Some(Space { capacity: 50, available: 40, used: 10 }),
        uptime: Some(Duration::from_millis(1500)),
        ..Reading::default()
    };
    let first = Cpu { user: 10, ..Cpu::default() };
    assert_eq!(system(&now, first, None)[0].points, []);
    check(
        &system(&now, first, Some(0.5)),
        &expect![[r#"
        nitro_enclave_cpu_usage  0.5
        nitro_enclave_memory_usage  0.4
        enclave_memory_available_bytes  600
        enclave_memory_total_bytes  1000
        k8s.node.cpu.time  0.71
        k8s.node.cpu.usage  2
        k8s.node.memory.usage  700
        k8s.node.memory.working_set  600
        k8s.node.memory.available  400
        k8s.node.memory.rss  200
        k8s.node.memory.page_faults  9
        k8s.node.filesystem.available  40
        k8s.node.filesystem.capacity  50
        k8s.node.filesystem.usage  10
        k8s.node.uptime  1.5
        system.cpu.time user 0.5
        system.cpu.time system 0.2
        system.cpu.time idle 3
        system.cpu.time iowait 0.1
        system.cpu.time steal 0.01
        enclave_pressure_seconds_total cpu some 2
    "#]],
    );
}

#[test]
fn bytes_into_the_enclave_are_what_comes_in_and_what_is_answered_to_plugins() {
    let family = |entry: &Entry, values: &[f64]| {
        let point =
            |(index, value): (usize, &f64)| Point::labelled([("plugin", &*index.to_string())], *value);
        entry.family(values.iter().enumerate().map(point).collect())
    };
    let streams = [
        family(&relay::INGRESS_SENT, &[1.0, 2.0]),
        family(&relay::INGRESS_RECEIVED, &[10.0]),
        family(&relay::INGRESS_BROKEN, &[]),
        family(&relay::EGRESS_SENT, &[100.0]),
        family(&relay::EGRESS_RECEIVED, &[1000.0]),
        family(&relay::EGRESS_BROKEN, &[7.0]),
    ];
    check(
        &network(&streams)[..2],
        &expect![[r#"
        k8s.node.network.io receive vsock 1003
        k8s.node.network.io transmit vsock 110
        k8s.node.network.errors receive vsock 0
        k8s.node.network.errors transmit vsock 7
    "#]],
    );
    assert!(network(&[]).iter().all(|family| family.points.is_empty()));
}

fn numbers() -> Numbers {
    Numbers {
        reading: cgroup::Reading {
            cpu: Some(Duration::from_secs(5)),
            memory: Some(4096),
            inactive_file: Some(1024),
            anonymous: Some(2048),
            page_faults: Some(8),
            major_page_faults: Some(1),
            pids: Some(3),
            memory_events: MemoryEvents { max: Some(4), oom_kill: Some(1), ..MemoryEvents::default() },
            throttling: Some(Throttling { periods: 9, throttled: 2, time: Duration::from_millis(30) }),
            pressure: [
                None,
                Some(Pressure { some: Duration::from_millis(7), full: Some(Duration::from_millis(5)) }),
                None,
            ],
        },
        limits: Limits { cpu_millis: Some(500), memory_bytes: Some(8192), pids: None },
        cpu_usage: Some(0.25),
        threads: Some(2),
        uptime: Some(Duration::from_mins(1)),
        oom_kills: 1,
        detail: Detail {
            processes: Some(1),
            open_files: Some(7),
            space: Some(Space { capacity: 100, available: 70, used: 30 }),
        },
    }
}

#[test]
fn a_plugin_in_a_crash_loop_shows_its_last_exit_its_probes_and_its_output() {
    let probe = |kind, failures| ProbeStatus { kind, passing: None, failures, message: None };
    let status = PluginStatus {
        last_exit: Some(exit(None, Some(9), true)),
        probes: vec![probe(ProbeKind::Startup, 0), probe(ProbeKind::Readiness, 4)],
        ..status(PluginPhase::BackingOff, Some("CrashLoopBackOff"))
    };
    let names = Names::of("a");
    let plugin = Plugin { status: &status, names: &names, numbers: numbers() };
    let logs = [("a".to_owned(), Totals { bytes: 7, records: 1, dropped: 2, rate_limited: 1 })].into();
    check(
        &plugins(&[plugin], &logs),
        &expect![[r#"
        container.cpu.time a 5
        container.cpu.usage a 0.25
        container.filesystem.usage a 30
        container.filesystem.available a 70
        container.filesystem.capacity a 100
        container.uptime a 60
        container.memory.usage a 4096
        container.memory.working_set a 3072
        container.memory.available a 5120
        container.memory.rss a 2048
        container.memory.page_faults a 8
        container.memory.major_page_faults a 1
        k8s.container.restart.count a 3
        k8s.container.ready a 1
        k8s.container.status.state waiting a 1
        k8s.container.status.state running a 0
        k8s.container.status.state terminated a 0
        k8s.container.status.reason ContainerCreating a 0
        k8s.container.status.reason CrashLoopBackOff a 1
        k8s.container.status.reason OOMKilled a 0
        k8s.container.status.reason Completed a 0
        k8s.container.status.reason Error a 0
        k8s.container.status.reason ContainerCannotRun a 0
        k8s.container.cpu.limit.current a 0.5
        k8s.container.memory.limit.current a 8192
        k8s.container.cpu_limit_utilization a 0.5
        k8s.container.memory_limit_utilization a 0.5
        enclave_plugin_up a 0
        enclave_plugin_ready a 1
        enclave_plugin_restarts_total a 3
        enclave_plugin_crash_loop a 1
        enclave_plugin_probe_failures a startup 0
        enclave_plugin_probe_failures a readiness 4
        enclave_plugin_last_exit_code a 137
        enclave_plugin_oom_kills_total a 1
        enclave_plugin_threads a 2
        enclave_plugin_processes a 1
        enclave_plugin_open_files a 7
        enclave_plugin_memory_events_total max a 4
        enclave_plugin_memory_events_total oom_kill a 1
        enclave_plugin_cpu_periods_total a 9
        enclave_plugin_cpu_throttled_periods_total a 2
        enclave_plugin_cpu_throttled_seconds_total a 0.03
        enclave_plugin_pressure_seconds_total a memory some 0.007
        enclave_plugin_pressure_seconds_total a memory full 0.005
        enclave_plugin_log_bytes_total a 7
        enclave_plugin_log_dropped_total a 2
        enclave_plugin_log_rate_limited_total a 1
    "#]],
    );
}

#[test]
fn the_pod_is_the_sum_and_what_is_not_known_of_a_plugin_is_no_zero() {
    let status = status(PluginPhase::Running, None);
    let names = Names::of("a");
    let bare =
        Numbers { reading: cgroup::Reading { memory: Some(4), ..Default::default() }, ..Numbers::default() };
    let plugin = |numbers| Plugin { status: &status, names: &names, numbers };
    let root = Some(Space { capacity: 1000, available: 900, used: 100 });
    check(
        &pod(&[plugin(numbers()), plugin(numbers())], root, Duration::from_secs(9)),
        &expect![[r#"
        k8s.pod.cpu.time  10
        k8s.pod.cpu.usage  0.5
        k8s.pod.memory.usage  8192
        k8s.pod.memory.working_set  6144
        k8s.pod.memory.available  10240
        k8s.pod.memory.rss  4096
        k8s.pod.memory.page_faults  16
        k8s.pod.memory.major_page_faults  2
        k8s.pod.filesystem.available  900
        k8s.pod.filesystem.capacity  1000
        k8s.pod.filesystem.usage  60
        k8s.pod.uptime  9
    "#]],
    );
    check(
        &pod(&[plugin(numbers()), plugin(bare)], None, Duration::from_secs(9)),
        &expect![[r#"
        k8s.pod.cpu.time  5
        k8s.pod.cpu.usage  0.25
        k8s.pod.memory.usage  4100
        k8s.pod.memory.working_set  3076
        k8s.pod.memory.rss  2048
        k8s.pod.memory.page_faults  8
        k8s.pod.memory.major_page_faults  1
        k8s.pod.filesystem.usage  30
        k8s.pod.uptime  9
    "#]],
    );
    check(
        &plugins(&[plugin(Numbers::default())], &BTreeMap::new()),
        &expect![[r#"
        k8s.container.restart.count a 3
        k8s.container.ready a 1
        k8s.container.status.state waiting a 0
        k8s.container.status.state running a 1
        k8s.container.status.state terminated a 0
        k8s.container.status.reason ContainerCreating a 0
        k8s.container.status.reason CrashLoopBackOff a 0
        k8s.container.status.reason OOMKilled a 0
        k8s.container.status.reason Completed a 0
        k8s.container.status.reason Error a 0
        k8s.container.status.reason ContainerCannotRun a 0
        enclave_plugin_up a 1
        enclave_plugin_ready a 1
        enclave_plugin_restarts_total a 3
        enclave_plugin_crash_loop a 0
        enclave_plugin_oom_kills_total a 0
        enclave_plugin_log_bytes_total a 0
        enclave_plugin_log_dropped_total a 0
        enclave_plugin_log_rate_limited_total a 0
    "#]],
    );
}

#[test]
fn a_plugin_has_the_state_and_the_reason_that_a_container_would_have() {
    let shown = |phase, reason: Option<&str>, last_exit| {
        let status = PluginStatus { last_exit, ..status(phase, reason) };
        let names = Names::of("a");
        let plugin = Plugin { status: &status, names: &names, numbers: Numbers::default() };
        let families = plugins(&[plugin], &BTreeMap::new());
        let on = |entry: &Entry| {
            let family = families.iter().find(|family| family.name == entry.name).unwrap();
            let on = family.points.iter().filter(|point| point.value > 0.5);
            on.map(|point| point.labels[entry.labels[2]].to_owned()).collect::<Vec<_>>().join(" ")
        };
        let (state, reason) =
            (on(&catalogue::container::STATUS_STATE), on(&catalogue::container::STATUS_REASON));
        format!("{state}: {reason}")
    };
    let oom = Some(exit(None, Some(9), true));
    assert_eq!(shown(PluginPhase::Waiting, Some("StartOrder"), None), "waiting: ContainerCreating");
    assert_eq!(shown(PluginPhase::Starting, None, None), "waiting: ContainerCreating");
    assert_eq!(shown(PluginPhase::Running, Some("CrashLoopBackOff"), oom.clone()), "running: ");
    assert_eq!(shown(PluginPhase::BackingOff, Some("OOMKilled"), oom.clone()), "waiting: OOMKilled");
    assert_eq!(shown(PluginPhase::BackingOff, Some("CrashLoopBackOff"), oom), "waiting: CrashLoopBackOff");
    assert_eq!(shown(PluginPhase::Completed, Some("Completed"), None), "terminated: Completed");
    let failed = Some(exit(Some(3), None, false));
    assert_eq!(shown(PluginPhase::Failed, Some("RestartsSpent"), failed.clone()), "terminated: Error");
    assert_eq!(shown(PluginPhase::Stopped, None, failed), "terminated: Error");
    let unstarted = Some(LastExit { error: Some("ENOENT".to_owned()), ..exit(None, None, false) });
    assert_eq!(shown(PluginPhase::Failed, Some("StartError"), unstarted), "terminated: ContainerCannotRun");
}
