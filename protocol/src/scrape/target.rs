//! Where a page may be asked for.

use std::net::IpAddr;

use crate::manifest::{fqdn, scalar::quoted};

/// A target's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// Name or literal address, without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl Address {
    /// Reads `host:port`, or `host` alone with the scheme's port. A literal address that is not loopback is
    /// refused: an enclave reaches the world by names that the manifest allows.
    pub fn parse(text: &str, default_port: u16) -> Result<Self, String> {
        let shown = quoted(text);
        if text.contains("://") || text.contains(['/', '?', '@', '#']) {
            return Err(format!("{shown} is not a valid target: write host:port, without scheme and path"));
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') && (!host.contains(':') || host.ends_with(']')) => {
                let number = port.parse::<u16>().ok().filter(|port| *port > 0);
                (host, number.ok_or_else(|| format!("{shown} has no valid port: a number from 1 to 65535"))?)
            }
            _ => (text, default_port),
        };
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        if is_loopback(bare) {
            return Ok(Self { host: bare.to_ascii_lowercase(), port });
        }
        if bare.parse::<IpAddr>().is_ok() {
            return Err(format!(
                "{shown} is an address outside of loopback: targets are plugins' ports or names"
            ));
        }
        Ok(Self { host: fqdn::parse(host)?, port })
    }

    /// Whether the target is in the enclave for certain.
    pub fn is_loopback(&self) -> bool {
        is_loopback(&self.host)
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

/// `localhost`, 127.0.0.0/8 or `::1`.
pub fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_loopback_address_or_a_name_with_a_port() {
        let shown = |text: &str| Address::parse(text, 80).map(|address| address.to_string());
        assert_eq!(shown("localhost:8001").unwrap(), "localhost:8001");
        assert_eq!(shown("127.0.0.1").unwrap(), "127.0.0.1:80");
        assert_eq!(shown("[::1]:9100").unwrap(), "[::1]:9100");
        assert_eq!(shown("Metrics.Example.COM.:443").unwrap(), "metrics.example.com:443");
        for text in [
            "",
            ":80",
            "10.0.0.1:80",
            "169.254.169.254",
            "[fe80::1]:80",
            "0x7f.1:80",
            "localhost:0",
            "localhost:65536",
            "http://localhost:80",
            "a/b",
            "u@localhost:80",
            "1.2.3:80",
            "a b:80",
        ] {
            assert!(shown(text).is_err(), "{text}");
        }
    }
}
