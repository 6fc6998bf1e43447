//! `enclave-image inspect`, of our own images and of anything else.

use std::fs;

use expect_test::expect;
use proptest::prelude::*;

use crate::{
    scene::Scene,
    signing::{SIGNED, certificate},
};

/// Without the sizes of what is compressed, and where that ends: they change with the compressor.
fn masked(line: &str) -> String {
    if line.contains("EIF version") || line.starts_with("ramdisk") {
        return line.replace(|c: char| c.is_ascii_digit(), "#");
    }
    line.to_owned()
}

#[test]
fn an_image_is_shown_with_its_plugins_policy_and_memory() {
    let scene = Scene::new();
    scene.built(&[]);
    let (code, out, error) = scene.run(&["inspect", "x.eif", "--files"]);
    assert_eq!((code, error.as_str()), (0, ""));
    let lines: Vec<String> = out
        .lines()
        .filter(|line| {
            !line.starts_with("metadata") && !line.starts_with("policy:") && !line.starts_with("PCR")
        })
        .map(masked)
        .collect();
    expect![[r#"
        #### bytes (#.# MiB) · EIF version # · amd## · checksum ok

        command line: reboot=k panic=30 pci=off nomodules console=ttyS0 i8042.noaux i8042.nomux i8042.nopnp i8042.dumbkbd random.trust_cpu=on enclave.init=vm enclave.nsm=required
        build time: 86400

        SECTION        OFFSET       BYTES  FLAGS
        kernel            548        4097  0
        cmdline          4657         156  0
        ramdisk          ####         ###  #
        ramdisk          ####         ###  #

        PLUGIN        FILES       BYTES  IMAGE, PROGRAM, USER
        app               2           3  r/app:1, /app, 7
        telemetry         1         120  enclave-telemetry (base image), /enclave-telemetry, root
        0 040755     0:0              0 dev
        0 020600     0:0              0 dev/console
        0 020666     0:0              0 dev/null
        0 100755     0:0            120 enclave-init
        0 040755     0:0              0 etc
        0 040755     0:0              0 etc/enclave
        0 100644     0:0              0 etc/enclave/modules
        0 100755     0:0            120 init
        0 040755     0:0              0 plugins
        0 040555     0:0              0 proc
        0 040700     0:0              0 root
        0 040755     0:0              0 run
        0 040555     0:0              0 sys
        0 041777     0:0              0 tmp
        0 040755     0:0              0 var
        1 040755     0:0              0 etc
        1 040755     0:0              0 etc/enclave
        1 100644     0:0              6 etc/enclave/build-time
        1 100644     0:0            130 etc/enclave/policy.json
        1 040755     0:0              0 plugins
        1 040755     0:0              0 plugins/app
        1 100644     0:0            152 plugins/app/config.json
        1 040755     0:0              0 plugins/app/rootfs
        1 104755     1:2              0 plugins/app/rootfs/app
        1 040755     0:0              0 plugins/app/rootfs/etc
        1 100644     0:0              3 plugins/app/rootfs/etc/data
        1 040755     0:0              0 plugins/telemetry
        1 100644     0:0            191 plugins/telemetry/config.json
        1 040755     0:0              0 plugins/telemetry/rootfs
        1 100755     0:0            120 plugins/telemetry/rootfs/enclave-telemetry

        --memory: at least 1 MiB (four times the file, which nitro-cli requires);
        unpacked it is 842 bytes (0.0 MiB), and the root file system takes at most half of the memory: 1 MiB"#]].assert_eq(&lines.join("\n"));
}

#[test]
fn what_inspect_measures_is_what_build_printed() {
    let scene = Scene::new();
    let mut built = scene.built(&[]);
    built.as_object_mut().unwrap().remove("HashAlgorithm");
    let (_, out, _) = scene.run(&["inspect", "x.eif", "-o", "json"]);
    let found: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(found["measurements"], built);
    assert_eq!(found["plugins"]["app"]["config"]["User"], "7");
    assert_eq!(found["plugins"]["telemetry"]["base"], true);
    assert_eq!(found["buildTime"], 86_400);
}

#[test]
fn a_changed_byte_shows_in_the_checksum_and_a_broken_structure_is_refused() {
    let scene = Scene::new();
    scene.built(&[]);
    let good = fs::read(scene.path("x.eif")).unwrap();
    let inspected = |bytes: &[u8]| {
        fs::write(scene.path("bad.eif"), bytes).unwrap();
        let (code, out, error) = scene.run(&["inspect", "bad.eif"]);
        format!("{code} {}", if code == 0 { out.lines().next().unwrap().to_owned() } else { error })
    };
    let mut bad = good.clone();
    bad[1000] ^= 1;
    assert!(inspected(&bad).ends_with("checksum WRONG"));
    let mut said = String::new();
    for (at, value) in [(0, b'x'), (5, 9), (27, 33), (35, 0), (291, 0), (549, 9)] {
        let mut bad = good.clone();
        bad[at] = value;
        said.push_str(&inspected(&bad));
    }
    said.push_str(&inspected(&good[..300]));
    said.push_str(&inspected(&good[..good.len() - 1]));
    said.push_str(&inspected(&[&good[..], b"more"].concat()).replace(|c: char| c.is_ascii_digit(), "#"));
    expect![[r#"
        2 bad.eif: no enclave image file: it does not begin with .eif
        2 bad.eif: version 9 of the format is unknown
        2 bad.eif: 33 sections: the format has room for 32
        2 bad.eif: section 0: it does not begin where the one before it ends
        2 bad.eif: section 0: its size differs from the one in the header's table
        2 bad.eif: section 0: Invalid section type
        2 bad.eif: too short for an enclave image file
        2 bad.eif: section 4: beyond the end
        # bad.eif: # bytes after the last section
    "#]]
    .assert_eq(&said);
}

/// A valid image, signed, built once.
fn valid() -> &'static [u8] {
    static VALID: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    VALID.get_or_init(|| {
        let scene = Scene::new();
        certificate(&scene, "a", "secp384r1");
        scene.built(&SIGNED);
        fs::read(scene.path("x.eif")).unwrap()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn no_bytes_make_inspect_panic(bytes in prop::collection::vec(any::<u8>(), 0..700),
                                   changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..9),
                                   is_changed in any::<bool>()) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.eif");
        let bytes = if is_changed {
            let mut bytes = valid().to_vec();
            // Half of the changes go where the structure is.
            for (index, (at, byte)) in changes.iter().enumerate() {
                let len = if index % 2 == 0 { 560 } else { bytes.len() };
                bytes[at.index(len)] = *byte;
            }
            bytes
        } else {
            bytes
        };
        fs::write(&path, bytes).unwrap();
        // Any answer will do.
        enclave_image::inspect::inspect(&path, true).ok();
    }
}
