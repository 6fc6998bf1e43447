//! The main path: the vendor's deployment, from the manifest to OTLP metrics at a collector, and what
//! survives.

use std::{
    collections::BTreeMap,
    fs,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use enclave_protocol::control::{Phase, PluginPhase};
use serde_json::{Value, json};

use crate::{
    enclave::{How, is},
    otlp::Point,
    process::kill_9,
    proxy::{Whole, records},
    scene::{Scene, image},
};

const CPU: &str = "nitro_enclave_cpu_usage";
const MEMORY: &str = "nitro_enclave_memory_usage";

/// The value of a metric's only point.
fn value(points: &[Point], metric: &str) -> Option<f64> {
    points.iter().find(|point| point.metric == metric)?.value
}

/// Every point says whose it is.
fn check_labels(points: &[Point]) {
    for point in points {
        let label = |name: &str| point.attributes.get(name).map(String::as_str);
        assert_eq!(label("oblv_deployment_name"), Some("hello-fastapi"), "{point:?}");
        assert_eq!(label("ned_name"), Some("hello-fastapi"), "{point:?}");
        assert_eq!(label("namespace"), Some("default"), "{point:?}");
        // The Collector's Prometheus exporter makes both of the resource, and drops a family that has its
        // own.
        assert_eq!((label("instance"), label("job")), (None, None), "{point:?}");
        let instance = point.resource.get("service.instance.id");
        assert!(instance.is_some_and(|instance| !instance.is_empty()), "{point:?}");
    }
}

#[test]
fn the_vendors_deployment_runs_and_its_metrics_arrive_with_its_name_on_every_point() {
    let mut whole = Whole::start();
    let export = whole.collector.until("both headline metrics", |exports| {
        exports.iter().find(|points| value(points, CPU).is_some() && value(points, MEMORY).is_some()).cloned()
    });
    for metric in [CPU, MEMORY] {
        let found: Vec<_> = export.iter().filter(|point| point.metric == metric).collect();
        let [point] = found[..] else { panic!("{metric}: {found:?}") };
        assert_eq!((point.kind.as_str(), point.unit.as_str(), point.flags), ("gauge", "", 0));
        assert!((0.0..=1.0).contains(&point.value.unwrap()), "{point:?}");
    }
    let answer = whole.ask("GET", "/");
    assert_eq!(answer.status, 200);
    assert!(answer.text().starts_with("hello from pid 2"), "{}", answer.text());

    let page: Value = whole.metrics_page("").json();
    let number = |name: &str| page[name].as_f64().unwrap_or_else(|| panic!("{name}: {page}"));
    let expected = 1.0 - number("MemAvailable") / number("MemTotal");
    assert_eq!(number(MEMORY).to_bits(), expected.to_bits(), "equal, not nearly");
    assert!((0.0..=1.0).contains(&number(CPU)));
    let text = whole.metrics_page("accept: text/plain;version=0.0.4\r\n").text();
    let line = format!("{CPU}{{namespace=");
    assert!(
        text.lines().any(|l| l.starts_with(&line) && l.contains("oblv_deployment_name=\"hello-fastapi\"")),
        "{text}"
    );

    let (exit, last, supervisor) = whole.stop();
    assert_eq!((exit.code(), supervisor.code()), (Some(0), Some(0)), "{last:#}");
    assert_eq!(
        (&last["event"], &last["exitCode"], &last["phase"]),
        (&json!("end"), &json!(0), &json!("Completed"))
    );
    let ends: Vec<_> = last["plugins"]
        .as_array()
        .unwrap()
        .iter()
        .map(|plugin| (&plugin["name"], &plugin["exit"]["code"]))
        .collect();
    assert_eq!(ends, [(&json!("telemetry"), &json!(0)), (&json!("fastapi"), &json!(0))]);

    let points = whole.collector.points();
    check_labels(&points);
    let ended: Vec<_> =
        points.iter().filter(|point| point.flags & 1 == 1).map(|point| point.metric.as_str()).collect();
    assert!(ended.contains(&CPU) && ended.contains(&MEMORY), "the series are ended: {ended:?}");
}

#[test]
fn memory_usage_is_one_minus_available_over_total_of_the_raw_values_beside_it() {
    let mut whole = Whole::start();
    let samples = whole.collector.until("three samples", |exports| {
        let mut samples: BTreeMap<u64, BTreeMap<String, f64>> = BTreeMap::new();
        for point in exports.iter().flatten() {
            if let Some(value) = point.value {
                samples.entry(point.time).or_default().insert(point.metric.clone(), value);
            }
        }
        samples.retain(|_, values| values.contains_key(MEMORY));
        (samples.len() >= 3).then_some(samples)
    });
    for values in samples.values() {
        let expected = 1.0 - values["enclave_memory_available_bytes"] / values["enclave_memory_total_bytes"];
        // On their way the numbers were decimal text twice, whose last bit may differ.
        assert!((values[MEMORY] - expected).abs() < 1e-12, "{values:?}");
    }
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap();
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")).unwrap();
    let total: f64 = total.trim().trim_end_matches(" kB").parse().unwrap();
    let values = samples.values().next().unwrap();
    assert_eq!((total * 1024.0).to_bits(), values["enclave_memory_total_bytes"].to_bits());
}

/// A reading of `/proc/stat` by the test itself.
#[derive(Debug, Clone, Copy)]
struct Ticks {
    at: u64,
    idle: u64,
    total: u64,
}

impl Ticks {
    fn read() -> Self {
        let text = fs::read_to_string("/proc/stat").unwrap();
        let at = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()).unwrap();
        // user nice system idle iowait irq softirq steal; guest time is in user time already.
        let line = text.lines().next().and_then(|line| line.strip_prefix("cpu ")).unwrap();
        let ticks: Vec<u64> = line.split_whitespace().take(8).map(|word| word.parse().unwrap()).collect();
        Self { at, idle: ticks[3] + ticks[4], total: ticks.iter().sum() }
    }

    fn usage_since(self, before: Self) -> f64 {
        1.0 - (self.idle - before.idle) as f64 / (self.total - before.total) as f64
    }
}

/// Ends a thread that loops, also when the test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn cpu_usage_follows_a_known_load_as_proc_stat_counts_it() {
    const INTERVAL: Duration = Duration::from_secs(2);
    /// Readings further from a sample than this say nothing about its window: the test was held up.
    const NEAR: u64 = 40_000_000;
    const WINDOWS: usize = 3;
    let how = How { sample_interval: Some(2), ..How::default() };
    let mut whole = Whole::start_with(Scene::new(), how, |manifest| manifest);
    let done = AtomicBool::new(false);
    let port = whole.host_port;
    let (readings, samples) = thread::scope(|scope| {
        let stop = Stop(&done);
        let reader = scope.spawn(|| {
            let mut readings = Vec::new();
            while !done.load(Ordering::Relaxed) {
                readings.push(Ticks::read());
                thread::park_timeout(Duration::from_millis(5));
            }
            readings
        });
        let load = scope.spawn(move || crate::proxy::ask(port, "GET", "/work?ms=9000&threads=1", ""));
        let begun = Ticks::read().at;
        let samples = whole.collector.until("samples under load", |exports| {
            let points = exports.iter().flatten().filter(|point| point.metric == CPU && point.time > begun);
            let samples: BTreeMap<u64, f64> =
                points.filter_map(|point| Some((point.time, point.value?))).collect();
            (samples.len() > WINDOWS + 1).then_some(samples)
        });
        assert_eq!(load.join().unwrap().status, 200);
        drop(stop);
        (reader.join().unwrap(), samples)
    });
    let nearest = |at: u64| readings.iter().copied().min_by_key(|ticks| ticks.at.abs_diff(at)).unwrap();
    let times: Vec<u64> = samples.keys().copied().collect();
    let mut compared = Vec::new();
    for window in times.windows(2) {
        let (before, after) = (nearest(window[0]), nearest(window[1]));
        let is_whole = u128::from(window[1] - window[0]) < INTERVAL.as_nanos() * 3 / 2;
        if is_whole && before.at.abs_diff(window[0]) < NEAR && after.at.abs_diff(window[1]) < NEAR {
            compared.push((samples[&window[1]], after.usage_since(before)));
        }
    }
    assert!(compared.len() >= WINDOWS, "{compared:?} of {times:?}");
    for (told, counted) in &compared {
        assert!((told - counted).abs() < 0.05, "told {told}, counted {counted}: {compared:?}");
    }
    let cores = thread::available_parallelism().unwrap().get() as f64;
    let highest = compared.iter().map(|(told, _)| *told).fold(0.0, f64::max);
    assert!(highest > 0.8 / cores, "one core was busy: {compared:?}");
}

/// Adds a plugin that writes numbered lines until it is told to stop.
fn with_writer(manifest: &str) -> String {
    let script =
        "trap 'echo last $n; exit 0' TERM; n=0; while :; do n=$((n+1)); echo line $n; usleep 10000; done";
    let writer = format!(
        "    - name: writer\n      image: {}\n      command: [\"/bin/sh\", \"-c\", {}]\n  plugins:\n",
        image("writer"),
        json!(script)
    );
    manifest.replace("  plugins:\n", &writer)
}

/// The numbers of the writer's lines, and its last word.
fn numbers<'a>(records: impl Iterator<Item = &'a Value>) -> (Vec<u64>, Option<u64>) {
    let mut numbers = Vec::new();
    let mut last = None;
    for record in records.filter(|record| record["plugin"] == "writer") {
        let text = record["text"].as_str().unwrap();
        if let Some(number) = text.strip_prefix("line ") {
            numbers.push(number.parse().unwrap());
        } else {
            last = text.strip_prefix("last ").map(|number| number.parse().unwrap());
        }
    }
    (numbers, last)
}

#[test]
fn killed_telemetry_net_and_host_proxy_are_not_noticed_by_user_plugins_and_lose_nothing() {
    let scene = Scene::new();
    scene.busybox("writer", json!({}));
    let mut whole = Whole::start_with(scene, How::default(), |manifest| with_writer(&manifest));
    let until_more_lines = |whole: &Whole| {
        let now = whole.proxy.stdout.wait("stdout", |lines| Some(lines.len()));
        whole.proxy.stdout.wait("more lines", |lines| (lines.len() > now + 50).then_some(()));
    };
    until_more_lines(&whole);
    whole.collector.until_more(2);
    let users = |whole: &Whole| ["fastapi", "writer"].map(|name| whole.enclave.plugin(name).pid.unwrap());
    let before = users(&whole);

    kill_9(whole.enclave.plugin("telemetry").pid.unwrap());
    let restarted = |event: &_| is(event, "telemetry", "Started") && event.message.contains("restart 1");
    whole.enclave.events().until("another telemetry", restarted);
    whole.collector.until_more(2);
    until_more_lines(&whole);

    kill_9(whole.enclave.net());
    whole.enclave.events().until("another net", |event| event.reason == "NetRestarted");
    whole.collector.until_more(2);
    until_more_lines(&whole);

    let mut printed = whole.replace_proxy();
    whole.collector.until_more(2);
    until_more_lines(&whole);
    assert_eq!(whole.ask("GET", "/").status, 200);

    assert_eq!(users(&whole), before, "no user plugin was started again");
    for name in ["fastapi", "writer"] {
        let plugin = whole.enclave.plugin(name);
        assert_eq!((plugin.phase, plugin.restarts), (PluginPhase::Running, 0));
    }
    assert_eq!(whole.enclave.plugin("telemetry").restarts, 1);

    let (exit, last, supervisor) = whole.stop();
    assert_eq!((exit.code(), supervisor.code()), (Some(0), Some(0)), "{last:#}");
    printed.extend(whole.proxy.stdout.to_end());
    let records = records(&printed);
    let boots: std::collections::BTreeSet<_> = records.keys().map(|(boot_id, _)| boot_id).collect();
    assert_eq!(boots.len(), 1);
    let seqs: Vec<u64> = records.keys().map(|(_, seq)| *seq).collect();
    assert_eq!(seqs, (1..=seqs.len() as u64).collect::<Vec<_>>(), "every record of every source arrived");
    assert!(records.values().all(|record| record.get("dropped").is_none()));
    let (numbers, said) = numbers(records.values());
    assert_eq!(said, numbers.last().copied());
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>(), "each line once, in order");
    let points = whole.collector.points();
    check_labels(&points);
}

#[test]
fn a_workload_that_fails_ends_host_proxy_with_code_4_and_its_own_code_in_the_last_line() {
    let mut whole = Whole::start_with(Scene::new(), How::default(), |manifest| {
        manifest.replace("    - name: fastapi\n", "    - name: fastapi\n      restartPolicy: Never\n")
    });
    assert_eq!(whole.ask("POST", "/exit?code=42").status, 202);
    let (exit, last, supervisor) = whole.end();
    assert_eq!((exit.code(), supervisor.code()), (Some(4), Some(4)), "{last:#}");
    assert_eq!((&last["exitCode"], &last["phase"]), (&json!(4), &json!("Failed")));
    let fastapi =
        last["plugins"].as_array().unwrap().iter().find(|plugin| plugin["name"] == "fastapi").unwrap();
    assert_eq!(
        (&fastapi["phase"], &fastapi["exit"]["code"], &fastapi["restarts"]),
        (&json!("Failed"), &json!(42), &json!(0))
    );
}

#[test]
fn a_second_host_proxy_with_another_manifest_on_disk_goes_on_with_the_one_that_runs() {
    let mut whole = Whole::start();
    let pid = whole.enclave.plugin("fastapi").pid;
    let path = whole.enclave.scene.path("manifest.yaml");
    let changed = fs::read_to_string(&path).unwrap().replace("name: hello-fastapi", "name: another");
    fs::write(&path, changed).unwrap();
    whole.replace_proxy();
    whole
        .proxy
        .stderr
        .wait("the drift", |lines| lines.iter().any(|line| line.contains("ManifestDrift")).then_some(()));
    let status = whole.enclave.client.status();
    assert_eq!((status.deployment.as_deref(), status.phase), (Some("hello-fastapi"), Phase::Running));
    assert_eq!(whole.enclave.plugin("fastapi").pid, pid);
    assert_eq!(whole.ask("GET", "/").status, 200);
}
