//! Calls to cargo and to other programs that build.

#![expect(clippy::disallowed_types, reason = "xtask's work is to run cargo; it is no part of the product")]

use std::{
    collections::{BTreeMap, BTreeSet},
    io::BufReader,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        OnceLock,
        mpsc::{RecvTimeoutError, SyncSender, sync_channel},
    },
    time::Duration,
};

use crate::{
    failure::{Failure, While as _},
    stopwatch::Stopwatch,
    terminal,
};

/// How often a build that nobody watches on a terminal says how far it is.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);
/// Artifacts on their way from the reader to the display; it reads on at once, so few ever wait.
const ARTIFACTS_MAX: usize = 64;

/// The root of the repository.
pub(crate) fn workspace_root() -> &'static Path {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| {
        // As `cargo run` says it now: what was true when xtask was compiled is not in a checkout that was
        // copied with its target directory.
        let member = std::env::var_os("CARGO_MANIFEST_DIR");
        let member = member.map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        member.parent().expect("invariant: xtask/ lies in the workspace root").to_owned()
    })
}

/// Where cargo builds.
pub(crate) fn target_directory() -> PathBuf {
    let named = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    workspace_root().join(named.unwrap_or_else(|| PathBuf::from("target")))
}

/// A command that runs in the repository's root.
pub(crate) fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(workspace_root());
    command
}

/// The cargo that started xtask.
pub(crate) fn cargo() -> Command {
    let mut cargo = command(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // What cargo told xtask about xtask's own package is not meant for the packages it builds now.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CARGO_PKG_") {
            cargo.env_remove(name);
        }
    }
    cargo.env_remove("CARGO_MANIFEST_DIR");
    cargo
}

/// Runs a command with the terminal's own output, and fails if it does.
pub(crate) fn run(command: &mut Command) -> Result<(), Failure> {
    let shown = show(command);
    let status = command.status().while_doing(format_args!("could not start `{shown}`"))?;
    if status.success() { Ok(()) } else { Err(Failure::new(format!("`{shown}` failed ({status})"))) }
}

/// Runs a command and returns what it printed.
pub(crate) fn capture(command: &mut Command) -> Result<String, Failure> {
    let shown = show(command);
    let output =
        command.stderr(Stdio::inherit()).output().while_doing(format_args!("could not start `{shown}`"))?;
    if !output.status.success() {
        return Err(Failure::new(format!("`{shown}` failed ({})", output.status)));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A command as a person would type it.
pub(crate) fn show(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or_else(|| command.get_program());
    let words = std::iter::once(program).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

/// Runs `cargo build …` and returns the path of every program it made, by name.
pub(crate) fn build(
    cargo: &mut Command,
    crates_expected: usize,
) -> Result<BTreeMap<String, PathBuf>, Failure> {
    let watch = Stopwatch::start();
    cargo.arg("--message-format=json-render-diagnostics").stdout(Stdio::piped());
    let own_progress = !terminal::shows_cargo_progress();
    if own_progress {
        // Errors are still shown; the line per crate is replaced by a line now and then.
        cargo.arg("--quiet");
    }
    let mut child = cargo.spawn().while_doing("could not start cargo")?;
    let stdout = child.stdout.take().expect("invariant: stdout is piped above");
    let (sender, artifacts) = sync_channel(ARTIFACTS_MAX);
    let reader = std::thread::spawn(move || read_artifacts(BufReader::new(stdout), &sender));

    let mut executables = BTreeMap::new();
    let mut crates = BTreeSet::new();
    let mut last_said = Duration::ZERO;
    loop {
        match artifacts.recv_timeout(PROGRESS_INTERVAL) {
            Ok(artifact) => {
                if let Some(path) = artifact.executable {
                    executables.insert(artifact.name, path);
                }
                crates.insert(artifact.package);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        if own_progress && watch.elapsed() >= last_said + PROGRESS_INTERVAL {
            last_said = watch.elapsed();
            terminal::say(&format!("    {watch}  {} of about {crates_expected} crates built", crates.len()));
        }
    }
    reader.join().map_err(|_| Failure::new("the reader of cargo's messages panicked"))?;
    let status = child.wait().while_doing("waiting for cargo")?;
    if !status.success() {
        return Err(Failure::new(format!("the build failed after {watch} ({status}); its errors are above")));
    }
    Ok(executables)
}

/// Builds all tests of the workspace and returns the path of one program of the root package's. Built as
/// `cargo test --workspace` builds them, so that nothing is compiled twice.
pub(crate) fn build_tests(program: &str) -> Result<PathBuf, Failure> {
    let mut build = cargo();
    build.args(["test", "--workspace", "--locked", "--no-run", "--message-format=json-render-diagnostics"]);
    let messages = capture(&mut build)?;
    let manifest = workspace_root().join("Cargo.toml");
    let found = messages.lines().find_map(|line| test_program(line, &manifest, program));
    found.ok_or_else(|| Failure::new(format!("cargo built no test program named {program}")))
}

/// Reads one line of cargo's JSON messages; none for anything but this test program of this package.
fn test_program(line: &str, manifest: &Path, name: &str) -> Option<PathBuf> {
    let message: serde_json::Value = serde_json::from_str(line).ok()?;
    let target = message.get("target")?;
    let is_wanted = Path::new(message.get("manifest_path")?.as_str()?) == manifest
        && target.get("name")?.as_str()? == name
        && target.get("kind")?.get(0)?.as_str()? == "test";
    if is_wanted { message.get("executable")?.as_str().map(PathBuf::from) } else { None }
}

/// What cargo says about one finished crate.
#[derive(Debug, PartialEq, Eq)]
struct Artifact {
    package: String,
    name: String,
    executable: Option<PathBuf>,
}

fn read_artifacts(lines: impl std::io::BufRead, sender: &SyncSender<Artifact>) {
    for line in lines.lines().map_while(Result::ok) {
        if let Some(artifact) = artifact(&line)
            && sender.send(artifact).is_err()
        {
            return;
        }
    }
}

/// Reads one line of cargo's JSON messages; none for a line about something else.
fn artifact(line: &str) -> Option<Artifact> {
    let message: serde_json::Value = serde_json::from_str(line).ok()?;
    if message.get("reason")?.as_str()? != "compiler-artifact" {
        return None;
    }
    Some(Artifact {
        package: message.get("package_id")?.as_str()?.to_owned(),
        name: message.get("target")?.get("name")?.as_str()?.to_owned(),
        executable: message.get("executable")?.as_str().map(PathBuf::from),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_built_program_is_found_in_cargos_messages() {
        let line = r#"{"reason":"compiler-artifact","package_id":"p@1",
            "target":{"name":"hello"},"executable":"/t/hello"}"#;
        let expected = Artifact {
            package: "p@1".into(),
            name: "hello".into(),
            executable: Some(PathBuf::from("/t/hello")),
        };
        assert_eq!(artifact(line), Some(expected));
    }

    #[test]
    fn a_test_program_is_told_from_another_packages_of_the_same_name() {
        let line = |manifest: &str, kind: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","manifest_path":"{manifest}",
                "target":{{"name":"it","kind":["{kind}"]}},"executable":"/t/it-1"}}"#
            )
        };
        let find = |line: &str| test_program(line, Path::new("/w/Cargo.toml"), "it");
        assert_eq!(find(&line("/w/Cargo.toml", "test")), Some(PathBuf::from("/t/it-1")));
        assert_eq!(find(&line("/w/host-proxy/Cargo.toml", "test")), None);
        assert_eq!(find(&line("/w/Cargo.toml", "bin")), None);
        assert_eq!(find("noise"), None);
    }

    #[test]
    fn messages_about_something_else_and_noise_are_passed_over() {
        for line in [r#"{"reason":"build-finished","success":true}"#, "", "warning: unused", "[]"] {
            assert_eq!(artifact(line), None, "{line}");
        }
    }

    #[test]
    fn a_command_is_shown_without_the_path_of_its_program() {
        assert_eq!(show(command("/usr/bin/cargo").args(["fmt", "--check"])), "cargo fmt --check");
    }
}
