//! Connects to the first of several addresses that answers.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    net::TcpStream,
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};

/// All attempts together.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
/// Head start of one attempt before the next one begins beside it (RFC 8305).
const HEAD_START: Duration = Duration::from_millis(250);

/// Tries the addresses in order, the next one as soon as one fails or is slow. The last failure is the
/// answer.
pub(crate) async fn connect(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    let attempted = timeout(DIAL_TIMEOUT, async {
        let mut attempts = JoinSet::new();
        let mut left = addresses.iter().copied();
        let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
        let mut next_at = Instant::now();
        loop {
            let waiting = left.len() > 0;
            if !waiting && attempts.is_empty() {
                return Err(last);
            }
            tokio::select! {
                biased;
                Some(attempt) = attempts.join_next() => match attempt {
                    Ok(Ok(stream)) => return Ok(stream),
                    Ok(Err(error)) => {
                        last = error;
                        next_at = Instant::now();
                    }
                    Err(error) => last = io::Error::other(error),
                },
                () = sleep_until(next_at), if waiting => {
                    if let Some(address) = left.next() {
                        attempts.spawn(attempt(address));
                    }
                    next_at = Instant::now() + HEAD_START;
                }
            }
        }
    });
    attempted.await.map_err(|_| io::Error::from_raw_os_error(ETIMEDOUT))?
}

/// `ETIMEDOUT` on Linux, so that the far side sees the errno that it knows.
const ETIMEDOUT: i32 = 110;

async fn attempt(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    // The address was judged before; whatever lies between us and the kernel must not have changed it.
    if stream.peer_addr()? != address {
        return Err(io::ErrorKind::AddrNotAvailable.into());
    }
    stream.set_nodelay(true)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_dead_address_does_not_hide_a_live_one() {
        let live = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dead = SocketAddr::from(([127, 0, 0, 1], 1));
        let stream = connect(&[dead, live.local_addr().unwrap()]).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), live.local_addr().unwrap());
    }

    #[tokio::test]
    async fn the_last_failure_is_the_answer() {
        let dead = SocketAddr::from(([127, 0, 0, 1], 1));
        assert_eq!(connect(&[dead]).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(connect(&[]).await.unwrap_err().kind(), io::ErrorKind::AddrNotAvailable);
    }
}
