//! One enclave of the vendor's deployment: supervisor, host-proxy, telemetry and hello.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    sync::atomic::{AtomicU16, Ordering},
};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::{
    backend::Backend,
    boundary::Boundary,
    client::{Answer, exchange},
    enclave::{Enclave, How, Killer},
    patience::PATIENCE,
    process::Process,
    scene::{Scene, product},
};

/// The name by which the vendor's manifest knows the collector.
pub(crate) const COLLECTOR: &str = "otel-collector.monitoring.svc.cluster.local";
/// The first of the ports that lead into enclaves; each enclave has its own, also where two share a network.
const HOST_PORT_MIN: u16 = 20_000;

/// What an enclave is started with.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// `metadata.name`.
    pub(crate) name: String,
    /// `service.instance.id`.
    pub(crate) instance: String,
    /// The telemetry plugin's export interval and the supervisor's sample interval, in seconds.
    pub(crate) export_seconds: u32,
    pub(crate) sample_seconds: u32,
    /// With CPU and memory of its own instead of the machine's.
    pub(crate) has_boundary: bool,
    /// The user plugin; hello without.
    pub(crate) python: Option<Python>,
}

/// A user plugin that is run as the vendor's manifest says.
#[derive(Debug, Clone)]
pub(crate) struct Python {
    /// A root file system with Python and what the program imports.
    pub(crate) root: PathBuf,
    /// The program.
    pub(crate) program: &'static str,
    pub(crate) env: Vec<String>,
    /// Of the telemetry plugin's `config.yaml`.
    pub(crate) scrape_configs: &'static str,
}

impl Plan {
    pub(crate) fn new(name: &str, instance: &str) -> Self {
        Self {
            name: name.to_owned(),
            instance: instance.to_owned(),
            export_seconds: 1,
            sample_seconds: 1,
            has_boundary: false,
            python: None,
        }
    }
}

/// A running enclave with its host-proxy.
pub(crate) struct Deployment {
    pub(crate) enclave: Enclave,
    pub(crate) proxy: Process,
    pub(crate) host_port: u16,
    _boundary: Option<Boundary>,
}

impl Deployment {
    /// The vendor's manifest, apart from the program that stands for the vendor's and, as there is no network
    /// namespace for each pod, the host port.
    pub(crate) fn start(plan: &Plan, backend: &Backend) -> Self {
        let scene = Scene::new();
        let host_port = next_port();
        scene.write("manifest.yaml", &manifest(plan, backend, host_port));
        let scrapes = plan.python.as_ref().map_or("scrape_configs: []\n", |python| python.scrape_configs);
        scene.write("config/configmaps/telemetry-config/config.yaml", scrapes);
        let image = |name: &str| format!("public.ecr.aws/oblivious-ai/oblv-{name}:latest");
        match &plan.python {
            None => scene.program("fastapi", &image("sample-fastapi"), &product("hello"), json!({})),
            Some(python) => bake(&scene, &image("sample-fastapi"), python),
        }
        let interval = format!("ENCLAVE_EXPORT_INTERVAL={}s", plan.export_seconds);
        let config = json!({"Entrypoint": ["/enclave-telemetry"], "Env": [interval]});
        scene.program("telemetry", &image("telemetry"), &product("enclave-telemetry"), config);
        let mut words = scene.proxy_words();
        words.extend([
            format!("--instance-id={}", plan.instance),
            format!("--resolve={COLLECTOR}:4318:127.0.0.1:{}", backend.destination()),
        ]);
        let boundary = plan.has_boundary.then(|| Boundary::new(&scene.path("boundary")));
        let how = How {
            sample_interval: Some(plan.sample_seconds),
            as_init: true,
            through: boundary.as_ref().map(Boundary::through).unwrap_or_default(),
            killer: Killer::Anywhere,
            ..How::default()
        };
        let enclave = scene.start_as(how);
        if let Some(boundary) = &boundary {
            boundary.follow(enclave.pid);
        }
        let proxy = Process::start("host-proxy", &words);
        let mut deployment = Self { enclave, proxy, host_port, _boundary: boundary };
        deployment.proxy.stderr.wait("the manifest to be accepted", |lines| {
            lines.iter().any(|line| line.contains("the enclave accepted the manifest")).then_some(())
        });
        let state = fs::read(deployment.enclave.scene.path("state/state.json")).unwrap();
        let state: Value = serde_json::from_slice(&state).unwrap();
        deployment.enclave.client.token = state["session"]["token"].as_str().map(str::to_owned);
        deployment
    }

    /// A request to hello, through the host's port.
    pub(crate) fn ask(&self, method: &str, path: &str) -> Answer {
        ask(self.host_port, method, path, "")
    }

    /// Asks host-proxy to stop and waits for both ends.
    pub(crate) fn stop(&mut self) -> (ExitStatus, ExitStatus) {
        self.proxy.signal(Signal::SIGTERM);
        (self.proxy.end(), self.enclave.end())
    }
}

/// Bakes in the user plugin with a copy of the root file system.
fn bake(scene: &Scene, image: &str, python: &Python) {
    let root = scene.root("fastapi");
    fs::create_dir_all(root.parent().unwrap()).unwrap();
    let copied = Command::new("cp").arg("-a").arg(&python.root).arg(&root).status().unwrap();
    assert!(copied.success(), "{}: {copied}", python.root.display());
    scene.write("plugins/fastapi/rootfs/app/uvicorn_runner.py", python.program);
    let mut env = vec!["PATH=/usr/local/bin:/usr/bin:/bin".to_owned()];
    env.extend(python.env.iter().cloned());
    let config = json!({"image": image, "config": {"Env": env}});
    scene.write("plugins/fastapi/config.json", &config.to_string());
}

/// A request to a port whose program may go away meanwhile.
pub(crate) fn try_ask(port: u16, method: &str, path: &str) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(2 * PATIENCE))?;
    write!(stream, "{method} {path} HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n")?;
    stream.read_to_end(&mut Vec::new()).map(drop)
}

fn ask(port: u16, method: &str, path: &str, headers: &str) -> Answer {
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    exchange(stream, &format!("{method} {path} HTTP/1.1\r\nhost: h\r\nconnection: close\r\n{headers}"), b"")
}

fn next_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(HOST_PORT_MIN);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// The vendor's manifest for this enclave.
fn manifest(plan: &Plan, backend: &Backend, host_port: u16) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/manifests/hello-fastapi.yaml");
    let manifest = fs::read_to_string(path).unwrap();
    let python = "command:\n        - \"python\"\n        - \"/app/uvicorn_runner.py\"\n";
    let command = if plan.python.is_some() { python } else { "command: [\"/hello\"]\n" };
    let manifest = replace(&manifest, python, command);
    let manifest = replace(&manifest, "hostPort: 4455\n", &format!("hostPort: {host_port}\n"));
    let manifest = replace(&manifest, "name: hello-fastapi\n", &format!("name: {}\n", plan.name));
    replace(&manifest, &format!("http://{COLLECTOR}:4318"), &backend.exporter_url())
}

fn replace(text: &str, old: &str, new: &str) -> String {
    assert_eq!(text.matches(old).count(), 1, "{old:?} is in the manifest once");
    text.replace(old, new)
}
