//! The table, and what it says against the goals: a ratio is a must, an absolute figure a goal that is
//! reported as measured.

use std::{fmt::Write as _, time::Duration};

use super::{
    CHILDREN,
    contender::Contender,
    figures::{CrashLoop, Memory, median},
    peer::Peer,
    reaping::{Init, ORPHANS, Reaping},
};
use crate::bench::Table;

/// Supervisor and `net`, in KiB.
const SUPERVISOR_KIB_GOAL: u64 = 4 << 10;
/// The inits of the plugins as well, in KiB.
const ALL_KIB_GOAL: u64 = 8 << 10;
/// Of one core.
const IDLE_PERCENT_GOAL: f64 = 0.1;
/// Most of runit's time to start a killed child again.
const RESTART_RATIO_MAX: f64 = 0.5;
/// Least of runit's starts per second.
const STARTS_RATIO_MIN: f64 = 5.0;
/// Most of runit's time until all are up.
const UP_RATIO_MAX: f64 = 0.5;

/// All figures of one contender.
#[derive(Debug, Clone)]
pub(super) struct Column {
    pub(super) contender: Contender,
    /// Each time.
    pub(super) ups: Vec<Duration>,
    pub(super) memory: Memory,
    pub(super) crash_loop: CrashLoop,
    /// Of one core.
    pub(super) idle_percent: f64,
    /// Each time.
    pub(super) restarts: Vec<Duration>,
}

impl Column {
    fn is_ours(&self) -> bool {
        match self.contender {
            Contender::Ours(_) => true,
            Contender::Peer(_) => false,
        }
    }

    fn restart_ms(&self) -> f64 {
        ms(median(self.restarts.clone()))
    }

    fn up_ms(&self) -> f64 {
        ms(median(self.ups.clone()))
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// One line of the table.
struct Row<'a> {
    label: &'a str,
    cell: &'a dyn Fn(&Column) -> String,
    /// What is compared with runit's.
    value: Option<&'a dyn Fn(&Column) -> f64>,
    verdict: Verdict,
}

/// What is asked of our figure.
enum Verdict {
    /// Nothing.
    None,
    /// A ratio, which must be kept.
    Must { text: String, kept: bool },
    /// A figure that is wished for.
    Goal { text: String, met: bool },
    /// Both.
    Both { must: String, kept: bool, goal: String, met: bool },
}

impl Verdict {
    fn text(&self) -> String {
        let must = |text: &str, kept: &bool| format!("{text}: {}", if *kept { "kept" } else { "MISSED" });
        let goal = |text: &str, met: &bool| format!("goal {text}: {}", if *met { "met" } else { "not met" });
        match self {
            Self::None => "–".to_owned(),
            Self::Must { text, kept } => must(text, kept),
            Self::Goal { text, met } => goal(text, met),
            Self::Both { must: text, kept, goal: wish, met } => {
                format!("{}; {}", must(text, kept), goal(wish, met))
            }
        }
    }

    /// The must that is missed.
    fn missed(&self) -> Option<&str> {
        match self {
            Self::Must { text, kept: false } | Self::Both { must: text, kept: false, .. } => Some(text),
            Self::None | Self::Must { .. } | Self::Goal { .. } | Self::Both { .. } => None,
        }
    }
}

/// The table; the first column is ours.
pub(super) fn table(columns: &[Column]) -> Table {
    let mut text = format!("| {CHILDREN} plugins |");
    for column in columns {
        // Writing to a String cannot fail.
        write!(text, " {} |", column.contender).ok();
    }
    text.push_str(" ours : runit | |\n|---|");
    text.push_str(&"---:|".repeat(columns.len() + 1));
    text.push_str("---|\n");
    let mut complaints = Vec::new();
    let rows = memory_rows(columns).into_iter().chain(time_rows(columns)).chain(crash_rows(columns));
    for row in rows.chain([idle_row(columns)]) {
        let cells: Vec<String> = columns.iter().map(row.cell).collect();
        let ratio = row.value.and_then(|value| ratio(columns, value));
        let shown = ratio.map_or_else(|| "–".to_owned(), |ratio| format!("{ratio:.2}"));
        let verdict = row.verdict.text();
        writeln!(text, "| {} | {} | {shown} | {verdict} |", row.label, cells.join(" | ")).ok();
        let cell = cells.first().map_or("", String::as_str);
        complaints.extend(row.verdict.missed().map(|must| format!("{}: {cell}, must be {must}", row.label)));
    }
    text.push_str(NOTE);
    Table { text, complaints }
}

/// What a reader has to know about the table.
const NOTE: &str = "\n\
    The children are the same static program; a peer starts it through a script of one line, as it \
    documents. Memory is PSS, the children not counted. Restart: kill -9 of a child that has run over 2 s \
    until its successor's first instruction, in turns: 30 of s6 and supervisord, which let a second pass, \
    and 90 of the others. Up: the median of 3, ours from the sent manifest, a peer's from its exec. Fails \
    at once: over 10 s, ours with its shortest delay (10 ms), supervisord with `startsecs=0`; s6, runit and \
    daemontools let a second pass between two starts, which nothing can turn off. CPU is that of the \
    supervisor's own lasting processes. dinit is not in Debian 12 and is not measured.\n";

/// Adds what the inits did with the orphans.
pub(super) fn append_inits(table: &mut Table, reapings: &[Reaping]) {
    let text = &mut table.text;
    // Writing to a String cannot fail.
    write!(
        text,
        "\n| {ORPHANS} orphans that end at once | zombies left | all gone after, ms | RSS, KiB | PSS, KiB |\n\
         |---|---:|---:|---:|---:|\n"
    )
    .ok();
    for Reaping { init, zombies, time, rss_kib, pss_kib } in reapings {
        let time = time.map_or_else(|| "never".to_owned(), |time| format!("{:.0}", ms(time)));
        writeln!(text, "| {} | {zombies} | {time} | {rss_kib} | {pss_kib} |", init.name()).ok();
        if *init == Init::Ours && *zombies > 0 {
            table.complaints.push(format!("{zombies} of {ORPHANS} orphans are left as zombies"));
        }
    }
}

fn memory_rows(columns: &[Column]) -> [Row<'static>; 2] {
    let peers = |wanted: &dyn Fn(Contender) -> bool| {
        let peers = columns.iter().filter(|column| !column.is_ours() && wanted(column.contender));
        peers.map(|peer| peer.memory.all_kib).min().unwrap_or(u64::MAX)
    };
    let all_peers = peers(&|_| true);
    let per_service = [Contender::Peer(Peer::Runit), Contender::Peer(Peer::S6)];
    let those_two = peers(&|contender| per_service.contains(&contender));
    let most = |memory: &dyn Fn(&Column) -> u64| {
        columns.iter().filter(|column| column.is_ours()).map(memory).max().unwrap_or_default()
    };
    let supervisor = most(&|column| column.memory.supervisor_kib);
    let all = most(&|column| column.memory.all_kib);
    [
        Row {
            label: "supervisor and `net`, KiB",
            cell: &|column| column.memory.supervisor_kib.to_string(),
            value: Some(&|column| column.memory.supervisor_kib as f64),
            verdict: Verdict::Both {
                must: "below every peer".to_owned(),
                kept: supervisor < all_peers,
                goal: format!("≤ {} MiB", SUPERVISOR_KIB_GOAL >> 10),
                met: supervisor <= SUPERVISOR_KIB_GOAL,
            },
        },
        Row {
            label: "with every plugin's init, KiB",
            cell: &|column| column.memory.all_kib.to_string(),
            value: Some(&|column| column.memory.all_kib as f64),
            verdict: Verdict::Both {
                must: "below s6 and runit".to_owned(),
                kept: all < those_two,
                goal: format!("≤ {} MiB", ALL_KIB_GOAL >> 10),
                met: all <= ALL_KIB_GOAL,
            },
        },
    ]
}

fn time_rows(columns: &[Column]) -> [Row<'static>; 3] {
    let at_most = |value: &dyn Fn(&Column) -> f64, max: f64| Verdict::Must {
        text: format!("≤ {max} × runit's"),
        kept: ratio(columns, value).is_some_and(|ratio| ratio <= max),
    };
    [
        Row {
            label: "restart, p50 ms",
            cell: &|column| format!("{:.2}", column.restart_ms()),
            value: Some(&Column::restart_ms),
            verdict: at_most(&Column::restart_ms, RESTART_RATIO_MAX),
        },
        Row {
            label: "restart, max ms",
            cell: &|column| format!("{:.2}", ms(column.restarts.iter().max().copied().unwrap_or_default())),
            value: None,
            verdict: Verdict::None,
        },
        Row {
            label: "all up, ms",
            cell: &|column| format!("{:.0}", column.up_ms()),
            value: Some(&Column::up_ms),
            verdict: at_most(&Column::up_ms, UP_RATIO_MAX),
        },
    ]
}

fn crash_rows(columns: &[Column]) -> [Row<'static>; 3] {
    let starts = |column: &Column| column.crash_loop.starts_per_second;
    [
        Row {
            label: "fails at once, starts/s",
            cell: &|column| format!("{:.0}", column.crash_loop.starts_per_second),
            value: Some(&|column| column.crash_loop.starts_per_second),
            verdict: Verdict::Must {
                text: format!("≥ {STARTS_RATIO_MIN} × runit's"),
                kept: ratio(columns, &starts).is_some_and(|ratio| ratio >= STARTS_RATIO_MIN),
            },
        },
        Row {
            label: "meanwhile CPU, s",
            cell: &|column| format!("{:.2}", column.crash_loop.supervisor_cpu.as_secs_f64()),
            value: None,
            verdict: Verdict::None,
        },
        Row {
            label: "zombies at its end",
            cell: &|column| column.crash_loop.zombies.to_string(),
            value: None,
            verdict: Verdict::None,
        },
    ]
}

fn idle_row(columns: &[Column]) -> Row<'static> {
    let ours = columns.first().map(|column| column.idle_percent);
    Row {
        label: "idle, % of a core",
        cell: &|column| format!("{:.3}", column.idle_percent),
        value: None,
        verdict: Verdict::Goal {
            text: format!("≤ {IDLE_PERCENT_GOAL} %"),
            met: ours.is_some_and(|idle| idle <= IDLE_PERCENT_GOAL),
        },
    }
}

/// Our figure as a multiple of runit's.
fn ratio(columns: &[Column], value: &dyn Fn(&Column) -> f64) -> Option<f64> {
    let runit = columns.iter().find(|column| column.contender == Contender::Peer(Peer::Runit))?;
    Some(value(columns.first()?) / value(runit))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::supervision::ours::Isolation;

    const OURS: Contender = Contender::Ours(Isolation::Default);

    fn column(contender: Contender, kib: u64, millis: u64, starts: f64) -> Column {
        let time = Duration::from_millis(millis);
        Column {
            contender,
            ups: vec![time * 100],
            memory: Memory { supervisor_kib: kib, all_kib: 2 * kib },
            crash_loop: CrashLoop { starts_per_second: starts, supervisor_cpu: time, zombies: 0 },
            idle_percent: 0.1,
            restarts: vec![time, time * 2, time],
        }
    }

    #[test]
    fn musts_that_are_kept_are_no_complaints() {
        let runit = column(Contender::Peer(Peer::Runit), 5000, 4, 100.0);
        let table = table(&[column(OURS, 4000, 2, 500.0), runit]);
        assert!(table.complaints.is_empty(), "{table:?}");
        expect_test::expect![[r#"
            | 100 plugins | ours | runit | ours : runit | |
            |---|---:|---:|---:|---|
            | supervisor and `net`, KiB | 4000 | 5000 | 0.80 | below every peer: kept; goal ≤ 4 MiB: met |
            | with every plugin's init, KiB | 8000 | 10000 | 0.80 | below s6 and runit: kept; goal ≤ 8 MiB: met |
            | restart, p50 ms | 2.00 | 4.00 | 0.50 | ≤ 0.5 × runit's: kept |
            | restart, max ms | 4.00 | 8.00 | – | – |
            | all up, ms | 200 | 400 | 0.50 | ≤ 0.5 × runit's: kept |
            | fails at once, starts/s | 500 | 100 | 5.00 | ≥ 5 × runit's: kept |
            | meanwhile CPU, s | 0.00 | 0.00 | – | – |
            | zombies at its end | 0 | 0 | – | – |
            | idle, % of a core | 0.100 | 0.100 | – | goal ≤ 0.1 %: met |
        "#]].assert_eq(table.text.trim_end_matches(NOTE));
    }

    #[test]
    fn every_must_that_is_missed_is_a_complaint_and_a_goal_is_none() {
        let runit = column(Contender::Peer(Peer::Runit), 2000, 4, 100.0);
        let table = table(&[column(OURS, 9000, 3, 499.0), runit]);
        expect_test::expect![[r#"
            supervisor and `net`, KiB: 9000, must be below every peer
            with every plugin's init, KiB: 18000, must be below s6 and runit
            restart, p50 ms: 3.00, must be ≤ 0.5 × runit's
            all up, ms: 300, must be ≤ 0.5 × runit's
            fails at once, starts/s: 499, must be ≥ 5 × runit's"#]]
        .assert_eq(&table.complaints.join("\n"));
    }

    #[test]
    fn an_orphan_that_our_supervisor_leaves_is_a_complaint() {
        let reaping = |init, zombies, time| Reaping { init, zombies, time, rss_kib: 2, pss_kib: 1 };
        let mut table = Table { text: String::new(), complaints: Vec::new() };
        let ours = reaping(Init::Ours, 0, Some(Duration::from_millis(12)));
        append_inits(&mut table, &[ours, reaping(Init::Nobody, 300, None)]);
        assert!(table.complaints.is_empty());
        expect_test::expect![[r#"

            | 300 orphans that end at once | zombies left | all gone after, ms | RSS, KiB | PSS, KiB |
            |---|---:|---:|---:|---:|
            | ours (supervisor, `net` and the plugin's init) | 0 | 12 | 2 | 1 |
            | no init | 300 | never | 2 | 1 |
        "#]]
        .assert_eq(&table.text);
        append_inits(&mut table, &[reaping(Init::Ours, 1, None)]);
        assert_eq!(table.complaints.len(), 1);
    }

    #[test]
    fn the_variant_must_be_smaller_than_the_peers_too() {
        let bare = column(Contender::Ours(Isolation::None), 12_000, 1, 900.0);
        let runit = column(Contender::Peer(Peer::Runit), 5000, 4, 100.0);
        let table = table(&[column(OURS, 1, 2, 500.0), bare, runit]);
        assert_eq!(table.complaints.len(), 2, "{table:?}");
    }
}
