//! The resident init of one plugin, as a program of its own: of the supervisor's binary each plugin would
//! keep many times the memory. Rust's own `main` is left out for the same reason: what it prepares (a stack
//! for signals, the arguments' copies) would cost each plugin three pages more than it needs.

#![no_main]
#![allow(unsafe_code, reason = "part of sys")]

use std::ffi::{c_char, c_int};

use enclave_supervisor::sys::init;

/// What the C library calls.
#[unsafe(no_mangle)]
extern "C-unwind" fn main(
    count: c_int,
    words: *const *const c_char,
    variables: *const *const c_char,
) -> c_int {
    // Its own name comes first, if anything.
    let own = usize::from(count > 0);
    // SAFETY: there is a pointer for every argument, and a null pointer after them.
    let words = unsafe { words.add(own) };
    // SAFETY: the C library hands over what the kernel has put on the stack, where it stays.
    let code = unsafe { init::program(words, variables) };
    code.into()
}
