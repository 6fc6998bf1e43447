//! Starts processes: plugins through the [`shim`], and the `net` process.

#![expect(clippy::disallowed_types, reason = "sys starts the processes")]

use std::{
    io,
    os::{
        fd::OwnedFd,
        unix::{net::UnixStream, process::CommandExt},
    },
    process::{Command, Stdio},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use super::shim::{self, Failure, Launch};

/// How long a shim may take from its start to execve: mounts on a loaded machine, but not for ever.
const SHIM_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest report of a shim, in bytes.
const REPORT_MAX: u64 = 4096;

/// A child that is on its way to become a plugin.
#[derive(Debug)]
pub struct Child {
    /// Its process id. The reaper reports its end.
    pub pid: i32,
    /// What it writes to standard output.
    pub stdout: OwnedFd,
    /// What it writes to standard error.
    pub stderr: OwnedFd,
    /// Its way to execve.
    pub execution: Execution,
}

/// A shim that waits for its launch. Nothing happens in it before [`Execution::run`].
#[derive(Debug)]
pub struct Execution {
    socket: UnixStream,
    launch: Vec<u8>,
}

/// Starts a shim for `launch`. The child does nothing before [`Execution::run`] has sent it the launch.
pub fn plugin(launch: &Launch) -> Result<Child, Failure> {
    let make = || {
        let launch = shim::frame(launch)?;
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let (stdout, stdout_end) = io::pipe()?;
        let (stderr, stderr_end) = io::pipe()?;
        let pid = start(ourselves(shim::SUBCOMMAND, theirs.into(), (stdout_end.into(), stderr_end.into())))?;
        let execution = Execution { socket: ours, launch };
        Ok(Child { pid, stdout: stdout.into(), stderr: stderr.into(), execution })
    };
    make().map_err(|error: io::Error| Failure::of("start the shim", &error))
}

/// Starts `enclave-supervisor net` with `stdin` as its link to this process. Its standard error is returned.
pub fn net(stdin: OwnedFd) -> io::Result<(i32, OwnedFd)> {
    let (stderr, stderr_end) = io::pipe()?;
    let stdout_end = stderr_end.try_clone()?;
    let mut command = ourselves("net", stdin, (stdout_end.into(), stderr_end.into()));
    // A terminal's Ctrl-C is for the supervisor: streams go on while it drains. (A shim takes a session
    // itself.)
    command.process_group(0);
    Ok((start(command)?, stderr.into()))
}

/// This very binary with another subcommand.
fn ourselves(subcommand: &str, stdin: OwnedFd, (stdout, stderr): (OwnedFd, OwnedFd)) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg(subcommand).env_clear().stdin(Stdio::from(stdin)).stdout(stdout).stderr(stderr);
    command
}

/// Starts it. The pid belongs to the reaper from now on.
fn start(mut command: Command) -> io::Result<i32> {
    // The handle is dropped unwaited: std never waits by itself, the reaper does.
    let child = command.spawn()?;
    i32::try_from(child.id()).map_err(|_| io::ErrorKind::InvalidData.into())
}

impl Execution {
    /// Sends the launch and waits for the execve. `Err` says which step failed; after a time-out the caller
    /// kills the child.
    pub async fn run(self) -> Result<(), Failure> {
        let run = async {
            let mut socket = tokio::net::UnixStream::from_std(self.socket)?;
            socket.write_all(&self.launch).await?;
            let mut report = Vec::new();
            (&mut socket).take(REPORT_MAX).read_to_end(&mut report).await?;
            Ok(report)
        };
        match timeout(SHIM_TIMEOUT, run).await {
            Ok(Ok(report)) if report.is_empty() => Ok(()),
            Ok(Ok(report)) => Err(serde_json::from_slice(&report).unwrap_or_else(|_| Failure {
                stage: "read the shim's report".to_owned(),
                errno: libc::EPROTO,
            })),
            // The shim died before it had read its launch.
            Ok(Err(error)) => Err(Failure::of("talk to the shim", &error)),
            Err(_) => Err(Failure { stage: "wait for the shim".to_owned(), errno: libc::ETIMEDOUT }),
        }
    }
}
