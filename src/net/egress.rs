//! The way out: one task per listening socket. The socket is the identity: whoever connects to it is the
//! rule's plugin and wants the rule's destination, and nothing it sends can change that.
//!
//! ```text
//! accept → slots → ClientHello (rule.tls) → dial host → header, reply → relay
//!             └──────────┴─────────────────────┴────────────┴──▶ refused: RST, counted
//! ```
//! Not one byte of the app reaches the host before the reply says `Connected`.

use std::{io, sync::Arc, time::Duration};

use enclave_protocol::{
    control::EgressRule,
    relay,
    stream::{Header, Kind, REPLY_LEN, Reply, ReplyStatus},
    transport::Stream,
};
use rustix::net::sockopt::set_socket_linger;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::timeout,
};

use super::{
    Context,
    client_hello::{HelloError, Progress, server_name},
    counters::Route,
};

/// How long an app may take over its `ClientHello`.
pub(crate) const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the host may take over its reply: it resolves the name and connects meanwhile.
pub(crate) const REPLY_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a stream is not carried.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("at the limit of streams")]
    StreamLimit,
    #[error("TLS is required: {0}")]
    Tls(#[from] TlsError),
    #[error("host does not accept streams: {0}")]
    HostUnreachable(io::Error),
    #[error("host gave no valid reply: {0}")]
    HostSilent(io::Error),
    #[error("host refused: {} (errno {})", .0.status.word(), .0.errno)]
    Host(Reply),
}

/// Why a stream that must be TLS to the destination is not.
#[derive(Debug, thiserror::Error)]
enum TlsError {
    #[error(transparent)]
    Hello(#[from] HelloError),
    #[error("ClientHello names another server")]
    OtherName,
    #[error("no whole ClientHello within {} s", HELLO_TIMEOUT.as_secs())]
    Late,
    #[error("connection ended before its ClientHello")]
    Ended,
}

impl Refusal {
    fn word(&self) -> &'static str {
        match self {
            Self::StreamLimit => "stream_limit",
            Self::Tls(_) => "tls_refused",
            Self::HostUnreachable(_) => "host_unreachable",
            Self::HostSilent(_) => "host_silent",
            Self::Host(reply) => reply.status.word(),
        }
    }
}

/// One destination of one plugin.
#[derive(Debug)]
struct Destination {
    rule: EgressRule,
    route: Arc<Route>,
    context: Arc<Context>,
}

/// Serves one listening socket for ever, and owns its streams. The rule is reported from this call on.
pub(crate) fn serve(
    listener: TcpListener,
    rule: EgressRule,
    context: Arc<Context>,
) -> impl Future<Output = ()> + Send + 'static {
    let route = context.egress.route(&rule.plugin, format!("{}:{}", rule.fqdn, rule.port));
    accept(listener, Arc::new(Destination { rule, route, context }))
}

async fn accept(listener: TcpListener, destination: Arc<Destination>) {
    let mut streams = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((app, _)) => destination.admit(app, &mut streams),
                Err(error) => super::back_off(&destination.context.egress, &error).await,
            },
            Some(ended) = streams.join_next() => destination.context.egress.joined(ended),
        }
    }
}

impl Destination {
    /// Starts the stream's task if there is a slot for it.
    fn admit(self: &Arc<Self>, app: TcpStream, streams: &mut JoinSet<()>) {
        // From here to its proper end the connection is one that closes with a reset, whatever ends it: a
        // refusal, a panic, or the death of this process. An app never takes a cut answer for a whole one.
        if let Err(error) = set_socket_linger(&app, Some(Duration::ZERO)) {
            return self.context.egress.accept_failed(&error.into());
        }
        let slots = &self.context.egress_slots;
        let Some(slot) = slots.take().zip(slots.take_of(&self.rule.plugin)) else {
            return self.refused(&Refusal::StreamLimit, 0);
        };
        let this = Arc::clone(self);
        streams.spawn(async move {
            let _slot = slot;
            let trace_id = super::trace_id();
            if let Err(refusal) = this.carry(app, trace_id).await {
                this.refused(&refusal, trace_id);
            }
        });
    }

    fn refused(&self, refusal: &Refusal, trace_id: u64) {
        let Self { rule, context, .. } = self;
        context.egress.refuse(Some(&rule.plugin), refusal.word());
        if let Some(unsaid) = context.lines.pass() {
            let (plugin, fqdn, port) = (&rule.plugin, &rule.fqdn, rule.port);
            let trace = format_args!("{trace_id:016x}");
            tracing::warn!(plugin, fqdn, port, %trace, unsaid, "egress refused: {refusal}");
        }
    }

    async fn carry(&self, mut app: TcpStream, trace_id: u64) -> Result<(), Refusal> {
        let hello = if self.rule.tls { self.client_hello(&mut app).await? } else { Vec::new() };
        let mut host = self.open(trace_id).await?;
        let carried = self.route.start();
        let limits = self.context.limits.relay();
        // Only a slower connection is at stake.
        app.set_nodelay(true).ok();
        let ended = async {
            let forwarded = timeout(limits.idle, host.write_all(&hello)).await;
            forwarded.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
            carried.moved.forward.fetch_add(hello.len() as u64, std::sync::atomic::Ordering::Relaxed);
            // Not kept as long as the connection lives.
            drop(hello);
            relay::relay(&mut app, &mut host, limits, &carried.moved).await
        };
        match ended.await {
            Ok(()) => {
                // Should this fail, the app sees a reset after all bytes: the safe side.
                set_socket_linger(&app, None).ok();
                carried.ended_well();
            }
            Err(error) => {
                let trace = format_args!("{trace_id:016x}");
                tracing::debug!(plugin = self.rule.plugin, %trace, %error, "egress stream broke");
            }
        }
        Ok(())
    }

    /// Reads until the `ClientHello` is whole and names this destination; answers what was read.
    async fn client_hello(&self, app: &mut TcpStream) -> Result<Vec<u8>, TlsError> {
        let read = async {
            let mut prefix = Vec::new();
            let mut wanted = 1;
            loop {
                if app.read_buf(&mut prefix).await.unwrap_or(0) == 0 {
                    return Err(TlsError::Ended);
                }
                if prefix.len() < wanted {
                    continue;
                }
                match server_name(&prefix)? {
                    Progress::More(more) => wanted = more,
                    Progress::Name(name) if name == self.rule.fqdn => return Ok(prefix),
                    Progress::Name(_) => return Err(TlsError::OtherName),
                }
            }
        };
        timeout(HELLO_TIMEOUT, read).await.map_err(|_| TlsError::Late)?
    }

    /// A stream on which the host has agreed to the destination.
    async fn open(&self, trace_id: u64) -> Result<Stream, Refusal> {
        let Self { rule, context, .. } = self;
        let header = Header { kind: Kind::Egress, port: rule.port, trace_id, name: rule.fqdn.clone() };
        let Some(header) = header.encode() else {
            return Err(Refusal::Host(Reply::refused(ReplyStatus::Malformed)));
        };
        let mut host = context.host.dial(context.egress_port).await.map_err(Refusal::HostUnreachable)?;
        let asked = async {
            host.write_all(&header).await?;
            let mut bytes = [0; REPLY_LEN];
            host.read_exact(&mut bytes).await?;
            Reply::decode(bytes).ok_or_else(|| io::ErrorKind::InvalidData.into())
        };
        let reply = match timeout(REPLY_TIMEOUT, asked).await {
            Ok(reply) => reply.map_err(Refusal::HostSilent)?,
            Err(_) => return Err(Refusal::HostSilent(io::ErrorKind::TimedOut.into())),
        };
        if reply.status == ReplyStatus::Connected { Ok(host) } else { Err(Refusal::Host(reply)) }
    }
}

#[cfg(test)]
mod tests;
