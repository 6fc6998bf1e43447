//! The real OpenTelemetry Collector between the enclave and the demo's own one, where it has been built.

use std::{net::SocketAddr, path::Path, time::Duration};

use super::{layout, process::Process};
use crate::{
    failure::{Failure, While as _},
    peers,
};

/// The program of `cargo xtask peers`.
const NAME: &str = "otelcol";
/// From its start until it listens: a second on an idle machine.
const START_TIME_MAX: Duration = Duration::from_secs(30);
/// Between two looks whether it listens, which it tells nobody.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// A running Collector. It ends with this value.
#[derive(Debug)]
pub(crate) struct Otelcol {
    /// Where it takes OTLP/HTTP.
    pub(crate) address: SocketAddr,
    process: Process,
}

impl Otelcol {
    /// Starts the Collector with `next` as the receiver of all that it is sent; none where it has not been
    /// built.
    pub(crate) async fn start(next: SocketAddr, directory: &Path) -> Result<Option<Self>, Failure> {
        let built = peers::cached();
        let Some(program) = built.path(NAME) else { return Ok(None) };
        let address = SocketAddr::from(([127, 0, 0, 1], layout::free_port()?));
        let file = directory.join("otelcol.yaml");
        std::fs::write(&file, config(address, next)).while_doing(file.display())?;
        let words = [program.display().to_string(), format!("--config={}", file.display())];
        let process = Process::start(NAME, &words, directory)?;
        let otelcol = Self { address, process };
        let listens = async {
            while tokio::net::TcpStream::connect(address).await.is_err() {
                tokio::time::sleep(LOOK_INTERVAL).await;
            }
        };
        let started = tokio::time::timeout(START_TIME_MAX, listens).await;
        started.map_err(|_| Failure::new(format!("{NAME} does not listen\n{}", otelcol.process.tails())))?;
        Ok(Some(otelcol))
    }

    /// The end of its log, for an explanation.
    pub(crate) fn tails(&self) -> String {
        self.process.tails()
    }

    /// As the demo names it.
    pub(crate) fn version() -> &'static str {
        peers::PEERS.iter().find(|peer| peer.name == NAME).map_or("", |peer| peer.version)
    }
}

fn config(address: SocketAddr, next: SocketAddr) -> String {
    format!(
        "receivers:
  otlp:
    protocols:
      http:
        endpoint: {address}
exporters:
  otlp_http:
    endpoint: http://{next}
service:
  telemetry:
    metrics:
      level: none
  pipelines:
    metrics:
      receivers: [otlp]
      exporters: [otlp_http]
"
    )
}
