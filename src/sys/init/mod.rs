//! A plugin's init: the first process of its PID namespace.
//!
//! As init of a namespace a program would lose the default action of every signal, and an abort would be told
//! as another signal than it was. So this stays: it runs the plugin's command as its child, passes signals
//! on to it, reaps what nobody else does, runs the probes' commands, and says on its socket how the command
//! ended. When it ends, the kernel kills whatever is left in the namespace.
//!
//! There is one for each plugin, so it is small: it has no heap, keeps no buffer, and does nothing that could
//! panic, because what a panic needs would double what it has in memory. (So it talks to the kernel through
//! libc alone: the types of nix and rustix for descriptors and messages can panic.) It is confined as the
//! plugin is, before it is executed. It is not dumpable, so that a plugin of the same user can neither trace
//! it nor read its memory; a plugin that got hold of it all the same could lie about itself.
//!
//! ```text
//! descriptor 0  /dev/null      1, 2  the plugin's output      3  the socket to the supervisor (see `wire`)
//! arguments     the plugin's, its program first; the environment and the working directory are the plugin's
//! ```
//! It runs the command when it is told to. It ends when the command has ended and that is told, or when the
//! supervisor's end of the socket is gone.

pub(super) mod command;
pub mod control;
mod packet;
pub mod wire;

use std::{
    ffi::{CString, OsString, c_char},
    os::{fd::RawFd, unix::ffi::OsStringExt},
    ptr,
};

use nix::{
    errno::Errno,
    sys::signal::{SigSet, SigmaskHow, sigprocmask},
};

use self::{
    command::{Texts, pointers, spawn},
    packet::{Descriptor, Packet},
    wire::{PACKET_MAX, Report, Request},
};

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

/// Why there is nothing left to do.
#[derive(Debug, Clone, Copy)]
enum End {
    /// The plugin's command has ended like this.
    Command(Report),
    /// The supervisor is gone, or wants no more of this run.
    Supervisor,
}

#[derive(Debug)]
struct Init<'a> {
    signals: RawFd,
    main: i32,
    variables: Texts<'a>,
    beside: [Option<Beside>; COMMANDS_MAX],
}

/// The whole program, with the plugin's words from its own arguments and the plugin's variables as its own.
pub fn main(words: impl Iterator<Item = OsString>) -> u8 {
    let words: Vec<CString> = words.filter_map(|word| CString::new(word.into_vec()).ok()).collect();
    let variable = |(name, value): (OsString, OsString)| {
        CString::new([name.into_vec(), value.into_vec()].join(&b'=')).ok()
    };
    let variables: Vec<CString> = std::env::vars_os().filter_map(variable).collect();
    let (words, variables) = (pointers(&words), pointers(&variables));
    // SAFETY: both lists and their texts are this function's own, and outlive the call.
    unsafe { program(words.as_ptr(), variables.as_ptr()) }
}

/// The same with what C hands to `main`.
///
/// # Safety
/// Both lists end with a null pointer, and neither they nor their texts change.
pub unsafe fn program(words: *const *const c_char, variables: *const *const c_char) -> u8 {
    // SAFETY: the caller's promise.
    let words = unsafe { Texts::new(words) };
    // SAFETY: the caller's promise.
    let variables = unsafe { Texts::new(variables) };
    run(words, variables)
}

/// The same with words and variables at hand.
fn run(words: Texts<'_>, variables: Texts<'_>) -> u8 {
    let report = |report| tell(SOCKET, report);
    let signals = match prepare() {
        Ok(signals) => signals,
        Err(errno) => return report(Report::NotStarted { errno: errno as i32 }),
    };
    if !is_told_to_begin() {
        return 0;
    }
    let main = match spawn(words, variables, None) {
        Ok(pid) => pid,
        Err(errno) => return report(Report::NotStarted { errno: errno as i32 }),
    };
    report(Report::Started);
    // The output's end is the plugin's to make: it must not wait for this process.
    for output in [libc::STDOUT_FILENO, libc::STDERR_FILENO] {
        // SAFETY: it touches no memory; nobody owns these descriptors.
        unsafe { libc::dup2(libc::STDIN_FILENO, output) };
    }
    let mut init = Init { signals, main, variables, beside: [const { None }; COMMANDS_MAX] };
    let end = loop {
        if let Some(end) = init.attend() {
            break end;
        }
    };
    // Nothing of the plugin is left when its end is told: its successor need not wait for this process.
    if nix::unistd::getpid().as_raw() == 1 {
        kill_all();
    } else {
        kill_descendants();
    }
    match end {
        End::Command(report_of_end) => report(report_of_end),
        End::Supervisor => 0,
    }
}

/// Ends everything else in this process's PID namespace. Whoever is orphaned there becomes its child, so that
/// nobody is left when there is no child any more.
fn kill_all() {
    // Most plugins leave nothing behind, and the kernel goes through all processes of the machine for a kill.
    let mut options = libc::WNOHANG;
    loop {
        // SAFETY: a null pointer for the status is allowed.
        match unsafe { libc::waitpid(-1, ptr::null_mut(), options) } {
            0 => {
                kill(-1, libc::SIGKILL);
                options = 0;
            }
            -1 if Errno::last() != Errno::EINTR => return,
            _ => {}
        }
    }
}

/// Waits until the supervisor says so; false when it is gone, or has no use for this run any more.
fn is_told_to_begin() -> bool {
    let mut packet = [0; wire::HEAD];
    loop {
        match received(SOCKET, &mut packet, 0) {
            Ok(0) => return false,
            Ok(length)
                if Request::decode(packet.get(..length).unwrap_or_default()) == Some(Request::Begin) =>
            {
                return true;
            }
            // The supervisor says nothing else before that.
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return false,
        }
    }
}

/// recv(2).
fn received(socket: RawFd, packet: &mut [u8], flags: i32) -> nix::Result<usize> {
    // SAFETY: pointer and length are those of memory that may be written.
    let length = unsafe { libc::recv(socket, packet.as_mut_ptr().cast(), packet.len(), flags) };
    length_of(length)
}

/// read(2).
fn read(file: RawFd, bytes: &mut [u8]) -> nix::Result<usize> {
    // SAFETY: pointer and length are those of memory that may be written.
    let length = unsafe { libc::read(file, bytes.as_mut_ptr().cast(), bytes.len()) };
    length_of(length)
}

/// What a call that moves bytes has answered.
fn length_of(answer: isize) -> nix::Result<usize> {
    usize::try_from(answer).map_err(|_| Errno::last())
}

/// The same without a namespace: ends all that it has adopted or started. Best effort:
/// a process that forks faster than this kills may escape.
fn kill_descendants() {
    const ROUNDS_MAX: usize = 100;
    let mut list = [0; 256];
    for _ in 0..ROUNDS_MAX {
        // This process has one thread. A list that is longer than what is read is gone through in rounds; a
        // number that is cut off is nobody else's child, and is told so.
        let path = c"/proc/thread-self/children";
        // SAFETY: the path ends with a NUL.
        let file = Descriptor(unsafe { libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) });
        let Ok(length) = read(file.0, &mut list) else { return };
        let pids = list.get(..length).unwrap_or_default().split(|byte| *byte == b' ').filter_map(number);
        let mut any = false;
        for pid in pids {
            any = true;
            kill(pid, libc::SIGKILL);
            // SAFETY: a null pointer for the status is allowed.
            unsafe { libc::waitpid(pid, ptr::null_mut(), 0) };
        }
        if !any {
            return;
        }
    }
}

/// A positive decimal number.
fn number(digits: &[u8]) -> Option<i32> {
    let append = |number: i32, digit: &u8| {
        let digit = char::from(*digit).to_digit(10)?;
        number.checked_mul(10)?.checked_add_unsigned(digit)
    };
    digits.iter().try_fold(0, append).filter(|number| *number > 0)
}

/// A packet that finds no room belongs to a supervisor that has not read hundreds before it: it is lost.
fn tell(socket: RawFd, report: Report) -> u8 {
    let (packet, flags) = (report.encode(), libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT);
    // SAFETY: pointer and length are the packet's.
    unsafe { libc::send(socket, packet.as_ptr().cast(), packet.len(), flags) };
    0
}

/// Says that there will be no init.
pub(super) fn refuse(socket: RawFd, errno: Errno) {
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
        let old = ptr::null_mut::<u64>();
        // SAFETY: the kernel only reads one `sigaction` of at most 32 bytes, which DEFAULT is; a null pointer
        // for the old one is allowed; the default action runs no code of ours.
        let done =
            unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, DEFAULT.as_ptr(), old, MASK_BYTES) };
        Errno::result(done)?;
    }
    Ok(())
}

/// Shuts this process off from the plugin. The answer is where signals are read: they have their default
/// actions and are blocked, all of them.
fn prepare() -> nix::Result<RawFd> {
    // SAFETY: it touches no memory. By the protocol with the supervisor this descriptor is open.
    Errno::result(unsafe { libc::fcntl(SOCKET, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    nix::sys::prctl::set_dumpable(false)?;
    // Without a PID namespace (isolation is off) orphans are its own all the same.
    nix::sys::prctl::set_child_subreaper(true)?;
    reset_actions()?;
    let all = SigSet::all();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&all), None)?;
    // SAFETY: the set is only read.
    Errno::result(unsafe { libc::signalfd(-1, all.as_ref(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) })
}

/// Signals a process, or a group by its negative number. One that has ended is no error.
fn kill(target: i32, signal: i32) {
    // SAFETY: kill touches no memory.
    unsafe { libc::kill(target, signal) };
}

impl Init<'_> {
    /// Waits for something and sees to it, and says when that was the end.
    fn attend(&mut self) -> Option<End> {
        let wait = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let mut ready = [wait(SOCKET), wait(self.signals)];
        // SAFETY: there are as many as is said, and they may be written.
        if unsafe { libc::poll(ready.as_mut_ptr(), 2, -1) } < 0 {
            return None;
        }
        let [asked, signalled] = ready.map(|one| one.revents != 0);
        if signalled {
            self.pass_on();
            if let Some(report) = self.reap() {
                return Some(End::Command(report));
            }
        }
        (asked && !self.obey()).then_some(End::Supervisor)
    }

    /// Passes one signal on to the plugin's command.
    fn pass_on(&self) {
        // One record of signalfd(2), in which the signal's number comes first.
        let mut record = [0; size_of::<libc::signalfd_siginfo>()];
        if read(self.signals, &mut record) == Ok(record.len())
            && let Some(number) = record.first_chunk().copied().map(i32::from_ne_bytes)
            && number != libc::SIGCHLD
        {
            kill(self.main, number);
        }
    }

    /// Reaps whatever has ended. How the plugin's command has, when it is among that.
    fn reap(&mut self) -> Option<Report> {
        loop {
            let mut status = 0;
            // SAFETY: the pointer is to a live, writable integer; WNOHANG does not block.
            let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
            if pid <= 0 {
                return None;
            }
            if pid == self.main {
                return Some(if libc::WIFSIGNALED(status) {
                    Report::Killed { signal: libc::WTERMSIG(status) }
                } else {
                    Report::Exited { code: libc::WEXITSTATUS(status) }
                });
            }
            let ended = |slot: &mut Option<Beside>| slot.take_if(|beside| beside.pid == pid);
            if let Some(Beside { id, .. }) = self.beside.iter_mut().find_map(ended) {
                let success = libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0;
                // What it left in its group would hold its output open.
                kill(pid.wrapping_neg(), libc::SIGKILL);
                tell(SOCKET, Report::Ran { id, success });
            }
        }
    }

    /// Does what the supervisor asks for; false when it is gone.
    fn obey(&mut self) -> bool {
        // The length first: most packets are short, and the largest is as large as all of this process.
        let peek = libc::MSG_PEEK | libc::MSG_TRUNC | libc::MSG_DONTWAIT;
        let length = match received(SOCKET, &mut [0; 1], peek) {
            // No packet is empty: that is the end.
            Ok(0) => return false,
            Ok(length) => length.min(PACKET_MAX),
            Err(errno) => return errno == Errno::EAGAIN || errno == Errno::EINTR,
        };
        // Without memory for it the packet stays, and is asked for again.
        let Ok(mut packet) = Packet::new(length) else { return true };
        let Ok(output) = packet.receive() else { return true };
        match (Request::decode(packet.bytes()), output) {
            (Some(Request::Run { id, .. }), Some(output)) => self.run(id, &mut packet, &output),
            (Some(Request::Cancel { id }), _) => self.cancel(id),
            // The supervisor says nothing else.
            (Some(Request::Begin | Request::Run { .. }) | None, _) => {}
        }
        true
    }

    fn run(&mut self, id: u32, packet: &mut Packet, output: &Descriptor) {
        let started = self.beside.iter_mut().find(|slot| slot.is_none()).and_then(|slot| {
            let pid = spawn(packet.words(), self.variables, Some(output)).ok()?;
            *slot = Some(Beside { id, pid });
            Some(())
        });
        if started.is_none() {
            tell(SOCKET, Report::Ran { id, success: false });
        }
    }

    fn cancel(&self, id: u32) {
        if let Some(beside) = self.beside.iter().flatten().find(|beside| beside.id == id) {
            kill(beside.pid.wrapping_neg(), libc::SIGKILL);
        }
    }
}
