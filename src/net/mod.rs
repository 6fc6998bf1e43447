//! `enclave-supervisor net`: carries the streams of the plugins, out and in. It is a process of its own, so
//! that its crash, its descriptors and its memory are not PID 1's. It knows no manifest and opens no
//! socket of a plugin: PID 1 hands it rules and sockets over the [`link`], and keeps duplicates of those that
//! listen, so that connections wait in the backlog while a `net` that died is started again.
//!
//! | module | |
//! |---|---|
//! | [`plan`] | which addresses and listeners stand for what (pure, used by PID 1) |
//! | [`link`], [`report`] | the messages between PID 1 and `net`, and the counters in them |
//! | `egress`, `ingress`, `peer` | the streams: out, in, and between plugins |
//! | [`probe`] | questions to plugins whether they live |
//! | `sockets` | what connections into plugins are made with |
//! | `client_hello` | what a stream with `tls: true` has to start with |
//! | `privileges` | what it gives up before it carries a byte |
//! | [`limits`], `counters`, `lines` | how much at once, how much it was, how much is said about it |
//!
//! Shutdown: there is no order to keep. The end of the link is the end of the process, and every connection
//! that is open then is reset.

use std::{
    collections::VecDeque,
    future::pending,
    io,
    net::TcpListener as StdTcpListener,
    os::fd::{AsFd, OwnedFd},
    os::unix::net::UnixStream as StdUnixStream,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use enclave_protocol::{
    control::INGRESS_PORT,
    transport::{GuestListener, Host, Stream},
};
use tokio::{
    net::{TcpListener, UnixStream},
    task::{JoinError, JoinSet},
    time::sleep,
};

mod client_hello;
mod counters;
mod egress;
mod ingress;
pub mod limits;
mod lines;
pub mod link;
mod peer;
pub mod plan;
mod privileges;
pub mod probe;
pub mod report;
mod sockets;

use counters::Counters;
use ingress::Ingress;
use limits::{Limits, Slots};
use lines::Lines;
use link::{Link, Message};
use plan::PeerListener;
use probe::{Outcome, PROBES_MAX};
use sockets::Pools;

/// The pause after an `accept` that failed for want of descriptors or memory: the connection that could not
/// be taken stays ready, and asking again at once would only burn the CPU.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Exit code when the link to PID 1 fails or is none ("peer unreachable").
const EXIT_PEER: u8 = 3;

/// What all streams share.
#[derive(Debug)]
struct Context {
    host: Host,
    egress_port: u32,
    limits: Limits,
    egress: Counters,
    egress_slots: Slots,
    ingress: Counters,
    ingress_slots: Slots,
    peer: Counters,
    peer_slots: Slots,
    pools: Pools,
    lines: Lines,
}

/// The whole process: standard input is the link, and its end is a clean end.
pub fn main() -> ExitCode {
    // Somebody may have set up logging before; then that one stays.
    let records = tracing_subscriber::fmt().json().flatten_event(true).with_target(false);
    records.with_writer(io::stderr).try_init().ok();
    let serve = || {
        privileges::give_up_what_needs_no_host()?;
        let socket = io::stdin().as_fd().try_clone_to_owned()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
        runtime.block_on(async { run(Link::from_fd(socket)?, privileges::give_up_root).await })
    };
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "net ends");
            ExitCode::from(EXIT_PEER)
        }
    }
}

/// Serves PID 1 until it is gone; `prepare` is called as soon as the host is known. An error is one of the
/// link, or the end of a task that never ends.
pub async fn run(link: Link, prepare: impl FnOnce(&Host) -> io::Result<()>) -> io::Result<()> {
    let Some(context) = configured(&link).await? else { return Ok(()) };
    prepare(&context.host)?;
    let mut net = Net {
        ingress: Arc::new(Ingress::new(Arc::clone(&context))),
        context: Arc::clone(&context),
        listeners: JoinSet::new(),
        handed: JoinSet::new(),
        probes: JoinSet::new(),
        outbox: VecDeque::from([Message::Ready]),
    };
    loop {
        // PID 1 may be sending as well: who only sent, or only received, could wait for the other for ever.
        tokio::select! {
            sent = send_first(&link, &net.outbox) => match sent {
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                sent => {
                    sent?;
                    net.outbox.pop_front();
                }
            },
            received = link.recv() => match received? {
                Some((message, fds)) => net.take(message, fds)?,
                None => return Ok(()),
            },
            wanted = context.pools.wanted() => net.outbox.push_back(wanted),
            Some(ended) = net.handed.join_next() => context.ingress.joined(ended),
            Some(ended) = net.probes.join_next() => net.probed(ended),
            // These own listening sockets. PID 1 starts a new process, and the backlog waits for it.
            Some(ended) = net.listeners.join_next() => {
                let returned = |()| io::Error::other("a listener's task ended");
                return Err(ended.map_or_else(io::Error::other, returned));
            }
        }
    }
}

/// Sends what is first in the queue, if there is anything.
async fn send_first(link: &Link, outbox: &VecDeque<Message>) -> io::Result<()> {
    match outbox.front() {
        Some(message) => link.send(message, &[]).await,
        None => pending().await,
    }
}

/// Waits for the first message; `None` when PID 1 is gone before it.
async fn configured(link: &Link) -> io::Result<Option<Arc<Context>>> {
    match link.recv().await? {
        Some((Message::Configure { host, egress_port, limits }, _)) => Ok(Some(Arc::new(Context {
            host: host.into(),
            egress_port,
            limits,
            egress: Counters::egress(),
            egress_slots: Slots::new(&limits),
            ingress: Counters::ingress(),
            ingress_slots: Slots::new(&limits),
            peer: Counters::peer(),
            peer_slots: Slots::new(&limits),
            pools: Pools::default(),
            lines: Lines::default(),
        }))),
        Some(_) => Err(unexpected("the first message does not configure")),
        None => Ok(None),
    }
}

struct Net {
    context: Arc<Context>,
    ingress: Arc<Ingress>,
    /// One task per listening socket; each owns its streams.
    listeners: JoinSet<()>,
    /// The streams that PID 1 accepted itself.
    handed: JoinSet<()>,
    /// The questions to plugins that are not answered yet, with their ids.
    probes: JoinSet<(u64, Outcome)>,
    /// What PID 1 is to be told. It has a bound: nothing is in it that PID 1 did not ask for, but one
    /// question per plugin.
    outbox: VecDeque<Message>,
}

impl Net {
    /// Does what PID 1 says.
    fn take(&mut self, message: Message, fds: Vec<OwnedFd>) -> io::Result<()> {
        match message {
            Message::Egress { rule } => {
                let listener = listener(fds)?;
                self.listeners.spawn(egress::serve(listener, rule, Arc::clone(&self.context)));
            }
            Message::Ingress { rule, target } => self.ingress.allow(rule, target),
            Message::IngressListener => {
                let socket = only(fds)?;
                let Host::Vsock { cid } = self.context.host else {
                    return Err(unexpected("a vsock listener although the host is not on vsock"));
                };
                let listener =
                    GuestListener::Vsock { listener: socket.into(), host_cid: cid, port: INGRESS_PORT };
                self.listeners.spawn(ingress::serve(listener, Arc::clone(&self.ingress)));
            }
            Message::IngressStream => {
                let stream = StdUnixStream::from(only(fds)?);
                stream.set_nonblocking(true)?;
                self.ingress.admit(Stream::Unix(UnixStream::from_std(stream)?), &mut self.handed);
            }
            Message::Peer { from, to, port, source } => {
                let peer = PeerListener { from, to, port, source };
                self.listeners.spawn(peer::serve(listener(fds)?, peer, Arc::clone(&self.context)));
            }
            Message::Sockets { plugin } => self.context.pools.fill(&plugin, fds),
            Message::Probe { id, port, question, timeout_ms } => {
                let socket = only(fds)?;
                if self.probes.len() >= PROBES_MAX {
                    let outcome = Outcome::unknown("too many probes at once");
                    self.outbox.push_back(Message::Probed { id, outcome });
                    return Ok(());
                }
                let limit = Duration::from_millis(timeout_ms);
                self.probes.spawn(async move { (id, probe::ask(socket, port, &question, limit).await) });
            }
            Message::ReportRequest { id } => {
                let mut families = self.context.egress.families();
                families.append(&mut self.context.ingress.families());
                families.append(&mut self.context.peer.families());
                self.outbox.extend(report::cut(id, families));
            }
            Message::Configure { .. } => return Err(unexpected("configured twice")),
            Message::Ready
            | Message::SocketsWanted { .. }
            | Message::Probed { .. }
            | Message::Report { .. } => {
                return Err(unexpected("a message from net to net"));
            }
        }
        Ok(())
    }

    fn probed(&mut self, ended: Result<(u64, Outcome), JoinError>) {
        match ended {
            Ok((id, outcome)) => self.outbox.push_back(Message::Probed { id, outcome }),
            // PID 1 has a time limit of its own for the answer.
            Err(error) => tracing::error!(%error, "a probe's task panicked"),
        }
    }
}

fn listener(fds: Vec<OwnedFd>) -> io::Result<TcpListener> {
    let listener = StdTcpListener::from(only(fds)?);
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

fn only(fds: Vec<OwnedFd>) -> io::Result<OwnedFd> {
    let [fd] = <[OwnedFd; 1]>::try_from(fds).map_err(|_| unexpected("not exactly one descriptor"))?;
    Ok(fd)
}

fn unexpected(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// After a failed `accept`: counts it, and waits unless the failure was the connection's own.
async fn back_off(counters: &Counters, error: &io::Error) {
    counters.accept_failed(error);
    if error.kind() != io::ErrorKind::ConnectionAborted {
        sleep(ACCEPT_PAUSE).await;
    }
}

/// Links the two sides' log lines. Without randomness they cannot be linked, which is no reason to refuse.
fn trace_id() -> u64 {
    getrandom::u64().unwrap_or(0)
}

#[cfg(test)]
mod tests;
