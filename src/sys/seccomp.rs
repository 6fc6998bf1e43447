//! Which system calls a plugin may make: Docker's default list, and less.
//!
//! | asked for | answer |
//! |---|---|
//! | another architecture's call, or an x32 one | the process is killed: a filter by number would not see it
//! |
//! | `clone3` | ENOSYS: its flags are behind a pointer, which no filter reads; C libraries fall back to
//! `clone` |
//! | a call younger than this list | ENOSYS, so that programs fall back as on an older kernel |
//! | `socket(AF_VSOCK)`, `io_uring_setup` | EPERM: the egress list would not be the only way out; it is a
//! second way to make every other call |
//! | anything else that Docker refuses | EPERM, as there |
//!
//! Source: moby `profiles/seccomp/default_linux.go` (28.x), with the calls that a capability opens.

use std::collections::BTreeSet;

use seccompiler::{BpfProgram, sock_filter};

use super::capability::Capabilities;

/// `AUDIT_ARCH_X86_64` and `AUDIT_ARCH_AARCH64` of linux/audit.h.
#[cfg(target_arch = "x86_64")]
const AUDIT_ARCH: u32 = 0xC000_003E;
#[cfg(target_arch = "aarch64")]
const AUDIT_ARCH: u32 = 0xC000_00B7;
/// The bit of x32's calls, which have x86-64's architecture. Other architectures have no call so high.
const X32: u32 = 0x4000_0000;
/// The last call that the list below has been made with: `fchmodat2`, Linux 6.6.
const LAST_KNOWN: u32 = 452;
/// Every `CLONE_NEW*` flag of clone(2).
const CLONE_NAMESPACES: u32 = 0x7E02_0000;
/// What personality(2) may be told: `PER_LINUX`, `PER_LINUX32`, `UNAME26` with either, and only asking.
const PERSONALITIES: [u32; 5] = [0, 8, 0x2_0000, 0x2_0008, 0xFFFF_FFFF];
const REFUSED: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM.unsigned_abs();
const UNKNOWN: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs();

/// The filter for a plugin with these capabilities.
///
/// The allowed numbers are judged by ranges, of which there are a few dozen: a program with a comparison for
/// each call has fifteen hundred instructions, and the kernel takes 0.7 ms to install it, at every start.
pub fn filter(capabilities: &Capabilities) -> BpfProgram {
    let mut allowed: BTreeSet<u32> = numbers(&[ALLOWED, ALLOWED_UNNAMED, ALLOWED_HERE].concat()).collect();
    for (_, calls) in OPENED.iter().filter(|(capability, _)| capabilities.has(capability)) {
        allowed.extend(numbers(calls));
    }
    let mut program = Program::default();
    program.architecture();
    let socket = [libc::AF_VSOCK.unsigned_abs()];
    program.on_argument(libc::SYS_socket, |of| of.unless_one_of(&socket));
    program.on_argument(libc::SYS_personality, |of| of.if_one_of(&PERSONALITIES));
    if !capabilities.has("SYS_ADMIN") {
        program.on_argument(libc::SYS_clone, |of| of.if_none_of(CLONE_NAMESPACES));
    }
    program.ranges(&allowed);
    program.0
}

fn numbers(calls: &[i64]) -> impl Iterator<Item = u32> {
    calls.iter().filter_map(|call| u32::try_from(*call).ok())
}

/// A program of the kernel's classic BPF while it is written. A jump's target counts from the next
/// instruction.
#[derive(Debug, Default)]
struct Program(BpfProgram);

impl Program {
    // Of linux/bpf_common.h, each with a word at a fixed offset or a constant.
    const LOAD: u16 = 0x20;
    const AND: u16 = 0x54;
    const IS: u16 = 0x15;
    const ABOVE: u16 = 0x25;
    const FROM: u16 = 0x35;
    const RETURN: u16 = 0x06;
    // Offsets in `seccomp_data`; of a 64-bit argument the half that the kernel reads of an `int`.
    const NUMBER: u32 = 0;
    const ARCHITECTURE: u32 = 4;
    const FIRST_ARGUMENT: u32 = 16;

    fn step(&mut self, code: u16, jt: u8, jf: u8, k: u32) {
        self.0.push(sock_filter { code, jt, jf, k });
    }

    fn answer(&mut self, action: u32) {
        self.step(Self::RETURN, 0, 0, action);
    }

    /// Kills foreign calls, answers unknown ones, and leaves the number loaded.
    fn architecture(&mut self) {
        self.step(Self::LOAD, 0, 0, Self::ARCHITECTURE);
        self.step(Self::IS, 1, 0, AUDIT_ARCH);
        self.answer(libc::SECCOMP_RET_KILL_PROCESS);
        self.step(Self::LOAD, 0, 0, Self::NUMBER);
        self.step(Self::FROM, 0, 1, X32);
        self.answer(libc::SECCOMP_RET_KILL_PROCESS);
        self.step(Self::ABOVE, 1, 0, LAST_KNOWN);
        self.step(Self::IS, 0, 1, u32::try_from(libc::SYS_clone3).unwrap_or(u32::MAX));
        self.answer(UNKNOWN);
    }

    /// Judges one call by its first argument, which `judge` finds loaded and answers about.
    fn on_argument(&mut self, call: i64, judge: impl FnOnce(&mut Self)) {
        let mut block = Self::default();
        block.step(Self::LOAD, 0, 0, Self::FIRST_ARGUMENT);
        judge(&mut block);
        let length = u8::try_from(block.0.len()).unwrap_or(u8::MAX);
        self.step(Self::IS, 0, length, u32::try_from(call).unwrap_or(u32::MAX));
        self.0.append(&mut block.0);
    }

    fn unless_one_of(&mut self, values: &[u32]) {
        for value in values {
            self.step(Self::IS, 0, 1, *value);
            self.answer(REFUSED);
        }
        self.answer(libc::SECCOMP_RET_ALLOW);
    }

    fn if_one_of(&mut self, values: &[u32]) {
        for value in values {
            self.step(Self::IS, 0, 1, *value);
            self.answer(libc::SECCOMP_RET_ALLOW);
        }
        self.answer(REFUSED);
    }

    fn if_none_of(&mut self, bits: u32) {
        self.step(Self::AND, 0, 0, bits);
        self.step(Self::IS, 0, 1, 0);
        self.answer(libc::SECCOMP_RET_ALLOW);
        self.answer(REFUSED);
    }

    /// Allows these numbers and refuses the others. The lowest come first: read and write are the most
    /// frequent calls.
    fn ranges(&mut self, allowed: &BTreeSet<u32>) {
        let mut ranges: Vec<(u32, u32)> = Vec::new();
        for number in allowed {
            match ranges.last_mut() {
                Some((_, last)) if *last + 1 == *number => *last = *number,
                Some(_) | None => ranges.push((*number, *number)),
            }
        }
        for (first, last) in ranges {
            // Below the range, and so between two of them; or in it; or go on.
            self.step(Self::FROM, 1, 0, first);
            self.answer(REFUSED);
            self.step(Self::ABOVE, 1, 0, last);
            self.answer(libc::SECCOMP_RET_ALLOW);
        }
        self.answer(REFUSED);
    }
}

macro_rules! calls {
    ($($name:ident)*) => { &[$(libc::$name),*] };
}

/// Calls that a capability opens.
#[cfg(target_arch = "x86_64")]
const OPENED_HERE: [(&str, &[i64]); 1] = [("SYS_RAWIO", calls!(SYS_iopl SYS_ioperm))];
#[cfg(target_arch = "aarch64")]
const OPENED_HERE: [(&str, &[i64]); 1] = [("SYS_RAWIO", &[])];

const OPENED: [(&str, &[i64]); 14] = [
    OPENED_HERE[0],
    ("DAC_READ_SEARCH", calls!(SYS_open_by_handle_at)),
    (
        "SYS_ADMIN",
        calls!(
            SYS_bpf SYS_clone SYS_fanotify_init SYS_fsconfig SYS_fsmount SYS_fsopen SYS_fspick
            SYS_lookup_dcookie SYS_mount SYS_mount_setattr SYS_move_mount SYS_open_tree SYS_perf_event_open
            SYS_quotactl SYS_quotactl_fd SYS_setdomainname SYS_sethostname SYS_setns SYS_syslog SYS_umount2
            SYS_unshare
        ),
    ),
    ("SYS_BOOT", calls!(SYS_reboot)),
    ("SYS_CHROOT", calls!(SYS_chroot)),
    ("SYS_MODULE", calls!(SYS_delete_module SYS_init_module SYS_finit_module)),
    ("SYS_PACCT", calls!(SYS_acct)),
    (
        "SYS_PTRACE",
        calls!(SYS_kcmp SYS_pidfd_getfd SYS_process_madvise SYS_process_vm_readv SYS_process_vm_writev),
    ),
    ("SYS_TIME", calls!(SYS_settimeofday SYS_clock_settime)),
    ("SYS_TTY_CONFIG", calls!(SYS_vhangup)),
    ("SYS_NICE", calls!(SYS_get_mempolicy SYS_mbind SYS_set_mempolicy)),
    ("SYSLOG", calls!(SYS_syslog)),
    ("BPF", calls!(SYS_bpf)),
    ("PERFMON", calls!(SYS_perf_event_open)),
];

const ALLOWED: &[i64] = calls!(
    SYS_accept SYS_accept4 SYS_adjtimex SYS_bind SYS_brk SYS_capget SYS_capset SYS_chdir
    SYS_clock_adjtime SYS_clock_getres SYS_clock_gettime SYS_clock_nanosleep SYS_close SYS_close_range
    SYS_connect SYS_copy_file_range SYS_dup SYS_dup3 SYS_epoll_create1 SYS_epoll_ctl SYS_epoll_pwait
    SYS_epoll_pwait2 SYS_eventfd2 SYS_execve SYS_execveat SYS_exit SYS_exit_group SYS_faccessat
    SYS_faccessat2 SYS_fadvise64 SYS_fallocate SYS_fanotify_mark SYS_fchdir SYS_fchmod SYS_fchmodat
    SYS_fchown SYS_fchownat SYS_fcntl SYS_fdatasync SYS_fgetxattr SYS_flistxattr SYS_flock
    SYS_fremovexattr SYS_fsetxattr SYS_fstat SYS_fstatfs SYS_fsync SYS_ftruncate SYS_futex SYS_futex_waitv
    SYS_get_robust_list SYS_getcpu SYS_getcwd SYS_getdents64 SYS_getegid SYS_geteuid SYS_getgid
    SYS_getgroups SYS_getitimer SYS_getpeername SYS_getpgid SYS_getpid SYS_getppid SYS_getpriority
    SYS_getrandom SYS_getresgid SYS_getresuid SYS_getrlimit SYS_getrusage SYS_getsid SYS_getsockname
    SYS_getsockopt SYS_gettid SYS_gettimeofday SYS_getuid SYS_getxattr SYS_inotify_add_watch
    SYS_inotify_init1 SYS_inotify_rm_watch SYS_io_cancel SYS_io_destroy SYS_io_getevents
    SYS_io_setup SYS_io_submit SYS_ioctl SYS_ioprio_get SYS_ioprio_set SYS_kill SYS_landlock_add_rule
    SYS_landlock_create_ruleset SYS_landlock_restrict_self SYS_lgetxattr SYS_linkat SYS_listen
    SYS_listxattr SYS_llistxattr SYS_lremovexattr SYS_lseek SYS_lsetxattr SYS_madvise SYS_membarrier
    SYS_memfd_create SYS_memfd_secret SYS_mincore SYS_mkdirat SYS_mknodat SYS_mlock SYS_mlock2 SYS_mlockall
    SYS_mmap SYS_mprotect SYS_mq_getsetattr SYS_mq_notify SYS_mq_open SYS_mq_timedreceive SYS_mq_timedsend
    SYS_mq_unlink SYS_mremap SYS_msgctl SYS_msgget SYS_msgrcv SYS_msgsnd SYS_msync SYS_munlock
    SYS_munlockall SYS_munmap SYS_name_to_handle_at SYS_nanosleep SYS_newfstatat SYS_openat SYS_openat2
    SYS_pidfd_open SYS_pidfd_send_signal SYS_pipe2 SYS_pkey_alloc SYS_pkey_free SYS_pkey_mprotect
    SYS_ppoll SYS_prctl SYS_pread64 SYS_preadv SYS_preadv2 SYS_prlimit64 SYS_process_mrelease SYS_pselect6
    SYS_ptrace SYS_pwrite64 SYS_pwritev SYS_pwritev2 SYS_read SYS_readahead SYS_readlinkat SYS_readv
    SYS_recvfrom SYS_recvmmsg SYS_recvmsg SYS_remap_file_pages SYS_removexattr SYS_renameat SYS_renameat2
    SYS_restart_syscall SYS_rseq SYS_rt_sigaction SYS_rt_sigpending SYS_rt_sigprocmask SYS_rt_sigqueueinfo
    SYS_rt_sigreturn SYS_rt_sigsuspend SYS_rt_sigtimedwait SYS_rt_tgsigqueueinfo SYS_sched_get_priority_max
    SYS_sched_get_priority_min SYS_sched_getaffinity SYS_sched_getattr SYS_sched_getparam
    SYS_sched_getscheduler SYS_sched_rr_get_interval SYS_sched_setaffinity SYS_sched_setattr
    SYS_sched_setparam SYS_sched_setscheduler SYS_sched_yield SYS_seccomp SYS_semctl SYS_semget SYS_semop
    SYS_semtimedop SYS_sendfile SYS_sendmmsg SYS_sendmsg SYS_sendto SYS_set_robust_list SYS_set_tid_address
    SYS_setfsgid SYS_setfsuid SYS_setgid SYS_setgroups SYS_setitimer SYS_setpgid SYS_setpriority
    SYS_setregid SYS_setresgid SYS_setresuid SYS_setreuid SYS_setrlimit SYS_setsid SYS_setsockopt
    SYS_setuid SYS_setxattr SYS_shmat SYS_shmctl SYS_shmdt SYS_shmget SYS_shutdown SYS_sigaltstack
    SYS_signalfd4 SYS_socketpair SYS_splice SYS_statfs SYS_statx SYS_symlinkat SYS_sync SYS_sync_file_range
    SYS_syncfs SYS_sysinfo SYS_tee SYS_tgkill SYS_timer_create SYS_timer_delete SYS_timer_getoverrun
    SYS_timer_gettime SYS_timer_settime SYS_timerfd_create SYS_timerfd_gettime SYS_timerfd_settime
    SYS_times SYS_tkill SYS_truncate SYS_umask SYS_uname SYS_unlinkat SYS_utimensat SYS_vmsplice
    SYS_wait4 SYS_waitid SYS_write SYS_writev
);

/// `cachestat`, `fchmodat2` and `io_pgetevents`, which the C library's headers do not name everywhere.
#[cfg(target_arch = "x86_64")]
const ALLOWED_UNNAMED: &[i64] = &[451, 452, 333];
#[cfg(target_arch = "aarch64")]
const ALLOWED_UNNAMED: &[i64] = &[451, 452, 292];

/// Calls that only this architecture has.
#[cfg(target_arch = "x86_64")]
const ALLOWED_HERE: &[i64] = calls!(
    SYS_access SYS_alarm SYS_arch_prctl SYS_chmod SYS_chown SYS_creat SYS_dup2 SYS_epoll_create
    SYS_epoll_ctl_old SYS_epoll_wait SYS_epoll_wait_old SYS_eventfd SYS_fork SYS_futimesat
    SYS_get_thread_area SYS_getdents SYS_getpgrp SYS_inotify_init SYS_lchown SYS_link SYS_lstat SYS_mkdir
    SYS_mknod SYS_modify_ldt SYS_open SYS_pause SYS_pipe SYS_poll SYS_readlink SYS_rename SYS_rmdir
    SYS_select SYS_set_thread_area SYS_signalfd SYS_stat SYS_symlink SYS_time SYS_unlink SYS_ustat SYS_utime
    SYS_utimes SYS_vfork
);
#[cfg(target_arch = "aarch64")]
const ALLOWED_HERE: &[i64] = &[];

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel makes of one call: the few instructions that filters are made of.
    fn judge(program: &BpfProgram, arch: u32, number: i64, arguments: [u64; 2]) -> u32 {
        let mut data = Vec::new();
        data.extend(u32::try_from(number).unwrap().to_le_bytes());
        data.extend(arch.to_le_bytes());
        data.extend([0; 8]);
        data.extend(arguments.iter().flat_map(|argument| argument.to_le_bytes()));
        let (mut at, mut accumulator) = (0, 0_u32);
        loop {
            let sock_filter { code, jt, jf, k } = program[at].clone();
            at += 1;
            let branch = |taken| usize::from(if taken { jt } else { jf });
            match code {
                0x20 => {
                    let offset = usize::try_from(k).unwrap();
                    accumulator = u32::from_le_bytes(data[offset..offset + 4].try_into().unwrap());
                }
                0x54 => accumulator &= k,
                0x15 => at += branch(accumulator == k),
                0x25 => at += branch(accumulator > k),
                0x35 => at += branch(accumulator >= k),
                0x06 => return k,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    fn said(added: &[&str], number: i64, argument: u64) -> String {
        let added: BTreeSet<String> = added.iter().map(|name| (*name).to_owned()).collect();
        let program = filter(&Capabilities::new(&added, &BTreeSet::new()));
        match judge(&program, AUDIT_ARCH, number, [argument, 0]) {
            libc::SECCOMP_RET_ALLOW => "allowed".to_owned(),
            libc::SECCOMP_RET_KILL_PROCESS => "killed".to_owned(),
            errno => format!("{:?}", nix::errno::Errno::from_raw((errno & 0xFFFF).cast_signed())),
        }
    }

    #[test]
    fn ordinary_calls_are_allowed_and_those_that_lead_out_are_not() {
        assert_eq!(said(&[], libc::SYS_openat, 0), "allowed");
        assert_eq!(said(&[], libc::SYS_wait4, 0), "allowed");
        for call in [
            libc::SYS_mount,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_bpf,
            libc::SYS_keyctl,
            libc::SYS_io_uring_setup,
            libc::SYS_reboot,
            libc::SYS_kexec_load,
            libc::SYS_init_module,
            libc::SYS_userfaultfd,
        ] {
            assert_eq!(said(&[], call, 0), "EPERM", "{call}");
        }
    }

    #[test]
    fn a_vsock_is_refused_whatever_the_capabilities() {
        let vsock = u64::from(libc::AF_VSOCK.unsigned_abs());
        assert_eq!(said(&[], libc::SYS_socket, vsock), "EPERM");
        assert_eq!(said(&["ALL"], libc::SYS_socket, vsock), "EPERM");
        // The kernel reads 32 bits of it.
        assert_eq!(said(&[], libc::SYS_socket, vsock | 1 << 40), "EPERM");
        assert_eq!(said(&[], libc::SYS_socket, 2), "allowed");
    }

    #[test]
    fn clone_makes_no_namespace_without_the_right_and_clone3_is_always_unknown() {
        assert_eq!(said(&[], libc::SYS_clone, 0x0001_0000), "allowed");
        assert_eq!(said(&[], libc::SYS_clone, 0x1000_0000), "EPERM");
        assert_eq!(said(&["SYS_ADMIN"], libc::SYS_clone, 0x1000_0000), "allowed");
        assert_eq!(said(&["SYS_ADMIN"], libc::SYS_mount, 0), "allowed");
        assert_eq!(said(&["ALL"], libc::SYS_clone3, 0), "ENOSYS");
        assert_eq!(said(&["ALL"], libc::SYS_io_uring_setup, 0), "EPERM");
        assert_eq!(said(&[], 460, 0), "ENOSYS");
        assert_eq!(said(&[], libc::SYS_personality, 0xFFFF_FFFF), "allowed");
        assert_eq!(said(&[], libc::SYS_personality, 0x4_0000), "EPERM");
    }

    #[test]
    fn calls_by_another_architecture_s_numbers_kill() {
        let program = filter(&Capabilities::new(&BTreeSet::new(), &BTreeSet::new()));
        let i386 = 0x4000_0003;
        assert_eq!(judge(&program, i386, 11, [0, 0]), libc::SECCOMP_RET_KILL_PROCESS);
        let x32_write = 0x4000_0001;
        assert_eq!(judge(&program, AUDIT_ARCH, x32_write, [0, 0]), libc::SECCOMP_RET_KILL_PROCESS);
    }

    #[test]
    fn the_filter_is_short_enough_to_be_installed_at_every_start() {
        let program = filter(&Capabilities::new(&BTreeSet::new(), &BTreeSet::new()));
        assert!(program.len() < 300, "{}", program.len());
    }

    #[test]
    fn exactly_the_listed_calls_are_allowed() {
        let program = filter(&Capabilities::new(&BTreeSet::new(), &BTreeSet::new()));
        let listed: BTreeSet<u32> = numbers(&[ALLOWED, ALLOWED_UNNAMED, ALLOWED_HERE].concat()).collect();
        for number in 0..=LAST_KNOWN {
            let opened = number == u32::try_from(libc::SYS_chroot).unwrap();
            let by_argument =
                [libc::SYS_socket, libc::SYS_personality, libc::SYS_clone].contains(&number.into());
            let allowed = judge(&program, AUDIT_ARCH, number.into(), [0, 0]) == libc::SECCOMP_RET_ALLOW;
            assert_eq!(allowed, by_argument || opened || listed.contains(&number), "{number}");
        }
    }
}
