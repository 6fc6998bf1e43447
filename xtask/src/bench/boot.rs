//! From the kernel's `Run /init` line to an answer on the control port, against an init that only mounts and
//! listens (`tests/vm/bare_init.rs`): the same image otherwise, the same machine, in turns.

use std::{
    fs,
    io::{Read, Write},
    path::{Path, PathBuf},
    process::{Child, Stdio},
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
/// Between two looks at the console. It is a hundredth of what is measured.
const PACE: Duration = Duration::from_millis(1);
/// How long an answer may take before it is asked again.
const ANSWER_MAX: Duration = Duration::from_millis(500);
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
        for (image, times) in [&ours, &peer].into_iter().zip(&mut times) {
            times.push(Boot::start(&studio, image, &vhost)?.time()?);
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
         | an init that only mounts and listens | {} | 1.00 | – |\n",
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
        let process =
            boot.stdout(Stdio::null()).stderr(Stdio::inherit()).spawn().while_doing("enclave-image boot")?;
        Ok(Self { process, console, socket })
    }

    /// The time from the first process to the first answer.
    fn time(mut self) -> Result<Duration, Failure> {
        self.until("the first process", |boot| {
            fs::read(&boot.console).is_ok_and(|text| String::from_utf8_lossy(&text).contains(RUN_INIT))
        })?;
        let watch = Stopwatch::start();
        self.until("an answer on the control port", |boot| ask(&boot.socket).is_ok())?;
        Ok(watch.elapsed())
    }

    fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) -> Result<(), Failure> {
        let watch = Stopwatch::start();
        while !done(self) {
            if watch.elapsed() > BOOT_MAX {
                return Err(Failure::new(format!("not within {} s: {what}", BOOT_MAX.as_secs())));
            }
            std::thread::park_timeout(PACE);
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

/// Asks for the status. Any answer is one: the bare init has no status.
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
