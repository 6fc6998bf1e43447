//! The `NitroEnclaveDeployment` manifest: from YAML text to a checked model.
//!
//! ```text
//! text ──yaml──▶ tree of nodes with positions ──one collecting checker──▶ Manifest
//!                                                         └────────────▶ every mistake at once, by position
//! ```
//! A module per noun holds that noun's type and the check that makes it from a node. Checks never stop at
//! the first mistake. The text and the files come from the untrusted host, so everything is bounded; nothing
//! here knows a clock, a file system or a process.

pub(crate) mod cursor;
mod egress;
mod env;
mod exporter;
mod filepath;
pub(crate) mod fqdn;
mod host;
mod image;
mod logs;
mod name;
mod nearest;
pub(crate) mod node;
mod not_in_force;
mod order;
mod path;
mod period;
mod plugin;
mod port;
mod probe;
mod quantity;
mod reference;
pub(crate) mod report;
mod resources;
mod restart;
pub(crate) mod scalar;
mod scope;
mod scraping;
mod security;
mod volume;
pub(crate) mod yaml;

use std::collections::BTreeMap;

use self::cursor::{Cursor, Mapping};
use self::egress::Destinations;
pub use self::egress::{Egress, Unresolved};
pub use self::host::HostSide;
pub use self::logs::HostLogs;
pub(crate) use self::name::subdomain;
pub use self::node::Position;
pub use self::plugin::{Access, Plugin, PluginKind, TELEMETRY};
use self::plugin::{Checked, PLUGINS_MAX};
pub use self::port::Port;
pub use self::probe::{Handler, HttpGet, Probe, Probes};
pub use self::quantity::QUANTITY_MAX;
pub use self::reference::{Format, Reference};
pub use self::report::DIAGNOSTICS_MAX;
use self::report::Report;
pub use self::resources::Limits;
pub use self::restart::{Restart, RestartPolicy};
pub use self::scope::RESERVED_HOST_PORTS;
use self::scope::Scope;
pub use self::security::Security;
pub use self::volume::{Item, Source, Volume};
use crate::control::{
    Condition, Diagnostic, EgressRule, Files, IngressRule, LogRoute, MANIFEST_BYTES_MAX, Plan,
};

/// The one version there is.
pub const API_VERSION: &str = "k8s.oblv.com/v1alpha1";
/// The one kind there is.
pub const KIND: &str = "NitroEnclaveDeployment";

/// What a manifest is checked against.
#[derive(Debug, Clone, Copy, Default)]
pub struct Context<'a> {
    /// The synced files. Without them no file is looked for, and host names that stand in files stay
    /// unresolved and out of the plan (`check FILE`).
    pub files: Option<&'a Files>,
    /// Plugin → reference of the image that was baked in for it; without it images are not compared. Without
    /// an entry for telemetry, its base image's plugin runs and any reference is accepted.
    pub baked: Option<&'a BTreeMap<String, String>>,
    /// Host ports that are taken, beside [`RESERVED_HOST_PORTS`].
    pub reserved_host_ports: &'a [u16],
    /// Whether a volume has its place in the plugin's image; without it no image is looked into.
    pub place: Option<Place<'a>>,
}

/// Judges a volume's path in a plugin's root file system, given plugin and path: the file system is the
/// caller's, its mistakes belong among the others.
#[derive(Clone, Copy)]
pub struct Place<'a>(
    /// Why the path has no place there.
    pub &'a dyn Fn(&str, &str) -> Result<(), String>,
);

impl std::fmt::Debug for Place<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Place(..)")
    }
}

/// A checked manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The deployment's name: the value of `oblv_deployment_name`.
    pub name: String,
    /// The deployment's namespace.
    pub namespace: String,
    /// In start order.
    pub plugins: Vec<Plugin>,
    /// Which logs go by the host where nothing else is said.
    pub host_logs: HostLogs,
    /// Where the supervisor's own log records go.
    pub supervisor_logs: LogRoute,
    /// What the host side reads.
    pub host: HostSide,
    conditions: Vec<Condition>,
}

/// Reads and checks a manifest; answers every mistake at once, sorted by position.
pub fn parse(text: &str, context: &Context<'_>) -> Result<Manifest, Vec<Diagnostic>> {
    let report = Report::default();
    if text.len() > MANIFEST_BYTES_MAX {
        let message = format!("{} bytes are too long: the limit is {MANIFEST_BYTES_MAX}", text.len());
        report.add(Position::START, "", message);
        return Err(report.finish());
    }
    let Some(root) = yaml::read(text, &report) else { return Err(report.finish()) };
    let manifest = check(&Cursor::root(&root, &report), &Scope::new(context));
    match manifest {
        Some(mut manifest) if report.is_empty() => {
            manifest.conditions = not_in_force::conditions(&root);
            manifest.conditions.extend(logs::conditions(&manifest.plugins, manifest.supervisor_logs));
            Ok(manifest)
        }
        _ => Err(report.finish()),
    }
}

impl Manifest {
    /// What the manifest comes down to.
    pub fn plan(&self) -> Plan {
        let rules = |plugin: &Plugin| -> Vec<EgressRule> {
            let rule = |egress: &Egress| EgressRule {
                plugin: plugin.name.clone(),
                fqdn: egress.fqdn.clone(),
                port: egress.port,
                tls: egress.tls,
            };
            plugin.egress.iter().map(rule).collect()
        };
        let shown = |plugin: &Plugin| -> Vec<IngressRule> {
            let rule = |port: &Port| {
                let (plugin, container_port) = (plugin.name.clone(), port.container_port);
                Some(IngressRule { host_port: port.host_port?, plugin, container_port })
            };
            plugin.ports.iter().filter_map(rule).collect()
        };
        let mut egress: Vec<EgressRule> = self.plugins.iter().flat_map(rules).collect();
        let mut ingress: Vec<IngressRule> = self.plugins.iter().flat_map(shown).collect();
        egress.sort();
        ingress.sort();
        Plan { plugins: self.plugins.iter().map(|plugin| plugin.name.clone()).collect(), egress, ingress }
    }

    /// Remarks: what is accepted but not in force in this release, and which log records the host does not
    /// get.
    pub fn conditions(&self) -> Vec<Condition> {
        self.conditions.clone()
    }

    /// Whether any log records leave by OTLP.
    pub fn exports_logs(&self) -> bool {
        let routes = self.plugins.iter().map(|plugin| plugin.logs);
        routes.chain([self.supervisor_logs]).any(|route| route == LogRoute::Otlp)
    }

    /// The plugin with this name.
    pub fn plugin(&self, name: &str) -> Option<&Plugin> {
        self.plugins.iter().find(|plugin| plugin.name == name)
    }
}

fn check(root: &Cursor<'_>, scope: &Scope<'_>) -> Option<Manifest> {
    let mut fields = root.mapping()?;
    let version = fields.required("apiVersion").and_then(|c| check_constant(&c, API_VERSION));
    let kind = fields.required("kind").and_then(|c| check_constant(&c, KIND));
    // Another kind has other fields; naming each as unknown would bury the one mistake.
    version.and(kind)?;
    let metadata = fields.required("metadata");
    let spec = fields.required("spec");
    fields.field("status");
    fields.finish();
    let (name, namespace) = metadata.and_then(|c| check_metadata(&c)).unwrap_or_default();
    let manifest = check_spec(&spec?, scope)?;
    Some(Manifest { name, namespace, ..manifest })
}

fn check_constant(cursor: &Cursor<'_>, expected: &str) -> Option<()> {
    let text = cursor.string()?;
    if text != expected {
        cursor.error(format!("expected {expected}, found {}", scalar::quoted(text)));
        return None;
    }
    Some(())
}

/// Name and namespace; everything else in `metadata` is Kubernetes' own.
fn check_metadata(cursor: &Cursor<'_>) -> Option<(String, String)> {
    let mut fields = cursor.mapping()?;
    let name = fields.required("name").and_then(|c| c.checked(subdomain(c.string()?)));
    let namespace = fields.field("namespace").map(|c| c.checked(name::label(c.string()?)));
    Some((name?, namespace.unwrap_or_else(|| Some("default".to_owned()))?))
}

fn check_spec(cursor: &Cursor<'_>, scope: &Scope<'_>) -> Option<Manifest> {
    let mut fields = cursor.mapping()?;
    let shared = fields.field("outboundConnections").map(|c| egress::check(&c, scope)).unwrap_or_default();
    let services = fields.field("plugins").map(|c| check_services(&c, &shared, scope)).unwrap_or_default();
    let users = check_users(&mut fields, &shared, scope);
    let logs = fields.field("logs").map(|c| logs::check(&c)).unwrap_or_default();
    let host = host::check(&mut fields);
    fields.finish();
    let mut plugins: Vec<Checked<'_>> = services.into_iter().chain(users).collect();
    let supervisor_logs = logs.settle(&mut plugins);
    let host_logs = logs.host;
    let plugins = order::sort(plugins);
    if let Some(files) = scope.context.files {
        scraping::check(&plugins, files, cursor);
    }
    let (name, namespace) = Default::default();
    Some(Manifest { name, namespace, plugins, host_logs, supervisor_logs, host, conditions: Vec::new() })
}

fn check_services<'a>(map: &Cursor<'a>, shared: &Destinations, scope: &Scope<'_>) -> Vec<Checked<'a>> {
    let entries = map.entries();
    if entries.len() > PLUGINS_MAX {
        map.error(format!("{} plugins are too many: the limit is {PLUGINS_MAX}", entries.len()));
        return Vec::new();
    }
    let mut services = Vec::new();
    for (key, position, cursor) in entries {
        scope.claim_name(key, &cursor.path);
        let wrong = name::label(key).err().or_else(|| plugin::reserved(key, PluginKind::Service));
        if let Some(message) = wrong {
            cursor.error_at(position, message);
        }
        // Unlike a field, a plugin that is named is meant to run.
        if cursor.node.is_null() {
            cursor.error("a plugin is a mapping; write {} for one with all defaults");
            continue;
        }
        services.extend(plugin::check_service(key, &cursor, shared, scope));
    }
    services
}

fn check_users<'a>(spec: &mut Mapping<'a>, shared: &Destinations, scope: &Scope<'_>) -> Vec<Checked<'a>> {
    let Some(list) = spec.required("userPlugins") else { return Vec::new() };
    let items = list.items(PLUGINS_MAX);
    if matches!(&list.node.value, node::Value::Sequence(nodes) if nodes.is_empty()) {
        list.error("at least one user plugin is required");
    }
    items.iter().filter_map(|item| plugin::check_user(item, shared, scope)).collect()
}
