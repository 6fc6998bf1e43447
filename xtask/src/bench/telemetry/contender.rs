//! Who is measured, and one running instance of it.

use std::{
    fmt, fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::task::JoinSet;

use super::{INTERVAL, supervisor};
use crate::{
    bench::process,
    demo::process::Process,
    failure::{Failure, While as _},
};

/// A program that scrapes and pushes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Contender {
    /// The telemetry plugin.
    Ours,
    /// The OpenTelemetry Collector.
    Collector,
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ours => f.write_str("enclave-telemetry"),
            Self::Collector => f.write_str("Collector"),
        }
    }
}

/// Where the programs are.
#[derive(Debug)]
pub(super) struct Programs {
    /// `enclave-telemetry`.
    pub(super) telemetry: PathBuf,
    /// The Collector.
    pub(super) collector: PathBuf,
}

/// A contender that runs. It ends with this.
pub(super) struct Running {
    process: Process,
    _supervisor: Option<JoinSet<()>>,
}

impl Contender {
    /// Starts it: it scrapes `page` and pushes to `sink`.
    pub(super) fn start(
        self,
        programs: &Programs,
        directory: &Path,
        page: SocketAddr,
        sink: SocketAddr,
    ) -> Result<Running, Failure> {
        let config = directory.join("config.yaml");
        let scrape = scrape_configs(page);
        let text = match self {
            Self::Ours => scrape,
            Self::Collector => collector_config(&scrape, sink),
        };
        fs::write(&config, text).while_doing(config.display())?;
        match self {
            Self::Ours => {
                let socket = directory.join("s.sock");
                let words = [
                    programs.telemetry.display().to_string(),
                    format!("--socket={}", socket.display()),
                    format!("--exporter-url=http://{sink}"),
                    format!("--config={}", config.display()),
                    // Its own numbers are few and seldom: it is scraping that is measured.
                    "--interval=10s".to_owned(),
                ];
                let supervisor = supervisor::serve(&socket)?;
                let process = Process::start("enclave-telemetry", &words, directory)?;
                Ok(Running { process, _supervisor: Some(supervisor) })
            }
            Self::Collector => {
                let words =
                    [programs.collector.display().to_string(), format!("--config={}", config.display())];
                let process = Process::start("otelcol", &words, directory)?;
                Ok(Running { process, _supervisor: None })
            }
        }
    }
}

impl Running {
    /// The CPU time up to now.
    pub(super) fn cpu(&self) -> Result<Duration, Failure> {
        Ok(process::cpu_time(self.pid()?))
    }

    /// The resident memory, in KiB.
    pub(super) fn rss_kib(&self) -> Result<u64, Failure> {
        process::rss_kib(self.pid()?).ok_or_else(|| Failure::new("the contender has ended"))
    }

    /// The ends of its logs.
    pub(super) fn tails(&self) -> String {
        self.process.tails()
    }

    fn pid(&self) -> Result<i32, Failure> {
        self.process.pid().ok_or_else(|| Failure::new("the contender has ended"))
    }
}

/// The job, in the form that both read.
fn scrape_configs(page: SocketAddr) -> String {
    let seconds = INTERVAL.as_secs();
    format!(
        "scrape_configs:\n- job_name: shop\n  scrape_interval: {seconds}s\n  scrape_timeout: {seconds}s\n  \
         static_configs:\n  - targets: [\"{page}\"]\n"
    )
}

/// The smallest pipeline: no processors, one push for each scrape.
fn collector_config(scrape: &str, sink: SocketAddr) -> String {
    let indented = scrape.lines().collect::<Vec<_>>().join("\n      ");
    format!(
        "receivers:\n  prometheus:\n    config:\n      {indented}\n\
         exporters:\n  otlp_http:\n    endpoint: http://{sink}\n    compression: gzip\n\
         service:\n  telemetry: {{metrics: {{level: none}}}}\n  \
         pipelines:\n    metrics: {{receivers: [prometheus], exporters: [otlp_http]}}\n"
    )
}
