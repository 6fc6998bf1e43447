//! Our supervisor, over its command line and its control API.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::{Value, json};

use super::{
    CHILDREN,
    contender::{Behaviour, CHILD, Programs, Started, errors_path},
    namespaces::Namespaces,
    process::Process,
    records::{self, Records},
};
use crate::{
    bench::control,
    cargo,
    failure::{Failure, While as _},
    stopwatch::Stopwatch,
};

/// How much of its own a plugin has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Isolation {
    /// What the supervisor gives by itself.
    Default,
    /// As little as can be asked for.
    None,
}

impl Isolation {
    /// The supervisor's options for it.
    fn options(self) -> &'static [&'static str] {
        match self {
            Self::Default => &[],
            Self::None => &["--isolation=none"],
        }
    }

    /// A plugin's name. Two of our supervisors run at the same time and may have their control groups in one
    /// place, so that equal names could meet.
    fn plugin_name(self, number: usize) -> String {
        match self {
            Self::Default => format!("p{number}"),
            Self::None => format!("bare{number}"),
        }
    }
}

/// How long the supervisor may take to listen, and to answer.
const ANSWER_MAX: Duration = Duration::from_secs(30);
const PACE: Duration = Duration::from_millis(2);

/// Whether this supervisor can be told to isolate less.
pub(super) fn has_isolation(supervisor: &Path) -> Result<bool, Failure> {
    Ok(cargo::capture(cargo::command(supervisor).args(["run", "--help"]))?.contains("--isolation"))
}

/// Whether this is the supervisor itself or its `net`, and no init of a plugin.
pub(super) fn is_supervisor_or_net(process: &Process, init: i32) -> bool {
    process.pid == init || process.arguments.get(1).is_some_and(|argument| argument == "net")
}

/// Starts it, waits until it listens and hands it a manifest with all children.
pub(super) fn start(
    programs: &Programs,
    directory: &Path,
    behaviour: Behaviour,
    isolation: Isolation,
) -> Result<Started, Failure> {
    let plugins = (0..CHILDREN).map(|number| {
        let name = isolation.plugin_name(number);
        bake(directory, &name, &programs.child)?;
        Ok(plugin(&name, &[&number.to_string(), behaviour.word()], behaviour))
    });
    let plugins: Vec<Value> = plugins.collect::<Result<_, Failure>>()?;
    start_with(&programs.supervisor, directory, isolation.options(), &plugins)
}

/// The same with these plugins, which are baked already.
pub(super) fn start_with(
    supervisor: &Path,
    directory: &Path,
    options: &[&str],
    plugins: &[Value],
) -> Result<Started, Failure> {
    let socket = directory.join("v.sock");
    let words = words(supervisor, directory, &socket, options);
    let errors = File::create(errors_path(directory)).while_doing("the supervisor's standard error")?;
    let output = errors.try_clone().while_doing("the supervisor's standard output")?;
    let mut namespaces = Namespaces::start(&words, &[], output, errors)?;
    let watch = Stopwatch::start();
    while !directory.join("run/s.sock").exists() {
        if watch.elapsed() > ANSWER_MAX || namespaces.has_ended() {
            return Err(Failure::new("it does not listen"));
        }
        std::thread::park_timeout(PACE);
    }
    let body = request(plugins).to_string();
    let begun = records::now();
    let answer = control::call(&socket, ANSWER_MAX, "PUT /v1/manifest", None, &body)
        .while_doing("the supervisor's control API")?;
    let token = answer.body.get("token").and_then(Value::as_str).map(str::to_owned);
    let token = token.filter(|_| answer.status == 200);
    let token = token.ok_or_else(|| Failure::new(format!("it answered {answer:?}")))?;
    let stream = control::stream(&socket, ANSWER_MAX, "GET /v1/logs?after=0&follow=true", &token)
        .while_doing("the supervisor's log")?;
    let control = Some(Control { socket });
    Ok(Started { namespaces, records: Records::stream(stream), begun, control })
}

/// A way to ask a running supervisor.
#[derive(Debug)]
pub(super) struct Control {
    socket: PathBuf,
}

impl Control {
    /// How often its plugins have been started again.
    pub(super) fn starts(&self) -> Result<usize, Failure> {
        let status = self.status()?;
        restarts(&status).ok_or_else(|| Failure::new(format!("no restarts in the status: {status}")))
    }

    /// Whether every plugin has ended for good. After that it only waits for somebody to read what it has
    /// left, and nobody will.
    pub(super) fn is_over(&self) -> bool {
        let status = self.status().unwrap_or_default();
        !matches!(status.get("phase").and_then(Value::as_str), Some("Running" | "Stopping"))
    }

    fn status(&self) -> Result<Value, Failure> {
        let answer = control::call(&self.socket, ANSWER_MAX, "GET /v1/status", None, "");
        Ok(answer.while_doing("the supervisor's status")?.body)
    }
}

/// All plugins' restarts in a status.
fn restarts(status: &Value) -> Option<usize> {
    let plugins = status.get("plugins")?.as_array()?;
    let restarts = plugins.iter().map(|plugin| usize::try_from(plugin.get("restarts")?.as_u64()?).ok());
    restarts.sum()
}

fn words(supervisor: &Path, directory: &Path, socket: &Path, options: &[&str]) -> Vec<String> {
    let path = |option: &str, name: &str| format!("--{option}={}", directory.join(name).display());
    let mut words = vec![supervisor.display().to_string(), "run".to_owned(), "--init=container".to_owned()];
    words.extend([
        format!("--transport=unix:{}", socket.display()),
        path("plugins", "plugins"),
        path("socket", "run/s.sock"),
        path("policy", "policy.json"),
        // As the figure for an idle supervisor has it.
        "--sample-interval=10".to_owned(),
        "--drain-grace=1".to_owned(),
    ]);
    words.extend(options.iter().map(|option| (*option).to_owned()));
    words
}

/// Puts a plugin into the image: the child alone.
pub(super) fn bake(directory: &Path, name: &str, child: &Path) -> Result<(), Failure> {
    let plugin = directory.join("plugins").join(name);
    fs::create_dir_all(plugin.join("rootfs")).while_doing("a plugin's directory")?;
    // A link: as with the peers, one file is in the page cache once.
    let inside = plugin.join("rootfs").join(CHILD);
    fs::hard_link(child, &inside).while_doing(inside.display())?;
    let config = json!({"image": image(name), "config": {"Entrypoint": [format!("/{CHILD}")]}});
    fs::write(plugin.join("config.json"), config.to_string()).while_doing("a plugin's config.json")
}

fn image(name: &str) -> String {
    format!("bench/{name}:1")
}

/// A plugin in a manifest: the child with these arguments.
pub(super) fn plugin(name: &str, arguments: &[&str], behaviour: Behaviour) -> Value {
    let mut plugin = json!({"name": name, "image": image(name), "args": arguments});
    if behaviour == Behaviour::Fail {
        // The shortest wait there is: a hundred starts of each in a second.
        plugin["restart"] = json!({"initialDelay": "10ms", "maxDelay": "10ms", "factor": 1, "jitter": 0});
    }
    plugin
}

fn request(plugins: &[Value]) -> Value {
    let manifest = json!({
        "apiVersion": "k8s.oblv.com/v1alpha1",
        "kind": "NitroEnclaveDeployment",
        "metadata": {"name": "bench"},
        "spec": {"userPlugins": plugins, "logs": {"host": "all"}},
    });
    json!({"manifest": manifest.to_string(), "egressPort": 100_002, "instanceId": "bench"})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_restarts_of_all_plugins_count() {
        let status = json!({"plugins": [{"name": "a", "restarts": 2}, {"name": "b", "restarts": 3}]});
        assert_eq!(restarts(&status), Some(5));
        assert_eq!(restarts(&json!({"plugins": [{"name": "a"}]})), None);
        assert_eq!(restarts(&json!({})), None);
    }

    #[test]
    fn only_children_that_fail_at_once_have_no_backoff() {
        assert!(plugin("p", &[], Behaviour::Stay).get("restart").is_none());
        assert!(plugin("p", &[], Behaviour::Fail).get("restart").is_some());
    }
}
