//! The export report: tells the supervisor how exports fare, so that it is seen when the collector is not
//! there to be told.

use std::{future::Future, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use enclave_protocol::telemetry::TelemetryReport;
use http_body_util::Full;
use hyper::{Request, header};
use tokio::{
    net::UnixStream,
    time::{sleep, timeout},
};

use crate::{ledger::Ledger, link::Link};

/// Longest time between two reports, whatever the export interval is: silence is noticed after a minute.
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// Shortest time between two reports, for a collector that changes its mind all the time.
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// How long one report may take. The supervisor answers from memory.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Longest answer that is read.
const ANSWER_BYTES_MAX: usize = 4 << 10;

/// Reports until it is stopped, and once more then.
pub(crate) struct Reporter {
    socket: PathBuf,
    interval: Duration,
    ledger: Arc<Ledger>,
    link: Option<Link>,
    failed: bool,
}

impl Reporter {
    /// A reporter that has not connected yet.
    pub(crate) fn new(socket: PathBuf, interval: Duration, ledger: Arc<Ledger>) -> Self {
        Self { socket, interval, ledger, link: None, failed: false }
    }

    /// Reports every interval, and when exports begin or cease to fail.
    pub(crate) async fn run(mut self, stop: impl Future<Output = ()>) {
        let pause = self.interval.clamp(PAUSE_MIN, PAUSE_MAX);
        tokio::pin!(stop);
        loop {
            tokio::select! {
                () = &mut stop => break,
                () = sleep(pause) => {}
                () = self.ledger.turned() => {}
            }
            self.report().await;
            tokio::select! {
                () = &mut stop => break,
                () = sleep(PAUSE_MIN) => {}
            }
        }
        // The losses of the last flush are in this one.
        self.report().await;
    }

    async fn report(&mut self) {
        let report = self.ledger.report(self.interval);
        let result = timeout(TIMEOUT, self.put(&report)).await;
        let why = match result {
            Ok(Ok(())) => None,
            Ok(Err(why)) => Some(why),
            Err(_) => Some(format!("no answer within {TIMEOUT:?}")),
        };
        if let Some(why) = why.as_deref().filter(|_| !self.failed) {
            // An older supervisor does not know the call, and one that stops is not there any more.
            tracing::info!(why, "the supervisor does not take the export report");
        }
        self.failed = why.is_some();
    }

    async fn put(&mut self, report: &TelemetryReport) -> Result<(), String> {
        // Taken out, so that a cancelled or failed call drops the link.
        let mut link = if let Some(link) = self.link.take().filter(Link::is_open) {
            link
        } else {
            let stream = UnixStream::connect(&self.socket).await.map_err(|error| error.to_string())?;
            Link::open(stream).await.map_err(|error| error.to_string())?
        };
        let body =
            serde_json::to_vec(report).expect("invariant: a report holds nothing that JSON cannot say");
        let request = Request::put("/v1/telemetry")
            .header(header::HOST, "supervisor")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .expect("invariant: the parts are constants and well-formed");
        let (head, body) = link.ask(request, ANSWER_BYTES_MAX).await.map_err(|error| error.to_string())?;
        if body.is_ok() {
            self.link = Some(link);
        }
        if head.status.is_success() { Ok(()) } else { Err(format!("status {}", head.status)) }
    }
}
