//! Wiring: arguments to one of the subcommands, its result to an exit code.

use std::{ffi::OsString, io::Write, process::ExitCode};

use clap::Parser;
use enclave_supervisor::{
    boot,
    check::{self, DigestForm},
    inside, net,
    options::{Command, Exit, Options, RunOptions},
    run,
    sys::init,
};

fn main() -> ExitCode {
    if let Some(options) = boot::of_machine() {
        // Its exit code has no reader; run has said how it ended.
        run::run(&options);
        boot::end();
    }
    // Two subcommands that only the supervisor itself uses; they must not depend on anything before them.
    match std::env::args().nth(1).as_deref() {
        Some(init::SUBCOMMAND) => return ExitCode::from(init::main(std::env::args_os().skip(2))),
        Some("net") => return net::main(),
        Some(_) | None => {}
    }
    let options = Options::parse();
    match options.command {
        None => run(options.run),
        Some(Command::Run(options)) => run(*options),
        Some(Command::Check { file, plugins, config_dir }) => {
            say(check::check_file(&file, plugins.as_deref(), config_dir.as_deref()))
        }
        Some(Command::Digest { file, config_dir, signing_input }) => {
            let form = if signing_input { DigestForm::SigningInput } else { DigestForm::Line };
            say(check::digest_file(&file, config_dir.as_deref(), form))
        }
        Some(Command::Status { socket }) => {
            let failed = |error| (format!("{}: {error}\n", socket.display()), Exit::Unreachable);
            say(inside::status(&socket).map(|table| (table, Exit::Ok)).map_err(failed))
        }
    }
}

/// Runs the plugins until their end.
fn run(options: RunOptions) -> ExitCode {
    match boot::of_process(options, &std::env::args_os().skip(1).collect::<Vec<OsString>>()) {
        Ok(options) => run::run(&options).into(),
        Err(error) => say(Err((format!("{error}\n"), Exit::Usage))),
    }
}

/// Prints a result on standard output, or an error's text on standard error.
fn say(said: check::Said) -> ExitCode {
    // A reader that has gone away has no use for the rest.
    match said {
        Ok((text, exit)) => std::io::stdout().write_all(text.as_bytes()).map_or(exit, |()| exit).into(),
        Err((text, exit)) => std::io::stderr().write_all(text.as_bytes()).map_or(exit, |()| exit).into(),
    }
}
