//! The one place that waits for children. It owns every child of the process, adopted orphans included.

use std::{io, time::Duration};

use nix::{
    errno::Errno,
    sys::{
        signal::{Signal, killpg},
        wait::{Id, WaitPidFlag, WaitStatus, waitid},
    },
    unistd::Pid,
};

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// It called exit with this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
}

/// A child that has been reaped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reaped {
    /// Its process id, free to be reused from now on.
    pub pid: i32,
    /// How it ended.
    pub ending: Ending,
    /// CPU time of it and of the descendants it had waited for.
    pub cpu: Duration,
}

/// Makes orphaned descendants children of this process, where it is not PID 1 anyway.
pub fn adopt_orphans() -> io::Result<()> {
    nix::sys::prctl::set_child_subreaper(true).map_err(io::Error::from)
}

/// Reaps one ended child, if there is any. It never blocks.
///
/// Before the child's pid is freed, `owned` looks whose it is, and tells whether what is left of its process
/// group shall be killed: afterwards the number could already be somebody else's.
pub fn reap_one(mut owned: impl FnMut(i32) -> bool) -> Option<Reaped> {
    let peek = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    let pid = loop {
        match waitid(Id::All, peek) {
            Ok(WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, _, _)) => break pid,
            Ok(
                WaitStatus::StillAlive
                | WaitStatus::Stopped(..)
                | WaitStatus::Continued(_)
                | WaitStatus::PtraceEvent(..)
                | WaitStatus::PtraceSyscall(_),
            )
            | Err(Errno::ECHILD) => return None,
            // EINTR: asked again. nix has no name for a real-time signal that ended a child (EINVAL);
            // such a child is reaped without the look ahead.
            Err(Errno::EINTR) => {}
            Err(_) => return wait4(-1),
        }
    };
    if owned(pid.as_raw()) {
        match killpg(pid, Signal::SIGKILL) {
            // ESRCH: nobody is left. EPERM: the rest runs as somebody else and is not ours to kill.
            Ok(()) | Err(_) => {}
        }
    }
    wait4(pid.as_raw())
}

/// Sends a signal to a process, or with `group` to its whole process group. A process that is gone is no
/// error.
pub fn signal(pid: i32, signal: Signal, group: bool) -> io::Result<()> {
    let pid = Pid::from_raw(pid);
    let sent = if group { killpg(pid, signal) } else { nix::sys::signal::kill(pid, signal) };
    match sent {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn wait4(pid: i32) -> Option<Reaped> {
    let mut status = 0;
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: both pointers are to live, writable values of the types that wait4 fills; WNOHANG does not
    // block.
    let got = unsafe { libc::wait4(pid, &raw mut status, libc::WNOHANG, usage.as_mut_ptr()) };
    if got <= 0 {
        return None;
    }
    // SAFETY: all-zero bytes are a valid `rusage`, and wait4 has filled it.
    let usage = unsafe { usage.assume_init() };
    let ending = if libc::WIFSIGNALED(status) {
        Ending::Signal(libc::WTERMSIG(status))
    } else {
        Ending::Code(libc::WEXITSTATUS(status))
    };
    Some(Reaped { pid: got, ending, cpu: duration(usage.ru_utime) + duration(usage.ru_stime) })
}

fn duration(time: libc::timeval) -> Duration {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let micros = u32::try_from(time.tv_usec).unwrap_or(0);
    Duration::from_secs(seconds) + Duration::from_micros(micros.into())
}
