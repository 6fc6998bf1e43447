//! `enclave-image boot`: runs an image file in a virtual machine, for tests and for people without Nitro.
//!
//! With `--lab` a directory's own `run-eif` does it, on a machine that is like Nitro. Without, Debian's QEMU
//! runs kernel and ramdisks on an ordinary one: the host's CID is 2 there, and there is no Nitro Secure
//! Module. Each event is a JSON line.

use std::{ffi::OsString, fs::File, io, path::Path, time::Duration};

use aws_nitro_enclaves_image_format::defs::EifSectionType;
use serde_json::json;

use crate::{
    clock::Stopwatch,
    console::Ending,
    failure::{Failure, Outcome},
    kernel,
    machine::{self, Event, Plan, Signals},
    options::BootOptions,
    process,
    program::Machine,
    section::ImageFile,
};

/// What an ordinary virtual machine is, told to the supervisor.
const ORDINARY: &str = "enclave.host-cid=2 enclave.nsm=auto";

/// Exit codes of `boot`, as `run-eif` has them. Scripts rely on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// It powered off or reset itself.
    Ok = 0,
    /// It was still running when its time was over.
    Timeout = 1,
    /// It could not run.
    CouldNotRun = 2,
    /// Its kernel panicked.
    Panic = 3,
    /// A signal stopped it: 128 and SIGTERM, as a shell says it.
    Stopped = 143,
}

impl From<Ending> for Exit {
    fn from(ending: Ending) -> Self {
        match ending {
            Ending::Shutdown | Ending::Reset => Self::Ok,
            Ending::Timeout => Self::Timeout,
            Ending::Died => Self::CouldNotRun,
            Ending::Panic => Self::Panic,
            Ending::Stopped => Self::Stopped,
        }
    }
}

/// Boots an image file; `say` gets a line per event.
pub fn boot(options: &BootOptions, say: &mut dyn FnMut(&str)) -> Outcome<Exit> {
    if let Some(lab) = &options.lab {
        return Err(in_lab(options, lab));
    }
    let signals = Signals::take()?;
    let file = ImageFile::open(&options.image)?;
    let cmdline = cmdline(options, &file)?;
    let qemu =
        process::find(options.qemu.as_deref(), "qemu-system-x86_64", "apt-get install qemu-system-x86")?;
    let device = process::find(
        options.vhost_device_vsock.as_deref(),
        "vhost-device-vsock",
        "cargo install vhost-device-vsock, or --vhost-device-vsock FILE",
    )?;
    let work = tempfile::Builder::new().prefix("enclave-image-").tempdir();
    let work = work.map_err(|error| Failure::Internal(error.to_string()))?;
    let plan = Plan {
        kernel: extract(&file, EifSectionType::EifSectionKernel, &work.path().join("kernel"))?,
        ramdisks: extract(&file, EifSectionType::EifSectionRamdisk, &work.path().join("ramdisks"))?,
        qemu,
        device,
        cmdline,
        vsock: options.vsock.clone(),
        memory_mib: options.memory.0,
        cpus: options.cpus,
        console: options.console.clone().unwrap_or_else(|| work.path().join("console.log")),
        timeout: Duration::from_secs(options.timeout),
        work: work.path().to_owned(),
    };
    let clock = Stopwatch::start();
    let ending = machine::run(&plan, &signals, &mut |event| say(&line(&event, clock)))?;
    Ok(ending.into())
}

/// Becomes the lab's program.
fn in_lab(options: &BootOptions, lab: &Path) -> Failure {
    if !options.append.is_empty() {
        return Failure::Input(
            "--append has no effect with --lab: its machine boots the image as it is".to_owned(),
        );
    }
    let mut arguments: Vec<OsString> = vec![options.image.clone().into()];
    let mut add = |option: &str, value: OsString| arguments.extend([option.into(), value]);
    add("--vsock", options.vsock.clone().into());
    add("--memory", format!("{}M", options.memory.0).into());
    add("--cpus", options.cpus.to_string().into());
    add("--timeout", options.timeout.to_string().into());
    if let Some(console) = &options.console {
        add("--console", console.clone().into());
    }
    process::become_program(&lab.join("run-eif"), &arguments)
}

/// The image's command line with what is different on an ordinary machine.
fn cmdline(options: &BootOptions, file: &ImageFile) -> Outcome<String> {
    let bad = |cause: &str| Failure::input(&options.image, cause);
    if file.machine != Machine::X86_64 {
        return Err(bad("not for x86_64, which QEMU runs here"));
    }
    let own = file.of(EifSectionType::EifSectionCmdline).next();
    let own = own.ok_or_else(|| bad("it has no command line"))?;
    let own = own.bytes(kernel::CMDLINE_BYTES_MAX as u64).map_err(|error| bad(&error.to_string()))?;
    let own = String::from_utf8(own).map_err(|_| bad("its command line is not UTF-8"))?;
    if own.split_whitespace().any(|word| word == "pci=off") {
        return Err(bad(
            "its kernel is told pci=off, and an ordinary machine's devices are on PCI: use --lab, or \
                        build it with Debian's kernel",
        ));
    }
    if options.vsock.as_os_str().to_string_lossy().contains(',') {
        return Err(Failure::input(&options.vsock, "vhost-device-vsock takes no path with a comma"));
    }
    kernel::cmdline(&[&own, ORDINARY, &options.append])
}

/// Writes all sections of a kind, one behind the other, as a loader puts them into memory.
fn extract(file: &ImageFile, kind: EifSectionType, to: &Path) -> Outcome<std::path::PathBuf> {
    let written = || -> io::Result<()> {
        let mut out = File::create_new(to)?;
        file.of(kind).try_for_each(|content| content.copy_to(&mut out))
    };
    written().map_err(|error| Failure::internal(to, error))?;
    Ok(to.to_owned())
}

/// An event as a line of JSON.
fn line(event: &Event, clock: Stopwatch) -> String {
    let at = (clock.elapsed().as_secs_f64() * 1000.0).round() / 1000.0;
    match event {
        Event::Started(pid) => json!({ "at": at, "event": "started", "qemu": pid }),
        Event::Heartbeat => json!({ "at": at, "event": "heartbeat" }),
        Event::Exited(ending, None) => json!({ "at": at, "event": "exited", "reason": ending }),
        Event::Exited(ending, Some(words)) => {
            json!({ "at": at, "event": "exited", "reason": ending, "qemu": words })
        }
    }
    .to_string()
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}
