//! `READY=1`: the plugins' notification sockets, as systemd's `sd_notify` writes to them.
//!
//! Each plugin that has one has its own, so that the socket is the plugin's identity. A notice counts for the
//! run in which it was sent: what is left of an earlier one is read and forgotten before the next begins.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use rustix::net::RecvFlags;
use tokio::{net::UnixDatagram, sync::mpsc, task::JoinSet};

use crate::engine::PluginId;

/// Longest notice that is read, in bytes; what is longer is cut, and its first lines count.
const NOTICE_BYTES_MAX: usize = 4096;
/// Notices of all plugins that may wait for the driver. A plugin that sends more waits in its own socket.
const NOTICES_MAX: usize = 16;

/// The sockets of all plugins.
#[derive(Debug)]
pub(super) struct Notices {
    sockets: Vec<(PluginId, Arc<Socket>)>,
    ready: mpsc::Receiver<(PluginId, u64)>,
    tell: mpsc::Sender<(PluginId, u64)>,
    readers: JoinSet<()>,
}

#[derive(Debug)]
struct Socket {
    socket: UnixDatagram,
    /// Counts the plugin's runs.
    run: AtomicU64,
}

impl Notices {
    /// None yet.
    pub(super) fn new() -> Self {
        let (tell, ready) = mpsc::channel(NOTICES_MAX);
        Self { sockets: Vec::new(), ready, tell, readers: JoinSet::new() }
    }

    /// Listens to a plugin.
    pub(super) fn add(&mut self, plugin: PluginId, socket: UnixDatagram) {
        let socket = Arc::new(Socket { socket, run: AtomicU64::new(0) });
        self.sockets.push((plugin, Arc::clone(&socket)));
        let tell = self.tell.clone();
        self.readers.spawn(async move {
            let mut notice = vec![0; NOTICE_BYTES_MAX];
            while let Ok(length) = socket.socket.recv(&mut notice).await {
                let run = socket.run.load(Ordering::Relaxed);
                if is_ready(&notice[..length]) && tell.send((plugin, run)).await.is_err() {
                    return;
                }
            }
        });
    }

    /// Forgets what a plugin has said so far: another run begins.
    pub(super) fn begin(&self, plugin: PluginId) {
        if let Some((_, socket)) = self.sockets.iter().find(|(known, _)| *known == plugin) {
            // The kernel is asked: the runtime may not know yet that there is something to read.
            while rustix::net::recv(&socket.socket, &mut [0_u8; 1], RecvFlags::DONTWAIT).is_ok() {}
            socket.run.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The next plugin that says it is ready.
    pub(super) async fn ready(&mut self) -> PluginId {
        loop {
            let Some((plugin, run)) = self.ready.recv().await else { return std::future::pending().await };
            let current = self.sockets.iter().find(|(known, _)| *known == plugin);
            if current.is_some_and(|(_, socket)| socket.run.load(Ordering::Relaxed) == run) {
                return plugin;
            }
        }
    }
}

/// Whether one of a notice's lines is `READY=1`. Everything else that systemd knows is left alone.
fn is_ready(notice: &[u8]) -> bool {
    notice.split(|byte| *byte == b'\n').any(|line| line == b"READY=1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_of_a_notice_says_that_the_plugin_is_ready() {
        assert!(is_ready(b"READY=1"));
        assert!(is_ready(b"STATUS=up\nREADY=1\n"));
        assert!(!is_ready(b"READY=0") && !is_ready(b"XREADY=1") && !is_ready(b""));
    }

    #[tokio::test]
    async fn a_notice_of_an_earlier_run_is_forgotten() {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        let mut notices = Notices::new();
        notices.add(PluginId(3), ours);
        notices.begin(PluginId(3));
        theirs.send(b"READY=1").await.unwrap();
        notices.begin(PluginId(3));
        theirs.send(b"STATUS=starting").await.unwrap();
        theirs.send(b"READY=1").await.unwrap();
        assert_eq!(notices.ready().await, PluginId(3));
        assert!(notices.ready.try_recv().is_err());
    }
}
