//! Network namespaces: one for each plugin, made before its first run and kept over all of them.
//!
//! What is made inside one is handed out as descriptors; the supervisor itself never enters. Each visit is a
//! thread's own, which ends with it: there is no way back to be lost.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
    thread,
};

use nix::{
    sched::{CloneFlags, setns, unshare},
    sys::socket::{setsockopt, sockopt::IpBindAddressNoPort},
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use super::loopback;

/// A network namespace with nothing but `lo`, which is up.
#[derive(Debug)]
pub struct NetworkNamespace(OwnedFd);

impl NetworkNamespace {
    /// Makes one. It lives as long as this, or as a process that is in it.
    pub fn new() -> io::Result<Self> {
        aside(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            loopback::raise()?;
            Ok(Self(File::open("/proc/thread-self/ns/net")?.into()))
        })
    }

    /// Does something inside, and waits for it: it must not block.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        aside(|| {
            setns(self.0.as_fd(), CloneFlags::CLONE_NEWNET)?;
            work()
        })
    }

    /// The namespace's descriptor, for a process that is to join it.
    pub(super) fn descriptor(&self) -> io::Result<OwnedFd> {
        self.0.try_clone()
    }
}

/// A TCP socket over IPv4 in the namespace of the calling thread: unconnected, non-blocking and
/// close-on-exec.
///
/// Bound to an address, it still leaves its port to `connect`. The port that `bind` would choose belongs to
/// one connection at a time, and for a minute after its end.
pub fn tcp_socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
    setsockopt(&socket, IpBindAddressNoPort, &true)?;
    Ok(socket)
}

/// Runs something on a thread of its own and waits for it.
fn aside<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("namespace".to_owned()).spawn_scoped(scope, work)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
    })
}
