//! From what a plugin's process shall be to the steps that make it one.

use std::{
    ffi::{CStr, CString},
    io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::{
    mount::MsFlags,
    sched::CloneFlags,
    sys::{
        resource::{Resource, getrlimit},
        statvfs::{FsFlags, statvfs},
    },
    unistd::{Gid, Uid},
};

use super::{
    capability::Capabilities,
    cgroup::Cgroup,
    confine::{BIND, Identity, Step},
    netns::NetworkNamespace,
    seccomp,
    spawn::{Failure, Program, Recipe},
};

/// Size of /dev, which has no files but nodes and links, and of what hides a directory.
const DEV_BYTES: u64 = 64 << 10;
/// Files that even the smallest file system has.
const FILES_MIN: u64 = 64;
/// Size of /dev/shm, in bytes: Docker's.
const SHM_BYTES: u64 = 64 << 20;
/// Bytes of a file system for a file in it: twice the kernel's own measure for one in memory, so that empty
/// files cannot cost much more than full ones.
const BYTES_PER_FILE: u64 = 8 << 10;
/// Open files: Docker's limit. Ours is the kernel's, and programs that close every number they may have
/// would take seconds to start.
const OPEN_FILES_MAX: u64 = 1 << 20;
/// Devices that every plugin has, with their minor numbers; the major one is 1. None of them leads anywhere.
const DEVICES: [(&str, u32); 5] = [("null", 3), ("zero", 5), ("full", 7), ("random", 8), ("urandom", 9)];
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

/// A plugin's process.
#[derive(Debug)]
pub struct Launch<'a> {
    /// Its host name.
    pub name: String,
    /// Program and arguments; the program is looked up in `PATH` within the root when it has no slash.
    pub argv: Vec<String>,
    /// The whole environment.
    pub env: Vec<(String, String)>,
    /// Working directory within the root.
    pub cwd: String,
    /// The image's root file system.
    pub root: PathBuf,
    /// What is done with it.
    pub writes: Writes,
    /// Mounted in order.
    pub binds: Vec<Bind>,
    /// User and group.
    pub identity: Identity,
    /// What it may do beyond that.
    pub capabilities: Capabilities,
    /// Its network; the supervisor's own without.
    pub network: Option<&'a NetworkNamespace>,
    /// Its control group.
    pub cgroup: Option<&'a Cgroup>,
}

/// Where a plugin's writes to its root file system go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Writes {
    /// Nowhere: they fail.
    Refused,
    /// Into the image's files, and stay there for the next run.
    Image,
    /// Into memory of its own, which the next run does not find.
    Layer {
        /// An empty directory for it, outside.
        directory: PathBuf,
        /// The most it holds.
        bytes: u64,
    },
}

/// A bind mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    /// A file or directory outside.
    pub source: PathBuf,
    /// Where it appears: a path outside, beneath the image's root, free of symlinks, already there.
    pub target: PathBuf,
    /// Mounted read-only.
    pub read_only: bool,
}

impl Recipe {
    /// Works out how to start it. Without root's rights it gets less: a mount namespace and a root of its
    /// own, as this process's user.
    pub fn new(launch: &Launch<'_>, init: Arc<Program>) -> Result<Self, Failure> {
        let root = Uid::effective().is_root();
        let mut steps = Steps { launch, root: launch.root.clone(), list: vec![Step::Session] };
        let invalid = |error| Failure::of("prepare the start", &error);
        if root { steps.isolate() } else { steps.unprivileged() }.map_err(invalid)?;
        let filter = seccomp::filter(&launch.capabilities)
            .map_err(|error| Failure::of("make the filter", &io::Error::other(error)))?;
        steps.list.push(Step::DieWithParent);
        steps.list.push(Step::Filter(Arc::new(filter)));
        let mut namespaces = CloneFlags::CLONE_NEWNS;
        namespaces |= if root {
            CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS
        } else {
            CloneFlags::CLONE_NEWUSER
        };
        let text = |text: &str| CString::new(text).map_err(|error| invalid(error.into()));
        let words = launch.argv.iter().map(|word| text(word)).collect::<Result<Vec<_>, _>>()?;
        let variables = launch.env.iter().map(|(name, value)| text(&format!("{name}={value}")));
        Ok(Self {
            namespaces,
            steps: steps.list,
            words: init.words().iter().cloned().chain(words).collect(),
            variables: variables.collect::<Result<_, _>>()?,
            init,
        })
    }
}

/// The list while it is written.
struct Steps<'a> {
    launch: &'a Launch<'a>,
    /// Where the root is mounted.
    root: PathBuf,
    list: Vec<Step>,
}

impl Steps<'_> {
    fn isolate(&mut self) -> io::Result<()> {
        let launch = self.launch;
        if let Some(cgroup) = &launch.cgroup {
            self.list.push(Step::Groups(cgroup.doors()?));
            self.list.push(Step::GroupNamespace);
        }
        if let Some(network) = &launch.network {
            self.list.push(Step::Network(network.descriptor()?));
        }
        // The supervisor's own is the least of all; a plugin is an ordinary victim.
        self.write(c"/proc/self/oom_score_adj", "0", false);
        self.list.push(Step::PrivateMounts);
        self.list.push(Step::Mask(0));
        self.file_systems()?;
        self.proc()?;
        self.devices()?;
        self.binds()?;
        self.list.push(Step::Root(path(&self.root)?));
        self.list.push(Step::Mask(0o022));
        self.list.push(Step::Hostname(launch.name.clone()));
        self.list.push(Step::Enter(CString::new(launch.cwd.as_str())?));
        self.limits()?;
        let confinement = Arc::new(launch.capabilities.confinement().map_err(io::Error::other)?);
        self.list.push(Step::Bound(Arc::clone(&confinement)));
        self.list.push(Step::User { identity: launch.identity, alone: true });
        self.list.push(Step::Keep { confinement, root: launch.identity.uid == 0 });
        Ok(())
    }

    /// In a user namespace of its own, which is what it takes to mount anything.
    fn unprivileged(&mut self) -> io::Result<()> {
        let (uid, gid) = (Uid::effective(), Gid::effective());
        // Without this the kernel refuses an unprivileged gid map.
        self.write(c"/proc/self/setgroups", "deny", true);
        self.write(c"/proc/self/uid_map", &format!("{uid} {uid} 1"), true);
        self.write(c"/proc/self/gid_map", &format!("{gid} {gid} 1"), true);
        self.list.push(Step::PrivateMounts);
        // A mount of its own, because only a mount can become the root.
        self.bind(&self.launch.root.clone(), &self.root.clone(), false)?;
        self.bind(Path::new("/proc"), &self.root.join("proc"), false)?;
        for (device, _) in DEVICES {
            self.bind(&Path::new("/dev").join(device), &self.root.join("dev").join(device), false)?;
        }
        self.binds()?;
        if self.launch.writes == Writes::Refused {
            self.read_only(&self.launch.root.clone(), &self.root.clone())?;
        }
        self.list.push(Step::Root(path(&self.root)?));
        self.list.push(Step::Enter(CString::new(self.launch.cwd.as_str())?));
        self.limits()?;
        let confinement = Arc::new(self.launch.capabilities.confinement().map_err(io::Error::other)?);
        self.list.push(Step::Keep { confinement, root: false });
        Ok(())
    }

    /// The root file system itself.
    fn file_systems(&mut self) -> io::Result<()> {
        let flags = MsFlags::MS_NODEV | MsFlags::MS_NOSUID;
        let image = self.launch.root.clone();
        match &self.launch.writes {
            Writes::Image => self.bind(&image, &image, false),
            Writes::Refused => self.bind(&image, &image, true),
            Writes::Layer { directory, bytes } => {
                let (upper, work, root) =
                    (directory.join("upper"), directory.join("work"), directory.join("root"));
                self.memory(directory, *bytes, 0o755, flags)?;
                for directory in [&upper, &work, &root] {
                    self.list.push(Step::Directory(path(directory)?));
                }
                let data = format!(
                    "lowerdir={},upperdir={},workdir={}",
                    image.display(),
                    upper.display(),
                    work.display()
                );
                let (source, target) = (c"overlay".to_owned(), path(&root)?);
                let data = Some(CString::new(data)?);
                self.list.push(Step::Mount { kind: Some(c"overlay"), source, target, flags, data });
                self.root = root;
                Ok(())
            }
        }
    }

    fn proc(&mut self) -> io::Result<()> {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        let proc = self.root.join("proc");
        let (source, target) = (c"proc".to_owned(), path(&proc)?);
        self.list.push(Step::Mount { kind: Some(c"proc"), source, target, flags, data: None });
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
        let dev = self.root.join("dev");
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
        self.memory(&dev, DEV_BYTES, 0o755, flags)?;
        for (name, minor) in DEVICES {
            let device = nix::sys::stat::makedev(MEMORY_DEVICES.into(), minor.into());
            self.list.push(Step::Device { path: path(&dev.join(name))?, device });
        }
        for (name, target) in DEVICE_LINKS {
            self.list.push(Step::Link { path: path(&dev.join(name))?, target: target.to_owned() });
        }
        let (shm, pts) = (dev.join("shm"), dev.join("pts"));
        self.list.push(Step::Directory(path(&shm)?));
        self.list.push(Step::Directory(path(&pts)?));
        self.memory(&shm, SHM_BYTES, 0o1777, flags | MsFlags::MS_NODEV)?;
        let (source, target) = (c"devpts".to_owned(), path(&pts)?);
        let data = Some(c"newinstance,ptmxmode=0666,mode=0620".to_owned());
        self.list.push(Step::Mount { kind: Some(c"devpts"), source, target, flags, data });
        // No other node is made here, whatever the plugin's rights.
        self.remount(&dev, flags | MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY)
    }

    fn binds(&mut self) -> io::Result<()> {
        for Bind { source, target, read_only } in &self.launch.binds {
            let inside = target.strip_prefix(&self.launch.root).map_err(io::Error::other)?;
            let target = self.root.join(inside);
            self.bind(source, &target, *read_only)?;
        }
        Ok(())
    }

    fn bind(&mut self, source: &Path, target: &Path, read_only: bool) -> io::Result<()> {
        let (from, to) = (path(source)?, path(target)?);
        self.list.push(Step::Mount { kind: None, source: from, target: to, flags: BIND, data: None });
        if read_only { self.read_only(source, target) } else { Ok(()) }
    }

    /// Takes the right to write from a bind mount of `source`. In a user namespace the flags of the original
    /// mount are locked: a remount must repeat them.
    fn read_only(&mut self, source: &Path, target: &Path) -> io::Result<()> {
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
        self.list.push(Step::Mount { kind: None, source, target, flags, data: None });
        Ok(())
    }

    /// A file system in memory of at most so many bytes.
    fn memory(&mut self, target: &Path, bytes: u64, mode: u32, flags: MsFlags) -> io::Result<()> {
        let files = (bytes / BYTES_PER_FILE).max(FILES_MIN);
        let data = CString::new(format!("size={bytes},nr_inodes={files},mode={mode:o}"))?;
        let (kind, source, target) = (Some(c"tmpfs"), c"tmpfs".to_owned(), path(target)?);
        self.list.push(Step::Mount { kind, source, target, flags, data: Some(data) });
        Ok(())
    }

    fn limits(&mut self) -> io::Result<()> {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        self.list.push(Step::Limit { resource: Resource::RLIMIT_NOFILE, most: hard.min(OPEN_FILES_MAX) });
        // An enclave has nowhere to keep a memory image, and nobody who may see it.
        self.list.push(Step::Limit { resource: Resource::RLIMIT_CORE, most: 0 });
        Ok(())
    }

    fn write(&mut self, file: &CStr, text: &str, needed: bool) {
        self.list.push(Step::Write { file: file.to_owned(), text: text.to_owned(), needed });
    }
}

fn path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}
