//! A node with its path and the report: what the checkers read fields through, one typed accessor per kind.

use std::ops::RangeInclusive;

use super::nearest::nearest;
use super::node::{Node, Position, Value};
use super::path;
use super::report::Report;
use super::scalar::{Kind, Scalar, quoted};

/// One node of the manifest, ready to be read as what it should be.
#[derive(Debug, Clone)]
pub(crate) struct Cursor<'a> {
    pub(crate) node: &'a Node,
    pub(crate) path: String,
    report: &'a Report,
}

impl<'a> Cursor<'a> {
    pub(crate) fn root(node: &'a Node, report: &'a Report) -> Self {
        Self { node, path: String::new(), report }
    }

    /// Reports a mistake in this value.
    pub(crate) fn error(&self, message: impl Into<String>) {
        self.report.add(self.node.position, &self.path, message);
    }

    /// Reports a mistake in this value's key.
    pub(crate) fn error_at(&self, position: Position, message: impl Into<String>) {
        self.report.add(position, &self.path, message);
    }

    fn expected(&self, what: &str, hint: &str) {
        if !matches!(self.node.value, Value::Refused) {
            self.error(format!("expected {what}, found {}{hint}", self.node.found()));
        }
    }

    pub(crate) fn mapping(&self) -> Option<Mapping<'a>> {
        let Value::Mapping(_) = &self.node.value else {
            self.expected("a mapping", "");
            return None;
        };
        let layer = Layer { cursor: self.clone(), asked: Vec::new(), named: Vec::new() };
        Some(Mapping { outer: layer, inner: None })
    }

    /// The values of a mapping whose keys are free, with each key's position.
    pub(crate) fn entries(&self) -> Vec<(&'a str, Position, Cursor<'a>)> {
        let Value::Mapping(entries) = &self.node.value else {
            self.expected("a mapping", "");
            return Vec::new();
        };
        let report = self.report;
        let entry = |entry: &'a super::node::Entry| {
            let path = path::key(&self.path, &entry.key);
            (entry.key.as_str(), entry.position, Cursor { node: &entry.node, path, report })
        };
        entries.iter().map(entry).collect()
    }

    /// The items of a list of at most `max`.
    pub(crate) fn items(&self, max: usize) -> Vec<Cursor<'a>> {
        let Value::Sequence(nodes) = &self.node.value else {
            self.expected("a list", "");
            return Vec::new();
        };
        if nodes.len() > max {
            self.error(format!("{} items are too many: the limit is {max}", nodes.len()));
            return Vec::new();
        }
        let report = self.report;
        let item = |(i, node)| Cursor { node, path: path::index(&self.path, i), report };
        nodes.iter().enumerate().map(item).collect()
    }

    pub(crate) fn scalar(&self, what: &str) -> Option<&'a Scalar> {
        if let Value::Scalar(scalar) = &self.node.value {
            return Some(scalar);
        }
        self.expected(what, "");
        None
    }

    pub(crate) fn string(&self) -> Option<&'a str> {
        self.string_of("a string")
    }

    /// A string that `what` names in diagnostics.
    pub(crate) fn string_of(&self, what: &str) -> Option<&'a str> {
        let scalar = self.scalar(what)?;
        match scalar.kind() {
            Kind::Text if scalar.text.contains('\0') => {
                self.error("a string must not hold a NUL character");
                None
            }
            Kind::Text => Some(&scalar.text),
            Kind::Null => {
                self.expected(what, "");
                None
            }
            Kind::Bool(_) | Kind::Integer | Kind::Float => {
                self.expected(what, "; put it in quotes");
                None
            }
        }
    }

    /// The text of a scalar of any kind: a duration, a size, a name that may look like a number.
    pub(crate) fn scalar_text(&self, what: &str) -> Option<&'a str> {
        let scalar = self.scalar(what)?;
        if scalar.is_null() {
            self.expected(what, "");
            return None;
        }
        Some(&scalar.text)
    }

    /// The text of a scalar; nothing is reported when it is something else.
    pub(crate) fn node_text(&self) -> Option<&'a str> {
        match &self.node.value {
            Value::Scalar(scalar) => Some(&scalar.text),
            Value::Sequence(_) | Value::Mapping(_) | Value::Refused => None,
        }
    }

    pub(crate) fn boolean(&self) -> Option<bool> {
        let what = "true or false";
        let scalar = self.scalar(what)?;
        match scalar.kind() {
            Kind::Bool(value) => Some(value),
            Kind::Text if matches!(scalar.text.as_str(), "true" | "false") => {
                self.expected(what, "; remove the quotes");
                None
            }
            Kind::Null | Kind::Integer | Kind::Float | Kind::Text => {
                self.expected(what, "");
                None
            }
        }
    }

    /// A whole number within `range`.
    pub(crate) fn integer<T>(&self, range: RangeInclusive<T>) -> Option<T>
    where
        T: TryFrom<i64> + PartialOrd + std::fmt::Display,
    {
        let what = "a whole number";
        let scalar = self.scalar(what)?;
        match scalar.kind() {
            Kind::Integer => {}
            Kind::Text if !scalar.text.is_empty() && scalar.text.bytes().all(|b| b.is_ascii_digit()) => {
                self.expected(what, "; remove the quotes");
                return None;
            }
            Kind::Null | Kind::Bool(_) | Kind::Float | Kind::Text => {
                self.expected(what, "");
                return None;
            }
        }
        let digits = scalar.text.trim_start_matches(['-', '+']);
        if digits.len() > 1 && digits.starts_with('0') && digits.bytes().all(|b| b.is_ascii_digit()) {
            let decimal = digits.trim_start_matches('0');
            let message = format!("{digits} reads as octal in YAML 1.1; write {decimal} or 0o{decimal}");
            self.error(message);
            return None;
        }
        let parsed = match (scalar.text.strip_prefix("0x"), scalar.text.strip_prefix("0o")) {
            (Some(hex), _) => i64::from_str_radix(hex, 16),
            (_, Some(octal)) => i64::from_str_radix(octal, 8),
            (None, None) => scalar.text.parse::<i64>(),
        };
        let number = parsed.ok().and_then(|n| T::try_from(n).ok()).filter(|n| range.contains(n));
        if number.is_none() {
            let (low, high) = (range.start(), range.end());
            self.error(format!("expected a whole number from {low} to {high}, found {}", self.node.found()));
        }
        number
    }

    /// A TCP port.
    pub(crate) fn port(&self) -> Option<u16> {
        self.integer(1..=u16::MAX)
    }

    /// One of a few words.
    pub(crate) fn word<T: Copy>(&self, words: &[(&'static str, T)]) -> Option<T> {
        let text = self.string()?;
        if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
            return Some(*value);
        }
        let all: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        let hint = nearest(text, all.iter().copied()).map(|near| format!("; did you mean {near}?"));
        let message = format!("expected one of {}, found {}", all.join(", "), quoted(text));
        self.error(message + &hint.unwrap_or_default());
        None
    }

    /// Passes the value of a parse on, or reports why it failed.
    pub(crate) fn checked<T>(&self, result: Result<T, String>) -> Option<T> {
        result.map_err(|message| self.error(message)).ok()
    }
}

/// A mapping whose fields are known: those that were asked for, in one or two layers.
///
/// The second layer is the vendor's form of a plugin, which has the container's fields under a `spec` of its
/// own.
#[derive(Debug)]
pub(crate) struct Mapping<'a> {
    outer: Layer<'a>,
    inner: Option<Layer<'a>>,
}

#[derive(Debug)]
struct Layer<'a> {
    cursor: Cursor<'a>,
    asked: Vec<&'static str>,
    /// Keys that were asked for by their text.
    named: Vec<String>,
}

impl<'a> Layer<'a> {
    fn take(&mut self, name: &'static str) -> Option<Cursor<'a>> {
        self.asked.push(name);
        let node = self.cursor.node.get(name)?;
        let path = path::key(&self.cursor.path, name);
        // A null means the same as no field, as in Kubernetes.
        (!node.is_null()).then_some(Cursor { node, path, report: self.cursor.report })
    }

    fn report_unknown(&self) {
        let Value::Mapping(entries) = &self.cursor.node.value else { return };
        for entry in entries
            .iter()
            .filter(|entry| !self.asked.contains(&entry.key.as_str()) && !self.named.contains(&entry.key))
        {
            let report = self.cursor.report;
            let hint = if report.is_full() { None } else { nearest(&entry.key, self.asked.iter().copied()) };
            let hint = hint.map_or_else(String::new, |near| format!("; did you mean {near}?"));
            let path = path::key(&self.cursor.path, &entry.key);
            report.add(entry.position, &path, format!("unknown field {}{hint}", quoted(&entry.key)));
        }
    }
}

impl<'a> Mapping<'a> {
    /// The field `name`, in either layer.
    pub(crate) fn field(&mut self, name: &'static str) -> Option<Cursor<'a>> {
        let outer = self.outer.take(name);
        let inner = self.inner.as_mut().and_then(|layer| layer.take(name));
        if let (Some(outer), Some(inner)) = (&outer, &inner) {
            inner.error(format!("given twice: here and at {}", outer.path));
        }
        outer.or(inner)
    }

    /// The field with a key of the text, to be reported on: it is known from here on.
    pub(crate) fn named(&mut self, key: &str) -> Cursor<'a> {
        self.outer.named.push(key.to_owned());
        let cursor = &self.outer.cursor;
        let node = cursor.node.get(key).unwrap_or(cursor.node);
        Cursor { node, path: path::key(&cursor.path, key), report: cursor.report }
    }

    /// The field `name`, in the outer layer only.
    pub(crate) fn outer(&mut self, name: &'static str) -> Option<Cursor<'a>> {
        self.outer.take(name)
    }

    /// The field `name`, which must be there.
    pub(crate) fn required(&mut self, name: &'static str) -> Option<Cursor<'a>> {
        let field = self.field(name);
        if field.is_none() {
            self.outer.cursor.error(format!("the field {name} is required"));
        }
        field
    }

    /// Opens the second layer under the field `name`.
    pub(crate) fn nest(&mut self, name: &'static str) {
        let Some(cursor) = self.outer.take(name) else { return };
        self.inner = cursor.mapping().map(|mapping| mapping.outer);
    }

    /// Reports every field that nobody asked for.
    pub(crate) fn finish(self) {
        self.outer.report_unknown();
        if let Some(inner) = self.inner {
            inner.report_unknown();
        }
    }
}
