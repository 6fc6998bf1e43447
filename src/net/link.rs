//! The socketpair between PID 1 and `net`: one message is one `SOCK_SEQPACKET` packet, JSON of at most
//! [`MESSAGE_MAX`] bytes and at most [`FDS_MAX`] descriptors. A packet that breaks a bound is an error, never
//! cut short.
//!
//! ```text
//! PID 1 ── Configure ──────────────▶ net      once, first
//! PID 1 ◀────────────────── Ready ── net
//! PID 1 ── Egress, IngressListener, IngressStream, Peer, each + socket, Ingress ──▶ net
//! PID 1 ◀────────── SocketsWanted ── net      to be answered by one Sockets + sockets
//! PID 1 ── Probe + socket ─────────▶ net
//! PID 1 ◀───────────────── Probed ── net
//! PID 1 ── ReportRequest ──────────▶ net
//! PID 1 ◀── Report … Report(last) ── net
//! ```
//! The end of either side is the end of the link: `net` then exits, PID 1 starts another `net` and tells it
//! everything again.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    net::{Ipv4Addr, SocketAddr},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
};

use enclave_protocol::{
    control::{EgressRule, IngressRule},
    metrics::Family,
    transport,
};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use serde::{Deserialize, Serialize};
use tokio::{io::Interest, net::UnixStream};

use super::{
    limits::Limits,
    probe::{Outcome, Question},
};

/// Longest message. A packet is one allocation in the kernel and must fit the socket's send buffer (208 KiB).
pub const MESSAGE_MAX: usize = 64 << 10;
/// Most descriptors with one message: a whole pool of sockets (`net::sockets`) in one packet. The
/// kernel would take 253.
pub const FDS_MAX: usize = 16;

/// Where the host is, as PID 1 tells it to `net`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum HostAddress {
    /// The parent's CID.
    Vsock(u32),
    /// The hybrid socket's path.
    Unix(PathBuf),
}

impl From<HostAddress> for transport::Host {
    fn from(address: HostAddress) -> Self {
        match address {
            HostAddress::Vsock(cid) => Self::Vsock { cid },
            HostAddress::Unix(path) => Self::Unix(path),
        }
    }
}

impl From<transport::Host> for HostAddress {
    fn from(host: transport::Host) -> Self {
        match host {
            transport::Host::Vsock { cid } => Self::Vsock(cid),
            transport::Host::Unix(path) => Self::Unix(path),
        }
    }
}

/// What goes over the link.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Message {
    /// To `net`, once and first.
    #[serde(rename_all = "camelCase")]
    Configure {
        /// Where egress streams are dialled; ingress comes from nowhere else.
        host: HostAddress,
        /// The host's port for egress, as the `PUT` of the manifest named it.
        egress_port: u32,
        /// How much may go on at once.
        limits: Limits,
    },
    /// To `net`, with one listening TCP socket: whoever connects to it is this plugin and wants this
    /// destination.
    Egress {
        /// Plugin and destination.
        rule: EgressRule,
    },
    /// To `net`: streams from the host may reach this port.
    Ingress {
        /// Plugin and port.
        rule: IngressRule,
        /// Where that port is reached.
        target: SocketAddr,
    },
    /// To `net`, with one listening vsock socket on which ingress streams arrive.
    IngressListener,
    /// To `net`, with one accepted ingress stream whose header is yet to be read.
    IngressStream,
    /// To `net`, with one TCP socket that listens in the network namespace of one plugin: whoever connects to
    /// it is this plugin and wants this port of another.
    Peer {
        /// The plugin that connects.
        from: String,
        /// The plugin that serves.
        to: String,
        /// Its port.
        port: u16,
        /// The address that the connections come from, if not 127.0.0.1.
        source: Option<Ipv4Addr>,
    },
    /// To `net`, with sockets for connections to this plugin: TCP over IPv4, unconnected, made where the
    /// plugin's ports are reached at 127.0.0.1. None at all means that none can be made now.
    Sockets {
        /// The plugin.
        plugin: String,
    },
    /// To `net`, with one socket such as [`Message::Sockets`] has: ask this plugin whether it lives.
    #[serde(rename_all = "camelCase")]
    Probe {
        /// Comes back in the answer.
        id: u64,
        /// Where the plugin is asked, at 127.0.0.1.
        port: u16,
        /// What it is asked.
        question: Question,
        /// When it is given up, in milliseconds from now.
        timeout_ms: u64,
    },
    /// To `net`: report your counters.
    ReportRequest {
        /// Comes back in the answer.
        id: u64,
    },
    /// From `net`: configured.
    Ready,
    /// From `net`: send [`Message::Sockets`] of this plugin.
    SocketsWanted {
        /// The plugin.
        plugin: String,
        /// How many.
        count: usize,
    },
    /// From `net`: a question is answered.
    Probed {
        /// The question's.
        id: u64,
        /// What came of it.
        outcome: Outcome,
    },
    /// From `net`: one part of the counters; see [`super::report::Gather`].
    Report {
        /// The request's.
        id: u64,
        /// Some of the families' points; a family may go on in the next part.
        families: Vec<Family>,
        /// No more parts follow.
        last: bool,
    },
}

/// One end of the link. Both ends never block: they wait in a tokio runtime, or report `WouldBlock`.
#[derive(Debug)]
pub struct Link {
    /// A packet socket in truth. `UnixStream` is the safe way to tokio's readiness of any socket; none of
    /// its own reads and writes are used.
    socket: UnixStream,
}

impl Link {
    /// PID 1's end, and the descriptor that becomes standard input of `net`. Both are close-on-exec.
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((Self::from_fd(ours)?, theirs))
    }

    /// Takes over one end. Fails when it is no packet socket.
    pub fn from_fd(socket: OwnedFd) -> io::Result<Self> {
        if rustix::net::sockopt::socket_type(&socket)? != SocketType::SEQPACKET {
            return Err(invalid("the link is not a SOCK_SEQPACKET socket"));
        }
        rustix::io::ioctl_fionbio(&socket, true)?;
        Ok(Self { socket: UnixStream::from_std(socket.into())? })
    }

    /// Sends one message, waiting for room. Cancelling it sends all of the message or nothing.
    pub async fn send(&self, message: &Message, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let packet = encode(message, fds)?;
        let send = || send_packet(self.socket.as_fd(), &packet, fds);
        self.socket.async_io(Interest::WRITABLE, send).await
    }

    /// Sends one message if there is room, else `WouldBlock`: a `net` that hangs must not hold up PID 1.
    pub fn try_send(&self, message: &Message, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let packet = encode(message, fds)?;
        send_packet(self.socket.as_fd(), &packet, fds)
    }

    /// The next message; `None` when the other side is gone. Cancelling it loses nothing.
    pub async fn recv(&self) -> io::Result<Option<(Message, Vec<OwnedFd>)>> {
        self.socket.async_io(Interest::READABLE, || recv_packet(self.socket.as_fd())).await
    }
}

fn encode(message: &Message, fds: &[BorrowedFd<'_>]) -> io::Result<Vec<u8>> {
    if fds.len() > FDS_MAX {
        return Err(invalid("too many descriptors for one message"));
    }
    let packet = serde_json::to_vec(message).map_err(io::Error::other)?;
    if packet.len() > MESSAGE_MAX {
        return Err(invalid("message is too long for the link"));
    }
    Ok(packet)
}

fn send_packet(socket: BorrowedFd<'_>, packet: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(invalid("too many descriptors for one message"));
    }
    rustix::net::sendmsg(socket, &[IoSlice::new(packet)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn recv_packet(socket: BorrowedFd<'_>) -> io::Result<Option<(Message, Vec<OwnedFd>)>> {
    let mut packet = vec![0; MESSAGE_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut packet)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    );
    let received = match received {
        // A peer that died with packets of ours unread resets the link instead of ending it.
        Err(rustix::io::Errno::CONNRESET) => return Ok(None),
        other => other?,
    };
    // Taken out before any check, so that they are closed whatever comes next.
    let fds: Vec<OwnedFd> = control
        .drain()
        .filter_map(
            |message| if let RecvAncillaryMessage::ScmRights(fds) = message { Some(fds) } else { None },
        )
        .flatten()
        .collect();
    if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(invalid("message or its descriptors exceed the link's bounds"));
    }
    if received.bytes == 0 {
        return Ok(None);
    }
    let message = serde_json::from_slice(&packet[..received.bytes])
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    Ok(Some((message, fds)))
}

fn invalid(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        os::unix::net::UnixStream,
    };

    use super::*;

    fn ends() -> (Link, Link) {
        let (ours, theirs) = Link::pair().unwrap();
        (ours, Link::from_fd(theirs).unwrap())
    }

    #[tokio::test]
    async fn a_message_arrives_with_its_descriptors_and_they_are_close_on_exec() {
        let (ours, theirs) = ends();
        let (mut near, far) = UnixStream::pair().unwrap();
        let rule = EgressRule { plugin: "p".into(), fqdn: "a.example".into(), port: 443, tls: true };
        let message = Message::Egress { rule };
        ours.send(&message, &[far.as_fd()]).await.unwrap();
        drop(far);
        let (received, mut fds) = theirs.recv().await.unwrap().unwrap();
        assert_eq!(received, message);
        assert_eq!(fds.len(), 1);
        let flags = rustix::io::fcntl_getfd(&fds[0]).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
        UnixStream::from(fds.remove(0)).write_all(b"through").unwrap();
        let mut text = String::new();
        near.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
    }

    #[tokio::test]
    async fn messages_keep_their_order_and_their_borders() {
        let (ours, theirs) = ends();
        for id in 0..50 {
            ours.try_send(&Message::ReportRequest { id }, &[]).unwrap();
        }
        for id in 0..50 {
            assert_eq!(theirs.recv().await.unwrap().unwrap().0, Message::ReportRequest { id });
        }
    }

    #[tokio::test]
    async fn a_message_over_the_bound_is_not_sent_and_not_accepted() {
        let (ours, theirs) = ends();
        let rule = EgressRule { plugin: "p".repeat(MESSAGE_MAX), fqdn: "a".into(), port: 1, tls: false };
        assert!(ours.send(&Message::Egress { rule }, &[]).await.is_err());
        let sent = ours.try_send(&Message::Ready, &[ours.socket.as_fd(); FDS_MAX + 1]);
        assert_eq!(sent.unwrap_err().kind(), io::ErrorKind::InvalidData);

        rustix::net::send(ours.socket.as_fd(), &vec![b' '; MESSAGE_MAX + 1], SendFlags::empty()).unwrap();
        assert_eq!(theirs.recv().await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        rustix::net::send(ours.socket.as_fd(), b"{not json", SendFlags::empty()).unwrap();
        assert_eq!(theirs.recv().await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[tokio::test]
    async fn descriptors_over_the_bound_are_an_error_and_are_closed() {
        let (ours, theirs) = ends();
        let (near, mut far) = UnixStream::pair().unwrap();
        let many = [near.as_fd(); 2 * FDS_MAX];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2 * FDS_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&many)));
        let text = [IoSlice::new(b"\"ready\"")];
        rustix::net::sendmsg(ours.socket.as_fd(), &text, &mut control, SendFlags::empty()).unwrap();
        assert_eq!(theirs.recv().await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        drop(near);
        assert_eq!(far.read(&mut [0]).unwrap(), 0, "a received descriptor is still open");
    }

    #[tokio::test]
    async fn the_other_side_gone_is_the_end_of_the_link_even_with_packets_unread() {
        let (ours, theirs) = ends();
        drop(ours);
        assert!(theirs.recv().await.unwrap().is_none());

        let (ours, theirs) = ends();
        theirs.try_send(&Message::Ready, &[]).unwrap();
        drop(ours);
        assert!(theirs.recv().await.unwrap().is_none());
        let sent = theirs.send(&Message::Ready, &[]).await;
        assert_eq!(sent.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[tokio::test]
    async fn a_peer_that_does_not_read_makes_try_send_report_it_and_send_wait() {
        let (ours, theirs) = ends();
        let mut sent = 0_u64;
        let full = loop {
            match ours.try_send(&Message::ReportRequest { id: sent }, &[]) {
                Ok(()) => sent += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
        let (waited, ()) = tokio::join!(ours.send(&Message::Ready, &[]), async {
            for _ in 0..sent {
                theirs.recv().await.unwrap().unwrap();
            }
            assert_eq!(theirs.recv().await.unwrap().unwrap().0, Message::Ready);
        });
        waited.unwrap();
    }

    #[tokio::test]
    async fn a_stream_socket_is_no_link() {
        let (stream, _other) = UnixStream::pair().unwrap();
        assert_eq!(Link::from_fd(stream.into()).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
