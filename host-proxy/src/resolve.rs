//! Names to addresses: the operator's own ones first, then DNS, every address judged by its class.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use hickory_resolver::{TokioResolver, net::NetError};
use tokio::{sync::Semaphore, time::timeout};

use crate::policy::Policy;

/// Lookups at one time (the number of evervault's proxy, which serves the same purpose).
const LOOKUPS_MAX: usize = 250;
/// How long a lookup, with its wait for a place, may take.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);
/// Answers kept.
const CACHE_ENTRIES: u64 = 4096;
/// Bounds of an answer's time to live: no storm of lookups for a zero, no address kept for hours.
const TTL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(5));
/// The same for "there is no such name".
const NEGATIVE_TTL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));
/// Addresses of one answer that are looked at.
const ADDRESSES_MAX: usize = 16;

/// Why a destination has no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ResolveError {
    /// DNS has none, or does not answer.
    #[error("does not resolve: {0}")]
    Unresolved(String),
    /// All that there are lie in a range that is not allowed.
    #[error("{address} is refused: {range}")]
    Forbidden {
        /// The first one.
        address: IpAddr,
        /// What it is.
        range: &'static str,
    },
}

/// Finds the addresses of allowed destinations.
#[derive(Debug)]
pub(crate) struct Resolver {
    dns: Result<TokioResolver, String>,
    policy: Policy,
    own_ports: Vec<u16>,
    places: Semaphore,
}

impl Resolver {
    /// With the system's DNS configuration. Without one every lookup fails and says so. `own_ports` are this
    /// program's own listeners, which the enclave must not reach through an address of this machine.
    pub(crate) fn new(policy: Policy, own_ports: Vec<u16>) -> Self {
        let dns = system_dns().map_err(|error| error.to_string());
        if let Err(error) = &dns {
            tracing::warn!(%error, "there is no DNS configuration: no name will resolve");
        }
        Self { dns, policy, own_ports, places: Semaphore::new(LOOKUPS_MAX) }
    }

    /// The addresses to try, in order.
    pub(crate) async fn resolve(&self, name: &str, port: u16) -> Result<Vec<SocketAddr>, ResolveError> {
        if let Some(address) = self.policy.named_address(name, port) {
            return Ok(vec![address]);
        }
        let looked_up = timeout(LOOKUP_TIMEOUT, async {
            let _place = self.places.acquire().await.map_err(|error| error.to_string())?;
            self.lookup(name).await
        });
        let found = looked_up.await.unwrap_or_else(|_| Err("no answer in time".to_owned()));
        self.judge(name, port, &found.map_err(ResolveError::Unresolved)?)
    }

    async fn lookup(&self, name: &str) -> Result<Vec<IpAddr>, String> {
        let dns = self.dns.as_ref().map_err(Clone::clone)?;
        // The manifest says fully qualified, so the name is asked for as such: with a pod's `ndots:5` the
        // search list would otherwise be asked first, five times. A cluster's short names still work
        // after that.
        let found = match dns.lookup_ip(format!("{name}.")).await {
            Err(error) if error.is_no_records_found() => dns.lookup_ip(name).await,
            other => other,
        };
        let found = found.map_err(|error| error.to_string())?;
        Ok(found.iter().take(ADDRESSES_MAX).collect())
    }

    /// Leaves out what may not be connected to.
    fn judge(&self, name: &str, port: u16, found: &[IpAddr]) -> Result<Vec<SocketAddr>, ResolveError> {
        let mut refused = None;
        let mut allowed = Vec::new();
        for address in found {
            let judged = self.policy.judge(name, *address).and_then(|()| {
                let own = self.own_ports.contains(&port) && is_local(*address);
                if own { Err("a listener of this program") } else { Ok(()) }
            });
            match judged {
                Ok(()) => allowed.push(SocketAddr::new(*address, port)),
                Err(range) => {
                    refused.get_or_insert(ResolveError::Forbidden { address: *address, range });
                }
            }
        }
        match refused {
            Some(refused) if allowed.is_empty() => Err(refused),
            Some(_) | None if allowed.is_empty() => Err(ResolveError::Unresolved("no address".to_owned())),
            Some(_) | None => Ok(allowed),
        }
    }
}

fn system_dns() -> Result<TokioResolver, NetError> {
    let mut builder = TokioResolver::builder_tokio()?;
    let options = builder.options_mut();
    options.cache_size = CACHE_ENTRIES;
    options.positive_min_ttl = Some(TTL.0);
    options.positive_max_ttl = Some(TTL.1);
    options.negative_min_ttl = Some(NEGATIVE_TTL.0);
    options.negative_max_ttl = Some(NEGATIVE_TTL.1);
    options.ip_strategy = hickory_resolver::config::LookupIpStrategy::Ipv4AndIpv6;
    builder.build()
}

/// Whether `address` is one of this machine's: only then does the kernel take it as the source towards
/// itself. Connecting a datagram socket sends nothing.
fn is_local(address: IpAddr) -> bool {
    let any: SocketAddr = match address {
        IpAddr::V4(_) => (std::net::Ipv4Addr::UNSPECIFIED, 0).into(),
        IpAddr::V6(_) => (std::net::Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let source = std::net::UdpSocket::bind(any).and_then(|socket| {
        socket.connect((address, 9))?;
        socket.local_addr()
    });
    source.is_ok_and(|source| source.ip() == address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolver(private: &[&str], own_ports: &[u16]) -> Resolver {
        let private = private.iter().map(|text| text.parse().unwrap()).collect();
        Resolver::new(Policy::new(private, vec![]), own_ports.to_vec())
    }

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[tokio::test]
    async fn only_the_allowed_addresses_of_an_answer_are_tried() {
        let judge = |found: &[&str]| resolver(&[], &[]).judge("a.example", 443, &ips(found));
        let allowed = judge(&["10.0.0.1", "8.8.8.8", "169.254.169.254", "2606:4700::1111"]).unwrap();
        assert_eq!(allowed, ["8.8.8.8:443".parse().unwrap(), "[2606:4700::1111]:443".parse().unwrap()]);
        let forbidden = judge(&["10.0.0.1", "127.0.0.1"]);
        assert!(matches!(forbidden, Err(ResolveError::Forbidden { range: "private", .. })));
        assert!(matches!(judge(&[]), Err(ResolveError::Unresolved(_))));
    }

    #[tokio::test]
    async fn an_address_of_this_machine_is_known_as_such() {
        assert!(is_local("127.0.0.1".parse().unwrap()));
        assert!(!is_local("192.0.2.1".parse().unwrap()));
    }

    #[tokio::test]
    async fn a_destination_named_by_hand_needs_no_dns_and_no_class() {
        let policy = Policy::new(vec![], vec!["c.example:4318:127.0.0.1:9".parse().unwrap()]);
        let resolver = Resolver::new(policy, vec![9]);
        assert_eq!(resolver.resolve("c.example", 4318).await, Ok(vec!["127.0.0.1:9".parse().unwrap()]));
    }

    #[tokio::test]
    async fn localhost_resolves_to_an_address_that_is_refused() {
        let refused = resolver(&["localhost", "0.0.0.0/0"], &[]).resolve("localhost", 80).await;
        assert!(matches!(refused, Err(ResolveError::Forbidden { range: "loopback", .. })), "{refused:?}");
    }
}
