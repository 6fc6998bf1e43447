//! A supervisor under test: in a network namespace of its own, with the test as its host.

use std::{
    path::PathBuf,
    process::ExitStatus,
    sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use enclave_protocol::control::{EGRESS_PORT, Event, LogRecord, ManifestAccepted, PluginStatus};
use nix::{sys::signal::Signal, unistd::geteuid};
use serde_json::{Value, json};

use crate::{
    client::{Answer, Client, Feed},
    groups::Groups,
    patience::eventually,
    process::{Process, children, command_line},
    scene::{Scene, product},
};

/// Whether the out-of-memory killer strikes: the kernel counts its strikes for the whole machine, so a plugin
/// that another test kills meanwhile would look like its victim.
static OUT_OF_MEMORY: RwLock<()> = RwLock::new(());

/// What a test has to do with the out-of-memory killer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Killer {
    /// It must not strike meanwhile.
    #[default]
    Absent,
    /// It will strike here, with no other enclave beside.
    Here,
    /// It may strike elsewhere: no plugin of this test is killed.
    Anywhere,
}

enum Company {
    Any,
    Others(#[expect(dead_code, reason = "held, not read")] RwLockReadGuard<'static, ()>),
    Alone(#[expect(dead_code, reason = "held, not read")] RwLockWriteGuard<'static, ()>),
}

/// How a supervisor is started.
#[derive(Debug, Clone, Default)]
pub(crate) struct How {
    /// As PID 1 of its own PID namespace.
    pub(crate) as_init: bool,
    /// Words before the supervisor's own.
    pub(crate) through: Vec<String>,
    /// Seconds between samples; 1 without.
    pub(crate) sample_interval: Option<u32>,
    /// Without a static init at hand.
    pub(crate) without_init: bool,
    /// With plugins that are not isolated.
    pub(crate) bare: bool,
    /// Whom the out-of-memory killer concerns.
    pub(crate) killer: Killer,
}

/// A running supervisor.
pub(crate) struct Enclave {
    pub(crate) client: Client,
    pub(crate) process: Process,
    /// The supervisor's own process id, as the test sees it.
    pub(crate) pid: i32,
    pub(crate) scene: Scene,
    _groups: Groups,
    _company: Company,
}

/// The command through which every supervisor of this run is started, and with it everything that it starts:
/// the words of `ENCLAVE_TEST_THROUGH`.
pub(crate) fn through() -> Vec<String> {
    let words = std::env::var("ENCLAVE_TEST_THROUGH").unwrap_or_default();
    words.split_whitespace().map(str::to_owned).collect()
}

impl Scene {
    /// Starts a supervisor and waits until it waits for a manifest.
    pub(crate) fn start(self) -> Enclave {
        self.start_as(How::default())
    }

    pub(crate) fn start_as(self, how: How) -> Enclave {
        let company = match how.killer {
            Killer::Here => Company::Alone(OUT_OF_MEMORY.write().unwrap_or_else(PoisonError::into_inner)),
            Killer::Absent => Company::Others(OUT_OF_MEMORY.read().unwrap_or_else(PoisonError::into_inner)),
            Killer::Anywhere => Company::Any,
        };
        let words = self.command_line(&how);
        let process = Process::start("supervisor", &words);
        process.stderr.wait("the supervisor to wait for a manifest", |lines| {
            lines.iter().any(|line| line.contains("waiting for a manifest")).then_some(())
        });
        let pid = if how.as_init { children(process.pid())[0].pid } else { process.pid() };
        let client = Client { path: self.path("v.sock"), token: None };
        let groups = Groups(client.status().boot_id);
        Enclave { client, process, pid, scene: self, _groups: groups, _company: company }
    }

    fn command_line(&self, how: &How) -> Vec<String> {
        let mut words = vec!["unshare".to_owned(), "--net".to_owned()];
        if !geteuid().is_root() {
            words.extend(["--user", "--map-root-user"].map(str::to_owned));
        }
        if how.as_init {
            words.extend(["--pid", "--fork", "--kill-child", "--mount-proc"].map(str::to_owned));
        }
        words.push("--".to_owned());
        words.extend(through());
        words.extend(how.through.iter().cloned());
        let path = |name: &str| self.path(name).display().to_string();
        words.extend([
            env!("CARGO_BIN_EXE_enclave-supervisor").to_owned(),
            "run".to_owned(),
            "--init=container".to_owned(),
            format!("--transport=unix:{}", path("v.sock")),
            format!("--plugins={}", path("plugins")),
            format!("--socket={}", path("run/supervisor.sock")),
            format!("--policy={}", path("policy.json")),
            format!("--sample-interval={}", how.sample_interval.unwrap_or(1)),
            "--seed=1".to_owned(),
        ]);
        if how.bare {
            words.push("--isolation=none".to_owned());
        }
        if !how.without_init {
            words.push(format!("--plugin-init={}", product("enclave-init").display()));
        }
        words
    }
}

impl Enclave {
    /// Hands a manifest over, as YAML text with its files.
    pub(crate) fn put_text(&self, manifest: &str, files: &Value) -> Answer {
        self.put_signed(manifest, files, None)
    }

    /// The same with a signature.
    pub(crate) fn put_signed(&self, manifest: &str, files: &Value, signature: Option<&str>) -> Answer {
        let mut body = json!({
            "manifest": manifest, "files": files, "egressPort": EGRESS_PORT, "instanceId": "it-1",
        });
        if let Some(signature) = signature {
            body["signature"] = json!(signature);
        }
        self.client.call("PUT", "/v1/manifest", &body)
    }

    pub(crate) fn put(&self, manifest: &Value) -> Answer {
        self.put_text(&manifest.to_string(), &json!({}))
    }

    /// Hands a manifest over that must be accepted; from now on the client has the token.
    pub(crate) fn run(&mut self, manifest: &Value) -> ManifestAccepted {
        self.run_with(manifest, &json!({}))
    }

    pub(crate) fn run_with(&mut self, manifest: &Value, files: &Value) -> ManifestAccepted {
        let answer = self.put_text(&manifest.to_string(), files);
        assert_eq!(answer.status, 200, "{}", answer.text());
        let accepted: ManifestAccepted = answer.json();
        self.client.token = Some(accepted.token.clone());
        accepted
    }

    /// Events from the first one on.
    pub(crate) fn events(&self) -> Feed<Event> {
        self.client.events(0)
    }

    /// Log records from the first one on.
    pub(crate) fn logs(&self) -> Feed<LogRecord> {
        self.client.logs(0, true)
    }

    /// Waits for a line of a plugin that starts with `start`, and answers all of it.
    pub(crate) fn line(&self, plugin: &str, start: &str) -> String {
        let what = format!("{plugin} to say {start:?}");
        self.logs().until(&what, |record| is_line(record, plugin, start)).text.unwrap()
    }

    /// All lines of a plugin up to one that starts with `start`, without that one.
    pub(crate) fn lines(&self, plugin: &str, start: &str) -> Vec<String> {
        let what = format!("{plugin} to say {start:?}");
        let mut records = self.logs().up_to(&what, |record| is_line(record, plugin, start));
        records.pop();
        let own = records.into_iter().filter(|record| record.plugin == plugin);
        own.filter_map(|record| record.text).collect()
    }

    pub(crate) fn plugin(&self, name: &str) -> PluginStatus {
        let status = self.client.status();
        let found = status.plugins.iter().find(|plugin| plugin.name == name);
        found.unwrap_or_else(|| panic!("no {name}: {status:#?}")).clone()
    }

    /// Waits until a plugin runs; its process id.
    pub(crate) fn started(&self, name: &str) -> u32 {
        self.events().until("a start", |event| is(event, name, "Started"));
        self.plugin(name).pid.expect("a running plugin has a pid")
    }

    /// A path of a plugin's own view of the file system.
    pub(crate) fn inside(&self, plugin: &str, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.plugin(plugin).pid.expect("it runs")))
    }

    /// The `net` process.
    pub(crate) fn net(&self) -> i32 {
        eventually("the net process", || {
            let own = children(self.pid).into_iter().map(|child| child.pid);
            own.into_iter().find(|pid| command_line(*pid).get(1).is_some_and(|word| word == "net"))
        })
    }

    pub(crate) fn drain(&self, grace_seconds: u32) {
        let answer = self.client.call("POST", "/v1/drain", &json!({"graceSeconds": grace_seconds}));
        assert_eq!(answer.status, 202, "{}", answer.text());
    }

    /// Follows the events to the end of the deployment, acknowledges everything, and waits for the
    /// supervisor's end.
    pub(crate) fn finish(&mut self) -> End {
        let events = self.events().up_to("the end", |event| event.reason == "End");
        let boot_id = self.client.status().boot_id;
        let all = json!({"bootId": boot_id, "logSeq": u64::MAX, "statusSeq": u64::MAX});
        assert_eq!(self.client.call("POST", "/v1/ack", &all).status, 204);
        let exit = self.process.end();
        End { events, exit, records: records(&self.process) }
    }

    /// Waits for the supervisor's end, with nobody acknowledging.
    pub(crate) fn end(&mut self) -> ExitStatus {
        self.process.end()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = nix::unistd::Pid::from_raw(self.pid);
        nix::sys::signal::kill(pid, signal).unwrap();
    }
}

/// The end of a deployment.
pub(crate) struct End {
    pub(crate) events: Vec<Event>,
    pub(crate) exit: ExitStatus,
    /// The supervisor's own records on standard error.
    pub(crate) records: Vec<Value>,
}

impl End {
    /// A plugin's last record: its own code or signal.
    pub(crate) fn final_state(&self, plugin: &str) -> &Value {
        let is_last = |record: &&Value| record["message"] == "final state" && record["plugin"] == plugin;
        self.records.iter().rfind(is_last).unwrap_or_else(|| panic!("{:#?}", self.records))
    }

    /// The position of an event.
    pub(crate) fn at(&self, plugin: &str, reason: &str) -> usize {
        let found = self.events.iter().position(|event| is(event, plugin, reason));
        found.unwrap_or_else(|| panic!("{plugin} {reason} is not in {:#?}", self.events))
    }
}

/// The JSON lines of a program's standard error, once it has ended.
pub(crate) fn records(process: &Process) -> Vec<Value> {
    let parse = |line: &String| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    process.stderr.to_end().iter().map(parse).collect()
}

/// Whether an event is this plugin's and of this kind.
pub(crate) fn is(event: &Event, plugin: &str, reason: &str) -> bool {
    event.plugin.as_deref() == Some(plugin) && event.reason == reason
}

pub(crate) fn is_line(record: &LogRecord, plugin: &str, start: &str) -> bool {
    record.plugin == plugin && record.text.as_ref().is_some_and(|text| text.starts_with(start))
}
