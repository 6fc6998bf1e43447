//! A status as a person reads it: one row per plugin, and below it what else there is to know.
//!
//! Messages come from plugins and from the other side of the enclave's wall: everything that is printed goes
//! through [`clean`].

use std::fmt::Write as _;

use crate::{
    control::{LastExit, PluginPhase, PluginStatus, ProbeKind, ProbeStatus, Status},
    timestamp::Timestamp,
};

/// Longest cell of the table, in characters: a deployment's longest reason with its next start fits.
const CELL_MAX: usize = 48;

/// The names of the signals 1–31, which are the same on `x86_64` and `aarch64`.
const SIGNALS: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
    "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
    "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];

/// All plugins. Rows longer than `width` characters are cut.
pub fn table(status: &Status, now: Timestamp, width: Option<usize>) -> String {
    let head = ["NAME", "PHASE", "READY", "RESTARTS", "LAST EXIT", "REASON", "AGE"].map(str::to_owned);
    let mut rows = vec![head];
    rows.extend(status.plugins.iter().map(|plugin| row(plugin, now)));
    let mut widths = [0; 7];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let details = std::iter::once(Vec::new()).chain(status.plugins.iter().map(details));
    let mut text = String::new();
    for (row, details) in rows.iter().zip(details) {
        let cells: Vec<String> =
            row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        let details = details.iter().map(|detail| format!("  └ {detail}"));
        for line in std::iter::once(cells.join("  ")).chain(details) {
            let line = line.trim_end();
            // Writing to a String cannot fail.
            writeln!(text, "{}", width.map_or_else(|| line.to_owned(), |width| cut(line, width))).ok();
        }
    }
    text
}

fn row(plugin: &PluginStatus, now: Timestamp) -> [String; 7] {
    let cells = [
        clean(&plugin.name),
        plugin.phase.word().to_owned(),
        ready(plugin).to_owned(),
        plugin.restarts.to_string(),
        plugin.last_exit.as_ref().map_or_else(
            || "-".to_owned(),
            |exit| format!("{}, {} ago", last_exit(exit), age(now, exit.time)),
        ),
        reason(plugin, now).unwrap_or_else(|| "-".to_owned()),
        age(now, plugin.since),
    ];
    cells.map(|cell| cut(&cell, CELL_MAX))
}

fn ready(plugin: &PluginStatus) -> &'static str {
    match plugin.phase {
        _ if plugin.ready => "yes",
        // Nothing is waited for.
        PluginPhase::Completed | PluginPhase::Stopped => "-",
        PluginPhase::Waiting
        | PluginPhase::Starting
        | PluginPhase::Running
        | PluginPhase::BackingOff
        | PluginPhase::Stopping
        | PluginPhase::Failed => "no",
    }
}

/// Why the plugin is in its phase, and when it is started again.
pub fn reason(plugin: &PluginStatus, now: Timestamp) -> Option<String> {
    let reason = plugin.reason.as_deref().map(clean);
    let Some(next) = plugin.next_restart else { return reason };
    let again = if next > now { format!("again in {}", age(next, now)) } else { "again now".to_owned() };
    Some(reason.map_or_else(|| again.clone(), |reason| format!("{reason}, {again}")))
}

/// What else there is to know of a plugin that is not as it should be, one line each.
pub fn details(plugin: &PluginStatus) -> Vec<String> {
    let mut lines: Vec<String> = plugin.message.iter().map(|message| clean(message)).collect();
    if let Some(LastExit { error: Some(error), .. }) = &plugin.last_exit {
        let error = clean(error);
        if !lines.iter().any(|line| line.contains(&error)) {
            lines.push(error);
        }
    }
    lines.extend(plugin.probes.iter().filter_map(probe));
    // The last exit tells of one kill; it tells of none when a child of the plugin was killed.
    let told = u64::from(plugin.last_exit.as_ref().is_some_and(|exit| exit.oom));
    if plugin.oom_kills > told {
        lines.push(format!("out-of-memory kills so far: {}", plugin.oom_kills));
    }
    lines
}

/// A probe that has failed.
fn probe(probe: &ProbeStatus) -> Option<String> {
    let (kind, failures) = (probe.kind.word(), probe.failures);
    let state = match (probe.passing, failures) {
        (None | Some(true), 0) => return None,
        (Some(true), _) => "still passing, but failed",
        (Some(false), _) => "failing",
        (None, _) => "not passing yet",
    };
    let message = match (&probe.message, probe.kind) {
        (Some(message), _) => clean(message),
        (None, ProbeKind::Notify) => "no READY=1".to_owned(),
        (None, ProbeKind::Startup | ProbeKind::Liveness | ProbeKind::Readiness) => String::new(),
    };
    let separator = if message.is_empty() { "" } else { ": " };
    Some(format!("{kind} {state} ({failures}){separator}{message}"))
}

/// How a run ended.
pub fn last_exit(exit: &LastExit) -> String {
    match (exit.oom, &exit.error, exit.signal, exit.code) {
        (true, ..) => "OOMKilled".to_owned(),
        (false, Some(_), ..) => "not started".to_owned(),
        (false, None, Some(number), _) => signal(number),
        (false, None, None, Some(code)) => format!("exit {code}"),
        (false, None, None, None) => "unknown".to_owned(),
    }
}

fn signal(number: i32) -> String {
    let known = usize::try_from(number).ok().and_then(|number| SIGNALS.get(number.checked_sub(1)?));
    known.map_or_else(|| format!("signal {number}"), |name| format!("SIG{name}"))
}

/// The time from one moment to a later one, as kubectl shows it.
pub fn age(later: Timestamp, earlier: Timestamp) -> String {
    let seconds = later.0.saturating_sub(earlier.0) / 1_000_000_000;
    match seconds {
        0..=119 => format!("{seconds}s"),
        120..=7199 => format!("{}m", seconds / 60),
        7200..=172_799 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Text from outside as it may be printed: what moves the cursor, breaks a line, turns the direction of
/// writing or cannot be seen is written as its escape.
pub fn clean(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            // Seen as what they are, though Rust's literals escape them.
            '\'' | '"' | '\\' => clean.push(character),
            other => clean.extend(other.escape_debug()),
        }
    }
    clean
}

/// The text, or its beginning and an ellipsis in `width` characters.
pub fn cut(text: &str, width: usize) -> String {
    match text.char_indices().nth(width) {
        None => text.to_owned(),
        Some(_) => text.chars().take(width.saturating_sub(1)).chain(['…']).collect(),
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;
    use crate::control::Phase;

    const SECOND: u64 = 1_000_000_000;
    const NOW: Timestamp = Timestamp(10_000 * SECOND);

    fn ago(seconds: u64) -> Timestamp {
        Timestamp(NOW.0 - seconds * SECOND)
    }

    fn plugin(name: &str, phase: PluginPhase, reason: &str) -> PluginStatus {
        PluginStatus {
            name: name.into(),
            phase,
            reason: (!reason.is_empty()).then(|| reason.into()),
            ready: phase == PluginPhase::Running && reason.is_empty(),
            restarts: 0,
            pid: None,
            last_exit: None,
            next_restart: None,
            since: ago(7 * 3600 / 4),
            message: None,
            oom_kills: 0,
            probes: Vec::new(),
        }
    }

    fn exit(code: Option<i32>, signal: Option<i32>, seconds_ago: u64) -> LastExit {
        LastExit { code, signal, oom: false, error: None, time: ago(seconds_ago) }
    }

    fn failing(kind: ProbeKind, passing: Option<bool>, failures: u32, message: &str) -> ProbeStatus {
        ProbeStatus { kind, passing, failures, message: Some(message.into()) }
    }

    fn check(plugins: Vec<PluginStatus>, width: Option<usize>, expected: &Expect) {
        let status = Status {
            boot_id: "b".into(),
            digest: None,
            deployment: None,
            phase: Phase::Running,
            ready: false,
            conditions: vec![],
            seq: 0,
            log_seq: 0,
            measurements: [].into(),
            plugins,
            telemetry: None,
        };
        expected.assert_eq(&table(&status, NOW, width));
    }

    fn deployment() -> Vec<PluginStatus> {
        let running = PluginPhase::Running;
        let next_restart = Some(Timestamp(NOW.0 + 12 * SECOND));
        vec![
            plugin("telemetry", running, ""),
            PluginStatus {
                last_exit: Some(exit(Some(0), None, 3000)),
                ..plugin("migrate", PluginPhase::Completed, "Completed")
            },
            PluginStatus {
                probes: vec![
                    ProbeStatus { message: None, ..failing(ProbeKind::Startup, Some(true), 0, "") },
                    failing(ProbeKind::Liveness, Some(true), 1, "no answer within 1s"),
                    failing(ProbeKind::Readiness, Some(false), 3, "HTTP 503"),
                ],
                ..plugin("api", running, "ReadinessProbeFailed")
            },
            PluginStatus {
                restarts: 12,
                last_exit: Some(exit(Some(3), None, 20)),
                next_restart,
                since: ago(20),
                ..plugin("worker", PluginPhase::BackingOff, "CrashLoopBackOff")
            },
            PluginStatus {
                restarts: 2,
                last_exit: Some(LastExit { oom: true, ..exit(None, Some(9), 1) }),
                next_restart,
                since: ago(1),
                oom_kills: 3,
                ..plugin("cache", PluginPhase::BackingOff, "OOMKilled")
            },
            PluginStatus {
                restarts: 1,
                last_exit: Some(exit(None, Some(15), 61)),
                since: ago(60),
                message: Some("startup probe failed 30 times in a row".into()),
                ..plugin("model", PluginPhase::Failed, "StartupProbeFailed")
            },
            PluginStatus {
                probes: vec![failing(ProbeKind::Startup, None, 7, "connection refused")],
                since: ago(8),
                ..plugin("slow", running, "StartupProbePending")
            },
            PluginStatus {
                message: Some("waits for api".into()),
                ..plugin("ui", PluginPhase::Waiting, "StartOrder")
            },
            PluginStatus {
                last_exit: Some(LastExit {
                    error: Some("exec /bin/app: ENOENT".into()),
                    ..exit(None, None, 5)
                }),
                ..plugin("typo", PluginPhase::Failed, "StartError")
            },
            PluginStatus {
                message: Some("app:2 is not in this image, which has app:1".into()),
                ..plugin("baked", PluginPhase::Failed, "ImageNotBakedIn")
            },
        ]
    }

    #[test]
    fn a_person_sees_at_a_glance_what_is_wrong() {
        check(
            deployment(),
            None,
            &expect![[r#"
            NAME       PHASE       READY  RESTARTS  LAST EXIT            REASON                          AGE
            telemetry  Running     yes    0         -                    -                               105m
            migrate    Completed   -      0         exit 0, 50m ago      Completed                       105m
            api        Running     no     0         -                    ReadinessProbeFailed            105m
              └ liveness still passing, but failed (1): no answer within 1s
              └ readiness failing (3): HTTP 503
            worker     BackingOff  no     12        exit 3, 20s ago      CrashLoopBackOff, again in 12s  20s
            cache      BackingOff  no     2         OOMKilled, 1s ago    OOMKilled, again in 12s         1s
              └ out-of-memory kills so far: 3
            model      Failed      no     1         SIGTERM, 61s ago     StartupProbeFailed              60s
              └ startup probe failed 30 times in a row
            slow       Running     no     0         -                    StartupProbePending             8s
              └ startup not passing yet (7): connection refused
            ui         Waiting     no     0         -                    StartOrder                      105m
              └ waits for api
            typo       Failed      no     0         not started, 5s ago  StartError                      105m
              └ exec /bin/app: ENOENT
            baked      Failed      no     0         -                    ImageNotBakedIn                 105m
              └ app:2 is not in this image, which has app:1
        "#]],
        );
    }

    #[test]
    fn a_narrow_terminal_cuts_the_lines_and_keeps_the_columns() {
        check(
            deployment()[3..6].to_vec(),
            Some(80),
            &expect![[r#"
            NAME    PHASE       READY  RESTARTS  LAST EXIT          REASON                 …
            worker  BackingOff  no     12        exit 3, 20s ago    CrashLoopBackOff, again…
            cache   BackingOff  no     2         OOMKilled, 1s ago  OOMKilled, again in 12s…
              └ out-of-memory kills so far: 3
            model   Failed      no     1         SIGTERM, 61s ago   StartupProbeFailed     …
              └ startup probe failed 30 times in a row
        "#]],
        );
    }

    #[test]
    fn hostile_text_neither_moves_the_cursor_nor_breaks_a_line() {
        let hostile = "a\u{1b}[2J\r\nNAME \"b\\c\" \u{202e}\u{200b}é…\u{9b}1m";
        assert_eq!(clean(hostile), "a\\u{1b}[2J\\r\\nNAME \"b\\c\" \\u{202e}\\u{200b}é…\\u{9b}1m");
        let bad = PluginStatus {
            name: hostile.into(),
            reason: Some(hostile.repeat(100)),
            message: Some(hostile.into()),
            probes: vec![failing(ProbeKind::Readiness, Some(false), 1, hostile)],
            ..plugin("", PluginPhase::Running, "x")
        };
        check(
            vec![bad, plugin("good", PluginPhase::Running, "")],
            None,
            &expect![[r#"
            NAME                                              PHASE    READY  RESTARTS  LAST EXIT  REASON                                            AGE
            a\u{1b}[2J\r\nNAME "b\c" \u{202e}\u{200b}é…\u{9…  Running  no     0         -          a\u{1b}[2J\r\nNAME "b\c" \u{202e}\u{200b}é…\u{9…  105m
              └ a\u{1b}[2J\r\nNAME "b\c" \u{202e}\u{200b}é…\u{9b}1m
              └ readiness failing (1): a\u{1b}[2J\r\nNAME "b\c" \u{202e}\u{200b}é…\u{9b}1m
            good                                              Running  yes    0         -          -                                                 105m
        "#]],
        );
    }

    #[test]
    fn a_run_ends_in_words() {
        let words = |exit: LastExit| last_exit(&exit);
        assert_eq!(words(exit(Some(137), None, 0)), "exit 137");
        assert_eq!(words(exit(None, Some(11), 0)), "SIGSEGV");
        assert_eq!(words(exit(None, Some(31), 0)), "SIGSYS");
        assert_eq!(words(exit(None, Some(34), 0)), "signal 34");
        assert_eq!(words(exit(None, Some(0), 0)), "signal 0");
        assert_eq!(words(exit(None, None, 0)), "unknown");
    }

    #[test]
    fn a_child_that_was_killed_for_its_memory_is_told_though_the_plugin_goes_on() {
        let status = PluginStatus { oom_kills: 1, ..plugin("a", PluginPhase::Running, "") };
        assert_eq!(details(&status), ["out-of-memory kills so far: 1"]);
    }
}
