//! CPU and memory of the plugins' processes, by walking /proc where there are no control groups; and what
//! control groups do not count.
//!
//! A process belongs to a plugin when it is in the session of the plugin's leader, or descends from a process
//! that does. A daemon that left the session and lost its parent belongs to nobody.

use std::{collections::BTreeMap, time::Duration};

use procfs::process::{Stat, all_processes};

/// What one plugin's processes use now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time of the living and of their reaped children.
    pub cpu: Duration,
    /// Resident memory, in bytes. Pages shared between processes count once for each.
    pub memory: u64,
    /// Threads of all processes.
    pub threads: u64,
    /// Page faults of the living.
    pub page_faults: u64,
    /// Those that waited for a disk.
    pub major_page_faults: u64,
    /// The processes.
    pub pids: Vec<i32>,
}

/// One line of the process table.
#[derive(Debug, Clone)]
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

/// Files that these processes have open. Those that have ended meanwhile are left out.
pub fn open_files(pids: &[i32]) -> u64 {
    let open = |pid: &i32| {
        let path = format!("/proc/{pid}/fd");
        // Since Linux 6.2 the directory's size is their number. Before it is zero, and they are counted.
        match std::fs::metadata(&path).map(|directory| directory.len()) {
            Ok(0) => std::fs::read_dir(&path).map_or(0, |entries| entries.count() as u64),
            Ok(count) => count,
            Err(_) => 0,
        }
    };
    pids.iter().map(open).sum()
}

fn entry(stat: &Stat) -> Entry {
    let ticks = stat.utime + stat.stime + u64::try_from(stat.cutime + stat.cstime).unwrap_or(0);
    let cpu = Duration::from_secs_f64(ticks as f64 / procfs::ticks_per_second() as f64);
    let memory = stat.rss * procfs::page_size();
    Entry {
        pid: stat.pid,
        parent: stat.ppid,
        session: stat.session,
        usage: Usage {
            cpu,
            memory,
            threads: u64::try_from(stat.num_threads).unwrap_or(0),
            page_faults: stat.minflt.saturating_add(stat.majflt),
            major_page_faults: stat.majflt,
            pids: vec![stat.pid],
        },
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
            total.threads += entry.usage.threads;
            total.page_faults += entry.usage.page_faults;
            total.major_page_faults += entry.usage.major_page_faults;
            total.pids.extend_from_slice(&entry.usage.pids);
        }
    }
    usage
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: i32, parent: i32, session: i32) -> Entry {
        let usage = Usage { cpu: Duration::from_secs(1), memory: 4096, pids: vec![pid], ..Usage::default() };
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
        assert_eq!(usage[&10].pids, [10, 11, 12]);
        assert_eq!(usage[&10].memory, 3 * 4096);
        assert_eq!(usage[&20].pids, [20]);
        assert_eq!(usage.len(), 2);
    }

    #[test]
    fn our_own_session_can_be_read() {
        let session = nix::unistd::getsid(None).unwrap().as_raw();
        let usage = usage_of(&[session]);
        assert!(usage[&session].memory > 0);
    }

    #[test]
    fn a_file_that_is_opened_is_one_more() {
        let own = [i32::try_from(std::process::id()).unwrap()];
        // Other tests of this process open and close files meanwhile.
        let before = open_files(&own);
        let opened: Vec<_> = (0..500).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
        assert!((before + 400..before + 600).contains(&open_files(&own)));
        drop(opened);
        assert_eq!(open_files(&[-1]), 0);
    }
}
