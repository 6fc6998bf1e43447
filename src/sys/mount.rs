//! Mounts of a machine's init: the file systems of the kernel, and a root that can be pivoted away from.

use std::{io, path::Path};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::statfs::{FsType, TMPFS_MAGIC, statfs},
};

/// A file system to mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// The kernel's name of the file system.
    pub kind: &'static str,
    /// Where; made if it is missing.
    pub target: String,
    /// Whether programs in it may be executed.
    pub exec: bool,
    /// Whether it holds device nodes.
    pub devices: bool,
    /// Options of the file system, separated by commas.
    pub options: String,
}

impl Mount {
    /// Mounts it. A file system that is mounted there already is left as it is.
    pub fn perform(&self) -> io::Result<()> {
        let target = Path::new(&self.target);
        if !target.is_dir() {
            std::fs::create_dir_all(target)?;
        }
        let mut flags = MsFlags::MS_NOSUID;
        flags.set(MsFlags::MS_NOEXEC, !self.exec);
        flags.set(MsFlags::MS_NODEV, !self.devices);
        match mount(Some(self.kind), target, Some(self.kind), flags, Some(self.options.as_str())) {
            // The kernel says so of a devtmpfs or cgroup hierarchy that it mounted itself.
            Ok(()) | Err(nix::Error::EBUSY) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// Puts a mount of the initramfs over the initramfs itself, and enters it.
///
/// The kernel's first mount cannot be pivoted away from, and so no plugin could be given a root of its own by
/// `pivot_root`. A bind mount of the same files that is moved over it can, as AWS's init does it. `/run` only
/// lends its place.
pub fn replace_root() -> io::Result<()> {
    const PLACE: &str = "/run";
    if !Path::new(PLACE).is_dir() {
        std::fs::create_dir(PLACE)?;
    }
    let none = None::<&str>;
    mount(Some("/"), PLACE, none, MsFlags::MS_BIND, none)?;
    nix::unistd::chdir(PLACE)?;
    mount(Some("."), "/", none, MsFlags::MS_MOVE, none)?;
    nix::unistd::chroot(".")?;
    nix::unistd::chdir("/")?;
    Ok(mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?)
}

/// Whether a path is on a file system in memory, as everything is in an enclave.
pub fn is_in_memory(path: &Path) -> bool {
    /// Of the first file system of a kernel that has no tmpfs; `linux/magic.h`.
    const RAMFS_MAGIC: FsType = FsType(0x8584_58f6);
    statfs(path).is_ok_and(|stat| [TMPFS_MAGIC, RAMFS_MAGIC].contains(&stat.filesystem_type()))
}

/// Whether the kernel has a kind of file system, loaded.
pub fn knows(kind: &str) -> bool {
    let kinds = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    kinds.lines().any(|line| line.split_whitespace().last() == Some(kind))
}

/// Unmounts what is mounted at `target`, also while it is in use.
pub fn unmount(target: &str) -> io::Result<()> {
    Ok(umount2(target, MntFlags::MNT_DETACH)?)
}
