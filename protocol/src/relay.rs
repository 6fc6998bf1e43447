//! Copies bytes both ways between two connections until both directions have ended.
//!
//! Half-close is kept: the end of one direction is passed on and the other goes on. A connection that moves
//! nothing holds no buffer: bytes pass through one buffer per thread, and only what the far side does not
//! take at once is kept with the connection.

use std::{
    cell::RefCell,
    future::poll_fn,
    io,
    pin::Pin,
    sync::atomic::{AtomicU64, Ordering},
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, sleep_until},
};

/// Bytes read at once. Above 28 KiB nothing is gained on vsock (see `transport::VSOCK_WRITE_MAX`).
const CHUNK: usize = 28 << 10;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; CHUNK]);
}

/// How long a relay may be still.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// With both directions open.
    pub idle: Duration,
    /// After one direction has ended: a peer that never closes must not pin the pair for ever.
    pub linger: Duration,
}

impl Default for Limits {
    /// Five minutes, and one after the first end: the defaults of the peers that have any (research,
    /// networking c6).
    fn default() -> Self {
        Self { idle: Duration::from_mins(5), linger: Duration::from_mins(1) }
    }
}

/// Bytes moved, counted while the relay runs.
#[derive(Debug, Default)]
pub struct Moved {
    /// From the first connection to the second.
    pub forward: AtomicU64,
    /// From the second connection to the first.
    pub backward: AtomicU64,
}

/// Relays between `a` and `b`. `TimedOut` means that nothing moved for longer than `limits` allow.
pub async fn relay<A, B>(a: &mut A, b: &mut B, limits: Limits, moved: &Moved) -> io::Result<()>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let (mut forward, mut backward) = (Direction::default(), Direction::default());
    let mut seen = 0;
    loop {
        let half_closed = forward.done || backward.done;
        let deadline = Instant::now() + if half_closed { limits.linger } else { limits.idle };
        let progress = poll_fn(|cx| {
            let to = forward.poll_copy(cx, a, b, &moved.forward)?;
            let back = backward.poll_copy(cx, b, a, &moved.backward)?;
            if to.is_ready() && back.is_ready() {
                return Poll::Ready(Ok::<_, io::Error>(true));
            }
            // The limit changes with the first end, so the caller has to look at it again.
            if (forward.done || backward.done) == half_closed {
                Poll::Pending
            } else {
                Poll::Ready(Ok(false))
            }
        });
        tokio::select! {
            biased;
            ended = progress => if ended? { return Ok(()) },
            () = sleep_until(deadline) => {
                let total = moved.forward.load(Ordering::Relaxed) + moved.backward.load(Ordering::Relaxed);
                if total == seen {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                seen = total;
            }
        }
    }
}

/// One way.
#[derive(Default)]
struct Direction {
    /// Read but not yet taken by the far side.
    pending: Vec<u8>,
    /// How much of `pending` is written.
    written: usize,
    /// The source has ended.
    ended: bool,
    /// The end is passed on.
    done: bool,
}

impl Direction {
    fn poll_copy<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
        moved: &AtomicU64,
    ) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        loop {
            if self.done {
                return Poll::Ready(Ok(()));
            }
            while self.written < self.pending.len() {
                let count = ready!(Pin::new(&mut *to).poll_write(cx, &self.pending[self.written..]))?;
                if count == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.written += count;
                moved.fetch_add(count as u64, Ordering::Relaxed);
            }
            // Given back, not kept: an idle connection holds no buffer.
            self.pending = Vec::new();
            self.written = 0;
            if self.ended {
                match ready!(Pin::new(&mut *to).poll_shutdown(cx)) {
                    // The peer may be gone already; then there is nobody to tell.
                    Ok(()) => {}
                    Err(error) if error.kind() == io::ErrorKind::NotConnected => {}
                    Err(error) => return Poll::Ready(Err(error)),
                }
                self.done = true;
                continue;
            }
            ready!(self.poll_chunk(cx, from, to, moved))?;
        }
    }

    /// Reads one chunk and writes what the far side takes at once; the rest becomes `pending`.
    fn poll_chunk<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
        moved: &AtomicU64,
    ) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        SCRATCH.with_borrow_mut(|scratch| {
            let mut buffer = ReadBuf::new(scratch);
            ready!(Pin::new(from).poll_read(cx, &mut buffer))?;
            let chunk = buffer.filled();
            if chunk.is_empty() {
                self.ended = true;
                return Poll::Ready(Ok(()));
            }
            let taken = match Pin::new(to).poll_write(cx, chunk) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(count)) => count,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => 0,
            };
            moved.fetch_add(taken as u64, Ordering::Relaxed);
            self.pending = chunk[taken..].to_vec();
            Poll::Ready(Ok(()))
        })
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    const LIMITS: Limits = Limits { idle: Duration::from_secs(10), linger: Duration::from_secs(2) };

    #[tokio::test(start_paused = true)]
    async fn a_half_closed_connection_still_answers() {
        let (mut client, mut a) = duplex(64);
        let (mut b, mut server) = duplex(64);
        let moved = Moved::default();
        let (ended, (), answer) = tokio::join!(
            relay(&mut a, &mut b, LIMITS, &moved),
            async {
                let mut request = String::new();
                server.read_to_string(&mut request).await.unwrap();
                server.write_all(&vec![b'y'; request.len() * 2]).await.unwrap();
                drop(server);
            },
            async {
                client.write_all(&[b'x'; 10_000]).await.unwrap();
                client.shutdown().await.unwrap();
                let mut answer = Vec::new();
                client.read_to_end(&mut answer).await.unwrap();
                answer
            }
        );
        ended.unwrap();
        assert_eq!(answer, vec![b'y'; 20_000]);
        assert_eq!(moved.forward.load(Ordering::Relaxed), 10_000);
        assert_eq!(moved.backward.load(Ordering::Relaxed), 20_000);
    }

    #[tokio::test(start_paused = true)]
    async fn a_still_connection_is_closed_after_the_idle_limit_and_not_before() {
        let (mut client, mut a) = duplex(64);
        let (mut b, mut server) = duplex(64);
        let moved = Moved::default();
        let start = Instant::now();
        let mut byte = [0];
        let (ended, ()) = tokio::join!(relay(&mut a, &mut b, LIMITS, &moved), async {
            sleep_until(start + Duration::from_secs(9)).await;
            client.write_all(b"x").await.unwrap();
            server.read_exact(&mut byte).await.unwrap();
        });
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(start.elapsed() >= Duration::from_secs(19) - Duration::from_secs(9));
        assert!(start.elapsed() <= Duration::from_secs(20), "{:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_never_closes_is_let_go_after_the_linger() {
        let (mut client, mut a) = duplex(64);
        let (mut b, _server) = duplex(64);
        let start = Instant::now();
        client.shutdown().await.unwrap();
        let ended = relay(&mut a, &mut b, LIMITS, &Moved::default()).await;
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(start.elapsed(), LIMITS.linger);
    }
}
