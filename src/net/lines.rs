//! A limit on log lines about single streams: whoever opens many streams must not fill the log with them.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// Lines per [`WINDOW`].
const LINES_MAX: u32 = 20;
const WINDOW: Duration = Duration::from_secs(10);

/// Counts the lines.
#[derive(Debug, Default)]
pub(crate) struct Lines(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    window: Option<Instant>,
    said: u32,
    unsaid: u64,
}

impl Lines {
    /// Whether a line may be written, and how many were not since the last one.
    pub(crate) fn pass(&self) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if state.window.is_none_or(|start| now.duration_since(start) >= WINDOW) {
            state.window = Some(now);
            state.said = 0;
        }
        if state.said == LINES_MAX {
            state.unsaid += 1;
            return None;
        }
        state.said += 1;
        Some(std::mem::take(&mut state.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_flood_is_cut_and_the_next_window_says_how_much_was_left_out() {
        let lines = Lines::default();
        let passed = (0..50).filter(|_| lines.pass().is_some()).count();
        assert_eq!(passed, 20);
        tokio::time::advance(WINDOW).await;
        assert_eq!(lines.pass(), Some(30));
        assert_eq!(lines.pass(), Some(0));
    }
}
