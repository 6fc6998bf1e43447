//! clone(2), mostly as vfork makes a child: it shares the caller's memory, and the calling thread waits until
//! it has executed a program or ended.

use std::{
    ffi::{c_int, c_void},
    os::fd::OwnedFd,
    sync::atomic::AtomicI32,
};

use nix::errno::Errno;

/// What a child runs. What it returns is its exit code.
pub(super) type Body = extern "C" fn(*mut c_void) -> c_int;

/// Whose memory a child has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Memory {
    /// Its parent's, as after vfork; the calling thread waits.
    Shared,
    /// A copy, as after fork; nobody waits.
    Copied,
}

/// Makes a child where this process's own control group is; it tells its end by SIGCHLD.
///
/// # Safety
/// `context` is what `body` takes it for, and stays so until this returns; nobody else uses `stack`
/// meanwhile. The body does not unwind. In shared memory it does not count on being the only user; in a
/// copy it bears that other threads have gone in the midst of anything.
pub(super) unsafe fn beside(
    memory: Memory,
    namespaces: u64,
    body: Body,
    context: *mut c_void,
    stack: &mut [u128],
    pid: &AtomicI32,
) -> nix::Result<()> {
    let namespaces = c_int::try_from(namespaces).map_err(|_| Errno::EINVAL)?;
    let memory = match memory {
        Memory::Shared => libc::CLONE_VM | libc::CLONE_VFORK,
        Memory::Copied => 0,
    };
    let flags = memory | namespaces | libc::CLONE_PARENT_SETTID | libc::SIGCHLD;
    // SAFETY: the pointer is one past the end of the stack's own allocation.
    let top = unsafe { stack.as_mut_ptr().add(stack.len()) };
    // SAFETY: the caller's promise; where the memory is shared, this thread waits (CLONE_VFORK).
    let cloned = unsafe { libc::clone(body, top.cast(), flags, context, pid.as_ptr()) };
    Errno::result(cloned).map(drop)
}

/// Makes a child in a control group of version 2: clone3(2), which no C library offers. Where this
/// architecture's few instructions for it are not written, it is as if the kernel had no such call.
///
/// # Safety
/// As [`beside`].
#[cfg(not(target_arch = "x86_64"))]
pub(super) unsafe fn in_group(
    _group: &OwnedFd,
    _namespaces: u64,
    _body: Body,
    _context: *mut c_void,
    _stack: &mut [u128],
    _pid: &AtomicI32,
) -> nix::Result<()> {
    Err(Errno::ENOSYS)
}

/// Makes a child in a control group of version 2: clone3(2), which no C library offers.
///
/// # Safety
/// As [`beside`].
#[cfg(target_arch = "x86_64")]
pub(super) unsafe fn in_group(
    group: &OwnedFd,
    namespaces: u64,
    body: Body,
    context: *mut c_void,
    stack: &mut [u128],
    pid: &AtomicI32,
) -> nix::Result<()> {
    use std::os::fd::AsRawFd;

    /// linux/sched.h; not in the low half with the others.
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PARENT_SETTID;
    let arguments = Arguments {
        flags: u64::from(flags.cast_unsigned()) | namespaces | CLONE_INTO_CGROUP,
        parent_tid: pid.as_ptr().expose_provenance() as u64,
        exit_signal: libc::SIGCHLD.cast_unsigned().into(),
        stack: stack.as_mut_ptr().expose_provenance() as u64,
        stack_size: size_of_val(stack) as u64,
        cgroup: group.as_raw_fd().cast_unsigned().into(),
        ..Arguments::default()
    };
    let cloned: i64;
    // SAFETY: the kernel reads the arguments and writes the pid where they say. The child goes on with the
    // next instruction on its own stack, calls the body and ends by the system call, so that it never
    // returns into this frame; the parent comes back with all but the named registers as they were.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r12",
            "call r13",
            "mov edi, eax",
            "mov eax, {exit}",
            "syscall",
            "ud2",
            "2:",
            exit = const libc::SYS_exit,
            inlateout("rax") libc::SYS_clone3 => cloned,
            in("rdi") &raw const arguments,
            in("rsi") size_of::<Arguments>(),
            in("r12") context,
            in("r13") body,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    let errno = i32::try_from(-cloned).unwrap_or(0);
    if cloned < 0 { Err(Errno::from_raw(errno)) } else { Ok(()) }
}

/// `struct clone_args` of linux/sched.h up to the last field used.
#[cfg(target_arch = "x86_64")]
#[derive(Default)]
#[repr(C)]
struct Arguments {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}
