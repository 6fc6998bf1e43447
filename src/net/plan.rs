//! Tier 0 of the way out: every destination of a plugin has a loopback address of its own, the plugin's
//! `/etc/hosts` leads its name there, and one listener per address and port stands for the destination. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{self, Write as _},
    net::Ipv4Addr,
};

use enclave_protocol::control::EgressRule;

mod peers;

pub use peers::{PEERS_MAX, PeerListener, Peers, PortShared};

/// Most names of all plugins together: 127.64.0.1 to 127.64.255.255.
pub const NAMES_MAX: usize = (1 << 16) - 1;

/// The network the addresses are taken from; its first address stays free.
const BASE: Ipv4Addr = Ipv4Addr::new(127, 64, 0, 0);
const LOCALHOST: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";

/// What there is to open and to write.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// One per plugin, name and port, sorted.
    pub listeners: Vec<Listener>,
    /// The text of `/etc/hosts` per plugin that has egress; the others get [`Plan::hosts_of`]'s.
    hosts: BTreeMap<String, String>,
}

/// A listening socket to open: whoever connects to it wants `rule`'s destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// 127.64.x.y.
    pub address: Ipv4Addr,
    /// The destination's own port, so that the app need not know of the detour.
    pub port: u16,
    /// Plugin and destination.
    pub rule: EgressRule,
}

/// Why rules cannot be planned. The manifest's check comes first; this is the second line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// More than [`NAMES_MAX`].
    #[error("{0} names of outbound connections, more than {NAMES_MAX}")]
    TooMany(usize),
    /// Something that must not be written into `/etc/hosts`.
    #[error("plugin {plugin}: {fqdn:?} is not a host name")]
    Name {
        /// The plugin.
        plugin: String,
        /// What it calls a name.
        fqdn: String,
    },
    /// More than [`PEERS_MAX`].
    #[error("{0} ports of plugins seen from other plugins, more than {PEERS_MAX}")]
    Peers(usize),
}

/// A plugin's port that is also the port of an outbound connection. The listener at 127.64.x.y keeps the
/// plugin from binding 0.0.0.0:port (EADDRINUSE, with `SO_REUSEADDR` too); binding 127.0.0.1:port works.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Conflict {
    /// The plugin that listens.
    pub plugin: String,
    /// Its port.
    pub port: u16,
    /// One of the destinations with that port; there may be more.
    pub fqdn: String,
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { plugin, port, fqdn } = self;
        write!(
            f,
            "plugin {plugin} listens on port {port}, which is also the port of the outbound connection to \
             {fqdn}: it has to bind 127.0.0.1:{port}, for 0.0.0.0:{port} is taken"
        )
    }
}

impl Plan {
    /// Assigns the addresses, in the order of plugin and name: the same rules give the same plan.
    ///
    /// A destination that is listed with and without `tls` is held to `tls`.
    pub fn new(rules: &[EgressRule]) -> Result<Self, PlanError> {
        let names: BTreeSet<(&str, &str)> =
            rules.iter().map(|rule| (rule.plugin.as_str(), rule.fqdn.as_str())).collect();
        if names.len() > NAMES_MAX {
            return Err(PlanError::TooMany(names.len()));
        }
        let mut plan = Self::default();
        let mut addresses = BTreeMap::new();
        for ((plugin, fqdn), bits) in names.into_iter().zip(BASE.to_bits() + 1..) {
            if !is_host_name(fqdn) {
                return Err(PlanError::Name { plugin: plugin.to_owned(), fqdn: fqdn.to_owned() });
            }
            let address = Ipv4Addr::from_bits(bits);
            let text = plan.hosts.entry(plugin.to_owned()).or_insert_with(|| LOCALHOST.to_owned());
            // Writing to a String cannot fail.
            writeln!(text, "{address}\t{fqdn}").ok();
            addresses.insert((plugin, fqdn), address);
        }
        let mut listeners: BTreeMap<(Ipv4Addr, u16), EgressRule> = BTreeMap::new();
        for rule in rules {
            let Some(address) = addresses.get(&(rule.plugin.as_str(), rule.fqdn.as_str())) else { continue };
            listeners
                .entry((*address, rule.port))
                .and_modify(|known| known.tls |= rule.tls)
                .or_insert_with(|| rule.clone());
        }
        plan.listeners =
            listeners.into_iter().map(|((address, port), rule)| Listener { address, port, rule }).collect();
        Ok(plan)
    }

    /// The text of a plugin's `/etc/hosts`; only `localhost` for one without egress.
    pub fn hosts_of(&self, plugin: &str) -> &str {
        self.hosts.get(plugin).map_or(LOCALHOST, String::as_str)
    }

    /// Ports that plugins listen on (`containerPort`, `HOST_PORT`) and that this plan takes, sorted, where
    /// all plugins share one network namespace: one plugin's destination is in another's way as well.
    pub fn conflicts<'a>(&self, listening: impl IntoIterator<Item = (&'a str, u16)>) -> Vec<Conflict> {
        self.conflicts_where(listening, |_destination, _plugin| true)
    }

    /// The same where each plugin has a network namespace of its own: only its own destinations are in its
    /// way.
    pub fn own_conflicts<'a>(&self, listening: impl IntoIterator<Item = (&'a str, u16)>) -> Vec<Conflict> {
        self.conflicts_where(listening, |destination, plugin| destination.plugin == plugin)
    }

    fn conflicts_where<'a>(
        &self,
        listening: impl IntoIterator<Item = (&'a str, u16)>,
        same_namespace: impl Fn(&EgressRule, &str) -> bool,
    ) -> Vec<Conflict> {
        let mut taken: BTreeMap<u16, Vec<&EgressRule>> = BTreeMap::new();
        for listener in &self.listeners {
            taken.entry(listener.port).or_default().push(&listener.rule);
        }
        let found: BTreeSet<Conflict> = listening
            .into_iter()
            .filter_map(|(plugin, port)| {
                let rule = taken.get(&port)?.iter().find(|rule| same_namespace(rule, plugin))?;
                Some(Conflict { plugin: plugin.to_owned(), port, fqdn: rule.fqdn.clone() })
            })
            .collect();
        found.into_iter().collect()
    }
}

/// Whether a text can stand in `/etc/hosts` as a name: no white space, no comment, no address, not
/// `localhost`.
fn is_host_name(text: &str) -> bool {
    (1..=253).contains(&text.len())
        && text != "localhost"
        && text.parse::<Ipv4Addr>().is_err()
        && text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_'))
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    fn rule(plugin: &str, fqdn: &str, port: u16, tls: bool) -> EgressRule {
        EgressRule { plugin: plugin.into(), fqdn: fqdn.into(), port, tls }
    }

    fn show(plan: &Plan, plugins: &[&str]) -> String {
        let mut text = String::new();
        for Listener { address, port, rule } in &plan.listeners {
            let tls = if rule.tls { " tls" } else { "" };
            writeln!(text, "{address}:{port} = {} {}:{}{tls}", rule.plugin, rule.fqdn, rule.port).unwrap();
        }
        for plugin in plugins {
            write!(text, "--- {plugin}\n{}", plan.hosts_of(plugin)).unwrap();
        }
        text
    }

    #[test]
    fn each_plugin_and_name_has_its_own_address_whatever_the_order_of_the_rules() {
        let mut rules = vec![
            rule("telemetry", "otel.example.com", 4318, false),
            rule("app", "kms.example.com", 443, true),
            rule("app", "otel.example.com", 4318, false),
            rule("app", "kms.example.com", 8443, true),
        ];
        let plan = Plan::new(&rules).unwrap();
        expect![[r"
            127.64.0.1:443 = app kms.example.com:443 tls
            127.64.0.1:8443 = app kms.example.com:8443 tls
            127.64.0.2:4318 = app otel.example.com:4318
            127.64.0.3:4318 = telemetry otel.example.com:4318
            --- app
            127.0.0.1	localhost
            ::1	localhost ip6-localhost ip6-loopback
            127.64.0.1	kms.example.com
            127.64.0.2	otel.example.com
            --- telemetry
            127.0.0.1	localhost
            ::1	localhost ip6-localhost ip6-loopback
            127.64.0.3	otel.example.com
            --- other
            127.0.0.1	localhost
            ::1	localhost ip6-localhost ip6-loopback
        "]]
        .assert_eq(&show(&plan, &["app", "telemetry", "other"]));
        rules.reverse();
        assert_eq!(Plan::new(&rules).unwrap(), plan);
    }

    #[test]
    fn a_destination_listed_twice_has_one_listener_and_the_stricter_rule() {
        for order in [[false, true], [true, false]] {
            let plan = Plan::new(&order.map(|tls| rule("app", "a.example", 443, tls))).unwrap();
            assert_eq!(show(&plan, &[]), "127.64.0.1:443 = app a.example:443 tls\n");
        }
    }

    #[test]
    fn the_addresses_last_for_the_bound_and_more_names_are_an_error() {
        let mut rules: Vec<_> =
            (0..NAMES_MAX).map(|index| rule("app", &format!("n{index:05}.example"), 443, false)).collect();
        let plan = Plan::new(&rules).unwrap();
        assert_eq!(plan.listeners.len(), NAMES_MAX);
        assert_eq!(plan.listeners[0].address, Ipv4Addr::new(127, 64, 0, 1));
        assert_eq!(plan.listeners[NAMES_MAX - 1].address, Ipv4Addr::new(127, 64, 255, 255));
        rules.push(rule("app", "one.more", 443, false));
        assert_eq!(Plan::new(&rules), Err(PlanError::TooMany(NAMES_MAX + 1)));
    }

    #[test]
    fn nothing_but_a_host_name_gets_into_the_hosts_file() {
        for fqdn in
            ["", "a b", "a\n127.0.0.1 b", "a#b", "10.0.0.1", "localhost", "A.example", &"a".repeat(254)]
        {
            assert!(
                matches!(Plan::new(&[rule("p", fqdn, 1, false)]), Err(PlanError::Name { .. })),
                "{fqdn:?}"
            );
        }
    }

    #[test]
    fn a_port_that_a_plugin_serves_and_another_dials_is_a_conflict() {
        let plan = Plan::new(&[
            rule("telemetry", "otel.example.com", 4318, false),
            rule("app", "api.example.com", 443, true),
        ])
        .unwrap();
        let conflicts = plan.conflicts([("web", 443), ("web", 8001), ("telemetry", 4318), ("web", 443)]);
        let shown: Vec<_> = conflicts.iter().map(ToString::to_string).collect();
        expect![[r"
            plugin telemetry listens on port 4318, which is also the port of the outbound connection to otel.example.com: it has to bind 127.0.0.1:4318, for 0.0.0.0:4318 is taken
            plugin web listens on port 443, which is also the port of the outbound connection to api.example.com: it has to bind 127.0.0.1:443, for 0.0.0.0:443 is taken"]]
        .assert_eq(&shown.join("\n"));
    }

    #[test]
    fn in_its_own_namespace_a_plugin_is_in_nobodys_way_but_its_own() {
        let plan = Plan::new(&[
            rule("telemetry", "otel.example.com", 443, false),
            rule("app", "api.example.com", 443, true),
            rule("app", "db.example.com", 5432, true),
        ])
        .unwrap();
        let listening = [("web", 443), ("app", 443), ("telemetry", 5432), ("app", 8080)];
        let shown: Vec<_> = plan.own_conflicts(listening).iter().map(ToString::to_string).collect();
        expect!["plugin app listens on port 443, which is also the port of the outbound connection to api.example.com: it has to bind 127.0.0.1:443, for 0.0.0.0:443 is taken"]
        .assert_eq(&shown.join("\n"));
    }
}
