//! A contender in PID, mount and network namespaces of its own: nothing of it outlives it, and nothing but
//! its own processes is beneath it.

use std::{
    fs::File,
    process::{Child, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::process::{self, Process};
use crate::{
    cargo,
    failure::{Failure, While as _},
    stopwatch::Stopwatch,
};

/// How long `unshare` may take to make them.
const START_MAX: Duration = Duration::from_secs(10);
/// How long a contender may take to end when it is asked to.
const STOP_MAX: Duration = Duration::from_secs(10);
const PACE: Duration = Duration::from_millis(2);
/// Between two questions whether it is done.
const STOP_PACE: Duration = Duration::from_millis(20);

/// Running namespaces. They end with this.
#[derive(Debug)]
pub(super) struct Namespaces {
    unshare: Child,
    init: i32,
}

/// Variables that a command sets.
pub(super) type Variables<'a> = &'a [(&'a str, String)];

impl Namespaces {
    /// Starts `words` as process 1 of new namespaces, with standard output and error in these files.
    pub(super) fn start(
        words: &[String],
        variables: Variables<'_>,
        stdout: File,
        stderr: File,
    ) -> Result<Self, Failure> {
        // If xtask itself is killed, nothing of the benchmark stays behind.
        let mut command = cargo::command("setpriv");
        command.args(["--pdeathsig", "KILL", "--", "unshare", "--fork", "--kill-child"]);
        command.args(["--pid", "--mount", "--net", "--mount-proc", "--"]).args(words);
        command.envs(variables.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(stdout).stderr(stderr);
        let mut unshare = command.spawn().while_doing("unshare")?;
        match find_init(&mut unshare) {
            Ok(init) => Ok(Self { unshare, init }),
            Err(failure) => {
                end(&mut unshare);
                Err(failure)
            }
        }
    }

    /// Process 1 in there, as it is called out here.
    pub(super) fn init(&self) -> i32 {
        self.init
    }

    /// All processes in there, process 1 first.
    pub(super) fn processes(&self) -> Result<Vec<Process>, Failure> {
        process::beneath(self.init)
    }

    /// Whether process 1 still runs; it is the reason why nothing else does.
    pub(super) fn has_ended(&mut self) -> bool {
        !matches!(self.unshare.try_wait(), Ok(None))
    }

    /// Asks process 1 to end and waits a bounded time until `is_done`, so that it can tidy up what is outside
    /// its namespaces.
    pub(super) fn stop(mut self, is_done: impl Fn() -> bool) {
        kill(Pid::from_raw(self.init), Signal::SIGTERM).ok();
        let watch = Stopwatch::start();
        while !self.has_ended() && !is_done() && watch.elapsed() < STOP_MAX {
            std::thread::park_timeout(STOP_PACE);
        }
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        end(&mut self.unshare);
    }
}

/// `--kill-child` ends process 1 with it, and the kernel ends all others with process 1.
fn end(unshare: &mut Child) {
    unshare.kill().ok();
    unshare.wait().ok();
}

/// The one child of `unshare`.
fn find_init(unshare: &mut Child) -> Result<i32, Failure> {
    let pid = i32::try_from(unshare.id()).while_doing("the process id of unshare")?;
    let watch = Stopwatch::start();
    while watch.elapsed() < START_MAX {
        if let Some(init) = process::beneath(pid)?.get(1) {
            return Ok(init.pid);
        }
        if let Ok(Some(status)) = unshare.try_wait() {
            return Err(Failure::new(format!("unshare ended with {status}")));
        }
        std::thread::park_timeout(PACE);
    }
    Err(Failure::new("unshare starts nothing"))
}
