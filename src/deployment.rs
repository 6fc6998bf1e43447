//! An accepted manifest made ready to run: files laid out, root file systems prepared, sockets bound.
//!
//! Everything that can fail fails here, before the first spawn; what is left of a failed attempt is removed.

use std::{
    collections::BTreeMap,
    fs, io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use enclave_protocol::{
    control::{EgressRule, Files, IngressRule},
    manifest::{Access, Plugin, PluginKind, Source, Volume},
};
use tokio::net::{UnixDatagram, UnixListener};

use crate::{
    catalog::{Baked, Catalog},
    control::{
        accept::Candidate,
        routes::{Grants, LogGrant},
    },
    identity, launch,
    net::plan::{PeerListener, Peers, Plan as Addresses, PlanError},
    rootfs::{self, PathError},
    sys::{
        capability::Capabilities,
        cgroup::{Cgroup, Cgroups, Limits},
        confine::Identity,
        netns::{NetworkNamespace, tcp_socket},
        recipe::{Bind, Launch, Rights, Writes},
        spawn::{Failure, Program, Recipe},
        surroundings::Surroundings,
    },
};

/// Processes and threads of a plugin without a limit of its own: enough for a large Java program, and a small
/// part of what a machine of 512 MiB can have (its `threads-max` is about 4,000).
const PIDS: u32 = 1024;
/// Without a memory limit, a plugin's writes to its root file system may take this part of the memory.
const LAYER_PART: u64 = 4;
/// With one, this part of it: they count as its memory, and a full file system shall be an error that the
/// plugin hears of and not its end.
const LAYER_PART_OF_LIMIT: u64 = 2;
/// Where a plugin tells that it is ready.
const NOTIFY_SOCKET: &str = "/run/enclave/notify.sock";
/// The telemetry plugin's variable with the port on which it takes OTLP.
const HOST_PORT: &str = "HOST_PORT";
/// The variable in which the telemetry plugin is told whose port is whose: it scrapes no other, and names the
/// plugin on every point.
const PLUGIN_PORTS: &str = "ENCLAVE_PLUGIN_PORTS";
/// Devices that a plugin sees which is not isolated.
const DEVICES: [&str; 5] = ["null", "zero", "full", "random", "urandom"];

/// Why a checked manifest cannot be run here.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// The plugin's image has no place for something.
    #[error("plugin {plugin}: {source}")]
    Path {
        /// The plugin.
        plugin: String,
        /// What is wrong.
        source: PathError,
    },
    /// The plugin cannot be started as it is described.
    #[error("plugin {plugin}: {reason}")]
    Plugin {
        /// The plugin.
        plugin: String,
        /// What is wrong.
        reason: String,
    },
    /// The supervisor's own directory.
    #[error("{path}: {source}")]
    State {
        /// The path.
        path: String,
        /// The file system's answer.
        source: io::Error,
    },
    /// More destinations than there are addresses for.
    #[error(transparent)]
    Addresses(#[from] PlanError),
    /// A listener for a plugin's way out or to another plugin.
    #[error("listener {address} for plugin {plugin}: {source}")]
    Listen {
        /// Where it was to listen.
        address: SocketAddr,
        /// The plugin that was to find it.
        plugin: String,
        /// The answer.
        source: io::Error,
    },
}

/// A plugin that can be started any number of times.
#[derive(Debug)]
pub struct Prepared {
    /// Its name.
    pub name: String,
    /// How it is started.
    pub recipe: Arc<Recipe>,
    /// Its control group, where there are any.
    pub cgroup: Option<Arc<Cgroup>>,
    /// Where it tells that it is ready, when it is to.
    pub notify: Option<UnixDatagram>,
    /// Its socket with what it may read there, when it has a grant.
    pub socket: Option<(UnixListener, Grants)>,
}

/// A deployment that can be started.
#[derive(Debug)]
pub struct Deployment {
    /// In start order.
    pub plugins: Vec<Prepared>,
    /// One listener per destination.
    pub egress: Vec<(EgressRule, TcpListener)>,
    /// One listener per declared port and other plugin; none where all share one network.
    pub peers: Vec<(PeerListener, TcpListener)>,
    /// Declared ports.
    pub ingress: Vec<IngressRule>,
    /// The plugins' networks.
    pub networks: Networks,
    /// The directory that holds all of it; removed at the end.
    pub state: StateDir,
}

/// A directory of this boot's own, removed when dropped.
#[derive(Debug)]
pub struct StateDir(PathBuf);

impl StateDir {
    fn new(run: &Path, boot_id: &str) -> io::Result<Self> {
        let path = run.join(format!("boot-{}", boot_id.get(..12).unwrap_or(boot_id)));
        fs::DirBuilder::new().recursive(true).mode(0o711).create(&path)?;
        Ok(Self(path))
    }
}

impl Drop for StateDir {
    fn drop(&mut self) {
        // At worst a few files stay behind in a directory whose name no later boot uses.
        fs::remove_dir_all(&self.0).ok();
    }
}

/// The plugins' network namespaces, by plugin; empty without root's rights, where all share one.
#[derive(Debug, Default)]
pub struct Networks(BTreeMap<String, NetworkNamespace>);

impl Networks {
    /// Unconnected TCP sockets in a plugin's network.
    pub fn sockets(&self, plugin: &str, count: usize) -> io::Result<Vec<OwnedFd>> {
        let make = || (0..count).map(|_| tcp_socket()).collect();
        self.within(plugin, make)
    }

    fn listen(&self, plugin: &str, address: SocketAddr) -> io::Result<TcpListener> {
        self.within(plugin, || {
            let listener = TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        })
    }

    fn within<T: Send>(&self, plugin: &str, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        match self.0.get(plugin) {
            Some(network) => network.within(work),
            None => work(),
        }
    }
}

/// What this machine offers to plugins.
#[derive(Debug)]
pub struct Ground {
    /// Where their files and sockets are laid out.
    pub run: PathBuf,
    /// Their init.
    pub init: Arc<Program>,
    /// What they find around their own files.
    pub surroundings: Surroundings,
    /// Their control groups, where there can be any.
    pub cgroups: Option<Cgroups>,
    /// Whether they are isolated. It takes root's rights.
    pub isolated: bool,
    /// Whether a plugin's writes can be kept apart from its image (overlayfs).
    pub layers: bool,
    /// Memory of the machine, in bytes.
    pub memory: u64,
}

/// Lays everything out for the plugins in `catalog`.
pub fn prepare(
    candidate: &Candidate,
    catalog: &Catalog,
    ground: &Ground,
    boot_id: &str,
) -> Result<Deployment, PrepareError> {
    let run = &ground.run;
    let state = StateDir::new(run, boot_id).map_err(|source| state_error(run, source))?;
    let plan = candidate.manifest.plan();
    let addresses = Addresses::new(&plan.egress)?;
    let mut plugins = Vec::new();
    let mut networks = Networks::default();
    let mut rights = Vec::new();
    let ports = plugin_ports(&candidate.manifest.plugins);
    let exports = candidate.manifest.exports_logs();
    for plugin in &candidate.manifest.plugins {
        let baked = catalog.get(&plugin.name).ok_or_else(|| PrepareError::Plugin {
            plugin: plugin.name.clone(),
            reason: "is not baked in".to_owned(),
        })?;
        let dir = state.0.join(&plugin.name);
        let layout = Layout { plugin, baked, ground, dir, ports: &ports, exports };
        let network = layout.network()?;
        let rights = layout.rights(&mut rights)?;
        let hosts = addresses.hosts_of(&plugin.name);
        plugins.push(layout.prepare(&candidate.files, hosts, network.as_ref(), rights)?);
        networks.0.extend(network.map(|network| (plugin.name.clone(), network)));
    }
    let mut egress = Vec::new();
    for listener in addresses.listeners {
        let address = SocketAddr::from((listener.address, listener.port));
        let bound = networks.listen(&listener.rule.plugin, address).map_err(|source| {
            PrepareError::Listen { address, plugin: listener.rule.plugin.clone(), source }
        })?;
        egress.push((listener.rule, bound));
    }
    let mut peers = Vec::new();
    if ground.isolated {
        let ports: Vec<_> = candidate.manifest.plugins.iter().map(|p| (p.name.as_str(), served(p))).collect();
        let ports: Vec<(&str, &[u16])> =
            ports.iter().map(|(name, ports)| (*name, ports.as_slice())).collect();
        let mut planned = Peers::new(&ports)?;
        // It gives each plugin a share of what it can take.
        for telemetry in candidate.manifest.plugins.iter().filter(|p| p.kind == PluginKind::Telemetry) {
            planned.tell_apart(&telemetry.name, &ports);
        }
        for peer in planned.listeners {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, peer.port));
            let bound = networks.listen(&peer.from, address).map_err(|source| PrepareError::Listen {
                address,
                plugin: peer.from.clone(),
                source,
            })?;
            peers.push((peer, bound));
        }
    }
    Ok(Deployment { plugins, egress, peers, ingress: plan.ingress, networks, state })
}

/// The ports that the telemetry plugin reaches, as `plugin=port,…`. Of two plugins with one port it reaches
/// the one that starts first.
fn plugin_ports(plugins: &[Plugin]) -> String {
    let mut owners: BTreeMap<u16, &str> = BTreeMap::new();
    for plugin in plugins.iter().filter(|plugin| plugin.kind != PluginKind::Telemetry) {
        for port in served(plugin) {
            owners.entry(port).or_insert(&plugin.name);
        }
    }
    owners.iter().map(|(port, plugin)| format!("{plugin}={port}")).collect::<Vec<_>>().join(",")
}

/// The ports that a plugin serves, by its own word. The telemetry plugin names one in its environment as
/// well: the one on which it takes what the others measure.
pub fn served(plugin: &Plugin) -> Vec<u16> {
    let declared = plugin.ports.iter().map(|port| port.container_port);
    let telemetry =
        plugin.env.iter().filter(|(name, _)| plugin.kind == PluginKind::Telemetry && name == HOST_PORT);
    let mut ports: Vec<u16> = declared.chain(telemetry.filter_map(|(_, port)| port.parse().ok())).collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

fn state_error(path: &Path, source: io::Error) -> PrepareError {
    PrepareError::State { path: path.display().to_string(), source }
}

/// Lays out one plugin.
struct Layout<'a> {
    plugin: &'a Plugin,
    baked: &'a Baked,
    ground: &'a Ground,
    /// Its directory within the state directory.
    dir: PathBuf,
    /// The other plugins' ports, for telemetry.
    ports: &'a str,
    /// Whether any log records leave by OTLP.
    exports: bool,
}

impl Layout<'_> {
    fn prepare(
        &self,
        files: &Files,
        hosts: &str,
        network: Option<&NetworkNamespace>,
        rights: Rights,
    ) -> Result<Prepared, PrepareError> {
        let Layout { plugin, baked, dir, ground, ports, .. } = self;
        let security = &plugin.security;
        let user = &baked.config.user;
        let identity = identity::resolve(&baked.root, user, security.user, security.group)
            .map_err(|reason| self.wrong(reason))?;
        let mut merged = launch::merge(
            &baked.config,
            launch::Wanted {
                command: plugin.command.as_deref(),
                args: plugin.args.as_deref(),
                env: &plugin.env,
                working_dir: plugin.working_dir.as_deref(),
            },
        );
        if plugin.kind == PluginKind::Telemetry {
            launch::set(&mut merged.env, PLUGIN_PORTS, (*ports).to_owned());
        }
        if merged.argv.is_empty() {
            return Err(self.wrong("neither the manifest nor the image names a command".to_owned()));
        }
        fs::DirBuilder::new().recursive(true).mode(0o711).create(dir).map_err(|e| state_error(dir, e))?;
        let mut binds = self.basics(hosts)?;
        for (index, volume) in plugin.volumes.iter().enumerate() {
            binds.push(self.volume(volume, index, files, identity)?);
        }
        let socket = self.socket(&mut binds)?;
        let notify = self.notify(&mut binds, &mut merged.env)?;
        rootfs::directory(&baked.root, &merged.cwd).map_err(|source| self.misplaced(source))?;
        let cgroup = self.cgroup()?;
        let launch = Launch {
            name: plugin.name.clone(),
            argv: merged.argv,
            env: merged.env,
            cwd: merged.cwd,
            root: baked.root.clone(),
            writes: self.writes()?,
            binds,
            identity,
            rights,
            isolated: ground.isolated,
            network,
            cgroup: cgroup.as_deref(),
        };
        let recipe = Recipe::new(&launch, &ground.surroundings, Arc::clone(&ground.init));
        let recipe = recipe.map_err(|failure: Failure| self.wrong(failure.to_string()))?;
        Ok(Prepared { name: plugin.name.clone(), recipe: Arc::new(recipe), cgroup, socket, notify })
    }

    /// What it may do. Most plugins ask for the same, and share it.
    fn rights(&self, known: &mut Vec<(Capabilities, Rights)>) -> Result<Rights, PrepareError> {
        let security = &self.plugin.security;
        let wanted = Capabilities::new(&security.capabilities_add, &security.capabilities_drop);
        if let Some((_, rights)) = known.iter().find(|(capabilities, _)| *capabilities == wanted) {
            return Ok(rights.clone());
        }
        let rights = Rights::new(&wanted).map_err(|failure| self.wrong(failure.to_string()))?;
        known.push((wanted, rights.clone()));
        Ok(rights)
    }

    fn cgroup(&self) -> Result<Option<Arc<Cgroup>>, PrepareError> {
        let Some(cgroups) = &self.ground.cgroups else { return Ok(None) };
        let wanted = &self.plugin.limits;
        let limits = Limits {
            cpu_millis: wanted.cpu_millis,
            memory_bytes: wanted.memory_bytes,
            pids: Some(wanted.pids.unwrap_or(PIDS).saturating_add(self.inits())),
        };
        let made = cgroups.plugin(&self.plugin.name, &limits);
        Ok(Some(Arc::new(made.map_err(|error| self.wrong(format!("cannot be limited: {error}")))?)))
    }

    /// Processes in a plugin's group that are not its own: an isolated one's init, and its next run's.
    fn inits(&self) -> u32 {
        if self.ground.isolated { 2 } else { 0 }
    }

    fn network(&self) -> Result<Option<NetworkNamespace>, PrepareError> {
        if !self.ground.isolated {
            return Ok(None);
        }
        let made = NetworkNamespace::new();
        Ok(Some(made.map_err(|error| self.wrong(format!("cannot have a network: {error}")))?))
    }

    fn writes(&self) -> Result<Writes, PrepareError> {
        if self.plugin.security.read_only_root {
            return Ok(Writes::Refused);
        }
        if !self.ground.layers {
            return Ok(Writes::Image);
        }
        let directory = self.dir.join("layer");
        fs::create_dir(&directory).map_err(|error| state_error(&directory, error))?;
        let of_limit = self.plugin.limits.memory_bytes.map(|bytes| bytes / LAYER_PART_OF_LIMIT);
        let bytes = of_limit.unwrap_or(self.ground.memory / LAYER_PART);
        Ok(Writes::Layer { directory, bytes })
    }

    /// What every plugin sees: /proc, /dev, /tmp, and its own /etc/hosts.
    fn basics(&self, hosts: &str) -> Result<Vec<Bind>, PrepareError> {
        let hosts_file = self.dir.join("hosts");
        write(&hosts_file, hosts.as_bytes(), 0o644).map_err(|e| state_error(&hosts_file, e))?;
        self.directory("/proc")?;
        self.directory("/dev")?;
        if !self.ground.isolated {
            for device in DEVICES {
                self.file(&format!("/dev/{device}"))?;
            }
        }
        let tmp = self.directory("/tmp")?;
        fs::set_permissions(&tmp, fs::Permissions::from_mode(0o1777)).map_err(|e| state_error(&tmp, e))?;
        Ok(vec![Bind { source: hosts_file, target: self.file("/etc/hosts")?, read_only: true }])
    }

    /// Writes a volume's files and binds their directory.
    fn volume(
        &self,
        volume: &Volume,
        index: usize,
        files: &Files,
        owner: Identity,
    ) -> Result<Bind, PrepareError> {
        let dir = self.dir.join(format!("volume-{index}"));
        let lay = || -> io::Result<()> {
            fs::DirBuilder::new().recursive(true).mode(0o755).create(&dir)?;
            own(&dir, owner)?;
            for (path, bytes) in volume.files(files) {
                let path = dir.join(path);
                if let Some(parent) = path.parent() {
                    fs::DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
                }
                let mode = match volume.source {
                    Source::Secret(_) => 0o400,
                    Source::ConfigMap(_) => 0o644,
                };
                write(&path, &bytes.0, mode)?;
                own(&path, owner)?;
            }
            Ok(())
        };
        lay().map_err(|error| match error.raw_os_error() {
            Some(libc::EINVAL) => self.wrong(format!(
                "runs as user {}:{}, which the supervisor's user namespace does not have",
                owner.uid, owner.gid
            )),
            _ => state_error(&dir, error),
        })?;
        let target = self.directory(&volume.container_path)?;
        Ok(Bind { source: dir, target, read_only: volume.read_only })
    }

    /// Binds the plugin's own socket, when it has any grant.
    fn socket(&self, binds: &mut Vec<Bind>) -> Result<Option<(UnixListener, Grants)>, PrepareError> {
        let access = &self.plugin.access;
        let logs = match self.plugin.kind {
            PluginKind::Telemetry if self.exports => LogGrant::Export,
            _ if access.contains(&Access::Logs) => LogGrant::Host,
            PluginKind::Telemetry | PluginKind::Service | PluginKind::User => LogGrant::None,
        };
        let grants = Grants {
            metrics: access.contains(&Access::Metrics),
            status: access.contains(&Access::Status),
            logs,
            telemetry: self.plugin.kind == PluginKind::Telemetry,
        };
        if access.is_empty() && !grants.telemetry {
            return Ok(None);
        }
        let path = self.dir.join("supervisor.sock");
        let listener = UnixListener::bind(&path).map_err(|e| state_error(&path, e))?;
        // The mount is the grant; within its own file system the plugin may run as anybody.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).map_err(|e| state_error(&path, e))?;
        let target = self.file("/run/enclave/supervisor.sock")?;
        binds.push(Bind { source: path, target, read_only: false });
        Ok(Some((listener, grants)))
    }

    /// Binds the plugin's notification socket, when it is to tell that it is ready.
    fn notify(
        &self,
        binds: &mut Vec<Bind>,
        env: &mut Vec<(String, String)>,
    ) -> Result<Option<UnixDatagram>, PrepareError> {
        if !self.plugin.notify_ready {
            return Ok(None);
        }
        let path = self.dir.join("notify.sock");
        let socket = UnixDatagram::bind(&path).map_err(|e| state_error(&path, e))?;
        // As the supervisor's socket.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).map_err(|e| state_error(&path, e))?;
        let target = self.file(NOTIFY_SOCKET)?;
        binds.push(Bind { source: path, target, read_only: false });
        env.retain(|(name, _)| name != "NOTIFY_SOCKET");
        env.push(("NOTIFY_SOCKET".to_owned(), NOTIFY_SOCKET.to_owned()));
        Ok(Some(socket))
    }

    fn directory(&self, path: &str) -> Result<PathBuf, PrepareError> {
        rootfs::directory(&self.baked.root, path).map_err(|source| self.misplaced(source))
    }

    fn file(&self, path: &str) -> Result<PathBuf, PrepareError> {
        rootfs::file(&self.baked.root, path).map_err(|source| self.misplaced(source))
    }

    fn misplaced(&self, source: PathError) -> PrepareError {
        PrepareError::Path { plugin: self.plugin.name.clone(), source }
    }

    fn wrong(&self, reason: String) -> PrepareError {
        PrepareError::Plugin { plugin: self.plugin.name.clone(), reason }
    }
}

fn is_root() -> bool {
    nix::unistd::Uid::effective().is_root()
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    io::Write::write_all(&mut file, bytes)
}

/// Gives a file to the plugin's user, where the supervisor may.
fn own(path: &Path, owner: Identity) -> io::Result<()> {
    if is_root() {
        std::os::unix::fs::chown(path, Some(owner.uid), Some(owner.gid))?;
    }
    Ok(())
}
