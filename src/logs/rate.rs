//! How much of one plugin's output is kept: one token bucket for all its streams. Pure: time is passed in.
//!
//! A noisy plugin has its own ring and pushes out nobody else's lines. What it would still cost is PID 1's
//! time, since a record is stored, copied and written as JSON, and the host's pipe. Beyond the rate its
//! output is read all the same, because a plugin must never wait for its log, and only counted.
//!
//! ```text
//!        a record is too much                  PAUSE has passed
//! open ───────────────────────▶ shut ─────────────────────────────▶ open
//!
//! suppression: from the first record that is dropped until the bucket is full again; told at both ends
//! ```

use std::time::Duration;

use tokio::time::Instant;

/// What one plugin may log for long: bytes of text and of its records' overhead, per second. At this rate a
/// ring holds a quarter of a second, and 5,000 short lines fit: journald's default is 333 lines per second
/// (10,000 in 30 s), for a disk. Ours is memory, and what bounds it is the way to the host.
pub const BYTES_PER_SECOND: u64 = 1 << 20;
/// How much at once, as the time in which the rate allows as much: 4 MiB, or 20,000 short lines. A service
/// that dumps its configuration or a hundred stack traces stays below it.
pub const BURST: Duration = Duration::from_secs(4);
/// How long nothing is kept once the bucket is empty. What follows is a second's worth of lines in one piece,
/// which a person can read, and not every hundredth line.
const PAUSE: Duration = Duration::from_secs(1);

/// The bucket, and the suppression that is under way.
#[derive(Debug)]
pub struct Rate {
    /// When the bucket will be full again. All that a bucket has to remember.
    full_at: Instant,
    open_at: Instant,
    /// Records dropped in this suppression and not told yet.
    suppressed: Option<u64>,
}

impl Rate {
    /// A full bucket.
    pub fn new(now: Instant) -> Self {
        Self { full_at: now, open_at: now, suppressed: None }
    }

    /// Whether a record may be kept at all.
    pub fn is_open(&self, now: Instant) -> bool {
        now >= self.open_at
    }

    /// Whether a record of this cost is kept. The first that is not shuts the bucket for a while.
    pub fn admit(&mut self, now: Instant, cost: usize) -> bool {
        if !self.is_open(now) {
            return false;
        }
        let full_at = self.full_at.max(now) + time_of(cost);
        let fits = full_at <= now + BURST;
        if fits {
            self.full_at = full_at;
        } else {
            self.open_at = now + PAUSE;
        }
        fits
    }

    /// Counts dropped records. Whether a suppression begins with them.
    pub fn suppress(&mut self, records: u64) -> bool {
        let before = self.suppressed;
        self.suppressed = Some(before.unwrap_or(0) + records);
        before.is_none()
    }

    /// When the suppression that is under way is over, if nothing more comes.
    pub fn over_at(&self) -> Option<Instant> {
        self.suppressed.map(|_| self.full_at.max(self.open_at))
    }

    /// Ends a suppression that is over by now. How many records it dropped that were not told yet.
    pub fn settle(&mut self, now: Instant) -> Option<u64> {
        let over = self.over_at()? <= now;
        let untold = if over { self.suppressed.take() } else { None };
        untold.filter(|records| *records > 0)
    }

    /// How many were not told yet, whether or not the suppression is over: a stream ends, and nobody else may
    /// be there to tell.
    pub fn tell(&mut self) -> Option<u64> {
        let untold = std::mem::take(self.suppressed.as_mut()?);
        Some(untold).filter(|records| *records > 0)
    }
}

/// The time in which the rate allows so many bytes.
fn time_of(bytes: usize) -> Duration {
    Duration::from_nanos((bytes as u64).saturating_mul(1_000_000_000) / BYTES_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: usize = 1 << 20;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_burst_is_kept_whole_and_what_follows_comes_at_the_rate() {
        let start = Instant::now();
        let mut rate = Rate::new(start);
        for _ in 0..4 {
            assert!(rate.admit(start, MIB));
        }
        assert!(!rate.admit(start, 1));
        // A second later one mebibyte is there again, in one piece.
        let later = start + seconds(1);
        assert!(!rate.is_open(later - Duration::from_nanos(1)));
        assert!(rate.is_open(later) && rate.admit(later, MIB));
        assert!(!rate.admit(later, 1) && !rate.is_open(later));
    }

    #[test]
    fn a_suppression_begins_once_and_is_over_when_the_bucket_is_full() {
        let start = Instant::now();
        let mut rate = Rate::new(start);
        assert_eq!(rate.over_at(), None);
        assert!(rate.admit(start, 4 * MIB) && !rate.admit(start, 1));
        assert!(rate.suppress(1));
        assert!(!rate.suppress(9));
        // What is kept meanwhile does not end it.
        let later = start + seconds(2);
        assert!(rate.admit(later, MIB));
        assert_eq!(rate.over_at(), Some(start + seconds(5)));
        assert_eq!(rate.settle(start + seconds(4)), None);
        assert_eq!(rate.settle(start + seconds(5)), Some(10));
        assert_eq!((rate.settle(start + seconds(9)), rate.over_at()), (None, None));
        assert!(rate.suppress(1), "the next one is told again");
    }

    #[test]
    fn what_a_stream_told_at_its_end_is_not_told_twice() {
        let start = Instant::now();
        let mut rate = Rate::new(start);
        assert_eq!(rate.tell(), None);
        assert!(rate.suppress(3));
        assert_eq!((rate.tell(), rate.tell()), (Some(3), None));
        assert!(!rate.suppress(2), "it goes on in another stream");
        assert_eq!((rate.settle(start), rate.settle(start)), (Some(2), None));
        assert!(rate.suppress(1));
        assert_eq!((rate.tell(), rate.settle(start), rate.over_at()), (Some(1), None, None));
    }

    proptest! {
        #[test]
        fn no_time_span_has_more_than_the_burst_and_its_rate(
            steps in prop::collection::vec((0u64..2_000, 0usize..300_000), 1..200),
        ) {
            let start = Instant::now();
            let (mut rate, mut now) = (Rate::new(start), start);
            let mut kept: Vec<(Instant, usize)> = Vec::new();
            for (millis, cost) in steps {
                now += Duration::from_millis(millis);
                if rate.admit(now, cost) {
                    kept.push((now, cost));
                }
            }
            for (first, (from, _)) in kept.iter().enumerate() {
                let mut sum = 0;
                for (at, cost) in &kept[first..] {
                    sum += time_of(*cost).as_nanos();
                    prop_assert!(sum <= (BURST + (*at - *from)).as_nanos());
                }
            }
        }
    }
}
