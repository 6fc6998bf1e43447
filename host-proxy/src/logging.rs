//! Our own log records, on stderr: stdout belongs to the enclave's.

use tracing_subscriber::{Layer, filter::LevelFilter, layer::SubscriberExt, util::SubscriberInitExt};

use crate::cli::LogFormat;

/// Sets up the process's subscriber. The libraries' own chatter stays out below `info`.
pub(crate) fn init(format: LogFormat) {
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let layer = match format {
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
        LogFormat::Text => layer.with_ansi(false).boxed(),
    };
    // Set once per process; a second call, in a test, keeps the first.
    tracing_subscriber::registry().with(layer.with_filter(LevelFilter::INFO)).try_init().ok();
}
