//! `enclave-supervisor run`: prepares the machine, reads what the image holds, binds the sockets, hands over
//! to the driver.
//!
//! A machine that cannot be used does not go silently: `confess` tells the host why, for a bounded time.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::{Arc, Mutex, atomic::AtomicU64},
    time::Duration,
};

use enclave_protocol::{
    control::{BOOT_FAILED, CONTROL_PORT, Condition, INGRESS_PORT, Phase, Status},
    policy::{POLICY_BYTES_MAX, Policy, PolicyError},
    transport::{Address, GuestListener, Host},
};
use tokio::{
    net::UnixListener,
    sync::{Semaphore, mpsc},
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    boot::{self, BootError, ClockSource, Machine, clock, heartbeat},
    catalog::Catalog,
    clock::Clock,
    control::{
        accept::Judge,
        board::{Board, COMMANDS_MAX, random_hex},
        routes::{Caller, Grants, LogGrant},
        server::{BODIES_BYTES_MAX, BootFailure, Shared, serve_host, serve_inside},
    },
    deployment::Ground,
    driver::{Driver, Parts},
    logs::{outlets::Outlets, own},
    options::{Exit, Init, Isolation, RunOptions},
    sample::system::Memory,
    status,
    sys::{
        self,
        cgroup::{Cgroups, Controller},
        spawn::{Program, ProgramError},
        surroundings::Surroundings,
    },
};

/// One above never: a machine that has nothing else to kill is better reset.
const OOM_SCORE_ADJ: &str = "-999";
/// Ingress connections that may wait for the driver.
const INGRESS_WAITING_MAX: usize = 64;
/// Bytes of a boot id.
const BOOT_ID_BYTES: usize = 16;
/// How long a boot that failed waits for the host to ask: host-proxy asks at least every few seconds.
const CONFESSION_MAX: Duration = Duration::from_secs(20);
/// How long its answer may take to reach the host: a reset tears the connection down at once.
const CONFESSION_LINGER: Duration = Duration::from_millis(500);

/// Why the supervisor cannot start.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The machine cannot be used.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The policy file is there and unusable: it must not count as an open one.
    #[error("policy {path}: {source}")]
    Policy {
        /// The file.
        path: String,
        /// What is wrong.
        source: PolicyError,
    },
    /// A file or socket.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// The system's answer.
        source: io::Error,
    },
    /// There is nothing to run plugins by.
    #[error(transparent)]
    PluginInit(#[from] ProgramError),
    /// No randomness.
    #[error("no random bytes: {0}")]
    Random(getrandom::Error),
}

impl From<getrandom::Error> for RunError {
    fn from(error: getrandom::Error) -> Self {
        Self::Random(error)
    }
}

/// Runs until the workload has ended. Panics of the driver end here too.
pub fn run(options: &RunOptions) -> Exit {
    let outlets = Arc::new(Outlets::default());
    let Ok(own) = own::install(options.log_format, Some(Arc::clone(&outlets))) else { return Exit::Internal };
    std::panic::set_hook(Box::new(|info| tracing::error!(panic = %info, "a task panicked")));
    let exit = catch_unwind(AssertUnwindSafe(|| {
        let machine = boot::prepare(options);
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                tracing::error!(%error, "cannot make the runtime");
                return Exit::Internal;
            }
        };
        runtime.block_on(async {
            match start(options, machine, Arc::clone(&outlets), Arc::clone(&own.lost)) {
                Ok(started) => started.attend().await,
                Err(error) => {
                    tracing::error!(%error, "cannot start");
                    if options.init != Init::Container {
                        confess(options, &outlets, &error).await;
                    }
                    Exit::Usage
                }
            }
        })
    }));
    let exit = exit.unwrap_or(Exit::Internal);
    if options.init == Init::Vm {
        tracing::info!(?exit, "the machine is reset");
    }
    own.flush();
    exit
}

/// What runs from the start to the end.
struct Started {
    driver: Driver,
    /// Never end by themselves.
    servers: JoinSet<()>,
    /// The heartbeat and the clock. Nothing depends on their end.
    background: JoinSet<()>,
}

impl Started {
    /// Runs the driver to its end. A server never ends by itself: one that does has panicked, and an enclave
    /// that nobody can reach any more must not look alive.
    async fn attend(self) -> Exit {
        let Self { driver, mut servers, background: _background } = self;
        tokio::select! {
            ended = driver.run() => ended.unwrap_or_else(|error| {
                tracing::error!(%error, "the driver cannot go on");
                Exit::Internal
            }),
            Some(ended) = servers.join_next() => {
                tracing::error!(panic = ended.is_err(), "a server of the control API has ended");
                Exit::Internal
            }
        }
    }
}

/// Everything before the first manifest.
fn start(
    options: &RunOptions,
    machine: Machine,
    outlets: Arc<Outlets>,
    stderr_lost: Arc<AtomicU64>,
) -> Result<Started, RunError> {
    let Machine { remarks, fatal, nsm, measurements, clock } = machine;
    let host = options.host();
    let mut background = JoinSet::new();
    if options.init == Init::Vm && options.transport == Address::Vsock {
        background.spawn(send_heartbeat(host.clone()));
    }
    if let Some(error) = fatal {
        return Err(error.into());
    }
    let boot_id = random_hex::<BOOT_ID_BYTES>()?;
    let mut remarks = remarks;
    let ground = ground(options, &boot_id, &mut remarks)?;
    let judge = Arc::new(judge(options, ground.isolated, remarks)?);
    let (commands, command_queue) = mpsc::channel(COMMANDS_MAX);
    let (ingress, ingress_queue) = mpsc::channel(INGRESS_WAITING_MAX);
    let status = Status { measurements, ..status::awaiting(&boot_id) };
    let host_clock = match clock {
        ClockSource::Host(clock) => Some(Mutex::new(clock)),
        ClockSource::Hypervisor(hypervisor) => {
            background.spawn(clock::keep_with(hypervisor));
            None
        }
        ClockSource::Unmanaged => None,
    };
    let shared = Arc::new(Shared {
        board: Arc::new(Board::new(status, outlets, commands)),
        judge: Ok(Arc::clone(&judge)),
        clock: host_clock,
        body_room: Semaphore::new(BODIES_BYTES_MAX),
    });
    let (servers, ingress_listener) = serve(options, &host, &shared, ingress)?;

    let version = env!("CARGO_PKG_VERSION");
    tracing::info!(boot_id, transport = %options.transport, version, "waiting for a manifest");
    let parts = Parts {
        shared,
        judge,
        commands: command_queue,
        ingress: ingress_queue,
        ingress_listener,
        host,
        ground,
        sample_interval: Duration::from_secs(options.sample_interval),
        drain_grace: options.drain_grace,
        seed: options.seed.map_or_else(getrandom::u64, Ok)?,
        stderr_lost,
        nsm,
    };
    Ok(Started { driver: Driver::new(parts, Clock::start()), servers, background })
}

/// Finds out what plugins can be given here. What they cannot is remarked.
fn ground(options: &RunOptions, boot_id: &str, remarks: &mut Vec<Condition>) -> Result<Ground, RunError> {
    let mut remark = |kind: &str, message: String| {
        tracing::warn!(kind, "{message}");
        remarks.push(Condition { kind: kind.to_owned(), message });
    };
    let root = nix::unistd::Uid::effective().is_root();
    if let Err(errno) = sys::descriptors::keep_to_ourselves() {
        remark("DescriptorsInherited", format!("cannot mark the descriptors that were open before: {errno}"));
    }
    // Others are killed for want of memory before the one that starts them again. It takes privilege.
    // In a container its maker decides about it.
    if let Err(error) = fs::write("/proc/self/oom_score_adj", OOM_SCORE_ADJ)
        && options.init != Init::Container
    {
        remark("NotProtected", format!("cannot leave the out-of-memory killer's list: {error}"));
    }
    let init = Arc::new(Program::find(options.plugin_init.as_deref())?);
    tracing::info!(program = %init.path().display(), "every plugin has this init");
    if !init.is_executed() {
        let message =
            "a program that is linked dynamically is no plugin's init: each has a copy of the supervisor";
        remark("InitNotStatic", format!("{message}, which costs memory"));
    }
    let (memory, available) = Memory::now().map_or((0, 0), |memory| (memory.total, memory.available));
    let name = format!("enclave-{}", boot_id.get(..12).unwrap_or(boot_id));
    let isolated = root && (options.isolation == Isolation::Full || options.init != Init::Container);
    if root && !isolated {
        let message = "plugins share the supervisor's processes, network and rights, as it was asked for";
        remark("NotIsolated", message.to_owned());
    }
    let made =
        if isolated { Cgroups::make(&name, available, options.init != Init::Container) } else { Ok(None) };
    let cgroups = made.unwrap_or_else(|error| {
        remark("NoControlGroups", format!("cannot make control groups: {error}: plugins are not limited"));
        None
    });
    let missing: Vec<&str> = match &cgroups {
        Some(cgroups) => {
            let missing = Controller::LIMITING.into_iter().filter(|one| !cgroups.limits(*one));
            missing.map(Controller::name).collect()
        }
        None => Controller::LIMITING.map(Controller::name).to_vec(),
    };
    if !missing.is_empty() {
        let message = format!("the kernel offers no control group for {}", missing.join(", "));
        remark("LimitsNotInForce", format!("{message}: such limits do not hold"));
    }
    let layers = isolated && sys::mount::knows("overlay");
    if isolated && !layers {
        let message = "the kernel has no overlayfs: what a plugin writes stays in its image until the end";
        remark("NoWritableLayer", message.to_owned());
    }
    let run = options.socket.parent().unwrap_or_else(|| Path::new("/")).to_owned();
    let surroundings = Surroundings::new()
        .map_err(|source| RunError::Io { what: "the plugins' surroundings".to_owned(), source })?;
    Ok(Ground { run, init, surroundings, cgroups, isolated, layers, memory })
}

/// Binds the sockets and serves them. Over vsock the socket for ingress is `net`'s to serve.
fn serve(
    options: &RunOptions,
    host: &Host,
    shared: &Arc<Shared>,
    ingress: mpsc::Sender<enclave_protocol::transport::Stream>,
) -> Result<(JoinSet<()>, Option<std::os::fd::OwnedFd>), RunError> {
    let tried = |what: String| move |source| RunError::Io { what, source };
    let mut servers = JoinSet::new();
    let listener = listen(options, host)?;
    servers.spawn(serve_host(listener, Arc::clone(shared), ingress));
    let ingress_listener = match host {
        Host::Vsock { .. } => {
            let listening =
                host.listen(INGRESS_PORT).map_err(tried(format!("listen on port {INGRESS_PORT}")))?;
            match listening {
                GuestListener::Vsock { listener, .. } => Some(listener.into()),
                GuestListener::Unix(_) => None,
            }
        }
        Host::Unix(_) => None,
    };
    let socket =
        bind_inside(&options.socket).map_err(tried(format!("listen on {}", options.socket.display())))?;
    let grants = Grants { metrics: true, status: true, logs: LogGrant::Host, telemetry: false };
    servers.spawn(serve_inside(socket, Arc::clone(shared), Caller::Inside(grants)));
    Ok((servers, ingress_listener))
}

fn listen(options: &RunOptions, host: &Host) -> Result<GuestListener, RunError> {
    let what = || format!("listen on {}", options.transport);
    host.listen(CONTROL_PORT).map_err(|source| RunError::Io { what: what(), source })
}

async fn send_heartbeat(host: Host) {
    match heartbeat::beat(&host).await {
        Ok(()) => tracing::info!("the parent has echoed the boot heartbeat"),
        Err(error) => tracing::warn!(%error, "the boot heartbeat failed"),
    }
}

/// Answers the host with the reason, until it has heard it or is not there.
async fn confess(options: &RunOptions, outlets: &Arc<Outlets>, error: &RunError) {
    if matches!(error, RunError::Boot(BootError::NoVsock(_))) {
        return;
    }
    let reason = error.to_string();
    let listener = match listen(options, &options.host()) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "the host cannot be told");
            return;
        }
    };
    let condition = Condition { kind: BOOT_FAILED.to_owned(), message: reason.clone() };
    // Without randomness there is no boot id; nobody compares this one with another.
    let boot_id = random_hex::<BOOT_ID_BYTES>().unwrap_or_default();
    let status = Status { phase: Phase::Failed, conditions: vec![condition], ..status::awaiting(&boot_id) };
    let (commands, _) = mpsc::channel(1);
    let shared = Arc::new(Shared {
        board: Arc::new(Board::new(status, Arc::clone(outlets), commands)),
        judge: Err(BootFailure { reason, ..BootFailure::default() }),
        clock: None,
        body_room: Semaphore::new(BODIES_BYTES_MAX),
    });
    let (ingress, _) = mpsc::channel(1);
    let mut servers = JoinSet::new();
    servers.spawn(serve_host(listener, Arc::clone(&shared), ingress));
    let Err(failure) = &shared.judge else { return };
    if timeout(CONFESSION_MAX, failure.told.notified()).await.is_ok() {
        sleep(CONFESSION_LINGER).await;
    } else {
        tracing::warn!("the host has not asked why this boot failed");
    }
}

fn judge(options: &RunOptions, own_networks: bool, mut remarks: Vec<Condition>) -> Result<Judge, RunError> {
    let mut remark = |kind: &str, message: String| {
        tracing::warn!(kind, "{message}");
        remarks.push(Condition { kind: kind.to_owned(), message });
    };
    let catalog = match Catalog::read(&options.plugins) {
        Ok((catalog, errors)) => {
            for error in errors {
                remark("PluginLeftOut", error.to_string());
            }
            catalog
        }
        Err(error) => {
            tracing::error!(%error, dir = %options.plugins.display(), "the image has no plugins");
            Catalog::default()
        }
    };
    let user = nix::unistd::Uid::effective();
    if !user.is_root() {
        let message =
            format!("the supervisor is not root: every plugin runs as user {user}, whatever it asks for");
        remark("NotRoot", message);
    }
    let path = options.policy.display().to_string();
    let policy = match read_bounded(&options.policy) {
        Ok(bytes) => Some(Policy::parse(&bytes).map_err(|source| RunError::Policy { path, source })?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => match options.init {
            Init::Container => {
                remark("PolicyOpen", format!("no policy at {path}: any manifest is accepted"));
                Some(Policy::Any)
            }
            Init::Vm | Init::Child => {
                tracing::error!("no policy at {path}: no manifest is accepted");
                None
            }
        },
        Err(source) => return Err(RunError::Io { what: format!("policy {path}"), source }),
    };
    Ok(Judge { catalog, policy, own_networks, remarks })
}

/// Reads at most one byte more than a policy may have: the parser then says that it is too long.
fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = fs::File::open(path)?;
    io::Read::read_to_end(&mut io::Read::take(file, POLICY_BYTES_MAX as u64 + 1), &mut bytes)?;
    Ok(bytes)
}

/// The supervisor's own socket, for its owner alone; one that a dead supervisor left is replaced.
fn bind_inside(path: &Path) -> io::Result<UnixListener> {
    if let Some(parent) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
    }
    let listener = enclave_protocol::transport::bind_unix(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}
