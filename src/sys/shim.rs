//! The shim: a fresh, single-threaded run of our own binary that turns itself into a plugin.
//!
//! Between fork and exec of a threaded process hardly anything is allowed, so nothing is done there. Instead
//! [`crate::sys::spawn`] starts `/proc/self/exe shim`, and the shim, alone in its own process, reads its
//! [`Launch`] from descriptor 0, prepares itself step by step and calls execve. The first step that fails is
//! reported on the same socket as a [`Failure`]; a successful execve closes it.

use std::{
    ffi::{CString, NulError},
    fs,
    io::{self, Read, Write},
    os::{
        fd::{FromRawFd, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, FdFlag, OFlag, fcntl},
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    sys::{
        signal::{SigSet, SigmaskHow, Signal, sigprocmask},
        statvfs::{FsFlags, statvfs},
    },
    unistd::{Gid, Uid},
};
use serde::{Deserialize, Serialize};

/// The hidden subcommand.
pub const SUBCOMMAND: &str = "shim";
/// Longest [`Launch`], in bytes of JSON: a manifest may bring 1 MiB of arguments and variables.
const LAUNCH_MAX: usize = 4 << 20;

/// A bind mount with everything mounted beneath.
const BIND: MsFlags = MsFlags::MS_BIND.union(MsFlags::MS_REC);

/// Everything the shim needs to become a plugin.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    /// Program and arguments; the program is looked up in `PATH` within the root when it has no slash.
    pub argv: Vec<String>,
    /// The whole environment.
    pub env: Vec<(String, String)>,
    /// Working directory within the root.
    pub cwd: String,
    /// The plugin's root file system.
    pub root: PathBuf,
    /// Mounted in the plugin's private mount namespace, in order.
    pub binds: Vec<Bind>,
    /// User and group; the supervisor's own without.
    pub identity: Option<Identity>,
    /// Take a user namespace first: the supervisor is not root.
    pub user_namespace: bool,
}

/// A bind mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    /// A file or directory outside.
    pub source: PathBuf,
    /// Where it appears, as a path outside: beneath the root, free of symlinks, already there.
    pub target: PathBuf,
    /// Mounted read-only.
    pub read_only: bool,
}

/// Who the plugin runs as. It has no supplementary groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// The step that failed, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What the shim was doing, for people.
    pub stage: String,
    /// The errno.
    pub errno: i32,
}

impl Failure {
    /// A failure of a step done outside the shim, on its behalf.
    pub fn of(stage: &str, error: &io::Error) -> Self {
        Self { stage: stage.to_owned(), errno: error.raw_os_error().unwrap_or(libc::EIO) }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let errno = Errno::from_raw(self.errno);
        write!(f, "{}: {errno:?} ({})", self.stage, errno.desc())
    }
}

/// Runs the shim. It only returns when it could not become the plugin; the exit code then has no meaning.
pub fn main() -> u8 {
    // SAFETY: by the protocol with spawn, descriptor 0 is one end of a Unix socket pair that nobody else in
    // this fresh, single-threaded process owns.
    let stdin = unsafe { OwnedFd::from_raw_fd(0) };
    let mut socket = UnixStream::from(stdin);
    let failure = match become_plugin(&mut socket) {
        Ok(never) => match never {},
        Err(failure) => failure,
    };
    // Nobody is left to tell when this fails: spawn then sees the exit alone.
    if let Ok(json) = serde_json::to_vec(&failure) {
        socket.write_all(&json).ok();
    }
    127
}

/// What never comes back: a successful execve.
enum Never {}

fn become_plugin(socket: &mut UnixStream) -> Result<Never, Failure> {
    let launch = read_launch(socket).map_err(|error| Failure::of("read the launch", &error))?;
    *socket = detach(socket).map_err(|error| Failure::of("free descriptor 0", &error))?;
    step("start a session", nix::unistd::setsid().map(drop))?;
    step("reset the signals", reset_signals())?;
    namespaces(&launch)?;
    let root = &launch.root;
    // A mount of its own, because only a mount can become the root.
    step("mount the root file system", mount(Some(root), root, None::<&str>, BIND, None::<&str>))?;
    for bind in &launch.binds {
        let stage = format!("mount {}", bind.target.display());
        step(&stage, bind_mount(bind))?;
    }
    step("enter the root file system", enter(root))?;
    step(&format!("enter the working directory {}", launch.cwd), nix::unistd::chdir(launch.cwd.as_str()))?;
    if let Some(identity) = launch.identity {
        step(&format!("become user {}:{}", identity.uid, identity.gid), take(identity))?;
    }
    // Set after the identity, which clears it. Where the supervisor is not PID 1 of a namespace, its plugins
    // must not outlive it.
    step("follow the supervisor's death", nix::sys::prctl::set_pdeathsig(Signal::SIGKILL))?;
    step("close descriptors", close_on_exec())?;
    execute(&launch)
}

fn step<T>(stage: &str, done: nix::Result<T>) -> Result<T, Failure> {
    done.map_err(|errno| Failure { stage: stage.to_owned(), errno: errno as i32 })
}

fn read_launch(socket: &mut UnixStream) -> io::Result<Launch> {
    let mut length = [0; 4];
    socket.read_exact(&mut length)?;
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if length > LAUNCH_MAX {
        return Err(io::Error::from_raw_os_error(libc::E2BIG));
    }
    let mut bytes = vec![0; length];
    socket.read_exact(&mut bytes)?;
    serde_json::from_slice(&bytes).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// Frames a launch for the shim.
pub(super) fn frame(launch: &Launch) -> io::Result<Vec<u8>> {
    let json = serde_json::to_vec(launch)?;
    let length = u32::try_from(json.len()).ok().filter(|_| json.len() <= LAUNCH_MAX);
    let length = length.ok_or_else(|| io::Error::from_raw_os_error(libc::E2BIG))?;
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend_from_slice(&json);
    Ok(bytes)
}

/// Moves the socket away from descriptor 0 and puts /dev/null there.
fn detach(socket: &UnixStream) -> io::Result<UnixStream> {
    let null =
        nix::fcntl::open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, nix::sys::stat::Mode::empty())?;
    let moved = fcntl(socket, FcntlArg::F_DUPFD_CLOEXEC(3))?;
    // SAFETY: F_DUPFD_CLOEXEC has just made this descriptor for us.
    let moved = unsafe { OwnedFd::from_raw_fd(moved) };
    nix::unistd::dup2_stdin(&null)?;
    Ok(moved.into())
}

/// Default actions and an empty mask: Rust ignores SIGPIPE, and PID 1's mask must not be inherited. The
/// kernel is asked directly, because C libraries keep some real-time signals to themselves and refuse to
/// reset them, while whoever started the supervisor may well have them ignored.
fn reset_signals() -> nix::Result<()> {
    const SIGNAL_LAST: i32 = 64;
    // The kernel's `sigaction` with SIG_DFL, no flags and an empty mask, in whichever order the fields are.
    const DEFAULT: [u64; 4] = [0; 4];
    const MASK_BYTES: usize = 8;
    for signal in (1..=SIGNAL_LAST).filter(|s| ![libc::SIGKILL, libc::SIGSTOP].contains(s)) {
        let old = std::ptr::null_mut::<u64>();
        // SAFETY: the kernel only reads one `sigaction` of at most 32 bytes, which DEFAULT is; a null pointer
        // for the old one is allowed; the default action runs no code of ours.
        let done =
            unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, DEFAULT.as_ptr(), old, MASK_BYTES) };
        Errno::result(done)?;
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)
}

fn namespaces(launch: &Launch) -> Result<(), Failure> {
    let (uid, gid) = (Uid::effective(), Gid::effective());
    if launch.user_namespace {
        step("take a user namespace", unshare(CloneFlags::CLONE_NEWUSER))?;
        let write = |file: &str, text: String| {
            fs::write(file, text).map_err(|error| Failure::of(&format!("write {file}"), &error))
        };
        // Without this the kernel refuses an unprivileged gid map.
        write("/proc/self/setgroups", "deny".to_owned())?;
        write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
        write("/proc/self/gid_map", format!("{gid} {gid} 1"))?;
    }
    step("take a mount namespace", unshare(CloneFlags::CLONE_NEWNS))?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    step("make the mounts private", mount(None::<&str>, "/", None::<&str>, private, None::<&str>))
}

/// Makes a mount the root, and drops the old one: nothing of it is left to find a way back to, as a chroot
/// would leave it to a plugin that runs as root.
fn enter(root: &Path) -> nix::Result<()> {
    nix::unistd::chdir(root)?;
    // Both at one place: the old root lies over the new one, and is what is unmounted.
    nix::unistd::pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    nix::unistd::chdir("/")
}

fn bind_mount(bind: &Bind) -> nix::Result<()> {
    let (source, target): (&Path, &Path) = (&bind.source, &bind.target);
    mount(Some(source), target, None::<&str>, BIND, None::<&str>)?;
    if bind.read_only {
        // In a user namespace the flags of the original mount are locked: a remount must repeat them.
        let had = statvfs(target)?.flags();
        let mut flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        flags.set(MsFlags::MS_NOSUID, had.contains(FsFlags::ST_NOSUID));
        flags.set(MsFlags::MS_NODEV, had.contains(FsFlags::ST_NODEV));
        flags.set(MsFlags::MS_NOEXEC, had.contains(FsFlags::ST_NOEXEC));
        mount(None::<&str>, target, None::<&str>, flags, None::<&str>)?;
    }
    Ok(())
}

fn take(identity: Identity) -> nix::Result<()> {
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    match nix::unistd::setgroups(&[]) {
        Ok(()) => {}
        // In a user namespace made by somebody unprivileged nobody may: the groups are that somebody's own.
        Err(Errno::EPERM) if fs::read("/proc/self/setgroups").is_ok_and(|word| word.starts_with(b"deny")) => {
        }
        Err(errno) => return Err(errno),
    }
    nix::unistd::setresgid(gid, gid, gid)?;
    nix::unistd::setresuid(uid, uid, uid)
}

/// Marks every descriptor above 2, so that execve closes what was inherited from whoever started us.
fn close_on_exec() -> nix::Result<()> {
    const CLOSE_RANGE_CLOEXEC: libc::c_uint = 4;
    // SAFETY: close_range with CLOEXEC only sets a flag on descriptors; it closes none and touches no memory.
    let done = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, CLOSE_RANGE_CLOEXEC) };
    if done == 0 {
        return Ok(());
    }
    // Before Linux 5.11: one by one. The plugin's /proc is mounted by now; without it, count up.
    let limit = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)?.0;
    let open: Vec<RawFd> = match fs::read_dir("/proc/self/fd") {
        Ok(entries) => entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect(),
        Err(_) => (0..RawFd::try_from(limit.min(1 << 20)).unwrap_or(RawFd::MAX)).collect(),
    };
    for fd in open.into_iter().filter(|fd| *fd > 2) {
        // SAFETY: the descriptor is borrowed for this one call, which reports a closed one as EBADF.
        let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
        match fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)) {
            Ok(_) | Err(Errno::EBADF) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn execute(launch: &Launch) -> Result<Never, Failure> {
    let program = launch.argv.first().cloned().unwrap_or_default();
    let stage = format!("execute {program:?}");
    let strings =
        |texts: &[String]| texts.iter().map(|t| CString::new(t.as_str())).collect::<Result<Vec<_>, _>>();
    let invalid = |_: NulError| Failure { stage: stage.clone(), errno: libc::EINVAL };
    let argv = strings(&launch.argv).map_err(invalid)?;
    let env: Vec<String> = launch.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let env = strings(&env).map_err(invalid)?;
    let path = launch.env.iter().find(|(name, _)| name == "PATH").map_or("", |(_, value)| value);
    // As execvp: the first candidate that is there decides; EACCES is remembered while looking further.
    let mut errno = Errno::ENOENT;
    for candidate in candidates(&program, path) {
        let candidate = CString::new(candidate).map_err(invalid)?;
        match nix::unistd::execve(&candidate, &argv, &env) {
            Ok(never) => match never {},
            Err(Errno::ENOENT | Errno::ENOTDIR) => {}
            Err(Errno::EACCES) => errno = Errno::EACCES,
            Err(other) => return Err(Failure { stage, errno: other as i32 }),
        }
    }
    Err(Failure { stage, errno: errno as i32 })
}

/// The paths to try, as execvp does.
fn candidates(program: &str, path: &str) -> Vec<String> {
    if program.is_empty() {
        return Vec::new();
    }
    if program.contains('/') {
        return vec![program.to_owned()];
    }
    path.split(':')
        .map(|dir| if dir.is_empty() { format!("./{program}") } else { format!("{dir}/{program}") })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_without_a_slash_is_looked_up_in_path() {
        assert_eq!(candidates("sh", "/usr/bin:/bin::"), ["/usr/bin/sh", "/bin/sh", "./sh", "./sh"]);
        assert_eq!(candidates("/hello", "/bin"), ["/hello"]);
        assert!(candidates("", "/bin").is_empty());
    }

    #[test]
    fn a_launch_survives_its_frame_and_one_too_long_is_refused() {
        let launch = Launch { argv: vec!["a\"b".into()], cwd: "/".into(), ..Launch::default() };
        let bytes = frame(&launch).unwrap();
        let (mut ours, mut shim) = UnixStream::pair().unwrap();
        ours.write_all(&bytes).unwrap();
        assert_eq!(read_launch(&mut shim).unwrap(), launch);
        let long = Launch { cwd: "x".repeat(LAUNCH_MAX), ..launch };
        assert_eq!(frame(&long).unwrap_err().raw_os_error(), Some(libc::E2BIG));
    }

    #[test]
    fn a_failure_names_its_stage_and_errno() {
        let failure = Failure { stage: "execute \"nope\"".into(), errno: libc::ENOENT };
        assert_eq!(failure.to_string(), "execute \"nope\": ENOENT (No such file or directory)");
    }
}
