//! The whole of `net` in one process: a real link, real sockets, and a host that the test plays.

use std::{
    future::{Future, poll_fn},
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    pin::pin,
    task::Poll,
};

use enclave_protocol::{
    control::{EGRESS_PORT, EgressRule, IngressRule},
    metrics::Family,
    stream::{FIXED_LEN, Header, Reply},
    transport::{Guest, HostListener},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::{
    link::{FDS_MAX, HostAddress},
    *,
};

/// What a test waits for at most; longer than every limit of `net` that is below a minute.
const PATIENCE: Duration = Duration::from_mins(1);

/// The address that a plugin has towards those that tell their callers apart.
pub(super) const CALLER: Ipv4Addr = Ipv4Addr::new(127, 65, 0, 9);

/// The tests' own process keeps its privileges.
#[expect(clippy::unnecessary_wraps, reason = "what run takes")]
fn as_it_is(_host: &Host) -> io::Result<()> {
    Ok(())
}

/// A `net` that runs, PID 1's end of its link, and its host.
pub(super) struct Bench {
    pub(super) link: Link,
    pub(super) host: Option<HostListener>,
    pub(super) net: JoinSet<io::Result<()>>,
    asked: u64,
    _dir: tempfile::TempDir,
}

impl Bench {
    pub(super) async fn start(limits: Limits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v.sock");
        let host = Guest::Unix(path.clone()).listen(EGRESS_PORT).unwrap();
        let (link, theirs) = Link::pair().unwrap();
        let mut net = JoinSet::new();
        net.spawn(run(Link::from_fd(theirs).unwrap(), as_it_is));
        let host_address = HostAddress::Unix(path);
        link.send(&Message::Configure { host: host_address, egress_port: EGRESS_PORT, limits }, &[])
            .await
            .unwrap();
        assert_eq!(link.recv().await.unwrap().unwrap().0, Message::Ready);
        Self { link, host: Some(host), net, asked: 0, _dir: dir }
    }

    /// Hands over a listener for `plugin` and a.example:443; answers where it listens.
    pub(super) async fn egress(&self, plugin: &str, tls: bool) -> SocketAddr {
        let listener = StdTcpListener::bind("127.0.0.1:0").unwrap();
        let rule = EgressRule { plugin: plugin.into(), fqdn: "a.example".into(), port: 443, tls };
        self.link.send(&Message::Egress { rule }, &[listener.as_fd()]).await.unwrap();
        listener.local_addr().unwrap()
    }

    /// Fills the pool of `plugin`.
    pub(super) async fn sockets(&self, plugin: &str) {
        let sockets = sockets::tests::made(FDS_MAX);
        let fds: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
        self.link.send(&Message::Sockets { plugin: plugin.into() }, &fds).await.unwrap();
    }

    /// The plugin that `net` asks for sockets of.
    pub(super) async fn asked_for_sockets(&self) -> String {
        let (message, _fds) = self.link.recv().await.unwrap().unwrap();
        let Message::SocketsWanted { plugin, .. } = message else { panic!("{message:?}") };
        plugin
    }

    /// Says that none can be made.
    pub(super) async fn no_sockets(&self, plugin: &str) {
        self.link.send(&Message::Sockets { plugin: plugin.into() }, &[]).await.unwrap();
    }

    /// Hands over a listener of `from` for a port of `to`; answers where it listens.
    pub(super) async fn peer(&self, from: &str, to: &str, port: u16) -> SocketAddr {
        let listener = StdTcpListener::bind("127.0.0.1:0").unwrap();
        let message = Message::Peer { from: from.into(), to: to.into(), port, source: Some(CALLER) };
        self.link.send(&message, &[listener.as_fd()]).await.unwrap();
        listener.local_addr().unwrap()
    }

    /// Declares port 80 of `plugin`, and fills its pool.
    pub(super) async fn ingress(&self, plugin: &str, target: SocketAddr) {
        self.sockets(plugin).await;
        let rule = IngressRule { host_port: 8080, plugin: plugin.into(), container_port: 80 };
        self.link.send(&Message::Ingress { rule, target }, &[]).await.unwrap();
    }

    /// The host's end of a new ingress stream.
    pub(super) async fn ingress_stream(&self) -> UnixStream {
        let (ours, theirs) = StdUnixStream::pair().unwrap();
        self.link.send(&Message::IngressStream, &[theirs.as_fd()]).await.unwrap();
        ours.set_nonblocking(true).unwrap();
        UnixStream::from_std(ours).unwrap()
    }

    /// The next egress stream that reaches the host, its header read.
    pub(super) async fn host_accepts(&self) -> (Header, Stream) {
        let accepted = timeout(PATIENCE, self.host.as_ref().unwrap().accept()).await;
        let mut stream = accepted.expect("no stream reaches the host").unwrap();
        let mut fixed = [0; FIXED_LEN];
        stream.read_exact(&mut fixed).await.unwrap();
        let (header, length) = Header::decode_fixed(&fixed).unwrap();
        let mut name = vec![0; length];
        stream.read_exact(&mut name).await.unwrap();
        (header.with_name(&name).unwrap(), stream)
    }

    /// The same, agreed to.
    pub(super) async fn host_connects(&self) -> Stream {
        let (_header, mut stream) = self.host_accepts().await;
        stream.write_all(&Reply::CONNECTED.encode()).await.unwrap();
        stream
    }

    /// Fails if any stream has reached the host.
    pub(super) async fn host_saw_nothing(&self) {
        let mut accept = pin!(self.host.as_ref().unwrap().accept());
        let pending = poll_fn(|cx| Poll::Ready(accept.as_mut().poll(cx).is_pending())).await;
        assert!(pending, "a stream has reached the host");
    }

    pub(super) async fn report(&mut self) -> Vec<Family> {
        self.asked += 1;
        self.link.send(&Message::ReportRequest { id: self.asked }, &[]).await.unwrap();
        let mut gather = report::Gather::new(self.asked);
        loop {
            let (message, _fds) = self.link.recv().await.unwrap().unwrap();
            if let Message::SocketsWanted { plugin, .. } = message {
                // A test that wants no answer reads the question itself.
                self.sockets(&plugin).await;
                continue;
            }
            let Message::Report { id, families, last } = message else { panic!("{message:?}") };
            if let Some(whole) = gather.push(id, families, last) {
                return whole;
            }
        }
    }

    /// The sum of `name`'s points that have all of `labels`.
    pub(super) async fn value(&mut self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let families = self.report().await;
        let family = families.iter().find(|family| family.name == name).expect(name);
        let matching = family.points.iter().filter(|point| {
            labels.iter().all(|(key, value)| point.labels.get(key).is_some_and(|found| found == *value))
        });
        matching.map(|point| point.value).sum()
    }

    /// Asks again until the value is there.
    pub(super) async fn until(&mut self, name: &str, labels: &[(&str, &str)], expected: f64) {
        let reached = async {
            #[expect(clippy::float_cmp, reason = "small whole numbers are exact")]
            while self.value(name, labels).await != expected {}
        };
        timeout(PATIENCE, reached).await.expect(name);
    }

    pub(super) async fn refused(&mut self, direction: &str, reason: &str) -> f64 {
        self.value(&format!("enclave_{direction}_refused_total"), &[("reason", reason)]).await
    }
}

/// The connection must end with a reset, with nothing before it.
pub(super) async fn assert_reset(app: &mut TcpStream) {
    let read = timeout(PATIENCE, app.read(&mut [0; 1])).await.expect("the connection stays open");
    assert_eq!(read.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn net_ends_with_pid_1_and_open_connections_are_reset() {
    let mut bench = Bench::start(Limits::default()).await;
    let address = bench.egress("app", false).await;
    let mut app = TcpStream::connect(address).await.unwrap();
    let mut host = bench.host_connects().await;
    host.write_all(b"x").await.unwrap();
    app.read_exact(&mut [0]).await.unwrap();
    let (other, _) = Link::pair().unwrap();
    drop(std::mem::replace(&mut bench.link, other));
    bench.net.join_next().await.unwrap().unwrap().unwrap();
    assert_reset(&mut app).await;
}

#[tokio::test]
async fn a_message_out_of_place_ends_net_with_an_error() {
    let rule = EgressRule { plugin: "p".into(), fqdn: "a".into(), port: 1, tls: false };
    let configure = Message::Configure {
        host: HostAddress::Unix(PathBuf::from("nowhere")),
        egress_port: 1,
        limits: Limits::default(),
    };
    for messages in [
        vec![Message::Ready],
        vec![Message::Egress { rule: rule.clone() }],
        vec![configure.clone(), configure.clone()],
        vec![configure.clone(), Message::Egress { rule }],
        vec![configure.clone(), Message::IngressListener],
        vec![configure, Message::Report { id: 1, families: vec![], last: true }],
    ] {
        let (link, theirs) = Link::pair().unwrap();
        for message in &messages {
            link.send(message, &[]).await.unwrap();
        }
        let ended = run(Link::from_fd(theirs).unwrap(), as_it_is).await;
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::InvalidData, "{messages:?}");
    }
    let (link, theirs) = Link::pair().unwrap();
    drop(link);
    run(Link::from_fd(theirs).unwrap(), as_it_is).await.unwrap();
}

#[tokio::test]
async fn connections_wait_in_the_backlog_while_net_is_started_again() {
    let listener = StdTcpListener::bind("127.0.0.1:0").unwrap();
    let rule = EgressRule { plugin: "app".into(), fqdn: "a.example".into(), port: 443, tls: false };
    let egress = Message::Egress { rule };
    let mut first = Bench::start(Limits::default()).await;
    first.link.send(&egress, &[listener.as_fd()]).await.unwrap();
    first.report().await;
    first.net.shutdown().await;
    let mut app = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    app.write_all(b"waiting").await.unwrap();
    let second = Bench::start(Limits::default()).await;
    second.link.send(&egress, &[listener.as_fd()]).await.unwrap();
    let mut host = second.host_connects().await;
    let mut text = [0; 7];
    host.read_exact(&mut text).await.unwrap();
    assert_eq!(&text, b"waiting");
}

#[tokio::test(start_paused = true)]
async fn accepting_pauses_when_descriptors_run_out_and_not_for_a_connection_that_ended() {
    let counters = Counters::egress();
    let start = tokio::time::Instant::now();
    back_off(&counters, &io::Error::from(rustix::io::Errno::CONNABORTED)).await;
    assert_eq!(start.elapsed(), Duration::ZERO);
    back_off(&counters, &io::Error::from(rustix::io::Errno::MFILE)).await;
    assert_eq!(start.elapsed(), ACCEPT_PAUSE);
    let families = counters.families();
    let errors = families.iter().find(|family| family.name == "enclave_egress_accept_errors_total").unwrap();
    assert_eq!(errors.points[0].value.to_string(), "2");
}

#[tokio::test]
async fn every_rule_is_reported_before_anything_has_happened() {
    let mut bench = Bench::start(Limits::default()).await;
    bench.egress("app", false).await;
    bench.ingress("web", "127.0.0.1:80".parse().unwrap()).await;
    let families = bench.report().await;
    let lines: Vec<_> = families
        .iter()
        .flat_map(|family| {
            family.points.iter().map(|point| format!("{} {:?} {}", family.name, point.labels, point.value))
        })
        .collect();
    expect_test::expect![[r#"
        enclave_egress_connections_total {"destination": "a.example:443", "plugin": "app"} 0
        enclave_egress_connections_active {"destination": "a.example:443", "plugin": "app"} 0
        enclave_egress_broken_total {"destination": "a.example:443", "plugin": "app"} 0
        enclave_egress_sent_bytes_total {"destination": "a.example:443", "plugin": "app"} 0
        enclave_egress_received_bytes_total {"destination": "a.example:443", "plugin": "app"} 0
        enclave_egress_accept_errors_total {} 0
        enclave_egress_panics_total {} 0
        enclave_ingress_connections_total {"plugin": "web", "port": "80"} 0
        enclave_ingress_connections_active {"plugin": "web", "port": "80"} 0
        enclave_ingress_broken_total {"plugin": "web", "port": "80"} 0
        enclave_ingress_sent_bytes_total {"plugin": "web", "port": "80"} 0
        enclave_ingress_received_bytes_total {"plugin": "web", "port": "80"} 0
        enclave_ingress_accept_errors_total {} 0
        enclave_ingress_panics_total {} 0
        enclave_peer_accept_errors_total {} 0
        enclave_peer_panics_total {} 0"#]]
    .assert_eq(&lines.join("\n"));
}
