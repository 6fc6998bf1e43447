//! The whole enclave's CPU and memory.

use procfs::{CpuTime, Current, CurrentSI, KernelStats, Meminfo};

/// One reading of `/proc/stat` and `/proc/meminfo`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// Time of all cores since boot.
    pub cpu: Cpu,
    /// `MemTotal`, in bytes.
    pub memory_total: u64,
    /// `MemAvailable`, in bytes: unlike `MemFree` plus caches it does not count the in-memory file system
    /// as reclaimable.
    pub memory_available: u64,
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
        self.idle + self.iowait
    }

    /// All ticks.
    pub fn total(self) -> u64 {
        self.user + self.system + self.idle + self.iowait + self.steal
    }

    /// Fraction of the time between `before` and now in which something ran, 0.0–1.0, over all cores.
    /// Nothing when no time has passed by the kernel's count, or it went backwards.
    pub fn usage_since(self, before: Self) -> Option<f64> {
        let total = self.total().checked_sub(before.total()).filter(|total| *total > 0)?;
        let idle = self.idle_total().saturating_sub(before.idle_total());
        Some((1.0 - idle as f64 / total as f64).clamp(0.0, 1.0))
    }
}

impl From<&CpuTime> for Cpu {
    fn from(time: &CpuTime) -> Self {
        Self {
            user: time.user + time.nice,
            system: time.system + time.irq.unwrap_or(0) + time.softirq.unwrap_or(0),
            idle: time.idle,
            iowait: time.iowait.unwrap_or(0),
            steal: time.steal.unwrap_or(0),
        }
    }
}

impl Reading {
    /// Reads both files.
    pub fn take() -> Result<Self, procfs::ProcError> {
        let stat = KernelStats::current()?;
        let memory = Meminfo::current()?;
        Ok(Self {
            cpu: Cpu::from(&stat.total),
            memory_total: memory.mem_total,
            // Kernels before 3.14 have no MemAvailable; no enclave runs one.
            memory_available: memory.mem_available.unwrap_or(memory.mem_free),
        })
    }

    /// 1 − `MemAvailable`/`MemTotal`, 0.0–1.0.
    pub fn memory_usage(&self) -> f64 {
        if self.memory_total == 0 {
            return 0.0;
        }
        (1.0 - self.memory_available as f64 / self.memory_total as f64).clamp(0.0, 1.0)
    }
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
    fn memory_usage_follows_mem_available() {
        let reading = Reading { cpu: Cpu::default(), memory_total: 1000, memory_available: 250 };
        assert!((reading.memory_usage() - 0.75).abs() < 1e-12);
        let odd = Reading { memory_total: 0, ..reading };
        assert!(odd.memory_usage().abs() < 1e-12);
    }

    #[test]
    fn the_running_kernel_can_be_read() {
        let reading = Reading::take().unwrap();
        assert!(reading.cpu.total() > 0);
        assert!(reading.memory_available <= reading.memory_total);
        assert!(oom_kills().is_some());
    }
}
