//! The manifest's way into the enclave, and restarts of either side.

use std::os::unix::fs::PermissionsExt;

use enclave_host_proxy::{Exit, Proxy, Stop};
use enclave_protocol::control::{Diagnostic, Phase};
use serde_json::json;

use crate::{
    enclave::{Enclave, refusal},
    scene::Scene,
};

#[tokio::test]
async fn the_manifest_and_its_files_go_in_and_the_session_is_stored_for_its_owner_alone() {
    let scene = Scene::new().await;
    let enclave = Enclave::start(scene.dir.path(), "boot-1");
    let running = scene.start(&["--instance-id=pod-1"]).await;
    running.until_ready_is(200).await;
    let request = enclave.inside.borrow().request.clone().unwrap();
    assert_eq!(request.files.config_maps["settings"]["key"].0, b"value");
    assert_eq!((request.instance_id.as_str(), request.egress_port), ("pod-1", 100_002));
    let state = scene.state();
    assert_eq!(state["session"]["token"], json!("token-of-boot-1"));
    assert_eq!(state["session"]["digest"], json!(enclave.inside.borrow().status.digest));
    let mode = std::fs::metadata(scene.dir.path().join("state/state.json")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn a_restarted_proxy_goes_on_with_its_token_without_loss_or_repetition() {
    let scene = Scene::new().await;
    let enclave = Enclave::start(scene.dir.path(), "boot-1");
    let mut running = scene.start(&[]).await;
    enclave.log("one");
    enclave.log("two");
    assert_eq!(running.line().await["text"], "one");
    assert_eq!(running.line().await["text"], "two");
    enclave.until(|inside| inside.acks.iter().any(|ack| ack.log_seq == 2)).await;
    let instance = scene.state()["instanceId"].clone();
    running.kill().await;
    enclave.log("three");

    let mut running = scene.start(&[]).await;
    let third = running.line().await;
    assert_eq!((&third["text"], &third["seq"]), (&json!("three"), &json!(3)));
    assert_eq!(third["instance"], instance, "the id outlives the process");
    let inside = enclave.until(|inside| inside.acks.iter().any(|ack| ack.log_seq == 3)).await;
    assert_eq!(inside.puts, 1, "a known boot gets no second manifest");
    assert!(inside.acks.iter().all(|ack| ack.boot_id == "boot-1"));
    running.until_ready_is(200).await;
}

#[tokio::test]
async fn a_restarted_enclave_gets_the_manifest_again_and_its_log_from_the_start() {
    let scene = Scene::new().await;
    let enclave = Enclave::start(scene.dir.path(), "boot-1");
    let mut running = scene.start(&[]).await;
    enclave.log("old");
    assert_eq!(running.line().await["bootId"], "boot-1");
    enclave.power_off().await;
    let enclave = Enclave::start(scene.dir.path(), "boot-2");
    let inside = enclave.until(|inside| inside.status.phase == Phase::Running).await;
    assert_eq!(inside.puts, 1);
    enclave.log("new");
    let line = running.line().await;
    assert_eq!((&line["bootId"], &line["seq"]), (&json!("boot-2"), &json!(1)));
    running.until_ready_is(200).await;
    assert_eq!(scene.state()["session"]["token"], json!("token-of-boot-2"));
}

#[tokio::test]
async fn every_mistake_that_the_enclave_names_ends_the_proxy_with_exit_code_2() {
    for (status, kind) in [(422, "ManifestInvalid"), (403, "PolicyRefused"), (409, "ManifestConflict")] {
        let scene = Scene::new().await;
        let enclave = Enclave::start(scene.dir.path(), "boot-1");
        let mistake = |line, message: &str| Diagnostic {
            line,
            column: 3,
            path: "spec".into(),
            message: message.into(),
        };
        let problem = refusal(status, kind, vec![mistake(4, "first mistake"), mistake(9, "second mistake")]);
        enclave.inside.send_modify(|inside| inside.refuse = Some(problem));
        let mut running = scene.start(&[]).await;
        assert_eq!(running.exit().await, Exit::Invalid, "{kind}");
        let end = running.line().await;
        let reason = end["reason"].as_str().unwrap();
        assert!(reason.contains(kind), "{reason}");
        assert!(reason.contains("m.yaml:4:3: spec: first mistake"), "{reason}");
        assert!(reason.contains("m.yaml:9:3: spec: second mistake"), "{reason}");
        assert_eq!(end["exitCode"], 2);
    }
}

#[tokio::test]
async fn a_plan_that_differs_from_our_own_reading_stops_the_proxy() {
    let scene = Scene::new().await;
    let enclave = Enclave::start(scene.dir.path(), "boot-1");
    enclave.inside.send_modify(|inside| inside.lie = true);
    let mut running = scene.start(&[]).await;
    assert_eq!(running.exit().await, Exit::Invalid);
    assert!(running.line().await["reason"].as_str().unwrap().contains("reads the manifest differently"));
}

#[tokio::test]
async fn a_manifest_with_mistakes_never_reaches_the_enclave() {
    let scene = Scene::new().await;
    let enclave = Enclave::start(scene.dir.path(), "boot-1");
    std::fs::write(
        scene.dir.path().join("m.yaml"),
        "apiVersion: k8s.oblv.com/v1alpha1\nkind: NitroEnclaveDeployment\nmetadata: {name: x}\nspec: {surprise: 1}\n",
    )
    .unwrap();
    let mut running = scene.start(&[]).await;
    assert_eq!(running.exit().await, Exit::Invalid);
    let end = running.line().await;
    let reason = end["reason"].as_str().unwrap();
    assert!(reason.contains("m.yaml:4:") && reason.contains("surprise"), "{reason}");
    assert_eq!(enclave.inside.borrow().puts, 0);
}

#[tokio::test]
async fn a_manifest_that_changes_on_disk_is_reported_and_not_applied() {
    let scene = Scene::new().await;
    let enclave = Enclave::start(scene.dir.path(), "boot-1");
    let running = scene.start(&[]).await;
    running.until_ready_is(200).await;
    running.kill().await;
    scene.write_manifest("another");
    let running = scene.start(&[]).await;
    running.until_ready_is(200).await;
    loop {
        let (_, page) = crate::scene::get(running.metrics, "/metrics", "text/plain").await;
        if page.lines().any(|line| line.starts_with("enclave_host_manifest_drift{") && line.ends_with(" 1")) {
            break;
        }
        tokio::task::yield_now().await;
    }
    running.until_ready_is(200).await;
    assert_eq!(enclave.inside.borrow().puts, 1);
    assert_eq!(enclave.inside.borrow().status.deployment.as_deref(), Some("hello"));
}

#[tokio::test]
async fn an_enclave_that_never_answers_ends_the_proxy_with_exit_code_3() {
    let scene = Scene::new().await;
    let mut running = scene.start(&["--connect-timeout=1"]).await;
    assert_eq!(running.exit().await, Exit::Unreachable);
    assert_eq!(running.line().await["exitCode"], 3);
}

#[tokio::test]
async fn a_stop_before_the_enclave_answered_ends_at_once() {
    let scene = Scene::new().await;
    let mut running = scene.start(&[]).await;
    running.stops.send(Stop::default()).await.unwrap();
    assert_eq!(running.exit().await, Exit::Ok);
}

#[tokio::test]
async fn options_that_do_not_fit_together_are_named() {
    let scene = Scene::new().await;
    let error = Proxy::bind(scene.args(&["--enclave-cid=16"])).await.unwrap_err();
    assert!(error.to_string().contains("exclude each other"));
    let taken = format!("--metrics-listen={}", scene.upstream.local_addr().unwrap());
    let mut args = scene.args(&[]);
    args.metrics_listen = scene.upstream.local_addr().unwrap();
    let error = Proxy::bind(args).await.unwrap_err().to_string();
    assert!(
        error.contains("cannot listen") && error.contains(&taken["--metrics-listen=".len()..]),
        "{error}"
    );
}

#[tokio::test]
async fn a_signature_goes_with_the_manifest_and_a_file_that_is_none_is_named() {
    let scene = Scene::new().await;
    let enclave = Enclave::start(scene.dir.path(), "boot-1");
    let path = scene.dir.path().join("m.sig");
    let option = format!("--signature={}", path.display());
    std::fs::write(&path, "ed25519:AAAA\n").unwrap();
    let mut running = scene.start(&[&option]).await;
    assert_eq!(running.exit().await, Exit::Invalid);
    let end = running.line().await;
    assert!(end["reason"].as_str().unwrap().contains("m.sig: a signature is"), "{end}");
    assert_eq!(enclave.inside.borrow().puts, 0);

    let signature = format!("ed25519:{}==", "A".repeat(86));
    std::fs::write(&path, format!("{signature}\n")).unwrap();
    let running = scene.start(&[&option]).await;
    running.until_ready_is(200).await;
    assert_eq!(enclave.inside.borrow().request.as_ref().unwrap().signature, Some(signature));
}
