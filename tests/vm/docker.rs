//! `Dockerfile.eif`, built from prebuilt programs, and its file system as an enclave.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    aws_init::{bootstrap, debian_modules},
    image,
    machine::{Bed, Machine, lab},
    plugins::{Cast, Kernel, V1},
    scene::{Scene, product},
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

/// Builds, turns into an enclave image with an init like AWS's, boots, and lets the plugins do what they do.
fn runs_as_a_child(bed: Bed, more: &[&str], modules: &[PathBuf], kernel: Kernel) {
    let cast = Cast::new();
    let Some(bootstrap) = bootstrap(&cast.scene, modules) else { return };
    let archive = docker_image(&cast.scene);
    let more = [more, &["--append=enclave.sample-interval=1"]].concat();
    let image = image::wrap(&archive, &bootstrap, &cast.scene.path("image.eif"), &more);
    let machine = cast.play(Machine::boot(&cast.scene, &image, bed, ""), kernel);
    assert!(machine.console().contains("child ended"), "the init has the last word");
}

#[test]
fn dockerfile_eif_from_prebuilt_programs_boots_under_an_init_like_awss() {
    // Version 1 of control groups, as AWS's init mounts it; Debian's kernel has no memory controller for it.
    let kernel = Kernel { groups: ":pids:/ ", limits_memory: false };
    runs_as_a_child(Bed::Stock, &[], &debian_modules(), kernel);
}

#[test]
fn dockerfile_eif_from_prebuilt_programs_boots_as_an_eif() {
    let Some(lab) = lab() else { return };
    runs_as_a_child(Bed::Lab, &[&format!("--kernel={}", lab.join("bzImage").display())], &[], V1);
}
