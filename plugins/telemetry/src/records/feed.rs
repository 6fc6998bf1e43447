//! The supervisor's feed of log records: JSON lines over its Unix socket, read as they come.

use std::{io, path::Path, time::Duration};

use bytes::{Bytes, BytesMut};
use enclave_protocol::control::{BOOT_ID_HEADER, LogRecord};
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, StatusCode, body::Incoming, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use tokio::{net::UnixStream, task::JoinSet, time::timeout};

/// Longest line of the feed. A record has at most 16 KiB of text, which JSON makes six times as long at most.
const LINE_BYTES_MAX: usize = 256 << 10;
/// Longest head of the answer, and hyper's read buffer: what waits in it is not counted elsewhere.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// How long the supervisor may take to begin its answer. It answers from memory.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);

/// Why records cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FeedError {
    /// The socket is not there, or nobody listens.
    #[error("connecting to the supervisor")]
    Connect(#[source] io::Error),
    /// The connection broke.
    #[error("reading log records")]
    Http(#[from] hyper::Error),
    /// The manifest sends no records by OTLP.
    #[error("no log records are to be sent")]
    NotGranted,
    /// The supervisor refused.
    #[error("the supervisor answered {0}")]
    Status(StatusCode),
    /// Nothing came in time.
    #[error("no answer within {OPEN_TIMEOUT:?}")]
    Timeout,
}

/// One line of the feed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// A record.
    Record(Box<LogRecord>),
    /// Something else, or a line that is too long.
    Malformed,
}

/// An open feed. Dropping it closes its connection.
pub(crate) struct Feed {
    /// The boot whose sequence numbers these are.
    pub(crate) boot_id: String,
    body: Incoming,
    pending: BytesMut,
    /// Bytes of `pending` that hold no end of a line.
    searched: usize,
    /// The line that is being read is too long.
    skipping: bool,
    _requests: http1::SendRequest<Full<Bytes>>,
    /// Owns hyper's task of this connection and aborts it with the feed.
    _driver: JoinSet<()>,
}

impl Feed {
    /// Asks for the records after `after`.
    pub(crate) async fn open(socket: &Path, after: u64) -> Result<Self, FeedError> {
        timeout(OPEN_TIMEOUT, Self::ask(socket, after)).await.map_err(|_| FeedError::Timeout)?
    }

    async fn ask(socket: &Path, after: u64) -> Result<Self, FeedError> {
        let stream = UnixStream::connect(socket).await.map_err(FeedError::Connect)?;
        let (mut requests, connection) =
            http1::Builder::new().max_buf_size(HEAD_BYTES_MAX).handshake(TokioIo::new(stream)).await?;
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            // Its error reaches the reader of the body.
            connection.await.ok();
        });
        let request = Request::get(format!("/v1/logs?after={after}&follow=true"))
            .header(header::HOST, "supervisor")
            .body(Full::new(Bytes::new()))
            .expect("invariant: a path with a number is well-formed");
        let (head, body) = requests.send_request(request).await?.into_parts();
        match head.status {
            StatusCode::OK => {}
            StatusCode::FORBIDDEN | StatusCode::NOT_FOUND => return Err(FeedError::NotGranted),
            status => return Err(FeedError::Status(status)),
        }
        let boot_id = head.headers.get(BOOT_ID_HEADER).and_then(|value| value.to_str().ok());
        Ok(Self {
            boot_id: boot_id.unwrap_or_default().to_owned(),
            body,
            pending: BytesMut::new(),
            searched: 0,
            skipping: false,
            _requests: requests,
            _driver: driver,
        })
    }

    /// The next line; none at the feed's end. Nothing is lost when the call is given up.
    pub(crate) async fn next(&mut self) -> Result<Option<Line>, FeedError> {
        loop {
            if let Some(line) = self.line() {
                return Ok(Some(line));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(frame) => {
                    // Trailers have nothing that is wanted here.
                    if let Ok(bytes) = frame?.into_data() {
                        self.pending.extend_from_slice(&bytes);
                    }
                }
            }
        }
    }

    /// A line that is all there.
    fn line(&mut self) -> Option<Line> {
        let end = self.pending[self.searched..].iter().position(|byte| *byte == b'\n');
        let Some(end) = end else {
            self.searched = self.pending.len();
            if self.searched > LINE_BYTES_MAX {
                self.skipping = true;
                self.pending.clear();
                self.searched = 0;
            }
            return None;
        };
        let line = self.pending.split_to(self.searched + end + 1);
        self.searched = 0;
        if std::mem::take(&mut self.skipping) {
            return Some(Line::Malformed);
        }
        let parsed = serde_json::from_slice(&line);
        Some(parsed.map_or(Line::Malformed, |record| Line::Record(Box::new(record))))
    }
}
