//! Rules for the crates of the workspace, read from `cargo metadata`.

#![expect(clippy::disallowed_types, reason = "the test asks cargo about the workspace")]

use std::{path::PathBuf, process::Command};

use serde::Deserialize;

use crate::{Complaints, root};

/// The only edges between members, without those of tests: who depends on whom. As in ARCHITECTURE.md.
const EDGES: [(&str, &[&str]); 7] = [
    ("enclave-protocol", &[]),
    ("enclave-supervisor", &["enclave-protocol"]),
    ("enclave-host-proxy", &["enclave-protocol"]),
    ("enclave-telemetry", &["enclave-protocol"]),
    ("enclave-image", &["enclave-protocol"]),
    ("hello", &[]),
    ("xtask", &[]),
];

#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Member>,
}

/// One crate of the workspace.
#[derive(Debug, Deserialize)]
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) manifest_path: PathBuf,
    dependencies: Vec<Dependency>,
}

#[derive(Debug, Deserialize)]
struct Dependency {
    name: String,
    /// Set for a crate of the workspace.
    path: Option<PathBuf>,
    /// `dev`, `build`, or none.
    kind: Option<String>,
}

/// Asks cargo for the members of the workspace.
pub(crate) fn metadata() -> Vec<Member> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--no-deps", "--offline", "--locked", "--format-version", "1"])
        .current_dir(root())
        .output()
        .expect("cargo starts");
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice::<Metadata>(&output.stdout).expect("cargo's metadata").packages
}

/// Complains about every edge that is not in [`EDGES`], and about members that it does not know.
pub(crate) fn check_edges(members: &[Member]) -> Complaints {
    let mut complaints = Vec::new();
    for member in members {
        let Some((_, allowed)) = EDGES.iter().find(|(name, _)| *name == member.name) else {
            complaints.push(format!("{}: a crate that the architecture does not know", member.name));
            continue;
        };
        for dependency in member.dependencies.iter().filter(|dependency| dependency.path.is_some()) {
            // The root package's tests may drive the other crates; nothing may depend on the root package.
            let is_test_of_root =
                member.name == "enclave-supervisor" && dependency.kind.as_deref() == Some("dev");
            if !allowed.contains(&dependency.name.as_str()) && !is_test_of_root {
                complaints
                    .push(format!("{} → {}: not an edge of the architecture", member.name, dependency.name));
            }
        }
    }
    complaints
}

/// Whether a Cargo.toml says `[lints] workspace = true`.
pub(crate) fn takes_workspace_lints(manifest: &str) -> bool {
    let mut lines = manifest.lines().map(str::trim).skip_while(|line| *line != "[lints]").skip(1);
    lines.find(|line| !line.is_empty() && !line.starts_with('#')) == Some("workspace = true")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, dependencies: &[(&str, Option<&str>)]) -> Member {
        let dependencies = dependencies
            .iter()
            .map(|(name, kind)| Dependency {
                name: (*name).to_owned(),
                path: (!name.starts_with("serde")).then(PathBuf::new),
                kind: kind.map(str::to_owned),
            })
            .collect();
        Member { name: name.to_owned(), manifest_path: PathBuf::new(), dependencies }
    }

    #[test]
    fn an_edge_that_the_architecture_does_not_have_is_named() {
        let members = [
            member(
                "enclave-supervisor",
                &[("enclave-protocol", None), ("serde", None), ("hello", Some("dev"))],
            ),
            member("hello", &[("enclave-protocol", None)]),
            member("enclave-host-proxy", &[("enclave-supervisor", Some("dev"))]),
            member("extra", &[]),
        ];
        expect_test::expect![[r"
            hello → enclave-protocol: not an edge of the architecture
            enclave-host-proxy → enclave-supervisor: not an edge of the architecture
            extra: a crate that the architecture does not know"]]
        .assert_eq(&check_edges(&members).join("\n"));
    }

    #[test]
    fn a_member_with_lints_of_its_own_is_found() {
        assert!(takes_workspace_lints("[package]\n\n[lints]\n# all\nworkspace = true\n"));
        assert!(!takes_workspace_lints("[package]\n\n[lints.rust]\nunsafe_code = \"allow\"\n"));
        assert!(!takes_workspace_lints("[lints]\n\n[features]\nworkspace = true\n"));
    }
}
