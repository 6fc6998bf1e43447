//! What `net` counts, and how it reads as metric families.

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use enclave_protocol::{
    metrics::{
        Family, Point,
        catalogue::{Entry, relay},
    },
    relay::Moved,
};
use tokio::task::JoinError;

/// The counters of one direction.
#[derive(Debug)]
pub(crate) struct Counters {
    /// `egress`, `ingress` or `peer`.
    direction: &'static str,
    /// The families.
    entries: Entries,
    /// By plugin and route. Only the manifest's rules get in, which bounds it.
    routes: Mutex<BTreeMap<(String, String), Arc<Route>>>,
    /// By plugin (none as long as the plugin is not known) and reason.
    refused: Mutex<BTreeMap<(Option<String>, &'static str), u64>>,
    panics: AtomicU64,
    accept_errors: AtomicU64,
}

/// The catalogue's entries of one direction.
#[derive(Debug)]
struct Entries {
    connections: &'static Entry,
    active: &'static Entry,
    broken: &'static Entry,
    sent: &'static Entry,
    received: &'static Entry,
    refused: &'static Entry,
    accept_errors: &'static Entry,
    panics: &'static Entry,
}

/// The counters of one route.
#[derive(Debug, Default)]
pub(crate) struct Route(Mutex<RouteState>);

#[derive(Debug, Default)]
struct RouteState {
    connections: u64,
    broken: u64,
    sent: u64,
    received: u64,
    live: BTreeMap<u64, Arc<Moved>>,
}

/// One connection that is being carried. Its end, a panic too, takes it off the gauge.
#[derive(Debug)]
pub(crate) struct Carried {
    route: Arc<Route>,
    id: u64,
    /// Bytes; forward is away from whoever connected.
    pub(crate) moved: Arc<Moved>,
    broken: bool,
}

impl Route {
    /// Counts a connection that both sides agreed to.
    pub(crate) fn start(self: &Arc<Self>) -> Carried {
        let moved = Arc::<Moved>::default();
        let mut state = lock(&self.0);
        state.connections += 1;
        let id = state.connections;
        state.live.insert(id, Arc::clone(&moved));
        Carried { route: Arc::clone(self), id, moved, broken: true }
    }
}

impl Carried {
    /// Both directions ended as they should.
    pub(crate) fn ended_well(mut self) {
        self.broken = false;
    }
}

impl Drop for Carried {
    fn drop(&mut self) {
        let mut state = lock(&self.route.0);
        state.live.remove(&self.id);
        state.sent += self.moved.forward.load(Ordering::Relaxed);
        state.received += self.moved.backward.load(Ordering::Relaxed);
        state.broken += u64::from(self.broken);
    }
}

impl Counters {
    pub(crate) fn egress() -> Self {
        let entries = Entries {
            connections: &relay::EGRESS_CONNECTIONS,
            active: &relay::EGRESS_ACTIVE,
            broken: &relay::EGRESS_BROKEN,
            sent: &relay::EGRESS_SENT,
            received: &relay::EGRESS_RECEIVED,
            refused: &relay::EGRESS_REFUSED,
            accept_errors: &relay::EGRESS_ACCEPT_ERRORS,
            panics: &relay::EGRESS_PANICS,
        };
        Self::new("egress", entries)
    }

    pub(crate) fn ingress() -> Self {
        let entries = Entries {
            connections: &relay::INGRESS_CONNECTIONS,
            active: &relay::INGRESS_ACTIVE,
            broken: &relay::INGRESS_BROKEN,
            sent: &relay::INGRESS_SENT,
            received: &relay::INGRESS_RECEIVED,
            refused: &relay::INGRESS_REFUSED,
            accept_errors: &relay::INGRESS_ACCEPT_ERRORS,
            panics: &relay::INGRESS_PANICS,
        };
        Self::new("ingress", entries)
    }

    pub(crate) fn peer() -> Self {
        let entries = Entries {
            connections: &relay::PEER_CONNECTIONS,
            active: &relay::PEER_ACTIVE,
            broken: &relay::PEER_BROKEN,
            sent: &relay::PEER_SENT,
            received: &relay::PEER_RECEIVED,
            refused: &relay::PEER_REFUSED,
            accept_errors: &relay::PEER_ACCEPT_ERRORS,
            panics: &relay::PEER_PANICS,
        };
        Self::new("peer", entries)
    }

    fn new(direction: &'static str, entries: Entries) -> Self {
        Self {
            direction,
            entries,
            routes: Mutex::default(),
            refused: Mutex::default(),
            panics: AtomicU64::new(0),
            accept_errors: AtomicU64::new(0),
        }
    }

    /// The counters of a rule; they are reported from now on, zero or not.
    pub(crate) fn route(&self, plugin: &str, route: String) -> Arc<Route> {
        Arc::clone(lock(&self.routes).entry((plugin.to_owned(), route)).or_default())
    }

    /// Counts a stream that was refused.
    pub(crate) fn refuse(&self, plugin: Option<&str>, reason: &'static str) {
        *lock(&self.refused).entry((plugin.map(str::to_owned), reason)).or_default() += 1;
    }

    /// Counts an `accept` that failed.
    pub(crate) fn accept_failed(&self, error: &io::Error) {
        self.accept_errors.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(direction = self.direction, %error, "accept failed");
    }

    /// Looks at how a stream's task ended. Its sockets are closed by then, a panic or not.
    pub(crate) fn joined(&self, ended: Result<(), JoinError>) {
        if let Err(error) = ended
            && error.is_panic()
        {
            self.panics.fetch_add(1, Ordering::Relaxed);
            tracing::error!(direction = self.direction, %error, "a stream's task panicked");
        }
    }

    /// Everything, as families.
    pub(crate) fn families(&self) -> Vec<Family> {
        let routes = lock(&self.routes);
        let per_route = |entry: &Entry, value: fn(&RouteState) -> u64| -> Family {
            // The second label names the far end: `destination` or `port`.
            let far_end = entry.labels.last().copied().unwrap_or_default();
            let point = |((plugin, route), counters): (&(String, String), &Arc<Route>)| {
                let labels = [("plugin", plugin.as_str()), (far_end, route.as_str())];
                Point::labelled(labels, value(&lock(&counters.0)) as f64)
            };
            entry.family(routes.iter().map(point).collect())
        };
        let bare = |entry: &Entry, counter: &AtomicU64| entry.bare(counter.load(Ordering::Relaxed) as f64);
        let entries = &self.entries;
        vec![
            per_route(entries.connections, |state| state.connections),
            per_route(entries.active, |state| state.live.len() as u64),
            per_route(entries.broken, |state| state.broken),
            per_route(entries.sent, RouteState::sent_now),
            per_route(entries.received, RouteState::received_now),
            entries.refused.family(self.refusals()),
            bare(entries.accept_errors, &self.accept_errors),
            bare(entries.panics, &self.panics),
        ]
    }

    fn refusals(&self) -> Vec<Point> {
        let point = |((plugin, reason), count): (&(Option<String>, &'static str), &u64)| {
            let mut point = Point::labelled([("reason", reason)], *count as f64);
            if let Some(plugin) = plugin {
                point.labels.insert("plugin".to_owned(), plugin.clone());
            }
            point
        };
        lock(&self.refused).iter().map(point).collect()
    }
}

impl RouteState {
    fn sent_now(&self) -> u64 {
        self.sent + self.live.values().map(|moved| moved.forward.load(Ordering::Relaxed)).sum::<u64>()
    }

    fn received_now(&self) -> u64 {
        self.received + self.live.values().map(|moved| moved.backward.load(Ordering::Relaxed)).sum::<u64>()
    }
}

/// A panic elsewhere leaves the numbers as they were: they stay readable.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use expect_test::{Expect, expect};
    use tokio::task::JoinSet;

    use super::*;

    fn check(counters: &Counters, expected: &Expect) {
        let mut text = String::new();
        for family in counters.families() {
            for point in family.points {
                writeln!(text, "{} {:?} {}", family.name, point.labels, point.value).unwrap();
            }
        }
        expected.assert_eq(&text);
    }

    #[tokio::test]
    async fn open_streams_count_with_their_bytes_and_a_panic_closes_its_stream() {
        let counters = Counters::egress();
        let route = counters.route("app", "a.example:443".to_owned());
        let open = route.start();
        open.moved.forward.store(5, Ordering::Relaxed);
        let well = route.start();
        well.moved.backward.store(7, Ordering::Relaxed);
        well.ended_well();
        let mut tasks = JoinSet::new();
        let carried = route.start();
        tasks.spawn(async move {
            carried.moved.forward.store(1, Ordering::Relaxed);
            panic!("on purpose");
        });
        counters.joined(tasks.join_next().await.unwrap());
        counters.refuse(Some("app"), "tls_refused");
        counters.refuse(None, "malformed");
        check(
            &counters,
            &expect![[r#"
                enclave_egress_connections_total {"destination": "a.example:443", "plugin": "app"} 3
                enclave_egress_connections_active {"destination": "a.example:443", "plugin": "app"} 1
                enclave_egress_broken_total {"destination": "a.example:443", "plugin": "app"} 1
                enclave_egress_sent_bytes_total {"destination": "a.example:443", "plugin": "app"} 6
                enclave_egress_received_bytes_total {"destination": "a.example:443", "plugin": "app"} 7
                enclave_egress_refused_total {"reason": "malformed"} 1
                enclave_egress_refused_total {"plugin": "app", "reason": "tls_refused"} 1
                enclave_egress_accept_errors_total {} 0
                enclave_egress_panics_total {} 1
            "#]],
        );
        drop(open);
    }
}
