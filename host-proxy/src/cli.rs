//! The command line. Every option has an environment variable.

use std::{net::IpAddr, net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use enclave_protocol::{
    control::Pod,
    transport::{Address, Guest},
};

use crate::policy::{PrivateEgress, ResolveOverride};

/// The enclave's counterpart in the pod: manifest sync, egress, ingress, logs, health, metrics.
///
/// Exit codes: 0 ok, 2 bad arguments or manifest, 3 peer unreachable, 4 workload failed (the plugin's own
/// code or signal is in the final JSON line on stdout).
#[derive(Debug, Parser)]
#[command(name = "enclave-host-proxy", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// How our own log records look on stderr.
    #[arg(long, global = true, env = "ENCLAVE_LOG_FORMAT", default_value = "json")]
    pub log_format: LogFormat,
}

/// How our own log records look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One JSON object per line.
    Json,
    /// For people.
    Text,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve one enclave until its workload ends or a signal drains it.
    Run(Box<RunArgs>),
    /// Show what the enclave does, through the running proxy.
    Status(StatusArgs),
    /// Show recent log records, through the running proxy.
    Logs(LogsArgs),
    /// Stop the plugins in order, wait for the end, and with it end the running proxy.
    Drain(DrainArgs),
}

/// Options of `run`. The last one wins where one is repeated that does not add up.
#[derive(Debug, Clone, Args)]
#[command(args_override_self = true)]
pub struct RunArgs {
    /// `unix:PATH` (Firecracker's hybrid vsock), or `vsock` together with --enclave-cid.
    #[arg(long, env = "ENCLAVE_TRANSPORT", value_name = "ADDRESS")]
    pub transport: Option<Address>,
    /// The enclave's CID, as `nitro-cli describe-enclaves` tells it.
    #[arg(long, env = "ENCLAVE_CID", value_name = "N")]
    pub enclave_cid: Option<u32>,
    /// The `NitroEnclaveDeployment` YAML.
    #[arg(long, env = "ENCLAVE_MANIFEST", value_name = "FILE")]
    pub manifest: PathBuf,
    /// Directory with configmaps/NAME/KEY and secrets/NAME/KEY, as mounted. Without it there are no files.
    #[arg(long, env = "ENCLAVE_CONFIG_DIR", value_name = "DIR")]
    pub config_dir: Option<PathBuf>,
    /// The manifest's signature, where the image's policy wants one: `ed25519:` and base64, as the README
    /// shows.
    #[arg(long, env = "ENCLAVE_SIGNATURE", value_name = "FILE")]
    pub signature: Option<PathBuf>,
    /// Where the session survives a restart of this program. Keep it as long as the enclave runs.
    #[arg(
        long,
        env = "ENCLAVE_STATE_DIR",
        value_name = "DIR",
        default_value = "/var/lib/enclave-host-proxy"
    )]
    pub state_dir: PathBuf,
    /// Address of /metrics.
    #[arg(long, env = "ENCLAVE_METRICS_LISTEN", value_name = "ADDR", default_value = "0.0.0.0:59090")]
    pub metrics_listen: SocketAddr,
    /// Address of /healthz and /readyz.
    #[arg(long, env = "ENCLAVE_HEALTH_LISTEN", value_name = "ADDR", default_value = "0.0.0.0:59091")]
    pub health_listen: SocketAddr,
    /// Unix socket for `status`, `logs` and `drain`.
    #[arg(long, env = "ENCLAVE_ADMIN", value_name = "PATH", default_value = crate::admin::DEFAULT_SOCKET)]
    pub admin: PathBuf,
    /// vsock port for egress streams; by default the first free one from 100002 on.
    #[arg(long, env = "ENCLAVE_EGRESS_PORT", value_name = "PORT")]
    pub egress_port: Option<u32>,
    /// Address on which the manifest's hostPorts listen.
    #[arg(long, env = "ENCLAVE_INGRESS_LISTEN", value_name = "ADDR", default_value = "0.0.0.0")]
    pub ingress_listen: IpAddr,
    /// Lets this name, or every name, reach private addresses (RFC 1918, CGNAT, ULA): for VPC endpoints and
    /// cluster services. Loopback, link-local and the metadata services stay refused.
    #[arg(
        long,
        env = "ENCLAVE_ALLOW_PRIVATE_EGRESS",
        value_name = "NAME|CIDR",
        value_delimiter = ',',
        action = clap::ArgAction::Append
    )]
    pub allow_private_egress: Vec<PrivateEgress>,
    /// Takes ADDR (`IP`, `IP:PORT` or `[IPv6]:PORT`) for this destination: no DNS, no check of the address.
    /// For tests and demonstrations.
    #[arg(
        long,
        env = "ENCLAVE_RESOLVE",
        value_name = "NAME:PORT:ADDR",
        value_delimiter = ',',
        action = clap::ArgAction::Append
    )]
    pub resolve: Vec<ResolveOverride>,
    /// How long the plugins may take to stop after SIGTERM or SIGINT, in seconds.
    #[arg(long, env = "ENCLAVE_DRAIN_GRACE", value_name = "SECONDS", default_value_t = 25)]
    pub drain_grace: u32,
    /// How long the enclave may not answer, at the start and later, in seconds.
    #[arg(long, env = "ENCLAVE_CONNECT_TIMEOUT", value_name = "SECONDS", default_value_t = 120)]
    pub connect_timeout: u32,
    /// Unique per enclave; becomes `service.instance.id`. By default the host name and a random part, kept in
    /// --state-dir.
    #[arg(long, env = "ENCLAVE_INSTANCE_ID", value_name = "ID")]
    pub instance_id: Option<String>,
    /// The pod's name, from the downward API (metadata.name); becomes `k8s.pod.name` on the resource of all
    /// metrics. The enclave takes the host's word for it.
    #[arg(long, env = "ENCLAVE_POD_NAME", value_name = "NAME", value_parser = Pod::name)]
    pub pod_name: Option<String>,
    /// The pod's uid, from the downward API (metadata.uid); becomes `k8s.pod.uid`.
    #[arg(long, env = "ENCLAVE_POD_UID", value_name = "UID", value_parser = Pod::uid)]
    pub pod_uid: Option<String>,
    /// The node's name, from the downward API (spec.nodeName); becomes `k8s.node.name`.
    #[arg(long, env = "ENCLAVE_NODE_NAME", value_name = "NAME", value_parser = Pod::name)]
    pub node_name: Option<String>,
}

impl RunArgs {
    /// Where the enclave is, or what is wrong with the two options that say it.
    pub(crate) fn guest(&self) -> Result<Guest, &'static str> {
        match (&self.transport, self.enclave_cid) {
            (Some(Address::Unix(path)), None) => Ok(Guest::Unix(path.clone())),
            (None | Some(Address::Vsock), Some(cid)) => Ok(Guest::Vsock { cid }),
            (Some(Address::Unix(_)), Some(_)) => {
                Err("--transport unix:PATH and --enclave-cid exclude each other")
            }
            (None | Some(Address::Vsock), None) => {
                Err("one of --transport unix:PATH and --enclave-cid N is needed: where is the enclave?")
            }
        }
    }

    /// The pod, as far as the options tell of it.
    pub(crate) fn pod(&self) -> Option<Pod> {
        let (name, uid, node) = (self.pod_name.clone(), self.pod_uid.clone(), self.node_name.clone());
        Some(Pod { name, uid, node }).filter(|pod| !pod.is_unknown())
    }

    /// [`Self::connect_timeout`] as a duration.
    pub(crate) fn connect_timeout(&self) -> Duration {
        Duration::from_secs(self.connect_timeout.into())
    }
}

/// Options of every command that asks the running proxy.
#[derive(Debug, Clone, Args)]
pub struct AdminArgs {
    /// The running proxy's Unix socket.
    #[arg(long, env = "ENCLAVE_ADMIN", value_name = "PATH", default_value = crate::admin::DEFAULT_SOCKET)]
    pub admin: PathBuf,
}

/// Options of `status`.
#[derive(Debug, Clone, Args)]
pub struct StatusArgs {
    /// Where the running proxy is.
    #[command(flatten)]
    pub admin: AdminArgs,
    /// How to print it.
    #[arg(short, long, env = "ENCLAVE_OUTPUT", default_value = "table")]
    pub output: Output,
    /// Show the newest events below the table. JSON always has them.
    #[arg(long, env = "ENCLAVE_EVENTS")]
    pub events: bool,
}

/// How `status` prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Table,
    /// One JSON document.
    Json,
}

/// Options of `logs`.
#[derive(Debug, Clone, Args)]
pub struct LogsArgs {
    /// Where the running proxy is.
    #[command(flatten)]
    pub admin: AdminArgs,
    /// Go on with new records.
    #[arg(short, long, env = "ENCLAVE_FOLLOW")]
    pub follow: bool,
}

/// Options of `drain`.
#[derive(Debug, Clone, Args)]
pub struct DrainArgs {
    /// Where the running proxy is.
    #[command(flatten)]
    pub admin: AdminArgs,
    /// How long the plugins may take, in seconds; by default the running proxy's --drain-grace.
    #[arg(long, env = "ENCLAVE_DRAIN_GRACE", value_name = "SECONDS")]
    pub grace: Option<u32>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn run(args: &[&str]) -> RunArgs {
        let line = ["enclave-host-proxy", "run", "--manifest", "m.yaml"].iter().chain(args);
        match Cli::try_parse_from(line).unwrap().command {
            Command::Run(args) => *args,
            Command::Status(_) | Command::Logs(_) | Command::Drain(_) => panic!("run was asked for"),
        }
    }

    #[test]
    fn the_command_line_is_consistent_and_every_option_has_an_environment_variable() {
        Cli::command().debug_assert();
        for command in Cli::command().get_subcommands() {
            for option in command.get_arguments() {
                assert!(option.get_env().is_some(), "{} {}", command.get_name(), option.get_id());
                assert!(option.get_help().is_some(), "{} {}", command.get_name(), option.get_id());
            }
        }
    }

    #[test]
    fn the_pod_is_what_the_options_say_and_an_enclave_without_them_is_told_of_none() {
        assert_eq!(run(&[]).pod(), None);
        let pod = run(&["--pod-name", "hello-1", "--node-name", "n.example"]).pod().unwrap();
        assert_eq!(
            (pod.name.as_deref(), pod.uid, pod.node.as_deref()),
            (Some("hello-1"), None, Some("n.example"))
        );
        let line = ["enclave-host-proxy", "run", "--manifest", "m", "--pod-uid", "a b"];
        assert!(Cli::try_parse_from(line).is_err());
    }

    #[test]
    fn exactly_one_way_to_the_enclave_is_taken() {
        assert!(matches!(run(&["--transport", "unix:/v"]).guest(), Ok(Guest::Unix(_))));
        assert!(matches!(run(&["--enclave-cid", "16"]).guest(), Ok(Guest::Vsock { cid: 16 })));
        assert!(matches!(
            run(&["--transport", "vsock", "--enclave-cid", "16"]).guest(),
            Ok(Guest::Vsock { .. })
        ));
        for bad in [&[][..], &["--transport", "vsock"], &["--transport", "unix:/v", "--enclave-cid", "16"]] {
            assert!(run(bad).guest().is_err(), "{bad:?}");
        }
    }
}
