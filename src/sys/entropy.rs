//! The kernel's pool of randomness.

use std::{fs::OpenOptions, io, os::fd::AsRawFd};

/// Bytes taken in at once: what one answer of a Nitro Secure Module holds.
pub const SEED_BYTES_MAX: usize = 256;

/// `RNDADDENTROPY` of `linux/random.h`: `_IOW('R', 0x03, int[2])`, the same on every architecture of Nitro.
const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;

/// The kernel's `rand_pool_info` with room for a seed.
#[repr(C)]
struct Pool {
    entropy_bits: libc::c_int,
    bytes: libc::c_int,
    seed: [u8; SEED_BYTES_MAX],
}

/// Mixes a seed of at most [`SEED_BYTES_MAX`] bytes into the pool and counts every bit of it, so that nobody
/// waits for randomness.
pub fn credit(seed: &[u8]) -> io::Result<()> {
    let length = seed.len().min(SEED_BYTES_MAX);
    let bytes = libc::c_int::try_from(length).map_err(io::Error::other)?;
    let mut pool = Pool { entropy_bits: 8 * bytes, bytes, seed: [0; SEED_BYTES_MAX] };
    pool.seed[..length].copy_from_slice(&seed[..length]);
    let device = OpenOptions::new().write(true).open("/dev/urandom")?;
    // SAFETY: the descriptor is open, and RNDADDENTROPY only reads `bytes` bytes behind the two integers of
    // one `rand_pool_info`, which `pool` has room for and which lives across the call.
    let done = unsafe { libc::ioctl(device.as_raw_fd(), RNDADDENTROPY as _, &raw const pool) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Whether the kernel gives out randomness without a wait.
pub fn is_ready() -> bool {
    let mut byte = [0];
    rustix::rand::getrandom(&mut byte, rustix::rand::GetRandomFlags::NONBLOCK).is_ok()
}
