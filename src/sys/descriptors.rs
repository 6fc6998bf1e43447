//! Descriptors that were open before this program.

use std::{
    fs,
    os::fd::{BorrowedFd, RawFd},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, FdFlag, fcntl},
};

/// Marks every descriptor above 2 to be closed by execve. What this program opens itself is marked as it is
/// opened; so once at the start, nothing that somebody left open reaches a plugin.
pub fn keep_to_ourselves() -> nix::Result<()> {
    const CLOSE_RANGE_CLOEXEC: libc::c_uint = 4;
    // SAFETY: close_range with CLOEXEC only sets a flag on descriptors; it closes none and touches no memory.
    let done = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, CLOSE_RANGE_CLOEXEC) };
    if done == 0 {
        return Ok(());
    }
    // Before Linux 5.11: one by one.
    let entries = fs::read_dir("/proc/self/fd").map_err(|_| Errno::ENOENT)?;
    let open = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<RawFd>().ok());
    for descriptor in open.filter(|descriptor| *descriptor > 2).collect::<Vec<_>>() {
        // SAFETY: the descriptor is borrowed for this one call, which reports a closed one as EBADF.
        let descriptor = unsafe { BorrowedFd::borrow_raw(descriptor) };
        match fcntl(descriptor, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)) {
            Ok(_) | Err(Errno::EBADF) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
