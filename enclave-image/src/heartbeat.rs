//! The boot heartbeat: an enclave's init sends one byte to the parent's port 9000 and wants it back, which
//! nitro-cli does. Here the port is a Unix socket.

use std::{
    io::{self, Read as _, Write as _},
    os::unix::net::UnixListener,
    time::Duration,
};

/// The byte that is sent and wanted back.
const HEARTBEAT: u8 = 0xb7;
/// How long a guest may take from connecting to sending, and to take the answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Answers one connection; whether it was the heartbeat.
pub fn answer(listener: &UnixListener) -> io::Result<bool> {
    let (mut guest, _) = listener.accept()?;
    guest.set_read_timeout(Some(PATIENCE))?;
    guest.set_write_timeout(Some(PATIENCE))?;
    let mut byte = [0];
    let count = guest.read(&mut byte)?;
    if count == 1 && byte[0] == HEARTBEAT {
        guest.write_all(&byte)?;
        return Ok(true);
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn only_the_heartbeat_is_sent_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v_9000");
        let listener = UnixListener::bind(&path).unwrap();
        for (sent, expected) in [(HEARTBEAT, &[HEARTBEAT][..]), (1, &[])] {
            let mut guest = UnixStream::connect(&path).unwrap();
            guest.write_all(&[sent]).unwrap();
            assert_eq!(answer(&listener).unwrap(), sent == HEARTBEAT);
            let mut back = Vec::new();
            guest.read_to_end(&mut back).unwrap();
            assert_eq!(back, expected);
        }
    }
}
