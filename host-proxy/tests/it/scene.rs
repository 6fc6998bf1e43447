//! A proxy under test beside its fake enclave: temporary directories, free ports, a readable stdout.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicU8, Ordering},
    time::Duration,
};

use clap::Parser;
use enclave_host_proxy::{Cli, Command, Exit, Proxy, RunArgs, Stop};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, DuplexStream, Lines, duplex},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
    time::timeout,
};

/// No step of a test takes longer; a hang becomes a failure.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Below those that the kernel hands out.
const HOST_PORT: u16 = 18_001;
/// How many scenes this process has had.
static SCENES: AtomicU8 = AtomicU8::new(1);

pub(crate) struct Scene {
    pub(crate) dir: tempfile::TempDir,
    /// Where the plugin's port is offered: at an address of this test's own, so that no other test's port is
    /// in the way.
    pub(crate) host: SocketAddr,
    pub(crate) upstream: TcpListener,
}

/// A running proxy.
pub(crate) struct Running {
    pub(crate) stdout: Lines<BufReader<DuplexStream>>,
    pub(crate) metrics: SocketAddr,
    pub(crate) health: SocketAddr,
    pub(crate) stops: mpsc::Sender<Stop>,
    exit: JoinSet<Exit>,
}

impl Scene {
    pub(crate) async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let upstream = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let [.., process] = std::process::id().to_be_bytes();
        let number = SCENES.fetch_add(1, Ordering::Relaxed);
        let host = SocketAddr::from(([127, 77, process, number], HOST_PORT));
        std::fs::create_dir_all(dir.path().join("config/configmaps/settings")).unwrap();
        std::fs::write(dir.path().join("config/configmaps/settings/key"), "value").unwrap();
        let scene = Self { dir, host, upstream };
        scene.write_manifest("hello");
        scene
    }

    pub(crate) fn write_manifest(&self, name: &str) {
        let manifest = format!(
            "apiVersion: k8s.oblv.com/v1alpha1\n\
             kind: NitroEnclaveDeployment\n\
             metadata:\n  name: {name}\n\
             spec:\n  userPlugins:\n    - name: app\n      image: app:1\n      ports:\n\
             \x20       - containerPort: 8001\n          hostPort: {}\n\
             \x20     outboundConnections:\n        - fqdn: up.example\n          port: 80\n",
            self.host.port()
        );
        std::fs::write(self.dir.path().join("m.yaml"), manifest).unwrap();
    }

    pub(crate) fn args(&self, more: &[&str]) -> RunArgs {
        let path = |name: &str| self.dir.path().join(name).display().to_string();
        let mut line: Vec<String> = ["enclave-host-proxy", "run"].map(str::to_owned).into();
        line.extend([
            format!("--transport=unix:{}", path("v.sock")),
            format!("--manifest={}", path("m.yaml")),
        ]);
        line.extend([format!("--config-dir={}", path("config")), format!("--state-dir={}", path("state"))]);
        line.extend(["--metrics-listen=127.0.0.1:0", "--health-listen=127.0.0.1:0"].map(str::to_owned));
        line.extend([
            format!("--admin={}", path("admin.sock")),
            format!("--ingress-listen={}", self.host.ip()),
        ]);
        line.push(format!("--resolve=up.example:80:{}", self.upstream.local_addr().unwrap()));
        line.extend(["--connect-timeout=10", "--drain-grace=5"].map(str::to_owned));
        line.extend(more.iter().map(|arg| (*arg).to_owned()));
        match Cli::try_parse_from(line).unwrap().command {
            Command::Run(args) => *args,
            Command::Status(_) | Command::Logs(_) | Command::Drain(_) => panic!("run was asked for"),
        }
    }

    pub(crate) async fn start(&self, more: &[&str]) -> Running {
        self.start_with_stdout(more, 1 << 20).await
    }

    pub(crate) async fn start_with_stdout(&self, more: &[&str], stdout_bytes: usize) -> Running {
        let proxy = Proxy::bind(self.args(more)).await.unwrap();
        let (ours, theirs) = duplex(stdout_bytes);
        let (metrics, health) = (proxy.metrics_address().unwrap(), proxy.health_address().unwrap());
        let stops = proxy.stops();
        let mut exit = JoinSet::new();
        exit.spawn(proxy.run(theirs));
        Running { stdout: BufReader::new(ours).lines(), metrics, health, stops, exit }
    }

    pub(crate) fn state(&self) -> Value {
        serde_json::from_slice(&std::fs::read(self.dir.path().join("state/state.json")).unwrap()).unwrap()
    }
}

impl Running {
    pub(crate) async fn line(&mut self) -> Value {
        let line = timeout(PATIENCE, self.stdout.next_line()).await.expect("a line comes").unwrap().unwrap();
        serde_json::from_str(&line).unwrap()
    }

    pub(crate) async fn exit(&mut self) -> Exit {
        timeout(PATIENCE, self.exit.join_next()).await.expect("the proxy ends").unwrap().unwrap()
    }

    /// Ends it as SIGKILL would: nothing is said or stored any more.
    pub(crate) async fn kill(mut self) {
        self.exit.shutdown().await;
    }

    pub(crate) async fn ready(&self) -> (u16, String) {
        get(self.health, "/readyz", "*/*").await
    }

    /// Waits until /readyz answers this status.
    pub(crate) async fn until_ready_is(&self, status: u16) -> String {
        timeout(PATIENCE, async {
            loop {
                let (now, body) = self.ready().await;
                if now == status {
                    return body;
                }
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("readiness changes")
    }
}

/// A plain GET; the status and the body.
pub(crate) async fn get(address: SocketAddr, path: &str, accept: &str) -> (u16, String) {
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\nConnection: close\r\n\r\n");
    exchange(address, &request).await
}

pub(crate) async fn exchange(address: SocketAddr, request: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut response = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut response)).await.unwrap().unwrap();
    let status = response.split(' ').nth(1).unwrap().parse().unwrap();
    let body = response.split_once("\r\n\r\n").unwrap().1.to_owned();
    (status, body)
}
