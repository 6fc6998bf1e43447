//! What the admin socket's `/status` says, and how a person reads it.

use std::fmt::Write as _;

use enclave_protocol::{
    control::{Condition, Event, Status},
    glance::{self, clean},
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
    /// The newest events, oldest first.
    #[serde(default)]
    pub(crate) events: Vec<Event>,
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
            events: view.events.iter().cloned().collect(),
            end: view.end.as_deref().and_then(|line| serde_json::from_str(line).ok()),
        }
    }

    /// One line for `drain`.
    pub(crate) fn progress(&self) -> String {
        let Some(status) = &self.status else { return "the enclave has not answered".to_owned() };
        let plugins: Vec<String> =
            status.plugins.iter().map(|p| format!("{} {}", clean(&p.name), p.phase.word())).collect();
        format!("{}: {}", status.phase.word(), plugins.join(", "))
    }

    /// For a person: what the deployment does, a table of its plugins, remarks, and `events` as well. The
    /// table's lines are cut at `width` characters.
    pub(crate) fn table(&self, width: Option<usize>, events: bool) -> String {
        let mut text = String::new();
        let Some(status) = &self.status else {
            // Writing to a String cannot fail, here and below.
            writeln!(text, "{}: the enclave has not answered yet", self.instance).ok();
            return text;
        };
        let name = status.deployment.as_deref().map_or_else(|| "(no manifest yet)".to_owned(), clean);
        let ready = if status.ready { "ready" } else { "not ready" };
        writeln!(text, "{name}  {}, {ready}  ({})", status.phase.word(), self.instance).ok();
        if !self.reachable {
            writeln!(text, "The enclave does not answer; this is what it said last.").ok();
        }
        if !self.synced {
            writeln!(text, "The enclave does not run this proxy's manifest.").ok();
        }
        writeln!(text, "cpu {}  memory {}", percent(self.cpu_usage), percent(self.memory_usage)).ok();
        if let Some(telemetry) = &status.telemetry {
            writeln!(text, "telemetry {}", clean(&telemetry.line(self.time))).ok();
        }
        writeln!(text, "digest {}", status.digest.as_deref().map_or_else(|| "-".to_owned(), clean)).ok();
        text.push_str(&measurements(status));
        text.push('\n');
        text.push_str(&glance::table(status, self.time, width));
        if events && !self.events.is_empty() {
            text.push('\n');
            text.push_str(&self.latest(width));
        }
        for condition in &self.conditions {
            writeln!(text, "\n! {}: {}", clean(&condition.kind), clean(&condition.message)).ok();
        }
        text
    }

    /// A line per event.
    fn latest(&self, width: Option<usize>) -> String {
        let mut text = String::new();
        for Event { time, plugin, reason, message, .. } in &self.events {
            let plugin = plugin.as_deref().map(|plugin| format!("{}: ", clean(plugin))).unwrap_or_default();
            let (age, reason, message) = (glance::age(self.time, *time), clean(reason), clean(message));
            let line = format!("{age:>4} ago  {plugin}{reason}: {message}");
            writeln!(text, "{}", width.map_or_else(|| line.clone(), |width| glance::cut(&line, width))).ok();
        }
        text
    }
}

/// A line per register, by number. Whole ones are in the JSON; people compare the beginning and the end.
fn measurements(status: &Status) -> String {
    let mut registers: Vec<(&String, &String)> = status.measurements.iter().collect();
    registers.sort_by_key(|(name, _)| (name.len(), *name));
    let mut text = String::new();
    for (name, value) in registers {
        let shown = match (value.get(..16), value.get(value.len().saturating_sub(8)..)) {
            _ if value.bytes().all(|digit| digit == b'0') => "all zero".to_owned(),
            (Some(start), Some(end)) if value.len() > 24 => clean(&format!("{start}…{end}")),
            _ => clean(value),
        };
        // Writing to a String cannot fail.
        writeln!(text, "{:<5}  {shown}", clean(name)).ok();
    }
    text
}

fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "-".to_owned(), |share| format!("{:.1} %", share * 100.0))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use enclave_protocol::control::{LastExit, Phase, PluginPhase, PluginStatus};
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
                telemetry: None,
            }),
            conditions: vec![Condition {
                kind: "PolicyOpen".into(),
                message: "any manifest is accepted".into(),
            }],
            cpu_usage: Some(0.125),
            memory_usage: None,
            events: vec![
                Event {
                    seq: 7,
                    time: Timestamp(180 * second),
                    plugin: Some("fastapi".into()),
                    reason: "BackOff".into(),
                    message: "starts again in 30s".into(),
                },
                Event {
                    seq: 8,
                    time: Timestamp(199 * second),
                    plugin: None,
                    reason: "NetRestarted".into(),
                    message: "the net process ended;\nopen streams are reset".into(),
                },
            ],
            end: None,
        }
    }

    #[test]
    fn a_person_sees_at_a_glance_what_is_wrong() {
        expect![[r#"
            hello  Running, not ready  (pod-1)
            cpu 12.5 %  memory -
            digest abc

            NAME       PHASE       READY  RESTARTS  LAST EXIT          REASON                          AGE
            telemetry  Running     yes    0         -                  -                               3m
            fastapi    BackingOff  no     12        OOMKilled, 3m ago  CrashLoopBackOff, again in 20s  10s

            ! PolicyOpen: any manifest is accepted
        "#]]
        .assert_eq(&report().table(None, false));
    }

    #[test]
    fn events_are_shown_when_they_are_asked_for() {
        let text = report().table(Some(40), true);
        let (_, events) = text.split_once("\n\n").unwrap();
        expect![[r#"
            NAME       PHASE       READY  RESTARTS …
            telemetry  Running     yes    0        …
            fastapi    BackingOff  no     12       …

             20s ago  fastapi: BackOff: starts agai…
              1s ago  NetRestarted: the net process…

            ! PolicyOpen: any manifest is accepted
        "#]]
        .assert_eq(events);
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
        let table = report.table(None, false);
        assert!(table.contains("digest abc\nPCR0   0123"), "{table}");
        assert!(serde_json::to_string(&report).unwrap().contains(&format!("\"PCR8\":\"{value}\"")));
    }

    #[test]
    fn an_enclave_that_does_not_answer_is_said_to_be_so() {
        let lost = Report { reachable: false, synced: false, ..report() };
        assert!(lost.table(None, false).contains("does not answer"));
        assert!(lost.table(None, false).contains("does not run this proxy's manifest"));
        let never = Report { status: None, ..lost };
        assert_eq!(never.table(None, false), "pod-1: the enclave has not answered yet\n");
        assert_eq!(report().progress(), "Running: telemetry Running, fastapi BackingOff");
    }
}
