//! The plugins' processes: which run is which pid, what its init says, how it ended.
//!
//! A start's answer and the end of its process reach us by different ways and in any order; the engine hears
//! of them in the order in which they make sense: the answer first.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI32, Ordering},
    },
    time::Duration,
};

use enclave_protocol::control::LogStream;
use nix::sys::signal::Signal;
use tokio::{sync::mpsc, task::JoinSet};

use super::{
    listener::{Listener, Said, Word, is_end},
    standby::Standby,
};
use crate::{
    engine::{Event, ExitReason, Moment, PluginId, RunId, SpawnError, Stop},
    logs::capture::Capture,
    sample::{plugin::Track, process, system::oom_kills},
    sys::{
        cgroup::Cgroup,
        init::{
            control::Control,
            wire::{self, Report},
        },
        reaper::{self, Ending, Reaped},
        spawn::{Failure, Recipe, Spawner, command_of},
    },
};

/// Words of all inits that may wait for the driver. One that finds no room waits, and its init with it.
const WORDS_MAX: usize = 64;
/// A run that leaves more than this part of its memory limit in use is over when its init is: its file system
/// may have half of it.
const FILLED_PART: u64 = 4;
/// Spawners that may hang at once before no other is started.
const HANGING_MAX: usize = 16;

/// All plugins, by [`PluginId`].
#[derive(Debug)]
pub(super) struct Children {
    names: Vec<String>,
    pub(super) plugins: Vec<Plugin>,
    spawner: Spawner,
    /// Makes what stands by, so that nobody who starts waits for it. One that hangs is waited for: restarts
    /// do without.
    preparer: Spawner,
    /// Those that hang. They are kept: a spawner's children die with its thread.
    hanging: Vec<Spawner>,
    words: mpsc::Receiver<Word>,
    speak: mpsc::Sender<Word>,
    pub(super) oom_kills_seen: Option<u64>,
}

/// One plugin.
#[derive(Debug)]
pub(super) struct Plugin {
    pub(super) recipe: Arc<Recipe>,
    pub(super) cgroup: Option<Arc<Cgroup>>,
    capture: Capture,
    pub(super) live: Option<Live>,
    /// The next run.
    pub(super) standby: Option<Standby>,
    /// It has been asked for since the present run began: it is not made twice, whatever becomes of it.
    stood_by: bool,
    /// Why the last run without a process had none. It stays while further runs are made: until one ends, the
    /// status still tells of it.
    failure: Option<Failure>,
    pub(super) cpu_gone: Duration,
    pub(super) oom_kills: u64,
    /// What samples keep of it.
    pub(super) track: Track,
    /// The out-of-memory killer struck before anybody was told that the memory limit was near.
    pub(super) untold: bool,
    /// The group's count as the last run ended.
    oom_kills_seen: Option<u64>,
    /// Inits of ours that have nothing more to do, until they are reaped.
    leaving: Vec<i32>,
    /// Listens to the present run's init.
    listener: JoinSet<()>,
}

/// The present run.
#[derive(Debug)]
pub(super) struct Live {
    run: RunId,
    pid: Arc<AtomicI32>,
    control: Arc<Control>,
    /// How the command ended, in its init's words.
    told: Arc<Mutex<Option<Report>>>,
    /// It stood by.
    prepared: bool,
    /// The start has been answered.
    pub(super) answered: bool,
    /// Its init has ended before that.
    ended: Option<Ending>,
    /// What it was told to end by. After KILL its end is no out-of-memory kill.
    stop: Option<Stop>,
}

impl Plugin {
    /// Has an init end that is of no use any more.
    fn see_off(&mut self, init: Option<i32>) {
        if let Some(pid) = init {
            send(pid, Signal::SIGKILL, true);
            self.leaving.push(pid);
        }
    }

    fn stand_down(&mut self) {
        if let Some(standby) = self.standby.take() {
            self.see_off(standby.pid());
        }
    }

    /// Processes in its group that are ours.
    pub(super) fn inits(&self) -> u64 {
        let own = self.live.is_some() && !self.recipe.is_direct();
        u64::from(own) + u64::from(self.standby.is_some())
    }
}

impl Live {
    pub(super) fn pid(&self) -> Option<i32> {
        Some(self.pid.load(Ordering::Acquire)).filter(|pid| *pid > 0)
    }
}

/// What is to be made of a word.
#[derive(Debug)]
pub(super) enum Heard {
    /// For the engine.
    Events(Vec<Event>),
    /// A command beside a plugin's own has ended.
    Ran {
        /// The number it was asked for with.
        number: u32,
        /// Whether it exited with code 0.
        success: bool,
    },
}

/// Whose init a process is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Owner {
    plugin: PluginId,
    /// None for one whose run is over, or has not begun.
    run: Option<RunId>,
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
    /// No plugins yet.
    pub(super) fn new() -> io::Result<Self> {
        let (speak, words) = mpsc::channel(WORDS_MAX);
        Ok(Self {
            names: Vec::new(),
            plugins: Vec::new(),
            spawner: Spawner::start()?,
            preparer: Spawner::start()?,
            hanging: Vec::new(),
            words,
            speak,
            oom_kills_seen: oom_kills(),
        })
    }

    /// Adds the next plugin in [`PluginId`] order.
    pub(super) fn add(
        &mut self,
        name: String,
        recipe: Arc<Recipe>,
        cgroup: Option<Arc<Cgroup>>,
        capture: Capture,
        now: Moment,
    ) {
        self.plugins.push(Plugin {
            // A new group has used nothing yet.
            track: Track::new(&name, now, Duration::ZERO),
            untold: false,
            oom_kills_seen: cgroup.as_ref().and_then(|cgroup| cgroup.oom_kills()),
            recipe,
            cgroup,
            capture,
            live: None,
            standby: None,
            stood_by: false,
            failure: None,
            cpu_gone: Duration::ZERO,
            leaving: Vec::new(),
            oom_kills: 0,
            listener: JoinSet::new(),
        });
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

    /// Whose init `pid` is.
    pub(super) fn owner(&self, pid: i32) -> Option<Owner> {
        self.plugins.iter().enumerate().find_map(|(index, slot)| {
            let plugin = PluginId(index);
            let run = slot.live.as_ref().filter(|live| live.pid() == Some(pid)).map(|live| live.run);
            let other = slot.leaving.contains(&pid) || slot.standby.as_ref().is_some_and(|one| one.is(pid));
            (run.is_some() || other).then_some(Owner { plugin, run })
        })
    }

    /// Starts a run. An event means that it failed at once; else its answer will come.
    pub(super) fn spawn(&mut self, plugin: PluginId, run: RunId) -> Option<Event> {
        match self.try_spawn(plugin, run) {
            Ok(()) => None,
            Err(failure) => Some(self.failed(plugin, run, failure)),
        }
    }

    fn try_spawn(&mut self, plugin: PluginId, run: RunId) -> Result<(), Failure> {
        let Some(slot) = self.plugins.get_mut(plugin.0) else { return Ok(()) };
        let renewed = slot.cgroup.as_ref().map_or(Ok(()), |cgroup| cgroup.renew());
        renewed.map_err(|error| Failure::of("limit the control group", &error))?;
        let waited = slot.standby.take_if(Standby::begin_if_there);
        slot.stand_down();
        let prepared = waited.is_some();
        let standby = if let Some(standby) = waited {
            standby
        } else {
            let fresh = Standby::ask(&self.spawner, &slot.recipe)?;
            // The packet waits for the init. Without one that can never be read, and its start tells why.
            fresh.begin();
            fresh
        };
        // From here on it is on its way; everything below is done meanwhile.
        let Standby { place, control, stdout, stderr, born } = standby;
        slot.stood_by = false;
        slot.track.run_ended();
        let live = Live {
            run,
            pid: place,
            control: Arc::new(control),
            told: Arc::default(),
            prepared,
            answered: false,
            ended: None,
            stop: None,
        };
        let (control, told) = (Arc::clone(&live.control), Arc::clone(&live.told));
        slot.live = Some(live);
        // The last run's listener has nothing more to hear.
        slot.listener.abort_all();
        let program = (!slot.recipe.is_direct()).then(|| slot.recipe.program().to_owned());
        let speak = self.speak.clone();
        let listener = Listener { plugin, run, program, born, control, told, speak };
        slot.listener.spawn(listener.listen());
        let captured = slot.capture.add(stdout, LogStream::Stdout);
        let captured = captured.and_then(|()| slot.capture.add(stderr, LogStream::Stderr));
        captured.map_err(|error| Failure::of("capture the output", &error))
    }

    /// Has a plugin's next run stand by, once for each of its runs.
    pub(super) fn stand_by(&mut self, plugin: PluginId) {
        let Some(slot) = self.plugins.get_mut(plugin.0) else { return };
        if slot.stood_by || !slot.recipe.can_stand_by() {
            return;
        }
        slot.stood_by = true;
        match Standby::ask(&self.preparer, &slot.recipe) {
            Ok(standby) => slot.standby = Some(standby),
            Err(failure) => {
                let name = self.names.get(plugin.0);
                tracing::warn!(plugin = name, %failure, "cannot prepare its next run");
            }
        }
    }

    /// Gives up what stands by for a plugin.
    pub(super) fn stand_down(&mut self, plugin: PluginId) {
        if let Some(slot) = self.plugins.get_mut(plugin.0) {
            slot.stand_down();
        }
    }

    /// The next that is heard of any run.
    pub(super) async fn heard(&mut self) -> Word {
        match self.words.recv().await {
            Some(word) => word,
            // Not while `speak` is here.
            None => std::future::pending().await,
        }
    }

    /// What is to be made of it.
    pub(super) fn settle(&mut self, word: Word) -> Heard {
        let Word { plugin, run, said } = word;
        match said {
            Said::Answer(answer) => Heard::Events(self.settle_start(plugin, run, answer)),
            Said::Ran { number, success } => Heard::Ran { number, success },
            Said::Over => Heard::Events(self.over(plugin, run).into_iter().collect()),
        }
    }

    fn settle_start(&mut self, plugin: PluginId, run: RunId, answer: Result<(), Failure>) -> Vec<Event> {
        if self.live(plugin, run).is_none() {
            return Vec::new();
        }
        if let Err(failure) = answer {
            if failure.errno == libc::ESRCH && self.give_up_prepared(plugin, run) {
                return self.spawn(plugin, run).into_iter().collect();
            }
            let hung = failure.errno == libc::ETIMEDOUT;
            // What stood by was not the spawner's to make.
            if hung && self.live(plugin, run).is_some_and(|live| !live.prepared) {
                self.replace_spawner();
            }
            return vec![self.failed(plugin, run, failure)];
        }
        let Some(live) = self.live(plugin, run) else { return Vec::new() };
        live.answered = true;
        let (init, ended) = (live.pid().unwrap_or(0), live.ended);
        let direct = self.plugins.get(plugin.0).is_some_and(|slot| slot.recipe.is_direct());
        let pid = if direct { init } else { command_of(init).unwrap_or(init) }.unsigned_abs();
        let mut events = vec![Event::Spawned { plugin, run, pid }];
        if let Some(ending) = ended {
            let exit = self.exit_reason(plugin, ending);
            events.push(Event::Exited { plugin, run, exit });
            self.forget(plugin);
        }
        events
    }

    /// What stood by can be lost unseen, to the out-of-memory killer for one. Then the run is to be made
    /// anew.
    fn give_up_prepared(&mut self, plugin: PluginId, run: RunId) -> bool {
        let Some(slot) = self.plugins.get_mut(plugin.0) else { return false };
        let Some(live) = slot.live.take_if(|live| live.run == run && live.prepared && live.stop.is_none())
        else {
            return false;
        };
        slot.see_off(live.pid());
        true
    }

    /// A spawner that hangs is left to it.
    fn replace_spawner(&mut self) {
        if self.hanging.len() >= HANGING_MAX {
            return;
        }
        match Spawner::start() {
            Ok(fresh) => self.hanging.push(std::mem::replace(&mut self.spawner, fresh)),
            Err(error) => tracing::error!(%error, "cannot start another spawner"),
        }
    }

    fn failed(&mut self, plugin: PluginId, run: RunId, failure: Failure) -> Event {
        let pid = self.live(plugin, run).and_then(|live| live.pid());
        let error = SpawnError { stage: "start", errno: failure.errno };
        if let Some(slot) = self.plugins.get_mut(plugin.0) {
            // Most have ended by themselves; one that hangs must not go on.
            slot.see_off(pid);
            slot.live = None;
            slot.failure = Some(failure);
        }
        Event::SpawnFailed { plugin, run, error }
    }

    /// What a reaped process was, and what the engine is to hear of it. `owner` is whose it was while it
    /// still had its pid.
    pub(super) fn ended(&mut self, owner: Option<Owner>, reaped: &Reaped) -> Ended {
        let Some(Owner { plugin, run }) = owner else { return Ended::Orphan };
        let Some(slot) = self.plugins.get_mut(plugin.0) else { return Ended::Orphan };
        slot.cpu_gone += reaped.cpu;
        let Some(live) = slot.live.as_mut().filter(|live| Some(live.run) == run) else {
            slot.leaving.retain(|pid| *pid != reaped.pid);
            slot.standby.take_if(|standby| standby.is(reaped.pid));
            return Ended::Plugin(None);
        };
        let run = live.run;
        // Free to be somebody else's from now on.
        live.pid.store(0, Ordering::Release);
        if !live.answered {
            live.ended = Some(reaped.ending);
            return Ended::Plugin(None);
        }
        let exit = self.exit_reason(plugin, reaped.ending);
        self.forget(plugin);
        Ended::Plugin(Some(Event::Exited { plugin, run, exit }))
    }

    /// The end of the present run, as its init tells it: all that was left of it is dead, and the init about
    /// to follow, which the kernel takes a good part of a restart for. Nobody waits for that.
    fn over(&mut self, plugin: PluginId, run: RunId) -> Option<Event> {
        let pid = self.live(plugin, run).filter(|live| live.answered)?.pid()?;
        let slot = self.plugins.get_mut(plugin.0)?;
        if slot.cgroup.as_ref().is_some_and(|cgroup| cgroup.is_filled(FILLED_PART)) {
            // What it wrote to its file system takes up memory until its init has ended, and the successor
            // could be killed for want of it.
            return None;
        }
        // Were it to live on, there would be two of this plugin.
        slot.see_off(Some(pid));
        let exit = self.exit_reason(plugin, Ending::Signal(libc::SIGKILL));
        self.forget(plugin);
        Some(Event::Exited { plugin, run, exit })
    }

    /// Whether all inits have been reaped but those of present runs.
    pub(super) fn all_gone(&self) -> bool {
        self.plugins.iter().all(|slot| slot.leaving.is_empty())
    }

    fn forget(&mut self, plugin: PluginId) {
        if let Some(slot) = self.plugins.get_mut(plugin.0) {
            slot.live = None;
            slot.listener.abort_all();
        }
    }

    /// How the present run ended: what its init said of the command, else how the init itself ended. A
    /// failure during which the out-of-memory killer struck in the group is its doing.
    fn exit_reason(&mut self, plugin: PluginId, ending: Ending) -> ExitReason {
        let by_itself = match ending {
            Ending::Code(code) => ExitReason::Code(code),
            Ending::Signal(signal) => ExitReason::Signal(signal),
        };
        let global_before = self.oom_kills_seen;
        let Some(slot) = self.plugins.get_mut(plugin.0) else { return by_itself };
        let Some(live) = slot.live.as_ref() else { return by_itself };
        let last_word = || std::iter::from_fn(|| live.control.try_recv()).find(|report| is_end(*report));
        let told = live.told.lock().unwrap_or_else(PoisonError::into_inner).take().or_else(last_word);
        let exit = match told {
            Some(Report::Exited { code }) => ExitReason::Code(code),
            Some(Report::Killed { signal }) => ExitReason::Signal(signal),
            Some(Report::Started | Report::NotStarted { .. } | Report::Ran { .. }) | None => by_itself,
        };
        let kills = slot.cgroup.as_ref().and_then(|cgroup| cgroup.oom_kills());
        let before = std::mem::replace(&mut slot.oom_kills_seen, kills);
        if live.stop == Some(Stop::Kill) || exit.is_success() {
            return exit;
        }
        let struck = match kills {
            Some(_) => kills > before,
            None if exit == ExitReason::Signal(libc::SIGKILL) => {
                let now = oom_kills();
                self.oom_kills_seen = now;
                now > global_before
            }
            None => false,
        };
        if !struck {
            return exit;
        }
        slot.oom_kills += 1;
        let limited = slot.cgroup.as_ref().is_some_and(|cgroup| cgroup.limits().memory_bytes.is_some());
        slot.untold = limited && !slot.track.is_near_limit();
        ExitReason::OutOfMemory
    }

    /// Sends a run its signal: TERM to its command, by way of the init; KILL to everything of it.
    pub(super) fn signal(&mut self, plugin: PluginId, run: RunId, stop: Stop) {
        let Some(live) = self.live(plugin, run) else { return };
        live.stop = Some(stop);
        let Some(pid) = live.pid() else { return };
        match stop {
            Stop::Term => send(pid, Signal::SIGTERM, false),
            Stop::Kill => {
                // It is in the group.
                self.stand_down(plugin);
                self.kill_group(plugin, pid);
                send(pid, Signal::SIGKILL, true);
            }
        }
    }

    /// Runs a command beside a run's own, in the plugin's surroundings; what it writes can be read from the
    /// answer. Its end is told under `number`.
    pub(super) fn execute(
        &self,
        plugin: PluginId,
        run: RunId,
        number: u32,
        words: &[String],
    ) -> io::Result<OwnedFd> {
        let gone = || io::Error::new(io::ErrorKind::NotFound, "the plugin has ended");
        let slot = self.plugins.get(plugin.0).and_then(|slot| slot.live.as_ref());
        let live = slot.filter(|live| live.run == run && live.answered).ok_or_else(gone)?;
        let too_long = || io::Error::new(io::ErrorKind::InvalidInput, "the command is too long");
        let packet = wire::run(number, words.iter().map(String::as_str)).ok_or_else(too_long)?;
        let (reader, writer) = io::pipe()?;
        live.control.send(&packet, Some(writer.as_fd()))?;
        Ok(reader.into())
    }

    /// Kills such a command.
    pub(super) fn cancel(&self, plugin: PluginId, run: RunId, number: u32) {
        let live = self.plugins.get(plugin.0).and_then(|slot| slot.live.as_ref());
        if let Some(live) = live.filter(|live| live.run == run) {
            // An init that reads nothing will be killed with its plugin.
            live.control.send(&wire::cancel(number), None).ok();
        }
    }

    /// Which run of a plugin there is.
    pub(super) fn current(&self, plugin: PluginId) -> Option<RunId> {
        Some(self.plugins.get(plugin.0)?.live.as_ref()?.run)
    }

    /// Runs of a plugin in which the out-of-memory killer struck.
    pub(super) fn oom_kills(&self, plugin: usize) -> u64 {
        self.plugins.get(plugin).map_or(0, |slot| slot.oom_kills)
    }

    /// Kills whatever is in the plugin's group, whoever its parent is by now; without groups, all that its
    /// init's session and descendants are.
    fn kill_group(&self, plugin: PluginId, init: i32) {
        match self.plugins.get(plugin.0).and_then(|slot| slot.cgroup.as_ref()) {
            Some(cgroup) => {
                if let Err(error) = cgroup.kill() {
                    let name = self.names.get(plugin.0);
                    tracing::error!(plugin = name, %error, "cannot kill the control group");
                }
            }
            None => process::members_of(init).into_iter().for_each(|pid| send(pid, Signal::SIGKILL, false)),
        }
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
