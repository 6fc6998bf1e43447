//! The restart decision and the backoff curve: two functions without state.

use std::time::Duration;

use super::random::Random;
use super::spec::{RestartCurve, RestartPolicy};

/// What becomes of a plugin whose run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is started again, as the `n`-th restart of the streak.
    Restart { n: u32 },
    /// It succeeded and its policy leaves it at that.
    Completed,
    /// It failed and its policy leaves it at that.
    Failed,
    /// It would be started again, but `maxRestarts` is spent.
    Spent,
}

/// Decides after a run that ended in `success`, when `streak` restarts came since the last long run.
pub(super) fn decide(
    policy: RestartPolicy,
    max_restarts: Option<u32>,
    streak: u32,
    success: bool,
) -> Verdict {
    match (policy, success) {
        (RestartPolicy::OnFailure | RestartPolicy::Never, true) => Verdict::Completed,
        (RestartPolicy::Never, false) => Verdict::Failed,
        (RestartPolicy::Always, true | false) | (RestartPolicy::OnFailure, false) => {
            if max_restarts.is_some_and(|max| streak >= max) {
                Verdict::Spent
            } else {
                Verdict::Restart { n: streak.saturating_add(1) }
            }
        }
    }
}

/// Waits longer than this count as this: 292 years, which leaves room to compute in 128 bits.
const WAIT_NANOS_MAX: u128 = i64::MAX as u128;

/// What restart `n` waits, jitter included.
pub(super) fn delay(curve: &RestartCurve, n: u32, random: &mut Random) -> Duration {
    const BILLION: u128 = 1_000_000_000;
    // In billionths, so that even a wait of an hour is spread in steps of microseconds.
    let jitter = curve.jitter_milli.min(1000) * 1_000_000;
    let stretch = BILLION - u128::from(jitter) + u128::from(random.up_to(2 * jitter));
    from_nanos(base_delay(curve, n).as_nanos() * stretch / BILLION)
}

/// `min(max_delay, initial_delay · factor^(n−2))`; nothing for the first restart.
///
/// The power is taken step by step and left as soon as it cannot change the result any more: at `max_delay`
/// when it grows, at a fixed point when it does not. Even a factor of 1.001 gets there within 70,000 steps
/// from one nanosecond.
pub(super) fn base_delay(curve: &RestartCurve, n: u32) -> Duration {
    /// So many bits below the nanosecond that thousands of roundings stay below it.
    const FRACTION_BITS: u32 = 32;
    if n < 2 {
        return Duration::ZERO;
    }
    let fixed = |wait: Duration| wait.as_nanos().min(WAIT_NANOS_MAX) << FRACTION_BITS;
    let (factor, max) = (u128::from(curve.factor_milli), fixed(curve.max_delay));
    let mut wait = fixed(curve.initial_delay);
    for _ in 2..n {
        // 63 bits of nanoseconds, 32 of fraction, 32 of factor: a growing wait was below the maximum before,
        // a shrinking one only gets smaller.
        let next = wait * factor / 1000;
        if (factor >= 1000 && wait >= max) || next == wait {
            break;
        }
        wait = next;
    }
    from_nanos(wait.min(max) >> FRACTION_BITS)
}

fn from_nanos(nanos: u128) -> Duration {
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(initial: u64, factor_milli: u32, max: u64, jitter_milli: u32) -> RestartCurve {
        RestartCurve {
            initial_delay: Duration::from_millis(initial),
            factor_milli,
            max_delay: Duration::from_millis(max),
            jitter_milli,
            ..RestartCurve::default()
        }
    }

    fn millis(curve: &RestartCurve, restarts: impl IntoIterator<Item = u32>) -> Vec<u128> {
        restarts.into_iter().map(|n| delay(curve, n, &mut Random::new(7, 0)).as_millis()).collect()
    }

    #[test]
    fn the_default_curve_without_jitter_is_the_contract_s_to_the_millisecond() {
        let curve = RestartCurve { jitter_milli: 0, ..RestartCurve::default() };
        let expected = [0, 1000, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000];
        assert_eq!(millis(&curve, 1..=9), expected);
    }

    #[test]
    fn a_fractional_factor_is_kept_to_the_millisecond() {
        assert_eq!(millis(&curve(100, 1500, 1000, 0), 1..=9), [0, 100, 150, 225, 337, 506, 759, 1000, 1000]);
    }

    #[test]
    fn a_shrinking_curve_is_cut_by_the_maximum_before_it_shrinks_below() {
        assert_eq!(millis(&curve(100, 500, 60, 0), 2..=5), [60, 50, 25, 12]);
    }

    #[test]
    fn no_restart_number_and_no_factor_overflows() {
        let far = [3, 1000, u32::MAX];
        assert_eq!(millis(&curve(1, u32::MAX, 60_000, 0), far), [60_000; 3]);
        assert_eq!(millis(&curve(5, 1000, 60_000, 0), far), [5; 3]);
        assert_eq!(millis(&curve(5, 0, 60_000, 0), far), [0; 3]);
        let endless = RestartCurve {
            initial_delay: Duration::MAX,
            max_delay: Duration::MAX,
            ..curve(0, u32::MAX, 0, 1000)
        };
        for n in far {
            assert!(delay(&endless, n, &mut Random::new(1, 1)).as_nanos() <= 2 * WAIT_NANOS_MAX);
        }
        let slow = RestartCurve {
            initial_delay: Duration::from_micros(1),
            max_delay: Duration::MAX,
            ..curve(0, 1001, 0, 0)
        };
        assert_eq!(base_delay(&slow, u32::MAX).as_nanos(), WAIT_NANOS_MAX);
    }

    #[test]
    fn jitter_spreads_over_its_whole_range_and_never_beyond() {
        let curve = curve(1000, 2000, 1000, 100);
        let mut random = Random::new(3, 0);
        let waits: Vec<_> = (0..2000).map(|_| delay(&curve, 5, &mut random).as_millis()).collect();
        let (least, most) = (waits.iter().min().unwrap(), waits.iter().max().unwrap());
        assert!((900..=902).contains(least) && (1098..=1100).contains(most), "{least}..{most}");
    }
}
