//! How a run ends: the exit code, and the last line that says why.

use std::process::ExitCode;

use enclave_protocol::control::{Phase, PluginStatus, Status};
use serde::Serialize;

/// The documented exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// The workload completed, or was drained in order.
    Ok,
    /// Bad arguments, a manifest that is refused, or a listener that cannot be had.
    Invalid,
    /// The enclave (or, for `status`, `logs` and `drain`, the proxy) does not answer.
    Unreachable,
    /// A user plugin failed for good, or the enclave's boot did.
    WorkloadFailed,
}

impl Exit {
    /// The number.
    pub fn code(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Invalid => 2,
            Self::Unreachable => 3,
            Self::WorkloadFailed => 4,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// The last line on stdout: `{"event":"end",…}`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EndLine<'a> {
    event: &'static str,
    /// The exit code of this process.
    exit_code: u8,
    /// Why, for people.
    reason: &'a str,
    /// The deployment's last known phase.
    phase: Option<Phase>,
    boot_id: Option<&'a str>,
    deployment: Option<&'a str>,
    instance: &'a str,
    digest: Option<&'a str>,
    plugins: Vec<PluginEnd<'a>>,
}

/// One plugin's part of the end.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PluginEnd<'a> {
    name: &'a str,
    phase: enclave_protocol::control::PluginPhase,
    reason: Option<&'a str>,
    restarts: u32,
    exit: Option<PluginExit<'a>>,
}

/// How a plugin's last run ended: exactly one of the first three is there.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PluginExit<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    signal: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
    oom: bool,
}

impl<'a> EndLine<'a> {
    /// The line for this end.
    pub(crate) fn new(exit: Exit, reason: &'a str, instance: &'a str, status: Option<&'a Status>) -> Self {
        Self {
            event: "end",
            exit_code: exit.code(),
            reason,
            phase: status.map(|status| status.phase),
            boot_id: status.map(|status| status.boot_id.as_str()),
            deployment: status.and_then(|status| status.deployment.as_deref()),
            instance,
            digest: status.and_then(|status| status.digest.as_deref()),
            plugins: status
                .map(|status| status.plugins.iter().map(PluginEnd::new).collect())
                .unwrap_or_default(),
        }
    }

    /// As one JSON line with its newline.
    pub(crate) fn to_line(&self) -> String {
        let mut line = serde_json::to_string(self).expect("invariant: strings and numbers always serialise");
        line.push('\n');
        line
    }
}

impl<'a> PluginEnd<'a> {
    fn new(plugin: &'a PluginStatus) -> Self {
        Self {
            name: &plugin.name,
            phase: plugin.phase,
            reason: plugin.reason.as_deref(),
            restarts: plugin.restarts,
            exit: plugin.last_exit.as_ref().map(|exit| PluginExit {
                code: exit.code,
                signal: exit.signal,
                error: exit.error.as_deref(),
                oom: exit.oom,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_exit_has_its_documented_code() {
        let codes = [Exit::Ok, Exit::Invalid, Exit::Unreachable, Exit::WorkloadFailed].map(Exit::code);
        assert_eq!(codes, [0, 2, 3, 4]);
    }

    #[test]
    fn the_end_line_carries_the_plugins_own_code_or_signal() {
        let status: Status = serde_json::from_str(
            r#"{"bootId":"b","digest":"d","deployment":"hello","phase":"Failed","ready":false,"conditions":[],
                "seq":7,"logSeq":9,"plugins":[{"name":"app","phase":"Failed","reason":"Error","ready":false,
                "restarts":2,"pid":null,"lastExit":{"code":null,"signal":9,"oom":true,"error":null,
                "time":"2026-01-01T00:00:00Z"},"nextRestart":null,"since":"2026-01-01T00:00:00Z"}]}"#,
        )
        .unwrap();
        let line =
            EndLine::new(Exit::WorkloadFailed, "the workload failed", "pod-1", Some(&status)).to_line();
        expect_test::expect![[r#"
            {"event":"end","exitCode":4,"reason":"the workload failed","phase":"Failed","bootId":"b","deployment":"hello","instance":"pod-1","digest":"d","plugins":[{"name":"app","phase":"Failed","reason":"Error","restarts":2,"exit":{"signal":9,"oom":true}}]}
        "#]]
        .assert_eq(&line);
    }
}
