//! What is measured of one contender.

use std::{collections::BTreeMap, time::Duration};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    contender::{Behaviour, Contender, Programs, Running},
    ours, process, records,
};
use crate::{
    failure::{Failure, While as _},
    stopwatch::Stopwatch,
};

/// How long all are left alone before their memory is looked at: ours prepares the next runs after a second.
const SETTLE: Duration = Duration::from_secs(3);
/// How long children are started over and over.
const LOOP: Duration = Duration::from_secs(10);
/// How long nothing happens.
const IDLE: Duration = Duration::from_secs(20);
/// Rounds of kills. No child is killed twice.
const ROUNDS: usize = 30;
/// Kills in one round where a restart takes milliseconds; where it takes a second there is one.
const KILLS_A_ROUND: usize = 3;
/// Before each kill, so that nobody is still busy with the one before.
const PAUSE: Duration = Duration::from_millis(50);
/// How long a killed child's successor may take.
const RESTART_MAX: Duration = Duration::from_secs(15);

/// The memory of a contender's own processes, in KiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Memory {
    /// Ours: supervisor and `net`. A peer: all.
    pub(super) supervisor_kib: u64,
    /// The resident inits of isolated plugins as well.
    pub(super) all_kib: u64,
}

/// Children that fail at once, over [`LOOP`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct CrashLoop {
    pub(super) starts_per_second: f64,
    /// Of the processes that are there all the time.
    pub(super) supervisor_cpu: Duration,
    /// At its end.
    pub(super) zombies: usize,
}

/// Starts it and waits until all children run; how long that took.
pub(super) fn up(contender: Contender, programs: &Programs) -> Result<(Duration, Running), Failure> {
    let mut running = Running::start(contender, programs, Behaviour::Stay)?;
    Ok((running.wait_until_up()?, running))
}

/// Its memory, once it has settled.
pub(super) fn memory(contender: Contender, running: &Running) -> Result<Memory, Failure> {
    std::thread::park_timeout(SETTLE);
    let init = running.namespaces.init();
    let mut memory = Memory { supervisor_kib: 0, all_kib: 0 };
    for process in running.own()? {
        let pss = process::pss_kib(process.pid).unwrap_or_default();
        memory.all_kib += pss;
        let is_supervisor = match contender {
            Contender::Ours(_) => ours::is_supervisor_or_net(&process, init),
            Contender::Peer(_) => true,
        };
        if is_supervisor {
            memory.supervisor_kib += pss;
        }
    }
    Ok(memory)
}

/// Lets all children fail over and over.
pub(super) fn crash_loop(contender: Contender, programs: &Programs) -> Result<CrashLoop, Failure> {
    let mut running = Running::start(contender, programs, Behaviour::Fail)?;
    running.wait_until_up()?;
    running.close_records();
    // The first starts are no starts again.
    std::thread::park_timeout(SETTLE);
    let (starts, cpu, watch) = (running.starts()?, cpu_times(&running)?, Stopwatch::start());
    std::thread::park_timeout(LOOP);
    let (starts_then, elapsed, cpu_then) = (running.starts()?, watch.elapsed(), cpu_times(&running)?);
    let zombies = running.namespaces.processes()?.iter().filter(|process| process.is_zombie).count();
    running.stop();
    Ok(CrashLoop {
        starts_per_second: (starts_then - starts) as f64 / elapsed.as_secs_f64(),
        supervisor_cpu: spent(&cpu, &cpu_then),
        zombies,
    })
}

/// The CPU time of each of its own processes.
fn cpu_times(running: &Running) -> Result<BTreeMap<i32, Duration>, Failure> {
    Ok(running.own()?.iter().map(|process| (process.pid, process::cpu_time(process.pid))).collect())
}

/// What the processes that are in both have used in between. Others are on their way to become a child.
fn spent(before: &BTreeMap<i32, Duration>, after: &BTreeMap<i32, Duration>) -> Duration {
    let both = after.iter().filter_map(|(pid, after)| Some(after.saturating_sub(*before.get(pid)?)));
    both.sum()
}

/// What all use of one core while nothing happens, in percent. They idle at the same time.
pub(super) fn idle(all: &[(Contender, Running)]) -> Result<Vec<f64>, Failure> {
    let before = all.iter().map(|(_, running)| cpu_times(running)).collect::<Result<Vec<_>, _>>()?;
    let watch = Stopwatch::start();
    std::thread::park_timeout(IDLE);
    let elapsed = watch.elapsed().as_secs_f64();
    let percent = |((_, running), before): (&(Contender, Running), &BTreeMap<i32, Duration>)| {
        Ok(spent(before, &cpu_times(running)?).as_secs_f64() / elapsed * 100.0)
    };
    all.iter().zip(&before).map(percent).collect()
}

/// From the kill of a child to its successor's first instruction, for each contender, in turns. In each round
/// those that let a second pass are killed first, and sleep while the others are measured one by one.
pub(super) fn restarts(all: &mut [(Contender, Running)]) -> Result<Vec<Vec<Duration>>, Failure> {
    let children = all.iter().map(|(_, running)| running.children()).collect::<Result<Vec<_>, _>>()?;
    let mut times = vec![Vec::new(); all.len()];
    let (paced, prompt): (Vec<usize>, Vec<usize>) =
        (0..all.len()).partition(|index| paces_restarts(all[*index].0));
    for round in 0..ROUNDS {
        let mut waiting = Vec::new();
        for &index in &paced {
            waiting.push((index, kill_child(&all[index], &children[index], round)?));
        }
        for (turn, number) in (round * KILLS_A_ROUND..).take(KILLS_A_ROUND).enumerate() {
            // Nobody is always the first after another.
            for index in prompt.iter().cycle().skip(turn).take(prompt.len()).copied() {
                std::thread::park_timeout(PAUSE);
                let killed = kill_child(&all[index], &children[index], number)?;
                times[index].push(successor(&mut all[index], number, killed)?);
            }
        }
        for (index, killed) in waiting {
            times[index].push(successor(&mut all[index], round, killed)?);
        }
    }
    Ok(times)
}

fn paces_restarts(contender: Contender) -> bool {
    match contender {
        Contender::Ours(_) => false,
        Contender::Peer(peer) => peer.paces_restarts(),
    }
}

/// Kills one; the moment before, as the records count.
fn kill_child(
    (contender, _): &(Contender, Running),
    children: &BTreeMap<usize, i32>,
    number: usize,
) -> Result<u64, Failure> {
    let missing = || Failure::new(format!("{contender}: there is no child {number}"));
    let pid = Pid::from_raw(*children.get(&number).ok_or_else(missing)?);
    let moment = records::now();
    kill(pid, Signal::SIGKILL).while_doing("kill -9 of a child")?;
    Ok(moment)
}

/// How long the killed child's successor took.
fn successor(
    (contender, running): &mut (Contender, Running),
    number: usize,
    killed: u64,
) -> Result<Duration, Failure> {
    let name = number.to_string();
    let what = format!("{contender}: the successor of child {number}");
    let is_it = |record: &records::Record| record.name == name && record.nanos > killed;
    let record = running.records.wait(&what, RESTART_MAX, is_it)?;
    Ok(Duration::from_nanos(record.nanos - killed))
}

/// The middle one; the upper of two.
pub(super) fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_processes_that_stay_count_for_the_supervisors_cpu_time() {
        let ms = Duration::from_millis;
        let before = BTreeMap::from([(1, ms(10)), (2, ms(5)), (3, ms(7))]);
        let after = BTreeMap::from([(1, ms(14)), (3, ms(8)), (4, ms(100))]);
        assert_eq!(spent(&before, &after), ms(5));
    }

    #[test]
    fn the_median_is_the_middle_one() {
        let ms = Duration::from_millis;
        assert_eq!(median(vec![ms(9), ms(1), ms(2)]), ms(2));
        assert_eq!(median(vec![ms(1), ms(2), ms(3), ms(4)]), ms(3));
        assert_eq!(median(Vec::new()), Duration::ZERO);
    }
}
