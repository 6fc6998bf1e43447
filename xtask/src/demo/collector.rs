//! A small OTLP/HTTP collector: takes `POST /v1/metrics`, decodes it and hands on what it found.

use std::{collections::BTreeMap, convert::Infallible, io::Read as _, net::SocketAddr, sync::Arc};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Method, Request, Response, StatusCode, body::Incoming, header, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use opentelemetry_proto::tonic::{
    collector::metrics::v1::ExportMetricsServiceRequest,
    common::v1::{KeyValue, any_value},
    metrics::v1::{DataPointFlags, Metric, NumberDataPoint, metric::Data, number_data_point},
};
use prost::Message as _;
use tokio::{net::TcpListener, task::JoinSet};

use crate::failure::{Failure, While as _};

/// Longest body, packed or not. One export of this system has some ten kilobytes.
const BODY_BYTES_MAX: usize = 4 << 20;
/// Exporters connected at the same time; this system has one.
const CONNECTIONS_MAX: usize = 16;

/// One data point, of whatever kind of metric.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Point {
    /// The metric's name.
    pub(crate) metric: String,
    /// The number; none for a kind without one number, or a point that says that the series has ended.
    pub(crate) value: Option<f64>,
    /// Whether the point says that there is no value any more.
    pub(crate) is_end: bool,
    /// The point's attributes, those of its resource left out: an HPA sees these alone.
    pub(crate) attributes: BTreeMap<String, String>,
}

/// Called with the points of each export.
pub(crate) type Sink = Arc<dyn Fn(Vec<Point>) + Send + Sync>;

/// Binds to a free loopback port.
pub(crate) async fn bind() -> Result<(TcpListener, SocketAddr), Failure> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.while_doing("a port for the collector")?;
    let address = listener.local_addr().while_doing("the collector's address")?;
    Ok((listener, address))
}

/// Serves until it is dropped; its connections end with it.
pub(crate) async fn serve(listener: TcpListener, sink: Sink) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => {
                // A connection that ended before it was accepted is the exporter's loss.
                let Ok((stream, _)) = accepted else { continue };
                let sink = Arc::clone(&sink);
                connections.spawn(async move {
                    let service = service_fn(move |request| answer(request, Arc::clone(&sink)));
                    let mut http = hyper::server::conn::http1::Builder::new();
                    http.timer(TokioTimer::new());
                    // A broken connection is the exporter's to report: it has the retry.
                    http.serve_connection(TokioIo::new(stream), service).await.ok();
                });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn answer(request: Request<Incoming>, sink: Sink) -> Result<Response<Full<Bytes>>, Infallible> {
    let (status, text) = match receive(request).await {
        Ok(points) => {
            sink(points);
            // An empty ExportMetricsServiceResponse has no bytes: everything was taken.
            (StatusCode::OK, String::new())
        }
        Err((status, text)) => (status, text),
    };
    let kind = if status == StatusCode::OK { "application/x-protobuf" } else { "text/plain" };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    Ok(response)
}

async fn receive(request: Request<Incoming>) -> Result<Vec<Point>, (StatusCode, String)> {
    if request.uri().path() != "/v1/metrics" {
        return Err((StatusCode::NOT_FOUND, "only /v1/metrics is here".to_owned()));
    }
    if request.method() != Method::POST {
        return Err((StatusCode::METHOD_NOT_ALLOWED, "POST it".to_owned()));
    }
    let encoding = request.headers().get(header::CONTENT_ENCODING).cloned();
    let body = Limited::new(request.into_body(), BODY_BYTES_MAX).collect().await;
    let body = body.map_err(|error| (StatusCode::BAD_REQUEST, error.to_string()))?.to_bytes();
    let is_packed = match encoding.as_ref().map(header::HeaderValue::as_bytes) {
        None | Some(b"identity") => false,
        Some(b"gzip") => true,
        Some(_) => return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, "gzip or nothing".to_owned())),
    };
    decode(&body, is_packed).map_err(|failure| (StatusCode::BAD_REQUEST, failure.to_string()))
}

/// Reads the points of one `ExportMetricsServiceRequest`.
fn decode(body: &[u8], is_packed: bool) -> Result<Vec<Point>, Failure> {
    let mut unpacked = Vec::new();
    let message = if is_packed {
        // One byte more than allowed tells "just fits" from "too long".
        let limit = BODY_BYTES_MAX as u64 + 1;
        flate2::read::GzDecoder::new(body).take(limit).read_to_end(&mut unpacked).while_doing("gzip")?;
        if unpacked.len() > BODY_BYTES_MAX {
            return Err(Failure::new(format!("the body unpacks to more than {BODY_BYTES_MAX} bytes")));
        }
        &unpacked
    } else {
        body
    };
    let request = ExportMetricsServiceRequest::decode(message).while_doing("protobuf")?;
    let metrics = request.resource_metrics.into_iter().flat_map(|resource| resource.scope_metrics);
    Ok(metrics.flat_map(|scope| scope.metrics).flat_map(points).collect())
}

fn points(metric: Metric) -> Vec<Point> {
    let name = metric.name;
    let other = |attributes: Vec<KeyValue>, flags: u32| Point {
        metric: name.clone(),
        value: None,
        is_end: is_end(flags),
        attributes: texts(attributes),
    };
    match metric.data {
        None => Vec::new(),
        Some(Data::Gauge(gauge)) => gauge.data_points.into_iter().map(|p| number(&name, p)).collect(),
        Some(Data::Sum(sum)) => sum.data_points.into_iter().map(|p| number(&name, p)).collect(),
        Some(Data::Histogram(h)) => h.data_points.into_iter().map(|p| other(p.attributes, p.flags)).collect(),
        Some(Data::ExponentialHistogram(h)) => {
            h.data_points.into_iter().map(|p| other(p.attributes, p.flags)).collect()
        }
        Some(Data::Summary(s)) => s.data_points.into_iter().map(|p| other(p.attributes, p.flags)).collect(),
    }
}

fn number(metric: &str, point: NumberDataPoint) -> Point {
    let is_end = is_end(point.flags);
    let value = match point.value {
        Some(number_data_point::Value::AsDouble(value)) => Some(value),
        Some(number_data_point::Value::AsInt(value)) => Some(value as f64),
        None => None,
    };
    let value = value.filter(|_| !is_end);
    Point { metric: metric.to_owned(), value, is_end, attributes: texts(point.attributes) }
}

fn is_end(flags: u32) -> bool {
    flags & (DataPointFlags::NoRecordedValueMask as u32) != 0
}

/// Attributes with a text as their value; others say nothing that the demo looks at.
fn texts(attributes: Vec<KeyValue>) -> BTreeMap<String, String> {
    attributes
        .into_iter()
        .filter_map(|attribute| match attribute.value?.value? {
            any_value::Value::StringValue(text) => Some((attribute.key, text)),
            any_value::Value::BoolValue(_)
            | any_value::Value::IntValue(_)
            | any_value::Value::DoubleValue(_)
            | any_value::Value::ArrayValue(_)
            | any_value::Value::KvlistValue(_)
            | any_value::Value::BytesValue(_)
            | any_value::Value::StringValueStrindex(_) => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use opentelemetry_proto::tonic::{
        common::v1::AnyValue,
        metrics::v1::{Gauge, Histogram, HistogramDataPoint, ResourceMetrics, ScopeMetrics, Sum},
    };
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    fn label(key: &str, text: &str) -> KeyValue {
        let value = Some(AnyValue { value: Some(any_value::Value::StringValue(text.to_owned())) });
        KeyValue { key: key.to_owned(), value, ..KeyValue::default() }
    }

    fn metric(name: &str, data: Data) -> Metric {
        Metric { name: name.to_owned(), data: Some(data), ..Metric::default() }
    }

    fn export(metrics: Vec<Metric>) -> Vec<u8> {
        let scope_metrics = vec![ScopeMetrics { metrics, ..ScopeMetrics::default() }];
        let resource_metrics = vec![ResourceMetrics { scope_metrics, ..ResourceMetrics::default() }];
        ExportMetricsServiceRequest { resource_metrics }.encode_to_vec()
    }

    fn gauge(value: f64, flags: u32) -> Data {
        let point = NumberDataPoint {
            attributes: vec![label("oblv_deployment_name", "hello-fastapi")],
            value: Some(number_data_point::Value::AsDouble(value)),
            flags,
            ..NumberDataPoint::default()
        };
        Data::Gauge(Gauge { data_points: vec![point] })
    }

    fn packed(body: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(body).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn points_of_every_kind_come_out_with_their_attributes() {
        let int =
            NumberDataPoint { value: Some(number_data_point::Value::AsInt(3)), ..NumberDataPoint::default() };
        let histogram =
            HistogramDataPoint { attributes: vec![label("le", "x")], ..HistogramDataPoint::default() };
        let body = export(vec![
            metric("cpu", gauge(0.5, 0)),
            metric("ended", gauge(0.5, 1)),
            metric("total", Data::Sum(Sum { data_points: vec![int], ..Sum::default() })),
            metric(
                "time",
                Data::Histogram(Histogram { data_points: vec![histogram], ..Histogram::default() }),
            ),
        ]);
        let lines: Vec<String> = decode(&packed(&body), true)
            .unwrap()
            .into_iter()
            .map(|p| format!("{} {:?} end={} {:?}", p.metric, p.value, p.is_end, p.attributes))
            .collect();
        expect_test::expect![[r#"
            cpu Some(0.5) end=false {"oblv_deployment_name": "hello-fastapi"}
            ended None end=true {"oblv_deployment_name": "hello-fastapi"}
            total Some(3.0) end=false {}
            time None end=false {"le": "x"}"#]]
        .assert_eq(&lines.join("\n"));
    }

    #[test]
    fn a_body_that_is_no_protobuf_or_no_gzip_is_refused() {
        assert!(decode(b"\xff\xff\xff", false).is_err());
        assert!(decode(b"not gzip", true).is_err());
    }

    #[test]
    fn a_body_that_unpacks_to_too_much_is_refused() {
        let bomb = packed(&vec![0; BODY_BYTES_MAX + 1]);
        assert!(bomb.len() < BODY_BYTES_MAX / 100);
        assert!(decode(&bomb, true).unwrap_err().to_string().contains("unpacks to more than"));
    }

    #[tokio::test]
    async fn an_export_over_http_is_answered_with_200_and_reaches_the_sink() {
        let (listener, address) = bind().await.unwrap();
        let (sender, mut seen) = tokio::sync::mpsc::channel(4);
        let sink: Sink = Arc::new(move |points: Vec<Point>| sender.try_send(points.len()).unwrap());
        let mut server = JoinSet::new();
        server.spawn(serve(listener, sink));

        let body = packed(&export(vec![metric("cpu", gauge(0.25, 0))]));
        let request = |path: &str| {
            let head = format!(
                "POST {path} HTTP/1.1\r\nHost: c\r\nConnection: close\r\nContent-Encoding: gzip\r\n\
                 Content-Length: {}\r\n\r\n",
                body.len()
            );
            [head.as_bytes(), &body].concat()
        };
        for (path, expected) in [("/v1/metrics", "HTTP/1.1 200 OK"), ("/v1/traces", "HTTP/1.1 404 Not Found")]
        {
            let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
            stream.write_all(&request(path)).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            assert!(answer.starts_with(expected), "{answer}");
        }
        assert_eq!(seen.recv().await, Some(1));
    }
}
