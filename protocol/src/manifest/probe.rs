//! Probes and lifecycle handlers, with the defaults and ranges of Kubernetes.

use super::cursor::{Cursor, Mapping};
use super::env;
use super::name;
use super::node::Value;

/// Longest time a probe field may hold, in seconds: a day.
const SECONDS_MAX: u32 = 86_400;
/// More headers than this are a mistake.
const HEADERS_MAX: usize = 32;

/// How a plugin is asked whether it lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// The question.
    pub handler: Handler,
    /// Wait after the start, in seconds.
    pub initial_delay_seconds: u32,
    /// From one question to the next, in seconds.
    pub period_seconds: u32,
    /// No answer within this many seconds is a failure.
    pub timeout_seconds: u32,
    /// So many failures in a row count.
    pub failure_threshold: u32,
    /// So many successes in a row count.
    pub success_threshold: u32,
    /// Instead of the plugin's own grace when this probe ends it.
    pub termination_grace_seconds: Option<u32>,
}

/// What a probe or a lifecycle hook does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Handler {
    /// Runs a command in the plugin's surroundings.
    Exec(Vec<String>),
    /// Sends a GET request; 200 to 399 is success.
    HttpGet(HttpGet),
    /// Opens a connection.
    TcpSocket(u16),
}

/// A request to the plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpGet {
    /// Absolute path with an optional query.
    pub path: String,
    /// TCP port.
    pub port: u16,
    /// Over TLS, without a look at the certificate.
    pub https: bool,
    /// Added to the request.
    pub headers: Vec<(String, String)>,
}

/// The three probes of a plugin.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Probes {
    /// The others wait until it succeeds.
    pub startup: Option<Probe>,
    /// Its failure ends the run.
    pub liveness: Option<Probe>,
    /// Its failure makes the plugin not ready.
    pub readiness: Option<Probe>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Startup,
    Liveness,
    Readiness,
}

pub(super) fn check(plugin: &mut Mapping<'_>) -> Probes {
    Probes {
        startup: plugin.field("startupProbe").and_then(|c| check_probe(&c, Kind::Startup)),
        liveness: plugin.field("livenessProbe").and_then(|c| check_probe(&c, Kind::Liveness)),
        readiness: plugin.field("readinessProbe").and_then(|c| check_probe(&c, Kind::Readiness)),
    }
}

fn check_probe(cursor: &Cursor<'_>, kind: Kind) -> Option<Probe> {
    let mut fields = cursor.mapping()?;
    let handler = check_handler(cursor, &mut fields, true);
    let mut number = |name, low: u32, default| {
        fields.field(name).and_then(|c| c.integer(low..=SECONDS_MAX)).unwrap_or(default)
    };
    let initial_delay_seconds = number("initialDelaySeconds", 0, 0);
    let period_seconds = number("periodSeconds", 1, 10);
    let timeout_seconds = number("timeoutSeconds", 1, 1);
    let failure_threshold = number("failureThreshold", 1, 3);
    let success = fields.field("successThreshold");
    let success_threshold = success.as_ref().and_then(|c| c.integer(1..=SECONDS_MAX)).unwrap_or(1);
    if let Some(success) = success.filter(|_| success_threshold != 1 && kind != Kind::Readiness) {
        success.error("must be 1 for startup and liveness probes");
    }
    let grace = fields.field("terminationGracePeriodSeconds");
    fields.finish();
    if let Some(grace) = grace.as_ref().filter(|_| kind == Kind::Readiness) {
        grace.error("a readiness probe ends nothing: the field belongs to startup and liveness probes");
    }
    let termination_grace_seconds = grace.and_then(|c| c.integer(1..=SECONDS_MAX));
    Some(Probe {
        handler: handler?,
        initial_delay_seconds,
        period_seconds,
        timeout_seconds,
        failure_threshold,
        success_threshold,
        termination_grace_seconds,
    })
}

/// Reads `lifecycle`.
pub(super) fn check_lifecycle(cursor: &Cursor<'_>) -> Option<Handler> {
    let mut fields = cursor.mapping()?;
    let hook = fields.field("preStop");
    fields.finish();
    let hook = hook?;
    let mut fields = hook.mapping()?;
    let handler = check_handler(&hook, &mut fields, false);
    fields.finish();
    handler
}

fn check_handler(cursor: &Cursor<'_>, fields: &mut Mapping<'_>, with_socket: bool) -> Option<Handler> {
    let exec = fields.field("exec");
    let http = fields.field("httpGet");
    let socket = if with_socket { fields.field("tcpSocket") } else { None };
    let given = [&exec, &http, &socket].into_iter().flatten().count();
    if given != 1 {
        let all = if with_socket { "exec, httpGet and tcpSocket" } else { "exec and httpGet" };
        cursor.error(format!("exactly one of {all} is required, {given} are given"));
    }
    if let Some(exec) = exec {
        return check_exec(&exec);
    }
    if let Some(http) = http {
        return check_http(&http);
    }
    let socket = socket?;
    let mut fields = socket.mapping()?;
    let port = fields.required("port").and_then(|c| c.port());
    fields.finish();
    port.map(Handler::TcpSocket)
}

fn check_exec(cursor: &Cursor<'_>) -> Option<Handler> {
    let mut fields = cursor.mapping()?;
    let command = fields.required("command");
    fields.finish();
    let command = command?;
    if matches!(&command.node.value, Value::Sequence(words) if words.is_empty()) {
        command.error("a command has at least one word");
    }
    env::check_command(&command).map(Handler::Exec)
}

fn check_http(cursor: &Cursor<'_>) -> Option<Handler> {
    let mut fields = cursor.mapping()?;
    let path = fields.field("path");
    let port = fields.required("port").and_then(|c| c.port());
    let scheme = fields.field("scheme").and_then(|c| c.word(&[("HTTP", false), ("HTTPS", true)]));
    let headers = fields.field("httpHeaders").map(|list| check_headers(&list));
    fields.finish();
    let visible = |text: &str| text.starts_with('/') && text.bytes().all(|b| b.is_ascii_graphic());
    let path = match path {
        None => "/".to_owned(),
        Some(path) => {
            let text = path.string()?;
            if !visible(text) {
                path.error("expected an absolute path of visible ASCII characters");
            }
            text.to_owned()
        }
    };
    let https = scheme.unwrap_or(false);
    Some(Handler::HttpGet(HttpGet { path, port: port?, https, headers: headers.unwrap_or_default() }))
}

fn check_headers(list: &Cursor<'_>) -> Vec<(String, String)> {
    let mut headers = Vec::new();
    for item in list.items(HEADERS_MAX) {
        let Some(mut fields) = item.mapping() else { continue };
        let name_cursor = fields.required("name");
        let value_cursor = fields.required("value");
        fields.finish();
        let header = name_cursor.as_ref().and_then(Cursor::string);
        let value = value_cursor.as_ref().and_then(Cursor::string);
        if let (Some(cursor), Some(text)) = (&name_cursor, header)
            && !name::is_header(text)
        {
            cursor.error("no name of an HTTP header");
        }
        if let (Some(cursor), Some(text)) = (&value_cursor, value)
            && text.chars().any(char::is_control)
        {
            cursor.error("an HTTP header has no control characters");
        }
        if let (Some(header), Some(value)) = (header, value) {
            headers.push((header.to_owned(), value.to_owned()));
        }
    }
    headers
}
