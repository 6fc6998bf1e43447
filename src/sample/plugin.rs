//! The numbers of one plugin at a sample, and what is kept of it from one sample to the next.

use std::{sync::Arc, time::Duration};

use enclave_protocol::metrics::Labels;

use super::system::{RESOURCES, Space, WINDOW_MIN};
use crate::{
    engine::Moment,
    sys::cgroup::{Limits, Reading},
};

/// A plugin is near its memory limit from here on, in thousandths of it.
pub const NEAR_LIMIT: u64 = 900;
/// And not any more below this: one that moves around the mark is told of once.
pub const NEAR_LIMIT_OVER: u64 = 800;
/// Every so many samples a plugin's [`Detail`] is read, each time that of another part of the plugins: it
/// takes a look at every process.
pub const DETAIL_EVERY: u64 = 4;
/// Processes whose open files are counted. A plugin with more has no such number.
pub const OPEN_FILES_PROCESSES_MAX: usize = 256;
/// Processes of a plugin that are counted: the kernel's own limit of a small machine.
pub const PROCESSES_MAX: usize = 32 << 10;

/// Words of the conventions for the state of a container.
pub const STATES: [&str; 3] = ["waiting", "running", "terminated"];
/// Words of the conventions for the reason of a container's state, those that a plugin's can be.
pub const REASONS: [&str; 6] =
    ["ContainerCreating", "CrashLoopBackOff", "OOMKilled", "Completed", "Error", "ContainerCannotRun"];
/// What happens at a memory limit.
pub const MEMORY_EVENTS: [&str; 4] = ["high", "max", "oom", "oom_kill"];

/// The labels of a plugin's points, made once.
#[derive(Debug)]
pub struct Names {
    /// `plugin`.
    pub plugin: Labels,
    /// And `k8s.container.name`.
    pub container: Labels,
    /// By [`STATES`].
    pub states: [Labels; 3],
    /// By [`REASONS`].
    pub reasons: [Labels; 6],
    /// By [`MEMORY_EVENTS`].
    pub memory_events: [Labels; 4],
    /// By [`RESOURCES`]: some, full.
    pub pressure: [[Labels; 2]; 3],
}

/// What takes long to read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Detail {
    /// Its processes.
    pub processes: Option<u64>,
    /// Files that they have open.
    pub open_files: Option<u64>,
    /// Its writable layer.
    pub space: Option<Space>,
}

/// One plugin at a sample.
#[derive(Debug, Clone, Copy, Default)]
pub struct Numbers {
    /// Of its control group; without one the same of /proc.
    pub reading: Reading,
    /// Its limits in force.
    pub limits: Limits,
    /// CPUs in use.
    pub cpu_usage: Option<f64>,
    /// Threads, its inits' not included.
    pub threads: Option<u64>,
    /// Since when the present run runs.
    pub uptime: Option<Duration>,
    /// Runs that the out-of-memory killer ended.
    pub oom_kills: u64,
    /// The newest that is known.
    pub detail: Detail,
}

/// What is kept of a plugin.
#[derive(Debug)]
pub struct Track {
    /// Its labels.
    pub names: Names,
    /// Its newest detail; none of the present run yet.
    pub detail: Option<Detail>,
    before: (Moment, Duration),
    cpu_usage: Option<f64>,
    near_limit: bool,
}

impl Names {
    /// The labels of the plugin with this name.
    pub fn of(plugin: &str) -> Self {
        let own: Arc<str> = plugin.into();
        let word = |word: &str| -> Arc<str> { word.into() };
        let container = |key: &'static str, value: &str| {
            Labels::of([("plugin", &own), ("k8s.container.name", &own), (key, &word(value))])
        };
        let scopes = |resource: &str| {
            ["some", "full"].map(|scope| {
                Labels::of([("plugin", &own), ("resource", &word(resource)), ("scope", &word(scope))])
            })
        };
        Self {
            plugin: Labels::of([("plugin", &own)]),
            container: Labels::of([("plugin", &own), ("k8s.container.name", &own)]),
            states: STATES.map(|state| container("k8s.container.status.state", state)),
            reasons: REASONS.map(|reason| container("k8s.container.status.reason", reason)),
            memory_events: MEMORY_EVENTS.map(|event| Labels::of([("plugin", &own), ("event", &word(event))])),
            pressure: RESOURCES.map(scopes),
        }
    }
}

impl Track {
    /// Begins with a plugin of which `cpu` has been used by now.
    pub fn new(plugin: &str, now: Moment, cpu: Duration) -> Self {
        let names = Names::of(plugin);
        Self { names, detail: None, before: (now, cpu), cpu_usage: None, near_limit: false }
    }

    /// CPUs in use since the reading before; of a window that is too short, what was before.
    pub fn cpu_usage(&mut self, now: Moment, cpu: Option<Duration>) -> Option<f64> {
        let cpu = cpu?;
        let (then, before) = self.before;
        let window = now.since(then);
        if window >= WINDOW_MIN {
            self.before = (now, cpu);
            self.cpu_usage = Some(cpu.saturating_sub(before).as_secs_f64() / window.as_secs_f64());
        }
        self.cpu_usage
    }

    /// Takes how much of its memory limit a plugin uses, in thousandths; whether it has just come near to it.
    pub fn comes_near_limit(&mut self, filled: u64) -> bool {
        let was = self.near_limit;
        self.near_limit = filled >= if was { NEAR_LIMIT_OVER } else { NEAR_LIMIT };
        self.near_limit && !was
    }

    /// Whether it has come near to its limit and not gone well below since.
    pub fn is_near_limit(&self) -> bool {
        self.near_limit
    }

    /// A run has ended, and with it what was said of its memory.
    pub fn run_ended(&mut self) {
        self.near_limit = false;
        self.detail = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Moment {
        Moment(Duration::from_millis(millis))
    }

    #[test]
    fn cpu_is_measured_over_windows_that_are_long_enough_and_from_the_first_sample_on() {
        let mut track = Track::new("app", at(0), Duration::ZERO);
        let mut usage = |millis, cpu| track.cpu_usage(at(millis), Some(Duration::from_millis(cpu)));
        assert_eq!(usage(100, 100), None);
        assert_eq!(usage(1000, 500), Some(0.5));
        assert_eq!(usage(1100, 600), Some(0.5));
        assert_eq!(usage(2000, 2500), Some(2.0));
        // A group that was made again counts from zero.
        assert_eq!(usage(3000, 0), Some(0.0));
        assert_eq!(track.cpu_usage(at(4000), None), None);
    }

    #[test]
    fn a_plugin_near_its_limit_is_told_of_once_and_again_only_after_it_was_well_below() {
        let mut track = Track::new("app", at(0), Duration::ZERO);
        let told =
            [899, 900, 950, 890, 1000, 800, 901, 799, 899, 900].map(|filled| track.comes_near_limit(filled));
        assert_eq!(told, [false, true, false, false, false, false, false, false, false, true]);
        track.run_ended();
        assert!(track.comes_near_limit(950));
    }
}
