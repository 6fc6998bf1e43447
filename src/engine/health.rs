//! What the answers of a plugin's probes, and its own word, mean for its run.

use super::change::Change;
use super::event::{Effect, Moment, ProbeId, ProbeResult, RunId};
use super::plugin::{Actual, Plugin, Process};
use super::probe::Failed;
use super::spec::ProbeKind;

impl Plugin {
    /// An answer to a question of a probe of the run.
    pub(super) fn probed(
        &mut self,
        now: Moment,
        (run, kind, id): (RunId, ProbeKind, ProbeId),
        result: ProbeResult,
        out: &mut Vec<Effect>,
    ) {
        if let Actual::Running(process) = self.actual
            && process.run == run
            && let Some(failed) = self.probing.answer(now, process.started, kind, id, result)
        {
            self.probe_failed(now, process, failed, out);
        }
    }

    /// Answers that are overdue count as failures.
    pub(super) fn give_up_overdue_probes(&mut self, now: Moment, out: &mut Vec<Effect>) {
        while let Actual::Running(process) = self.actual
            && let Some(kind) = self.probing.give_up_overdue(now, self.id, process.run, out)
        {
            let failed = self.probing.count(process.started, kind, ProbeResult::Failure);
            if let Some(failed) = failed {
                self.probe_failed(now, process, failed, out);
            }
        }
    }

    fn probe_failed(&mut self, now: Moment, process: Process, failed: Failed, out: &mut Vec<Effect>) {
        let Failed { kind, failures, grace } = failed;
        out.push(Effect::Report(Change::ProbeFailed { plugin: self.id, kind, failures }));
        match kind {
            ProbeKind::Startup | ProbeKind::Liveness => {
                let condemned = Process { condemned: Some(kind), ..process };
                self.leave(now, condemned, grace.unwrap_or(self.spec.grace), out);
            }
            ProbeKind::Readiness => {}
        }
    }

    /// Asks the questions that are due.
    pub(super) fn ask_probes(&mut self, now: Moment, id_last: &mut ProbeId, out: &mut Vec<Effect>) {
        if let Actual::Running(process) = self.actual {
            self.probing.ask(now, self.id, process.run, id_last, out);
        }
    }

    /// The run said that it is ready, perhaps before its spawn was answered.
    pub(super) fn notified(&mut self, run: RunId) {
        match self.actual {
            Actual::Spawning { run: present, .. } | Actual::Running(Process { run: present, .. })
                if run == present =>
            {
                self.probing.notify();
            }
            Actual::Spawning { .. }
            | Actual::Running(_)
            | Actual::Waiting
            | Actual::Blocked
            | Actual::PreStopping { .. }
            | Actual::Terminating { .. }
            | Actual::Killing { .. }
            | Actual::BackingOff { .. }
            | Actual::Completed
            | Actual::Failed { .. }
            | Actual::Stopped => {}
        }
    }

    /// Says once that it has become ready, where that takes more than to run.
    pub(super) fn tell_readiness(&mut self, out: &mut Vec<Effect>) {
        let ready = self.probing.condition_readiness() && self.is_ready();
        if ready && !self.told_ready {
            out.push(Effect::Report(Change::Ready { plugin: self.id }));
        }
        self.told_ready = ready;
    }

    /// When the present run's probes want attention.
    pub(super) fn probe_deadline(&self) -> Option<Moment> {
        matches!(self.actual, Actual::Running(_)).then(|| self.probing.deadline()).flatten()
    }
}
