//! Reads the repository and fails on what no compiler checks: the allowed edges between crates, and the
//! limits of the style. Each rule returns its complaints; `cargo test -p xtask --test tidy` prints all of
//! them at once.

mod documents;
mod members;
mod source;

use std::path::{Path, PathBuf};

/// What breaks a rule, as `FILE:LINE: text` or `CRATE: text`.
type Complaints = Vec<String>;

/// The repository that cargo runs the tests in, which a copied target directory may not have been compiled
/// in.
fn root() -> PathBuf {
    let member = std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo runs the tests");
    Path::new(&member).parent().expect("invariant: xtask/ lies in the workspace root").to_owned()
}

/// Reads a file of the repository.
fn read(relative: &str) -> String {
    let path = root().join(relative);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// All files beneath the root whose names end so, as paths relative to it; build output and hidden ones left
/// out.
fn files(suffix: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut directories = vec![PathBuf::new()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(root().join(&directory)).expect("a readable directory") {
            let entry = entry.expect("a readable directory");
            let name = entry.file_name().into_string().expect("a file name that is not UTF-8");
            let relative = directory.join(&name);
            if entry.file_type().expect("a file type").is_dir() {
                if !name.starts_with('.') && name != "target" {
                    directories.push(relative);
                }
            } else if name.ends_with(suffix) {
                found.push(relative.to_str().expect("invariant: every part is UTF-8").to_owned());
            }
        }
    }
    found.sort();
    found
}

fn assert_none(complaints: &Complaints) {
    assert!(complaints.is_empty(), "{} complaints:\n{}", complaints.len(), complaints.join("\n"));
}

#[test]
fn source_files_keep_the_limits_of_the_style() {
    let paths = files(".rs");
    assert!(paths.iter().any(|path| path == "xtask/src/main.rs"), "the search finds nothing: {paths:?}");
    assert_none(&paths.iter().flat_map(|path| source::check(path, &read(path))).collect());
}

#[test]
fn crates_have_only_the_edges_of_the_architecture() {
    assert_none(&members::check_edges(&members::metadata()));
}

#[test]
fn every_member_takes_the_lints_of_the_workspace() {
    let complaints = members::metadata()
        .iter()
        .filter(|member| {
            !members::takes_workspace_lints(&std::fs::read_to_string(&member.manifest_path).unwrap())
        })
        .map(|member| format!("{}: Cargo.toml lacks `[lints] workspace = true`", member.name))
        .collect();
    assert_none(&complaints);
}

#[test]
fn every_dependency_has_its_reason_in_the_readme() {
    assert_none(&documents::check_dependency_table(&read("Cargo.toml"), &read("README.md")));
}

#[test]
fn the_changelog_keeps_its_format() {
    assert_none(&documents::check_changelog(&read("CHANGELOG.md")));
}

#[test]
fn the_readme_shows_the_manifest_that_the_demo_runs() {
    assert_none(&documents::check_example(&read("README.md"), &read("xtask/src/demo/hello-fastapi.yaml")));
}

#[test]
fn every_invariant_names_a_test_that_exists() {
    if !root().join("ARCHITECTURE.md").exists() {
        assert!(files(".md").contains(&"README.md".to_owned()), "the search finds nothing");
        return;
    }
    let sources: Vec<String> = files(".rs").iter().map(|path| read(path)).collect();
    assert_none(&documents::check_invariants(&read("ARCHITECTURE.md"), &sources));
}
