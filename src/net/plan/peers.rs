//! Which plugins reach which ports of each other. Each has a network namespace of its own; a declared port is
//! reached from the others at 127.0.0.1 all the same, as the containers of a pod reach each other.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::Ipv4Addr,
};

use super::PlanError;

/// Most listeners between plugins: 128 plugins with one port each. A listener costs about five kilobytes,
/// most of them the kernel's (1.3 KiB are `net`'s, measured with 9,900).
pub const PEERS_MAX: usize = 1 << 14;

/// The network of the plugins' own addresses; its first one stays free.
const CALLERS: Ipv4Addr = Ipv4Addr::new(127, 65, 0, 0);

/// What there is to open between plugins.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Peers {
    /// By port, then in the order in which the plugins start.
    pub listeners: Vec<PeerListener>,
    /// Ports that are not reached from other plugins, sorted.
    pub shared: Vec<PortShared>,
}

/// A socket that listens at 127.0.0.1:`port` in the namespace of `from` and stands for that port of `to`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerListener {
    /// The plugin that connects.
    pub from: String,
    /// The plugin that serves.
    pub to: String,
    /// The port, the same on both sides.
    pub port: u16,
    /// The address from which the connections are made, where the plugin that serves tells its callers apart;
    /// 127.0.0.1 otherwise, as between the containers of a pod: servers trust that address.
    pub source: Option<Ipv4Addr>,
}

/// A port that two plugins declare. There is one 127.0.0.1:port in the others' namespaces: they reach the
/// plugin that starts first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortShared {
    /// The port.
    pub port: u16,
    /// Who is reached.
    pub first: String,
    /// Who is not.
    pub second: String,
}

impl fmt::Display for PortShared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { port, first, second } = self;
        write!(
            f,
            "plugins {first} and {second} both declare port {port}: at 127.0.0.1:{port} the other plugins \
             reach {first}, which starts first"
        )
    }
}

impl Peers {
    /// Plans for plugins in start order, each with its declared TCP ports.
    pub fn new<'a>(plugins: &[(&'a str, &[u16])]) -> Result<Self, PlanError> {
        let mut serves: BTreeMap<u16, Vec<&'a str>> = BTreeMap::new();
        for (plugin, ports) in plugins {
            for port in ports.iter().collect::<BTreeSet<_>>() {
                serves.entry(*port).or_default().push(plugin);
            }
        }
        // Counted before anything is made: the product of two bounded lists is large.
        let count = serves.values().map(|servers| plugins.len().saturating_sub(servers.len())).sum();
        if count > PEERS_MAX {
            return Err(PlanError::Peers(count));
        }
        let mut peers = Self::default();
        for (port, servers) in serves {
            let Some((first, others)) = servers.split_first() else { continue };
            for second in others {
                let (first, second) = ((*first).to_owned(), (*second).to_owned());
                peers.shared.push(PortShared { port, first, second });
            }
            // In its own namespace a plugin's port is its own.
            let connecting = plugins.iter().filter(|(from, _)| !servers.contains(from));
            peers.listeners.extend(connecting.map(|(from, _)| PeerListener {
                from: (*from).to_owned(),
                to: (*first).to_owned(),
                port,
                source: None,
            }));
        }
        peers.shared.sort();
        Ok(peers)
    }

    /// Gives every plugin an address of its own towards the plugin `to`, by its place in `plugins`:
    /// 127.65.0.1 and on. Plugins beyond the 65,535th keep 127.0.0.1.
    pub fn tell_apart(&mut self, to: &str, plugins: &[(&str, &[u16])]) {
        let addresses: BTreeMap<&str, Ipv4Addr> = plugins
            .iter()
            .zip(CALLERS.to_bits() + 1..CALLERS.to_bits() + (1 << 16))
            .map(|((plugin, _), bits)| (*plugin, Ipv4Addr::from_bits(bits)))
            .collect();
        for listener in self.listeners.iter_mut().filter(|listener| listener.to == to) {
            listener.source = addresses.get(listener.from.as_str()).copied();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use expect_test::{Expect, expect};

    use super::*;

    fn check(plugins: &[(&str, &[u16])], expected: &Expect) {
        let peers = Peers::new(plugins).unwrap();
        let mut text = String::new();
        for PeerListener { from, to, port, .. } in &peers.listeners {
            writeln!(text, "{from} -> {to}:{port}").unwrap();
        }
        for shared in &peers.shared {
            writeln!(text, "{shared}").unwrap();
        }
        expected.assert_eq(&text);
    }

    #[test]
    fn every_port_is_reached_from_every_other_plugin_and_none_from_its_own() {
        check(
            &[("telemetry", &[4318]), ("web", &[8080, 443, 8080]), ("batch", &[])],
            &expect![[r#"
                telemetry -> web:443
                batch -> web:443
                web -> telemetry:4318
                batch -> telemetry:4318
                telemetry -> web:8080
                batch -> web:8080
            "#]],
        );
    }

    #[test]
    fn a_port_that_two_declare_leads_to_the_first_and_stays_each_ones_own() {
        check(
            &[("b", &[80]), ("a", &[80, 81]), ("c", &[80]), ("d", &[])],
            &expect![[r#"
                d -> b:80
                b -> a:81
                c -> a:81
                d -> a:81
                plugins b and a both declare port 80: at 127.0.0.1:80 the other plugins reach b, which starts first
                plugins b and c both declare port 80: at 127.0.0.1:80 the other plugins reach b, which starts first
            "#]],
        );
    }

    #[test]
    fn towards_one_plugin_each_other_one_has_an_address_of_its_own() {
        let plugins: [(&str, &[u16]); 3] = [("telemetry", &[4318]), ("web", &[80]), ("db", &[])];
        let mut peers = Peers::new(&plugins).unwrap();
        peers.tell_apart("telemetry", &plugins);
        let sources: Vec<_> = peers.listeners.iter().map(|l| (l.from.as_str(), l.port, l.source)).collect();
        let web = Some(Ipv4Addr::new(127, 65, 0, 2));
        let db = Some(Ipv4Addr::new(127, 65, 0, 3));
        assert_eq!(
            sources,
            [("telemetry", 80, None), ("db", 80, None), ("web", 4318, web), ("db", 4318, db)]
        );
    }

    #[test]
    fn without_ports_or_others_there_is_nothing_to_open() {
        check(&[], &expect![[r#""#]]);
        check(&[("a", &[1, 2])], &expect![[r#""#]]);
        check(&[("a", &[]), ("b", &[])], &expect![[r#""#]]);
    }

    #[test]
    fn the_bound_is_met_exactly_and_one_more_is_an_error() {
        let ports: Vec<u16> = (1..).take(PEERS_MAX).collect();
        let whole = Peers::new(&[("a", &ports), ("b", &[])]).unwrap();
        assert_eq!(whole.listeners.len(), PEERS_MAX);
        let over = Peers::new(&[("a", &ports), ("b", &[60_000])]);
        assert_eq!(over, Err(PlanError::Peers(PEERS_MAX + 1)));
    }
}
