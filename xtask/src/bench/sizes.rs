//! Bytes of each static release binary.

use std::fmt::Write as _;

use super::Table;
use crate::{
    binaries::{self, Binaries},
    failure::{Failure, While as _},
};

/// Largest supervisor, in bytes: it is measured into every image and loaded before anything else can run.
const SUPERVISOR_BYTES_MAX: u64 = 4 << 20;
/// Largest plugin's init, in bytes. It has nothing of what a panic needs, which alone is six times as much: a
/// call that could panic would show here, and in the memory of every plugin.
const INIT_BYTES_MAX: u64 = 64 << 10;

/// The table, and what is over its budget.
pub(super) fn table(binaries: &Binaries) -> Result<Table, Failure> {
    let sizes = measure(binaries)?;
    let complaints = sizes.iter().filter(|size| !size.is_within_budget()).map(Size::complaint).collect();
    Ok(Table { text: size_table(&sizes), complaints })
}

/// The size of one program.
#[derive(Debug)]
struct Size {
    program: &'static str,
    bytes: u64,
    bytes_max: Option<u64>,
}

impl Size {
    fn is_within_budget(&self) -> bool {
        self.bytes_max.is_none_or(|max| self.bytes <= max)
    }

    fn complaint(&self) -> String {
        format!(
            "{} has {} bytes and may have {}",
            self.program,
            self.bytes,
            self.bytes_max.unwrap_or_default()
        )
    }
}

fn measure(binaries: &Binaries) -> Result<Vec<Size>, Failure> {
    binaries::PROGRAMS
        .into_iter()
        .map(|program| {
            let path = binaries.path(program);
            let bytes = path.metadata().while_doing(path.display())?.len();
            let bytes_max = match program {
                "enclave-supervisor" => Some(SUPERVISOR_BYTES_MAX),
                "enclave-init" => Some(INIT_BYTES_MAX),
                _ => None,
            };
            Ok(Size { program, bytes, bytes_max })
        })
        .collect()
}

fn size_table(sizes: &[Size]) -> String {
    let mut table = String::from("| static release binary | bytes | MiB | budget |\n|---|---:|---:|---|\n");
    for size in sizes {
        let mebibytes = size.bytes as f64 / f64::from(1 << 20);
        let budget = match size.bytes_max {
            None => "–".to_owned(),
            Some(max) if size.bytes <= max => format!("≤ {}: kept", round(max)),
            Some(max) => format!("≤ {}: EXCEEDED", round(max)),
        };
        // Writing to a String cannot fail.
        writeln!(table, "| `{}` | {} | {mebibytes:.2} | {budget} |", size.program, size.bytes).ok();
    }
    table
}

/// A budget as people say it.
fn round(bytes: u64) -> String {
    if bytes >> 20 > 0 { format!("{} MiB", bytes >> 20) } else { format!("{} KiB", bytes >> 10) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_over_its_budget_is_flagged_in_the_table() {
        let sizes = [
            Size { program: "enclave-supervisor", bytes: 3_500_000, bytes_max: Some(4 << 20) },
            Size { program: "enclave-supervisor", bytes: 4_194_305, bytes_max: Some(4 << 20) },
            Size { program: "enclave-init", bytes: 30_000, bytes_max: Some(64 << 10) },
            Size { program: "hello", bytes: 1_048_576, bytes_max: None },
        ];
        expect_test::expect![[r"
            | static release binary | bytes | MiB | budget |
            |---|---:|---:|---|
            | `enclave-supervisor` | 3500000 | 3.34 | ≤ 4 MiB: kept |
            | `enclave-supervisor` | 4194305 | 4.00 | ≤ 4 MiB: EXCEEDED |
            | `enclave-init` | 30000 | 0.03 | ≤ 64 KiB: kept |
            | `hello` | 1048576 | 1.00 | – |
        "]]
        .assert_eq(&size_table(&sizes));
        assert!(sizes[0].is_within_budget() && !sizes[1].is_within_budget() && sizes[2].is_within_budget());
    }
}
