//! A Collector that goes away and comes back: the newest samples of every series arrive, and every point
//! that was produced was sent or counted as dropped.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    arrived::{Point, exports},
    backend::{Backend, Ports, Way},
    deployment::{Deployment, Plan},
    network::Network,
    patience::eventually,
    programs::at_hand,
};

/// How long the Collector is away. Five minutes, for an evening: `ENCLAVE_TEST_OUTAGE_SECONDS=300`.
const OUTAGE_SECONDS: u64 = 8;
const OUTAGE_VARIABLE: &str = "ENCLAVE_TEST_OUTAGE_SECONDS";

/// The sum of the plugin's own counter in an export.
fn counter(export: &[Point], name: &str) -> Option<f64> {
    let values: Vec<f64> =
        export.iter().filter(|point| point.metric == name).filter_map(|point| point.value).collect();
    (!values.is_empty()).then(|| values.iter().sum())
}

/// Produced, sent, dropped and queued points at the time of an export.
fn account(export: &[Point]) -> Option<[f64; 4]> {
    let name = |what: &str| format!("enclave_telemetry_points_{what}");
    Some([
        counter(export, &name("produced_total"))?,
        counter(export, &name("sent_total"))?,
        counter(export, &name("dropped_total")).unwrap_or(0.0),
        counter(export, &name("queued"))?,
    ])
}

#[test]
fn after_an_outage_of_the_collector_the_newest_samples_arrive_and_the_plugins_account_is_exact() {
    if !at_hand(&["otelcol", "prometheus"]) {
        return;
    }
    let _network = Network::enter_new();
    let directory = tempfile::tempdir().unwrap();
    let mut backend = Backend::start(Way::Page, Ports(10_000), directory.path());
    let file = backend.arrived();
    let mut enclave = Deployment::start(&Plan::new("hello-fastapi", "hello-0"), &backend);
    eventually("exports", || (exports(&file).len() >= 3).then_some(()));

    backend.stop_collector();
    let before = exports(&file).len();
    let seconds = std::env::var(OUTAGE_VARIABLE).map_or(OUTAGE_SECONDS, |seconds| seconds.parse().unwrap());
    // The outage is time itself: there is nothing to wait for.
    std::thread::park_timeout(Duration::from_secs(seconds));
    let last = enclave.enclave.client.sample().unwrap();
    backend.start_collector();
    eventually("exports after the outage", || (exports(&file).len() >= before + 3).then_some(()));
    let newest: u64 = last.time.0;
    eventually("the newest sample of every series", || {
        let mut times: BTreeMap<String, u64> = BTreeMap::new();
        for point in exports(&file).into_iter().flatten().filter(|point| point.value.is_some()) {
            let time = times.entry(point.metric).or_default();
            *time = point.time.max(*time);
        }
        let has = |name: &str| times.get(name).is_some_and(|time| *time >= newest);
        last.families
            .iter()
            .filter(|family| !family.points.is_empty())
            .all(|family| has(&family.name))
            .then_some(())
    });

    eventually("an export with nothing queued before it", || {
        let [_, _, _, queued] = account(exports(&file).last()?)?;
        (queued < 0.5).then_some(())
    });

    enclave.stop();
    let exports = exports(&file);
    let (at, [produced, sent, dropped, queued]) = exports
        .iter()
        .enumerate()
        .rev()
        .find_map(|(at, export)| Some((at, account(export)?)))
        .expect("the account");
    // One batch at a time is sent, in the order in which they were made.
    let arrived: usize = exports[..at].iter().map(Vec::len).sum();
    assert!((produced - (sent + dropped + queued)).abs() < 0.5, "{produced} = {sent} + {dropped} + {queued}");
    assert!(
        (sent - arrived as f64).abs() < 0.5,
        "the plugin says {sent} were sent, the Collector has {arrived}"
    );
}
