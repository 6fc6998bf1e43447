//! The main path over a real vsock, and what ends a machine.

use std::collections::BTreeSet;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::{
    collector::Collector,
    image,
    machine::{Bed, Machine},
    proxy::{COLLECTOR, Proxy},
    scene::{Scene, deployment, deployment_with, script, with},
};

/// Grandchildren that lose their parents at once.
const ORPHANS: usize = 300;

/// Says what it sees of the machine, lets a storm of orphans go, of which its own init leaves nothing, and
/// then counts lines until it is stopped.
fn witness() -> Value {
    let text = format!(
        "echo memory $(grep MemTotal /proc/meminfo)\n\
         echo files $(ulimit -n)\n\
         mkfifo /tmp/gate; exec 3<>/tmp/gate; i=0\n\
         while [ $i -lt {ORPHANS} ]; do (dd bs=1 count=1 <&3 >/dev/null 2>&1 &); i=$((i+1)); done\n\
         before=$(ls /proc | grep -c '^[0-9]'); echo storm $before\n\
         yes | head -c {ORPHANS} >&3; exec 3>&-\n\
         while grep -q '^Name:.dd' /proc/[0-9]*/status 2>/dev/null; do usleep 100000; done\n\
         echo zombies $(cat /proc/[0-9]*/stat 2>/dev/null | grep -c ') Z ')\n\
         trap 'echo last $n; exit 0' TERM; n=0\n\
         while :; do n=$((n+1)); echo line $n; usleep 50000; done"
    );
    script("app", &text)
}

/// A telemetry plugin that sends to the test's collector.
fn telemetry() -> Value {
    json!({
        "telemetry": {
            "name": "telemetry",
            "env": [
                {"name": "EXPORTER_URL", "value": format!("http://{}:{}", COLLECTOR.0, COLLECTOR.1)},
                {"name": "ENCLAVE_EXPORT_INTERVAL", "value": "1s"},
            ],
            "outboundConnections": [{"fqdn": COLLECTOR.0, "port": COLLECTOR.1}],
        }
    })
}

/// The numbers of the witness's lines, over all that host-proxies printed, and its last word.
fn numbers(lines: &[String]) -> (Vec<u64>, Option<u64>) {
    let mut seen = BTreeSet::new();
    let mut numbers = Vec::new();
    let mut last = None;
    for record in lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        let Some(text) = record["text"].as_str().filter(|_| record["plugin"] == "app") else { continue };
        assert!(record.get("dropped").is_none(), "{record}");
        if !seen.insert(record["seq"].as_u64()) {
            continue;
        }
        match text.split_once(' ') {
            Some(("line", number)) => numbers.push(number.parse().unwrap()),
            Some(("last", number)) => last = Some(number.parse().unwrap()),
            Some(_) | None => {}
        }
    }
    (numbers, last)
}

#[test]
fn as_pid_1_of_a_machine_it_runs_the_main_path_over_vsock() {
    let scene = Scene::with_app();
    let manifest = deployment_with(json!([witness()]), json!({"plugins": telemetry()}));
    let image = image::build(&scene, &manifest, &["--policy=any"]);
    let mut machine = Machine::boot(&scene, &image, Bed::Stock, "enclave.sample-interval=1");
    let mut collector = Collector::start();
    let mut proxy = Proxy::start(&scene, Some(collector.address));
    proxy.until_accepted();
    machine.says("Run /init as init process");
    machine.says("\"program\":\"/enclave-init\"");
    let memory = proxy.line("app", "memory ");
    let files: u64 = proxy.line("app", "files ").trim_start_matches("files ").parse().unwrap();
    assert!(files >= 1 << 20, "descriptors are limited to {files}");
    let processes: usize = proxy.line("app", "storm ").trim_start_matches("storm ").parse().unwrap();
    assert!(processes >= ORPHANS, "{processes} processes at the height of the storm");
    assert_eq!(proxy.line("app", "zombies "), "zombies 0");

    // The numbers are the machine's own: this host has another amount of memory.
    let kilobytes: f64 = memory.split_whitespace().find_map(|word| word.parse().ok()).unwrap();
    let total = collector.until("both headline metrics", |exports| {
        let value = |name: &str| {
            let points = exports.iter().flatten();
            points.filter(|point| point.metric == name).find_map(|point| point.value)
        };
        let (cpu, used) = (value("nitro_enclave_cpu_usage")?, value("nitro_enclave_memory_usage")?);
        assert!((0.0..=1.0).contains(&cpu) && (0.0..=1.0).contains(&used), "{cpu} {used}");
        value("enclave_memory_total_bytes")
    });
    assert!((total - kilobytes * 1024.0).abs() < 1.0, "{total} is not {memory}");
    for point in collector.points() {
        assert_eq!(
            point.attributes.get("oblv_deployment_name").map(String::as_str),
            Some("test"),
            "{point:?}"
        );
    }

    let first = proxy.line("app", "line 10");
    let mut printed = proxy.replace();
    proxy.line("app", "line ");
    collector.until_more(2);
    assert_eq!(first, "line 10");

    proxy.process.signal(Signal::SIGTERM);
    let (exit, last) = proxy.end();
    assert_eq!((exit.code(), &last["phase"], &last["exitCode"]), (Some(0), &json!("Completed"), &json!(0)));
    machine.end();
    assert!(machine.console().contains("the machine is reset"));
    printed.extend(proxy.process.stdout.to_end());
    let (numbers, said) = numbers(&printed);
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>(), "each line once, in order");
    assert_eq!(said, numbers.last().copied(), "the last word arrived before the machine ended");
}

#[test]
fn a_workload_that_fails_ends_the_machine_and_host_proxy_with_code_4_and_its_own_code_in_the_last_line() {
    let scene = Scene::with_app();
    let manifest = deployment(json!([with(script("app", "exit 42"), json!({"restartPolicy": "Never"}))]));
    let image = image::build(&scene, &manifest, &["--policy=any"]);
    let mut machine = Machine::boot(&scene, &image, Bed::Stock, "");
    let mut proxy = Proxy::start(&scene, None);
    let (exit, last) = proxy.end();
    assert_eq!((exit.code(), &last["phase"]), (Some(4), &json!("Failed")), "{last:#}");
    let app = last["plugins"].as_array().unwrap().iter().find(|plugin| plugin["name"] == "app").unwrap();
    assert_eq!(app["exit"]["code"], json!(42));
    machine.end();
}
