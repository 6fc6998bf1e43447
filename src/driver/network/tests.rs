#![expect(clippy::disallowed_types, reason = "a process stands for one that a test must not talk to")]

use std::{
    io::Write as _,
    os::unix::{net::UnixStream as StdUnixStream, process::ExitStatusExt},
    process::Command,
};

use enclave_protocol::stream::{Header, Kind, Reply};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::timeout,
};

use super::*;
use crate::{
    net::{self, link::FDS_MAX},
    sys::netns::tcp_socket,
};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_mins(1);
const LIMIT: Duration = Duration::from_secs(2);

/// No process has this id.
const NOBODY: i32 = i32::MAX;

/// A network whose process is whoever has the answered link. Plugin `app` is declared to serve `port`.
fn network(port: u16, sockets: SocketSource) -> (Network, Link) {
    let setup = Setup {
        host: Host::Unix("/nowhere".into()),
        egress_port: 1,
        egress: Vec::new(),
        peers: Vec::new(),
        ingress: vec![IngressRule { host_port: 8080, plugin: "app".into(), container_port: port }],
        ingress_listener: None,
        sockets,
    };
    let mut network = Network::new(setup, None);
    let (ours, theirs) = Link::pair().unwrap();
    let messages = network.setup.messages().unwrap();
    network.run = Some(network.attended(NOBODY, ours, messages));
    (network, Link::from_fd(theirs).unwrap())
}

/// A `net` that has read what it is told first.
async fn idle() -> (Network, Link) {
    let (network, net) = network(80, SocketSource::shared_namespace());
    for _ in 0..2 {
        said(&net).await;
    }
    (network, net)
}

async fn said(net: &Link) -> (Message, usize) {
    let (message, fds) = timeout(PATIENCE, net.recv()).await.unwrap().unwrap().unwrap();
    (message, fds.len())
}

async fn probed(network: &Network) -> (u64, Outcome) {
    timeout(PATIENCE, network.probed()).await.unwrap()
}

#[tokio::test]
async fn streams_and_probes_reach_a_plugin_with_sockets_of_our_making() {
    let served = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = served.local_addr().unwrap().port();
    let (network, link) = network(port, SocketSource::shared_namespace());
    let mut net = JoinSet::new();
    net.spawn(net::run(link, |_| Ok(())));

    let (host, theirs) = StdUnixStream::pair().unwrap();
    host.set_nonblocking(true).unwrap();
    theirs.set_nonblocking(true).unwrap();
    let mut host = UnixStream::from_std(host).unwrap();
    network.ingress(Stream::Unix(UnixStream::from_std(theirs).unwrap()));
    let header = Header { kind: Kind::Ingress, port, trace_id: 1, name: "app".into() };
    host.write_all(&header.encode().unwrap()).await.unwrap();
    let (mut app, _) = timeout(PATIENCE, served.accept()).await.unwrap().unwrap();
    let mut reply = [0; 4];
    host.read_exact(&mut reply).await.unwrap();
    assert_eq!(Reply::decode(reply), Some(Reply::CONNECTED));
    app.write_all(b"served").await.unwrap();
    let mut text = [0; 6];
    host.read_exact(&mut text).await.unwrap();
    assert_eq!(&text, b"served");

    network.probe(7, "app", port, Question::Tcp, LIMIT);
    assert_eq!(probed(&network).await, (7, Outcome::Success));
    drop(served);
    let question = Question::Http { path: "/".into(), headers: Vec::new() };
    network.probe(8, "app", port, question, LIMIT);
    let (id, outcome) = probed(&network).await;
    assert_eq!(id, 8);
    assert!(matches!(&outcome, Outcome::Failure { message } if message.contains("refused")), "{outcome:?}");
}

#[tokio::test]
async fn a_hostile_net_gets_nothing_it_has_no_business_with_and_is_served_on() {
    let (network, net) = idle().await;
    let wanted = |plugin: &str, count| Message::SocketsWanted { plugin: plugin.into(), count };
    let families = vec![Family::counter("x", "x", Vec::new())];
    for message in [
        wanted("other", 1),
        wanted("", usize::MAX),
        Message::Probed { id: 1, outcome: Outcome::Success },
        Message::Report { id: 1, families, last: true },
        Message::IngressListener,
        Message::ReportRequest { id: 1 },
        Message::Sockets { plugin: "app".into() },
        wanted("app", usize::MAX),
    ] {
        net.send(&message, &[]).await.unwrap();
    }
    let sockets = Message::Sockets { plugin: "app".into() };
    assert_eq!(said(&net).await, (sockets, FDS_MAX), "the only answer");
    network.probe(1, "app", 80, Question::Tcp, LIMIT);
    let timeout_ms = u64::try_from(LIMIT.as_millis()).unwrap();
    let probe = Message::Probe { id: 1, port: 80, question: Question::Tcp, timeout_ms };
    assert_eq!(said(&net).await, (probe, 1));
    for id in [2, 1, 1] {
        let outcome = Outcome::Failure { message: "a\nb".to_owned() };
        net.send(&Message::Probed { id, outcome }, &[]).await.unwrap();
    }
    assert_eq!(probed(&network).await, (1, Outcome::Failure { message: "a b".to_owned() }));
}

#[tokio::test]
async fn a_net_that_asks_without_reading_is_not_answered_without_end() {
    let (_network, net) = idle().await;
    let wanted = Message::SocketsWanted { plugin: "app".into(), count: FDS_MAX };
    // More than the socket's buffer holds of answers.
    for _ in 0..5000 {
        timeout(PATIENCE, net.send(&wanted, &[])).await.expect("PID 1 still reads").unwrap();
    }
    let mut answers = 0;
    while let Ok(received) = timeout(LIMIT / 10, net.recv()).await {
        answers += usize::from(received.unwrap().is_some());
    }
    assert!((1..5000).contains(&answers), "{answers}");
}

#[tokio::test]
async fn a_probe_that_cannot_be_asked_is_answered_unknown_at_once() {
    let unknown = |message: &str| Outcome::Unknown { message: message.to_owned() };
    let (mut network, _net) = network(80, SocketSource::new(|_, _| Err(io::ErrorKind::OutOfMemory.into())));
    network.probe(1, "app", 80, Question::Tcp, LIMIT);
    assert_eq!(probed(&network).await, (1, unknown("no socket: out of memory")));
    assert!(network.ended(NOBODY, Moment::default()));
    network.probe(2, "app", 80, Question::Tcp, LIMIT);
    assert_eq!(probed(&network).await, (2, unknown("the net process is not running")));
}

#[tokio::test]
async fn probes_over_the_bound_and_those_of_a_net_that_ended_are_unknown() {
    let (mut network, _net) = idle().await;
    let all = PROBES_MAX as u64;
    for id in 0..=all {
        network.probe(id, "app", 80, Question::Tcp, LIMIT);
    }
    let unknown = |message: &str| Outcome::Unknown { message: message.to_owned() };
    assert_eq!(probed(&network).await, (all, unknown("too many probes at once")));
    assert!(network.ended(NOBODY, Moment::default()));
    for id in 0..all {
        assert_eq!(probed(&network).await, (id, unknown("the net process ended")));
    }
}

#[tokio::test]
async fn a_net_that_breaks_the_rules_of_the_link_is_killed_and_one_that_is_gone_is_not() {
    for packet in [Some(&b"{not json"[..]), None] {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let (network, _) = network(80, SocketSource::shared_namespace());
        let (ours, theirs) = Link::pair().unwrap();
        let run = network.attended(i32::try_from(child.id()).unwrap(), ours, Vec::new());
        if let Some(packet) = packet {
            rustix::net::send(&theirs, packet, rustix::net::SendFlags::empty()).unwrap();
        }
        drop(theirs);
        timeout(PATIENCE, run.streams.closed()).await.unwrap();
        if packet.is_none() {
            assert!(child.try_wait().unwrap().is_none(), "its own exit code would be lost");
            child.kill().unwrap();
        }
        let status = tokio::task::spawn_blocking(move || child.wait()).await.unwrap().unwrap();
        assert_eq!(status.signal(), Some(9), "{packet:?}");
    }
}

type Errand = Box<dyn FnOnce() + Send>;

/// A thread in a network namespace of its own, which ends with it.
#[derive(Clone)]
struct Namespace(std::sync::mpsc::SyncSender<Errand>);

impl Namespace {
    /// None without the privilege for it.
    fn new() -> Option<Self> {
        let (errands, run) = std::sync::mpsc::sync_channel::<Errand>(1);
        std::thread::spawn(move || run.iter().for_each(|errand| errand()));
        let namespace = Self(errands);
        let made = namespace.run(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).ok()?;
            sys::loopback::raise().unwrap();
            Some(())
        });
        made.map(|()| namespace)
    }

    /// Runs it there.
    fn run<T: Send + 'static>(&self, errand: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = std::sync::mpsc::sync_channel(1);
        self.0.send(Box::new(move || drop(done.send(errand())))).unwrap();
        result.recv().unwrap()
    }

    fn listen(&self, port: u16) -> TcpListener {
        self.run(move || {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
            listener.set_nonblocking(true).unwrap();
            listener
        })
    }
}

#[tokio::test]
async fn plugins_with_namespaces_of_their_own_are_reached_at_their_declared_ports() {
    let (Some(web), Some(db)) = (Namespace::new(), Namespace::new()) else {
        // Past the capture of the output: no test is left out in silence.
        return io::stderr().write_all(b"not run: a network namespace takes root\n").unwrap();
    };
    let (port, other) = (5432, 5433);
    let served = tokio::net::TcpListener::from_std(db.listen(port)).unwrap();
    let address = Ipv4Addr::new(127, 65, 0, 1);
    let peer = PeerListener { from: "web".into(), to: "db".into(), port, source: Some(address) };
    let namespaces = [("web".to_owned(), web.clone()), ("db".to_owned(), db.clone())];
    let source = SocketSource::new(move |plugin, count| {
        let (_, namespace) = namespaces.iter().find(|(name, _)| name == plugin).unwrap();
        namespace.run(move || (0..count).map(|_| tcp_socket()).collect())
    });
    let (mut network, _) = network(other, source);
    network.setup.peers = vec![(peer, web.listen(port))];
    let (ours, theirs) = Link::pair().unwrap();
    network.run = Some(network.attended(NOBODY, ours, network.setup.messages().unwrap()));
    let mut net = JoinSet::new();
    net.spawn(net::run(Link::from_fd(theirs).unwrap(), |_| Ok(())));

    let connect = move || std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    let web_end = web.run(connect);
    web_end.set_nonblocking(true).unwrap();
    let mut web_end = tokio::net::TcpStream::from_std(web_end).unwrap();
    let (mut db_end, caller) = timeout(PATIENCE, served.accept()).await.unwrap().unwrap();
    assert_eq!(caller.ip(), address);
    web_end.write_all(b"query").await.unwrap();
    let mut text = [0; 5];
    db_end.read_exact(&mut text).await.unwrap();
    assert_eq!(&text, b"query");

    let mut outcomes = Vec::new();
    for (id, plugin, port) in [(1, "db", port), (2, "db", other), (3, "web", other)] {
        network.probe(id, plugin, port, Question::Tcp, LIMIT);
        outcomes.push(probed(&network).await.1 == Outcome::Success);
    }
    assert_eq!(outcomes, [true, false, false]);
}
