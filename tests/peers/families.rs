//! Every family that an enclave produces exists in Prometheus, whichever way it takes, as one series for each
//! enclave.

use std::collections::BTreeSet;

use enclave_protocol::metrics::Family;

use crate::{
    backend::{Backend, Ports, Way},
    deployment::{Deployment, Plan},
    network::Network,
    patience::eventually,
    programs::at_hand,
    prometheus::Prometheus,
};

const PORTS: Ports = Ports(10_000);
const NAME: &str = "hello-fastapi";
/// Of the telemetry plugin's own making: the supervisor's sample does not have them.
const TELEMETRY_FAMILIES: [&str; 2] =
    ["enclave_telemetry_points_produced_total", "enclave_telemetry_points_sent_total"];
/// Families of a sample that has them at all.
const FAMILIES_MIN: usize = 20;

/// The names in Prometheus of all families of a sample that has those of `net`, which come last, as this
/// project translates them.
fn families(enclave: &Deployment) -> BTreeSet<String> {
    let names = eventually("a sample with the families of `net`", || {
        let sample = enclave.enclave.client.sample()?;
        let families = sample.families.iter().filter(|family| !family.points.is_empty());
        let names: BTreeSet<String> = families.map(Family::prometheus_name).collect();
        names.iter().any(|name| name.starts_with("enclave_egress_")).then_some(names)
    });
    assert!(names.len() > FAMILIES_MIN, "{names:?}");
    names
}

/// Waits until Prometheus has all of `expected`, and says which it lacks if it never does.
fn until_all(prometheus: Prometheus, selector: &str, expected: &BTreeSet<String>) {
    let missing = std::cell::RefCell::new(Vec::new());
    let seen = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        eventually("every family in Prometheus", || {
            let names = prometheus.names(selector);
            *missing.borrow_mut() = expected.difference(&names).cloned().collect();
            missing.borrow().is_empty().then_some(())
        });
    }));
    assert!(
        seen.is_ok(),
        "{} of {} families are not in Prometheus: {:?}",
        missing.borrow().len(),
        expected.len(),
        missing.borrow()
    );
}

fn check(way: Way) {
    if !at_hand(&["otelcol", "prometheus"]) {
        return;
    }
    let _network = Network::enter_new();
    let directory = tempfile::tempdir().unwrap();
    let backend = Backend::start(way, PORTS, directory.path());
    let prometheus = backend.prometheus;
    let enclaves =
        ["hello-0", "hello-1"].map(|instance| Deployment::start(&Plan::new(NAME, instance), &backend));

    // The CPU gauge has no value before the second sample.
    prometheus.until(&format!("count(nitro_enclave_cpu_usage{{ned_name=\"{NAME}\"}})"), |count| count > 1.5);
    let mut expected = families(&enclaves[0]);
    expected.extend(TELEMETRY_FAMILIES.map(str::to_owned));
    for instance in ["hello-0", "hello-1"] {
        let selector =
            format!("{{oblv_deployment_name=\"{NAME}\",namespace=\"default\",instance=\"{instance}\"}}");
        until_all(prometheus, &selector, &expected);
    }

    for headline in ["nitro_enclave_cpu_usage", "nitro_enclave_memory_usage"] {
        let series = prometheus.query(headline);
        let mut instances: Vec<&str> = series.iter().map(|series| series.label("instance")).collect();
        instances.sort_unstable();
        assert_eq!(instances, ["hello-0", "hello-1"], "one series for each enclave: {series:#?}");
        for series in &series {
            assert_eq!(
                (series.label("ned_name"), series.label("job")),
                (NAME, "default/hello-fastapi"),
                "{series:?}"
            );
            assert!((0.0..=1.0).contains(&series.value), "{series:?}");
        }
    }
    let doubled = prometheus.query("count by (__name__) ({__name__=~\"enclave_.*|nitro_.*|k8s_.*|container_.*\", exported_instance!=\"\"})");
    assert!(doubled.is_empty(), "honor_labels keeps the enclave's own: {doubled:#?}");
}

#[test]
fn every_family_is_in_prometheus_by_the_collectors_page() {
    check(Way::Page);
}

#[test]
fn every_family_is_in_prometheus_by_the_collectors_page_with_the_resources_attributes_as_labels() {
    check(Way::PageWithResource);
}

#[test]
fn every_family_is_in_prometheus_by_remote_write() {
    check(Way::RemoteWrite);
}

#[test]
fn every_family_is_in_prometheus_by_its_own_otlp_receiver() {
    check(Way::Otlp);
}
