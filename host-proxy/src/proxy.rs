//! The whole proxy: its listeners, its boots, its end.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use enclave_protocol::{
    control::{EGRESS_PORT, Plan},
    transport::{Guest, HostListener},
};
use tokio::{
    io::AsyncWrite,
    net::{TcpListener, UnixListener},
    sync::{Mutex, mpsc, watch},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use crate::{
    accept,
    admin::{self, Admin},
    backoff::Backoff,
    cli::RunArgs,
    control::Control,
    counters::Counters,
    egress::{self, Egress},
    exit::{EndLine, Exit},
    health::Health,
    http, ingress,
    instance::instance_id,
    logs::Sink,
    metrics_page::{MetricsPage, Samples},
    monitor::Source,
    policy::Policy,
    resolve::Resolver,
    rules::{EgressRules, Reading, ReadingError},
    session::{self, Limits, Over},
    state::{Session, State, StateDir},
    sync::{self, SyncError},
    view::{Recent, Shared, Stop, View},
};

/// Egress ports that are tried from [`EGRESS_PORT`] on: one for every enclave of a node, and some.
const EGRESS_PORTS: u32 = 100;
/// How long a restarted proxy waits for the port that its enclave knows.
const EGRESS_PORT_WAIT: Duration = Duration::from_secs(10);
/// Longest life of a connection to /metrics or a probe.
const CONNECTION_LIFETIME: Duration = Duration::from_mins(5);
/// Longest life of a connection to the admin socket: `logs -f` is ended by its user.
const ADMIN_LIFETIME: Duration = Duration::from_hours(30 * 24);
/// How long the last line, and after it the admin connections, may take.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Why the proxy does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Options that do not fit together.
    #[error("{0}")]
    Arguments(&'static str),
    /// A listener that cannot be had.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Where.
        address: String,
        /// What went wrong.
        source: io::Error,
    },
    /// The state directory.
    #[error("state directory {path}: {source}")]
    State {
        /// Which.
        path: String,
        /// What went wrong.
        source: io::Error,
    },
}

/// A proxy with its own listeners bound; see the crate's documentation for what it does in which order.
#[derive(Debug)]
pub struct Proxy {
    args: RunArgs,
    source: Source,
    shared: Arc<Shared>,
    stops: mpsc::Receiver<Stop>,
    stored: Option<Session>,
    metrics: TcpListener,
    health: TcpListener,
    admin: UnixListener,
}

/// How the run ended.
struct Ended {
    exit: Exit,
    reason: String,
}

/// What one boot leads to.
enum Next {
    End(Ended),
    AnotherBoot,
}

impl Proxy {
    /// Binds the listeners that do not depend on the manifest and loads the stored session.
    pub async fn bind(args: RunArgs) -> Result<Self, StartError> {
        let guest = args.guest().map_err(StartError::Arguments)?;
        let metrics = listen(args.metrics_listen).await?;
        let health = listen(args.health_listen).await?;
        let admin = admin::bind(&args.admin)
            .map_err(|source| StartError::Listen { address: args.admin.display().to_string(), source })?;
        let state_error = |source| StartError::State { path: args.state_dir.display().to_string(), source };
        let store = StateDir::open(&args.state_dir).map_err(state_error)?;
        let stored = store.load().map_err(state_error)?;
        let known = stored.as_ref().map(|state| state.instance_id.clone());
        let instance = instance_id(args.instance_id.clone(), known).map_err(StartError::Arguments)?;
        let stored = stored.and_then(|state| state.session);
        let state = State { instance_id: instance.clone(), session: stored.clone() };
        store.store(&state, crate::state::Durability::Disk).map_err(state_error)?;

        let reserved = [&metrics, &health].into_iter().filter_map(|l| l.local_addr().ok()).map(|a| a.port());
        let source = Source {
            manifest: args.manifest.clone(),
            config_dir: args.config_dir.clone(),
            signature: args.signature.clone(),
            reserved: reserved.collect(),
        };
        // One request to stop is enough; later ones find it waiting.
        let (stops_sender, stops) = mpsc::channel(1);
        let shared = Shared {
            control: Control::new(guest),
            counters: Arc::new(Counters::default()),
            view: watch::Sender::new(View::default()),
            outages: watch::Sender::new(0),
            recent: Recent::default(),
            store,
            instance,
            pod: args.pod(),
            stops: stops_sender,
        };
        Ok(Self { args, source, shared: Arc::new(shared), stops, stored, metrics, health, admin })
    }

    /// Where requests to stop go.
    pub fn stops(&self) -> mpsc::Sender<Stop> {
        self.shared.stops.clone()
    }

    /// The address of /metrics.
    pub fn metrics_address(&self) -> io::Result<SocketAddr> {
        self.metrics.local_addr()
    }

    /// The address of the probes.
    pub fn health_address(&self) -> io::Result<SocketAddr> {
        self.health.local_addr()
    }

    /// Serves the enclave to its end. `stdout` gets the log records and the last line.
    pub async fn run<W: AsyncWrite + Send + Unpin + 'static>(self, stdout: W) -> Exit {
        let Self { args, source, shared, stops, stored, metrics, health, admin } = self;
        for named in &args.resolve {
            tracing::warn!(%named, "a destination is named by hand: no DNS, no check of the address");
        }
        let mut servers = JoinSet::new();
        let (admin_open, admin_guard) = watch::channel(());
        serve_pages(&mut servers, &shared, metrics, health, admin, admin_guard);
        let sink = Arc::new(Mutex::new(Sink::new(stdout)));
        let mut boots = Boots { args, source, shared: Arc::clone(&shared), stops, sink: Arc::clone(&sink) };
        let ended = tokio::select! {
            ended = boots.run(stored) => ended,
            Some(joined) = servers.join_next() => match joined {
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                Ok(()) | Err(_) => unreachable!("invariant: a server runs until it is dropped"),
            }
        };
        let status = shared.view.borrow().status.clone();
        let line = EndLine::new(ended.exit, &ended.reason, &shared.instance, status.as_ref()).to_line();
        shared.view.send_modify(|view| view.end = Some(line.clone()));
        last_words(&sink, &line).await;
        // `drain` waits for the end on the admin socket; it hears it before the socket closes.
        timeout(LAST_WORDS, admin_open.closed()).await.ok();
        servers.shutdown().await;
        ended.exit
    }
}

async fn listen(address: SocketAddr) -> Result<TcpListener, StartError> {
    let bound = TcpListener::bind(address).await;
    bound.map_err(|source| StartError::Listen { address: address.to_string(), source })
}

fn serve_pages(
    servers: &mut JoinSet<()>,
    shared: &Arc<Shared>,
    metrics: TcpListener,
    health: TcpListener,
    admin: UnixListener,
    admin_guard: watch::Receiver<()>,
) {
    let counters = &shared.counters;
    let samples = Arc::new(Samples::new(Arc::clone(shared)));
    let page = Arc::new(MetricsPage { shared: Arc::clone(shared), samples: Arc::clone(&samples) });
    servers.spawn(accept::serve(metrics, http::CONNECTIONS_MAX, Arc::clone(counters), move |stream, _| {
        http::connection(stream, Arc::clone(&page), CONNECTION_LIFETIME)
    }));
    let probes = Arc::new(Health { shared: Arc::clone(shared) });
    servers.spawn(accept::serve(health, http::CONNECTIONS_MAX, Arc::clone(counters), move |stream, _| {
        http::connection(stream, Arc::clone(&probes), CONNECTION_LIFETIME)
    }));
    let answers = Arc::new(Admin::new(Arc::clone(shared), samples));
    servers.spawn(accept::serve(admin, http::CONNECTIONS_MAX, Arc::clone(counters), move |stream, _| {
        let (answers, guard) = (Arc::clone(&answers), admin_guard.clone());
        async move {
            http::connection(stream, answers, ADMIN_LIFETIME).await;
            drop(guard);
        }
    }));
}

/// The last line goes to stdout, or to stderr where stdout takes nothing any more.
async fn last_words<W: AsyncWrite + Unpin>(sink: &Mutex<Sink<W>>, line: &str) {
    let written = timeout(LAST_WORDS, async { sink.lock().await.write(line.as_bytes()).await });
    if !matches!(written.await, Ok(Ok(()))) {
        crate::say(line);
    }
}

/// Goes from boot to boot of the enclave.
struct Boots<W> {
    args: RunArgs,
    source: Source,
    shared: Arc<Shared>,
    stops: mpsc::Receiver<Stop>,
    sink: Arc<Mutex<Sink<W>>>,
}

impl<W: AsyncWrite + Send + Unpin + 'static> Boots<W> {
    async fn run(&mut self, stored: Option<Session>) -> Ended {
        let mut stored = stored;
        loop {
            match self.boot(stored.take()).await {
                Ok(Next::End(ended)) => return ended,
                Ok(Next::AnotherBoot) => tracing::warn!("the enclave started anew"),
                Err(error) => {
                    crate::say(&format!("{error}\n"));
                    return Ended { exit: error.exit(), reason: error.to_string() };
                }
            }
        }
    }

    /// One boot of the enclave. The manifest on disk is read anew for each; a boot that is known goes on with
    /// what it runs, whatever lies there now.
    async fn boot(&mut self, stored: Option<Session>) -> Result<Next, SyncError> {
        let reading = self.source.read().await;
        if stored.is_none() {
            self.readable(&reading)?;
        }
        let limit = self.args.connect_timeout();
        let status = tokio::select! {
            status = sync::first_status(&self.shared, limit) => status?,
            Some(_) = self.stops.recv() => {
                let reason = "stopped before the enclave answered".to_owned();
                return Ok(Next::End(Ended { exit: Exit::Ok, reason }));
            }
        };
        let known = stored.filter(|session| {
            session.boot_id == status.boot_id && status.digest.as_ref() == Some(&session.digest)
        });
        let (session, mut ways) = if let Some(session) = known {
            tracing::info!(
                boot_id = session.boot_id,
                log_seq = session.log_seq,
                "going on with a known boot"
            );
            let (listener, _) = self.listen_egress(Some(session.egress_port)).await?;
            let ways = self.open_ways(listener, &session.plan).await?;
            (session, ways)
        } else if let Some(reason) = status.boot_failure() {
            return Err(SyncError::BootFailed(reason.to_owned()));
        } else {
            let reading = self.readable(&reading)?;
            let (listener, egress_port) = self.listen_egress(self.args.egress_port).await?;
            // Open before the manifest goes out: plugins start as soon as it is accepted.
            let ways = self.open_ways(listener, &reading.plan).await?;
            let manifest = &self.args.manifest;
            let session = sync::put_manifest(&self.shared, manifest, reading, egress_port, limit).await?;
            (session, ways)
        };
        drop(reading);
        self.shared.view.send_modify(|view| view.session = Some(session.clone()));
        let limits = Limits { grace_seconds: self.args.drain_grace, silence: limit };
        let over =
            session::serve(&self.shared, self.source.clone(), &session, &self.sink, &mut self.stops, limits)
                .await;
        // Their ports are free again before another boot listens on them.
        ways.shutdown().await;
        self.shared.view.send_modify(|view| {
            view.session = None;
            view.drift = None;
            view.remarks = Vec::new();
        });
        Ok(match over {
            Over::Ended(exit, reason) => Next::End(Ended { exit, reason }),
            Over::Rebooted => Next::AnotherBoot,
        })
    }

    fn readable<'a>(&self, reading: &'a Result<Reading, ReadingError>) -> Result<&'a Reading, SyncError> {
        reading.as_ref().map_err(|error| SyncError::reading(&self.args.manifest, error))
    }

    /// The listener for egress streams and its port. A `fixed` port may still be held by a dying predecessor.
    async fn listen_egress(&self, fixed: Option<u32>) -> Result<(HostListener, u32), SyncError> {
        let guest = self.shared.control.guest();
        let error = |port: u32, error: &io::Error| {
            SyncError::Reading(format!("cannot listen for egress streams on port {port}: {error}"))
        };
        let Some(port) = fixed else {
            return first_free(guest).map_err(|source| error(EGRESS_PORT, &source));
        };
        let deadline = Instant::now() + EGRESS_PORT_WAIT;
        let mut backoff = Backoff::default();
        loop {
            match guest.listen(port) {
                Ok(listener) => return Ok((listener, port)),
                Err(source) if source.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                    sleep(backoff.next()).await;
                }
                Err(source) => return Err(error(port, &source)),
            }
        }
    }

    /// Serves egress and ingress for this plan until the answer is dropped.
    async fn open_ways(&self, listener: HostListener, plan: &Plan) -> Result<JoinSet<()>, SyncError> {
        let mut ports = self.source.reserved.clone();
        ports.extend(plan.ingress.iter().map(|rule| rule.host_port));
        let policy = Policy::new(self.args.allow_private_egress.clone(), self.args.resolve.clone());
        let resolver = Arc::new(Resolver::new(policy, ports));
        let counters = &self.shared.counters;
        let egress = Egress::new(EgressRules::new(&plan.egress), resolver, Arc::clone(counters));
        let mut ways = JoinSet::new();
        ways.spawn(egress::serve(listener, Arc::new(egress)));
        for rule in &plan.ingress {
            let listener = ingress::bind(self.args.ingress_listen, rule).await.map_err(|error| {
                let address = SocketAddr::new(self.args.ingress_listen, rule.host_port);
                SyncError::Reading(format!("cannot listen on {address} for {}: {error}", rule.plugin))
            })?;
            let guest = self.shared.control.guest().clone();
            ways.spawn(ingress::serve(listener, rule.clone(), guest, Arc::clone(counters)));
        }
        Ok(ways)
    }
}

/// All pods of a node share the parent's vsock ports, so the first free one is taken.
fn first_free(guest: &Guest) -> io::Result<(HostListener, u32)> {
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for port in EGRESS_PORT..=EGRESS_PORT + EGRESS_PORTS {
        match guest.listen(port) {
            Ok(listener) => return Ok((listener, port)),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => last = error,
            Err(error) => return Err(error),
        }
    }
    Err(last)
}
