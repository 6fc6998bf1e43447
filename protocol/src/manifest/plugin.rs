//! One plugin: what runs, with what, and what it may do.

use std::collections::BTreeSet;
use std::time::Duration;

use super::cursor::{Cursor, Mapping};
use super::egress::{self, Destinations, Egress, Unresolved};
use super::node::{Position, Value};
use super::port::{self, Port};
use super::probe::{self, Handler, Probes};
use super::resources::{self, Limits};
use super::restart::{self, Restart};
use super::scalar::quoted;
use super::scope::Scope;
use super::security::{self, Security};
use super::volume::{self, Volume};
use super::{env, exporter, host, image, logs, name};
use crate::control::{Diagnostic, LogRoute};

/// The plugin under `spec.plugins` that sends the metrics.
pub const TELEMETRY: &str = "telemetry";
/// Names the runtime uses for itself, in logs and metrics.
const RESERVED_NAMES: [&str; 2] = ["supervisor", "net"];
/// Longest grace, in seconds: an hour.
const GRACE_SECONDS_MAX: u32 = 3600;
/// Kubernetes' `terminationGracePeriodSeconds`.
const GRACE_SECONDS: u32 = 30;
/// More plugins than this in one enclave are a mistake.
pub(super) const PLUGINS_MAX: usize = 256;

/// Where a plugin stands in the manifest, which decides when it starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PluginKind {
    /// `spec.plugins.telemetry`: starts first, stops last.
    Telemetry,
    /// Any other of `spec.plugins`: starts before the user plugins.
    Service,
    /// One of `spec.userPlugins`: the workload.
    User,
}

/// A part of the supervisor's API that a plugin may read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    /// `GET /v1/metrics`.
    Metrics,
    /// `GET /v1/status` and `GET /v1/events`.
    Status,
    /// `GET /v1/logs`.
    Logs,
}

impl Access {
    /// The word in the manifest.
    pub fn word(self) -> &'static str {
        match self {
            Self::Metrics => "metrics",
            Self::Status => "status",
            Self::Logs => "logs",
        }
    }
}

/// One plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plugin {
    /// Unique over all plugins; a DNS-1123 label.
    pub name: String,
    /// The vendor's `name` beside the key under `spec.plugins`, for people.
    pub display_name: Option<String>,
    /// Where it stands.
    pub kind: PluginKind,
    /// The image's reference; none only for telemetry, which then runs from the base image.
    pub image: Option<String>,
    /// Instead of the image's entry point.
    pub command: Option<Vec<String>>,
    /// Instead of the image's arguments.
    pub args: Option<Vec<String>>,
    /// Names and values, added to the image's.
    pub env: Vec<(String, String)>,
    /// Instead of the image's working directory.
    pub working_dir: Option<String>,
    /// TCP ports it serves.
    pub ports: Vec<Port>,
    /// Files it finds.
    pub volumes: Vec<Volume>,
    /// Where it may connect to, its own list and that of all plugins together; sorted.
    pub egress: Vec<Egress>,
    /// Destinations that are unknown without the synced files; empty when the files were given.
    pub unresolved: Vec<Unresolved>,
    /// What follows its end.
    pub restart: Restart,
    /// Whether it lives.
    pub probes: Probes,
    /// It is ready only once it has said so itself: `READY=1` to the socket that `NOTIFY_SOCKET` names, as
    /// `sd_notify` does. Beside its readiness probe, if it has one.
    pub notify_ready: bool,
    /// Runs before it is told to stop.
    pub pre_stop: Option<Handler>,
    /// From SIGTERM to SIGKILL.
    pub grace: Duration,
    /// What it may use.
    pub limits: Limits,
    /// What it may do.
    pub security: Security,
    /// Plugins that must be ready, or have completed, before it starts.
    pub depends_on: Vec<String>,
    /// What it may read of the supervisor's API.
    pub access: BTreeSet<Access>,
    /// Where its output goes.
    pub logs: LogRoute,
    /// Where it stands in the text.
    pub position: Position,
    /// Its YAML path.
    pub path: String,
}

impl Plugin {
    /// A mistake in this plugin that only its image or root file system shows.
    pub fn diagnostic(&self, message: impl Into<String>) -> Diagnostic {
        let Position { line, column } = self.position;
        Diagnostic { line, column, path: self.path.clone(), message: message.into() }
    }
}

/// A plugin with what the checks across plugins need of its text.
pub(super) struct Checked<'a> {
    pub(super) plugin: Plugin,
    /// The items of `dependsOn`, as long as `plugin.depends_on`.
    pub(super) dependencies: Vec<Cursor<'a>>,
    /// Its own word on its logs.
    pub(super) logs: Option<logs::Written<'a>>,
}

/// Reads `spec.userPlugins[]`.
pub(super) fn check_user<'a>(
    cursor: &Cursor<'a>,
    shared: &Destinations,
    scope: &Scope<'_>,
) -> Option<Checked<'a>> {
    let mut fields = cursor.mapping()?;
    let name = fields.required("name").and_then(|field| {
        let name = field.checked(name::label(field.string()?))?;
        let taken = scope.claim_name(&name, &field.path);
        if let Some(reason) = reserved(&name, PluginKind::User) {
            field.error(reason);
        } else if let Some(first) = taken {
            field.error(format!("the plugin name {name} is already used at {first}"));
        }
        Some(name)
    });
    let name = name.unwrap_or_default();
    // The vendor's user plugins may say where their image is pulled from; the host reads it.
    for secret in ["imagePullSecret", "imagePullSecrets"] {
        fields.field(secret).map(|c| host::check_pull_secrets(&c));
    }
    Some(check(cursor, fields, Identity { name, display_name: None, kind: PluginKind::User }, shared, scope))
}

/// Reads one value of `spec.plugins`; `key` is its name.
pub(super) fn check_service<'a>(
    key: &str,
    cursor: &Cursor<'a>,
    shared: &Destinations,
    scope: &Scope<'_>,
) -> Option<Checked<'a>> {
    let kind = if key == TELEMETRY { PluginKind::Telemetry } else { PluginKind::Service };
    let mut fields = cursor.mapping()?;
    fields.nest("spec");
    // The vendor's plugin schema: for people and for the host.
    fields.outer("kind").as_ref().and_then(Cursor::string);
    let display_name = fields.outer("name").as_ref().and_then(Cursor::string).map(str::to_owned);
    fields.outer("namespace").and_then(|c| c.checked(name::label(c.string()?)));
    for secret in ["imagePullSecret", "imagePullSecrets"] {
        fields.outer(secret).map(|c| host::check_pull_secrets(&c));
    }
    fields.outer("proxyPort").and_then(|c| c.port());
    if let Some(access) = fields.field("logsAccess")
        && matches!(access.node.value, Value::Scalar(_))
    {
        access.boolean();
    }
    Some(check(cursor, fields, Identity { name: key.to_owned(), display_name, kind }, shared, scope))
}

/// Why a plugin cannot have a name.
pub(super) fn reserved(name: &str, kind: PluginKind) -> Option<String> {
    if RESERVED_NAMES.contains(&name) {
        Some(format!("the name {} is the runtime's own", quoted(name)))
    } else if name == TELEMETRY && kind == PluginKind::User {
        Some("the name telemetry belongs to spec.plugins.telemetry".to_owned())
    } else {
        None
    }
}

struct Identity {
    name: String,
    display_name: Option<String>,
    kind: PluginKind,
}

fn check<'a>(
    cursor: &Cursor<'a>,
    mut fields: Mapping<'a>,
    identity: Identity,
    shared: &Destinations,
    scope: &Scope<'_>,
) -> Checked<'a> {
    let Identity { name, display_name, kind } = identity;
    let image = check_image(&mut fields, &name, kind, scope);
    let command = fields.field("command").and_then(|c| env::check_command(&c));
    let args = fields.field("args").and_then(|c| env::check_command(&c));
    let env_cursor = fields.field("env");
    let env = env_cursor.as_ref().map(env::check).unwrap_or_default();
    let working_dir = fields.field("workingDir").and_then(|c| env::check_working_dir(&c));
    let ports = fields.field("ports").map(|c| port::check(&c, scope)).unwrap_or_default();
    let volumes = fields.field("volumes").map(|c| volume::check(&c, &name, scope)).unwrap_or_default();
    let own = fields.field("outboundConnections");
    let destinations = own.as_ref().map(|c| egress::check(c, scope)).unwrap_or_default();
    let destinations = destinations.with(shared, own.as_ref());
    if let (PluginKind::Telemetry, Some(env_cursor)) = (kind, &env_cursor) {
        exporter::check(env_cursor, &destinations);
    }
    let restart = restart::check(&mut fields);
    let probes = probe::check(&mut fields);
    let notify_ready = fields.field("notifyReady").and_then(|c| c.boolean()).unwrap_or(false);
    let pre_stop = fields.field("lifecycle").and_then(|c| probe::check_lifecycle(&c));
    let grace = fields.field("terminationGracePeriodSeconds").and_then(|c| c.integer(0..=GRACE_SECONDS_MAX));
    let grace = Duration::from_secs(grace.unwrap_or(GRACE_SECONDS).into());
    let limits = fields.field("resources").map(|c| resources::check(&c)).unwrap_or_default();
    let security = fields.field("securityContext").map(|c| security::check(&c)).unwrap_or_default();
    let (depends_on, dependencies) = check_dependencies(&mut fields);
    let access = check_access(&mut fields, kind);
    let logs = logs::check_route(&mut fields, "logs");
    fields.finish();
    let Destinations { resolved: egress, unresolved } = destinations;
    let (position, path) = (cursor.node.position, cursor.path.clone());
    let plugin = Plugin {
        name,
        display_name,
        kind,
        image,
        command,
        args,
        env,
        working_dir,
        ports,
        volumes,
        egress,
        unresolved,
        restart,
        probes,
        notify_ready,
        pre_stop,
        grace,
        limits,
        security,
        depends_on,
        access,
        // Settled when all of the manifest is known.
        logs: LogRoute::default(),
        position,
        path,
    };
    Checked { plugin, dependencies, logs }
}

fn check_image(fields: &mut Mapping<'_>, name: &str, kind: PluginKind, scope: &Scope<'_>) -> Option<String> {
    let cursor = match kind {
        PluginKind::Telemetry => fields.field("image"),
        PluginKind::Service | PluginKind::User => fields.required("image"),
    }?;
    let image = image::check(&cursor)?;
    if let Some(baked) = scope.context.baked {
        // Without a telemetry image of its own, the base image's telemetry plugin runs whatever is named.
        let of_base = kind == PluginKind::Telemetry && !baked.contains_key(name);
        if !of_base && !name.is_empty() {
            image::check_baked(&cursor, name, &image, baked);
        }
    }
    Some(image)
}

fn check_dependencies<'a>(fields: &mut Mapping<'a>) -> (Vec<String>, Vec<Cursor<'a>>) {
    let Some(list) = fields.field("dependsOn") else { return Default::default() };
    let mut names: Vec<String> = Vec::new();
    let mut cursors = Vec::new();
    for cursor in list.items(PLUGINS_MAX) {
        let Some(name) = cursor.string() else { continue };
        if names.iter().any(|other| other == name) {
            cursor.error(format!("{} is listed twice", quoted(name)));
            continue;
        }
        names.push(name.to_owned());
        cursors.push(cursor);
    }
    (names, cursors)
}

fn check_access(fields: &mut Mapping<'_>, kind: PluginKind) -> BTreeSet<Access> {
    let words = [Access::Metrics, Access::Status, Access::Logs].map(|access| (access.word(), access));
    match fields.field("supervisorAccess") {
        Some(list) => list.items(words.len()).iter().filter_map(|c| c.word(&words)).collect(),
        None if kind == PluginKind::Telemetry => BTreeSet::from([Access::Metrics, Access::Status]),
        None => BTreeSet::new(),
    }
}
