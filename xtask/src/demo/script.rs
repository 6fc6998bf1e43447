//! What the demo does, step by step. A step that is not seen in time ends it.

use std::{path::Path, time::Duration};

use hyper::Method;
use nix::sys::signal::Signal;

use super::{
    layout::{Layout, USER_PLUGIN},
    load,
    observed::{Observed, Record},
    process,
};
use crate::failure::{Failure, While as _};

/// From the start of the programs until every plugin is ready. It takes a second on an idle machine.
const READY_TIME_MAX: Duration = Duration::from_mins(1);
/// Until something shows in the metrics: they are exported once a second.
const METRICS_TIME_MAX: Duration = Duration::from_secs(45);
/// Until a killed plugin runs again: the longest backoff is a minute, with jitter.
const RESTART_TIME_MAX: Duration = Duration::from_secs(90);
/// How long the machine is left alone to see what the gauges say without load.
const IDLE_TIME: Duration = Duration::from_secs(3);
/// How far the CPU gauge must rise under load.
const CPU_RISE: f64 = 0.15;
/// What the CPU gauge must reach under load on a machine that was busy before.
const CPU_BUSY: f64 = 0.85;
/// Part of the allocated memory that hello's gauge must rise by.
const MEMORY_RISE_PART: f64 = 0.9;
/// Bytes.
const MEBIBYTE: f64 = 1_048_576.0;
/// Looks at host-proxy's page, one per reading at the collector, until both headline gauges are on it.
const HOST_LOOKS_MAX: u32 = 5;
/// Readings that a mean is taken of.
const MEAN_READINGS: usize = 3;
/// Steps in one run, for the captions.
const STEPS: usize = 9;

/// The script, and what it acts on.
pub(crate) struct Script<'a> {
    /// Where everything that is seen is written down.
    pub(crate) record: &'a Record,
    /// The demo's directory and ports.
    pub(crate) layout: &'a Layout,
    /// The port of host-proxy's own `/metrics`.
    pub(crate) metrics_port: u16,
    /// The process that started the supervisor's namespaces.
    pub(crate) supervisor: i32,
}

impl Script<'_> {
    /// From the start until the system has been seen at rest.
    pub(crate) async fn open(&self) -> Result<(), Failure> {
        self.caption(1, "the manifest is synced, the plugins start");
        self.seen("every plugin running and ready", READY_TIME_MAX, |observed| {
            observed.status.as_ref().is_some_and(|status| status.ready && status.phase == "Running")
        })
        .await?;
        let answer = load::request(self.layout.host_port, Method::GET, "/").await?;
        let answer = answer.lines().next().unwrap_or_default();
        self.record.tell(format!("hello answers through 127.0.0.1:{}: {answer}", self.layout.host_port));

        self.caption(2, "metrics travel: telemetry plugin → egress → host-proxy → OTLP collector");
        self.seen("both headline gauges at the collector", METRICS_TIME_MAX, |observed| {
            observed.cpu.ever >= 1 && observed.memory.ever >= 1
        })
        .await?;
        self.caption(3, "the other way out: host-proxy's own /metrics");
        self.look_at_host_metrics().await?;

        self.caption(4, "at rest: what the gauges say without load");
        let before = self.record.read(|observed| observed.cpu.ever);
        tokio::time::sleep(IDLE_TIME).await;
        self.seen("readings at rest", METRICS_TIME_MAX, |observed| observed.cpu.ever > before).await
    }

    /// Load, memory, a crash; then all is as it was before.
    pub(crate) async fn round(&self) -> Result<(), Failure> {
        self.load_cpu().await?;
        self.load_memory().await?;
        self.crash().await?;
        self.caption(8, "the metrics go on as before");
        let before = self.record.read(|observed| (observed.cpu.ever, observed.memory.ever));
        self.seen("both headline gauges after the crash", METRICS_TIME_MAX, |observed| {
            observed.cpu.ever >= before.0 + 2 && observed.memory.ever >= before.1 + 2
        })
        .await
    }

    /// The page is a second older than what the collector has, so its first look may lack the CPU gauge,
    /// which has no value before the second sample: each new reading is a reason to look again.
    async fn look_at_host_metrics(&self) -> Result<(), Failure> {
        let mut looks = 0;
        let (cpu, memory) = loop {
            let text = load::request(self.metrics_port, Method::GET, "/metrics").await?;
            let json: serde_json::Value = serde_json::from_str(&text).while_doing("host-proxy's /metrics")?;
            let gauge = |name: &str| json.get(name).and_then(serde_json::Value::as_f64);
            if let (Some(cpu), Some(memory)) =
                (gauge("nitro_enclave_cpu_usage"), gauge("nitro_enclave_memory_usage"))
            {
                break (cpu, memory);
            }
            looks += 1;
            if looks == HOST_LOOKS_MAX {
                return Err(Failure::new(format!("host-proxy's /metrics lacks a headline gauge: {text}")));
            }
            let before = self.record.read(|observed| observed.cpu.ever);
            self.seen("a new reading", METRICS_TIME_MAX, |observed| observed.cpu.ever > before).await?;
        };
        self.record.tell(format!("host-proxy's /metrics as JSON: cpu {cpu:.3}, memory {memory:.3}"));
        Ok(())
    }

    async fn load_cpu(&self) -> Result<(), Failure> {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        self.caption(
            5,
            &format!("load: {cores} parallel requests, each keeps one core busy; the CPU gauge follows"),
        );
        let rest = self.record.read(|observed| observed.cpu.mean(MEAN_READINGS)).unwrap_or_default();
        let expected = (rest + CPU_RISE).min(CPU_BUSY);
        let (requests, readings) = self.record.read(|observed| (observed.requests, observed.cpu.ever));
        let busy = load::keep_busy(self.layout.host_port, cores, METRICS_TIME_MAX, self.record.clone());
        let what = format!("the CPU gauge above {expected:.2} under load");
        let rise = self.seen(&what, METRICS_TIME_MAX, |observed| {
            // The first new reading covers time before the load, so on a busy machine it proves nothing.
            observed.requests > requests
                && observed.cpu.ever >= readings + 2
                && observed.cpu.latest().is_some_and(|latest| latest >= expected)
        });
        tokio::select! {
            rise = rise => rise?,
            () = busy => return Err(Failure::new(format!("not seen in time: {what}"))),
        }
        let (latest, answered) =
            self.record.read(|observed| (observed.cpu.latest(), observed.requests - requests));
        let latest = latest.unwrap_or_default();
        let change = if rest + CPU_RISE <= CPU_BUSY {
            format!("cpu rose from {rest:.3} to {latest:.3} under load")
        } else {
            format!("this machine was busy before (cpu {rest:.3}); under load the gauge says {latest:.3}")
        };
        self.record.tell(format!("{change}; {answered} requests answered"));
        Ok(())
    }

    /// The plugin's own gauge must show all of it. The headline gauge sees the rest of the machine as well,
    /// which may give back more in the same moment: what it did is told, not demanded.
    async fn load_memory(&self) -> Result<(), Failure> {
        let mebibytes = Memory::read(Path::new("/proc/meminfo"))?.share();
        self.caption(6, &format!("hello allocates {mebibytes} MiB; the memory gauges follow"));
        let look = |observed: &Observed| {
            (
                observed.memory.latest().unwrap_or_default(),
                observed.plugin_memory.latest().unwrap_or_default(),
            )
        };
        let (rest, plugin_rest) = self.record.read(look);
        let expected = plugin_rest + mebibytes as f64 * MEBIBYTE * MEMORY_RISE_PART;
        load::request(self.layout.host_port, Method::GET, &format!("/alloc?mib={mebibytes}")).await?;
        let what = format!("hello's memory gauge above {:.0} MiB", expected / MEBIBYTE);
        self.seen(&what, METRICS_TIME_MAX, |observed| look(observed).1 >= expected).await?;
        let (latest, plugin) = self.record.read(look);
        self.record.tell(format!(
            "hello's memory rose from {:.0} to {:.0} MiB; the headline gauge: {rest:.3}, then {latest:.3}",
            plugin_rest / MEBIBYTE,
            plugin / MEBIBYTE
        ));
        load::request(self.layout.host_port, Method::DELETE, "/alloc").await.map(drop)
    }

    async fn crash(&self) -> Result<(), Failure> {
        let (restarts, inner) = self
            .record
            .read(|observed| observed.running(USER_PLUGIN))
            .ok_or_else(|| Failure::new(format!("status shows no running process of {USER_PLUGIN}")))?;
        let pid = process::find(self.supervisor, inner)?;
        self.caption(7, "hello is killed; the supervisor starts it again");
        self.record.tell(format!("kill -9 {pid} (hello; process {inner} in the enclave)"));
        process::send(pid, Signal::SIGKILL)?;
        let what = format!("{USER_PLUGIN} running again with restarts = {}", restarts + 1);
        self.seen(&what, RESTART_TIME_MAX, |observed| {
            observed.running(USER_PLUGIN).is_some_and(|(count, pid)| count == restarts + 1 && pid != inner)
                && observed.status.as_ref().is_some_and(|status| status.ready)
        })
        .await?;
        let answer = load::request(self.layout.host_port, Method::GET, "/").await?;
        self.record.tell(format!("hello answers again: {}", answer.lines().next().unwrap_or_default()));
        Ok(())
    }

    fn caption(&self, step: usize, text: &str) {
        caption(self.record, step, text);
    }

    /// Waits for something; a point without its label ends every wait.
    async fn seen(
        &self,
        what: &str,
        limit: Duration,
        mut condition: impl FnMut(&Observed) -> bool,
    ) -> Result<(), Failure> {
        self.record
            .wait_for(what, limit, |observed| observed.unlabelled.is_some() || condition(observed))
            .await?;
        match self.record.read(|observed| observed.unlabelled.clone()) {
            None => Ok(()),
            Some(metric) => Err(Failure::new(format!("a data point of {metric} lacks oblv_deployment_name"))),
        }
    }
}

/// Shows which step this is.
pub(crate) fn caption(record: &Record, step: usize, text: &str) {
    record.write(|observed| {
        observed.caption = format!("step {step} of {STEPS}: {text}");
        observed.tell(format!("[{step}/{STEPS}] {text}"));
    });
}

/// The last step: nothing is left to be done but the end.
pub(crate) const LAST_STEP: usize = STEPS;

/// The machine's memory.
#[derive(Debug, PartialEq, Eq)]
struct Memory {
    total_mebibytes: u64,
    available_mebibytes: u64,
}

impl Memory {
    fn read(meminfo: &Path) -> Result<Self, Failure> {
        let text = std::fs::read_to_string(meminfo).while_doing(meminfo.display())?;
        Self::parse(&text).ok_or_else(|| Failure::new("no MemTotal and MemAvailable in /proc/meminfo"))
    }

    fn parse(meminfo: &str) -> Option<Self> {
        let mebibytes = |name: &str| {
            let rest = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            Some(rest.split_whitespace().next()?.parse::<u64>().ok()? >> 10)
        };
        Some(Self {
            total_mebibytes: mebibytes("MemTotal")?,
            available_mebibytes: mebibytes("MemAvailable")?,
        })
    }

    /// How much to allocate for a rise that one sees: 2.5 % of all memory, but no more than a quarter of what
    /// is free, and no more than hello gives.
    fn share(&self) -> u64 {
        (self.total_mebibytes / 40).clamp(32, 512).min(self.available_mebibytes / 4).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_allocation_is_visible_but_leaves_the_machine_alive() {
        let share =
            |total, available| Memory { total_mebibytes: total, available_mebibytes: available }.share();
        assert_eq!(share(8_192, 8_000), 204);
        assert_eq!(share(262_144, 200_000), 512);
        assert_eq!(share(8_192, 100), 25);
    }

    #[test]
    fn memory_is_read_from_meminfo() {
        let text = "MemTotal:       24637552 kB\nMemFree:  1 kB\nMemAvailable:   20000000 kB\n";
        let expected = Memory { total_mebibytes: 24_060, available_mebibytes: 19_531 };
        assert_eq!(Memory::parse(text), Some(expected));
        assert_eq!(Memory::parse("MemTotal: 1 kB\n"), None);
    }
}
