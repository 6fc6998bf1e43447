//! Kubernetes resource quantities: `500m`, `1.5`, `256Mi`, `1e9`.

use super::cursor::Cursor;
use super::scalar::quoted;

/// Largest whole number a quantity may stand for. RFC 8785 writes numbers as IEEE doubles, which are exact up
/// to here, and no enclave has 8 PiB.
pub const QUANTITY_MAX: u64 = (1 << 53) - 1;

/// Bytes, or another whole number.
pub(super) fn check_whole(cursor: &Cursor<'_>) -> Option<u64> {
    read(cursor, 1, "a whole number")
}

/// CPUs in thousandths.
pub(super) fn check_millis(cursor: &Cursor<'_>) -> Option<u64> {
    read(cursor, 1000, "a multiple of 1m")
}

fn read(cursor: &Cursor<'_>, scale: u32, what: &str) -> Option<u64> {
    // Quoted or not makes no difference to Kubernetes: `1`, `"1"` and `500m` are all quantities.
    let scalar = cursor.scalar("a quantity")?;
    cursor.checked(parse(&scalar.text, scale, what))
}

/// The quantity times `scale`, exactly.
fn parse(text: &str, scale: u32, what: &str) -> Result<u64, String> {
    let wrong = || format!("{} is no quantity: write for example 2, 500m, 256Mi or 1.5Gi", quoted(text));
    let number_len = text.bytes().take_while(|b| b.is_ascii_digit() || *b == b'.').count();
    let (number, suffix) = text.split_at(number_len);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') || number_len > 20 {
        return Err(wrong());
    }
    let (binary, tens) = unit(suffix).ok_or_else(wrong)?;
    let mantissa: i128 = format!("{whole}{fraction}").parse().map_err(|_| wrong())?;
    let tens = tens - i32::try_from(fraction.len()).map_err(|_| wrong())?;
    let too_large = || format!("{} is too large: at most {QUANTITY_MAX}", quoted(text));
    let scaled = mantissa.checked_mul(i128::from(scale) << binary).ok_or_else(too_large)?;
    let power = 10_i128.pow(tens.unsigned_abs());
    let value = if tens >= 0 {
        scaled.checked_mul(power).ok_or_else(too_large)?
    } else if scaled % power == 0 {
        scaled / power
    } else {
        return Err(format!("{} is finer than this field can be: {what}", quoted(text)));
    };
    u64::try_from(value).ok().filter(|value| *value <= QUANTITY_MAX).ok_or_else(too_large)
}

/// A suffix as bits to shift and decimal exponent.
fn unit(suffix: &str) -> Option<(u32, i32)> {
    Some(match suffix {
        "" => (0, 0),
        "m" => (0, -3),
        "k" => (0, 3),
        "M" => (0, 6),
        "G" => (0, 9),
        "T" => (0, 12),
        "P" => (0, 15),
        "E" => (0, 18),
        "Ki" => (10, 0),
        "Mi" => (20, 0),
        "Gi" => (30, 0),
        "Ti" => (40, 0),
        "Pi" => (50, 0),
        "Ei" => (60, 0),
        _ => {
            let exponent = suffix.strip_prefix(['e', 'E'])?;
            // Beyond this every value is too large or too fine; the bound keeps the power within an i128.
            let exponent: i32 = exponent.parse().ok().filter(|e: &i32| e.abs() <= 18)?;
            (0, exponent)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_exactly() {
        for (text, whole, millis) in [
            ("2", Some(2), Some(2000)),
            ("500m", None, Some(500)),
            ("0.5", None, Some(500)),
            ("1.5", None, Some(1500)),
            ("1.", Some(1), Some(1000)),
            (".5k", Some(500), Some(500_000)),
            ("0.0001", None, None),
            ("256Mi", Some(256 << 20), Some((256 << 20) * 1000)),
            ("1.5Gi", Some(3 << 29), Some((3 << 29) * 1000)),
            ("129M", Some(129_000_000), Some(129_000_000_000)),
            ("1e9", Some(1_000_000_000), Some(1_000_000_000_000)),
            ("1E3", Some(1000), Some(1_000_000)),
            ("1000m", Some(1), Some(1000)),
            ("8Pi", None, None),
            ("9007199254740991", Some(QUANTITY_MAX), None),
            ("9007199254740992", None, None),
            ("99999999999999999999Ei", None, None),
            ("1e99999999999", None, None),
            ("", None, None),
            (".", None, None),
            ("1.2.3", None, None),
            ("-1", None, None),
            ("1 Gi", None, None),
            ("1GB", None, None),
            ("Gi", None, None),
        ] {
            assert_eq!(parse(text, 1, "").ok(), whole, "{text} whole");
            assert_eq!(parse(text, 1000, "").ok(), millis, "{text} in thousandths");
        }
    }
}
