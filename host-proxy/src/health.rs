//! `/healthz`: this program's loops run. `/readyz`: the enclave answers, runs the manifest, and its plugins
//! are ready.

use std::sync::Arc;

use enclave_protocol::control::{Phase, PluginPhase, PluginStatus};
use hyper::{Method, Request, Response, StatusCode, body::Incoming};
use serde::Serialize;

use crate::{
    http::{self, Answer, Body},
    view::{Shared, View},
};

/// Answers the two probes.
#[derive(Debug)]
pub(crate) struct Health {
    /// What is known.
    pub(crate) shared: Arc<Shared>,
}

/// The body of both answers.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
struct Verdict {
    ready: bool,
    /// Why not, one entry per cause.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    reasons: Vec<Reason>,
}

/// One cause.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Reason {
    /// The plugin it is about; none for the enclave as a whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    plugin: Option<String>,
    reason: String,
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
        let verdict = match path {
            "/healthz" => alive(&self.shared.view.borrow()),
            _ => ready(&self.shared.view.borrow()),
        };
        let status = if verdict.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        http::json(status, &verdict)
    }
}

impl Verdict {
    fn of(reasons: Vec<Reason>) -> Self {
        Self { ready: reasons.is_empty(), reasons }
    }
}

impl Reason {
    fn enclave(reason: &str) -> Self {
        Self { plugin: None, reason: reason.to_owned() }
    }
}

/// A loop that ends takes the process with it, so an answer proves all of them but one: shipping logs goes on
/// trying when stdout is closed, and only a new process gets a new stdout.
fn alive(view: &View) -> Verdict {
    Verdict::of(view.sink_broken.then(|| Reason::enclave("StdoutBroken")).into_iter().collect())
}

fn ready(view: &View) -> Verdict {
    let Some(status) = &view.status else {
        return Verdict::of(vec![Reason::enclave("EnclaveNotReached")]);
    };
    if !view.is_fresh() {
        return Verdict::of(vec![Reason::enclave("EnclaveNotAnswering")]);
    }
    if view.session.as_ref().is_none_or(|session| session.boot_id != status.boot_id) {
        return Verdict::of(vec![Reason::enclave("ManifestNotAccepted")]);
    }
    let phase = match status.phase {
        Phase::Running if status.ready => return Verdict::of(vec![]),
        Phase::Running => None,
        Phase::AwaitingManifest => Some("ManifestNotAccepted"),
        Phase::Stopping => Some("Stopping"),
        Phase::Completed => Some("Completed"),
        Phase::Failed => Some("Failed"),
    };
    let plugins = status.plugins.iter().filter(|plugin| !plugin.ready);
    let plugins =
        plugins.map(|plugin| Reason { plugin: Some(plugin.name.clone()), reason: why(plugin).to_owned() });
    let mut reasons: Vec<Reason> = phase.map(Reason::enclave).into_iter().chain(plugins).collect();
    if reasons.is_empty() {
        reasons.push(Reason::enclave("NotReady"));
    }
    Verdict::of(reasons)
}

fn why(plugin: &PluginStatus) -> &str {
    plugin.reason.as_deref().unwrap_or(match plugin.phase {
        PluginPhase::Waiting => "Waiting",
        PluginPhase::Starting => "Starting",
        PluginPhase::Running => "NotReady",
        PluginPhase::BackingOff => "BackingOff",
        PluginPhase::Stopping => "Stopping",
        PluginPhase::Completed => "Completed",
        PluginPhase::Failed => "Failed",
        PluginPhase::Stopped => "Stopped",
    })
}
