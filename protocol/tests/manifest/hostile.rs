//! Text made to hurt: whatever comes, the answer is a manifest or a bounded list of mistakes.

use enclave_protocol::control::{Diagnostic, FileBytes, Files, MANIFEST_BYTES_MAX};
use enclave_protocol::digest::digest;
use enclave_protocol::manifest::{Context, DIAGNOSTICS_MAX, Manifest, parse};
use proptest::prelude::*;

use crate::{with_plugin, with_spec};

const EVERYTHING: &str = include_str!("../../testdata/digest/everything.yaml");
const EVERYTHING_FILES: &str = include_str!("../../testdata/digest/everything.files.json");

/// Longest answer: a hundred mistakes with their paths, which only a hostile text fills.
const ANSWER_BYTES_MAX: usize = 256 << 10;

fn answer(text: &str, files: Option<&Files>) -> Result<Manifest, Vec<Diagnostic>> {
    let answer = parse(text, &Context { files, ..Context::default() });
    if let Err(mistakes) = &answer {
        assert!((1..=DIAGNOSTICS_MAX + 1).contains(&mistakes.len()), "{} mistakes", mistakes.len());
        let bytes: usize = mistakes.iter().map(|mistake| mistake.to_string().len()).sum();
        assert!(bytes < ANSWER_BYTES_MAX, "an answer of {bytes} bytes");
    }
    answer
}

fn refusal(text: &str) -> String {
    match answer(text, None) {
        Ok(_) => panic!("accepted: {}", &text[..text.len().min(200)]),
        Err(mistakes) => mistakes[0].to_string(),
    }
}

/// `part` as often as a manifest may be long.
fn filled(part: &str) -> String {
    part.repeat(MANIFEST_BYTES_MAX / part.len())
}

#[test]
fn deep_nesting_ends_at_the_limit() {
    for text in [
        filled("["),
        filled("{a: "),
        filled("- "),
        filled("? "),
        filled("[{a: "),
        (0..500).map(|i| format!("{}a:\n", " ".repeat(i))).collect(),
        with_plugin(&format!("command: {}", "[".repeat(100_000))),
    ] {
        let refusal = refusal(&text);
        let wanted = ["nested deeper than", "a key must be a string"];
        assert!(wanted.iter().any(|part| refusal.contains(part)), "{refusal}");
    }
}

#[test]
fn laughter_is_not_expanded() {
    let line = |i: u32| {
        let item = i.checked_sub(1).map_or_else(|| "lol".to_owned(), |before| format!("*a{before}"));
        format!("a{i}: &a{i} [{}]\n", vec![item; 10].join(", "))
    };
    let text: String = (0..30).map(line).collect();
    assert_eq!(refusal(&text), "1:1: (document): the field apiVersion is required");
    assert!(answer(&text, None).unwrap_err().iter().any(|mistake| mistake.message.contains("anchors")));
}

#[test]
fn a_megabyte_of_anything_gets_an_answer() {
    for part in [
        "a",
        "a ",
        "a\n",
        "a: b\n",
        "- a\n",
        "&a b: c\n",
        "*a ",
        "!a ",
        "'",
        "\"",
        "\\",
        "|\n",
        ">\n a\n",
        "#\n",
        "[],",
        "a,",
        "{}\n",
        "---\n",
        "...\n",
        "%a\n",
        "\t",
        "\0",
        "\u{feff}",
        "é",
        "\u{2028}",
        ": ",
        "? a\n",
        "\r",
        "\u{85}",
        "&a ",
        "- - - a\n",
        "a: [\n",
        "\"a\": \n",
    ] {
        refusal(&filled(part));
        refusal(&format!("[{}", filled(part).split_at(MANIFEST_BYTES_MAX / 4 * 3).0.trim_end_matches('é')));
    }
}

#[test]
fn wide_manifests_are_refused_by_count() {
    let list =
        |part: &str, count: usize| (0..count).map(|i| part.replace('#', &i.to_string())).collect::<String>();
    for text in [
        with_spec(&format!("userPlugins: [{}]", list("{name: p#, image: x},", 5000))),
        with_spec(&format!(
            "userPlugins: [{{name: a, image: x}}]\nplugins: {{{}}}",
            list("p#: {image: x},", 5000)
        )),
        with_plugin(&format!("env: [{}]", list("{name: A#},", 5000))),
        with_plugin(&format!("ports: [{}]", list("{containerPort: #},", 5000))),
        with_plugin(&format!("volumes: [{}]", list("{name: v#},", 5000))),
        with_plugin(&format!("outboundConnections: [{}]", list("{fqdn: a#, port: 1},", 4000))),
        with_plugin(&format!("dependsOn: [{}]", list("p#,", 5000))),
        with_plugin(&format!("args: [{}]", list("#a,", 5000))),
        with_plugin(&list("unknown#: {}\n", 9000)),
        with_plugin(&list("image: x\n", 9000)),
        with_plugin(&format!("args: [{}]", list("a,", 30_000))),
    ] {
        refusal(&text);
    }
}

/// The largest work one accepted manifest can ask for.
#[test]
fn the_widest_accepted_manifest_is_accepted() {
    let connections: String = (1..=256).map(|port| format!("{{fqdn: a.example, port: {port}}},")).collect();
    let plugins: String = (0..64).map(|i| format!("{{name: p{i}, image: x}},")).collect();
    let text = with_spec(&format!("outboundConnections: [{connections}]\nuserPlugins: [{plugins}]"));
    assert_eq!(answer(&text, None).unwrap().plan().egress.len(), 64 * 256);
}

#[test]
fn a_hostile_file_behind_a_host_name_gets_an_answer() {
    for (bytes, kind) in [
        (filled("["), "yaml"),
        (filled("a: &a\n"), "yaml"),
        ("[".repeat(200_000), "json"),
        ("[s]\n".repeat(60_000), "ini"),
        ("=\n".repeat(120_000), "ini"),
    ] {
        let mut files = Files::default();
        let keys = files.config_maps.entry("c".to_owned()).or_default();
        keys.insert("k".to_owned(), FileBytes(bytes.into_bytes()));
        let list: String = (1..=32)
            .map(|port| {
                format!("{{fqdn: {{configMap: {{name: c, key: k, type: {kind}, ref: a}}}}, port: {port}}},")
            })
            .collect();
        assert!(answer(&with_plugin(&format!("outboundConnections: [{list}]")), Some(&files)).is_err());
    }
    let mut files = Files::default();
    files.config_maps.entry("c".to_owned()).or_default().insert("k".to_owned(), FileBytes(vec![0xff; 100]));
    let text = with_plugin(
        "outboundConnections: [{fqdn: {configMap: {name: c, key: k, type: ini, ref: a}}, port: 1}]",
    );
    assert!(answer(&text, Some(&files)).unwrap_err()[0].message.contains("is not UTF-8"));
}

/// A text with some of its places replaced, repeated, cut out or swapped.
fn mutated() -> impl Strategy<Value = String> {
    let token = prop_oneof![
        Just(String::new()),
        Just(" ".to_owned()),
        Just("\n".to_owned()),
        Just("- ".to_owned()),
        Just(": ".to_owned()),
        Just("[".to_owned()),
        Just("}".to_owned()),
        Just("null".to_owned()),
        Just("-1".to_owned()),
        Just("1e9".to_owned()),
        Just("..".to_owned()),
        Just("\"\\0\"".to_owned()),
        Just("é".to_owned()),
        Just("*".to_owned()),
        Just("&a ".to_owned()),
        Just("18446744073709551616".to_owned()),
        Just("a".repeat(300)),
        "[a-z0-9]{1,2}",
        "[a-z0-9]{1,2}",
        "\\PC{0,8}",
        any::<String>(),
    ];
    let change = (any::<prop::sample::Index>(), prop_oneof![Just(0), 0..4_usize, 0..40_usize], token);
    prop::collection::vec(change, 1..4).prop_map(|changes| {
        changes.into_iter().fold(EVERYTHING.to_owned(), |text, (at, cut, token)| {
            let places: Vec<usize> = text.char_indices().map(|(i, _)| i).chain([text.len()]).collect();
            let from = at.index(places.len());
            let to = (from + cut).min(places.len() - 1);
            format!("{}{token}{}", &text[..places[from]], &text[places[to]..])
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn arbitrary_text_gets_an_answer(text in any::<String>()) {
        drop(answer(&text, None));
    }

    #[test]
    fn text_of_yaml_tokens_gets_an_answer(tokens in prop::collection::vec(prop::sample::select(vec![
        "apiVersion", "spec", "userPlugins", "name", ": ", ":\n", "- ", "\n", "  ", "[", "]", "{", "}", ",", "'", "\"",
        "|", ">", "&a", "*a", "!!str", "#", "---", "...", "~", "0x", "1", "a", "?", "%",
    ]), 0..60)) {
        drop(answer(&tokens.concat(), None));
    }

    #[test]
    fn a_mutated_manifest_gets_an_answer_and_what_is_accepted_has_a_digest(text in mutated()) {
        let files: Files = serde_json::from_str(EVERYTHING_FILES).unwrap();
        if let Ok(manifest) = answer(&text, Some(&files)) {
            let plan = manifest.plan();
            prop_assert_eq!(plan.plugins.len(), manifest.plugins.len());
            let context = Context { files: Some(&files), ..Context::default() };
            let again = parse(&text, &context).unwrap();
            prop_assert_eq!(digest(&manifest, &files), digest(&again, &files));
        }
        drop(answer(&text, None));
    }
}
