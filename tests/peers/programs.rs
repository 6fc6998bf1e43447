//! Where the real programs are.

use std::path::PathBuf;

use crate::not_run;

/// Why they are not at hand, as `cargo xtask test` says it.
const NOT_HERE_VARIABLE: &str = "ENCLAVE_TEST_PEERS_NOT_HERE";

/// The path of a program, or of the root file system `fastapi`, where it has been built.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    let variable = format!("ENCLAVE_TEST_PEER_{}", name.to_uppercase().replace('-', "_"));
    std::env::var_os(variable).map(PathBuf::from).filter(|path| path.exists())
}

/// The path of a program as a word of a command line.
pub(crate) fn word(name: &str) -> String {
    program(name).unwrap_or_else(|| panic!("{name} is at hand")).display().to_string()
}

/// Whether all of these are at hand; says `not run` where one is not.
pub(crate) fn at_hand(names: &[&str]) -> bool {
    let missing: Vec<&str> = names.iter().copied().filter(|name| program(name).is_none()).collect();
    if !missing.is_empty() {
        let why = std::env::var(NOT_HERE_VARIABLE);
        let why = why.unwrap_or_else(|_| "run `cargo xtask peers`, then `cargo xtask test`".to_owned());
        not_run(&format!("no {} here: {why}", missing.join(", ")));
    }
    missing.is_empty()
}

#[test]
fn the_real_programs_are_at_hand_or_named() {
    let all = ["otelcol", "prometheus", "etcd", "kube-apiserver", "kube-controller-manager", "kubectl"];
    if at_hand(&all) && at_hand(&["prometheus-adapter", "fastapi"]) {
        for name in all {
            assert!(word(name).ends_with(name), "{name}");
        }
    }
}
