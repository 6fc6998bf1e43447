//! Volumes and the files behind them.

use enclave_protocol::control::{FileTree, Files};
use enclave_protocol::manifest::{Context, Place, parse};
use expect_test::expect;

use crate::{check, config_maps, outcome, parsed, tree, with_plugin};

#[test]
fn a_volume_selects_and_renames_its_files() {
    let manifest = parsed(&with_plugin(
        "volumes:
- {name: all, containerPath: /etc/all/, source: {configMap: {name: c}}}
- {name: some, containerPath: /etc/some, readOnly: false, source: {secret: {name: s, items: [{key: k, path: a/./b}, {key: k, path: c}]}}}",
    ));
    let files = Files {
        config_maps: tree(&[
            ("c", "one", "1"),
            ("c", "two", "2"),
            ("other", "three", "3"),
            ("c", "../up", "4"),
        ]),
        secrets: tree(&[("s", "k", "secret"), ("s", "l", "x")]),
    };
    let [all, some] = manifest.plugins[0].volumes.as_slice() else { panic!("two volumes") };
    let names = |files: Vec<(String, &enclave_protocol::control::FileBytes)>| {
        files
            .iter()
            .map(|(path, bytes)| format!("{path}={}", String::from_utf8_lossy(&bytes.0)))
            .collect::<Vec<_>>()
    };
    assert_eq!((all.container_path.as_str(), all.read_only), ("/etc/all", true));
    assert_eq!(names(all.files(&files)), ["one=1", "two=2"]);
    assert_eq!((some.container_path.as_str(), some.read_only), ("/etc/some", false));
    assert_eq!(names(some.files(&files)), ["a/b=secret", "c=secret"]);
    assert_eq!(names(all.files(&Files::default())), [""; 0]);
    assert_eq!(manifest.plugins[0].diagnostic("x").to_string(), "6:7: spec.userPlugins[0]: x");
}

#[test]
fn a_place_that_the_image_does_not_have_is_named_among_the_other_mistakes() {
    let text = with_plugin(
        "volumes:
- {name: a, containerPath: /good, source: {configMap: {name: c}}}
- {name: b, containerPath: /out, readOnli: true, source: {configMap: {name: c}}}",
    );
    let judge = |plugin: &str, path: &str| {
        if path == "/out" { Err(format!("{path} leads out of the image of {plugin}")) } else { Ok(()) }
    };
    let context = Context { place: Some(Place(&judge)), ..Context::default() };
    expect![[r#"
        10:34: spec.userPlugins[0].volumes[1].containerPath: /out leads out of the image of app
        10:40: spec.userPlugins[0].volumes[1].readOnli: unknown field "readOnli"; did you mean readOnly?
    "#]]
    .assert_eq(&outcome(&text, &context));
}

#[test]
fn a_volumes_place_is_the_plugins_own() {
    check(
        &with_plugin(
            "volumes:
- {name: a, containerPath: etc, source: {configMap: {name: c}}}
- {name: b, containerPath: /, source: {configMap: {name: c}}}
- {name: c, containerPath: /a/../b, source: {configMap: {name: c}}}
- {name: d, containerPath: /proc/x, source: {configMap: {name: c}}}
- {name: e, containerPath: /sys, source: {configMap: {name: c}}}
- {name: f, containerPath: /dev/shm, source: {configMap: {name: c}}}
- {name: g, containerPath: /run/enclave, source: {configMap: {name: c}}}
- {name: h, containerPath: /run, source: {configMap: {name: c}}}
- {name: i, containerPath: /x, source: {configMap: {name: c}}}
- {name: i, containerPath: /x/, source: {configMap: {name: c}}}",
        ),
        expect![[r#"
            9:34: spec.userPlugins[0].volumes[0].containerPath: "etc" is no absolute path
            10:34: spec.userPlugins[0].volumes[1].containerPath: a volume cannot replace the root file system
            11:34: spec.userPlugins[0].volumes[2].containerPath: "/a/../b" must not hold ".."
            12:34: spec.userPlugins[0].volumes[3].containerPath: "/proc/x" lies in /proc, which is the runtime's own
            13:34: spec.userPlugins[0].volumes[4].containerPath: "/sys" lies in /sys, which is the runtime's own
            14:34: spec.userPlugins[0].volumes[5].containerPath: "/dev/shm" lies in /dev, which is the runtime's own
            15:34: spec.userPlugins[0].volumes[6].containerPath: "/run/enclave" lies in /run/enclave, which is the runtime's own
            16:34: spec.userPlugins[0].volumes[7].containerPath: "/run" would hide /run/enclave, which is the runtime's own
            18:16: spec.userPlugins[0].volumes[9].name: the volume name i is already used at spec.userPlugins[0].volumes[8].name
            18:34: spec.userPlugins[0].volumes[9].containerPath: the containerPath /x is already used at spec.userPlugins[0].volumes[8].containerPath
        "#]],
    );
}

#[test]
fn a_source_is_one_object_with_files_beneath_the_volume() {
    check(
        &with_plugin(
            "volumes:
- {containerPath: /a}
- {name: b, containerPath: /b, source: {}}
- {name: c, containerPath: /c, source: {configMap: {name: c}, secret: {name: c}}}
- {name: d, containerPath: /d, source: {hostPath: /etc}}
- {name: e, containerPath: /e, source: {secret: {secretName: x}}}
- {name: f, containerPath: /f, source: {configMap: {name: ../x}}}
- {name: g, containerPath: /g, source: {configMap: {name: x, items: [{key: a}, {path: b}, {key: ../a, path: ../b}, {key: a, path: /c}]}}}
- {name: h, containerPath: /h, source: {configMap: {name: x, items: [{key: a, path: p}, {key: b, path: ./p}, {key: c, path: p/q}]}}}",
        ),
        expect![[r#"
            9:9: spec.userPlugins[0].volumes[0]: the field name is required
            9:9: spec.userPlugins[0].volumes[0]: the field source is required
            10:46: spec.userPlugins[0].volumes[1].source: one of the fields configMap and secret is required
            11:46: spec.userPlugins[0].volumes[2].source: a volume has one source: either configMap or secret
            12:46: spec.userPlugins[0].volumes[3].source: one of the fields configMap and secret is required
            12:47: spec.userPlugins[0].volumes[3].source.hostPath: unknown field "hostPath"
            13:55: spec.userPlugins[0].volumes[4].source.secret: the field name is required
            13:56: spec.userPlugins[0].volumes[4].source.secret.secretName: unknown field "secretName"
            14:65: spec.userPlugins[0].volumes[5].source.configMap.name: "../x" is no name of a ConfigMap or Secret: letters, digits, '-', '_' and '.', not beginning with '.'
            15:76: spec.userPlugins[0].volumes[6].source.configMap.items[0]: the field path is required
            15:86: spec.userPlugins[0].volumes[6].source.configMap.items[1]: the field key is required
            15:103: spec.userPlugins[0].volumes[6].source.configMap.items[2].key: "../a" is no key: letters, digits, '-', '_' and '.', not beginning with '..'
            15:115: spec.userPlugins[0].volumes[6].source.configMap.items[2].path: "../b" must not hold ".."
            15:137: spec.userPlugins[0].volumes[6].source.configMap.items[3].path: "/c" must be relative to the volume's containerPath
            16:75: spec.userPlugins[0].volumes[7].source.configMap.items: p is a file here, so that p/q cannot lie beneath it
            16:110: spec.userPlugins[0].volumes[7].source.configMap.items[1].path: the path p is already used at spec.userPlugins[0].volumes[7].source.configMap.items[0].path
        "#]],
    );
}

#[test]
fn files_that_were_not_delivered_are_mistakes() {
    let text = with_plugin(
        "volumes:
- {name: a, containerPath: /a, source: {configMap: {name: none}}}
- {name: b, containerPath: /b, source: {configMap: {name: c, items: [{key: here, path: x}, {key: gone, path: y}]}}}
- {name: c, containerPath: /c, source: {secret: {name: c}}}
- {name: d, containerPath: /d, source: {configMap: {name: odd}}}",
    );
    let files = config_maps(&[("c", "here", ""), ("odd", "a/b", "")]);
    expect![[r#"
        9:65: spec.userPlugins[0].volumes[0].source.configMap.name: ConfigMap none was not delivered with the manifest
        10:104: spec.userPlugins[0].volumes[1].source.configMap.items[1].key: ConfigMap c has no key gone
        11:62: spec.userPlugins[0].volumes[2].source.secret.name: Secret c was not delivered with the manifest
        12:65: spec.userPlugins[0].volumes[3].source.configMap.name: ConfigMap odd has the key "a/b", which is no file name; select others by items
    "#]].assert_eq(&outcome(&text, &Context { files: Some(&files), ..Context::default() }));
    let files = Files { config_maps: FileTree::new(), secrets: tree(&[("none", "x", "")]) };
    assert!(parse(&text, &Context { files: Some(&files), ..Context::default() }).is_err());
    assert_eq!(outcome(&text, &Context::default()), "ok\n");
}
