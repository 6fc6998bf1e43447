//! `Dockerfile.eif`, built from prebuilt programs, and its file system as an enclave.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::{
    aws_init::{bootstrap, debian_modules},
    image,
    machine::{Bed, Machine, lab},
    proxy::Proxy,
    scene::{Scene, deployment, product, script},
};

/// Builds `Dockerfile.eif` with everything prebuilt; the image as a Docker archive.
fn docker_image(scene: &Scene) -> PathBuf {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
    let context = scene.path("context");
    fs::create_dir_all(context.join("bin")).unwrap();
    fs::create_dir_all(context.join("eif")).unwrap();
    for program in ["enclave-supervisor", "enclave-init", "enclave-telemetry"] {
        fs::copy(product(program), context.join("bin").join(program)).unwrap();
    }
    fs::copy(repository.join("plugins/telemetry/config.json"), context.join("bin/config.json")).unwrap();
    fs::rename(scene.path("plugins"), context.join("eif/plugins")).unwrap();
    scene.write("context/eif/etc/enclave/policy.json", r#"{"manifest": "any"}"#);
    let buildah = |words: &[&str]| {
        let mut command = Command::new("buildah");
        let storage = scene.path("storage");
        command.args(["--storage-driver", "vfs", "--root"]).arg(&storage).arg("--runroot");
        command.arg(storage.join("run")).args(words).current_dir(&context);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let dockerfile = repository.join("Dockerfile.eif").display().to_string();
    let prebuilt = ["--build-arg", "PROGRAMS=prebuilt", "--build-arg", "FILES=prepared"];
    let build = ["bud", "--isolation", "chroot", "-f", &dockerfile, "-t", "enclave"];
    buildah(&[&build[..], &prebuilt, &["."]].concat());
    let archive = scene.path("enclave.tar");
    buildah(&["push", "enclave", &format!("docker-archive:{}", archive.display())]);
    archive
}

/// Builds, turns into an enclave image with an init like AWS's, boots, and runs the main path.
fn runs_as_a_child(bed: Bed, kernel: Option<String>, modules: &[PathBuf]) {
    let scene = Scene::with_app();
    let Some(bootstrap) = bootstrap(&scene, modules) else { return };
    let archive = docker_image(&scene);
    let more: Vec<&str> = kernel.iter().map(String::as_str).collect();
    let image = image::wrap(&archive, &bootstrap, &scene.path("image.eif"), &more);
    let text = "echo init $(tr '\\0' ' ' < /proc/1/cmdline); echo files $(ulimit -n)\n\
                (sleep 1000 &); echo parent $(grep PPid $(grep -l '^Name:.sleep' /proc/[0-9]*/status | head -n 1))\n\
                trap 'echo last; exit 0' TERM; while :; do usleep 50000; done";
    let manifest: Value = deployment(json!([script("app", text)]));
    scene.write("manifest.yaml", &manifest.to_string());
    let mut machine = Machine::boot(&scene, &image, bed, "");
    let mut proxy = Proxy::start(&scene, None);
    proxy.until_accepted();
    assert_ne!(proxy.line("app", "init "), "init /init", "PID 1 is not the supervisor");
    let files: u64 = proxy.line("app", "files ").trim_start_matches("files ").parse().unwrap();
    assert!(files >= 1 << 20, "descriptors are limited to {files}");
    // An orphan is the supervisor's, which is not PID 1.
    let parent = proxy.line("app", "parent ");
    let parent: u32 = parent.split_whitespace().last().unwrap().parse().unwrap();
    assert_ne!(parent, 1, "orphans are adopted by the supervisor");
    if bed == Bed::Lab {
        assert!(machine.answers().measurements.contains_key("PCR16"), "measured also as a child");
    }
    proxy.process.signal(Signal::SIGTERM);
    let (exit, last) = proxy.end();
    assert_eq!((exit.code(), &last["phase"]), (Some(0), &json!("Completed")));
    machine.end();
    assert!(machine.console().contains("child ended"), "the init has the last word");
}

#[test]
fn dockerfile_eif_from_prebuilt_programs_boots_under_an_init_like_awss() {
    runs_as_a_child(Bed::Stock, None, &debian_modules());
}

#[test]
fn dockerfile_eif_from_prebuilt_programs_boots_as_an_eif() {
    let Some(lab) = lab() else { return };
    runs_as_a_child(Bed::Lab, Some(format!("--kernel={}", lab.join("bzImage").display())), &[]);
}
