//! How a diagnostic names a place in the tree: `spec.userPlugins[0].ports[1].hostPort`.

/// Longer keys are cut: no field of ours is longer, and a path must not grow with the input.
const KEY_CHARS_MAX: usize = 64;

/// `path` with one more key.
pub(crate) fn key(path: &str, key: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if key.is_empty() || key.len() > KEY_CHARS_MAX || !key.chars().all(plain) {
        let cut: String = key.chars().take(KEY_CHARS_MAX).collect();
        return format!("{path}[\"{}\"]", cut.escape_debug());
    }
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// `path` with one more index.
pub(crate) fn index(path: &str, index: usize) -> String {
    format!("{path}[{index}]")
}
