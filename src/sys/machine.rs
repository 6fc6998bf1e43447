//! What only the init of a machine asks of the kernel: modules, the console, the host name, the end.

use std::{
    convert::Infallible,
    fs::{File, OpenOptions},
    io,
    path::Path,
};

use nix::{
    kmod::{ModuleInitFlags, finit_module},
    sys::reboot::{RebootMode, reboot},
};

/// What became of a kernel module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Module {
    /// It is loaded, or was.
    Loaded,
    /// It is a driver for something that this machine does not have.
    NotNeeded,
}

/// Loads a kernel module.
pub fn load_module(path: &Path) -> io::Result<Module> {
    match finit_module(File::open(path)?, c"", ModuleInitFlags::empty()) {
        Ok(()) | Err(nix::Error::EEXIST) => Ok(Module::Loaded),
        // The hypervisor's clock, say, under another hypervisor.
        Err(nix::Error::ENODEV | nix::Error::EOPNOTSUPP) => Ok(Module::NotNeeded),
        Err(errno) => Err(errno.into()),
    }
}

/// Makes `/dev/console` standard input, output and error.
pub fn open_console() -> io::Result<()> {
    let console = OpenOptions::new().read(true).write(true).open("/dev/console")?;
    nix::unistd::dup2_stdin(&console)?;
    nix::unistd::dup2_stdout(&console)?;
    Ok(nix::unistd::dup2_stderr(&console)?)
}

/// Names the machine.
pub fn set_host_name(name: &str) -> io::Result<()> {
    Ok(nix::unistd::sethostname(name)?)
}

/// Resets the machine. For an enclave that is its end: Nitro starts it no second time, and a reset is what
/// AWS's init ends with (power-off needs firmware that an enclave does not have). It returns the reason when
/// the kernel refuses.
pub fn reset() -> io::Error {
    let refused: nix::Result<Infallible> = reboot(RebootMode::RB_AUTOBOOT);
    match refused {
        Ok(never) => match never {},
        Err(errno) => errno.into(),
    }
}
