//! An enclave that has stopped is no load any more: its series end, whichever way they take, and the
//! adapter has nothing to say of them within a minute.

use std::time::{Duration, Instant};

use crate::{
    backend::{Backend, Ports, Way},
    cluster::Cluster,
    deployment::{Deployment, Plan},
    patience::eventually,
};

/// From the stop of an enclave until the adapter stops answering: the aim of the whole way.
const SILENCE_MAX: Duration = Duration::from_mins(1);
/// Stops over each way. More, for an evening: `ENCLAVE_TEST_STOPS=50`.
const STOPS: usize = 5;
const STOPS_VARIABLE: &str = "ENCLAVE_TEST_STOPS";
/// Enclaves that run at a time.
const BATCH: usize = 5;
const METRIC: &str = "nitro_enclave_memory_usage";

fn check(way: Way, label: &str, base: u16) {
    let Some(cluster) = Cluster::enter() else { return };
    let directory = tempfile::tempdir().unwrap();
    let backend = Backend::start(way, Ports(base), directory.path());
    let adapter_port = base + 9;
    let _adapter = cluster.start_adapter(adapter_port, &backend);
    let stops = std::env::var(STOPS_VARIABLE).map_or(STOPS, |count| count.parse().unwrap());
    let mut times = Vec::new();
    while times.len() < stops {
        let first = times.len();
        let names: Vec<String> =
            (first..stops.min(first + BATCH)).map(|n| format!("ending-{label}-{n}")).collect();
        let mut enclaves: Vec<Deployment> =
            names.iter().map(|name| Deployment::start(&Plan::new(name, name), &backend)).collect();
        let answers = |name: &str| {
            !cluster.external(adapter_port, METRIC, &format!("oblv_deployment_name={name}")).is_empty()
        };
        for name in &names {
            eventually(&format!("the adapter to know {name}"), || answers(name).then_some(()));
        }
        let mut stopped = Vec::new();
        for enclave in &mut enclaves {
            enclave.stop();
            stopped.push(Instant::now());
        }
        for (name, stopped) in names.iter().zip(stopped) {
            while answers(name) {
                assert!(
                    stopped.elapsed() < SILENCE_MAX,
                    "{name} has ended, and the adapter answers {METRIC} of it"
                );
                std::thread::park_timeout(Duration::from_millis(200));
            }
            times.push(stopped.elapsed());
        }
    }
    let slowest = times.iter().max().unwrap();
    assert_eq!(times.len(), stops);
    eprintln!("{label}: {stops} of {stops} stops, the slowest silent after {slowest:.1?}");
}

#[test]
fn the_adapter_stops_answering_after_an_enclaves_end_by_the_collectors_page() {
    check(Way::Page, "page", 12_000);
}

#[test]
fn the_adapter_stops_answering_after_an_enclaves_end_by_remote_write() {
    check(Way::RemoteWrite, "write", 12_100);
}

#[test]
fn the_adapter_stops_answering_after_an_enclaves_end_by_prometheus_otlp_receiver() {
    check(Way::Otlp, "otlp", 12_200);
}
