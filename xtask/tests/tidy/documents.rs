//! Rules for the documents beside the code.

use crate::Complaints;

/// The headings that Keep a Changelog knows.
const CHANGE_KINDS: [&str; 6] = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"];
/// Shortest text that counts as a reason.
const REASON_BYTES_MIN: usize = 10;

/// Every crate in `[workspace.dependencies]` has a row with a reason in the README's table, and no row is
/// without its crate. A row may name several: "| `a`, `b` | why |".
pub(crate) fn check_dependency_table(manifest: &str, readme: &str) -> Complaints {
    let used: Vec<&str> = manifest
        .lines()
        .skip_while(|line| *line != "[workspace.dependencies]")
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .filter(|line| !line.contains("path = "))
        .filter_map(|line| Some(line.split_once(" = ")?.0.trim()))
        .collect();
    let explained: Vec<&str> = readme
        .lines()
        .skip_while(|line| *line != "## Dependencies")
        .skip(1)
        .take_while(|line| !line.starts_with("## "))
        .filter_map(|line| line.strip_prefix("| `")?.split_once(" | "))
        .filter(|(_, reason)| reason.trim_end_matches(" |").len() >= REASON_BYTES_MIN)
        .flat_map(|(names, _)| names.split(", "))
        .map(|name| name.trim_matches('`'))
        .collect();
    let missing = used.iter().filter(|name| !explained.contains(name));
    let missing =
        missing.map(|name| format!("README.md: the dependency `{name}` has no reason in its table"));
    let stale = explained.iter().filter(|name| !used.contains(name));
    missing.chain(stale.map(|name| format!("README.md: `{name}` is no dependency any more"))).collect()
}

/// Keep a Changelog: a title, `[Unreleased]` first, dated releases, known headings, and text only as list
/// items.
pub(crate) fn check_changelog(text: &str) -> Complaints {
    let mut complaints = Vec::new();
    if text.lines().next() != Some("# Changelog") {
        complaints.push("CHANGELOG.md:1: the title is `# Changelog`".to_owned());
    }
    let mut releases = 0;
    for (index, line) in text.lines().enumerate() {
        let place = format!("CHANGELOG.md:{}", index + 1);
        if let Some(release) = line.strip_prefix("## ") {
            if releases == 0 && release != "[Unreleased]" {
                complaints.push(format!("{place}: the first section is `## [Unreleased]`"));
            }
            if releases > 0 && !is_dated(release) {
                complaints.push(format!("{place}: a release is `## [1.2.3] - YYYY-MM-DD`"));
            }
            releases += 1;
        } else if let Some(kind) = line.strip_prefix("### ") {
            if !CHANGE_KINDS.contains(&kind) {
                complaints.push(format!("{place}: `{kind}` is none of {}", CHANGE_KINDS.join(", ")));
            }
        } else if releases > 0 && !line.is_empty() && !line.starts_with("- ") && !line.starts_with("  ") {
            complaints.push(format!("{place}: a change is a list item"));
        }
    }
    if releases == 0 {
        complaints.push("CHANGELOG.md: no section".to_owned());
    }
    complaints
}

fn is_dated(release: &str) -> bool {
    let Some((version, date)) = release.split_once(" - ") else { return false };
    let is_version = version.starts_with('[') && version.ends_with(']');
    is_version
        && date.len() == 10
        && date
            .bytes()
            .enumerate()
            .all(|(at, byte)| if at == 4 || at == 7 { byte == b'-' } else { byte.is_ascii_digit() })
}

/// The README's YAML example is the manifest, without the manifest's own first comment.
pub(crate) fn check_example(readme: &str, manifest: &str) -> Complaints {
    let example: Vec<&str> = readme
        .lines()
        .skip_while(|line| *line != "```yaml")
        .skip(1)
        .take_while(|line| *line != "```")
        .collect();
    let expected: Vec<&str> = manifest.lines().skip_while(|line| line.starts_with('#')).collect();
    if example == expected {
        return Vec::new();
    }
    vec!["README.md: its manifest differs from xtask/src/demo/hello-fastapi.yaml".to_owned()]
}

/// Each paragraph of ARCHITECTURE.md that begins with "Invariant:" names, in back quotes, a test that exists.
pub(crate) fn check_invariants(architecture: &str, sources: &[String]) -> Complaints {
    let mut complaints = Vec::new();
    let mut invariants = 0;
    let lines: Vec<&str> = architecture.lines().collect();
    for (index, line) in lines.iter().enumerate() {
        let start = line.trim_start_matches(['-', '*', ' ']);
        if !start.starts_with("Invariant:") {
            continue;
        }
        invariants += 1;
        let is_new_item =
            |line: &str| line.is_empty() || line.starts_with("- ") || line.contains("Invariant:");
        let rest = lines[index + 1..].iter().take_while(|line| !is_new_item(line)).copied();
        let paragraph = std::iter::once(*line).chain(rest).collect::<Vec<_>>().join(" ");
        if !paragraph.split('`').skip(1).step_by(2).any(|name| is_test(name, sources)) {
            complaints.push(format!("ARCHITECTURE.md:{}: names no test that exists: {start}", index + 1));
        }
    }
    if invariants == 0 {
        complaints.push("ARCHITECTURE.md: no line begins with `Invariant:`".to_owned());
    }
    complaints
}

/// Whether a name such as `engine::tests::a_test` or `a_test` is that of a test function.
fn is_test(name: &str, sources: &[String]) -> bool {
    let function = name.rsplit("::").next().unwrap_or(name);
    let declaration = format!("fn {function}(");
    let is_name = !function.is_empty() && function.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    is_name
        && sources.iter().any(|source| {
            let lines: Vec<&str> = source.lines().map(str::trim).collect();
            lines
                .iter()
                .enumerate()
                .any(|(index, line)| line.contains(&declaration) && has_test_attribute(&lines[..index]))
        })
}

/// Whether the attributes directly above make a function a test; proptest's `#[test]` too.
fn has_test_attribute(above: &[&str]) -> bool {
    above
        .iter()
        .rev()
        .take_while(|line| line.starts_with("#[") || line.starts_with("//"))
        .any(|line| line.starts_with("#[test]") || line.starts_with("#[tokio::test"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dependency_without_a_reason_and_a_reason_without_a_dependency_are_named() {
        let manifest = "[workspace.dependencies]\nown = { path = \"own\" }\na = \"1\"\nb = \"1\"\nc = \"1\"\n\
                        \n[package]\nd = \"1\"\n";
        let readme = "| `x` | not in this table |\n## Dependencies\n| crate | why |\n|---|---|\n\
                      | `a`, `old` | reads the manifest |\n| `b` |  |\n## End\n";
        expect_test::expect![[r"
            README.md: the dependency `b` has no reason in its table
            README.md: the dependency `c` has no reason in its table
            README.md: `old` is no dependency any more"]]
        .assert_eq(&check_dependency_table(manifest, readme).join("\n"));
    }

    #[test]
    fn a_changelog_in_order_is_accepted() {
        let text = "# Changelog\n\nText.\n\n## [Unreleased]\n\n### Added\n\n- One,\n  two.\n\n\
                    ## [0.1.0] - 2026-11-22\n";
        assert_eq!(check_changelog(text), Complaints::new());
    }

    #[test]
    fn every_mistake_in_a_changelog_is_found() {
        let text = "# Changes\n\n## [0.1.0] - 2026-11-22\n\n### New\n\nText.\n\n## 0.0.1\n";
        expect_test::expect![[r"
            CHANGELOG.md:1: the title is `# Changelog`
            CHANGELOG.md:3: the first section is `## [Unreleased]`
            CHANGELOG.md:5: `New` is none of Added, Changed, Deprecated, Removed, Fixed, Security
            CHANGELOG.md:7: a change is a list item
            CHANGELOG.md:9: a release is `## [1.2.3] - YYYY-MM-DD`"]]
        .assert_eq(&check_changelog(text).join("\n"));
    }

    #[test]
    fn an_invariant_whose_test_is_gone_is_named() {
        let sources = ["    #[test]\n    fn it_holds() {}\n\nfn no_test() {}\n".to_owned()];
        let architecture = "- Invariant: a holds\n  always (`engine::tests::it_holds`).\n\
                            - Invariant: b (`no_test`)\nInvariant: c.\n";
        expect_test::expect![[r"
            ARCHITECTURE.md:3: names no test that exists: Invariant: b (`no_test`)
            ARCHITECTURE.md:4: names no test that exists: Invariant: c."]]
        .assert_eq(&check_invariants(architecture, &sources).join("\n"));
    }

    #[test]
    fn an_example_that_drifted_from_the_demo_is_noticed() {
        let readme = "x\n```yaml\na: 1\n```\ny\n";
        assert_eq!(check_example(readme, "# why\na: 1\n"), Complaints::new());
        assert_eq!(check_example(readme, "a: 2\n").len(), 1);
    }
}
