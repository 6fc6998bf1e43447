//! Samples from the supervisor's Unix socket.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use enclave_protocol::metrics::Sample;
use http_body_util::Full;
use hyper::{
    Request, StatusCode,
    header::{self, HeaderValue},
};
use tokio::{net::UnixStream, time::timeout};

use crate::link::{Link, LinkError};

/// Longest sample. A hundred plugins with fifty series each are half a megabyte.
const SAMPLE_BYTES_MAX: usize = 4 << 20;
/// How long one question may take. The supervisor answers from memory.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);

/// Asks the supervisor, over one connection kept open.
pub(crate) struct Source {
    socket: PathBuf,
    link: Option<Link>,
    /// The entity tag of the sample that came last.
    known: Option<HeaderValue>,
}

/// Why there is no sample.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    /// The socket is not there or nobody listens.
    #[error("connecting to {path}")]
    Connect { path: PathBuf, source: io::Error },
    /// HTTP failed.
    #[error("asking the supervisor")]
    Http(#[from] LinkError),
    /// The supervisor refused.
    #[error("the supervisor answered {0}")]
    Status(u16),
    /// The answer is no sample.
    #[error("reading the sample")]
    Sample(#[from] serde_json::Error),
    /// Nothing came in time.
    #[error("no answer within {FETCH_TIMEOUT:?}")]
    Timeout,
}

impl Source {
    /// A source that has not connected yet.
    pub(crate) fn new(socket: PathBuf) -> Self {
        Self { socket, link: None, known: None }
    }

    /// Where the supervisor is asked.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// The supervisor's latest sample; none if it is still the one that came last.
    pub(crate) async fn fetch(&mut self) -> Result<Option<Sample>, FetchError> {
        timeout(FETCH_TIMEOUT, self.ask()).await.map_err(|_| FetchError::Timeout)?
    }

    async fn ask(&mut self) -> Result<Option<Sample>, FetchError> {
        // Taken out, so that a cancelled or failed question drops the link.
        let mut link = match self.link.take().filter(Link::is_open) {
            Some(link) => link,
            None => self.connect().await?,
        };
        let mut request = Request::get("/v1/metrics")
            .header(header::HOST, "supervisor")
            .header(header::ACCEPT, "application/json");
        if let Some(known) = &self.known {
            request = request.header(header::IF_NONE_MATCH, known);
        }
        let request = request
            .body(Full::new(Bytes::new()))
            .expect("invariant: the parts are constants and well-formed");
        let (head, body) = link.ask(request, SAMPLE_BYTES_MAX).await?;
        let body = body?;
        self.link = Some(link);
        if head.status == StatusCode::NOT_MODIFIED && self.known.is_some() {
            return Ok(None);
        }
        if !head.status.is_success() {
            return Err(FetchError::Status(head.status.as_u16()));
        }
        let sample = serde_json::from_slice(&body)?;
        self.known = head.headers.get(header::ETAG).cloned();
        Ok(Some(sample))
    }

    async fn connect(&self) -> Result<Link, FetchError> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|source| FetchError::Connect { path: self.socket.clone(), source })?;
        Ok(Link::open(stream).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{Supervisor, sample};

    #[tokio::test]
    async fn samples_come_over_one_connection() {
        let supervisor = Supervisor::start();
        let mut source = Source::new(supervisor.socket());
        for seconds in 1..4 {
            supervisor.show(&sample(seconds));
            assert_eq!(source.fetch().await.unwrap(), Some(sample(seconds)));
            assert_eq!(source.fetch().await.unwrap(), None, "the same one again");
        }
        assert_eq!(supervisor.connections(), 1);
        assert_eq!(supervisor.last_accept(), "application/json");
    }

    #[tokio::test]
    async fn a_supervisor_that_comes_back_is_found_again() {
        let supervisor = Supervisor::start();
        let mut source = Source::new(supervisor.socket());
        supervisor.show(&sample(1));
        source.fetch().await.unwrap();
        supervisor.stop().await;
        assert!(matches!(source.fetch().await, Err(FetchError::Connect { .. } | FetchError::Http(_))));
        supervisor.listen();
        assert_eq!(source.fetch().await.unwrap(), None);
    }

    #[tokio::test]
    async fn bad_answers_are_told_apart() {
        let supervisor = Supervisor::start();
        let mut source = Source::new(supervisor.socket());
        supervisor.answer(500, b"{}".to_vec());
        assert!(matches!(source.fetch().await, Err(FetchError::Status(500))));
        supervisor.answer(200, b"{\"time\":".to_vec());
        assert!(matches!(source.fetch().await, Err(FetchError::Sample(_))));
        supervisor.answer(200, vec![b' '; SAMPLE_BYTES_MAX + 1]);
        assert!(matches!(source.fetch().await, Err(FetchError::Http(LinkError::TooLarge(_)))));
        supervisor.show(&sample(2));
        assert_eq!(source.fetch().await.unwrap(), Some(sample(2)));
    }
}
