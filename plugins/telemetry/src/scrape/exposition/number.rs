//! Numbers as Go's `strconv.ParseFloat` reads them, less what Prometheus takes away (hexadecimal,
//! underscores).

/// The most digits that an `f64` holds exactly.
const EXACT_DIGITS: usize = 15;

/// A value. Every NaN becomes the ordinary one: one of its payloads means "stale" to Prometheus.
pub(crate) fn value(text: &str) -> Option<f64> {
    let bytes = text.as_bytes();
    if bytes.len() <= EXACT_DIGITS && !bytes.is_empty() && bytes.iter().all(u8::is_ascii_digit) {
        let number = bytes.iter().fold(0_u64, |number, digit| number * 10 + u64::from(digit - b'0'));
        return Some(number as f64);
    }
    let number: f64 = text.parse().ok()?;
    if number.is_nan() {
        // Go knows no signed NaN.
        return text.starts_with(['n', 'N']).then_some(f64::NAN);
    }
    let says_infinite = || text.trim_start_matches(['+', '-']).starts_with(['i', 'I']);
    // An overflow is an error in Go.
    (number.is_finite() || says_infinite()).then_some(number)
}

/// A time in seconds, as milliseconds.
pub(super) fn seconds(text: &str) -> Option<i64> {
    let seconds = value(text).filter(|seconds| seconds.is_finite())?;
    #[expect(clippy::cast_possible_truncation, reason = "a cast of a float saturates")]
    Some((seconds * 1000.0).round() as i64)
}

/// A time in whole milliseconds.
pub(super) fn milliseconds(text: &str) -> Option<i64> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}
