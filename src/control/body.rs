//! Response bodies: whole ones, and NDJSON feeds that follow a ring.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use hyper::body::{Body, Frame};
use serde::Serialize;
use tokio::{sync::watch, time::sleep};

use super::board::Board;
use crate::logs::ring::Rings;

/// Text of one batch, in bytes: far above the few hundred that kernels since 6.12.92 want a vsock packet to
/// have.
const BATCH_BYTES_MAX: usize = 16 << 10;
/// How long a feed waits for more after the first new record, so that records do not travel one by one.
const COALESCE: Duration = Duration::from_millis(20);

/// A response body.
pub enum Reply {
    /// All of it.
    Whole(Option<Bytes>),
    /// A feed.
    Feed(Next),
}

/// A future of the next batch, and of the feed after it.
type Next = Pin<Box<dyn Future<Output = Option<(Bytes, Feed)>> + Send>>;

impl Reply {
    /// A body of these bytes.
    pub fn whole(bytes: impl Into<Bytes>) -> Self {
        Self::Whole(Some(bytes.into()))
    }

    /// Log records after `after`; with `follow` it ends when there is nothing more to wait for.
    pub fn logs(rings: &Arc<Rings>, after: u64, follow: bool) -> Self {
        let changed = rings.subscribe();
        let feed = Feed { source: Source::Logs(Arc::clone(rings)), after, follow, changed };
        Self::Feed(Box::pin(feed.next()))
    }

    /// Events after `after`; with `follow` it never ends by itself.
    pub fn events(board: &Arc<Board>, after: u64, follow: bool) -> Self {
        let changed = board.events.subscribe();
        let feed = Feed { source: Source::Events(Arc::clone(board)), after, follow, changed };
        Self::Feed(Box::pin(feed.next()))
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut *self {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Feed(next) => match ready!(next.as_mut().poll(cx)) {
                None => Poll::Ready(None),
                Some((batch, feed)) => {
                    *next = Box::pin(feed.next());
                    Poll::Ready(Some(Ok(Frame::data(batch))))
                }
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None))
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        match self {
            Self::Whole(bytes) => {
                hyper::body::SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Self::Feed(_) => hyper::body::SizeHint::default(),
        }
    }
}

/// A reader's place in a ring.
pub struct Feed {
    source: Source,
    after: u64,
    follow: bool,
    changed: watch::Receiver<u64>,
}

enum Source {
    Logs(Arc<Rings>),
    Events(Arc<Board>),
}

impl Feed {
    async fn next(mut self) -> Option<(Bytes, Self)> {
        loop {
            // Seen first, read second: what comes in between wakes the next wait.
            self.changed.borrow_and_update();
            let complete = self.is_complete();
            let (batch, last) = self.read();
            if let Some(last) = last {
                self.after = last;
                return Some((batch, self));
            }
            if !self.follow || complete || self.changed.changed().await.is_err() {
                return None;
            }
            sleep(COALESCE).await;
        }
    }

    /// Whether nothing will come that is worth waiting for.
    fn is_complete(&self) -> bool {
        match &self.source {
            Source::Logs(rings) => rings.is_complete(),
            Source::Events(_) => false,
        }
    }

    /// The next batch, and the sequence number of its last record.
    fn read(&self) -> (Bytes, Option<u64>) {
        match &self.source {
            Source::Logs(rings) => lines(&rings.read(self.after, BATCH_BYTES_MAX), |record| record.seq),
            Source::Events(board) => lines(&board.events.read(self.after), |event| event.seq),
        }
    }
}

fn lines<T: Serialize>(records: &[T], seq: impl Fn(&T) -> u64) -> (Bytes, Option<u64>) {
    let mut text = Vec::new();
    for record in records {
        // These types hold nothing that JSON cannot say, and a Vec takes every byte.
        if serde_json::to_writer(&mut text, record).is_ok() {
            text.push(b'\n');
        }
    }
    (text.into(), records.last().map(seq))
}
