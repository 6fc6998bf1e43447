//! The way in: streams from the host, each to a port that the manifest declares. The host names plugin and
//! port, never an address, and what it names has to be in the table.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use enclave_protocol::{
    control::IngressRule,
    relay,
    stream::{FIXED_LEN, Header, HeaderError, Kind, Reply, ReplyStatus},
    transport::{GuestListener, Incoming, Stream},
};
use rustix::net::sockopt::set_socket_linger;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinSet,
    time::timeout,
};

use super::{Context, counters::Route, sockets::DialError};

/// How long the host may take over its header.
pub(crate) const HEADER_TIMEOUT: Duration = Duration::from_secs(1);
/// How long the host may take to read a reply of four bytes.
const REPLY_TIMEOUT: Duration = Duration::from_secs(1);

/// Why a stream is not carried.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("at the limit of streams")]
    StreamLimit,
    #[error("header did not arrive in {} s", HEADER_TIMEOUT.as_secs())]
    HeaderLate,
    #[error("stream ended in its header: {0}")]
    HeaderCut(io::Error),
    #[error("malformed header: {0}")]
    Malformed(#[from] HeaderError),
    #[error("header is not of an ingress stream")]
    WrongKind,
    #[error("{name}:{port} is not declared")]
    NotDeclared { name: String, port: u16 },
    #[error("plugin {plugin} is at its limit of streams")]
    PluginLimit { plugin: String },
    #[error("plugin {plugin} is not reached at {address}: {error}")]
    Target { plugin: String, address: SocketAddr, error: DialError },
}

impl Refusal {
    fn word(&self) -> &'static str {
        match self {
            Self::StreamLimit | Self::PluginLimit { .. } => "stream_limit",
            Self::HeaderLate => "header_timeout",
            Self::HeaderCut(_) => "header_cut",
            Self::Malformed(_) | Self::WrongKind => "malformed",
            Self::NotDeclared { .. } => "not_allowed",
            Self::Target { error, .. } => error.word(),
        }
    }

    /// Known to be one of the manifest's, so that it may become a label.
    fn plugin(&self) -> Option<&str> {
        match self {
            Self::PluginLimit { plugin } | Self::Target { plugin, .. } => Some(plugin),
            Self::StreamLimit
            | Self::HeaderLate
            | Self::HeaderCut(_)
            | Self::Malformed(_)
            | Self::WrongKind
            | Self::NotDeclared { .. } => None,
        }
    }

    /// What the host is told; nothing when there is nobody to tell or no time for it.
    fn reply(&self) -> Option<Reply> {
        match self {
            Self::StreamLimit | Self::HeaderLate | Self::HeaderCut(_) => None,
            Self::Malformed(_) | Self::WrongKind => Some(Reply::refused(ReplyStatus::Malformed)),
            Self::NotDeclared { .. } => Some(Reply::refused(ReplyStatus::NotAllowed)),
            Self::PluginLimit { .. } | Self::Target { error: DialError::Socket(_), .. } => {
                Some(Reply::refused(ReplyStatus::Overloaded))
            }
            Self::Target { error: DialError::Connect(error), .. } => Some(Reply::connect_failed(error)),
        }
    }
}

/// Where a declared port leads.
#[derive(Debug, Clone)]
struct Target {
    address: SocketAddr,
    route: Arc<Route>,
}

/// The declared ports, and what serves them.
#[derive(Debug)]
pub(crate) struct Ingress {
    context: Arc<Context>,
    table: RwLock<BTreeMap<(String, u16), Target>>,
}

/// Serves one vsock listener for ever, and owns its streams.
pub(crate) async fn serve(listener: GuestListener, ingress: Arc<Ingress>) {
    let counters = &ingress.context.ingress;
    let mut streams = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(Incoming::Ready(stream, _port)) => ingress.admit(stream, &mut streams),
                // Only a hybrid listener accepts these, and PID 1 keeps that one for itself.
                Ok(Incoming::Hybrid(_)) => counters.refuse(None, "foreign_peer"),
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    counters.refuse(None, "foreign_peer");
                }
                Err(error) => super::back_off(counters, &error).await,
            },
            Some(ended) = streams.join_next() => counters.joined(ended),
        }
    }
}

impl Ingress {
    pub(crate) fn new(context: Arc<Context>) -> Self {
        Self { context, table: RwLock::default() }
    }

    /// From now on streams may reach `target`.
    pub(crate) fn allow(&self, rule: IngressRule, address: SocketAddr) {
        let route = self.context.ingress.route(&rule.plugin, rule.container_port.to_string());
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        table.insert((rule.plugin, rule.container_port), Target { address, route });
    }

    /// Starts the stream's task if there is a slot for it.
    pub(crate) fn admit(self: &Arc<Self>, mut stream: Stream, streams: &mut JoinSet<()>) {
        let Some(slot) = self.context.ingress_slots.take() else {
            return self.refused(&Refusal::StreamLimit, 0);
        };
        let this = Arc::clone(self);
        streams.spawn(async move {
            let _slot = slot;
            let mut trace_id = 0;
            let Err(refusal) = this.carry(&mut stream, &mut trace_id).await else { return };
            this.refused(&refusal, trace_id);
            if let Some(reply) = refusal.reply() {
                // The host may be gone by now; it is refused either way.
                timeout(REPLY_TIMEOUT, stream.write_all(&reply.encode())).await.ok();
            }
        });
    }

    fn refused(&self, refusal: &Refusal, trace_id: u64) {
        self.context.ingress.refuse(refusal.plugin(), refusal.word());
        if let Some(unsaid) = self.context.lines.pass() {
            let trace = format_args!("{trace_id:016x}");
            tracing::warn!(%trace, unsaid, "ingress refused: {refusal}");
        }
    }

    async fn carry(&self, stream: &mut Stream, trace_id: &mut u64) -> Result<(), Refusal> {
        let header =
            timeout(HEADER_TIMEOUT, read_header(stream)).await.map_err(|_| Refusal::HeaderLate)??;
        *trace_id = header.trace_id;
        if header.kind != Kind::Ingress {
            return Err(Refusal::WrongKind);
        }
        let (plugin, target) = self.target(header.name, header.port)?;
        let Some(_slot) = self.context.ingress_slots.take_of(&plugin) else {
            return Err(Refusal::PluginLimit { plugin });
        };
        let address = target.address;
        let dialled = self.context.pools.dial(&plugin, address, None).await;
        let mut app = dialled.map_err(|error| Refusal::Target { plugin: plugin.clone(), address, error })?;
        let carried = target.route.start();
        let ended = async {
            // As on the way out: a reset is what ends the connection, until it has ended well.
            set_socket_linger(&app, Some(Duration::ZERO))?;
            let limits = self.context.limits.relay();
            timeout(REPLY_TIMEOUT, stream.write_all(&Reply::CONNECTED.encode())).await??;
            relay::relay(stream, &mut app, limits, &carried.moved).await
        };
        match ended.await {
            Ok(()) => {
                // Should this fail, the app sees a reset after all bytes: the safe side.
                set_socket_linger(&app, None).ok();
                carried.ended_well();
            }
            Err(error) => {
                let trace = format_args!("{trace_id:016x}");
                tracing::debug!(plugin, %trace, %error, "ingress stream broke");
            }
        }
        Ok(())
    }

    fn target(&self, name: String, port: u16) -> Result<(String, Target), Refusal> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let key = (name, port);
        match table.get(&key) {
            Some(target) => Ok((key.0, target.clone())),
            None => Err(Refusal::NotDeclared { name: key.0, port }),
        }
    }
}

async fn read_header(stream: &mut Stream) -> Result<Header, Refusal> {
    let mut fixed = [0; FIXED_LEN];
    stream.read_exact(&mut fixed).await.map_err(Refusal::HeaderCut)?;
    let (header, length) = Header::decode_fixed(&fixed)?;
    let mut name = vec![0; length];
    stream.read_exact(&mut name).await.map_err(Refusal::HeaderCut)?;
    Ok(header.with_name(&name)?)
}

#[cfg(test)]
mod tests;
