//! Commands of a plugin: its own, and those of its probes and hooks.

use std::{
    ffi::{CStr, c_char, c_int, c_void},
    marker::PhantomData,
    os::fd::RawFd,
    ptr,
    sync::atomic::AtomicI32,
};

use nix::{
    errno::Errno,
    sys::signal::{SigSet, SigmaskHow, sigprocmask},
};

use super::packet::{Descriptor, Mapping};
use crate::sys::clone::{self, Memory};

/// Stack of a command's process before its program, of which it uses a page or two: a search in `PATH` takes
/// the longest path there is.
const STACK_BYTES: usize = 64 << 10;

/// Words or variables as the kernel hands them to a program and takes them for another: pointers to texts,
/// and a null pointer after the last. Copying them would cost every plugin a page.
#[derive(Debug, Clone, Copy)]
pub(super) struct Texts<'a>(*const *const c_char, PhantomData<&'a CStr>);

impl<'a> Texts<'a> {
    /// Texts that somebody else keeps.
    ///
    /// # Safety
    /// The list ends with a null pointer; it, and the texts before that, each with its NUL, stay as they are
    /// for `'a`.
    pub(super) unsafe fn new(list: *const *const c_char) -> Self {
        Self(list, PhantomData)
    }

    /// One after the other.
    pub(super) fn iter(self) -> impl Iterator<Item = &'a CStr> {
        let mut place = self.0;
        std::iter::from_fn(move || {
            // SAFETY: there is a pointer, if only the null one: whoever made this has promised.
            let text = unsafe { *place };
            if text.is_null() {
                return None;
            }
            // SAFETY: this was not the last one.
            place = unsafe { place.add(1) };
            // SAFETY: it points to a text that lives on, by the same promise.
            Some(unsafe { CStr::from_ptr(text) })
        })
    }
}

/// Pointers to texts, with the null pointer after the last.
pub(in crate::sys) fn pointers<T: AsRef<CStr>>(texts: &[T]) -> Vec<*const c_char> {
    texts.iter().map(|text| text.as_ref().as_ptr()).chain([ptr::null()]).collect()
}

/// Runs a command in a session of its own, with no signal blocked, and its output where it is told. It is
/// reaped by its init.
///
/// As `posix_spawn` does it, but for the stack, which goes back to the kernel: what it would
/// leave on the init's own is half of what that has in memory.
pub(super) fn spawn(words: Texts<'_>, variables: Texts<'_>, output: Option<&Descriptor>) -> nix::Result<i32> {
    words.iter().next().filter(|program| !program.is_empty()).ok_or(Errno::ENOENT)?;
    let mut stack = Mapping::new(STACK_BYTES)?;
    let pid = AtomicI32::new(0);
    let mut command = Command { words, variables, output: output.map(|output| output.0), failed: None };
    let context = ptr::from_mut(&mut command).cast();
    // SAFETY: this thread waits until the child has executed its program or ended, so that the command and
    // the stack outlive it; there is no other thread.
    unsafe { clone::beside(Memory::Shared, 0, become_command, context, stack.items(), &pid) }?;
    let pid = pid.into_inner();
    let Some(errno) = command.failed else { return Ok(pid) };
    // SAFETY: a null pointer for the status is allowed. It has ended: this does not wait.
    unsafe { libc::waitpid(pid, ptr::null_mut(), 0) };
    Err(errno)
}

/// What a command's process needs, and where it leaves its failure.
struct Command<'a> {
    words: Texts<'a>,
    variables: Texts<'a>,
    output: Option<RawFd>,
    failed: Option<Errno>,
}

/// The life of a command's process before its program: in its parent's memory, so it is system calls alone.
extern "C" fn become_command(context: *mut c_void) -> c_int {
    // SAFETY: clone passes on what it was given, and the parent does not touch it meanwhile.
    let command = unsafe { &mut *context.cast::<Command<'_>>() };
    command.failed = execute(command).err();
    127
}

/// Comes back only with an error.
fn execute(command: &Command<'_>) -> nix::Result<()> {
    for place in [libc::STDOUT_FILENO, libc::STDERR_FILENO] {
        if let Some(output) = command.output {
            // SAFETY: it touches no memory; these descriptors are this process's own (no CLONE_FILES).
            Errno::result(unsafe { libc::dup2(output, place) })?;
        }
    }
    nix::unistd::setsid()?;
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
    let Some(program) = command.words.iter().next() else { return Err(Errno::ENOENT) };
    // SAFETY: the lists are what the call takes (see `Texts`).
    Errno::result(unsafe { libc::execvpe(program.as_ptr(), command.words.0, command.variables.0) }).map(drop)
}
