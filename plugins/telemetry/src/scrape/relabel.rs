//! Prometheus' relabelling: rules that change, keep or drop a set of labels.

use std::borrow::Cow;

use enclave_protocol::scrape::{Action, Rule};
use regex::Regex;

use super::exposition::Label;

/// Longest value that a rule makes; a longer one leaves the label as it is. Rules that double a value would
/// otherwise outgrow any memory.
const VALUE_BYTES_MAX: usize = 64 << 10;
/// Largest compiled expression. The default of the crate is ten times as much, for each rule.
const REGEX_SIZE_MAX: usize = 1 << 20;

/// A rule with its expression compiled.
#[derive(Debug)]
pub(super) struct Compiled {
    rule: Rule,
    regex: Regex,
    /// The default expression, which matches everything and whose first group is everything.
    is_default: bool,
}

/// Compiles an expression as Prometheus does: the whole of the source must match, `.` matches a newline too.
pub(crate) fn compile(text: &str) -> Result<Regex, String> {
    let spelled = format!("^(?s:{})$", as_rust(text));
    let built = regex::RegexBuilder::new(&spelled).size_limit(REGEX_SIZE_MAX).build();
    built.map_err(|error| {
        // The crate draws a picture over several lines; its last one says what is wrong.
        let last = error.to_string().lines().last().unwrap_or_default().replace("error: ", "");
        format!("not a valid regular expression: {last}")
    })
}

/// The differences between RE2 and the crate: its classes of letters are ASCII, and in brackets `[`, `&` and
/// `~` are plain characters.
fn as_rust(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 16);
    let mut in_class = false;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match (chars.next(), in_class) {
                (Some('d'), true) => out.push_str("0-9"),
                (Some('w'), true) => out.push_str("0-9A-Za-z_"),
                (Some('s'), true) => out.push_str("\\t\\n\\f\\r "),
                (Some('d'), false) => out.push_str("[0-9]"),
                (Some('w'), false) => out.push_str("[0-9A-Za-z_]"),
                (Some('s'), false) => out.push_str("[\\t\\n\\f\\r ]"),
                (Some('D'), _) => out.push_str("[^0-9]"),
                (Some('W'), _) => out.push_str("[^0-9A-Za-z_]"),
                (Some('S'), _) => out.push_str("[^\\t\\n\\f\\r ]"),
                (Some('b'), false) => out.push_str("(?-u:\\b)"),
                (Some('z'), false) => out.push_str("\\z"),
                (Some(other), _) => out.extend(['\\', other]),
                (None, _) => out.push('\\'),
            },
            '[' if in_class && chars.peek() == Some(&':') => {
                // A named class: copied up to its end.
                out.push('[');
                for c in chars.by_ref() {
                    out.push(c);
                    if c == ']' {
                        break;
                    }
                }
            }
            '[' if in_class => out.push_str("\\["),
            '&' | '~' if in_class => out.extend(['\\', c]),
            '[' => {
                in_class = true;
                out.push('[');
                if chars.next_if_eq(&'^').is_some() {
                    out.push('^');
                }
                if chars.next_if_eq(&']').is_some() {
                    out.push_str("\\]");
                }
            }
            ']' => {
                in_class = false;
                out.push(']');
            }
            c => out.push(c),
        }
    }
    out
}

impl Compiled {
    pub(super) fn new(rule: &Rule) -> Result<Self, String> {
        Ok(Self { rule: rule.clone(), regex: compile(&rule.regex)?, is_default: rule.regex == "(.*)" })
    }

    pub(super) fn all(rules: &[Rule]) -> Result<Vec<Self>, String> {
        rules.iter().map(Self::new).collect()
    }

    fn matches(&self, text: &str) -> bool {
        self.is_default || self.regex.is_match(text)
    }

    /// The source labels' values, joined.
    fn source<'l>(&self, labels: &'l [Label<'_>]) -> Cow<'l, str> {
        let sources = self.rule.source_labels.as_slice();
        if let [name] = sources {
            return Cow::Borrowed(get(labels, name));
        }
        let values: Vec<&str> = sources.iter().map(|name| get(labels, name)).collect();
        Cow::Owned(values.join(&self.rule.separator))
    }
}

/// Applies `rules` in order; false when the set is dropped.
pub(super) fn apply(rules: &[Compiled], labels: &mut Vec<Label<'_>>) -> bool {
    rules.iter().all(|rule| step(rule, labels))
}

fn step(compiled: &Compiled, labels: &mut Vec<Label<'_>>) -> bool {
    let rule = &compiled.rule;
    match rule.action {
        Action::Keep => return compiled.matches(&compiled.source(labels)),
        Action::Drop => return !compiled.matches(&compiled.source(labels)),
        Action::KeepEqual => return compiled.source(labels) == get(labels, &rule.target_label),
        Action::DropEqual => return compiled.source(labels) != get(labels, &rule.target_label),
        Action::Lowercase => {
            let value = compiled.source(labels).to_lowercase();
            set(labels, &rule.target_label, value);
        }
        Action::Uppercase => {
            let value = compiled.source(labels).to_uppercase();
            set(labels, &rule.target_label, value);
        }
        Action::LabelDrop => labels.retain(|label| !compiled.matches(&label.name)),
        Action::LabelKeep => labels.retain(|label| compiled.matches(&label.name)),
        Action::LabelMap => map_names(compiled, labels),
        Action::Replace => replace(compiled, labels),
    }
    true
}

fn replace(compiled: &Compiled, labels: &mut Vec<Label<'_>>) {
    let rule = &compiled.rule;
    let source = compiled.source(labels).into_owned();
    let (target, value) =
        if compiled.is_default && rule.replacement == "$1" && !rule.target_label.contains('$') {
            (Cow::Borrowed(rule.target_label.as_str()), source)
        } else {
            let Some(groups) = compiled.regex.captures(&source) else { return };
            (Cow::Owned(filled(&groups, &rule.target_label)), filled(&groups, &rule.replacement))
        };
    if !target.is_empty() && value.len() <= VALUE_BYTES_MAX {
        set(labels, &target, value);
    }
}

/// A template with the groups filled in.
fn filled(groups: &regex::Captures<'_>, template: &str) -> String {
    let mut text = String::new();
    groups.expand(template, &mut text);
    text
}

fn map_names(compiled: &Compiled, labels: &mut Vec<Label<'_>>) {
    let mapped: Vec<(String, String)> = labels
        .iter()
        .filter_map(|label| {
            let groups = compiled.regex.captures(&label.name)?;
            Some((filled(&groups, &compiled.rule.replacement), label.value.clone().into_owned()))
        })
        .collect();
    for (name, value) in mapped.into_iter().filter(|(name, _)| !name.is_empty()) {
        set(labels, &name, value);
    }
}

/// The value of a label; empty when it is not there, which is the same to Prometheus.
pub(super) fn get<'l>(labels: &'l [Label<'_>], name: &str) -> &'l str {
    labels.iter().find(|label| label.name == name).map_or("", |label| &label.value)
}

/// Sets a label; an empty value removes it.
pub(super) fn set(labels: &mut Vec<Label<'_>>, name: &str, value: String) {
    if value.is_empty() {
        labels.retain(|label| label.name != name);
        return;
    }
    match labels.iter_mut().find(|label| label.name == name) {
        Some(label) => label.value = Cow::Owned(value),
        None => labels.push(Label { name: Cow::Owned(name.to_owned()), value: Cow::Owned(value) }),
    }
}
