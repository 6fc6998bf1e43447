//! How long to wait before trying again: doubling, bounded, jittered.

use std::time::Duration;

/// First wait.
const FIRST: Duration = Duration::from_millis(100);
/// Longest wait: short enough that a restarted enclave is noticed at once by a person.
const LONGEST: Duration = Duration::from_secs(3);

/// The waits between attempts of one thing.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The next wait: between half and the whole of a doubling limit, so that many clients do not march in
    /// step.
    pub(crate) fn next(&mut self) -> Duration {
        let limit = FIRST.saturating_mul(1 << self.failures.min(16)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        // Without a random source the waits are merely not spread.
        let random = getrandom::u32().unwrap_or(u32::MAX);
        limit / 2 + (limit / 2).mul_f64(f64::from(random) / f64::from(u32::MAX))
    }

    /// It worked: the next failure waits as the first one did.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_their_limit_and_start_over_after_success() {
        let mut backoff = Backoff::default();
        for _ in 0..40 {
            assert!(backoff.next() <= LONGEST);
        }
        assert!(backoff.next() >= LONGEST / 2);
        backoff.reset();
        assert!(backoff.next() <= FIRST);
    }
}
