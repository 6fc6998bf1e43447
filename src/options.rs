//! Command line, environment and, as the init of a VM, the kernel command line.

use std::{ffi::OsString, path::PathBuf};

use clap::{Args as _, FromArgMatches as _, Parser, Subcommand, ValueEnum};
use enclave_protocol::transport::{Address, Host};

use crate::{
    boot::{NsmUse, cgroups::CgroupVersion, words::Words},
    logs::own::Format,
};

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
        /// Also check the files that it names, scrapes among them
        #[arg(long, env = "ENCLAVE_CONFIG_DIR", value_name = "DIR")]
        config_dir: Option<PathBuf>,
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

/// How far plugins are kept from one another and from the supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Isolation {
    /// By all that the kernel offers, as an enclave always does
    Full,
    /// By their root file systems alone and without an init, and so without exec probes: to measure what the
    /// rest costs
    None,
}

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
    /// The init of every plugin, a static program; without it enclave-init beside this program, or this
    /// program
    #[arg(long, env = "ENCLAVE_PLUGIN_INIT", value_name = "FILE")]
    pub plugin_init: Option<PathBuf>,
    /// How far plugins are isolated; in a container only, an enclave does all it can
    #[arg(long, env = "ENCLAVE_ISOLATION", value_enum, default_value = "full")]
    pub isolation: Isolation,
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
    /// Nitro Secure Module: measure the manifest with it and draw randomness from it (vm and child)
    #[arg(long, env = "ENCLAVE_NSM", value_enum, default_value = "auto")]
    pub nsm: NsmUse,
    /// Version of the kernel's control groups to mount; without it v2 where the kernel has all of it (vm)
    #[arg(long, env = "ENCLAVE_CGROUP", value_enum)]
    pub cgroup: Option<CgroupVersion>,
    /// How records look on standard error
    #[arg(long, env = "ENCLAVE_LOG_FORMAT", value_enum, default_value = "json")]
    pub log_format: Format,
    /// What the kernel's command line has beside good options.
    #[arg(skip)]
    pub kernel: KernelRemarks,
}

/// Words of the kernel's command line that are no good options.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KernelRemarks {
    /// Names that no option has.
    pub unknown: Vec<String>,
    /// What is wrong with values that an option cannot have.
    pub invalid: Option<String>,
}

impl RunOptions {
    /// Of the init of a machine: the kernel's command line alone. It has no arguments of its own; what the
    /// kernel gives it are words that the kernel did not know.
    ///
    /// A command line that does not say `enclave.init=vm` was not made for this image.
    pub fn of_machine(words: &Words) -> Self {
        let mut options = with_words(words, &[]);
        if words.get("init") != Some("vm") {
            let said = words.get("init").map_or_else(|| "missing".to_owned(), |word| format!("{word:?}"));
            options.kernel.invalid = Some(format!("enclave.init is {said} and not \"vm\""));
        }
        Self { init: Init::Vm, ..options }
    }

    /// These arguments, without `run`, with the options of the kernel's command line that they do not have.
    pub fn or_kernels(arguments: &[OsString], words: &Words) -> Self {
        with_words(words, arguments)
    }

    /// The defaults of the init of a machine, without the environment.
    fn bare(command: &clap::Command) -> Self {
        let command = command.clone().mut_args(|argument| argument.env(clap::builder::Resettable::Reset));
        let parsed = command.try_get_matches_from(["--init=vm"]);
        let options = parsed.and_then(|matches| Self::from_arg_matches(&matches));
        options.expect("invariant: a test parses the defaults")
    }

    /// The host, as the transport reaches it.
    pub fn host(&self) -> Host {
        match &self.transport {
            Address::Vsock => Host::Vsock { cid: self.host_cid },
            Address::Unix(path) => Host::Unix(path.clone()),
        }
    }
}

/// Parses the words, and `arguments` before them. A bad word is left out and said.
fn with_words(words: &Words, arguments: &[OsString]) -> RunOptions {
    let command = RunOptions::augment_args(clap::Command::new("run").no_binary_name(true));
    let known = |name: &str| command.get_arguments().any(|argument| argument.get_long() == Some(name));
    let explicit = |name: &str| {
        let long = |argument: &OsString| {
            let text = argument.to_str()?.strip_prefix("--")?;
            Some(text.split_once('=').map_or(text, |(name, _)| name) == name)
        };
        arguments.iter().any(|argument| long(argument) == Some(true))
    };
    let parse = |kernel: &[String]| {
        let all = kernel.iter().map(OsString::from).chain(arguments.iter().cloned());
        RunOptions::from_arg_matches(&command.clone().try_get_matches_from(all)?)
    };
    let mut remarks = KernelRemarks::default();
    let mut good = Vec::new();
    for (name, value) in words.iter().filter(|(name, _)| !explicit(name)) {
        if !known(name) {
            remarks.unknown.push(name.to_owned());
            continue;
        }
        good.push(format!("--{name}={value}"));
        if let Err(error) = parse(&good) {
            good.pop();
            remarks.invalid.get_or_insert_with(|| first_line(&error));
        }
    }
    let options = parse(&good).unwrap_or_else(|error| {
        // Wrong by itself: a word NAME=value without a dot, which the kernel makes the init's environment.
        remarks.invalid.get_or_insert_with(|| first_line(&error));
        RunOptions::bare(&command)
    });
    RunOptions { kernel: remarks, ..options }
}

/// What clap says first, without its advice.
fn first_line(error: &clap::Error) -> String {
    let text = error.to_string();
    text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned()
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

    fn of_machine(line: &str) -> RunOptions {
        RunOptions::of_machine(&Words::parse(line))
    }

    #[test]
    fn the_kernels_command_line_gives_options_and_what_is_wrong_in_it_is_said() {
        let options = of_machine("console=ttyS0 enclave.init=vm enclave.host_cid=2 enclave.nsm=required");
        assert_eq!((options.init, options.host_cid, options.nsm), (Init::Vm, 2, NsmUse::Required));
        assert_eq!(options.kernel, KernelRemarks::default());
        let options = of_machine("enclave.init=vm enclave.host-cid=x enclave.cgroup=v1 enclave.colour=red");
        assert_eq!((options.init, options.host_cid), (Init::Vm, 3));
        assert_eq!(options.cgroup, Some(CgroupVersion::V1));
        assert_eq!(options.kernel.unknown, ["colour"]);
        assert!(options.kernel.invalid.unwrap().contains("invalid value 'x' for '--host-cid <N>'"));
    }

    #[test]
    fn arguments_come_before_the_kernels_command_line() {
        let words = Words::parse("enclave.host-cid=2 enclave.sample-interval=7 enclave.init=vm");
        let given = ["--init=child", "--host-cid", "9"].map(OsString::from);
        let options = RunOptions::or_kernels(&given, &words);
        assert_eq!((options.init, options.host_cid, options.sample_interval), (Init::Child, 9, 7));
    }

    #[test]
    fn a_machine_can_always_fall_back_on_the_defaults() {
        let command = RunOptions::augment_args(clap::Command::new("run").no_binary_name(true));
        let options = RunOptions::bare(&command);
        assert_eq!((options.init, options.host_cid), (Init::Vm, 3));
        for (line, said) in
            [("quiet", "missing"), ("enclave.init=child", "\"child\""), ("enclave.init", "\"\"")]
        {
            let options = of_machine(line);
            assert_eq!(options.init, Init::Vm);
            assert_eq!(options.kernel.invalid, Some(format!("enclave.init is {said} and not \"vm\"")));
        }
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
