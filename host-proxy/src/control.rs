//! The client of the enclave's control API: HTTP/1.1 over the transport, connections kept, everything
//! bounded.

use std::{
    io,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use enclave_protocol::{
    control::{
        AckRequest, CONTROL_PORT, ClockRequest, DrainRequest, ManifestAccepted, ManifestRequest, Problem,
        Status,
    },
    metrics::Sample,
    transport::Guest,
};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, Response, StatusCode, body::Incoming, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::{
    task::JoinSet,
    time::{Instant, timeout_at},
};

use crate::{
    clock,
    ndjson::{LineBuffer, LineTooLong},
    state::Token,
};

/// How long a status, an acknowledgement, a drain request or a stream's head may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a sample may take; a scraper waits for it.
const METRICS_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a manifest may take: up to 13 MiB of body, then its check.
const MANIFEST_TIMEOUT: Duration = Duration::from_mins(1);
/// Longest body of an answer: a status of hundreds of plugins, a sample, or a problem with every mistake.
const ANSWER_BYTES_MAX: usize = 4 << 20;
/// Idle connections that are kept: status and acknowledgements overlap at times, no more.
const IDLE_MAX: usize = 2;
/// Read buffer of a connection, and so the longest chunk of a stream.
const BUFFER_BYTES: usize = 64 << 10;

/// Why a call has no answer that can be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlError {
    /// No connection.
    #[error("cannot reach the enclave: {0}")]
    Dial(#[source] io::Error),
    /// The connection broke, or spoke no HTTP.
    #[error("the control connection failed: {0}")]
    Http(#[from] hyper::Error),
    /// No answer in time.
    #[error("no answer within {} s", .0.as_secs())]
    Timeout(Duration),
    /// An answer that is not 2xx.
    #[error("{} {}: {}", .0.status, .0.kind, .0.detail)]
    Refused(Box<Problem>),
    /// An answer that is not what it should be.
    #[error("the answer to {path} cannot be read: {reason}")]
    Answer {
        /// The call.
        path: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A stream's line is too long.
    #[error(transparent)]
    Line(#[from] LineTooLong),
}

/// One enclave's control API.
#[derive(Debug)]
pub(crate) struct Control {
    guest: Guest,
    idle: Mutex<Vec<Connection>>,
    dials: AtomicU64,
}

/// An HTTP connection with the task that drives it.
#[derive(Debug)]
struct Connection {
    sender: http1::SendRequest<Full<Bytes>>,
    /// Ends with the connection's owner.
    _driver: JoinSet<()>,
}

/// One call's fixed part.
struct Call<'a> {
    method: Method,
    path: &'static str,
    query: String,
    token: Option<&'a Token>,
    content: Content,
    limit: Duration,
}

/// What a call carries.
enum Content {
    /// These bytes, maybe none.
    Fixed(Bytes),
    /// The time at which it is sent, not that at which a connection was asked for.
    Time,
}

impl Control {
    /// Nothing is connected yet.
    pub(crate) fn new(guest: Guest) -> Self {
        Self { guest, idle: Mutex::default(), dials: AtomicU64::new(0) }
    }

    /// The enclave's address, for streams.
    pub(crate) fn guest(&self) -> &Guest {
        &self.guest
    }

    /// How many control connections were made.
    pub(crate) fn dials(&self) -> u64 {
        self.dials.load(Ordering::Relaxed)
    }

    /// `PUT /v1/manifest`, to a boot that has given no token yet.
    pub(crate) async fn put_manifest(
        &self,
        request: &ManifestRequest,
    ) -> Result<ManifestAccepted, ControlError> {
        let call = Call { limit: MANIFEST_TIMEOUT, ..Call::new(Method::PUT, "/v1/manifest", None) };
        self.json(call.with_body(request)).await
    }

    /// `GET /v1/status`.
    pub(crate) async fn status(&self) -> Result<Status, ControlError> {
        self.json(Call::new(Method::GET, "/v1/status", None)).await
    }

    /// `GET /v1/metrics`.
    pub(crate) async fn sample(&self, token: &Token) -> Result<Sample, ControlError> {
        let call = Call::new(Method::GET, "/v1/metrics", Some(token));
        self.json(Call { limit: METRICS_TIMEOUT, ..call }).await
    }

    /// `POST /v1/ack`.
    pub(crate) async fn ack(&self, ack: &AckRequest, token: &Token) -> Result<(), ControlError> {
        self.answer(Call::new(Method::POST, "/v1/ack", Some(token)).with_body(ack)).await.map(drop)
    }

    /// `POST /v1/drain`.
    pub(crate) async fn drain(&self, drain: &DrainRequest, token: &Token) -> Result<(), ControlError> {
        self.answer(Call::new(Method::POST, "/v1/drain", Some(token)).with_body(drain)).await.map(drop)
    }

    /// `PUT /v1/clock`, with the time at which it is sent.
    pub(crate) async fn set_clock(&self, token: &Token) -> Result<(), ControlError> {
        let call = Call::new(Method::PUT, "/v1/clock", Some(token));
        self.answer(Call { content: Content::Time, ..call }).await.map(drop)
    }

    /// `GET /v1/logs`, on a connection of its own.
    pub(crate) async fn logs(&self, after: u64, follow: bool, token: &Token) -> Result<Lines, ControlError> {
        self.lines("/v1/logs", format!("?after={after}&follow={follow}"), token).await
    }

    /// `GET /v1/events`, on a connection of its own.
    pub(crate) async fn events(&self, after: u64, token: &Token) -> Result<Lines, ControlError> {
        self.lines("/v1/events", format!("?after={after}"), token).await
    }

    async fn lines(&self, path: &'static str, query: String, token: &Token) -> Result<Lines, ControlError> {
        let call = Call { query, ..Call::new(Method::GET, path, Some(token)) };
        let deadline = Instant::now() + call.limit;
        let late = |_| ControlError::Timeout(call.limit);
        let mut connection = timeout_at(deadline, self.connect()).await.map_err(late)??;
        let response = timeout_at(deadline, connection.send(&call)).await.map_err(late)??;
        if !response.status().is_success() {
            let (status, body) = timeout_at(deadline, collect(path, response)).await.map_err(late)??;
            return Err(refused(status, &body));
        }
        Ok(Lines { body: response.into_body(), buffer: LineBuffer::default(), _connection: connection })
    }

    async fn json<T: DeserializeOwned>(&self, call: Call<'_>) -> Result<T, ControlError> {
        let path = call.path;
        let body = self.answer(call).await?;
        serde_json::from_slice(&body)
            .map_err(|error| ControlError::Answer { path, reason: error.to_string() })
    }

    /// The body of a 2xx answer.
    async fn answer(&self, call: Call<'_>) -> Result<Bytes, ControlError> {
        let deadline = Instant::now() + call.limit;
        let answered = timeout_at(deadline, async {
            let kept = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            if let Some(mut connection) = kept {
                // It may have died while it was idle. Every call may be repeated, so a new one is tried at
                // once.
                if let Ok(response) = connection.send(&call).await {
                    return self.finish(call.path, connection, response).await;
                }
            }
            let mut connection = self.connect().await?;
            let response = connection.send(&call).await?;
            self.finish(call.path, connection, response).await
        });
        answered.await.map_err(|_| ControlError::Timeout(call.limit))?
    }

    async fn finish(
        &self,
        path: &'static str,
        connection: Connection,
        response: Response<Incoming>,
    ) -> Result<Bytes, ControlError> {
        let (status, body) = collect(path, response).await?;
        {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            if idle.len() < IDLE_MAX && !connection.sender.is_closed() {
                idle.push(connection);
            }
        }
        if status.is_success() { Ok(body) } else { Err(refused(status, &body)) }
    }

    async fn connect(&self) -> Result<Connection, ControlError> {
        self.dials.fetch_add(1, Ordering::Relaxed);
        let stream = self.guest.dial(CONTROL_PORT).await.map_err(ControlError::Dial)?;
        let mut builder = http1::Builder::new();
        let builder = builder.max_buf_size(BUFFER_BYTES);
        let (sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            // Its error reaches whoever waits for an answer on it.
            connection.await.ok();
        });
        Ok(Connection { sender, _driver: driver })
    }
}

impl<'a> Call<'a> {
    fn new(method: Method, path: &'static str, token: Option<&'a Token>) -> Self {
        Self {
            method,
            path,
            query: String::new(),
            token,
            content: Content::Fixed(Bytes::new()),
            limit: CALL_TIMEOUT,
        }
    }

    fn with_body(mut self, body: &impl serde::Serialize) -> Self {
        self.content = Content::Fixed(json_bytes(body));
        self
    }
}

impl Content {
    fn bytes(&self) -> Bytes {
        match self {
            Self::Fixed(bytes) => bytes.clone(),
            Self::Time => json_bytes(&ClockRequest { unix_nanos: clock::now().0 }),
        }
    }
}

fn json_bytes(body: &impl serde::Serialize) -> Bytes {
    serde_json::to_vec(body).expect("invariant: wire types always serialise").into()
}

impl Connection {
    async fn send(&mut self, call: &Call<'_>) -> Result<Response<Incoming>, ControlError> {
        let mut request = Request::builder()
            .method(call.method.clone())
            .uri(format!("{}{}", call.path, call.query))
            .header(header::HOST, "enclave")
            .header(header::ACCEPT, "application/json, application/x-ndjson");
        if let Some(token) = call.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {}", token.0));
        }
        self.sender.ready().await?;
        let body = call.content.bytes();
        if !body.is_empty() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let request = request.body(Full::new(body)).map_err(|error| {
            // A stored token with a control character would end here.
            ControlError::Answer { path: call.path, reason: error.to_string() }
        })?;
        Ok(self.sender.send_request(request).await?)
    }
}

async fn collect(
    path: &'static str,
    response: Response<Incoming>,
) -> Result<(StatusCode, Bytes), ControlError> {
    let (head, body) = response.into_parts();
    let body = Limited::new(body, ANSWER_BYTES_MAX)
        .collect()
        .await
        .map_err(|error| ControlError::Answer { path, reason: error.to_string() })?;
    Ok((head.status, body.to_bytes()))
}

/// The problem document of an answer, or one made up for an answer without.
fn refused(status: StatusCode, body: &[u8]) -> ControlError {
    let problem = serde_json::from_slice(body).unwrap_or_else(|_| Problem {
        kind: "Unknown".to_owned(),
        title: status.canonical_reason().unwrap_or("refused").to_owned(),
        status: status.as_u16(),
        detail: "the answer has no problem document".to_owned(),
        errors: Vec::new(),
    });
    ControlError::Refused(Box::new(Problem { status: status.as_u16(), ..problem }))
}

/// An NDJSON answer that is being read.
#[derive(Debug)]
pub(crate) struct Lines {
    body: Incoming,
    buffer: LineBuffer,
    _connection: Connection,
}

impl Lines {
    /// Waits for the next chunk and calls `line` for every line that it completes; `false` at the end.
    pub(crate) async fn next(&mut self, line: impl FnMut(&[u8])) -> Result<bool, ControlError> {
        match self.body.frame().await {
            None => Ok(false),
            Some(frame) => {
                if let Ok(chunk) = frame?.into_data() {
                    self.buffer.push(&chunk, line)?;
                }
                Ok(true)
            }
        }
    }
}
