//! Durations and sizes in Prometheus' words.

use std::time::Duration;

use crate::manifest::scalar::quoted;

/// Units of a duration, largest first, in milliseconds.
const TIMES: [(&str, u64); 7] = [
    ("y", 365 * 24 * 3_600_000),
    ("w", 7 * 24 * 3_600_000),
    ("d", 24 * 3_600_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1000),
    ("ms", 1),
];
/// Units of a size. Prometheus reads both forms as powers of two.
const SIZES: [(&str, u64); 8] = [
    ("B", 1),
    ("KB", 1 << 10),
    ("KiB", 1 << 10),
    ("MB", 1 << 20),
    ("MiB", 1 << 20),
    ("GB", 1 << 30),
    ("GiB", 1 << 30),
    ("TB", 1 << 40),
];

/// Reads `15s`, `1m30s`, `1h`: each unit once, from the largest to the smallest.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{} is not a valid duration: 15s, 1m30s, 1h", quoted(text));
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut left = text;
    let mut units = TIMES.iter();
    let mut total = 0_u64;
    while !left.is_empty() {
        let (number, rest) = number(left).ok_or_else(wrong)?;
        let letters = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
        let (unit, rest) = rest.split_at(letters);
        let (_, millis) = units.find(|(word, _)| *word == unit).ok_or_else(wrong)?;
        total = number.checked_mul(*millis).and_then(|part| total.checked_add(part)).ok_or_else(wrong)?;
        left = rest;
    }
    if text.is_empty() { Err(wrong()) } else { Ok(Duration::from_millis(total)) }
}

/// Reads `10MiB`, `10MB`, `512KB`, `0`.
pub(super) fn size(text: &str) -> Result<u64, String> {
    let wrong = || format!("{} is not a valid size: 10MiB, 512KB", quoted(text));
    let (number, unit) = number(text).ok_or_else(wrong)?;
    if number == 0 && unit.is_empty() {
        return Ok(0);
    }
    let (_, bytes) = SIZES.iter().find(|(word, _)| *word == unit).ok_or_else(wrong)?;
    number.checked_mul(*bytes).ok_or_else(wrong)
}

fn number(text: &str) -> Option<(u64, &str)> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, rest) = text.split_at(digits);
    Some((number.parse().ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_prometheus_reads_them() {
        for (text, millis) in [
            ("15s", 15_000),
            ("1m30s", 90_000),
            ("1h", 3_600_000),
            ("250ms", 250),
            ("0", 0),
            ("1d12h", 129_600_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in [
            "",
            "15",
            "s",
            "1s1m",
            "1s1s",
            "-1s",
            "1.5s",
            "1 s",
            "15S",
            "99999999999999999999s",
            "1000000000000y",
        ] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_powers_of_two_in_both_spellings() {
        for (text, bytes) in [("10MiB", 10 << 20), ("10MB", 10 << 20), ("1KB", 1024), ("0", 0), ("5B", 5)] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "10", "MB", "1.5MB", "-1MB", "10 MB", "10mb", "99999999999999999TB"] {
            assert!(size(text).is_err(), "{text}");
        }
    }
}
