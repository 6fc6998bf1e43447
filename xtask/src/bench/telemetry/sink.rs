//! Where the contenders push: takes OTLP, counts series and bytes.

use std::{convert::Infallible, io::Read as _, net::SocketAddr, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Request, Response, body::Incoming, header, service::service_fn};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::{
    collector::metrics::v1::ExportMetricsServiceRequest, metrics::v1::metric::Data,
};
use prost::Message as _;
use tokio::{net::TcpListener, sync::mpsc, task::JoinSet, time::timeout};

use super::SERIES;
use crate::failure::{Failure, While as _};

/// Longest body, packed and unpacked: ten thousand series are about four megabytes.
const BODY_BYTES_MAX: usize = 64 << 20;
/// Pushes that may wait to be counted.
const PUSHES_MAX: usize = 64;
/// How long the next push may take.
const PUSH_TIME_MAX: Duration = Duration::from_secs(30);

/// What one or more pushes brought.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Pushed {
    /// Bytes of the bodies, as they were on the wire.
    pub(super) bytes: u64,
    /// Data points in them.
    pub(super) series: u64,
}

/// A sink that takes pushes until it is stopped.
pub(super) struct Sink {
    address: SocketAddr,
    pushes: mpsc::Receiver<Pushed>,
    server: JoinSet<()>,
}

impl Sink {
    /// Listens on loopback.
    pub(super) async fn start() -> Result<Self, Failure> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.while_doing("a port for the sink")?;
        let address = listener.local_addr().while_doing("the sink's address")?;
        let (tell, pushes) = mpsc::channel(PUSHES_MAX);
        let mut server = JoinSet::new();
        server.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let tell = tell.clone();
                connections.spawn(async move {
                    let service = service_fn(move |request| take(request, tell.clone()));
                    // A contender that goes away ends its connection.
                    let http = hyper::server::conn::http1::Builder::new();
                    http.serve_connection(TokioIo::new(stream), service).await.ok();
                });
            }
        });
        Ok(Self { address, pushes, server })
    }

    /// Where it is.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Waits until the series of `scrapes` whole scrapes have come. A contender may cut a scrape into pushes;
    /// its own few series beside the scraped ones are no scrape.
    pub(super) async fn wait_for_pushes(&mut self, scrapes: usize) -> Result<Pushed, Failure> {
        let mut all = Pushed::default();
        let wanted = (scrapes * SERIES) as u64;
        while all.series < wanted {
            let pushed = timeout(PUSH_TIME_MAX, self.pushes.recv()).await.while_doing("the next push")?;
            let pushed = pushed.ok_or_else(|| Failure::new("the sink has stopped"))?;
            all.bytes += pushed.bytes;
            all.series += pushed.series;
        }
        Ok(all)
    }

    /// Closes the port and every connection.
    pub(super) async fn stop(&mut self) {
        self.server.shutdown().await;
    }
}

async fn take(
    request: Request<Incoming>,
    tell: mpsc::Sender<Pushed>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let is_metrics = request.uri().path() == "/v1/metrics";
    let body = Limited::new(request.into_body(), BODY_BYTES_MAX).collect().await;
    if let (true, Ok(body)) = (is_metrics, body) {
        let body = body.to_bytes();
        let pushed = Pushed { bytes: body.len() as u64, series: points(&body) };
        // The waiting side may be done.
        tell.send(pushed).await.ok();
    }
    // An empty answer is an empty response message: everything was taken.
    let mut response = Response::new(Full::new(Bytes::new()));
    let kind = header::HeaderValue::from_static("application/x-protobuf");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    Ok(response)
}

/// The data points of a gzip body; none of one that does not decode.
fn points(body: &[u8]) -> u64 {
    let mut unpacked = Vec::new();
    let read = flate2::read::GzDecoder::new(body).take(BODY_BYTES_MAX as u64).read_to_end(&mut unpacked);
    let request = read.ok().and_then(|_| ExportMetricsServiceRequest::decode(unpacked.as_slice()).ok());
    let groups = request.into_iter().flat_map(|request| request.resource_metrics);
    let metrics = groups.flat_map(|group| group.scope_metrics).flat_map(|scope| scope.metrics);
    let counts = metrics.map(|metric| match metric.data {
        Some(Data::Gauge(gauge)) => gauge.data_points.len(),
        Some(Data::Sum(sum)) => sum.data_points.len(),
        None | Some(Data::Histogram(_) | Data::ExponentialHistogram(_) | Data::Summary(_)) => 0,
    });
    counts.sum::<usize>() as u64
}
