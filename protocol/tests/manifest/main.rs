//! The manifest's rules, one module per part of the manifest: YAML in, mistakes or model out.
#![expect(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]
#![expect(clippy::needless_pass_by_value, reason = "an expect! is written in place")]
#![expect(clippy::format_collect, reason = "texts are short and made once")]

mod deployment;
mod digest;
mod egress;
mod files;
mod hostile;
mod logs;
mod plugin;
mod process;
mod scraping;
mod yaml;

use std::fmt::Write as _;

use enclave_protocol::control::{FileBytes, FileTree, Files};
use enclave_protocol::manifest::{Context, Manifest, Plugin, parse};
use expect_test::Expect;

/// A whole manifest around fields of `spec`.
fn with_spec(spec: &str) -> String {
    let head =
        "apiVersion: k8s.oblv.com/v1alpha1\nkind: NitroEnclaveDeployment\nmetadata: {name: demo}\nspec:\n";
    format!("{head}{}", indented(spec, 2))
}

/// A whole manifest around fields of one user plugin; the fields begin at line 8, column 7.
fn with_plugin(fields: &str) -> String {
    with_spec(&format!("userPlugins:\n  - name: app\n    image: app:1\n{}", indented(fields, 4)))
}

/// A whole manifest around one user plugin and fields of the telemetry plugin.
fn with_telemetry(fields: &str) -> String {
    let user = "userPlugins: [{name: app, image: 'app:1'}]";
    with_spec(&format!("{user}\nplugins:\n  telemetry:\n{}", indented(fields, 4)))
}

fn indented(text: &str, by: usize) -> String {
    let pad = " ".repeat(by);
    text.trim_matches('\n').lines().fold(String::new(), |mut all, line| {
        writeln!(all, "{pad}{line}").unwrap();
        all
    })
}

/// Every mistake of a manifest, or `ok` and its conditions.
fn outcome(text: &str, context: &Context<'_>) -> String {
    match parse(text, context) {
        Ok(manifest) => {
            let conditions = manifest.conditions().into_iter();
            conditions.fold("ok\n".to_owned(), |all, c| format!("{all}{}: {}\n", c.kind, c.message))
        }
        Err(mistakes) => {
            assert!(!mistakes.is_empty(), "a refusal names at least one mistake");
            assert!(mistakes.is_sorted_by_key(|m| (m.line, m.column)), "mistakes are sorted by position");
            mistakes.iter().fold(String::new(), |all, mistake| format!("{all}{mistake}\n"))
        }
    }
}

fn check(text: &str, expected: Expect) {
    expected.assert_eq(&outcome(text, &Context::default()));
}

fn parsed(text: &str) -> Manifest {
    parse(text, &Context::default()).unwrap_or_else(|mistakes| panic!("{mistakes:#?}\n{text}"))
}

/// The user plugin of [`with_plugin`].
fn plugin(fields: &str) -> Plugin {
    parsed(&with_plugin(fields)).plugin("app").unwrap().clone()
}

fn tree(files: &[(&str, &str, &str)]) -> FileTree {
    let mut tree = FileTree::new();
    for (name, key, text) in files {
        let bytes = FileBytes(text.as_bytes().to_vec());
        tree.entry((*name).to_owned()).or_default().insert((*key).to_owned(), bytes);
    }
    tree
}

fn config_maps(files: &[(&str, &str, &str)]) -> Files {
    Files { config_maps: tree(files), secrets: FileTree::new() }
}
