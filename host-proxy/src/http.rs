//! The little HTTP/1.1 server under /metrics, the probes and the admin socket.

use std::{future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{Either, Full, channel::Channel};
use hyper::{
    Method, Request, Response, StatusCode, body::Incoming, header, server::conn::http1, service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};

/// Connections of one listener at one time.
pub(crate) const CONNECTIONS_MAX: usize = 64;
/// How long a request's head may take, and how long a kept connection may be idle.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);

/// A whole answer, or one that is still being made.
pub(crate) type Body = Either<Full<Bytes>, Channel<Bytes>>;

/// What answers requests.
pub(crate) trait Answer: Send + Sync + 'static {
    /// The answer to one request.
    fn answer(&self, request: Request<Incoming>) -> impl Future<Output = Response<Body>> + Send;
}

/// Serves one connection for at most `lifetime`: a client that reads slowly does not keep its place for ever.
pub(crate) async fn connection<S, A>(stream: S, answer: Arc<A>, lifetime: Duration)
where
    S: AsyncRead + AsyncWrite + Unpin,
    A: Answer,
{
    let service = service_fn(|request| {
        let answer = Arc::clone(&answer);
        async move { Ok::<_, std::convert::Infallible>(answer.answer(request).await) }
    });
    let mut builder = http1::Builder::new();
    let builder = builder.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).max_buf_size(64 << 10);
    let served = timeout(lifetime, builder.serve_connection(TokioIo::new(stream), service));
    // A client that went away, or spoke no HTTP, is its own problem.
    served.await.ok();
}

/// An answer of one piece.
pub(crate) fn text(status: StatusCode, content_type: &'static str, text: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Either::Left(Full::new(text.into())));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    response
}

/// A JSON answer.
pub(crate) fn json(status: StatusCode, value: &impl Serialize) -> Response<Body> {
    let mut body = serde_json::to_vec(value).expect("invariant: our own types always serialise");
    body.push(b'\n');
    text(status, "application/json", body)
}

/// An answer that is still being made, as NDJSON.
pub(crate) fn stream(body: Channel<Bytes>) -> Response<Body> {
    let mut response = Response::new(Either::Right(body));
    let value = header::HeaderValue::from_static("application/x-ndjson");
    response.headers_mut().insert(header::CONTENT_TYPE, value);
    response
}

/// There is no such path.
pub(crate) fn not_found() -> Response<Body> {
    text(StatusCode::NOT_FOUND, "text/plain", "not found\n")
}

/// The path exists, but only `allowed` is understood.
pub(crate) fn wrong_method(allowed: &Method) -> Response<Body> {
    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "method not allowed\n");
    if let Ok(value) = header::HeaderValue::from_str(allowed.as_str()) {
        response.headers_mut().insert(header::ALLOW, value);
    }
    response
}
