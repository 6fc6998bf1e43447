//! Resource limits of the supervisor itself.

use std::{fs, io};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Raises the limit of open descriptors to `most`, or to the hard limit where there is none or the privilege
/// for it is missing, and answers it. Inside an enclave the default is low (4096), and plugins inherit it.
pub fn raise_open_files(most: Option<u64>) -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if let Some(most) = most.filter(|most| *most > hard)
        && setrlimit(Resource::RLIMIT_NOFILE, most, most).is_ok()
    {
        return Ok(most);
    }
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}

/// Lets memory alone limit how many files the machine has open: by default it is a tenth of it, in kilobytes,
/// and one plugin could use them up for every process that is not root, as `net` is. Open files are charged
/// to their plugin's memory. systemd does the same.
pub fn lift_files_of_machine() -> io::Result<()> {
    fs::write("/proc/sys/fs/file-max", i64::MAX.to_string())
}

/// The most descriptors that the kernel lets any process have.
pub fn open_files_most() -> Option<u64> {
    fs::read_to_string("/proc/sys/fs/nr_open").ok()?.trim().parse().ok()
}
