//! Which cgroup hierarchies the init of a machine mounts. Pure.
//!
//! Version 2 is there since Linux 4.5, and without the CPU controller until 4.15: the kernel that ships with
//! nitro-cli has it and can limit no CPU with it. So it is looked at after it has been mounted.

use clap::ValueEnum;

use crate::sys::mount::Mount;

/// Where they are mounted.
pub const ROOT: &str = "/sys/fs/cgroup";
/// The controllers that plugins are limited by.
const LIMITING: [&str; 3] = ["cpu", "memory", "pids"];

/// A version of the kernel's control groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CgroupVersion {
    /// The unified hierarchy.
    V2,
    /// One hierarchy for each controller.
    V1,
}

/// The mounts for `wanted`; without it for version 2 where the kernel has it (4.5), and version 1 otherwise.
///
/// `filesystems` and `controllers` are the contents of `/proc/filesystems` and `/proc/cgroups`. Version 1 is
/// mounted as AWS's init does it: each enabled controller in a directory of its own name.
pub fn plan(wanted: Option<CgroupVersion>, filesystems: &str, controllers: &str) -> Vec<Mount> {
    let has_v2 = filesystems.lines().any(|line| line.split_whitespace().last() == Some("cgroup2"));
    let version = wanted.unwrap_or(if has_v2 { CgroupVersion::V2 } else { CgroupVersion::V1 });
    let mount = |kind, target: String, options: &str| Mount {
        kind,
        target,
        exec: false,
        devices: false,
        options: options.to_owned(),
    };
    match version {
        CgroupVersion::V2 => vec![mount("cgroup2", ROOT.to_owned(), "")],
        CgroupVersion::V1 => {
            let hierarchies =
                enabled(controllers).map(|name| mount("cgroup", format!("{ROOT}/{name}"), name));
            std::iter::once(mount("tmpfs", ROOT.to_owned(), "mode=0755")).chain(hierarchies).collect()
        }
    }
}

/// Whether version 2 offers all that plugins are limited by, as far as the kernel has it at all. `offered` is
/// the content of the mounted hierarchy's `cgroup.controllers`.
pub fn is_complete(offered: &str, controllers: &str) -> bool {
    let has = |name: &str| offered.split_whitespace().any(|known| known == name);
    enabled(controllers).filter(|name| LIMITING.contains(name)).all(has)
}

/// The enabled controllers of `/proc/cgroups`: name, hierarchy, number of cgroups, enabled.
fn enabled(controllers: &str) -> impl Iterator<Item = &str> {
    controllers.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
        let mut fields = line.split_whitespace();
        let name = fields.next()?;
        (fields.nth(2) == Some("1")).then_some(name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTROLLERS: &str = "#subsys_name\thierarchy\tnum_cgroups\tenabled\n\
                               cpu\t0\t1\t1\nmemory\t0\t1\t0\npids\t0\t1\t1\n";

    fn targets(wanted: Option<CgroupVersion>, filesystems: &str) -> String {
        let mounts = plan(wanted, filesystems, CONTROLLERS);
        let shown = mounts.iter().map(|mount| format!("{} {} {}", mount.kind, mount.target, mount.options));
        shown.collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn version_2_is_mounted_where_the_kernel_has_it() {
        let both = "nodev\tproc\nnodev\tcgroup\nnodev\tcgroup2\n\text4\n";
        assert_eq!(targets(None, both), "cgroup2 /sys/fs/cgroup ");
    }

    #[test]
    fn a_version_2_that_lacks_a_controller_which_the_kernel_has_is_not_complete() {
        // As on Linux 4.14; the memory controller of these is disabled.
        assert!(!is_complete("io memory pids\n", CONTROLLERS));
        assert!(is_complete("cpuset cpu io pids\n", CONTROLLERS));
        assert!(is_complete("", ""));
    }

    #[test]
    fn version_1_is_mounted_with_each_enabled_controller_on_an_old_kernel_or_when_it_is_asked_for() {
        let expected =
            "tmpfs /sys/fs/cgroup mode=0755\ncgroup /sys/fs/cgroup/cpu cpu\ncgroup /sys/fs/cgroup/pids pids";
        assert_eq!(targets(None, "nodev\tcgroup\n"), expected);
        assert_eq!(targets(Some(CgroupVersion::V1), "nodev\tcgroup2\n"), expected);
    }
}
