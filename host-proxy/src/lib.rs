//! The enclave's counterpart in the pod: its only way to the world.
//!
//! ```text
//!   proxy    listeners, boots, the end          session  one boot: logs, status, drift, drain
//!   sync     manifest over, plan compared       control  client of the enclave's API
//!   egress   allowlist, resolve, address, dial  ingress  TCP port → stream
//!   logs     pull, write, flush, acknowledge    monitor  status, events, the manifest on disk
//!   health, metrics_page, admin                 what others ask this program
//!   enclave_clock                               the time, for an enclave that has no better clock
//! ```
//!
//! # Start
//! 1. The manifest and its files are read and checked; a mistake ends it here (exit code 2).
//! 2. The enclave's status is awaited (exit code 3 after `--connect-timeout`). A boot that the state
//!    directory knows goes on with its token, its log position and the plan that it runs.
//! 3. Egress and ingress listen. 4. The manifest is handed over; digest and plan must be our own; the session
//!    is stored before anything else is done with it.
//!
//! An enclave whose boot failed takes no manifest: its reason ends the proxy (exit code 4).
//!
//! A boot that is not known, also later, is a new enclave: it gets the manifest that is on disk then.
//!
//! # Stop
//! 1. SIGTERM, SIGINT or `drain`: the enclave is asked to drain. A second signal ends at once (exit code 3).
//! 2. Egress, ingress and logs go on until the enclave's phase is `Completed` or `Failed`, which is also how
//!    a workload ends by itself; bounded by the grace and 15 s.
//! 3. The rest of the log is written and flushed, at most 3 s. 4. Log position and final status are
//!    acknowledged, at most 2 s. Both again if more came, until the enclave powers off, at most 8 s. 5.
//!    Egress and ingress close.
//! 6. The last JSON line; then the admin socket closes; then the exit code.

mod accept;
mod address;
mod admin;
mod ask;
mod backoff;
mod cli;
mod clock;
mod control;
mod counters;
mod dial;
mod egress;
mod enclave_clock;
mod exit;
mod health;
mod http;
mod ingress;
mod instance;
mod logging;
mod logs;
mod metrics_page;
mod monitor;
mod ndjson;
mod policy;
mod proxy;
mod report;
mod resolve;
mod rules;
mod session;
mod signals;
mod state;
mod sync;
mod throttle;
mod view;

use std::io::Write as _;

pub use crate::{
    cli::{AdminArgs, Cli, Command, DrainArgs, LogFormat, LogsArgs, Output, RunArgs, StatusArgs},
    exit::Exit,
    policy::{PolicyError, PrivateEgress, ResolveOverride},
    proxy::{Proxy, StartError},
    view::Stop,
};

/// Runs one command to its end.
pub async fn execute(cli: Cli) -> Exit {
    logging::init(cli.log_format);
    let mut stdout = std::io::stdout();
    let asked = match cli.command {
        Command::Run(args) => return run(*args).await,
        Command::Status(args) => ask::status(&args, &mut stdout).await,
        Command::Logs(args) => ask::logs(&args, &mut stdout).await,
        Command::Drain(args) => ask::drain(&args, &mut stdout).await,
    };
    asked.unwrap_or_else(|error| {
        say(&format!("{error}\n"));
        Exit::Unreachable
    })
}

async fn run(args: RunArgs) -> Exit {
    let signals = match signals::Signals::new() {
        Ok(signals) => signals,
        Err(error) => {
            say(&format!("signals cannot be caught: {error}\n"));
            return Exit::Invalid;
        }
    };
    let proxy = match Proxy::bind(args).await {
        Ok(proxy) => proxy,
        Err(error) => {
            say(&format!("{error}\n"));
            return Exit::Invalid;
        }
    };
    for (what, address) in [("metrics", proxy.metrics_address()), ("health", proxy.health_address())] {
        if let Ok(address) = address {
            tracing::info!(what, %address, "listening");
        }
    }
    let stops = proxy.stops();
    tokio::select! {
        exit = proxy.run(tokio::io::stdout()) => exit,
        () = signals.second(stops) => {
            tracing::warn!("ending before the enclave did");
            Exit::Unreachable
        }
    }
}

/// A line for the person who started this program, on stderr.
fn say(text: &str) {
    // Nobody is left to be told that stderr is closed.
    std::io::stderr().write_all(text.as_bytes()).ok();
}
