//! The vendors' documents on a real control plane: the HPA reads what enclaves tell and moves the
//! deployment, and each replica is a further enclave.

use std::{
    fs,
    path::Path,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::{
    backend::example,
    cluster::Cluster,
    deployment::{Deployment, Plan},
    patience::{Deadline, PATIENCE, eventually},
    process::Process,
};

const NAME: &str = "hello-fastapi";
/// What one enclave should use, in place of the vendor's five bytes.
const SENSIBLE: &str = "100Mi";
/// What hello allocates: with the 20 to 40 MiB of an enclave's programs the sum over three enclaves is
/// within the HPA's tolerance of three times [`SENSIBLE`].
const ALLOCATED_MIB: u32 = 220;
/// Longest time from a change inside an enclave to the change of spec.replicas that it causes.
const REACTION_PATIENCES: usize = 3;

/// The deployment hello-fastapi is one test's at a time.
static DEPLOYMENT: Mutex<()> = Mutex::new(());

/// Stands in for the deployment's controller, which there is not yet: as many enclaves run as spec.replicas
/// says, and the status tells it.
struct Controller<'a> {
    cluster: &'static Cluster,
    /// A line with spec.replicas for every change of the deployment.
    watch: Process,
    handled: usize,
    enclaves: Vec<Deployment>,
    with_pods: bool,
    _alone: MutexGuard<'a, ()>,
}

impl Controller<'_> {
    /// Applies the vendor's deployment and starts its enclaves.
    fn start(cluster: &'static Cluster, with_pods: bool) -> Self {
        let alone = DEPLOYMENT.lock().unwrap_or_else(PoisonError::into_inner);
        for kind in ["hpa", "ned"] {
            cluster.kubectl(&["delete", kind, NAME, "--ignore-not-found"]);
        }
        cluster.apply(&vendor("hello-fastapi.yaml"));
        cluster.apply(&vendor("telemetry-config.yaml"));
        let watch = cluster.watch(&["ned", NAME, "-o", "jsonpath={.spec.replicas}{\"\\n\"}"]);
        let mut controller =
            Self { cluster, watch, handled: 0, enclaves: Vec::new(), with_pods, _alone: alone };
        controller.until(1);
        controller
    }

    /// Follows spec.replicas until it is `wanted` and as many enclaves run.
    fn until(&mut self, wanted: usize) {
        let deadlines = std::iter::repeat_with(Deadline::new).take(REACTION_PATIENCES);
        for deadline in deadlines {
            while !deadline.left().is_zero() {
                if self.enclaves.len() == wanted && self.handled > 0 {
                    return;
                }
                let handled = self.handled;
                let lines = eventually_or_none(
                    deadline,
                    || self.watch.stdout.wait("lines", |lines| Some(lines.to_vec())),
                    |lines: &Vec<String>| lines.len() > handled,
                );
                let Some(lines) = lines else { break };
                self.handled = lines.len();
                let replicas = lines.last().unwrap().parse().unwrap();
                self.scale(replicas);
            }
        }
        let described = self.cluster.kubectl(&["describe", "hpa", NAME]);
        panic!(
            "{} replicas instead of {wanted} after {REACTION_PATIENCES} × {PATIENCE:?}:\n{described}",
            self.enclaves.len()
        );
    }

    fn scale(&mut self, replicas: usize) {
        while self.enclaves.len() > replicas {
            let mut enclave = self.enclaves.pop().unwrap();
            let (proxy, supervisor) = enclave.stop();
            assert_eq!((proxy.code(), supervisor.code()), (Some(0), Some(0)));
            if self.with_pods {
                self.delete_pod(self.enclaves.len());
            }
        }
        while self.enclaves.len() < replicas {
            let number = self.enclaves.len();
            let mut plan = Plan::new(NAME, &pod(number));
            plan.has_boundary = true;
            self.enclaves.push(Deployment::start(&plan, &self.cluster.backend));
            if self.with_pods {
                self.create_pod(number);
            }
        }
        let status = format!("{{\"status\":{{\"replicas\":{replicas},\"selector\":\"ned_name={NAME}\"}}}}");
        self.cluster.kubectl(&["patch", "ned", NAME, "--subresource=status", "--type=merge", "-p", &status]);
    }

    /// A pod as that of an enclave's host-proxy, with no node: its status is written by hand.
    fn create_pod(&self, number: usize) {
        let name = pod(number);
        self.delete_pod(number);
        self.cluster.apply(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: default, labels: {{ned_name: {NAME}}}}}, \
             spec: {{nodeName: none, terminationGracePeriodSeconds: 0, containers: [{{name: host-proxy, image: none}}]}}}}"
        ));
        let status = r#"{"status":{"phase":"Running","conditions":[{"type":"Ready","status":"True"}]}}"#;
        self.cluster.kubectl(&["patch", "pod", &name, "--subresource=status", "--type=merge", "-p", status]);
    }

    fn delete_pod(&self, number: usize) {
        let now = ["--ignore-not-found", "--force", "--grace-period=0"];
        self.cluster.kubectl(&[&["delete", "pod", &pod(number)][..], &now].concat());
    }
}

impl Drop for Controller<'_> {
    fn drop(&mut self) {
        // The next test's deployment has the same name, and the HPA would move it.
        self.cluster.try_kubectl(&["delete", "hpa", NAME, "--ignore-not-found"]).ok();
    }
}

/// Asks until an answer fits; none when the time is over.
fn eventually_or_none<T>(
    deadline: Deadline,
    mut ask: impl FnMut() -> T,
    fits: impl Fn(&T) -> bool,
) -> Option<T> {
    while !deadline.left().is_zero() {
        let answer = ask();
        if fits(&answer) {
            return Some(answer);
        }
        std::thread::park_timeout(std::time::Duration::from_millis(50));
    }
    None
}

/// Ends a thread that loops, also when the test fails.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A document of the vendor's.
fn vendor(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/manifests").join(name)).unwrap()
}

fn pod(number: usize) -> String {
    format!("{NAME}-{number}")
}

#[test]
fn the_vendors_documents_reach_their_maximum_and_with_a_sensible_target_follow_the_enclaves_memory() {
    let Some(cluster) = Cluster::enter() else { return };
    let mut controller = Controller::start(cluster, false);
    let hpa = fs::read_to_string(example("hpa-memory.yaml")).unwrap();
    cluster.apply(&hpa);
    controller.until(3);

    let sensible = hpa.replace("averageValue: \"5\"", &format!("averageValue: {SENSIBLE}"));
    assert_ne!(sensible, hpa);
    cluster.apply(&sensible);
    controller.until(1);

    assert_eq!(controller.enclaves[0].ask("GET", &format!("/alloc?mib={ALLOCATED_MIB}")).status, 200);
    controller.until(3);
    assert_eq!(controller.enclaves[0].ask("DELETE", "/alloc").status, 200);
    controller.until(1);
}

#[test]
fn the_second_vendors_hpa_is_accepted_as_written_and_follows_a_load_inside_the_enclave() {
    let Some(cluster) = Cluster::enter() else { return };
    let mut controller = Controller::start(cluster, true);
    cluster.apply(&fs::read_to_string(example("hpa-pods-cpu.yaml")).unwrap());
    let target = "jsonpath={.spec.metrics[0].pods.target}";
    let accepted = cluster.kubectl(&["get", "hpa", NAME, "-o", target]);
    assert_eq!(accepted, r#"{"averageValue":"750m","type":"Utilization"}"#);
    // The HPA reads the metric before there is a load.
    eventually("the HPA to read the metric", || {
        let current = "jsonpath={.status.currentMetrics[0].pods.current.averageValue}";
        Some(cluster.kubectl(&["get", "hpa", NAME, "-o", current])).filter(|value| !value.is_empty())
    });

    let port = controller.enclaves[0].host_port;
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                // The enclave may be gone before the answer.
                crate::deployment::try_ask(port, "GET", "/work?ms=2000&threads=2").ok();
            }
        });
        let _done = Done(&done);
        controller.until(2);
    });
    controller.until(1);
}
