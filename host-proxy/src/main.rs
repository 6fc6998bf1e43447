//! `enclave-host-proxy`: parse, run, exit code.

use std::{io::Write, process::ExitCode, time::Duration};

use clap::Parser;
use enclave_host_proxy::{Cli, Exit, execute};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            // Nobody is left to be told that stderr is closed.
            writeln!(std::io::stderr(), "there is no runtime: {error}").ok();
            return Exit::Invalid.into();
        }
    };
    let exit = runtime.block_on(execute(cli));
    // A write to a stdout that blocks must not hold the process.
    runtime.shutdown_timeout(Duration::from_millis(100));
    exit.into()
}
