//! What the proxy knows at the moment: written by the session, read by health, metrics and admin.

use std::{collections::VecDeque, sync::Mutex, sync::PoisonError, time::Duration};

use bytes::Bytes;
use enclave_protocol::control::{Condition, Event, Pod, Status};
use tokio::{
    sync::{broadcast, mpsc, watch},
    time::Instant,
};

use crate::{
    control::Control,
    counters::Counters,
    state::{Durability, Session, State, StateDir},
};

/// An enclave that did not answer for so long is not ready.
pub(crate) const ANSWER_AGE_MAX: Duration = Duration::from_secs(5);
/// Newest events that are kept for `status`: the story of the last restarts, not a log.
pub(crate) const EVENTS_MAX: usize = 20;
/// Recent log records that are kept for `logs`.
const RECENT_RECORDS_MAX: usize = 1000;
/// And bytes of them.
const RECENT_BYTES_MAX: usize = 1 << 20;
/// Records that a follower may lag behind before it misses some.
const FOLLOWER_LAG_MAX: usize = 256;

/// A request to drain the enclave and end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stop {
    /// Instead of the configured grace.
    pub grace_seconds: Option<u32>,
}

/// What all parts of the proxy share.
#[derive(Debug)]
pub(crate) struct Shared {
    /// The enclave.
    pub(crate) control: Control,
    /// What is counted.
    pub(crate) counters: std::sync::Arc<Counters>,
    /// What is known.
    pub(crate) view: watch::Sender<View>,
    /// Goes up whenever the enclave did not answer: long streams have to be opened anew.
    pub(crate) outages: watch::Sender<u64>,
    /// Log records for `logs`.
    pub(crate) recent: Recent,
    /// What survives a restart.
    pub(crate) store: StateDir,
    /// The `instance` label.
    pub(crate) instance: String,
    /// The pod that we are in, as far as the options tell.
    pub(crate) pod: Option<Pod>,
    /// Where requests to stop go.
    pub(crate) stops: mpsc::Sender<Stop>,
}

/// What is known.
#[derive(Debug, Clone, Default)]
pub(crate) struct View {
    /// The session, once the enclave runs our manifest.
    pub(crate) session: Option<Session>,
    /// The newest status of any boot.
    pub(crate) status: Option<Status>,
    /// When it came.
    pub(crate) answered: Option<Instant>,
    /// The newest events of the session, oldest first.
    pub(crate) events: VecDeque<Event>,
    /// What the enclave remarked when it took the manifest.
    pub(crate) remarks: Vec<Condition>,
    /// The manifest on disk is another one than the one that runs.
    pub(crate) drift: Option<Condition>,
    /// Standard output does not take log records.
    pub(crate) sink_broken: bool,
    /// The last line, once it is over.
    pub(crate) end: Option<String>,
}

/// Type of the condition of a host-proxy whose standard output is closed.
pub(crate) const STDOUT_BROKEN: &str = "StdoutBroken";

impl View {
    /// All remarks: the enclave's, those of its status, and our own; each once.
    pub(crate) fn conditions(&self) -> Vec<Condition> {
        let status = self.status.iter().flat_map(|status| &status.conditions);
        let mut all: Vec<Condition> = Vec::new();
        let stdout = self.sink_broken.then(|| Condition {
            kind: STDOUT_BROKEN.to_owned(),
            message: "standard output is closed: log records stay in the enclave, and only a new host-proxy \
                      gets a new one"
                .to_owned(),
        });
        for condition in self.remarks.iter().chain(status).chain(&self.drift).chain(&stdout) {
            if !all.contains(condition) {
                all.push(condition.clone());
            }
        }
        all
    }

    /// Keeps an event, pushing out the oldest one.
    pub(crate) fn take_event(&mut self, event: Event) {
        if self.events.len() == EVENTS_MAX {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    /// Whether the newest status is recent enough to believe it.
    pub(crate) fn is_fresh(&self) -> bool {
        self.answered.is_some_and(|at| at.elapsed() <= ANSWER_AGE_MAX)
    }
}

impl Shared {
    /// Stores the session with this log position. Done on a thread that may block.
    pub(crate) async fn persist(
        &self,
        session: &Session,
        log_seq: u64,
        durability: Durability,
    ) -> std::io::Result<()> {
        let state = State {
            instance_id: self.instance.clone(),
            session: Some(Session { log_seq, ..session.clone() }),
        };
        let store = self.store.clone();
        let stored = tokio::task::spawn_blocking(move || store.store(&state, durability));
        stored.await.map_err(std::io::Error::other)?
    }
}

/// The newest log records, as they went to stdout.
#[derive(Debug)]
pub(crate) struct Recent {
    kept: Mutex<Kept>,
    followers: broadcast::Sender<Bytes>,
}

#[derive(Debug, Default)]
struct Kept {
    lines: VecDeque<Bytes>,
    bytes: usize,
}

impl Default for Recent {
    fn default() -> Self {
        Self { kept: Mutex::default(), followers: broadcast::Sender::new(FOLLOWER_LAG_MAX) }
    }
}

impl Recent {
    /// Keeps a line, pushing out the oldest ones.
    pub(crate) fn push(&self, line: Bytes) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.bytes += line.len();
        kept.lines.push_back(line.clone());
        while kept.lines.len() > RECENT_RECORDS_MAX || kept.bytes > RECENT_BYTES_MAX {
            let Some(oldest) = kept.lines.pop_front() else { break };
            kept.bytes -= oldest.len();
        }
        // Sent under the lock, so that `follow` neither misses nor repeats a line. Nobody may be listening.
        self.followers.send(line).ok();
    }

    /// The kept lines, and the ones to come.
    pub(crate) fn follow(&self) -> (Vec<Bytes>, broadcast::Receiver<Bytes>) {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        (kept.lines.iter().cloned().collect(), self.followers.subscribe())
    }
}

#[cfg(test)]
mod tests {
    use enclave_protocol::timestamp::Timestamp;

    use super::*;

    #[test]
    fn the_newest_events_are_kept() {
        let mut view = View::default();
        for seq in 1..=EVENTS_MAX as u64 + 3 {
            let (reason, message) = ("Started".into(), "as pid 7".into());
            view.take_event(Event { seq, time: Timestamp(0), plugin: None, reason, message });
        }
        let seqs: Vec<u64> = view.events.iter().map(|event| event.seq).collect();
        assert_eq!(seqs, (4..=EVENTS_MAX as u64 + 3).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn recent_records_are_bounded_by_number_and_by_bytes() {
        let recent = Recent::default();
        for n in 0..RECENT_RECORDS_MAX + 5 {
            recent.push(Bytes::from(n.to_string()));
        }
        let (lines, mut next) = recent.follow();
        assert_eq!((lines.len(), &lines[0][..]), (RECENT_RECORDS_MAX, &b"5"[..]));
        recent.push(Bytes::from(vec![b'x'; RECENT_BYTES_MAX]));
        assert_eq!(recent.follow().0.len(), 1);
        assert_eq!(next.recv().await.unwrap().len(), RECENT_BYTES_MAX);
    }
}
