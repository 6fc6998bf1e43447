//! host-proxy beside an enclave: its options, what it prints, and the vendor's deployment that both run.

use std::{
    collections::BTreeMap,
    fs,
    net::{TcpListener, TcpStream},
    path::Path,
    process::ExitStatus,
    sync::atomic::{AtomicU16, Ordering},
};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::{
    client::{Answer, exchange},
    collector::Collector,
    enclave::{Enclave, How},
    patience::PATIENCE,
    process::Process,
    scene::{Scene, product},
};

/// The name and port under which the vendor's manifest knows the collector.
const COLLECTOR: &str = "otel-collector.monitoring.svc.cluster.local:4318";
/// Ports below those that the kernel gives to whoever asks for any.
const PORTS: std::ops::Range<u16> = 20_000..30_000;

/// The vendor's deployment, running.
pub(crate) struct Whole {
    pub(crate) enclave: Enclave,
    pub(crate) collector: Collector,
    pub(crate) proxy: Process,
    pub(crate) host_port: u16,
    words: Vec<String>,
}

impl Whole {
    /// The manifest as it is in tests/manifests, apart from the command and, where it is taken, the host
    /// port.
    pub(crate) fn start() -> Self {
        Self::start_with(Scene::new(), How::default(), |manifest| manifest)
    }

    /// The same with more in the scene and the manifest.
    pub(crate) fn start_with(scene: Scene, how: How, change: impl FnOnce(String) -> String) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/manifests/hello-fastapi.yaml");
        let host_port = free_port();
        let manifest = fs::read_to_string(path).unwrap();
        let python = "command:\n        - \"python\"\n        - \"/app/uvicorn_runner.py\"\n";
        let manifest = replace(&manifest, python, "command: [\"/hello\"]\n");
        let manifest = replace(&manifest, "hostPort: 4455\n", &format!("hostPort: {host_port}\n"));
        scene.write("manifest.yaml", &change(manifest));
        scene.write("config/configmaps/telemetry-config/config.yaml", "scrape_configs: []\n");
        let image = |name: &str| format!("public.ecr.aws/oblivious-ai/oblv-{name}:latest");
        scene.program("fastapi", &image("sample-fastapi"), &product("hello"), json!({}));
        let config = json!({"Entrypoint": ["/enclave-telemetry"], "Env": ["ENCLAVE_EXPORT_INTERVAL=1s"]});
        scene.program("telemetry", &image("telemetry"), &product("enclave-telemetry"), config);
        let collector = Collector::start();
        let mut words = scene.proxy_words();
        words.push(format!("--resolve={COLLECTOR}:{}", collector.address));
        let mut enclave = scene.start_as(how);
        let proxy = start(&words);
        accepted(&proxy);
        let state = fs::read(enclave.scene.path("state/state.json")).unwrap();
        let state: Value = serde_json::from_slice(&state).unwrap();
        enclave.client.token = state["session"]["token"].as_str().map(str::to_owned);
        enclave.line("fastapi", "hello: pid");
        Self { enclave, collector, proxy, host_port, words }
    }

    /// Kills host-proxy and starts another one; what the killed one had printed.
    pub(crate) fn replace_proxy(&mut self) -> Vec<String> {
        self.proxy.kill();
        let said = self.proxy.stdout.to_end();
        self.proxy = start(&self.words);
        said
    }

    /// A request through the host's port.
    pub(crate) fn ask(&self, method: &str, path: &str) -> Answer {
        ask(self.host_port, method, path, "")
    }

    /// A request to host-proxy's own page of metrics.
    pub(crate) fn metrics_page(&self, headers: &str) -> Answer {
        let port = self.proxy.stderr.wait("the metrics listener", |lines| {
            let record = lines.iter().find(|line| line.contains("\"what\":\"metrics\""))?;
            let record: Value = serde_json::from_str(record).ok()?;
            record["address"].as_str()?.rsplit_once(':')?.1.parse().ok()
        });
        ask(port, "GET", "/metrics", headers)
    }

    /// Waits for both programs' ends; host-proxy's exit, its last line, and the supervisor's exit.
    pub(crate) fn end(&mut self) -> (ExitStatus, Value, ExitStatus) {
        let exit = self.proxy.end();
        let lines = self.proxy.stdout.to_end();
        let last = serde_json::from_str(lines.last().expect("a last line")).unwrap();
        (exit, last, self.enclave.end())
    }

    /// Asks host-proxy to stop, and waits for the end.
    pub(crate) fn stop(&mut self) -> (ExitStatus, Value, ExitStatus) {
        self.proxy.signal(Signal::SIGTERM);
        self.end()
    }
}

/// Starts host-proxy with these words.
pub(crate) fn start(words: &[String]) -> Process {
    Process::start("host-proxy", words)
}

/// Waits until the enclave has taken host-proxy's manifest.
pub(crate) fn accepted(proxy: &Process) {
    proxy.stderr.wait("the manifest to be accepted", |lines| {
        lines.iter().any(|line| line.contains("the enclave accepted the manifest")).then_some(())
    });
}

/// A request to a port of this machine.
pub(crate) fn ask(port: u16, method: &str, path: &str, headers: &str) -> Answer {
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    exchange(stream, &format!("{method} {path} HTTP/1.1\r\nhost: h\r\nconnection: close\r\n{headers}"), b"")
}

fn replace(text: &str, old: &str, new: &str) -> String {
    assert_eq!(text.matches(old).count(), 1, "{old:?} is in the manifest once");
    text.replace(old, new)
}

/// A port that no other test of this process gets, and that nobody else has now.
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let count = PORTS.end - PORTS.start;
    let offset = u16::try_from(std::process::id() % 199).unwrap() * 50;
    let candidates = std::iter::repeat_with(|| {
        PORTS.start + offset.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % count
    });
    let is_free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    candidates.take(usize::from(count)).find(is_free).expect("a free port")
}

/// Log records that host-proxy printed, by boot and sequence number: that is how repetitions are removed.
pub(crate) fn records(lines: &[String]) -> BTreeMap<(String, u64), Value> {
    let records = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    records
        .filter_map(|record| {
            let boot_id = record["bootId"].as_str()?.to_owned();
            Some(((boot_id, record["seq"].as_u64()?), record))
        })
        .collect()
}
