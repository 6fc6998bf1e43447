//! Keeps a repeated log line from filling the log.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// Lines let through per window.
const LINES_MAX: u32 = 10;
/// Length of a window.
const WINDOW: Duration = Duration::from_secs(10);

/// Lets the first lines of every window through.
#[derive(Debug, Default)]
pub(crate) struct Throttle(Mutex<Option<Window>>);

#[derive(Debug)]
struct Window {
    since: Instant,
    lines: u32,
    suppressed: u64,
}

impl Throttle {
    /// Whether a line may be written now; if so, how many were left out since the last one.
    pub(crate) fn pass(&self) -> Option<u64> {
        let now = Instant::now();
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match slot.as_mut() {
            Some(window) if now.duration_since(window.since) < WINDOW => {
                if window.lines == LINES_MAX {
                    window.suppressed += 1;
                    return None;
                }
                window.lines += 1;
                Some(0)
            }
            Some(_) | None => {
                let suppressed = slot.as_ref().map_or(0, |window| window.suppressed);
                *slot = Some(Window { since: now, lines: 1, suppressed: 0 });
                Some(suppressed)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_flood_is_cut_to_its_first_lines_and_the_rest_is_counted() {
        let throttle = Throttle::default();
        let passed = (0..1000).filter(|_| throttle.pass().is_some()).count();
        assert_eq!(passed, 10);
        tokio::time::advance(WINDOW).await;
        assert_eq!(throttle.pass(), Some(990));
        assert_eq!(throttle.pass(), Some(0));
    }
}
