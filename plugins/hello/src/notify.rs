//! Tells whoever started this process that it is ready, as systemd's `sd_notify` does.

use std::{ffi::OsStr, io, os::unix::net::UnixDatagram};

/// Where the notice goes, by the custom of all who take one.
pub(crate) const VARIABLE: &str = "NOTIFY_SOCKET";

/// Says so at `socket`, a path.
pub(crate) fn ready(socket: &OsStr) -> io::Result<()> {
    UnixDatagram::unbound()?.send_to(b"READY=1", socket).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_notice_arrives_in_one_piece() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify.sock");
        let socket = UnixDatagram::bind(&path).unwrap();
        ready(path.as_os_str()).unwrap();
        let mut notice = [0; 16];
        let length = socket.recv(&mut notice).unwrap();
        assert_eq!(&notice[..length], b"READY=1");
        assert!(ready(OsStr::new("/none")).is_err());
    }
}
