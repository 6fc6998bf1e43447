//! A host name that stands in a synced configuration file: `{name, key, type: yaml, ref: "a#b#0#host"}`.

use super::cursor::Cursor;
use super::name;
use super::node::{Node, Value};
use super::report::Report;
use super::scalar::quoted;
use super::yaml;
use crate::control::Files;

/// Longest file a host name is read from. It is read anew for each reference, and nobody's outputs section
/// is longer.
const FILE_BYTES_MAX: usize = 256 << 10;
/// Longest `ref`, in steps; the reader of the file goes no deeper.
const STEPS_MAX: usize = 24;

/// Where in the synced files a host name stands.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reference {
    /// The `ConfigMap`.
    pub config_map: String,
    /// Its key.
    pub key: String,
    /// How the file is written.
    pub format: Format,
    /// Steps into the file: a key of a mapping, or an index of a list.
    pub steps: Vec<String>,
}

/// How a configuration file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Format {
    /// YAML.
    Yaml,
    /// JSON.
    Json,
    /// Sections and keys.
    Ini,
}

impl Format {
    /// The word in the manifest.
    pub fn word(self) -> &'static str {
        match self {
            Self::Yaml => "yaml",
            Self::Json => "json",
            Self::Ini => "ini",
        }
    }
}

pub(super) fn check(cursor: &Cursor<'_>) -> Option<Reference> {
    let mut fields = cursor.mapping()?;
    let config_map = fields.required("name");
    let key = fields.required("key");
    let format = fields.required("type");
    let steps = fields.required("ref");
    fields.finish();
    let config_map = config_map.and_then(|c| c.checked(name::object(c.string()?)));
    let key = key.and_then(|c| c.checked(name::file_key(c.string()?)));
    let words = [Format::Yaml, Format::Json, Format::Ini].map(|format| (format.word(), format));
    let format = format.and_then(|c| c.word(&words));
    let steps = steps.and_then(|c| c.checked(split(c.string()?, format)));
    Some(Reference { config_map: config_map?, key: key?, format: format?, steps: steps? })
}

fn split(text: &str, format: Option<Format>) -> Result<Vec<String>, String> {
    let steps: Vec<String> = text.split('#').map(str::to_owned).collect();
    if steps.len() > STEPS_MAX || steps.iter().any(String::is_empty) {
        return Err(format!("{} is no reference: write steps joined by '#', as in a#b#0#host", quoted(text)));
    }
    if format == Some(Format::Ini) && steps.len() > 2 {
        return Err(format!("{} goes too deep: an INI file has section#key or key", quoted(text)));
    }
    Ok(steps)
}

impl std::fmt::Display for Reference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ConfigMap {}, key {}", self.config_map, self.key)
    }
}

impl Reference {
    /// The text that stands there.
    pub(super) fn resolve(&self, files: &Files) -> Result<String, String> {
        let keys = files.config_maps.get(&self.config_map);
        let keys =
            keys.ok_or_else(|| format!("ConfigMap {} was not delivered with the manifest", self.config_map))?;
        let bytes = keys
            .get(&self.key)
            .ok_or_else(|| format!("ConfigMap {} has no key {}", self.config_map, self.key))?;
        if bytes.0.len() > FILE_BYTES_MAX {
            return Err(format!(
                "{self} is too long to read a host name from: at most {FILE_BYTES_MAX} bytes"
            ));
        }
        let text = std::str::from_utf8(&bytes.0).map_err(|_| format!("{self} is not UTF-8"))?;
        match self.format {
            Format::Yaml | Format::Json => self.in_tree(text),
            Format::Ini => self.in_sections(text),
        }
        .map_err(|reason| format!("{self}: {reason}"))
    }

    /// JSON is read as the YAML that it is.
    fn in_tree(&self, text: &str) -> Result<String, String> {
        let report = Report::default();
        let root = yaml::read(text, &report);
        let found = report.finish();
        if let Some(first) = found.first() {
            return Err(first.to_string());
        }
        let mut node: &Node = root.as_ref().ok_or("it is empty")?;
        for (at, step) in self.steps.iter().enumerate() {
            let next = match &node.value {
                Value::Mapping(_) => node.get(step),
                Value::Sequence(items) => step.parse::<usize>().ok().and_then(|index| items.get(index)),
                Value::Scalar(_) | Value::Refused => None,
            };
            node = next.ok_or_else(|| format!("nothing at {}", quoted(&self.steps[..=at].join("#"))))?;
        }
        match &node.value {
            Value::Scalar(scalar) if !scalar.is_null() => Ok(scalar.text.clone()),
            Value::Scalar(_) | Value::Sequence(_) | Value::Mapping(_) | Value::Refused => {
                Err(format!("{} holds {}, no host name", quoted(&self.steps.join("#")), node.found()))
            }
        }
    }

    fn in_sections(&self, text: &str) -> Result<String, String> {
        let (section, key) = match self.steps.as_slice() {
            [section, key] => (section.as_str(), key.as_str()),
            [key] => ("", key.as_str()),
            _ => return Err("an INI file has section#key or key".to_owned()),
        };
        let mut current = "";
        let mut found = None;
        for line in text.lines().map(str::trim).filter(|line| !line.starts_with([';', '#'])) {
            if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
                current = name.trim();
            } else if let Some((name, value)) = line.split_once(['=', ':'])
                && current == section
                && name.trim() == key
                && found.replace(unquoted(value.trim())).is_some()
            {
                return Err(format!("{} stands there twice", quoted(&self.steps.join("#"))));
            }
        }
        found.map(str::to_owned).ok_or_else(|| format!("nothing at {}", quoted(&self.steps.join("#"))))
    }
}

fn unquoted(value: &str) -> &str {
    ['"', '\''].into_iter().find_map(|quote| value.strip_prefix(quote)?.strip_suffix(quote)).unwrap_or(value)
}
