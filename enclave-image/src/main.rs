//! Wiring: arguments to one of the subcommands, its result to an exit code.

use std::{io::Write, process::ExitCode};

use clap::Parser;
use enclave_image::{
    build, eif,
    failure::{Exit, Outcome},
    options::{Command, Environment, Options},
    wrap,
};

fn main() -> ExitCode {
    let options = Options::parse();
    let environment = Environment::read();
    let said = match &options.command {
        Command::Build(options) => build::build(options, &environment, &mut remark).map(|m| eif::json(&m)),
        Command::Wrap(options) => wrap::wrap(options, &environment, &mut remark).map(|m| eif::json(&m)),
    };
    end(said)
}

/// Says something for people.
fn remark(text: &str) {
    // Nobody reads standard error any more: there is nobody to tell.
    writeln!(std::io::stderr().lock(), "enclave-image: {text}").ok();
}

/// Prints a result on standard output, or an error's text on standard error.
fn end(said: Outcome<String>) -> ExitCode {
    match said {
        Ok(text) => match std::io::stdout().lock().write_all(text.as_bytes()) {
            Ok(()) => Exit::Ok.into(),
            Err(_) => Exit::Internal.into(),
        },
        Err(failure) => {
            // As above.
            writeln!(std::io::stderr().lock(), "{failure}").ok();
            failure.exit().into()
        }
    }
}
