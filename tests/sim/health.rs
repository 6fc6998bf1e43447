//! What the checker knows of a run's probes: every question and every answer, counted anew with each.

use std::collections::BTreeMap;
use std::time::Duration;

use enclave_supervisor::engine::{
    Moment, PROBE_SLACK, ProbeId, ProbeKind, ProbeResult, ProbeSnapshot, ProbeSpec, Spec,
};

use crate::invariants::ensure;

/// One probe of one run.
#[derive(Debug, Clone)]
struct History {
    spec: ProbeSpec,
    open: Option<(ProbeId, Moment)>,
    asked_last: Option<Moment>,
    answers: Vec<bool>,
    passing: Option<bool>,
    failures: u32,
}

impl History {
    /// From the contract's words: so many in a row count.
    fn count(&mut self, answer: bool) {
        self.answers.push(answer);
        self.passing = None;
        let (mut last, mut row) = (None, 0);
        for &answer in &self.answers {
            row = if last == Some(answer) { row + 1 } else { 1 };
            last = Some(answer);
            let threshold = if answer { self.spec.success_threshold } else { self.spec.failure_threshold };
            if row >= threshold {
                self.passing = Some(answer);
            }
        }
        self.failures = if answer { 0 } else { row };
    }

    fn overdue_at(&self) -> Option<Moment> {
        self.open.map(|(_, asked)| asked.after(self.spec.timeout + PROBE_SLACK))
    }
}

/// A run's probes.
#[derive(Debug, Clone)]
pub(crate) struct Health {
    probes: BTreeMap<ProbeKind, History>,
    notified: Option<bool>,
    /// The startup or liveness probe that was reported as failed.
    pub(crate) condemned: Option<ProbeKind>,
    /// Failures that are to be reported in this step.
    owed: Vec<(ProbeKind, u32)>,
    /// Questions that were cancelled in this step although an answer was not overdue.
    cancelled: Vec<ProbeKind>,
    pub(crate) told_ready: bool,
}

/// What a run has to do with its probes at the end of a step.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Watched {
    /// Since when it runs; none if it does not, or is told to stop.
    pub(crate) up: Option<Moment>,
    /// A stop began somewhere.
    pub(crate) stopping: bool,
}

impl Watched {
    /// Whether a probe of this kind may be asked at all.
    fn asks(self, kind: ProbeKind, health: &Health) -> bool {
        let started = health.passes(ProbeKind::Startup);
        self.up.is_some()
            && match kind {
                ProbeKind::Startup => !started && !self.stopping,
                ProbeKind::Liveness => started && !self.stopping,
                ProbeKind::Readiness => started,
            }
    }
}

impl Health {
    pub(crate) fn new(spec: &Spec) -> Self {
        let of = [
            (ProbeKind::Startup, spec.probes.startup),
            (ProbeKind::Liveness, spec.probes.liveness),
            (ProbeKind::Readiness, spec.probes.readiness),
        ];
        let history = |spec| History {
            spec,
            open: None,
            asked_last: None,
            answers: Vec::new(),
            passing: None,
            failures: 0,
        };
        let probes = of.into_iter().filter_map(|(kind, spec)| Some((kind, history(spec?))));
        Self {
            probes: probes.collect(),
            notified: spec.notify.then_some(false),
            condemned: None,
            owed: Vec::new(),
            cancelled: Vec::new(),
            told_ready: false,
        }
    }

    /// It passes, or there is none.
    fn passes(&self, kind: ProbeKind) -> bool {
        self.probes.get(&kind).is_none_or(|history| history.passing == Some(true))
    }

    /// Whether readiness takes more than to run.
    pub(crate) fn has_conditions(&self) -> bool {
        self.notified.is_some()
            || [ProbeKind::Startup, ProbeKind::Readiness].iter().any(|kind| self.probes.contains_key(kind))
    }

    pub(crate) fn conditions_are_met(&self) -> bool {
        self.passes(ProbeKind::Startup) && self.passes(ProbeKind::Readiness) && self.notified != Some(false)
    }

    /// The grace that the probe asks for which ended the run.
    pub(crate) fn grace(&self) -> Option<Duration> {
        self.condemned.and_then(|kind| self.probes[&kind].spec.grace)
    }

    /// Whether that means anything.
    pub(crate) fn hear_notified(&mut self) -> bool {
        let news = self.notified == Some(false);
        if news {
            self.notified = Some(true);
        }
        news
    }

    /// Whether the answer means anything.
    pub(crate) fn hear_answer(&mut self, kind: ProbeKind, id: ProbeId, result: ProbeResult) -> bool {
        let Some(history) = self.probes.get_mut(&kind) else { return false };
        if history.open.take_if(|(open, _)| *open == id).is_none() {
            return false;
        }
        match result {
            ProbeResult::Success => self.count(kind, true),
            ProbeResult::Failure => self.count(kind, false),
            ProbeResult::Unknown => {}
        }
        true
    }

    fn count(&mut self, kind: ProbeKind, answer: bool) {
        let history = self.probes.get_mut(&kind).expect("invariant: only what was asked is counted");
        let before = history.passing;
        history.count(answer);
        if before != Some(false) && history.passing == Some(false) {
            self.owed.push((kind, history.failures));
        }
    }

    pub(crate) fn asked(
        &mut self,
        now: Moment,
        kind: ProbeKind,
        id: ProbeId,
        watched: Watched,
    ) -> Result<(), String> {
        ensure!(watched.asks(kind, self), "NobodyIsAskedInVain", "{kind:?} {watched:?} {self:?}");
        let due = self.due(kind, watched);
        let history = self.probes.get_mut(&kind);
        ensure!(due.is_some_and(|due| due <= now), "QuestionsComeWhenDue", "{kind:?} due {due:?} at {now:?}");
        let Some(history) = history else { return Err(format!("NobodyIsAskedInVain: {kind:?}")) };
        ensure!(history.open.is_none(), "OneOpenQuestionPerProbe", "{kind:?} {history:?}");
        history.open = Some((id, now));
        history.asked_last = Some(now);
        Ok(())
    }

    /// A question was given up: too late, which counts, or because nobody wants to know any more.
    pub(crate) fn cancelled(
        &mut self,
        now: Moment,
        kind: ProbeKind,
        id: ProbeId,
        watched: Watched,
    ) -> Result<(), String> {
        let wanted = self.condemned.is_none() && watched.asks(kind, self);
        let history = self.probes.get_mut(&kind);
        let open = history.and_then(|history| {
            let overdue = history.overdue_at().is_some_and(|due| due <= now);
            history.open.take_if(|(open, _)| *open == id).map(|_| overdue)
        });
        match open {
            Some(true) if wanted => self.count(kind, false),
            Some(_) => self.cancelled.push(kind),
            None => return Err(format!("OnlyOpenQuestionsAreCancelled: {kind:?} {id:?} {self:?}")),
        }
        Ok(())
    }

    /// The questions nobody wants to know the answer of, as the run is over.
    pub(crate) fn open(&self) -> Vec<ProbeId> {
        self.probes.values().filter_map(|history| history.open).map(|(id, _)| id).collect()
    }

    pub(crate) fn failed(&mut self, kind: ProbeKind, failures: u32) -> Result<(), String> {
        let owed = self.owed.iter().position(|owed| *owed == (kind, failures));
        let Some(owed) = owed else {
            return Err(format!("ReportsAreTrue: {kind:?} failed {failures} times, not {:?}", self.owed));
        };
        self.owed.remove(owed);
        if kind != ProbeKind::Readiness {
            self.condemned = Some(kind);
        }
        Ok(())
    }

    /// When the next question of this kind is due, if any is.
    fn due(&self, kind: ProbeKind, watched: Watched) -> Option<Moment> {
        let history = self.probes.get(&kind)?;
        let up = watched.up.filter(|_| watched.asks(kind, self) && history.open.is_none())?;
        let first = up.after(history.spec.initial_delay);
        Some(history.asked_last.map_or(first, |asked| asked.after(history.spec.period)))
    }

    /// What must hold at the end of a step, and when something must happen next.
    pub(crate) fn settle(&mut self, now: Moment, watched: Watched) -> Result<Option<Moment>, String> {
        ensure!(self.owed.is_empty(), "FailuresAreTold", "{:?}", self.owed);
        let condemned = self.condemned.filter(|_| watched.up.is_some());
        ensure!(condemned.is_none(), "AFailedProbeEndsTheRun", "{condemned:?}");
        for kind in std::mem::take(&mut self.cancelled) {
            ensure!(!watched.asks(kind, self), "NoQuestionIsGivenUpEarly", "{kind:?} {self:?}");
        }
        let mut next: Option<Moment> = None;
        for (&kind, history) in &self.probes {
            let wanted = history.open.is_none() || watched.asks(kind, self);
            ensure!(wanted, "QuestionsAreCancelled", "{kind:?} {watched:?} {history:?}");
            for due in [history.overdue_at(), self.due(kind, watched)].into_iter().flatten() {
                ensure!(due > now, "NobodyWaitsInVain", "{kind:?} due {due:?} at {now:?}: {history:?}");
                next = Some(next.map_or(due, |next| next.min(due)));
            }
        }
        Ok(next)
    }

    /// What status should say.
    pub(crate) fn snapshot(&self) -> Vec<ProbeSnapshot> {
        use enclave_protocol::control;
        let shown = |(kind, history): (&ProbeKind, &History)| ProbeSnapshot {
            kind: control::ProbeKind::from(*kind),
            passing: history.passing,
            failures: history.failures,
        };
        let notify = self.notified.map(|notified| ProbeSnapshot {
            kind: control::ProbeKind::Notify,
            passing: notified.then_some(true),
            failures: 0,
        });
        self.probes.iter().map(shown).chain(notify).collect()
    }
}
