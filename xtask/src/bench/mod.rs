//! `cargo xtask bench`: numbers of the release build, as markdown tables that go into the repository.

mod boot;
mod control;
mod image;
mod memory;
mod process;
mod sizes;
mod supervision;
mod telemetry;

use clap::ValueEnum as _;

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
    only: Option<Name>,
}

/// The tables there are, in the order they are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Name {
    /// Bytes of each static release binary.
    Sizes,
    /// From the kernel's first process to the control port, against an init that does next to nothing.
    Boot,
    /// What an image weighs without plugins and kernel.
    Image,
    /// The supervisor's memory while it takes a large manifest.
    Memory,
    /// A hundred plugins, against the supervisors and inits of Debian.
    Supervision,
    /// Scraping and pushing, against the OpenTelemetry Collector.
    Telemetry,
}

/// A table in markdown.
#[derive(Debug)]
struct Table {
    text: String,
    /// What is over its budget.
    complaints: Vec<String>,
}

/// Measures and prints; fails if a budget is exceeded.
pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    let mut report = format!("{}\n", circumstances()?);
    let mut over_budget = Vec::new();
    let binaries = binaries::build(Profile::Release)?;
    for name in Name::value_variants() {
        if options.only.is_some_and(|only| only != *name) {
            continue;
        }
        let mut table = match name {
            Name::Sizes => sizes::table(&binaries)?,
            Name::Boot => boot::table(&binaries)?,
            Name::Image => image::table(&binaries)?,
            Name::Memory => memory::table(&binaries)?,
            Name::Supervision => supervision::table(&binaries)?,
            Name::Telemetry => telemetry::table(&binaries)?,
        };
        report.push_str(&table.text);
        report.push('\n');
        over_budget.append(&mut table.complaints);
    }
    terminal::say(&format!("\n{report}"));
    if over_budget.is_empty() { Ok(()) } else { Err(Failure::new(over_budget.join("; "))) }
}

/// Where and when the numbers were taken.
fn circumstances() -> Result<String, Failure> {
    let date = cargo::capture(cargo::command("date").args(["-u", "+%Y-%m-%d"]))?;
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").while_doing("the kernel's version")?;
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").while_doing("/proc/cpuinfo")?;
    let rustc = cargo::capture(cargo::command("rustc").arg("--version"))?;
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    // Of the last minute: somebody else's work shows in every time below.
    let load = std::fs::read_to_string("/proc/loadavg").while_doing("/proc/loadavg")?;
    let lines = [
        format!("{}, Linux {}", date.trim(), kernel.trim()),
        format!("{cores} × {}", cpu_model(&cpuinfo)),
        rustc.trim().to_owned(),
        format!("load average {}", load.split(' ').next().unwrap_or("unknown")),
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
    fn a_cpu_without_a_model_name_is_called_unknown() {
        assert_eq!(cpu_model("processor\t: 0\nmodel name\t: Acme 9000\n"), "Acme 9000");
        assert_eq!(cpu_model("processor\t: 0\n"), "unknown CPU");
    }
}
