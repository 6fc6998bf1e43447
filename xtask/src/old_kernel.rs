//! `cargo xtask old-kernel -- COMMAND…`: runs a command as on Linux 4.14, the kernel that ships with
//! nitro-cli: every system call that came later answers ENOSYS. It is only the calls: what a call of 4.14 has
//! learned since, and what has come in /proc, /sys and ioctls, is there.

#![expect(clippy::disallowed_types, reason = "it turns into the command, and it runs the tests")]

use std::{
    ffi::OsString,
    num::NonZero,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Command,
    thread::available_parallelism,
};

use nix::errno::Errno;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

use crate::{
    cargo,
    failure::{Failure, While as _},
};

/// The last system call of 4.14, statx, by architecture (`arch/x86/entry/syscalls/syscall_64.tbl` and
/// `include/uapi/asm-generic/unistd.h`). Later ones have greater numbers, among them `rseq`, `pidfd_open`,
/// `io_uring_setup`, the new mount calls, `clone3`, `close_range`, `openat2`, `faccessat2`, `epoll_pwait2`.
const LAST: [(&str, i64); 2] = [("x86_64", 332), ("aarch64", 291)];
/// Up to here they are refused: twice what Linux 6.18 has.
const REFUSED_UP_TO: i64 = 1023;

/// The command through which the process tests start every supervisor.
const THROUGH_VARIABLE: &str = "ENCLAVE_TEST_THROUGH";
/// Tests that run at a time, per core: they mostly wait, and with one per core it takes half as long again.
const TESTS_PER_CORE: usize = 2;

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

/// This very program. Asked for early: a build of xtask may replace its file, and then its name has to be
/// known.
pub(crate) fn ourselves() -> Result<PathBuf, Failure> {
    let path = std::env::current_exe().while_doing("xtask's own path")?;
    // The variable's words are split at white space.
    if path.to_string_lossy().contains(char::is_whitespace) {
        return Err(Failure::new(format!("{}: white space in the path of xtask", path.display())));
    }
    Ok(path)
}

/// Runs the process tests with every supervisor, and so `net`, telemetry and all plugins, as on the old
/// kernel. `set` sets what these tests need in any case.
pub(crate) fn test(ourselves: &Path, set: impl FnOnce(&mut Command)) -> Result<(), Failure> {
    let mut test = cargo::command(cargo::build_tests("it")?);
    let threads = available_parallelism().map_or(1, NonZero::get) * TESTS_PER_CORE;
    test.arg("--quiet").arg(format!("--test-threads={threads}"));
    // As cargo would say it to a test of the root package.
    test.env("CARGO_MANIFEST_DIR", cargo::workspace_root());
    test.env(THROUGH_VARIABLE, format!("{} old-kernel --", ourselves.display()));
    set(&mut test);
    cargo::run(&mut test)
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
