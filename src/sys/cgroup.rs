//! Control groups: one for each plugin, with its limits, its count of out-of-memory kills and the kill of
//! everything in it. Version 2 where it has the controllers, else version 1, where each controller is a
//! hierarchy of its own.
//!
//! ```text
//! where this process was ─┬─ enclave-ID ─┬─ plugin     processes of the plugin, limited
//!                         │   (limited   └─ plugin
//!                         │    as a whole, in a machine of its own)
//!                         └─ enclave-ID.supervisor   this process and `net`, where version 2 wants it moved
//! ```
//! A group lives from the manifest to the end, over all runs of its plugin.

mod reading;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read, Write},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use nix::{sys::signal::Signal, unistd::Pid};

use self::reading::Files;
pub use self::reading::{MemoryEvents, Pressure, Reading, Throttling};

/// The kernel's default period of CPU limits, in microseconds.
const CPU_PERIOD_MICROS: u64 = 100_000;
/// The least quota that the kernel takes.
const CPU_QUOTA_MICROS_MIN: u64 = 1000;
/// Longest file read here, in bytes. `memory.stat` has about 1.5 KiB, `cgroup.procs` 8 bytes a process.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Memory that all plugins together leave to the supervisor, `net` and the kernel: three times what both
/// have at their peak, and a good part of 100 full log rings.
const RESERVED_BYTES: u64 = 32 << 20;
/// A small machine does not give more of itself than this part.
const RESERVED_PART: u64 = 8;

/// A part of the kernel that limits or counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Controller {
    /// CPU time's limit.
    Cpu,
    /// CPU time's count: of its own in version 1, always there in version 2.
    Cpuacct,
    /// Memory.
    Memory,
    /// Processes and threads.
    Pids,
    /// Stops everything at once; not needed in version 2.
    Freezer,
}

impl Controller {
    const ALL: [Self; 5] = [Self::Cpu, Self::Cpuacct, Self::Memory, Self::Pids, Self::Freezer];
    /// Those that limit something.
    pub const LIMITING: [Self; 3] = [Self::Cpu, Self::Memory, Self::Pids];

    /// The kernel's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cpuacct => "cpuacct",
            Self::Memory => "memory",
            Self::Pids => "pids",
            Self::Freezer => "freezer",
        }
    }
}

/// What a group may use at most; unlimited where there is no number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// CPUs in thousandths.
    pub cpu_millis: Option<u64>,
    /// Memory, page cache and files in memory included, in bytes.
    pub memory_bytes: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u32>,
}

/// Where groups can be made, as the kernel shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Layout {
    /// One directory.
    Unified(PathBuf),
    /// A directory for each controller.
    Split(BTreeMap<Controller, PathBuf>),
}

/// The groups of this boot.
#[derive(Debug)]
pub struct Cgroups {
    whole: Group,
    /// Controllers that the plugins' groups have.
    controllers: Vec<Controller>,
    /// Where this process was moved to, to be left at the end.
    own: Option<PathBuf>,
}

/// One plugin's group.
#[derive(Debug)]
pub struct Cgroup {
    group: Group,
    /// Those in force.
    limits: Limits,
    files: Files,
    /// Whether the CPU limit is lifted.
    lifted: AtomicBool,
}

/// A directory in every hierarchy that is used; removed when dropped.
#[derive(Debug)]
struct Group(Layout);

impl Layout {
    /// From `/proc/self/mountinfo` and `/proc/self/cgroup`. `offered` tells the controllers that a directory
    /// of version 2 has to give.
    fn find(mounts: &str, own: &str, offered: impl Fn(&Path) -> Vec<Controller>) -> Option<Self> {
        let mut unified = None;
        let mut split = BTreeMap::new();
        for (root, point, kind, options) in mounts.lines().filter_map(mount_of) {
            let hierarchy = |names: &str| {
                let path = own.lines().find_map(|line| {
                    let (_, rest) = line.split_once(':')?;
                    let (list, path) = rest.split_once(':')?;
                    (list == names || list.split(',').any(|name| name == names)).then_some(path)
                })?;
                // Seen from a namespace, the root of the mount may lie beside the path.
                let inside = path.strip_prefix(root).unwrap_or(path).trim_start_matches('/');
                Some(Path::new(point).components().chain(Path::new(inside).components()).collect::<PathBuf>())
            };
            match kind {
                "cgroup2" => unified = unified.or_else(|| hierarchy("")),
                "cgroup" => {
                    for controller in Controller::ALL {
                        if options.split(',').any(|option| option == controller.name())
                            && let Some(path) = hierarchy(controller.name())
                        {
                            split.entry(controller).or_insert(path);
                        }
                    }
                }
                _ => {}
            }
        }
        let complete = |has: &[Controller]| {
            split.keys().filter(|one| Controller::LIMITING.contains(one)).all(|one| has.contains(one))
        };
        match unified {
            Some(path) if complete(&offered(&path)) => Some(Self::Unified(path)),
            Some(_) | None if !split.is_empty() => Some(Self::Split(split)),
            Some(_) | None => None,
        }
    }

    fn join(&self, name: &str) -> Self {
        match self {
            Self::Unified(path) => Self::Unified(path.join(name)),
            Self::Split(paths) => {
                Self::Split(paths.iter().map(|(controller, path)| (*controller, path.join(name))).collect())
            }
        }
    }

    /// Each directory once: two controllers may be mounted together.
    fn directories(&self) -> Vec<&Path> {
        match self {
            Self::Unified(path) => vec![path],
            Self::Split(paths) => {
                let mut all: Vec<_> = paths.values().map(PathBuf::as_path).collect();
                all.sort();
                all.dedup();
                all
            }
        }
    }

    fn of(&self, controller: Controller) -> Option<&Path> {
        match self {
            Self::Unified(path) => Some(path),
            Self::Split(paths) => paths.get(&controller).map(PathBuf::as_path),
        }
    }
}

/// Root, mount point, kind and options of a line of mountinfo.
fn mount_of(line: &str) -> Option<(&str, &str, &str, &str)> {
    let (head, tail) = line.split_once(" - ")?;
    let mut head = head.split(' ').skip(3);
    let mut tail = tail.split(' ');
    Some((head.next()?, head.next()?, tail.next()?, tail.nth(1)?))
}

impl Cgroups {
    /// Makes the group that all plugins' groups will be in; `name` is this boot's own. With `reserve` they
    /// leave some of the `memory` that is available now to the supervisor. None where the kernel has no
    /// groups mounted, an error where this process must not make any.
    pub fn make(name: &str, memory: u64, reserve: bool) -> io::Result<Option<Self>> {
        let text = |path: &str| read(Path::new(path));
        let found = Layout::find(&text("/proc/self/mountinfo")?, &text("/proc/self/cgroup")?, offered);
        let Some(base) = found else { return Ok(None) };
        let mut own = None;
        let controllers = match &base {
            Layout::Unified(path) => {
                let wanted: Vec<_> = offered(path);
                if enable(path, &wanted).is_err() {
                    // A group that gives controllers to others has no processes of its own.
                    let beside = path.join(format!("{name}.supervisor"));
                    fs::create_dir(&beside)?;
                    let moved =
                        fs::write(beside.join("cgroup.procs"), "0").and_then(|()| enable(path, &wanted));
                    own = Some(beside);
                    moved?;
                }
                wanted
            }
            Layout::Split(paths) => paths.keys().copied().collect(),
        };
        let whole = Group::make(base.join(name))?;
        if let Layout::Unified(path) = &whole.0 {
            enable(path, &controllers)?;
        } else if let Some(memory) = whole.0.of(Controller::Memory) {
            // The default, and final, since Linux 5.11; before it groups within groups are counted apart.
            fs::write(memory.join("memory.use_hierarchy"), "1").ok();
        }
        if reserve && memory > 0 {
            let left = memory - RESERVED_BYTES.min(memory / RESERVED_PART);
            whole.limit(&Limits { memory_bytes: Some(left), ..Limits::default() })?;
        }
        Ok(Some(Self { whole, controllers, own }))
    }

    /// Whether limits of this kind can be set.
    pub fn limits(&self, controller: Controller) -> bool {
        self.controllers.contains(&controller)
    }

    /// Makes a plugin's group with its limits. A limit that cannot be set is an error only if the kernel has
    /// its controller.
    pub fn plugin(&self, name: &str, limits: &Limits) -> io::Result<Cgroup> {
        let group = Group::make(self.whole.0.join(name))?;
        let limits = Limits {
            cpu_millis: limits.cpu_millis.filter(|_| self.limits(Controller::Cpu)),
            memory_bytes: limits.memory_bytes.filter(|_| self.limits(Controller::Memory)),
            pids: limits.pids.filter(|_| self.limits(Controller::Pids)),
        };
        group.limit(&limits)?;
        if let Layout::Unified(path) = &group.0 {
            // A plugin without one of its processes is no plugin. Since Linux 4.19. The group above does not
            // have it: all plugins would be killed for one.
            fs::write(path.join("memory.oom.group"), "1").ok();
        }
        let files = Files::open(&group.0);
        Ok(Cgroup { group, limits, files, lifted: AtomicBool::new(false) })
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        // What is left of a directory without processes costs a few kilobytes until the next boot.
        if let Some(own) = &self.own
            && let Some(parent) = own.parent()
        {
            self.whole.remove();
            fs::write(parent.join("cgroup.procs"), "0").ok();
            fs::remove_dir(own).ok();
        }
    }
}

/// The controllers that a directory of version 2 can give to those beneath.
fn offered(path: &Path) -> Vec<Controller> {
    let text = read(&path.join("cgroup.controllers")).unwrap_or_default();
    let has = |controller: &Controller| text.split_whitespace().any(|name| name == controller.name());
    Controller::LIMITING.into_iter().filter(has).collect()
}

/// Gives controllers to the groups beneath.
fn enable(path: &Path, controllers: &[Controller]) -> io::Result<()> {
    let words: Vec<String> = controllers.iter().map(|one| format!("+{}", one.name())).collect();
    fs::write(path.join("cgroup.subtree_control"), words.join(" "))
}

impl Group {
    fn make(layout: Layout) -> io::Result<Self> {
        let group = Self(layout);
        for path in group.0.directories() {
            match fs::create_dir(path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        Ok(group)
    }

    fn limit(&self, limits: &Limits) -> io::Result<()> {
        let write = |controller, file: &str, text: String| match self.0.of(controller) {
            Some(path) => fs::write(path.join(file), text),
            None => Ok(()),
        };
        let unified = matches!(self.0, Layout::Unified(_));
        if let Some(bytes) = limits.memory_bytes {
            let file = if unified { "memory.max" } else { "memory.limit_in_bytes" };
            write(Controller::Memory, file, bytes.to_string())?;
            let (swap, most) =
                if unified { ("memory.swap.max", 0) } else { ("memory.memsw.limit_in_bytes", bytes) };
            // An enclave has no swap; a kernel without it has no such file either.
            write(Controller::Memory, swap, most.to_string()).ok();
        }
        if let Some(millis) = limits.cpu_millis {
            let quota = (millis * CPU_PERIOD_MICROS / 1000).max(CPU_QUOTA_MICROS_MIN);
            if unified {
                write(Controller::Cpu, "cpu.max", format!("{quota} {CPU_PERIOD_MICROS}"))?;
            } else {
                write(Controller::Cpu, "cpu.cfs_period_us", CPU_PERIOD_MICROS.to_string())?;
                write(Controller::Cpu, "cpu.cfs_quota_us", quota.to_string())?;
            }
        }
        if let Some(pids) = limits.pids {
            write(Controller::Pids, "pids.max", pids.to_string())?;
        }
        Ok(())
    }

    fn lift_cpu(&self) -> io::Result<()> {
        let Some(path) = self.0.of(Controller::Cpu) else { return Ok(()) };
        match self.0 {
            Layout::Unified(_) => fs::write(path.join("cpu.max"), "max"),
            Layout::Split(_) => fs::write(path.join("cpu.cfs_quota_us"), "-1"),
        }
    }

    fn remove(&self) {
        for path in self.0.directories() {
            // EBUSY: a process that does not die, or one that another made here.
            fs::remove_dir(path).ok();
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.remove();
    }
}

impl Cgroup {
    /// Descriptors through which a process of one thread joins the group by writing `0`.
    ///
    /// In version 1 it joins as that thread: since Linux 5.12 this spares the lock that keeps every process
    /// of the machine from forking and ending meanwhile, which takes five to fifteen milliseconds to get.
    pub(super) fn doors(&self) -> io::Result<Vec<OwnedFd>> {
        let file = match self.group.0 {
            Layout::Unified(_) => "cgroup.procs",
            Layout::Split(_) => "tasks",
        };
        let open = |path: &Path| Ok(File::options().write(true).open(path.join(file))?.into());
        self.group.0.directories().into_iter().map(open).collect()
    }

    /// The directory in which a process can be cloned, which takes no such lock either: version 2, since
    /// Linux 5.7.
    pub(super) fn cradle(&self) -> io::Result<Option<OwnedFd>> {
        match &self.group.0 {
            Layout::Unified(path) => Ok(Some(File::open(path)?.into())),
            Layout::Split(_) => Ok(None),
        }
    }

    /// Makes it ready for the next run.
    pub fn renew(&self) -> io::Result<()> {
        if self.lifted.swap(false, Ordering::Relaxed) {
            self.group.limit(&Limits { cpu_millis: self.limits.cpu_millis, ..Limits::default() })?;
        }
        Ok(())
    }

    /// Moves a process into it, for measurements: a plugin's process enters by itself.
    pub fn adopt(&self, pid: u32) -> io::Result<()> {
        let write = |path: &Path| fs::write(path.join("cgroup.procs"), pid.to_string());
        self.group.0.directories().into_iter().try_for_each(write)
    }

    /// Its limits that are in force.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// What its files say now.
    pub fn reading(&self) -> Reading {
        self.files.read()
    }

    /// The part of its memory limit that is in use without what the kernel can easily take back, in
    /// thousandths, once `from` of them are in use with it. None without a limit.
    pub fn memory_filled(&self, from: u64) -> Option<u64> {
        let most = self.limits.memory_bytes.filter(|most| *most > 0)?;
        let part = |bytes: u64| bytes.saturating_mul(1000) / most;
        let used = part(self.files.memory()?);
        // The second file is longer than the first, and mostly not needed.
        if used < from { Some(used) } else { self.files.working_set().map(part) }
    }

    /// How often the out-of-memory killer has struck here; none where the kernel does not count it by group.
    pub fn oom_kills(&self) -> Option<u64> {
        self.files.oom_kills()
    }

    /// Its processes, `most` of them at the most and one more where there are more.
    pub fn processes(&self, most: usize) -> Option<Vec<i32>> {
        let path = *self.group.0.directories().first()?;
        let text = read(&path.join("cgroup.procs")).ok()?;
        Some(text.lines().filter_map(|line| line.parse().ok()).take(most.saturating_add(1)).collect())
    }

    /// Whether more than this part of the memory that it may have is in use. Never without a limit.
    pub fn is_filled(&self, part: u64) -> bool {
        let used = || self.files.memory().unwrap_or(0);
        self.limits.memory_bytes.is_some_and(|most| used() > most / part)
    }

    /// Kills everything in it, however it left its session or its parent.
    ///
    /// Its CPU limit is lifted: who has used up his part would take seconds to die. [`Cgroup::renew`] sets it
    /// again.
    pub fn kill(&self) -> io::Result<()> {
        if self.limits.cpu_millis.is_some() && self.group.lift_cpu().is_ok() {
            self.lifted.store(true, Ordering::Relaxed);
        }
        if let Layout::Unified(path) = &self.group.0 {
            // Since Linux 5.14. A file that is not there is not made: the directory takes none.
            match File::options().write(true).open(path.join("cgroup.kill")) {
                Ok(mut file) => return file.write_all(b"1"),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        // While it is stopped nothing forks, so that whoever is listed is all there is.
        self.freeze(true);
        let killed = self.kill_each();
        self.freeze(false);
        killed
    }

    fn kill_each(&self) -> io::Result<()> {
        let [path, ..] = self.group.0.directories()[..] else { return Ok(()) };
        for line in read(&path.join("cgroup.procs"))?.lines() {
            let Ok(pid @ 1..) = line.parse::<i32>() else { continue };
            // ESRCH: it has ended meanwhile. Its number is in this group or free, and not another's.
            nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
        }
        Ok(())
    }

    /// Best effort: version 2 has it since Linux 5.2.
    fn freeze(&self, frozen: bool) {
        let (file, word) = match (&self.group.0, frozen) {
            (Layout::Unified(_), true) => ("cgroup.freeze", "1"),
            (Layout::Unified(_), false) => ("cgroup.freeze", "0"),
            (Layout::Split(_), true) => ("freezer.state", "FROZEN"),
            (Layout::Split(_), false) => ("freezer.state", "THAWED"),
        };
        if let Some(path) = self.group.0.of(Controller::Freezer) {
            fs::write(path.join(file), word).ok();
        }
    }
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(FILE_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "30 25 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
                      31 30 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
                      32 30 0:28 /pod7 /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      33 30 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
    const OWN: &str = "5:memory:/pod7/app\n4:cpu,cpuacct:/\n0::/\n";

    fn found(mounts: &str, own: &str, offered: &[Controller]) -> String {
        match Layout::find(mounts, own, |_| offered.to_vec()) {
            None => "none".to_owned(),
            Some(Layout::Unified(path)) => format!("2 {}", path.display()),
            Some(Layout::Split(paths)) => {
                let shown = paths.iter().map(|(one, path)| format!("{} {}", one.name(), path.display()));
                shown.collect::<Vec<_>>().join(", ")
            }
        }
    }

    #[test]
    fn version_1_is_used_where_version_2_has_no_controllers() {
        let expected = "cpu /sys/fs/cgroup/cpu, cpuacct /sys/fs/cgroup/cpu, memory /sys/fs/cgroup/memory/app";
        assert_eq!(found(V1, OWN, &[]), expected);
    }

    #[test]
    fn version_2_is_used_where_it_limits_all_that_version_1_would() {
        let mount = "25 20 0:22 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup rw\n";
        assert_eq!(found(mount, "0::/a/b\n", &Controller::LIMITING), "2 /sys/fs/cgroup/a/b");
        assert_eq!(found(mount, "0::/a/b\n", &[]), "2 /sys/fs/cgroup/a/b");
        // As on Linux 4.14: without the CPU's.
        assert!(found(V1, OWN, &[Controller::Memory, Controller::Pids]).starts_with("cpu "));
        assert_eq!(found("", OWN, &[]), "none");
    }
}
