//! Sets and steers the wall clock, and reads the hypervisor's.

use std::{
    fs::File,
    io,
    os::fd::AsRawFd,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use nix::{
    sys::time::TimeSpec,
    time::{ClockId, clock_gettime, clock_settime},
};

/// A clock of the hypervisor behind a PTP device.
#[derive(Debug)]
pub struct HypervisorClock(File);

impl HypervisorClock {
    /// Opens `/dev/ptp0`. `NotFound` where the machine has none.
    pub fn open() -> io::Result<Self> {
        File::open("/dev/ptp0").map(Self)
    }

    /// The hypervisor's time since 1970.
    pub fn read(&self) -> io::Result<Duration> {
        // The kernel's FD_TO_CLOCKID: a descriptor as a dynamic clock's id.
        let id = ClockId::from_raw((!self.0.as_raw_fd() << 3) | 3);
        Ok(Duration::from(clock_gettime(id)?))
    }
}

/// Sets the wall clock to this time since 1970.
pub fn set(time: Duration) -> io::Result<()> {
    Ok(clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::from_duration(time))?)
}

/// Lets the wall clock run slower or faster until it has made up for `behind` microseconds (ahead when
/// negative). The kernel does it at 500 ppm, and a new call replaces what is left of the one before.
pub fn slew(behind_micros: i64) -> io::Result<()> {
    let micros = behind_micros.rem_euclid(1_000_000);
    let delta = libc::timeval { tv_sec: behind_micros.div_euclid(1_000_000), tv_usec: micros };
    // SAFETY: adjtime only reads the `timeval`, which lives across the call; the old value is not asked for.
    let done = unsafe { libc::adjtime(&raw const delta, std::ptr::null_mut()) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The wall clock since 1970; 1970 itself for a clock before it.
pub fn wall() -> Duration {
    #[expect(clippy::disallowed_methods, reason = "the clock is steered by what it shows")]
    let now = SystemTime::now();
    now.duration_since(UNIX_EPOCH).unwrap_or_default()
}
