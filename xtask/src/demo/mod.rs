//! `cargo xtask demo`: the whole system on one machine, with no VM.
//!
//! ```text
//!  namespaces of their own (unshare)          this machine
//!  ┌──────────────────────────────┐   Unix   ┌──────────────────┐        ┌───────────────────┐
//!  │ enclave-supervisor  PID 1    │  socket  │ enclave-         │  HTTP  │ collector         │
//!  │  ├─ net                      │◀────────▶│ host-proxy       │───────▶│ (inside xtask)    │
//!  │  ├─ enclave-telemetry        │          │ :4455 :/metrics  │◀───────│ load, status, kill│
//!  │  └─ hello                    │          └──────────────────┘        └───────────────────┘
//!  └──────────────────────────────┘
//! ```
//!
//! Where `cargo xtask peers` has built the OpenTelemetry Collector, it stands between host-proxy and the
//! collector inside xtask.

mod board;
mod collector;
mod layout;
mod load;
mod observed;
mod otelcol;
pub(crate) mod process;
mod screen;
mod script;
mod status;

use std::{path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinSet,
};

use self::{
    layout::{DEPLOYMENT, Layout},
    observed::Record,
    otelcol::Otelcol,
    process::Process,
    screen::Screen,
    script::Script,
};
use crate::{
    binaries::{self, Binaries, Profile},
    cargo,
    failure::{Failure, While as _},
    packages, terminal,
};

/// Options of `cargo xtask demo`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Ends after this many seconds, or a little later: every step is seen once. Default: 20 where standard
    /// output is no terminal; on a terminal the demo goes on until Ctrl-C.
    #[arg(long = "for", value_name = "SECONDS")]
    seconds: Option<u64>,
    /// Keeps the directory with the manifest, the sockets and the logs.
    #[arg(long)]
    keep: bool,
}

/// How long the demo shows what it has where nobody watches.
const UNATTENDED_SECONDS: u64 = 20;
/// Rounds on a terminal that somebody forgot: an hour and more, given the backoff of hello's restarts.
const ROUNDS_MAX: usize = 60;
/// Another round begins only if at least this much time is left for it.
const ROUND_TIME: Duration = Duration::from_secs(20);
/// From SIGTERM until host-proxy has ended: its drain grace of 25 s, and the acknowledgements.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(40);
/// From the end of host-proxy until the supervisor has ended.
const POWER_OFF_TIME_MAX: Duration = Duration::from_secs(10);
/// From the end of both until the last points have come through the real Collector.
const LAST_POINTS_TIME_MAX: Duration = Duration::from_secs(5);
/// Time between two looks at the status.
const STATUS_INTERVAL: Duration = Duration::from_millis(300);
/// The name by which the enclave knows the collector: the manifest's, resolved by host-proxy to the demo's
/// own.
const COLLECTOR_NAME: &str = "otel-collector.observability.svc.cluster.local:4318";
/// As shells report a program that Ctrl-C ended.
const EXIT_INTERRUPTED: u8 = 130;

/// Builds everything, runs it and shows it.
pub(crate) fn run(options: &Options) -> Result<ExitCode, Failure> {
    packages::ensure(&packages::NAMESPACES)?;
    let is_root = nix::unistd::geteuid().is_root();
    check_namespaces(is_root)?;
    let binaries = binaries::build(Profile::Demo)?;
    let directory =
        tempfile::Builder::new().prefix("enclave-demo-").tempdir().while_doing("a directory for the demo")?;
    let layout = Layout::create(directory.path(), &binaries)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let demo = Demo { options, binaries: &binaries, layout: &layout, is_root };
    let outcome = runtime.while_doing("the runtime")?.block_on(demo.show());
    if options.keep {
        terminal::say(&format!("kept: {}", directory.keep().display()));
    }
    outcome
}

/// Says in plain words what to do where namespaces may not be made, before anything is built.
fn check_namespaces(is_root: bool) -> Result<(), Failure> {
    if !is_root {
        terminal::say("not root: the supervisor's namespaces are made inside a user namespace");
    }
    let words = process::in_namespaces(is_root, vec!["true".to_owned()]);
    cargo::run(cargo::command(&words[0]).args(&words[1..])).map_err(|failure| {
        let advice = if is_root {
            "in a container, give it the capability SYS_ADMIN (docker run --privileged)"
        } else {
            "run the demo as root, or allow user namespaces (sysctl kernel.unprivileged_userns_clone=1, \
             kernel.apparmor_restrict_unprivileged_userns=0)"
        };
        Failure::new(format!("namespaces cannot be made here: {failure}\n{advice}"))
    })
}

/// How the show came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// Every step was seen.
    Complete,
    /// Somebody wanted it to end before that.
    Interrupted,
}

/// Everything the show needs.
struct Demo<'a> {
    options: &'a Options,
    binaries: &'a Binaries,
    layout: &'a Layout,
    is_root: bool,
}

/// The two programs that the demo starts itself.
struct Processes {
    supervisor: Process,
    host_proxy: Process,
}

impl Demo<'_> {
    async fn show(&self) -> Result<ExitCode, Failure> {
        let record = Record::new(DEPLOYMENT);
        let (listener, own) = collector::bind().await?;
        let sink_record = record.clone();
        let sink: collector::Sink =
            Arc::new(move |points| sink_record.write(|observed| observed.add_export(points)));
        let mut background = JoinSet::new();
        background.spawn(collector::serve(listener, sink));
        let real = Otelcol::start(own, &self.layout.root).await?;
        let collector = real.as_ref().map_or(own, |real| real.address);
        record.tell(match &real {
            Some(_) => format!(
                "the real OpenTelemetry Collector {} listens on {collector}; what it sends on is shown here",
                Otelcol::version()
            ),
            None => format!(
                "the demo's own OTLP collector listens on {collector} (`cargo xtask peers otelcol` builds \
                 the real one)"
            ),
        });

        let metrics_port = layout::free_port()?;
        let mut processes = self.start(collector, metrics_port)?;
        record.tell("enclave-supervisor runs as PID 1 of its own namespaces, enclave-host-proxy beside it");
        background.spawn(watch_status(
            self.binaries.path("enclave-host-proxy").to_owned(),
            self.layout.path("admin.sock"),
            record.clone(),
        ));

        let mut screen = Screen::new(terminal::is_interactive());
        let outcome = tokio::select! {
            outcome = self.perform(&mut processes, &record, metrics_port) => outcome,
            never = screen.run(&record) => match never {},
        };
        processes.supervisor.kill().await;
        processes.host_proxy.kill().await;
        background.shutdown().await;
        screen.show(&record);
        match outcome {
            Ok(Ending::Complete) => {
                terminal::say("demo: every step was seen");
                Ok(ExitCode::SUCCESS)
            }
            Ok(Ending::Interrupted) => {
                terminal::say("demo: interrupted before every step was seen");
                Ok(ExitCode::from(EXIT_INTERRUPTED))
            }
            Err(failure) => Err(Failure::new(format!(
                "the demo failed: {failure}\n{}{}{}",
                processes.supervisor.tails(),
                processes.host_proxy.tails(),
                real.map(|real| real.tails()).unwrap_or_default()
            ))),
        }
    }

    fn start(&self, collector: std::net::SocketAddr, metrics_port: u16) -> Result<Processes, Failure> {
        let layout = self.layout;
        let path = |relative: &str| layout.path(relative).display().to_string();
        let transport = format!("unix:{}", path("v.sock"));
        let supervisor = words(&[
            &self.binaries.path("enclave-supervisor").display().to_string(),
            "run",
            "--init=container",
            &format!("--transport={transport}"),
            &format!("--plugins={}", path("plugins")),
            &format!("--socket={}", path("supervisor.sock")),
            &format!("--policy={}", path("policy.json")),
            // As often as the telemetry plugin exports in the demo's manifest.
            "--sample-interval=1",
        ]);
        let host_proxy = words(&[
            &self.binaries.path("enclave-host-proxy").display().to_string(),
            "run",
            &format!("--transport={transport}"),
            &format!("--manifest={}", path("hello-fastapi.yaml")),
            &format!("--config-dir={}", path("config")),
            &format!("--state-dir={}", path("state")),
            &format!("--admin={}", path("admin.sock")),
            &format!("--metrics-listen=127.0.0.1:{metrics_port}"),
            &format!("--health-listen=127.0.0.1:{}", layout::free_port()?),
            "--ingress-listen=127.0.0.1",
            &format!("--resolve={COLLECTOR_NAME}:{collector}"),
        ]);
        let supervisor = process::in_namespaces(self.is_root, supervisor);
        Ok(Processes {
            supervisor: Process::start("supervisor", &supervisor, &layout.root)?,
            host_proxy: Process::start("host-proxy", &host_proxy, &layout.root)?,
        })
    }

    /// Runs the script, watching that the programs live as long as it does; then stops them in order.
    async fn perform(
        &self,
        processes: &mut Processes,
        record: &Record,
        metrics_port: u16,
    ) -> Result<Ending, Failure> {
        let gone = || Failure::new("the supervisor ended at once");
        let supervisor = processes.supervisor.pid().ok_or_else(gone)?;
        let script = Script { record, layout: self.layout, metrics_port, supervisor };
        let mut rounds = 0;
        let ending = tokio::select! {
            outcome = self.play(&script, &mut rounds) => outcome.map(|()| Ending::Complete)?,
            status = processes.supervisor.wait() => {
                return Err(Failure::new(format!("the supervisor ended too early ({})", status?)));
            }
            status = processes.host_proxy.wait() => {
                return Err(Failure::new(format!("host-proxy ended too early ({})", status?)));
            }
            stop = stop_signal() => {
                record.tell(format!("{} arrived", stop?));
                if rounds > 0 { Ending::Complete } else { Ending::Interrupted }
            }
        };
        tokio::select! {
            drained = drain(processes, record) => drained.map(|()| ending),
            stop = stop_signal() => Err(Failure::new(format!("{} again, before all had ended", stop?))),
        }
    }

    /// The script, for as long as was asked for.
    async fn play(&self, script: &Script<'_>, rounds: &mut usize) -> Result<(), Failure> {
        script.open().await?;
        script.round().await?;
        *rounds += 1;
        let unattended = (!terminal::is_interactive()).then_some(UNATTENDED_SECONDS);
        let Some(seconds) = self.options.seconds.or(unattended) else {
            while *rounds < ROUNDS_MAX {
                script.round().await?;
                *rounds += 1;
            }
            return Ok(());
        };
        let total = Duration::from_secs(seconds);
        loop {
            let left = total.saturating_sub(script.record.read(|observed| observed.started.elapsed()));
            if left < ROUND_TIME {
                tokio::time::sleep(left).await;
                return Ok(());
            }
            script.round().await?;
            *rounds += 1;
        }
    }
}

/// SIGTERM to host-proxy: the plugins stop in order, the series end, both programs end with success.
async fn drain(processes: &mut Processes, record: &Record) -> Result<(), Failure> {
    script::caption(record, script::LAST_STEP, "SIGTERM to host-proxy: drain, then a clean end");
    processes.host_proxy.terminate()?;
    processes.host_proxy.wait_for_success(DRAIN_TIME_MAX).await?;
    processes.supervisor.wait_for_success(POWER_OFF_TIME_MAX).await?;
    // Interrupted before the first export, there is no series that could end. The real Collector sends on
    // what it has a moment later.
    let what = "a series that ends at the collector (NO_RECORDED_VALUE)";
    record
        .wait_for(what, LAST_POINTS_TIME_MAX, |observed| observed.exports == 0 || observed.ended > 0)
        .await?;
    let ended = record.read(|observed| observed.ended);
    record.tell(format!("both programs ended with success; {ended} series were ended at the collector"));
    Ok(())
}

async fn watch_status(program: PathBuf, admin: PathBuf, record: Record) {
    let mut ticks = tokio::time::interval(STATUS_INTERVAL);
    // A slow answer delays the next question instead of doubling it.
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut last_error = String::new();
    loop {
        ticks.tick().await;
        match process::status(&program, &admin).await {
            Ok(Some(status)) if record.read(|observed| observed.status.as_ref() != Some(&status)) => {
                record.write(|observed| observed.set_status(status));
            }
            Ok(_) => {}
            Err(error) if error.to_string() == last_error => {}
            Err(error) => {
                last_error = error.to_string();
                record.tell(last_error.clone());
            }
        }
    }
}

/// Waits for somebody who wants the demo to end.
async fn stop_signal() -> Result<&'static str, Failure> {
    let listen = |kind| signal(kind).while_doing("a signal handler");
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    let mut hangup = listen(SignalKind::hangup())?;
    Ok(tokio::select! {
        _ = interrupt.recv() => "Ctrl-C",
        _ = terminate.recv() => "SIGTERM",
        _ = hangup.recv() => "SIGHUP",
    })
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}
