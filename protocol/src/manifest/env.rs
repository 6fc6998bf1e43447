//! Environment, command and working directory of a plugin.

use std::collections::BTreeMap;

use super::cursor::Cursor;
use super::{filepath, name};

/// More variables than this are a mistake.
const VARIABLES_MAX: usize = 1000;
/// More arguments than this are a mistake.
const ARGUMENTS_MAX: usize = 1000;
/// Longest argument or `NAME=value`: the kernel's `MAX_ARG_STRLEN` (32 pages) without the final NUL.
const EXEC_STRING_BYTES_MAX: usize = (128 << 10) - 1;

/// Name and value, in the order of the manifest.
pub(super) fn check(list: &Cursor<'_>) -> Vec<(String, String)> {
    let mut seen: BTreeMap<String, String> = BTreeMap::new();
    let mut variables = Vec::new();
    for item in list.items(VARIABLES_MAX) {
        let Some(mut fields) = item.mapping() else { continue };
        let name_cursor = fields.required("name");
        // Without a value it is empty, as in Kubernetes.
        let value_cursor = fields.field("value");
        fields.finish();
        let value = value_cursor.as_ref().map_or(Some(""), Cursor::string);
        let Some(name_cursor) = name_cursor else { continue };
        let Some(name) = name_cursor.string().and_then(|text| name_cursor.checked(name::env(text))) else {
            continue;
        };
        if let Some(first) = seen.get(&name) {
            name_cursor.error(format!("the variable {name} is already set at {first}"));
            continue;
        }
        seen.insert(name.clone(), name_cursor.path.clone());
        let Some(value) = value else { continue };
        if name.len() + 1 + value.len() > EXEC_STRING_BYTES_MAX {
            item.error(format!("longer than a process can be given: {EXEC_STRING_BYTES_MAX} bytes"));
        }
        variables.push((name, value.to_owned()));
    }
    variables
}

/// Command or arguments. An empty list means the image's own, as in Kubernetes.
pub(super) fn check_command(list: &Cursor<'_>) -> Option<Vec<String>> {
    let mut command = Vec::new();
    for word in list.items(ARGUMENTS_MAX) {
        let Some(text) = word.string() else { continue };
        if text.len() > EXEC_STRING_BYTES_MAX {
            word.error(format!("longer than a process can be given: {EXEC_STRING_BYTES_MAX} bytes"));
        }
        command.push(text.to_owned());
    }
    (!command.is_empty()).then_some(command)
}

/// The working directory.
pub(super) fn check_working_dir(cursor: &Cursor<'_>) -> Option<String> {
    cursor.checked(filepath::absolute(cursor.string()?))
}
