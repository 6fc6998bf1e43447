//! One page over HTTP: bounded in time by the caller, in bytes here, before and after it is unpacked.

use std::{
    io::{self, Read as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use base64::Engine as _;
use bytes::Bytes;
use enclave_protocol::scrape::{Address, Auth, Job, Scheme};
use flate2::read::MultiGzDecoder;
use http_body_util::Full;
use hyper::{
    Request,
    header::{self, HeaderName, HeaderValue},
};
use tokio::net::TcpStream;

use super::exposition::Dialect;
use crate::{
    endpoint::{Tls, UrlError},
    hosts,
    link::{Link, LinkError},
};

/// What Prometheus asks for, less protobuf.
const ACCEPT: &str = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,\
    application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,\
    text/plain;version=0.0.4;q=0.2,*/*;q=0.1";
const USER_AGENT: &str = concat!("enclave-telemetry/", env!("CARGO_PKG_VERSION"));
const TIMEOUT_HEADER: HeaderName = HeaderName::from_static("x-prometheus-scrape-timeout-seconds");

/// A page as it came.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) body: Bytes,
    pub(super) dialect: Dialect,
}

/// Why there is no page.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    #[error("no outboundConnection allows {0}: the hosts file does not name it")]
    NotAllowed(String),
    #[error("connecting to {address}")]
    Connect { address: String, source: io::Error },
    #[error("TLS with {host}")]
    Tls { host: String, source: io::Error },
    #[error("asking for the page")]
    Http(#[from] LinkError),
    #[error("the target answered {0}")]
    Status(u16),
    #[error("the page is not valid gzip")]
    Gzip(#[source] io::Error),
    #[error("the page is longer than {0} bytes")]
    TooLarge(usize),
    #[error("the page has the encoding {0}, which was not asked for")]
    Encoding(String),
    #[error("no whole page within {0:?}")]
    Timeout(Duration),
    #[error("the page is not UTF-8: line {0}")]
    Utf8(usize),
    #[error("reading the page")]
    Page(#[from] super::mapper::PageError),
}

/// Asks one target again and again, over one connection that is kept open.
pub(super) struct Fetcher {
    address: Address,
    hosts: PathBuf,
    tls: Option<Tls>,
    path: String,
    timeout: Duration,
    compression: bool,
    authorization: Option<HeaderValue>,
    body_max: usize,
    link: Option<Link>,
}

impl Fetcher {
    /// A fetcher that has not connected yet. `path` has the query.
    pub(super) fn new(
        address: Address,
        scheme: Scheme,
        path: String,
        job: &Job,
        hosts: PathBuf,
    ) -> Result<Self, UrlError> {
        let tls = match scheme {
            Scheme::Http => None,
            Scheme::Https => {
                let name = job.tls.server_name.as_deref().unwrap_or(&address.host);
                Some(Tls::new(name, job.tls.ca_file.as_deref().map(Path::new))?)
            }
        };
        let authorization = job.auth.as_ref().and_then(authorization);
        let (timeout, compression, body_max) = (job.timeout, job.compression, job.limits.body);
        Ok(Self { address, hosts, tls, path, timeout, compression, authorization, body_max, link: None })
    }

    /// One page.
    pub(super) async fn fetch(&mut self) -> Result<Page, FetchError> {
        let limit = self.timeout;
        tokio::time::timeout(limit, self.ask()).await.map_err(|_| FetchError::Timeout(limit))?
    }

    async fn ask(&mut self) -> Result<Page, FetchError> {
        // Taken out, so that a cancelled or failed question drops the link.
        let kept = self.link.take().filter(Link::is_open);
        let (mut link, is_kept) = match kept {
            Some(link) => (link, true),
            None => (self.dial().await?, false),
        };
        let answer = link.ask(self.request(), self.body_max).await;
        let (head, body) = match answer {
            Ok(answer) => answer,
            // The target closed the connection between two scrapes.
            Err(_) if is_kept => {
                link = self.dial().await?;
                link.ask(self.request(), self.body_max).await?
            }
            Err(error) => return Err(error.into()),
        };
        let body = body.map_err(|error| match error {
            LinkError::TooLarge(max) => FetchError::TooLarge(max),
            LinkError::Broken(_) | LinkError::Truncated(_) => error.into(),
        })?;
        self.link = Some(link);
        if head.status != hyper::StatusCode::OK {
            return Err(FetchError::Status(head.status.as_u16()));
        }
        let text = |name| head.headers.get(name).and_then(|value| value.to_str().ok());
        let body = match text(header::CONTENT_ENCODING) {
            None | Some("" | "identity") => body,
            Some("gzip") => unpack(&body, self.body_max)?,
            Some(other) => return Err(FetchError::Encoding(other.chars().take(32).collect())),
        };
        Ok(Page { body, dialect: Dialect::of(text(header::CONTENT_TYPE)) })
    }

    fn request(&self) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(Bytes::new()));
        *request.uri_mut() = self.path.parse().unwrap_or_default();
        let headers = request.headers_mut();
        if let Ok(host) = HeaderValue::try_from(self.address.to_string()) {
            headers.insert(header::HOST, host);
        }
        headers.insert(header::ACCEPT, HeaderValue::from_static(ACCEPT));
        headers.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
        let encoding = if self.compression { "gzip" } else { "identity" };
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static(encoding));
        if let Ok(seconds) = HeaderValue::try_from(self.timeout.as_secs_f64().to_string()) {
            headers.insert(TIMEOUT_HEADER, seconds);
        }
        if let Some(authorization) = &self.authorization {
            headers.insert(header::AUTHORIZATION, authorization.clone());
        }
        request
    }

    async fn dial(&self) -> Result<Link, FetchError> {
        let addresses = self.resolve()?;
        let connected = TcpStream::connect(addresses.as_slice()).await;
        let tcp =
            connected.map_err(|source| FetchError::Connect { address: self.address.to_string(), source })?;
        // Failing costs time, not truth.
        tcp.set_nodelay(true).ok();
        match &self.tls {
            None => Ok(Link::open(tcp).await?),
            Some(tls) => {
                let host = self.address.host.clone();
                let stream = tls.connect(tcp).await.map_err(|source| FetchError::Tls { host, source })?;
                Ok(Link::open(stream).await?)
            }
        }
    }

    /// Loopback addresses alone: those of a plugin's port, or those that the supervisor gave to an allowed
    /// name.
    fn resolve(&self) -> Result<Vec<SocketAddr>, FetchError> {
        let Address { host, port } = &self.address;
        let found: Vec<IpAddr> = if let Ok(literal) = host.parse() {
            vec![literal]
        } else if host == "localhost" {
            vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]
        } else {
            hosts::listed(&self.hosts, host)
        };
        let allowed: Vec<_> =
            found.into_iter().filter(IpAddr::is_loopback).map(|ip| SocketAddr::new(ip, *port)).collect();
        if allowed.is_empty() { Err(FetchError::NotAllowed(host.clone())) } else { Ok(allowed) }
    }
}

/// Unpacks at most `max` bytes.
fn unpack(body: &[u8], max: usize) -> Result<Bytes, FetchError> {
    let mut unpacked = Vec::new();
    let mut reader = MultiGzDecoder::new(body).take(max as u64 + 1);
    reader.read_to_end(&mut unpacked).map_err(FetchError::Gzip)?;
    if unpacked.len() > max { Err(FetchError::TooLarge(max)) } else { Ok(unpacked.into()) }
}

fn authorization(auth: &Auth) -> Option<HeaderValue> {
    let text = match auth {
        Auth::Basic(user, password) => {
            let both = format!("{user}:{password}");
            format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(both))
        }
        Auth::Token(kind, credentials) => format!("{kind} {credentials}"),
    };
    let mut value = HeaderValue::try_from(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// The text of a page.
pub(super) fn text(body: &[u8]) -> Result<&str, FetchError> {
    std::str::from_utf8(body).map_err(|error| {
        let read = body.get(..error.valid_up_to()).unwrap_or_default();
        FetchError::Utf8(read.split(|byte| *byte == b'\n').count())
    })
}
