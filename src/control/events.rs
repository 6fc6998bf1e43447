//! The ring of state changes behind `GET /v1/events`.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

use enclave_protocol::{control::Event, timestamp::Timestamp};
use tokio::sync::watch;

/// Events kept. A crash loop at its slowest makes three a minute: hours of history in a few hundred KiB.
const EVENTS_MAX: usize = 1000;

/// The newest events under one sequence.
#[derive(Debug)]
pub struct Events {
    ring: Mutex<VecDeque<Event>>,
    newest: watch::Sender<u64>,
}

impl Events {
    /// No events yet.
    pub fn new() -> Self {
        Self { ring: Mutex::default(), newest: watch::Sender::new(0) }
    }

    /// Adds an event and answers its sequence number.
    pub fn push(&self, time: Timestamp, plugin: Option<&str>, reason: &str, message: String) -> u64 {
        let seq = *self.newest.borrow() + 1;
        let event =
            Event { seq, time, plugin: plugin.map(str::to_owned), reason: reason.to_owned(), message };
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        if ring.len() >= EVENTS_MAX {
            ring.pop_front();
        }
        ring.push_back(event);
        drop(ring);
        self.newest.send_replace(seq);
        seq
    }

    /// The events after `after`.
    pub fn read(&self, after: u64) -> Vec<Event> {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        ring.iter().filter(|event| event.seq > after).cloned().collect()
    }

    /// Sequence number of the newest event.
    pub fn last_seq(&self) -> u64 {
        *self.newest.borrow()
    }

    /// Changes whenever an event is pushed.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }
}

impl Default for Events {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_events_make_room_and_the_sequence_goes_on() {
        let events = Events::new();
        for _ in 0..EVENTS_MAX + 5 {
            events.push(Timestamp(0), Some("a"), "Started", String::new());
        }
        let all = events.read(0);
        assert_eq!((all.len(), all[0].seq, events.last_seq()), (EVENTS_MAX, 6, EVENTS_MAX as u64 + 5));
        assert_eq!(events.read(events.last_seq() - 1).len(), 1);
    }
}
