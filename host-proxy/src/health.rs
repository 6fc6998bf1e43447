//! `/healthz`: this program's loops run. `/readyz`: the enclave answers, runs the manifest, and its plugins
//! are ready.
//!
//! Both answer one line per cause, so that a person who sees a failing probe sees why; `?verbose` adds a line
//! per plugin that is ready. A client that asks for JSON gets the causes as such.

use std::{fmt::Write as _, sync::Arc};

use enclave_protocol::{
    control::{Condition, Phase, PluginPhase, PluginStatus, Status},
    glance, telemetry,
    timestamp::Timestamp,
};
use hyper::{HeaderMap, Method, Request, Response, StatusCode, body::Incoming, header};
use serde::Serialize;

use crate::{
    clock,
    http::{self, Answer, Body},
    view::{STDOUT_BROKEN, Shared, View},
};

/// Longest line of an answer, in characters: the kubelet puts the whole body into an event.
const LINE_MAX: usize = 240;

/// Answers the two probes.
#[derive(Debug)]
pub(crate) struct Health {
    /// What is known.
    pub(crate) shared: Arc<Shared>,
}

/// What both answers say.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
struct Verdict {
    ready: bool,
    /// Why not, one entry per cause.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    reasons: Vec<Cause>,
}

/// One cause.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Cause {
    /// The plugin it is about; none for the enclave as a whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    plugin: Option<String>,
    /// One word, or a few.
    reason: String,
    /// What is known beyond it: failing probes, the last exit.
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
}

impl Answer for Health {
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let path = request.uri().path();
        if !matches!(path, "/healthz" | "/readyz") {
            return http::not_found();
        }
        if request.method() != Method::GET {
            return http::wrong_method(&Method::GET);
        }
        let verbose = request.uri().query().is_some_and(|query| query.split('&').any(|key| key == "verbose"));
        let view = self.shared.view.borrow();
        let verdict = match path {
            "/healthz" => alive(&view),
            _ => ready(&view, clock::now()),
        };
        let status = if verdict.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        if wants_json(request.headers()) {
            return http::json(status, &verdict);
        }
        let is_verbose = verbose && path == "/readyz";
        let plugins = view.status.as_ref().filter(|_| is_verbose);
        let mut text = verdict.text(plugins);
        if is_verbose {
            text.push_str(&remarks(&view));
        }
        http::text(status, "text/plain; charset=utf-8", text)
    }
}

impl Verdict {
    fn of(reasons: Vec<Cause>) -> Self {
        Self { ready: reasons.is_empty(), reasons }
    }

    /// A line per cause, and one per ready plugin of `status`.
    fn text(&self, status: Option<&Status>) -> String {
        let mut text = String::new();
        for Cause { plugin, reason, message } in &self.reasons {
            let plugin = plugin.as_deref().map(|plugin| format!("{plugin}: ")).unwrap_or_default();
            let message = message.as_deref().map(|message| format!(": {message}")).unwrap_or_default();
            let line = format!("{plugin}{reason}{message}");
            // Writing to a String cannot fail, here and below.
            writeln!(text, "{}", glance::cut(&line, LINE_MAX)).ok();
        }
        if self.ready {
            text.push_str("ok\n");
        }
        for plugin in status.iter().flat_map(|status| &status.plugins).filter(|plugin| is_well(plugin)) {
            let state = if plugin.ready { "ready" } else { plugin.phase.word() };
            writeln!(text, "{}: {state}", glance::clean(&plugin.name)).ok();
        }
        text
    }
}

impl Cause {
    fn enclave(reason: &str) -> Self {
        Self { plugin: None, reason: reason.to_owned(), message: None }
    }

    fn plugin(plugin: &PluginStatus, now: Timestamp) -> Self {
        let mut known = glance::details(plugin);
        if plugin.phase != PluginPhase::Running {
            known.splice(0..0, plugin.last_exit.as_ref().map(glance::last_exit));
        }
        Self {
            plugin: Some(glance::clean(&plugin.name)),
            reason: glance::reason(plugin, now).unwrap_or_else(|| why(plugin.phase).to_owned()),
            message: (!known.is_empty()).then(|| known.join("; ")),
        }
    }
}

/// Whether the client names JSON. The kubelet and curl do not.
fn wants_json(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accepted.into_iter().any(|value| value.contains("application/json"))
}

/// Whether nothing is to be waited for: it is ready, or it did what it had to.
fn is_well(plugin: &PluginStatus) -> bool {
    plugin.ready || plugin.phase == PluginPhase::Completed
}

/// A loop that ends takes the process with it, so an answer proves all of them but one: shipping logs goes on
/// trying when stdout is closed, and only a new process gets a new stdout.
fn alive(view: &View) -> Verdict {
    Verdict::of(view.sink_broken.then(|| Cause::enclave(STDOUT_BROKEN)).into_iter().collect())
}

fn ready(view: &View, now: Timestamp) -> Verdict {
    let Some(status) = &view.status else {
        return Verdict::of(vec![Cause::enclave("EnclaveNotReached")]);
    };
    if !view.is_fresh() {
        return Verdict::of(vec![Cause::enclave("EnclaveNotAnswering")]);
    }
    if view.session.as_ref().is_none_or(|session| session.boot_id != status.boot_id) {
        return Verdict::of(vec![Cause::enclave("ManifestNotAccepted")]);
    }
    let phase = match status.phase {
        Phase::Running if status.ready => return Verdict::of(vec![]),
        Phase::Running => None,
        Phase::AwaitingManifest => Some("ManifestNotAccepted"),
        Phase::Stopping => Some("Stopping"),
        Phase::Completed => Some("Completed"),
        Phase::Failed => Some("Failed"),
    };
    let plugins = status.plugins.iter().filter(|plugin| !is_well(plugin));
    let plugins = plugins.map(|plugin| Cause::plugin(plugin, now));
    let mut reasons: Vec<Cause> = phase.map(Cause::enclave).into_iter().chain(plugins).collect();
    if reasons.is_empty() {
        reasons.push(Cause::enclave("NotReady"));
    }
    Verdict::of(reasons)
}

/// A line per condition that does not make the enclave unready, but that somebody should look at.
fn remarks(view: &View) -> String {
    let shown = [STDOUT_BROKEN, telemetry::EXPORT_FAILING, telemetry::SILENT];
    let conditions =
        view.conditions().into_iter().filter(|condition| shown.contains(&condition.kind.as_str()));
    let line = |condition: Condition| {
        let text = format!("! {}: {}", glance::clean(&condition.kind), glance::clean(&condition.message));
        format!("{}\n", glance::cut(&text, LINE_MAX))
    };
    conditions.map(line).collect()
}

/// For a plugin whose status gives no reason.
fn why(phase: PluginPhase) -> &'static str {
    match phase {
        PluginPhase::Running => "NotReady",
        PluginPhase::Waiting
        | PluginPhase::Starting
        | PluginPhase::BackingOff
        | PluginPhase::Stopping
        | PluginPhase::Completed
        | PluginPhase::Failed
        | PluginPhase::Stopped => phase.word(),
    }
}
