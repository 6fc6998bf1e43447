//! `enclave-supervisor run`: reads what the image holds, binds the sockets, hands over to the driver.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::Arc,
    time::Duration,
};

use enclave_protocol::{
    control::{CONTROL_PORT, Condition, INGRESS_PORT},
    policy::{POLICY_BYTES_MAX, Policy, PolicyError},
    transport::{GuestListener, Host},
};
use tokio::{
    net::UnixListener,
    sync::{Semaphore, mpsc},
    task::JoinSet,
};

use crate::{
    catalog::Catalog,
    clock::Clock,
    control::{
        accept::Judge,
        board::{Board, COMMANDS_MAX, random_hex},
        routes::{Caller, Grants},
        server::{BODIES_BYTES_MAX, Shared, serve_host, serve_inside},
    },
    driver::{Driver, Parts},
    logs::{own, ring::Rings},
    options::{Exit, Init, RunOptions},
    status, sys,
};

/// Ingress connections that may wait for the driver.
const INGRESS_WAITING_MAX: usize = 64;
/// Bytes of a boot id.
const BOOT_ID_BYTES: usize = 16;

/// Why the supervisor cannot start.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
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
    /// Not in this release.
    #[error("--init {0:?} comes with the enclave image; this release has container")]
    InitNotImplemented(Init),
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
    let rings = Arc::new(Rings::new());
    let Ok(own) = own::install(options.log_format, Some(Arc::clone(&rings))) else { return Exit::Internal };
    std::panic::set_hook(Box::new(|info| tracing::error!(panic = %info, "a task panicked")));
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "cannot make the runtime");
            return Exit::Internal;
        }
    };
    let exit = catch_unwind(AssertUnwindSafe(|| {
        runtime.block_on(async {
            match start(options, rings, Arc::clone(&own.lost)) {
                Ok((driver, servers)) => attend(driver, servers).await,
                Err(error) => {
                    tracing::error!(%error, "cannot start");
                    Exit::Usage
                }
            }
        })
    }));
    own.flush();
    exit.unwrap_or(Exit::Internal)
}

/// Runs the driver to its end. A server never ends by itself: one that does has panicked, and an enclave that
/// nobody can reach any more must not look alive.
async fn attend(driver: Driver, mut servers: JoinSet<()>) -> Exit {
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

/// Everything before the first manifest.
fn start(
    options: &RunOptions,
    rings: Arc<Rings>,
    stderr_lost: Arc<std::sync::atomic::AtomicU64>,
) -> Result<(Driver, JoinSet<()>), RunError> {
    if options.init != Init::Container {
        return Err(RunError::InitNotImplemented(options.init));
    }
    prepare_process();
    let judge = judge(options)?;
    let boot_id = random_hex::<BOOT_ID_BYTES>()?;
    let (commands, command_queue) = mpsc::channel(COMMANDS_MAX);
    let (ingress, ingress_queue) = mpsc::channel(INGRESS_WAITING_MAX);
    let board = Board::new(status::awaiting(&boot_id), rings, commands);
    let shared =
        Arc::new(Shared { board: Arc::new(board), judge, body_room: Semaphore::new(BODIES_BYTES_MAX) });
    let host = options.host();
    let tried = |what: String| move |source| RunError::Io { what, source };

    let mut tasks = JoinSet::new();
    let listener = host.listen(CONTROL_PORT).map_err(tried(format!("listen on {}", options.transport)))?;
    tasks.spawn(serve_host(listener, Arc::clone(&shared), ingress));
    let ingress_listener = match &host {
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
    let run_dir = options.socket.parent().unwrap_or_else(|| Path::new("/")).to_owned();
    let socket =
        bind_inside(&options.socket).map_err(tried(format!("listen on {}", options.socket.display())))?;
    let grants = Grants { metrics: true, status: true, logs: true };
    tasks.spawn(serve_inside(socket, Arc::clone(&shared), Caller::Inside(grants)));

    let version = env!("CARGO_PKG_VERSION");
    tracing::info!(boot_id, transport = %options.transport, version, "waiting for a manifest");
    let seed = match options.seed {
        Some(seed) => seed,
        None => getrandom::u64()?,
    };
    let parts = Parts {
        shared,
        commands: command_queue,
        ingress: ingress_queue,
        ingress_listener,
        host,
        run_dir,
        sample_interval: Duration::from_secs(options.sample_interval),
        drain_grace: options.drain_grace,
        seed,
        stderr_lost,
    };
    Ok((Driver::new(parts, Clock::start()), tasks))
}

/// What the process needs wherever it runs. Nothing here is fatal.
fn prepare_process() {
    let done = |what: &str, done: io::Result<()>| {
        if let Err(error) = done {
            tracing::warn!(%error, "cannot {what}");
        }
    };
    if std::process::id() != 1 {
        done("adopt orphans", sys::reaper::adopt_orphans());
    }
    done("raise the loopback interface", sys::loopback::raise());
    done("raise the limit of open files", sys::limits::raise_open_files().map(drop));
}

fn judge(options: &RunOptions) -> Result<Judge, RunError> {
    let catalog = match Catalog::read(&options.plugins) {
        Ok((catalog, errors)) => {
            for error in errors {
                tracing::error!(%error, "a plugin of the image is left out");
            }
            catalog
        }
        Err(error) => {
            tracing::error!(%error, dir = %options.plugins.display(), "the image has no plugins");
            Catalog::default()
        }
    };
    let mut remarks = Vec::new();
    let user = nix::unistd::Uid::effective();
    if !user.is_root() {
        let message =
            format!("the supervisor is not root: every plugin runs as user {user}, whatever it asks for");
        tracing::warn!("{message}");
        remarks.push(Condition { kind: "NotRoot".to_owned(), message });
    }
    let path = options.policy.display().to_string();
    let policy = match read_bounded(&options.policy) {
        Ok(bytes) => Policy::parse(&bytes).map_err(|source| RunError::Policy { path, source })?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let message = format!("no policy at {path}: any manifest is accepted");
            tracing::warn!("{message}");
            remarks.push(Condition { kind: "PolicyOpen".to_owned(), message });
            Policy::Any
        }
        Err(source) => return Err(RunError::Io { what: format!("policy {path}"), source }),
    };
    Ok(Judge { catalog, policy, remarks })
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
