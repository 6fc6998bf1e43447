//! The supervisor's peak memory while it starts and takes a manifest with 1 MiB of files.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

use super::{Table, control};
use crate::{
    binaries::Binaries,
    cargo,
    failure::{Failure, While as _},
    stopwatch::Stopwatch,
};

/// Most resident memory, in KiB.
const PEAK_KIB_MAX: u64 = 12 << 10;
/// Bytes of the files beside the manifest.
const FILES_BYTES: usize = 1 << 20;
/// How long the supervisor may take to listen.
const START_MAX: Duration = Duration::from_secs(10);
const PACE: Duration = Duration::from_millis(5);

/// The table, and whether it is over its budget.
pub(super) fn table(binaries: &Binaries) -> Result<Table, Failure> {
    let directory = tempfile::tempdir().while_doing("a directory for the supervisor")?;
    let path = |name: &str| directory.path().join(name);
    lay_out(&path("plugins/app"), binaries.path("hello"))?;
    let supervisor = Supervisor::start(binaries.path("enclave-supervisor"), directory.path())?;
    let body = request().to_string();
    let answer = control::call(&path("v.sock"), START_MAX, "PUT /v1/manifest", None, &body)
        .while_doing("the supervisor's control API")?;
    if answer.status != 200 {
        return Err(Failure::new(format!("the supervisor answered {answer:?}")));
    }
    Ok(judge(supervisor.peak_kib()?))
}

fn judge(peak_kib: u64) -> Table {
    let kept = peak_kib <= PEAK_KIB_MAX;
    let verdict = if kept { "kept" } else { "EXCEEDED" };
    let text = format!(
        "| peak memory of `enclave-supervisor`, from its start to an accepted manifest with 1 MiB of files \
         | KiB | budget |\n|---|---:|---|\n| resident (VmHWM) | {peak_kib} | ≤ {} MiB: {verdict} |\n",
        PEAK_KIB_MAX >> 10
    );
    let complaint = format!("the supervisor's memory peaks at {peak_kib} KiB and may at {PEAK_KIB_MAX}");
    Table { text, complaints: if kept { Vec::new() } else { vec![complaint] } }
}

fn lay_out(plugin: &Path, program: &Path) -> Result<(), Failure> {
    fs::create_dir_all(plugin.join("rootfs")).while_doing("a plugin's directory")?;
    fs::copy(program, plugin.join("rootfs/hello")).while_doing("a plugin's program")?;
    let config = json!({"image": "bench/app:1", "config": {"Entrypoint": ["/hello"]}});
    fs::write(plugin.join("config.json"), config.to_string()).while_doing("a plugin's config.json")
}

/// A manifest with its files, as host-proxy sends it.
fn request() -> Value {
    let volume = json!({
        "name": "data", "containerPath": "/data",
        "source": {"configMap": {"name": "data", "items": [{"key": "blob", "path": "blob"}]}},
    });
    let plugin = json!({"name": "app", "image": "bench/app:1", "volumes": [volume]});
    let manifest = json!({
        "apiVersion": "k8s.oblv.com/v1alpha1",
        "kind": "NitroEnclaveDeployment",
        "metadata": {"name": "bench"},
        "spec": {"userPlugins": [plugin]},
    });
    let blob = BASE64_STANDARD.encode(vec![0xA5; FILES_BYTES]);
    json!({
        "manifest": manifest.to_string(),
        "files": {"configMaps": {"data": {"blob": blob}}},
        "egressPort": 100_002,
        "instanceId": "bench",
    })
}

/// A supervisor in a network namespace of its own.
struct Supervisor(Child);

impl Supervisor {
    fn start(program: &Path, directory: &Path) -> Result<Self, Failure> {
        let option = |name: &str, path: PathBuf| format!("--{name}={}", path.display());
        let mut command = cargo::command("unshare");
        command.args(["--net", "--"]).arg(program).args(["run", "--init=container"]);
        command.arg(format!("--transport=unix:{}", directory.join("v.sock").display()));
        command.arg(option("plugins", directory.join("plugins")));
        command.arg(option("socket", directory.join("run/s.sock")));
        command.arg(option("policy", directory.join("policy.json")));
        let child = command.stderr(Stdio::null()).spawn().while_doing("the supervisor")?;
        let supervisor = Self(child);
        let watch = Stopwatch::start();
        while !directory.join("run/s.sock").exists() {
            if watch.elapsed() > START_MAX {
                return Err(Failure::new("the supervisor does not listen"));
            }
            std::thread::park_timeout(PACE);
        }
        Ok(supervisor)
    }

    /// The most memory it ever had, in KiB. `unshare` has become the supervisor by exec.
    fn peak_kib(&self) -> Result<u64, Failure> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.id()))
            .while_doing("the supervisor's status")?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        kib.ok_or_else(|| Failure::new("the kernel does not tell the supervisor's peak memory"))
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        // Its plugins die with it.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peak_over_the_budget_is_flagged() {
        assert!(judge(PEAK_KIB_MAX).complaints.is_empty());
        let over = judge(PEAK_KIB_MAX + 1);
        assert!(over.text.contains("EXCEEDED") && over.complaints.len() == 1, "{over:?}");
    }
}
