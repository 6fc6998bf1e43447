//! Processes of a test: their output line by line, their end, and nothing left behind.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::patience::Deadline;

/// Lines that an explanation shows.
const TAIL_LINES: usize = 30;

/// What a stream has said so far.
#[derive(Clone)]
pub(crate) struct Lines(Arc<(Mutex<Said>, Condvar)>);

#[derive(Default)]
struct Said {
    lines: Vec<String>,
    ended: bool,
}

impl Lines {
    /// Reads a stream to its end, on a thread.
    fn follow(stream: impl Read + Send + 'static) -> Self {
        let lines = Self(Arc::default());
        let shared = lines.clone();
        thread::spawn(move || {
            for line in BufReader::new(stream).split(b'\n') {
                let Ok(line) = line else { break };
                shared.change(|said| said.lines.push(String::from_utf8_lossy(&line).into_owned()));
            }
            shared.change(|said| said.ended = true);
        });
        lines
    }

    fn change(&self, change: impl FnOnce(&mut Said)) {
        change(&mut self.0.0.lock().unwrap());
        self.0.1.notify_all();
    }

    /// Waits until the lines so far have an answer.
    pub(crate) fn wait<T>(&self, what: &str, find: impl Fn(&[String]) -> Option<T>) -> T {
        self.wait_said(what, |said| find(&said.lines))
    }

    /// Waits for the stream's end; all its lines.
    pub(crate) fn to_end(&self) -> Vec<String> {
        self.wait_said("the end of a stream", |said| said.ended.then(|| said.lines.clone()))
    }

    fn wait_said<T>(&self, what: &str, find: impl Fn(&Said) -> Option<T>) -> T {
        let deadline = Deadline::new();
        let mut said = self.0.0.lock().unwrap();
        loop {
            if let Some(found) = find(&said) {
                return found;
            }
            let left = deadline.left();
            assert!(!left.is_zero(), "waited in vain for {what}; so far:\n{}", tail(&said.lines));
            said = self.0.1.wait_timeout(said, left).unwrap().0;
        }
    }
}

fn tail(lines: &[String]) -> String {
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

/// A process of the test. Dropping it kills it and everything below it.
pub(crate) struct Process {
    name: &'static str,
    child: Child,
    pub(crate) stdout: Lines,
    pub(crate) stderr: Lines,
}

impl Process {
    /// Starts `words`, which dies with the test's thread.
    pub(crate) fn start(name: &'static str, words: &[String]) -> Self {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).args(words);
        // Options are given, never picked up from whoever runs the tests.
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("ENCLAVE_") {
                command.env_remove(variable);
            }
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{name} does not start: {error}"));
        let stdout = Lines::follow(child.stdout.take().unwrap());
        let stderr = Lines::follow(child.stderr.take().unwrap());
        Self { name, child, stdout, stderr }
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).unwrap();
    }

    /// Waits for its end.
    pub(crate) fn end(&mut self) -> ExitStatus {
        self.stderr.to_end();
        self.stdout.to_end();
        self.child.wait().unwrap()
    }

    /// Ends it as the kernel would: without a word.
    pub(crate) fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        self.end();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if thread::panicking() {
            let said = self.stderr.0.0.lock().unwrap_or_else(PoisonError::into_inner);
            eprintln!("--- stderr of {}:\n{}", self.name, tail(&said.lines));
        }
        let below = descendants(self.pid());
        // Each may have ended by itself meanwhile.
        self.child.kill().ok();
        self.child.wait().ok();
        for pid in below {
            kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
        }
    }
}

/// Sends SIGKILL to a process that a test knows by its number.
pub(crate) fn kill_9(pid: impl TryInto<i32>) {
    let pid = pid.try_into().ok().filter(|pid| *pid > 1).expect("a process id");
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
}

/// One line of the process table.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) pid: i32,
    pub(crate) parent: i32,
    pub(crate) state: char,
}

/// The process table, as far as it holds still.
pub(crate) fn table() -> Vec<Entry> {
    let entries = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    entries
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            let mut fields = stat.rsplit_once(") ")?.1.split(' ');
            let state = fields.next()?.chars().next()?;
            Some(Entry { pid, state, parent: fields.next()?.parse().ok()? })
        })
        .collect()
}

/// The direct children of a process, zombies included.
pub(crate) fn children(pid: i32) -> Vec<Entry> {
    table().into_iter().filter(|entry| entry.parent == pid).collect()
}

/// All processes below a process.
pub(crate) fn descendants(pid: i32) -> Vec<i32> {
    let table = table();
    let mut found = vec![pid];
    let mut at = 0;
    while let Some(&parent) = found.get(at) {
        found.extend(table.iter().filter(|entry| entry.parent == parent).map(|entry| entry.pid));
        at += 1;
    }
    found.split_off(1)
}

/// A process's command line.
pub(crate) fn command_line(pid: i32) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    bytes.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}
