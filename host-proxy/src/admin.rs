//! The admin socket: HTTP on a Unix socket (0600) for `status`, `logs` and `drain`.
//!
//! | call | does |
//! |---|---|
//! | `GET /status` | a [`Report`] |
//! | `GET /logs?follow=BOOL` | recent log records, then new ones, NDJSON |
//! | `POST /drain?grace=SECONDS` | starts the drain and answers with a [`Report`] per change until the end,
//! NDJSON |

use std::{io, os::unix::fs::PermissionsExt, path::Path, sync::Arc};

use bytes::Bytes;
use http_body_util::channel::{Channel, Sender};
use hyper::{Method, Request, Response, StatusCode, body::Incoming};
use tokio::{
    net::UnixListener,
    sync::{Mutex, broadcast},
    task::JoinSet,
};

use crate::{
    clock,
    http::{self, Answer, Body},
    metrics_page::Samples,
    report::Report,
    view::{Shared, Stop},
};

/// Where the running proxy listens.
pub(crate) const DEFAULT_SOCKET: &str = "/run/enclave-host-proxy.sock";
/// Frames of a stream that wait for a slow reader.
const FRAMES_MAX: usize = 16;
/// Answers that may be in the making at one time.
const STREAMS_MAX: usize = 64;

/// Answers the admin socket.
#[derive(Debug)]
pub(crate) struct Admin {
    shared: Arc<Shared>,
    samples: Arc<Samples>,
    /// The tasks that make streaming answers.
    streams: Mutex<JoinSet<()>>,
}

/// Binds the socket so that nobody else can ever connect to it: it gets its mode before it gets its name.
pub(crate) fn bind(path: &Path) -> io::Result<UnixListener> {
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(io::Error::new(io::ErrorKind::AddrInUse, "another proxy listens there"));
    }
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(format!(".{}", std::process::id()));
    let fresh = Path::new(&fresh);
    let listener = UnixListener::bind(fresh)?;
    std::fs::set_permissions(fresh, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(fresh, path)?;
    Ok(listener)
}

impl Answer for Admin {
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let query = request.uri().query().unwrap_or_default();
        match (request.uri().path(), request.method()) {
            ("/status", &Method::GET) => {
                http::json(StatusCode::OK, &report(&self.shared, &self.samples).await)
            }
            ("/logs", &Method::GET) => {
                let follow = parameter(query, "follow") == Some("true");
                let (kept, new) = self.shared.recent.follow();
                self.stream(move |sender| logs(sender, kept, follow.then_some(new))).await
            }
            ("/drain", &Method::POST) => {
                let Ok(grace_seconds) = parameter(query, "grace").map(str::parse).transpose() else {
                    return http::text(
                        StatusCode::BAD_REQUEST,
                        "text/plain",
                        "grace is no number of seconds\n",
                    );
                };
                // Full means that a stop is being asked for already.
                self.shared.stops.try_send(Stop { grace_seconds }).ok();
                let (shared, samples) = (Arc::clone(&self.shared), Arc::clone(&self.samples));
                self.stream(move |sender| progress(sender, shared, samples)).await
            }
            ("/status" | "/logs", _) => http::wrong_method(&Method::GET),
            ("/drain", _) => http::wrong_method(&Method::POST),
            _ => http::not_found(),
        }
    }
}

impl Admin {
    /// For this proxy.
    pub(crate) fn new(shared: Arc<Shared>, samples: Arc<Samples>) -> Self {
        Self { shared, samples, streams: Mutex::default() }
    }

    async fn stream<F>(&self, make: impl FnOnce(Sender<Bytes>) -> F) -> Response<Body>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let mut streams = self.streams.lock().await;
        while streams.try_join_next().is_some() {}
        if streams.len() >= STREAMS_MAX {
            return http::text(StatusCode::SERVICE_UNAVAILABLE, "text/plain", "too many streams\n");
        }
        let (sender, body) = Channel::new(FRAMES_MAX);
        streams.spawn(make(sender));
        http::stream(body)
    }
}

async fn report(shared: &Shared, samples: &Samples) -> Report {
    let sample = samples.newest().await;
    Report::new(clock::now(), &shared.instance, &shared.view.borrow(), sample.as_deref())
}

async fn logs(mut sender: Sender<Bytes>, kept: Vec<Bytes>, new: Option<broadcast::Receiver<Bytes>>) {
    for line in kept {
        if sender.send_data(line).await.is_err() {
            return;
        }
    }
    let Some(mut new) = new else { return };
    loop {
        let line = match new.recv().await {
            Ok(line) => line,
            Err(broadcast::error::RecvError::Lagged(missed)) => {
                Bytes::from(format!("{{\"event\":\"missed\",\"records\":{missed}}}\n"))
            }
            Err(broadcast::error::RecvError::Closed) => return,
        };
        if sender.send_data(line).await.is_err() {
            return;
        }
    }
}

async fn progress(mut sender: Sender<Bytes>, shared: Arc<Shared>, samples: Arc<Samples>) {
    let mut view = shared.view.subscribe();
    loop {
        view.mark_unchanged();
        let report = report(&shared, &samples).await;
        let mut line = serde_json::to_vec(&report).expect("invariant: our own types always serialise");
        line.push(b'\n');
        let told = sender.send_data(Bytes::from(line)).await;
        if told.is_err() || report.end.is_some() || view.changed().await.is_err() {
            return;
        }
    }
}

/// The value of a query's parameter.
fn parameter<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .find(|(key, _)| *key == name)
        .map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_socket_is_its_owners_alone_and_a_live_one_is_not_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        let live = bind(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(bind(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(live);
        bind(&path).unwrap();
    }

    #[test]
    fn a_parameter_is_found_by_its_name() {
        assert_eq!(parameter("a=1&follow=true", "follow"), Some("true"));
        assert_eq!(parameter("", "follow"), None);
    }
}
