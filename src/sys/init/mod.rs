//! A plugin's init: the first process of its PID namespace.
//!
//! As init of a namespace a program would lose the default action of every signal, and an abort would be told
//! as another signal than it was. So this stays: it runs the plugin's command as its child, passes signals
//! on to it, reaps what nobody else does, runs the probes' commands, and says on its socket how the command
//! ended. When it ends, the kernel kills whatever is left in the namespace.
//!
//! There is one for each plugin, so it is small: it allocates next to nothing and keeps no buffer. It is
//! confined as the plugin is, before it is executed. It is not dumpable, so that a plugin of the same user
//! can neither trace it nor read its memory; a plugin that got hold of it all the same could lie about
//! itself.
//!
//! ```text
//! descriptor 0  /dev/null      1, 2  the plugin's output      3  the socket to the supervisor (see `wire`)
//! arguments     the plugin's, its program first; the environment and the working directory are the plugin's
//! ```
//! It ends when its command has ended and that is told, or when the supervisor's end of the socket is gone.

pub mod control;
pub mod wire;

use std::{
    ffi::{CStr, CString, OsString},
    io::IoSliceMut,
    mem::MaybeUninit,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
        unix::ffi::OsStringExt,
    },
};

use nix::{
    errno::Errno,
    spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawnp},
    sys::{
        signal::{SigSet, SigmaskHow, sigprocmask},
        signalfd::{SfdFlags, SignalFd},
    },
};
use rustix::{
    event::{PollFd, PollFlags, poll},
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, recv, recvmsg, send},
};
use wire::{PACKET_MAX, Report, Request};

/// The hidden subcommand of the supervisor's binary that is this program.
pub const SUBCOMMAND: &str = "plugin-init";
/// Where its socket is.
pub const SOCKET: RawFd = 3;
/// Commands that may run at once: a plugin has three probes and one hook.
pub const COMMANDS_MAX: usize = 4;
/// A command beside the plugin's own.
#[derive(Debug)]
struct Beside {
    id: u32,
    pid: i32,
}

#[derive(Debug)]
struct Init {
    socket: BorrowedFd<'static>,
    main: i32,
    variables: Vec<CString>,
    beside: [Option<Beside>; COMMANDS_MAX],
}

/// The whole program, with the plugin's words from its own arguments and the plugin's variables as its own.
pub fn main(words: impl Iterator<Item = OsString>) -> u8 {
    let words: Vec<CString> = words.filter_map(|word| CString::new(word.into_vec()).ok()).collect();
    let variable = |(name, value): (OsString, OsString)| {
        CString::new([name.into_vec(), value.into_vec()].join(&b'=')).ok()
    };
    run(&words, std::env::vars_os().filter_map(variable).collect())
}

/// The same with words and variables at hand.
pub(super) fn run(words: &[CString], variables: Vec<CString>) -> u8 {
    // SAFETY: by the protocol with the supervisor this descriptor is open, and nothing here closes it.
    let socket = unsafe { BorrowedFd::borrow_raw(SOCKET) };
    // These can only fail for a wrong argument, which none of them has.
    rustix::io::fcntl_setfd(socket, rustix::io::FdFlags::CLOEXEC).ok();
    nix::sys::prctl::set_dumpable(false).ok();
    // Without a PID namespace (isolation is off) orphans are its own all the same.
    nix::sys::prctl::set_child_subreaper(true).ok();
    let report = |report| tell(socket, report);
    let signals = match prepare_signals() {
        Ok(signals) => signals,
        Err(errno) => return report(Report::NotStarted { errno: errno as i32 }),
    };
    let main = match spawn(words, &variables, None) {
        Ok(pid) => pid,
        Err(errno) => return report(Report::NotStarted { errno: errno as i32 }),
    };
    // The output's end is the plugin's to make: it must not wait for this process.
    nix::unistd::dup2_stdout(std::io::stdin()).ok();
    nix::unistd::dup2_stderr(std::io::stdin()).ok();
    report(Report::Started);
    let mut init = Init { socket, main, variables, beside: [const { None }; COMMANDS_MAX] };
    while init.attend(&signals) {}
    if std::process::id() != 1 {
        kill_descendants();
    }
    0
}

/// What the kernel does for the init of a namespace: ends all that it has adopted or started. Best effort,
/// where there is no namespace: a process that forks faster than this kills may escape.
fn kill_descendants() {
    const ROUNDS_MAX: usize = 100;
    let own = std::process::id();
    for _ in 0..ROUNDS_MAX {
        let children =
            std::fs::read_to_string(format!("/proc/{own}/task/{own}/children")).unwrap_or_default();
        let pids: Vec<i32> = children.split_whitespace().filter_map(|pid| pid.parse().ok()).collect();
        if pids.is_empty() {
            return;
        }
        for pid in pids {
            kill(pid, libc::SIGKILL);
            // SAFETY: a null pointer for the status is allowed.
            unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
        }
    }
}

/// A packet that finds no room belongs to a supervisor that has not read hundreds before it: it is lost.
fn tell(socket: BorrowedFd<'_>, report: Report) -> u8 {
    send(socket, &report.encode(), SendFlags::NOSIGNAL | SendFlags::DONTWAIT).ok();
    0
}

/// Says that there will be no init.
pub(super) fn refuse(socket: BorrowedFd<'_>, errno: Errno) {
    tell(socket, Report::NotStarted { errno: errno as i32 });
}

/// Default actions for every signal.
///
/// The kernel is asked directly, because C libraries keep some real-time signals to themselves and refuse to
/// reset them, while whoever started the supervisor may well have them ignored.
pub(super) fn reset_actions() -> nix::Result<()> {
    const SIGNAL_LAST: i32 = 64;
    // The kernel's `sigaction` with SIG_DFL, no flags and an empty mask, in whichever order the fields are.
    const DEFAULT: [u64; 4] = [0; 4];
    const MASK_BYTES: usize = 8;
    for signal in (1..=SIGNAL_LAST).filter(|s| ![libc::SIGKILL, libc::SIGSTOP].contains(s)) {
        let old = std::ptr::null_mut::<u64>();
        // SAFETY: the kernel only reads one `sigaction` of at most 32 bytes, which DEFAULT is; a null pointer
        // for the old one is allowed; the default action runs no code of ours.
        let done =
            unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, DEFAULT.as_ptr(), old, MASK_BYTES) };
        Errno::result(done)?;
    }
    Ok(())
}

/// Default actions for every signal, all of them blocked and readable from the descriptor.
fn prepare_signals() -> nix::Result<SignalFd> {
    reset_actions()?;
    let all = SigSet::all();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&all), None)?;
    SignalFd::with_flags(&all, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
}

/// Runs a command in a session of its own, with no signal blocked, and its output where it is told. It is
/// reaped by [`Init::reap`].
fn spawn<W: AsRef<CStr>>(words: &[W], variables: &[CString], output: Option<&OwnedFd>) -> nix::Result<i32> {
    let program = words.first().map(AsRef::as_ref).filter(|program| !program.is_empty());
    let program = program.ok_or(Errno::ENOENT)?;
    let mut actions = PosixSpawnFileActions::init()?;
    if let Some(output) = output {
        actions.add_dup2(output.as_raw_fd(), 1)?;
        actions.add_dup2(output.as_raw_fd(), 2)?;
    }
    let mut attributes = PosixSpawnAttr::init()?;
    attributes.set_sigmask(&SigSet::empty())?;
    let session = PosixSpawnFlags::from_bits_retain(libc::POSIX_SPAWN_SETSID.into());
    attributes.set_flags(session | PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK)?;
    Ok(posix_spawnp(program, &actions, &attributes, words, variables)?.as_raw())
}

/// Signals a process, or a group by its negative number. One that has ended is no error.
fn kill(target: i32, signal: i32) {
    // SAFETY: kill touches no memory.
    unsafe { libc::kill(target, signal) };
}

impl Init {
    /// Waits for something and sees to it; false at the end.
    fn attend(&mut self, signals: &SignalFd) -> bool {
        let mut ready = [
            PollFd::new(&self.socket, PollFlags::IN),
            PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN),
        ];
        if poll(&mut ready, None).is_err() {
            return true;
        }
        let [asked, signalled] = [ready[0].revents(), ready[1].revents()];
        if !signalled.is_empty() {
            self.pass_on(signals);
            if !self.reap() {
                return false;
            }
        }
        asked.is_empty() || self.obey()
    }

    /// Passes one signal on to the plugin's command.
    fn pass_on(&self, signals: &SignalFd) {
        if let Ok(Some(signal)) = signals.read_signal() {
            let number = signal.ssi_signo.cast_signed();
            if number != libc::SIGCHLD {
                kill(self.main, number);
            }
        }
    }

    /// Reaps whatever has ended; false when the plugin's command has.
    fn reap(&mut self) -> bool {
        loop {
            let mut status = 0;
            // SAFETY: the pointer is to a live, writable integer; WNOHANG does not block.
            let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
            if pid <= 0 {
                return true;
            }
            if pid == self.main {
                tell(
                    self.socket,
                    if libc::WIFSIGNALED(status) {
                        Report::Killed { signal: libc::WTERMSIG(status) }
                    } else {
                        Report::Exited { code: libc::WEXITSTATUS(status) }
                    },
                );
                return false;
            }
            let ended = |slot: &mut Option<Beside>| slot.take_if(|beside| beside.pid == pid);
            if let Some(Beside { id, .. }) = self.beside.iter_mut().find_map(ended) {
                let success = libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0;
                // What it left in its group would hold its output open.
                kill(-pid, libc::SIGKILL);
                tell(self.socket, Report::Ran { id, success });
            }
        }
    }

    /// Does what the supervisor asks for; false when it is gone.
    fn obey(&mut self) -> bool {
        // The length first: most packets are short, and a large buffer would stay this process's for good.
        let peek = RecvFlags::PEEK | RecvFlags::TRUNC | RecvFlags::DONTWAIT;
        let length = match recv(self.socket, &mut [0_u8; 1], peek) {
            // No packet is empty: that is the end.
            Ok((_, 0)) => return false,
            Ok((_, length)) => length.min(PACKET_MAX),
            Err(error) => return [rustix::io::Errno::AGAIN, rustix::io::Errno::INTR].contains(&error),
        };
        let mut bytes = vec![0; length];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        if recvmsg(self.socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags).is_err() {
            return true;
        }
        let output = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            RecvAncillaryMessage::ScmCredentials(_) | _ => None,
        });
        match (Request::decode(&bytes), output) {
            (Some(Request::Run { id, words }), Some(output)) => self.run(id, words, &output),
            (Some(Request::Cancel { id }), _) => self.cancel(id),
            // The supervisor says nothing else.
            (Some(Request::Run { .. }) | None, _) => {}
        }
        true
    }

    fn run(&mut self, id: u32, words: &[u8], output: &OwnedFd) {
        let started = self.beside.iter_mut().find(|slot| slot.is_none()).and_then(|slot| {
            let pid = start(words, &self.variables, output).ok()?;
            *slot = Some(Beside { id, pid });
            Some(())
        });
        if started.is_none() {
            tell(self.socket, Report::Ran { id, success: false });
        }
    }

    fn cancel(&self, id: u32) {
        if let Some(beside) = self.beside.iter().flatten().find(|beside| beside.id == id) {
            kill(-beside.pid, libc::SIGKILL);
        }
    }
}

/// Starts a command whose words come in one piece, each with its NUL.
fn start(words: &[u8], variables: &[CString], output: &OwnedFd) -> nix::Result<i32> {
    let words = words.split_inclusive(|byte| *byte == 0);
    let words: Vec<&CStr> = words.filter_map(|word| CStr::from_bytes_with_nul(word).ok()).collect();
    spawn(&words, variables, Some(output))
}
