//! What is read as YAML, and what is refused before any field is looked at.

use enclave_protocol::control::MANIFEST_BYTES_MAX;
use enclave_protocol::manifest::Context;
use expect_test::expect;

use crate::{check, outcome, parsed, plugin, with_plugin, with_spec};

#[test]
fn json_is_a_manifest_too() {
    let json = r#"{"apiVersion": "k8s.oblv.com/v1alpha1", "kind": "NitroEnclaveDeployment",
        "metadata": {"name": "demo"},
        "spec": {"userPlugins": [{"name": "app", "image": "app:1", "ports": [{"containerPort": 80}]}]}}"#;
    assert_eq!(parsed(json).plugin("app").unwrap().ports[0].container_port, 80);
}

#[test]
fn a_text_that_is_no_mapping_is_refused() {
    let texts = [
        "",
        "# only a comment\n",
        "~",
        "hello",
        "[1, 2]",
        "--- {}\n--- {}\n",
        "a: [1, 2\n",
        "a: b: c\n",
        "a: \"\\q\"\n",
        "a:\n\tb: c\n",
        "? [a]\n: b\n",
        "%YAML 1.2\n---\na: b\n",
    ];
    expect![[r#"
        1:1: (document): the document is empty
        1:1: (document): the document is empty
        1:1: (document): the document is empty
        1:1: (document): expected a mapping, found the string "hello"
        1:1: (document): expected a mapping, found a list
        2:1: (document): more than one document: only one is read
        1:4: a[1]: not valid YAML: unclosed bracket '['
        1:5: (document): not valid YAML: mapping values are not allowed in this context
        1:4: a: not valid YAML: while parsing a quoted scalar, found unknown escape character
        2:2: a: not valid YAML: tabs disallowed within this context (block indentation)
        1:3: (document): a key must be a string
        1:1: (document): not valid YAML: YAML directives are disallowed
    "#]]
    .assert_eq(&texts.map(|text| outcome(text, &Context::default())).concat());
}

#[test]
fn anchors_aliases_tags_and_repeated_keys_are_refused_all_at_once() {
    check(
        &with_spec(
            "userPlugins:\n  - &one {name: app, image: !!str app:1}\n  - *one\n  - *none\nreplicas: 1\nreplicas: 2",
        ),
        expect![[r#"
            6:12: spec.userPlugins[0]: anchors are not supported: write the value out
            6:37: spec.userPlugins[0].image: tags are not supported
            7:7: spec.userPlugins[1]: aliases are not supported: write the value out
            8:7: spec.userPlugins[2]: aliases are not supported: write the value out
            10:3: spec.replicas: the key "replicas" is given twice
        "#]],
    );
    check(
        "*a : b",
        expect![[r#"
        1:1: (document): aliases are not supported: write the value out
    "#]],
    );
    check(
        "&a b: c",
        expect![[r#"
        1:1: (document): the field apiVersion is required
        1:1: (document): the field kind is required
        1:4: (document): anchors are not supported: write the value out
    "#]],
    );
}

#[test]
fn a_merge_key_is_an_unknown_field() {
    check(
        &with_plugin("<<: {command: [x]}"),
        expect![[r#"
        8:7: spec.userPlugins[0]["<<"]: unknown field "<<"
    "#]],
    );
}

#[test]
fn a_text_that_is_too_long_is_refused_unread() {
    let text = "[".repeat(MANIFEST_BYTES_MAX + 1);
    assert_eq!(
        outcome(&text, &Context::default()),
        "1:1: (document): 1048577 bytes are too long: the limit is 1048576\n"
    );
}

#[test]
fn at_most_a_hundred_mistakes_are_named_and_the_rest_counted() {
    let fields: String = (0..150).map(|i| format!("unknown{i}: 1\n")).collect();
    let text = outcome(&with_plugin(&fields), &Context::default());
    assert_eq!(text.lines().count(), 101);
    assert_eq!(text.lines().last(), Some("107:7: (document): and 50 more mistakes after this line"));
    let many: String = (0..5000).map(|i| format!("unknown{i}: 1\n")).collect();
    assert!(
        outcome(&with_plugin(&many), &Context::default())
            .ends_with("and 4900 more mistakes after this line\n")
    );
}

#[test]
fn wrong_types_say_what_was_expected_and_found() {
    check(
        &with_plugin(
            "ports: 80\ncommand: run\nenv: {A: b}\nresources: []\nrestartPolicy: 1\ngrace: 2\nargs: [[x], {a: b}, null]",
        ),
        expect![[r#"
            8:14: spec.userPlugins[0].ports: expected a list, found the number 80
            9:16: spec.userPlugins[0].command: expected a list, found the string "run"
            10:12: spec.userPlugins[0].env: expected a list, found a mapping
            11:18: spec.userPlugins[0].resources: expected a mapping, found a list
            12:22: spec.userPlugins[0].restartPolicy: expected a string, found the number 1; put it in quotes
            13:7: spec.userPlugins[0].grace: unknown field "grace"
            14:14: spec.userPlugins[0].args[0]: expected a string, found a list
            14:19: spec.userPlugins[0].args[1]: expected a string, found a mapping
            14:27: spec.userPlugins[0].args[2]: expected a string, found nothing
        "#]],
    );
    check(
        &with_spec("userPlugins: app\nplugins: []\nlogs: all"),
        expect![[r#"
        5:16: spec.userPlugins: expected a list, found the string "app"
        6:12: spec.plugins: expected a mapping, found a list
        7:9: spec.logs: expected a mapping, found the string "all"
    "#]],
    );
}

#[test]
fn numbers_follow_yaml_1_2_and_octals_are_refused() {
    let port = |text: &str| {
        outcome(&with_plugin(&format!("ports: [{{containerPort: {text}}}]")), &Context::default())
    };
    for text in ["8080", "0x1F90", "0o17620"] {
        assert_eq!(port(text), "ok\n", "{text}");
    }
    check(
        &with_plugin(
            "ports:\n- {containerPort: \"8080\"}\n- {containerPort: 1e3}\n- {containerPort: 0777}\n- {containerPort: 0}\n- {containerPort: 65536}\n- {containerPort: -1}\n- {containerPort: 99999999999999999999}\n- {containerPort: true}\n- {containerPort: eighty}\n- {containerPort: '+'}",
        ),
        expect![[r#"
            9:25: spec.userPlugins[0].ports[0].containerPort: expected a whole number, found the string "8080"; remove the quotes
            10:25: spec.userPlugins[0].ports[1].containerPort: expected a whole number, found the number 1e3
            11:25: spec.userPlugins[0].ports[2].containerPort: 0777 reads as octal in YAML 1.1; write 777 or 0o777
            12:25: spec.userPlugins[0].ports[3].containerPort: expected a whole number from 1 to 65535, found the number 0
            13:25: spec.userPlugins[0].ports[4].containerPort: expected a whole number from 1 to 65535, found the number 65536
            14:25: spec.userPlugins[0].ports[5].containerPort: expected a whole number from 1 to 65535, found the number -1
            15:25: spec.userPlugins[0].ports[6].containerPort: expected a whole number from 1 to 65535, found the number 99999999999999999999
            16:25: spec.userPlugins[0].ports[7].containerPort: expected a whole number, found the boolean true
            17:25: spec.userPlugins[0].ports[8].containerPort: expected a whole number, found the string "eighty"
            18:25: spec.userPlugins[0].ports[9].containerPort: expected a whole number, found the string "+"
        "#]],
    );
}

#[test]
fn strings_must_be_strings_and_no_is_one() {
    assert_eq!(
        plugin("env: [{name: A, value: no}, {name: B, value: \"1\"}, {name: C}, {name: D, value: }]").env,
        [
            ("A".to_owned(), "no".to_owned()),
            ("B".to_owned(), "1".to_owned()),
            ("C".to_owned(), String::new()),
            ("D".to_owned(), String::new()),
        ]
    );
    check(
        &with_plugin(
            "env:\n- {name: A, value: 1}\n- {name: B, value: true}\n- {name: C, value: 1e3}\n- {name: D, value: [x]}\n- {name: E, value: \"a\\0b\"}",
        ),
        expect![[r#"
            9:26: spec.userPlugins[0].env[0].value: expected a string, found the number 1; put it in quotes
            10:26: spec.userPlugins[0].env[1].value: expected a string, found the boolean true; put it in quotes
            11:26: spec.userPlugins[0].env[2].value: expected a string, found the number 1e3; put it in quotes
            12:26: spec.userPlugins[0].env[3].value: expected a string, found a list
            13:26: spec.userPlugins[0].env[4].value: a string must not hold a NUL character
        "#]],
    );
}

#[test]
fn block_scalars_keep_their_lines() {
    assert_eq!(plugin("args:\n- |\n  a\n  b\n- >-\n  c\n  d").args.unwrap(), ["a\nb\n", "c d"]);
}

#[test]
fn a_null_field_means_the_same_as_none() {
    check(
        &with_plugin("ports:\nvolumes: ~\nrestart: null\nenv:"),
        expect![[r#"
        ok
    "#]],
    );
}
