//! Log records: nothing lost below the bound, exact counts above it, and never a plugin that waits for a
//! reader.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use enclave_protocol::control::{LogRecord, LogStream};
use serde_json::{Value, json};

use crate::{
    enclave::{Enclave, is, is_line},
    scene::{Scene, deployment, deployment_with, idle, script, with},
};

/// Lines of a burst: well within a source's 256 KiB.
const BURST: u64 = 1000;
const BURSTS: u64 = 10;

fn acknowledge(enclave: &Enclave, seq: u64) {
    let body = json!({"bootId": enclave.client.status().boot_id, "logSeq": seq});
    assert_eq!(enclave.client.call("POST", "/v1/ack", &body).status, 204);
}

fn number(record: &LogRecord) -> Option<u64> {
    if record.plugin == "app" { record.text.as_ref()?.parse().ok() } else { None }
}

/// A plugin that runs beside the one that is looked at, so that the deployment goes on.
fn beside(app: Value) -> (Scene, Value) {
    let scene = Scene::with_app();
    scene.busybox("stay", json!({}));
    (scene, deployment(json!([with(app, json!({"restartPolicy": "Never"})), idle("stay")])))
}

/// The gate that a plugin waits at: a named pipe in its /tmp.
fn gate(enclave: &Enclave) -> PathBuf {
    enclave.inside("app", "/tmp/gate")
}

fn open_gate(gate: &Path) {
    fs::OpenOptions::new().write(true).open(gate).unwrap().write_all(b"go\n").unwrap();
}

#[test]
fn ten_thousand_lines_arrive_complete_when_the_reader_acknowledges() {
    let text = format!(
        "mkfifo /tmp/gate; exec 3<>/tmp/gate; b=0\n\
         while [ $b -lt {BURSTS} ]; do seq $((b*{BURST}+1)) $(((b+1)*{BURST})); read go <&3; b=$((b+1)); done\n\
         exec sleep 1000"
    );
    let mut enclave = Scene::with_app().start();
    enclave.run(&deployment(json!([script("app", &text)])));
    let mut feed = enclave.logs();
    let mut records = Vec::new();
    for burst in 1..=BURSTS {
        let last = burst * BURST;
        records.extend(feed.up_to("the burst's last line", |record| number(record) == Some(last)));
        acknowledge(&enclave, records.last().unwrap().seq);
        open_gate(&gate(&enclave));
    }
    let seqs: Vec<u64> = records.iter().map(|record| record.seq).collect();
    assert_eq!(seqs, (1..=seqs.len() as u64).collect::<Vec<_>>(), "no gap, no repetition");
    assert!(records.iter().all(|record| record.dropped == 0 && !record.partial));
    let numbers: Vec<u64> = records.iter().filter_map(number).collect();
    assert_eq!(numbers, (1..=BURST * BURSTS).collect::<Vec<_>>());
    assert!(
        records
            .iter()
            .filter(|record| number(record).is_some())
            .all(|record| record.stream == LogStream::Stdout)
    );
    enclave.client.until_is("enclave_plugin_log_dropped_total", &[("plugin", "app")], 0.0);
    // What is acknowledged is forgotten and not reported as lost.
    let after = records.last().unwrap().seq;
    assert!(enclave.client.logs(0, false).all(|record| record.seq > after && record.dropped == 0));
}

#[test]
fn what_overflows_is_counted_exactly() {
    const LINES: u64 = 20_000;
    let (scene, manifest) = beside(script("app", &format!("seq 1 {LINES}")));
    let mut enclave = scene.start();
    enclave.run(&manifest);
    enclave.events().until("the end of the noise", |event| is(event, "app", "Completed"));
    // Nobody has read so far; the tail of the output may still be on its way.
    let mut feed = enclave.logs();
    let mut seen = feed.up_to("the last line", |record| number(record) == Some(LINES));
    // While that reader waited more may have been pushed out before it; a second one sees what is there now.
    let last = seen.pop().unwrap().seq;
    let kept: Vec<LogRecord> =
        enclave.client.logs(0, false).take_while(|record| record.seq <= last).collect();
    let dropped: u64 = kept.iter().map(|record| record.dropped).sum();
    assert!(dropped > LINES / 2, "{dropped}");
    assert_eq!(kept.len() as u64 + dropped, last, "every sequence number is seen or reported as dropped");
    let numbers: Vec<u64> = kept.iter().filter_map(number).collect();
    assert_eq!(
        numbers,
        (dropped + 1..=LINES).collect::<Vec<_>>(),
        "the newest are kept, the noise pushed out itself alone"
    );
    let supervisor = kept.iter().filter(|record| record.plugin == "supervisor").count();
    assert!(supervisor >= 4, "the supervisor's own first records are all there: {supervisor}");
    let plugin = [("plugin", "app")];
    enclave.client.until_is("enclave_plugin_log_dropped_total", &plugin, dropped as f64);
    let bytes: usize = (1..=LINES).map(|number| number.to_string().len()).sum();
    enclave.client.until_is("enclave_plugin_log_bytes_total", &plugin, bytes as f64);
}

#[test]
fn a_flood_above_the_rate_is_dropped_and_told_and_nobody_elses_records_are_lost() {
    const LINES: u64 = 1_500_000;
    let text = "all work and no play";
    let (scene, manifest) = beside(script("app", &format!("yes '{text}' | head -n {LINES}")));
    let mut enclave = scene.start();
    enclave.run(&manifest);
    let word = |record: &LogRecord| -> Option<u64> {
        let word: Value = serde_json::from_str(record.text.as_ref()?).ok()?;
        word["message"].as_str()?.contains("above the limit").then(|| word["dropped"].as_u64())?
    };
    let seen = enclave.logs().up_to("the supervisor's word", |record| word(record).is_some());
    let dropped: u64 = seen.iter().map(|record| record.dropped).sum();
    assert_eq!(seen.len() as u64 + dropped, seen.last().unwrap().seq, "every record is seen or told of");
    let limited = word(seen.last().unwrap()).unwrap();
    assert!(limited > 0 && limited <= dropped, "{limited} of {dropped}");
    let plugin = [("plugin", "app")];
    let at_least = |count| move |value| value >= count as f64;
    enclave.client.until_sampled("enclave_plugin_log_rate_limited_total", &plugin, at_least(limited));
    let bytes = LINES * text.len() as u64;
    enclave.client.until_is("enclave_plugin_log_bytes_total", &plugin, bytes as f64);
    enclave.client.until_is("enclave_supervisor_log_dropped_total", &[], 0.0);
}

#[test]
fn bytes_that_are_no_text_survive_and_streams_are_told_apart() {
    let mut enclave = Scene::with_app().start();
    let text =
        "printf '\\377\\000\\001ok\\n'; echo error >&2; printf 'no newline'; exec sleep 1000 >/dev/null";
    enclave.run(&deployment(json!([script("app", text)])));
    let mut feed = enclave.logs();
    let record = feed.until("the bytes", |record| record.base64.is_some());
    assert_eq!((record.base64.unwrap().0, record.text), (b"\xff\0\x01ok".to_vec(), None));
    let stderr = enclave.logs().until("the error", |record| is_line(record, "app", "error"));
    assert_eq!(stderr.stream, LogStream::Stderr);
    let last = enclave.logs().until("the unended line", |record| is_line(record, "app", "no newline"));
    assert_eq!((last.stream, last.partial), (LogStream::Stdout, false));
}

#[test]
fn output_without_a_newline_neither_blocks_the_plugin_nor_grows_the_supervisor() {
    const MIB: u64 = 50;
    let text = format!(
        "mkfifo /tmp/gate; exec 3<>/tmp/gate; echo ready; read go <&3; dd if=/dev/zero bs=1048576 count={MIB} | tr '\\000' x"
    );
    let (scene, manifest) = beside(script("app", &text));
    let mut enclave = scene.start();
    enclave.run(&manifest);
    enclave.line("app", "ready");
    let peak = |enclave: &Enclave| {
        let status = fs::read_to_string(format!("/proc/{}/status", enclave.pid)).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    let before = peak(&enclave);
    open_gate(&gate(&enclave));
    // Nobody reads the log.
    enclave.events().until("the end of the output", |event| is(event, "app", "Completed"));
    let bytes = MIB << 20;
    enclave
        .client
        .until_sampled("enclave_plugin_log_bytes_total", &[("plugin", "app")], |value| value >= bytes as f64);
    let grown = peak(&enclave) - before;
    assert!(grown < 8 << 10, "the supervisor grew by {grown} KiB");
    let kept: Vec<LogRecord> =
        enclave.client.logs(0, false).filter(|record| record.plugin == "app").collect();
    let longest = kept.iter().filter_map(|record| record.text.as_ref()).map(String::len).max();
    assert_eq!(longest, Some(16 << 10));
    assert!(kept.iter().any(|record| record.partial));
}

#[test]
fn a_manifest_that_gives_the_host_the_supervisors_records_gives_no_others() {
    let mut enclave = Scene::with_app().start();
    let app = with(script("app", "echo a secret; exit 0"), json!({"restartPolicy": "Never"}));
    enclave.run(&deployment_with(json!([app]), json!({"logs": {"host": "supervisor"}})));
    let end = "no user plugin can run again";
    let seen =
        enclave.logs().up_to("the end", |record| record.text.as_ref().is_some_and(|text| text.contains(end)));
    assert!(
        seen.iter().all(|record| record.plugin == "supervisor" && record.stream == LogStream::Supervisor)
    );
    assert!(!format!("{seen:?}").contains("secret"));
    assert_eq!(enclave.finish().exit.code(), Some(0));
}

#[test]
fn a_manifest_that_keeps_its_logs_inside_gives_the_host_none() {
    let mut enclave = Scene::with_app().start();
    let app = script("app", "echo a secret; exec sleep 1000");
    enclave.run(&deployment_with(json!([app]), json!({"logs": {"host": "none"}})));
    enclave.started("app");
    let seen: Vec<LogRecord> = enclave.client.logs(0, false).collect();
    assert_eq!(seen, []);
    enclave.drain(1);
    assert_eq!(enclave.finish().exit.code(), Some(0));
}
