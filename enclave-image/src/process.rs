//! The programs that `boot` starts. They end with this one: `setpriv` has the kernel kill them, whatever
//! happens to us, and dropping one kills it.

#![expect(clippy::disallowed_types, reason = "boot's work is to start a virtual machine monitor")]

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
};

use crate::failure::{Failure, Outcome};

/// A program that runs.
#[derive(Debug)]
pub struct Process {
    child: Child,
    errors: PathBuf,
}

/// Looks a program up: the path given, or its name in `PATH`.
pub fn find(given: Option<&Path>, name: &str, advice: &str) -> Outcome<PathBuf> {
    if let Some(path) = given {
        return if path.is_file() {
            Ok(path.to_owned())
        } else {
            Err(Failure::input(path, "no such program"))
        };
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file());
    found.ok_or_else(|| Failure::Input(format!("{name} is not in PATH: {advice}")))
}

/// Becomes another program; returns only if that fails.
pub fn become_program(program: &Path, arguments: &[OsString]) -> Failure {
    Failure::input(program, Command::new(program).args(arguments).exec())
}

impl Process {
    /// Starts `program`; its error output goes to the file `errors`.
    pub fn start(program: &Path, arguments: &[OsString], errors: &Path) -> Outcome<Self> {
        let setpriv = find(None, "setpriv", "apt-get install util-linux")?;
        let log = File::create(errors).map_err(|error| Failure::internal(errors, error))?;
        let mut command = Command::new(setpriv);
        command.args([OsStr::new("--pdeathsig"), OsStr::new("KILL"), program.as_os_str()]).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        let child = command.spawn().map_err(|error| Failure::input(program, error))?;
        Ok(Self { child, errors: errors.to_owned() })
    }

    /// Its pid.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its output, once.
    pub fn output(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().map_or(true, |status| status.is_some())
    }

    /// The last line of its error output.
    pub fn last_error(&self) -> Option<String> {
        let text = std::fs::read(&self.errors).ok()?;
        let text = String::from_utf8_lossy(&text);
        text.lines().rfind(|line| !line.trim().is_empty()).map(str::to_owned)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already, which is what is wanted.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
