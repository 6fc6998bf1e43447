//! One HTTP/1.1 client connection, kept alive: a 4.14 kernel leaks memory per vsock connection.

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::{Request, client::conn::http1, http::response::Parts};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::JoinSet,
};

/// Longest head of an answer, and hyper's read buffer.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// Most header fields in an answer.
const HEADERS_MAX: usize = 64;

/// What may carry a link.
pub(crate) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// An open connection. Dropping it closes it.
pub(crate) struct Link {
    requests: http1::SendRequest<Full<Bytes>>,
    /// Owns hyper's task of this connection and aborts it with the link.
    _driver: JoinSet<()>,
}

/// Why a request got no whole answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    /// The connection failed or the peer does not speak HTTP.
    #[error("no answer")]
    Broken(#[source] hyper::Error),
    /// The body is longer than allowed.
    #[error("the answer's body is longer than {0} bytes")]
    TooLarge(usize),
    /// The body broke off.
    #[error("the answer broke off")]
    Truncated(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Link {
    /// Starts HTTP on a connected stream.
    pub(crate) async fn open(io: impl Io + 'static) -> Result<Self, LinkError> {
        let (requests, connection) = http1::Builder::new()
            .max_buf_size(HEAD_BYTES_MAX)
            .max_headers(HEADERS_MAX)
            .handshake(TokioIo::new(io))
            .await
            .map_err(LinkError::Broken)?;
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            // Its error reaches whoever waits for the answer.
            connection.await.ok();
        });
        Ok(Self { requests, _driver: driver })
    }

    /// Whether a further request may be tried on it.
    pub(crate) fn is_open(&self) -> bool {
        !self.requests.is_closed()
    }

    /// Sends one request and reads the whole answer. Never call it again on a link whose call was cancelled
    /// or failed.
    pub(crate) async fn ask(
        &mut self,
        request: Request<Full<Bytes>>,
        body_max: usize,
    ) -> Result<(Parts, Result<Bytes, LinkError>), LinkError> {
        self.requests.ready().await.map_err(LinkError::Broken)?;
        let response = self.requests.send_request(request).await.map_err(LinkError::Broken)?;
        let (head, body) = response.into_parts();
        let body = match Limited::new(body, body_max).collect().await {
            Ok(body) => Ok(body.to_bytes()),
            Err(error) if error.is::<LengthLimitError>() => Err(LinkError::TooLarge(body_max)),
            Err(error) => Err(LinkError::Truncated(error)),
        };
        Ok((head, body))
    }
}
