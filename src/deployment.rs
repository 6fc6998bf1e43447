//! An accepted manifest made ready to run: files laid out, root file systems prepared, sockets bound.
//!
//! Everything that can fail fails here, before the first spawn; what is left of a failed attempt is removed.

use std::{
    fs, io,
    net::{SocketAddr, TcpListener},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use enclave_protocol::{
    control::{EgressRule, Files, IngressRule},
    manifest::{Access, Plugin, Source, Volume},
};
use tokio::net::UnixListener;

use crate::{
    catalog::{Baked, Catalog},
    control::{accept::Candidate, routes::Grants},
    identity, launch,
    net::plan::{Plan as Addresses, PlanError},
    rootfs::{self, PathError},
    sys::shim::{Bind, Identity, Launch},
};

/// Devices that every plugin sees; none of them leads anywhere.
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
    /// An egress listener.
    #[error("egress listener {address} for {fqdn}: {source}")]
    Listen {
        /// Where it was to listen.
        address: SocketAddr,
        /// The destination it stands for.
        fqdn: String,
        /// The answer.
        source: io::Error,
    },
}

/// A plugin that can be started any number of times.
#[derive(Debug)]
pub struct Prepared {
    /// Its name.
    pub name: String,
    /// What its shim is told.
    pub launch: Launch,
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
    /// Declared ports.
    pub ingress: Vec<IngressRule>,
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

/// Lays everything out below `run` for the plugins in `catalog`.
pub fn prepare(
    candidate: &Candidate,
    catalog: &Catalog,
    run: &Path,
    boot_id: &str,
) -> Result<Deployment, PrepareError> {
    let state = StateDir::new(run, boot_id).map_err(|source| state_error(run, source))?;
    let plan = candidate.manifest.plan();
    let addresses = Addresses::new(&plan.egress)?;
    let mut plugins = Vec::new();
    for plugin in &candidate.manifest.plugins {
        let baked = catalog.get(&plugin.name).ok_or_else(|| PrepareError::Plugin {
            plugin: plugin.name.clone(),
            reason: "is not baked in".to_owned(),
        })?;
        let layout = Layout { plugin, baked, dir: state.0.join(&plugin.name) };
        plugins.push(layout.prepare(&candidate.files, addresses.hosts_of(&plugin.name))?);
    }
    let mut egress = Vec::new();
    for listener in addresses.listeners {
        let address = SocketAddr::from((listener.address, listener.port));
        let bound = bind(address).map_err(|source| PrepareError::Listen {
            address,
            fqdn: listener.rule.fqdn.clone(),
            source,
        })?;
        egress.push((listener.rule, bound));
    }
    Ok(Deployment { plugins, egress, ingress: plan.ingress, state })
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn state_error(path: &Path, source: io::Error) -> PrepareError {
    PrepareError::State { path: path.display().to_string(), source }
}

/// Lays out one plugin.
struct Layout<'a> {
    plugin: &'a Plugin,
    baked: &'a Baked,
    /// Its directory within the state directory.
    dir: PathBuf,
}

impl Layout<'_> {
    fn prepare(&self, files: &Files, hosts: &str) -> Result<Prepared, PrepareError> {
        let Layout { plugin, baked, dir } = self;
        let security = &plugin.security;
        let user = &baked.config.user;
        let identity = identity::resolve(&baked.root, user, security.user, security.group)
            .map_err(|reason| self.wrong(reason))?;
        let merged = launch::merge(
            &baked.config,
            launch::Wanted {
                command: plugin.command.as_deref(),
                args: plugin.args.as_deref(),
                env: &plugin.env,
                working_dir: plugin.working_dir.as_deref(),
            },
        );
        if merged.argv.is_empty() {
            return Err(self.wrong("neither the manifest nor the image names a command".to_owned()));
        }
        fs::DirBuilder::new().recursive(true).mode(0o711).create(dir).map_err(|e| state_error(dir, e))?;
        let mut binds = self.basics(hosts)?;
        for (index, volume) in plugin.volumes.iter().enumerate() {
            binds.push(self.volume(volume, index, files, identity)?);
        }
        let socket = self.socket(&mut binds)?;
        rootfs::directory(&baked.root, &merged.cwd).map_err(|source| self.misplaced(source))?;
        let root_user = nix::unistd::Uid::effective().is_root();
        let launch = Launch {
            argv: merged.argv,
            env: merged.env,
            cwd: merged.cwd,
            root: baked.root.clone(),
            binds,
            identity: root_user.then_some(identity),
            user_namespace: !root_user,
        };
        Ok(Prepared { name: plugin.name.clone(), launch, socket })
    }

    /// What every plugin sees: /proc, a few devices, its own /etc/hosts, and /tmp.
    fn basics(&self, hosts: &str) -> Result<Vec<Bind>, PrepareError> {
        let hosts_file = self.dir.join("hosts");
        write(&hosts_file, hosts.as_bytes(), 0o644).map_err(|e| state_error(&hosts_file, e))?;
        let proc = self.directory("/proc")?;
        let mut binds = vec![
            Bind { source: "/proc".into(), target: proc, read_only: false },
            Bind { source: hosts_file, target: self.file("/etc/hosts")?, read_only: true },
        ];
        for device in DEVICES {
            let target = self.file(&format!("/dev/{device}"))?;
            binds.push(Bind { source: Path::new("/dev").join(device), target, read_only: false });
        }
        let tmp = self.directory("/tmp")?;
        fs::set_permissions(&tmp, fs::Permissions::from_mode(0o1777)).map_err(|e| state_error(&tmp, e))?;
        Ok(binds)
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
        let grants = Grants {
            metrics: access.contains(&Access::Metrics),
            status: access.contains(&Access::Status),
            logs: access.contains(&Access::Logs),
        };
        if access.is_empty() {
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

fn write(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    io::Write::write_all(&mut file, bytes)
}

/// Gives a file to the plugin's user, where the supervisor may.
fn own(path: &Path, owner: Identity) -> io::Result<()> {
    if nix::unistd::Uid::effective().is_root() {
        std::os::unix::fs::chown(path, Some(owner.uid), Some(owner.gid))?;
    }
    Ok(())
}
