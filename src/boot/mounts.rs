//! The file systems that the init of a machine mounts, in order.

use std::{fs, io, os::unix::fs::symlink};

use super::cgroups::{self, CgroupVersion};
use crate::sys::mount::Mount;

/// The links that programs expect in /dev, as AWS's init makes them.
const LINKS: [(&str, &str); 4] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
];

/// The kernel's processes and settings.
pub(super) fn proc() -> Mount {
    plain("proc", "/proc", "")
}

/// Everything but cgroups. With each, whether nothing works without it.
pub(super) fn kernel() -> Vec<(Mount, bool)> {
    let devices = Mount { devices: true, ..plain("devtmpfs", "/dev", "mode=0755") };
    let terminals = Mount { devices: true, ..plain("devpts", "/dev/pts", "mode=0620,ptmxmode=0666") };
    let temporary = |target, mode| Mount { exec: true, ..plain("tmpfs", target, mode) };
    vec![
        (devices, true),
        (proc(), true),
        (plain("sysfs", "/sys", ""), false),
        (temporary("/run", "mode=0755"), true),
        (temporary("/tmp", "mode=1777"), false),
        (plain("tmpfs", "/dev/shm", "mode=1777"), false),
        (terminals, false),
    ]
}

/// The cgroup hierarchies for this kernel. /proc must be mounted.
pub(super) fn cgroups(wanted: Option<CgroupVersion>) -> Vec<Mount> {
    // A kernel without cgroups has no such file; then there is nothing to mount.
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    cgroups::plan(wanted, &read("/proc/filesystems"), &read("/proc/cgroups"))
}

/// Makes [`LINKS`].
pub(super) fn link_descriptors() -> io::Result<()> {
    for (link, target) in LINKS {
        match symlink(target, link) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn plain(kind: &'static str, target: &str, options: &str) -> Mount {
    Mount { kind, target: target.to_owned(), exec: false, devices: false, options: options.to_owned() }
}
