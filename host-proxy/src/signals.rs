//! SIGTERM and SIGINT: the first drains, the second ends at once.

use std::io;

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
};

use crate::view::Stop;

/// The two signals, caught from here on.
#[derive(Debug)]
pub(crate) struct Signals {
    term: Signal,
    int: Signal,
}

impl Signals {
    /// Catches them.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { term: signal(SignalKind::terminate())?, int: signal(SignalKind::interrupt())? })
    }

    /// Asks for a drain at the first signal; returns at the second.
    pub(crate) async fn second(mut self, stops: mpsc::Sender<Stop>) {
        self.next().await;
        tracing::info!("a signal asks to stop; a second one ends at once");
        // Full means that a stop is being asked for already.
        stops.try_send(Stop::default()).ok();
        self.next().await;
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }
}
