//! What the operator adds to the manifest's egress rules: private networks, and destinations named by hand.
//! Pure.

use std::{
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use crate::address::{Cidr, Class, classify, lies_in};

/// One `--allow-private-egress`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrivateEgress(Scope);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Scope {
    /// This destination may have any private address.
    Name(String),
    /// Every destination may have an address of this network.
    Network(Cidr),
}

/// One `--resolve`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolveOverride {
    /// Normalised.
    name: String,
    port: u16,
    address: SocketAddr,
}

/// An option that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// Neither a DNS name nor a network.
    #[error("{0:?} is neither a DNS name nor a network such as 10.0.0.0/8")]
    Scope(String),
    /// Not `NAME:PORT:ADDR`.
    #[error("{0:?} is not NAME:PORT:ADDR with an IP, IP:PORT or [IPv6]:PORT as ADDR")]
    Resolve(String),
}

impl FromStr for PrivateEgress {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, PolicyError> {
        if text.contains('/') {
            let network = text.parse().map_err(|_| PolicyError::Scope(text.to_owned()))?;
            return Ok(Self(Scope::Network(network)));
        }
        let name = normalise(text).ok_or_else(|| PolicyError::Scope(text.to_owned()))?;
        Ok(Self(Scope::Name(name)))
    }
}

impl FromStr for ResolveOverride {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, PolicyError> {
        let error = || PolicyError::Resolve(text.to_owned());
        let mut parts = text.splitn(3, ':');
        let name = parts.next().and_then(normalise).ok_or_else(error)?;
        let port: u16 =
            parts.next().and_then(|port| port.parse().ok()).filter(|p| *p != 0).ok_or_else(error)?;
        let address = parts.next().ok_or_else(error)?;
        let plain = || address.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        let address = address
            .parse::<SocketAddr>()
            .or_else(|_| plain().map(|ip| SocketAddr::new(ip, port)))
            .map_err(|_| error())?;
        Ok(Self { name, port, address })
    }
}

impl std::fmt::Display for ResolveOverride {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{} is taken to be {}", self.name, self.port, self.address)
    }
}

/// Lower case, one trailing dot less; none when it cannot be a DNS name.
pub(crate) fn normalise(name: &str) -> Option<String> {
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    let legal = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_');
    let label = |label: &str| (1..=63).contains(&label.len());
    (name.len() <= 253 && name.bytes().all(legal) && name.split('.').all(label)).then_some(name)
}

/// The operator's own rules, together.
#[derive(Debug, Clone, Default)]
pub(crate) struct Policy {
    private: Vec<PrivateEgress>,
    overrides: Vec<ResolveOverride>,
}

impl Policy {
    /// From the command line.
    pub(crate) fn new(private: Vec<PrivateEgress>, overrides: Vec<ResolveOverride>) -> Self {
        Self { private, overrides }
    }

    /// The address that the operator named for this destination.
    pub(crate) fn named_address(&self, name: &str, port: u16) -> Option<SocketAddr> {
        self.overrides.iter().find(|o| o.name == name && o.port == port).map(|o| o.address)
    }

    /// Whether `name` may be connected to at `address`; else the word for what it is.
    pub(crate) fn judge(&self, name: &str, address: IpAddr) -> Result<(), &'static str> {
        match classify(address) {
            Class::Global => Ok(()),
            Class::Denied(range) => Err(range),
            Class::Private(range) => {
                let allowed = self.private.iter().any(|PrivateEgress(scope)| match scope {
                    Scope::Name(allowed) => allowed == name,
                    Scope::Network(network) => lies_in(address, network),
                });
                if allowed { Ok(()) } else { Err(range) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(private: &[&str]) -> Policy {
        Policy::new(private.iter().map(|text| text.parse().unwrap()).collect(), vec![])
    }

    #[test]
    fn private_addresses_need_the_operators_word_and_denied_ones_never_get_it() {
        let open = policy(&["10.1.0.0/16", "kms.example.com", "0.0.0.0/0", "::/0"]);
        let judge = |policy: &Policy, name: &str, address: &str| policy.judge(name, address.parse().unwrap());
        assert_eq!(judge(&policy(&[]), "a.example", "8.8.8.8"), Ok(()));
        assert_eq!(judge(&policy(&[]), "a.example", "10.1.2.3"), Err("private"));
        assert_eq!(judge(&policy(&["10.1.0.0/16"]), "a.example", "10.1.2.3"), Ok(()));
        assert_eq!(judge(&policy(&["10.1.0.0/16"]), "a.example", "64:ff9b::10.1.2.3"), Ok(()));
        assert_eq!(judge(&policy(&["10.1.0.0/16"]), "a.example", "10.2.2.3"), Err("private"));
        assert_eq!(judge(&policy(&["KMS.example.com."]), "kms.example.com", "10.2.2.3"), Ok(()));
        assert_eq!(judge(&policy(&["kms.example.com"]), "a.example", "10.2.2.3"), Err("private"));
        for denied in
            ["127.0.0.1", "169.254.169.254", "::1", "fd00:ec2::254", "::ffff:127.0.0.1", "224.0.0.1"]
        {
            assert!(judge(&open, "kms.example.com", denied).is_err(), "{denied}");
        }
    }

    #[test]
    fn a_destination_named_by_hand_takes_every_form_of_address() {
        let named = |text: &str| text.parse::<ResolveOverride>().unwrap().address.to_string();
        assert_eq!(named("c.example:4318:127.0.0.1"), "127.0.0.1:4318");
        assert_eq!(named("c.example:4318:127.0.0.1:9"), "127.0.0.1:9");
        assert_eq!(named("c.example:4318:[::1]:9"), "[::1]:9");
        assert_eq!(named("c.example:4318:[::1]"), "[::1]:4318");
        assert_eq!(named("c.example:4318:::1"), "[::1]:4318");
        let policy = Policy::new(vec![], vec!["C.example.:4318:127.0.0.1".parse().unwrap()]);
        assert!(policy.named_address("c.example", 4318).is_some());
        assert!(policy.named_address("c.example", 443).is_none());
        for bad in
            ["", "a", "a:1", "a:0:1.2.3.4", "a:x:1.2.3.4", "a:1:b", "-:1:", "é:1:1.2.3.4", ":1:1.2.3.4"]
        {
            assert!(bad.parse::<ResolveOverride>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_scope_is_a_name_or_a_network() {
        for bad in ["", "a..b", "10.0.0.0/40", "a b", "x/8"] {
            assert!(bad.parse::<PrivateEgress>().is_err(), "{bad}");
        }
    }
}
