//! `enclave-image wrap`: what AWS's init expects behind its own ramdisk.

use std::fs;

use expect_test::expect;

use crate::scene::{Layer, Scene, docker_archive};

const WRAP: [&str; 9] = [
    "wrap",
    "--image",
    "docker-archive:app.tar",
    "--bootstrap",
    "init.cpio",
    "--kernel",
    "kernel",
    "--output",
    "x.eif",
];

#[test]
fn the_second_ramdisk_holds_rootfs_cmd_and_env() {
    let scene = Scene::new();
    let config = r#"{"Entrypoint": ["/app"], "Cmd": ["-v", "a b"], "Env": ["A=1", "B=2 3"]}"#;
    docker_archive(
        &scene.path("app.tar"),
        vec![Layer::new().file("app", "x").directory("tmp/")],
        config,
        None,
    );
    fs::write(scene.path("init.cpio"), [b"070701".as_slice(), b"00000000".repeat(13).as_slice()].concat())
        .unwrap();
    let (code, _, error) = scene.run(&WRAP);
    assert_eq!(code, 0, "{error}");
    let file = enclave_image::section::ImageFile::open(&scene.path("x.eif")).unwrap();
    let ramdisk = file.sections.last().unwrap().content.reader();
    let mut listed = String::new();
    let budget = enclave_image::listing::Budget { entries: 100, bytes: 1 << 20 };
    enclave_image::listing::read(ramdisk, budget, &mut |member, content| {
        let text = std::io::read_to_string(content)?;
        listed.push_str(&format!("{:o} {} {text:?}\n", member.mode, String::from_utf8_lossy(&member.path)));
        Ok(())
    })
    .unwrap();
    expect![[r#"
        100644 cmd "/app\n-v\na b\n"
        100644 env "A=1\nB=2 3\n"
        40755 rootfs ""
        100644 rootfs/app "x"
        40755 rootfs/dev ""
        40555 rootfs/proc ""
        40755 rootfs/run ""
        40555 rootfs/sys ""
        40755 rootfs/tmp ""
    "#]]
    .assert_eq(&listed);
}

#[test]
fn what_the_bootstrap_cannot_do_is_refused() {
    let scene = Scene::new();
    fs::write(scene.path("init.cpio"), "no archive").unwrap();
    let refused = || {
        let (code, out, error) = scene.run(&WRAP);
        assert_eq!((code, out.as_str()), (2, ""));
        error.lines().last().unwrap_or_default().to_owned() + "\n"
    };
    let mut said = refused();
    fs::write(scene.path("init.cpio"), "070701").unwrap();
    docker_archive(&scene.path("app.tar"), vec![Layer::new().file("app", "x")], "{}", None);
    said.push_str(&refused());
    docker_archive(
        &scene.path("app.tar"),
        vec![Layer::new().file("app", "x")],
        r#"{"Cmd": ["/a"], "Env": ["A=1\nB=2"]}"#,
        None,
    );
    said.push_str(&refused());
    expect![[r#"
        init.cpio: no cpio archive in the form newc, with or without gzip
        app.tar: the image names no program: neither Entrypoint nor Cmd
        app.tar: Env "A=1\nB=2" is no single line
    "#]]
    .assert_eq(&said);
}
