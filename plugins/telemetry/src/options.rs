//! The command line and its environment variables.

use std::{path::PathBuf, time::Duration};

use clap::{Parser, ValueEnum};
use enclave_protocol::exporter::Settings;

use crate::endpoint::UrlError;

/// Shortest export interval: `/proc/stat` is counted in ticks, shorter windows show little but noise.
const INTERVAL_MIN: Duration = Duration::from_millis(100);
/// Longest export interval; five minutes is how long Prometheus looks back.
const INTERVAL_MAX: Duration = Duration::from_mins(5);

/// Pushes the enclave's metrics to an OpenTelemetry collector.
#[derive(Debug, Clone, Parser)]
#[command(name = "enclave-telemetry", version)]
pub struct Options {
    /// The supervisor's Unix socket
    #[arg(long, env = "ENCLAVE_SOCKET", default_value = "/run/enclave/supervisor.sock", value_name = "PATH")]
    pub socket: PathBuf,
    /// OTLP/HTTP base URL of the collector; /v1/metrics, /v1/logs and /v1/traces are appended. Without it
    /// nothing is sent
    #[arg(long, env = "EXPORTER_URL", value_name = "URL")]
    pub exporter_url: Option<String>,
    /// Loopback port for /healthz and for OTLP/HTTP from the plugins beside this one
    #[arg(long, env = "HOST_PORT", value_name = "PORT")]
    pub host_port: Option<u16>,
    /// Time between two exports: 2s, 500ms, 1m
    #[arg(long, env = "ENCLAVE_EXPORT_INTERVAL", default_value = "10s", value_name = "TIME",
          value_parser = interval)]
    pub interval: Duration,
    /// The plugin's configuration file; it need not exist
    #[arg(
        long,
        env = "ENCLAVE_TELEMETRY_CONFIG",
        default_value = "/etc/oblv/config.yaml",
        value_name = "PATH"
    )]
    pub config: PathBuf,
    /// Where names are looked up first
    #[arg(long, env = "ENCLAVE_HOSTS_FILE", default_value = "/etc/hosts", value_name = "PATH")]
    pub hosts: PathBuf,
    /// PEM file of the authorities that an https collector's certificate must come from, instead of the
    /// public ones
    #[arg(long, env = "ENCLAVE_EXPORTER_CA_FILE", value_name = "PATH")]
    pub ca_file: Option<PathBuf>,
    /// File of headers for every request, name=value with the value percent-encoded, one a line: a key of the
    /// collector, in a mounted Secret
    #[arg(long, env = "ENCLAVE_EXPORTER_HEADERS_FILE", value_name = "PATH")]
    pub headers_file: Option<PathBuf>,
    /// Ports that the other plugins declare, as the supervisor tells them: web=8080,db=9187. Without it every
    /// loopback port may be scraped
    #[arg(long, env = "ENCLAVE_PLUGIN_PORTS", value_name = "PLUGIN=PORT,…")]
    pub plugin_ports: Option<String>,
    /// Form of the log records on standard error
    #[arg(long, env = "ENCLAVE_LOG_FORMAT", default_value = "json", value_name = "FORMAT")]
    pub log_format: LogFormat,
}

/// Form of the log records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One JSON object per line.
    Json,
    /// For people.
    Text,
}

/// OpenTelemetry's own variables: each is obeyed, or refused with its name.
pub(crate) fn standard_variables() -> Result<Settings, UrlError> {
    let mut settings = Settings::default();
    for (name, value) in std::env::vars_os() {
        let (Some(name), value) = (name.to_str(), value.to_string_lossy()) else { continue };
        settings.take(name, &value).map_err(|why| UrlError::Variable { name: name.to_owned(), why })?;
    }
    Ok(settings)
}

#[cfg(test)]
impl Options {
    /// Options without a collector and without a port.
    pub(crate) fn for_tests() -> Self {
        Self {
            socket: PathBuf::from("/nonexistent/supervisor.sock"),
            exporter_url: None,
            host_port: None,
            interval: Duration::from_mins(1),
            config: PathBuf::from("/nonexistent/config.yaml"),
            hosts: PathBuf::from("/etc/hosts"),
            ca_file: None,
            headers_file: None,
            plugin_ports: None,
            log_format: LogFormat::Text,
        }
    }
}

/// Reads `2s`, `500ms`, `1m`.
fn interval(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| "expected a number and a unit: 2s, 500ms, 1m".to_owned())?;
    let millis = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        _ => return Err(format!("unknown unit {unit:?}: expected ms, s or m")),
    };
    let time = Duration::from_millis(number.saturating_mul(millis));
    if !(INTERVAL_MIN..=INTERVAL_MAX).contains(&time) {
        return Err(format!("must lie between {INTERVAL_MIN:?} and {INTERVAL_MAX:?}"));
    }
    Ok(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_is_a_number_with_a_unit_within_its_bounds() {
        assert_eq!(interval("2s"), Ok(Duration::from_secs(2)));
        assert_eq!(interval("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(interval("1m"), Ok(Duration::from_mins(1)));
        for bad in ["", "s", "10", "1h", "-1s", "1.5s", "0s", "99ms", "6m", "99999999999999999999s"] {
            assert!(interval(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn every_option_has_an_environment_variable() {
        use clap::CommandFactory as _;
        for argument in Options::command().get_arguments() {
            let id = argument.get_id().as_str();
            assert!(argument.get_env().is_some() || id == "help" || id == "version", "{id}");
        }
    }
}
