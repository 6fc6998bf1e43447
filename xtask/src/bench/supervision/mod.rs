//! Our supervisor against s6, runit, daemontools and supervisord, and its init against tini, dumb-init and
//! catatonit: the same children, the same run.

mod contender;
mod figures;
mod namespaces;
mod ours;
mod peer;
mod reaping;
mod records;
mod report;

use std::{path::Path, time::Duration};

use self::{
    contender::{Behaviour, CHILD, Contender, Programs, Running},
    ours::Isolation,
    peer::Peer,
    report::Column,
};
use super::{Table, process};
use crate::{
    binaries::Binaries,
    cargo,
    failure::{Failure, While as _},
    packages,
    stopwatch::Stopwatch,
    terminal,
};

/// Plugins, or services.
const CHILDREN: usize = 100;
/// Starts of each until all children are up.
const UPS: usize = 3;
/// The least a child has run when it is killed: some peers start only such a child again at once.
const RUN_MIN: Duration = Duration::from_millis(2500);

/// The tables, and which ratio is missed.
pub(super) fn table(binaries: &Binaries) -> Result<Table, Failure> {
    packages::ensure(&packages::SUPERVISORS)?;
    let directory = tempfile::tempdir().while_doing("a directory for the child")?;
    let programs = Programs {
        child: compile(directory.path())?,
        supervisor: binaries.path("enclave-supervisor").to_owned(),
        unpacked: packages::unpack(&packages::SERVICES)?,
    };
    let mut contenders = vec![Contender::Ours(Isolation::Default)];
    if ours::has_isolation(&programs.supervisor)? {
        contenders.push(Contender::Ours(Isolation::None));
    }
    let peers = [Peer::S6, Peer::Runit, Peer::Daemontools, Peer::Supervisord];
    contenders.extend(peers.map(Contender::Peer));
    let mut table = report::table(&measure(&contenders, &programs)?);
    terminal::say("orphans that end all at once");
    let reapings = reaping::INITS.into_iter().map(|init| reaping::measure(init, &programs));
    report::append_inits(&mut table, &reapings.collect::<Result<Vec<_>, _>>()?);
    Ok(table)
}

/// Each contender alone where it is busy or its memory is measured, all together where they wait.
fn measure(contenders: &[Contender], programs: &Programs) -> Result<Vec<Column>, Failure> {
    let watch = Stopwatch::start();
    let (mut ups, mut memories) = (vec![Vec::new(); contenders.len()], Vec::new());
    for round in 1..=UPS {
        terminal::say(&format!("    {watch}  {CHILDREN} children up and memory, round {round} of {UPS}"));
        for (contender, ups) in contenders.iter().zip(&mut ups) {
            let (time, running) = figures::up(*contender, programs)?;
            ups.push(time);
            if round == UPS {
                memories.push(figures::memory(*contender, &running)?);
            }
            running.stop();
        }
    }
    let mut loops = Vec::new();
    for contender in contenders {
        terminal::say(&format!("    {watch}  {CHILDREN} children that fail at once: {contender}"));
        loops.push(figures::crash_loop(*contender, programs)?);
    }
    terminal::say(&format!("    {watch}  idle CPU and restarts, all together"));
    let mut all = start_all(contenders, programs)?;
    let idle = figures::idle(&all)?;
    let restarts = figures::restarts(&mut all)?;
    let mut columns = Vec::new();
    let alone = ups.into_iter().zip(memories).zip(loops);
    let together = all.into_iter().zip(idle).zip(restarts);
    for (alone, together) in alone.zip(together) {
        let ((ups, memory), crash_loop) = alone;
        let (((contender, running), idle_percent), restarts) = together;
        running.stop();
        columns.push(Column { contender, ups, memory, crash_loop, idle_percent, restarts });
    }
    terminal::say(&format!("    {watch}  measured"));
    Ok(columns)
}

/// Starts them and waits until all their children have run for [`RUN_MIN`].
fn start_all(contenders: &[Contender], programs: &Programs) -> Result<Vec<(Contender, Running)>, Failure> {
    let mut all = Vec::new();
    for &contender in contenders {
        let mut running = Running::start(contender, programs, Behaviour::Stay)?;
        running.wait_until_up()?;
        all.push((contender, running));
    }
    std::thread::park_timeout(RUN_MIN);
    Ok(all)
}

/// Makes the static child.
fn compile(directory: &Path) -> Result<std::path::PathBuf, Failure> {
    let child = directory.join(CHILD);
    let source = cargo::workspace_root().join("xtask/src/bench/supervision/child.c");
    cargo::run(cargo::command("cc").args(["-static", "-O2", "-o"]).arg(&child).arg(source))?;
    Ok(child)
}
