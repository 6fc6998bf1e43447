//! How long a test waits for anything.

use std::{
    thread,
    time::{Duration, Instant},
};

/// The bound of every wait that has no limit of its own: a loaded machine, but not for ever.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// Between two questions about something that sends no event.
const PACE: Duration = Duration::from_millis(20);

/// Asks until there is an answer. For what sends no event: a sample's counters, the process table.
pub(crate) fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Deadline::new();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(!deadline.left().is_zero(), "not within {PATIENCE:?}: {what}");
        thread::park_timeout(PACE);
    }
}

/// When patience ends.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline(Instant);

impl Deadline {
    pub(crate) fn new() -> Self {
        Self(Instant::now() + PATIENCE)
    }

    pub(crate) fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }
}
