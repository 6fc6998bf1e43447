//! Turns readings into metric families, each made from its entry in the catalogue. Pure: data in, families
//! out.

mod plugins;
#[cfg(test)]
mod tests;

use std::sync::atomic::Ordering;

use enclave_protocol::metrics::{
    Family, Labels, Point,
    catalogue::{Entry, enclave, relay},
};

pub use self::plugins::{Plugin, plugins, pod};
use super::system::{Cpu, RESOURCES, Reading, Space};
use crate::{control::board::Refusals, logs::ring::Totals};

/// `/proc/stat` counts in 1/100 s, whatever the kernel's own tick is.
const TICKS_PER_SECOND: f64 = 100.0;

/// The enclave as a whole: the two headline metrics, what they are made from, and the node. `first` is the
/// reading at the supervisor's start, `usage` the share of CPU time used since the reading before.
pub fn system(now: &Reading, first: Cpu, usage: Option<f64>) -> Vec<Family> {
    let memory = &now.memory;
    let number = |entry: &Entry, value: u64| entry.bare(value as f64);
    let perhaps = |entry: &Entry, value: Option<u64>| entry.bare(value.map(|value| value as f64));
    let space = |of: fn(Space) -> u64| now.root.map(of);
    let busy = now.cpu.busy().saturating_sub(first.busy()) as f64 / TICKS_PER_SECOND;
    vec![
        enclave::NITRO_CPU_USAGE.bare(usage),
        enclave::NITRO_MEMORY_USAGE.bare(memory.used_part()),
        number(&enclave::MEMORY_AVAILABLE_BYTES, memory.available),
        number(&enclave::MEMORY_TOTAL_BYTES, memory.total),
        enclave::CPU_TIME.bare(busy),
        enclave::CPU_USAGE.bare(usage.map(|usage| usage * f64::from(now.cpus))),
        number(&enclave::MEMORY_USAGE, memory.usage()),
        number(&enclave::MEMORY_WORKING_SET, memory.working_set()),
        number(&enclave::MEMORY_AVAILABLE, memory.total.saturating_sub(memory.working_set())),
        number(&enclave::MEMORY_RSS, memory.anonymous),
        perhaps(&enclave::MEMORY_PAGE_FAULTS, now.page_faults),
        perhaps(&enclave::MEMORY_MAJOR_PAGE_FAULTS, now.major_page_faults),
        perhaps(&enclave::FILESYSTEM_AVAILABLE, space(|root| root.available)),
        perhaps(&enclave::FILESYSTEM_CAPACITY, space(|root| root.capacity)),
        perhaps(&enclave::FILESYSTEM_USAGE, space(|root| root.used)),
        enclave::UPTIME.bare(now.uptime.map(|uptime| uptime.as_secs_f64())),
        modes(now.cpu, first),
        stalled(now),
    ]
}

fn modes(now: Cpu, first: Cpu) -> Family {
    let modes = [
        ("user", now.user, first.user),
        ("system", now.system, first.system),
        ("idle", now.idle, first.idle),
        ("iowait", now.iowait, first.iowait),
        ("steal", now.steal, first.steal),
    ];
    let point = |(mode, now, first): (&str, u64, u64)| {
        Point::labelled([("cpu.mode", mode)], now.saturating_sub(first) as f64 / TICKS_PER_SECOND)
    };
    enclave::SYSTEM_CPU_TIME.family(modes.map(point).to_vec())
}

fn stalled(now: &Reading) -> Family {
    let points = RESOURCES.into_iter().zip(now.pressure).flat_map(|(resource, reading)| {
        let labels = ["some", "full"].map(|scope| Labels::from([("resource", resource), ("scope", scope)]));
        plugins::stalls(&labels, reading).collect::<Vec<_>>()
    });
    enclave::PRESSURE.family(points.collect())
}

/// The vsock link as the node's and the pod's network, from what `net` counts. Without a report of `net`
/// there are no points.
pub fn network(streams: &[Family]) -> Vec<Family> {
    let sum = |entry: &Entry| -> Option<f64> {
        let family = streams.iter().find(|family| family.name == entry.name)?;
        // The sum of nothing would be -0.
        Some(family.points.iter().fold(0.0, |sum, point| sum + point.value))
    };
    let link = |entry: &Entry, receive: Option<f64>, transmit: Option<f64>| {
        let point = |(direction, value): (&str, Option<f64>)| {
            Some(Point::labelled([("interface", "vsock"), ("direction", direction)], value?))
        };
        entry.family([("receive", receive), ("transmit", transmit)].into_iter().filter_map(point).collect())
    };
    let both = |a: Option<f64>, b: Option<f64>| Some(a? + b?);
    // Whoever connects to a plugin is outside; sent is from whoever connected.
    let receive = both(sum(&relay::INGRESS_SENT), sum(&relay::EGRESS_RECEIVED));
    let transmit = both(sum(&relay::INGRESS_RECEIVED), sum(&relay::EGRESS_SENT));
    let (broken_in, broken_out) = (sum(&relay::INGRESS_BROKEN), sum(&relay::EGRESS_BROKEN));
    vec![
        link(&enclave::NETWORK_IO, receive, transmit),
        link(&enclave::NETWORK_ERRORS, broken_in, broken_out),
        link(&enclave::POD_NETWORK_IO, receive, transmit),
        link(&enclave::POD_NETWORK_ERRORS, broken_in, broken_out),
    ]
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
    vec![
        relay::CONTROL_REFUSALS.family(refused.to_vec()),
        relay::NET_RESTARTS.bare(net_restarts as f64),
        relay::LOG_DROPPED.bare(own_log.dropped as f64),
        relay::STDERR_LOST.bare(stderr_lost as f64),
    ]
}
