//! CPU and memory of the plugins' processes, by walking /proc.
//!
//! A process belongs to a plugin when it is in the session of the plugin's leader, or descends from a process
//! that does. A daemon that left the session and lost its parent belongs to nobody.

use std::{collections::BTreeMap, time::Duration};

use procfs::process::{Stat, all_processes};

/// What one plugin's processes use now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time of the living and of their reaped children.
    pub cpu: Duration,
    /// Resident memory, in bytes. Pages shared between processes count once for each.
    pub memory: u64,
    /// How many processes.
    pub processes: u64,
}

/// One line of the process table.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    pid: i32,
    parent: i32,
    session: i32,
    usage: Usage,
}

/// Usage by leader pid. Processes that end while the walk goes on are left out.
pub fn usage_of(leaders: &[i32]) -> BTreeMap<i32, Usage> {
    if leaders.is_empty() {
        return BTreeMap::new();
    }
    // An unreadable /proc leaves the plugins without figures; the system's own reading reports the error.
    let Ok(processes) = all_processes() else { return BTreeMap::new() };
    let table: Vec<Entry> =
        processes.filter_map(|process| Some(entry(&process.ok()?.stat().ok()?))).collect();
    sum(&table, leaders)
}

/// The living processes of a leader: of its session, and whoever descends from one that is.
pub fn members_of(leader: i32) -> Vec<i32> {
    let Ok(processes) = all_processes() else { return Vec::new() };
    let table: Vec<Entry> =
        processes.filter_map(|process| Some(entry(&process.ok()?.stat().ok()?))).collect();
    let by_pid = by_pid(&table);
    let members = table.iter().filter(|entry| leader_of(entry, &by_pid, &[leader]).is_some());
    members.map(|entry| entry.pid).collect()
}

fn entry(stat: &Stat) -> Entry {
    let ticks = stat.utime + stat.stime + u64::try_from(stat.cutime + stat.cstime).unwrap_or(0);
    let cpu = Duration::from_secs_f64(ticks as f64 / procfs::ticks_per_second() as f64);
    let memory = stat.rss * procfs::page_size();
    Entry {
        pid: stat.pid,
        parent: stat.ppid,
        session: stat.session,
        usage: Usage { cpu, memory, processes: 1 },
    }
}

fn by_pid(table: &[Entry]) -> BTreeMap<i32, &Entry> {
    table.iter().map(|entry| (entry.pid, entry)).collect()
}

/// The leader in whose session a process or one of its ancestors is.
fn leader_of(entry: &Entry, by_pid: &BTreeMap<i32, &Entry>, leaders: &[i32]) -> Option<i32> {
    let mut at = entry;
    // Bounded: a table read while processes change could show a circle of parents.
    for _ in 0..64 {
        if leaders.contains(&at.session) {
            return Some(at.session);
        }
        at = by_pid.get(&at.parent)?;
    }
    None
}

fn sum(table: &[Entry], leaders: &[i32]) -> BTreeMap<i32, Usage> {
    let by_pid = by_pid(table);
    let mut usage: BTreeMap<i32, Usage> = BTreeMap::new();
    for entry in table {
        if let Some(leader) = leader_of(entry, &by_pid, leaders) {
            let total = usage.entry(leader).or_default();
            total.cpu += entry.usage.cpu;
            total.memory += entry.usage.memory;
            total.processes += 1;
        }
    }
    usage
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: i32, parent: i32, session: i32) -> Entry {
        let usage = Usage { cpu: Duration::from_secs(1), memory: 4096, processes: 1 };
        Entry { pid, parent, session, usage }
    }

    #[test]
    fn a_plugin_counts_its_session_and_whoever_descends_from_it() {
        let table = [
            process(1, 0, 1),
            process(10, 1, 10),
            process(11, 10, 10),
            process(12, 11, 12), // left the session, still has its parent
            process(20, 1, 20),
            process(30, 1, 30), // left the session and lost its parent
        ];
        let usage = sum(&table, &[10, 20]);
        assert_eq!(usage[&10].processes, 3);
        assert_eq!(usage[&10].memory, 3 * 4096);
        assert_eq!(usage[&20].processes, 1);
        assert_eq!(usage.len(), 2);
    }

    #[test]
    fn our_own_session_can_be_read() {
        let session = nix::unistd::getsid(None).unwrap().as_raw();
        let usage = usage_of(&[session]);
        assert!(usage[&session].memory > 0);
    }
}
