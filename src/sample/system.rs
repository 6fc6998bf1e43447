//! The whole enclave's CPU and memory, read through descriptors that stay open.

use std::{io, os::unix::fs::MetadataExt, time::Duration};

use nix::{
    sys::statfs::OVERLAYFS_SUPER_MAGIC,
    time::{ClockId, clock_gettime},
};

use crate::{
    engine::Moment,
    sys::{
        cgroup::Pressure,
        held::{Held, pairs},
    },
};

/// Longest file read, in bytes: a line of `/proc/stat` for each of 200 CPUs. What is longer loses its last
/// lines, which are those of interrupts.
const FILE_BYTES_MAX: usize = 16 << 10;
/// Shortest time over which CPU use is measured: the kernel counts in ticks of 4 to 10 ms, and of fewer than
/// twenty a share says little.
pub const WINDOW_MIN: Duration = Duration::from_millis(200);
/// The resources of pressure stall information, as the kernel's files are called.
pub const RESOURCES: [&str; 3] = ["cpu", "memory", "io"];

/// The files of a [`Reading`].
#[derive(Debug)]
pub struct System {
    stat: Held,
    memory: Held,
    vmstat: Option<Held>,
    pressure: [Option<Held>; 3],
    buffer: Box<[u8]>,
}

/// One reading of /proc.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reading {
    /// Time of all cores since boot.
    pub cpu: Cpu,
    /// CPUs online.
    pub cpus: u32,
    /// Memory as a whole.
    pub memory: Memory,
    /// Page faults since boot.
    pub page_faults: Option<u64>,
    /// Those that waited for a disk.
    pub major_page_faults: Option<u64>,
    /// How often the out-of-memory killer has struck; none before Linux 4.13.
    pub oom_kills: Option<u64>,
    /// By [`RESOURCES`]; none where the kernel has no pressure stall information.
    pub pressure: [Option<Pressure>; 3],
    /// The root file system; none where it has no size (ramfs).
    pub root: Option<Space>,
    /// Time since boot.
    pub uptime: Option<Duration>,
}

/// `/proc/meminfo`, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Memory {
    /// `MemTotal`.
    pub total: u64,
    /// `MemFree`.
    pub free: u64,
    /// `MemAvailable`: unlike `MemFree` plus caches it does not count the in-memory file system as
    /// reclaimable.
    pub available: u64,
    /// `Inactive(file)`: page cache that has not been used for a while. Files in memory are not in it: those
    /// of tmpfs are anonymous to the kernel, those of ramfs cannot be evicted.
    pub inactive_file: u64,
    /// `AnonPages`.
    pub anonymous: u64,
}

/// A file system, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Space {
    /// Its size.
    pub capacity: u64,
    /// What is left for users other than root.
    pub available: u64,
    /// What is in use.
    pub used: u64,
}

/// The `cpu` line of `/proc/stat`, in ticks of 1/100 s. Guest time is part of user time already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cpu {
    /// User mode, niced included.
    pub user: u64,
    /// Kernel mode, interrupts included.
    pub system: u64,
    /// Idle.
    pub idle: u64,
    /// Waiting for I/O, which is idle too. The kernel may count it backwards.
    pub iowait: u64,
    /// Taken by the hypervisor.
    pub steal: u64,
}

impl Cpu {
    /// Ticks in which nothing ran.
    pub fn idle_total(self) -> u64 {
        self.idle.saturating_add(self.iowait)
    }

    /// Ticks in which something ran, the hypervisor's included.
    pub fn busy(self) -> u64 {
        self.user.saturating_add(self.system).saturating_add(self.steal)
    }

    /// All ticks.
    pub fn total(self) -> u64 {
        self.busy().saturating_add(self.idle_total())
    }

    /// Fraction of the time between `before` and now in which something ran, 0.0–1.0, over all cores.
    /// Nothing when no time has passed by the kernel's count, or it went backwards.
    pub fn usage_since(self, before: Self) -> Option<f64> {
        let total = self.total().checked_sub(before.total()).filter(|total| *total > 0)?;
        let idle = self.idle_total().saturating_sub(before.idle_total());
        Some((1.0 - idle as f64 / total as f64).clamp(0.0, 1.0))
    }

    /// From the line, without its first word.
    fn parse(line: &str) -> Self {
        let mut fields = line.split_ascii_whitespace().map(|word| word.parse::<u64>().unwrap_or(0));
        let mut next = || fields.next().unwrap_or(0);
        let (user, nice, system, idle) = (next(), next(), next(), next());
        let (iowait, irq, softirq, steal) = (next(), next(), next(), next());
        Self {
            user: user.saturating_add(nice),
            system: system.saturating_add(irq).saturating_add(softirq),
            idle,
            iowait,
            steal,
        }
    }
}

/// CPU use from one reading to the next.
#[derive(Debug, Default)]
pub struct Window {
    first: Option<Cpu>,
    before: Option<(Moment, Cpu)>,
    usage: Option<f64>,
}

impl Window {
    /// Takes the reading of a sample: the first one of all, and the share of CPU time used since the one
    /// before. Of a window that is too short it is the share before; there is none before the second reading.
    pub fn take(&mut self, now: Moment, cpu: Cpu) -> (Cpu, Option<f64>) {
        let first = *self.first.get_or_insert(cpu);
        let (then, before) = *self.before.get_or_insert((now, cpu));
        if now.since(then) >= WINDOW_MIN {
            self.before = Some((now, cpu));
            // No tick in such a time means a kernel that does not count; what was known stays.
            self.usage = cpu.usage_since(before).or(self.usage);
        }
        (first, self.usage)
    }
}

impl Memory {
    /// Reads it once.
    pub fn now() -> io::Result<Self> {
        let mut buffer = [0; FILE_BYTES_MAX];
        Ok(Self::parse(Held::open("/proc/meminfo")?.read(&mut buffer)?))
    }

    /// From the text of `/proc/meminfo`.
    fn parse(text: &str) -> Self {
        let mut memory = Self::default();
        let mut available = None;
        for line in text.lines() {
            let Some((key, rest)) = line.split_once(':') else { continue };
            let bytes = || {
                let kilobytes = rest.trim().split(' ').next().and_then(|word| word.parse::<u64>().ok());
                kilobytes.unwrap_or(0).saturating_mul(1024)
            };
            match key {
                "MemTotal" => memory.total = bytes(),
                "MemFree" => memory.free = bytes(),
                "MemAvailable" => available = Some(bytes()),
                "Inactive(file)" => memory.inactive_file = bytes(),
                "AnonPages" => memory.anonymous = bytes(),
                _ => {}
            }
        }
        // Kernels before 3.14 have no MemAvailable; no enclave runs one.
        memory.available = available.unwrap_or(memory.free);
        memory
    }

    /// 1 − `MemAvailable`/`MemTotal`, 0.0–1.0.
    pub fn used_part(&self) -> f64 {
        if self.total == 0 {
            return 0.0;
        }
        (1.0 - self.available as f64 / self.total as f64).clamp(0.0, 1.0)
    }

    /// Memory in use, page cache and files in memory included.
    pub fn usage(&self) -> u64 {
        self.total.saturating_sub(self.free)
    }

    /// Memory in use that the kernel cannot easily take back, as kubelet counts it.
    pub fn working_set(&self) -> u64 {
        self.usage().saturating_sub(self.inactive_file)
    }
}

impl Space {
    /// The file system of a path; none where it has no size.
    pub fn of(path: &str) -> Option<Self> {
        let stat = nix::sys::statvfs::statvfs(path).ok()?;
        let bytes = |blocks: u64| blocks.saturating_mul(stat.fragment_size());
        let capacity = bytes(stat.blocks());
        let used = bytes(stat.blocks().saturating_sub(stat.blocks_free()));
        (capacity > 0).then_some(Self { capacity, available: bytes(stat.blocks_available()), used })
    }
}

impl Space {
    /// The writable layer of a process's root file system; none where it has no layer of its own.
    pub fn of_layer(pid: i32) -> Option<Self> {
        let root = format!("/proc/{pid}/root");
        let device = |path: &str| std::fs::metadata(path).map(|root| root.dev()).ok();
        let kind = nix::sys::statfs::statfs(root.as_str()).ok()?.filesystem_type();
        // The root of a container that we run in may be one as well.
        let own = kind == OVERLAYFS_SUPER_MAGIC && device(&root)? != device("/")?;
        own.then(|| Self::of(&root)).flatten()
    }
}

impl System {
    /// Opens the files.
    pub fn open() -> io::Result<Self> {
        let pressure = RESOURCES.map(|resource| Held::open(format!("/proc/pressure/{resource}")).ok());
        Ok(Self {
            stat: Held::open("/proc/stat")?,
            memory: Held::open("/proc/meminfo")?,
            vmstat: Held::open("/proc/vmstat").ok(),
            pressure,
            buffer: vec![0; FILE_BYTES_MAX].into(),
        })
    }

    /// Reads them all.
    pub fn read(&mut self) -> io::Result<Reading> {
        let buffer = &mut *self.buffer;
        let mut reading = Reading { root: Space::of("/"), uptime: uptime(), ..Reading::default() };
        for line in self.stat.read(buffer)?.lines() {
            let Some(rest) = line.strip_prefix("cpu") else { break };
            match rest.strip_prefix(' ') {
                Some(all) => reading.cpu = Cpu::parse(all),
                None => reading.cpus = reading.cpus.saturating_add(1),
            }
        }
        reading.memory = Memory::parse(self.memory.read(buffer)?);
        for (key, value) in
            pairs(self.vmstat.as_ref().and_then(|file| file.read(buffer).ok()).unwrap_or_default())
        {
            match key {
                "pgfault" => reading.page_faults = Some(value),
                "pgmajfault" => reading.major_page_faults = Some(value),
                "oom_kill" => reading.oom_kills = Some(value),
                _ => {}
            }
        }
        for (pressure, file) in reading.pressure.iter_mut().zip(&self.pressure) {
            *pressure = file.as_ref().and_then(|file| Pressure::parse(file.read(buffer).ok()?));
        }
        Ok(reading)
    }
}

fn uptime() -> Option<Duration> {
    clock_gettime(ClockId::CLOCK_BOOTTIME).ok().map(Duration::from)
}

/// How often the kernel's out-of-memory killer has struck since boot; `None` before Linux 4.13.
pub fn oom_kills() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/vmstat").ok()?;
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_is_the_share_of_ticks_that_were_not_idle() {
        let before = Cpu { user: 100, system: 50, idle: 800, iowait: 40, steal: 10 };
        let after = Cpu { user: 150, system: 70, idle: 900, iowait: 60, steal: 20 };
        assert_eq!(after.usage_since(before), Some(1.0 - 120.0 / 200.0));
        assert_eq!(before.usage_since(before), None);
        assert_eq!(before.usage_since(after), None);
    }

    #[test]
    fn iowait_that_goes_backwards_does_not_leave_the_range() {
        let before = Cpu { user: 0, system: 0, idle: 100, iowait: 50, steal: 0 };
        let after = Cpu { user: 60, system: 0, idle: 100, iowait: 0, steal: 0 };
        assert_eq!(after.usage_since(before), Some(1.0));
    }

    #[test]
    fn a_share_of_too_few_ticks_is_not_shown_and_the_next_window_reaches_back_over_it() {
        let mut window = Window::default();
        let mut share = |millis, user, idle| {
            let cpu = Cpu { user, idle, ..Cpu::default() };
            window.take(Moment(Duration::from_millis(millis)), cpu).1
        };
        assert_eq!(share(0, 10, 90), None);
        assert_eq!(share(199, 110, 90), None);
        assert_eq!(share(1000, 60, 140), Some(0.5));
        assert_eq!(share(1050, 160, 140), Some(0.5));
        assert_eq!(share(2000, 160, 140), Some(1.0));
        assert_eq!(share(3000, 160, 140), Some(1.0));
    }

    #[test]
    fn guest_time_is_in_user_time_already() {
        let expected = Cpu { user: 3, system: 3 + 6 + 7, idle: 4, iowait: 5, steal: 8 };
        assert_eq!(Cpu::parse(" 1 2 3 4 5 6 7 8 9 10"), expected);
        assert_eq!(Cpu::parse("1 x").total(), 1);
    }

    #[test]
    fn a_file_in_memory_is_in_use_and_a_file_that_can_be_read_again_is_not_in_the_working_set() {
        let text = "MemTotal: 1000 kB\nMemFree: 400 kB\nMemAvailable: 550 kB\nInactive(anon): 90 kB\n\
                    Inactive(file): 150 kB\nAnonPages: 200 kB\nHugePages_Total: 3\n";
        let memory = Memory::parse(text);
        assert!((memory.used_part() - 0.45).abs() < 1e-12);
        assert_eq!((memory.usage(), memory.working_set()), (600 * 1024, 450 * 1024));
        assert_eq!(memory.anonymous, 200 * 1024);
        assert!(Memory::default().used_part().abs() < 1e-12);
    }

    #[test]
    fn the_running_kernel_can_be_read_as_others_read_it() {
        use procfs::{Current, CurrentSI};
        let reading = System::open().unwrap().read().unwrap();
        let (stat, memory) = (procfs::KernelStats::current().unwrap(), procfs::Meminfo::current().unwrap());
        assert_eq!(reading.cpus as usize, stat.cpu_time.len());
        assert_eq!(reading.memory.total, memory.mem_total);
        assert!(reading.memory.working_set() > 0 && reading.memory.available <= reading.memory.total);
        // Time passes between the two.
        let (then, now) = (reading.cpu.total(), stat.total);
        let rest = [now.iowait, now.irq, now.softirq, now.steal].map(Option::unwrap_or_default);
        let whole = now.user + now.nice + now.system + now.idle + rest.iter().sum::<u64>();
        // The kernel may count iowait backwards by a few ticks.
        assert!(then <= whole + 1000 && whole <= then + 100_000, "{then} {whole}");
        assert!(reading.oom_kills.is_some() && reading.page_faults.is_some() && reading.uptime.is_some());
        assert_eq!(reading.oom_kills, oom_kills());
    }
}
