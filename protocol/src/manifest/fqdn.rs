//! Host names of destinations.

use std::net::IpAddr;

use super::name::{LABEL_MAX, SUBDOMAIN_MAX};
use super::scalar::quoted;

/// A host name in its one form: lower case, without the trailing dot.
pub(crate) fn parse(text: &str) -> Result<String, String> {
    let shown = quoted(text);
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    if bare.parse::<IpAddr>().is_ok() {
        return Err(format!("{shown} is an IP address: egress goes to host names only"));
    }
    if text.starts_with("*.") {
        return Err(format!("{shown}: wildcards are not supported yet"));
    }
    if text.contains("://") || text.contains(['/', ':']) {
        return Err(format!("{shown} is no host name: write the name alone, without scheme, port or path"));
    }
    if !text.is_ascii() {
        return Err(format!("{shown} is no host name: write international names in their xn-- form"));
    }
    let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    if name.is_empty() || name.len() > SUBDOMAIN_MAX {
        return Err(format!("{shown} is no host name: 1 to {SUBDOMAIN_MAX} characters"));
    }
    if let Some(label) = name.split('.').find(|label| !is_label(label)) {
        let rule = format!("1 to {LABEL_MAX} letters, digits and hyphens, no hyphen at the ends");
        return Err(format!("{shown} is no host name: {} is no label ({rule})", quoted(label)));
    }
    let last = name.rsplit('.').next().unwrap_or_default();
    // Resolvers read `1.2.3` and `0x7f.1` as addresses; they must not slip past the check above.
    if last.bytes().all(|b| b.is_ascii_digit()) || last.starts_with("0x") {
        return Err(format!("{shown} is an IP address in another form: egress goes to host names only"));
    }
    // A listener that stands for localhost would take the plugins' own connections.
    if last == "localhost" {
        return Err(format!("{shown} is the enclave itself: plugins reach each other without a connection"));
    }
    Ok(name)
}

fn is_label(label: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=LABEL_MAX).contains(&label.len())
        && label.bytes().all(inner)
        && !label.starts_with('-')
        && !label.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_are_normalised_and_everything_else_is_refused_with_its_reason() {
        for (text, expected) in [
            ("oblv.com", Ok("oblv.com")),
            ("KMS.us-west-2.amazonaws.com.", Ok("kms.us-west-2.amazonaws.com")),
            ("collector", Ok("collector")),
            ("xn--bcher-kva.example", Ok("xn--bcher-kva.example")),
            ("1password.com", Ok("1password.com")),
            ("a..b", Err("is no label")),
            ("a.", Ok("a")),
            ("a..", Err("is no label")),
            (".", Err("1 to 253")),
            ("", Err("1 to 253")),
            ("-a.com", Err("is no label")),
            ("a_b.com", Err("is no label")),
            ("bücher.example", Err("xn--")),
            ("10.0.0.1", Err("IP address")),
            ("::1", Err("IP address")),
            ("[::1]", Err("IP address")),
            ("127.1", Err("another form")),
            ("0x7f.0x1", Err("another form")),
            ("2130706433", Err("another form")),
            ("localhost", Err("enclave itself")),
            ("app.localhost.", Err("enclave itself")),
            ("*.example.com", Err("not supported yet")),
            ("https://example.com", Err("without scheme")),
            ("example.com:443", Err("without scheme")),
        ] {
            match (parse(text), expected) {
                (Ok(found), Ok(name)) => assert_eq!(found, name, "{text}"),
                (Err(found), Err(part)) => assert!(found.contains(part), "{text}: {found}"),
                (found, _) => panic!("{text}: {found:?}"),
            }
        }
        assert!(parse(&"a".repeat(64)).is_err());
        assert!(parse(&"a.".repeat(128)).is_err());
        assert!(parse(&"a.".repeat(127)).is_ok());
    }
}
