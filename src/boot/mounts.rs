//! The file systems that the init of a machine mounts, in order.

use std::{fs, io, os::unix::fs::symlink};

use super::cgroups::{self, CgroupVersion};
use crate::sys::{self, mount::Mount};

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

/// Mounts the cgroup hierarchies for this kernel; each with what became of it. /proc and /sys must be there.
pub(super) fn cgroups(wanted: Option<CgroupVersion>) -> Vec<(Mount, io::Result<()>)> {
    // A kernel without cgroups has no such file; then there is nothing to mount.
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let (filesystems, controllers) = (read("/proc/filesystems"), read("/proc/cgroups"));
    let perform = |mounts: Vec<Mount>| mounts.into_iter().map(|mount| (mount.perform(), mount));
    let mounted: Vec<_> = perform(cgroups::plan(wanted, &filesystems, &controllers)).collect();
    let is_version_2 = mounted.first().is_some_and(|(done, mount)| mount.kind == "cgroup2" && done.is_ok());
    let offered = read(&format!("{}/cgroup.controllers", cgroups::ROOT));
    let is_left = wanted.is_none() && is_version_2 && !cgroups::is_complete(&offered, &controllers);
    let mounted = if is_left && sys::mount::unmount(cgroups::ROOT).is_ok() {
        perform(cgroups::plan(Some(CgroupVersion::V1), &filesystems, &controllers)).collect()
    } else {
        mounted
    };
    mounted.into_iter().map(|(done, mount)| (mount, done)).collect()
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
