//! How the run of one plugin is ended, by its turn to stop or by a probe: what is to be done before, TERM,
//! KILL, giving up.

use std::time::Duration;

use super::change::Change;
use super::event::{Effect, Moment, RunId, Stop};
use super::plugin::{Actual, Desired, Plugin, Process};
use super::stop::{TERM_AFTER_PRE_STOP, Turn};

impl Plugin {
    /// Its turn to stop has come.
    pub(super) fn begin_turn(&mut self, turn: Turn) {
        self.desired = Desired::Stop(turn);
        self.keep_to_kill_limit();
    }

    /// A turn that is on ends earlier.
    pub(super) fn shorten_turn(&mut self, kill_limit: Moment, limit: Moment) {
        if let Desired::Stop(turn) = &mut self.desired {
            turn.kill_limit = turn.kill_limit.min(kill_limit);
            turn.limit = turn.limit.min(limit);
        }
        self.keep_to_kill_limit();
    }

    fn keep_to_kill_limit(&mut self) {
        let kill_limit = self.desired.kill_limit();
        if let Actual::PreStopping { kill_at, .. } | Actual::Terminating { kill_at, .. } = &mut self.actual {
            *kill_at = kill_limit.min(*kill_at);
        }
    }

    /// Ends the run: by what is to be done before, TERM and KILL, all within its grace.
    pub(super) fn leave(&mut self, now: Moment, process: Process, grace: Duration, out: &mut Vec<Effect>) {
        let (plugin, run) = (self.id, process.run);
        self.probing.stop(plugin, run, out);
        self.told_ready = false;
        let kill_at = now.after(grace).min(self.desired.kill_limit());
        if now >= kill_at {
            self.kill(now, process, out);
        } else if self.spec.pre_stop {
            self.enter(now, Actual::PreStopping { process, kill_at });
            out.push(Effect::PreStop { plugin, run });
            out.push(Effect::Report(Change::PreStop { plugin, kill_in: kill_at.since(now) }));
        } else {
            self.terminate(now, process, kill_at, out);
        }
    }

    /// What was to be done before it is told to stop is done.
    pub(super) fn pre_stop_ended(&mut self, now: Moment, run: RunId, out: &mut Vec<Effect>) {
        if let Actual::PreStopping { process, kill_at } = self.actual
            && process.run == run
        {
            self.terminate_after_pre_stop(now, process, kill_at, out);
        }
    }

    /// However long what comes before takes, TERM is given a moment to work, where the turn has one left.
    fn terminate_after_pre_stop(
        &mut self,
        now: Moment,
        process: Process,
        kill_at: Moment,
        out: &mut Vec<Effect>,
    ) {
        let least = now.after(TERM_AFTER_PRE_STOP).min(self.desired.kill_limit());
        let kill_at = kill_at.max(least);
        if now >= kill_at {
            self.kill(now, process, out);
        } else {
            self.terminate(now, process, kill_at, out);
        }
    }

    fn terminate(&mut self, now: Moment, process: Process, kill_at: Moment, out: &mut Vec<Effect>) {
        let (plugin, run) = (self.id, process.run);
        self.enter(now, Actual::Terminating { process, kill_at });
        out.push(Effect::Signal { plugin, run, signal: Stop::Term });
        out.push(Effect::Report(Change::Stopping { plugin, kill_in: kill_at.since(now) }));
    }

    fn kill(&mut self, now: Moment, process: Process, out: &mut Vec<Effect>) {
        let (plugin, run) = (self.id, process.run);
        self.enter(now, Actual::Killing { process, killed_at: now });
        out.push(Effect::Signal { plugin, run, signal: Stop::Kill });
        out.push(Effect::Report(Change::Killed { plugin }));
    }

    /// The stop of its run begins or goes on: TERM, KILL and giving up, each at most once per run and as soon
    /// as it is due.
    pub(super) fn pursue_stop(&mut self, now: Moment, out: &mut Vec<Effect>) {
        if let Actual::Running(process) = self.actual {
            if matches!(self.desired, Desired::Stop(_) | Desired::Abandon) {
                self.leave(now, process, self.spec.grace, out);
            }
        } else if let Actual::PreStopping { process, kill_at } = self.actual
            && now >= kill_at
        {
            self.terminate_after_pre_stop(now, process, kill_at, out);
        } else if let Actual::Terminating { process, kill_at } = self.actual
            && now >= kill_at
        {
            self.kill(now, process, out);
        }
        if self.give_up_at().is_some_and(|due| due <= now) {
            self.desired = Desired::Abandon;
            out.push(Effect::Report(Change::Unkillable { plugin: self.id }));
        }
    }

    /// What it may take until it is killed, if nobody is in a hurry.
    pub(super) fn stop_takes_max(&self, now: Moment) -> Duration {
        let grace = match self.actual {
            Actual::PreStopping { kill_at, .. } | Actual::Terminating { kill_at, .. } => kill_at.since(now),
            Actual::Killing { .. } => Duration::ZERO,
            Actual::Waiting
            | Actual::Blocked
            | Actual::Spawning { .. }
            | Actual::Running(_)
            | Actual::BackingOff { .. }
            | Actual::Completed
            | Actual::Failed { .. }
            | Actual::Stopped => self.spec.grace,
        };
        let after_pre_stop = if self.spec.pre_stop { TERM_AFTER_PRE_STOP } else { Duration::ZERO };
        grace.saturating_add(after_pre_stop)
    }

    /// When a plugin whose turn is on is not waited for any more.
    fn give_up_at(&self) -> Option<Moment> {
        let Desired::Stop(turn) = self.desired else { return None };
        match self.actual {
            // A process that never comes is given the time of one that does not stop.
            Actual::Spawning { .. } => Some(turn.give_up_at(turn.kill_at(self.spec.grace))),
            Actual::Killing { killed_at, .. } => Some(turn.give_up_at(killed_at)),
            Actual::Waiting
            | Actual::Blocked
            | Actual::Running(_)
            | Actual::PreStopping { .. }
            | Actual::Terminating { .. }
            | Actual::BackingOff { .. }
            | Actual::Completed
            | Actual::Failed { .. }
            | Actual::Stopped => None,
        }
    }

    /// When the stop of its run goes on without an event from it.
    pub(super) fn stop_deadline(&self) -> Option<Moment> {
        match self.actual {
            Actual::PreStopping { kill_at, .. } | Actual::Terminating { kill_at, .. } => Some(kill_at),
            Actual::Spawning { .. } | Actual::Killing { .. } => self.give_up_at(),
            Actual::Waiting
            | Actual::Blocked
            | Actual::Running(_)
            | Actual::BackingOff { .. }
            | Actual::Completed
            | Actual::Failed { .. }
            | Actual::Stopped => None,
        }
    }
}
