//! The reference of a plugin's image, and whether it was baked in.

use std::collections::BTreeMap;

use super::cursor::Cursor;
use super::scalar::quoted;

/// Longest reference: a name of 255, a tag of 128, a digest of 135 and what joins them.
const REFERENCE_BYTES_MAX: usize = 520;
/// How many baked images a diagnostic names.
const NAMED_MAX: usize = 8;

pub(super) fn check(cursor: &Cursor<'_>) -> Option<String> {
    let text = cursor.string()?;
    let visible = !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
    if !visible || text.len() > REFERENCE_BYTES_MAX {
        let message = format!(
            "{} is no image reference: at most {REFERENCE_BYTES_MAX} visible ASCII characters",
            quoted(text)
        );
        cursor.error(message);
        return None;
    }
    Some(text.to_owned())
}

/// Compares the reference with the one that was baked in for `plugin`, both as written.
pub(super) fn check_baked(cursor: &Cursor<'_>, plugin: &str, image: &str, baked: &BTreeMap<String, String>) {
    match baked.get(plugin) {
        Some(reference) if reference == image => {}
        Some(reference) => {
            let (image, reference) = (quoted(image), quoted(reference));
            cursor.error(format!("{image} is not baked in: the image of {plugin} here is {reference}"));
        }
        None => {
            let image = quoted(image);
            cursor.error(format!("{image} is not baked in for {plugin}: {}", list(baked)));
        }
    }
}

/// What is baked in, for a diagnostic.
pub(super) fn list(baked: &BTreeMap<String, String>) -> String {
    if baked.is_empty() {
        return "no plugin is".to_owned();
    }
    let named = baked.iter().take(NAMED_MAX).map(|(plugin, image)| format!("{plugin} ({})", quoted(image)));
    let mut all: Vec<String> = named.collect();
    if baked.len() > NAMED_MAX {
        all.push(format!("{} more", baked.len() - NAMED_MAX));
    }
    format!("baked in are {}", all.join(", "))
}
