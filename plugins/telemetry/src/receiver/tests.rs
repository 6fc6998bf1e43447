//! The receiver over real connections.

use bytes::Bytes;
use http_body_util::Full;

use super::*;
use crate::{
    fake::{gauge_export, sample},
    link::Link,
    otlp,
    outbox::{APP_BATCHES_MAX, Outbox},
};

struct Rig {
    outboxes: Outboxes,
    ledger: Arc<Ledger>,
    identity: watch::Sender<Option<Identity>>,
    series: AppSeries,
    address: std::net::SocketAddr,
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
    let series = AppSeries::default();
    let receiver = Receiver::new(outboxes.clone(), Arc::clone(&ledger), told, Arc::clone(&series));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stream = TcpStream::connect(address).await.unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(receiver.run(listener, std::future::pending()));
    let link = Link::open(stream).await.unwrap();
    Rig { outboxes, ledger, identity, series, address, link, _tasks: tasks }
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

    /// The next batch, which the collector takes.
    async fn sent(&self, signal: Signal) -> Bytes {
        let parcel = self.outboxes.of(signal).next().await.unwrap();
        let body = parcel.body();
        parcel.sent(0);
        body
    }

    async fn post(&mut self, headers: &[(&str, &str)], body: Vec<u8>) -> (u16, String) {
        self.ask("POST", "/v1/metrics", headers, body).await
    }
}

/// A batch as the outbox takes it.
fn batch(export: &otlp::Export) -> Batch {
    Batch::new(export.encode_to_vec(), otlp::count(export))
}

const PROTOBUF: (&str, &str) = ("content-type", "application/x-protobuf");
const GZIP: (&str, &str) = ("content-encoding", "gzip");

#[tokio::test]
async fn a_plugins_points_leave_with_the_identity_on_them() {
    let mut rig = rig(true).await;
    let export = gauge_export("app_queue", 3.0);
    assert_eq!(rig.post(&[PROTOBUF], export.encode_to_vec()).await.0, 200);
    assert_eq!(rig.post(&[PROTOBUF, GZIP], batch(&export).body().to_vec()).await.0, 200);
    for _ in 0..2 {
        let shown = otlp::show(&intake::read(&rig.sent(Signal::Metrics).await, true).unwrap());
        assert!(shown.contains("app_queue gauge"), "{shown}");
        assert!(shown.contains("{namespace=default,ned_name=hello,oblv_deployment_name=hello}"), "{shown}");
    }
}

#[tokio::test]
async fn bad_requests_get_the_status_that_says_whether_to_try_again() {
    let mut rig = rig(true).await;
    let good = gauge_export("g", 1.0).encode_to_vec();
    let json = [("content-type", "application/json")];
    assert_eq!(rig.post(&json, b"[]".to_vec()).await.0, 400);
    assert_eq!(rig.post(&[], good.clone()).await.0, 415);
    assert_eq!(rig.post(&[PROTOBUF, ("content-encoding", "zstd")], good.clone()).await.0, 415);
    assert_eq!(rig.post(&[PROTOBUF], b"\xff\xff".to_vec()).await.0, 400);
    assert_eq!(rig.post(&[PROTOBUF, GZIP], good.clone()).await.0, 400);
    assert_eq!(rig.ask("GET", "/v1/metrics", &[], vec![]).await.0, 405);
    assert_eq!(rig.ask("POST", "/v1/profiles", &[PROTOBUF], vec![]).await.0, 404);
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
        rig.outboxes.of(Signal::Metrics).offer(batch(&gauge_export("g", 1.0))).unwrap();
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

/// Two resources of each signal, as the SDKs write them in JSON.
const METRICS: &str = r#"{"resourceMetrics":[{"resource":{"attributes":[{"key":"service.name","value":{"stringValue":"app"}}],"droppedAttributesCount":0},"scopeMetrics":[{"scope":{"name":"m","version":""},"metrics":[{"descriptor":{"name":"requests"},"name":"requests","description":"","unit":"","sum":{"aggregationTemporality":2,"isMonotonic":true,"dataPoints":[{"attributes":[{"key":"code","value":{"intValue":200}}],"startTimeUnixNano":"1544712660000000000","timeUnixNano":"1544712661000000000","asInt":3}]}}]}]}]}"#;
const LOGS: &str = r#"{"resourceLogs":[{"resource":{"attributes":[]},"scopeLogs":[{"scope":{"name":"l"},"logRecords":[{"timeUnixNano":"1544712660300000000","observedTimeUnixNano":"1544712660300000000","severityNumber":10,"severityText":"Information","traceId":"5B8EFFF798038103D269B633813FC60C","spanId":"EEE19B7EC3C1B174","body":{"stringValue":"Example log record"},"attributes":[{"key":"a","value":{"boolValue":true}}]}]}]}]}"#;
const TRACES: &str = r#"{"resourceSpans":[{"resource":{"attributes":[{"key":"service.name","value":{"stringValue":"my.service"}}]},"scopeSpans":[{"scope":{"name":"my.library","version":"1.0.0"},"spans":[{"traceId":"5b8efff798038103d269b633813fc60c","spanId":"eee19b7ec3c1b174","parentSpanId":"eee19b7ec3c1b173","name":"I'm a server span","startTimeUnixNano":"1544712660000000000","endTimeUnixNano":"1544712661000000000","kind":2,"attributes":[]}]}]}]}"#;

#[tokio::test]
async fn each_signal_is_received_in_both_forms_and_answered_in_the_same() {
    let json = ("content-type", "application/json; charset=utf-8");
    for (signal, text) in Signal::ALL.into_iter().zip([METRICS, LOGS, TRACES]) {
        let mut rig = rig(true).await;
        let answer = rig.ask("POST", signal.path(), &[json], text.into()).await;
        assert_eq!(answer, (200, "{}".to_owned()), "{signal:?}");
        let first = rig.sent(signal).await;
        // The batch is protobuf: given again, it is received as such, its own identity moved away.
        let headers = [PROTOBUF, GZIP];
        let answer = rig.ask("POST", signal.path(), &headers, first.to_vec()).await;
        assert_eq!(answer, (200, String::new()), "{signal:?}");
        let second = rig.sent(signal).await;
        assert_eq!(rig.ledger.account(signal).sent, 2, "{signal:?}");
        let request = intake::check(&second, true, Form::Protobuf, signal).unwrap();
        let text = String::from_utf8_lossy(&request.bytes).into_owned();
        for part in ["oblv_deployment_name", "exported_oblv_deployment_name", "service.instance.id"] {
            assert!(text.contains(part), "{signal:?}: {text}");
        }
    }
}

#[tokio::test]
async fn an_error_is_a_status_in_the_clients_form() {
    let mut rig = rig(true).await;
    let (status, text) =
        rig.ask("POST", "/v1/traces", &[("content-type", "application/json")], b"[".to_vec()).await;
    let body: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((status, &body["code"]), (400, &serde_json::json!(3)));
    assert!(body["message"].as_str().unwrap().contains("JSON"), "{body}");
    let (status, text) = rig.ask("POST", "/v1/logs", &[PROTOBUF], b"\xff".to_vec()).await;
    // Code 3, then the message.
    assert_eq!((status, text.as_bytes()[..3].to_vec()), (400, vec![0x08, 3, 0x12]));
    assert!(text.ends_with("the body is not a valid OTLP request of this signal"), "{text}");
}

impl Rig {
    /// A connection from a loopback address of the client's own.
    async fn from(&self, source: [u8; 4]) -> TcpStream {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind((std::net::Ipv4Addr::from(source), 0).into()).unwrap();
        socket.connect(self.address).await.unwrap()
    }
}

#[tokio::test]
async fn half_sent_requests_of_one_plugin_starve_nobody() {
    use tokio::io::AsyncWriteExt as _;
    let rig = rig(true).await;
    rig.ledger.sampled(Duration::from_secs(30));
    let mut held = Vec::new();
    for n in 0..200 {
        let mut stream = rig.from([127, 65, 0, 1]).await;
        let half: &[u8] = match n % 3 {
            0 => b"",
            1 => b"POST /v1/metrics HTTP/1.1\r\nhost: a\r\ncontent-",
            _ => b"POST /v1/metrics HTTP/1.1\r\nhost: a\r\ncontent-type: application/x-protobuf\r\ncontent-length: 9\r\n\r\nabc",
        };
        // One that was displaced is part of the test.
        stream.write_all(half).await.ok();
        held.push(stream);
    }
    let ask = async |source, method: &str, path: &str, body: Vec<u8>| {
        let mut link = Link::open(rig.from(source).await).await.unwrap();
        let request = Request::builder().method(method).uri(path).header("host", "a");
        let request = request.header(PROTOBUF.0, PROTOBUF.1).body(Full::new(Bytes::from(body))).unwrap();
        let answer = timeout(Duration::from_secs(1), link.ask(request, 1 << 20)).await;
        answer.expect("answered at once").unwrap().0.status.as_u16()
    };
    assert_eq!(ask([127, 0, 0, 1], "GET", "/healthz", vec![]).await, 200);
    let good = gauge_export("g", 1.0).encode_to_vec();
    for other in 2..10 {
        assert_eq!(ask([127, 65, 0, other], "POST", "/v1/metrics", good.clone()).await, 200);
    }
    // Its own new connection is taken as well.
    assert_eq!(ask([127, 65, 0, 1], "GET", "/healthz", vec![]).await, 200);
}

#[tokio::test]
async fn health_is_answered_although_every_connection_is_taken() {
    let rig = rig(true).await;
    let mut held = Vec::new();
    for n in 0..255 {
        for _ in 0..3 {
            held.push(rig.from([127, 65, 1, n]).await);
        }
    }
    let mut link = Link::open(rig.from([127, 0, 0, 1]).await).await.unwrap();
    let request = Request::get("/healthz").header("host", "a").body(Full::new(Bytes::new())).unwrap();
    let answer = timeout(Duration::from_secs(1), link.ask(request, 1 << 20)).await.expect("answered at once");
    assert_eq!(answer.unwrap().0.status.as_u16(), 503, "no sample yet");
}

#[tokio::test]
async fn the_series_of_apps_are_known_for_their_end() {
    let mut rig = rig(true).await;
    assert_eq!(rig.post(&[PROTOBUF], gauge_export("g", 1.0).encode_to_vec()).await.0, 200);
    assert_eq!(rig.series.lock().unwrap().len(), 1);
    for _ in 1..APP_BATCHES_MAX {
        rig.outboxes.of(Signal::Metrics).offer(batch(&gauge_export("g", 1.0))).unwrap();
    }
    assert_eq!(rig.post(&[PROTOBUF], gauge_export("refused", 1.0).encode_to_vec()).await.0, 429);
    let shown = otlp::show(&rig.series.lock().unwrap().end(enclave_protocol::timestamp::Timestamp(7)));
    assert!(shown.contains("g gauge") && shown.contains("None 0..1000000 flags=1"), "{shown}");
    assert!(shown.contains("oblv_deployment_name=hello") && !shown.contains("refused"), "{shown}");
}

#[tokio::test]
async fn a_request_without_items_is_taken_and_goes_nowhere() {
    let mut rig = rig(true).await;
    // T5 of the review: 99,990 empty resources in 231 bytes of gzip.
    let empty = [0x0a, 0x00].repeat(99_990);
    assert_eq!(rig.post(&[PROTOBUF], empty).await.0, 200);
    assert_eq!(rig.ledger.account(Signal::Metrics).produced, 0);
}
