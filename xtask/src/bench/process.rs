//! What `/proc` tells of the processes beneath one.

use std::{fs, path::PathBuf, time::Duration};

use crate::failure::{Failure, While as _};

/// One process at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::bench) struct Process {
    /// As this PID namespace counts.
    pub(in crate::bench) pid: i32,
    /// The program's name, cut to 15 bytes by the kernel.
    pub(in crate::bench) name: String,
    /// Program and arguments; empty for a zombie.
    pub(in crate::bench) arguments: Vec<String>,
    /// It has ended and nobody has waited for it.
    pub(in crate::bench) is_zombie: bool,
    parent: i32,
}

/// `root` and all its descendants, the root first. One that ends meanwhile is left out.
pub(in crate::bench) fn beneath(root: i32) -> Result<Vec<Process>, Failure> {
    let entries = fs::read_dir("/proc").while_doing("/proc")?.flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    Ok(descendants(root, pids.filter_map(read).collect()))
}

fn descendants(root: i32, all: Vec<Process>) -> Vec<Process> {
    let (mut found, mut rest): (Vec<_>, Vec<_>) = all.into_iter().partition(|process| process.pid == root);
    let mut next = 0;
    while let Some(parent) = found.get(next).map(|process| process.pid) {
        let children;
        (children, rest) = rest.into_iter().partition(|process| process.parent == parent);
        found.extend(children);
        next += 1;
    }
    found
}

fn read(pid: i32) -> Option<Process> {
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?, &arguments)
}

/// The name stands in parentheses and may hold any byte, those included.
fn parse(stat: &str, cmdline: &[u8]) -> Option<Process> {
    let (identity, rest) = stat.rsplit_once(')')?;
    let (pid, name) = identity.split_once(" (")?;
    let mut fields = rest.split_whitespace();
    let state = fields.next()?;
    let words = cmdline.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned());
    let mut arguments: Vec<String> = words.collect();
    // Each word has a zero behind it.
    arguments.pop();
    Some(Process {
        pid: pid.parse().ok()?,
        name: name.to_owned(),
        arguments,
        is_zombie: state == "Z",
        parent: fields.next()?.parse().ok()?,
    })
}

/// Its share of the memory, in KiB: what it shares with others counts in proportion. None once it has ended.
pub(in crate::bench) fn pss_kib(pid: i32) -> Option<u64> {
    memory_field(&fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?, "Pss:")
}

/// Its resident memory, in KiB. None once it has ended.
pub(in crate::bench) fn rss_kib(pid: i32) -> Option<u64> {
    memory_field(&fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?, "Rss:")
}

fn memory_field(rollup: &str, name: &str) -> Option<u64> {
    let line = rollup.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

/// The CPU time of all its threads, exactly; a zombie's is none.
pub(in crate::bench) fn cpu_time(pid: i32) -> Duration {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let path = |thread: fs::DirEntry| -> PathBuf { thread.path().join("schedstat") };
    let nanos = threads.filter_map(|thread| on_cpu_nanos(&fs::read_to_string(path(thread)).ok()?));
    Duration::from_nanos(nanos.sum())
}

fn on_cpu_nanos(schedstat: &str) -> Option<u64> {
    schedstat.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: i32, parent: i32) -> Process {
        parse(&format!("{pid} (x) S {parent} 0"), b"").unwrap()
    }

    #[test]
    fn a_process_is_read_whatever_its_name() {
        let zombie = parse("7 (a) (b c) Z 3 7 7", b"").unwrap();
        assert_eq!((zombie.pid, zombie.name.as_str(), zombie.parent), (7, "a) (b c", 3));
        assert!(zombie.is_zombie && zombie.arguments.is_empty());
        let child = parse("8 (bench-child) S 7 0", b"/bench-child\x0012\0pause\0").unwrap();
        assert_eq!(child.arguments, ["/bench-child", "12", "pause"]);
        assert!(!child.is_zombie && parse("noise", b"").is_none());
    }

    #[test]
    fn only_descendants_are_found_and_the_root_is_first() {
        let all = vec![process(9, 5), process(5, 1), process(4, 1), process(2, 9), process(3, 4)];
        let pids: Vec<i32> = descendants(5, all).iter().map(|process| process.pid).collect();
        assert_eq!(pids, [5, 9, 2]);
    }

    #[test]
    fn memory_and_cpu_time_are_read_from_the_kernels_texts() {
        let rollup = "55e0-7ffd ---p 00000000 00:00 0 [rollup]\nRss:     1680 kB\nPss:      224 kB\n\
                      Pss_Dirty:  92 kB\n";
        assert_eq!(memory_field(rollup, "Pss:"), Some(224));
        assert_eq!(memory_field(rollup, "Rss:"), Some(1680));
        assert_eq!(memory_field("", "Pss:"), None);
        assert_eq!(on_cpu_nanos("194723627 15973629 660\n"), Some(194_723_627));
        assert!(cpu_time(i32::try_from(std::process::id()).unwrap()) > Duration::ZERO);
    }
}
