//! Wiring: arguments to one of the subcommands, its result to an exit code.

use std::{io::Write, process::ExitCode};

use clap::Parser;
use enclave_image::{
    boot, build, eif,
    failure::{Exit, Failure},
    inspect,
    options::{Command, Environment, Options},
    report, wrap,
};

fn main() -> ExitCode {
    let options = Options::parse();
    let environment = Environment::read();
    let said = match &options.command {
        Command::Build(options) => build::build(options, &environment, &mut remark).map(|m| eif::json(&m)),
        Command::Wrap(options) => wrap::wrap(options, &environment, &mut remark).map(|m| eif::json(&m)),
        Command::Inspect(options) => {
            inspect::inspect(&options.image, options.files).map(|found| report::write(&found, options.output))
        }
        Command::Boot(options) => {
            return boot::boot(options, &mut say).map_or_else(
                |failure| {
                    complain(&failure);
                    boot::Exit::CouldNotRun.into()
                },
                ExitCode::from,
            );
        }
    };
    match said {
        Ok(text) => std::io::stdout().lock().write_all(text.as_bytes()).map_or(Exit::Internal, |()| Exit::Ok),
        Err(failure) => complain(&failure),
    }
    .into()
}

/// Says something for people.
fn remark(text: &str) {
    // Nobody reads standard error any more: there is nobody to tell.
    writeln!(std::io::stderr().lock(), "enclave-image: {text}").ok();
}

/// Says an event.
fn say(line: &str) {
    // Nobody reads the events any more; the machine goes on, and the exit code still tells its end.
    writeln!(std::io::stdout().lock(), "{line}").ok();
}

/// Says why there is no result.
fn complain(failure: &Failure) -> Exit {
    // As in `remark`.
    writeln!(std::io::stderr().lock(), "{failure}").ok();
    failure.exit()
}
