//! The probes of one run: when each is asked, and what the answers come to. Kubelet's worker without its
//! goroutine.
//!
//! ```text
//!          its turn            due                  answered, or given up
//!   Off ──────────────▶ Due ──────────▶ Asked ───────────────────────────────▶ Due at asked + period
//!    ▲                   │                │
//!    └───────────────────┴────────────────┘
//!      startup succeeded; the run is stopped (what is asked is cancelled)
//! ```
//! So at most one question of a probe is open at any time, however long its answer takes.

use std::time::Duration;

use enclave_protocol::control;

use super::event::{Effect, Moment, PluginId, ProbeId, ProbeResult, RunId};
use super::snapshot::{ProbeSnapshot, Reason};
use super::spec::{ProbeKind, ProbeSpec, Spec};

/// How long after a probe's timeout the engine gives up on an answer. The driver keeps to the timeout itself;
/// this is for one that is stuck, and long enough not to overtake one that is merely busy.
pub const PROBE_SLACK: Duration = Duration::from_secs(1);

/// All probes of one run.
#[derive(Debug, Clone)]
pub(super) struct Probing {
    startup: Option<Probe>,
    liveness: Option<Probe>,
    readiness: Option<Probe>,
    /// Whether the run has said `READY=1`; none where it need not.
    notified: Option<bool>,
}

#[derive(Debug, Clone, Copy)]
struct Probe {
    kind: ProbeKind,
    spec: ProbeSpec,
    turn: Turn,
    /// The latest answers, all alike.
    streak: Streak,
    /// What the answers have come to, the thresholds considered.
    passing: Option<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    Off,
    Due(Moment),
    Asked { id: ProbeId, at: Moment },
}

#[derive(Debug, Clone, Copy)]
struct Streak {
    passing: bool,
    answers: u32,
}

/// What an answer comes to for the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Failed {
    pub(super) kind: ProbeKind,
    pub(super) failures: u32,
    /// Of the probe, for the stop of the run.
    pub(super) grace: Option<Duration>,
}

impl Probing {
    /// Of a run that is still to start: nothing is asked.
    pub(super) fn new(spec: &Spec) -> Self {
        let probe = |kind| move |spec| Probe::new(kind, spec);
        Self {
            startup: spec.probes.startup.map(probe(ProbeKind::Startup)),
            liveness: spec.probes.liveness.map(probe(ProbeKind::Liveness)),
            readiness: spec.probes.readiness.map(probe(ProbeKind::Readiness)),
            notified: spec.notify.then_some(false),
        }
    }

    /// The run started.
    pub(super) fn start(&mut self, started: Moment) {
        match &mut self.startup {
            Some(startup) => startup.await_first(started),
            None => self.start_others(started),
        }
    }

    fn start_others(&mut self, started: Moment) {
        for probe in [&mut self.liveness, &mut self.readiness].into_iter().flatten() {
            probe.await_first(started);
        }
    }

    /// Asks what is due.
    pub(super) fn ask(
        &mut self,
        now: Moment,
        plugin: PluginId,
        run: RunId,
        id_last: &mut ProbeId,
        out: &mut Vec<Effect>,
    ) {
        for probe in self.each_mut() {
            if let Turn::Due(due) = probe.turn
                && due <= now
            {
                id_last.0 += 1;
                probe.turn = Turn::Asked { id: *id_last, at: now };
                out.push(Effect::Probe { plugin, run, kind: probe.kind, id: *id_last });
            }
        }
    }

    /// Takes in an answer, unless it is late or nobody asked.
    pub(super) fn answer(
        &mut self,
        now: Moment,
        started: Moment,
        kind: ProbeKind,
        id: ProbeId,
        result: ProbeResult,
    ) -> Option<Failed> {
        let probe = self.of_mut(kind).as_mut()?;
        let Turn::Asked { id: asked, at } = probe.turn else { return None };
        if asked != id {
            return None;
        }
        probe.turn = Turn::Due(at.after(probe.spec.period).max(now));
        self.count(started, kind, result)
    }

    /// Gives up on one question whose answer is overdue; that is a failure. To be repeated until there is
    /// none.
    pub(super) fn give_up_overdue(
        &mut self,
        now: Moment,
        plugin: PluginId,
        run: RunId,
        out: &mut Vec<Effect>,
    ) -> Option<ProbeKind> {
        let overdue = |probe: &&mut Probe| {
            matches!(probe.turn, Turn::Asked { .. }) && probe.deadline().is_some_and(|due| due <= now)
        };
        let probe = self.each_mut().find(overdue)?;
        let Turn::Asked { at, .. } = probe.turn else { return None };
        probe.cancel(plugin, run, out);
        probe.turn = Turn::Due(at.after(probe.spec.period).max(now));
        Some(probe.kind)
    }

    /// Counts an answer and says if the probe thereby failed: a startup or liveness probe whenever its
    /// threshold is reached, a readiness probe when it passed before or had not counted yet.
    pub(super) fn count(&mut self, started: Moment, kind: ProbeKind, result: ProbeResult) -> Option<Failed> {
        let probe = self.of_mut(kind).as_mut()?;
        let before = probe.passing;
        probe.count(result);
        let failed = (before != Some(false) && probe.passing == Some(false)).then(|| Failed {
            kind,
            failures: probe.failures(),
            grace: probe.spec.grace,
        });
        if kind == ProbeKind::Startup && probe.passing == Some(true) {
            probe.turn = Turn::Off;
            self.start_others(started);
        }
        failed
    }

    /// The run is being stopped, or has ended.
    pub(super) fn stop(&mut self, plugin: PluginId, run: RunId, out: &mut Vec<Effect>) {
        self.each_mut().for_each(|probe| probe.stop(plugin, run, out));
    }

    /// A stop began elsewhere: whether the run deserves another one is not asked any more.
    pub(super) fn stop_judging(&mut self, plugin: PluginId, run: RunId, out: &mut Vec<Effect>) {
        for probe in [&mut self.startup, &mut self.liveness].into_iter().flatten() {
            probe.stop(plugin, run, out);
        }
    }

    /// The run said that it is ready.
    pub(super) fn notify(&mut self) {
        if let Some(notified) = &mut self.notified {
            *notified = true;
        }
    }

    /// Why a run that is up is not ready; none if it is, as far as its probes are concerned.
    pub(super) fn unready(&self) -> Option<Reason> {
        let passing = |probe: &Option<Probe>| probe.is_none_or(|probe| probe.passing == Some(true));
        if !passing(&self.startup) {
            Some(Reason::StartupProbePending)
        } else if self.notified == Some(false) {
            Some(Reason::NotifyPending)
        } else if passing(&self.readiness) {
            None
        } else if self.readiness.is_some_and(|probe| probe.passing == Some(false)) {
            Some(Reason::ReadinessProbeFailed)
        } else {
            Some(Reason::ReadinessProbePending)
        }
    }

    /// Whether readiness depends on more than that the plugin runs.
    pub(super) fn condition_readiness(&self) -> bool {
        self.startup.is_some() || self.readiness.is_some() || self.notified.is_some()
    }

    /// When the next question is due, or an answer overdue.
    pub(super) fn deadline(&self) -> Option<Moment> {
        let all = [&self.startup, &self.liveness, &self.readiness];
        all.into_iter().flatten().filter_map(Probe::deadline).min()
    }

    pub(super) fn snapshot(&self) -> Vec<ProbeSnapshot> {
        let shown = |probe: &Probe| ProbeSnapshot {
            kind: probe.kind.into(),
            passing: probe.passing,
            failures: probe.failures(),
        };
        let asked = [&self.startup, &self.liveness, &self.readiness];
        let mut all: Vec<_> = asked.into_iter().flatten().map(shown).collect();
        all.extend(self.notified.map(|notified| ProbeSnapshot {
            kind: control::ProbeKind::Notify,
            passing: notified.then_some(true),
            failures: 0,
        }));
        all
    }

    fn of_mut(&mut self, kind: ProbeKind) -> &mut Option<Probe> {
        match kind {
            ProbeKind::Startup => &mut self.startup,
            ProbeKind::Liveness => &mut self.liveness,
            ProbeKind::Readiness => &mut self.readiness,
        }
    }

    fn each_mut(&mut self) -> impl Iterator<Item = &mut Probe> {
        [&mut self.startup, &mut self.liveness, &mut self.readiness].into_iter().flatten()
    }
}

impl Probe {
    fn new(kind: ProbeKind, spec: ProbeSpec) -> Self {
        Self { kind, spec, turn: Turn::Off, streak: Streak { passing: false, answers: 0 }, passing: None }
    }

    fn await_first(&mut self, started: Moment) {
        self.turn = Turn::Due(started.after(self.spec.initial_delay));
    }

    fn count(&mut self, result: ProbeResult) {
        let passing = match result {
            ProbeResult::Success => true,
            ProbeResult::Failure => false,
            ProbeResult::Unknown => return,
        };
        if self.streak.passing != passing {
            self.streak = Streak { passing, answers: 0 };
        }
        self.streak.answers = self.streak.answers.saturating_add(1);
        let threshold = if passing { self.spec.success_threshold } else { self.spec.failure_threshold };
        if self.streak.answers >= threshold {
            self.passing = Some(passing);
        }
    }

    /// In a row, up to now.
    fn failures(&self) -> u32 {
        if self.streak.passing { 0 } else { self.streak.answers }
    }

    fn deadline(&self) -> Option<Moment> {
        match self.turn {
            Turn::Off => None,
            Turn::Due(due) => Some(due),
            Turn::Asked { at, .. } => Some(at.after(self.spec.timeout).after(PROBE_SLACK)),
        }
    }

    fn stop(&mut self, plugin: PluginId, run: RunId, out: &mut Vec<Effect>) {
        self.cancel(plugin, run, out);
        self.turn = Turn::Off;
    }

    fn cancel(&self, plugin: PluginId, run: RunId, out: &mut Vec<Effect>) {
        if let Turn::Asked { id, .. } = self.turn {
            out.push(Effect::CancelProbe { plugin, run, kind: self.kind, id });
        }
    }
}
