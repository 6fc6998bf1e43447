//! The resident init of one plugin, as a program of its own: of the supervisor's binary each plugin would
//! keep many times the memory.

use std::process::ExitCode;

use enclave_supervisor::sys::init;

fn main() -> ExitCode {
    ExitCode::from(init::main(std::env::args_os().skip(1)))
}
