//! Parameters from a request's query: each is optional or not, and has bounds.

use std::ops::RangeInclusive;

/// A request's query, split and unescaped.
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    /// Reads `a=1&b=two%20words`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let pairs = text.split('&').filter(|pair| !pair.is_empty());
        pairs
            .map(|pair| {
                let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                Ok((unescape(key)?, unescape(value)?))
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// The text of `key`.
    pub(crate) fn text(&self, key: &str) -> Result<&str, String> {
        let found = self.0.iter().find(|(name, _)| name == key);
        found.map(|(_, value)| value.as_str()).ok_or_else(|| format!("missing parameter {key:?}"))
    }

    /// The number `key`, or `default` where it is not given.
    pub(crate) fn number(&self, key: &str, default: u32, bounds: RangeInclusive<u32>) -> Result<u32, String> {
        if !self.0.iter().any(|(name, _)| name == key) {
            return Ok(default);
        }
        let number = self.text(key)?.parse().ok().filter(|number| bounds.contains(number));
        number.ok_or_else(|| format!("{key} must be a number from {} to {}", bounds.start(), bounds.end()))
    }
}

fn unescape(text: &str) -> Result<String, String> {
    let malformed = || format!("malformed escape in {text:?}");
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || rest.next().and_then(|b| char::from(b).to_digit(16));
                let (high, low) = digit().zip(digit()).ok_or_else(malformed)?;
                u8::try_from(high * 16 + low).map_err(|_| malformed())?
            }
            other => other,
        });
    }
    String::from_utf8(bytes).map_err(|_| malformed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_split_and_unescaped() {
        let query = Query::parse("ms=5&url=http%3A%2F%2Fa%3A1/b+c&flag").unwrap();
        assert_eq!(query.text("url").unwrap(), "http://a:1/b c");
        assert_eq!(query.text("flag").unwrap(), "");
        assert_eq!(query.number("ms", 1, 0..=9), Ok(5));
        assert_eq!(query.number("other", 1, 0..=9), Ok(1));
    }

    #[test]
    fn what_is_missing_malformed_or_out_of_bounds_is_named() {
        let query = Query::parse("ms=10&n=x").unwrap();
        assert!(query.number("ms", 1, 0..=9).unwrap_err().contains("ms must be a number from 0 to 9"));
        assert!(query.number("n", 1, 0..=9).is_err());
        assert!(query.text("url").unwrap_err().contains("url"));
        for bad in ["a=%", "a=%4", "a=%zz", "a=%ff"] {
            assert!(Query::parse(bad).is_err(), "{bad}");
        }
    }
}
