//! `check`, `digest`, `status` and bad arguments, as a user types them.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::json;

use crate::scene::{Scene, deployment, idle, product};

fn supervisor(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_enclave-supervisor")).args(words).output().unwrap()
}

fn said(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

fn manifest(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/manifests").join(name)
}

#[test]
fn check_prints_one_line_per_mistake_and_exits_2() {
    let file = manifest("broken.yaml");
    let (code, stdout, stderr) = said(&supervisor(&["check", file.to_str().unwrap()]));
    assert_eq!((code, stderr.as_str()), (Some(2), ""));
    let text = std::fs::read_to_string(&file).unwrap();
    // The comments count the mistakes of their lines.
    let expected: usize = text
        .lines()
        .filter_map(|line| line.split_once("# "))
        .flat_map(|(_, comment)| comment.split(", "))
        .filter_map(|part| part.split([':', ' ']).next()?.trim().parse::<usize>().ok())
        .sum();
    assert_eq!(stdout.lines().count(), expected, "{stdout}");
    let prefix = format!("{}:", file.display());
    for line in stdout.lines() {
        let place = line.strip_prefix(&prefix).unwrap_or_else(|| panic!("{line}"));
        let parts: Vec<&str> = place.splitn(4, ':').collect();
        let (at, column): (usize, usize) = (parts[0].parse().unwrap(), parts[1].parse().unwrap());
        let there = text.lines().nth(at - 1).expect("the line is in the file");
        assert!((1..=there.len() + 1).contains(&column), "{line}");
        assert!(parts[2].starts_with(' ') && parts[3].starts_with(' '), "{line}");
    }
    let nearest = stdout.lines().find(|line| line.contains("imge")).unwrap();
    assert!(nearest.contains("image"), "{nearest}");
}

#[test]
fn check_accepts_the_vendors_manifest_and_knows_what_is_baked_in() {
    let file = manifest("hello-fastapi.yaml");
    let file = file.to_str().unwrap();
    let ok = format!("{file}: ok\n");
    assert_eq!(said(&supervisor(&["check", file])), (Some(0), ok, String::new()));
    let scene = Scene::with_app();
    let plugins = scene.path("plugins");
    let (code, stdout, _) = said(&supervisor(&["check", file, "--plugins", plugins.to_str().unwrap()]));
    assert_eq!(code, Some(2));
    assert!(stdout.contains("spec.userPlugins[0].image") && stdout.contains("test/app:1"), "{stdout}");
}

#[test]
fn the_digest_does_not_depend_on_what_only_the_host_reads() {
    let scene = Scene::new();
    let digest = |name: &str, replicas: u32| {
        let text = std::fs::read_to_string(manifest("hello-fastapi.yaml")).unwrap();
        scene.write(name, &text.replace("spec:\n", &format!("spec:\n  replicas: {replicas}\n")));
        let (code, stdout, stderr) = said(&supervisor(&["digest", scene.path(name).to_str().unwrap()]));
        assert_eq!((code, stderr.as_str()), (Some(0), ""));
        stdout
    };
    let one = digest("one.yaml", 1);
    assert_eq!(one.trim().len(), 96);
    assert_eq!(one, digest("five.yaml", 5));
    scene.write("config/configmaps/telemetry-config/config.yaml", "scrape_configs: []\n");
    let config = scene.path("config");
    let with_files = supervisor(&[
        "digest",
        scene.path("one.yaml").to_str().unwrap(),
        "--config-dir",
        config.to_str().unwrap(),
    ]);
    let (code, stdout, _) = said(&with_files);
    assert_eq!(code, Some(0));
    assert_ne!(stdout, one, "the files are in the digest");
}

#[test]
fn what_digest_prints_is_what_the_enclave_runs() {
    let manifest = deployment(json!([idle("app")]));
    let mut enclave = Scene::with_app().start();
    enclave.scene.write("manifest.yaml", &manifest.to_string());
    let file = enclave.scene.path("manifest.yaml");
    let (_, printed, _) = said(&supervisor(&["digest", file.to_str().unwrap()]));
    assert_eq!(enclave.run(&manifest).digest, printed.trim());
}

#[test]
fn status_prints_a_table_inside_and_says_when_nobody_answers() {
    let mut enclave = Scene::with_app().start();
    let socket = enclave.scene.path("run/supervisor.sock");
    let socket = socket.to_str().unwrap();
    let (code, stdout, _) = said(&supervisor(&["status", "--socket", socket]));
    assert_eq!((code, stdout.as_str()), (Some(0), "no manifest yet: AwaitingManifest, not ready\n"));
    enclave.run(&deployment(json!([idle("app")])));
    enclave.started("app");
    let (code, stdout, _) = said(&supervisor(&["status", "--socket", socket]));
    assert_eq!(code, Some(0));
    let lines: Vec<Vec<&str>> = stdout.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0].join(" "), "test: Running, ready");
    assert_eq!(lines[2].join(" "), "NAME PHASE READY RESTARTS LAST EXIT REASON AGE");
    assert_eq!(lines[3][..6], ["app", "Running", "yes", "0", "-", "-"]);
    assert_eq!(lines.len(), 4, "{stdout}");
    drop(enclave);
    let (code, stdout, stderr) = said(&supervisor(&["status", "--socket", socket]));
    assert_eq!((code, stdout.as_str()), (Some(3), ""));
    assert!(stderr.starts_with(socket), "{stderr}");
}

#[test]
fn bad_arguments_and_unreadable_files_exit_2() {
    let scene = Scene::new();
    scene.write("policy.json", r#"{"manifest": "some"}"#);
    let policy = format!("--policy={}", scene.path("policy.json").display());
    let transport = format!("--transport=unix:{}", scene.path("v.sock").display());
    let socket = format!("--socket={}", scene.path("run/s.sock").display());
    let init = format!("--plugin-init={}", product("enclave-init").display());
    for (words, named) in [
        (&["--transport=tcp:1"][..], "neither"),
        (&["run", "--sample-interval=0"], "--sample-interval"),
        (&["check", "/nonexistent.yaml"], "/nonexistent.yaml"),
        (&["digest", "/nonexistent.yaml"], "/nonexistent.yaml"),
        (&["run", &transport, &socket, &init, &policy], "policy"),
        (&["run", &transport, &socket, "--plugin-init=/nonexistent"], "/nonexistent"),
        (&["run", "--init=vm", &transport, &socket], "enclave image"),
    ] {
        let (code, _, stderr) = said(&supervisor(words));
        assert_eq!(code, Some(2), "{words:?}: {stderr}");
        assert!(stderr.contains(named), "{words:?}: {stderr}");
    }
}

#[test]
fn outside_of_an_enclave_nobody_is_its_inits_child() {
    if enclave_supervisor::sys::mount::is_in_memory(Path::new("/")) {
        crate::not_run("the root file system here is in memory, as in an enclave");
        return;
    }
    let scene = Scene::new();
    let transport = format!("--transport=unix:{}", scene.path("v.sock").display());
    for words in [&["run", "--init=child", &transport][..], &["--init=child", &transport]] {
        let (code, _, stderr) = said(&supervisor(words));
        assert_eq!(code, Some(2), "{stderr}");
        assert!(stderr.contains("not in memory"), "{stderr}");
    }
}
