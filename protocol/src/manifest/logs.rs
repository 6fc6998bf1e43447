//! Where log records go: by the host, by the telemetry plugin's exporter, or nowhere.
//!
//! `spec.logs.host` is the oldest field and the default of the others: a plugin's own word comes first, then
//! `spec.logs.plugins`, then `spec.logs.host`; for the supervisor `spec.logs.supervisor`, then
//! `spec.logs.host`.

use super::cursor::{Cursor, Mapping};
use super::not_in_force::named;
use super::plugin::{Checked, Plugin, PluginKind};
use crate::control::{Condition, LogRoute};
use crate::exporter::Settings;

/// The telemetry plugin's variable with the collector's address.
const EXPORTER_URL: &str = "EXPORTER_URL";
/// The place of logs among the signals.
const LOGS: usize = 1;
/// Name of the supervisor in conditions.
const SUPERVISOR: &str = "supervisor";

/// What host-proxy gets of the enclave's logs where nothing else is said.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum HostLogs {
    /// Those of every plugin and of the supervisor.
    #[default]
    All,
    /// The supervisor's alone.
    Supervisor,
    /// None.
    None,
}

impl HostLogs {
    /// The word in the manifest.
    pub fn word(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Supervisor => "supervisor",
            Self::None => "none",
        }
    }

    /// The route of a plugin that nothing else is said about.
    pub fn of_plugins(self) -> LogRoute {
        match self {
            Self::All => LogRoute::Host,
            Self::Supervisor | Self::None => LogRoute::None,
        }
    }

    /// The route of the supervisor when nothing else is said about it.
    pub fn of_supervisor(self) -> LogRoute {
        match self {
            Self::All | Self::Supervisor => LogRoute::Host,
            Self::None => LogRoute::None,
        }
    }
}

/// A route with its place in the text.
#[derive(Debug)]
pub(super) struct Written<'a> {
    route: LogRoute,
    cursor: Cursor<'a>,
}

/// The fields of `spec.logs`.
#[derive(Debug, Default)]
pub(super) struct Logs<'a> {
    pub(super) host: HostLogs,
    plugins: Option<Written<'a>>,
    supervisor: Option<Written<'a>>,
}

/// Reads `spec.logs`.
pub(super) fn check<'a>(cursor: &Cursor<'a>) -> Logs<'a> {
    let Some(mut fields) = cursor.mapping() else { return Logs::default() };
    let words = [HostLogs::All, HostLogs::Supervisor, HostLogs::None].map(|logs| (logs.word(), logs));
    let host = fields.field("host").and_then(|c| c.word(&words)).unwrap_or_default();
    let (plugins, supervisor) = (check_route(&mut fields, "plugins"), check_route(&mut fields, SUPERVISOR));
    fields.finish();
    Logs { host, plugins, supervisor }
}

/// Reads a field that names a route.
pub(super) fn check_route<'a>(fields: &mut Mapping<'a>, name: &'static str) -> Option<Written<'a>> {
    let cursor = fields.field(name)?;
    let route = cursor.word(&LogRoute::ALL.map(|route| (route.word(), route)))?;
    Some(Written { route, cursor })
}

impl Logs<'_> {
    /// Gives every plugin its route and answers the supervisor's. `otlp` wants a telemetry plugin that sends.
    pub(super) fn settle(&self, plugins: &mut [Checked<'_>]) -> LogRoute {
        let written = plugins.iter().filter_map(|one| one.logs.as_ref());
        let written = written.chain(&self.plugins).chain(&self.supervisor);
        if exporter(plugins.iter().map(|one| &one.plugin)).is_none() {
            for Written { cursor, .. } in written.filter(|written| written.route == LogRoute::Otlp) {
                cursor.error(
                    "otlp wants spec.plugins.telemetry with EXPORTER_URL in its env: it sends the records",
                );
            }
        }
        let of_plugins = route(self.plugins.as_ref(), self.host.of_plugins());
        for one in plugins {
            one.plugin.logs = route(one.logs.as_ref(), of_plugins);
        }
        route(self.supervisor.as_ref(), self.host.of_supervisor())
    }
}

fn route(written: Option<&Written<'_>>, default: LogRoute) -> LogRoute {
    written.map_or(default, |written| written.route)
}

/// Whether the telemetry plugin sends log records over TLS; none when it sends none.
fn exporter<'p>(mut plugins: impl Iterator<Item = &'p Plugin>) -> Option<bool> {
    let telemetry = plugins.find(|plugin| plugin.kind == PluginKind::Telemetry)?;
    let mut settings = Settings::default();
    for (name, value) in &telemetry.env {
        // Mistakes were reported where the variables were checked.
        settings.take(name, value).ok();
    }
    let own = telemetry.env.iter().find(|(name, _)| name == EXPORTER_URL);
    let own = own.map(|(_, url)| url.starts_with("https://"));
    let only = settings.endpoint.only(LOGS).map(|url| url.tls);
    only.or(own).or_else(|| settings.endpoint.all().map(|url| url.tls))
}

/// Says whose records the host does not get because they leave by OTLP, and whether it can read them on their
/// way all the same.
pub(super) fn conditions(plugins: &[Plugin], supervisor: LogRoute) -> Vec<Condition> {
    let own = (supervisor == LogRoute::Otlp).then(|| SUPERVISOR.to_owned());
    let sent = plugins.iter().filter(|plugin| plugin.logs == LogRoute::Otlp);
    let sources: Vec<String> = own.into_iter().chain(sent.map(|plugin| plugin.name.clone())).collect();
    let Some(sources) = named(&sources) else { return Vec::new() };
    let condition = |kind: &str, message: String| Condition { kind: kind.to_owned(), message };
    let by_otlp = condition(
        "LogsByOtlp",
        format!("log records of {sources} are sent by the telemetry plugin; the host gets none of them"),
    );
    let in_clear = exporter(plugins.iter()) == Some(false);
    let in_clear = in_clear.then(|| {
        let message = "log records leave the enclave in clear, since EXPORTER_URL is not https: the host can \
                       read them on their way";
        condition("LogsInClear", message.to_owned())
    });
    std::iter::once(by_otlp).chain(in_clear).collect()
}
