//! Relabelling rules.

use super::{Context, is_label_name};
use crate::manifest::{cursor::Cursor, node::Position, scalar::quoted};

/// Most rules of one list: each is tried on every sample.
const RULES_MAX: usize = 64;
/// Most source labels of one rule.
const SOURCES_MAX: usize = 16;
/// Longest regular expression.
const REGEX_BYTES_MAX: usize = 4096;

/// What a rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Sets the target label.
    Replace,
    /// Keeps only what matches.
    Keep,
    /// Drops what matches.
    Drop,
    /// Keeps only what has the target label's value.
    KeepEqual,
    /// Drops what has the target label's value.
    DropEqual,
    /// Removes the labels whose names match.
    LabelDrop,
    /// Removes the labels whose names do not match.
    LabelKeep,
    /// Copies the labels whose names match.
    LabelMap,
    /// The source in lower case.
    Lowercase,
    /// The source in upper case.
    Uppercase,
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// What it does.
    pub action: Action,
    /// Labels whose values are joined.
    pub source_labels: Vec<String>,
    /// Between them.
    pub separator: String,
    /// Matched against the whole of the source.
    pub regex: String,
    /// The label that is set or compared.
    pub target_label: String,
    /// With `$1` for a group.
    pub replacement: String,
    /// Where it stands.
    pub position: Position,
}

pub(super) fn check_all(list: &Cursor<'_>, context: &Context<'_>) -> Vec<Rule> {
    list.items(RULES_MAX).iter().filter_map(|item| check(item, context)).collect()
}

fn check(cursor: &Cursor<'_>, context: &Context<'_>) -> Option<Rule> {
    let mut fields = cursor.mapping()?;
    let action = match fields.field("action") {
        None => Some(Action::Replace),
        Some(word) if word.node_text() == Some("hashmod") => {
            word.error("the action hashmod is not supported: the plugin is the only one that scrapes");
            None
        }
        Some(word) => word.word(&[
            ("replace", Action::Replace),
            ("keep", Action::Keep),
            ("drop", Action::Drop),
            ("keepequal", Action::KeepEqual),
            ("dropequal", Action::DropEqual),
            ("labeldrop", Action::LabelDrop),
            ("labelkeep", Action::LabelKeep),
            ("labelmap", Action::LabelMap),
            ("lowercase", Action::Lowercase),
            ("uppercase", Action::Uppercase),
        ]),
    };
    let sources = fields.field("source_labels").map(|list| {
        let items = list.items(SOURCES_MAX);
        items.iter().filter_map(|item| item.string().map(str::to_owned)).collect::<Vec<_>>()
    });
    let text = |field: Option<Cursor<'_>>, default: &str| match field {
        None => Some(default.to_owned()),
        Some(cursor) => cursor.string().map(str::to_owned),
    };
    let separator = text(fields.field("separator"), ";");
    let regex_field = fields.field("regex");
    let regex = regex_field.as_ref().map_or_else(|| Some("(.*)".to_owned()), |c| check_regex(c, context));
    let target_field = fields.field("target_label");
    let target_label = text(target_field.clone(), "");
    let replacement = text(fields.field("replacement"), "$1");
    fields.field("modulus");
    fields.finish();
    let rule = Rule {
        action: action?,
        source_labels: sources.unwrap_or_default(),
        separator: separator?,
        regex: regex?,
        target_label: target_label?,
        replacement: replacement?,
        position: cursor.node.position,
    };
    check_target(cursor, target_field.as_ref(), &rule);
    Some(rule)
}

fn check_regex(cursor: &Cursor<'_>, context: &Context<'_>) -> Option<String> {
    let text = cursor.scalar_text("a regular expression")?;
    if text.len() > REGEX_BYTES_MAX {
        cursor.error(format!("longer than {REGEX_BYTES_MAX} bytes"));
        return None;
    }
    if let Some(Err(message)) = context.regex.map(|compile| compile(text)) {
        cursor.error(message);
        return None;
    }
    Some(text.to_owned())
}

fn check_target(cursor: &Cursor<'_>, field: Option<&Cursor<'_>>, rule: &Rule) {
    let wants = match rule.action {
        Action::Replace | Action::Lowercase | Action::Uppercase | Action::KeepEqual | Action::DropEqual => {
            true
        }
        Action::Keep | Action::Drop | Action::LabelDrop | Action::LabelKeep | Action::LabelMap => false,
    };
    let name = rule.target_label.as_str();
    if !wants {
        return;
    }
    if name.is_empty() {
        cursor.error("the field target_label is required for this action");
        return;
    }
    let at = field.unwrap_or(cursor);
    // A name with a group in it is known only when there is a sample.
    if !name.contains('$') && !is_label_name(name) {
        at.error(format!("{} is not a valid label name", quoted(name)));
    } else if let Err(message) = super::settable(&name.replace('$', "_").replace(['{', '}'], "_")) {
        at.error(message);
    }
}
