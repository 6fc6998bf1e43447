//! A Prometheus page whose counters grow with every scrape.

use std::{
    convert::Infallible,
    fmt::Write as _,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Response, header, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpListener, task::JoinSet};

use crate::failure::{Failure, While as _};

/// Versions of the page, made beforehand and served in turn.
const VERSIONS: usize = 4;
/// Series of one family.
const FAMILY: usize = 100;

/// A page that is served until this is dropped.
pub(super) struct Page {
    address: SocketAddr,
    _server: JoinSet<()>,
}

impl Page {
    /// Serves a page of `series` series on loopback.
    pub(super) async fn start(series: usize) -> Result<Self, Failure> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.while_doing("a port for the page")?;
        let address = listener.local_addr().while_doing("the page's address")?;
        let versions: Arc<Vec<Bytes>> =
            Arc::new((0..VERSIONS).map(|version| Bytes::from(text(series, version))).collect());
        let (count, mut tasks) = (Arc::new(AtomicUsize::new(0)), JoinSet::new());
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (versions, count) = (Arc::clone(&versions), Arc::clone(&count));
                connections.spawn(async move {
                    let service = service_fn(move |_| {
                        let version = count.fetch_add(1, Ordering::Relaxed) % versions.len();
                        let mut response = Response::new(Full::new(versions[version].clone()));
                        let kind =
                            header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
                        response.headers_mut().insert(header::CONTENT_TYPE, kind);
                        async { Ok::<_, Infallible>(response) }
                    });
                    // A scraper that goes away ends its connection.
                    let http = hyper::server::conn::http1::Builder::new();
                    http.serve_connection(TokioIo::new(stream), service).await.ok();
                });
            }
        });
        Ok(Self { address, _server: tasks })
    }

    /// Where it is.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Families of counters and gauges with labels as an instrumented web service has them.
fn text(series: usize, version: usize) -> String {
    let mut text = String::new();
    for family in 0..series.div_ceil(FAMILY) {
        let (name, kind) = if family.is_multiple_of(4) {
            (format!("shop_queue_depth_{family}"), "gauge")
        } else {
            (format!("shop_http_requests_{family}_total"), "counter")
        };
        // Writing to a String cannot fail.
        writeln!(text, "# HELP {name} Number {family} of the shop.\n# TYPE {name} {kind}").ok();
        for number in 0..FAMILY.min(series - family * FAMILY) {
            let value = family * 31 + number * (version + 1) * 17;
            writeln!(
                text,
                "{name}{{method=\"{}\",path=\"/api/v1/items/{number}\",status=\"{}\",\
                 zone=\"eu-west-1{}\"}} {value}",
                ["GET", "POST", "PUT", "DELETE"][number % 4],
                [200, 201, 404, 500][number % 3],
                ["a", "b", "c"][number % 3],
            )
            .ok();
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_as_many_series_as_it_shall_and_its_counters_grow() {
        let samples = |text: &str| text.lines().filter(|line| !line.starts_with('#')).count();
        assert_eq!(samples(&text(250, 0)), 250);
        assert_ne!(text(250, 0), text(250, 1));
        assert_eq!(text(250, 0).lines().filter(|line| line.starts_with("# TYPE")).count(), 3);
    }
}
