//! A supervisor's socket for the telemetry plugin: it tells whose enclave this is, and little else, so that
//! the figures are those of scraping.

use std::{convert::Infallible, path::Path};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Method, Request, Response, StatusCode, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::json;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::{net::UnixListener, task::JoinSet};

use crate::failure::{Failure, While as _};

/// Serves until the result is dropped.
pub(super) fn serve(socket: &Path) -> Result<JoinSet<()>, Failure> {
    let listener = UnixListener::bind(socket).while_doing("a supervisor's socket")?;
    let mut server = JoinSet::new();
    server.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            connections.spawn(async move {
                let service = service_fn(|request| async move { Ok::<_, Infallible>(answer(&request)) });
                // The plugin ends its connection when it likes.
                let http = hyper::server::conn::http1::Builder::new();
                http.serve_connection(TokioIo::new(stream), service).await.ok();
            });
        }
    });
    Ok(server)
}

fn answer(request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let (status, body) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/v1/metrics") => (StatusCode::OK, sample()),
        (&Method::PUT, "/v1/telemetry") => (StatusCode::NO_CONTENT, String::new()),
        _ => (StatusCode::NOT_FOUND, String::new()),
    };
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response
}

/// A sample of this moment.
fn sample() -> String {
    let now = OffsetDateTime::now_utc();
    let text = |time: OffsetDateTime| time.format(&Rfc3339).unwrap_or_default();
    let gauge =
        json!({"name": "nitro_enclave_cpu_usage", "help": "", "kind": "gauge", "points": [{"value": 0.5}]});
    json!({
        "time": text(now),
        "started": text(now - time::Duration::MINUTE),
        "labels": {"oblv_deployment_name": "bench", "ned_name": "bench", "namespace": "default"},
        "resource": {"service.instance.id": "bench-0"},
        "families": [gauge],
    })
    .to_string()
}
