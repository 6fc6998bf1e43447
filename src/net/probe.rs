//! Questions to a plugin whether it lives, asked over the network: `httpGet` and `tcpSocket` of Kubernetes.
//! PID 1 asks `net` to ask, so that it never reads what a plugin answers; PID 1 makes the socket, in the
//! plugin's network namespace, and gets one bounded line back.

use std::{
    error::Error,
    io,
    net::{Ipv4Addr, SocketAddr},
    os::fd::OwnedFd,
    pin::pin,
    time::Duration,
};

use bytes::{Buf, Bytes};
use http_body_util::{BodyExt, Empty};
use hyper::{
    HeaderMap, Request, StatusCode,
    body::Incoming,
    client::conn::http1,
    header::{ACCEPT, CONNECTION, HOST, HeaderName, HeaderValue, USER_AGENT},
};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::{net::TcpStream, time::timeout};

use super::sockets::connect;

/// Most questions at once. Each has one descriptor, and a deployment's plugins have two questions each that
/// can be open at the same time.
pub const PROBES_MAX: usize = 512;
/// Longest line about an outcome, in bytes.
pub const LINE_MAX: usize = 256;
/// Longest head of an answer: what common servers accept as the head of a request, doubled.
const HEAD_MAX: usize = 16 << 10;
/// How much of an answer's body is taken, as the kubelet does, so that a plugin that writes a short one does
/// not find its connection reset.
const BODY_MAX: usize = 10 << 10;
/// How long that may take; the outcome is known by then.
const BODY_TIMEOUT: Duration = Duration::from_millis(200);
/// How we call ourselves.
const AGENT: &str = concat!("enclave-supervisor/", env!("CARGO_PKG_VERSION"));

/// What a plugin is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Question {
    /// Whether it accepts a connection.
    Tcp,
    /// Whether it answers a GET request with a status of 200 to 399. No redirect is followed.
    Http {
        /// Absolute path with an optional query.
        path: String,
        /// Added to the request; one that we would send as well replaces ours.
        headers: Vec<(String, String)>,
    },
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// It lives.
    Success,
    /// It does not, or not as it should.
    Failure {
        /// Why, for people.
        message: String,
    },
    /// It could not be asked, which says nothing about it.
    Unknown {
        /// Why, for people.
        message: String,
    },
}

impl Outcome {
    /// A failure; the reason is made one line and bounded.
    pub fn failure(why: &str) -> Self {
        Self::Failure { message: one_line(why) }
    }

    /// Not asked; the reason is made one line and bounded.
    pub fn unknown(why: &str) -> Self {
        Self::Unknown { message: one_line(why) }
    }

    /// The same with a message that is bounded and one line, whoever made it.
    #[must_use]
    pub fn tamed(self) -> Self {
        match self {
            Self::Success => Self::Success,
            Self::Failure { message } => Self::failure(&message),
            Self::Unknown { message } => Self::unknown(&message),
        }
    }
}

/// The start of a text, at most [`LINE_MAX`] bytes, with spaces for control characters.
fn one_line(text: &str) -> String {
    text[..text.floor_char_boundary(LINE_MAX)].replace(char::is_control, " ")
}

/// Asks at 127.0.0.1:`port`, with a socket of the plugin's namespace. Takes no longer than `limit` and
/// [`BODY_TIMEOUT`], whatever the plugin does.
pub(crate) async fn ask(socket: OwnedFd, port: u16, question: &Question, limit: Duration) -> Outcome {
    let asked = timeout(limit, async {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let app = connect(socket, address).await.map_err(ProbeError::Connect)?;
        match question {
            Question::Tcp => Ok(None),
            Question::Http { path, headers } => get(app, port, path, headers).await.map(Some),
        }
    });
    match asked.await {
        Err(_) => Outcome::failure(&format!("no answer within {limit:?}")),
        Ok(Err(error)) => Outcome::failure(&error.to_string()),
        Ok(Ok(None)) => Outcome::Success,
        Ok(Ok(Some(Answer { status, rest }))) => {
            if let Some(rest) = rest {
                // A body that takes longer or breaks off is no part of the question.
                timeout(BODY_TIMEOUT, rest.take()).await.ok();
            }
            match status.as_u16() {
                200..400 => Outcome::Success,
                other => Outcome::failure(&format!("answered with status {other}")),
            }
        }
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
enum ProbeError {
    #[error("does not accept: {0}")]
    Connect(io::Error),
    #[error("no request can be made of the path and headers: {0}")]
    Request(hyper::http::Error),
    #[error("{}", chain(.0))]
    Http(#[from] hyper::Error),
}

/// hyper says what happened and leaves why to the source.
fn chain(error: &hyper::Error) -> String {
    match error.source() {
        Some(source) => format!("no valid answer: {error}: {source}"),
        None => format!("no valid answer: {error}"),
    }
}

/// An answer whose head is read.
struct Answer {
    status: StatusCode,
    /// The rest, unless the connection has ended.
    rest: Option<Rest>,
}

struct Rest {
    body: Incoming,
    connection: http1::Connection<TokioIo<TcpStream>, Empty<Bytes>>,
    /// Its end would be one of the connection as well.
    _sender: http1::SendRequest<Empty<Bytes>>,
}

impl Rest {
    /// Takes the body to its end, the connection's, or [`BODY_MAX`].
    async fn take(mut self) {
        let taking = async {
            let mut taken = 0;
            while taken < BODY_MAX
                && let Some(Ok(frame)) = self.body.frame().await
            {
                taken += frame.data_ref().map_or(0, Buf::remaining);
            }
        };
        tokio::select! {
            () = taking => {}
            _ = &mut self.connection => {}
        }
    }
}

async fn get(
    app: TcpStream,
    port: u16,
    path: &str,
    headers: &[(String, String)],
) -> Result<Answer, ProbeError> {
    let request = request(port, path, headers).map_err(ProbeError::Request)?;
    let handshake = http1::Builder::new().max_buf_size(HEAD_MAX).handshake(TokioIo::new(app));
    let (mut sender, mut connection) = handshake.await?;
    let mut response = pin!(sender.send_request(request));
    // The connection moves only while it is polled.
    let (response, ended) = tokio::select! {
        biased;
        response = &mut response => (response?, false),
        ended = &mut connection => {
            ended?;
            // It has ended in order: what it has read is there.
            (response.await?, true)
        }
    };
    let (parts, body) = response.into_parts();
    let rest = (!ended).then(|| Rest { body, connection, _sender: sender });
    Ok(Answer { status: parts.status, rest })
}

fn request(
    port: u16,
    path: &str,
    headers: &[(String, String)],
) -> Result<Request<Empty<Bytes>>, hyper::http::Error> {
    let mut given = HeaderMap::new();
    for (name, value) in headers {
        given.append(HeaderName::try_from(name)?, HeaderValue::try_from(value)?);
    }
    let ours = [
        (HOST, format!("127.0.0.1:{port}")),
        (USER_AGENT, AGENT.to_owned()),
        (ACCEPT, "*/*".to_owned()),
        (CONNECTION, "close".to_owned()),
    ];
    for (name, value) in ours {
        if !given.contains_key(&name) {
            given.insert(name, HeaderValue::try_from(value)?);
        }
    }
    let mut request = Request::get(path).body(Empty::new())?;
    *request.headers_mut() = given;
    Ok(request)
}

#[cfg(test)]
mod tests;
