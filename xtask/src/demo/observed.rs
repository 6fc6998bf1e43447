//! Everything the demo has seen so far. The script waits for it to change, the board shows it.

use std::{collections::VecDeque, time::Duration};

use tokio::{sync::watch, time::Instant};

use super::{
    collector::Point,
    layout::USER_PLUGIN,
    status::{self, Status},
};
use crate::failure::Failure;

/// The label that every point must carry.
const DEPLOYMENT_LABEL: &str = "oblv_deployment_name";
/// The headline gauges.
const CPU_USAGE: &str = "nitro_enclave_cpu_usage";
const MEMORY_USAGE: &str = "nitro_enclave_memory_usage";
const PLUGIN_MEMORY: &str = "container.memory.usage";
/// Readings kept of each gauge: two minutes at one a second, more than the widest sparkline shows.
const READINGS_MAX: usize = 120;
/// Events kept: several times what a terminal has rows for.
const EVENTS_MAX: usize = 256;

/// The state of the show.
#[derive(Debug, Clone)]
pub(crate) struct Observed {
    /// When the system was started.
    pub(crate) started: Instant,
    /// The deployment's name, which every point must carry.
    pub(crate) deployment: &'static str,
    /// What the script does at the moment.
    pub(crate) caption: String,
    /// What happened, oldest first, each with its time since the start.
    pub(crate) events: VecDeque<(Duration, String)>,
    /// How many events there ever were.
    pub(crate) events_ever: usize,
    /// The newest status.
    pub(crate) status: Option<Status>,
    /// Readings of the CPU gauge that arrived at the collector.
    pub(crate) cpu: Gauge,
    /// Readings of the memory gauge that arrived at the collector.
    pub(crate) memory: Gauge,
    /// Readings of the user plugin's own memory, in bytes.
    pub(crate) plugin_memory: Gauge,
    /// Exports the collector took.
    pub(crate) exports: u64,
    /// Points in them.
    pub(crate) points: u64,
    /// Points among them without the right deployment label: the first of them, by metric.
    pub(crate) unlabelled: Option<String>,
    /// Series that were ended in order.
    pub(crate) ended: u64,
    /// Requests that hello answered.
    pub(crate) requests: u64,
    /// Requests that failed.
    pub(crate) request_errors: u64,
}

/// One gauge over time.
#[derive(Debug, Clone, Default)]
pub(crate) struct Gauge {
    /// Oldest first.
    pub(crate) readings: VecDeque<f64>,
    /// How many there ever were.
    pub(crate) ever: u64,
}

impl Gauge {
    /// The newest reading.
    pub(crate) fn latest(&self) -> Option<f64> {
        self.readings.back().copied()
    }

    /// The mean of the newest `count` readings.
    pub(crate) fn mean(&self, count: usize) -> Option<f64> {
        let newest: Vec<f64> = self.readings.iter().rev().take(count).copied().collect();
        (!newest.is_empty()).then(|| newest.iter().sum::<f64>() / newest.len() as f64)
    }

    fn push(&mut self, reading: f64) {
        if self.readings.len() == READINGS_MAX {
            self.readings.pop_front();
        }
        self.readings.push_back(reading);
        self.ever += 1;
    }
}

impl Observed {
    /// Nothing seen yet.
    pub(crate) fn new(deployment: &'static str) -> Self {
        Self {
            started: Instant::now(),
            deployment,
            caption: String::new(),
            events: VecDeque::new(),
            events_ever: 0,
            status: None,
            cpu: Gauge::default(),
            memory: Gauge::default(),
            plugin_memory: Gauge::default(),
            exports: 0,
            points: 0,
            unlabelled: None,
            ended: 0,
            requests: 0,
            request_errors: 0,
        }
    }

    /// Adds an event.
    pub(crate) fn tell(&mut self, text: impl Into<String>) {
        if self.events.len() == EVENTS_MAX {
            self.events.pop_front();
        }
        self.events.push_back((self.started.elapsed(), text.into()));
        self.events_ever += 1;
    }

    /// Adds one export's points.
    pub(crate) fn add_export(&mut self, points: Vec<Point>) {
        if self.exports == 0 {
            self.tell(format!("the collector received its first export: {} points", points.len()));
        }
        self.exports += 1;
        for point in points {
            self.add_point(&point);
        }
    }

    fn add_point(&mut self, point: &Point) {
        self.points += 1;
        if self.unlabelled.is_none()
            && point.attributes.get(DEPLOYMENT_LABEL).is_none_or(|name| name != self.deployment)
        {
            self.unlabelled = Some(point.metric.clone());
            self.tell(format!("a point of {} lacks {DEPLOYMENT_LABEL}={}", point.metric, self.deployment));
        }
        if point.is_end {
            self.ended += 1;
        }
        match (point.metric.as_str(), point.value) {
            (CPU_USAGE, Some(value)) => self.cpu.push(value),
            (MEMORY_USAGE, Some(value)) => self.memory.push(value),
            (PLUGIN_MEMORY, Some(value))
                if point.attributes.get("plugin").is_some_and(|name| name == USER_PLUGIN) =>
            {
                self.plugin_memory.push(value);
            }
            _ => {}
        }
    }

    /// Takes a new status and tells what changed.
    pub(crate) fn set_status(&mut self, status: Status) {
        for line in status::changes(self.status.as_ref(), &status) {
            self.tell(line);
        }
        self.status = Some(status);
    }

    /// The user plugin's restarts and process, while it runs.
    pub(crate) fn running(&self, plugin: &str) -> Option<(u32, u32)> {
        let plugin = self.status.as_ref()?.plugin(plugin)?;
        Some((plugin.restarts, plugin.pid.filter(|_| plugin.phase == "Running")?))
    }
}

/// Where all parts of the demo write what they see, and the script waits for it.
#[derive(Debug, Clone)]
pub(crate) struct Record(watch::Sender<Observed>);

impl Record {
    /// Nothing seen yet.
    pub(crate) fn new(deployment: &'static str) -> Self {
        Self(watch::Sender::new(Observed::new(deployment)))
    }

    /// Writes something down; wakes whoever waits.
    pub(crate) fn write(&self, change: impl FnOnce(&mut Observed)) {
        self.0.send_modify(change);
    }

    /// Adds an event.
    pub(crate) fn tell(&self, text: impl Into<String>) {
        self.write(|observed| observed.tell(text));
    }

    /// Reads something.
    pub(crate) fn read<T>(&self, look: impl FnOnce(&Observed) -> T) -> T {
        look(&self.0.borrow())
    }

    /// Waits until `condition` holds and says, if it does not in time, what was waited for.
    pub(crate) async fn wait_for(
        &self,
        what: &str,
        limit: Duration,
        condition: impl FnMut(&Observed) -> bool,
    ) -> Result<(), Failure> {
        let mut receiver = self.0.subscribe();
        let seen = tokio::time::timeout(limit, receiver.wait_for(condition)).await;
        // The inner error would mean that the sender is gone, but `self` is one.
        seen.map(|_| ()).map_err(|_| Failure::new(format!("not seen within {} s: {what}", limit.as_secs())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(metric: &str, value: Option<f64>, deployment: Option<&str>) -> Point {
        let attributes = deployment.map(|name| (DEPLOYMENT_LABEL.to_owned(), name.to_owned()));
        Point {
            metric: metric.to_owned(),
            value,
            is_end: value.is_none(),
            attributes: attributes.into_iter().collect(),
        }
    }

    #[test]
    fn a_point_without_the_deployments_label_is_noticed_whatever_its_metric() {
        for wrong in [None, Some("other")] {
            let mut observed = Observed::new("hello-fastapi");
            observed.add_export(vec![
                point(CPU_USAGE, Some(0.5), Some("hello-fastapi")),
                point("x", Some(1.0), wrong),
            ]);
            assert_eq!(observed.unlabelled.as_deref(), Some("x"));
            assert_eq!((observed.points, observed.cpu.latest()), (2, Some(0.5)));
        }
    }

    #[test]
    fn the_end_of_a_series_counts_and_is_no_reading() {
        let mut observed = Observed::new("d");
        observed.add_export(vec![point(MEMORY_USAGE, None, Some("d"))]);
        assert_eq!((observed.ended, observed.memory.ever, observed.unlabelled), (1, 0, None));
    }

    #[test]
    fn old_readings_and_events_make_room_for_new_ones() {
        let mut observed = Observed::new("d");
        for number in 0..1000_u32 {
            observed.cpu.push(f64::from(number));
            observed.tell(number.to_string());
        }
        assert_eq!((observed.cpu.readings.len(), observed.cpu.ever), (READINGS_MAX, 1000));
        assert_eq!((observed.events.len(), observed.events_ever), (EVENTS_MAX, 1000));
        assert_eq!(observed.cpu.mean(3), Some(998.0));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_seen_in_time_is_named() {
        let record = Record::new("d");
        let failure = record.wait_for("points", Duration::from_secs(5), |o| o.points > 0).await.unwrap_err();
        assert_eq!(failure.to_string(), "not seen within 5 s: points");
        record.write(|o| o.add_export(vec![point("m", Some(1.0), Some("d"))]));
        record.wait_for("points", Duration::from_secs(5), |o| o.points > 0).await.unwrap();
    }
}
