//! Log records on standard error: JSON lines, or text for people.

use tracing_subscriber::filter::LevelFilter;

use crate::LogFormat;

/// Installs the subscriber. Called once, by `main`.
pub fn start(format: LogFormat) {
    let builder = tracing_subscriber::fmt().with_writer(std::io::stderr).with_max_level(LevelFilter::INFO);
    match format {
        LogFormat::Json => builder.json().flatten_event(true).init(),
        LogFormat::Text => builder.with_target(false).init(),
    }
}
