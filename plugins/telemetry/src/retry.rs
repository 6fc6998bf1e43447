//! The retry rules of the OTLP specification, without I/O or clock.

use std::time::{Duration, UNIX_EPOCH};

use enclave_protocol::timestamp::Timestamp;
use hyper::StatusCode;

/// Default of the OTLP specification, for connecting, sending and reading the answer together.
pub(crate) const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);
/// First pause after a status that may be tried again.
const STATUS_INITIAL: Duration = Duration::from_secs(1);
/// Longest such pause that we choose ourselves: the collector is there and has asked for less.
const STATUS_MAX: Duration = Duration::from_mins(1);
/// First pause when nobody answers.
const UNREACHABLE_INITIAL: Duration = Duration::from_millis(250);
/// Longest such pause: within five seconds of the way's return the next export arrives. A connection that
/// fails costs the collector nothing, so that waiting longer would spare nobody.
const UNREACHABLE_MAX: Duration = Duration::from_secs(4);
/// Longest pause that a collector may ask for; more would be silence by request.
const RETRY_AFTER_MAX: Duration = Duration::from_mins(5);
/// For how long the collector may put off one batch: Prometheus' look-back.
pub(crate) const PUT_OFF_MAX: Duration = Duration::from_mins(5);

/// How long the pauses between attempts are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    /// The pause after so many statuses that may be tried again, for a random number in 0.0–1.0.
    pub(crate) status: fn(u32, f64) -> Duration,
    /// The pause after so many attempts without an answer.
    pub(crate) unreachable: fn(u32, f64) -> Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { status: after_status, unreachable: after_silence }
    }
}

/// What a status says about the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It arrived; the body may still reject points.
    Accepted,
    /// It may be sent again.
    Retry,
    /// It must not be sent again.
    Refused,
}

/// 429, 502, 503 and 504 alone may be tried again; every other status is final.
pub(crate) fn verdict(status: StatusCode) -> Verdict {
    match status.as_u16() {
        200..=299 => Verdict::Accepted,
        429 | 502 | 503 | 504 => Verdict::Retry,
        _ => Verdict::Refused,
    }
}

/// Reads a `Retry-After` header: seconds, or an HTTP date.
pub(crate) fn retry_after(value: &str, now: Timestamp) -> Option<Duration> {
    let value = value.trim();
    let wait = if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) {
        // More digits than a u64 holds is still "very long".
        value.parse().map_or(RETRY_AFTER_MAX, Duration::from_secs)
    } else {
        let date = httpdate::parse_http_date(value).ok()?;
        date.duration_since(UNIX_EPOCH + Duration::from_nanos(now.0)).unwrap_or_default()
    };
    Some(wait.min(RETRY_AFTER_MAX))
}

/// The pause after the `failures`-th such status in a row: doubling, and spread by `chance` in 0.0–1.0 over
/// its upper half.
fn after_status(failures: u32, chance: f64) -> Duration {
    doubled(STATUS_INITIAL, STATUS_MAX, failures, chance)
}

/// The pause after the `failures`-th attempt in a row that nobody answered.
fn after_silence(failures: u32, chance: f64) -> Duration {
    doubled(UNREACHABLE_INITIAL, UNREACHABLE_MAX, failures, chance)
}

/// `initial` doubled per failure after the first, at most `max`, times 0.5–1.0.
pub(crate) fn doubled(initial: Duration, max: Duration, failures: u32, chance: f64) -> Duration {
    let factor = 2u32.saturating_pow(failures.saturating_sub(1));
    initial.saturating_mul(factor).min(max).mul_f64(0.5 + chance.clamp(0.0, 1.0) / 2.0)
}

/// A random number in 0.0–1.0, so that enclaves do not retry in step.
pub(crate) fn chance() -> f64 {
    // Without an entropy source (a VM without virtio-rng) a fixed middle is as good as it gets.
    getrandom::u32().map_or(0.5, |n| f64::from(n) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_four_transient_statuses_alone_are_retried() {
        for code in 200..600 {
            let expected = match code {
                200..=299 => Verdict::Accepted,
                429 | 502 | 503 | 504 => Verdict::Retry,
                _ => Verdict::Refused,
            };
            assert_eq!(verdict(StatusCode::from_u16(code).unwrap()), expected, "{code}");
        }
        assert_eq!(verdict(StatusCode::INTERNAL_SERVER_ERROR), Verdict::Refused);
        assert_eq!(verdict(StatusCode::MOVED_PERMANENTLY), Verdict::Refused);
    }

    #[test]
    fn retry_after_is_read_in_both_its_forms_and_bounded() {
        // 2026-11-22T03:00:00Z was a Sunday.
        let now = Timestamp(1_795_316_400_000_000_000);
        let read = |value| retry_after(value, now).map(|wait| wait.as_secs());
        assert_eq!(read("7"), Some(7));
        assert_eq!(read(" 0 "), Some(0));
        assert_eq!(read("Sun, 22 Nov 2026 03:00:30 GMT"), Some(30));
        assert_eq!(read("Sun, 22 Nov 2026 02:59:00 GMT"), Some(0));
        assert_eq!(read("86400"), Some(300));
        assert_eq!(read("99999999999999999999999"), Some(300));
        assert_eq!(read("soon"), None);
        assert_eq!(read("-1"), None);
        assert_eq!(read(""), None);
    }

    #[test]
    fn backoff_doubles_up_to_its_bound_and_keeps_at_least_half() {
        let millis = |failures, chance| after_status(failures, chance).as_millis();
        assert_eq!([1, 2, 3, 6, 7, 99].map(|n| millis(n, 1.0)), [1000, 2000, 4000, 32_000, 60_000, 60_000]);
        assert_eq!([1, 2, 3, 6, 7, 99].map(|n| millis(n, 0.0)), [500, 1000, 2000, 16_000, 30_000, 30_000]);
        let millis = |failures, chance| after_silence(failures, chance).as_millis();
        assert_eq!([1, 2, 3, 5, 99].map(|n| millis(n, 1.0)), [250, 500, 1000, 4000, 4000]);
    }

    #[test]
    fn chance_stays_in_its_range() {
        assert!((0..100).all(|_| (0.0..=1.0).contains(&chance())));
    }
}
