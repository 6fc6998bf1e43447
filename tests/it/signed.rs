//! A signed policy over the whole path, with the openssl program as the README shows it.

use std::{fs, path::Path, process::Command};

use serde_json::json;

use crate::{
    enclave::Enclave,
    proxy,
    scene::{Scene, deployment, idle, with},
};

/// Runs the README's shell lines.
fn shell(scene: &Scene, line: &str) -> String {
    let supervisor = Path::new(env!("CARGO_BIN_EXE_enclave-supervisor"));
    let path = std::env::var("PATH").unwrap();
    let output = Command::new("sh")
        .args(["-euc", line])
        .current_dir(scene.path(""))
        .env("PATH", format!("{}:{path}", supervisor.parent().unwrap().display()))
        .output()
        .unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// An enclave whose policy has one key; the key, and the signature of the manifest beside it, are in the
/// scene.
fn signed() -> (Enclave, String) {
    let scene = Scene::with_app();
    scene.write("manifest.yaml", &deployment(json!([idle("app")])).to_string());
    fs::create_dir_all(scene.path("config")).unwrap();
    shell(&scene, "openssl genpkey -algorithm ed25519 -out key.pem");
    let key =
        shell(&scene, "echo ed25519:$(openssl pkey -in key.pem -pubout -outform DER | tail -c 32 | base64)");
    sign(&scene, "manifest.yaml");
    scene.write("policy.json", &json!({"manifest": "signed", "keys": [key]}).to_string());
    let signature = fs::read_to_string(scene.path("manifest.sig")).unwrap().trim().to_owned();
    (scene.start(), signature)
}

fn sign(scene: &Scene, manifest: &str) {
    shell(
        scene,
        &format!("enclave-supervisor digest {manifest} --config-dir config --signing-input >message"),
    );
    shell(scene, "openssl pkeyutl -sign -inkey key.pem -rawin -in message -out raw");
    shell(scene, "echo ed25519:$(base64 -w0 raw) >manifest.sig");
}

#[test]
fn a_signed_manifest_runs_and_one_without_its_signature_does_not() {
    let (enclave, signature) = signed();
    let text = fs::read_to_string(enclave.scene.path("manifest.yaml")).unwrap();
    let other = deployment(json!([with(idle("app"), json!({"args": ["x"]}))])).to_string();
    for (manifest, signature, why) in [
        (&text, None, "no signature came"),
        (&text, Some("ed25519:AAAA"), "a signature is"),
        (&other, Some(signature.as_str()), "no key of the policy"),
    ] {
        let answer = enclave.put_signed(manifest, &json!({}), signature);
        assert_eq!(answer.status, 403, "{}", answer.text());
        let problem = answer.problem();
        assert_eq!(problem.kind, "PolicyRefused");
        assert!(problem.detail.contains(why), "{}", problem.detail);
    }
    let answer = enclave.put_signed(&text, &json!({}), Some(&signature));
    assert_eq!(answer.status, 200, "{}", answer.text());
}

#[test]
fn host_proxy_hands_the_signature_over_with_the_manifest() {
    let (mut enclave, _) = signed();
    let manifest = fs::read_to_string(enclave.scene.path("manifest.yaml")).unwrap();
    let mut words = enclave.scene.proxy_words();
    words.push(format!("--signature={}", enclave.scene.path("manifest.sig").display()));

    // Signed before it was changed.
    enclave.scene.write("manifest.yaml", &manifest.replace("sleep 1000", "sleep 1001"));
    let mut refused = proxy::start(&words);
    assert_eq!(refused.end().code(), Some(2));
    let last = refused.stdout.to_end().pop().unwrap();
    assert!(last.contains("PolicyRefused"), "{last}");

    enclave.scene.write("manifest.yaml", &manifest);
    let proxy = proxy::start(&words);
    proxy::accepted(&proxy);
    let state: serde_json::Value =
        serde_json::from_slice(&fs::read(enclave.scene.path("state/state.json")).unwrap()).unwrap();
    enclave.client.token = state["session"]["token"].as_str().map(str::to_owned);
    enclave.started("app");
}
