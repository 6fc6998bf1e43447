//! Where metrics are pushed: `EXPORTER_URL`, and a connection to it, plain or TLS.

use std::{
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use enclave_protocol::exporter::{self, Headers, Settings, Url};
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use tokio::net::TcpStream;
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, ServerName, pem::PemObject as _},
    },
};

use crate::{
    Options, hosts,
    link::{Link, LinkError},
    retry,
    signal::Signal,
};

/// Longest file of headers: eight keys of a collector.
const HEADERS_BYTES_MAX: u64 = 16 << 10;

/// Where one signal goes, checked.
#[derive(Clone)]
pub(crate) struct Endpoint {
    url: Url,
    /// The request's path.
    pub(crate) path: String,
    /// Beside those that OTLP sets: a collector's key, for example. Never shown.
    pub(crate) headers: HeaderMap,
    /// Whether bodies are sent as gzip.
    pub(crate) gzip: bool,
    /// For one attempt.
    pub(crate) attempt_timeout: Duration,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    hosts: PathBuf,
}

/// The reason why there is no place to send to.
#[derive(Debug, thiserror::Error)]
pub enum UrlError {
    /// A variable is not valid, or says the same as another.
    #[error("invalid {name}: {why}")]
    Variable {
        /// The variable's name.
        name: String,
        /// The reason, without a value that may be secret.
        why: String,
    },
    /// A host that cannot stand in a certificate.
    #[error("invalid EXPORTER_URL: TLS cannot verify the host {0:?}")]
    ServerName(String),
    /// The authorities cannot be read.
    #[error("reading the authorities in {path}: {why}")]
    Roots {
        /// The file.
        path: PathBuf,
        /// The cause.
        why: String,
    },
    /// The file of headers cannot be read.
    #[error("reading the headers in {path}")]
    Headers {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// No cryptography.
    #[error("setting up TLS")]
    Tls(#[source] tokio_rustls::rustls::Error),
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    /// The name has no address.
    #[error("resolving {host}")]
    Resolve { host: String, source: io::Error },
    /// No address answers.
    #[error("connecting to {host}:{port}")]
    Connect { host: String, port: u16, source: io::Error },
    /// The handshake failed, for example over the certificate.
    #[error("TLS with {host}")]
    Tls { host: String, source: io::Error },
    /// HTTP could not start.
    #[error("starting HTTP")]
    Http(#[from] LinkError),
}

impl Endpoint {
    /// The place of every signal that has one, by the options and OpenTelemetry's variables.
    pub(crate) fn all(options: &Options, settings: &Settings) -> Result<[Option<Self>; 3], UrlError> {
        let invalid = |name: &str| {
            let name = name.to_owned();
            move |why| UrlError::Variable { name, why }
        };
        let own = options.exporter_url.as_deref().map(str::trim).filter(|url| !url.is_empty());
        let own = own.map(|url| Url::base(url).map_err(invalid("EXPORTER_URL"))).transpose()?;
        let base = match (own, settings.endpoint.all()) {
            (Some(_), Some(_)) => {
                let why = "EXPORTER_URL says it already: one of the two".to_owned();
                return Err(invalid("OTEL_EXPORTER_OTLP_ENDPOINT")(why));
            }
            (own, standard) => own.or_else(|| standard.cloned()),
        };
        let from_file = options.headers_file.as_deref().map(read_headers).transpose()?;
        let certificate = settings.certificate.as_deref().map(Path::new);
        let trust = options.ca_file.as_deref().or(certificate);
        let mut all = [None, None, None];
        for signal in Signal::ALL {
            let index = signal.index();
            let (url, path) = match (settings.endpoint.only(index), &base) {
                // As it is written: the specification appends nothing to a signal's own URL.
                (Some(url), _) => (url, if url.path.is_empty() { "/" } else { &url.path }.to_owned()),
                (None, Some(base)) => (base, format!("{}{}", base.path, signal.path())),
                (None, None) => continue,
            };
            let given = settings.headers.of(index).into_iter().chain(&from_file);
            all[index] = Some(Self {
                url: url.clone(),
                path,
                headers: header_map(given),
                gzip: settings.gzip.of(index).copied().unwrap_or(true),
                attempt_timeout: settings.timeout.of(index).copied().unwrap_or(retry::ATTEMPT_TIMEOUT),
                tls: if url.tls { Some(tls(&url.host, trust)?) } else { None },
                hosts: options.hosts.clone(),
            });
        }
        Ok(all)
    }

    /// The place for metrics at `url`, for tests.
    #[cfg(test)]
    pub(crate) fn parse(url: &str, hosts: PathBuf, ca_file: Option<&Path>) -> Result<Self, UrlError> {
        let options = Options {
            exporter_url: Some(url.to_owned()),
            hosts,
            ca_file: ca_file.map(Path::to_owned),
            ..Options::for_tests()
        };
        let [metrics, ..] = Self::all(&options, &Settings::default())?;
        Ok(metrics.expect("a URL is given"))
    }

    /// The `Host` header.
    pub(crate) fn authority(&self) -> &str {
        &self.url.authority
    }

    /// Connects. The caller bounds the time.
    pub(crate) async fn dial(&self) -> Result<Link, DialError> {
        let (host, port) = (self.url.host.clone(), self.url.port);
        let addresses = hosts::resolve(&self.hosts, &host, port)
            .await
            .map_err(|source| DialError::Resolve { host: host.clone(), source })?;
        let tcp = TcpStream::connect(addresses.as_slice()).await.map_err(|source| DialError::Connect {
            host: host.clone(),
            port,
            source,
        })?;
        // A request is written in one go: waiting for more would only delay it. Failing costs time, not
        // truth.
        tcp.set_nodelay(true).ok();
        let Some((connector, name)) = &self.tls else {
            return Ok(Link::open(tcp).await?);
        };
        let stream =
            connector.connect(name.clone(), tcp).await.map_err(|source| DialError::Tls { host, source })?;
        Ok(Link::open(stream).await?)
    }
}

/// Reads the file that `ENCLAVE_EXPORTER_HEADERS_FILE` names.
fn read_headers(path: &Path) -> Result<Headers, UrlError> {
    let failed = |source| UrlError::Headers { path: path.to_owned(), source };
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(HEADERS_BYTES_MAX + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > HEADERS_BYTES_MAX {
        return Err(failed(io::Error::other(format!("longer than {HEADERS_BYTES_MAX} bytes"))));
    }
    exporter::headers(&text)
        .map_err(|why| UrlError::Variable { name: "ENCLAVE_EXPORTER_HEADERS_FILE".to_owned(), why })
}

fn header_map<'a>(given: impl Iterator<Item = &'a Headers>) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in given.flat_map(|headers| &headers.0) {
        if let (Ok(name), Ok(mut value)) = (name.parse::<HeaderName>(), HeaderValue::from_str(value)) {
            value.set_sensitive(true);
            map.insert(name, value);
        }
    }
    map
}

/// TLS to one name, for targets that are scraped.
pub(crate) struct Tls(TlsConnector, ServerName<'static>);

impl Tls {
    /// As for a collector; `ca_file` replaces the public roots.
    pub(crate) fn new(host: &str, ca_file: Option<&Path>) -> Result<Self, UrlError> {
        tls(host, ca_file).map(|(connector, name)| Self(connector, name))
    }

    /// The handshake.
    pub(crate) async fn connect(&self, tcp: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        self.0.connect(self.1.clone(), tcp).await
    }
}

/// TLS 1.2 and 1.3 with Mozilla's roots, or those of `ca_file`; the certificate must name `host`, whatever
/// address the host side dials.
fn tls(host: &str, ca_file: Option<&Path>) -> Result<(TlsConnector, ServerName<'static>), UrlError> {
    let name = ServerName::try_from(host.to_owned()).map_err(|_| UrlError::ServerName(host.to_owned()))?;
    let roots = match ca_file {
        Some(path) => read_roots(path)?,
        None => RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() },
    };
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(UrlError::Tls)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok((TlsConnector::from(Arc::new(config)), name))
}

fn read_roots(path: &Path) -> Result<RootCertStore, UrlError> {
    let unusable = |why: String| UrlError::Roots { path: path.to_owned(), why };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|error| unusable(error.to_string()))? {
        let certificate = certificate.map_err(|error| unusable(error.to_string()))?;
        roots.add(certificate).map_err(|error| unusable(error.to_string()))?;
    }
    if roots.is_empty() { Err(unusable("there is no certificate in it".to_owned())) } else { Ok(roots) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sender::chain;

    fn paths(options: &Options, variables: &[(&str, &str)]) -> String {
        let mut settings = Settings::default();
        for (name, value) in variables {
            settings.take(name, value).unwrap();
        }
        match Endpoint::all(options, &settings) {
            Ok(all) => {
                let show = |endpoint: Option<Endpoint>| {
                    endpoint.map_or_else(|| "-".to_owned(), |e| format!("{}{}", e.authority(), e.path))
                };
                all.map(show).join(" ")
            }
            Err(error) => chain(&error),
        }
    }

    fn options(url: &str) -> Options {
        Options { exporter_url: Some(url.to_owned()), ..Options::for_tests() }
    }

    #[test]
    fn a_signals_path_is_appended_to_the_base_and_its_own_url_is_used_as_it_is() {
        assert_eq!(paths(&options("http://c:1/o/"), &[]), "c:1/o/v1/metrics c:1/o/v1/logs c:1/o/v1/traces");
        let standard = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://d");
        let metrics = ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://p/api/v1/otlp/v1/metrics");
        assert_eq!(
            paths(&options(" "), &[standard, metrics]),
            "p/api/v1/otlp/v1/metrics d/v1/logs d/v1/traces"
        );
        assert_eq!(paths(&options(""), &[metrics]), "p/api/v1/otlp/v1/metrics - -");
        assert_eq!(paths(&options(""), &[]), "- - -");
        assert!(paths(&options("http://c"), &[standard]).contains("one of the two"));
        assert!(paths(&options("http://127.0.0.1:99999"), &[]).starts_with("invalid EXPORTER_URL: "));
    }

    #[test]
    fn headers_come_from_a_file_as_well_and_no_error_repeats_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("headers");
        let with_file = Options { headers_file: Some(path.clone()), ..options("http://c") };
        assert!(paths(&with_file, &[]).starts_with("reading the headers in "));
        std::fs::write(&path, "authorization=Bearer%20s3cr3t\nx-scope-orgid=7\n").unwrap();
        let [metrics, ..] = Endpoint::all(&with_file, &Settings::default()).unwrap();
        let headers = metrics.unwrap().headers;
        assert_eq!(headers["authorization"], "Bearer s3cr3t");
        assert!(!format!("{headers:?}").contains("s3cr3t"));
        std::fs::write(&path, "s3cr3t").unwrap();
        let error = paths(&with_file, &[]);
        assert!(error.contains("ENCLAVE_EXPORTER_HEADERS_FILE") && !error.contains("s3cr3t"), "{error}");
    }

    /// Dials https://`name` at a TLS server whose certificate is for collector.example.
    async fn dial_tls(name: &str, ca_file: Option<&Path>) -> Result<(), DialError> {
        use tokio_rustls::{
            TlsAcceptor,
            rustls::{ServerConfig, pki_types::PrivateKeyDer},
        };
        let testdata = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
        let certificate = CertificateDer::from_pem_file(testdata.join("cert.pem")).unwrap();
        let key = PrivateKeyDer::from_pem_file(testdata.join("key.pem")).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let dir = tempfile::tempdir().unwrap();
        let hosts = dir.path().join("hosts");
        std::fs::write(&hosts, "127.0.0.1 collector.example other.example\n").unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{name}:{}", listener.local_addr().unwrap().port());
        let ca_file = ca_file.map(|file| testdata.join(file));
        let endpoint = Endpoint::parse(&url, hosts, ca_file.as_deref()).unwrap();
        let accept = async { acceptor.accept(listener.accept().await.unwrap().0).await };
        let (dialled, accepted) = tokio::join!(endpoint.dial(), accept);
        assert_eq!(dialled.is_ok(), accepted.is_ok());
        dialled.map(drop)
    }

    #[tokio::test]
    async fn a_collector_with_a_certificate_of_its_name_is_trusted_and_no_other() {
        let ca = Some(Path::new("ca.pem"));
        dial_tls("collector.example", ca).await.unwrap();
        let wrong_name = dial_tls("other.example", ca).await.err().unwrap();
        assert!(chain(&wrong_name).contains("not valid for name"), "{}", chain(&wrong_name));
        let unknown_authority = dial_tls("collector.example", None).await.err().unwrap();
        assert!(chain(&unknown_authority).contains("UnknownIssuer"), "{}", chain(&unknown_authority));
    }

    #[test]
    fn a_file_of_authorities_that_has_none_is_refused() {
        let testdata = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
        for file in ["key.pem", "nonexistent.pem"] {
            let path = testdata.join(file);
            let result = Endpoint::parse("https://c.example", PathBuf::from("/etc/hosts"), Some(&path));
            assert!(matches!(result, Err(UrlError::Roots { .. })), "{file}");
        }
    }

    #[tokio::test]
    async fn a_server_that_does_not_speak_tls_gets_nothing() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://127.0.0.1:{}", listener.local_addr().unwrap().port());
        let endpoint = Endpoint::parse(&url, PathBuf::from("/etc/hosts"), None).unwrap();
        let answer = async {
            use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
            let (mut peer, _) = listener.accept().await.unwrap();
            let mut hello = [0; 6];
            peer.read_exact(&mut hello).await.unwrap();
            peer.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
            hello
        };
        let (result, hello) = tokio::join!(endpoint.dial(), answer);
        assert!(matches!(result, Err(DialError::Tls { .. })));
        assert_eq!((hello[0], hello[5]), (22, 1), "the first record is a ClientHello");
    }
}
