//! The same image from every kind of source.

use std::fs;

use enclave_image::{
    image::{self, Source},
    limits::Limits,
    program::Machine,
    spool::Spool,
};
use expect_test::expect;
use tar::EntryType;

use crate::scene::{Layer, Scene, docker_archive, gzip, listing, oci_archive, sha256};

fn read(source: &Source) -> String {
    let mut spool = Spool::new(1 << 20).unwrap();
    let image = image::read(source, Machine::X86_64, &Limits::default(), &mut spool, &mut |_| ()).unwrap();
    format!("{}{:?} {:?}\n", listing(&image.tree), image.config, image.created)
}

fn layers() -> Vec<Layer> {
    vec![
        Layer::new().owned("bin/app", 0o4755, 3, 4, 5).file("old", "1").symlink("sh", "bin/app"),
        Layer::new().file(".wh.old", "").hard_link("bin/two", "bin/app").directory("empty/"),
    ]
}

const CONFIG: &str =
    r#"{"Entrypoint": null, "Cmd": ["/bin/app"], "Env": ["A=1"], "WorkingDir": "/w", "User": "7:8"}"#;

#[test]
fn a_docker_archive_and_an_oci_archive_of_one_image_are_equal() {
    let scene = Scene::new();
    let (docker, oci) = (scene.path("d.tar"), scene.path("o.tar"));
    docker_archive(&docker, layers(), CONFIG, None);
    oci_archive(&oci, layers(), CONFIG, &|_, _| ());
    let expected = read(&Source::DockerArchive(docker.clone()));
    expect![[r#"
        0755 0:0 5 bin directory
        4755 3:4 5 bin/app file 0 ""
        4755 3:4 5 bin/two file 0 ""
        0755 0:0 1000 empty directory
        0644 0:0 1000 sh -> bin/app
        ImageConfig { entrypoint: [], cmd: ["/bin/app"], env: ["A=1"], working_dir: "/w", user: "7:8" } Some(86400)
    "#]].assert_eq(&expected);
    assert_eq!(read(&Source::OciArchive(oci)), expected);
    // Saved through gzip, as people do.
    fs::write(&docker, gzip(&fs::read(&docker).unwrap())).unwrap();
    assert_eq!(read(&Source::DockerArchive(docker)), expected);
}

#[test]
fn a_layer_that_older_versions_of_docker_write_as_a_link_is_found() {
    let scene = Scene::new();
    let bytes = Layer::new().file("a", "1").bytes();
    let digest = sha256(&bytes);
    let config = format!(r#"{{"rootfs": {{"diff_ids": ["sha256:{digest}", "sha256:{digest}"]}}}}"#);
    let archive = Layer::new()
        .raw("one/layer.tar", EntryType::Regular, "", &bytes)
        .symlink("two/layer.tar", "../one/layer.tar")
        .file("c.json", &config)
        .file("manifest.json", r#"[{"Config": "c.json", "Layers": ["one/layer.tar", "two/layer.tar"]}]"#);
    fs::write(scene.path("d.tar"), archive.bytes()).unwrap();
    assert!(read(&Source::DockerArchive(scene.path("d.tar"))).starts_with("0644 0:0 1000 a file 0 \"1\"\n"));
}

#[test]
fn of_an_image_for_several_machines_the_kernel_s_is_taken() {
    let scene = Scene::new();
    let blob = |archive: Layer, text: &str| {
        archive.raw(
            &format!("blobs/sha256/{}", sha256(text.as_bytes())),
            EntryType::Regular,
            "",
            text.as_bytes(),
        )
    };
    let describe = |text: &str, more: &str| {
        format!(r#"{{"digest": "sha256:{}", "size": {}{more}}}"#, sha256(text.as_bytes()), text.len())
    };
    let mut archive = Layer::new();
    let mut manifests = Vec::new();
    for machine in ["arm64", "amd64", "unknown"] {
        let config = format!(
            r#"{{"architecture": "{machine}", "config": {{"Cmd": ["/{machine}"]}}, "rootfs": {{"diff_ids": []}}}}"#
        );
        let manifest = format!(r#"{{"config": {}, "layers": []}}"#, describe(&config, ""));
        let platform = format!(r#", "platform": {{"os": "linux", "architecture": "{machine}"}}"#);
        manifests.push(describe(&manifest, &platform));
        archive = blob(blob(archive, &config), &manifest);
    }
    let inner = format!(r#"{{"manifests": [{}]}}"#, manifests.join(", "));
    let media = r#", "mediaType": "application/vnd.oci.image.index.v1+json""#;
    let outer = format!(r#"{{"manifests": [{}]}}"#, describe(&inner, media));
    fs::write(scene.path("o.tar"), blob(archive, &inner).file("index.json", &outer).bytes()).unwrap();
    let said = read(&Source::OciArchive(scene.path("o.tar")));
    assert!(said.contains(r#"cmd: ["/amd64"]"#), "{said}");
}

#[test]
fn an_image_for_another_machine_is_refused() {
    let scene = Scene::new();
    let archive = Layer::new()
        .file("c.json", r#"{"architecture": "arm64", "rootfs": {"diff_ids": []}}"#)
        .file("manifest.json", r#"[{"Config": "c.json", "Layers": []}]"#);
    fs::write(scene.path("app.tar"), archive.bytes()).unwrap();
    let said = scene.refused(&[]);
    assert_eq!(said.lines().last(), Some("app.tar: an image for arm64, and the kernel is for amd64"));
}
