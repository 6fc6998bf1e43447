//! The telemetry plugin: takes the supervisor's samples from its Unix socket, puts the deployment's identity
//! on every data point and pushes them as OTLP/HTTP protobuf to a collector; receives OTLP from the plugins
//! beside it.
//!
//! ```text
//! supervisor.sock ─▶ source ─▶ pump ─▶ pipeline (OpenTelemetry SDK) ─▶ outbox ─▶ sender ─▶ EXPORTER_URL
//! plugins' OTLP   ─▶ receiver ─▶ relabel ───────────────────────────────┤
//! plugins' pages  ─▶ scrape ─────────────────────────────────────────────┤
//! supervisor.sock ─▶ records (those that leave by OTLP) ────────────────┘
//! ```
//!
//! Shutdown order (SIGTERM or SIGINT): 1. the receiver closes, so that nothing new enters; 2. scrapes stop
//! and each target's series end; 3. the pump takes one last sample and exports it; 4. the pump queues the
//! `NO_RECORDED_VALUE` marker, while log records are read to the end of their feed; 5. the senders flush,
//! five seconds at most; 6. what is left is counted and logged, and the supervisor is told which log records
//! have arrived; exit code 0.
//!
//! It knows nothing of vsock: the egress path is the enclave's business.

mod cadence;
mod clock;
mod config;
mod endpoint;
mod hosts;
mod identity;
mod intake;
mod json;
mod ledger;
mod link;
pub mod logging;
mod options;
mod otlp;
mod outbox;
mod pipeline;
mod pump;
mod receiver;
mod records;
mod relabel;
mod reporter;
mod retry;
mod schema;
mod scrape;
mod sender;
mod series;
mod service;
mod signal;
mod source;
mod times;
mod wire;

#[cfg(test)]
mod fake;

pub use endpoint::UrlError;
pub use options::{LogFormat, Options};
pub use scrape::bench;
pub use service::{ServeError, serve};
