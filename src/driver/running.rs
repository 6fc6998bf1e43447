//! The deployment that runs: the engine with everything that it decides about, and what performs it.

use std::collections::BTreeMap;

use enclave_protocol::control::{ManifestAccepted, Status};

use super::{
    children::{Children, Heard},
    listener::Word,
    network::Network,
    notify::Notices,
    probes::Probes,
    readings::NearLimit,
    report::{self, Detail},
};
use crate::{
    clock::Clock,
    control::board::Board,
    deployment::StateDir,
    engine::{Change, Effect, Engine, Event, ExitReason, Moment, Outcome, PluginId, Stop},
    net::probe,
    sys::spawn::Failure,
};

/// See the module. What is dropped last is what the rest lies in.
pub(super) struct Running {
    pub(super) engine: Engine,
    pub(super) children: Children,
    pub(super) probes: Probes,
    pub(super) notices: Notices,
    pub(super) network: Network,
    pub(super) accepted: ManifestAccepted,
    /// The deployment's name.
    pub(super) name: String,
    /// On every point of every sample.
    pub(super) labels: BTreeMap<String, String>,
    /// On the resource of every sample.
    pub(super) resource: BTreeMap<String, String>,
    /// When the manifest was accepted.
    pub(super) since: Moment,
    /// When the next run of some plugin is to be prepared.
    pub(super) standby_due: Option<Moment>,
    /// Removed when the deployment is dropped.
    pub(super) _state: StateDir,
}

/// Something that a plugin said, or that was asked of it.
#[derive(Debug)]
pub(super) enum Told {
    /// By its init.
    Word(Word),
    /// An answer by way of `net`.
    Probed(u64, probe::Outcome),
    /// The end of a command.
    Answered(u32, probe::Outcome),
    /// `READY=1`.
    Ready(PluginId),
}

impl Running {
    /// The next that any plugin says.
    pub(super) async fn hear(&mut self) -> Told {
        let Self { children, probes, notices, network, .. } = self;
        tokio::select! {
            word = children.heard() => Told::Word(word),
            (number, outcome) = network.probed() => Told::Probed(number, outcome),
            (number, outcome) = probes.answered() => Told::Answered(number, outcome),
            plugin = notices.ready() => Told::Ready(plugin),
        }
    }

    /// What the engine is to hear of it.
    pub(super) fn settle(&mut self, told: Told) -> Vec<Event> {
        match told {
            Told::Word(word) => match self.children.settle(word) {
                Heard::Events(events) => events,
                Heard::Ran { number, success } => {
                    self.probes.command_ended(number, success);
                    Vec::new()
                }
            },
            Told::Probed(number, outcome) => {
                let number = u32::try_from(number).ok();
                let event = number.and_then(|number| self.probes.settle(number, outcome, &self.children));
                event.into_iter().collect()
            }
            Told::Answered(number, outcome) => {
                self.probes.settle(number, outcome, &self.children).into_iter().collect()
            }
            Told::Ready(plugin) => {
                let run = self.children.current(plugin);
                run.map(|run| Event::Notified { plugin, run }).into_iter().collect()
            }
        }
    }

    /// Does what the engine says. What it is to hear of that at once is pushed to `events`; an outcome is the
    /// end.
    pub(super) fn perform(
        &mut self,
        effect: Effect,
        board: &Board,
        clock: Clock,
        events: &mut impl Extend<Event>,
    ) -> Option<Outcome> {
        let Self { children, probes, network, notices, .. } = self;
        match effect {
            Effect::Spawn { plugin, run } => {
                probes.forget(plugin);
                notices.begin(plugin);
                events.extend(children.spawn(plugin, run));
            }
            Effect::Signal { plugin, run, signal: signal @ (Stop::Term | Stop::Kill) } => {
                probes.drop_hook(plugin, children);
                children.signal(plugin, run, signal);
            }
            Effect::Probe { plugin, run, kind, id } => {
                probes.ask((plugin, run), (kind, id), network, children);
            }
            Effect::CancelProbe { plugin, kind, id, .. } => probes.cancel(plugin, kind, id, children),
            Effect::PreStop { plugin, run } => probes.pre_stop(plugin, run, network, children),
            Effect::Report(change) => self.report(&change, board, clock),
            Effect::End(outcome) => return Some(outcome),
        }
        None
    }

    /// Has those runs prepared that the engine sees a use for, and no others.
    pub(super) fn stand_by(&mut self, now: Moment) {
        self.standby_due = None;
        for plugin in (0..self.children.names().len()).map(PluginId) {
            match self.engine.standby_from(plugin) {
                Some(from) if from <= now => self.children.stand_by(plugin),
                Some(from) => self.standby_due = Some(self.standby_due.map_or(from, |due| due.min(from))),
                None => self.children.stand_down(plugin),
            }
        }
    }

    fn report(&mut self, change: &Change, board: &Board, clock: Clock) {
        if let Change::Exited { plugin, .. } = change {
            self.probes.drop_hook(*plugin, &self.children);
        }
        let plugin = change.plugin();
        if let Change::Exited { plugin, exit: ExitReason::OutOfMemory, .. } = change
            && let Some(limit) = self.children.untold_limit(*plugin)
        {
            // It went from below the mark to its end within one look.
            self.near_limit(*plugin, &report::near_limit(1000, limit), board, clock);
        }
        let name = plugin.and_then(|plugin| self.children.names().get(plugin.0)).map(String::as_str);
        let more = if let Change::SpawnFailed { plugin, .. } = change {
            self.children.failure(*plugin).map(Failure::to_string)
        } else if let Change::ProbeFailed { plugin, kind, .. } = change {
            self.probes.message(*plugin, *kind)
        } else {
            None
        };
        report::publish(change, name, more.as_deref(), board, clock);
    }

    /// Looks whether plugins have come near to their memory limits, and tells of them.
    pub(super) fn watch_memory(&mut self, board: &Board, clock: Clock) {
        for NearLimit { plugin, filled, limit } in self.children.near_limits() {
            self.near_limit(plugin, &report::near_limit(filled, limit), board, clock);
        }
    }

    fn near_limit(&self, plugin: PluginId, message: &str, board: &Board, clock: Clock) {
        let name = self.children.names().get(plugin.0).map(String::as_str);
        tracing::warn!(plugin = name, reason = report::NEAR_LIMIT, "{message}");
        board.events.push(clock.wall(), name, report::NEAR_LIMIT, message.to_owned());
    }

    /// The contract's status.
    pub(super) fn status(&self, board: &Board, clock: Clock) -> Status {
        let detail = |(plugin, name): (usize, &String)| Detail {
            name: name.clone(),
            failure: self.children.failure(PluginId(plugin)).map(Failure::to_string),
            oom_kills: self.children.oom_kills(plugin),
            messages: self.probes.messages(plugin),
        };
        let details = self.children.names().iter().enumerate().map(detail).collect();
        report::status(&self.engine.snapshot(), details, &self.accepted, &self.name, board, clock)
    }
}
