//! Manifests that are refused: one answer naming every mistake, nothing started, and a good one is taken
//! after.

use std::os::unix::fs::symlink;

use enclave_protocol::control::{Phase, Problem};
use expect_test::{Expect, expect};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::{
    enclave::{Enclave, How},
    scene::{Scene, deployment, deployment_with, idle, with},
};

fn refused(enclave: &Enclave, text: &str, status: u16) -> Problem {
    let answer = enclave.put_text(text, &json!({}));
    assert_eq!(answer.status, status, "{}", answer.text());
    let now = enclave.client.status();
    assert_eq!(
        (now.phase, now.seq, now.plugins.len()),
        (Phase::AwaitingManifest, 0, 0),
        "nothing was started"
    );
    answer.problem()
}

/// Every mistake as a line.
fn mistakes(enclave: &Enclave, text: &str, expected: &Expect) {
    let problem = refused(enclave, text, 422);
    assert_eq!(problem.kind, "ManifestInvalid");
    let lines: Vec<String> = problem.errors.iter().map(ToString::to_string).collect();
    expected.assert_eq(&lines.join("\n"));
}

/// A manifest whose user plugins are written out, so that lines and columns mean something.
fn yaml(users: &str) -> String {
    format!(
        "apiVersion: k8s.oblv.com/v1alpha1\nkind: NitroEnclaveDeployment\nmetadata:\n  name: test\n\
         spec:\n  userPlugins:\n{users}"
    )
}

fn accepts_a_good_one(mut enclave: Enclave) {
    enclave.run(&deployment(json!([idle("app")])));
    enclave.started("app");
    assert_eq!(enclave.client.status().phase, Phase::Running);
}

#[test]
fn what_is_no_manifest_at_all_is_refused() {
    let enclave = Scene::with_app().start();
    mistakes(&enclave, "", &expect!["1:1: (document): the document is empty"]);
    mistakes(&enclave, "a: [1, 2", &expect!["1:4: a[1]: not valid YAML: unclosed bracket '['"]);
    mistakes(
        &enclave,
        "just words",
        &expect![[r#"1:1: (document): expected a mapping, found the string "just words""#]],
    );
    mistakes(&enclave, "\"unclosed", &expect!["1:1: (document): not valid YAML: unclosed quote"]);
    mistakes(&enclave, &"[".repeat(10_000), &expect!["1:33: (document): nested deeper than 24 levels"]);
    mistakes(
        &enclave,
        &"{a: ".repeat(30),
        &expect!["1:117: (document): not valid YAML: unclosed bracket '{'"],
    );
    mistakes(
        &enclave,
        "a: &x [1]\nb: *x\n",
        &expect![[r#"
        1:1: (document): the field apiVersion is required
        1:1: (document): the field kind is required
        1:7: a: anchors are not supported: write the value out
        2:4: b: aliases are not supported: write the value out"#]],
    );
    mistakes(
        &enclave,
        "apiVersion: v1\nkind: Pod\nspec: {containers: []}\n",
        &expect![[r#"
        1:13: apiVersion: expected k8s.oblv.com/v1alpha1, found "v1"
        2:7: kind: expected NitroEnclaveDeployment, found "Pod""#]],
    );
    accepts_a_good_one(enclave);
}

#[test]
fn every_mistake_of_a_manifest_is_named_at_once() {
    let enclave = Scene::with_app().start();
    let users = "    - name: app
      imge: test/app:1
      image: test/other:1
      ports:
        - {containerPort: 8001, hostPort: 4455}
        - {containerPort: 8001, hostPort: 4455}
      outboundConnections:
        - {fqdn: not_a_name!, port: 443}
        - {fqdn: api.example, port: 0}
      resources: {limits: {memory: 12Gb}}
    - name: app
      image: test/app:1
    - name: absent
      image: test/absent:1
      volumes:
        - {name: a, containerPath: /data/../etc, source: {configMap: {name: c}}}
        - {name: b, containerPath: /proc, source: {configMap: {name: c}}}
        - {name: c, containerPath: /run/enclave/x, source: {configMap: {name: c}}}
";
    mistakes(
        &enclave,
        &yaml(users),
        &expect![[r#"
        8:7: spec.userPlugins[0].imge: unknown field "imge"; did you mean image?
        9:14: spec.userPlugins[0].image: "test/other:1" is not baked in: the image of app here is "test/app:1"
        12:27: spec.userPlugins[0].ports[1].containerPort: containerPort 8001 is declared twice in this plugin
        12:43: spec.userPlugins[0].ports[1].hostPort: hostPort 4455 is already used at spec.userPlugins[0].ports[0].hostPort
        14:18: spec.userPlugins[0].outboundConnections[0].fqdn: "not_a_name!" is no host name: "not_a_name!" is no label (1 to 63 letters, digits and hyphens, no hyphen at the ends)
        15:37: spec.userPlugins[0].outboundConnections[1].port: expected a whole number from 1 to 65535, found the number 0
        16:36: spec.userPlugins[0].resources.limits.memory: "12Gb" is no quantity: write for example 2, 500m, 256Mi or 1.5Gi
        17:13: spec.userPlugins[1].name: the plugin name app is already used at spec.userPlugins[0].name
        20:14: spec.userPlugins[2].image: "test/absent:1" is not baked in for absent: baked in are app ("test/app:1")
        22:36: spec.userPlugins[2].volumes[0].containerPath: "/data/../etc" must not hold ".."
        22:77: spec.userPlugins[2].volumes[0].source.configMap.name: ConfigMap c was not delivered with the manifest
        23:36: spec.userPlugins[2].volumes[1].containerPath: "/proc" lies in /proc, which is the runtime's own
        23:70: spec.userPlugins[2].volumes[1].source.configMap.name: ConfigMap c was not delivered with the manifest
        24:36: spec.userPlugins[2].volumes[2].containerPath: "/run/enclave/x" lies in /run/enclave, which is the runtime's own
        24:79: spec.userPlugins[2].volumes[2].source.configMap.name: ConfigMap c was not delivered with the manifest"#]],
    );
    accepts_a_good_one(enclave);
}

#[test]
fn a_volume_that_a_symlink_in_the_image_leads_out_is_refused_and_nothing_is_made_there() {
    let scene = Scene::with_app();
    let root = scene.root("app");
    symlink("../../../outside", root.join("out")).unwrap();
    symlink("/tmp", root.join("absolute")).unwrap();
    let enclave = scene.start();
    let users = "    - name: app
      image: test/app:1
      volumes:
        - name: up
          containerPath: /out/data
          source: {configMap: {name: c}}
        - name: absolute
          containerPath: /absolute
          source: {configMap: {name: c}}
      imge: x
";
    let answer = enclave.put_text(&yaml(users), &json!({"configMaps": {"c": {}}}));
    assert_eq!(answer.status, 422, "{}", answer.text());
    let lines: Vec<String> = answer.problem().errors.iter().map(ToString::to_string).collect();
    expect![[r#"
        11:26: spec.userPlugins[0].volumes[0].containerPath: the symlink /out in the image leads out of the root file system (to "../../../outside")
        14:26: spec.userPlugins[0].volumes[1].containerPath: the symlink /absolute in the image leads out of the root file system (to "/tmp")
        16:7: spec.userPlugins[0].imge: unknown field "imge"; did you mean image?"#]].assert_eq(&lines.join("\n"));
    assert!(!enclave.scene.path("outside").exists());
    assert_eq!(enclave.client.status().seq, 0);
    accepts_a_good_one(enclave);
}

#[test]
fn a_manifest_that_the_policy_does_not_pin_is_refused_and_the_pinned_one_is_accepted() {
    let pinned = deployment(json!([idle("app")]));
    let digest = {
        let mut enclave = Scene::with_app().start();
        enclave.run(&pinned).digest
    };
    let scene = Scene::with_app();
    scene.write("policy.json", &json!({"manifest": "pinned", "digest": digest}).to_string());
    let mut enclave = scene.start();
    let other = deployment(json!([with(idle("app"), json!({"args": ["x"]}))]));
    let problem = refused(&enclave, &other.to_string(), 403);
    assert_eq!(problem.kind, "PolicyRefused");
    assert!(problem.detail.contains(&digest), "{}", problem.detail);
    // A mistake comes before the policy, whatever the digest would be.
    refused(&enclave, "spec: 1", 422);
    assert_eq!(enclave.run(&pinned).digest, digest);
}

#[test]
fn without_a_policy_any_manifest_is_accepted_and_that_is_said() {
    let scene = Scene::with_app();
    std::fs::remove_file(scene.path("policy.json")).unwrap();
    let mut enclave = scene.start();
    let accepted = enclave.run(&deployment(json!([idle("app")])));
    let kinds: Vec<_> = accepted.conditions.iter().map(|condition| condition.kind.as_str()).collect();
    assert_eq!(kinds, ["PolicyOpen"]);
    assert_eq!(enclave.client.status().conditions, accepted.conditions);
}

#[test]
fn what_is_not_in_force_is_accepted_and_said() {
    let mut enclave = Scene::with_app().start();
    let asking = json!({"caCertDetails": {"enclaveCertType": "ENCLAVE_GENERATED"}});
    let accepted = enclave.run(&deployment_with(json!([idle("app")]), asking));
    let said: Vec<Value> = accepted.conditions.iter().map(|condition| json!(condition)).collect();
    assert_eq!(said.len(), 1, "{said:#?}");
    assert_eq!(said[0]["type"], "NotImplemented");
    assert!(said[0]["message"].as_str().unwrap().contains("enclaveCertType"), "{said:#?}");
}

#[test]
fn a_manifest_for_which_there_is_no_room_is_answered_so_and_another_may_come() {
    if !nix::unistd::geteuid().is_root() {
        crate::not_run("a file system that is full can be mounted by root alone");
        return;
    }
    let scene = Scene::with_app();
    let run = scene.path("run");
    std::fs::create_dir(&run).unwrap();
    // Room for the directory itself, the supervisor's socket and one more.
    let full = format!("mount -t tmpfs -o nr_inodes=3 full {} && exec \"$@\"", run.display());
    let through = ["unshare", "--mount", "sh", "-c", &full, "sh"].map(str::to_owned).to_vec();
    let mut enclave = scene.start_as(How { through, ..How::default() });
    let answer = enclave.put(&deployment(json!([idle("app")])));
    let problem = answer.problem();
    assert_eq!((problem.status, problem.kind.as_str()), (500, "PreparationFailed"));
    assert!(problem.detail.contains("No space left on device"), "{}", problem.detail);
    assert_eq!(enclave.client.status().phase, Phase::AwaitingManifest);
    assert_eq!(enclave.put(&deployment(json!([idle("app")]))).status, 500, "it is still there to ask");
    enclave.signal(Signal::SIGTERM);
    assert_eq!(enclave.end().code(), Some(0));
}

#[test]
fn a_corrupt_plugin_of_the_image_is_left_out_and_the_host_is_told() {
    let scene = Scene::with_app();
    scene.write("plugins/broken/config.json", "{");
    let mut enclave = scene.start();
    let accepted = enclave.run(&deployment(json!([idle("app")])));
    let left_out = accepted.conditions.iter().find(|condition| condition.kind == "PluginLeftOut");
    assert!(left_out.is_some_and(|condition| condition.message.contains("\"broken\"")), "{accepted:#?}");
    enclave.started("app");
}
