//! The boot heartbeat: `nitro-cli run-enclave` waits minutes for it, and then gives the enclave up (E36).
//!
//! It says that an init runs, and nothing about the workload. AWS's init sends it before anything else; as
//! its child we must not send it a second time, because nobody listens any more.

use std::{io, time::Duration};

use enclave_protocol::transport::Host;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

/// Where the parent waits for it.
const PORT: u32 = 9000;
/// What is sent, and has to come back.
const BEAT: u8 = 0xB7;
/// How long the echo may take. The parent answers at once; nothing here waits for it.
const ECHO_MAX: Duration = Duration::from_secs(10);

/// What became of it.
#[derive(Debug, thiserror::Error)]
pub enum HeartbeatError {
    /// The parent cannot be reached on port 9000: nobody waits for a heartbeat there.
    #[error("nobody takes it: {0}")]
    Unreachable(#[source] io::Error),
    /// The parent took it and did not echo it.
    #[error("no echo: {0}")]
    NoEcho(#[source] io::Error),
    /// Another byte came back.
    #[error("the echo is {0:#04x} and not {BEAT:#04x}")]
    WrongEcho(u8),
}

/// Sends the heartbeat and waits for its echo. However it ends, the enclave goes on: if the parent was not
/// content, it is the parent that gives up.
pub async fn beat(host: &Host) -> Result<(), HeartbeatError> {
    let mut stream = host.dial(PORT).await.map_err(HeartbeatError::Unreachable)?;
    let echo = async {
        stream.write_all(&[BEAT]).await?;
        stream.read_u8().await
    };
    match timeout(ECHO_MAX, echo).await {
        Ok(Ok(BEAT)) => Ok(()),
        Ok(Ok(other)) => Err(HeartbeatError::WrongEcho(other)),
        Ok(Err(error)) => Err(HeartbeatError::NoEcho(error)),
        Err(_) => Err(HeartbeatError::NoEcho(io::ErrorKind::TimedOut.into())),
    }
}

#[cfg(test)]
mod tests {
    use enclave_protocol::transport::port_path;
    use tokio::{join, net::UnixListener};

    use super::*;

    /// Beats towards a parent that answers so; `None` stays silent.
    async fn told(answer: Option<&[u8]>) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v.sock");
        let parent = UnixListener::bind(port_path(&path, PORT)).unwrap();
        let host = Host::Unix(path);
        let (result, _held) = join!(beat(&host), async {
            let mut stream = parent.accept().await.unwrap().0;
            assert_eq!(stream.read_u8().await.unwrap(), BEAT);
            match answer {
                Some(bytes) => stream.write_all(bytes).await.map(|()| None).unwrap(),
                None => Some(stream),
            }
        });
        result.map_or_else(|error| error.to_string(), |()| "ok".to_owned())
    }

    #[tokio::test(start_paused = true)]
    async fn the_heartbeat_is_content_with_its_own_byte_alone() {
        assert_eq!(told(Some(&[BEAT])).await, "ok");
        assert_eq!(told(Some(&[0x00])).await, "the echo is 0x00 and not 0xb7");
        assert!(told(Some(&[])).await.starts_with("no echo: "));
    }

    #[tokio::test(start_paused = true)]
    async fn a_parent_that_never_answers_costs_a_bounded_time() {
        assert_eq!(told(None).await, "no echo: timed out");
    }

    #[tokio::test]
    async fn a_parent_that_does_not_listen_is_told_as_that() {
        let error = beat(&Host::Unix("/nonexistent/v.sock".into())).await.unwrap_err();
        assert!(error.to_string().starts_with("nobody takes it: "), "{error}");
    }
}
