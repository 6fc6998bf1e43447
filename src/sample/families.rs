//! Turns readings into metric families. Pure: data in, families out.

use std::{collections::BTreeMap, sync::atomic::Ordering, time::Duration};

use enclave_protocol::{
    control::{PluginPhase, PluginStatus},
    metrics::{CPU_USAGE, Family, MEMORY_AVAILABLE, MEMORY_TOTAL, MEMORY_USAGE, Point},
};

use super::{
    process::Usage,
    system::{Cpu, Reading},
};
use crate::{control::board::Refusals, engine::Reason, logs::ring::Totals};

/// `/proc/stat` counts in 1/100 s, whatever the kernel's own tick is.
const TICKS_PER_SECOND: f64 = 100.0;

/// The two headline metrics and what they are made from. `first` is the reading at the supervisor's start,
/// `before` the last one.
pub fn system(now: &Reading, first: Cpu, before: Option<Cpu>) -> Vec<Family> {
    let usage = before.and_then(|before| now.cpu.usage_since(before));
    let modes = [
        ("user", now.cpu.user, first.user),
        ("system", now.cpu.system, first.system),
        ("idle", now.cpu.idle, first.idle),
        ("iowait", now.cpu.iowait, first.iowait),
        ("steal", now.cpu.steal, first.steal),
    ];
    let seconds = modes.map(|(mode, now, first)| {
        Point::labelled([("mode", mode)], now.saturating_sub(first) as f64 / TICKS_PER_SECOND)
    });
    vec![
        Family::gauge(
            CPU_USAGE,
            "Share of CPU time used over all cores since the last sample, 0.0-1.0",
            usage.map(Point::bare).into_iter().collect(),
        ),
        Family::gauge(
            MEMORY_USAGE,
            "1 - MemAvailable/MemTotal, 0.0-1.0, the in-memory file system included",
            vec![Point::bare(now.memory_usage())],
        ),
        Family::gauge(
            MEMORY_AVAILABLE,
            "MemAvailable of /proc/meminfo",
            vec![Point::bare(now.memory_available as f64)],
        ),
        Family::gauge(MEMORY_TOTAL, "MemTotal of /proc/meminfo", vec![Point::bare(now.memory_total as f64)]),
        Family::counter("enclave_cpu_seconds_total", "CPU time of all cores by mode", seconds.to_vec()),
    ]
}

/// What is known of one plugin at the time of a sample.
#[derive(Debug, Clone)]
pub struct Plugin {
    /// Its status.
    pub status: PluginStatus,
    /// What its processes use, when it runs.
    pub usage: Option<Usage>,
    /// CPU time of its processes that are gone.
    pub cpu_gone: Duration,
    /// Runs that the out-of-memory killer ended.
    pub oom_kills: u64,
}

/// One family per reading, one point per plugin, and per probe where it is one.
pub fn plugins(plugins: &[Plugin], logs: &BTreeMap<String, Totals>) -> Vec<Family> {
    let mut families = usage(plugins);
    families.extend(life(plugins));
    families.extend(output(plugins, logs));
    families
}

fn usage(plugins: &[Plugin]) -> Vec<Family> {
    let each = |value: &dyn Fn(&Plugin) -> Option<f64>| each(plugins, value);
    vec![
        Family::counter(
            "enclave_plugin_cpu_seconds_total",
            "CPU time of the plugin's processes over all its runs",
            each(&|plugin| {
                let living = plugin.usage.map_or(Duration::ZERO, |usage| usage.cpu);
                Some((living + plugin.cpu_gone).as_secs_f64())
            }),
        ),
        Family::gauge(
            "enclave_plugin_memory_bytes",
            "Resident memory of the plugin's processes",
            each(&|plugin| Some(plugin.usage.map_or(0, |usage| usage.memory) as f64)),
        ),
        Family::gauge(
            "enclave_plugin_processes",
            "Processes of the plugin",
            each(&|plugin| Some(plugin.usage.map_or(0, |usage| usage.processes) as f64)),
        ),
    ]
}

fn life(plugins: &[Plugin]) -> Vec<Family> {
    let each = |value: &dyn Fn(&Plugin) -> Option<f64>| each(plugins, value);
    let flag = |is: bool| Some(f64::from(u8::from(is)));
    let crash_loop = Some(Reason::CrashLoopBackOff.as_str());
    vec![
        Family::gauge(
            "enclave_plugin_up",
            "1 while the plugin's process runs",
            each(&|plugin| flag(plugin.status.phase == PluginPhase::Running)),
        ),
        Family::gauge(
            "enclave_plugin_ready",
            "1 while the plugin counts as ready",
            each(&|plugin| flag(plugin.status.ready)),
        ),
        Family::counter(
            "enclave_plugin_restarts_total",
            "Restarts since the manifest was accepted",
            each(&|plugin| Some(plugin.status.restarts.into())),
        ),
        Family::gauge(
            "enclave_plugin_crash_loop",
            "1 while the plugin counts as crashing again and again: CrashLoopBackOff",
            each(&|plugin| flag(plugin.status.reason.as_deref() == crash_loop)),
        ),
        Family::gauge(
            "enclave_plugin_probe_failures",
            "Failures in a row of the plugin's probe",
            plugins.iter().flat_map(probe_failures).collect(),
        ),
        Family::gauge(
            "enclave_plugin_last_exit_code",
            "Exit code of the last run; 128 + the signal's number where one ended it",
            each(&|plugin| exit_code(&plugin.status).map(f64::from)),
        ),
        Family::counter(
            "enclave_plugin_oom_kills_total",
            "Runs ended by the out-of-memory killer",
            each(&|plugin| Some(plugin.oom_kills as f64)),
        ),
    ]
}

fn output(plugins: &[Plugin], logs: &BTreeMap<String, Totals>) -> Vec<Family> {
    let each = |value: &dyn Fn(&Plugin) -> Option<f64>| each(plugins, value);
    let log = |plugin: &Plugin| logs.get(&plugin.status.name).copied().unwrap_or_default();
    vec![
        Family::counter(
            "enclave_plugin_log_bytes_total",
            "Bytes of the plugin's output",
            each(&|plugin| Some(log(plugin).bytes as f64)),
        ),
        Family::counter(
            "enclave_plugin_log_dropped_total",
            "Log records lost: pushed out before they were acknowledged, or above the plugin's rate",
            each(&|plugin| Some(log(plugin).dropped as f64)),
        ),
        Family::counter(
            "enclave_plugin_log_rate_limited_total",
            "Log records lost because they were above the plugin's rate",
            each(&|plugin| Some(log(plugin).rate_limited as f64)),
        ),
    ]
}

fn each(plugins: &[Plugin], value: &dyn Fn(&Plugin) -> Option<f64>) -> Vec<Point> {
    let point =
        |plugin: &Plugin| Some(Point::labelled([("plugin", plugin.status.name.as_str())], value(plugin)?));
    plugins.iter().filter_map(point).collect()
}

fn probe_failures(plugin: &Plugin) -> impl Iterator<Item = Point> {
    let name = plugin.status.name.as_str();
    plugin.status.probes.iter().map(move |probe| {
        Point::labelled([("plugin", name), ("probe", probe.kind.word())], probe.failures.into())
    })
}

fn exit_code(status: &PluginStatus) -> Option<i32> {
    let exit = status.last_exit.as_ref()?;
    exit.code.or_else(|| exit.signal.map(|signal| 128 + signal))
}

/// The supervisor's own counters.
pub fn supervisor(refusals: &Refusals, own_log: Totals, net_restarts: u64, stderr_lost: u64) -> Vec<Family> {
    let reasons = [
        ("unauthorized", &refusals.unauthorized),
        ("malformed", &refusals.malformed),
        ("connection", &refusals.connections),
        ("panic", &refusals.panics),
    ];
    let refused = reasons.map(|(reason, counter)| {
        Point::labelled([("reason", reason)], counter.load(Ordering::Relaxed) as f64)
    });
    let bare = |value: u64| vec![Point::bare(value as f64)];
    vec![
        Family::counter(
            "enclave_control_refusals_total",
            "Control requests and connections turned away",
            refused.to_vec(),
        ),
        Family::counter("enclave_net_restarts_total", "Restarts of the net process", bare(net_restarts)),
        Family::counter(
            "enclave_supervisor_log_dropped_total",
            "The supervisor's own log records pushed out before they were acknowledged",
            bare(own_log.dropped),
        ),
        Family::counter(
            "enclave_supervisor_stderr_lost_total",
            "The supervisor's own log records that standard error did not take",
            bare(stderr_lost),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use enclave_protocol::{
        control::{LastExit, ProbeKind, ProbeStatus},
        timestamp::Timestamp,
    };

    use super::*;

    fn reading(user: u64, idle: u64) -> Reading {
        let cpu = Cpu { user, idle, ..Cpu::default() };
        Reading { cpu, memory_total: 1000, memory_available: 600 }
    }

    #[test]
    fn there_is_no_cpu_point_before_the_second_sample() {
        let value = |families: &[Family], name: &str| {
            families.iter().find(|f| f.name == name).unwrap().points.first().map(|p| p.value)
        };
        let first = system(&reading(10, 90), Cpu::default(), None);
        assert_eq!(value(&first, CPU_USAGE), None);
        assert_eq!(value(&first, MEMORY_USAGE), Some(0.4));
        let second = system(&reading(60, 140), Cpu::default(), Some(reading(10, 90).cpu));
        assert_eq!(value(&second, CPU_USAGE), Some(0.5));
    }

    #[test]
    fn a_plugin_in_a_crash_loop_shows_its_last_exit_its_probes_and_its_output() {
        let exit = LastExit { code: None, signal: Some(9), oom: true, error: None, time: Timestamp(0) };
        let probe = |kind, failures| ProbeStatus { kind, passing: None, failures, message: None };
        let status = PluginStatus {
            name: "a".into(),
            phase: PluginPhase::Running,
            reason: Some("CrashLoopBackOff".into()),
            ready: true,
            restarts: 3,
            pid: Some(1),
            last_exit: Some(exit),
            next_restart: None,
            since: Timestamp(0),
            message: None,
            oom_kills: 0,
            probes: vec![probe(ProbeKind::Startup, 0), probe(ProbeKind::Readiness, 4)],
        };
        let usage = Usage { cpu: Duration::from_secs(2), memory: 4096, processes: 1 };
        let plugin = Plugin { status, usage: Some(usage), cpu_gone: Duration::from_secs(3), oom_kills: 1 };
        let logs = [("a".to_owned(), Totals { bytes: 7, records: 1, dropped: 2, rate_limited: 1 })].into();
        let shown = |family: &Family| -> Vec<String> {
            let point = |point: &Point| {
                let labels: Vec<&str> = point.labels.values().map(String::as_str).collect();
                format!("{} {} {}", family.name, labels.join(" "), point.value)
            };
            family.points.iter().map(point).collect()
        };
        let lines: Vec<String> = plugins(&[plugin], &logs).iter().flat_map(shown).collect();
        expect_test::expect![[r#"
            enclave_plugin_cpu_seconds_total a 5
            enclave_plugin_memory_bytes a 4096
            enclave_plugin_processes a 1
            enclave_plugin_up a 1
            enclave_plugin_ready a 1
            enclave_plugin_restarts_total a 3
            enclave_plugin_crash_loop a 1
            enclave_plugin_probe_failures a startup 0
            enclave_plugin_probe_failures a readiness 4
            enclave_plugin_last_exit_code a 137
            enclave_plugin_oom_kills_total a 1
            enclave_plugin_log_bytes_total a 7
            enclave_plugin_log_dropped_total a 2
            enclave_plugin_log_rate_limited_total a 1"#]]
        .assert_eq(&lines.join("\n"));
    }
}
