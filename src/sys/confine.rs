//! The steps that make a process of ours a plugin's: groups, namespaces, mounts, user, rights.
//!
//! They are worked out once for each plugin (`Step`s are plain data), and taken for each run by a child
//! that still shares this process's memory (see [`super::spawn`]). So a step is system calls and nothing
//! else: no lock, no C library function that looks at other threads (setuid of a C library does), nothing
//! that has to be given back.

use std::{
    ffi::{CStr, CString},
    fmt,
    os::fd::{AsRawFd, OwnedFd},
    sync::Arc,
};

use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
    sys::{resource::Resource, signal::Signal, stat::Mode},
};
use seccompiler::BpfProgram;

use super::capability::Confinement;

/// A bind mount with everything mounted beneath.
pub const BIND: MsFlags = MsFlags::MS_BIND.union(MsFlags::MS_REC);

/// Who a plugin runs as. It has no supplementary groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// One step, with all it needs.
#[derive(Debug)]
pub(super) enum Step {
    /// Leads a session of its own.
    Session,
    /// Joins a network namespace.
    Network(OwnedFd),
    /// Takes the present control groups for the root of all it sees. Since Linux 4.6.
    GroupNamespace,
    /// Writes a file of the kernel's.
    Write { file: CString, text: String, needed: bool },
    /// Keeps mounts from here on to itself.
    PrivateMounts,
    /// Makes a directory unless there is one.
    Directory(CString),
    /// Mounts something.
    Mount {
        kind: Option<&'static CStr>,
        source: CString,
        target: CString,
        flags: MsFlags,
        data: Option<CString>,
    },
    /// Makes the working directory the root, and leaves nothing of the old one.
    Root,
    /// Sets the host name.
    Hostname(String),
    /// Sets which rights new files do not get.
    Mask(u32),
    /// Makes a device node that everybody may use.
    Device { path: CString, device: libc::dev_t },
    /// Makes an empty file to mount over.
    File(CString),
    /// Makes a symbolic link.
    Link { path: CString, target: CString },
    /// Makes a directory the working directory.
    Enter(CString),
    /// Sets the limit of a resource, soft and hard.
    Limit { resource: Resource, most: u64 },
    /// Takes capabilities from whatever is executed.
    Bound(Arc<Confinement>),
    /// Becomes a user, `alone` without supplementary groups.
    User { identity: Identity, alone: bool },
    /// Takes capabilities from this process.
    Keep { confinement: Arc<Confinement>, root: bool },
    /// Dies when the thread that started it dies.
    DieWithParent,
    /// Gives up gaining rights by executing, and all system calls but those that the filter lets through.
    Filter(BpfProgram),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Session => f.write_str("start a session"),
            Self::Network(_) => f.write_str("join the network namespace"),
            Self::GroupNamespace => f.write_str("take a control group namespace"),
            Self::Write { file, .. } => write!(f, "write {}", file.to_string_lossy()),
            Self::PrivateMounts => f.write_str("make the mounts private"),
            Self::Directory(path) | Self::File(path) => write!(f, "make {}", path.to_string_lossy()),
            Self::Mount { target, .. } => write!(f, "mount {}", target.to_string_lossy()),
            Self::Root => f.write_str("enter the root file system"),
            Self::Hostname(_) => f.write_str("set the host name"),
            Self::Mask(_) => f.write_str("set the file mode mask"),
            Self::Device { path, .. } | Self::Link { path, .. } => {
                write!(f, "make {}", path.to_string_lossy())
            }
            Self::Enter(path) => write!(f, "enter the working directory {}", path.to_string_lossy()),
            Self::Limit { resource, .. } => write!(f, "set {resource:?}"),
            Self::Bound(_) | Self::Keep { .. } => f.write_str("drop capabilities"),
            Self::User { identity, .. } => write!(f, "become user {}:{}", identity.uid, identity.gid),
            Self::DieWithParent => f.write_str("follow the supervisor's death"),
            Self::Filter(_) => f.write_str("filter system calls"),
        }
    }
}

impl Step {
    /// Takes it.
    pub(super) fn take(&self) -> nix::Result<()> {
        match self {
            Self::Session => nix::unistd::setsid().map(drop),
            Self::Network(namespace) => setns(namespace, CloneFlags::CLONE_NEWNET),
            Self::GroupNamespace => match unshare(CloneFlags::CLONE_NEWCGROUP) {
                Err(Errno::EINVAL) => Ok(()),
                taken => taken,
            },
            Self::Write { file, text, needed } => {
                write_file(file, text).or_else(|errno| if *needed { Err(errno) } else { Ok(()) })
            }
            Self::PrivateMounts => {
                let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
                mount(None::<&CStr>, c"/", None::<&CStr>, flags, None::<&CStr>)
            }
            Self::Directory(path) => {
                match nix::unistd::mkdir(path.as_c_str(), Mode::from_bits_truncate(0o755)) {
                    Err(Errno::EEXIST) => Ok(()),
                    made => made,
                }
            }
            Self::Mount { kind, source, target, flags, data } => {
                mount(Some(source.as_c_str()), target.as_c_str(), *kind, *flags, data.as_deref())
            }
            Self::Root => enter(),
            Self::Hostname(name) => nix::unistd::sethostname(name),
            Self::Mask(mask) => {
                nix::sys::stat::umask(Mode::from_bits_truncate(*mask));
                Ok(())
            }
            Self::Device { path, device } => {
                let mode = Mode::from_bits_truncate(0o666);
                nix::sys::stat::mknod(path.as_c_str(), nix::sys::stat::SFlag::S_IFCHR, mode, *device)
            }
            Self::File(path) => {
                nix::sys::stat::mknod(path.as_c_str(), nix::sys::stat::SFlag::S_IFREG, Mode::empty(), 0)
            }
            Self::Link { path, target } => {
                nix::unistd::symlinkat(target.as_c_str(), nix::fcntl::AT_FDCWD, path.as_c_str())
            }
            Self::Enter(path) => nix::unistd::chdir(path.as_c_str()),
            Self::Limit { resource, most } => limit(*resource, *most),
            Self::Bound(confinement) => confinement.bound().map_err(|_| Errno::last()),
            Self::User { identity, alone } => become_user(*identity, *alone),
            Self::Keep { confinement, root } => confinement.keep(*root).map_err(|_| Errno::last()),
            Self::DieWithParent => nix::sys::prctl::set_pdeathsig(Signal::SIGKILL),
            Self::Filter(program) => seccompiler::apply_filter(program).map_err(|_| Errno::last()),
        }
    }
}

fn write_file(file: &CStr, text: &str) -> nix::Result<()> {
    use nix::fcntl::{OFlag, open};
    let file = open(file, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    // SAFETY: the descriptor is open, and the pointer and length are the text's.
    let written = unsafe { libc::write(file.as_raw_fd(), text.as_ptr().cast(), text.len()) };
    Errno::result(written).map(drop)
}

/// Makes a mount the root, and drops the old one: nothing of it is left to find a way back to, as a chroot
/// would leave it to a plugin that runs as root.
fn enter() -> nix::Result<()> {
    // Both at one place: the old root lies over the new one, and is what is unmounted.
    nix::unistd::pivot_root(c".", c".")?;
    umount2(c".", MntFlags::MNT_DETACH)?;
    nix::unistd::chdir(c"/")
}

/// The kernel is asked directly, here and in [`become_user`]: a C library would do it for every thread it
/// knows, and those are the supervisor's.
fn limit(resource: Resource, most: u64) -> nix::Result<()> {
    let both = [most, most];
    let old = std::ptr::null_mut::<u64>();
    // SAFETY: the kernel reads one `rlimit64`, two 64-bit numbers; a null pointer for the old one is allowed.
    let done = unsafe { libc::syscall(libc::SYS_prlimit64, 0, resource as libc::c_long, both.as_ptr(), old) };
    Errno::result(done).map(drop)
}

fn become_user(Identity { uid, gid }: Identity, alone: bool) -> nix::Result<()> {
    if alone {
        // SAFETY: no group is read from the null pointer.
        let done = unsafe { libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<u32>()) };
        Errno::result(done)?;
    }
    // SAFETY: the call takes numbers only.
    Errno::result(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) })?;
    // SAFETY: the call takes numbers only.
    Errno::result(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) }).map(drop)
}
