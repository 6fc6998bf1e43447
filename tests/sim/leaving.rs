//! Invariants of how a run is asked how it is, and of how it is ended.

use std::time::Duration;

use enclave_supervisor::engine::{Moment, PluginId, ProbeId, ProbeKind, RunId, Stop, TURN_RESERVE};

use crate::cast::Run;
use crate::invariants::{Checker, ensure};

impl Checker {
    pub(crate) fn asked(
        &mut self,
        plugin: PluginId,
        run: RunId,
        kind: ProbeKind,
        id: ProbeId,
    ) -> Result<(), String> {
        ensure!(id > self.probe_last, "ProbeIdsAreFresh", "{id:?} after {:?}", self.probe_last);
        self.probe_last = id;
        let (now, stopping) = (self.now, self.stopping.is_some());
        let Some(member) = self.present(plugin, run) else {
            return Err(format!("NobodyIsAskedInVain: {plugin:?} {run:?}"));
        };
        let watched = member.watched(stopping);
        member.health.asked(now, kind, id, watched)
    }

    pub(crate) fn cancelled(
        &mut self,
        plugin: PluginId,
        run: RunId,
        kind: ProbeKind,
        id: ProbeId,
    ) -> Result<(), String> {
        let (now, stopping) = (self.now, self.stopping.is_some());
        let member = &mut self.cast.0[plugin.0];
        if let Some(index) = member.to_cancel.iter().position(|open| *open == id) {
            member.to_cancel.remove(index);
            return Ok(());
        }
        let Some(member) = self.present(plugin, run) else {
            return Err(format!("OnlyOpenQuestionsAreCancelled: {plugin:?} {run:?} {id:?}"));
        };
        let watched = member.watched(stopping);
        member.health.cancelled(now, kind, id, watched)
    }

    /// The end of a run begins, by a turn or by a failed probe.
    fn leaves_in_turn(&mut self, plugin: PluginId, run: RunId) -> Result<(), String> {
        let now = self.now;
        let member = &self.cast.0[plugin.0];
        let Some(up) = member.run.filter(|present| present.id == run).and_then(|present| present.up) else {
            return Err(format!("SignalsOnlyToLiveRuns: {plugin:?} {run:?}"));
        };
        let mut grace = member.spec.grace;
        if member.health.condemned.is_some() {
            grace = member.health.grace().unwrap_or(grace);
        } else {
            let Some(stopping) = self.stopping else { return Err(format!("SignalsOnlyInAStop: {plugin:?}")) };
            let before = self.waits_for(plugin.0);
            ensure!(before.is_none(), "StopOrderIsKept", "{plugin:?} before p{before:?}");
            let left = stopping.deadline.since(now) + self.timer_late_max;
            let fair = up.0 == now || left >= stopping.share;
            ensure!(fair, "EveryTurnHasItsShare", "{plugin:?} has {left:?} of {:?}", stopping.share);
        }
        if let Some(present) = &mut self.cast.0[plugin.0].run {
            present.left = Some((now, grace));
        }
        Ok(())
    }

    /// The present run, whose end has begun, now if not before.
    fn leaving(&mut self, plugin: PluginId, run: RunId) -> Result<(&mut Run, Duration), String> {
        let stays = self.present(plugin, run).is_some_and(|member| member.run_stays());
        if stays {
            self.leaves_in_turn(plugin, run)?;
        }
        let present = self.present(plugin, run).and_then(|member| member.run.as_mut());
        let left = present.and_then(|present| present.left.map(|(_, grace)| (present, grace)));
        left.ok_or_else(|| format!("SignalsOnlyToLiveRuns: {plugin:?} {run:?}"))
    }

    pub(crate) fn hooked_in_turn(&mut self, plugin: PluginId, run: RunId) -> Result<(), String> {
        let has_hook = self.cast.0[plugin.0].spec.pre_stop;
        let (present, _) = self.leaving(plugin, run)?;
        let first = !present.hooked && present.term.is_none() && !present.killed;
        ensure!(has_hook && first, "TheHookRunsOnceAndFirst", "{plugin:?} {present:?}");
        present.hooked = true;
        Ok(())
    }

    pub(crate) fn signalled_in_turn(
        &mut self,
        plugin: PluginId,
        run: RunId,
        signal: Stop,
    ) -> Result<(), String> {
        let now = self.now;
        let has_hook = self.cast.0[plugin.0].spec.pre_stop;
        let abandoned = self.cast.0[plugin.0].abandoned;
        let deadline = self.stopping.map(|stopping| stopping.deadline);
        let turns = u32::try_from(self.cast.0.len()).expect("invariant: a scenario has few plugins") + 1;
        let (present, grace) = self.leaving(plugin, run)?;
        let (left, _) = present.left.unwrap_or_default();
        match signal {
            Stop::Term => {
                ensure!(present.term.is_none() && !present.killed, "SignalsOnce", "{plugin:?} {signal:?}");
                let hook_over = present.hook_ended || now.since(left) >= grace;
                let follows = !has_hook || (present.hooked && hook_over);
                ensure!(follows, "TermFollowsTheHook", "{plugin:?} {present:?}");
                present.term = Some(now);
            }
            Stop::Kill => {
                ensure!(!present.killed, "SignalsOnce", "{plugin:?} {signal:?}");
                // Enough time for its own grace and for every turn that may still come.
                let enough = grace + TURN_RESERVE * turns;
                let leisure = deadline.is_none_or(|deadline| deadline.since(now) >= enough);
                let waited = present.end_goes_on_by().is_some_and(|due| due <= now);
                let told = present.term.is_some() || grace.is_zero();
                let due = (waited && told) || !leisure || abandoned;
                ensure!(due, "KillWaitsForTheGrace", "{plugin:?} {present:?} of {grace:?}");
                present.killed = true;
            }
        }
        Ok(())
    }

    /// Whatever is due about probes at the end of a step has happened, and the timer is armed for the rest.
    pub(crate) fn probes_are_settled(&mut self, next: Option<Moment>) -> Result<(), String> {
        let (now, stopping) = (self.now, self.stopping.is_some());
        for (index, member) in self.cast.0.iter_mut().enumerate() {
            let left_open = &member.to_cancel;
            ensure!(left_open.is_empty(), "QuestionsAreCancelled", "p{index} {left_open:?}");
            let watched = member.watched(stopping);
            let due = member.health.settle(now, watched).map_err(|seen| format!("{seen} (p{index})"))?;
            let by = due.is_none_or(|due| next.is_some_and(|next| next <= due));
            ensure!(by, "NothingDueIsForgotten", "a probe of p{index} at {due:?}, timer {next:?}");
            let ready = member.is_ready() && member.health.has_conditions();
            let told = &mut member.health.told_ready;
            ensure!(*told || !ready, "ReadyIsTold", "p{index}");
            *told = ready;
        }
        Ok(())
    }

    /// The end of a run goes on in time, whoever asked for it.
    pub(crate) fn ends_go_on(&self, next: Option<Moment>) -> Result<(), String> {
        for (index, member) in self.cast.0.iter().enumerate() {
            let Some(run) = member.run.filter(|_| member.in_the_way()) else { continue };
            let stuck = run.hook_ended && run.term.is_none() && !run.killed;
            ensure!(!stuck, "TermFollowsTheHook", "p{index} {run:?}");
            let Some(due) = run.end_goes_on_by() else { continue };
            ensure!(due > self.now, "EndsAreBounded", "p{index} due {due:?} at {:?}: {run:?}", self.now);
            let by = next.is_some_and(|next| next <= due);
            ensure!(by, "NothingDueIsForgotten", "the end of p{index} at {due:?}, timer {next:?}");
        }
        Ok(())
    }
}
