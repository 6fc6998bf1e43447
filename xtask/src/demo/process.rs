//! The programs that the demo starts, and how it finds a plugin's process among their descendants.

#![expect(
    clippy::disallowed_types,
    reason = "the demo starts the product's programs from outside, as a user does"
)]

use std::{
    collections::HashMap,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::process::{Child, Command};

use super::status::{self, Status};
use crate::failure::{Failure, While as _};

/// Lines of a log that an explanation shows.
const TAIL_LINES: usize = 15;
/// How long `enclave-host-proxy status` may take.
const STATUS_TIME_MAX: Duration = Duration::from_secs(5);

/// A running program with its output in files. It is killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Process {
    name: &'static str,
    child: Child,
    logs: Vec<PathBuf>,
}

impl Process {
    /// Starts a command line. Its output goes to `NAME.out` and `NAME.log` in `directory`.
    pub(crate) fn start(name: &'static str, words: &[String], directory: &Path) -> Result<Self, Failure> {
        let logs = ["out", "log"].map(|kind| directory.join(format!("{name}.{kind}")));
        let [stdout, stderr] = [&logs[0], &logs[1]].map(File::create);
        let mut command = Command::new("setpriv");
        // If xtask itself is killed, nothing of the demo stays behind.
        command
            .args(["--pdeathsig", "KILL", "--"])
            .args(words)
            .stdin(Stdio::null())
            .stdout(stdout.while_doing(logs[0].display())?)
            .stderr(stderr.while_doing(logs[1].display())?)
            // Ctrl-C is for xtask alone, which then stops everything in order.
            .process_group(0)
            .kill_on_drop(true);
        let child = command.spawn().while_doing(format_args!("could not start {name}"))?;
        Ok(Self { name, child, logs: logs.into() })
    }

    /// Its process id; none once it has ended and was waited for.
    pub(crate) fn pid(&self) -> Option<i32> {
        self.child.id().and_then(|pid| i32::try_from(pid).ok())
    }

    /// Waits for its end.
    pub(crate) async fn wait(&mut self) -> Result<ExitStatus, Failure> {
        self.child.wait().await.while_doing(format_args!("waiting for {}", self.name))
    }

    /// Asks it to end.
    pub(crate) fn terminate(&self) -> Result<(), Failure> {
        self.pid().map_or(Ok(()), |pid| send(pid, Signal::SIGTERM))
    }

    /// Waits until it has ended by itself with success.
    pub(crate) async fn wait_for_success(&mut self, limit: Duration) -> Result<(), Failure> {
        let name = self.name;
        let ended = tokio::time::timeout(limit, self.wait()).await;
        let status =
            ended.map_err(|_| Failure::new(format!("{name} did not end within {} s", limit.as_secs())))??;
        if status.success() { Ok(()) } else { Err(Failure::new(format!("{name} ended with {status}"))) }
    }

    /// Kills it if it still runs, and waits until it is gone.
    pub(crate) async fn kill(&mut self) {
        // It fails only for a process that is gone already.
        self.child.kill().await.ok();
    }

    /// The ends of its logs, for an explanation.
    pub(crate) fn tails(&self) -> String {
        self.logs.iter().map(|log| tail(log)).collect()
    }
}

fn tail(log: &Path) -> String {
    let text = fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let name = log.file_name().unwrap_or(log.as_os_str()).to_string_lossy();
    if lines.is_empty() {
        return format!("--- {name}: empty\n");
    }
    let last = &lines[lines.len().saturating_sub(TAIL_LINES)..];
    format!("--- {name}, the last {} of {} lines:\n{}\n", last.len(), lines.len(), last.join("\n"))
}

/// The words that start a command in PID, mount, UTS and network namespaces of its own.
pub(crate) fn in_namespaces(is_root: bool, words: Vec<String>) -> Vec<String> {
    let options = ["unshare", "--fork", "--pid", "--kill-child", "--mount", "--mount-proc", "--uts", "--net"];
    let user = if is_root { &[][..] } else { &["--user", "--map-root-user"][..] };
    options.iter().chain(user).map(|word| (*word).to_owned()).chain(["--".to_owned()]).chain(words).collect()
}

/// Asks the running host-proxy for the status; none while it has none, an error if it cannot be read.
pub(crate) async fn status(program: &Path, admin: &Path) -> Result<Option<Status>, Failure> {
    let mut command = Command::new(program);
    command
        .arg("status")
        .arg("--admin")
        .arg(admin)
        .args(["-o", "json"])
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = tokio::time::timeout(STATUS_TIME_MAX, command.output()).await;
    match output.while_doing("enclave-host-proxy status")?.while_doing("enclave-host-proxy status")? {
        output if output.status.success() => status::read(&output.stdout),
        // It has not opened its socket yet.
        _ => Ok(None),
    }
}

/// Sends a signal to one process.
pub(crate) fn send(pid: i32, signal: Signal) -> Result<(), Failure> {
    kill(Pid::from_raw(pid), signal).while_doing(format_args!("{signal} to process {pid}"))
}

/// Finds the process that is `inner` in the PID namespace of a descendant of `ancestor`, as this namespace
/// counts.
pub(crate) fn find(ancestor: i32, inner: u32) -> Result<i32, Failure> {
    let mut statuses = HashMap::new();
    for entry in fs::read_dir("/proc").while_doing("/proc")?.flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        // A process may end while the directory is read.
        if let Some(status) = fs::read_to_string(entry.path().join("status")).ok().as_deref().and_then(parse)
        {
            statuses.insert(pid, status);
        }
    }
    let is_descendant = |pid: i32| {
        std::iter::successors(Some(pid), |pid| statuses.get(pid).map(|status| status.parent))
            .take_while(|pid| *pid > 0)
            .any(|pid| pid == ancestor)
    };
    statuses
        .iter()
        .find(|(pid, status)| status.inner == Some(inner) && is_descendant(**pid))
        .map(|(pid, _)| *pid)
        .ok_or_else(|| Failure::new(format!("process {inner} of the enclave is not among ours")))
}

/// What `/proc/PID/status` says about its place.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    parent: i32,
    /// Its id one PID namespace further in, where the supervisor counts.
    inner: Option<u32>,
}

fn parse(status: &str) -> Option<Place> {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let parent = field("PPid")?.trim().parse().ok()?;
    let inner = field("NSpid")?.split_whitespace().nth(1).and_then(|pid| pid.parse().ok());
    Some(Place { parent, inner })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_of_the_enclave_is_told_by_its_inner_id() {
        let status = "Name:\thello\nPid:\t4711\nPPid:\t4700\nNSpid:\t4711\t12\nThreads:\t1\n";
        assert_eq!(parse(status), Some(Place { parent: 4700, inner: Some(12) }));
        assert_eq!(parse("PPid:\t1\nNSpid:\t9\n"), Some(Place { parent: 1, inner: None }));
        assert_eq!(parse(""), None);
    }

    #[test]
    fn without_root_a_user_namespace_is_added() {
        let words = |is_root| in_namespaces(is_root, vec!["supervisor".to_owned()]).join(" ");
        assert_eq!(
            words(true),
            "unshare --fork --pid --kill-child --mount --mount-proc --uts --net -- supervisor"
        );
        assert!(words(false).ends_with("--net --user --map-root-user -- supervisor"));
    }

    #[tokio::test]
    async fn a_failed_program_is_explained_with_the_end_of_its_log() {
        let directory = tempfile::tempdir().unwrap();
        let words = ["sh", "-c", "for n in $(seq 20); do echo line $n >&2; done; exit 3"].map(str::to_owned);
        let mut process = Process::start("broken", &words, directory.path()).unwrap();
        let failure = process.wait_for_success(Duration::from_secs(30)).await.unwrap_err();
        assert_eq!(failure.to_string(), "broken ended with exit status: 3");
        let tails = process.tails();
        assert!(
            tails.starts_with("--- broken.out: empty\n--- broken.log, the last 15 of 20 lines:\nline 6\n")
        );
        assert!(tails.ends_with("line 20\n"));
    }

    #[tokio::test]
    async fn a_program_that_does_not_end_is_killed_with_its_handle() {
        let directory = tempfile::tempdir().unwrap();
        let words = ["sleep", "600"].map(str::to_owned);
        let mut process = Process::start("endless", &words, directory.path()).unwrap();
        let pid = process.pid().unwrap();
        process.kill().await;
        assert_eq!(kill(Pid::from_raw(pid), None), Err(nix::errno::Errno::ESRCH));
    }
}
