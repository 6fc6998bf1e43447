//! The telemetry plugin's own variables: where it sends, and where it listens.

use super::cursor::Cursor;
use super::egress::Destinations;
use super::fqdn;
use super::node::{Node, Value};
use super::scalar::quoted;
use crate::exporter::{PATHS, Settings, Url};

/// Checks `EXPORTER_URL`, `HOST_PORT` and the standard variables in the list `env` of the telemetry plugin.
pub(super) fn check(env: &Cursor<'_>, destinations: &Destinations) {
    let own = variable(env, "EXPORTER_URL");
    if let Some((cursor, url)) = &own {
        cursor.checked(Url::base(url).and_then(|parsed| allowed(&parsed, url, destinations)));
    }
    if let Some((cursor, port)) = variable(env, "HOST_PORT")
        && !(port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0))
    {
        cursor.error(format!("{} is no port: a number from 1 to 65535", quoted(port)));
    }
    for (cursor, name, value) in variables(env) {
        cursor.checked(check_standard(name, value, own.is_some(), destinations));
    }
}

/// Checks one of OpenTelemetry's variables.
fn check_standard(name: &str, value: &str, has_url: bool, destinations: &Destinations) -> Result<(), String> {
    let mut settings = Settings::default();
    settings.take(name, value)?;
    if has_url && settings.endpoint.all().is_some() {
        return Err("EXPORTER_URL says it already: one of the two".to_owned());
    }
    match (0..PATHS.len()).find_map(|signal| settings.endpoint.of(signal)) {
        Some(url) => allowed(url, value, destinations),
        None => Ok(()),
    }
}

/// All variables with names and values.
fn variables<'a>(env: &Cursor<'a>) -> Vec<(Cursor<'a>, &'a str, &'a str)> {
    let Value::Sequence(items) = &env.node.value else { return Vec::new() };
    let read = |(node, item): (&'a Node, Cursor<'a>)| {
        let Value::Scalar(name) = &node.get("name")?.value else { return None };
        let value = item.mapping()?.field("value")?;
        let Value::Scalar(text) = &value.node.value else { return None };
        Some((value, name.text.as_str(), text.text.as_str()))
    };
    items.iter().zip(env.items(items.len())).filter_map(read).collect()
}

/// The value of a variable. Mistakes in the list were reported where it was checked.
fn variable<'a>(env: &Cursor<'a>, name: &str) -> Option<(Cursor<'a>, &'a str)> {
    let Value::Sequence(items) = &env.node.value else { return None };
    let holds = |item: &Node| match item.get("name").map(|name| &name.value) {
        Some(Value::Scalar(scalar)) => scalar.text == name,
        _ => false,
    };
    let index = items.iter().position(holds)?;
    let item = env.items(items.len()).into_iter().nth(index)?;
    let value = item.mapping()?.field("value")?;
    let Value::Scalar(scalar) = &value.node.value else { return None };
    Some((value, &scalar.text))
}

/// Whether an outbound connection leads to `url`, which was written as `text`.
fn allowed(url: &Url, text: &str, destinations: &Destinations) -> Result<(), String> {
    let (shown, port) = (quoted(text), url.port);
    let host = fqdn::parse(&url.host)?;
    let rule = destinations.resolved.iter().find(|egress| egress.fqdn == host && egress.port == port);
    match rule {
        Some(rule) if rule.tls && !url.tls => {
            Err(format!("{shown} is plaintext, but the outboundConnection to {host}:{port} demands TLS"))
        }
        Some(_) => Ok(()),
        // One of the names that are not known here may be this one.
        None if !destinations.unresolved.is_empty() => Ok(()),
        None => Err(format!("no outboundConnection of the telemetry plugin allows {host}:{port}")),
    }
}
