//! The order in which things stop.

use enclave_host_proxy::{Exit, Stop};
use enclave_protocol::{
    control::{LastExit, Phase, PluginPhase},
    timestamp::Timestamp,
};
use serde_json::Value;
use tokio::{io::AsyncReadExt, net::TcpStream};

use crate::{enclave::Enclave, scene::Scene};

#[tokio::test]
async fn a_drain_keeps_logs_and_ingress_until_the_end_is_acknowledged() {
    let scene = Scene::new().await;
    let enclave = Enclave::start(scene.dir.path(), "boot-1");
    let mut running = scene.start(&[]).await;
    running.until_ready_is(200).await;
    running.stops.send(Stop { grace_seconds: None }).await.unwrap();
    let inside = enclave.until(|inside| !inside.drains.is_empty()).await;
    assert_eq!(inside.drains[0].grace_seconds, 5, "--drain-grace");
    running.until_ready_is(503).await;

    // The plugins are stopping; what they say and who talks to them still passes.
    enclave.log("goodbye");
    assert_eq!(running.line().await["text"], "goodbye");
    let tcp = TcpStream::connect(scene.host).await.unwrap();
    drop(tcp);

    enclave.log("the very last words");
    enclave.set_plugin(PluginPhase::Stopped, false, None);
    enclave.set_phase(Phase::Completed);
    let status_seq = enclave.inside.borrow().status.seq;
    assert_eq!(running.exit().await, Exit::Ok);
    assert_eq!(running.line().await["text"], "the very last words");
    let end = running.line().await;
    assert_eq!(
        (&end["event"], &end["phase"], &end["exitCode"]),
        (&"end".into(), &"Completed".into(), &0.into())
    );
    let inside = enclave.inside.borrow().clone();
    let last = inside.acks.last().unwrap();
    assert_eq!((last.log_seq, last.status_seq), (2, Some(status_seq)));
    assert_eq!(inside.drains.len(), 1);
    assert!(TcpStream::connect(scene.host).await.is_err(), "the listener is closed");
    let mut rest = Vec::new();
    running.stdout.into_inner().read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, b"", "the last line is the last line");
}

#[tokio::test]
async fn a_workload_that_fails_by_itself_ends_the_proxy_with_its_signal_in_the_last_line() {
    let scene = Scene::new().await;
    let enclave = Enclave::start(scene.dir.path(), "boot-1");
    let mut running = scene.start(&[]).await;
    running.until_ready_is(200).await;
    enclave.log("about to fail");
    let exit = LastExit { code: None, signal: Some(11), oom: false, error: None, time: Timestamp(0) };
    enclave.set_plugin(PluginPhase::Failed, false, Some(exit));
    enclave.set_phase(Phase::Failed);
    assert_eq!(running.exit().await, Exit::WorkloadFailed);
    assert_eq!(running.line().await["text"], "about to fail");
    let end = running.line().await;
    assert_eq!((&end["exitCode"], &end["phase"]), (&4.into(), &"Failed".into()));
    assert_eq!(end["plugins"][0]["exit"]["signal"], 11);
    assert!(enclave.inside.borrow().acks.iter().any(|ack| ack.status_seq.is_some() && ack.log_seq == 1));
}

#[tokio::test]
async fn what_is_logged_after_the_final_status_still_comes_out() {
    let scene = Scene::new().await;
    let enclave = Enclave::start(scene.dir.path(), "boot-1");
    let mut running = scene.start(&[]).await;
    running.until_ready_is(200).await;
    enclave.log("before");
    // The end counts as over only once this is acknowledged, and it is said after the first acknowledgement.
    enclave.inside.send_modify(|inside| inside.late_log = Some("after".into()));
    enclave.set_phase(Phase::Completed);
    assert_eq!(running.exit().await, Exit::Ok);
    assert_eq!(running.line().await["text"], "before");
    assert_eq!(running.line().await["text"], "after");
    assert_eq!(running.line().await["event"], "end");
    assert_eq!(enclave.inside.borrow().acks.last().unwrap().log_seq, 2);
}

#[tokio::test]
async fn an_end_while_stdout_blocks_is_bounded_and_acknowledges_only_what_was_written() {
    let scene = Scene::new().await;
    let enclave = Enclave::start(scene.dir.path(), "boot-1");
    let mut running = scene.start_with_stdout(&[], 16).await;
    running.until_ready_is(200).await;
    enclave.log("nobody reads this");
    enclave.set_phase(Phase::Completed);
    assert_eq!(running.exit().await, Exit::Ok);
    let inside = enclave.inside.borrow().clone();
    assert!(inside.acks.iter().all(|ack| ack.log_seq == 0), "{:?}", inside.acks);
    assert!(inside.acks.last().unwrap().status_seq.is_some());
}

#[tokio::test]
async fn a_boot_that_failed_ends_the_proxy_at_once_with_the_reason() {
    for (told, puts) in [(true, 0), (false, 1)] {
        let scene = Scene::new().await;
        let enclave = Enclave::start(scene.dir.path(), "boot-1");
        enclave.fail_boot("the heartbeat got no answer", told);
        let mut running = scene.start(&[]).await;
        assert_eq!(running.exit().await, Exit::WorkloadFailed);
        let end = running.line().await;
        assert_eq!((&end["exitCode"], &end["phase"]), (&4.into(), &"Failed".into()), "{end}");
        assert_eq!(end["reason"], "the enclave's boot failed: the heartbeat got no answer");
        assert_eq!(enclave.inside.borrow().puts, puts);
    }
}

#[tokio::test]
async fn a_boot_that_fails_after_the_manifest_was_taken_has_its_reason_in_the_last_line() {
    let scene = Scene::new().await;
    let enclave = Enclave::start(scene.dir.path(), "boot-1");
    let mut running = scene.start(&[]).await;
    running.until_ready_is(200).await;
    enclave.fail_boot("PCR 16 is locked already", true);
    assert_eq!(running.exit().await, Exit::WorkloadFailed);
    let end = running.line().await;
    assert_eq!(end["reason"], "the enclave's boot failed: PCR 16 is locked already");
}

/// The whole program: a signal drains it, and its exit code and last line say how it ended.
#[tokio::test]
#[expect(clippy::disallowed_types, reason = "the test of a signal needs a process")]
async fn sigterm_drains_the_program() {
    use std::process::{Command, Stdio};
    let scene = Scene::new().await;
    let enclave = Enclave::start(scene.dir.path(), "boot-1");
    let path = |name: &str| scene.dir.path().join(name);
    let program = Command::new(env!("CARGO_BIN_EXE_enclave-host-proxy"))
        .arg("run")
        .env_clear()
        .env("ENCLAVE_TRANSPORT", format!("unix:{}", path("v.sock").display()))
        .env("ENCLAVE_MANIFEST", path("m.yaml"))
        .env("ENCLAVE_CONFIG_DIR", path("config"))
        .env("ENCLAVE_STATE_DIR", path("state"))
        .env("ENCLAVE_ADMIN", path("admin.sock"))
        .env("ENCLAVE_METRICS_LISTEN", "127.0.0.1:0")
        .env("ENCLAVE_HEALTH_LISTEN", "127.0.0.1:0")
        .env("ENCLAVE_INGRESS_LISTEN", "127.0.0.1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    enclave.until(|inside| inside.status.phase == Phase::Running).await;
    enclave.log("written before the end");
    enclave.until(|inside| inside.acks.iter().any(|ack| ack.log_seq == 1)).await;
    let sent = Command::new("kill").args(["-TERM", &program.id().to_string()]).status().unwrap();
    assert!(sent.success());
    enclave.until(|inside| inside.drains.first().is_some_and(|drain| drain.grace_seconds == 25)).await;
    enclave.set_phase(Phase::Completed);
    let output = tokio::task::spawn_blocking(move || program.wait_with_output().unwrap()).await.unwrap();
    assert_eq!(output.status.code(), Some(0));
    let lines = |bytes: &[u8]| -> Vec<Value> {
        String::from_utf8_lossy(bytes).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let written = lines(&output.stdout);
    assert_eq!(written[0]["text"], "written before the end");
    assert_eq!((written.len(), &written[1]["event"]), (2, &"end".into()));
    let own = lines(&output.stderr);
    assert!(own.iter().any(|record| record["message"] == "draining the enclave"), "{own:?}");
}
