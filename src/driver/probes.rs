//! Asks the plugins what the engine wants to know of them: over HTTP and TCP by way of `net`, by a command by
//! way of the plugin's init. A preStop hook is asked in the same ways, and its answer is not looked at.
//!
//! At most one question of a kind is open for a plugin: the engine sees to that. Every question ends by its
//! answer, by its own time or by being dropped; what the engine hears of one that it has dropped, it ignores.

use std::{collections::BTreeMap, io, os::fd::OwnedFd, time::Duration};

use enclave_protocol::{
    control,
    manifest::{self, Handler, HttpGet},
};
use tokio::{
    net::unix::pipe,
    sync::oneshot,
    task::{AbortHandle, JoinSet},
    time::sleep,
};

use super::{children::Children, network::Network};
use crate::{
    engine::{Event, PluginId, ProbeId, ProbeKind, ProbeResult, RunId},
    net::probe::{Outcome, Question},
};

/// What is kept of a command's output for its message, in bytes.
const OUTPUT_BYTES_MAX: usize = 256;
/// Read at once of output that nobody keeps.
const CHUNK: usize = 4096;

/// The questions of all plugins, by [`PluginId`].
#[derive(Debug, Default)]
pub(super) struct Probes {
    plugins: Vec<Plugin>,
    open: BTreeMap<u32, Open>,
    last: u32,
    commands: JoinSet<(u32, Outcome)>,
}

#[derive(Debug)]
struct Plugin {
    name: String,
    handlers: BTreeMap<Kind, (Handler, Duration)>,
    /// What the last failures of the present run were.
    messages: BTreeMap<ProbeKind, String>,
}

/// What a question is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Probe(ProbeKind),
    PreStop,
}

/// A question without an answer yet.
#[derive(Debug)]
struct Open {
    plugin: PluginId,
    run: RunId,
    asked: Asked,
    /// The task of a command, and the way to tell it of the command's end.
    command: Option<(AbortHandle, Option<oneshot::Sender<bool>>)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Probe(ProbeKind, ProbeId),
    PreStop,
}

impl Probes {
    /// Adds the next plugin in [`PluginId`] order.
    pub(super) fn add(&mut self, plugin: &manifest::Plugin) {
        let probes = [
            (ProbeKind::Startup, &plugin.probes.startup),
            (ProbeKind::Liveness, &plugin.probes.liveness),
            (ProbeKind::Readiness, &plugin.probes.readiness),
        ];
        let timed = |probe: &manifest::Probe| {
            (probe.handler.clone(), Duration::from_secs(probe.timeout_seconds.into()))
        };
        let probes =
            probes.into_iter().filter_map(|(kind, probe)| Some((Kind::Probe(kind), timed(probe.as_ref()?))));
        let hook = plugin.pre_stop.clone().map(|hook| (Kind::PreStop, (hook, plugin.grace)));
        let handlers = probes.chain(hook).collect();
        self.plugins.push(Plugin { name: plugin.name.clone(), handlers, messages: BTreeMap::new() });
    }

    /// Asks one probe's question.
    pub(super) fn ask(
        &mut self,
        (plugin, run): (PluginId, RunId),
        (kind, id): (ProbeKind, ProbeId),
        network: &Network,
        children: &Children,
    ) {
        self.put((plugin, run), Asked::Probe(kind, id), network, children);
    }

    /// Runs the preStop hook.
    pub(super) fn pre_stop(&mut self, plugin: PluginId, run: RunId, network: &Network, children: &Children) {
        self.put((plugin, run), Asked::PreStop, network, children);
    }

    fn put(
        &mut self,
        (plugin, run): (PluginId, RunId),
        asked: Asked,
        network: &Network,
        children: &Children,
    ) {
        self.last = self.last.wrapping_add(1);
        let number = self.last;
        let kind = match asked {
            Asked::Probe(kind, _) => Kind::Probe(kind),
            Asked::PreStop => Kind::PreStop,
        };
        let Some(slot) = self.plugins.get(plugin.0) else { return };
        let mut open = Open { plugin, run, asked, command: None };
        match slot.handlers.get(&kind) {
            Some((Handler::Exec(words), limit)) => {
                let (ended, end) = oneshot::channel();
                let output = children.execute(plugin, run, number, words);
                let task = self.commands.spawn(attend(number, output, end, *limit));
                open.command = Some((task, Some(ended)));
            }
            Some((Handler::TcpSocket(port), limit)) => {
                network.probe(number.into(), &slot.name, *port, Question::Tcp, *limit);
            }
            Some((Handler::HttpGet(get), limit)) => {
                network.probe(number.into(), &slot.name, get.port, question(get), *limit);
            }
            // The engine asks what the manifest has.
            None => return,
        }
        self.open.insert(number, open);
    }

    /// Drops the question of a probe.
    pub(super) fn cancel(&mut self, plugin: PluginId, kind: ProbeKind, id: ProbeId, children: &Children) {
        self.drop_where(children, |open| open.plugin == plugin && open.asked == Asked::Probe(kind, id));
    }

    /// Drops a hook: the plugin is told to stop, or has ended.
    pub(super) fn drop_hook(&mut self, plugin: PluginId, children: &Children) {
        self.drop_where(children, |open| open.plugin == plugin && open.asked == Asked::PreStop);
    }

    fn drop_where(&mut self, children: &Children, dropped: impl Fn(&Open) -> bool) {
        let gone = self.open.extract_if(.., |_, open| dropped(open)).collect::<Vec<_>>();
        for (number, open) in gone {
            if let Some((task, _)) = open.command {
                task.abort();
                children.cancel(open.plugin, open.run, number);
            }
        }
    }

    /// A new run starts without the last one's failures.
    pub(super) fn forget(&mut self, plugin: PluginId) {
        if let Some(slot) = self.plugins.get_mut(plugin.0) {
            slot.messages.clear();
        }
    }

    /// A plugin's init says that a command has ended.
    pub(super) fn command_ended(&mut self, number: u32, success: bool) {
        let open = self.open.get_mut(&number).and_then(|open| open.command.as_mut());
        if let Some(ended) = open.and_then(|(_, ended)| ended.take()) {
            // Its time may have run out in this moment.
            ended.send(success).ok();
        }
    }

    /// The next answer to a command's question; never while there is none open.
    pub(super) async fn answered(&mut self) -> (u32, Outcome) {
        loop {
            match self.commands.join_next().await {
                Some(Ok(answer)) => return answer,
                // Aborted: nobody waits for it.
                Some(Err(_)) => {}
                None => return std::future::pending().await,
            }
        }
    }

    /// What the engine is to hear of an answer.
    pub(super) fn settle(&mut self, number: u32, outcome: Outcome, children: &Children) -> Option<Event> {
        let Open { plugin, run, asked, command } = self.open.remove(&number)?;
        if command.is_some_and(|(_, ended)| ended.is_some()) {
            // Its time ran out: it still runs.
            children.cancel(plugin, run, number);
        }
        let Asked::Probe(kind, id) = asked else { return Some(Event::PreStopEnded { plugin, run }) };
        let messages = &mut self.plugins.get_mut(plugin.0)?.messages;
        let result = match outcome {
            Outcome::Success => {
                messages.remove(&kind);
                ProbeResult::Success
            }
            Outcome::Failure { message } => {
                messages.insert(kind, message);
                ProbeResult::Failure
            }
            Outcome::Unknown { message } => {
                tracing::warn!(
                    plugin = self.plugins[plugin.0].name,
                    ?kind,
                    message,
                    "a probe could not be asked"
                );
                ProbeResult::Unknown
            }
        };
        Some(Event::Probed { plugin, run, kind, id, result })
    }

    /// What the last failure of one probe of a plugin's present run was.
    pub(super) fn message(&self, plugin: PluginId, kind: ProbeKind) -> Option<String> {
        self.plugins.get(plugin.0)?.messages.get(&kind).cloned()
    }

    /// What the last failures of a plugin's present run were.
    pub(super) fn messages(&self, plugin: usize) -> Vec<(control::ProbeKind, String)> {
        let messages = self.plugins.get(plugin).map(|slot| &slot.messages);
        messages.into_iter().flatten().map(|(kind, message)| ((*kind).into(), message.clone())).collect()
    }
}

/// Over TLS no more than a connection is asked for: a client for it would weigh a quarter of the supervisor.
/// The manifest's conditions say so.
fn question(get: &HttpGet) -> Question {
    if get.https {
        return Question::Tcp;
    }
    Question::Http { path: get.path.clone(), headers: get.headers.clone() }
}

/// Reads a command's output until it has ended or its time is up.
async fn attend(
    number: u32,
    output: io::Result<OwnedFd>,
    mut end: oneshot::Receiver<bool>,
    limit: Duration,
) -> (u32, Outcome) {
    let receiver = output.and_then(pipe::Receiver::from_owned_fd);
    let receiver = match receiver {
        Ok(receiver) => receiver,
        Err(error) => return (number, Outcome::unknown(&error.to_string())),
    };
    let mut kept = Vec::new();
    let mut open = true;
    let time = sleep(limit);
    tokio::pin!(time);
    let success = loop {
        tokio::select! {
            // The whole output first: it was written before the command ended.
            biased;
            ready = receiver.readable(), if open => open = ready.is_ok() && drain(&receiver, &mut kept),
            ended = &mut end => break ended.unwrap_or(false),
            () = &mut time => {
                let message = format!("no end within {} s", limit.as_secs());
                return (number, Outcome::failure(&message));
            }
        }
    };
    if success {
        return (number, Outcome::Success);
    }
    let said = String::from_utf8_lossy(&kept);
    let message = if said.trim().is_empty() { "the command failed" } else { said.trim() };
    (number, Outcome::failure(message))
}

/// Reads what is there, and keeps the beginning; false at the end.
fn drain(output: &pipe::Receiver, kept: &mut Vec<u8>) -> bool {
    let mut chunk = [0; CHUNK];
    match output.try_read(&mut chunk) {
        Ok(0) => false,
        Ok(count) => {
            let room = OUTPUT_BYTES_MAX - kept.len();
            kept.extend_from_slice(&chunk[..count.min(room)]);
            true
        }
        Err(error) => error.kind() == io::ErrorKind::WouldBlock,
    }
}
