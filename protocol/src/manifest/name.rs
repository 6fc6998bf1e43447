//! Names as Kubernetes restricts them.

use super::scalar::quoted;

/// Longest DNS-1123 label, and longest label of a domain name.
pub(super) const LABEL_MAX: usize = 63;
/// Longest DNS-1123 subdomain, and longest domain name.
pub(super) const SUBDOMAIN_MAX: usize = 253;

/// Lower-case letters, digits and hyphens, beginning and ending with a letter or digit.
pub(super) fn label(text: &str) -> Result<String, String> {
    if is_label(text) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "{} is no DNS-1123 label: at most {LABEL_MAX} lower-case letters, digits and hyphens, beginning and \
         ending with a letter or digit",
        quoted(text)
    ))
}

/// Labels joined by dots.
pub(crate) fn subdomain(text: &str) -> Result<String, String> {
    let labels = |part: &str| !part.is_empty() && part.split('.').all(is_subdomain_part);
    if text.len() <= SUBDOMAIN_MAX && labels(text) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "{} is no DNS-1123 subdomain: at most {SUBDOMAIN_MAX} lower-case letters, digits, hyphens and dots, \
         each part beginning and ending with a letter or digit",
        quoted(text)
    ))
}

/// The name of an environment variable, as wide as Kubernetes allows it.
pub(super) fn env(text: &str) -> Result<String, String> {
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
    let starts = text.bytes().next().is_some_and(|b| inner(b) && !b.is_ascii_digit());
    if starts && text.len() <= SUBDOMAIN_MAX && text.bytes().all(inner) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "{} is no name of an environment variable: letters, digits, '_', '-' and '.', \
         not beginning with a digit",
        quoted(text)
    ))
}

/// Whether a text is a token of RFC 9110, as the name of an HTTP header is.
pub(super) fn is_header(text: &str) -> bool {
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    !text.is_empty() && text.bytes().all(token)
}

/// The name of a `ConfigMap` or `Secret`. Wider than Kubernetes, because the vendor's own examples have
/// upper-case letters (`fluentbitConfigMap`); still no separator and no hidden or parent directory.
pub(super) fn object(text: &str) -> Result<String, String> {
    if is_file_name(text) && !text.starts_with('.') {
        return Ok(text.to_owned());
    }
    Err(format!(
        "{} is no name of a ConfigMap or Secret: letters, digits, '-', '_' and '.', not beginning with '.'",
        quoted(text)
    ))
}

/// The key of a `ConfigMap` or `Secret`, which is also a file's name.
pub(super) fn file_key(text: &str) -> Result<String, String> {
    if is_file_key(text) {
        return Ok(text.to_owned());
    }
    Err(format!("{} is no key: letters, digits, '-', '_' and '.', not beginning with '..'", quoted(text)))
}

/// Whether a key can be a file's name.
pub(super) fn is_file_key(text: &str) -> bool {
    is_file_name(text) && text != "." && !text.starts_with("..")
}

fn is_file_name(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
    !text.is_empty() && text.len() <= SUBDOMAIN_MAX && text.bytes().all(inner)
}

fn is_label(text: &str) -> bool {
    text.len() <= LABEL_MAX && is_subdomain_part(text)
}

/// Kubernetes limits the length of a subdomain as a whole but not of its parts.
fn is_subdomain_part(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    !text.is_empty() && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_rules_of_kubernetes() {
        let long = "a".repeat(64);
        for (text, is_label, is_subdomain) in [
            ("hello-fastapi", true, true),
            ("0", true, true),
            ("a.b", false, true),
            (long.as_str(), false, true),
            ("Hello", false, false),
            ("-a", false, false),
            ("a-", false, false),
            ("a_b", false, false),
            ("", false, false),
            ("a..b", false, false),
            ("é", false, false),
        ] {
            assert_eq!(label(text).is_ok(), is_label, "{text}");
            assert_eq!(subdomain(text).is_ok(), is_subdomain, "{text}");
        }
        assert!(subdomain(&"a".repeat(254)).is_err());
    }

    #[test]
    fn environment_names_and_keys_have_their_own_letters() {
        for (text, is_env, is_key, is_object) in [
            ("EXPORTER_URL", true, true, true),
            ("a.b-c", true, true, true),
            ("fluent-bit.yaml", true, true, true),
            ("1A", false, true, true),
            (".hidden", true, true, false),
            (".", true, false, false),
            ("..data", true, false, false),
            ("a/b", false, false, false),
            ("A=B", false, false, false),
            ("", false, false, false),
        ] {
            assert_eq!(env(text).is_ok(), is_env, "{text}");
            assert_eq!(file_key(text).is_ok(), is_key, "{text}");
            assert_eq!(object(text).is_ok(), is_object, "{text}");
        }
    }
}
