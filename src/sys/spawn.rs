//! Starts processes: the plugins, and the `net` process.
//!
//! A plugin's start is three images of one process. A thread of ours, the [`Spawner`], clones a child that
//! shares our memory as vfork's does (copying a page table would cost more than all the rest), which takes
//! the plugin's steps (see [`super::confine`]) and executes the plugin's init (see [`super::init`]); that
//! runs the plugin's command. Only the spawner's thread waits meanwhile. A step that hangs hangs the
//! thread: the driver gives up on it and starts another.
//!
//! A program that is linked dynamically finds no loader in a plugin's root, and no copy of it can be executed
//! there. Built so, for development, the supervisor clones a copy of itself instead, which runs the init.
//!
//! The child's pid is stored where the driver finds it before the child can run, so that no end of a child
//! overtakes the knowledge of whose it is.

#![expect(clippy::disallowed_types, reason = "sys starts the processes")]

use std::{
    ffi::{CStr, CString, c_char, c_int, c_void},
    io::{self, Read},
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    ptr,
    sync::{
        Arc,
        atomic::AtomicI32,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
};

use nix::{
    errno::Errno,
    sched::CloneFlags,
    sys::signal::{SigSet, SigmaskHow, sigprocmask},
};
use tokio::sync::oneshot;

use super::{
    clone::{self, Memory},
    confine::Step,
    init,
};

/// Stack of a child before it executes something: the steps use a few hundred bytes.
const STACK_BYTES: usize = 64 << 10;
/// This very program.
const OURSELVES: &str = "/proc/self/exe";
/// The init's own program, beside this one.
const NAME: &str = "enclave-init";
/// What the init is called in the process table.
const INIT_NAME: &CStr = c"enclave-init";
/// Descriptors that a copy of this process closes: more than a developer's machine ever has open.
const DESCRIPTORS_MAX: RawFd = 4096;
/// Starts that may wait for the thread: every plugin has one at most.
const JOBS_MAX: usize = 512;

/// The step that failed, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What was being done, for people.
    pub stage: String,
    /// The errno.
    pub errno: i32,
}

impl Failure {
    /// A failure of a step that was done outside the child, on its behalf.
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

/// Whether a 64-bit little-endian ELF file names an interpreter.
fn elf_needs_loader(path: &Path) -> io::Result<bool> {
    const HEADER_BYTES: usize = 64;
    const SEGMENT_BYTES: usize = 56;
    const INTERPRETER: u32 = 3;
    let wrong = || io::Error::new(io::ErrorKind::InvalidData, "not a 64-bit ELF file");
    let mut bytes = Vec::new();
    // The table of segments follows the header at once, whoever linked it.
    std::fs::File::open(path)?.take(4096).read_to_end(&mut bytes)?;
    let header = bytes.get(..HEADER_BYTES).filter(|header| header.starts_with(b"\x7fELF\x02\x01"));
    let header = header.ok_or_else(wrong)?;
    let count = usize::from(u16::from_le_bytes([header[56], header[57]]));
    let segments = bytes[HEADER_BYTES..].chunks_exact(SEGMENT_BYTES).take(count);
    Ok(segments.into_iter().any(|segment| segment.starts_with(&INTERPRETER.to_le_bytes())))
}

/// All that it takes to start a plugin, any number of times.
#[derive(Debug)]
pub struct Recipe {
    pub(super) namespaces: CloneFlags,
    /// The control group to be cloned in, where the kernel can do it.
    pub(super) cradle: Option<OwnedFd>,
    /// Where a child that was not joins it.
    pub(super) doors: Vec<OwnedFd>,
    /// In parts, of which most plugins share some.
    pub(super) steps: Vec<Arc<[Step]>>,
    /// Where the plugin's program may be, when it is executed without an init.
    pub(super) programs: Vec<CString>,
    /// The init's words, if there is one, and the plugin's.
    pub(super) words: Vec<CString>,
    pub(super) variables: Vec<CString>,
    pub(super) init: Arc<Program>,
}

impl Recipe {
    /// The plugin's program, as it was named.
    pub fn program(&self) -> &str {
        let before = if self.is_direct() { 0 } else { self.init.words.len() };
        self.words.get(before).and_then(|word| word.to_str().ok()).unwrap_or_default()
    }

    /// Whether it can be started before it is needed: its init waits, and costs little as a program of its
    /// own.
    pub fn can_stand_by(&self) -> bool {
        !self.is_direct() && self.init.is_executed()
    }

    fn all_steps(&self) -> impl Iterator<Item = &Step> {
        self.steps.iter().flat_map(|part| part.iter())
    }

    /// Whether it has no init.
    pub fn is_direct(&self) -> bool {
        !self.programs.is_empty()
    }
}

/// The init's program.
#[derive(Debug)]
pub struct Program {
    /// Where it was found.
    path: PathBuf,
    file: Option<OwnedFd>,
    /// What comes before the plugin's words.
    words: Vec<CString>,
}

/// No program can be every plugin's init.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// It cannot be opened or read.
    #[error("the plugins' init {path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// The system's answer.
        source: io::Error,
    },
    /// It needs a loader, which the plugins' root file systems do not have.
    #[error(
        "the plugins' init {path} is not static: build the supervisor for a musl target, or name a static \
         enclave-init with --plugin-init"
    )]
    NotStatic {
        /// The file.
        path: String,
    },
}

impl Program {
    /// The program that was asked for; else the one beside this program; else this program itself, of which
    /// each plugin keeps more memory.
    pub fn find(wanted: Option<&Path>) -> Result<Self, ProgramError> {
        let ourselves = std::fs::read_link(OURSELVES).unwrap_or_default();
        let beside = ourselves.with_file_name(NAME);
        let small = wanted.or_else(|| Some(beside.as_path()).filter(|path| path.is_file()));
        let subcommand = CString::new(init::SUBCOMMAND).unwrap_or_default();
        let (path, words) = match small {
            Some(path) => (path, vec![INIT_NAME.to_owned()]),
            None => (Path::new(OURSELVES), vec![INIT_NAME.to_owned(), subcommand]),
        };
        let failed = |source| ProgramError::Io { path: path.display().to_string(), source };
        if elf_needs_loader(path).map_err(failed)? {
            return match wanted {
                Some(_) => Err(ProgramError::NotStatic { path: path.display().to_string() }),
                None => Ok(Self { path: path.to_owned(), file: None, words: Vec::new() }),
            };
        }
        let flags = nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_CLOEXEC;
        let file = nix::fcntl::open(path, flags, nix::sys::stat::Mode::empty());
        Ok(Self { path: path.to_owned(), file: Some(file.map_err(|errno| failed(errno.into()))?), words })
    }

    /// Where it was found.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is executed. A program that needs a loader finds none in a plugin's root: then each plugin
    /// has a copy of this process for its init, which is fit for a developer's machine and costs memory.
    pub fn is_executed(&self) -> bool {
        self.file.is_some()
    }

    pub(super) fn words(&self) -> &[CString] {
        &self.words
    }
}

/// What a child is given, beside its recipe.
#[derive(Debug)]
pub struct Ends {
    /// What it writes to standard output.
    pub stdout: OwnedFd,
    /// What it writes to standard error.
    pub stderr: OwnedFd,
    /// Its init's end of the socket.
    pub socket: OwnedFd,
}

/// A start that has been asked for.
#[derive(Debug)]
pub struct Birth {
    pid: Arc<AtomicI32>,
    /// Whether there is an init now.
    pub born: oneshot::Receiver<Result<(), Failure>>,
}

impl Birth {
    /// Where the child's pid is, as soon as there is a child; zero before that.
    pub fn place(&self) -> Arc<AtomicI32> {
        Arc::clone(&self.pid)
    }
}

struct Job {
    recipe: Arc<Recipe>,
    ends: Ends,
    pid: Arc<AtomicI32>,
    answer: oneshot::Sender<Result<(), Failure>>,
}

/// The thread that starts plugins, one after the other.
#[derive(Debug)]
pub struct Spawner(SyncSender<Job>);

impl Spawner {
    /// Starts the thread. It ends when this is dropped and nothing hangs; a child of it dies with it, so it
    /// is kept as long as they shall live.
    pub fn start() -> io::Result<Self> {
        let (jobs, queue) = sync_channel(JOBS_MAX);
        std::thread::Builder::new().name("spawner".to_owned()).spawn(move || serve(&queue))?;
        Ok(Self(jobs))
    }

    /// Asks for a start.
    pub fn spawn(&self, recipe: &Arc<Recipe>, ends: Ends) -> Result<Birth, Failure> {
        let (answer, born) = oneshot::channel();
        let pid = Arc::new(AtomicI32::new(0));
        let job = Job { recipe: Arc::clone(recipe), ends, pid: Arc::clone(&pid), answer };
        let full = |_| Failure { stage: "wait for the spawner".to_owned(), errno: libc::EAGAIN };
        self.0.try_send(job).map_err(full)?;
        Ok(Birth { pid, born })
    }
}

fn serve(jobs: &Receiver<Job>) {
    // Every signal is the other threads'; and none may reach a child that still shares our memory.
    let blocked = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None);
    let mut stack = vec![0_u128; STACK_BYTES / size_of::<u128>()];
    while let Ok(Job { recipe, ends, pid, answer }) = jobs.recv() {
        if answer.is_closed() {
            continue;
        }
        let born = match blocked {
            Ok(()) => bear(&recipe, &ends, &pid, &mut stack),
            Err(errno) => Err(Failure { stage: "block signals".to_owned(), errno: errno as i32 }),
        };
        // Nobody waits for it any more: the driver has given up, and killed the child.
        answer.send(born).ok();
    }
}

/// What the child needs, and where it leaves its failure.
struct Child<'a> {
    recipe: &'a Recipe,
    /// It was cloned in its control group.
    joined: bool,
    descriptors: [RawFd; 4],
    words: Vec<*const c_char>,
    variables: Vec<*const c_char>,
    failed: Option<(Stage, Errno)>,
}

/// Where a child failed.
#[derive(Debug, Clone, Copy)]
enum Stage {
    Join,
    Step(usize),
    Execute,
}

fn bear(recipe: &Recipe, ends: &Ends, pid: &AtomicI32, stack: &mut [u128]) -> Result<(), Failure> {
    let null = std::fs::File::open("/dev/null").map_err(|error| Failure::of("open /dev/null", &error))?;
    let descriptors =
        [&null as &dyn AsRawFd, &ends.stdout, &ends.stderr, &ends.socket].map(AsRawFd::as_raw_fd);
    let mut child = Child {
        recipe,
        joined: recipe.cradle.is_some(),
        descriptors,
        words: init::command::pointers(&recipe.words),
        variables: init::command::pointers(&recipe.variables),
        failed: None,
    };
    let namespaces = u64::from(recipe.namespaces.bits().cast_unsigned());
    let context = ptr::from_mut(&mut child).cast::<c_void>();
    if !recipe.is_direct() && !recipe.init.is_executed() {
        child.joined = false;
        // SAFETY: as below, in a copy of the memory. A thread that held a lock there would hang the child,
        // and the start would be given up on.
        let cloned = unsafe { clone::beside(Memory::Copied, namespaces, become_plugin, context, stack, pid) };
        return cloned.map_err(|errno| Failure { stage: "clone".to_owned(), errno: errno as i32 });
    }
    let in_group = recipe.cradle.as_ref().map(|cradle| {
        // SAFETY: the child runs `become_plugin` on a stack of its own, and this thread waits until it has
        // executed a program or ended, so that everything behind the pointers outlives it.
        unsafe { clone::in_group(cradle, namespaces, become_plugin, context, stack, pid) }
    });
    let cloned = match in_group {
        Some(Ok(())) => Ok(()),
        // The kernel cannot (before Linux 5.7), or a filter forbids it.
        Some(Err(Errno::ENOSYS | Errno::EINVAL | Errno::E2BIG | Errno::EPERM)) | None => {
            child.joined = false;
            let context = ptr::from_mut(&mut child).cast::<c_void>();
            // SAFETY: as above.
            unsafe { clone::beside(Memory::Shared, namespaces, become_plugin, context, stack, pid) }
        }
        Some(Err(errno)) => Err(errno),
    };
    cloned.map_err(|errno| Failure { stage: "clone".to_owned(), errno: errno as i32 })?;
    let Some((stage, errno)) = child.failed else { return Ok(()) };
    let stage = match stage {
        Stage::Join => "join the control group".to_owned(),
        Stage::Step(index) => recipe.all_steps().nth(index).map_or_else(String::new, ToString::to_string),
        Stage::Execute if recipe.is_direct() => format!("execute {:?}", recipe.program()),
        Stage::Execute => "execute the init".to_owned(),
    };
    Err(Failure { stage, errno: errno as i32 })
}

/// The child's life up to its init. It must not return from here into anything of the parent's.
extern "C" fn become_plugin(context: *mut c_void) -> c_int {
    // SAFETY: clone passes on what it was given, and the parent does not touch it meanwhile.
    let child = unsafe { &mut *context.cast::<Child<'_>>() };
    match prepare(child) {
        // Executed, this is never reached.
        Ok(()) => {
            let plugins = child.words.get(child.recipe.init.words.len()..).unwrap_or(&[ptr::null()]);
            // SAFETY: in this copy of the memory the lists and their texts stay to the end.
            unsafe { init::program(plugins.as_ptr(), child.variables.as_ptr()) }.into()
        }
        Err(failed) => {
            child.failed = Some(failed);
            if !child.recipe.is_direct() && !child.recipe.init.is_executed() {
                // A copy's memory is not the parent's.
                let [.., socket] = child.descriptors;
                init::refuse(socket, failed.1);
            }
            127
        }
    }
}

fn prepare(child: &Child<'_>) -> Result<(), (Stage, Errno)> {
    for door in child.recipe.doors.iter().filter(|_| !child.joined) {
        nix::unistd::write(door, b"0").map_err(|errno| (Stage::Join, errno))?;
    }
    for (index, step) in child.recipe.all_steps().enumerate() {
        step.take().map_err(|errno| (Stage::Step(index), errno))?;
    }
    let last = |errno| (Stage::Execute, errno);
    // Away from where they shall be, lest one overwrites another; the copies go with execve.
    let mut moved = [0; 4];
    for (place, descriptor) in moved.iter_mut().zip(child.descriptors) {
        // SAFETY: it makes a descriptor and touches no memory.
        *place = unsafe { libc::fcntl(descriptor, libc::F_DUPFD_CLOEXEC, 10) };
        Errno::result(*place).map_err(last)?;
    }
    // Without an init nobody has a use for the socket.
    let given = if child.recipe.is_direct() { 3 } else { 4 };
    for (descriptor, wanted) in moved.into_iter().zip(0..given) {
        // SAFETY: this process's descriptors are its own (no CLONE_FILES), and nobody owns these four.
        Errno::result(unsafe { libc::dup2(descriptor, wanted) }).map_err(last)?;
    }
    let (words, variables) = (child.words.as_ptr(), child.variables.as_ptr());
    if child.recipe.is_direct() {
        return execute(&child.recipe.programs, words, variables).map_err(last);
    }
    let Some(file) = &child.recipe.init.file else {
        close_others();
        return Ok(());
    };
    let file = file.as_raw_fd();
    // SAFETY: both arrays end with a null pointer and point to NUL-terminated strings that live on.
    let done = unsafe {
        libc::syscall(libc::SYS_execveat, file, c"".as_ptr(), words, variables, libc::AT_EMPTY_PATH)
    };
    Errno::result(done).map(drop).map_err(last)
}

/// Executes the first program that is there, as execvp does: EACCES is remembered while looking further.
fn execute(
    programs: &[CString],
    words: *const *const c_char,
    variables: *const *const c_char,
) -> nix::Result<()> {
    init::reset_actions()?;
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
    let mut errno = Errno::ENOENT;
    for program in programs {
        // SAFETY: both arrays end with a null pointer and point to NUL-terminated strings that live on.
        unsafe { libc::execve(program.as_ptr(), words, variables) };
        let failed = Errno::last();
        if failed == Errno::EACCES {
            errno = failed;
        } else if failed != Errno::ENOENT && failed != Errno::ENOTDIR {
            return Err(failed);
        }
    }
    Err(errno)
}

/// Closes what a copy of this process has beside its own four descriptors.
fn close_others() {
    for descriptor in init::SOCKET + 1..DESCRIPTORS_MAX {
        // SAFETY: it touches no memory; whoever owned the descriptor is another process's thread.
        unsafe { libc::close(descriptor) };
    }
}

/// The plugin's own process: the first child of its init. None where the kernel does not tell
/// (`CONFIG_PROC_CHILDREN`), or when it has ended.
pub fn command_of(init: i32) -> Option<i32> {
    let children = std::fs::read_to_string(format!("/proc/{init}/task/{init}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}

/// Starts `enclave-supervisor net` with `stdin` as its link to this process. Its standard error is returned.
pub fn net(stdin: OwnedFd) -> io::Result<(i32, OwnedFd)> {
    let (stderr, stderr_end) = io::pipe()?;
    let stdout_end = stderr_end.try_clone()?;
    let mut command = Command::new("/proc/self/exe");
    command.arg("net").env_clear().stdin(Stdio::from(stdin)).stdout(stdout_end).stderr(stderr_end);
    // A terminal's Ctrl-C is for the supervisor: streams go on while it drains.
    command.process_group(0);
    // The handle is dropped unwaited: std never waits by itself, the reaper does.
    let child = command.spawn()?;
    let pid = i32::try_from(child.id()).map_err(|_| io::ErrorKind::InvalidData)?;
    Ok((pid, stderr.into()))
}
