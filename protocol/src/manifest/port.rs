//! A plugin's TCP ports and where the host shows them.

use std::collections::BTreeSet;

use super::cursor::Cursor;
use super::scope::Scope;

/// More ports than this in one plugin are a mistake; each costs a listener.
const PORTS_MAX: usize = 64;

/// One declared port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// The plugin listens here.
    pub container_port: u16,
    /// host-proxy listens here; without it the world does not reach the port.
    pub host_port: Option<u16>,
}

pub(super) fn check(list: &Cursor<'_>, scope: &Scope<'_>) -> Vec<Port> {
    let mut seen = BTreeSet::new();
    let ports: Vec<Port> =
        list.items(PORTS_MAX).iter().filter_map(|item| port(item, scope, &mut seen)).collect();
    ports
}

fn port(item: &Cursor<'_>, scope: &Scope<'_>, seen: &mut BTreeSet<u16>) -> Option<Port> {
    let mut fields = item.mapping()?;
    let container = fields.required("containerPort");
    let host = fields.field("hostPort");
    if let Some(protocol) = fields.field("protocol")
        && let Some(word) = protocol.string()
        && word != "TCP"
    {
        let hint = if matches!(word, "UDP" | "SCTP") { "" } else { " (write it as TCP)" };
        protocol.error(format!("{} is not supported: TCP only{hint}", super::scalar::quoted(word)));
    }
    fields.finish();
    let container_port = container.as_ref().and_then(Cursor::port);
    if let (Some(cursor), Some(port)) = (&container, container_port)
        && !seen.insert(port)
    {
        cursor.error(format!("containerPort {port} is declared twice in this plugin"));
    }
    let host_port = host.as_ref().and_then(Cursor::port);
    if let (Some(cursor), Some(port)) = (&host, host_port) {
        scope.claim_host_port(cursor, port);
    }
    Some(Port { container_port: container_port?, host_port })
}
