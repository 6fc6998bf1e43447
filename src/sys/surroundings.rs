//! What every plugin finds around its own files: /proc without the machine's secrets, and a /dev in which
//! nothing leads anywhere. The same steps serve all plugins, and are kept once: those around the root are
//! taken in its directory, with paths relative to it.

use std::{
    ffi::{CStr, CString},
    io,
    os::unix::ffi::OsStrExt,
    path::Path,
    sync::Arc,
};

use nix::{
    mount::MsFlags,
    sys::{
        resource::{Resource, getrlimit},
        statvfs::{FsFlags, statvfs},
    },
    unistd::Uid,
};

use super::{
    confine::{BIND, Step},
    mount,
};

/// Open files: Docker's limit. Ours is the kernel's, and programs that close every number they may have
/// would take seconds to start.
const OPEN_FILES_MAX: u64 = 1 << 20;
/// Size of /dev, which has no files but nodes and links, and of what hides a directory.
const DEV_BYTES: u64 = 64 << 10;
/// Files that even the smallest file system has.
const FILES_MIN: u64 = 64;
/// Size of /dev/shm, in bytes: Docker's.
const SHM_BYTES: u64 = 64 << 20;
/// Bytes of a file system for a file in it: twice the kernel's own measure for one in memory, so that empty
/// files cannot cost much more than full ones.
const BYTES_PER_FILE: u64 = 8 << 10;
/// Devices that every plugin has, with their minor numbers; the major one is 1. None of them leads anywhere.
pub(super) const DEVICES: [(&str, u32); 5] =
    [("null", 3), ("zero", 5), ("full", 7), ("random", 8), ("urandom", 9)];
const MEMORY_DEVICES: u32 = 1;
const DEVICE_LINKS: [(&str, &CStr); 5] = [
    ("fd", c"/proc/self/fd"),
    ("stdin", c"/proc/self/fd/0"),
    ("stdout", c"/proc/self/fd/1"),
    ("stderr", c"/proc/self/fd/2"),
    ("ptmx", c"pts/ptmx"),
];
/// What a plugin that is root must not write to, as Docker has it.
const PROC_READ_ONLY: [&str; 5] = ["bus", "fs", "irq", "sys", "sysrq-trigger"];
/// What tells of the whole machine, as Docker hides it.
const PROC_HIDDEN: [&str; 10] = [
    "acpi",
    "asound",
    "kcore",
    "keys",
    "latency_stats",
    "timer_list",
    "timer_stats",
    "sched_debug",
    "scsi",
    "interrupts",
];

/// The steps that all isolated plugins share.
#[derive(Debug)]
pub struct Surroundings {
    /// Taken first of all.
    pub(super) opening: Arc<[Step]>,
    /// Taken once the plugin's root is the working directory.
    pub(super) around: Arc<[Step]>,
    /// Taken when all mounts are there: from here on it is the root.
    pub(super) inside: Arc<[Step]>,
}

impl Surroundings {
    /// Works them out for this kernel.
    pub fn new() -> io::Result<Self> {
        let mut list = List::default();
        list.add(Step::Session);
        // The supervisor's own is the least of all; a plugin is an ordinary victim.
        list.write(c"/proc/self/oom_score_adj", "0", false);
        list.add(Step::PrivateMounts);
        list.add(Step::Mask(0));
        let opening = list.part();
        list.proc()?;
        list.devices()?;
        let around = list.part();
        list.add(Step::Root);
        list.add(Step::Mask(0o022));
        list.limits()?;
        Ok(Self { opening, around, inside: list.part() })
    }
}

/// A list of steps while it is written.
#[derive(Debug, Default)]
pub(super) struct List(Vec<Step>);

impl List {
    pub(super) fn add(&mut self, step: Step) {
        self.0.push(step);
    }

    /// What it has so far; it is empty then.
    pub(super) fn part(&mut self) -> Arc<[Step]> {
        std::mem::take(&mut self.0).into()
    }

    pub(super) fn write(&mut self, file: &CStr, text: &str, needed: bool) {
        self.add(Step::Write { file: file.to_owned(), text: text.to_owned(), needed });
    }

    pub(super) fn limits(&mut self) -> io::Result<()> {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        self.add(Step::Limit { resource: Resource::RLIMIT_NOFILE, most: hard.min(OPEN_FILES_MAX) });
        // An enclave has nowhere to keep a memory image, and nobody who may see it.
        self.add(Step::Limit { resource: Resource::RLIMIT_CORE, most: 0 });
        Ok(())
    }

    fn proc(&mut self) -> io::Result<()> {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        let proc = Path::new("proc");
        let (source, target) = (c"proc".to_owned(), path(proc)?);
        self.add(Step::Mount { kind: Some(c"proc"), source, target, flags, data: None });
        let here = |name: &&&str| Path::new("/proc").join(name).exists();
        for name in PROC_READ_ONLY.iter().filter(here) {
            let target = proc.join(name);
            self.bind(&target, &target, false)?;
            self.remount(&target, flags | MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY)?;
        }
        for name in PROC_HIDDEN.iter().filter(here) {
            let target = proc.join(name);
            if Path::new("/proc").join(name).is_dir() {
                self.memory(&target, DEV_BYTES, 0o755, flags | MsFlags::MS_RDONLY)?;
            } else {
                self.bind(Path::new("/dev/null"), &target, false)?;
            }
        }
        Ok(())
    }

    fn devices(&mut self) -> io::Result<()> {
        let dev = Path::new("dev");
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
        self.memory(dev, DEV_BYTES, 0o755, flags)?;
        let makes_devices = in_first_user_namespace()?;
        for (name, minor) in DEVICES {
            let target = dev.join(name);
            if makes_devices {
                let device = nix::sys::stat::makedev(MEMORY_DEVICES.into(), minor.into());
                self.add(Step::Device { path: path(&target)?, device });
            } else {
                self.add(Step::File(path(&target)?));
                self.bind(&Path::new("/dev").join(name), &target, false)?;
            }
        }
        for (name, target) in DEVICE_LINKS {
            self.add(Step::Link { path: path(&dev.join(name))?, target: target.to_owned() });
        }
        let (shm, pts) = (dev.join("shm"), dev.join("pts"));
        self.add(Step::Directory(path(&shm)?));
        self.add(Step::Directory(path(&pts)?));
        self.memory(&shm, SHM_BYTES, 0o1777, flags | MsFlags::MS_NODEV)?;
        // A kernel may be built without terminals (CONFIG_UNIX98_PTYS); plugins start there all the same.
        if mount::knows("devpts") {
            let (source, target) = (c"devpts".to_owned(), path(&pts)?);
            let data = Some(c"newinstance,ptmxmode=0666,mode=0620".to_owned());
            self.add(Step::Mount { kind: Some(c"devpts"), source, target, flags, data });
        }
        // No other node is made here, whatever the plugin's rights.
        self.remount(dev, flags | MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY)
    }

    pub(super) fn bind(&mut self, source: &Path, target: &Path, read_only: bool) -> io::Result<()> {
        let (from, to) = (path(source)?, path(target)?);
        self.add(Step::Mount { kind: None, source: from, target: to, flags: BIND, data: None });
        if read_only { self.read_only(source, target) } else { Ok(()) }
    }

    /// Takes the right to write from a bind mount of `source`. In a user namespace the flags of the original
    /// mount are locked: a remount must repeat them.
    pub(super) fn read_only(&mut self, source: &Path, target: &Path) -> io::Result<()> {
        let had = statvfs(source)?.flags();
        let mut flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        let root = Uid::effective().is_root();
        flags.set(MsFlags::MS_NOSUID, root || had.contains(FsFlags::ST_NOSUID));
        flags.set(MsFlags::MS_NODEV, root || had.contains(FsFlags::ST_NODEV));
        flags.set(MsFlags::MS_NOEXEC, had.contains(FsFlags::ST_NOEXEC));
        self.remount(target, flags)
    }

    fn remount(&mut self, target: &Path, flags: MsFlags) -> io::Result<()> {
        let (source, target) = (c"none".to_owned(), path(target)?);
        self.add(Step::Mount { kind: None, source, target, flags, data: None });
        Ok(())
    }

    /// A file system in memory of at most so many bytes.
    pub(super) fn memory(&mut self, target: &Path, bytes: u64, mode: u32, flags: MsFlags) -> io::Result<()> {
        let files = (bytes / BYTES_PER_FILE).max(FILES_MIN);
        let data = CString::new(format!("size={bytes},nr_inodes={files},mode={mode:o}"))?;
        let (kind, source, target) = (Some(c"tmpfs"), c"tmpfs".to_owned(), path(target)?);
        self.add(Step::Mount { kind, source, target, flags, data: Some(data) });
        Ok(())
    }
}

/// Whether this process's root is the machine's: no other makes device nodes. A kernel without user
/// namespaces has no other.
fn in_first_user_namespace() -> io::Result<bool> {
    match std::fs::read_to_string("/proc/self/uid_map") {
        Ok(map) => Ok(map.split_whitespace().eq(["0", "0", "4294967295"])),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error),
    }
}

/// A path as the kernel takes it.
pub(super) fn path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}
