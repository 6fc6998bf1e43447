//! The telemetry plugin's `config.yaml`, checked among the manifest's own mistakes where the files are at
//! hand: an enclave should not start with a scrape that is never run.

use super::cursor::Cursor;
use super::plugin::{Plugin, PluginKind};
use super::volume::Source;
use crate::control::Files;
use crate::scrape::{self, Address, CONFIG_PATH, Context};

/// The variable that names another place.
const CONFIG_VARIABLE: &str = "ENCLAVE_TELEMETRY_CONFIG";

/// Checks the file that the telemetry plugin will read. Regular expressions are left to the plugin: their
/// engine has no place in PID 1.
pub(super) fn check(plugins: &[Plugin], files: &Files, spec: &Cursor<'_>) {
    let Some(telemetry) = plugins.iter().find(|plugin| plugin.kind == PluginKind::Telemetry) else { return };
    let named = telemetry.env.iter().find(|(name, _)| name == CONFIG_VARIABLE);
    let place = named.map_or(CONFIG_PATH, |(_, place)| place);
    let Some((source, text)) = find(telemetry, files, place) else { return };
    let mut cursor = spec.clone();
    cursor.path.clone_from(&telemetry.path);
    let Ok(text) = std::str::from_utf8(text) else {
        cursor.error_at(telemetry.position, format!("{place} is not UTF-8"));
        return;
    };
    let reach = |address: &Address| reach(plugins, telemetry, address);
    let Err(mistakes) = scrape::parse(text, &Context { reach: Some(&reach), regex: None }) else { return };
    let file = place.rsplit('/').next().unwrap_or(place);
    for mistake in mistakes {
        let shown = match source {
            Source::ConfigMap(_) => format!("{file}:{mistake}"),
            // The text of a Secret stays out of every answer.
            Source::Secret(_) => format!("{file}:{}:{}: a mistake", mistake.line, mistake.column),
        };
        cursor.error_at(telemetry.position, shown);
    }
}

/// The file at `place`, in whichever volume it lies.
fn find<'f>(plugin: &'f Plugin, files: &'f Files, place: &str) -> Option<(&'f Source, &'f [u8])> {
    plugin.volumes.iter().find_map(|volume| {
        let beneath = place.strip_prefix(volume.container_path.as_str())?.strip_prefix('/')?;
        let (_, bytes) = volume.files(files).into_iter().find(|(path, _)| path == beneath)?;
        Some((&volume.source, bytes.0.as_slice()))
    })
}

/// Whether the telemetry plugin reaches a target: another plugin's port, or a name that it may connect to.
fn reach(plugins: &[Plugin], telemetry: &Plugin, address: &Address) -> Result<(), String> {
    if address.is_loopback() {
        let others = plugins.iter().filter(|plugin| plugin.name != telemetry.name);
        let mut ports = others.flat_map(|plugin| &plugin.ports);
        return if ports.any(|port| port.container_port == address.port) {
            Ok(())
        } else {
            Err(format!("no other plugin declares the port {}", address.port))
        };
    }
    let Address { host, port } = address;
    let allowed = telemetry.egress.iter().any(|egress| egress.fqdn == *host && egress.port == *port);
    // One of the names that are not known here may be this one.
    if allowed || !telemetry.unresolved.is_empty() {
        Ok(())
    } else {
        Err(format!("no outboundConnection of the telemetry plugin allows {host}:{port}"))
    }
}
