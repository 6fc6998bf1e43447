//! Chaos, bounded and seeded: plugins of every temper, and a test that kills, stops and provokes them at
//! random. What must hold, holds all along.
//!
//! The seed is printed at the start; `ENCLAVE_TEST_SEED` gives it back. Processes are not virtual, so a seed
//! gives the same actions again and not the same moments.

use std::{
    collections::BTreeSet,
    fs,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use enclave_protocol::control::PluginPhase;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

use crate::{
    dice::Dice,
    enclave::Enclave,
    groups::groups,
    patience::{Deadline, eventually},
    process::{children, kill_9},
    scene::{Scene, deployment, idle, script, with},
};

/// How long there is chaos.
const CHAOS: Duration = Duration::from_secs(12);
/// Longest pause between two actions: many are done before the last one's consequences are over.
const PAUSE_MILLIS: u64 = 120;
/// The supervisor answers within this, whatever goes on: far above what it takes, on a machine whose cores
/// are the chaos's.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Descriptors that the supervisor may have beyond those of the beginning: connections of the test, and runs
/// that are being made and unmade at once.
const DESCRIPTORS_MORE: usize = 64;
/// Memory that it may have beyond that of the beginning, in KiB: full log rings, and an allocator's slack.
const MEMORY_MORE: u64 = 24 << 10;
/// What a drain has; the end comes in this and a little more.
const GRACE_SECONDS: u32 = 6;
const END_MAX: Duration = Duration::from_secs(15);

/// Makes at most 255 processes, each of which stays for two seconds.
const BOMB: &str = "echo '[ $1 -lt 7 ] && { sh /tmp/bomb $(($1+1)) & sh /tmp/bomb $(($1+1)) & }; \
                    exec sleep 2' > /tmp/bomb; sh /tmp/bomb 0 >/dev/null 2>&1 &";
/// Opens more files than it may.
const DESCRIPTORS: &str = "tail -f $(yes /dev/null | head -n 600) >/dev/null 2>&1 &";
const FLOOD: &str = "yes all work and no play | head -c 4000000 &";
/// A line of that length has no end.
const LONG_LINE: &str = "head -c 4000000 /dev/zero | tr '\\000' x &";
/// Fills the whole file system, and empties it again.
const FILL: &str = "dd if=/dev/zero of=/fill bs=65536 2>/dev/null; rm -f /fill";

const PROVOCATIONS: [(&str, &str); 6] = [
    ("worker", BOMB),
    ("worker", DESCRIPTORS),
    ("worker", FLOOD),
    ("worker", LONG_LINE),
    ("hoarder", FILL),
    ("hoarder", DESCRIPTORS),
];
const SIGNALS: [Signal; 6] =
    [Signal::SIGKILL, Signal::SIGKILL, Signal::SIGTERM, Signal::SIGSEGV, Signal::SIGHUP, Signal::SIGSTOP];

/// The plugins, all with a variable by which their processes are known.
fn cast(mark: &str) -> Vec<Value> {
    let obedient =
        "ulimit -n 512; mkfifo /tmp/do; while :; do read -r what < /tmp/do && eval \"$what\"; done";
    let liveness = json!({"exec": {"command": ["/bin/true"]}, "periodSeconds": 1, "failureThreshold": 2});
    let limited = |limits: Value| json!({"resources": {"limits": limits}});
    let plugins = [
        idle("witness"),
        with(script("worker", obedient), limited(json!({"pids": 64, "cpu": "500m"}))),
        with(script("hoarder", obedient), limited(json!({"memory": "32Mi", "pids": 32}))),
        script("crasher", "usleep 200000; exit 3"),
        script("daemons", "(setsid sleep 1000 &); setsid sleep 1000 & while :; do usleep 100000; done"),
        script("stubborn", "trap '' TERM HUP; while :; do usleep 100000; done"),
        with(idle("probed"), json!({"livenessProbe": liveness})),
    ];
    let common = json!({
        "restart": {"initialDelay": "10ms", "maxDelay": "100ms"},
        "terminationGracePeriodSeconds": 1,
        "env": [{"name": "MARK", "value": mark}],
    });
    plugins.into_iter().map(|plugin| with(plugin, common.clone())).collect()
}

/// The seed that was asked for, or another one each time.
fn seed() -> u64 {
    let wanted = std::env::var("ENCLAVE_TEST_SEED").ok();
    let seed = wanted.map(|text| text.parse().expect("ENCLAVE_TEST_SEED is a number"));
    let seed = seed.unwrap_or_else(|| {
        u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros()).unwrap()
    });
    // Past the capture of the output, so that it is known whatever comes of it.
    writeln!(std::io::stderr(), "chaos: ENCLAVE_TEST_SEED={seed}").ok();
    seed
}

struct Chaos {
    enclave: Enclave,
    dice: Dice,
    witness: u32,
    /// Its init's process.
    spared: i32,
    descriptors: usize,
    memory: u64,
    stopped: Vec<i32>,
    /// What was done, for the explanation of a failure.
    done: Vec<String>,
}

impl Chaos {
    fn start(seed: u64, mark: &str) -> Self {
        let scene = Scene::new();
        let cast = cast(mark);
        for plugin in &cast {
            scene.busybox(plugin["name"].as_str().unwrap(), json!({}));
        }
        let mut enclave = scene.start();
        enclave.run(&deployment(json!(cast)));
        let witness = enclave.started("witness");
        let command = i32::try_from(witness).unwrap();
        let inits = children(enclave.pid).into_iter().map(|child| child.pid);
        let spared = inits.into_iter().find(|init| children(*init).iter().any(|child| child.pid == command));
        let mut chaos = Self {
            dice: Dice::new(seed, 0),
            witness,
            spared: spared.expect("the witness has an init"),
            descriptors: 0,
            memory: 0,
            stopped: Vec::new(),
            done: Vec::new(),
            enclave,
        };
        chaos.all_run();
        (chaos.descriptors, chaos.memory) = (chaos.descriptors(), chaos.memory());
        chaos
    }

    /// One action. What it finds gone is gone: that is part of it.
    fn act(&mut self) {
        match self.dice.below(10) {
            0..=4 => self.strike(),
            5..=7 => self.provoke(),
            8 => self.resume(),
            _ => {
                let net = self.enclave.net();
                let signal = if self.dice.percent(70) { Signal::SIGKILL } else { Signal::SIGSTOP };
                self.send(net, signal, "net");
            }
        }
    }

    /// A signal to an init, or to its command.
    fn strike(&mut self) {
        let net = self.enclave.net();
        let inits: Vec<i32> = children(self.enclave.pid)
            .into_iter()
            .map(|child| child.pid)
            .filter(|pid| ![net, self.spared].contains(pid))
            .collect();
        if inits.is_empty() {
            return;
        }
        let init = self.dice.pick(&inits);
        let signal = self.dice.pick(&SIGNALS);
        if self.dice.percent(30) {
            self.send(init, signal, "an init");
        } else if let Some(command) = children(init).first() {
            self.send(command.pid, signal, "a command");
        }
    }

    fn send(&mut self, pid: i32, signal: Signal, whom: &str) {
        self.done.push(format!("{signal} to {whom}, {pid}"));
        // It may have ended since.
        kill(Pid::from_raw(pid), signal).ok();
        if signal == Signal::SIGSTOP {
            self.stopped.push(pid);
        }
    }

    fn resume(&mut self) {
        for pid in std::mem::take(&mut self.stopped) {
            self.send(pid, Signal::SIGCONT, "what was stopped");
        }
    }

    /// Has a plugin do something by its own will.
    fn provoke(&mut self) {
        let (plugin, what) = self.dice.pick(&PROVOCATIONS);
        self.done.push(format!("{plugin}: {what}"));
        let Some(pid) = self.enclave.plugin(plugin).pid else { return };
        let gate = format!("/proc/{pid}/root/tmp/do");
        // A plugin that does not listen is not waited for.
        let gate = fs::OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(gate);
        gate.and_then(|mut gate| writeln!(gate, "{what}")).ok();
    }

    /// What must hold at any time.
    fn check(&self) {
        let asked = Instant::now();
        let status = self.enclave.client.status();
        assert!(asked.elapsed() < ANSWER_MAX, "an answer took {:?}", asked.elapsed());
        let witness = status.plugins.iter().find(|plugin| plugin.name == "witness").unwrap();
        assert_eq!((witness.pid, witness.restarts, witness.ready), (Some(self.witness), 0, true));
        let dead: BTreeSet<i32> = self.zombies().collect();
        eventually("the dead to be reaped", || self.zombies().all(|pid| !dead.contains(&pid)).then_some(()));
        let descriptors = self.descriptors();
        assert!(descriptors <= self.descriptors + DESCRIPTORS_MORE, "{descriptors} > {}", self.descriptors);
        let memory = self.memory();
        assert!(memory <= self.memory + MEMORY_MORE, "{memory} KiB > {} KiB", self.memory);
    }

    fn zombies(&self) -> impl Iterator<Item = i32> {
        children(self.enclave.pid).into_iter().filter(|child| child.state == 'Z').map(|child| child.pid)
    }

    fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.enclave.pid)).unwrap().count()
    }

    /// In KiB.
    fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.enclave.pid)).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Each plugin is seen running, not necessarily at the same time: one of them never runs for long.
    fn all_run(&self) {
        let mut missing: BTreeSet<String> =
            self.enclave.client.status().plugins.into_iter().map(|plugin| plugin.name).collect();
        let deadline = Deadline::new();
        while !missing.is_empty() {
            let plugins = self.enclave.client.status().plugins;
            for plugin in plugins.iter().filter(|plugin| plugin.phase == PluginPhase::Running) {
                missing.remove(&plugin.name);
            }
            assert!(!deadline.left().is_zero(), "{missing:?} do not run: {plugins:#?}");
        }
    }
}

impl Drop for Chaos {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!(
                "--- the last actions:\n{}",
                self.done[self.done.len().saturating_sub(40)..].join("\n")
            );
        }
    }
}

/// Living processes with this in their environment.
fn marked(mark: &str) -> Vec<i32> {
    let entries = crate::process::table();
    let has = |pid: &i32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable == format!("MARK={mark}").as_bytes())
    };
    entries.into_iter().filter(|entry| entry.state != 'Z').map(|entry| entry.pid).filter(has).collect()
}

#[test]
fn chaos_ends_in_order_and_nobody_else_notices() {
    let seed = seed();
    let mark = format!("chaos-{}", std::process::id());
    let mut chaos = Chaos::start(seed, &mark);
    let boot_id = chaos.enclave.client.status().boot_id;
    let is_grouped = !groups(&boot_id).is_empty();
    if !is_grouped {
        crate::not_run("there are no control groups to be removed at the end of the chaos");
    }
    let begun = Instant::now();
    while begun.elapsed() < CHAOS {
        chaos.act();
        chaos.check();
        let pause = chaos.dice.below(PAUSE_MILLIS);
        thread::sleep(Duration::from_millis(pause));
    }
    chaos.resume();
    chaos.all_run();
    chaos.check();
    let restarts: u32 = chaos.enclave.client.status().plugins.iter().map(|plugin| plugin.restarts).sum();
    assert!(restarts > 10, "{restarts} restarts are no chaos");
    assert!(!marked(&mark).is_empty());

    let begun = Instant::now();
    chaos.enclave.drain(GRACE_SECONDS);
    let end = chaos.enclave.finish();
    assert_eq!(end.exit.code(), Some(0), "{:#?}", end.records);
    assert!(begun.elapsed() < END_MAX, "{:?}", begun.elapsed());
    assert_eq!(marked(&mark), [] as [i32; 0]);
    assert_eq!(groups(&boot_id), [] as [PathBuf; 0]);
}

#[test]
fn everything_dies_with_a_supervisor_that_is_killed() {
    let mark = format!("orphaned-{}", std::process::id());
    let mut chaos = Chaos::start(1, &mark);
    let boot_id = chaos.enclave.client.status().boot_id;
    let net = chaos.enclave.net();
    kill_9(chaos.enclave.pid);
    chaos.enclave.end();
    eventually("the end of all plugins", || marked(&mark).is_empty().then_some(()));
    eventually("the end of net", || (!Path::new(&format!("/proc/{net}")).exists()).then_some(()));
    // Nobody else is left to do it.
    for group in groups(&boot_id) {
        for plugin in fs::read_dir(&group).unwrap().filter_map(Result::ok) {
            // Its files are the kernel's, and go with it.
            fs::remove_dir(plugin.path()).ok();
        }
        fs::remove_dir(group).unwrap();
    }
}
