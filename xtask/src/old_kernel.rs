//! `cargo xtask old-kernel -- COMMAND…`: runs a command as on Linux 4.14, the kernel that ships with
//! nitro-cli: every system call that came later answers ENOSYS. It is only the calls: what a call of 4.14 has
//! learned since, and what has come in /proc, /sys and ioctls, is there.

#![expect(clippy::disallowed_types, reason = "it turns into the command")]

use std::{ffi::OsString, os::unix::process::CommandExt as _, process::Command};

use nix::errno::Errno;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

use crate::failure::{Failure, While as _};

/// The last system call of 4.14, statx, by architecture (`arch/x86/entry/syscalls/syscall_64.tbl` and
/// `include/uapi/asm-generic/unistd.h`). Later ones have greater numbers, among them `rseq`, `pidfd_open`,
/// `io_uring_setup`, the new mount calls, `clone3`, `close_range`, `openat2`, `faccessat2`, `epoll_pwait2`.
const LAST: [(&str, i64); 2] = [("x86_64", 332), ("aarch64", 291)];
/// Up to here they are refused: twice what Linux 6.18 has.
const REFUSED_UP_TO: i64 = 1023;

/// The command, after `--`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    command: Vec<OsString>,
}

/// Becomes the command. It only returns when that fails.
pub(crate) fn run(options: &Options) -> Failure {
    match pretend() {
        Ok(()) => {}
        Err(failure) => return failure,
    }
    let (program, arguments) = options.command.split_first().expect("invariant: clap wants one word");
    let error = Command::new(program).args(arguments).exec();
    Failure::new(format!("{}: {error}", program.display()))
}

/// Installs the filter for this process and what it starts, for good, and looks whether it works.
fn pretend() -> Result<(), Failure> {
    let filter = filter(std::env::consts::ARCH)?;
    seccompiler::apply_filter(&filter).while_doing("the filter of system calls cannot be installed")?;
    // pidfd_open is of Linux 5.3.
    match rustix::process::pidfd_open(rustix::process::getpid(), rustix::process::PidfdFlags::empty()) {
        Err(error) if error.raw_os_error() == Errno::ENOSYS as i32 => Ok(()),
        Ok(_) | Err(_) => Err(Failure::new("the filter of system calls is installed and does not work")),
    }
}

fn filter(arch: &str) -> Result<BpfProgram, Failure> {
    let known = LAST.iter().find(|(name, _)| *name == arch);
    let (_, last) = known.ok_or_else(|| Failure::new(format!("the system calls of {arch} are not known")))?;
    // A call without conditions is matched whatever its arguments are.
    let refused = (last + 1..=REFUSED_UP_TO).map(|call| (call, Vec::new())).collect();
    let enosys = SeccompAction::Errno(Errno::ENOSYS as u32);
    let arch = TargetArch::try_from(arch).while_doing("architecture")?;
    let filter = SeccompFilter::new(refused, SeccompAction::Allow, enosys, arch).while_doing("filter")?;
    BpfProgram::try_from(filter).while_doing("filter")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filter_can_be_made_for_both_architectures_of_nitro() {
        for (arch, last) in LAST {
            let program = filter(arch).unwrap();
            assert!(program.len() > usize::try_from(REFUSED_UP_TO - last).unwrap(), "{arch}");
        }
        assert!(filter("riscv64").is_err());
    }
}
