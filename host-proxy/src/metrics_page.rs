//! `/metrics` for the host: flat JSON by default, Prometheus text for a scraper. The numbers are the
//! enclave's own sample and this program's counters.

use std::{sync::Arc, time::Duration};

use enclave_protocol::{
    metrics::{
        CPU_USAGE, LABEL_DEPLOYMENT, LABEL_NED, MEMORY_AVAILABLE, MEMORY_TOTAL, MEMORY_USAGE, Sample,
        catalogue::host,
    },
    timestamp::Timestamp,
};
use hyper::{HeaderMap, Method, Request, Response, StatusCode, body::Incoming, header};
use serde::Serialize;
use tokio::{sync::Mutex, time::Instant};

use crate::{
    clock,
    http::{self, Answer, Body},
    view::Shared,
};

/// Scrapes within this time share one call to the enclave.
const CACHE: Duration = Duration::from_secs(1);

/// The enclave's samples, one call at a time.
#[derive(Debug)]
pub(crate) struct Samples {
    shared: Arc<Shared>,
    /// When this program began to count.
    started: Timestamp,
    /// A failure is kept as well: waiting scrapes do not queue up behind an enclave that hangs.
    newest: Mutex<Option<(Instant, Option<Arc<Sample>>)>>,
}

impl Samples {
    /// Nothing is asked for yet.
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, started: clock::now(), newest: Mutex::default() }
    }

    /// A sample of the last second; none when the enclave does not give one.
    pub(crate) async fn newest(&self) -> Option<Arc<Sample>> {
        let mut newest = self.newest.lock().await;
        if let Some((at, sample)) = &*newest
            && at.elapsed() < CACHE
        {
            return sample.clone();
        }
        let session = self.shared.view.borrow().session.clone();
        let sample = match session {
            Some(session) => match self.shared.control.sample(&session.token).await {
                Ok(sample) => Some(Arc::new(sample)),
                Err(error) => {
                    tracing::debug!(%error, "the enclave gave no sample");
                    None
                }
            },
            None => None,
        };
        *newest = Some((Instant::now(), sample.clone()));
        sample
    }
}

/// Answers `/metrics`.
#[derive(Debug)]
pub(crate) struct MetricsPage {
    /// What is known.
    pub(crate) shared: Arc<Shared>,
    /// Where samples come from.
    pub(crate) samples: Arc<Samples>,
}

/// The JSON page: Anjuna's two names, and the raw values beside them. A number that is not known yet (CPU use
/// before the second reading) is left out: readers expect numbers.
#[derive(Debug, Serialize)]
struct Flat {
    #[serde(rename = "nitro_enclave_cpu_usage", skip_serializing_if = "Option::is_none")]
    cpu_usage: Option<f64>,
    #[serde(rename = "nitro_enclave_memory_usage", skip_serializing_if = "Option::is_none")]
    memory_usage: Option<f64>,
    #[serde(rename = "MemAvailable", skip_serializing_if = "Option::is_none")]
    memory_available: Option<f64>,
    #[serde(rename = "MemTotal", skip_serializing_if = "Option::is_none")]
    memory_total: Option<f64>,
    time: Timestamp,
}

impl Answer for MetricsPage {
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        if request.uri().path() != "/metrics" {
            return http::not_found();
        }
        if request.method() != Method::GET {
            return http::wrong_method(&Method::GET);
        }
        let sample = self.samples.newest().await;
        if wants_text(request.headers()) {
            let page = self.prometheus(sample.as_deref());
            return http::text(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", page);
        }
        let Some(sample) = sample else {
            let body = "{\"error\":\"the enclave gives no sample\"}\n";
            return http::text(StatusCode::SERVICE_UNAVAILABLE, "application/json", body);
        };
        http::json(StatusCode::OK, &Flat::of(&sample))
    }
}

impl Flat {
    fn of(sample: &Sample) -> Self {
        Self {
            cpu_usage: sample.value(CPU_USAGE),
            memory_usage: sample.value(MEMORY_USAGE),
            memory_available: sample.value(MEMORY_AVAILABLE),
            memory_total: sample.value(MEMORY_TOTAL),
            time: sample.time,
        }
    }
}

impl MetricsPage {
    fn prometheus(&self, sample: Option<&Sample>) -> String {
        let shared = &self.shared;
        let flag = |is: bool| f64::from(u8::from(is));
        let mut families = shared.counters.families(shared.control.dials());
        // No `instance`: a scraper makes its own, and would move ours to `exported_instance`.
        let mut labels = std::collections::BTreeMap::new();
        {
            let view = shared.view.borrow();
            families.extend([
                host::ENCLAVE_UP.bare(flag(sample.is_some())),
                host::SYNCED.bare(flag(view.session.is_some())),
                host::MANIFEST_DRIFT.bare(flag(view.drift.is_some())),
            ]);
            if let Some(session) = &view.session {
                labels.insert(LABEL_DEPLOYMENT.to_owned(), session.deployment.clone());
                labels.insert(LABEL_NED.to_owned(), session.deployment.clone());
            }
        }
        if let Some(sample) = sample {
            labels.clone_from(&sample.labels);
        }
        let (time, started, resource) =
            (clock::now(), self.samples.started, std::collections::BTreeMap::new());
        let own = Sample { time, started, interval_millis: 0, labels, resource, families };
        sample.map(Sample::to_prometheus).unwrap_or_default() + &own.to_prometheus()
    }
}

/// Whether the client names a text format, as a Prometheus scraper does. A browser and curl get JSON.
fn wants_text(headers: &HeaderMap) -> bool {
    headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).any(|value| {
        value.split(',').filter_map(|part| part.split(';').next()).any(|media| {
            let media = media.trim();
            media.eq_ignore_ascii_case("text/plain")
                || media.eq_ignore_ascii_case("application/openmetrics-text")
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_client_that_names_a_text_format_gets_text() {
        let wants = |accept: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, accept.parse().unwrap());
            wants_text(&headers)
        };
        assert!(!wants_text(&HeaderMap::new()));
        assert!(wants("text/plain"));
        assert!(wants(
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
        ));
        for other in ["*/*", "application/json", "text/html,application/xhtml+xml,*/*;q=0.8", "text/plainest"]
        {
            assert!(!wants(other), "{other}");
        }
    }
}
