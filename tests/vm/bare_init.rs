//! The peer of the boot benchmark: an init that only mounts what the kernel has, loads the image's modules
//! and connects to its host, whose CID is 2 under QEMU. It stands in for `/init` in the same image.

use std::{
    ffi::CString,
    fs::{self, File},
    io::{Read, Write},
};

use nix::{
    kmod::{ModuleInitFlags, finit_module},
    mount::{MsFlags, mount},
};
use vsock::{VMADDR_CID_HOST, VsockStream};

/// The port and the byte of the boot heartbeat.
const HEARTBEAT: (u32, u8) = (9000, 0xB7);

fn main() {
    // Whatever fails shows: the benchmark waits in vain.
    for (kind, target) in [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys"), ("tmpfs", "/run")] {
        mount(Some(kind), target, Some(kind), MsFlags::empty(), None::<&str>).ok();
    }
    let no_parameters = CString::default();
    for module in fs::read_to_string("/etc/enclave/modules").unwrap_or_default().lines() {
        if let Ok(file) = File::open(module) {
            finit_module(file, &no_parameters, ModuleInitFlags::empty()).ok();
        }
    }
    if let Ok(mut host) = VsockStream::connect_with_cid_port(VMADDR_CID_HOST, HEARTBEAT.0) {
        host.write_all(&[HEARTBEAT.1]).ok();
        host.read_exact(&mut [0]).ok();
    }
    loop {
        std::thread::park();
    }
}
