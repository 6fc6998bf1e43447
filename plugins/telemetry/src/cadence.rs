//! When the supervisor is asked and when is exported. Pure: the present is an argument.
//!
//! ```text
//!             a sample without the headline                    nothing new for three periods
//!  Waiting ──────────────────────────────▶ Waiting      Fresh ───────────────────────────────▶ Stale
//!     │ a sample with the headline, or the third            ▲               a new sample        │
//!     └─────────────────────────────────────────────────────┴───────────────────────────────────┘
//! ```

use std::time::Duration;

use tokio::time::Instant;

/// Longest time between two questions: a new sample is exported within a second. An answer that there is
/// nothing new is a few bytes.
const POLL_MAX: Duration = Duration::from_secs(1);
/// Before two samples have told: long, since what is not known yet is not late.
const SAMPLE_INTERVAL_UNKNOWN: Duration = Duration::from_mins(1);
/// Longest interval that is believed; the supervisor's option allows no longer one either.
const SAMPLE_INTERVAL_MAX: Duration = Duration::from_mins(5);
/// A sample older than this many periods is stale.
const STALE_PERIODS: u32 = 3;
/// So many samples without the headline are waited for: CPU usage needs two readings, the third sample has
/// them.
const UNREADY_SAMPLES_MAX: u32 = 2;

/// The action that is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Due {
    /// Nothing.
    Nothing,
    /// Export the newest sample, and the plugin's own numbers with it.
    Sample,
    /// Export the plugin's own numbers: no sample has come for too long.
    OwnAlone,
}

/// The two periods, and where in them we are.
#[derive(Debug)]
pub(crate) struct Cadence {
    export_interval: Duration,
    sample_interval: Option<Duration>,
    /// When the newest sample came.
    sampled: Option<Instant>,
    /// It has not been exported.
    is_new: bool,
    /// Exports wait for the headline no longer.
    is_ready: bool,
    unready: u32,
    due: Instant,
}

impl Cadence {
    /// No sample has come; the first export is due as soon as one does.
    pub(crate) fn new(export_interval: Duration, now: Instant) -> Self {
        Self {
            export_interval,
            sample_interval: None,
            sampled: None,
            is_new: false,
            is_ready: false,
            unready: 0,
            due: now,
        }
    }

    /// A new sample came. `told` is the supervisor's own interval; without it the time between the arrivals
    /// of two stands in.
    pub(crate) fn sampled(&mut self, has_headline: bool, told: Option<Duration>, now: Instant) {
        let measured = self.sampled.map(|before| now.saturating_duration_since(before));
        if let Some(interval) = told.or(measured) {
            self.sample_interval = Some(interval.min(SAMPLE_INTERVAL_MAX));
        }
        (self.sampled, self.is_new) = (Some(now), true);
        if !self.is_ready {
            self.unready += u32::from(!has_headline);
            self.is_ready = has_headline || self.unready > UNREADY_SAMPLES_MAX;
        }
    }

    /// The time between two questions.
    pub(crate) fn poll(&self) -> Duration {
        self.export_interval.min(POLL_MAX)
    }

    /// From this age on a sample is stale: three times the slower of the two periods.
    pub(crate) fn stale_after(&self) -> Duration {
        let sample_interval = self.sample_interval.unwrap_or(SAMPLE_INTERVAL_UNKNOWN);
        self.export_interval.max(sample_interval) * STALE_PERIODS
    }

    /// Whether there is a sample that was not exported.
    pub(crate) fn has_new(&self) -> bool {
        self.is_new
    }

    /// Returns the action that is due; the caller performs it.
    pub(crate) fn due(&mut self, now: Instant) -> Due {
        let Some(sampled) = self.sampled else { return Due::Nothing };
        // Half a poll early is better than half a poll late: the next question would come after the interval.
        if now + self.poll() / 2 < self.due {
            return Due::Nothing;
        }
        let due = if self.is_new && self.is_ready {
            self.is_new = false;
            Due::Sample
        } else if now.saturating_duration_since(sampled) > self.stale_after() {
            Due::OwnAlone
        } else {
            return Due::Nothing;
        };
        // On a grid, so that exports do not drift away from the interval; a missed one is not made up for.
        self.due += self.export_interval;
        if self.due < now {
            self.due = now + self.export_interval;
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The events of so many milliseconds with these periods: the times of exports, the oldest sample
    /// exported.
    struct Run {
        samples: Vec<u64>,
        exports: Vec<(u64, Due)>,
        /// Whether the newest sample ever counted as stale.
        was_stale: bool,
    }

    fn run(export: u64, sample: u64, phase: u64, total: u64) -> Run {
        let begun = Instant::now();
        let mut cadence = Cadence::new(Duration::from_millis(export), begun);
        let step = u64::try_from(cadence.poll().as_millis()).unwrap();
        let mut run = Run { samples: vec![], exports: vec![], was_stale: false };
        let mut newest = None;
        for time in (0..total).step_by(usize::try_from(step).unwrap()) {
            let now = begun + Duration::from_millis(time);
            let made = (time >= phase).then(|| (time - phase) / sample);
            if made.is_some() && made != newest {
                newest = made;
                run.samples.push(time);
                // The supervisor's second sample is the first one with a CPU usage.
                cadence.sampled(made > Some(0), None, now);
            }
            let age = cadence.sampled.map(|sampled| now - sampled);
            run.was_stale |= age.is_some_and(|age| age > cadence.stale_after());
            match cadence.due(now) {
                Due::Nothing => {}
                due @ (Due::Sample | Due::OwnAlone) => run.exports.push((time, due)),
            }
        }
        run
    }

    #[test]
    fn the_readmes_intervals_give_the_headline_in_every_export_and_are_never_stale() {
        let run = run(1000, 5000, 300, 60_000);
        assert!(!run.was_stale);
        assert!(run.exports.iter().all(|(_, due)| *due == Due::Sample), "{:?}", run.exports);
        // Every sample but the first, which has no headline.
        assert_eq!(run.exports.iter().map(|(time, _)| *time).collect::<Vec<_>>(), run.samples[1..]);
    }

    #[test]
    fn an_export_interval_above_the_sample_interval_is_kept_on_average() {
        let run = run(10_000, 5000, 300, 600_000);
        assert!((58..=60).contains(&run.exports.len()), "{}", run.exports.len());
    }

    #[test]
    fn without_new_samples_the_own_numbers_go_alone_until_one_comes() {
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        let mut cadence = Cadence::new(Duration::from_secs(2), begun);
        assert_eq!(cadence.due(at(100)), Due::Nothing, "whose numbers they are is not known yet");
        cadence.sampled(true, None, at(95));
        cadence.sampled(true, None, at(100));
        assert_eq!(cadence.due(at(100)), Due::Sample);
        assert_eq!(cadence.due(at(115)), Due::Nothing);
        assert_eq!(cadence.due(at(116)), Due::OwnAlone);
        assert_eq!(cadence.due(at(117)), Due::Nothing);
        assert_eq!(cadence.due(at(118)), Due::OwnAlone);
        cadence.sampled(true, None, at(121));
        assert_eq!(cadence.due(at(121)), Due::Sample);
    }

    #[test]
    fn a_first_sample_that_comes_early_makes_no_later_one_late() {
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        let mut cadence = Cadence::new(Duration::from_secs(1), begun);
        let told = Some(Duration::from_secs(5));
        cadence.sampled(false, told, at(0));
        cadence.sampled(true, told, at(1));
        assert_eq!(cadence.due(at(1)), Due::Sample);
        assert_eq!(cadence.stale_after(), Duration::from_secs(15));
        assert_eq!(cadence.due(at(6)), Due::Nothing);
    }

    #[test]
    fn the_first_export_waits_for_the_headline_and_not_for_ever() {
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        let mut cadence = Cadence::new(Duration::from_secs(1), begun);
        for (time, expected) in [(0, Due::Nothing), (5, Due::Nothing), (10, Due::Sample)] {
            cadence.sampled(false, None, at(time));
            assert_eq!(cadence.due(at(time)), expected, "{time}");
        }
    }

    proptest! {
        #[test]
        fn for_any_two_periods_no_sample_goes_twice_and_none_is_stale(
            export in 100u64..60_000, sample in 1000u64..60_000, phase in 0u64..60_000,
        ) {
            let run = run(export, sample, phase, 600_000);
            prop_assert!(!run.was_stale);
            prop_assert!(run.exports.iter().all(|(_, due)| *due == Due::Sample));
            prop_assert!(run.exports.len() < run.samples.len());
            // Neither much rarer than both periods allow.
            let slower = export.max(sample) + 2 * export.min(1000);
            let gaps = run.exports.windows(2).map(|pair| pair[1].0 - pair[0].0);
            for gap in gaps {
                prop_assert!(gap <= export + slower, "{gap}");
            }
        }
    }
}
