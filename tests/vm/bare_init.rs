//! The peer of the boot benchmark: an init that only mounts what the kernel has, loads the image's modules
//! and answers on the control port. It stands in for `/init` in the same image.

use std::{
    ffi::CString,
    fs::{self, File},
    io::{Read, Write},
};

use enclave_protocol::control::CONTROL_PORT;
use nix::{
    kmod::{ModuleInitFlags, finit_module},
    mount::{MsFlags, mount},
};
use vsock::{VMADDR_CID_ANY, VsockListener, VsockStream};

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
    let listener = VsockListener::bind_with_cid_port(VMADDR_CID_ANY, CONTROL_PORT);
    for stream in listener.iter().flat_map(VsockListener::incoming).flatten() {
        // A connection that was given up while the machine booted may stay silent.
        std::thread::spawn(move || answer(stream));
    }
    loop {
        std::thread::park();
    }
}

/// Answers one request, which fits: its end is not looked for.
fn answer(mut stream: VsockStream) {
    let mut request = [0; 512];
    if stream.read(&mut request).is_ok() {
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").ok();
    }
}
