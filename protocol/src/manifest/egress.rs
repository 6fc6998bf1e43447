//! Destinations a plugin may connect to.

use std::collections::BTreeMap;

use super::cursor::{Cursor, Mapping};
use super::reference::{self, Reference};
use super::scope::Scope;
use super::{fqdn, name};

/// More destinations than this in one list are a mistake; each costs a listener per plugin.
const CONNECTIONS_MAX: usize = 256;

/// One destination.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Egress {
    /// Normalised host name.
    pub fqdn: String,
    /// TCP port.
    pub port: u16,
    /// The stream must open with a TLS `ClientHello` whose SNI is `fqdn`.
    pub tls: bool,
    /// Whether our own HTTP clients may follow a redirect on it.
    pub redirects: bool,
    /// The file the host name was read from, when it does not stand in the manifest.
    pub source: Option<Reference>,
}

/// A destination whose host name stands in a file that is not at hand (`check` without a config directory).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Unresolved {
    /// Where the host name stands.
    pub source: Reference,
    /// TCP port.
    pub port: u16,
    /// As in [`Egress`].
    pub tls: bool,
    /// As in [`Egress`].
    pub redirects: bool,
}

/// One list of destinations.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Destinations {
    pub(super) resolved: Vec<Egress>,
    pub(super) unresolved: Vec<Unresolved>,
}

impl Destinations {
    /// A plugin's own destinations and those of all plugins. The same destination in both must agree on TLS.
    pub(super) fn with(mut self, shared: &Self, own: Option<&Cursor<'_>>) -> Self {
        for other in &shared.resolved {
            match self.resolved.iter().find(|egress| egress.fqdn == other.fqdn && egress.port == other.port) {
                None => self.resolved.push(other.clone()),
                Some(egress) if egress.tls == other.tls => {}
                Some(egress) => {
                    let (fqdn, port) = (&egress.fqdn, egress.port);
                    if let Some(own) = own {
                        own.error(format!(
                            "{fqdn}:{port} is also in spec.outboundConnections, with another tls"
                        ));
                    }
                }
            }
        }
        for other in &shared.unresolved {
            if !self.unresolved.contains(other) {
                self.unresolved.push(other.clone());
            }
        }
        self.resolved.sort();
        self.unresolved.sort();
        self
    }
}

pub(super) fn check(list: &Cursor<'_>, scope: &Scope<'_>) -> Destinations {
    let mut destinations = Destinations::default();
    let mut seen: BTreeMap<(String, u16), String> = BTreeMap::new();
    for item in list.items(CONNECTIONS_MAX) {
        let Some(connection) = check_connection(&item, scope) else { continue };
        let Connection { target, port, tls, redirects } = connection;
        match target {
            Target::Unresolved(source) => {
                destinations.unresolved.push(Unresolved { source, port, tls, redirects });
            }
            Target::Name(fqdn, source) => {
                if let Some(first) = seen.get(&(fqdn.clone(), port)) {
                    item.error(format!("{fqdn}:{port} is already allowed at {first}"));
                    continue;
                }
                seen.insert((fqdn.clone(), port), item.path.clone());
                destinations.resolved.push(Egress { fqdn, port, tls, redirects, source });
            }
        }
    }
    destinations
}

struct Connection {
    target: Target,
    port: u16,
    tls: bool,
    redirects: bool,
}

enum Target {
    Name(String, Option<Reference>),
    Unresolved(Reference),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Default,
    Proxy,
    Enclave,
}

fn check_connection(item: &Cursor<'_>, scope: &Scope<'_>) -> Option<Connection> {
    let mut fields = item.mapping()?;
    let kind_cursor = fields.field("type");
    let words = [("default", Kind::Default), ("proxy", Kind::Proxy), ("enclave", Kind::Enclave)];
    // A wrong word was reported; the attested kinds' own fields are then no further mistake.
    let kind = kind_cursor.as_ref().map_or(Some(Kind::Default), |cursor| cursor.word(&words));
    let fqdn = fields.required("fqdn");
    let port = fields.required("port").and_then(|c| c.port());
    let tls = fields.field("tls").and_then(|c| c.boolean()).unwrap_or(false);
    let redirects = fields.field("redirects").and_then(|c| c.boolean()).unwrap_or(false);
    check_attested(&mut fields, kind);
    fields.finish();
    if let (Some(cursor), Some(Kind::Proxy | Kind::Enclave)) = (&kind_cursor, kind) {
        cursor.error("connections to attested peers are not supported yet: only type default is");
    }
    let target = check_fqdn(&fqdn?, scope)?;
    Some(Connection { target, port: port?, tls, redirects })
}

/// The fields of the vendor's attested peers: their form is checked, although the types are refused.
fn check_attested(fields: &mut Mapping<'_>, kind: Option<Kind>) {
    let proxy_url = fields.field("proxyUrl");
    let port = fields.field("attestationPort");
    let interval = fields.field("proxyAttestationIntervalSeconds");
    let config_map = fields.field("configMap");
    proxy_url.as_ref().and_then(Cursor::string);
    port.as_ref().and_then(Cursor::port);
    interval.as_ref().and_then(|c| c.integer(15_u32..=300));
    config_map.as_ref().and_then(|c| c.checked(name::object(c.string()?)));
    let Some(kind) = kind else { return };
    for cursor in [proxy_url, port, interval].into_iter().flatten().filter(|_| kind != Kind::Proxy) {
        cursor.error("belongs to connections of type proxy only");
    }
    if let Some(cursor) = config_map.filter(|_| kind != Kind::Enclave) {
        cursor.error("belongs to connections of type enclave only; fqdn.configMap names a file to read from");
    }
}

/// Both of the vendor's forms: `fqdn: NAME`, and `fqdn: {value: NAME}` or `fqdn: {configMap: …}`.
fn check_fqdn(cursor: &Cursor<'_>, scope: &Scope<'_>) -> Option<Target> {
    let literal = |cursor: &Cursor<'_>| {
        let name = cursor.checked(fqdn::parse(cursor.string_of("a host name")?))?;
        Some(Target::Name(name, None))
    };
    if !matches!(cursor.node.value, super::node::Value::Mapping(_)) {
        return literal(cursor);
    }
    let mut fields = cursor.mapping()?;
    let value = fields.field("value");
    let config_map = fields.field("configMap");
    fields.finish();
    match (value, config_map) {
        (Some(value), None) => literal(&value),
        (None, Some(config_map)) => check_reference(&config_map, scope),
        (Some(_), Some(_)) => {
            cursor.error("a host name has one origin: either value or configMap");
            None
        }
        (None, None) => {
            cursor.error("one of the fields value and configMap is required");
            None
        }
    }
}

fn check_reference(cursor: &Cursor<'_>, scope: &Scope<'_>) -> Option<Target> {
    let reference = reference::check(cursor)?;
    let Some(files) = scope.context.files else { return Some(Target::Unresolved(reference)) };
    if !scope.claim_reference(cursor) {
        return None;
    }
    let text = cursor.checked(reference.resolve(files))?;
    let of_file = |message| format!("{reference}: {message}");
    let name = cursor.checked(fqdn::parse(&text).map_err(of_file))?;
    Some(Target::Name(name, Some(reference)))
}
