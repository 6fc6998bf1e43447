//! The times of exported points. Pure: every clock's reading is an argument.
//!
//! A receiver refuses a point that is not newer than the last of its series, in milliseconds, and refuses one
//! that is far ahead of its own clock. All series of the supervisor and of the plugin itself share one line
//! of times.

use std::time::Duration;

use enclave_protocol::timestamp::Timestamp;

/// The resolution of receivers: two points of a series in one millisecond are a duplicate.
pub(crate) const STEP: Duration = Duration::from_millis(1);
/// Corrections of the clock backwards below this are bridged by [`STEP`]s; after a larger one the clock is
/// followed, since points ahead of it for so long would be more wrong than refused ones.
pub(crate) const BRIDGED: Duration = Duration::from_secs(10);
/// A new sample was made a moment ago, by the same clock: one that is further away from the present was made
/// before the clock was set.
const SAMPLE_AGE_MAX: Duration = Duration::from_mins(5);

/// The line of times.
#[derive(Debug, Clone, Default)]
pub(crate) struct Times {
    last: Option<Timestamp>,
}

/// The time of one export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Time {
    /// On every point.
    pub(crate) time: Timestamp,
    /// How far the clock went back, if the line follows it.
    pub(crate) back: Option<Duration>,
}

impl Times {
    /// The time for the readings of a sample, now.
    pub(crate) fn of_sample(&mut self, sample: Timestamp, now: Timestamp) -> Time {
        let age = now.0.saturating_sub(sample.0);
        let is_ahead = sample.0 > now.0;
        self.next(if is_ahead || age > nanos(SAMPLE_AGE_MAX) { now } else { sample })
    }

    /// The time for an export of what is counted here, now.
    pub(crate) fn next(&mut self, wanted: Timestamp) -> Time {
        let (time, back) = match self.last {
            Some(last) if wanted.0 < last.0.saturating_add(nanos(STEP)) => {
                let back = last.0.saturating_sub(wanted.0);
                if back < nanos(BRIDGED) {
                    (Timestamp(last.0.saturating_add(nanos(STEP))), None)
                } else {
                    (wanted, Some(Duration::from_nanos(back)))
                }
            }
            Some(_) | None => (wanted, None),
        };
        self.last = Some(time);
        Time { time, back }
    }
}

/// The start of a sum that is exported at `time`: never after it. Zero is "unknown" in OTLP.
pub(crate) fn start(started: Timestamp, time: Timestamp) -> Timestamp {
    started.min(time)
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const MILLI: u64 = 1_000_000;

    fn at(seconds: u64) -> Timestamp {
        Timestamp(seconds * SECOND)
    }

    #[test]
    fn a_sample_is_exported_at_the_time_of_its_readings() {
        let mut times = Times::default();
        assert_eq!(times.of_sample(at(1000), at(1001)), Time { time: at(1000), back: None });
        assert_eq!(times.of_sample(at(1005), at(1005)), Time { time: at(1005), back: None });
    }

    #[test]
    fn a_sample_whose_time_is_another_clocks_takes_the_present() {
        let mut times = Times::default();
        assert_eq!(times.of_sample(at(0), at(100_000)).time, at(100_000));
        let mut times = Times::default();
        assert_eq!(times.of_sample(at(186_400), at(100_000)).time, at(100_000), "a day ahead");
    }

    #[test]
    fn a_small_step_back_is_bridged_and_a_large_one_followed_and_told() {
        let mut times = Times::default();
        times.next(at(1000));
        assert_eq!(times.next(at(991)), Time { time: Timestamp(1000 * SECOND + MILLI), back: None });
        let back = Some(Duration::from_nanos(900 * SECOND + MILLI));
        assert_eq!(times.next(at(100)), Time { time: at(100), back });
        assert_eq!(times.next(at(100)).time, Timestamp(100 * SECOND + MILLI));
    }

    proptest! {
        #[test]
        fn times_never_repeat_and_go_back_only_with_the_clock(
            steps in proptest::collection::vec((-20_000i64..20_000, -100_000i64..100_000), 1..100)
        ) {
            let mut times = Times::default();
            let (mut now, mut last) = (1_000_000i64, None::<Time>);
            for (passed, sampled) in steps {
                now = (now + passed).max(1);
                let sample = (now + sampled).max(0);
                let millis = |millis: i64| Timestamp(u64::try_from(millis).unwrap() * MILLI);
                let time = times.of_sample(millis(sample), millis(now));
                if let Some(last) = last {
                    let newer = time.time.0 / MILLI > last.time.0 / MILLI;
                    prop_assert!(newer != time.back.is_some(), "{last:?} {time:?}");
                }
                prop_assert!(start(millis(now), time.time) <= time.time);
                last = Some(time);
            }
        }
    }
}
