//! What the admin socket's `/status` says, and how a person reads it.

use std::fmt::Write as _;

use enclave_protocol::{
    control::{Condition, LastExit, Phase, PluginPhase, PluginStatus, Status},
    metrics::{CPU_USAGE, MEMORY_USAGE, Sample},
    timestamp::Timestamp,
};
use serde::{Deserialize, Serialize};

use crate::view::View;

/// The whole state at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Report {
    /// When it was made.
    pub(crate) time: Timestamp,
    /// The `instance` label.
    pub(crate) instance: String,
    /// Whether the enclave answered within the last seconds.
    pub(crate) reachable: bool,
    /// Whether the enclave runs the manifest that this proxy handed over.
    pub(crate) synced: bool,
    /// The newest status.
    pub(crate) status: Option<Status>,
    /// Every remark.
    pub(crate) conditions: Vec<Condition>,
    /// CPU used, 0–1.
    pub(crate) cpu_usage: Option<f64>,
    /// Memory used, 0–1.
    pub(crate) memory_usage: Option<f64>,
    /// The last line of the run, once it is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) end: Option<End>,
}

/// The part of the last line that decides the exit code of `drain`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct End {
    /// Exit code of the proxy.
    pub(crate) exit_code: u8,
    /// Why.
    pub(crate) reason: String,
}

impl Report {
    /// From what is known.
    pub(crate) fn new(time: Timestamp, instance: &str, view: &View, sample: Option<&Sample>) -> Self {
        let boot = view.status.as_ref().map(|status| status.boot_id.as_str());
        Self {
            time,
            instance: instance.to_owned(),
            reachable: view.is_fresh(),
            synced: view.session.as_ref().is_some_and(|session| Some(session.boot_id.as_str()) == boot),
            status: view.status.clone(),
            conditions: view.conditions(),
            cpu_usage: sample.and_then(|sample| sample.value(CPU_USAGE)),
            memory_usage: sample.and_then(|sample| sample.value(MEMORY_USAGE)),
            end: view.end.as_deref().and_then(|line| serde_json::from_str(line).ok()),
        }
    }

    /// One line for `drain`.
    pub(crate) fn progress(&self) -> String {
        let Some(status) = &self.status else { return "the enclave has not answered".to_owned() };
        let plugins: Vec<String> =
            status.plugins.iter().map(|plugin| format!("{} {}", plugin.name, phase(plugin.phase))).collect();
        format!("{}: {}", deployment(status.phase), plugins.join(", "))
    }

    /// A table.
    pub(crate) fn table(&self) -> String {
        let mut text = String::new();
        let Some(status) = &self.status else {
            // Writing to a String cannot fail, here and below.
            writeln!(text, "{}: the enclave has not answered yet", self.instance).ok();
            return text;
        };
        let name = status.deployment.as_deref().unwrap_or("(no manifest yet)");
        let ready = if status.ready { "ready" } else { "not ready" };
        writeln!(text, "{name}  {}, {ready}  ({})", deployment(status.phase), self.instance).ok();
        if !self.reachable {
            writeln!(text, "The enclave does not answer; this is what it said last.").ok();
        }
        if !self.synced {
            writeln!(text, "The enclave does not run this proxy's manifest.").ok();
        }
        writeln!(text, "cpu {}  memory {}", percent(self.cpu_usage), percent(self.memory_usage)).ok();
        writeln!(text, "digest {}", status.digest.as_deref().unwrap_or("-")).ok();
        text.push_str(&measurements(status));
        text.push('\n');
        text.push_str(&rows(status, self.time));
        for condition in &self.conditions {
            writeln!(text, "\n! {}: {}", condition.kind, condition.message).ok();
        }
        text
    }
}

fn rows(status: &Status, now: Timestamp) -> String {
    let mut rows =
        vec![["NAME", "PHASE", "READY", "RESTARTS", "LAST EXIT", "REASON/NEXT", "AGE"].map(str::to_owned)];
    rows.extend(status.plugins.iter().map(|plugin| {
        [
            plugin.name.clone(),
            phase(plugin.phase).to_owned(),
            if plugin.ready { "yes" } else { "no" }.to_owned(),
            plugin.restarts.to_string(),
            plugin.last_exit.as_ref().map_or_else(|| "-".to_owned(), last_exit),
            reason(plugin, now),
            age(now, plugin.since),
        ]
    }));
    let mut widths = [0; 7];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in &rows {
        let cells: Vec<String> =
            row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        writeln!(text, "{}", cells.join("  ").trim_end()).ok();
    }
    text
}

/// A line per register, by number. Whole ones are in the JSON; people compare the beginning and the end.
fn measurements(status: &Status) -> String {
    let mut registers: Vec<(&String, &String)> = status.measurements.iter().collect();
    registers.sort_by_key(|(name, _)| (name.len(), *name));
    let mut text = String::new();
    for (name, value) in registers {
        let shown = match (value.get(..16), value.get(value.len().saturating_sub(8)..)) {
            _ if value.bytes().all(|digit| digit == b'0') => "all zero".to_owned(),
            (Some(start), Some(end)) if value.len() > 24 => format!("{start}…{end}"),
            _ => value.clone(),
        };
        // Writing to a String cannot fail.
        writeln!(text, "{name:<5}  {shown}").ok();
    }
    text
}

fn last_exit(exit: &LastExit) -> String {
    let how = match (&exit.error, exit.signal, exit.code) {
        (Some(error), _, _) => error.clone(),
        (None, Some(signal), _) => format!("signal {signal}"),
        (None, None, Some(code)) => format!("code {code}"),
        (None, None, None) => "unknown".to_owned(),
    };
    if exit.oom { format!("{how} (OOM)") } else { how }
}

fn reason(plugin: &PluginStatus, now: Timestamp) -> String {
    let reason = plugin.reason.as_deref().unwrap_or("-");
    match plugin.next_restart {
        Some(next) if next > now => format!("{reason}, again in {}", age(next, now)),
        Some(_) => format!("{reason}, again now"),
        None => reason.to_owned(),
    }
}

fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "-".to_owned(), |share| format!("{:.1} %", share * 100.0))
}

/// The time from one moment to a later one, as kubectl shows it.
fn age(later: Timestamp, earlier: Timestamp) -> String {
    let seconds = later.0.saturating_sub(earlier.0) / 1_000_000_000;
    match seconds {
        0..=119 => format!("{seconds}s"),
        120..=7199 => format!("{}m", seconds / 60),
        7200..=172_799 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

fn deployment(phase: Phase) -> &'static str {
    match phase {
        Phase::AwaitingManifest => "AwaitingManifest",
        Phase::Running => "Running",
        Phase::Stopping => "Stopping",
        Phase::Completed => "Completed",
        Phase::Failed => "Failed",
    }
}

fn phase(phase: PluginPhase) -> &'static str {
    match phase {
        PluginPhase::Waiting => "Waiting",
        PluginPhase::Starting => "Starting",
        PluginPhase::Running => "Running",
        PluginPhase::BackingOff => "BackingOff",
        PluginPhase::Stopping => "Stopping",
        PluginPhase::Completed => "Completed",
        PluginPhase::Failed => "Failed",
        PluginPhase::Stopped => "Stopped",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use expect_test::expect;

    use super::*;

    fn report() -> Report {
        let plugin = |name: &str| PluginStatus {
            name: name.into(),
            phase: PluginPhase::Running,
            reason: None,
            ready: true,
            restarts: 0,
            pid: Some(7),
            last_exit: None,
            next_restart: None,
            since: Timestamp(0),
            message: None,
            oom_kills: 0,
            probes: Vec::new(),
        };
        let second = 1_000_000_000;
        let failing = PluginStatus {
            phase: PluginPhase::BackingOff,
            reason: Some("CrashLoopBackOff".into()),
            ready: false,
            restarts: 12,
            last_exit: Some(LastExit {
                code: None,
                signal: Some(9),
                oom: true,
                error: None,
                time: Timestamp(0),
            }),
            next_restart: Some(Timestamp(220 * second)),
            since: Timestamp(190 * second),
            message: None,
            oom_kills: 0,
            probes: Vec::new(),
            ..plugin("fastapi")
        };
        Report {
            time: Timestamp(200 * second),
            instance: "pod-1".into(),
            reachable: true,
            synced: true,
            status: Some(Status {
                boot_id: "b".into(),
                digest: Some("abc".into()),
                deployment: Some("hello".into()),
                phase: Phase::Running,
                ready: false,
                conditions: vec![],
                seq: 1,
                log_seq: 1,
                plugins: vec![plugin("telemetry"), failing],
                measurements: BTreeMap::new(),
            }),
            conditions: vec![Condition {
                kind: "PolicyOpen".into(),
                message: "any manifest is accepted".into(),
            }],
            cpu_usage: Some(0.125),
            memory_usage: None,
            end: None,
        }
    }

    #[test]
    fn a_person_sees_at_a_glance_what_is_wrong() {
        expect![[r"
            hello  Running, not ready  (pod-1)
            cpu 12.5 %  memory -
            digest abc

            NAME       PHASE       READY  RESTARTS  LAST EXIT       REASON/NEXT                     AGE
            telemetry  Running     yes    0         -               -                               3m
            fastapi    BackingOff  no     12        signal 9 (OOM)  CrashLoopBackOff, again in 20s  10s

            ! PolicyOpen: any manifest is accepted
        "]]
        .assert_eq(&report().table());
    }

    #[test]
    fn measurements_are_shortened_for_people_and_whole_for_programs() {
        let value = "0123456789abcdef".repeat(6);
        let mut report = report();
        let status = report.status.as_mut().unwrap();
        for (name, value) in [("PCR0", value.as_str()), ("PCR2", "00"), ("PCR16", "c0ffee"), ("PCR8", &value)]
        {
            status.measurements.insert(name.to_owned(), value.to_owned());
        }
        expect![[r"
            PCR0   0123456789abcdef…89abcdef
            PCR2   all zero
            PCR8   0123456789abcdef…89abcdef
            PCR16  c0ffee
        "]]
        .assert_eq(&measurements(status));
        assert!(report.table().contains("digest abc\nPCR0   0123"), "{}", report.table());
        assert!(serde_json::to_string(&report).unwrap().contains(&format!("\"PCR8\":\"{value}\"")));
    }

    #[test]
    fn an_enclave_that_does_not_answer_is_said_to_be_so() {
        let lost = Report { reachable: false, synced: false, ..report() };
        assert!(lost.table().contains("does not answer"));
        assert!(lost.table().contains("does not run this proxy's manifest"));
        let never = Report { status: None, ..lost };
        assert_eq!(never.table(), "pod-1: the enclave has not answered yet\n");
        assert_eq!(report().progress(), "Running: telemetry Running, fastapi BackingOff");
    }
}
