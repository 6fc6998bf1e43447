//! The same content under an init like AWS's: it forks, takes a session, executes what `/cmd` names with the
//! environment in `/env`, waits, and resets the machine. The supervisor is its child.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf, process::Command};

use nix::unistd::geteuid;

use crate::{not_run, scene::Scene};

/// What the first process of the bootstrap does, in the order of AWS's init. Its mounts are made beneath the
/// new root, because a shell has nothing to execute once it has entered it; the modules are what its kernel
/// has built in.
const INIT: &str = r#"#!/bin/busybox sh
b=/bin/busybox
$b mount -t devtmpfs dev /dev
exec </dev/console >/dev/console 2>&1
for module in /lib/*.ko; do $b [ -e $module ] && $b insmod $module; done
while read -r variable; do export "$variable"; done < /env
set --
while read -r word; do set -- "$@" "$word"; done < /cmd
$b rm /env /cmd
$b cp /bin/busybox /rootfs/busybox
$b mount --bind /rootfs /rootfs
cd /rootfs
$b mount -t devtmpfs dev dev
$b mount -t proc proc proc
$b mkdir -p run tmp sys dev/shm dev/pts
$b ln -s /proc/self/fd dev/fd
$b mount -t tmpfs -o mode=0755 run run
$b mount -t tmpfs tmp tmp
$b mount -t tmpfs shm dev/shm
$b mount -t devpts devpts dev/pts
$b mount -t sysfs sys sys
$b mount -t tmpfs cgroup sys/fs/cgroup
while read -r name hierarchy count enabled; do
    $b [ "$enabled" = 1 ] || continue
    $b mkdir sys/fs/cgroup/$name
    $b mount -t cgroup -o $name cgroup sys/fs/cgroup/$name
done < proc/cgroups
$b mount --move . /
exec $b chroot . /busybox sh -c '/busybox setsid "$@" & wait; /busybox echo child ended; /busybox reboot -f' init "$@"
"#;

/// A bootstrap ramdisk with that init and these modules, or none where it cannot be made.
pub(crate) fn bootstrap(scene: &Scene, modules: &[PathBuf]) -> Option<PathBuf> {
    if !geteuid().is_root() {
        not_run("a device node for the bootstrap ramdisk can be made by root alone");
        return None;
    }
    let root = scene.path("bootstrap");
    for directory in ["bin", "dev", "lib", "proc", "rootfs"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    fs::write(root.join("init"), INIT).unwrap();
    fs::set_permissions(root.join("init"), fs::Permissions::from_mode(0o755)).unwrap();
    for (index, module) in modules.iter().enumerate() {
        let copy = root.join(format!("lib/{index}.ko"));
        if module.extension().is_some_and(|extension| extension == "xz") {
            let output = Command::new("busybox").args(["xzcat"]).arg(module).output().unwrap();
            assert!(output.status.success());
            fs::write(copy, output.stdout).unwrap();
        } else {
            fs::copy(module, copy).unwrap();
        }
    }
    let ramdisk = scene.path("bootstrap.cpio");
    let script = "cd \"$1\" && mknod dev/console c 5 1 && find . | busybox cpio -o -H newc > \"$2\"";
    let made = Command::new("sh").args(["-c", script, "sh"]).args([&root, &ramdisk]).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    Some(ramdisk)
}

/// The modules that Debian's kernel has for what AWS's kernel has built in.
pub(crate) fn debian_modules() -> Vec<PathBuf> {
    let mut trees: Vec<PathBuf> = fs::read_dir("/lib/modules")
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_str().is_some_and(|path| path.contains("cloud")))
        .collect();
    trees.sort();
    let tree = trees.pop().expect("Debian's cloud kernel: run `cargo xtask test`");
    let vsock = ["vsock", "vmw_vsock_virtio_transport_common", "vmw_vsock_virtio_transport"]
        .map(|name| format!("net/vmw_vsock/{name}"));
    let all = vsock.into_iter().chain(["fs/overlayfs/overlay".to_owned()]);
    all.map(|name| tree.join("kernel").join(format!("{name}.ko.xz"))).collect()
}
