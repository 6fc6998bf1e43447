//! The one task that sends a signal to the collector: takes batches from its outbox, delivers or gives up.

use std::{error::Error, io::Read as _, sync::Arc, time::Duration};

use bytes::Bytes;
use flate2::read::GzDecoder;
use http_body_util::Full;
use hyper::{
    Method, Request, StatusCode,
    header::{self, HeaderValue},
};
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceResponse;
use prost::Message as _;
use tokio::time::{Instant, timeout};

use crate::{
    clock,
    endpoint::Endpoint,
    ledger::Ledger,
    link::Link,
    outbox::{Outbox, Parcel, Setback},
    retry::{self, Verdict},
};

/// Names us, as the OTLP specification asks.
const USER_AGENT: &str = concat!("enclave-telemetry/", env!("CARGO_PKG_VERSION"));
/// Bound that the OTLP specification recommends for a response.
const RESPONSE_BYTES_MAX: usize = 4 << 20;
/// Shortest time between two log records.
const LOG_PAUSE: Duration = Duration::from_secs(10);
/// Longest part of the collector's own words that is logged.
const MESSAGE_CHARS_MAX: usize = 200;

/// Delivers batches until the outbox is closed and empty.
pub(crate) struct Sender {
    endpoint: Endpoint,
    outbox: Arc<Outbox>,
    ledger: Arc<Ledger>,
    link: Option<Link>,
    /// The state that was logged last, so that only changes are.
    logged: Option<String>,
    logged_at: Option<Instant>,
}

/// How an attempt ended.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// Delivered, but for so many items.
    Accepted { rejected: u64, message: String },
    /// May be tried again.
    Retry { why: String, setback: Setback },
    /// Must not be tried again.
    Refused { why: String },
}

impl Sender {
    /// A sender that has not connected yet.
    pub(crate) fn new(endpoint: Endpoint, outbox: Arc<Outbox>, ledger: Arc<Ledger>) -> Self {
        Self { endpoint, outbox, ledger, link: None, logged: None, logged_at: None }
    }

    /// Runs until the outbox is closed and empty.
    pub(crate) async fn run(mut self) {
        let outbox = Arc::clone(&self.outbox);
        while let Some(parcel) = outbox.next().await {
            self.deliver(parcel).await;
        }
    }

    /// Tries once; a batch that may be tried again goes back into the outbox.
    async fn deliver(&mut self, parcel: Parcel<'_>) {
        match self.attempt(parcel.body()).await {
            Outcome::Accepted { rejected, message } => {
                let rejected = rejected.min(parcel.items());
                parcel.sent(rejected);
                self.accepted(rejected, &message);
            }
            Outcome::Refused { why } => {
                parcel.refused();
                self.report(why, "the collector refused a batch, it is dropped");
            }
            Outcome::Retry { why, setback } => {
                parcel.retry(setback);
                self.report(why, "the collector does not take data, retrying");
            }
        }
    }

    fn accepted(&mut self, rejected: u64, message: &str) {
        let signal = self.outbox.signal();
        if rejected > 0 {
            return self.report(
                format!("partial success, {rejected} {} rejected: {message}", signal.items()),
                "the collector rejected a part of a batch",
            );
        }
        if !message.is_empty() {
            // The specification's way to warn: everything was taken.
            return self.log(format!("warning: {message}"), "the collector took a batch with a warning");
        }
        if self.logged.is_some() && self.may_log() {
            self.logged = None;
            let collector = self.endpoint.authority();
            tracing::info!(collector, signal = signal.name(), "the collector takes data again");
        }
    }

    /// Keeps a failure for the report.
    fn report(&mut self, why: String, what: &str) {
        self.ledger.failed(self.outbox.signal(), &why);
        self.log(why, what);
    }

    /// Logs a state once, until it changes.
    fn log(&mut self, why: String, what: &str) {
        if self.logged.as_ref() != Some(&why) && self.may_log() {
            let signal = self.outbox.signal().name();
            tracing::warn!(collector = self.endpoint.authority(), signal, why, "{what}");
            self.logged = Some(why);
        }
    }

    /// Whether the last record is long enough ago. A collector, or a plugin's odd batch, may change states
    /// each time.
    fn may_log(&mut self) -> bool {
        let may = self.logged_at.is_none_or(|at| at.elapsed() >= LOG_PAUSE);
        if may {
            self.logged_at = Some(Instant::now());
        }
        may
    }

    async fn attempt(&mut self, body: Bytes) -> Outcome {
        let limit = self.endpoint.attempt_timeout;
        match timeout(limit, self.exchange(body)).await {
            Ok(outcome) => outcome,
            Err(_) => {
                Outcome::Retry { why: format!("no answer within {limit:?}"), setback: Setback::NoAnswer }
            }
        }
    }

    async fn exchange(&mut self, body: Bytes) -> Outcome {
        // Taken out, so that a cancelled or failed exchange drops the link.
        let mut link = match self.link.take().filter(Link::is_open) {
            Some(link) => link,
            None => match self.endpoint.dial().await {
                Ok(link) => link,
                Err(error) => {
                    return Outcome::Retry { why: chain(&error), setback: Setback::Unreachable };
                }
            },
        };
        let (head, body) = match link.ask(self.request(body), RESPONSE_BYTES_MAX).await {
            Ok(answer) => answer,
            Err(error) => return Outcome::Retry { why: chain(&error), setback: Setback::NoAnswer },
        };
        if body.is_ok() {
            self.link = Some(link);
        }
        match retry::verdict(head.status) {
            Verdict::Accepted => accepted(head.headers.get(header::CONTENT_TYPE), &body.unwrap_or_default()),
            Verdict::Refused => Outcome::Refused { why: refusal(head.status) },
            Verdict::Retry => {
                let named = head.headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
                let after = named.and_then(|value| retry::retry_after(value, clock::now()));
                Outcome::Retry { why: format!("status {}", head.status), setback: Setback::Status(after) }
            }
        }
    }

    fn request(&self, body: Bytes) -> Request<Full<Bytes>> {
        let body = if self.endpoint.gzip { body } else { unpacked(&body) };
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() =
            self.endpoint.path.parse().expect("invariant: the path comes from a URL of visible ASCII");
        let host = HeaderValue::from_str(self.endpoint.authority());
        let headers = request.headers_mut();
        headers.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
        headers.extend(self.endpoint.headers.clone());
        headers.insert(header::HOST, host.expect("invariant: the authority is visible ASCII"));
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        if self.endpoint.gzip {
            headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        request
    }
}

/// The body as it was encoded, where compression is switched off.
fn unpacked(body: &[u8]) -> Bytes {
    let mut bytes = Vec::new();
    let read = GzDecoder::new(body).read_to_end(&mut bytes);
    read.expect("invariant: the body was compressed here");
    bytes.into()
}

/// Reads the body of a success. One that is not OTLP's is no reason to send again.
fn accepted(content_type: Option<&HeaderValue>, body: &[u8]) -> Outcome {
    let is_json = content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/json"));
    let (rejected, message) = if is_json { partial_json(body) } else { partial_protobuf(body) };
    Outcome::Accepted {
        rejected: u64::try_from(rejected).unwrap_or(0),
        message: message.chars().take(MESSAGE_CHARS_MAX).collect(),
    }
}

/// The responses of all signals have the same form on the wire.
fn partial_protobuf(body: &[u8]) -> (i64, String) {
    let response = ExportMetricsServiceResponse::decode(body).unwrap_or_default();
    let partial = response.partial_success.unwrap_or_default();
    (partial.rejected_data_points, partial.error_message)
}

/// The JSON form: integers of 64 bits are strings, and readers take numbers too.
fn partial_json(body: &[u8]) -> (i64, String) {
    let response: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let partial = &response["partialSuccess"];
    let names = ["rejectedDataPoints", "rejectedLogRecords", "rejectedSpans"];
    let rejected = names.iter().find_map(|name| {
        let number = partial.get(name)?;
        number.as_i64().or_else(|| number.as_str()?.parse().ok())
    });
    (rejected.unwrap_or(0), partial["errorMessage"].as_str().unwrap_or_default().to_owned())
}

fn refusal(status: StatusCode) -> String {
    if status.is_redirection() {
        // The new place is outside the manifest's list of destinations until that says otherwise.
        return format!("status {status}: a redirect, which is never followed");
    }
    format!("status {status}")
}

/// An error with its sources, on one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsPartialSuccess;
    use tokio::task::JoinSet;

    use super::*;
    use crate::{
        fake::{Answer, Collector, gauge_export},
        ledger::{Account, Dropped},
        outbox::{Batch, OWN_BATCHES_MAX, SUPERVISOR},
        retry::Pace,
        signal::Signal,
    };

    const QUICK: Pace =
        Pace { status: |_, _| Duration::from_millis(1), unreachable: |_, _| Duration::from_millis(1) };

    struct Rig {
        outbox: Arc<Outbox>,
        ledger: Arc<Ledger>,
        tasks: JoinSet<()>,
    }

    fn rig(url: &str, pace: Pace) -> Rig {
        impatient_rig(url, pace, Duration::from_secs(5))
    }

    fn impatient_rig(url: &str, pace: Pace, attempt_timeout: Duration) -> Rig {
        let ledger = Arc::new(Ledger::new());
        let outbox = Arc::new(Outbox::paced(Signal::Metrics, Arc::clone(&ledger), pace));
        let mut endpoint = Endpoint::parse(url, PathBuf::from("/etc/hosts"), None).unwrap();
        endpoint.attempt_timeout = attempt_timeout;
        let sender = Sender::new(endpoint, Arc::clone(&outbox), Arc::clone(&ledger));
        let mut tasks = JoinSet::new();
        tasks.spawn(sender.run());
        Rig { outbox, ledger, tasks }
    }

    fn batch(name: &str, value: f64) -> Batch {
        Batch::new(gauge_export(name, value).encode_to_vec(), 1)
    }

    impl Rig {
        fn push(&self, value: f64) {
            self.outbox.push(batch("g", value).in_stream(SUPERVISOR));
        }

        fn account(&self) -> Account {
            let account = self.ledger.account(Signal::Metrics);
            assert_eq!(account.produced, account.sent + account.dropped_total() + account.queued);
            account
        }

        async fn finish(mut self) -> String {
            self.outbox.close();
            self.tasks.join_next().await.unwrap().unwrap();
            let account = self.account();
            assert_eq!((account.queued, account.queued_bytes, account.queued_batches), (0, 0, 0));
            let dropped =
                Dropped::ALL.map(|reason| (format!("dropped.{}", reason.label()), account.dropped(reason)));
            let counted = [("sent".to_owned(), account.sent), ("retried".to_owned(), account.retried)];
            let counted = counted.into_iter().chain(dropped).filter(|(_, items)| *items > 0);
            counted.map(|(name, items)| format!("{name}={items}")).collect::<Vec<_>>().join(" ")
        }
    }

    #[tokio::test]
    async fn batches_are_posted_as_gzip_protobuf_over_one_connection() {
        let mut collector = Collector::start().await;
        let rig = rig(&format!("{}/base/", collector.url()), QUICK);
        for n in 0..3 {
            rig.push(f64::from(n));
            let request = collector.next().await;
            assert_eq!(request.path, "/base/v1/metrics");
            assert_eq!(request.headers["content-type"], "application/x-protobuf");
            assert_eq!(request.headers["content-encoding"], "gzip");
            assert!(request.headers["user-agent"].to_str().unwrap().starts_with("enclave-telemetry/"));
            assert_eq!(request.export, gauge_export("g", f64::from(n)));
        }
        assert_eq!(collector.connections(), 1);
        assert_eq!(rig.finish().await, "sent=3");
    }

    #[tokio::test]
    async fn transient_statuses_are_retried_and_all_others_dropped() {
        for code in [400, 401, 403, 404, 408, 413, 500, 501, 505, 301, 302, 307, 308] {
            let mut collector = Collector::start().await;
            collector.answer_once(Answer::status(code));
            let rig = rig(&collector.url(), QUICK);
            rig.push(1.0);
            rig.push(2.0);
            assert_eq!(collector.next().await.export, gauge_export("g", 1.0), "{code}");
            assert_eq!(collector.next().await.export, gauge_export("g", 2.0), "{code}");
            assert_eq!(rig.finish().await, "sent=1 dropped.refused=1", "{code}");
        }
        for code in [429, 502, 503, 504] {
            let mut collector = Collector::start().await;
            collector.answer_once(Answer::status(code));
            let rig = rig(&collector.url(), QUICK);
            rig.push(1.0);
            assert_eq!(collector.next().await.export, gauge_export("g", 1.0), "{code}");
            assert_eq!(collector.next().await.export, gauge_export("g", 1.0), "{code}");
            assert_eq!(rig.finish().await, "sent=1 retried=1", "{code}");
        }
    }

    #[tokio::test]
    async fn retry_after_is_honoured_over_our_own_pause() {
        let mut collector = Collector::start().await;
        collector.answer_once(Answer::status(503).header("retry-after", "0"));
        let never = Pace { status: |_, _| Duration::from_hours(1), ..QUICK };
        let rig = rig(&collector.url(), never);
        rig.push(1.0);
        collector.next().await;
        collector.next().await;
        assert_eq!(rig.finish().await, "sent=1 retried=1");
    }

    #[tokio::test]
    async fn a_retry_after_of_an_hour_does_not_hold_up_the_last_flush() {
        let mut collector = Collector::start().await;
        collector.answer_once(Answer::status(429).header("retry-after", "3600"));
        let rig = rig(&collector.url(), QUICK);
        rig.push(1.0);
        collector.next().await;
        assert_eq!(rig.finish().await, "sent=1 retried=1");
    }

    #[tokio::test]
    async fn a_plugins_batch_that_the_collector_cannot_digest_does_not_hold_up_our_own() {
        let mut collector = Collector::start().await;
        collector.answer_once(Answer::status(504));
        let rig = rig(&collector.url(), QUICK);
        rig.outbox.offer(batch("app", 1.0)).unwrap();
        assert_eq!(collector.next().await.export, gauge_export("app", 1.0));
        // Queued while the plugin's batch fails, sent before its second attempt.
        rig.push(1.0);
        assert_eq!(collector.next().await.export, gauge_export("g", 1.0));
        assert_eq!(collector.next().await.export, gauge_export("app", 1.0));
        assert_eq!(rig.finish().await, "sent=2 retried=1");
    }

    #[tokio::test]
    async fn a_partial_success_is_not_retried_and_its_rejected_points_are_counted() {
        let mut collector = Collector::start().await;
        let partial =
            ExportMetricsPartialSuccess { rejected_data_points: 1, error_message: "bad name".to_owned() };
        let body = ExportMetricsServiceResponse { partial_success: Some(partial) }.encode_to_vec();
        collector.answer_once(Answer::status(200).body(body));
        let rig = rig(&collector.url(), QUICK);
        rig.push(1.0);
        rig.push(2.0);
        collector.next().await;
        assert_eq!(collector.next().await.export, gauge_export("g", 2.0));
        assert_eq!(rig.finish().await, "sent=1 dropped.rejected=1");
    }

    #[tokio::test]
    async fn a_partial_success_in_json_counts_as_well() {
        let mut collector = Collector::start().await;
        let body = br#"{"partialSuccess":{"rejectedDataPoints":"1","errorMessage":"bad name"}}"#;
        collector.answer_once(
            Answer::status(200).header("content-type", "application/json; charset=utf-8").body(body.to_vec()),
        );
        let rig = rig(&collector.url(), QUICK);
        rig.push(1.0);
        collector.next().await;
        assert_eq!(rig.finish().await, "dropped.rejected=1");
        for body in ["", "{", "[]", "{\"partialSuccess\":7}", "{\"partialSuccess\":{\"rejectedSpans\":-1}}"] {
            let json = HeaderValue::from_static("application/json");
            let nothing = Outcome::Accepted { rejected: 0, message: String::new() };
            assert_eq!(accepted(Some(&json), body.as_bytes()), nothing, "{body}");
        }
    }

    #[tokio::test]
    async fn a_message_without_rejected_items_is_a_warning_and_no_error() {
        let mut collector = Collector::start().await;
        let partial =
            ExportMetricsPartialSuccess { rejected_data_points: 0, error_message: "slow down".to_owned() };
        let body = ExportMetricsServiceResponse { partial_success: Some(partial) }.encode_to_vec();
        collector.answer_once(Answer::status(200).body(body));
        let rig = rig(&collector.url(), QUICK);
        rig.push(1.0);
        collector.next().await;
        let ledger = Arc::clone(&rig.ledger);
        assert_eq!(rig.finish().await, "sent=1");
        assert_eq!(ledger.account(Signal::Metrics).last_error, None);
    }

    #[tokio::test]
    async fn headers_and_compression_are_those_that_were_asked_for() {
        let mut collector = Collector::start().await;
        let mut endpoint = Endpoint::parse(&collector.url(), PathBuf::from("/etc/hosts"), None).unwrap();
        endpoint.gzip = false;
        endpoint.headers.insert("authorization", HeaderValue::from_static("Bearer x"));
        endpoint.headers.insert("user-agent", HeaderValue::from_static("mine"));
        let ledger = Arc::new(Ledger::new());
        let outbox = Arc::new(Outbox::new(Signal::Metrics, Arc::clone(&ledger)));
        let mut tasks = JoinSet::new();
        tasks.spawn(Sender::new(endpoint, Arc::clone(&outbox), ledger).run());
        outbox.push(batch("g", 1.0));
        let request = collector.next().await;
        assert_eq!(request.headers["authorization"], "Bearer x");
        assert_eq!(request.headers["user-agent"], "mine");
        assert!(!request.headers.contains_key("content-encoding"));
        assert_eq!(request.export, gauge_export("g", 1.0));
    }

    #[tokio::test]
    async fn an_answer_that_is_too_long_is_not_a_reason_to_send_again() {
        let mut collector = Collector::start().await;
        collector.answer_once(Answer::status(200).body(vec![0; RESPONSE_BYTES_MAX + 1]));
        let rig = rig(&collector.url(), QUICK);
        rig.push(1.0);
        rig.push(2.0);
        collector.next().await;
        assert_eq!(collector.next().await.export, gauge_export("g", 2.0));
        assert_eq!(rig.finish().await, "sent=2");
    }

    #[tokio::test]
    async fn a_collector_that_never_answers_costs_bounded_memory_and_what_is_lost_is_counted() {
        let collector = Collector::start().await;
        collector.answer_always(Answer::never());
        let rig = impatient_rig(&collector.url(), QUICK, Duration::from_millis(5));
        for n in 0..3000 {
            rig.push(f64::from(n));
            let account = rig.account();
            assert!(account.queued_batches <= OWN_BATCHES_MAX as u64 + 1);
            assert!(account.queued_bytes <= OWN_BATCHES_MAX as u64 * 1000);
            tokio::task::yield_now().await;
        }
        let account = rig.account();
        assert_eq!(account.produced, 3000);
        assert!(account.dropped(Dropped::QueueFull) >= 3000 - OWN_BATCHES_MAX as u64 - 1);
    }

    #[tokio::test]
    async fn a_collector_that_was_down_gets_the_batch_when_it_is_back() {
        let mut collector = Collector::start().await;
        let address = collector.address();
        collector.stop().await;
        let rig = rig(&format!("http://{address}"), QUICK);
        rig.push(1.0);
        while rig.account().last_error.is_none() {
            tokio::task::yield_now().await;
        }
        collector.listen(address).await;
        rig.push(2.0);
        while collector.next().await.export != gauge_export("g", 2.0) {}
        assert!(rig.finish().await.contains("sent="));
    }
}
