//! What an init does with orphans that end all at once.

use std::{fs::File, path::Path, time::Duration};

use super::{
    contender::{Behaviour, CHILD, Programs, errors_path},
    namespaces::Namespaces,
    ours::{self, Control},
    process,
    records::{self, Record, Records},
};
use crate::{
    failure::{Failure, While as _},
    stopwatch::Stopwatch,
};

/// Orphans that end at the same time.
pub(super) const ORPHANS: usize = 300;
/// How long an init may take to start the child, and the child to make its orphans.
const WAVE_MAX: Duration = Duration::from_secs(20);
/// How long an init may take with them.
const REAP_MAX: Duration = Duration::from_secs(3);
/// Between two looks at all processes.
const PACE: Duration = Duration::from_millis(5);

/// An init that is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Init {
    /// Our supervisor with one plugin.
    Ours,
    /// A program that starts one child, with the arguments before the child's.
    Program(&'static [&'static str]),
    /// The child itself, which waits for nobody: what the others are worth.
    Nobody,
}

/// All that are measured.
pub(super) const INITS: [Init; 5] = [
    Init::Ours,
    Init::Program(&["tini", "--"]),
    Init::Program(&["dumb-init", "--"]),
    Init::Program(&["catatonit", "--"]),
    Init::Nobody,
];

impl Init {
    /// As the table calls it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours (supervisor, `net` and the plugin's init)",
            Self::Program(words) => words.first().copied().unwrap_or_default(),
            Self::Nobody => "no init",
        }
    }
}

/// What came of the orphans.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reaping {
    pub(super) init: Init,
    /// Still there after [`REAP_MAX`].
    pub(super) zombies: usize,
    /// From the last orphan's way out until none was there, if that came.
    pub(super) time: Option<Duration>,
    /// Resident memory of all but the child.
    pub(super) rss_kib: u64,
    /// The share of it that counts as theirs.
    pub(super) pss_kib: u64,
}

/// Starts the child beneath this init and looks for zombies.
pub(super) fn measure(init: Init, programs: &Programs) -> Result<Reaping, Failure> {
    let directory = tempfile::tempdir().while_doing("an init's directory")?;
    let (namespaces, mut records, control) = start(init, programs, directory.path())?;
    let mut seen = 0;
    let what = format!("{}: {ORPHANS} orphans", init.name());
    // The child records its start, and again when the gate opens.
    let opened = records.wait(&what, WAVE_MAX, |record: &Record| {
        seen += usize::from(record.name == NAME);
        seen == 2
    })?;
    let watch = Stopwatch::start();
    let (mut zombies, mut time) = (ORPHANS, None);
    while time.is_none() && watch.elapsed() < REAP_MAX {
        let processes = namespaces.processes()?;
        let children: Vec<_> = processes.iter().filter(|process| process.name == CHILD).collect();
        zombies = children.iter().filter(|process| process.is_zombie).count();
        // The child alone stays.
        if children.len() == 1 {
            time = Some(Duration::from_nanos(records::now().saturating_sub(opened.nanos)));
        } else {
            std::thread::park_timeout(PACE);
        }
    }
    let (mut rss_kib, mut pss_kib) = (0, 0);
    for process in namespaces.processes()?.iter().filter(|process| process.name != CHILD) {
        rss_kib += process::rss_kib(process.pid).unwrap_or_default();
        pss_kib += process::pss_kib(process.pid).unwrap_or_default();
    }
    if let Some(control) = control {
        namespaces.stop(|| control.is_over());
    }
    Ok(Reaping { init, zombies, time, rss_kib, pss_kib })
}

/// The child's name in its records.
const NAME: &str = "0";

fn start(
    init: Init,
    programs: &Programs,
    directory: &Path,
) -> Result<(Namespaces, Records, Option<Control>), Failure> {
    let orphans = [NAME.to_owned(), "orphans".to_owned(), ORPHANS.to_string()];
    let child = programs.child.display().to_string();
    let before: &[&str] = match init {
        Init::Ours => {
            ours::bake(directory, "p", &programs.child)?;
            let arguments = orphans.each_ref().map(String::as_str);
            let plugin = ours::plugin("p", &arguments, Behaviour::Stay);
            let started = ours::start_with(&programs.supervisor, directory, &[], &[plugin])?;
            return Ok((started.namespaces, started.records, started.control));
        }
        Init::Program(words) => words,
        Init::Nobody => &[],
    };
    let mut words: Vec<String> = before.iter().map(|word| (*word).to_owned()).collect();
    words.push(child);
    words.extend(orphans);
    let path = directory.join("records");
    let file = File::create(&path).while_doing(path.display())?;
    let errors = File::create(errors_path(directory)).while_doing("an init's standard error")?;
    let namespaces = Namespaces::start(&words, &[], file, errors)?;
    let records = Records::file(File::open(&path).while_doing(path.display())?);
    Ok((namespaces, records, None))
}
