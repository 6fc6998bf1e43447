//! The collector's address and the standard variables `OTEL_…`, as the manifest's check and the telemetry
//! plugin both read them. Every variable is obeyed or refused: one without an effect would be a setting that
//! somebody relies on. Values may be secret, so that no message repeats one, except an address without a
//! password.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    glance,
    metrics::{LABEL_DEPLOYMENT, LABEL_NAMESPACE, LABEL_NED, prometheus},
};

/// The paths that OTLP/HTTP appends to a base URL.
pub const PATHS: [&str; 3] = ["/v1/metrics", "/v1/logs", "/v1/traces"];
/// The signals in the names of variables, in the order of [`PATHS`].
const SIGNALS: [&str; 3] = ["METRICS_", "LOGS_", "TRACES_"];
/// Most headers, and most resource attributes: a collector takes a handful.
const PAIRS_MAX: usize = 32;
/// Longest attempt that may be asked for. A hung collector is noticed by then.
const TIMEOUT_MAX: Duration = Duration::from_mins(1);
/// Longest part of an address that a message repeats, in characters.
const SHOWN_MAX: usize = 120;
/// Headers that OTLP/HTTP sets itself.
const OWN_HEADERS: [&str; 7] = [
    "host",
    "content-type",
    "content-length",
    "content-encoding",
    "transfer-encoding",
    "connection",
    "upgrade",
];
/// Resource attributes that say whose the data is, in the form of a label.
const IDENTITY: [&str; 12] = [
    LABEL_DEPLOYMENT,
    LABEL_NED,
    LABEL_NAMESPACE,
    "instance",
    "job",
    "service_name",
    "service_namespace",
    "service_instance_id",
    "k8s_namespace_name",
    "k8s_pod_name",
    "k8s_pod_uid",
    "k8s_node_name",
];

/// The parts of a collector's URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    /// Whether it is https.
    pub tls: bool,
    /// A name or an address, without brackets.
    pub host: String,
    /// The port, or the scheme's.
    pub port: u16,
    /// Host and port as written: the `Host` header.
    pub authority: String,
    /// The path, without a slash at its end.
    pub path: String,
}

impl Url {
    /// Reads a URL to which the path of a signal is appended.
    pub fn base(text: &str) -> Result<Self, String> {
        let url = Self::exact(text)?;
        match PATHS.iter().find(|path| url.path.ends_with(**path)) {
            None => Ok(url),
            Some(path) => Err(format!(
                "{} ends in {path}, which is appended: write the URL without {path}",
                shown(text)
            )),
        }
    }

    /// Reads a URL that is used as it is.
    pub fn exact(text: &str) -> Result<Self, String> {
        let (default_port, tls, rest) = if let Some(rest) = text.strip_prefix("http://") {
            (80, false, rest)
        } else if let Some(rest) = text.strip_prefix("https://") {
            (443, true, rest)
        } else {
            return Err("not a URL of a collector, which begins with http:// or https://".to_owned());
        };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        if authority.contains('@') {
            // The value is not repeated here: it may hold a password.
            return Err("a collector's URL must not hold a user name or password".to_owned());
        }
        if path.contains(['?', '#']) || !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(
                "not a base URL: a path is appended, so it has no query, fragment or space".to_owned()
            );
        }
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, Some(port)),
            Some(_) | None => (authority, None),
        };
        let is_number = |port: &&str| port.bytes().all(|b| b.is_ascii_digit());
        let port = match port {
            None => default_port,
            Some(port) => {
                let number = Some(port).filter(is_number).and_then(|port| port.parse().ok());
                let number = number.filter(|number: &u16| *number > 0);
                number
                    .ok_or_else(|| format!("{} has no valid port, a number from 1 to 65535", shown(text)))?
            }
        };
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let is_address = bare.is_some_and(|host| host.parse::<std::net::Ipv6Addr>().is_ok());
        if host.is_empty() || (host.contains(['[', ']', ':']) && !is_address) {
            return Err(format!("{} has no valid host", shown(text)));
        }
        Ok(Self {
            tls,
            host: bare.unwrap_or(host).to_owned(),
            port,
            authority: authority.to_owned(),
            path: path.trim_end_matches('/').to_owned(),
        })
    }
}

/// The beginning of a text, in quotes.
fn shown(text: &str) -> String {
    format!("{:?}", glance::cut(text, SHOWN_MAX))
}

/// One value for all signals, and one for each that replaces it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PerSignal<T> {
    all: Option<T>,
    each: [Option<T>; 3],
}

impl<T> Default for PerSignal<T> {
    fn default() -> Self {
        Self { all: None, each: [None, None, None] }
    }
}

impl<T> PerSignal<T> {
    /// The value of the signal at this place in [`PATHS`].
    pub fn of(&self, signal: usize) -> Option<&T> {
        self.each.get(signal).and_then(Option::as_ref).or(self.all.as_ref())
    }

    /// The value for all signals.
    pub fn all(&self) -> Option<&T> {
        self.all.as_ref()
    }

    /// The value of this signal alone.
    pub fn only(&self, signal: usize) -> Option<&T> {
        self.each.get(signal).and_then(Option::as_ref)
    }

    fn set(&mut self, signal: Option<usize>, value: T) {
        match signal {
            None => self.all = Some(value),
            Some(signal) => self.each[signal] = Some(value),
        }
    }
}

/// Headers of a request. `Debug` shows the names alone: the values are keys of collectors.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Headers(
    /// Name in lower case, and value.
    pub Vec<(String, String)>,
);

impl std::fmt::Debug for Headers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

/// What the variables say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// `OTEL_EXPORTER_OTLP_ENDPOINT` is a base, that of a signal is used as it is.
    pub endpoint: PerSignal<Url>,
    /// `OTEL_EXPORTER_OTLP_HEADERS`.
    pub headers: PerSignal<Headers>,
    /// `OTEL_EXPORTER_OTLP_TIMEOUT`, of one attempt.
    pub timeout: PerSignal<Duration>,
    /// Whether bodies are compressed: `OTEL_EXPORTER_OTLP_COMPRESSION`.
    pub gzip: PerSignal<bool>,
    /// `OTEL_EXPORTER_OTLP_CERTIFICATE`: a PEM file of authorities.
    pub certificate: Option<String>,
    /// `OTEL_RESOURCE_ATTRIBUTES`.
    pub resource: BTreeMap<String, String>,
}

impl Settings {
    /// Takes a variable in, or says why it cannot be obeyed. Variables that do not begin with `OTEL_` are
    /// others'.
    pub fn take(&mut self, name: &str, value: &str) -> Result<(), String> {
        let Some(rest) = name.strip_prefix("OTEL_") else { return Ok(()) };
        let value = value.trim();
        // The specification: a variable that is empty is not set.
        if value.is_empty() {
            return Ok(());
        }
        if let Some(option) = rest.strip_prefix("EXPORTER_OTLP_") {
            let signal = SIGNALS.iter().position(|signal| option.starts_with(signal));
            let option = signal.map_or(option, |signal| &option[SIGNALS[signal].len()..]);
            return self.take_exporter(signal, option, value);
        }
        match rest {
            "RESOURCE_ATTRIBUTES" => {
                self.resource = resource(value)?;
                Ok(())
            }
            "SERVICE_NAME" => Err("the service's name is the deployment's, metadata.name".to_owned()),
            "METRIC_EXPORT_INTERVAL" => Err("the interval is set by ENCLAVE_EXPORT_INTERVAL".to_owned()),
            _ => Err("not supported by the telemetry plugin, so that it would have no effect".to_owned()),
        }
    }

    fn take_exporter(&mut self, signal: Option<usize>, option: &str, value: &str) -> Result<(), String> {
        let one_of = |wanted: &str| Err(format!("expected {wanted}"));
        match option {
            "ENDPOINT" => {
                let url = if signal.is_some() { Url::exact(value)? } else { Url::base(value)? };
                self.endpoint.set(signal, url);
            }
            "HEADERS" => self.headers.set(signal, headers(value)?),
            "TIMEOUT" => self.timeout.set(signal, timeout(value)?),
            "COMPRESSION" => match value {
                "gzip" => self.gzip.set(signal, true),
                "none" => self.gzip.set(signal, false),
                _ => return one_of("gzip or none"),
            },
            "PROTOCOL" if value == "http/protobuf" => {}
            "PROTOCOL" => return one_of("http/protobuf, the only protocol that is spoken"),
            "CERTIFICATE" => match (signal, &self.certificate) {
                (Some(_), _) => {
                    return Err("one file is used for all signals: OTEL_EXPORTER_OTLP_CERTIFICATE".into());
                }
                (None, _) => self.certificate = Some(value.to_owned()),
            },
            "CLIENT_CERTIFICATE" | "CLIENT_KEY" => {
                return Err("client certificates are not supported".to_owned());
            }
            "INSECURE" => return Err("the scheme of the URL says whether TLS is used".to_owned()),
            "TEMPORALITY_PREFERENCE" if signal == Some(0) && value.eq_ignore_ascii_case("cumulative") => {}
            "TEMPORALITY_PREFERENCE" if signal == Some(0) => {
                return one_of("cumulative, which Prometheus needs");
            }
            _ => {
                return Err(
                    "not supported by the telemetry plugin, so that it would have no effect".to_owned()
                );
            }
        }
        Ok(())
    }
}

fn timeout(value: &str) -> Result<Duration, String> {
    let millis = Some(value).filter(|value| value.bytes().all(|b| b.is_ascii_digit()));
    let time = millis.and_then(|value| value.parse().ok()).map(Duration::from_millis);
    time.filter(|time| (Duration::from_millis(1)..=TIMEOUT_MAX).contains(time))
        .ok_or_else(|| format!("expected milliseconds, from 1 to {}", TIMEOUT_MAX.as_millis()))
}

/// Reads `key1=value1,key2=value2`, values percent-encoded, as W3C Baggage writes it.
fn pairs(text: &str) -> Result<Vec<(String, String)>, String> {
    let mut pairs = Vec::new();
    for pair in text.split([',', '\n']).map(str::trim).filter(|pair| !pair.is_empty()) {
        let place = pairs.len() + 1;
        let (key, value) = pair.split_once('=').ok_or_else(|| format!("entry {place} has no \"=\""))?;
        let value =
            decoded(value.trim()).ok_or_else(|| format!("the value of entry {place} is not valid"))?;
        if pairs.len() == PAIRS_MAX {
            return Err(format!("more than {PAIRS_MAX} entries"));
        }
        pairs.push((key.trim().to_owned(), value));
    }
    Ok(pairs)
}

fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte == b'%' {
            let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &rest[2..];
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

/// Reads the headers of `OTEL_EXPORTER_OTLP_HEADERS`, or of a file with the same entries on one or more
/// lines.
pub fn headers(text: &str) -> Result<Headers, String> {
    let mut headers = Vec::new();
    for (index, (name, value)) in pairs(text)?.into_iter().enumerate() {
        let is_token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        if name.is_empty() || !name.bytes().all(is_token) {
            return Err(format!("the name of entry {} is not a header's", index + 1));
        }
        let name = name.to_ascii_lowercase();
        if OWN_HEADERS.contains(&name.as_str()) {
            return Err(format!("the header {name:?} is set by the exporter"));
        }
        // A line break would begin another header.
        if !value.bytes().all(|b| b == b' ' || b == b'\t' || b.is_ascii_graphic()) {
            return Err(format!(
                "the value of the header {name:?} holds other than visible ASCII characters"
            ));
        }
        headers.push((name, value));
    }
    Ok(Headers(headers))
}

fn resource(text: &str) -> Result<BTreeMap<String, String>, String> {
    let mut attributes = BTreeMap::new();
    for (key, value) in pairs(text)? {
        if key.is_empty() {
            return Err("an attribute has no name".to_owned());
        }
        if IDENTITY.contains(&prometheus::label_name(&key).as_str()) {
            return Err(format!("the resource attribute {key:?} is part of the enclave's identity"));
        }
        attributes.insert(key, value);
    }
    Ok(attributes)
}

#[cfg(test)]
mod tests;
