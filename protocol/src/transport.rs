//! The wire between the two sides, chosen at run time: `vsock`, or `unix:PATH`, Firecracker's hybrid vsock.
//!
//! | role | `vsock` | `unix:PATH` |
//! |---|---|---|
//! | host dials guest port P | connect (CID, P) | connect PATH, send `CONNECT P\n`, read `OK n\n` |
//! | guest dials host port P | connect (host CID, P) | connect `PATH_P` |
//! | guest listens | one socket per port | one socket at PATH plays the VMM and names the port of each stream
//! |
//! | host listens on P | socket on `VMADDR_CID_ANY`, the peer's CID checked | listen on `PATH_P` |

use std::{
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    pin::Pin,
    str::FromStr,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::{UnixListener, UnixStream},
    time::timeout,
};
use tokio_vsock::{VMADDR_CID_ANY, VsockAddr, VsockListener, VsockStream};

/// Longest single write to an `AF_VSOCK` socket, in bytes. Kernels with commit 6693731487a8 corrupt data in
/// packets that need a non-linear buffer, a little under 32 KiB (firecracker#5475, cloud-hypervisor#7672).
pub const VSOCK_WRITE_MAX: usize = 28 << 10;
/// How long a dial, with its handshake, may take. The kernel's own limit for vsock is 2 s.
pub const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a peer may take over its `CONNECT P` line.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest handshake line: `CONNECT 4294967295\n` has 19 bytes.
const LINE_MAX: usize = 32;

/// Where the other side is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// `AF_VSOCK` sockets.
    Vsock,
    /// Firecracker's hybrid vsock at this path.
    Unix(PathBuf),
}

/// A transport that is neither `vsock` nor `unix:PATH`.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is neither \"vsock\" nor \"unix:PATH\"")]
pub struct AddressError(String);

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        match text.strip_prefix("unix:") {
            Some(path) if !path.is_empty() => Ok(Self::Unix(path.into())),
            None if text == "vsock" => Ok(Self::Vsock),
            Some(_) | None => Err(AddressError(text.to_owned())),
        }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Vsock => f.write_str("vsock"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// One connection.
#[derive(Debug)]
pub enum Stream {
    /// Over `AF_VSOCK`.
    Vsock(VsockStream),
    /// Over a Unix socket.
    Unix(UnixStream),
}

impl Stream {
    /// Gives up the socket, to be handed to another process.
    pub fn into_fd(self) -> io::Result<OwnedFd> {
        match self {
            Self::Vsock(stream) => Ok(stream.into()),
            Self::Unix(stream) => Ok(stream.into_std()?.into()),
        }
    }
}

/// What the host side knows of the enclave.
#[derive(Debug, Clone)]
pub enum Guest {
    /// The enclave's CID.
    Vsock {
        /// As `nitro-cli describe-enclaves` tells it.
        cid: u32,
    },
    /// The hybrid socket.
    Unix(PathBuf),
}

impl Guest {
    /// Connects to the enclave's `port`.
    pub async fn dial(&self, port: u32) -> io::Result<Stream> {
        let dialled = timeout(DIAL_TIMEOUT, async {
            match self {
                Self::Vsock { cid } => {
                    VsockStream::connect(VsockAddr::new(*cid, port)).await.map(Stream::Vsock)
                }
                Self::Unix(path) => dial_hybrid(path, port).await.map(Stream::Unix),
            }
        });
        dialled.await.map_err(|_| io::ErrorKind::TimedOut)?
    }

    /// Listens for the enclave on host `port`.
    pub fn listen(&self, port: u32) -> io::Result<HostListener> {
        match self {
            Self::Vsock { cid } => {
                // Bound to any CID: a pod may lack /dev/vsock and so not know its own.
                let listener = VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, port))?;
                Ok(HostListener::Vsock { listener, cid: *cid })
            }
            Self::Unix(path) => bind_unix(&port_path(path, port)).map(HostListener::Unix),
        }
    }
}

/// Accepts connections from one enclave.
#[derive(Debug)]
pub enum HostListener {
    /// Peers with another CID are closed: every enclave of a node can reach the parent's ports.
    Vsock {
        /// The socket.
        listener: VsockListener,
        /// The only CID that may connect.
        cid: u32,
    },
    /// At `PATH_PORT`.
    Unix(UnixListener),
}

impl HostListener {
    /// The next connection of the enclave. `ConnectionRefused` is one that came from somebody else.
    pub async fn accept(&self) -> io::Result<Stream> {
        match self {
            Self::Vsock { listener, cid } => {
                let (stream, peer) = listener.accept().await?;
                if peer.cid() == *cid { Ok(Stream::Vsock(stream)) } else { Err(foreign_peer()) }
            }
            Self::Unix(listener) => listener.accept().await.map(|(stream, _)| Stream::Unix(stream)),
        }
    }
}

/// What the enclave knows of its host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// The parent's CID: 3 on Nitro, 2 under Firecracker and QEMU.
    Vsock {
        /// See above.
        cid: u32,
    },
    /// The hybrid socket; the enclave side plays the VMM.
    Unix(PathBuf),
}

impl Host {
    /// Connects to the host's `port`.
    pub async fn dial(&self, port: u32) -> io::Result<Stream> {
        let dialled = timeout(DIAL_TIMEOUT, async {
            match self {
                Self::Vsock { cid } => {
                    VsockStream::connect(VsockAddr::new(*cid, port)).await.map(Stream::Vsock)
                }
                Self::Unix(path) => UnixStream::connect(port_path(path, port)).await.map(Stream::Unix),
            }
        });
        dialled.await.map_err(|_| io::ErrorKind::TimedOut)?
    }

    /// Listens for the host on the enclave's `port`.
    ///
    /// Over `unix:PATH` one socket stands for every port; `port` is then ignored and
    /// [`GuestListener::accept`] names the port that the host asked for.
    pub fn listen(&self, port: u32) -> io::Result<GuestListener> {
        match self {
            Self::Vsock { cid } => {
                let listener = VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, port))?;
                Ok(GuestListener::Vsock { listener, host_cid: *cid, port })
            }
            Self::Unix(path) => bind_unix(path).map(GuestListener::Unix),
        }
    }
}

/// Accepts connections from the host.
#[derive(Debug)]
pub enum GuestListener {
    /// One vsock port.
    Vsock {
        /// The socket.
        listener: VsockListener,
        /// The only CID that may connect.
        host_cid: u32,
        /// The port it is bound to.
        port: u32,
    },
    /// The hybrid socket: every port.
    Unix(UnixListener),
}

/// A connection from the host whose port may still have to be read.
#[derive(Debug)]
pub enum Incoming {
    /// A vsock connection names its port by itself.
    Ready(Stream, u32),
    /// A hybrid connection has yet to say `CONNECT P`.
    Hybrid(UnixStream),
}

impl GuestListener {
    /// The next connection of the host. `ConnectionRefused` is one that came from somebody else.
    pub async fn accept(&self) -> io::Result<Incoming> {
        match self {
            Self::Vsock { listener, host_cid, port } => {
                let (stream, peer) = listener.accept().await?;
                if peer.cid() == *host_cid {
                    Ok(Incoming::Ready(Stream::Vsock(stream), *port))
                } else {
                    Err(foreign_peer())
                }
            }
            Self::Unix(listener) => listener.accept().await.map(|(stream, _)| Incoming::Hybrid(stream)),
        }
    }
}

impl Incoming {
    /// The stream and its port. Bounded by [`HANDSHAKE_TIMEOUT`]; call it in the connection's own task.
    ///
    /// `knows(port)` says whether anything serves that port: a hybrid peer is answered `OK` only then.
    pub async fn handshake(self, knows: impl Fn(u32) -> bool) -> io::Result<(Stream, u32)> {
        match self {
            Self::Ready(stream, port) => Ok((stream, port)),
            Self::Hybrid(mut stream) => {
                let served = timeout(HANDSHAKE_TIMEOUT, async {
                    let line = read_line(&mut stream).await?;
                    let port = line.strip_prefix("CONNECT ").and_then(|text| text.parse().ok());
                    let port: u32 = port.ok_or(io::ErrorKind::InvalidData)?;
                    if !knows(port) {
                        return Err(io::Error::from(io::ErrorKind::ConnectionRefused));
                    }
                    // Firecracker answers with the host-side port it made up; nobody looks at it.
                    stream.write_all(format!("OK {port}\n").as_bytes()).await?;
                    Ok(port)
                });
                let port = served.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
                Ok((Stream::Unix(stream), port))
            }
        }
    }
}

/// `PATH_PORT`, where a guest's dial to the host's `port` ends in the hybrid scheme.
pub fn port_path(path: &Path, port: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!("_{port}"));
    name.into()
}

fn foreign_peer() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionRefused, "peer has a foreign CID")
}

/// Binds a Unix socket, replacing one that a dead process left behind. `AddrInUse` while a live one listens.
pub fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(io::Error::new(io::ErrorKind::AddrInUse, "another process listens there"));
    }
    match std::fs::symlink_metadata(path) {
        Ok(meta) if std::os::unix::fs::FileTypeExt::is_socket(&meta.file_type()) => {
            std::fs::remove_file(path)?;
        }
        // Anything else is left alone; bind then says what is wrong.
        Ok(_) | Err(_) => {}
    }
    UnixListener::bind(path)
}

async fn dial_hybrid(path: &Path, port: u32) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(path).await?;
    stream.write_all(format!("CONNECT {port}\n").as_bytes()).await?;
    match read_line(&mut stream).await {
        Ok(line) if line.starts_with("OK ") => Ok(stream),
        Ok(_) => Err(io::ErrorKind::InvalidData.into()),
        // The VMM closes the connection when nothing listens on that port.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Err(io::ErrorKind::ConnectionReset.into())
        }
        Err(error) => Err(error),
    }
}

/// Reads up to a newline, byte by byte so that nothing after it is swallowed.
async fn read_line(stream: &mut UnixStream) -> io::Result<String> {
    let mut line = Vec::with_capacity(LINE_MAX);
    loop {
        match stream.read_u8().await? {
            b'\n' => return String::from_utf8(line).map_err(|_| io::ErrorKind::InvalidData.into()),
            byte if line.len() < LINE_MAX && byte.is_ascii() => line.push(byte),
            _ => return Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Vsock(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

// `poll_write_vectored` is left to its default, which writes the first buffer through `poll_write`: the cut
// below holds for vectored writes too.
impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Vsock(stream) => Pin::new(stream).poll_write(cx, cut(buf)),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Vsock(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Vsock(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

fn cut(buf: &[u8]) -> &[u8] {
    buf.get(..VSOCK_WRITE_MAX).unwrap_or(buf)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn pair(known: u32, asked: u32) -> (io::Result<Stream>, io::Result<(Stream, u32)>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v.sock");
        let listener = Host::Unix(path.clone()).listen(0).unwrap();
        let guest = Guest::Unix(path);
        tokio::join!(guest.dial(asked), async {
            listener.accept().await.unwrap().handshake(|port| port == known).await
        })
    }

    #[tokio::test]
    async fn the_host_reaches_a_guest_port_and_nothing_after_the_newline_is_swallowed() {
        let (host, guest) = pair(100_000, 100_000).await;
        let (mut host, (mut guest, port)) = (host.unwrap(), guest.unwrap());
        assert_eq!(port, 100_000);
        guest.write_all(b"guest first").await.unwrap();
        host.write_all(b"\nhost").await.unwrap();
        let mut bytes = [0; 11];
        host.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"guest first");
        let mut bytes = [0; 5];
        guest.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"\nhost");
    }

    #[tokio::test]
    async fn a_port_that_nobody_serves_is_reset() {
        let (host, guest) = pair(100_000, 7).await;
        assert_eq!(host.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(guest.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }

    async fn handshake_with(bytes: &[u8]) -> io::ErrorKind {
        let (mut peer, ours) = UnixStream::pair().unwrap();
        peer.write_all(bytes).await.unwrap();
        Incoming::Hybrid(ours).handshake(|_| true).await.unwrap_err().kind()
    }

    #[tokio::test(start_paused = true)]
    async fn a_garbled_or_stalled_handshake_is_closed_within_its_bound() {
        assert_eq!(handshake_with(b"GET / HTTP/1.1\n").await, io::ErrorKind::InvalidData);
        assert_eq!(handshake_with(b"CONNECT 99999999999\n").await, io::ErrorKind::InvalidData);
        assert_eq!(handshake_with(&[b'x'; 64]).await, io::ErrorKind::InvalidData);
        assert_eq!(handshake_with(b"CONNECT 1").await, io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_socket_left_by_a_dead_process_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let guest = Guest::Unix(dir.path().join("v.sock"));
        drop(guest.listen(5).unwrap());
        let _live = guest.listen(5).unwrap();
        assert_eq!(guest.listen(5).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn vsock_writes_are_cut_below_the_kernel_bug() {
        assert_eq!(cut(&vec![0; 100_000]).len(), 28_672);
        assert_eq!(cut(b"abc"), b"abc");
    }

    #[test]
    fn an_address_is_vsock_or_a_unix_path() {
        assert_eq!("vsock".parse::<Address>().unwrap(), Address::Vsock);
        assert_eq!("unix:/a/b".parse::<Address>().unwrap(), Address::Unix("/a/b".into()));
        for bad in ["", "unix:", "tcp:1", "vsock:3"] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
    }
}
