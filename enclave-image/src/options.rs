//! Command line and environment.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{
    failure::{Failure, Outcome},
    image::Source,
    kernel::Choice,
};

/// Builds, inspects and boots enclave image files (EIF).
#[derive(Debug, Parser)]
#[command(name = "enclave-image", version)]
pub struct Options {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Build an image with the supervisor as init and the plugins of a manifest
    Build(Box<BuildOptions>),
    /// Build an image from one container image and a given bootstrap ramdisk, as nitro-cli does
    Wrap(Box<WrapOptions>),
    /// Show what is in an image file
    Inspect(InspectOptions),
    /// Run an image file in a virtual machine; a JSON line per event
    Boot(Box<BootOptions>),
}

/// An image for a plugin: `NAME=SOURCE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    /// The plugin.
    pub plugin: String,
    /// Its image.
    pub source: Source,
}

impl std::str::FromStr for Given {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (plugin, source) = text.split_once('=').ok_or("expected PLUGIN=dir:D or PLUGIN=…-archive:F")?;
        Ok(Self { plugin: plugin.to_owned(), source: source.parse()? })
    }
}

/// Which manifests the image runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PolicyKind {
    /// The one that it was built for, with its files
    Pinned,
    /// Any; relying parties look at PCR 16
    Any,
    /// Any that one of the keys signed
    Signed,
}

/// Whether the image runs without a Nitro Secure Module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Nsm {
    /// It does not
    Required,
    /// It does, and attests nothing then
    Auto,
}

/// Options of `build`.
#[derive(Debug, Clone, Args)]
pub struct BuildOptions {
    /// The deployment that the image is for
    #[arg(long, env = "ENCLAVE_IMAGE_MANIFEST", value_name = "FILE")]
    pub manifest: PathBuf,
    /// Its files: configmaps/NAME/KEY and secrets/NAME/KEY
    #[arg(long, env = "ENCLAVE_IMAGE_CONFIG_DIR", value_name = "DIR")]
    pub config_dir: Option<PathBuf>,
    /// A plugin's image: NAME=dir:D, NAME=docker-archive:F or NAME=oci-archive:F; once per plugin (in the
    /// variable separated by commas)
    #[arg(long = "image", env = "ENCLAVE_IMAGE_IMAGE", value_name = "PLUGIN=SOURCE", value_delimiter = ',')]
    pub images: Vec<Given>,
    /// Where the kernel is from.
    #[command(flatten)]
    pub kernel: KernelOptions,
    /// What the image adds.
    #[command(flatten)]
    pub output: OutputOptions,
    /// The static supervisor [default: enclave-supervisor beside this program]
    #[arg(long, env = "ENCLAVE_IMAGE_SUPERVISOR", value_name = "FILE")]
    pub supervisor: Option<PathBuf>,
    /// The static init of every plugin [default: enclave-init beside the supervisor]
    #[arg(long, env = "ENCLAVE_IMAGE_PLUGIN_INIT", value_name = "FILE")]
    pub plugin_init: Option<PathBuf>,
    /// The static telemetry plugin of the base image [default: enclave-telemetry beside this program]
    #[arg(long, env = "ENCLAVE_IMAGE_TELEMETRY", value_name = "FILE")]
    pub telemetry: Option<PathBuf>,
    /// Which manifests the image runs
    #[arg(long, env = "ENCLAVE_IMAGE_POLICY", value_enum, default_value = "pinned")]
    pub policy: PolicyKind,
    /// A key of --policy signed: ed25519: and the base64 of 32 bytes; repeatable
    #[arg(long = "policy-key", env = "ENCLAVE_IMAGE_POLICY_KEY", value_name = "KEY", value_delimiter = ',')]
    pub policy_keys: Vec<String>,
    /// Whether the image runs without a Nitro Secure Module
    #[arg(long, env = "ENCLAVE_IMAGE_NSM", value_enum, default_value = "required")]
    pub nsm: Nsm,
}

/// Options of `wrap`.
#[derive(Debug, Clone, Args)]
pub struct WrapOptions {
    /// The container image: dir:D, docker-archive:F or oci-archive:F
    #[arg(long, env = "ENCLAVE_IMAGE_IMAGE", value_name = "SOURCE")]
    pub image: Source,
    /// The first ramdisk: a cpio archive whose /init reads /cmd and /env and changes its root to /rootfs
    #[arg(long, env = "ENCLAVE_IMAGE_BOOTSTRAP", value_name = "FILE")]
    pub bootstrap: PathBuf,
    /// Where the kernel is from.
    #[command(flatten)]
    pub kernel: KernelOptions,
    /// What the image adds.
    #[command(flatten)]
    pub output: OutputOptions,
}

/// How a result looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    Text,
    /// For programs
    Json,
}

/// Options of `inspect`.
#[derive(Debug, Clone, Args)]
pub struct InspectOptions {
    /// The image file
    #[arg(value_name = "FILE")]
    pub image: PathBuf,
    /// How the result looks
    #[arg(short, long, env = "ENCLAVE_IMAGE_FORMAT", value_enum, default_value = "text")]
    pub output: Format,
    /// List every file
    #[arg(long, env = "ENCLAVE_IMAGE_FILES")]
    pub files: bool,
}

/// An amount of memory in MiB: `512M`, `1G`, or MiB alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory(
    /// MiB.
    pub u32,
);

impl std::str::FromStr for Memory {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (digits, factor) = match (text.strip_suffix('M'), text.strip_suffix('G')) {
            (Some(digits), _) => (digits, 1),
            (None, Some(digits)) => (digits, 1024),
            (None, None) => (text, 1),
        };
        let mib = digits.parse().ok().and_then(|number: u32| number.checked_mul(factor));
        mib.filter(|mib| *mib > 0).map(Self).ok_or_else(|| "expected an amount such as 512M or 1G".to_owned())
    }
}

/// Options of `boot`.
#[derive(Debug, Clone, Args)]
pub struct BootOptions {
    /// The image file
    #[arg(value_name = "FILE")]
    pub image: PathBuf,
    /// The Unix socket that stands for the guest's vsock: connect to it for the guest's ports, listen on
    /// `PATH_PORT` for the host's
    #[arg(long, env = "ENCLAVE_IMAGE_VSOCK", value_name = "PATH")]
    pub vsock: PathBuf,
    /// A directory whose run-eif boots image files on a machine that is like Nitro
    #[arg(long, env = "ENCLAVE_IMAGE_LAB", value_name = "DIR")]
    pub lab: Option<PathBuf>,
    /// The guest's memory
    #[arg(long, env = "ENCLAVE_IMAGE_MEMORY", value_name = "AMOUNT", default_value = "512M")]
    pub memory: Memory,
    /// The guest's virtual processors
    #[arg(long, env = "ENCLAVE_IMAGE_CPUS", value_name = "N", default_value_t = 2,
          value_parser = clap::value_parser!(u32).range(1..=64))]
    pub cpus: u32,
    /// Where the guest's console is written to [default: nowhere]
    #[arg(long, env = "ENCLAVE_IMAGE_CONSOLE", value_name = "FILE")]
    pub console: Option<PathBuf>,
    /// When to give up
    #[arg(long, env = "ENCLAVE_IMAGE_TIMEOUT", value_name = "SECONDS", default_value_t = 120,
          value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub timeout: u64,
    /// Words added to the kernel command line for this run
    #[arg(long, env = "ENCLAVE_IMAGE_BOOT_APPEND", value_name = "WORDS", default_value = "")]
    pub append: String,
    /// QEMU [default: qemu-system-x86_64 in PATH]
    #[arg(long, env = "ENCLAVE_IMAGE_QEMU", value_name = "FILE")]
    pub qemu: Option<PathBuf>,
    /// vhost-device-vsock, the guest's vsock device [default: in PATH]
    #[arg(long, env = "ENCLAVE_IMAGE_VHOST_DEVICE_VSOCK", value_name = "FILE")]
    pub vhost_device_vsock: Option<PathBuf>,
}

/// Where the kernel is from; without one of them, Debian's newest cloud kernel of this machine.
#[derive(Debug, Clone, Args)]
pub struct KernelOptions {
    /// A bzImage (x86) or Image (arm64) with every driver built in; its configuration beside it: FILE.config
    #[arg(long, env = "ENCLAVE_IMAGE_KERNEL", value_name = "FILE", conflicts_with = "blobs")]
    pub kernel: Option<PathBuf>,
    /// The blobs of Nitro CLI: kernel, configuration, command line and nsm.ko [default: `NITRO_CLI_BLOBS`]
    #[arg(long, env = "ENCLAVE_IMAGE_BLOBS", value_name = "DIR")]
    pub blobs: Option<PathBuf>,
    /// The root beneath which Debian's kernel and modules are
    #[arg(long, env = "ENCLAVE_IMAGE_KERNEL_ROOT", value_name = "DIR", default_value = "/")]
    pub kernel_root: PathBuf,
}

impl KernelOptions {
    /// The choice, given the value of `NITRO_CLI_BLOBS`.
    pub fn choice(&self, nitro_cli_blobs: Option<PathBuf>) -> Choice {
        match (&self.kernel, self.blobs.clone().or(nitro_cli_blobs)) {
            (Some(path), _) => Choice::File(path.clone()),
            (None, Some(dir)) => Choice::Blobs(dir),
            (None, None) => Choice::Debian(self.kernel_root.clone()),
        }
    }
}

/// What both ways of building share.
#[derive(Debug, Clone, Args)]
pub struct OutputOptions {
    /// The image file to write
    #[arg(long, env = "ENCLAVE_IMAGE_OUTPUT", value_name = "FILE")]
    pub output: PathBuf,
    /// Words added to the kernel command line, which is measured
    #[arg(long, env = "ENCLAVE_IMAGE_APPEND", value_name = "WORDS", default_value = "")]
    pub append: String,
    /// The image's build time [default: `SOURCE_DATE_EPOCH`, else that of the newest container image, else 0]
    #[arg(long, env = "ENCLAVE_IMAGE_BUILD_TIME", value_name = "UNIX_SECONDS")]
    pub build_time: Option<u32>,
    /// A certificate in PEM: signs the image, measured in PCR 8
    #[arg(long, env = "ENCLAVE_IMAGE_SIGNING_CERTIFICATE", value_name = "FILE", requires = "private_key")]
    pub signing_certificate: Option<PathBuf>,
    /// Its key in PEM, on the curve P-384
    #[arg(long, env = "ENCLAVE_IMAGE_PRIVATE_KEY", value_name = "FILE", requires = "signing_certificate")]
    pub private_key: Option<PathBuf>,
}

/// What is read from the environment beside the options.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    /// `NITRO_CLI_BLOBS`: nitro-cli's own variable.
    pub nitro_cli_blobs: Option<PathBuf>,
    /// `SOURCE_DATE_EPOCH`, see <https://reproducible-builds.org/specs/source-date-epoch/>.
    pub source_date_epoch: Option<String>,
    /// The directory of this program, where its companions are.
    pub program_dir: Option<PathBuf>,
}

impl Environment {
    /// Reads it; called once, at the start.
    pub fn read() -> Self {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let program = std::env::current_exe().ok();
        Self {
            nitro_cli_blobs: set("NITRO_CLI_BLOBS").map(PathBuf::from),
            source_date_epoch: set("SOURCE_DATE_EPOCH").map(|value| value.to_string_lossy().into_owned()),
            program_dir: program.and_then(|program| Some(program.parent()?.to_owned())),
        }
    }

    /// The build time: the option, the environment, the newest image.
    pub fn build_time(&self, option: Option<u32>, newest: Option<u64>) -> Outcome<u32> {
        if let Some(seconds) = option {
            return Ok(seconds);
        }
        if let Some(text) = &self.source_date_epoch {
            let bad =
                |_| Failure::Input(format!("SOURCE_DATE_EPOCH: {text:?} is no number of seconds of 32 bits"));
            return text.parse().map_err(bad);
        }
        Ok(u32::try_from(newest.unwrap_or(0)).unwrap_or(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn every_option_has_an_environment_variable_and_a_help_line() {
        let mut command = Options::command();
        command.build();
        command.clone().debug_assert();
        for command in command.get_subcommands() {
            for argument in command.get_arguments().filter(|a| !a.is_positional()) {
                let id = argument.get_id().as_str();
                if ["help", "version"].contains(&id) {
                    continue;
                }
                assert!(argument.get_help().is_some(), "--{id} has no help");
                let env = argument.get_env().and_then(|env| env.to_str()).unwrap_or("");
                assert!(env.starts_with("ENCLAVE_IMAGE_"), "--{id} has no environment variable");
            }
        }
    }

    #[test]
    fn the_build_time_is_the_option_then_the_environment_then_the_newest_image() {
        let mut environment = Environment::default();
        assert_eq!(environment.build_time(None, None).unwrap(), 0);
        assert_eq!(environment.build_time(None, Some(7)).unwrap(), 7);
        environment.source_date_epoch = Some("5".to_owned());
        assert_eq!(environment.build_time(None, Some(7)).unwrap(), 5);
        assert_eq!(environment.build_time(Some(3), Some(7)).unwrap(), 3);
        environment.source_date_epoch = Some("yesterday".to_owned());
        assert!(environment.build_time(None, None).unwrap_err().to_string().contains("SOURCE_DATE_EPOCH"));
    }

    #[test]
    fn an_image_is_given_for_a_plugin() {
        let given: Given = "a=dir:/b=c".parse().unwrap();
        assert_eq!((given.plugin.as_str(), given.source), ("a", Source::Directory("/b=c".into())));
        assert!("a".parse::<Given>().is_err());
    }
}
