//! Egress: the enclave's streams to the world. Every stream names its destination; this side decides by its
//! own reading of the manifest, resolves, judges the addresses, connects and relays.
//!
//! That `tls: true` destinations open with a TLS `ClientHello` is enforced inside the enclave, where it
//! protects the plugins' data; here it would protect nothing.

use std::{io, sync::Arc, time::Duration};

use enclave_protocol::{
    relay::{self, relay},
    stream::{FIXED_LEN, Header, HeaderError, Kind, NAME_MAX, Reply, ReplyStatus},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use crate::{
    accept::{self, Accept, Admission},
    counters::Counters,
    dial,
    policy::normalise,
    resolve::{ResolveError, Resolver},
    rules::EgressRules,
    throttle::Throttle,
};

/// Streams at one time. Two descriptors each leave room below the usual limit of 4096.
const STREAMS_MAX: usize = 1024;
/// Streams to one destination at one time: one that hangs must not take every place.
const STREAMS_PER_DESTINATION_MAX: usize = 256;
/// How long a header may take, and how long a refusal may take to be read.
const HEADER_TIMEOUT: Duration = Duration::from_secs(1);

/// What every stream needs.
#[derive(Debug)]
pub(crate) struct Egress {
    rules: EgressRules,
    /// One for each rule.
    places: Vec<Arc<Semaphore>>,
    resolver: Arc<Resolver>,
    counters: Arc<Counters>,
    refusals: Throttle,
}

/// Why a stream is not connected.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("no header within {} s", HEADER_TIMEOUT.as_secs())]
    Stalled,
    #[error("the connection ended within its header: {0}")]
    Broken(#[source] io::Error),
    #[error("malformed header: {0}")]
    Malformed(#[source] HeaderError),
    #[error("a header of an ingress stream")]
    Kind,
    #[error("the manifest does not allow it")]
    NotAllowed,
    #[error(transparent)]
    Address(ResolveError),
    #[error("cannot connect: {0}")]
    Connect(#[source] io::Error),
    #[error("too many streams")]
    Overloaded,
}

impl Refusal {
    /// What the enclave is told; nothing when it does not listen.
    fn reply(&self) -> Option<Reply> {
        Some(match self {
            Self::Stalled | Self::Broken(_) => return None,
            Self::Malformed(_) | Self::Kind => Reply::refused(ReplyStatus::Malformed),
            Self::NotAllowed => Reply::refused(ReplyStatus::NotAllowed),
            Self::Address(ResolveError::Unresolved(_)) => Reply::refused(ReplyStatus::Unresolved),
            Self::Address(ResolveError::Forbidden { .. }) => Reply::refused(ReplyStatus::ForbiddenAddress),
            Self::Connect(error) => Reply::connect_failed(error),
            Self::Overloaded => Reply::refused(ReplyStatus::Overloaded),
        })
    }

    /// The word for the counter.
    fn word(&self) -> &'static str {
        match (self, self.reply()) {
            (_, Some(reply)) => reply.status.word(),
            (Self::Stalled, None) => "header_timeout",
            (_, None) => "header_incomplete",
        }
    }
}

/// A connected destination.
struct Connected {
    tcp: TcpStream,
    /// Its place among the destination's streams.
    _place: OwnedSemaphorePermit,
}

/// Serves egress streams until it is dropped.
pub(crate) async fn serve<L>(listener: L, egress: Arc<Egress>)
where
    L: Accept,
    L::Stream: AsyncRead + AsyncWrite + Unpin,
{
    let counters = Arc::clone(&egress.counters);
    accept::serve(listener, STREAMS_MAX, counters, move |stream, admission| {
        let egress = Arc::clone(&egress);
        async move {
            match admission {
                Admission::Admitted => egress.stream(stream).await,
                Admission::Overloaded => egress.refuse(stream, None, &Refusal::Overloaded).await,
            }
        }
    })
    .await;
}

impl Egress {
    /// With these rules.
    pub(crate) fn new(rules: EgressRules, resolver: Arc<Resolver>, counters: Arc<Counters>) -> Self {
        let places =
            (0..rules.len()).map(|_| Arc::new(Semaphore::new(STREAMS_PER_DESTINATION_MAX))).collect();
        Self { rules, places, resolver, counters, refusals: Throttle::default() }
    }

    async fn stream<S: AsyncRead + AsyncWrite + Unpin>(&self, mut stream: S) {
        let header = match read_header(&mut stream).await {
            Ok(header) => header,
            Err(refusal) => return self.refuse(stream, None, &refusal).await,
        };
        let mut connected = match self.connect(&header).await {
            Ok(connected) => connected,
            Err(refusal) => return self.refuse(stream, Some(&header), &refusal).await,
        };
        if stream.write_all(&Reply::CONNECTED.encode()).await.is_err() {
            return;
        }
        let passage = self.counters.egress.enter();
        let ended = relay(&mut stream, &mut connected.tcp, relay::Limits::default(), &passage.moved).await;
        if let Err(error) = ended {
            tracing::debug!(trace_id = header.trace_id, %error, "an egress stream broke");
            // A broken stream must not look like one that ended: the far side gets a reset.
            connected.tcp.set_zero_linger().ok();
        }
    }

    async fn connect(&self, header: &Header) -> Result<Connected, Refusal> {
        let name = normalise(&header.name).ok_or(Refusal::Malformed(HeaderError::Name))?;
        let rule = self.rules.allows(&name, header.port).ok_or(Refusal::NotAllowed)?;
        let place = Arc::clone(&self.places[rule]).try_acquire_owned().map_err(|_| Refusal::Overloaded)?;
        let addresses = self.resolver.resolve(&name, header.port).await.map_err(Refusal::Address)?;
        let tcp = dial::connect(&addresses).await.map_err(Refusal::Connect)?;
        Ok(Connected { tcp, _place: place })
    }

    async fn refuse<S>(&self, mut stream: S, header: Option<&Header>, refusal: &Refusal)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        self.counters.egress.refuse(refusal.word());
        if let Some(suppressed) = self.refusals.pass() {
            tracing::warn!(
                reason = refusal.word(),
                name = header.map(|header| header.name.as_str()),
                port = header.map(|header| header.port),
                trace_id = header.map(|header| header.trace_id),
                error = %refusal,
                suppressed,
                "an egress stream is refused"
            );
        }
        if let Some(reply) = refusal.reply() {
            let told = timeout(HEADER_TIMEOUT, async {
                stream.write_all(&reply.encode()).await?;
                stream.shutdown().await
            });
            // A peer that does not read its refusal is closed all the same.
            told.await.ok();
        }
    }
}

async fn read_header<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Header, Refusal> {
    let read = timeout(HEADER_TIMEOUT, async {
        let mut fixed = [0; FIXED_LEN];
        stream.read_exact(&mut fixed).await.map_err(Refusal::Broken)?;
        let (header, name_len) = Header::decode_fixed(&fixed).map_err(Refusal::Malformed)?;
        let mut name = [0; NAME_MAX];
        let name = name.get_mut(..name_len).expect("invariant: decode_fixed bounds the length by NAME_MAX");
        stream.read_exact(name).await.map_err(Refusal::Broken)?;
        header.with_name(name).map_err(Refusal::Malformed)
    });
    let header = read.await.map_err(|_| Refusal::Stalled)??;
    match header.kind {
        Kind::Egress => Ok(header),
        Kind::Ingress => Err(Refusal::Kind),
    }
}

#[cfg(test)]
mod tests {
    use enclave_protocol::{control::EgressRule, stream::REPLY_LEN};
    use tokio::{io::duplex, net::TcpListener, task::JoinSet, time::Instant};

    use super::*;
    use crate::policy::Policy;

    fn egress(resolve: &[String]) -> Arc<Egress> {
        let rule =
            |fqdn: &str, port| EgressRule { plugin: "app".into(), fqdn: fqdn.into(), port, tls: false };
        let rules =
            EgressRules::new(&[rule("up.example", 80), rule("localhost", 80), rule("dead.example", 81)]);
        let overrides = resolve.iter().map(|text| text.parse().unwrap()).collect();
        let resolver = Resolver::new(Policy::new(vec![], overrides), vec![]);
        Arc::new(Egress::new(rules, Arc::new(resolver), Arc::default()))
    }

    fn header(name: &str, port: u16) -> Vec<u8> {
        Header { kind: Kind::Egress, port, trace_id: 7, name: name.into() }.encode().unwrap()
    }

    /// What the enclave reads when it sends these bytes and then waits.
    async fn answer(egress: &Arc<Egress>, bytes: &[u8]) -> Option<ReplyStatus> {
        let (mut enclave, host) = duplex(1024);
        enclave.write_all(bytes).await.unwrap();
        let mut tasks = JoinSet::new();
        let served = Arc::clone(egress);
        tasks.spawn(async move { served.stream(host).await });
        let mut reply = [0; REPLY_LEN];
        enclave.read_exact(&mut reply).await.ok()?;
        Some(Reply::decode(reply).unwrap().status)
    }

    #[tokio::test]
    async fn a_stream_to_an_allowed_destination_is_relayed_with_its_half_close() {
        let upstream = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let egress = egress(&[format!("up.example:80:{}", upstream.local_addr().unwrap())]);
        let (mut enclave, host) = duplex(1024);
        let mut tasks = JoinSet::new();
        let served = Arc::clone(&egress);
        tasks.spawn(async move { served.stream(host).await });
        tasks.spawn(async move {
            let (mut tcp, _) = upstream.accept().await.unwrap();
            let mut request = String::new();
            tcp.read_to_string(&mut request).await.unwrap();
            tcp.write_all(format!("got {request}").as_bytes()).await.unwrap();
        });
        enclave.write_all(&header("up.example", 80)).await.unwrap();
        let mut reply = [0; REPLY_LEN];
        enclave.read_exact(&mut reply).await.unwrap();
        assert_eq!(Reply::decode(reply), Some(Reply::CONNECTED));
        enclave.write_all(b"ping").await.unwrap();
        enclave.shutdown().await.unwrap();
        let mut response = String::new();
        enclave.read_to_string(&mut response).await.unwrap();
        assert_eq!(response, "got ping");
        while tasks.join_next().await.is_some() {}
        let families = format!("{:?}", egress.counters.families(0));
        assert!(families.contains("enclave_host_egress_connections_total"), "{families}");
    }

    #[tokio::test]
    async fn every_refusal_has_its_own_answer_and_counter() {
        // A port that nobody is handed out.
        let dead = "127.0.0.1:1";
        let egress = egress(&[format!("dead.example:81:{dead}")]);
        let mut ingress = header("up.example", 80);
        ingress[3] = 2;
        let cases: [(&[u8], ReplyStatus); 6] = [
            (b"GET / HTTP/1.1\r\n\r\n", ReplyStatus::Malformed),
            (&ingress, ReplyStatus::Malformed),
            (&header("other.example", 80), ReplyStatus::NotAllowed),
            (&header("up.example", 443), ReplyStatus::NotAllowed),
            (&header("localhost", 80), ReplyStatus::ForbiddenAddress),
            (&header("dead.example", 81), ReplyStatus::ConnectFailed),
        ];
        for (bytes, status) in cases {
            assert_eq!(answer(&egress, bytes).await, Some(status), "{}", bytes.escape_ascii());
        }
        assert_eq!(egress.counters.egress.refusals("malformed"), 2);
        assert_eq!(egress.counters.egress.refusals("not_allowed"), 2);
        assert_eq!(egress.counters.egress.refusals("forbidden_address"), 1);
        assert_eq!(egress.counters.egress.refusals("connect_failed"), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stalled_header_is_closed_within_its_bound() {
        let egress = egress(&[]);
        let start = Instant::now();
        assert_eq!(answer(&egress, &header("up.example", 80)[..20]).await, None);
        assert_eq!(start.elapsed(), HEADER_TIMEOUT);
        assert_eq!(egress.counters.egress.refusals("header_timeout"), 1);
    }

    #[tokio::test]
    async fn one_destination_cannot_take_every_place() {
        let egress = egress(&[]);
        let taken = Arc::clone(&egress.places[0]).acquire_many_owned(256).await.unwrap();
        let rule = egress.rules.allows("dead.example", 81).unwrap();
        assert_eq!(
            rule == 0,
            answer(&egress, &header("dead.example", 81)).await == Some(ReplyStatus::Overloaded)
        );
        let first = egress.rules.allows("up.example", 80).unwrap();
        assert_eq!(first, 0);
        assert_eq!(answer(&egress, &header("up.example", 80)).await, Some(ReplyStatus::Overloaded));
        drop(taken);
    }
}
