//! Examples as text: a list of plugins and a script of what happens go in, what the engine does comes out.

#[expect(clippy::needless_raw_string_hashes, reason = "expect-test writes its literals so")]
mod endings;
#[expect(clippy::needless_raw_string_hashes, reason = "expect-test writes its literals so")]
mod lives;
mod model;
#[expect(clippy::needless_raw_string_hashes, reason = "expect-test writes its literals so")]
mod probes;
#[expect(clippy::needless_raw_string_hashes, reason = "expect-test writes its literals so")]
mod stops;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use super::*;

/// One plugin per line: `NAME ROLE POLICY [grace=S] [after=NAME,…] [max=N] [KIND[=FIELD:N,…]] [notify]
/// [prestop]`, a kind being that of a probe and a field `delay`, `period`, `timeout`, `fail`, `ok` or
/// `grace`, with Kubernetes' defaults. No jitter, a grace of 10 s.
fn specs(text: &str) -> Vec<Spec> {
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    let lines: Vec<_> = lines.into_iter().filter(|words| !words.is_empty()).collect();
    let names: Vec<_> = lines.iter().map(|words| words[0]).collect();
    let id = |name: &str| PluginId(names.iter().position(|other| *other == name).unwrap());
    let spec = |words: &Vec<&str>| {
        let mut spec = Spec {
            name: words[0].to_owned(),
            role: match words[1] {
                "telemetry" => Role::Telemetry,
                "service" => Role::Service,
                "user" => Role::User,
                other => panic!("no role: {other}"),
            },
            restart: match words[2] {
                "always" => RestartPolicy::Always,
                "on-failure" => RestartPolicy::OnFailure,
                "never" => RestartPolicy::Never,
                other => panic!("no policy: {other}"),
            },
            curve: RestartCurve { jitter_milli: 0, ..RestartCurve::default() },
            grace: Duration::from_secs(10),
            depends_on: Vec::new(),
            probes: Probes::default(),
            notify: false,
            pre_stop: false,
        };
        for word in &words[3..] {
            match word.split_once('=').unwrap_or((word, "")) {
                ("grace", seconds) => spec.grace = moment(seconds).0,
                ("after", others) => spec.depends_on = others.split(',').map(id).collect(),
                ("max", count) => spec.curve.max_restarts = Some(count.parse().unwrap()),
                ("startup", fields) => spec.probes.startup = Some(probe(fields)),
                ("liveness", fields) => spec.probes.liveness = Some(probe(fields)),
                ("readiness", fields) => spec.probes.readiness = Some(probe(fields)),
                ("notify", "") => spec.notify = true,
                ("prestop", "") => spec.pre_stop = true,
                (other, _) => panic!("no option: {other}"),
            }
        }
        spec
    };
    lines.iter().map(spec).collect()
}

fn probe(fields: &str) -> ProbeSpec {
    let mut probe = ProbeSpec {
        initial_delay: Duration::ZERO,
        period: Duration::from_secs(10),
        timeout: Duration::from_secs(1),
        failure_threshold: 3,
        success_threshold: 1,
        grace: None,
    };
    for field in fields.split(',').filter(|field| !field.is_empty()) {
        match field.split_once(':').unwrap() {
            ("delay", seconds) => probe.initial_delay = moment(seconds).0,
            ("period", seconds) => probe.period = moment(seconds).0,
            ("timeout", seconds) => probe.timeout = moment(seconds).0,
            ("fail", count) => probe.failure_threshold = count.parse().unwrap(),
            ("ok", count) => probe.success_threshold = count.parse().unwrap(),
            ("grace", seconds) => probe.grace = Some(moment(seconds).0),
            (other, _) => panic!("no field: {other}"),
        }
    }
    probe
}

fn moment(seconds: &str) -> Moment {
    Moment(Duration::from_secs_f64(seconds.parse().unwrap()))
}

/// The engine, and what the script's words stand for.
struct Play {
    engine: Engine,
    names: Vec<String>,
    /// The present run of each plugin.
    runs: Vec<RunId>,
    /// The latest question of each plugin and kind.
    asked: BTreeMap<(usize, ProbeKind), ProbeId>,
    told: String,
}

impl Play {
    fn new(plugins: &str) -> Self {
        let specs = specs(plugins);
        let names: Vec<_> = specs.iter().map(|spec| spec.name.clone()).collect();
        Self {
            engine: Engine::new(specs, 1),
            runs: vec![RunId(0); names.len()],
            asked: BTreeMap::new(),
            names,
            told: String::new(),
        }
    }

    /// Lets the timer fire as often as it is due.
    fn pass_time(&mut self, until: Moment) {
        while let Some(due) = self.engine.next_deadline().filter(|due| *due <= until) {
            self.tell(due, Event::DeadlineReached);
        }
    }

    fn tell(&mut self, now: Moment, event: Event) {
        for effect in self.engine.step(now, event) {
            let (plugin, text) = match effect {
                Effect::Spawn { plugin, run } => {
                    self.runs[plugin.0] = run;
                    (Some(plugin), "SPAWN".to_owned())
                }
                Effect::Signal { plugin, signal: Stop::Term, .. } => (Some(plugin), "TERM".to_owned()),
                Effect::Signal { plugin, signal: Stop::Kill, .. } => (Some(plugin), "KILL".to_owned()),
                Effect::Probe { plugin, kind, id, .. } => {
                    self.asked.insert((plugin.0, kind), id);
                    (Some(plugin), format!("PROBE {kind:?} {}", id.0))
                }
                Effect::CancelProbe { plugin, kind, id, .. } => {
                    (Some(plugin), format!("CANCEL {kind:?} {}", id.0))
                }
                Effect::PreStop { plugin, .. } => (Some(plugin), "PRESTOP".to_owned()),
                Effect::Report(change) => (change.plugin(), format!("{}: {change}", change.reason())),
                Effect::End(outcome) => (None, format!("END {outcome:?}")),
            };
            let name = plugin.map_or("-", |plugin| &self.names[plugin.0]);
            writeln!(self.told, "{:<8.3} {name:4} {text}", now.0.as_secs_f64()).unwrap();
        }
    }

    /// `TIME start|tick|status`, `TIME drain SECONDS`, `TIME NAME up|fail|ready|hook|ENDING|ANSWER`, an
    /// ending being `code=N`, `signal=N` or `oom`, an answer `KIND=ok|bad|unknown`, with `,ID` for an older
    /// question.
    fn line(&mut self, line: &str) {
        let words: Vec<_> = line.split_whitespace().collect();
        let [time, subject, ref rest @ ..] = words[..] else { panic!("not a line: {line}") };
        let now = moment(time);
        self.pass_time(now);
        let event = match (subject, rest) {
            ("start", []) => Event::Start,
            ("tick", []) => Event::DeadlineReached,
            ("drain", [seconds]) => Event::Drain { grace: moment(seconds).0 },
            ("status", []) => return self.status(now),
            (name, [what]) => {
                let index = self.names.iter().position(|other| other == name).unwrap();
                let (plugin, run) = (PluginId(index), self.runs[index]);
                match what.split_once('=').unwrap_or((what, "")) {
                    ("up", "") => Event::Spawned { plugin, run, pid: u32::try_from(run.0).unwrap() },
                    ("fail", "") => {
                        Event::SpawnFailed { plugin, run, error: SpawnError { stage: "exec", errno: 2 } }
                    }
                    ("code", code) => {
                        Event::Exited { plugin, run, exit: ExitReason::Code(code.parse().unwrap()) }
                    }
                    ("signal", signal) => {
                        Event::Exited { plugin, run, exit: ExitReason::Signal(signal.parse().unwrap()) }
                    }
                    ("oom", "") => Event::Exited { plugin, run, exit: ExitReason::OutOfMemory },
                    ("ready", "") => Event::Notified { plugin, run },
                    ("hook", "") => Event::PreStopEnded { plugin, run },
                    (kind, answer) => {
                        let kind = match kind {
                            "startup" => ProbeKind::Startup,
                            "liveness" => ProbeKind::Liveness,
                            "readiness" => ProbeKind::Readiness,
                            other => panic!("not an event: {other}"),
                        };
                        let (word, id) = answer.split_once(',').unwrap_or((answer, ""));
                        let latest = self.asked.get(&(index, kind)).copied();
                        let id = id.parse().map_or_else(|_| latest.unwrap(), ProbeId);
                        let result = match word {
                            "ok" => ProbeResult::Success,
                            "bad" => ProbeResult::Failure,
                            "unknown" => ProbeResult::Unknown,
                            other => panic!("not an answer: {other}"),
                        };
                        Event::Probed { plugin, run, kind, id, result }
                    }
                }
            }
            other => panic!("not an event: {other:?}"),
        };
        self.tell(now, event);
    }

    fn status(&mut self, now: Moment) {
        let snapshot = self.engine.snapshot();
        let at = now.0.as_secs_f64();
        writeln!(self.told, "{at:<8.3} = {:?}, ready {}", snapshot.phase, snapshot.ready).unwrap();
        for (name, plugin) in self.names.iter().zip(snapshot.plugins) {
            let reason = plugin.reason.map_or("-", Reason::as_str);
            let PluginSnapshot { phase, ready, restarts, .. } = plugin;
            let since = plugin.since.0.as_secs_f64();
            write!(self.told, "{at:<8.3} = {name:4} {phase:?} since {since}, {reason}").unwrap();
            write!(self.told, ", ready {ready}, restarts {restarts}").unwrap();
            for ProbeSnapshot { kind, passing, failures } in plugin.probes {
                let passing = passing.map_or("-", |passing| if passing { "passing" } else { "failing" });
                write!(self.told, ", {} {passing} {failures}", kind.word()).unwrap();
            }
            writeln!(self.told).unwrap();
        }
    }
}

/// Plays the script and compares what was done.
fn check(plugins: &str, script: &str, expected: &expect_test::Expect) {
    let mut play = Play::new(plugins);
    for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
        play.line(line);
    }
    expected.assert_eq(&play.told);
}
