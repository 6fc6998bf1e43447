//! Command line, environment and, as the init of a VM, the kernel command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};
use enclave_protocol::transport::{Address, Host};

use crate::logs::own::Format;

/// Exit codes. Scripts rely on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// All went well.
    Ok = 0,
    /// An internal error; the last log record says which.
    Internal = 1,
    /// Bad arguments or a bad manifest.
    Usage = 2,
    /// The peer cannot be reached.
    Unreachable = 3,
    /// The workload failed; the last log record names the plugin and its exit.
    Workload = 4,
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Runs the plugins of an enclave.
#[derive(Debug, Parser)]
#[command(name = "enclave-supervisor", version, args_conflicts_with_subcommands = true)]
pub struct Options {
    /// What to do; `run` without.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Options of `run`, which may be left out.
    #[command(flatten)]
    pub run: RunOptions,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Wait for a manifest and run its plugins (the default)
    Run(Box<RunOptions>),
    /// Print every mistake in a manifest as `FILE:LINE:COL: path: message`
    Check {
        /// The manifest
        file: PathBuf,
        /// Also check that its images are baked in here
        #[arg(long, env = "ENCLAVE_PLUGINS", value_name = "DIR")]
        plugins: Option<PathBuf>,
    },
    /// Print a manifest's digest
    Digest {
        /// The manifest
        file: PathBuf,
        /// Holds configmaps/NAME/KEY and secrets/NAME/KEY, as mounted
        #[arg(long, env = "ENCLAVE_CONFIG_DIR", value_name = "DIR")]
        config_dir: Option<PathBuf>,
        /// Print the message to sign for a signed policy instead, without a newline
        #[arg(long, env = "ENCLAVE_SIGNING_INPUT")]
        signing_input: bool,
    },
    /// Print the running supervisor's status, from inside the enclave
    Status {
        /// The supervisor's socket
        #[arg(long, env = "ENCLAVE_SOCKET", default_value = SOCKET, value_name = "PATH")]
        socket: PathBuf,
    },
}

const SOCKET: &str = "/run/enclave/supervisor.sock";

/// How the supervisor came to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Init {
    /// PID 1 of a VM made from our own image
    Vm,
    /// Child of AWS's init
    Child,
    /// In a pod, a container or on a laptop: never touches devices, clock or host name
    Container,
}

/// Options of `run`.
#[derive(Debug, Clone, clap::Args)]
pub struct RunOptions {
    /// How the supervisor came to run
    #[arg(long, env = "ENCLAVE_INIT", value_enum, default_value = "container")]
    pub init: Init,
    /// vsock, or `unix:PATH` for Firecracker's hybrid vsock
    #[arg(long, env = "ENCLAVE_TRANSPORT", default_value = "vsock")]
    pub transport: Address,
    /// The parent's CID: 3 on Nitro, 2 under Firecracker and QEMU
    #[arg(long, env = "ENCLAVE_HOST_CID", default_value_t = 3, value_name = "N")]
    pub host_cid: u32,
    /// Holds NAME/rootfs and NAME/config.json of every baked plugin
    #[arg(long, env = "ENCLAVE_PLUGINS", default_value = "/plugins", value_name = "DIR")]
    pub plugins: PathBuf,
    /// The supervisor's socket; its directory also takes what plugins have mounted
    #[arg(long, env = "ENCLAVE_SOCKET", default_value = SOCKET, value_name = "PATH")]
    pub socket: PathBuf,
    /// What the image says about manifests
    #[arg(long, env = "ENCLAVE_POLICY", default_value = "/etc/enclave/policy.json", value_name = "FILE")]
    pub policy: PathBuf,
    /// Seconds between two samples of /proc, at least 1: a shorter window has too few ticks to be a fraction
    #[arg(long, env = "ENCLAVE_SAMPLE_INTERVAL", default_value_t = 5, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub sample_interval: u64,
    /// Seconds that SIGTERM gives the plugins altogether
    #[arg(long, env = "ENCLAVE_DRAIN_GRACE", default_value_t = 30, value_name = "SECONDS",
          value_parser = clap::value_parser!(u32).range(0..=3600))]
    pub drain_grace: u32,
    /// Fixes the jitter of restart delays; random without
    #[arg(long, env = "ENCLAVE_SEED", value_name = "N")]
    pub seed: Option<u64>,
    /// How records look on standard error
    #[arg(long, env = "ENCLAVE_LOG_FORMAT", value_enum, default_value = "json")]
    pub log_format: Format,
}

impl RunOptions {
    /// The host, as the transport reaches it.
    pub fn host(&self) -> Host {
        match &self.transport {
            Address::Vsock => Host::Vsock { cid: self.host_cid },
            Address::Unix(path) => Host::Unix(path.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_run_is_the_default() {
        Options::command().debug_assert();
        let options =
            Options::parse_from(["enclave-supervisor", "--transport", "unix:/v", "--init", "container"]);
        assert!(options.command.is_none());
        assert_eq!(options.run.host(), Host::Unix("/v".into()));
    }

    #[test]
    fn every_option_has_an_environment_variable_and_a_help_line() {
        let mut command = Options::command();
        command.build();
        for command in std::iter::once(&command).chain(command.get_subcommands()) {
            for argument in command.get_arguments().filter(|a| !a.is_positional()) {
                let id = argument.get_id().as_str();
                if ["help", "version"].contains(&id) {
                    continue;
                }
                assert!(argument.get_help().is_some(), "--{id} has no help");
                let env = argument.get_env().and_then(|env| env.to_str()).unwrap_or("");
                assert!(env.starts_with("ENCLAVE_"), "--{id} has no environment variable");
            }
        }
    }
}
