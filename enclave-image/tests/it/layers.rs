//! What a stack of layers comes to.

use enclave_image::limits::Limits;
use expect_test::{Expect, expect};

use crate::scene::{Layer, stacked};

fn check(layers: Vec<Layer>, expected: &Expect) {
    expected.assert_eq(&stacked(layers, &Limits::default()));
}

#[test]
fn owners_modes_times_and_links_are_kept() {
    let layer = Layer::new()
        .owned("bin/su", 0o4755, 0, 5, 77)
        .owned("home/a", 0o600, 1000, 4_000_000_000, 1_500_000_000)
        .hard_link("bin/sg", "bin/su")
        .symlink("lib", "usr/lib")
        .raw("run/pipe", tar::EntryType::Fifo, "", b"");
    check(
        vec![layer],
        &expect![[r#"
        0755 0:0 77 bin directory
        4755 0:5 77 bin/sg file 0 ""
        4755 0:5 77 bin/su file 0 ""
        0755 0:0 1500000000 home directory
        0600 1000:4000000000 1500000000 home/a file 1 ""
        0644 0:0 1000 lib -> usr/lib
        0755 0:0 1000 run directory
        0644 0:0 1000 run/pipe fifo
    "#]],
    );
}

#[test]
fn a_whiteout_takes_away_what_older_layers_have_and_nothing_of_its_own() {
    let base =
        Layer::new().directory("d/").file("d/a", "1").file("d/b", "1").file("e/x/y", "1").file("f", "1");
    let upper = Layer::new()
        .file("d/.wh.a", "")
        .file("e/x/new", "2")
        .file("e/.wh.x", "")
        .file(".wh.f", "")
        .file("f", "2")
        .file(".wh.gone", "");
    check(
        vec![base, upper],
        &expect![[r#"
        0755 0:0 1000 d directory
        0644 0:0 1000 d/b file 0 "1"
        0755 0:0 1000 e directory
        0755 0:0 1000 e/x directory
        0644 0:0 1000 e/x/new file 1 "2"
        0644 0:0 1000 f file 2 "2"
    "#]],
    );
}

#[test]
fn an_opaque_directory_hides_everything_older_wherever_the_mark_stands() {
    let base = || Layer::new().directory("d/").file("d/a", "1").file("d/s/b", "1").file("d2", "1");
    let upper = Layer::new().directory("d/").file("d/new", "2").file("d/.wh..wh..opq", "");
    check(
        vec![base(), upper],
        &expect![[r#"
        0755 0:0 1000 d directory
        0644 0:0 1000 d/new file 0 "2"
        0644 0:0 1000 d2 file 1 "1"
    "#]],
    );
    let upper = Layer::new().file(".wh..wh..opq", "").file(".wh..wh.plnk", "");
    check(vec![base(), upper], &expect![[""]]);
}

#[test]
fn a_kind_that_changes_replaces_what_was_there() {
    let base = Layer::new().file("was-dir/a", "1").file("was-file", "1").symlink("was-link", "was-dir");
    let upper = Layer::new()
        .file("was-dir", "2")
        .directory("was-file/")
        .file("was-file/a", "2")
        .directory("was-link/");
    check(
        vec![base, upper],
        &expect![[r#"
        0644 0:0 1000 was-dir file 0 "2"
        0755 0:0 1000 was-file directory
        0644 0:0 1000 was-file/a file 1 "2"
        0755 0:0 1000 was-link directory
    "#]],
    );
}

#[test]
fn a_hard_link_shares_its_file_until_a_newer_layer_writes_one_of_the_names() {
    let base = Layer::new().file("a", "1").hard_link("b", "a").hard_link("c", "./a");
    let upper = Layer::new().file("b", "2").hard_link("d", "a");
    check(
        vec![base, upper],
        &expect![[r#"
        0644 0:0 1000 a file 0 "1"
        0644 0:0 1000 b file 1 "2"
        0644 0:0 1000 c file 0 "1"
        0644 0:0 1000 d file 0 "1"
    "#]],
    );
}

#[test]
fn a_path_through_a_symlink_is_followed_within_the_image() {
    let base = Layer::new().directory("usr/lib/").symlink("lib", "usr/lib").symlink("abs", "/usr/lib");
    let upper =
        Layer::new().file("lib/a", "2").file("abs/b", "2").hard_link("c", "lib/a").file("lib/.wh.b", "");
    check(
        vec![base, upper],
        &expect![[r#"
        0644 0:0 1000 abs -> /usr/lib
        0644 0:0 1000 c file 0 "2"
        0644 0:0 1000 lib -> usr/lib
        0755 0:0 1000 usr directory
        0755 0:0 1000 usr/lib directory
        0644 0:0 1000 usr/lib/a file 0 "2"
        0644 0:0 1000 usr/lib/b file 1 "2"
    "#]],
    );
}

#[test]
fn extended_headers_say_long_names_and_what_cannot_be_kept_is_said() {
    let long = "d/".repeat(60) + "file";
    let layer = Layer::new()
        .extended("short", &[("path", long.as_bytes()), ("mtime", b"12.75"), ("uid", b"3000000000")])
        .extended(
            "ping",
            &[("SCHILY.xattr.security.capability", b"\x01\n\0\x02"), ("SCHILY.xattr.security.selinux", b"x")],
        );
    let text = stacked(vec![layer], &Limits::default());
    let lines: Vec<&str> = text.lines().filter(|line| !line.ends_with("directory")).collect();
    let shown = lines.join("\n").replace(&"d/".repeat(60), "D/");
    expect![[r#"
        0644 3000000000:0 12 D/file file 0 ""
        0644 0:0 1000 ping file 1 ""
        ! /ping: a ramdisk cannot hold its extended attribute security.capability"#]]
    .assert_eq(&shown);
}
