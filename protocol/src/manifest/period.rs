//! Durations as people write them: `500ms`, `1s`, `1m30s`, `1h`.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::cursor::Cursor;
use super::scalar::{Kind, quoted};

/// Longest period a field may hold, in milliseconds: a week.
pub(super) const PERIOD_MS_MAX: u32 = 7 * 24 * 3600 * 1000;

const EXPECTED: &str = "a duration such as \"1s\"";

const UNITS: [(&str, u32); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

/// Reads a period within `range`, in milliseconds.
pub(super) fn check(cursor: &Cursor<'_>, range: RangeInclusive<u32>) -> Option<Duration> {
    let scalar = cursor.scalar(EXPECTED)?;
    if matches!(scalar.kind(), Kind::Integer | Kind::Float) {
        cursor.error(format!("expected {EXPECTED}, found {}; add the unit", scalar.found()));
        return None;
    }
    let text = cursor.string_of(EXPECTED)?;
    let millis = cursor.checked(parse(text))?;
    if !range.contains(&millis) {
        let (low, high) = (shown(*range.start()), shown(*range.end()));
        cursor.error(format!("{} is out of range: {low} to {high}", quoted(text)));
        return None;
    }
    Some(Duration::from_millis(millis.into()))
}

/// Milliseconds of a text of whole numbers with units in falling order.
fn parse(text: &str) -> Result<u32, String> {
    let wrong = || format!("{} is no duration: write for example 500ms, 1s, 1m30s or 1h", quoted(text));
    let mut rest = text;
    let mut units = UNITS.iter();
    let mut millis: u32 = 0;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, tail) = rest.split_at(digits);
        let letters = tail.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (unit, tail) = tail.split_at(letters);
        // `find` consumes larger units, so that each unit stands once and in order.
        let (_, scale) = units.find(|(name, _)| *name == unit).ok_or_else(wrong)?;
        let part = number.parse::<u32>().map_err(|_| wrong())?.checked_mul(*scale).ok_or_else(wrong)?;
        millis = millis.checked_add(part).ok_or_else(wrong)?;
        rest = tail;
    }
    if text.is_empty() { Err(wrong()) } else { Ok(millis) }
}

/// A period in the largest units that hold it.
fn shown(mut millis: u32) -> String {
    let part = |(unit, scale)| {
        let count = millis / scale;
        millis %= scale;
        if count > 0 { format!("{count}{unit}") } else { String::new() }
    };
    let text: String = UNITS.into_iter().map(part).collect();
    if text.is_empty() { "0s".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_whole_numbers_with_units_in_falling_order() {
        for (text, expected) in [
            ("1s", Some(1000)),
            ("500ms", Some(500)),
            ("10m", Some(600_000)),
            ("1h", Some(3_600_000)),
            ("1m30s", Some(90_000)),
            ("1h1m1s1ms", Some(3_661_001)),
            ("0s", Some(0)),
            ("", None),
            ("1", None),
            ("s", None),
            ("1.5s", None),
            ("-1s", None),
            ("1 s", None),
            ("1s1m", None),
            ("1s1s", None),
            ("1d", None),
            ("99999999999h", None),
            ("4294967295h", None),
        ] {
            assert_eq!(parse(text).ok(), expected, "{text}");
        }
    }

    #[test]
    fn a_period_is_shown_as_it_is_written() {
        for text in ["10ms", "1s", "1m30s", "168h", "1h1m1s1ms"] {
            assert_eq!(shown(parse(text).unwrap()), text);
        }
        assert_eq!(shown(0), "0s");
    }
}
