//! The sockets for connections into plugins. They have to be made where the plugin's ports are reached, in
//! its network namespace, and `net` has no privilege to go there: PID 1 makes them, and a few are kept here
//! so that a connection seldom waits for one.
//!
//! ```text
//! take ── one is kept ───────────────────────────▶ socket
//!    └─── none: wait ── Sockets with some ───────▶ socket
//!              │   └─── Sockets with none ───────▶ NoSocket::NotMade
//!              └─────── too long, too many ──────▶ NoSocket::Late, NoSocket::Queue
//! ```
//! A pool starts empty: a plugin that nobody connects to costs no descriptor, and the first connection waits
//! for one message there and back.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    net::{Ipv4Addr, SocketAddr, TcpStream as StdTcpStream},
    os::fd::OwnedFd,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    net::{TcpSocket, TcpStream},
    sync::{Notify, oneshot},
    time::timeout,
};

use super::link::{FDS_MAX, Message};

/// Sockets that a pool is filled up to: what one message carries.
const KEPT: usize = FDS_MAX;
/// With fewer than this, more are asked for: time for the answer before the pool is empty.
const LOW: usize = KEPT / 2;
/// How long a connection waits for a socket. PID 1 answers in well under a millisecond unless it is beyond
/// its rate.
pub(crate) const SOCKET_TIMEOUT: Duration = Duration::from_secs(1);
/// Connections to one plugin that may wait for a socket: more than the streams of one plugin in one
/// direction, so that it is not this bound that refuses a burst.
pub(crate) const WAITING_MAX: usize = 512;
/// How long a plugin's port may take to accept: it is in the same enclave.
pub(crate) const TARGET_TIMEOUT: Duration = Duration::from_secs(2);

/// Why there is no socket for a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoSocket {
    /// PID 1 answered with none.
    #[error("no socket can be made")]
    NotMade,
    /// PID 1 did not answer.
    #[error("no socket within {} s", SOCKET_TIMEOUT.as_secs())]
    Late,
    /// [`WAITING_MAX`] wait already.
    #[error("too many connections wait for a socket")]
    Queue,
}

/// Why a connection to a plugin fails.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    /// There is no socket to connect.
    #[error(transparent)]
    Socket(#[from] NoSocket),
    /// The plugin does not accept.
    #[error("{0}")]
    Connect(io::Error),
}

impl DialError {
    /// The reason in the counters of refusals.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Self::Socket(_) => "no_socket",
            Self::Connect(_) => "connect_failed",
        }
    }
}

/// The pools of all plugins.
#[derive(Debug, Default)]
pub(crate) struct Pools {
    state: Mutex<State>,
    /// There is something in [`State::needy`].
    asked: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// By plugin; only the manifest's get in, which bounds it.
    pools: BTreeMap<String, Pool>,
    /// Plugins for which PID 1 is yet to be asked. Each is in it once at most.
    needy: VecDeque<String>,
}

#[derive(Debug, Default)]
struct Pool {
    sockets: Vec<OwnedFd>,
    /// Only while `sockets` is empty.
    waiting: VecDeque<oneshot::Sender<OwnedFd>>,
    /// A message to PID 1 is due or not answered yet.
    asked: bool,
}

impl Pools {
    /// A socket for a connection to `plugin`.
    pub(crate) async fn take(&self, plugin: &str) -> Result<OwnedFd, NoSocket> {
        let answer = {
            let mut state = self.lock();
            let pool = state.pools.entry(plugin.to_owned()).or_default();
            let taken = match pool.sockets.pop() {
                Some(socket) => Ok(socket),
                None => Err(pool.wait()?),
            };
            self.ask(&mut state, plugin);
            match taken {
                Ok(socket) => return Ok(socket),
                Err(answer) => answer,
            }
        };
        let answer = timeout(SOCKET_TIMEOUT, answer).await.map_err(|_| NoSocket::Late)?;
        answer.map_err(|_| NoSocket::NotMade)
    }

    /// Takes PID 1's answer.
    pub(crate) fn fill(&self, plugin: &str, sockets: Vec<OwnedFd>) {
        let mut state = self.lock();
        let pool = state.pools.entry(plugin.to_owned()).or_default();
        pool.asked = false;
        if sockets.is_empty() {
            // Asking again at once would be asking without end. The next connection asks.
            return pool.waiting.clear();
        }
        for socket in sockets {
            pool.give(socket);
        }
        self.ask(&mut state, plugin);
    }

    /// The next question for PID 1. Cancelling it loses none.
    pub(crate) async fn wanted(&self) -> Message {
        loop {
            if let Some(message) = self.lock().next_question() {
                return message;
            }
            self.asked.notified().await;
        }
    }

    /// A connection to a port of `plugin`, from a loopback address if one is given.
    pub(crate) async fn dial(
        &self,
        plugin: &str,
        address: SocketAddr,
        source: Option<Ipv4Addr>,
    ) -> Result<TcpStream, DialError> {
        let socket = self.take(plugin).await?;
        let app = timeout(TARGET_TIMEOUT, connect_from(socket, source, address)).await;
        // The timer's error has no errno, and the reply to the host carries one.
        let app = app.unwrap_or_else(|_| Err(rustix::io::Errno::TIMEDOUT.into()));
        let app = app.map_err(DialError::Connect)?;
        // Only a slower connection is at stake.
        app.set_nodelay(true).ok();
        Ok(app)
    }

    fn ask(&self, state: &mut State, plugin: &str) {
        if let Some(pool) = state.pools.get_mut(plugin)
            && !pool.asked
            && pool.sockets.len() < LOW
        {
            pool.asked = true;
            state.needy.push_back(plugin.to_owned());
            self.asked.notify_one();
        }
    }

    /// A panic elsewhere leaves the pools as they were: nothing in here is half done.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn next_question(&mut self) -> Option<Message> {
        let plugin = self.needy.pop_front()?;
        let pool = self.pools.get(&plugin)?;
        let count = (KEPT + pool.waiting.len()).saturating_sub(pool.sockets.len()).min(FDS_MAX);
        Some(Message::SocketsWanted { plugin, count })
    }
}

impl Pool {
    fn wait(&mut self) -> Result<oneshot::Receiver<OwnedFd>, NoSocket> {
        if self.waiting.len() >= WAITING_MAX {
            // Those that have given up are still in the queue.
            self.waiting.retain(|waiting| !waiting.is_closed());
            if self.waiting.len() >= WAITING_MAX {
                return Err(NoSocket::Queue);
            }
        }
        let (give, answer) = oneshot::channel();
        self.waiting.push_back(give);
        Ok(answer)
    }

    fn give(&mut self, mut socket: OwnedFd) {
        while let Some(waiting) = self.waiting.pop_front() {
            match waiting.send(socket) {
                Ok(()) => return,
                Err(given_up) => socket = given_up,
            }
        }
        self.sockets.push(socket);
    }
}

/// Connects one of PID 1's sockets.
pub(crate) async fn connect(socket: OwnedFd, address: SocketAddr) -> io::Result<TcpStream> {
    connect_from(socket, None, address).await
}

async fn connect_from(
    socket: OwnedFd,
    source: Option<Ipv4Addr>,
    address: SocketAddr,
) -> io::Result<TcpStream> {
    let socket = StdTcpStream::from(socket);
    socket.set_nonblocking(true)?;
    let socket = TcpSocket::from_std_stream(socket);
    if let Some(source) = source {
        // The port is chosen by connect, as for a socket that is not bound: see `tcp_socket`.
        socket.bind(SocketAddr::from((source, 0)))?;
    }
    let app = socket.connect(address).await?;
    if is_its_own_peer(&app)? {
        return Err(rustix::io::Errno::CONNREFUSED.into());
    }
    Ok(app)
}

/// A port in the ephemeral range on which nobody listens may be given to the very socket that dials it, which
/// then is connected to itself (simultaneous open).
fn is_its_own_peer(app: &TcpStream) -> io::Result<bool> {
    Ok(app.local_addr()? == app.peer_addr()?)
}

#[cfg(test)]
pub(super) mod tests;
