//! The stop of a whole deployment: whose turn it is, and how much of the time each turn may use.
//!
//! Users, then services, then telemetry; within a role a plugin's turn comes when everything that depends on
//! it is over. Over means: it had its turn, and is down or given up. A stop has a deadline as a whole. It is
//! shared so:
//!
//! - Each turn that is still to come is owed [`TURN_RESERVE`], or an equal part of the whole where that is
//!   less. So a plugin's turn is over at `limit = deadline − share · (turns after its own)` at the latest,
//!   and as every turn before it was held to its own limit, it has at least one share for itself.
//! - KILL comes after the plugin's own grace, or [`KILL_MARGIN`] (half a share where that is less) before its
//!   limit.
//! - A plugin that survives KILL for [`KILL_PATIENCE`], or until its limit, is given up: in the D state
//!   nothing helps.
//!
//! A drain of no grace therefore kills everything and ends within one step.

use std::time::Duration;

use super::change::Change;
use super::event::{Effect, Moment, Outcome};
use super::order::Order;
use super::plugin::{Actual, Desired, Plugin};
use super::spec::Role;
use super::{Engine, Phase};

/// What each later turn of a stop is owed at most: enough for telemetry to flush through a working path.
pub const TURN_RESERVE: Duration = Duration::from_secs(5);
/// How long before the limit of its turn a plugin is killed, so that the kill is seen to work within it.
pub const KILL_MARGIN: Duration = Duration::from_secs(1);
/// How long a killed plugin is awaited. The kernel frees the memory of a large process in seconds.
pub const KILL_PATIENCE: Duration = Duration::from_secs(5);

/// What a process has from TERM to KILL at least if its preStop hook took all of its grace: kubelet's
/// `minimumGracePeriodInSeconds`.
pub const TERM_AFTER_PRE_STOP: Duration = Duration::from_secs(2);

/// How the time of one stop is shared.
#[derive(Debug, Clone)]
pub(super) struct StopPlan {
    pub(super) deadline: Moment,
    pub(super) outcome: Outcome,
    /// What each turn is owed.
    share: Duration,
    /// Per plugin: how many turns come after its own.
    turns_after: Vec<u32>,
}

impl StopPlan {
    /// Shares what lies between `now` and `deadline` among those plugins that still have something to stop.
    fn new(plugins: &[Plugin], order: &Order, now: Moment, deadline: Moment, outcome: Outcome) -> Self {
        let turns_after =
            order.turns_after(|index| plugins[index].spec.role, |index| plugins[index].is_live());
        let live = plugins.iter().zip(&turns_after).filter(|(plugin, _)| plugin.is_live());
        let turns = live.map(|(_, after)| after.saturating_add(1)).max().unwrap_or(1);
        let share = (deadline.since(now) / turns).min(TURN_RESERVE);
        Self { deadline, outcome, share, turns_after }
    }

    fn limit(&self, index: usize) -> Moment {
        self.deadline.before(self.share.saturating_mul(self.turns_after[index]))
    }

    fn kill_limit(&self, index: usize) -> Moment {
        self.limit(index).before(KILL_MARGIN.min(self.share / 2))
    }

    /// The turn of a plugin, which begins `now`.
    fn turn(&self, index: usize, now: Moment) -> Turn {
        Turn { begun: now, kill_limit: self.kill_limit(index), limit: self.limit(index) }
    }
}

/// The turn of one plugin to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Turn {
    begun: Moment,
    /// It is killed now at the latest.
    pub(super) kill_limit: Moment,
    /// It is over now.
    pub(super) limit: Moment,
}

impl Turn {
    /// When a process that was there from the beginning is killed.
    pub(super) fn kill_at(&self, grace: Duration) -> Moment {
        self.begun.after(grace).min(self.kill_limit)
    }

    /// When a process that was killed is given up.
    pub(super) fn give_up_at(&self, killed_at: Moment) -> Moment {
        killed_at.after(KILL_PATIENCE).min(self.limit)
    }
}

impl Engine {
    pub(super) fn drain(&mut self, grace: Duration, out: &mut Vec<Effect>) {
        let deadline = self.now.after(grace);
        match &self.phase {
            Phase::Idle | Phase::Running => {
                out.push(Effect::Report(Change::Draining { grace }));
                self.begin_stop(deadline, Outcome::Drained, out);
            }
            Phase::Stopping(plan) if deadline < plan.deadline => {
                let outcome = plan.outcome;
                out.push(Effect::Report(Change::Draining { grace }));
                self.shorten_stop(deadline, outcome);
            }
            Phase::Stopping(_) | Phase::Ended(_) => {}
        }
    }

    /// Begins to stop the rest when no user plugin can run again.
    pub(super) fn end_spent_workload(&mut self, out: &mut Vec<Effect>) {
        let Phase::Running = self.phase else { return };
        let mut users = self.plugins.iter().filter(|plugin| plugin.spec.role == Role::User);
        if !users.clone().all(Plugin::is_spent) {
            return;
        }
        let completed = users.all(|plugin| plugin.actual == Actual::Completed);
        let outcome = if completed { Outcome::Completed } else { Outcome::Failed };
        out.push(Effect::Report(Change::WorkloadEnded { outcome }));
        // Nobody is in a hurry: enough that everyone has its grace even if all stop one after the other.
        let live = self.plugins.iter().filter(|plugin| plugin.is_live());
        let needs = live
            .map(|plugin| plugin.stop_takes_max(self.now).saturating_add(KILL_PATIENCE.max(TURN_RESERVE)));
        let deadline = needs.fold(self.now, Moment::after);
        self.begin_stop(deadline, outcome, out);
    }

    /// Gives every plugin its turn whose turn has come, drives the turns that are on, and ends when all are
    /// over.
    pub(super) fn stop_in_order(&mut self, out: &mut Vec<Effect>) {
        let Phase::Stopping(plan) = &self.phase else { return };
        let mut over = vec![false; self.plugins.len()];
        let (mut role, mut all_over, mut later_roles_over) = (None, true, true);
        for &index in self.order.start.iter().rev() {
            let plugin = &mut self.plugins[index];
            if role != Some(plugin.spec.role) {
                role = Some(plugin.spec.role);
                later_roles_over = all_over;
            }
            if later_roles_over && self.order.dependants[index].iter().all(|&other| over[other]) {
                if plugin.desired == Desired::Finish {
                    plugin.begin_turn(plan.turn(index, self.now));
                }
                plugin.pursue_stop(self.now, out);
                over[index] = !plugin.is_live() || plugin.desired == Desired::Abandon;
            }
            all_over &= over[index];
        }
        if all_over {
            let outcome = plan.outcome;
            self.phase = Phase::Ended(outcome);
            out.push(Effect::Report(Change::End { outcome }));
            out.push(Effect::End(outcome));
        }
    }

    fn begin_stop(&mut self, deadline: Moment, outcome: Outcome, out: &mut Vec<Effect>) {
        for plugin in &mut self.plugins {
            plugin.finish(self.now, out);
        }
        let plan = StopPlan::new(&self.plugins, &self.order, self.now, deadline, outcome);
        self.phase = Phase::Stopping(plan);
    }

    /// Shares the time anew. Turns that are on keep what they were given where that ends earlier.
    fn shorten_stop(&mut self, deadline: Moment, outcome: Outcome) {
        let plan = StopPlan::new(&self.plugins, &self.order, self.now, deadline, outcome);
        for (index, plugin) in self.plugins.iter_mut().enumerate() {
            plugin.shorten_turn(plan.kill_limit(index), plan.limit(index));
        }
        self.phase = Phase::Stopping(plan);
    }
}
