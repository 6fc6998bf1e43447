//! Accepts connections and serves HTTP/1.1 on them, each in its own bounded task.

use std::{
    io,
    sync::{Arc, Mutex, atomic::Ordering},
    time::Duration,
};

use enclave_protocol::{
    control::{CONTROL_PORT, INGRESS_PORT, MANIFEST_BODY_MAX},
    transport::{GuestListener, Stream},
};
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::UnixListener,
    sync::{Notify, Semaphore, mpsc},
    task::JoinSet,
    time::sleep,
};

use super::{
    accept::Judge,
    board::Board,
    routes::{Caller, route},
};
use crate::boot::clock::HostClock;

/// Connections of one listener at a time: host-proxy uses a handful.
const CONNECTIONS_MAX: usize = 64;
/// How long a connection may take over a request's head, or stay idle between requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest request head, in bytes.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// After accept has failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Bytes of request bodies held at once: two of the largest manifests. They are taken as they arrive, so that
/// a peer that stalls holds what it has sent and nothing more.
pub const BODIES_BYTES_MAX: usize = 2 * MANIFEST_BODY_MAX;

/// What every connection shares.
#[derive(Debug)]
pub struct Shared {
    /// What readers see.
    pub board: Arc<Board>,
    /// What a manifest is judged by, unless the boot failed.
    pub judge: Result<Arc<Judge>, BootFailure>,
    /// The wall clock, where the host may set it.
    pub clock: Option<Mutex<HostClock>>,
    /// Bytes of request bodies that may be held at once, over all connections: see [`BODIES_BYTES_MAX`].
    pub body_room: Semaphore,
}

/// Why no manifest is taken: the boot failed. The host is told, and then the machine ends.
#[derive(Debug, Default)]
pub struct BootFailure {
    /// For people.
    pub reason: String,
    /// Notified when the host has asked.
    pub told: Notify,
}

/// Serves the host until the process ends. Ingress connections of the hybrid transport go to `ingress`.
pub async fn serve_host(listener: GuestListener, shared: Arc<Shared>, ingress: mpsc::Sender<Stream>) {
    let mut connections = Connections::new(&shared);
    loop {
        match listener.accept().await {
            Ok(incoming) => {
                let (shared, ingress) = (Arc::clone(&shared), ingress.clone());
                connections.admit(async move {
                    let known = |port| port == CONTROL_PORT || port == INGRESS_PORT;
                    match incoming.handshake(known).await {
                        Ok((stream, INGRESS_PORT)) => {
                            // Full or gone: net is down; the host sees its connection closed.
                            ingress.try_send(stream).ok();
                        }
                        Ok((stream, _)) => serve(stream, shared, Caller::Host).await,
                        Err(_) => count(&shared.board.refusals.connections),
                    }
                });
            }
            Err(error) => connections.failed(&error).await,
        }
    }
}

/// Serves a plugin's socket, or the supervisor's own for `enclave-supervisor status`.
pub async fn serve_inside(listener: UnixListener, shared: Arc<Shared>, caller: Caller) {
    let mut connections = Connections::new(&shared);
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let (shared, caller) = (Arc::clone(&shared), caller.clone());
                connections.admit(serve(stream, shared, caller));
            }
            Err(error) => connections.failed(&error).await,
        }
    }
}

/// The connections of one listener.
struct Connections {
    tasks: JoinSet<()>,
    shared: Arc<Shared>,
}

impl Connections {
    fn new(shared: &Arc<Shared>) -> Self {
        Self { tasks: JoinSet::new(), shared: Arc::clone(shared) }
    }

    /// Runs a connection, or drops it when there are too many.
    fn admit(&mut self, connection: impl Future<Output = ()> + Send + 'static) {
        while let Some(ended) = self.tasks.try_join_next() {
            if ended.is_err_and(|error| error.is_panic()) {
                count(&self.shared.board.refusals.panics);
            }
        }
        if self.tasks.len() < CONNECTIONS_MAX {
            self.tasks.spawn(connection);
        } else {
            count(&self.shared.board.refusals.connections);
        }
    }

    /// A failed accept never ends the listener.
    async fn failed(&self, error: &io::Error) {
        count(&self.shared.board.refusals.connections);
        // A foreign CID was closed; anything else is a want of descriptors or memory.
        if error.kind() != io::ErrorKind::ConnectionRefused {
            tracing::warn!(%error, "cannot accept a control connection");
            sleep(ACCEPT_PAUSE).await;
        }
    }
}

async fn serve<S>(stream: S, shared: Arc<Shared>, caller: Caller)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let board = Arc::clone(&shared.board);
    let service = service_fn(move |request| {
        let (shared, caller) = (Arc::clone(&shared), caller.clone());
        async move { Ok::<_, std::convert::Infallible>(route(request, &shared, &caller).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    // A peer that goes away in the middle is its own affair; one that talks nonsense or stalls is counted.
    if served.is_err_and(|error| error.is_parse() || error.is_timeout()) {
        count(&board.refusals.malformed);
    }
}

fn count(counter: &std::sync::atomic::AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
