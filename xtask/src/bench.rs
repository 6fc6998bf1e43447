//! `cargo xtask bench`: numbers of the release build, as markdown tables that go into the repository.

use std::fmt::Write as _;

use crate::{
    binaries::{self, Profile},
    cargo,
    failure::{Failure, While as _},
    terminal,
};

/// Options of `cargo xtask bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Makes this table only.
    #[arg(long)]
    only: Option<Table>,
}

/// The tables there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Table {
    /// Bytes of each static release binary.
    Sizes,
}

/// All of them, in the order they are printed.
const TABLES: [Table; 1] = [Table::Sizes];

/// Largest supervisor, in bytes: it is measured into every image and loaded before anything else can run.
const SUPERVISOR_BYTES_MAX: u64 = 4 << 20;

/// Measures and prints; fails if a budget is exceeded.
pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    let mut report = format!("{}\n", circumstances()?);
    let mut over_budget = Vec::new();
    for table in TABLES.into_iter().filter(|table| options.only.is_none_or(|only| only == *table)) {
        match table {
            Table::Sizes => {
                let sizes = measure_sizes()?;
                report.push_str(&size_table(&sizes));
                over_budget.extend(sizes.iter().filter(|size| !size.is_within_budget()).map(Size::complaint));
            }
        }
    }
    terminal::say(&format!("\n{report}"));
    if over_budget.is_empty() { Ok(()) } else { Err(Failure::new(over_budget.join("; "))) }
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

fn measure_sizes() -> Result<Vec<Size>, Failure> {
    let binaries = binaries::build(Profile::Release)?;
    binaries::PROGRAMS
        .into_iter()
        .map(|program| {
            let path = binaries.path(program);
            let bytes = path.metadata().while_doing(path.display())?.len();
            let bytes_max = (program == "enclave-supervisor").then_some(SUPERVISOR_BYTES_MAX);
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
            Some(max) if size.bytes <= max => format!("≤ {} MiB: kept", max >> 20),
            Some(max) => format!("≤ {} MiB: EXCEEDED", max >> 20),
        };
        // Writing to a String cannot fail.
        writeln!(table, "| `{}` | {} | {mebibytes:.2} | {budget} |", size.program, size.bytes).ok();
    }
    table
}

/// Where and when the numbers were taken.
fn circumstances() -> Result<String, Failure> {
    let date = cargo::capture(cargo::command("date").args(["-u", "+%Y-%m-%d"]))?;
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").while_doing("the kernel's version")?;
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").while_doing("/proc/cpuinfo")?;
    let rustc = cargo::capture(cargo::command("rustc").arg("--version"))?;
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let lines = [
        format!("{}, Linux {}", date.trim(), kernel.trim()),
        format!("{cores} × {}", cpu_model(&cpuinfo)),
        rustc.trim().to_owned(),
    ];
    Ok(format!("{}\n", lines.join("; ")))
}

fn cpu_model(cpuinfo: &str) -> &str {
    let model =
        cpuinfo.lines().filter_map(|line| line.split_once(':')).find(|(key, _)| key.trim() == "model name");
    model.map_or("unknown CPU", |(_, name)| name.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_over_its_budget_is_flagged_in_the_table() {
        let sizes = [
            Size { program: "enclave-supervisor", bytes: 3_500_000, bytes_max: Some(4 << 20) },
            Size { program: "enclave-supervisor", bytes: 4_194_305, bytes_max: Some(4 << 20) },
            Size { program: "hello", bytes: 1_048_576, bytes_max: None },
        ];
        expect_test::expect![[r"
            | static release binary | bytes | MiB | budget |
            |---|---:|---:|---|
            | `enclave-supervisor` | 3500000 | 3.34 | ≤ 4 MiB: kept |
            | `enclave-supervisor` | 4194305 | 4.00 | ≤ 4 MiB: EXCEEDED |
            | `hello` | 1048576 | 1.00 | – |
        "]]
        .assert_eq(&size_table(&sizes));
        assert!(sizes[0].is_within_budget() && !sizes[1].is_within_budget() && sizes[2].is_within_budget());
    }

    #[test]
    fn a_cpu_without_a_model_name_is_called_unknown() {
        assert_eq!(cpu_model("processor\t: 0\nmodel name\t: Acme 9000\n"), "Acme 9000");
        assert_eq!(cpu_model("processor\t: 0\n"), "unknown CPU");
    }
}
