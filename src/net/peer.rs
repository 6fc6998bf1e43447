//! Between plugins: one task per listening socket, which is in the namespace of the plugin that connects and
//! stands for one port of another. As on the way out, the socket is the identity of who connects.
//!
//! ```text
//! accept → slots → socket in the other's namespace → connect → relay
//!             └──────────────┴───────────────────────────┴──▶ refused: RST, counted
//! ```

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use enclave_protocol::relay;
use rustix::net::sockopt::set_socket_linger;
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use super::{Context, counters::Route, plan::PeerListener, sockets::DialError};

/// Why a stream is not carried.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("at the limit of streams")]
    StreamLimit,
    #[error("not reached: {0}")]
    Target(#[from] DialError),
}

impl Refusal {
    fn word(&self) -> &'static str {
        match self {
            Self::StreamLimit => "stream_limit",
            Self::Target(error) => error.word(),
        }
    }
}

/// One port of one plugin, seen from another.
#[derive(Debug)]
struct Peer {
    listener: PeerListener,
    route: Arc<Route>,
    context: Arc<Context>,
}

/// Serves one listening socket for ever, and owns its streams. The port is reported from this call on.
pub(crate) fn serve(
    socket: TcpListener,
    listener: PeerListener,
    context: Arc<Context>,
) -> impl Future<Output = ()> + Send + 'static {
    // By the serving end alone, as on the way in: who connects would make it a square of the plugins.
    let route = context.peer.route(&listener.to, listener.port.to_string());
    accept(socket, Arc::new(Peer { listener, route, context }))
}

async fn accept(socket: TcpListener, peer: Arc<Peer>) {
    let mut streams = JoinSet::new();
    loop {
        tokio::select! {
            accepted = socket.accept() => match accepted {
                Ok((app, _)) => peer.admit(app, &mut streams),
                Err(error) => super::back_off(&peer.context.peer, &error).await,
            },
            Some(ended) = streams.join_next() => peer.context.peer.joined(ended),
        }
    }
}

impl Peer {
    /// Starts the stream's task if there is a slot for it. It is one of the plugin that connects: it cannot
    /// take the others' way to the same port.
    fn admit(self: &Arc<Self>, app: TcpStream, streams: &mut JoinSet<()>) {
        // As on the way out: a reset is what ends the connection, until it has ended well.
        if let Err(error) = set_socket_linger(&app, Some(Duration::ZERO)) {
            return self.context.peer.accept_failed(&error.into());
        }
        let slots = &self.context.peer_slots;
        let Some(slot) = slots.take().zip(slots.take_of(&self.listener.from)) else {
            return self.refused(&Refusal::StreamLimit);
        };
        let this = Arc::clone(self);
        streams.spawn(async move {
            let _slot = slot;
            if let Err(refusal) = this.carry(app).await {
                this.refused(&refusal);
            }
        });
    }

    fn refused(&self, refusal: &Refusal) {
        let PeerListener { from, to, port, .. } = &self.listener;
        self.context.peer.refuse(Some(to), refusal.word());
        if let Some(unsaid) = self.context.lines.pass() {
            tracing::warn!(from, to, port, unsaid, "connection between plugins refused: {refusal}");
        }
    }

    async fn carry(&self, mut from: TcpStream) -> Result<(), Refusal> {
        let PeerListener { to, port, source, .. } = &self.listener;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, *port));
        let mut served = self.context.pools.dial(to, address, *source).await?;
        let carried = self.route.start();
        // Only a slower connection is at stake.
        from.set_nodelay(true).ok();
        let ended = async {
            set_socket_linger(&served, Some(Duration::ZERO))?;
            relay::relay(&mut from, &mut served, self.context.limits.relay(), &carried.moved).await
        };
        match ended.await {
            Ok(()) => {
                // Should one fail, that side sees a reset after all bytes: the safe side.
                set_socket_linger(&from, None).ok();
                set_socket_linger(&served, None).ok();
                carried.ended_well();
            }
            Err(error) => {
                let PeerListener { from, to, port, .. } = &self.listener;
                tracing::debug!(from, to, port, %error, "stream between plugins broke");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
