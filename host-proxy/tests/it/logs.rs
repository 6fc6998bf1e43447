//! Log records: written, flushed, then acknowledged; bounded when nobody reads.

use enclave_protocol::control::{FileBytes, Phase};
use serde_json::json;

use crate::{
    enclave::Enclave,
    scene::{Scene, get},
};

#[tokio::test]
async fn a_record_comes_out_as_one_json_line_with_its_origin() {
    let scene = Scene::new().await;
    let enclave = Enclave::start(scene.dir.path(), "boot-1");
    let mut running = scene.start(&["--instance-id=pod-1"]).await;
    enclave.log("a \"quoted\" line");
    enclave.inside.send_modify(|inside| {
        let mut record = inside.logs[0].clone();
        record.seq = 5;
        record.text = None;
        record.base64 = Some(FileBytes(vec![0xff]));
        record.dropped = 2;
        inside.status.log_seq = 5;
        inside.logs.push(record);
    });
    assert_eq!(
        running.line().await,
        json!({"bootId": "boot-1", "deployment": "hello", "instance": "pod-1", "seq": 1,
            "time": "1970-01-01T00:00:00.000000001Z", "plugin": "app", "stream": "stdout",
            "text": "a \"quoted\" line"})
    );
    let second = running.line().await;
    assert_eq!((&second["base64"], &second["dropped"]), (&json!("/w=="), &json!(2)));
    // 2, 3 and 4 are missing: two were dropped, one never came.
    let (_, page) = get(running.metrics, "/metrics", "text/plain").await;
    assert!(page.contains("enclave_host_log_dropped_total{oblv_deployment_name=\"hello\"} 2\n"), "{page}");
    assert!(page.contains("enclave_host_log_skipped_total{oblv_deployment_name=\"hello\"} 1\n"), "{page}");
}

#[tokio::test]
async fn a_stream_that_breaks_goes_on_after_the_last_record_and_nothing_comes_twice() {
    let scene = Scene::new().await;
    let enclave = Enclave::start(scene.dir.path(), "boot-1");
    enclave.inside.send_modify(|inside| inside.cut_logs_after = Some(3));
    let mut running = scene.start(&[]).await;
    for n in 1..=20 {
        enclave.log(&n.to_string());
    }
    for n in 1..=20 {
        assert_eq!(running.line().await["seq"], n);
    }
    let requests = enclave.inside.borrow().log_requests.clone();
    assert!(requests.len() >= 6 && requests.is_sorted(), "{requests:?}");
}

#[tokio::test]
async fn nothing_is_acknowledged_while_stdout_blocks_and_memory_stays_bounded() {
    let scene = Scene::new().await;
    let enclave = Enclave::start(scene.dir.path(), "boot-1");
    let mut running = scene.start_with_stdout(&[], 64).await;
    enclave.until(|inside| inside.status.phase == Phase::Running).await;
    let text = "x".repeat(16 << 10);
    for _ in 0..400 {
        enclave.log(&text);
    }
    // The first line is under way: the proxy has begun to write and cannot end it.
    enclave.until(|inside| !inside.log_requests.is_empty()).await;
    running.until_ready_is(200).await;
    let (_, page) = get(running.metrics, "/metrics", "text/plain").await;
    let metric = |name: &str| page.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
    assert!(metric("enclave_host_log_records_total").ends_with(" 0"), "{page}");
    assert_eq!(enclave.inside.borrow().acks, []);
    assert!(scene.state()["session"]["logSeq"] == 0);

    for n in 1..=400 {
        assert_eq!(running.line().await["seq"], n);
        let acknowledged = enclave.inside.borrow().acks.iter().map(|ack| ack.log_seq).max().unwrap_or(0);
        // Written and flushed into the pipe before: beyond what was read lie at most the 64 bytes of the
        // pipe.
        assert!(acknowledged <= n, "{acknowledged} is acknowledged and {n} is read");
    }
    enclave.until(|inside| inside.acks.iter().any(|ack| ack.log_seq == 400)).await;
}
