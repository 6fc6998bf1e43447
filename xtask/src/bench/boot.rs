//! From the kernel's `Run /init` line to an answer on the control port, against an init that only mounts,
//! loads the modules and connects (`tests/vm/bare_init.rs`): the same image otherwise, in turns.
//!
//! Both send the boot heartbeat, the supervisor once it listens. It is not asked before: a vsock device that
//! is asked while its machine boots may never answer again.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    sync::mpsc::{Receiver, sync_channel},
    time::Duration,
};

use super::{Table, control, image::Studio};
use crate::{
    binaries::{self, Binaries},
    failure::{Failure, While as _},
    stages,
    stopwatch::Stopwatch,
};

/// Boots of each.
const BOOTS: usize = 7;
/// What the supervisor may take, as a multiple of the bare init's time.
const RATIO_MAX: f64 = 2.0;
/// How long a boot may take: software emulation on a busy machine.
const BOOT_MAX: Duration = Duration::from_mins(1);
/// Between two looks at the console.
const LOOK_PACE: Duration = Duration::from_millis(1);
/// Between two questions, where the first has no answer.
const ASK_PACE: Duration = Duration::from_millis(20);
/// How long an answer may take before it is asked again.
const ANSWER_MAX: Duration = Duration::from_secs(1);
/// What the kernel says as it starts the first process.
const RUN_INIT: &str = "Run /init as init process";

/// The table, and whether it is over its budget.
pub(super) fn table(binaries: &Binaries) -> Result<Table, Failure> {
    let studio = Studio::new()?;
    let bare = binaries::build_bare_init()?;
    let telemetry = binaries.path("enclave-telemetry");
    let ours = studio.build(binaries.path("enclave-supervisor"), telemetry, None, "ours.eif")?;
    let peer = studio.build(&bare, telemetry, None, "peer.eif")?;
    let vhost = stages::VHOST_DEVICE_VSOCK.program()?;
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..BOOTS {
        for (init, times) in [(&ours, true), (&peer, false)].into_iter().zip(&mut times) {
            let (image, listens) = init;
            times.push(Boot::start(&studio, image, &vhost)?.time(listens)?);
        }
    }
    let [ours, peer] = times.map(median);
    Ok(compare(ours, peer))
}

fn compare(ours: Duration, peer: Duration) -> Table {
    let ratio = ours.as_secs_f64() / peer.as_secs_f64();
    let kept = ratio <= RATIO_MAX;
    let verdict = if kept { "kept" } else { "EXCEEDED" };
    let text = format!(
        "| from `Run /init` to the control port, software emulation, median of {BOOTS} | ms | ratio | budget \
         |\n|---|---:|---:|---|\n\
         | `enclave-supervisor` | {} | {ratio:.2} | ≤ {RATIO_MAX} ×: {verdict} |\n\
         | an init that only mounts and connects | {} | 1.00 | – |\n",
        ours.as_millis(),
        peer.as_millis()
    );
    let complaint =
        format!("the supervisor takes {ratio:.2} × the time of a bare init and may take {RATIO_MAX} ×");
    Table { text, complaints: if kept { Vec::new() } else { vec![complaint] } }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

/// A machine that boots.
struct Boot {
    process: Child,
    /// Is sent a word when the heartbeat has arrived.
    heartbeat: Receiver<()>,
    console: PathBuf,
    socket: PathBuf,
}

impl Boot {
    fn start(studio: &Studio, image: &Path, vhost: &Path) -> Result<Self, Failure> {
        let (console, socket) = (studio.path("console"), studio.path("v.sock"));
        fs::write(&console, "").while_doing("the console's file")?;
        let mut boot = studio.tool();
        boot.arg("boot").arg(image).arg("--vsock").arg(&socket).arg("--console").arg(&console);
        boot.arg("--vhost-device-vsock").arg(vhost).args(["--memory", "512M", "--timeout", "120"]);
        boot.stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut process = boot.spawn().while_doing("enclave-image boot")?;
        let events = process.stdout.take().expect("invariant: stdout is piped above");
        let (arrived, heartbeat) = sync_channel(1);
        // It ends with the process.
        std::thread::spawn(move || {
            for event in BufReader::new(events).lines().map_while(Result::ok) {
                if event.contains("\"heartbeat\"") {
                    arrived.try_send(()).ok();
                }
            }
        });
        Ok(Self { process, heartbeat, console, socket })
    }

    /// The time from the first process to its connection and, where it `listens`, to the first answer.
    fn time(mut self, listens: bool) -> Result<Duration, Failure> {
        self.until("the first process", LOOK_PACE, |boot| {
            fs::read(&boot.console).is_ok_and(|text| String::from_utf8_lossy(&text).contains(RUN_INIT))
        })?;
        let watch = Stopwatch::start();
        let heartbeat = self.heartbeat.recv_timeout(BOOT_MAX);
        heartbeat.map_err(|_| Failure::new(format!("no heartbeat within {} s", BOOT_MAX.as_secs())))?;
        if listens {
            self.until("an answer on the control port", ASK_PACE, |boot| ask(&boot.socket).is_ok())?;
        }
        Ok(watch.elapsed())
    }

    fn until(&mut self, what: &str, pace: Duration, done: impl Fn(&Self) -> bool) -> Result<(), Failure> {
        let watch = Stopwatch::start();
        while !done(self) {
            if watch.elapsed() > BOOT_MAX {
                return Err(Failure::new(format!("not within {} s: {what}", BOOT_MAX.as_secs())));
            }
            std::thread::park_timeout(pace);
        }
        Ok(())
    }
}

impl Drop for Boot {
    fn drop(&mut self) {
        // SIGTERM, so that it ends its own children.
        let pid = i32::try_from(self.process.id()).map(nix::unistd::Pid::from_raw);
        if let Ok(pid) = pid {
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).ok();
        }
        self.process.wait().ok();
    }
}

/// Asks for the status.
fn ask(socket: &Path) -> std::io::Result<()> {
    let mut stream = control::dial(socket, ANSWER_MAX)?;
    stream.write_all(b"GET /v1/status HTTP/1.1\r\nhost: enclave\r\nconnection: close\r\n\r\n")?;
    let mut word = [0; 12];
    stream.read_exact(&mut word)?;
    if &word == b"HTTP/1.1 200" { Ok(()) } else { Err(std::io::ErrorKind::InvalidData.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_twice_the_bare_inits_time_is_flagged() {
        let ms = Duration::from_millis;
        let table = compare(ms(301), ms(150));
        assert!(table.text.contains("| 301 | 2.01 | ≤ 2 ×: EXCEEDED |"), "{}", table.text);
        assert_eq!(table.complaints.len(), 1);
        assert!(compare(ms(300), ms(150)).complaints.is_empty());
        assert_eq!(median(vec![ms(3), ms(1), ms(2)]), ms(2));
    }
}
