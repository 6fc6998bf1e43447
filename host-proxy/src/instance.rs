//! The name of this enclave among its siblings.

/// Longest id; it is a label on every data point.
const ID_BYTES_MAX: usize = 128;

/// The given id, else the known one, else the host name with a random part: two replicas never share one.
pub(crate) fn instance_id(given: Option<String>, known: Option<String>) -> Result<String, &'static str> {
    let id = match given.or(known) {
        Some(id) => id,
        None => format!(
            "{}-{:08x}",
            host_name(),
            getrandom::u32().map_err(|_| "the system has no random numbers")?
        ),
    };
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    if id.is_empty() || id.len() > ID_BYTES_MAX || !id.bytes().all(legal) {
        return Err("--instance-id must be 1 to 128 of a-z A-Z 0-9 - . _");
    }
    Ok(id)
}

/// In a pod the host name is the pod's name.
fn host_name() -> String {
    let named = std::env::var("HOSTNAME").or_else(|_| std::fs::read_to_string("/proc/sys/kernel/hostname"));
    let mut name = named.unwrap_or_default().trim().to_ascii_lowercase();
    name.retain(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.'));
    name.truncate(ID_BYTES_MAX / 2);
    if name.is_empty() { "enclave".to_owned() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_kept_and_a_new_one_is_unlike_its_siblings() {
        assert_eq!(instance_id(Some("a".into()), Some("b".into())).unwrap(), "a");
        assert_eq!(instance_id(None, Some("b".into())).unwrap(), "b");
        assert_ne!(instance_id(None, None).unwrap(), instance_id(None, None).unwrap());
        for bad in ["", "a b", "é", &"a".repeat(129)] {
            assert!(instance_id(Some(bad.to_owned()), None).is_err(), "{bad}");
        }
    }
}
