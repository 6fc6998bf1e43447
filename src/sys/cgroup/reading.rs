//! A group's numbers, read through descriptors that stay open: a sample reads the same files of a hundred
//! groups.

use std::{path::Path, time::Duration};

use super::{Controller, Layout};
use crate::sys::held::{Held, pairs};

/// Longest file read, in bytes. `memory.stat` has up to 3 KiB; a longer one loses its last lines.
const FILE_BYTES_MAX: usize = 8 << 10;

/// What a group's files say at one moment. What the kernel does not count is none, not zero.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reading {
    /// CPU time of all its processes so far, dead ones included.
    pub cpu: Option<Duration>,
    /// Memory charged to it, page cache included, in bytes.
    pub memory: Option<u64>,
    /// Page cache that has not been used for a while, in bytes.
    pub inactive_file: Option<u64>,
    /// Anonymous memory, in bytes.
    pub anonymous: Option<u64>,
    /// Page faults so far.
    pub page_faults: Option<u64>,
    /// Those that waited for a disk.
    pub major_page_faults: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// What happened at its memory limits.
    pub memory_events: MemoryEvents,
    /// What its CPU limit did.
    pub throttling: Option<Throttling>,
    /// How long its work waited for CPU, memory and I/O, in this order.
    pub pressure: [Option<Pressure>; 3],
}

/// How often a group came to its memory limits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryEvents {
    /// It was slowed down above its high mark.
    pub high: Option<u64>,
    /// It hit its limit.
    pub max: Option<u64>,
    /// Nothing could be taken back.
    pub oom: Option<u64>,
    /// Processes killed.
    pub oom_kill: Option<u64>,
}

/// What a group's CPU limit did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Throttling {
    /// Periods in which it ran.
    pub periods: u64,
    /// Those in which it was stopped.
    pub throttled: u64,
    /// For how long.
    pub time: Duration,
}

/// How long work waited for a resource: pressure stall information.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pressure {
    /// At least one task waited.
    pub some: Duration,
    /// Nobody ran meanwhile. For the CPU since Linux 5.13.
    pub full: Option<Duration>,
}

impl Pressure {
    /// From the text of a `*.pressure` file.
    pub fn parse(text: &str) -> Option<Self> {
        let total = |scope: &str| {
            let rest = text.lines().find_map(|line| line.strip_prefix(scope)?.strip_prefix(' '))?;
            let micros = rest.split(' ').find_map(|word| word.strip_prefix("total="))?;
            micros.parse().ok().map(Duration::from_micros)
        };
        Some(Self { some: total("some")?, full: total("full") })
    }
}

impl Reading {
    /// Memory that the kernel cannot easily take back, as kubelet counts it.
    pub fn working_set(&self) -> Option<u64> {
        Some(self.memory?.saturating_sub(self.inactive_file.unwrap_or(0)))
    }
}

/// The open files of a group.
#[derive(Debug)]
pub(super) struct Files {
    /// Version 2 counts microseconds where version 1 counts nanoseconds, and names some lines differently.
    unified: bool,
    /// Version 1's CPU time.
    cpuacct: Option<Held>,
    cpu_stat: Option<Held>,
    memory: Option<Held>,
    memory_stat: Option<Held>,
    memory_events: Option<Held>,
    /// Version 1's count of hits.
    failcnt: Option<Held>,
    pids: Option<Held>,
    pressure: [Option<Held>; 3],
}

impl Files {
    /// Opens what there is.
    pub(super) fn open(layout: &Layout) -> Self {
        let held = |controller, file: &str| {
            layout.of(controller).and_then(|path: &Path| Held::open(path.join(file)).ok())
        };
        match layout {
            Layout::Unified(_) => Self {
                unified: true,
                cpuacct: None,
                cpu_stat: held(Controller::Cpu, "cpu.stat"),
                memory: held(Controller::Memory, "memory.current"),
                memory_stat: held(Controller::Memory, "memory.stat"),
                memory_events: held(Controller::Memory, "memory.events"),
                failcnt: None,
                pids: held(Controller::Pids, "pids.current"),
                pressure: ["cpu.pressure", "memory.pressure", "io.pressure"]
                    .map(|file| held(Controller::Cpu, file)),
            },
            Layout::Split(_) => Self {
                unified: false,
                cpuacct: held(Controller::Cpuacct, "cpuacct.usage"),
                cpu_stat: held(Controller::Cpu, "cpu.stat"),
                memory: held(Controller::Memory, "memory.usage_in_bytes"),
                memory_stat: held(Controller::Memory, "memory.stat"),
                memory_events: held(Controller::Memory, "memory.oom_control"),
                failcnt: held(Controller::Memory, "memory.failcnt"),
                pids: held(Controller::Pids, "pids.current"),
                pressure: [None, None, None],
            },
        }
    }

    /// Reads everything.
    pub(super) fn read(&self) -> Reading {
        let mut buffer = [0; FILE_BYTES_MAX];
        let mut reading = Reading::default();
        self.read_cpu(&mut reading, &mut buffer);
        self.read_memory(&mut reading, &mut buffer);
        reading.memory_events = self.memory_events(&mut buffer);
        reading.pids = number(self.pids.as_ref(), &mut buffer);
        for (pressure, held) in reading.pressure.iter_mut().zip(&self.pressure) {
            *pressure = text(held.as_ref(), &mut buffer).and_then(Pressure::parse);
        }
        reading
    }

    fn read_cpu(&self, reading: &mut Reading, buffer: &mut [u8]) {
        reading.cpu = number(self.cpuacct.as_ref(), buffer).map(Duration::from_nanos);
        let mut throttling = Throttling::default();
        let mut limited = false;
        for (key, value) in pairs(text(self.cpu_stat.as_ref(), buffer).unwrap_or_default()) {
            match key {
                "usage_usec" => reading.cpu = Some(Duration::from_micros(value)),
                "nr_periods" => (limited, throttling.periods) = (true, value),
                "nr_throttled" => throttling.throttled = value,
                "throttled_usec" => throttling.time = Duration::from_micros(value),
                "throttled_time" => throttling.time = Duration::from_nanos(value),
                _ => {}
            }
        }
        reading.throttling = limited.then_some(throttling);
    }

    /// Usage and what is in it.
    fn read_memory(&self, reading: &mut Reading, buffer: &mut [u8]) {
        reading.memory = number(self.memory.as_ref(), buffer);
        // Version 1 counts a group alone and, beside it, with those beneath.
        let [inactive, anonymous, faults, major] = if self.unified {
            ["inactive_file", "anon", "pgfault", "pgmajfault"]
        } else {
            ["total_inactive_file", "total_rss", "total_pgfault", "total_pgmajfault"]
        };
        for (key, value) in pairs(text(self.memory_stat.as_ref(), buffer).unwrap_or_default()) {
            if key == inactive {
                reading.inactive_file = Some(value);
            } else if key == anonymous {
                reading.anonymous = Some(value);
            } else if key == faults {
                reading.page_faults = Some(value);
            } else if key == major {
                reading.major_page_faults = Some(value);
            }
        }
    }

    /// What happened at its limits.
    fn memory_events(&self, buffer: &mut [u8]) -> MemoryEvents {
        let mut events =
            MemoryEvents { max: number(self.failcnt.as_ref(), buffer), ..MemoryEvents::default() };
        for (key, value) in pairs(text(self.memory_events.as_ref(), buffer).unwrap_or_default()) {
            match key {
                "high" => events.high = Some(value),
                "max" => events.max = Some(value),
                "oom" => events.oom = Some(value),
                "oom_kill" => events.oom_kill = Some(value),
                _ => {}
            }
        }
        events
    }

    /// How often the out-of-memory killer has struck; none where the kernel does not count it by group
    /// (before Linux 4.13, or without the controller).
    pub(super) fn oom_kills(&self) -> Option<u64> {
        self.memory_events(&mut [0; 1024]).oom_kill
    }

    /// Memory charged to it, in bytes: one short file.
    pub(super) fn memory(&self) -> Option<u64> {
        number(self.memory.as_ref(), &mut [0; 32])
    }

    /// Its working set, in bytes.
    pub(super) fn working_set(&self) -> Option<u64> {
        let mut reading = Reading::default();
        self.read_memory(&mut reading, &mut [0; FILE_BYTES_MAX]);
        reading.working_set()
    }
}

fn text<'a>(held: Option<&Held>, buffer: &'a mut [u8]) -> Option<&'a str> {
    // A file that is there may still say that the kernel does not count: PSI that is switched off at boot.
    held?.read(buffer).ok()
}

fn number(held: Option<&Held>, buffer: &mut [u8]) -> Option<u64> {
    held?.number(buffer)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, fs};

    use expect_test::{Expect, expect};

    use super::*;

    fn check(files: &[(&str, &str)], unified: bool, expected: &Expect) {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        let path = dir.path().to_owned();
        let layout = if unified {
            Layout::Unified(path)
        } else {
            let all = Controller::ALL.map(|controller| (controller, path.clone()));
            Layout::Split(BTreeMap::from(all))
        };
        let files = Files::open(&layout);
        let reading = files.read();
        assert_eq!(files.working_set(), reading.working_set());
        assert_eq!((files.memory(), files.oom_kills()), (reading.memory, reading.memory_events.oom_kill));
        expected.assert_eq(&format!("{reading:?} {:?}", reading.working_set()));
    }

    #[test]
    fn version_2_tells_all_of_it() {
        let stat = "anon 3000\nfile 4000\nshmem 100\ninactive_anon 7\ninactive_file 2000\npgfault 11\npgmajfault 2\n";
        let cpu = "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\nnr_periods 9\nnr_throttled 3\nthrottled_usec 70\n";
        let pressure = "some avg10=0.00 avg60=1.50 avg300=0.00 total=12\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=5\n";
        check(
            &[
                ("cpu.stat", cpu),
                ("memory.current", "9000\n"),
                ("memory.stat", stat),
                ("memory.events", "low 0\nhigh 1\nmax 2\noom 3\noom_kill 4\noom_group_kill 5\n"),
                ("pids.current", "6\n"),
                ("memory.pressure", pressure),
                ("cpu.pressure", "some avg10=0.00 avg60=0.00 avg300=0.00 total=8\n"),
            ],
            true,
            &expect![
                "Reading { cpu: Some(1.5ms), memory: Some(9000), inactive_file: Some(2000), anonymous: Some(3000), page_faults: Some(11), major_page_faults: Some(2), pids: Some(6), memory_events: MemoryEvents { high: Some(1), max: Some(2), oom: Some(3), oom_kill: Some(4) }, throttling: Some(Throttling { periods: 9, throttled: 3, time: 70µs }), pressure: [Some(Pressure { some: 8µs, full: None }), Some(Pressure { some: 12µs, full: Some(5µs) }), None] } Some(7000)"
            ],
        );
    }

    #[test]
    fn version_1_tells_what_it_has_and_nothing_is_made_up() {
        let stat = "cache 1\nrss 2\ninactive_file 3\ntotal_rss 3000\ntotal_inactive_file 9999\ntotal_pgfault 11\n\
                    total_pgmajfault 2\n";
        check(
            &[
                ("cpuacct.usage", "1500\n"),
                ("cpu.stat", "nr_periods 9\nnr_throttled 3\nthrottled_time 70\n"),
                ("memory.usage_in_bytes", "9000\n"),
                ("memory.stat", stat),
                ("memory.failcnt", "2\n"),
                ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 4\n"),
            ],
            false,
            &expect![
                "Reading { cpu: Some(1.5µs), memory: Some(9000), inactive_file: Some(9999), anonymous: Some(3000), page_faults: Some(11), major_page_faults: Some(2), pids: None, memory_events: MemoryEvents { high: None, max: Some(2), oom: None, oom_kill: Some(4) }, throttling: Some(Throttling { periods: 9, throttled: 3, time: 70ns }), pressure: [None, None, None] } Some(0)"
            ],
        );
        check(
            &[],
            true,
            &expect![
                "Reading { cpu: None, memory: None, inactive_file: None, anonymous: None, page_faults: None, major_page_faults: None, pids: None, memory_events: MemoryEvents { high: None, max: None, oom: None, oom_kill: None }, throttling: None, pressure: [None, None, None] } None"
            ],
        );
    }
}
