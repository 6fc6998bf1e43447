//! Which addresses the proxy may connect to for the enclave. Pure: addresses in, a judgement out.
//!
//! An allowed *name* says nothing about where it points today, so every resolved address is judged by its
//! class. An address that carries an IPv4 address (mapped, NAT64, 6to4, Teredo) is judged by what it carries:
//! a translator on the way would deliver it there.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

/// What an address stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Class {
    /// Reachable by everybody.
    Global,
    /// Somebody's own network: only with `--allow-private-egress`. The word names the range.
    Private(&'static str),
    /// Never a destination. The word names the range.
    Denied(&'static str),
}

/// A network: an address and how many of its leading bits count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cidr {
    network: IpAddr,
    prefix: u8,
}

/// Text that is no network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no network such as 10.0.0.0/8")]
pub(crate) struct CidrError(String);

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let error = || CidrError(text.to_owned());
        let (network, prefix) = text.split_once('/').ok_or_else(error)?;
        let network: IpAddr = network.parse().map_err(|_| error())?;
        let prefix: u8 = prefix.parse().map_err(|_| error())?;
        let widest = if network.is_ipv4() { 32 } else { 128 };
        if prefix > widest {
            return Err(error());
        }
        Ok(Self { network, prefix })
    }
}

impl Cidr {
    /// Whether `address` lies in this network.
    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        match (self.network, address) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                same_prefix(network.to_bits().into(), address.to_bits().into(), self.prefix, 32)
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                same_prefix(network.to_bits(), address.to_bits(), self.prefix, 128)
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

fn same_prefix(one: u128, other: u128, prefix: u8, width: u32) -> bool {
    // A shift by the whole width is no shift in Rust; a prefix of 0 holds every address.
    (one ^ other).checked_shr(width - u32::from(prefix)).unwrap_or(0) == 0
}

/// The IPv4 ranges that are not global, first match wins. RFC 6890's registry and what EC2 puts where.
const V4: &[(Ipv4Addr, u8, Class)] = &[
    (Ipv4Addr::UNSPECIFIED, 8, Class::Denied("this network")),
    (Ipv4Addr::new(127, 0, 0, 0), 8, Class::Denied("loopback")),
    // The instance metadata service, Amazon's DNS and NTP, the task metadata endpoint.
    (Ipv4Addr::new(169, 254, 0, 0), 16, Class::Denied("link-local")),
    (Ipv4Addr::new(10, 0, 0, 0), 8, Class::Private("private")),
    (Ipv4Addr::new(172, 16, 0, 0), 12, Class::Private("private")),
    (Ipv4Addr::new(192, 168, 0, 0), 16, Class::Private("private")),
    (Ipv4Addr::new(100, 64, 0, 0), 10, Class::Private("shared address space")),
    (Ipv4Addr::new(198, 18, 0, 0), 15, Class::Private("benchmark")),
    (Ipv4Addr::new(192, 0, 0, 0), 24, Class::Denied("protocol assignments")),
    (Ipv4Addr::new(192, 0, 2, 0), 24, Class::Denied("documentation")),
    (Ipv4Addr::new(198, 51, 100, 0), 24, Class::Denied("documentation")),
    (Ipv4Addr::new(203, 0, 113, 0), 24, Class::Denied("documentation")),
    (Ipv4Addr::new(192, 88, 99, 0), 24, Class::Denied("6to4 relay")),
    (Ipv4Addr::new(224, 0, 0, 0), 4, Class::Denied("multicast")),
    (Ipv4Addr::BROADCAST, 32, Class::Denied("broadcast")),
    (Ipv4Addr::new(240, 0, 0, 0), 4, Class::Denied("reserved")),
];

/// The IPv6 ranges with a meaning of their own, first match wins; what is left outside `2000::/3` is
/// unassigned.
const V6: &[(Ipv6Addr, u8, Class)] = &[
    (Ipv6Addr::UNSPECIFIED, 128, Class::Denied("unspecified")),
    (Ipv6Addr::LOCALHOST, 128, Class::Denied("loopback")),
    // Deprecated; old stacks read ::a.b.c.d as a.b.c.d.
    (Ipv6Addr::UNSPECIFIED, 96, Class::Denied("v4-compatible")),
    (v6(0xfe80, 0), 10, Class::Denied("link-local")),
    (v6(0xfec0, 0), 10, Class::Private("site-local")),
    // Amazon's services on an instance: metadata, DNS, NTP.
    (v6(0xfd00, 0x0ec2), 32, Class::Denied("instance metadata")),
    (v6(0xfc00, 0), 7, Class::Private("unique local")),
    (v6(0xff00, 0), 8, Class::Denied("multicast")),
    (v6(0x2001, 0x0db8), 32, Class::Denied("documentation")),
    (v6(0x3fff, 0), 20, Class::Denied("documentation")),
    // What is left of 2001::/23 after Teredo: benchmarking, ORCHID, protocol assignments.
    (v6(0x2001, 0), 23, Class::Denied("protocol assignments")),
    (v6(0x2000, 0), 3, Class::Global),
    (Ipv6Addr::UNSPECIFIED, 0, Class::Denied("unassigned")),
];

const fn v6(first: u16, second: u16) -> Ipv6Addr {
    Ipv6Addr::new(first, second, 0, 0, 0, 0, 0, 0)
}

/// The class of `address`, or of the strictest IPv4 address that it carries.
pub(crate) fn classify(address: IpAddr) -> Class {
    match address {
        IpAddr::V4(address) => classify_v4(address),
        IpAddr::V6(address) => {
            carried(address).into_iter().map(classify_v4).max().unwrap_or_else(|| classify_v6(address))
        }
    }
}

/// Whether `address`, or an IPv4 address that it carries, lies in `network`.
pub(crate) fn lies_in(address: IpAddr, network: &Cidr) -> bool {
    let inner = match address {
        IpAddr::V4(_) => Vec::new(),
        IpAddr::V6(address) => carried(address),
    };
    network.contains(address) || inner.into_iter().any(|inner| network.contains(inner.into()))
}

fn classify_v4(address: Ipv4Addr) -> Class {
    let found = V4.iter().find(|(network, prefix, _)| {
        Cidr { network: (*network).into(), prefix: *prefix }.contains(address.into())
    });
    found.map_or(Class::Global, |(_, _, class)| *class)
}

fn classify_v6(address: Ipv6Addr) -> Class {
    let found = V6.iter().find(|(network, prefix, _)| {
        Cidr { network: (*network).into(), prefix: *prefix }.contains(address.into())
    });
    found.map_or(Class::Denied("unassigned"), |(_, _, class)| *class)
}

/// The IPv4 addresses that an IPv6 address may stand for; empty for an ordinary one.
fn carried(address: Ipv6Addr) -> Vec<Ipv4Addr> {
    let octets = address.octets();
    let at = |positions: [usize; 4]| Ipv4Addr::from(positions.map(|position| octets[position]));
    let last = at([12, 13, 14, 15]);
    match address.segments() {
        // Mapped (RFC 4291) and translated (RFC 2765).
        [0, 0, 0, 0, 0, 0xffff, _, _] | [0, 0, 0, 0, 0xffff, 0, _, _] => vec![last],
        // NAT64, well-known prefix.
        [0x64, 0xff9b, 0, 0, 0, 0, _, _] => vec![last],
        // NAT64, local use (RFC 8215): the operator chose how long the prefix is, so every layout of RFC 6052
        // counts unless its bits are all zero before a longer one.
        [0x64, 0xff9b, 1, middle @ ..] => {
            if middle[..3] == [0, 0, 0] {
                vec![last]
            } else {
                vec![at([6, 7, 9, 10]), at([7, 9, 10, 11]), at([9, 10, 11, 12]), last]
            }
        }
        // 6to4.
        [0x2002, ..] => vec![at([2, 3, 4, 5])],
        // Teredo: the server, and the client with its bits flipped.
        [0x2001, 0, ..] => vec![at([4, 5, 6, 7]), Ipv4Addr::from_bits(!last.to_bits())],
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(address: &str) -> String {
        match classify(address.parse().unwrap()) {
            Class::Global => "global".to_owned(),
            Class::Private(range) => format!("private ({range})"),
            Class::Denied(range) => format!("denied ({range})"),
        }
    }

    fn check(addresses: &[&str], expected: &str) {
        for address in addresses {
            assert_eq!(word(address), expected, "{address}");
        }
    }

    #[test]
    fn global_addresses_are_global_up_to_the_edges_of_the_special_ranges() {
        check(
            &[
                "1.0.0.0",
                "1.1.1.1",
                "8.8.8.8",
                "9.255.255.255",
                "11.0.0.0",
                "100.63.255.255",
                "100.128.0.0",
                "126.255.255.255",
                "128.0.0.0",
                "169.253.255.255",
                "169.255.0.0",
                "172.15.255.255",
                "172.32.0.0",
                "192.0.1.0",
                "192.0.3.0",
                "192.88.98.255",
                "192.88.100.0",
                "192.167.255.255",
                "192.169.0.0",
                "198.17.255.255",
                "198.20.0.0",
                "198.51.99.255",
                "198.51.101.0",
                "203.0.112.255",
                "203.0.114.0",
                "223.255.255.255",
                "2000::1",
                "2001:200::1",
                "2600:1f18::1",
                "2606:4700::1111",
                "2a00:1450::1",
                "3ffe::1",
            ],
            "global",
        );
    }

    #[test]
    fn loopback_link_local_and_the_metadata_services_are_denied() {
        check(&["0.0.0.0", "0.1.2.3", "0.255.255.255"], "denied (this network)");
        check(&["127.0.0.1", "127.0.0.53", "127.255.255.255"], "denied (loopback)");
        check(&["169.254.0.0", "169.254.169.254", "169.254.170.2", "169.254.255.255"], "denied (link-local)");
        check(&["fe80::1", "febf:ffff::1"], "denied (link-local)");
        check(&["fd00:ec2::254", "fd00:ec2::253", "fd00:ec2:ffff::1"], "denied (instance metadata)");
        check(&["::"], "denied (unspecified)");
        check(&["::1"], "denied (loopback)");
        check(&["::8.8.8.8", "::169.254.169.254"], "denied (v4-compatible)");
    }

    #[test]
    fn multicast_broadcast_reserved_and_documentation_are_denied() {
        check(&["224.0.0.1", "239.255.255.255", "ff02::1", "ff00::"], "denied (multicast)");
        check(&["255.255.255.255"], "denied (broadcast)");
        check(&["240.0.0.0", "255.255.255.254"], "denied (reserved)");
        check(&["192.0.0.0", "192.0.0.255", "2001:2::1", "2001:1ff::1"], "denied (protocol assignments)");
        check(
            &["192.0.2.1", "198.51.100.1", "203.0.113.255", "2001:db8::1", "3fff:fff::1"],
            "denied (documentation)",
        );
        check(&["192.88.99.1"], "denied (6to4 relay)");
        check(&["100::1", "5f00::1", "4000::1", "fe00::1", "64:ff9b:2::1", "1::1"], "denied (unassigned)");
    }

    #[test]
    fn somebodys_own_networks_are_private() {
        check(
            &["10.0.0.0", "10.255.255.255", "172.16.0.0", "172.31.255.255", "192.168.0.1"],
            "private (private)",
        );
        check(&["100.64.0.0", "100.127.255.255"], "private (shared address space)");
        check(&["198.18.0.0", "198.19.255.255"], "private (benchmark)");
        check(&["fc00::1", "fd00::1", "fd00:ec1::1", "fdff::1"], "private (unique local)");
        check(&["fec0::1", "feff::1"], "private (site-local)");
    }

    #[test]
    fn an_address_that_carries_another_is_judged_by_the_inner_one() {
        check(&["::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::1", "::ffff:0:8.8.8.8"], "global");
        check(
            &[
                "::ffff:169.254.169.254",
                "::ffff:0:169.254.169.254",
                "64:ff9b::169.254.169.254",
                "2002:a9fe:a9fe::1",
                "64:ff9b:1::169.254.169.254",
                // Teredo: the client's bits are flipped; the server's are not.
                "2001:0:808:808:0:0:5601:5601",
                "2001:0:a9fe:a9fe:0:0:f7f7:f7f7",
            ],
            "denied (link-local)",
        );
        check(&["::ffff:127.0.0.1", "64:ff9b::127.0.0.1", "2002:7f00:1::"], "denied (loopback)");
        check(
            &["::ffff:10.1.2.3", "64:ff9b::10.1.2.3", "2002:a01:203::", "64:ff9b:1::10.1.2.3"],
            "private (private)",
        );
        // RFC 6052 with /48, /56 and /64: the octet at 64 is left out. The other layouts read zeros.
        for local in [
            "64:ff9b:1:a9fe:a9:fe08:808:808",
            "64:ff9b:1:8a9:fe:a9fe:808:808",
            "64:ff9b:1:808:a9:fea9:fe08:808",
        ] {
            assert!(matches!(classify(local.parse().unwrap()), Class::Denied(_)), "{local}");
        }
        check(&["2001:0:808:808:0:0:f7f7:f7f7", "64:ff9b:1::8.8.8.8"], "global");
    }

    #[test]
    fn a_network_holds_its_own_addresses_and_those_that_carry_one() {
        let lies =
            |address: &str, network: &str| lies_in(address.parse().unwrap(), &network.parse().unwrap());
        assert!(lies("10.1.2.3", "10.1.0.0/16"));
        assert!(!lies("10.2.2.3", "10.1.0.0/16"));
        assert!(lies("10.2.2.3", "0.0.0.0/0"));
        assert!(lies("10.2.2.3", "10.2.2.3/32"));
        assert!(lies("::ffff:10.1.2.3", "10.1.0.0/16"));
        assert!(lies("fd12::1", "fd12::/16"));
        assert!(!lies("fd13::1", "fd12::/16"));
        assert!(lies("fd13::1", "::/0"));
        assert!(!lies("10.1.2.3", "::/0"));
    }

    #[test]
    fn text_that_is_no_network_is_refused() {
        for bad in ["", "10.0.0.0", "10.0.0.0/33", "::/129", "name/8", "10.0.0/8", "10.0.0.0/-1", "10.0.0.0/"]
        {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
    }
}
