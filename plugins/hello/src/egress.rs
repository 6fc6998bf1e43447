//! A plain HTTP GET through the enclave's egress. Names are looked up in `/etc/hosts` by ourselves first,
//! since a static binary has no NSS.

use std::{
    error::Error,
    net::{IpAddr, SocketAddr},
    path::Path,
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{Request, Uri, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, task::JoinSet, time::timeout};

/// For the whole exchange.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Longest body that is read.
const BODY_BYTES_MAX: usize = 1 << 20;

/// What a far server answered.
pub(crate) struct Fetched {
    pub(crate) status: u16,
    pub(crate) body: Bytes,
}

/// Gets `url`; an error is one line for people.
pub(crate) async fn get(url: &str, hosts: &Path) -> Result<Fetched, String> {
    timeout(TIMEOUT, exchange(url, hosts)).await.map_err(|_| format!("no answer within {TIMEOUT:?}"))?
}

async fn exchange(url: &str, hosts: &Path) -> Result<Fetched, String> {
    let uri: Uri = url.parse().map_err(|error| format!("bad url: {error}"))?;
    let authority = uri.authority().filter(|_| uri.scheme_str() == Some("http"));
    let authority = authority.ok_or("bad url: expected http://name:port/path")?;
    let host = authority.host().trim_matches(['[', ']']);
    let addresses = resolve(hosts, host, authority.port_u16().unwrap_or(80)).await?;
    let stream = TcpStream::connect(addresses.as_slice())
        .await
        .map_err(|error| format!("connecting to {authority}: {error}"))?;
    let (mut requests, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    // Dropped, and so stopped, on every way out.
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let request = Request::get(path)
        .header(header::HOST, authority.as_str())
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let response = requests.send_request(request).await.map_err(|error| no_answer(&error))?;
    let status = response.status().as_u16();
    let body = Limited::new(response.into_body(), BODY_BYTES_MAX);
    let body = body.collect().await.map_err(|error| format!("reading the answer: {error}"))?;
    Ok(Fetched { status, body: body.to_bytes() })
}

/// With all its causes: a reset is told apart from an end. One that comes before the request is on its way is
/// the cause of a cause.
fn no_answer(error: &(dyn Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |&error| error.source());
    causes.fold("no answer".to_owned(), |text, cause| format!("{text}: {cause}"))
}

async fn resolve(hosts: &Path, name: &str, port: u16) -> Result<Vec<SocketAddr>, String> {
    let text = std::fs::read_to_string(hosts).unwrap_or_default();
    let listed: Vec<_> = name.parse().into_iter().chain(look_up(&text, name)).collect();
    if !listed.is_empty() {
        return Ok(listed.into_iter().map(|ip: IpAddr| SocketAddr::new(ip, port)).collect());
    }
    let found = tokio::net::lookup_host((name, port)).await;
    found.map(Iterator::collect).map_err(|error| format!("resolving {name}: {error}"))
}

fn look_up<'a>(text: &'a str, name: &'a str) -> impl Iterator<Item = IpAddr> + 'a {
    text.lines().filter_map(move |line| {
        let mut words = line.split('#').next()?.split_ascii_whitespace();
        let address = words.next()?.parse().ok()?;
        words.any(|word| word.eq_ignore_ascii_case(name)).then_some(address)
    })
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;

    /// An error with a cause.
    #[derive(Debug)]
    struct Canceled(Box<dyn Error>);

    impl std::fmt::Display for Canceled {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("canceled")
        }
    }

    impl Error for Canceled {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(&*self.0)
        }
    }

    #[test]
    fn a_missing_answer_is_told_with_all_its_causes() {
        let reset = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        let error = Canceled(Box::new(Canceled(Box::new(reset))));
        assert_eq!(no_answer(&error), "no answer: canceled: canceled: connection reset");
    }

    #[tokio::test]
    async fn a_url_is_fetched_by_a_name_from_the_hosts_file() {
        let dir = tempfile::tempdir().unwrap();
        let hosts = dir.path().join("hosts");
        std::fs::write(&hosts, "# c\n127.0.0.1 a.example b.example\n").unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://B.example:{}/p?q=1", listener.local_addr().unwrap().port());
        let serve = async {
            let (mut peer, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 1000];
            let length = peer.read(&mut request).await.unwrap();
            peer.write_all(b"HTTP/1.1 203 OK\r\ncontent-length: 2\r\n\r\nhi").await.unwrap();
            String::from_utf8(request[..length].to_vec()).unwrap()
        };
        let (fetched, request) = tokio::join!(get(&url, &hosts), serve);
        let fetched = fetched.unwrap();
        assert_eq!((fetched.status, &fetched.body[..]), (203, &b"hi"[..]));
        assert!(request.starts_with("GET /p?q=1 HTTP/1.1\r\nhost: B.example:"), "{request}");
    }

    #[tokio::test]
    async fn a_failure_is_told() {
        let hosts = Path::new("/etc/hosts");
        let error = get("http://127.0.0.1:1/", hosts).await.err().unwrap();
        assert!(error.starts_with("connecting to 127.0.0.1:"), "{error}");
        assert!(get("https://a.example/", hosts).await.err().unwrap().starts_with("bad url"));
    }
}
