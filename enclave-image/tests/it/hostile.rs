//! Archives that are made to break out, to fill the disk, or just broken. Each is refused with the entry's
//! name.

use std::fs;

use enclave_image::limits::Limits;
use expect_test::{Expect, expect};
use tar::EntryType;

use crate::scene::{Layer, Scene, docker_archive, gzip, oci_archive, stacked};

fn check(layer: Layer, expected: &Expect) {
    expected.assert_eq(&stacked(vec![layer], &Limits::default()));
}

#[test]
fn paths_that_lead_out_are_refused() {
    check(Layer::new().file("/etc/passwd", "x"), &expect!["error: the entry /etc/passwd: an absolute path"]);
    check(
        Layer::new().file("a/../../etc/passwd", "x"),
        &expect!["error: the entry a/../../etc/passwd: a path with .."],
    );
    check(
        Layer::new().symlink("out", "../../etc").file("out/passwd", "x"),
        &expect!["error: the entry out/passwd: a symlink on its way leads out of the image"],
    );
    check(
        Layer::new().symlink("a", "b").symlink("b", "a").file("a/x", ""),
        &expect!["error: the entry a/x: too many symlinks on its way"],
    );
    check(
        Layer::new().file("f", "").file("f/x", ""),
        &expect!["error: the entry f/x: f on its way is no directory"],
    );
    check(
        Layer::new().symlink("out", "../..").file("out/.wh.etc", ""),
        &expect!["error: the entry out/.wh.etc: a symlink on its way leads out of the image"],
    );
    // A symlink alone does no harm: in the enclave it leads to the enclave's own files.
    check(
        Layer::new().symlink("out", "../../etc"),
        &expect![[r#"
        0644 0:0 1000 out -> ../../etc
    "#]],
    );
}

#[test]
fn links_to_the_outside_or_to_nothing_are_refused() {
    check(
        Layer::new().hard_link("l", "../etc/shadow"),
        &expect!["error: the entry l: a hard link to ../etc/shadow: a path with .."],
    );
    check(
        Layer::new().hard_link("l", "/etc/shadow"),
        &expect!["error: the entry l: a hard link to /etc/shadow: an absolute path"],
    );
    check(
        Layer::new().symlink("out", "../../etc").hard_link("l", "out/shadow"),
        &expect![
            "error: the entry l: a hard link to out/shadow: a symlink on its way leads out of the image"
        ],
    );
    check(
        Layer::new().hard_link("l", "etc/shadow"),
        &expect!["error: the entry l: a hard link to etc/shadow: no such file in the image"],
    );
    check(
        Layer::new().directory("d/").hard_link("l", "d"),
        &expect!["error: the entry l: a hard link to d: a directory"],
    );
    check(
        Layer::new().symlink("l", ""),
        &expect!["error: the entry l: a symlink to nothing, or to a path that is too long"],
    );
}

#[test]
fn device_nodes_whiteouts_of_nothing_and_unknown_types_are_refused() {
    check(
        Layer::new().raw("dev/sda", EntryType::Block, "", b""),
        &expect!["error: the entry dev/sda: a device node; a plugin's /dev is made in the enclave"],
    );
    check(
        Layer::new().raw("dev/mem", EntryType::Char, "", b""),
        &expect!["error: the entry dev/mem: a device node; a plugin's /dev is made in the enclave"],
    );
    check(Layer::new().file("a/.wh...", ""), &expect!["error: the entry a/.wh...: a whiteout of no file"]);
    check(Layer::new().file(".wh.", ""), &expect!["error: the entry .wh.: a whiteout of no file"]);
    check(
        Layer::new().raw("v", EntryType::new(b'V'), "", b""),
        &expect!["error: the entry v: the unknown type 'V'"],
    );
    check(
        Layer::new().raw("", EntryType::Regular, "", b"x"),
        &expect!["error: the entry : the root is no directory"],
    );
    check(
        Layer::new().raw("s", EntryType::GNUSparse, "", b""),
        &expect!["error: the entry s: a sparse file"],
    );
    check(
        Layer::new().extended("x", &[("size", b"99999999999")]),
        &expect!["error: the entry x: its extended header has another size"],
    );
}

#[test]
fn bombs_end_at_their_bounds() {
    let limits = Limits { entries: 3, bytes: 10, ..Limits::default() };
    let many = Layer::new().file("a", "").file("b", "").file("c", "").file("d", "");
    expect!["error: the entry d: more than 3 files"].assert_eq(&stacked(vec![many], &limits));
    expect!["error: the entry b: the contents of all files together have more than 10 bytes"]
        .assert_eq(&stacked(vec![Layer::new().file("a", "123456").file("b", "12345")], &limits));
    let narrow = Limits { paths_bytes: 10, ..Limits::default() };
    let deep = Layer::new().file("a/b/c", "").file("d", "").symlink("e", "0123456789").file("f", "");
    expect!["error: the entry f: paths of more than 10 bytes"].assert_eq(&stacked(vec![deep], &narrow));
    // A name that is a gigabyte long would be read into memory.
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(EntryType::GNULongName);
    header.set_size(1 << 30);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.resize(8 << 10, b'a');
    let mut visit = |_: &enclave_image::tarball::Member, _: &mut dyn std::io::Read| Ok(());
    expect!["an extended header of more than 1048576 bytes"]
        .assert_eq(&enclave_image::tarball::read(bytes.as_slice(), &mut visit).unwrap_err());
    // A size that the archive does not have.
    let mut cut = Layer::new().file("a", "123").bytes();
    cut.truncate(513);
    expect!["no tar archive: unexpected EOF during skip"]
        .assert_eq(&enclave_image::tarball::read(cut.as_slice(), &mut visit).unwrap_err());
}

#[test]
fn an_archive_that_is_none_or_lies_about_its_layers_is_refused() {
    let scene = Scene::new();
    let config = r#"{"Entrypoint": ["/app"]}"#;
    let layers = || vec![Layer::new().file("app", "x")];
    let mut said = String::new();
    let mut try_out = |kind: &str, what: &str| {
        let error = scene.refused(&["--image", &format!("app={kind}-archive:bad.tar")]);
        let error = error.lines().last().unwrap_or_default().to_owned();
        said.push_str(&format!("{what}: {error}\n"));
    };
    fs::write(scene.path("bad.tar"), "no archive at all").unwrap();
    try_out("docker", "text");
    fs::write(scene.path("bad.tar"), gzip(b"no archive at all")).unwrap();
    try_out("oci", "text in gzip");
    fs::write(scene.path("bad.tar"), Layer::new().file("manifest.json", "[]").bytes()).unwrap();
    try_out("docker", "no image");
    let manifest = r#"[{"Config": "c.json", "Layers": ["l.tar"]}]"#;
    fs::write(
        scene.path("bad.tar"),
        Layer::new().file("manifest.json", manifest).symlink("c.json", "c.json").bytes(),
    )
    .unwrap();
    try_out("docker", "a loop");
    docker_archive(&scene.path("bad.tar"), layers(), config, Some(&"0".repeat(64)));
    try_out("docker", "another digest");
    oci_archive(&scene.path("bad.tar"), layers(), config, &|index, blob| {
        if index == 0 {
            blob[20] ^= 1;
        }
    });
    try_out("oci", "a changed blob");
    oci_archive(&scene.path("bad.tar"), layers(), config, &|index, blob| {
        if index == 1 {
            blob.push(b' ');
        }
    });
    try_out("oci", "a longer blob");
    let blobs = r#"{"manifests": [{"digest": "sha256:../../x", "size": 1}]}"#;
    fs::write(scene.path("bad.tar"), Layer::new().file("index.json", blobs).bytes()).unwrap();
    try_out("oci", "a digest that is a path");
    let masked =
        said.split(' ').map(|word| if word.len() > 70 { "sha256:…" } else { word }).collect::<Vec<_>>();
    let masked =
        masked.join(" ").replace("sha256:…its", "sha256:… its").replace(|c: char| c.is_ascii_digit(), "#");
    expect![[r#"
        text: bad.tar: no tar archive: failed to read entire block
        text in gzip: bad.tar: no tar archive: failed to read entire block
        no image: bad.tar: it holds # images, and one is needed
        a loop: bad.tar: it has no l.tar
        another digest: bad.tar: layer #/layer.tar: its digest is sha###:… and the image's config says sha###:… changed blob: bad.tar: blob sha###:… its bytes have the digest sha###:… longer blob: bad.tar: blob sha###:… it has ### bytes, not ###
        a digest that is a path: bad.tar: blob sha###:../../x: only sha### digests are supported
    "#]].assert_eq(&masked);
}
