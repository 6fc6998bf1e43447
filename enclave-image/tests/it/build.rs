//! `enclave-image build`: what goes in, what comes out, and what is refused.

use std::fs;

use expect_test::expect;
use sha2::{Digest as _, Sha384};

use crate::scene::{Layer, MANIFEST, Scene, docker_archive, elf, other};

/// Offsets and sizes of the sections by the file's own table, read by hand.
fn sections(file: &[u8]) -> Vec<&[u8]> {
    let number =
        |at: usize| usize::try_from(u64::from_be_bytes(file[at..at + 8].try_into().unwrap())).unwrap();
    let count = usize::from(u16::from_be_bytes([file[26], file[27]]));
    (0..count)
        .map(|index| (number(28 + 8 * index), number(284 + 8 * index)))
        .map(|(at, len)| &file[at + 12..at + 12 + len])
        .collect()
}

/// The command line of an ordinary machine.
const DEBIAN: &str = "reboot=k panic=30 console=ttyS0 random.trust_cpu=on";

fn pcr(parts: &[&[u8]]) -> String {
    let extended =
        Sha384::new().chain_update([0; 48]).chain_update(Sha384::digest(parts.concat())).finalize();
    extended.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

#[test]
fn the_measurements_are_those_that_a_reader_of_the_file_computes() {
    let scene = Scene::new();
    let (code, out, error) = scene.build(&[]);
    assert_eq!(code, 0, "{error}");
    let file = fs::read(scene.path("x.eif")).unwrap();
    let [kernel, cmdline, _metadata, boot, application] = sections(&file)[..] else {
        panic!("five sections")
    };
    let expected = serde_json::json!({ "Measurements": {
        "HashAlgorithm": "Sha384 { ... }",
        "PCR0": pcr(&[kernel, cmdline, boot, application]),
        "PCR1": pcr(&[kernel, cmdline, boot]),
        "PCR2": pcr(&[application]),
    }});
    assert_eq!(out, format!("{expected:#}\n"));
    assert_eq!((boot.len() % 4, application.len() % 4), (0, 0));
    expect![[r#"
        enclave-image: kernel kernel (unknown)
        enclave-image: telemetry: no --image given; the base image's own telemetry plugin goes in
    "#]]
    .assert_eq(&error);
}

#[test]
fn the_same_inputs_give_the_same_bytes_and_a_plugin_s_byte_changes_pcr_0_and_2_alone() {
    let scene = Scene::new();
    let first = scene.built(&[]);
    let bytes = fs::read(scene.path("x.eif")).unwrap();
    assert_eq!(scene.built(&["--output", "y.eif"]), first);
    assert!(fs::read(scene.path("y.eif")).unwrap() == bytes, "two builds differ");
    let layers = vec![Layer::new().owned("app", 0o4755, 1, 2, 5).file("etc/data", "onf")];
    docker_archive(&scene.path("app.tar"), layers, r#"{"Entrypoint": ["/app"], "User": "7"}"#, None);
    let second = scene.built(&[]);
    assert_ne!(second["PCR0"], first["PCR0"]);
    assert_eq!(second["PCR1"], first["PCR1"]);
    assert_ne!(second["PCR2"], first["PCR2"]);
    let third = scene.built(&["--append", "quiet"]);
    assert_ne!(third["PCR1"], first["PCR1"]);
    assert_eq!(third["PCR2"], second["PCR2"]);
}

#[test]
fn other_programs_read_both_ramdisks() {
    let scene = Scene::new();
    scene.built(&["--build-time", "9"]);
    let file = fs::read(scene.path("x.eif")).unwrap();
    let [_, _, _, boot, application] = sections(&file)[..] else { panic!("five sections") };
    let mut listed = String::new();
    for (name, ramdisk) in [("boot", boot), ("application", application)] {
        let mut plain = Vec::new();
        std::io::Read::read_to_end(&mut flate2::bufread::GzDecoder::new(ramdisk), &mut plain).unwrap();
        fs::write(scene.path(name), plain).unwrap();
        let script = format!("TZ=UTC LC_ALL=C cpio -itvn --quiet < {name}");
        let output = other("sh", &["-c", &script], scene.dir.path()).filter(|output| output.status.success());
        let Some(output) = output else {
            println!("not run: there is no GNU cpio here");
            return;
        };
        listed.push_str(&String::from_utf8(output.stdout).unwrap());
    }
    let columns = |line: &str| {
        line.split_whitespace().filter(|word| !["1970", "Jan"].contains(word)).collect::<Vec<_>>().join(" ")
    };
    let lines: Vec<String> = listed.lines().map(columns).collect();
    expect![[r#"
        drwxr-xr-x 2 0 0 0 1 dev
        crw------- 1 0 0 5, 1 1 dev/console
        crw-rw-rw- 1 0 0 1, 3 1 dev/null
        -rwxr-xr-x 1 0 0 120 1 enclave-init
        drwxr-xr-x 2 0 0 0 1 etc
        drwxr-xr-x 2 0 0 0 1 etc/enclave
        -rw-r--r-- 1 0 0 0 1 etc/enclave/modules
        -rwxr-xr-x 1 0 0 120 1 init
        drwxr-xr-x 2 0 0 0 1 plugins
        dr-xr-xr-x 2 0 0 0 1 proc
        drwx------ 2 0 0 0 1 root
        drwxr-xr-x 2 0 0 0 1 run
        dr-xr-xr-x 2 0 0 0 1 sys
        drwxrwxrwt 2 0 0 0 1 tmp
        drwxr-xr-x 2 0 0 0 1 var
        drwxr-xr-x 2 0 0 0 1 etc
        drwxr-xr-x 2 0 0 0 1 etc/enclave
        -rw-r--r-- 1 0 0 2 1 etc/enclave/build-time
        -rw-r--r-- 1 0 0 130 1 etc/enclave/policy.json
        drwxr-xr-x 2 0 0 0 1 plugins
        drwxr-xr-x 2 0 0 0 1 plugins/app
        -rw-r--r-- 1 0 0 152 1 plugins/app/config.json
        drwxr-xr-x 2 0 0 0 1 plugins/app/rootfs
        -rwsr-xr-x 1 1 2 0 1 plugins/app/rootfs/app
        drwxr-xr-x 2 0 0 0 1 plugins/app/rootfs/etc
        -rw-r--r-- 1 0 0 3 1 plugins/app/rootfs/etc/data
        drwxr-xr-x 2 0 0 0 1 plugins/telemetry
        -rw-r--r-- 1 0 0 191 1 plugins/telemetry/config.json
        drwxr-xr-x 2 0 0 0 1 plugins/telemetry/rootfs
        -rwxr-xr-x 1 0 0 120 1 plugins/telemetry/rootfs/enclave-telemetry"#]]
    .assert_eq(&lines.join("\n"));
}

#[test]
fn a_plugin_without_an_image_and_an_image_without_a_plugin_are_mistakes() {
    let scene = Scene::new();
    let more = MANIFEST.replace("  plugins:", "    - name: other\n      image: r/other:1\n  plugins:");
    fs::write(scene.path("m.yaml"), more.replace("    - name: app\n", "    - name: app\n      imge: x\n"))
        .unwrap();
    expect![[r#"
        m.yaml:8:7: spec.userPlugins[0].imge: unknown field "imge"; did you mean image?
    "#]]
    .assert_eq(&scene.refused(&[]));
    fs::write(scene.path("m.yaml"), more).unwrap();
    expect![[r#"
        m.yaml:10:14: spec.userPlugins[1].image: "r/other:1" is not baked in for other: baked in are app ("r/app:1")
    "#]].assert_eq(&scene.refused(&[]));
    fs::write(scene.path("m.yaml"), MANIFEST).unwrap();
    let twice = ["--image", "app=docker-archive:app.tar", "--image", "ap=docker-archive:app.tar"];
    expect![[r#"
        --image ap=…: the manifest has no plugin "ap"; it has telemetry, app
    "#]]
    .assert_eq(&scene.refused(&twice));
    expect![[r#"
        enclave-image: kernel kernel (unknown)
        none.tar: No such file or directory (os error 2)
    "#]]
    .assert_eq(&scene.refused(&["--image", "app=docker-archive:none.tar"]));
    expect![[r#"error: invalid value 'app=tar:x' for '--image <PLUGIN=SOURCE>': "tar" is no kind of image: expected dir:DIRECTORY, docker-archive:FILE or oci-archive:FILE"#]].assert_eq(scene.refused(&["--image", "app=tar:x"]).lines().next().unwrap());
}

#[test]
fn a_plugin_needs_a_program() {
    let scene = Scene::new();
    fs::create_dir(scene.path("root")).unwrap();
    fs::write(scene.path("root/app"), "x").unwrap();
    expect![[r#"
        enclave-image: kernel kernel (unknown)
        m.yaml:7:7: spec.userPlugins[0]: neither its image nor the manifest's command names a program
    "#]]
    .assert_eq(&scene.refused(&["--image", "app=dir:root"]));
    fs::write(scene.path("m.yaml"), MANIFEST.replace("r/app:1", "r/app:1\n      command: [/app]")).unwrap();
    scene.built(&["--image", "app=dir:root"]);
}

#[test]
fn our_own_programs_must_be_static_and_the_advice_says_how() {
    let scene = Scene::new();
    fs::write(scene.path("enclave-supervisor"), elf(3)).unwrap();
    expect![[r#"
        enclave-image: kernel kernel (unknown)
        enclave-supervisor: dynamically linked, and the enclave has no loader for it; build it with --target x86_64-unknown-linux-musl
    "#]].assert_eq(&scene.refused(&[]));
    fs::write(scene.path("enclave-supervisor"), elf(1)).unwrap();
    fs::write(scene.path("init"), elf(3)).unwrap();
    expect![[r#"
        enclave-image: kernel kernel (unknown)
        init: dynamically linked, and the enclave has no loader for it; build it with --target x86_64-unknown-linux-musl
    "#]].assert_eq(&scene.refused(&["--plugin-init", "init"]));
    fs::write(scene.path("kernel"), "no kernel").unwrap();
    expect![[r#"
        kernel: neither an x86 bzImage nor an arm64 Image
    "#]]
    .assert_eq(&scene.refused(&[]));
    expect![[r#"
        none: No such file or directory (os error 2)
    "#]]
    .assert_eq(&scene.refused(&["--kernel", "none"]));
}

#[test]
fn the_plugins_init_is_the_one_beside_the_supervisor_and_measured_with_it() {
    let scene = Scene::new();
    let first = scene.built(&[]);
    fs::rename(scene.path("enclave-init"), scene.path("other")).unwrap();
    expect![[r#"
        enclave-image: kernel kernel (unknown)
        enclave-init: no such program; build it with cargo build --release --package enclave-supervisor --bin enclave-init --target x86_64-unknown-linux-musl and say where it is: --plugin-init FILE
    "#]]
    .assert_eq(&scene.refused(&[]));
    assert_eq!(scene.built(&["--plugin-init", "other"]), first);
    fs::write(scene.path("other"), [elf(1), vec![1]].concat()).unwrap();
    let second = scene.built(&["--plugin-init", "other"]);
    assert_ne!(second["PCR1"], first["PCR1"]);
    assert_eq!(second["PCR2"], first["PCR2"]);
}

#[test]
fn the_kernel_s_modules_come_from_nitro_cli_s_blobs() {
    let scene = Scene::new();
    fs::create_dir(scene.path("blobs")).unwrap();
    fs::copy(scene.path("kernel"), scene.path("blobs/bzImage")).unwrap();
    fs::write(scene.path("blobs/cmdline"), "reboot=k pci=off\n").unwrap();
    fs::write(scene.path("blobs/nsm.ko"), "module").unwrap();
    scene.built(&["--blobs", "blobs", "--nsm", "auto", "--append", " more  words "]);
    let (_, out, _) = scene.run(&["inspect", "x.eif", "-o", "json"]);
    let found: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(found["cmdline"], "reboot=k pci=off enclave.init=vm enclave.nsm=auto more  words");
    assert_eq!(found["modules"], serde_json::json!(["/lib/modules/nsm.ko"]));
}

#[test]
fn a_policy_is_what_was_asked_for() {
    let scene = Scene::new();
    let policy = |more: &[&str]| {
        scene.built(more);
        let (_, out, _) = scene.run(&["inspect", "x.eif", "-o", "json"]);
        serde_json::from_str::<serde_json::Value>(&out).unwrap()["policy"].clone()
    };
    assert_eq!(policy(&[])["manifest"], "pinned");
    assert_eq!(policy(&["--policy", "any"]), serde_json::json!({ "manifest": "any" }));
    let key = "ed25519:FpSz2h8tCESZSFvA68+qNEWj1bS8Aln+yZKpMLK3xdE=";
    assert_eq!(policy(&["--policy", "signed", "--policy-key", key])["keys"][0], key);
    expect![[r#"
        --policy signed needs at least one --policy-key
    "#]]
    .assert_eq(&scene.refused(&["--policy", "signed"]));
    expect![[r#"
        --policy-key: key 0: expected ed25519: and the base64 of 32 bytes
    "#]]
    .assert_eq(&scene.refused(&["--policy", "signed", "--policy-key", "ed25519:AAAA"]));
}

#[test]
fn a_file_that_cannot_be_written_is_an_error_of_the_machine() {
    let scene = Scene::new();
    let (code, _, error) = scene.build(&["--output", "none/x.eif"]);
    assert_eq!(code, 1);
    assert!(error.contains("none/x.eif: "), "{error}");
}

#[test]
fn debian_s_newest_cloud_kernel_brings_its_modules_decompressed() {
    let scene = Scene::new();
    let modules = "root/lib/modules/6.12.1-cloud-amd64";
    fs::create_dir_all(scene.path("root/boot")).unwrap();
    fs::create_dir_all(scene.path(modules).join("k")).unwrap();
    for version in ["6.9.1-cloud-amd64", "6.12.1-cloud-amd64", "6.20.1-amd64"] {
        fs::copy(scene.path("kernel"), scene.path("root/boot").join(format!("vmlinuz-{version}"))).unwrap();
    }
    fs::write(scene.path(modules).join("modules.builtin"), "k/overlay.ko\n").unwrap();
    let chain = ["vmw_vsock_virtio_transport", "vmw_vsock_virtio_transport_common", "vsock"];
    let mut dependencies = String::new();
    for (index, name) in chain.iter().enumerate() {
        let needs: Vec<String> = chain[index + 1..].iter().map(|name| format!(" k/{name}.ko.xz")).collect();
        dependencies.push_str(&format!("k/{name}.ko.xz:{}\n", needs.concat()));
        let mut xz = Vec::new();
        lzma_rs::xz_compress(&mut name.as_bytes(), &mut xz).unwrap();
        fs::write(scene.path(modules).join(format!("k/{name}.ko.xz")), xz).unwrap();
    }
    fs::write(scene.path(modules).join("modules.dep"), dependencies).unwrap();
    scene.built(&["--kernel-root", "root"]);
    let (_, out, _) = scene.run(&["inspect", "x.eif", "-o", "json", "--files"]);
    let found: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(found["cmdline"].as_str().unwrap().split(" enclave").next(), Some(DEBIAN));
    let path = |name: &&str| format!("/lib/modules/6.12.1-cloud-amd64/k/{name}.ko");
    assert_eq!(found["modules"], serde_json::json!(chain.iter().rev().map(path).collect::<Vec<_>>()));
    let vsock = found["files"].as_array().unwrap().iter().find(|file| file["path"] == path(&"vsock")[1..]);
    assert_eq!(vsock.unwrap()["bytes"], 5);
}
