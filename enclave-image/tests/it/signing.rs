//! Signed images, with a certificate that the program `openssl` makes.

use std::fs;

use expect_test::expect;
use sha2::{Digest as _, Sha384};

use crate::scene::{Scene, other};

/// Makes `NAME.pem` and `NAME.key` on a curve.
pub(crate) fn certificate(scene: &Scene, name: &str, curve: &str) {
    let script = format!(
        "openssl req -new -x509 -nodes -newkey ec -pkeyopt ec_paramgen_curve:{curve} -keyout {name}.key -out {name}.pem \
         -subj '/CN=Test Signer/O=Tests' -days 2"
    );
    let output = other("sh", &["-c", &script], scene.dir.path()).expect("a shell");
    assert!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr));
}

/// What makes `build` sign.
pub(crate) const SIGNED: [&str; 4] = ["--signing-certificate", "a.pem", "--private-key", "a.key"];

#[test]
fn a_signed_image_has_pcr_8_of_its_certificate_and_its_signature_holds() {
    let scene = Scene::new();
    certificate(&scene, "a", "secp384r1");
    let measured = scene.built(&SIGNED);
    let der =
        other("openssl", &["x509", "-in", "a.pem", "-outform", "der"], scene.dir.path()).unwrap().stdout;
    let pcr8 = Sha384::new().chain_update([0; 48]).chain_update(Sha384::digest(der)).finalize();
    let pcr8 = pcr8.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
    assert_eq!(measured["PCR8"], pcr8.as_str());
    let (_, out, _) = scene.run(&["inspect", "x.eif", "-o", "json"]);
    let found: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(found["measurements"]["PCR8"], pcr8.as_str());
    assert_eq!(found["signature"]["subject"], "CN=Test Signer, O=Tests");
    assert_eq!(found["signature"]["problem"], serde_json::Value::Null);
}

#[test]
fn a_signature_of_another_image_does_not_hold() {
    let scene = Scene::new();
    certificate(&scene, "a", "secp384r1");
    scene.built(&SIGNED);
    let mut bytes = fs::read(scene.path("x.eif")).unwrap();
    // A byte of the kernel, which is measured.
    bytes[600] ^= 1;
    fs::write(scene.path("x.eif"), bytes).unwrap();
    let (code, out, _) = scene.run(&["inspect", "x.eif"]);
    assert_eq!(code, 0);
    assert!(out.contains("NOT VALID: it signs another image"), "{out}");
}

#[test]
fn a_certificate_and_key_that_do_not_fit_are_refused_before_anything_is_built() {
    let scene = Scene::new();
    certificate(&scene, "a", "secp384r1");
    certificate(&scene, "b", "secp384r1");
    certificate(&scene, "p256", "prime256v1");
    let refused = |certificate: &str, key: &str| {
        scene.refused(&["--signing-certificate", certificate, "--private-key", key])
    };
    let said = [
        refused("a.pem", "b.key"),
        refused("p256.pem", "p256.key"),
        refused("a.key", "a.key"),
        refused("a.pem", "a.pem"),
        refused("none", "a.key"),
    ];
    expect![[r#"
        a.pem: not the certificate of b.key
        p256.key: no key on the curve P-384, which Nitro requires
        a.key: no certificate in PEM
        a.pem: no private key in PEM
        none: No such file or directory (os error 2)
    "#]]
    .assert_eq(&said.concat());
    assert!(!scene.path("x.eif").exists());
}
