//! What only the init of an enclave does, before the first manifest: the kernel's file systems, modules, the
//! Nitro Secure Module, randomness, limits, names, the clock.
//!
//! ```text
//!            vm                      child (of AWS's init)      container
//! root       moved over itself       –                          –
//! mounts     all                     –                          –
//! console    /dev/console            –                          –
//! modules    the image's list        –                          –
//! orphans    (PID 1)                 subreaper                  subreaper unless PID 1
//! NSM        opened, entropy         opened, entropy            –
//! limits     kernel's maximum        kernel's maximum           hard limit
//! loopback   raised                  raised                     raised
//! names      hosts, resolv, host     those that are missing     –
//! clock      hypervisor or host      hypervisor or host         –
//! heartbeat  sent                    –                          –
//! ```
//! Every step is tried whatever became of the one before. What went wrong is a remark that the host is told
//! with the manifest's answer, or fatal: then nothing is ever started, the reason is told on the console and
//! over vsock, and the machine ends. Nothing here panics or exits.

pub mod cgroups;
pub mod clock;
pub mod heartbeat;
mod mounts;
mod names;
pub mod words;

use std::{collections::BTreeMap, ffi::OsString, fs, io, path::Path, time::Duration};

use clap::ValueEnum;
use enclave_protocol::{control::Condition, transport::Address};
use vsock::VMADDR_CID_ANY;

use self::{clock::HostClock, words::Words};
use crate::{
    options::{Init, KernelRemarks, RunOptions},
    sys::{
        self,
        machine::Module,
        nsm::{Nsm, NsmError},
        time::HypervisorClock,
    },
};

/// The kernel modules of the image, one path a line, in the order in which they are loaded.
const MODULES: &str = "/etc/enclave/modules";
/// When the image was built: seconds since 1970, as decimal text.
const BUILD_TIME: &str = "/etc/enclave/build-time";
/// Longest of these files that is read, in bytes.
const FILE_BYTES_MAX: u64 = 64 << 10;
/// Where the kernel names its source of hardware randomness.
const RNG_CURRENT: &str = "/sys/class/misc/hw_random/rng_current";
/// How it calls the Nitro Secure Module there.
const NSM_RNG: &str = "nsm-hwrng";

/// Whether there is a Nitro Secure Module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum NsmUse {
    /// Used where there is one; said loudly otherwise.
    Auto,
    /// Without one the enclave ends.
    Required,
    /// Not used.
    Off,
}

/// Why an enclave cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The kernel's command line has an option with a value that it cannot have.
    #[error("the kernel command line: {0}")]
    Option(String),
    /// The root cannot be moved.
    #[error("cannot move the root file system: {0}")]
    Root(#[source] io::Error),
    /// A file system that nothing works without.
    #[error("cannot mount {target}: {source}")]
    Mount {
        /// Where.
        target: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The machine's only wire is missing.
    #[error("no vsock device: {0}")]
    NoVsock(#[source] io::Error),
    /// `--nsm required`, and there is none.
    #[error("no Nitro Secure Module: {0}")]
    NsmMissing(#[source] io::Error),
    /// `--nsm required`, and the kernel does not draw randomness from it.
    #[error("the kernel's source of randomness is {0:?} and not {NSM_RNG:?}")]
    NsmNotRng(String),
    /// It is there and does not work.
    #[error(transparent)]
    Nsm(#[from] NsmError),
}

/// Where the wall clock comes from.
#[derive(Debug)]
pub enum ClockSource {
    /// Not our business.
    Unmanaged,
    /// The hypervisor's clock.
    Hypervisor(HypervisorClock),
    /// `PUT /v1/clock`.
    Host(HostClock),
}

/// What the steps have made.
#[derive(Debug)]
pub struct Machine {
    /// What did not go as it should.
    pub remarks: Vec<Condition>,
    /// The first step that failed fatally.
    pub fatal: Option<BootError>,
    /// The open Nitro Secure Module.
    pub nsm: Option<Nsm>,
    /// The registers that say what the machine is.
    pub measurements: BTreeMap<String, String>,
    /// Where the wall clock comes from.
    pub clock: ClockSource,
}

impl Machine {
    fn new() -> Self {
        let (remarks, measurements) = (Vec::new(), BTreeMap::new());
        Self { remarks, fatal: None, nsm: None, measurements, clock: ClockSource::Unmanaged }
    }

    fn remark(&mut self, kind: &str, message: String) {
        tracing::warn!(kind, "{message}");
        self.remarks.push(Condition { kind: kind.to_owned(), message });
    }

    /// Turns a failure into a remark.
    fn tried(&mut self, kind: &str, what: &str, done: io::Result<()>) {
        if let Err(error) = done {
            self.remark(kind, format!("cannot {what}: {error}"));
        }
    }

    fn failed(&mut self, error: BootError) {
        tracing::error!(%error, "this boot fails");
        self.fatal.get_or_insert(error);
    }
}

/// The options of the init of a machine, if this process is that.
///
/// It is when the kernel started it as `/init`, where our images have it, and the measured command line says
/// so, or nothing has been mounted yet: the first process of a container finds a `/proc`.
pub fn of_machine() -> Option<RunOptions> {
    if std::process::id() != 1 || std::env::args_os().next()? != "/init" {
        return None;
    }
    let mounted = Path::new("/proc/cmdline").exists();
    let words = Words::parse(&command_line(mounted).unwrap_or_default());
    (!mounted || words.get("init").is_some()).then(|| RunOptions::of_machine(&words))
}

/// This is not a place where a process may act as an enclave's init: it would mount over, rename and set the
/// clock of a machine that is not its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PlaceError {
    /// `vm` was asked for by argument or environment.
    #[error(
        "--init vm is not an argument: the kernel starts /init in an enclave image, with enclave.init=vm"
    )]
    NotInit,
    /// `child` where the root file system is on a disk.
    #[error("--init child is for an enclave image: the root file system here is not in memory")]
    NotEnclave,
}

/// Options of `run` for a process that the kernel has not started, with those of the kernel's command line
/// where it is the child of an enclave's init. `arguments` are those after the program's name.
pub fn of_process(options: RunOptions, arguments: &[OsString]) -> Result<RunOptions, PlaceError> {
    match options.init {
        Init::Vm => Err(PlaceError::NotInit),
        Init::Child if !sys::mount::is_in_memory(Path::new("/")) => Err(PlaceError::NotEnclave),
        Init::Child => Ok(of_child(options, arguments)),
        Init::Container => Ok(options),
    }
}

fn of_child(options: RunOptions, arguments: &[OsString]) -> RunOptions {
    let arguments = arguments.strip_prefix(&[OsString::from("run")]).unwrap_or(arguments);
    match command_line(true) {
        Ok(line) => RunOptions::or_kernels(arguments, &Words::parse(&line)),
        Err(error) => {
            let unknown = vec![format!("* ({error})")];
            RunOptions { kernel: KernelRemarks { unknown, invalid: None }, ..options }
        }
    }
}

/// Reads the kernel's command line; a `/proc` that is not mounted yet is left like that.
fn command_line(mounted: bool) -> io::Result<String> {
    if !mounted {
        mounts::proc().perform()?;
    }
    let line = read_bounded(Path::new("/proc/cmdline"), words::COMMAND_LINE_BYTES_MAX);
    if !mounted {
        sys::mount::unmount("/proc")?;
    }
    line
}

/// The end of a machine. It does not come back: if the kernel does not reset it, the init of a machine still
/// must not exit, because the kernel would panic.
pub fn end() -> ! {
    let error = sys::machine::reset();
    tracing::error!(%error, "the kernel does not reset the machine");
    loop {
        std::thread::park();
    }
}

/// Does everything that `options.init` asks for.
pub fn prepare(options: &RunOptions) -> Machine {
    let mut machine = Machine::new();
    match options.init {
        Init::Vm => {
            machine.become_init(options);
            machine.settle(options);
            let named = names::write_all();
            machine.tried("NamesNotSet", "name the machine", named);
        }
        Init::Child => {
            adopt_orphans(&mut machine);
            machine.settle(options);
            let named = names::write_missing();
            machine.tried("NamesNotSet", "name the machine", named);
        }
        Init::Container => {
            if std::process::id() != 1 {
                adopt_orphans(&mut machine);
            }
            machine.raise(None);
        }
    }
    machine.judge_kernel_options(options);
    machine
}

fn adopt_orphans(machine: &mut Machine) {
    let adopted = sys::reaper::adopt_orphans();
    machine.tried("OrphansNotAdopted", "adopt orphans", adopted);
}

impl Machine {
    /// The steps of a machine's own init.
    fn become_init(&mut self, options: &RunOptions) {
        if let Err(error) = sys::mount::replace_root() {
            self.failed(BootError::Root(error));
        }
        for (mount, needed) in mounts::kernel() {
            match mount.perform() {
                Ok(()) => {}
                Err(source) if needed => {
                    self.failed(BootError::Mount { target: mount.target, source });
                }
                Err(error) => self.remark("MountFailed", format!("cannot mount {}: {error}", mount.target)),
            }
        }
        let console = sys::machine::open_console();
        self.tried("NoConsole", "open the console", console);
        let linked = mounts::link_descriptors();
        self.tried("MountFailed", "make the links of /dev", linked);
        for (mount, mounted) in mounts::cgroups(options.cgroup) {
            self.tried("MountFailed", &format!("mount {}", mount.target), mounted);
        }
        self.load_modules(Path::new(MODULES));
    }

    /// Loads the image's modules. One that does not load is a remark: what needed it fails by itself, and
    /// says what it misses.
    fn load_modules(&mut self, list: &Path) {
        let list = match read_bounded(list, FILE_BYTES_MAX) {
            Ok(list) => list,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) => {
                return self.remark("ModuleFailed", format!("cannot read {}: {error}", list.display()));
            }
        };
        for path in list.lines().map(str::trim).filter(|line| !line.is_empty()) {
            match sys::machine::load_module(Path::new(path)) {
                Ok(Module::Loaded) => {}
                Ok(Module::NotNeeded) => tracing::info!(path, "a kernel module has nothing to drive here"),
                Err(error) => {
                    self.remark("ModuleFailed", format!("cannot load the kernel module {path}: {error}"));
                }
            }
        }
    }

    /// The steps that a machine's init and a child of one have in common.
    fn settle(&mut self, options: &RunOptions) {
        if options.transport == Address::Vsock
            && let Err(error) = find_vsock()
        {
            self.failed(BootError::NoVsock(error));
        }
        self.open_nsm(options.nsm);
        if !sys::entropy::is_ready() {
            self.remark("EntropyLow", "the kernel has no randomness yet: the start waits for it".to_owned());
        }
        let lifted = sys::limits::lift_files_of_machine();
        self.tried("OpenFilesLow", "lift the machine's limit of open files", lifted);
        self.raise(sys::limits::open_files_most());
        self.find_clock();
    }

    fn raise(&mut self, open_files: Option<u64>) {
        let loopback = sys::loopback::raise();
        self.tried("LoopbackDown", "raise the loopback interface", loopback);
        let limit = sys::limits::raise_open_files(open_files).map(drop);
        self.tried("OpenFilesLow", "raise the limit of open files", limit);
    }

    fn open_nsm(&mut self, wanted: NsmUse) {
        if wanted == NsmUse::Off {
            return;
        }
        let nsm = match Nsm::open() {
            Ok(nsm) => nsm,
            Err(error) if wanted == NsmUse::Required => return self.failed(BootError::NsmMissing(error)),
            Err(error) => {
                let message = format!("no Nitro Secure Module ({error}): nothing is measured or attested");
                return self.remark("NoNsm", message);
            }
        };
        if !sys::entropy::is_ready() {
            // The kernel draws from the module by itself, a little later.
            let seeded = nsm.random().map_err(io::Error::other).and_then(|seed| sys::entropy::credit(&seed));
            self.tried("NsmNoEntropy", "seed the kernel's randomness from the NSM", seeded);
        }
        let current = read_bounded(Path::new(RNG_CURRENT), FILE_BYTES_MAX).unwrap_or_default();
        let current = current.trim().to_owned();
        if current != NSM_RNG {
            let error = BootError::NsmNotRng(current);
            match wanted {
                NsmUse::Required => self.failed(error),
                NsmUse::Auto | NsmUse::Off => self.remark("NsmNotRng", error.to_string()),
            }
        }
        match nsm.identity() {
            Ok(identity) => self.measurements = identity,
            Err(error) => self.remark("NsmSilent", error.to_string()),
        }
        self.nsm = Some(nsm);
    }

    fn find_clock(&mut self) {
        match HypervisorClock::open() {
            Ok(hypervisor) => {
                let set = clock::set_by(&hypervisor);
                self.tried("ClockNotSet", "set the clock by the hypervisor's", set);
                self.clock = ClockSource::Hypervisor(hypervisor);
            }
            Err(_) => self.clock = ClockSource::Host(HostClock::new(self.build_time(Path::new(BUILD_TIME)))),
        }
    }

    fn build_time(&mut self, file: &Path) -> Duration {
        let parse = |text: String| text.trim().parse().map_err(io::Error::other);
        match read_bounded(file, FILE_BYTES_MAX).and_then(parse) {
            Ok(seconds) => Duration::from_secs(seconds),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Duration::ZERO,
            Err(error) => {
                self.remark("ClockNotBound", format!("cannot use {}: {error}", file.display()));
                Duration::ZERO
            }
        }
    }

    /// Last, so that whatever tells of a wrong word works.
    fn judge_kernel_options(&mut self, options: &RunOptions) {
        for word in &options.kernel.unknown {
            let message = format!("the kernel command line has enclave.{word}, which is no option");
            self.remark("UnknownKernelOption", message);
        }
        if let Some(invalid) = &options.kernel.invalid {
            self.failed(BootError::Option(invalid.clone()));
        }
    }
}

/// Whether there is a device behind the kernel's vsock sockets. Without one they can be bound, and nobody
/// ever connects.
fn find_vsock() -> io::Result<()> {
    match vsock::get_local_cid()? {
        VMADDR_CID_ANY => Err(io::Error::new(io::ErrorKind::NotFound, "the machine has no CID")),
        _ => Ok(()),
    }
}

/// Reads a text file of at most this many bytes; what is not UTF-8 is replaced.
fn read_bounded(path: &Path, most: u64) -> io::Result<String> {
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(fs::File::open(path)?, most + 1), &mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("longer than {most} bytes")));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(machine: &Machine) -> Vec<&str> {
        machine.remarks.iter().map(|remark| remark.kind.as_str()).collect()
    }

    #[test]
    fn a_module_that_does_not_load_is_a_remark_and_the_next_one_is_tried() {
        let dir = tempfile::tempdir().unwrap();
        let list = dir.path().join("modules");
        fs::write(&list, "/nonexistent/one.ko\n\n/nonexistent/two.ko\n").unwrap();
        let mut machine = Machine::new();
        machine.load_modules(&list);
        assert_eq!(kinds(&machine), ["ModuleFailed", "ModuleFailed"]);
        assert!(machine.remarks[1].message.contains("/nonexistent/two.ko"));
        machine.load_modules(&dir.path().join("none"));
        assert_eq!((machine.remarks.len(), machine.fatal.is_none()), (2, true));
        fs::write(&list, "x".repeat(usize::try_from(FILE_BYTES_MAX).unwrap() + 1)).unwrap();
        machine.load_modules(&list);
        assert!(machine.remarks[2].message.contains("longer than"), "{:?}", machine.remarks);
    }

    #[test]
    fn a_build_time_that_is_none_leaves_the_clock_unbound_and_is_a_remark() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("build-time");
        let mut machine = Machine::new();
        assert_eq!(machine.build_time(&file), Duration::ZERO);
        fs::write(&file, "1700000000\n").unwrap();
        assert_eq!(machine.build_time(&file), Duration::from_secs(1_700_000_000));
        assert!(machine.remarks.is_empty());
        fs::write(&file, "yesterday").unwrap();
        assert_eq!(machine.build_time(&file), Duration::ZERO);
        assert_eq!(kinds(&machine), ["ClockNotBound"]);
    }

    #[test]
    fn the_first_fatal_error_is_the_reason() {
        let mut machine = Machine::new();
        machine.failed(BootError::NsmMissing(io::ErrorKind::NotFound.into()));
        machine.failed(BootError::Option("x".to_owned()));
        assert!(machine.fatal.unwrap().to_string().starts_with("no Nitro Secure Module"));
    }
}
