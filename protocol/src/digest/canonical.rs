//! RFC 8785 (JSON Canonicalization Scheme) for values without fractions.

use std::fmt::Write as _;

/// A JSON value that has one canonical text. Numbers are whole and below 2^53, where the RFC's ECMAScript
/// format is plain digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Json {
    Null,
    Bool(bool),
    Number(u64),
    Text(String),
    List(Vec<Json>),
    Object(Vec<(String, Json)>),
}

impl Json {
    pub(super) fn text(text: &str) -> Self {
        Self::Text(text.to_owned())
    }

    pub(super) fn texts<'t>(texts: impl IntoIterator<Item = &'t str>) -> Self {
        Self::List(texts.into_iter().map(Self::text).collect())
    }

    /// An object of fields whose names are ours.
    pub(super) fn object<'n>(fields: impl IntoIterator<Item = (&'n str, Json)>) -> Self {
        Self::Object(fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }

    /// The value, or null.
    pub(super) fn option<T>(value: Option<T>, to: impl FnOnce(T) -> Self) -> Self {
        value.map_or(Self::Null, to)
    }

    /// The canonical text.
    pub(super) fn canonical(&self) -> String {
        let mut out = String::new();
        self.write(&mut out);
        out
    }

    fn write(&self, out: &mut String) {
        match self {
            Self::Null => out.push_str("null"),
            Self::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
            Self::Number(number) => {
                debug_assert!(*number < 1 << 53, "a double would round {number}");
                write!(out, "{number}").expect("invariant: a String takes every write");
            }
            Self::Text(text) => write_text(text, out),
            Self::List(items) => {
                out.push('[');
                for (i, item) in items.iter().enumerate() {
                    if i > 0 {
                        out.push(',');
                    }
                    item.write(out);
                }
                out.push(']');
            }
            Self::Object(fields) => {
                let mut sorted: Vec<&(String, Json)> = fields.iter().collect();
                // By UTF-16 code units, which differs from the order of UTF-8 above U+FFFF.
                sorted.sort_by(|(a, _), (b, _)| a.encode_utf16().cmp(b.encode_utf16()));
                out.push('{');
                for (i, (name, value)) in sorted.into_iter().enumerate() {
                    if i > 0 {
                        out.push(',');
                    }
                    write_text(name, out);
                    out.push(':');
                    value.write(out);
                }
                out.push('}');
            }
        }
    }
}

fn write_text(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{8}' => out.push_str("\\b"),
            '\t' => out.push_str("\\t"),
            '\n' => out.push_str("\\n"),
            '\u{c}' => out.push_str("\\f"),
            '\r' => out.push_str("\\r"),
            c if c < ' ' => {
                write!(out, "\\u{:04x}", u32::from(c)).expect("invariant: a String takes every write");
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 8785, section 3.2.2 and 3.2.4: the string of the sample object, as UTF-8 bytes.
    #[test]
    fn strings_are_escaped_as_the_rfc_samples_are() {
        let sample = "\u{20ac}$\u{f}\u{a}A'\u{42}\u{22}\u{5c}\\\"/";
        assert_eq!(Json::text(sample).canonical(), "\"\u{20ac}$\\u000f\\nA'B\\\"\\\\\\\\\\\"/\"");
        assert_eq!(
            Json::text("\u{8}\u{9}\u{a}\u{c}\u{d}\u{0}\u{1f}\u{7f}\u{2028}").canonical(),
            "\"\\b\\t\\n\\f\\r\\u0000\\u001f\u{7f}\u{2028}\""
        );
    }

    /// RFC 8785, section 3.2.3: the order of property names.
    #[test]
    fn names_are_sorted_by_utf16_code_units() {
        let names = ["\u{20ac}", "\r", "\u{fb33}", "1", "\u{1f600}", "\u{80}", "\u{f6}"];
        let object = Json::Object(names.map(|name| (name.to_owned(), Json::Null)).into());
        assert_eq!(
            object.canonical(),
            "{\"\\r\":null,\"1\":null,\"\u{80}\":null,\"\u{f6}\":null,\"\u{20ac}\":null,\"\u{1f600}\":null,\
             \"\u{fb33}\":null}"
        );
    }

    #[test]
    fn literals_numbers_and_nesting_have_no_spaces() {
        let value = Json::object([
            ("b", Json::List(vec![Json::Bool(true), Json::Bool(false), Json::Null])),
            ("a", Json::object([("", Json::Number((1 << 53) - 1)), ("z", Json::Number(0))])),
        ]);
        assert_eq!(value.canonical(), r#"{"a":{"":9007199254740991,"z":0},"b":[true,false,null]}"#);
    }

    /// The writer agrees with another one on every text.
    #[test]
    fn text_reads_back_as_itself() {
        let all: String = (0..=0x2ff_u32).chain([0xfffd, 0x1_f600]).filter_map(char::from_u32).collect();
        assert_eq!(serde_json::from_str::<String>(&Json::text(&all).canonical()).unwrap(), all);
    }
}
