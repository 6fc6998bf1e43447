//! What `enclave-host-proxy status -o json` says, as far as the demo shows it.

use serde::Deserialize;

use crate::failure::{Failure, While as _};

/// host-proxy's report, which holds the supervisor's status.
#[derive(Debug, Deserialize)]
struct Report {
    status: Option<Status>,
}

/// Reads a report; none while the enclave has not answered.
pub(crate) fn read(report: &[u8]) -> Result<Option<Status>, Failure> {
    let report: Report =
        serde_json::from_slice(report).while_doing("the answer of `enclave-host-proxy status -o json`")?;
    Ok(report.status)
}

/// The deployment.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Status {
    /// `metadata.name`, once a manifest is accepted.
    pub(crate) deployment: Option<String>,
    /// What it does as a whole.
    pub(crate) phase: String,
    /// Whether every user plugin is ready.
    pub(crate) ready: bool,
    /// In start order.
    pub(crate) plugins: Vec<Plugin>,
}

/// One plugin.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Plugin {
    /// Its name.
    pub(crate) name: String,
    /// What it does.
    pub(crate) phase: String,
    /// One word why.
    pub(crate) reason: Option<String>,
    /// Whether it counts as ready.
    pub(crate) ready: bool,
    /// Since the manifest was accepted.
    pub(crate) restarts: u32,
    /// As the supervisor sees it, in its own PID namespace.
    pub(crate) pid: Option<u32>,
    /// How the last run ended.
    pub(crate) last_exit: Option<LastExit>,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LastExit {
    /// Its exit code.
    pub(crate) code: Option<i32>,
    /// The signal that ended it.
    pub(crate) signal: Option<i32>,
    /// Whether it had used up its memory.
    pub(crate) oom: bool,
    /// Why it did not even start.
    pub(crate) error: Option<String>,
}

impl std::fmt::Display for LastExit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.oom, &self.error, self.signal, self.code) {
            (true, ..) => f.write_str("out of memory"),
            (_, Some(error), ..) => write!(f, "not started: {error}"),
            (.., Some(signal), _) => write!(f, "signal {signal}"),
            (.., Some(code)) => write!(f, "exit code {code}"),
            (false, None, None, None) => f.write_str("unknown"),
        }
    }
}

impl Status {
    /// The plugin of that name.
    pub(crate) fn plugin(&self, name: &str) -> Option<&Plugin> {
        self.plugins.iter().find(|plugin| plugin.name == name)
    }
}

/// What happened between two statuses, one line each.
pub(crate) fn changes(before: Option<&Status>, after: &Status) -> Vec<String> {
    let mut lines = Vec::new();
    if before.is_none_or(|before| before.phase != after.phase) {
        lines.push(format!("the deployment is {}", after.phase));
    }
    for plugin in &after.plugins {
        let old = before.and_then(|before| before.plugin(&plugin.name));
        if plugin.restarts > old.map_or(0, |old| old.restarts) {
            let why = plugin.last_exit.as_ref().map_or_else(|| "unknown".to_owned(), LastExit::to_string);
            lines.push(format!(
                "{} ended ({why}) and was restarted: restarts {}",
                plugin.name, plugin.restarts
            ));
        }
        let is_new = old.is_none_or(|old| old.phase != plugin.phase || old.pid != plugin.pid);
        if is_new {
            let reason = plugin.reason.as_ref().map(|reason| format!(", {reason}")).unwrap_or_default();
            let pid = plugin.pid.map(|pid| format!(", pid {pid} in the enclave")).unwrap_or_default();
            lines.push(format!("{} is {}{reason}{pid}", plugin.name, plugin.phase));
        }
    }
    lines
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A status as the supervisor writes it.
    pub(crate) fn example(restarts: u32, pid: u32) -> Status {
        let text = format!(
            r#"{{"time":"2026-11-22T02:40:00Z","instance":"i","reachable":true,"synced":true,"status":{{"bootId":"b","digest":"d","deployment":"hello-fastapi","phase":"Running","ready":true,
            "conditions":[],"seq":9,"logSeq":41,"plugins":[
            {{"name":"telemetry","phase":"Running","reason":null,"ready":true,"restarts":0,"pid":7,
              "lastExit":null,"nextRestart":null,"since":"2026-11-22T02:40:00Z"}},
            {{"name":"fastapi","phase":"Running","reason":null,"ready":true,"restarts":{restarts},"pid":{pid},
              "lastExit":{{"code":null,"signal":9,"oom":false,"error":null,"time":"2026-11-22T02:40:00Z"}},
              "nextRestart":null,"since":"2026-11-22T02:40:00Z"}}]}},
            "conditions":[],"cpuUsage":null,"memoryUsage":null}}"#
        );
        read(text.as_bytes()).unwrap().unwrap()
    }

    #[test]
    fn a_restart_is_told_with_its_cause_and_its_new_process() {
        expect_test::expect![[r"
            fastapi ended (signal 9) and was restarted: restarts 1
            fastapi is Running, pid 12 in the enclave"]]
        .assert_eq(&changes(Some(&example(0, 9)), &example(1, 12)).join("\n"));
    }

    #[test]
    fn a_report_without_a_status_is_no_error_and_noise_is() {
        assert_eq!(read(br#"{"status":null}"#).unwrap(), None);
        assert!(read(b"[]").is_err());
    }

    #[test]
    fn nothing_is_told_when_nothing_changed() {
        assert_eq!(changes(Some(&example(1, 9)), &example(1, 9)), Vec::<String>::new());
    }

    #[test]
    fn the_first_status_tells_of_everything() {
        expect_test::expect![[r"
            the deployment is Running
            telemetry is Running, pid 7 in the enclave
            fastapi is Running, pid 9 in the enclave"]]
        .assert_eq(&changes(None, &example(0, 9)).join("\n"));
    }

    #[test]
    fn an_exit_is_named_by_what_ended_it() {
        let exit = |code, signal, oom, error: Option<&str>| {
            LastExit { code, signal, oom, error: error.map(str::to_owned) }.to_string()
        };
        assert_eq!(exit(Some(3), None, false, None), "exit code 3");
        assert_eq!(exit(None, Some(9), true, None), "out of memory");
        assert_eq!(exit(None, None, false, Some("ENOENT")), "not started: ENOENT");
    }
}
