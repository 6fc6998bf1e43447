//! The host's way to a supervisor's control API.

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

/// The vsock port of the control API.
const CONTROL_PORT: u32 = 100_000;

/// Connects over the hybrid socket. No answer may take longer than `limit`.
pub(super) fn dial(socket: &Path, limit: Duration) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(limit))?;
    writeln!(stream, "CONNECT {CONTROL_PORT}")?;
    let mut byte = [0];
    while byte != *b"\n" {
        stream.read_exact(&mut byte)?;
    }
    Ok(stream)
}
