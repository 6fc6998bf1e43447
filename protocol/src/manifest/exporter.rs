//! The telemetry plugin's own variables: where it sends, and where it listens.

use super::cursor::Cursor;
use super::egress::Destinations;
use super::fqdn;
use super::node::{Node, Value};
use super::scalar::quoted;

/// Checks `EXPORTER_URL` and `HOST_PORT` in the list `env` of the telemetry plugin.
pub(super) fn check(env: &Cursor<'_>, destinations: &Destinations) {
    if let Some((cursor, url)) = variable(env, "EXPORTER_URL") {
        cursor.checked(check_url(url, destinations));
    }
    if let Some((cursor, port)) = variable(env, "HOST_PORT")
        && !(port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0))
    {
        cursor.error(format!("{} is no port: a number from 1 to 65535", quoted(port)));
    }
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

fn check_url(url: &str, destinations: &Destinations) -> Result<(), String> {
    let (default_port, tls, rest) = if let Some(rest) = url.strip_prefix("http://") {
        (80, false, rest)
    } else if let Some(rest) = url.strip_prefix("https://") {
        (443, true, rest)
    } else {
        return Err("no URL of a collector: it begins with http:// or https://".to_owned());
    };
    if rest.contains('@') {
        // The value is not repeated here: it may hold a password.
        return Err("a collector's URL must not hold a user name or password".to_owned());
    }
    let shown = quoted(url);
    if rest.contains(['?', '#']) || !url.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(format!(
            "{shown} is no base URL: /v1/metrics is appended, so it has no query or fragment"
        ));
    }
    let authority = rest.split('/').next().unwrap_or_default();
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => {
            let number = port.parse::<u16>().ok().filter(|port| *port > 0);
            (host, number.ok_or_else(|| format!("{shown} has no valid port"))?)
        }
        _ => (authority, default_port),
    };
    let host = fqdn::parse(host)?;
    let rule = destinations.resolved.iter().find(|egress| egress.fqdn == host && egress.port == port);
    match rule {
        Some(rule) if rule.tls && !tls => {
            Err(format!("{shown} is plaintext, but the outboundConnection to {host}:{port} demands TLS"))
        }
        Some(_) => Ok(()),
        // One of the names that are not known here may be this one.
        None if !destinations.unresolved.is_empty() => Ok(()),
        None => Err(format!("no outboundConnection of the telemetry plugin allows {host}:{port}")),
    }
}
