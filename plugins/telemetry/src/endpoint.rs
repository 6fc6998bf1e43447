//! Where metrics are pushed: `EXPORTER_URL`, and a connection to it, plain or TLS.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use hyper::Uri;
use tokio::net::TcpStream;
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, ServerName, pem::PemObject as _},
    },
};

use crate::{
    hosts,
    link::{Link, LinkError},
    signal::Signal,
};

/// A collector's address, checked.
#[derive(Clone)]
pub(crate) struct Endpoint {
    host: String,
    port: u16,
    /// The `Host` header.
    pub(crate) authority: String,
    /// The path of the base URL, without a slash at its end.
    base: String,
    query: Option<String>,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    hosts: PathBuf,
}

/// What is wrong with `EXPORTER_URL`.
#[derive(Debug, thiserror::Error)]
pub enum UrlError {
    /// No URL at all.
    #[error("EXPORTER_URL {0:?} is not a URL such as http://collector:4318")]
    Malformed(String),
    /// Neither http nor https.
    #[error("EXPORTER_URL has scheme {0:?}, expected http or https")]
    Scheme(String),
    /// Credentials in the URL would end in logs.
    #[error("EXPORTER_URL must not carry a user or password")]
    Credentials,
    /// A host that cannot stand in a certificate.
    #[error("EXPORTER_URL has host {0:?}, which TLS cannot verify")]
    ServerName(String),
    /// The authorities cannot be read.
    #[error("reading the authorities in {path}: {why}")]
    Roots {
        /// The file.
        path: PathBuf,
        /// Why not.
        why: String,
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
    /// Reads a base URL. `hosts` is the file in which names are looked up first, `ca_file` replaces the
    /// public roots.
    pub(crate) fn parse(url: &str, hosts: PathBuf, ca_file: Option<&Path>) -> Result<Self, UrlError> {
        let malformed = || UrlError::Malformed(url.to_owned());
        if url.contains('@') {
            return Err(UrlError::Credentials);
        }
        let uri: Uri = url.parse().map_err(|_| malformed())?;
        let authority = uri.authority().filter(|a| !a.host().is_empty()).ok_or_else(malformed)?;
        let (default_port, is_tls) = match uri.scheme_str() {
            Some("http") => (80, false),
            Some("https") => (443, true),
            other => return Err(UrlError::Scheme(other.unwrap_or_default().to_owned())),
        };
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        let tls = if is_tls { Some(tls(&host, ca_file)?) } else { None };
        Ok(Self {
            port: authority.port_u16().unwrap_or(default_port),
            authority: authority.as_str().to_owned(),
            base: uri.path().trim_end_matches('/').to_owned(),
            query: uri.query().map(str::to_owned),
            host,
            tls,
            hosts,
        })
    }

    /// The path of `signal`, with a query if the base URL has one.
    pub(crate) fn path(&self, signal: Signal) -> String {
        let query = self.query.as_ref().map(|query| format!("?{query}")).unwrap_or_default();
        format!("{}{}{query}", self.base, signal.path())
    }

    /// Connects. The caller bounds the time.
    pub(crate) async fn dial(&self) -> Result<Link, DialError> {
        let (host, port) = (self.host.clone(), self.port);
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

    fn check(url: &str) -> String {
        match Endpoint::parse(url, PathBuf::from("/etc/hosts"), None) {
            Ok(e) => format!(
                "{} {} {} {} tls={}",
                e.host,
                e.port,
                e.authority,
                e.path(Signal::Metrics),
                e.tls.is_some()
            ),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn v1_metrics_is_appended_to_the_base_path() {
        assert_eq!(check("http://collector:4318"), "collector 4318 collector:4318 /v1/metrics tls=false");
        assert_eq!(check("http://c:4318/"), "c 4318 c:4318 /v1/metrics tls=false");
        assert_eq!(check("http://c/otlp/"), "c 80 c /otlp/v1/metrics tls=false");
        assert_eq!(check("https://c.example/a?b=c"), "c.example 443 c.example /a/v1/metrics?b=c tls=true");
        assert_eq!(check("http://[::1]:4318"), "::1 4318 [::1]:4318 /v1/metrics tls=false");
    }

    #[test]
    fn a_bad_url_is_named_with_its_reason() {
        assert!(check("collector:4318").contains("scheme"));
        assert!(check("ftp://collector").contains("scheme \"ftp\""));
        assert!(check("http://").contains("not a URL"));
        assert!(check("").contains("not a URL"));
        assert!(!check("http://user:secret@collector").contains("secret"));
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
