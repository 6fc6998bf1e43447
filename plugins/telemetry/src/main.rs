//! `enclave-telemetry`: see the library for what it does.

use std::process::ExitCode;

use clap::Parser as _;
use enclave_telemetry::{Options, logging, serve};

fn main() -> ExitCode {
    let options = match Options::try_parse() {
        Ok(options) => options,
        Err(error) => {
            // Nothing is lost when the terminal is gone: the exit code says the same.
            error.print().ok();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    logging::start(options.log_format);
    match serve(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = error.chain(), "the telemetry plugin cannot run");
            ExitCode::from(error.exit_code())
        }
    }
}
