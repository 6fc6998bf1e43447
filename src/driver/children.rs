//! The plugins' processes: which run is which pid, what its shim said, how it ended.
//!
//! A shim's answer and its death reach us by different ways and in any order; the engine hears of them in the
//! order in which they make sense: the answer first.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use enclave_protocol::control::{LogStream, PluginStatus};
use nix::sys::signal::Signal;
use tokio::task::JoinSet;

use crate::{
    engine::{Event, ExitReason, PluginId, RunId, SpawnError, Stop},
    logs::{capture::Capture, ring::Rings},
    sample::{families, process, system::oom_kills},
    sys::{
        reaper::{self, Ending, Reaped},
        shim::{Failure, Launch},
        spawn,
    },
};

/// All plugins, by [`PluginId`].
#[derive(Debug)]
pub(super) struct Children {
    names: Vec<String>,
    plugins: Vec<Plugin>,
    pids: BTreeMap<i32, (PluginId, RunId)>,
    answers: JoinSet<SpawnAnswer>,
    rings: Arc<Rings>,
    keep_output: bool,
    oom_kills_seen: Option<u64>,
}

#[derive(Debug)]
struct Plugin {
    launch: Launch,
    capture: Capture,
    live: Option<Live>,
    /// Why the last run without a process had none. It stays while further runs are made: until one ends, the
    /// status still tells of it.
    failure: Option<Failure>,
    cpu_gone: Duration,
    oom_kills: u64,
}

/// The present run.
#[derive(Debug)]
struct Live {
    run: RunId,
    pid: i32,
    /// The shim has answered.
    answered: bool,
    /// It has ended before the shim's answer was read.
    ended: Option<ExitReason>,
    /// We sent KILL: its end is no out-of-memory kill.
    killed: bool,
}

/// What became of a shim.
#[derive(Debug)]
pub(super) struct SpawnAnswer {
    plugin: PluginId,
    run: RunId,
    result: Result<(), Failure>,
}

/// What a reaped process was.
#[derive(Debug)]
pub(super) enum Ended {
    /// A plugin's leader, with what the engine is to hear.
    Plugin(Option<Event>),
    /// An orphan that we adopted.
    Orphan,
}

impl Children {
    /// No plugins yet. Without `keep_output` their lines are read and forgotten.
    pub(super) fn new(keep_output: bool, rings: &Arc<Rings>) -> Self {
        Self {
            names: Vec::new(),
            plugins: Vec::new(),
            pids: BTreeMap::new(),
            answers: JoinSet::new(),
            rings: Arc::clone(rings),
            keep_output,
            oom_kills_seen: oom_kills(),
        }
    }

    /// Adds the next plugin in [`PluginId`] order.
    pub(super) fn add(&mut self, name: String, launch: Launch) {
        let capture = Capture::new(Arc::clone(&self.rings), &name, self.keep_output);
        let (live, failure) = (None, None);
        self.plugins.push(Plugin { launch, capture, live, failure, cpu_gone: Duration::ZERO, oom_kills: 0 });
        self.names.push(name);
    }

    /// Names by [`PluginId`].
    pub(super) fn names(&self) -> &[String] {
        &self.names
    }

    /// Why the plugin could last not be started.
    pub(super) fn failure(&self, plugin: PluginId) -> Option<&Failure> {
        self.plugins.get(plugin.0)?.failure.as_ref()
    }

    /// The same for every plugin, in words.
    pub(super) fn failures(&self) -> Vec<Option<String>> {
        self.plugins.iter().map(|slot| slot.failure.as_ref().map(Failure::to_string)).collect()
    }

    /// Whether `pid` leads a plugin's process group.
    pub(super) fn leads(&self, pid: i32) -> bool {
        self.pids.contains_key(&pid)
    }

    /// Starts a run. An event means that it failed at once; else the shim's answer will come.
    pub(super) fn spawn(&mut self, plugin: PluginId, run: RunId) -> Option<Event> {
        let slot = self.plugins.get_mut(plugin.0)?;
        let started = spawn::plugin(&slot.launch).and_then(|child| {
            slot.live = Some(Live { run, pid: child.pid, answered: false, ended: None, killed: false });
            self.pids.insert(child.pid, (plugin, run));
            let captured = slot.capture.add(child.stdout, LogStream::Stdout);
            let captured = captured.and_then(|()| slot.capture.add(child.stderr, LogStream::Stderr));
            // Without its launch the shim just ends; the reaper finds it.
            captured.map_err(|error| Failure::of("capture the output", &error))?;
            Ok(child.execution)
        });
        match started {
            Ok(execution) => {
                self.answers.spawn(async move { SpawnAnswer { plugin, run, result: execution.run().await } });
                None
            }
            Err(failure) => Some(self.failed(plugin, run, failure)),
        }
    }

    /// The next shim's answer; never, while none is awaited.
    pub(super) async fn answered(&mut self) -> SpawnAnswer {
        loop {
            match self.answers.join_next().await {
                Some(Ok(answer)) => return answer,
                // A panic in that task: the engine's own patience with the run ends it.
                Some(Err(error)) => tracing::error!(%error, "a spawn's task ended"),
                None => return std::future::pending().await,
            }
        }
    }

    /// What the engine is to hear of a shim's answer.
    pub(super) fn settle(&mut self, answer: SpawnAnswer) -> Vec<Event> {
        let SpawnAnswer { plugin, run, result } = answer;
        if let Err(failure) = result {
            return vec![self.failed(plugin, run, failure)];
        }
        let Some(live) = self.live(plugin, run) else { return Vec::new() };
        live.answered = true;
        let (pid, ended) = (live.pid.unsigned_abs(), live.ended);
        let mut events = vec![Event::Spawned { plugin, run, pid }];
        events.extend(ended.map(|exit| Event::Exited { plugin, run, exit }));
        events
    }

    fn failed(&mut self, plugin: PluginId, run: RunId, failure: Failure) -> Event {
        if let Some(live) = self.live(plugin, run) {
            // Most shims have ended by themselves; one that hangs must not go on.
            send(live.pid, Signal::SIGKILL, true);
        }
        let error = SpawnError { stage: "start", errno: failure.errno };
        if let Some(slot) = self.plugins.get_mut(plugin.0) {
            slot.live = None;
            slot.failure = Some(failure);
        }
        Event::SpawnFailed { plugin, run, error }
    }

    /// What a reaped process was, and what the engine is to hear of it.
    pub(super) fn ended(&mut self, reaped: &Reaped) -> Ended {
        let Some((plugin, run)) = self.pids.remove(&reaped.pid) else { return Ended::Orphan };
        let killed = self.live(plugin, run).is_some_and(|live| live.killed);
        let exit = self.exit_reason(reaped.ending, killed);
        if let Some(slot) = self.plugins.get_mut(plugin.0) {
            slot.cpu_gone += reaped.cpu;
            slot.oom_kills += u64::from(exit == ExitReason::OutOfMemory);
        }
        let Some(live) = self.live(plugin, run) else { return Ended::Plugin(None) };
        if !live.answered {
            live.ended = Some(exit);
            return Ended::Plugin(None);
        }
        if let Some(slot) = self.plugins.get_mut(plugin.0) {
            slot.live = None;
        }
        Ended::Plugin(Some(Event::Exited { plugin, run, exit }))
    }

    /// Tells the out-of-memory killer's KILL from anybody else's by the kernel's own count of its strikes.
    fn exit_reason(&mut self, ending: Ending, killed_by_us: bool) -> ExitReason {
        match ending {
            Ending::Code(code) => ExitReason::Code(code),
            Ending::Signal(libc::SIGKILL) if !killed_by_us => {
                let now = oom_kills();
                let before = std::mem::replace(&mut self.oom_kills_seen, now);
                if now > before { ExitReason::OutOfMemory } else { ExitReason::Signal(libc::SIGKILL) }
            }
            Ending::Signal(signal) => ExitReason::Signal(signal),
        }
    }

    /// Sends a run its signal: TERM to the leader, which may have its own idea of stopping its children, KILL
    /// to the whole group.
    pub(super) fn signal(&mut self, plugin: PluginId, run: RunId, stop: Stop) {
        let Some(live) = self.live(plugin, run) else { return };
        match stop {
            Stop::Term => send(live.pid, Signal::SIGTERM, false),
            Stop::Kill => {
                live.killed = true;
                send(live.pid, Signal::SIGKILL, true);
            }
        }
    }

    /// What a sample says about every plugin.
    pub(super) fn readings(&mut self, statuses: &[PluginStatus]) -> Vec<families::Plugin> {
        let leaders: Vec<i32> =
            self.plugins.iter().filter_map(|slot| slot.live.as_ref()).map(|l| l.pid).collect();
        let usage = process::usage_of(&leaders);
        self.oom_kills_seen = oom_kills();
        let reading = |(slot, status): (&Plugin, &PluginStatus)| families::Plugin {
            status: status.clone(),
            usage: slot.live.as_ref().and_then(|live| usage.get(&live.pid).copied()),
            cpu_gone: slot.cpu_gone,
            oom_kills: slot.oom_kills,
        };
        self.plugins.iter().zip(statuses).map(reading).collect()
    }

    /// Waits until every plugin's output has been read to its end.
    pub(super) async fn output_ended(&mut self) {
        for plugin in &mut self.plugins {
            plugin.capture.ended().await;
        }
    }

    fn live(&mut self, plugin: PluginId, run: RunId) -> Option<&mut Live> {
        self.plugins.get_mut(plugin.0)?.live.as_mut().filter(|live| live.run == run)
    }
}

fn send(pid: i32, signal: Signal, group: bool) {
    if let Err(error) = reaper::signal(pid, signal, group) {
        tracing::error!(pid, %signal, %error, "cannot send a signal");
    }
}
