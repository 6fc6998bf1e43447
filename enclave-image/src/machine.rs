//! One run of a virtual machine under the system's QEMU: starts it with a vsock device, and waits for its
//! console, its heartbeat, a signal or the end of its time, whichever comes first.

use std::{
    ffi::OsString,
    fs::File,
    io::{Read as _, Write as _},
    os::{fd::AsFd, unix::net::UnixListener},
    path::{Path, PathBuf},
    process::ChildStdout,
    time::Duration,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        inotify::{AddWatchFlags, InitFlags, Inotify},
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
    },
};

use crate::{
    clock::Stopwatch,
    console::{Console, Ending},
    failure::{Failure, Outcome},
    heartbeat,
    process::Process,
};

/// The guest's CID: the first that is nobody's.
const GUEST_CID: u32 = 4;
/// vhost-device-vsock is there within milliseconds, or not at all.
const DEVICE_PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of the console taken at a time.
const CHUNK_BYTES: usize = 16 << 10;

/// What a run needs.
#[derive(Debug, Clone)]
pub struct Plan {
    /// `qemu-system-x86_64`.
    pub qemu: PathBuf,
    /// `vhost-device-vsock`.
    pub device: PathBuf,
    /// A directory of ours.
    pub work: PathBuf,
    /// The kernel's file.
    pub kernel: PathBuf,
    /// The ramdisks' file.
    pub ramdisks: PathBuf,
    /// The command line.
    pub cmdline: String,
    /// The Unix socket that stands for the guest's vsock.
    pub vsock: PathBuf,
    /// MiB.
    pub memory_mib: u32,
    /// Virtual processors.
    pub cpus: u32,
    /// Where the console is written to.
    pub console: PathBuf,
    /// When it is over.
    pub timeout: Duration,
}

/// What happens, as it happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// QEMU runs, with this pid.
    Started(u32),
    /// The guest's init is up.
    Heartbeat,
    /// It is over; with QEMU's last words if it died.
    Exited(Ending, Option<String>),
}

/// Signals that end the run.
#[derive(Debug)]
pub struct Signals(SignalFd);

impl Signals {
    /// From now on SIGTERM and SIGINT are an event. Children start with them unblocked again.
    pub fn take() -> Outcome<Self> {
        let set = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
        let taken = set.thread_block().and_then(|()| SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC));
        taken.map(Self).map_err(|errno| Failure::Internal(format!("signals: {errno}")))
    }
}

/// Runs the machine to its end.
pub fn run(plan: &Plan, signals: &Signals, say: &mut dyn FnMut(Event)) -> Outcome<Ending> {
    let clock = Stopwatch::start();
    let heartbeats = with_suffix(&plan.vsock, "_9000");
    for path in [&plan.vsock, &heartbeats] {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Failure::input(path, error));
            }
            Ok(()) | Err(_) => {}
        }
    }
    let listener = UnixListener::bind(&heartbeats).map_err(|error| Failure::input(&heartbeats, error))?;
    let device = start_device(plan)?;
    let mut qemu = Process::start(&plan.qemu, &arguments(plan), &plan.work.join("qemu.log"))?;
    say(Event::Started(qemu.id()));
    let output = qemu.output().ok_or_else(|| Failure::Internal("QEMU has no output".to_owned()))?;
    let ending = until_end(plan, signals, &listener, output, clock, say)?;
    let words = if ending == Ending::Died { qemu.last_error() } else { None };
    drop(qemu);
    drop(device);
    for path in [&plan.vsock, &heartbeats] {
        // The run is over; a socket that is left does no harm, and the next run removes it.
        std::fs::remove_file(path).ok();
    }
    say(Event::Exited(ending, words));
    Ok(ending)
}

/// A path with something added to its last part.
fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}

/// Starts the device's other half and waits for its socket.
fn start_device(plan: &Plan) -> Outcome<Process> {
    let failed = |cause: &dyn std::fmt::Display| Failure::Internal(format!("vhost-device-vsock: {cause}"));
    let watch = Inotify::init(InitFlags::IN_CLOEXEC).map_err(|errno| failed(&errno))?;
    watch.add_watch(&plan.work, AddWatchFlags::IN_CREATE).map_err(|errno| failed(&errno))?;
    let socket = plan.work.join("vhost.sock");
    let vm = format!("guest-cid={GUEST_CID},socket={},uds-path={}", socket.display(), plan.vsock.display());
    let mut device = Process::start(&plan.device, &["--vm".into(), vm.into()], &plan.work.join("vhost.log"))?;
    // Its end is the end of this pipe: nothing else is written to it.
    let output = device.output().ok_or_else(|| failed(&"no output"))?;
    let clock = Stopwatch::start();
    while !socket.exists() {
        let left = DEVICE_PATIENCE.saturating_sub(clock.elapsed());
        let mut fds =
            [PollFd::new(watch.as_fd(), PollFlags::POLLIN), PollFd::new(output.as_fd(), PollFlags::empty())];
        wait(&mut fds, left)?;
        let has_news = fds[0].any().unwrap_or(false);
        if has_news {
            // Which file it was is looked up above.
            watch.read_events().map_err(|errno| failed(&errno))?;
        } else if device.has_ended() || left.is_zero() {
            let words = device.last_error();
            return Err(failed(&words.unwrap_or_else(|| "it made no socket".to_owned())));
        }
    }
    Ok(device)
}

fn arguments(plan: &Plan) -> Vec<OsString> {
    let memory = format!("memory-backend-memfd,id=mem0,size={}M,share=on", plan.memory_mib);
    let socket = format!("socket,id=c0,path={}", plan.work.join("vhost.sock").display());
    let mut arguments: Vec<OsString> = Vec::new();
    for (option, value) in [
        ("-M", "q35,memory-backend=mem0".into()),
        ("-object", OsString::from(memory)),
        ("-m", format!("{}M", plan.memory_mib).into()),
        ("-smp", plan.cpus.to_string().into()),
        ("-accel", "tcg,thread=multi".into()),
        ("-cpu", "max".into()),
        ("-kernel", plan.kernel.clone().into()),
        ("-initrd", plan.ramdisks.clone().into()),
        ("-append", plan.cmdline.clone().into()),
        ("-chardev", socket.into()),
        ("-device", "vhost-user-vsock-pci,chardev=c0".into()),
        ("-display", "none".into()),
        ("-serial", "stdio".into()),
    ] {
        arguments.extend([OsString::from(option), value]);
    }
    arguments.extend(["-no-reboot", "-nodefaults"].map(OsString::from));
    arguments
}

/// Waits for one of the descriptors.
fn wait(fds: &mut [PollFd<'_>], left: Duration) -> Outcome<()> {
    // A millisecond more: a wait that ends early would only be begun again.
    let millis = i32::try_from(left.as_millis().saturating_add(1)).unwrap_or(i32::MAX);
    let timeout = PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX);
    match poll(fds, timeout) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(Failure::Internal(format!("poll: {errno}"))),
    }
}

fn until_end(
    plan: &Plan,
    signals: &Signals,
    listener: &UnixListener,
    mut output: ChildStdout,
    clock: Stopwatch,
    say: &mut dyn FnMut(Event),
) -> Outcome<Ending> {
    let failed = |error: std::io::Error| Failure::internal(&plan.console, error);
    let mut log = File::create(&plan.console).map_err(failed)?;
    let mut console = Console::default();
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let left = plan.timeout.saturating_sub(clock.elapsed());
        if left.is_zero() {
            return Ok(Ending::Timeout);
        }
        let mut fds = [output.as_fd(), listener.as_fd(), signals.0.as_fd()]
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        wait(&mut fds, left)?;
        let [has_output, has_guest, has_signal] = fds.map(|fd| fd.any().unwrap_or(false));
        if has_signal {
            return Ok(Ending::Stopped);
        }
        if has_output {
            let count = output.read(&mut chunk).map_err(failed)?;
            if count == 0 {
                return Ok(Ending::Died);
            }
            log.write_all(&chunk[..count]).map_err(failed)?;
            if let Some(ending) = console.take(&chunk[..count]) {
                return Ok(ending);
            }
        }
        // A guest that sends something else, or nothing, has no heartbeat.
        if has_guest && heartbeat::answer(listener).unwrap_or(false) {
            say(Event::Heartbeat);
        }
    }
}
