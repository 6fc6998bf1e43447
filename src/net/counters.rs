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
    metrics::{Family, Point},
    relay::Moved,
};
use tokio::task::JoinError;

/// The counters of one direction.
#[derive(Debug)]
pub(crate) struct Counters {
    /// `egress`, `ingress` or `peer`.
    direction: &'static str,
    /// The label that names the far end of a route: `destination` or `port`.
    route_label: &'static str,
    /// By plugin and route. Only the manifest's rules get in, which bounds it.
    routes: Mutex<BTreeMap<(String, String), Arc<Route>>>,
    /// By plugin (none as long as the plugin is not known) and reason.
    refused: Mutex<BTreeMap<(Option<String>, &'static str), u64>>,
    panics: AtomicU64,
    accept_errors: AtomicU64,
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
        Self::new("egress", "destination")
    }

    pub(crate) fn ingress() -> Self {
        Self::new("ingress", "port")
    }

    pub(crate) fn peer() -> Self {
        Self::new("peer", "port")
    }

    fn new(direction: &'static str, route_label: &'static str) -> Self {
        Self {
            direction,
            route_label,
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
        let per_route = |value: fn(&RouteState) -> u64| -> Vec<Point> {
            let point = |((plugin, route), counters): (&(String, String), &Arc<Route>)| {
                let labels = [("plugin", plugin.as_str()), (self.route_label, route.as_str())];
                Point::labelled(labels, value(&lock(&counters.0)) as f64)
            };
            routes.iter().map(point).collect()
        };
        let count = |what: &str, help: &str, points| Family::counter(&self.name(what), help, points);
        let bare = |counter: &AtomicU64| vec![Point::bare(counter.load(Ordering::Relaxed) as f64)];
        vec![
            count(
                "connections_total",
                "Streams that both sides agreed to",
                per_route(|state| state.connections),
            ),
            Family::gauge(
                &self.name("connections_active"),
                "Streams open now",
                per_route(|state| state.live.len() as u64),
            ),
            count(
                "broken_total",
                "Streams ended by an error or the idle limit",
                per_route(|state| state.broken),
            ),
            count("sent_bytes_total", "Bytes from whoever connected", per_route(RouteState::sent_now)),
            count("received_bytes_total", "Bytes to whoever connected", per_route(RouteState::received_now)),
            count("refused_total", "Streams refused, by reason", self.refusals()),
            count("accept_errors_total", "Failed accepts", bare(&self.accept_errors)),
            count("panics_total", "Streams closed by a panic in their task", bare(&self.panics)),
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

    fn name(&self, what: &str) -> String {
        format!("enclave_{}_{what}", self.direction)
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
