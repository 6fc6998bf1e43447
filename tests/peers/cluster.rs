//! A Kubernetes control plane and prometheus-adapter on loopback, which all tests that need one share.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{OnceLock, mpsc::sync_channel},
    thread,
};

use serde_json::Value;

use crate::{
    backend::{Backend, Ports, Way, example},
    network::Network,
    patience::eventually,
    process::Process,
    programs::{self, at_hand},
    web,
};

const ETCD: u16 = 2379;
const ETCD_PEERS: u16 = 2380;
const API: u16 = 6443;
const CONTROLLER_MANAGER: u16 = 10257;
/// Of the adapter that is registered with kube-apiserver.
const ADAPTER: u16 = 6444;
/// The ports of the registered adapter's Prometheus.
const PORTS: Ports = Ports(11_000);
/// The group of the adapter's metrics that an HPA of type External reads.
const EXTERNAL: &str = "/apis/external.metrics.k8s.io/v1beta1";

/// The control plane with one adapter, one Prometheus and one Collector.
pub(crate) struct Cluster {
    network: Network,
    directory: PathBuf,
    pub(crate) backend: Backend,
    processes: Vec<Process>,
    _janitor: Child,
}

impl Cluster {
    /// The shared one, started by the first test that asks; this thread is in its network afterwards. None
    /// where the programs are not at hand.
    pub(crate) fn enter() -> Option<&'static Self> {
        static CLUSTER: OnceLock<Cluster> = OnceLock::new();
        let kubernetes =
            ["etcd", "kube-apiserver", "kube-controller-manager", "kubectl", "prometheus-adapter"];
        if !at_hand(&kubernetes) || !at_hand(&["otelcol", "prometheus"]) {
            return None;
        }
        let cluster = CLUSTER.get_or_init(|| {
            let (sender, started) = sync_channel(1);
            // The programs die with the thread that started them, so it stays as long as the tests do.
            thread::spawn(move || {
                sender.send(Self::start()).ok();
                loop {
                    thread::park();
                }
            });
            started.recv().expect("the control plane starts")
        });
        cluster.network.enter();
        Some(cluster)
    }

    fn start() -> Self {
        let network = Network::enter_new();
        let directory = tempfile::Builder::new().prefix("peers-").tempdir().unwrap().keep();
        let janitor = janitor(&directory);
        let keys = directory.join("keys");
        make_certificates(&keys);
        let mut processes = vec![start_etcd(&directory)];
        web::until_ok("etcd", ETCD, "/health");
        processes.push(start_apiserver(&keys));
        let backend = Backend::start(Way::Page, PORTS, &directory.join("backend"));
        let mut cluster = Self { network, directory, backend, processes, _janitor: janitor };
        eventually("kube-apiserver to be ready", || cluster.try_kubectl(&["get", "--raw", "/readyz"]).ok());
        // Before the controller manager: its list of kinds is half a minute old at times.
        cluster.apply(include_str!("ned-crd.yaml"));
        let established = "--for=condition=Established";
        cluster.kubectl(&["wait", established, "crd/nitroenclavedeployments.k8s.oblv.com", "--timeout=30s"]);
        cluster.processes.push(start_controller_manager(&cluster.directory));
        let registration = include_str!("adapter-registration.yaml").replace("${PORT}", &ADAPTER.to_string());
        let registration = registration.replace("${CA}", &base64(&keys.join("cluster.crt")));
        cluster.apply(&registration);
        let adapter = cluster.start_adapter(ADAPTER, &cluster.backend);
        cluster.processes.push(adapter);
        for service in ["v1beta1.external", "v1beta1.custom", "v1beta2.custom"] {
            let service = format!("apiservice/{service}.metrics.k8s.io");
            cluster.kubectl(&["wait", "--for=condition=Available", &service, "--timeout=60s"]);
        }
        cluster
    }

    /// Starts an adapter for another Prometheus, on a port of its own.
    pub(crate) fn start_adapter(&self, port: u16, backend: &Backend) -> Process {
        let keys = self.directory.join("keys");
        let file = |name: &str| keys.join(name).display().to_string();
        let kubeconfig = file("adapter.kubeconfig");
        let words = [
            programs::word("prometheus-adapter"),
            format!("--config={}", example("adapter.yaml").display()),
            format!("--prometheus-url=http://127.0.0.1:{}/", backend.ports.prometheus()),
            "--metrics-relist-interval=2s".to_owned(),
            "--metrics-max-age=30s".to_owned(),
            "--bind-address=127.0.0.1".to_owned(),
            format!("--secure-port={port}"),
            format!("--tls-cert-file={}", file("adapter.crt")),
            format!("--tls-private-key-file={}", file("adapter.key")),
            format!("--lister-kubeconfig={kubeconfig}"),
            format!("--authentication-kubeconfig={kubeconfig}"),
            format!("--authorization-kubeconfig={kubeconfig}"),
        ];
        let process = Process::start("prometheus-adapter", &words);
        web::until_listening("prometheus-adapter", port);
        // Until it has read how the API server authenticates, everybody is anonymous to it.
        let server = format!("--server=https://127.0.0.1:{port}");
        eventually("the adapter to know who asks", || {
            self.try_kubectl(&[&server, "get", "--raw", EXTERNAL]).ok()
        });
        process
    }

    /// The values of an external metric, as an adapter on this port answers them.
    pub(crate) fn external(&self, adapter: u16, metric: &str, selector: &str) -> Vec<Value> {
        let path = format!("{EXTERNAL}/namespaces/default/{metric}?labelSelector={}", web::encode(selector));
        let server = format!("--server=https://127.0.0.1:{adapter}");
        let mut list: Value = match self.try_kubectl(&[&server, "get", "--raw", &path]) {
            Ok(text) => serde_json::from_str(&text).unwrap(),
            // Nothing of this name at Prometheus.
            Err(error) if error.contains("NotFound") || error.contains("could not find") => {
                return Vec::new();
            }
            Err(error) => panic!("{path}: {error}"),
        };
        let Value::Array(items) = list["items"].take() else { panic!("{path}: {list}") };
        items
    }

    /// Runs kubectl as the administrator; what it printed.
    pub(crate) fn kubectl(&self, words: &[&str]) -> String {
        self.try_kubectl(words).unwrap_or_else(|error| panic!("kubectl {}: {error}", words.join(" ")))
    }

    /// The same, or what it complained about.
    pub(crate) fn try_kubectl(&self, words: &[&str]) -> Result<String, String> {
        let output = self.command(words).stdin(Stdio::null()).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
    }

    /// Applies documents.
    pub(crate) fn apply(&self, documents: &str) {
        let mut child = self.command(&["apply", "-f", "-"]).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(documents.as_bytes()).unwrap();
        let status = child.wait().unwrap();
        assert!(status.success(), "kubectl apply: {status}:\n{documents}");
    }

    /// Follows an object with kubectl: a line for each of its changes.
    pub(crate) fn watch(&self, words: &[&str]) -> Process {
        let mut all =
            vec![programs::word("kubectl"), self.kubeconfig(), "get".to_owned(), "--watch".to_owned()];
        all.extend(words.iter().map(|word| (*word).to_owned()));
        Process::start("kubectl", &all)
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(programs::word("kubectl"));
        command.args([&self.kubeconfig(), "--request-timeout=20s"]).args(words);
        command
    }

    fn kubeconfig(&self) -> String {
        format!("--kubeconfig={}", self.directory.join("keys/admin.kubeconfig").display())
    }
}

/// Removes the directory once this process is gone, however it ends: what is shared has no end of its own.
fn janitor(directory: &Path) -> Child {
    let script = "trap '' INT; cat >/dev/null; for n in 1 2 3 4 5; do rm -rf \"$0\" && exit; sleep 1; done";
    let mut janitor = Command::new("sh");
    janitor.args(["-c", script]).arg(directory).stdin(Stdio::piped());
    janitor.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

fn make_certificates(keys: &Path) {
    fs::create_dir(keys).unwrap();
    let mut shell = Command::new("sh");
    shell.current_dir(keys).args(["-s", &API.to_string()]);
    let mut child = shell.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(include_bytes!("certificates.sh")).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "certificates: {}", String::from_utf8_lossy(&output.stderr));
}

fn base64(file: &Path) -> String {
    let output = Command::new("base64").arg("-w0").arg(file).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn start_etcd(directory: &Path) -> Process {
    let (clients, peers) = (format!("http://127.0.0.1:{ETCD}"), format!("http://127.0.0.1:{ETCD_PEERS}"));
    let words = [
        programs::word("etcd"),
        "--name=test".to_owned(),
        format!("--data-dir={}", directory.join("etcd").display()),
        "--log-level=warn".to_owned(),
        // Nothing has to outlive the tests.
        "--unsafe-no-fsync".to_owned(),
        format!("--listen-client-urls={clients}"),
        format!("--advertise-client-urls={clients}"),
        format!("--listen-peer-urls={peers}"),
        format!("--initial-advertise-peer-urls={peers}"),
        format!("--initial-cluster=test={peers}"),
    ];
    Process::start("etcd", &words)
}

fn start_apiserver(keys: &Path) -> Process {
    let file = |name: &str| keys.join(name).display().to_string();
    let words = [
        programs::word("kube-apiserver"),
        format!("--etcd-servers=http://127.0.0.1:{ETCD}"),
        "--bind-address=127.0.0.1".to_owned(),
        "--advertise-address=127.0.0.1".to_owned(),
        format!("--secure-port={API}"),
        "--endpoint-reconciler-type=none".to_owned(),
        "--service-cluster-ip-range=10.96.0.0/24".to_owned(),
        // The adapter is dialled by its Service's name: there are no Endpoints.
        "--enable-aggregator-routing=false".to_owned(),
        "--authorization-mode=RBAC".to_owned(),
        // Pods that stand in for the enclaves' need no token, and there is no controller that makes one.
        "--disable-admission-plugins=ServiceAccount".to_owned(),
        format!("--client-ca-file={}", file("cluster.crt")),
        format!("--tls-cert-file={}", file("apiserver.crt")),
        format!("--tls-private-key-file={}", file("apiserver.key")),
        "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
        "--api-audiences=https://kubernetes.default.svc".to_owned(),
        format!("--service-account-key-file={}", file("accounts.pub")),
        format!("--service-account-signing-key-file={}", file("accounts.key")),
        format!("--requestheader-client-ca-file={}", file("front.crt")),
        "--requestheader-allowed-names=front-proxy-client".to_owned(),
        "--requestheader-username-headers=X-Remote-User".to_owned(),
        "--requestheader-group-headers=X-Remote-Group".to_owned(),
        "--requestheader-extra-headers-prefix=X-Remote-Extra-".to_owned(),
        format!("--proxy-client-cert-file={}", file("front-client.crt")),
        format!("--proxy-client-key-file={}", file("front-client.key")),
    ];
    Process::start("kube-apiserver", &words)
}

fn start_controller_manager(directory: &Path) -> Process {
    let keys = directory.join("keys");
    let file = |name: &str| keys.join(name).display().to_string();
    let kubeconfig = file("controller-manager.kubeconfig");
    let words = [
        programs::word("kube-controller-manager"),
        format!("--kubeconfig={kubeconfig}"),
        format!("--authentication-kubeconfig={kubeconfig}"),
        format!("--authorization-kubeconfig={kubeconfig}"),
        "--bind-address=127.0.0.1".to_owned(),
        format!("--secure-port={CONTROLLER_MANAGER}"),
        format!("--cert-dir={}", directory.join("controller-manager").display()),
        "--leader-elect=false".to_owned(),
        "--use-service-account-credentials=true".to_owned(),
        format!("--service-account-private-key-file={}", file("accounts.key")),
        format!("--root-ca-file={}", file("cluster.crt")),
        "--controllers=horizontal-pod-autoscaler-controller,namespace-controller,serviceaccount-controller"
            .to_owned(),
        // 15 s and 5 min by default: the tests are about what it decides, not how seldom.
        "--horizontal-pod-autoscaler-sync-period=1s".to_owned(),
        "--horizontal-pod-autoscaler-downscale-stabilization=3s".to_owned(),
    ];
    let process = Process::start("kube-controller-manager", &words);
    web::until_listening("kube-controller-manager", CONTROLLER_MANAGER);
    process
}
