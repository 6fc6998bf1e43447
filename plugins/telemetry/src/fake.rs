//! Test doubles: a supervisor on a Unix socket, and a collector on loopback that decodes what it gets.

use std::{
    collections::VecDeque,
    convert::Infallible,
    io::Read as _,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use enclave_protocol::{
    metrics::{
        ATTRIBUTE_INSTANCE, CPU_USAGE, Family, LABEL_DEPLOYMENT, LABEL_NAMESPACE, LABEL_NED, Point, Sample,
    },
    timestamp::Timestamp,
};
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, body::Incoming, header::HeaderMap, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::{
    collector::logs::v1::ExportLogsServiceRequest,
    metrics::v1::{
        Gauge, Metric, NumberDataPoint, ResourceMetrics, ScopeMetrics, metric::Data, number_data_point::Value,
    },
};
use prost::Message as _;
use tokio::{
    net::{TcpListener, TcpSocket, UnixListener},
    sync::mpsc,
    task::JoinSet,
};

use crate::{intake, link::Io, otlp::Export};

/// What a supervisor says `seconds` after some moment.
pub(crate) fn sample(seconds: u64) -> Sample {
    let labels = [(LABEL_DEPLOYMENT, "hello"), (LABEL_NED, "hello"), (LABEL_NAMESPACE, "default")];
    Sample {
        time: Timestamp(seconds * 1_000_000_000),
        started: Timestamp(500_000_000),
        interval_millis: 0,
        labels: labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
        resource: [(ATTRIBUTE_INSTANCE.to_owned(), "i-1".to_owned())].into(),
        families: vec![
            Family::gauge(CPU_USAGE, "CPU time used", vec![Point::bare(0.5)]),
            Family::counter(
                "enclave_plugin_restarts_total",
                "",
                vec![Point::labelled([("plugin", "a")], 2.0)],
            ),
        ],
    }
}

/// An export of one gauge with one point, as an app might send it.
pub(crate) fn gauge_export(name: &str, value: f64) -> Export {
    let point = NumberDataPoint { value: Some(Value::AsDouble(value)), ..NumberDataPoint::default() };
    let gauge = Data::Gauge(Gauge { data_points: vec![point] });
    let metric = Metric { name: name.to_owned(), data: Some(gauge), ..Metric::default() };
    let scope = ScopeMetrics { metrics: vec![metric], ..ScopeMetrics::default() };
    Export {
        resource_metrics: vec![ResourceMetrics { scope_metrics: vec![scope], ..ResourceMetrics::default() }],
    }
}

/// A supervisor's socket.
pub(crate) struct Supervisor {
    dir: tempfile::TempDir,
    state: Arc<Mutex<SupervisorState>>,
    tasks: Mutex<JoinSet<()>>,
}

#[derive(Default)]
struct SupervisorState {
    status: u16,
    body: Bytes,
    connections: usize,
    accept: String,
    reports: usize,
}

impl Supervisor {
    pub(crate) fn start() -> Self {
        let (dir, state) = (tempfile::tempdir().unwrap(), Arc::default());
        let supervisor = Self { dir, state, tasks: Mutex::default() };
        supervisor.listen();
        supervisor
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("supervisor.sock")
    }

    pub(crate) fn listen(&self) {
        let listener = UnixListener::bind(self.socket()).unwrap();
        let state = Arc::clone(&self.state);
        self.tasks.lock().unwrap().spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                state.lock().unwrap().connections += 1;
                let state = Arc::clone(&state);
                connections.spawn(serve(stream, move |request| {
                    let mut state = state.lock().unwrap();
                    let path = request.uri().path();
                    let (is_report, is_sample) = (path == "/v1/telemetry", path == "/v1/metrics");
                    assert!(is_report || is_sample || path == "/v1/logs");
                    if is_report {
                        state.reports += 1;
                    }
                    if is_sample {
                        state.accept = accepted(&request);
                    }
                    // A tag as good as the supervisor's: the bytes themselves.
                    let tag = format!("\"{:x}\"", crc(&state.body));
                    let known = request.headers().get("if-none-match").is_some_and(|known| *known == *tag);
                    let answer = if is_report {
                        Response::builder().status(204).body(Full::default())
                    } else if !is_sample {
                        // The manifest sends no log records.
                        Response::builder().status(403).body(Full::default())
                    } else if known && state.status == 200 {
                        Response::builder().status(304).body(Full::default())
                    } else {
                        let answer = Response::builder().status(state.status).header("etag", tag);
                        answer.body(Full::new(state.body.clone()))
                    };
                    let answer = answer.unwrap();
                    async move { answer }
                }));
            }
        });
    }

    pub(crate) async fn stop(&self) {
        let mut tasks = std::mem::take(&mut *self.tasks.lock().unwrap());
        tasks.shutdown().await;
        std::fs::remove_file(self.socket()).unwrap();
    }

    pub(crate) fn show(&self, sample: &Sample) {
        self.answer(200, serde_json::to_vec(sample).unwrap());
    }

    pub(crate) fn answer(&self, status: u16, body: Vec<u8>) {
        let mut state = self.state.lock().unwrap();
        (state.status, state.body) = (status, body.into());
    }

    pub(crate) fn connections(&self) -> usize {
        self.state.lock().unwrap().connections
    }

    /// How many export reports came.
    pub(crate) fn reports(&self) -> usize {
        self.state.lock().unwrap().reports
    }

    pub(crate) fn last_accept(&self) -> String {
        self.state.lock().unwrap().accept.clone()
    }
}

fn accepted(request: &Request<Incoming>) -> String {
    request.headers()["accept"].to_str().unwrap().to_owned()
}

fn crc(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

/// What a collector got.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) export: Export,
    pub(crate) logs: ExportLogsServiceRequest,
}

/// What a collector answers.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    /// None: it never answers.
    status: Option<u16>,
    headers: Vec<(&'static str, &'static str)>,
    body: Vec<u8>,
}

impl Answer {
    pub(crate) fn status(status: u16) -> Self {
        Self { status: Some(status), headers: vec![], body: vec![] }
    }

    pub(crate) fn never() -> Self {
        Self { status: None, headers: vec![], body: vec![] }
    }

    pub(crate) fn header(mut self, name: &'static str, value: &'static str) -> Self {
        self.headers.push((name, value));
        self
    }

    pub(crate) fn body(mut self, body: Vec<u8>) -> Self {
        self.body = body;
        self
    }
}

/// An OTLP collector.
pub(crate) struct Collector {
    address: SocketAddr,
    received: mpsc::Receiver<Received>,
    sender: mpsc::Sender<Received>,
    state: Arc<Mutex<CollectorState>>,
    tasks: JoinSet<()>,
}

#[derive(Default)]
struct CollectorState {
    once: VecDeque<Answer>,
    always: Option<Answer>,
    connections: usize,
}

impl Collector {
    pub(crate) async fn start() -> Self {
        let (sender, received) = mpsc::channel(1000);
        let address = ([127, 0, 0, 1], 0).into();
        let mut collector = Self { address, received, sender, state: Arc::default(), tasks: JoinSet::new() };
        collector.listen(address).await;
        collector
    }

    #[expect(clippy::unused_async, reason = "binding needs the runtime, callers read better with await")]
    pub(crate) async fn listen(&mut self, address: SocketAddr) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(address).unwrap();
        let listener: TcpListener = socket.listen(64).unwrap();
        self.address = listener.local_addr().unwrap();
        let (state, sender) = (Arc::clone(&self.state), self.sender.clone());
        self.tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                state.lock().unwrap().connections += 1;
                let (state, sender) = (Arc::clone(&state), sender.clone());
                connections.spawn(serve(stream, move |request| {
                    collect(request, Arc::clone(&state), sender.clone())
                }));
            }
        });
    }

    pub(crate) async fn stop(&mut self) {
        self.tasks.shutdown().await;
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn answer_once(&self, answer: Answer) {
        self.state.lock().unwrap().once.push_back(answer);
    }

    pub(crate) fn answer_always(&self, answer: Answer) {
        self.state.lock().unwrap().always = Some(answer);
    }

    pub(crate) fn connections(&self) -> usize {
        self.state.lock().unwrap().connections
    }

    pub(crate) async fn next(&mut self) -> Received {
        self.received.recv().await.unwrap()
    }

    /// What is there already.
    pub(crate) fn rest(&mut self) -> Vec<Received> {
        std::iter::from_fn(|| self.received.try_recv().ok()).collect()
    }
}

async fn collect(
    request: Request<Incoming>,
    state: Arc<Mutex<CollectorState>>,
    sender: mpsc::Sender<Received>,
) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let is_gzip = head.headers.contains_key("content-encoding");
    let path = head.uri.path().to_owned();
    let (export, logs) = if path.ends_with("/v1/logs") {
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(&body[..]).read_to_end(&mut plain).unwrap();
        (Export::default(), ExportLogsServiceRequest::decode(&plain[..]).unwrap())
    } else {
        (intake::read(&body, is_gzip).unwrap(), ExportLogsServiceRequest::default())
    };
    sender.send(Received { path, headers: head.headers, export, logs }).await.unwrap();
    let answer = {
        let mut state = state.lock().unwrap();
        state.once.pop_front().or_else(|| state.always.clone()).unwrap_or_else(|| Answer::status(200))
    };
    let Some(status) = answer.status else { return std::future::pending().await };
    let mut response = Response::builder().status(status);
    for (name, value) in answer.headers {
        response = response.header(name, value);
    }
    response.body(Full::new(answer.body.into())).unwrap()
}

async fn serve<F>(io: impl Io + 'static, answer: impl Fn(Request<Incoming>) -> F)
where
    F: Future<Output = Response<Full<Bytes>>>,
{
    let service = service_fn(|request| {
        let answer = answer(request);
        async { Ok::<_, Infallible>(answer.await) }
    });
    // A client that goes away is part of the tests.
    http1::Builder::new().serve_connection(TokioIo::new(io), service).await.ok();
}
