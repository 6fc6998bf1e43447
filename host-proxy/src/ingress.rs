//! Ingress: a TCP port of the host for every port that the manifest declares. A connection becomes one stream
//! that names the plugin and its declared port; the enclave checks it against its own reading.

use std::{io, net::IpAddr, sync::Arc, time::Duration};

use enclave_protocol::{
    control::{INGRESS_PORT, IngressRule},
    relay::{self, relay},
    stream::{Header, Kind, REPLY_LEN, Reply, ReplyStatus},
    transport::{Guest, Stream},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

use crate::{
    accept::{self, Admission},
    counters::Counters,
    throttle::Throttle,
};

/// Connections of one port at one time.
const CONNECTIONS_MAX: usize = 1024;
/// How long the enclave may take to connect to the plugin and say so.
const REPLY_TIMEOUT: Duration = Duration::from_secs(10);

/// One declared port.
#[derive(Debug)]
pub(crate) struct Ingress {
    rule: IngressRule,
    guest: Guest,
    counters: Arc<Counters>,
    refusals: Throttle,
}

/// Why a connection is not let in.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("the enclave cannot be reached: {0}")]
    Unreachable(#[from] io::Error),
    #[error("the enclave did not answer within {} s", REPLY_TIMEOUT.as_secs())]
    Stalled,
    #[error("the enclave's answer cannot be read")]
    Answer,
    #[error("the enclave refused: {} (errno {})", .0.status.word(), .0.errno)]
    Refused(Reply),
    #[error("too many connections")]
    Overloaded,
}

impl Refusal {
    fn word(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => "enclave_unreachable",
            Self::Stalled => "enclave_timeout",
            Self::Answer => "malformed",
            Self::Refused(reply) => reply.status.word(),
            Self::Overloaded => ReplyStatus::Overloaded.word(),
        }
    }
}

/// Binds the host's port of a rule.
pub(crate) async fn bind(address: IpAddr, rule: &IngressRule) -> io::Result<TcpListener> {
    TcpListener::bind((address, rule.host_port)).await
}

/// Serves one port until it is dropped.
pub(crate) async fn serve(listener: TcpListener, rule: IngressRule, guest: Guest, counters: Arc<Counters>) {
    let ingress =
        Arc::new(Ingress { rule, guest, counters: Arc::clone(&counters), refusals: Throttle::default() });
    accept::serve(listener, CONNECTIONS_MAX, counters, move |tcp, admission| {
        let ingress = Arc::clone(&ingress);
        async move { ingress.connection(tcp, admission).await }
    })
    .await;
}

impl Ingress {
    async fn connection(&self, mut tcp: TcpStream, admission: Admission) {
        let opened = match admission {
            Admission::Admitted => self.open().await,
            Admission::Overloaded => Err(Refusal::Overloaded),
        };
        let mut stream = match opened {
            Ok(stream) => stream,
            Err(refusal) => return self.refuse(&tcp, &refusal),
        };
        tcp.set_nodelay(true).ok();
        let passage = self.counters.ingress.enter();
        let ended = relay(&mut tcp, &mut stream, relay::Limits::default(), &passage.moved).await;
        if let Err(error) = ended {
            tracing::debug!(port = self.rule.host_port, %error, "an ingress stream broke");
            // A broken stream must not look like one that ended: the client gets a reset.
            tcp.set_zero_linger().ok();
        }
    }

    async fn open(&self) -> Result<Stream, Refusal> {
        let mut stream = self.guest.dial(INGRESS_PORT).await?;
        let header = Header {
            kind: Kind::Ingress,
            port: self.rule.container_port,
            trace_id: getrandom::u64().unwrap_or(0),
            name: self.rule.plugin.clone(),
        };
        let header = header.encode().ok_or(Refusal::Answer)?;
        let replied = timeout(REPLY_TIMEOUT, async {
            stream.write_all(&header).await?;
            let mut reply = [0; REPLY_LEN];
            stream.read_exact(&mut reply).await?;
            Ok::<_, io::Error>(reply)
        });
        let reply = Reply::decode(replied.await.map_err(|_| Refusal::Stalled)??).ok_or(Refusal::Answer)?;
        if reply.status == ReplyStatus::Connected { Ok(stream) } else { Err(Refusal::Refused(reply)) }
    }

    fn refuse(&self, tcp: &TcpStream, refusal: &Refusal) {
        self.counters.ingress.refuse(refusal.word());
        if let Some(suppressed) = self.refusals.pass() {
            tracing::warn!(
                reason = refusal.word(),
                plugin = %self.rule.plugin,
                port = self.rule.host_port,
                error = %refusal,
                suppressed,
                "an ingress connection is refused"
            );
        }
        // The client has been accepted by the kernel already; a reset is the closest to a refusal.
        tcp.set_zero_linger().ok();
    }
}
