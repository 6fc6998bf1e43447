//! `hello`: a small plugin to copy from and to test with. It serves HTTP, and has knobs for CPU, memory, logs
//! and the ways in which a process can end.
//!
//! ```text
//! main ─▶ server (accept, drain) ─▶ routes (one function per path) ─▶ knobs, egress, metrics
//! ```

mod egress;
mod knobs;
mod metrics;
mod notify;
mod options;
mod query;
mod routes;
mod server;

use std::{io::Write as _, process::ExitCode};

use clap::Parser as _;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};

fn main() -> ExitCode {
    match run(&options::Options::parse()) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            // With standard error gone too, the exit code still says it.
            writeln!(std::io::stderr(), "hello: {error}").ok();
            ExitCode::from(2)
        }
    }
}

#[tokio::main]
async fn run(options: &options::Options) -> std::io::Result<u8> {
    let mut terminate = signal(SignalKind::terminate())?;
    let listener = TcpListener::bind(options.address()).await?;
    writeln!(std::io::stdout(), "hello: pid {} listens on {}", std::process::id(), listener.local_addr()?)?;
    if let Some(socket) = std::env::var_os(notify::VARIABLE) {
        notify::ready(&socket)?;
    }
    let stop = async move {
        terminate.recv().await;
    };
    Ok(server::run(listener, stop).await)
}
