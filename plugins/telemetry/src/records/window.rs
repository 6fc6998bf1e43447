//! How far the log records on their way to the collector have come, for the acknowledgement to the
//! supervisor.
//!
//! A batch takes its place in the order of reading. It is settled when the collector has taken it or will
//! never take it; the records up to the first batch that is not settled may be forgotten by the supervisor. A
//! batch that ends in any other way, with its sender or at the end of the plugin, is never settled: the
//! supervisor keeps its records for the next run of this plugin, or counts them.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

/// Batches on their way at a time. What the collector does not take beyond them stays in the supervisor's
/// rings, which count what they have to drop.
pub(crate) const IN_FLIGHT_MAX: usize = 8;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Window {
    flights: Mutex<VecDeque<Flight>>,
    state: watch::Sender<State>,
}

/// What changes as batches come and go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct State {
    /// Every record up to this one is settled.
    pub(crate) settled: u64,
    /// Batches that take up a place.
    pub(crate) in_flight: usize,
}

#[derive(Debug)]
struct Flight {
    /// Sequence number of the last record.
    last: u64,
    settled: bool,
}

impl Window {
    /// Takes a place for a batch whose last record is `last`.
    pub(crate) fn enter(self: &Arc<Self>, last: u64) -> Receipt {
        let mut flights = self.flights();
        flights.push_back(Flight { last, settled: false });
        let in_flight = flights.len();
        self.state.send_modify(|state| state.in_flight = in_flight);
        Receipt { window: Arc::clone(self), last }
    }

    /// Its changes.
    pub(crate) fn subscribe(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    fn settle(&self, last: u64) {
        let mut flights = self.flights();
        if let Some(flight) = flights.iter_mut().find(|flight| flight.last == last) {
            flight.settled = true;
        }
        let mut settled = None;
        while flights.front().is_some_and(|flight| flight.settled) {
            settled = flights.pop_front().map(|flight| flight.last);
        }
        let in_flight = flights.len();
        self.state.send_modify(|state| {
            *state = State { settled: settled.unwrap_or(state.settled), in_flight };
        });
    }

    fn flights(&self) -> MutexGuard<'_, VecDeque<Flight>> {
        // No code that can panic runs between two changes that belong together.
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A batch's place in a window.
#[derive(Debug, Clone)]
pub(crate) struct Receipt {
    window: Arc<Window>,
    last: u64,
}

impl Receipt {
    /// The collector has taken the batch, or never will.
    pub(crate) fn settle(&self) {
        self.window.settle(self.last);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_forgotten_ends_before_the_first_batch_that_is_not_settled() {
        let window = Arc::new(Window::default());
        let state = window.subscribe();
        let now = || (state.borrow().settled, state.borrow().in_flight);
        let receipts = [10, 25, 30].map(|last| window.enter(last));
        assert_eq!(now(), (0, 3));
        receipts[1].settle();
        assert_eq!(now(), (0, 3));
        receipts[0].settle();
        assert_eq!(now(), (25, 1));
        receipts[0].settle();
        assert_eq!(now(), (25, 1));
        drop(receipts);
        assert_eq!(now(), (25, 1), "one that is lost is never settled");
    }
}
