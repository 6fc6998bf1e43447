//! One accept loop for every listener: it owns its connections' tasks, bounds their number, survives
//! exhausted descriptors and contains panics.

use std::{future::Future, io, sync::Arc, time::Duration};

use enclave_protocol::transport::{HostListener, Stream};
use tokio::{
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    task::JoinSet,
    time::sleep,
};

use crate::counters::{Counters, count};

/// How long accepting pauses when the process is out of descriptors or memory: others have to end first.
const PAUSE: Duration = Duration::from_millis(100);
/// Connections above the limit that may be told so; the next ones are closed without a word.
const TOLD_MAX: usize = 64;

/// Something that yields connections.
pub(crate) trait Accept: Send + 'static {
    /// A connection.
    type Stream: Send + 'static;

    /// The next one. `ConnectionRefused` is a peer that is not ours.
    fn accept(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Accept for HostListener {
    type Stream = Stream;

    fn accept(&self) -> impl Future<Output = io::Result<Stream>> + Send {
        Self::accept(self)
    }
}

impl Accept for TcpListener {
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<TcpStream> {
        Self::accept(self).await.map(|(stream, _)| stream)
    }
}

impl Accept for UnixListener {
    type Stream = UnixStream;

    async fn accept(&self) -> io::Result<UnixStream> {
        Self::accept(self).await.map(|(stream, _)| stream)
    }
}

/// Whether a connection is within the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admission {
    /// It is.
    Admitted,
    /// It is to be told that it is not, shortly.
    Overloaded,
}

/// Serves connections until it is dropped, and with it every connection.
pub(crate) async fn serve<L, H, F>(listener: L, limit: usize, counters: Arc<Counters>, handle: H)
where
    L: Accept,
    H: Fn(L::Stream, Admission) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Some(joined) = connections.join_next() => {
                if joined.is_err_and(|error| error.is_panic()) {
                    count(&counters.panics);
                }
            }
            accepted = listener.accept() => match accepted {
                Ok(stream) if connections.len() < limit => {
                    connections.spawn(handle(stream, Admission::Admitted));
                }
                Ok(stream) if connections.len() < limit + TOLD_MAX => {
                    connections.spawn(handle(stream, Admission::Overloaded));
                }
                Ok(stream) => drop(stream),
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    count(&counters.foreign_peers);
                }
                // EMFILE, ENFILE, ENOMEM, or a connection that ended while it waited: none ends the listener.
                Err(error) => {
                    count(&counters.accept_pauses);
                    tracing::warn!(%error, "accepting pauses");
                    sleep(PAUSE).await;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use tokio::{sync::mpsc, time::Instant};

    use super::*;

    /// Fails `failures` times, then yields numbers, then waits for ever.
    struct Script {
        failures: AtomicUsize,
        left: AtomicUsize,
    }

    impl Accept for Script {
        type Stream = usize;

        async fn accept(&self) -> io::Result<usize> {
            const EMFILE: i32 = 24;
            if self.failures.load(Relaxed) > 0 {
                self.failures.fetch_sub(1, Relaxed);
                return Err(io::Error::from_raw_os_error(EMFILE));
            }
            if self.left.load(Relaxed) == 0 {
                return std::future::pending().await;
            }
            Ok(self.left.fetch_sub(1, Relaxed))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn exhausted_descriptors_pause_the_loop_and_a_panic_ends_one_connection_alone() {
        let counters = Arc::new(Counters::default());
        let (tx, mut rx) = mpsc::channel(8);
        let script = Script { failures: AtomicUsize::new(3), left: AtomicUsize::new(2) };
        let mut tasks = JoinSet::new();
        let start = Instant::now();
        tasks.spawn(serve(script, 8, Arc::clone(&counters), move |number, _| {
            let tx = tx.clone();
            async move {
                assert_ne!(number, 2, "this connection panics on purpose");
                tx.send(number).await.unwrap();
            }
        }));
        assert_eq!(rx.recv().await, Some(1));
        assert!(start.elapsed() >= 3 * PAUSE);
        assert_eq!(counters.accept_pauses.load(Relaxed), 3);
        tokio::task::yield_now().await;
        assert_eq!(counters.panics.load(Relaxed), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn connections_above_the_limit_are_told_and_then_dropped() {
        let (tx, mut rx) = mpsc::channel(256);
        let script = Script { failures: AtomicUsize::new(0), left: AtomicUsize::new(3 + TOLD_MAX) };
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(script, 2, Arc::default(), move |_, admission| {
            let tx = tx.clone();
            async move {
                tx.send(admission).await.unwrap();
                std::future::pending::<()>().await;
            }
        }));
        let mut seen = Vec::new();
        for _ in 0..2 + TOLD_MAX {
            seen.push(rx.recv().await.unwrap());
        }
        assert_eq!(seen.iter().filter(|admission| **admission == Admission::Admitted).count(), 2);
        assert!(rx.try_recv().is_err(), "the last one is closed without a word");
    }
}
