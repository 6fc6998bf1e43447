//! The families of plugins: a point for each plugin, and for each word where there are several.

use std::{collections::BTreeMap, time::Duration};

use enclave_protocol::{
    control::{PluginPhase, PluginStatus},
    metrics::{
        Family, Labels, Point,
        catalogue::{Entry, container, enclave, plugin},
    },
};

use crate::{
    engine::Reason,
    logs::ring::Totals,
    sample::{
        plugin::{Names, Numbers, REASONS, STATES},
        system::Space,
    },
    sys::cgroup::{Pressure, Throttling},
};

/// One plugin at the time of a sample.
#[derive(Debug, Clone, Copy)]
pub struct Plugin<'a> {
    /// Its status.
    pub status: &'a PluginStatus,
    /// Its labels.
    pub names: &'a Names,
    /// What was read.
    pub numbers: Numbers,
}

/// All families of plugins.
pub fn plugins(plugins: &[Plugin<'_>], logs: &BTreeMap<String, Totals>) -> Vec<Family> {
    let mut families = usage(plugins);
    families.extend(memory(plugins));
    families.extend(state(plugins));
    families.extend(limits(plugins));
    families.extend(life(plugins));
    families.extend(fate(plugins));
    families.extend(output(plugins, logs));
    families
}

fn each<'a, 'b: 'a>(
    entry: &Entry,
    plugins: &'a [Plugin<'b>],
    labels: impl Fn(&'a Names) -> &'a Labels,
    value: impl Fn(&'a Plugin<'b>) -> Option<f64>,
) -> Family {
    let point =
        |plugin: &'a Plugin<'b>| Some(Point { labels: labels(plugin.names).clone(), value: value(plugin)? });
    entry.family(plugins.iter().filter_map(point).collect())
}

/// A family of the conventions.
fn container<'a, 'b: 'a>(
    entry: &Entry,
    plugins: &'a [Plugin<'b>],
    value: impl Fn(&'a Plugin<'b>) -> Option<f64>,
) -> Family {
    each(entry, plugins, |names| &names.container, value)
}

/// A family of our own.
fn own<'a, 'b: 'a>(
    entry: &Entry,
    plugins: &'a [Plugin<'b>],
    value: impl Fn(&'a Plugin<'b>) -> Option<f64>,
) -> Family {
    each(entry, plugins, |names| &names.plugin, value)
}

fn number(value: Option<u64>) -> Option<f64> {
    value.map(|value| value as f64)
}

fn flag(is: bool) -> f64 {
    f64::from(u8::from(is))
}

fn usage(plugins: &[Plugin<'_>]) -> Vec<Family> {
    let space = |of: fn(Space) -> u64| {
        move |plugin: &Plugin<'_>| plugin.numbers.detail.space.map(|space| of(space) as f64)
    };
    vec![
        container(&container::CPU_TIME, plugins, |plugin| {
            plugin.numbers.reading.cpu.map(|cpu| cpu.as_secs_f64())
        }),
        container(&container::CPU_USAGE, plugins, |plugin| plugin.numbers.cpu_usage),
        container(&container::FILESYSTEM_USAGE, plugins, space(|space| space.used)),
        container(&container::FILESYSTEM_AVAILABLE, plugins, space(|space| space.available)),
        container(&container::FILESYSTEM_CAPACITY, plugins, space(|space| space.capacity)),
        container(&container::UPTIME, plugins, |plugin| {
            plugin.numbers.uptime.map(|uptime| uptime.as_secs_f64())
        }),
    ]
}

fn memory(plugins: &[Plugin<'_>]) -> Vec<Family> {
    vec![
        container(&container::MEMORY_USAGE, plugins, |plugin| number(plugin.numbers.reading.memory)),
        container(&container::MEMORY_WORKING_SET, plugins, |plugin| {
            number(plugin.numbers.reading.working_set())
        }),
        container(&container::MEMORY_AVAILABLE, plugins, |plugin| number(available(&plugin.numbers))),
        container(&container::MEMORY_RSS, plugins, |plugin| number(plugin.numbers.reading.anonymous)),
        container(&container::MEMORY_PAGE_FAULTS, plugins, |plugin| {
            number(plugin.numbers.reading.page_faults)
        }),
        container(&container::MEMORY_MAJOR_PAGE_FAULTS, plugins, |plugin| {
            number(plugin.numbers.reading.major_page_faults)
        }),
    ]
}

/// What is left of a memory limit.
fn available(numbers: &Numbers) -> Option<u64> {
    Some(numbers.limits.memory_bytes?.saturating_sub(numbers.reading.working_set()?))
}

fn state(plugins: &[Plugin<'_>]) -> Vec<Family> {
    let states = plugins.iter().flat_map(|plugin| {
        let is = state_word(plugin.status.phase);
        words(&STATES, &plugin.names.states, Some(is))
    });
    let reasons =
        plugins.iter().flat_map(|plugin| words(&REASONS, &plugin.names.reasons, reason_word(plugin.status)));
    vec![
        container(&container::RESTART_COUNT, plugins, |plugin| Some(plugin.status.restarts.into())),
        container(&container::READY, plugins, |plugin| Some(flag(plugin.status.ready))),
        container::STATUS_STATE.family(states.collect()),
        container::STATUS_REASON.family(reasons.collect()),
    ]
}

/// A point for each word: 1 for the one that is.
fn words<'a>(
    words: &'a [&'static str],
    labels: &'a [Labels],
    is: Option<&'static str>,
) -> impl Iterator<Item = Point> + 'a {
    words
        .iter()
        .zip(labels)
        .map(move |(word, labels)| Point { labels: labels.clone(), value: flag(is == Some(*word)) })
}

/// The state of a container, as Kubernetes calls it.
fn state_word(phase: PluginPhase) -> &'static str {
    match phase {
        PluginPhase::Waiting | PluginPhase::Starting | PluginPhase::BackingOff => "waiting",
        PluginPhase::Running | PluginPhase::Stopping => "running",
        PluginPhase::Completed | PluginPhase::Failed | PluginPhase::Stopped => "terminated",
    }
}

/// The reason of that state, in the conventions' words; a container that runs has none.
fn reason_word(status: &PluginStatus) -> Option<&'static str> {
    let known = |word: &str| REASONS.into_iter().find(|reason| *reason == word);
    let by_exit = || {
        let exit = status.last_exit.as_ref()?;
        Some(match (exit.oom, &exit.error, exit.code) {
            (true, _, _) => "OOMKilled",
            (_, Some(_), _) => "ContainerCannotRun",
            (_, None, Some(0)) => "Completed",
            (_, None, _) => "Error",
        })
    };
    match status.phase {
        PluginPhase::Running | PluginPhase::Stopping => None,
        PluginPhase::Waiting | PluginPhase::Starting | PluginPhase::BackingOff => {
            let reason = status.reason.as_deref().and_then(known);
            reason.or_else(by_exit).or(Some("ContainerCreating"))
        }
        PluginPhase::Completed | PluginPhase::Failed | PluginPhase::Stopped => {
            status.reason.as_deref().and_then(known).or_else(by_exit).or(Some("Error"))
        }
    }
}

fn limits(plugins: &[Plugin<'_>]) -> Vec<Family> {
    let cpus = |numbers: &Numbers| numbers.limits.cpu_millis.map(|millis| millis as f64 / 1000.0);
    let ratio = |used: Option<f64>, limit: Option<f64>| {
        limit.filter(|limit| *limit > 0.0).and_then(|limit| Some(used? / limit))
    };
    vec![
        container(&container::CPU_LIMIT, plugins, |plugin| cpus(&plugin.numbers)),
        container(&container::MEMORY_LIMIT, plugins, |plugin| number(plugin.numbers.limits.memory_bytes)),
        container(&container::CPU_LIMIT_UTILIZATION, plugins, |plugin| {
            ratio(plugin.numbers.cpu_usage, cpus(&plugin.numbers))
        }),
        container(&container::MEMORY_LIMIT_UTILIZATION, plugins, |plugin| {
            ratio(number(plugin.numbers.reading.memory), number(plugin.numbers.limits.memory_bytes))
        }),
    ]
}

fn life(plugins: &[Plugin<'_>]) -> Vec<Family> {
    let crash_loop = Some(Reason::CrashLoopBackOff.as_str());
    vec![
        own(&plugin::UP, plugins, |plugin| Some(flag(plugin.status.phase == PluginPhase::Running))),
        own(&plugin::READY, plugins, |plugin| Some(flag(plugin.status.ready))),
        own(&plugin::RESTARTS, plugins, |plugin| Some(plugin.status.restarts.into())),
        own(&plugin::CRASH_LOOP, plugins, |plugin| Some(flag(plugin.status.reason.as_deref() == crash_loop))),
        plugin::PROBE_FAILURES.family(plugins.iter().flat_map(probe_failures).collect()),
        own(&plugin::LAST_EXIT_CODE, plugins, |plugin| exit_code(plugin.status).map(f64::from)),
        own(&plugin::OOM_KILLS, plugins, |plugin| Some(plugin.numbers.oom_kills as f64)),
    ]
}

fn fate(plugins: &[Plugin<'_>]) -> Vec<Family> {
    let throttling =
        |of: fn(Throttling) -> f64| move |plugin: &Plugin<'_>| plugin.numbers.reading.throttling.map(of);
    vec![
        own(&plugin::THREADS, plugins, |plugin| number(plugin.numbers.threads)),
        own(&plugin::PROCESSES, plugins, |plugin| number(plugin.numbers.detail.processes)),
        own(&plugin::OPEN_FILES, plugins, |plugin| number(plugin.numbers.detail.open_files)),
        plugin::MEMORY_EVENTS.family(plugins.iter().flat_map(memory_events).collect()),
        own(&plugin::CPU_PERIODS, plugins, throttling(|throttling| throttling.periods as f64)),
        own(&plugin::CPU_THROTTLED_PERIODS, plugins, throttling(|throttling| throttling.throttled as f64)),
        own(&plugin::CPU_THROTTLED, plugins, throttling(|throttling| throttling.time.as_secs_f64())),
        plugin::PRESSURE.family(plugins.iter().flat_map(pressure).collect()),
    ]
}

fn memory_events<'a>(plugin: &Plugin<'a>) -> impl Iterator<Item = Point> + use<'a> {
    let events = plugin.numbers.reading.memory_events;
    let values = [events.high, events.max, events.oom, events.oom_kill];
    let labels = plugin.names.memory_events.iter();
    labels
        .zip(values)
        .filter_map(|(labels, value)| Some(Point { labels: labels.clone(), value: value? as f64 }))
}

fn pressure<'a>(plugin: &Plugin<'a>) -> impl Iterator<Item = Point> + use<'a> {
    let readings = plugin.numbers.reading.pressure;
    plugin.names.pressure.iter().zip(readings).flat_map(|(labels, reading)| stalls(labels, reading))
}

/// Points for the time in which some and all work waited.
pub(super) fn stalls(labels: &[Labels; 2], reading: Option<Pressure>) -> impl Iterator<Item = Point> {
    let values = [reading.map(|reading| reading.some), reading.and_then(|reading| reading.full)];
    labels.iter().zip(values).filter_map(|(labels, value): (_, Option<Duration>)| {
        Some(Point { labels: labels.clone(), value: value?.as_secs_f64() })
    })
}

fn output(plugins: &[Plugin<'_>], logs: &BTreeMap<String, Totals>) -> Vec<Family> {
    let log = |plugin: &Plugin<'_>| logs.get(&plugin.status.name).copied().unwrap_or_default();
    vec![
        own(&plugin::LOG_BYTES, plugins, |plugin| Some(log(plugin).bytes as f64)),
        own(&plugin::LOG_DROPPED, plugins, |plugin| Some(log(plugin).dropped as f64)),
        own(&plugin::LOG_RATE_LIMITED, plugins, |plugin| Some(log(plugin).rate_limited as f64)),
    ]
}

fn probe_failures<'a>(plugin: &Plugin<'a>) -> impl Iterator<Item = Point> + use<'a> {
    let name = plugin.status.name.as_str();
    plugin.status.probes.iter().map(move |probe| {
        Point::labelled([("plugin", name), ("probe", probe.kind.word())], probe.failures.into())
    })
}

fn exit_code(status: &PluginStatus) -> Option<i32> {
    let exit = status.last_exit.as_ref()?;
    exit.code.or_else(|| exit.signal.map(|signal| 128 + signal))
}

/// The sums over all plugins. `root` is the file system that they are in.
pub fn pod(plugins: &[Plugin<'_>], root: Option<Space>, uptime: Duration) -> Vec<Family> {
    let sum = |entry: &Entry, value: &dyn Fn(&Plugin<'_>) -> Option<f64>| {
        let known: Vec<f64> = plugins.iter().filter_map(value).collect();
        entry.bare((!known.is_empty()).then(|| known.iter().sum()))
    };
    let all_limited = plugins.iter().all(|plugin| available(&plugin.numbers).is_some());
    let left = |plugin: &Plugin<'_>| number(available(&plugin.numbers)).filter(|_| all_limited);
    let space = |of: fn(Space) -> u64| root.map(|root| of(root) as f64);
    vec![
        sum(&enclave::POD_CPU_TIME, &|plugin| plugin.numbers.reading.cpu.map(|cpu| cpu.as_secs_f64())),
        sum(&enclave::POD_CPU_USAGE, &|plugin| plugin.numbers.cpu_usage),
        sum(&enclave::POD_MEMORY_USAGE, &|plugin| number(plugin.numbers.reading.memory)),
        sum(&enclave::POD_MEMORY_WORKING_SET, &|plugin| number(plugin.numbers.reading.working_set())),
        sum(&enclave::POD_MEMORY_AVAILABLE, &left),
        sum(&enclave::POD_MEMORY_RSS, &|plugin| number(plugin.numbers.reading.anonymous)),
        sum(&enclave::POD_MEMORY_PAGE_FAULTS, &|plugin| number(plugin.numbers.reading.page_faults)),
        sum(&enclave::POD_MEMORY_MAJOR_PAGE_FAULTS, &|plugin| {
            number(plugin.numbers.reading.major_page_faults)
        }),
        enclave::POD_FILESYSTEM_AVAILABLE.bare(space(|root| root.available)),
        enclave::POD_FILESYSTEM_CAPACITY.bare(space(|root| root.capacity)),
        sum(&enclave::POD_FILESYSTEM_USAGE, &|plugin| {
            plugin.numbers.detail.space.map(|space| space.used as f64)
        }),
        enclave::POD_UPTIME.bare(uptime.as_secs_f64()),
    ]
}
