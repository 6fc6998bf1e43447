//! The loopback listener: `/healthz`, and OTLP/HTTP metrics from the plugins beside this one.

use std::{convert::Infallible, future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::{
    Method, Request, Response, StatusCode, body::Incoming, header, server::conn::http1, service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceResponse;
use prost::Message as _;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
    task::JoinSet,
    time::timeout,
};

use crate::{
    identity::Identity,
    intake::{self, BODY_BYTES_MAX, IntakeError},
    ledger::Ledger,
    otlp,
    outbox::{Batch, Outboxes, Refusal},
    signal::Signal,
};

/// Open connections; more wait in the listener's backlog.
const CONNECTIONS_MAX: usize = 32;
/// Bodies being read at the same time, four megabytes each.
const BODIES_MAX: usize = 4;
/// After an accept that failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long a head, or the next request on an open connection, may take.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a body may take.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// When a client refused for lack of room should come again.
const RETRY_AFTER_SECONDS: &str = "5";

/// The answer when nothing that is received could go on.
const NO_EXPORTER: &str = "EXPORTER_URL is not set, nothing can be sent\n";

/// What the receiver answers from.
pub(crate) struct Receiver {
    /// Where batches go.
    pub(crate) outboxes: Outboxes,
    /// The counters.
    pub(crate) ledger: Arc<Ledger>,
    /// Whose enclave this is, once a sample told.
    pub(crate) identity: watch::Receiver<Option<Identity>>,
    bodies: Semaphore,
}

type Answer = Response<Full<Bytes>>;

impl Receiver {
    /// A receiver with nothing in hand.
    pub(crate) fn new(
        outboxes: Outboxes,
        ledger: Arc<Ledger>,
        identity: watch::Receiver<Option<Identity>>,
    ) -> Self {
        Self { outboxes, ledger, identity, bodies: Semaphore::new(BODIES_MAX) }
    }

    /// Serves until `stop`; open connections are closed then.
    pub(crate) async fn run(self, listener: TcpListener, stop: impl Future<Output = ()>) {
        let receiver = Arc::new(self);
        let mut connections = JoinSet::new();
        tokio::pin!(stop);
        loop {
            tokio::select! {
                () = &mut stop => return,
                accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => {
                    // An accept fails when descriptors run out; the ones in use end, the next accept works.
                    let Ok((stream, _)) = accepted else {
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                        continue;
                    };
                    let receiver = Arc::clone(&receiver);
                    connections.spawn(async move {
                        let service = service_fn(|request| {
                            let receiver = Arc::clone(&receiver);
                            async move { Ok::<_, Infallible>(receiver.answer(request).await) }
                        });
                        let mut http = http1::Builder::new();
                        http.timer(TokioTimer::new());
                        http.header_read_timeout(HEAD_TIMEOUT).max_buf_size(64 << 10);
                        // A client that breaks off is its own affair.
                        http.serve_connection(TokioIo::new(stream), service).await.ok();
                    });
                }
                Some(ended) = connections.join_next() => {
                    if ended.is_err() {
                        tracing::error!("a connection's task panicked and was closed");
                    }
                }
            }
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Answer {
        let allow = |method: &'static str| {
            let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, "method not allowed\n");
            answer.headers_mut().insert(header::ALLOW, header::HeaderValue::from_static(method));
            answer
        };
        match (request.uri().path(), request.method()) {
            ("/healthz", &Method::GET | &Method::HEAD) => self.health(),
            ("/healthz", _) => allow("GET, HEAD"),
            ("/v1/metrics", &Method::POST) => self.receive(request).await,
            ("/v1/metrics", _) => allow("POST"),
            ("/v1/logs" | "/v1/traces", _) => {
                text(StatusCode::NOT_FOUND, "only metrics are received here: POST /v1/metrics\n")
            }
            _ => text(StatusCode::NOT_FOUND, "there is /healthz and POST /v1/metrics\n"),
        }
    }

    fn health(&self) -> Answer {
        let age = self.ledger.sample_age();
        let is_fresh = self.ledger.is_fresh();
        let account = self.ledger.account(Signal::Metrics);
        let has_exporter = self.outboxes.of(Signal::Metrics).has_exporter();
        let exporter = if has_exporter { "configured" } else { "EXPORTER_URL is not set, nothing is sent" };
        let sent = account.last_success.map(|_| "ok".to_owned());
        let body = serde_json::json!({
            "status": if is_fresh { "ok" } else { "no fresh sample from the supervisor" },
            "sampleAgeSeconds": age.map(|age| age.as_secs_f64()),
            "exporter": exporter,
            "lastExport": account.last_error.clone().or(sent),
            "queueBatches": account.queued_batches,
            "pointsDropped": account.dropped_total(),
        });
        let status = if is_fresh { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        answer(status, "application/json", format!("{body}\n").into())
    }

    async fn receive(&self, request: Request<Incoming>) -> Answer {
        let outbox = self.outboxes.of(Signal::Metrics);
        if !outbox.has_exporter() {
            return text(StatusCode::SERVICE_UNAVAILABLE, NO_EXPORTER);
        }
        let is_gzip = match form(request.headers()) {
            Ok(is_gzip) => is_gzip,
            Err(refusal) => return text(StatusCode::UNSUPPORTED_MEDIA_TYPE, refusal),
        };
        let Some(identity) = self.identity.borrow().clone() else {
            return later(
                StatusCode::SERVICE_UNAVAILABLE,
                "the supervisor has not told yet whose enclave this is\n",
            );
        };
        let Ok(_permit) = self.bodies.try_acquire() else {
            return later(StatusCode::SERVICE_UNAVAILABLE, "too many requests at the same time\n");
        };
        let body =
            match timeout(BODY_TIMEOUT, Limited::new(request.into_body(), BODY_BYTES_MAX).collect()).await {
                Ok(Ok(body)) => body.to_bytes(),
                Ok(Err(error)) if error.is::<LengthLimitError>() => {
                    return text(StatusCode::PAYLOAD_TOO_LARGE, "the body is longer than 4 MiB\n");
                }
                Ok(Err(_)) => return text(StatusCode::BAD_REQUEST, "the body broke off\n"),
                Err(_) => return text(StatusCode::REQUEST_TIMEOUT, "the body took too long\n"),
            };
        let mut export = match intake::read(&body, is_gzip) {
            Ok(export) => export,
            Err(error) => return refused(&error),
        };
        otlp::identify(&mut export, &identity);
        match outbox.offer(Batch::new(export.encode_to_vec(), otlp::count(&export))) {
            Ok(()) => {
                let body = ExportMetricsServiceResponse::default().encode_to_vec();
                answer(StatusCode::OK, "application/x-protobuf", body.into())
            }
            Err(Refusal::Full) => {
                later(StatusCode::TOO_MANY_REQUESTS, "the queue to the collector is full\n")
            }
            Err(Refusal::TooLarge) => {
                text(StatusCode::PAYLOAD_TOO_LARGE, "the batch is larger than the queue to the collector\n")
            }
            Err(Refusal::NoExporter) => text(StatusCode::SERVICE_UNAVAILABLE, NO_EXPORTER),
            Err(Refusal::Closed) => later(StatusCode::SERVICE_UNAVAILABLE, "telemetry is stopping\n"),
        }
    }
}

/// Whether the body is gzip; an error names the form that is understood.
fn form(headers: &header::HeaderMap) -> Result<bool, &'static str> {
    let value = |name| headers.get(name).map_or(Some(""), |value| value.to_str().ok());
    let media = value(header::CONTENT_TYPE).and_then(|v| v.split(';').next()).map(str::trim);
    if !media.is_some_and(|media| media.eq_ignore_ascii_case("application/x-protobuf")) {
        return Err("OTLP is received as application/x-protobuf only, not as JSON\n");
    }
    match value(header::CONTENT_ENCODING).map(|v| v.trim().to_ascii_lowercase()).as_deref() {
        Some("" | "identity") => Ok(false),
        Some("gzip") => Ok(true),
        Some(_) | None => Err("the content encoding must be gzip or identity\n"),
    }
}

fn refused(error: &IntakeError) -> Answer {
    let status = match error {
        IntakeError::TooLarge | IntakeError::TooMany => StatusCode::PAYLOAD_TOO_LARGE,
        IntakeError::Gzip(_) | IntakeError::Malformed => StatusCode::BAD_REQUEST,
    };
    answer(status, "text/plain; charset=utf-8", format!("{error}\n").into())
}

/// A refusal that ends by itself.
fn later(status: StatusCode, why: &'static str) -> Answer {
    let mut answer = text(status, why);
    answer.headers_mut().insert(header::RETRY_AFTER, header::HeaderValue::from_static(RETRY_AFTER_SECONDS));
    answer
}

fn text(status: StatusCode, body: &'static str) -> Answer {
    answer(status, "text/plain; charset=utf-8", Bytes::from_static(body.as_bytes()))
}

fn answer(status: StatusCode, content_type: &'static str, body: Bytes) -> Answer {
    let mut answer = Response::new(Full::new(body));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    answer
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

    use super::*;
    use crate::{
        fake::{gauge_export, sample},
        link::Link,
        outbox::{APP_BATCHES_MAX, Outbox},
    };

    struct Rig {
        outboxes: Outboxes,
        ledger: Arc<Ledger>,
        identity: watch::Sender<Option<Identity>>,
        link: Link,
        _tasks: JoinSet<()>,
    }

    async fn rig(with_exporter: bool) -> Rig {
        let ledger = Arc::new(Ledger::new());
        let outboxes = Outboxes::new(|signal| {
            let ledger = Arc::clone(&ledger);
            if with_exporter { Outbox::new(signal, ledger) } else { Outbox::without_exporter(signal, ledger) }
        });
        let (identity, told) = watch::channel(Identity::of(&sample(1)));
        let receiver = Receiver::new(outboxes.clone(), Arc::clone(&ledger), told);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(receiver.run(listener, std::future::pending()));
        Rig { outboxes, ledger, identity, link: Link::open(stream).await.unwrap(), _tasks: tasks }
    }

    impl Rig {
        async fn ask(
            &mut self,
            method: &str,
            path: &str,
            headers: &[(&str, &str)],
            body: Vec<u8>,
        ) -> (u16, String) {
            let mut request = Request::builder().method(method).uri(path).header("host", "localhost");
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            let request = request.body(Full::new(body.into())).unwrap();
            let (head, body) = self.link.ask(request, 1 << 20).await.unwrap();
            let retry = head.headers.get("retry-after").map_or("", |_| " (retry)");
            (head.status.as_u16(), format!("{}{retry}", String::from_utf8_lossy(&body.unwrap()).trim()))
        }

        async fn post(&mut self, headers: &[(&str, &str)], body: Vec<u8>) -> (u16, String) {
            self.ask("POST", "/v1/metrics", headers, body).await
        }
    }

    fn gzip(export: &otlp::Export) -> Vec<u8> {
        Batch::new(export.encode_to_vec(), 1).body().to_vec()
    }

    const PROTOBUF: (&str, &str) = ("content-type", "application/x-protobuf");
    const GZIP: (&str, &str) = ("content-encoding", "gzip");

    #[tokio::test]
    async fn a_plugins_points_leave_with_the_identity_on_them() {
        let mut rig = rig(true).await;
        let export = gauge_export("app_queue", 3.0);
        assert_eq!(rig.post(&[PROTOBUF], export.encode_to_vec()).await.0, 200);
        assert_eq!(rig.post(&[PROTOBUF, GZIP], gzip(&export)).await.0, 200);
        for _ in 0..2 {
            let parcel = rig.outboxes.of(Signal::Metrics).next().await.unwrap();
            let shown = otlp::show(&intake::read(&parcel.body(), true).unwrap());
            parcel.sent(0);
            assert!(shown.contains("app_queue gauge"), "{shown}");
            assert!(
                shown.contains("{namespace=default,ned_name=hello,oblv_deployment_name=hello}"),
                "{shown}"
            );
        }
    }

    #[tokio::test]
    async fn bad_requests_get_the_status_that_says_whether_to_try_again() {
        let mut rig = rig(true).await;
        let good = gauge_export("g", 1.0).encode_to_vec();
        let json = [("content-type", "application/json")];
        assert_eq!(rig.post(&json, b"{}".to_vec()).await.0, 415);
        assert_eq!(rig.post(&[], good.clone()).await.0, 415);
        assert_eq!(rig.post(&[PROTOBUF, ("content-encoding", "zstd")], good.clone()).await.0, 415);
        assert_eq!(rig.post(&[PROTOBUF], b"\xff\xff".to_vec()).await.0, 400);
        assert_eq!(rig.post(&[PROTOBUF, GZIP], good.clone()).await.0, 400);
        assert_eq!(rig.ask("GET", "/v1/metrics", &[], vec![]).await.0, 405);
        assert_eq!(rig.ask("POST", "/v1/logs", &[PROTOBUF], vec![]).await.0, 404);
        assert_eq!(rig.ask("POST", "/v1/traces", &[PROTOBUF], vec![]).await.0, 404);
        assert_eq!(rig.ask("GET", "/", &[], vec![]).await.0, 404);
        rig.identity.send_replace(None);
        let (status, text) = rig.post(&[PROTOBUF], good).await;
        assert_eq!((status, text.ends_with("(retry)")), (503, true));
        assert_eq!(rig.ledger.account(Signal::Metrics).produced, 0);
    }

    #[tokio::test]
    async fn a_body_that_is_too_long_is_413() {
        let mut rig = rig(true).await;
        assert_eq!(rig.post(&[PROTOBUF], vec![0; BODY_BYTES_MAX + 1]).await.0, 413);
    }

    #[tokio::test]
    async fn a_full_queue_is_429_with_retry_after() {
        let mut rig = rig(true).await;
        for _ in 0..APP_BATCHES_MAX {
            let batch = Batch::new(gauge_export("g", 1.0).encode_to_vec(), 1);
            rig.outboxes.of(Signal::Metrics).offer(batch).unwrap();
        }
        let (status, text) = rig.post(&[PROTOBUF], gauge_export("g", 1.0).encode_to_vec()).await;
        assert_eq!((status, text.ends_with("(retry)")), (429, true));
    }

    #[tokio::test]
    async fn health_follows_the_supervisors_samples() {
        let mut rig = rig(true).await;
        let (status, text) = rig.ask("GET", "/healthz", &[], vec![]).await;
        assert_eq!((status, text.contains("no fresh sample")), (503, true));
        rig.ledger.sampled(Duration::from_secs(30));
        let (status, text) = rig.ask("GET", "/healthz", &[], vec![]).await;
        assert_eq!((status, text.contains("\"status\":\"ok\"")), (200, true));
    }

    #[tokio::test]
    async fn without_an_exporter_health_says_so_and_nothing_is_received() {
        let mut rig = rig(false).await;
        assert!(rig.ask("GET", "/healthz", &[], vec![]).await.1.contains("EXPORTER_URL is not set"));
        assert_eq!(rig.post(&[PROTOBUF], vec![]).await.0, 503);
    }
}
