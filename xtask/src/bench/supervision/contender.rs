//! Who is measured, and one running instance of it.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use tempfile::TempDir;

use super::{
    CHILDREN,
    namespaces::Namespaces,
    ours::{self, Control, Isolation},
    peer::Peer,
    process::Process,
    records::Records,
};
use crate::failure::{Failure, While as _};

/// The program of every child, and the name that the kernel shows for it.
pub(super) const CHILD: &str = "bench-child";
/// How long a contender may take until all children are up.
const UP_MAX: Duration = Duration::from_mins(1);

/// A supervisor that is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Contender {
    /// Ours.
    Ours(Isolation),
    /// Another one.
    Peer(Peer),
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ours(Isolation::Default) => f.write_str("ours"),
            Self::Ours(Isolation::None) => f.write_str("ours, `--isolation=none`"),
            Self::Peer(peer) => f.write_str(peer.name()),
        }
    }
}

/// What the children do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Behaviour {
    /// They run until they are killed.
    Stay,
    /// They exit with 1 at once. Whoever can is told to start them again without waiting.
    Fail,
}

impl Behaviour {
    /// The child's argument.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Stay => "pause",
            Self::Fail => "fail",
        }
    }
}

/// Where the programs are.
#[derive(Debug)]
pub(super) struct Programs {
    /// The child.
    pub(super) child: PathBuf,
    /// Our supervisor.
    pub(super) supervisor: PathBuf,
    /// The unpacked packages of the peers that are not installed.
    pub(super) unpacked: PathBuf,
}

/// A contender that runs. It ends with this.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) namespaces: Namespaces,
    /// Its children's records.
    pub(super) records: Records,
    /// When it was handed its children, as the records count.
    begun: u64,
    /// Ours answers questions.
    control: Option<Control>,
    directory: TempDir,
}

impl Running {
    /// Starts it with [`CHILDREN`] children.
    pub(super) fn start(
        contender: Contender,
        programs: &Programs,
        behaviour: Behaviour,
    ) -> Result<Self, Failure> {
        let directory = tempfile::tempdir().while_doing("a contender's directory")?;
        let path = directory.path();
        let started = match contender {
            Contender::Ours(isolation) => ours::start(programs, path, behaviour, isolation),
            Contender::Peer(peer) => peer.start(programs, path, behaviour),
        };
        let Started { namespaces, records, begun, control } = started
            .map_err(|failure| Failure::new(format!("{contender}: {failure}\n{}", complaints(path))))?;
        Ok(Self { namespaces, records, begun, control, directory })
    }

    /// Waits until every child has started once; how long that took since [`Self::begun`].
    pub(super) fn wait_until_up(&mut self) -> Result<Duration, Failure> {
        let mut first = BTreeMap::new();
        let all_up = self.records.wait("every child's record", UP_MAX, |record| {
            if let Ok(number) = record.name.parse::<usize>() {
                first.entry(number).or_insert(record.nanos);
            }
            first.len() == CHILDREN
        });
        all_up.map_err(|failure| {
            Failure::new(format!(
                "{failure} ({} of {CHILDREN} came)\n{}",
                first.len(),
                complaints(self.directory.path())
            ))
        })?;
        let last = first.into_values().max().unwrap_or_default();
        Ok(Duration::from_nanos(last.saturating_sub(self.begun)))
    }

    /// The processes of its children by number.
    pub(super) fn children(&self) -> Result<BTreeMap<usize, i32>, Failure> {
        let processes = self.namespaces.processes()?;
        let number = |process: &Process| Some((process.arguments.get(1)?.parse().ok()?, process.pid));
        Ok(processes.iter().filter(|process| is_child(process)).filter_map(number).collect())
    }

    /// Its own processes: all but the children.
    pub(super) fn own(&self) -> Result<Vec<Process>, Failure> {
        Ok(self.namespaces.processes()?.into_iter().filter(|process| !is_child(process)).collect())
    }

    /// Reads no more records: sending them on is not what is measured.
    pub(super) fn close_records(&mut self) {
        self.records = Records::Closed;
    }

    /// How often children have started up to now. Ours says it itself: its log has bounds, and a child of its
    /// can write nowhere else.
    pub(super) fn starts(&self) -> Result<usize, Failure> {
        match &self.control {
            Some(control) => control.starts(),
            None => super::peer::starts(self.directory.path()),
        }
    }

    /// Ends it: ours in order, so that it can tidy up what is outside its namespaces, such as control groups.
    /// A peer has nothing there, and may as process 1 be deaf to the signal.
    pub(super) fn stop(self) {
        if let Some(control) = self.control {
            self.namespaces.stop(|| control.is_over());
        }
    }
}

/// What a contender's start comes to.
pub(super) struct Started {
    pub(super) namespaces: Namespaces,
    pub(super) records: Records,
    pub(super) begun: u64,
    pub(super) control: Option<Control>,
}

fn is_child(process: &Process) -> bool {
    process.name == CHILD
}

/// Where a contender's standard error goes.
pub(super) fn errors_path(directory: &Path) -> PathBuf {
    directory.join("stderr")
}

/// The end of its standard error, for an explanation.
fn complaints(directory: &Path) -> String {
    /// Enough for a message and what led to it.
    const LINES: usize = 5;
    let text = std::fs::read(errors_path(directory)).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}
