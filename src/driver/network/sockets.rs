//! Sockets for `net`, made where a plugin's ports are reached. `net` may be in a plugin's hands: it gets
//! sockets for plugins that it has to connect to and for no others, and not more than a rate allows.

use std::{
    collections::{BTreeSet, VecDeque},
    fmt, io,
    os::fd::OwnedFd,
    sync::Arc,
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

use crate::net::link::{FDS_MAX, Message};

/// Sockets per [`WINDOW`], for all plugins together. Every connection into a plugin takes one, so this is
/// also the most connections: ten thousand in a second, and a tenth of a core for the making of them.
const SOCKETS_PER_WINDOW: usize = 1000;
/// Short, so that a wait for the next one is below what a connection waits for its socket.
const WINDOW: Duration = Duration::from_millis(100);

type Make = dyn Fn(&str, usize) -> io::Result<Vec<OwnedFd>> + Send + Sync;

/// Makes so many TCP sockets over IPv4, unconnected, non-blocking and close-on-exec, from which the plugin's
/// ports are reached at 127.0.0.1. It must not block.
#[derive(Clone)]
pub(crate) struct SocketSource(Arc<Make>);

impl SocketSource {
    /// Sockets that `make` makes for the plugin it is given.
    pub(crate) fn new(
        make: impl Fn(&str, usize) -> io::Result<Vec<OwnedFd>> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(make))
    }

    /// Sockets in our own network namespace.
    #[cfg(test)]
    pub(crate) fn shared_namespace() -> Self {
        Self::new(|_plugin, count| (0..count).map(|_| crate::sys::netns::tcp_socket()).collect())
    }

    /// Makes them.
    pub(crate) fn make(&self, plugin: &str, count: usize) -> io::Result<Vec<OwnedFd>> {
        (self.0)(plugin, count)
    }
}

impl fmt::Debug for SocketSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SocketSource").finish_non_exhaustive()
    }
}

/// Answers one `net`'s questions for sockets, in their order.
#[derive(Debug)]
pub(super) struct Dispenser {
    source: SocketSource,
    /// Plugins that `net` has to connect to.
    plugins: BTreeSet<String>,
    /// What is not answered yet; each plugin is in it once at most.
    wanted: VecDeque<(String, usize)>,
    window: Instant,
    made: usize,
}

impl Dispenser {
    pub(super) fn new(source: SocketSource, plugins: BTreeSet<String>) -> Self {
        Self { source, plugins, wanted: VecDeque::new(), window: Instant::now(), made: 0 }
    }

    /// Takes a question. One for another plugin, or a second before the first is answered, is not one that
    /// our own code asks.
    pub(super) fn want(&mut self, plugin: String, count: usize) {
        if self.plugins.contains(&plugin) && self.wanted.iter().all(|(waiting, _)| *waiting != plugin) {
            self.wanted.push_back((plugin, count.min(FDS_MAX)));
        }
    }

    /// The next answer, as soon as there is one and the rate allows it. Cancelling it loses nothing.
    pub(super) async fn next(&mut self) -> (Message, Vec<OwnedFd>) {
        if self.wanted.is_empty() {
            std::future::pending::<()>().await;
        }
        let end = self.window + WINDOW;
        if self.made >= SOCKETS_PER_WINDOW {
            sleep_until(end).await;
        }
        let now = Instant::now();
        if now >= end {
            self.window = now;
            self.made = 0;
        }
        let (plugin, count) = self.wanted.pop_front().unwrap_or_default();
        self.made += count;
        let sockets = self.source.make(&plugin, count).unwrap_or_else(|error| {
            // No line of the log: a plugin that opens connections would write it. `net` counts refusals.
            tracing::debug!(plugin, %error, "cannot make sockets");
            Vec::new()
        });
        (Message::Sockets { plugin }, sockets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dispenser(source: SocketSource) -> Dispenser {
        Dispenser::new(source, ["a", "b"].map(str::to_owned).into())
    }

    async fn next(dispenser: &mut Dispenser) -> String {
        let (message, sockets) = dispenser.next().await;
        let Message::Sockets { plugin } = message else { panic!("{message:?}") };
        format!("{plugin} {}", sockets.len())
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_a_plugin_may_be_asked_for_is_made_and_no_more_than_a_message_carries() {
        let mut dispenser = dispenser(SocketSource::shared_namespace());
        dispenser.want("other".to_owned(), 1);
        dispenser.want("a".to_owned(), usize::MAX);
        dispenser.want("a".to_owned(), 5);
        dispenser.want("b".to_owned(), 2);
        assert_eq!(next(&mut dispenser).await, "a 16");
        assert_eq!(next(&mut dispenser).await, "b 2");
        assert!(dispenser.wanted.is_empty());
        dispenser.want("b".to_owned(), 0);
        assert_eq!(next(&mut dispenser).await, "b 0");
    }

    #[tokio::test]
    async fn the_sockets_do_not_block_and_are_close_on_exec() {
        let source = SocketSource::shared_namespace();
        for socket in source.make("a", 3).unwrap() {
            assert!(rustix::io::fcntl_getfd(&socket).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
            let mut peek = [0];
            let read = rustix::net::recv(&socket, &mut peek, rustix::net::RecvFlags::empty());
            assert_eq!(read.unwrap_err(), rustix::io::Errno::NOTCONN);
            assert_eq!(rustix::net::sockopt::socket_type(&socket).unwrap(), rustix::net::SocketType::STREAM);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_questions_is_answered_at_the_rate_and_in_turn() {
        let none = SocketSource::new(|_, _| Ok(Vec::new()));
        let mut dispenser = dispenser(none);
        let start = Instant::now();
        let mut answers = Vec::new();
        for _ in 0..500 {
            dispenser.want("a".to_owned(), FDS_MAX);
            dispenser.want("b".to_owned(), FDS_MAX);
            answers.push(next(&mut dispenser).await);
        }
        // 63 messages of 16 reach the bound of a window.
        assert_eq!(start.elapsed(), WINDOW * 7, "500 / 63");
        assert!(answers.chunks(2).all(|pair| pair == ["a 0", "b 0"]), "{answers:?}");
    }

    #[tokio::test]
    async fn sockets_that_cannot_be_made_are_an_empty_answer() {
        let mut dispenser = dispenser(SocketSource::new(|_, _| Err(io::ErrorKind::OutOfMemory.into())));
        dispenser.want("a".to_owned(), 4);
        assert_eq!(next(&mut dispenser).await, "a 0");
    }
}
