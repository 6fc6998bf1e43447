//! The loopback listener: `/healthz`, and OTLP/HTTP from the plugins beside this one.
//!
//! ```text
//! connection (per source) ─▶ body (per source) ─▶ intake ─▶ relabel ─▶ outbox of the signal
//! ```

use std::{
    convert::Infallible,
    future::Future,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicBool},
    time::Duration,
};

use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::{Method, Request, StatusCode, body::Incoming, header, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use prost::Message as _;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{AbortHandle, JoinSet},
    time::timeout,
};

use crate::{
    identity::Identity,
    intake::{self, BODY_BYTES_MAX, Form},
    ledger::Ledger,
    outbox::{Batch, Outboxes, Refusal as NoRoom},
    relabel,
    series::Series,
    signal::Signal,
};

mod answer;
mod connections;

use answer::{Answer, Refusal};
use connections::{Bodies, Connections};

/// After an accept that failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long a head, or the next request on an open connection, may take. SDKs send every 1, 5, 10, 30 or 60
/// seconds: a connection that is closed at such a moment costs them a retry.
const HEAD_TIMEOUT: Duration = Duration::from_secs(25);
/// How long a body may take: four megabytes over loopback take milliseconds.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a request may wait for its turn to send its body.
const TURN_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest head.
const HEAD_BYTES_MAX: usize = 64 << 10;

/// The answer when nothing that is received could go on.
const NO_EXPORTER: &str = "EXPORTER_URL is not set, nothing can be sent";

/// The series that apps have sent, for their end.
pub(crate) type AppSeries = Arc<Mutex<Series>>;

/// What the receiver answers from.
pub(crate) struct Receiver {
    /// Where batches of each signal go.
    outboxes: Outboxes,
    ledger: Arc<Ledger>,
    /// Whose enclave this is, once a sample told.
    identity: watch::Receiver<Option<Identity>>,
    series: AppSeries,
    bodies: Bodies,
}

/// The client's end of a connection.
struct Client {
    source: IpAddr,
    /// Whether a body is being read.
    is_busy: Arc<AtomicBool>,
}

impl Receiver {
    /// A receiver with nothing in hand.
    pub(crate) fn new(
        outboxes: Outboxes,
        ledger: Arc<Ledger>,
        identity: watch::Receiver<Option<Identity>>,
        series: AppSeries,
    ) -> Self {
        Self { outboxes, ledger, identity, series, bodies: Bodies::new() }
    }

    /// Serves until `stop`; open connections are closed then.
    pub(crate) async fn run(self, listener: TcpListener, stop: impl Future<Output = ()>) {
        let receiver = Arc::new(self);
        let (mut tasks, mut connections) = (JoinSet::new(), Connections::default());
        tokio::pin!(stop);
        loop {
            tokio::select! {
                () = &mut stop => return,
                accepted = listener.accept() => {
                    // An accept fails when descriptors run out; the ones in use end, the next accept works.
                    let Ok((stream, address)) = accepted else {
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                        continue;
                    };
                    let source = address.ip();
                    if connections.make_room(source) {
                        let is_busy = Arc::new(AtomicBool::new(false));
                        let client = Client { source, is_busy: Arc::clone(&is_busy) };
                        let task = Arc::clone(&receiver).serve(stream, client, &mut tasks);
                        connections.enter(source, is_busy, task);
                    }
                }
                Some(ended) = tasks.join_next_with_id() => {
                    let id = match ended {
                        Ok((id, ())) => id,
                        Err(error) => {
                            if error.is_panic() {
                                tracing::error!("a connection's task panicked and was closed");
                            }
                            error.id()
                        }
                    };
                    connections.ended(id);
                }
            }
        }
    }

    fn serve(self: Arc<Self>, stream: TcpStream, client: Client, tasks: &mut JoinSet<()>) -> AbortHandle {
        let client = Arc::new(client);
        tasks.spawn(async move {
            let service = service_fn(|request| {
                let (receiver, client) = (Arc::clone(&self), Arc::clone(&client));
                async move { Ok::<_, Infallible>(receiver.answer(&client, request).await) }
            });
            let mut http = http1::Builder::new();
            http.timer(TokioTimer::new());
            http.header_read_timeout(HEAD_TIMEOUT).max_buf_size(HEAD_BYTES_MAX);
            // A client that breaks off is its own affair.
            http.serve_connection(TokioIo::new(stream), service).await.ok();
        })
    }

    async fn answer(&self, client: &Client, request: Request<Incoming>) -> Answer {
        let path = request.uri().path();
        if path == "/healthz" {
            return match *request.method() {
                Method::GET | Method::HEAD => self.health(),
                _ => not_allowed("GET, HEAD"),
            };
        }
        let Some(signal) = Signal::ALL.into_iter().find(|signal| signal.path() == path) else {
            let there = "there are /healthz and POST /v1/metrics, /v1/logs, /v1/traces\n";
            return answer::text(StatusCode::NOT_FOUND, there);
        };
        if request.method() != Method::POST {
            return not_allowed("POST");
        }
        let (form, is_gzip) = match form(request.headers()) {
            Ok(form) => form,
            Err(refusal) => return refusal.plain(),
        };
        match self.receive(client, request, signal, form, is_gzip).await {
            Ok(()) => answer::taken(form),
            Err(refusal) => refusal.answer(form),
        }
    }

    fn health(&self) -> Answer {
        let age = self.ledger.sample_age();
        let is_fresh = self.ledger.is_fresh();
        let account = self.ledger.account(Signal::Metrics);
        let has_exporter = self.outboxes.of(Signal::Metrics).has_exporter();
        let exporter = if has_exporter { "configured" } else { "EXPORTER_URL is not set, nothing is sent" };
        let sent = account.last_success.map(|_| "ok".to_owned());
        let (series, untracked) = {
            let series = self.series();
            (series.len(), series.untracked())
        };
        let body = serde_json::json!({
            "status": if is_fresh { "ok" } else { "no fresh sample from the supervisor" },
            "sampleAgeSeconds": age.map(|age| age.as_secs_f64()),
            "exporter": exporter,
            "lastExport": account.last_error.clone().or(sent),
            "queueBatches": account.queued_batches,
            "pointsDropped": account.dropped_total(),
            "appSeries": series,
            "appPointsWithoutEndMarker": untracked,
        });
        answer::json(if is_fresh { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, &body)
    }

    async fn receive(
        &self,
        client: &Client,
        request: Request<Incoming>,
        signal: Signal,
        form: Form,
        is_gzip: bool,
    ) -> Result<(), Refusal> {
        let unavailable = StatusCode::SERVICE_UNAVAILABLE;
        if !self.outboxes.of(signal).has_exporter() {
            return Err(Refusal::last(unavailable, NO_EXPORTER));
        }
        let identity = self.identity.borrow().clone();
        let Some(identity) = identity else {
            let why = "the supervisor has not told yet whose enclave this is";
            return Err(Refusal::passing(unavailable, why));
        };
        let slot = timeout(TURN_TIMEOUT, self.bodies.slot(client.source, &client.is_busy)).await;
        let Ok(_slot) = slot else {
            return Err(Refusal::passing(unavailable, "too many requests at the same time"));
        };
        let body = Limited::new(request.into_body(), BODY_BYTES_MAX).collect();
        let body = match timeout(BODY_TIMEOUT, body).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) if error.is::<LengthLimitError>() => {
                return Err(Refusal::last(StatusCode::PAYLOAD_TOO_LARGE, "the body is longer than 4 MiB"));
            }
            Ok(Err(_)) => return Err(Refusal::last(StatusCode::BAD_REQUEST, "the body broke off")),
            Err(_) => return Err(Refusal::last(StatusCode::REQUEST_TIMEOUT, "the body took too long")),
        };
        let request = intake::check(&body, is_gzip, form, signal)?;
        if signal != Signal::Metrics {
            return self.offer(signal, &relabel::groups(&request.bytes, &identity)?, request.items);
        }
        let mut export = intake::decode(&request)?;
        relabel::metrics(&mut export, &identity)?;
        self.offer(signal, &export.encode_to_vec(), request.items)?;
        self.series().seen(&export);
        Ok(())
    }

    /// Queues an encoded request. One without items is not worth the collector's time.
    fn offer(&self, signal: Signal, encoded: &[u8], items: u64) -> Result<(), Refusal> {
        if items == 0 {
            return Ok(());
        }
        let offered = self.outboxes.of(signal).offer(Batch::new(encoded, items));
        offered.map_err(|refusal| match refusal {
            NoRoom::Full => {
                Refusal::passing(StatusCode::TOO_MANY_REQUESTS, "the queue to the collector is full")
            }
            NoRoom::TooLarge => {
                let why = "the batch is larger than the queue to the collector";
                Refusal::last(StatusCode::PAYLOAD_TOO_LARGE, why)
            }
            NoRoom::NoExporter => Refusal::last(StatusCode::SERVICE_UNAVAILABLE, NO_EXPORTER),
            NoRoom::Closed => Refusal::passing(StatusCode::SERVICE_UNAVAILABLE, "telemetry is stopping"),
        })
    }

    fn series(&self) -> MutexGuard<'_, Series> {
        // A panic while it is changed costs markers at most.
        self.series.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Form of the body, and whether it is gzip; a refusal names the forms that are understood.
fn form(headers: &header::HeaderMap) -> Result<(Form, bool), Refusal> {
    let refusal = |why| Refusal::last(StatusCode::UNSUPPORTED_MEDIA_TYPE, why);
    let value = |name| headers.get(name).map_or(Some(""), |value| value.to_str().ok());
    let media = value(header::CONTENT_TYPE).and_then(|value| value.split(';').next()).map(str::trim);
    let form = match media.map(str::to_ascii_lowercase).as_deref() {
        Some("application/x-protobuf") => Form::Protobuf,
        Some("application/json") => Form::Json,
        Some(_) | None => {
            return Err(refusal("OTLP is received as application/x-protobuf or application/json"));
        }
    };
    match value(header::CONTENT_ENCODING).map(|value| value.trim().to_ascii_lowercase()).as_deref() {
        Some("" | "identity") => Ok((form, false)),
        Some("gzip") => Ok((form, true)),
        Some(_) | None => Err(refusal("the content encoding must be gzip or identity")),
    }
}

fn not_allowed(methods: &'static str) -> Answer {
    let mut answer = answer::text(StatusCode::METHOD_NOT_ALLOWED, "method not allowed\n");
    answer.headers_mut().insert(header::ALLOW, header::HeaderValue::from_static(methods));
    answer
}

#[cfg(test)]
mod tests;
