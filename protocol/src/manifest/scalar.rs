//! What a scalar means under the core schema of YAML 1.2 (chapter 10.3), decided from its text and style.
//!
//! So `no` is a string, `1e3` a number, and `0777` a decimal number, which integer fields refuse because
//! YAML 1.1 reads it as an octal one.

/// A scalar as written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Scalar {
    /// The text after escapes and folding.
    pub(crate) text: String,
    /// Neither quoted nor a block scalar.
    pub(crate) plain: bool,
}

/// What the core schema makes of a scalar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Null,
    Bool(bool),
    Integer,
    Float,
    Text,
}

impl Scalar {
    pub(crate) fn kind(&self) -> Kind {
        if !self.plain {
            return Kind::Text;
        }
        match self.text.as_str() {
            "" | "~" | "null" | "Null" | "NULL" => Kind::Null,
            "true" | "True" | "TRUE" => Kind::Bool(true),
            "false" | "False" | "FALSE" => Kind::Bool(false),
            text if is_integer(text) => Kind::Integer,
            text if is_float(text) => Kind::Float,
            _ => Kind::Text,
        }
    }

    pub(crate) fn is_null(&self) -> bool {
        self.kind() == Kind::Null
    }

    /// What was found, in the words of a diagnostic.
    pub(crate) fn found(&self) -> String {
        match self.kind() {
            Kind::Null => "nothing".to_owned(),
            Kind::Bool(value) => format!("the boolean {value}"),
            Kind::Integer | Kind::Float => format!("the number {}", shown(&self.text, false)),
            Kind::Text => format!("the string {}", quoted(&self.text)),
        }
    }
}

/// Text from outside for a diagnostic: quoted, escaped and cut.
pub(crate) fn quoted(text: &str) -> String {
    shown(text, true)
}

fn shown(text: &str, quotes: bool) -> String {
    /// Longer than every name the manifest may hold; the rest of a wrong value helps nobody.
    const CHARS_MAX: usize = 64;
    let cut: String = text.chars().take(CHARS_MAX).collect();
    let more = if cut.len() < text.len() { "…" } else { "" };
    let escaped = cut.escape_debug();
    if quotes { format!("\"{escaped}{more}\"") } else { format!("{escaped}{more}") }
}

fn is_integer(text: &str) -> bool {
    let all = |digits: &str, is: fn(&u8) -> bool| !digits.is_empty() && digits.as_bytes().iter().all(is);
    if let Some(octal) = text.strip_prefix("0o") {
        return all(octal, |b| matches!(b, b'0'..=b'7'));
    }
    if let Some(hex) = text.strip_prefix("0x") {
        return all(hex, u8::is_ascii_hexdigit);
    }
    all(unsigned(text), u8::is_ascii_digit)
}

fn is_float(text: &str) -> bool {
    if matches!(text, ".nan" | ".NaN" | ".NAN") {
        return true;
    }
    let rest = unsigned(text);
    if matches!(rest, ".inf" | ".Inf" | ".INF") {
        return true;
    }
    let (mantissa, exponent) = match rest.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(unsigned(exponent))),
        None => (rest, None),
    };
    let digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let mantissa_holds = digits(whole) && digits(fraction) && !(whole.is_empty() && fraction.is_empty());
    mantissa_holds && exponent.is_none_or(|e| !e.is_empty() && digits(e))
}

fn unsigned(text: &str) -> &str {
    text.strip_prefix(['-', '+']).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_core_schema_decides_what_a_plain_scalar_is() {
        let kind = |text: &str| Scalar { text: text.to_owned(), plain: true }.kind();
        for (texts, expected) in [
            (&["", "~", "null", "NULL"][..], Kind::Null),
            (&["true", "True", "TRUE"], Kind::Bool(true)),
            (&["false", "FALSE"], Kind::Bool(false)),
            (&["0", "8080", "-1", "+5", "0777", "0o777", "0xfF"], Kind::Integer),
            (&["1.", ".5", "1e3", "-1.5E-3", ".inf", "-.INF", ".nan"], Kind::Float),
            (
                &["no", "yes", "on", "off", "y", "tRue", "1_000", "0o8", "0x", "1e", ".", "-", "e3", "1:30"],
                Kind::Text,
            ),
        ] {
            for text in texts {
                assert_eq!(kind(text), expected, "{text}");
            }
        }
    }

    #[test]
    fn a_quoted_scalar_is_always_text() {
        for text in ["", "null", "true", "8080", "1e3"] {
            assert_eq!(Scalar { text: text.to_owned(), plain: false }.kind(), Kind::Text, "{text}");
        }
    }

    #[test]
    fn a_shown_text_is_cut_and_cannot_move_the_cursor() {
        assert_eq!(quoted("a\u{1b}[2J\"b"), r#""a\u{1b}[2J\"b""#);
        assert_eq!(quoted(&"x".repeat(100)), format!("\"{}…\"", "x".repeat(64)));
    }
}
