//! What readers of the API see. The driver writes it; connections read it; neither waits for the other.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use enclave_protocol::{
    control::{AckRequest, DrainRequest, ManifestAccepted, Status, TOKEN_BYTES},
    digest::hex,
    metrics::Sample,
    telemetry::TelemetryStatus,
};
use tokio::sync::{mpsc, oneshot, watch};

use super::{accept::Candidate, events::Events};
use crate::logs::outlets::Outlets;

/// Commands that may wait for the driver.
pub const COMMANDS_MAX: usize = 64;

/// What a connection asks the driver to do.
#[derive(Debug)]
pub enum Command {
    /// Run this deployment. The answer is what the driver makes of it.
    Accept(Box<Candidate>, oneshot::Sender<Acceptance>),
    /// Stop in order.
    Drain(DrainRequest),
}

/// What became of a candidate.
#[derive(Debug)]
pub enum Acceptance {
    /// It runs, or ran already with the same digest.
    Accepted(Box<ManifestAccepted>),
    /// Another manifest runs.
    Conflict {
        /// The digest that runs.
        digest: String,
    },
    /// It could not be prepared; nothing was started and another may be tried.
    Failed(String),
    /// It could not be measured; nothing was started and nothing ever will be: the enclave ends.
    NotMeasured(String),
}

/// Everything a reader can see.
#[derive(Debug)]
pub struct Board {
    /// The latest status.
    pub status: watch::Sender<Arc<Status>>,
    /// The latest sample.
    pub sample: watch::Sender<Option<Arc<Sample>>>,
    /// The telemetry plugin's latest report.
    pub telemetry: watch::Sender<Option<TelemetryStatus>>,
    /// What the host has acknowledged.
    pub acknowledged: watch::Sender<Acknowledged>,
    /// Log records.
    pub logs: Arc<Outlets>,
    /// State changes.
    pub events: Events,
    /// Requests to the driver.
    pub commands: mpsc::Sender<Command>,
    /// Refusals, counted.
    pub refusals: Refusals,
    token: OnceLock<Token>,
}

/// How far the host has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Acknowledged {
    /// Log records up to here.
    pub log_seq: u64,
    /// Events and status up to here.
    pub status_seq: u64,
}

impl Acknowledged {
    /// Takes an acknowledgement in; it never goes back.
    pub fn take(&mut self, ack: &AckRequest) {
        self.log_seq = self.log_seq.max(ack.log_seq);
        self.status_seq = self.status_seq.max(ack.status_seq.unwrap_or(0));
    }
}

/// What was turned away, since the start.
#[derive(Debug, Default)]
pub struct Refusals {
    /// A wrong or missing token.
    pub unauthorized: AtomicU64,
    /// Requests that were malformed, too large or too slow.
    pub malformed: AtomicU64,
    /// Connections over the limit, with a foreign CID or a broken handshake.
    pub connections: AtomicU64,
    /// Connections whose task panicked.
    pub panics: AtomicU64,
}

#[derive(Debug)]
struct Token {
    text: String,
    used: AtomicBool,
}

/// What a request's bearer token is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Authority {
    /// No token exists yet, or the one there is has never been used: the first answer may have been lost.
    Unclaimed,
    /// The right token.
    Holder,
    /// A wrong or missing token.
    Stranger,
}

impl Board {
    /// A board with nothing on it.
    pub fn new(status: Status, logs: Arc<Outlets>, commands: mpsc::Sender<Command>) -> Self {
        Self {
            status: watch::Sender::new(Arc::new(status)),
            sample: watch::Sender::new(None),
            telemetry: watch::Sender::new(None),
            acknowledged: watch::Sender::new(Acknowledged::default()),
            logs,
            events: Events::new(),
            commands,
            refusals: Refusals::default(),
            token: OnceLock::new(),
        }
    }

    /// The session token; made at the first call.
    pub fn token(&self) -> Result<&str, getrandom::Error> {
        if let Some(token) = self.token.get() {
            return Ok(&token.text);
        }
        let text = random_hex::<TOKEN_BYTES>()?;
        Ok(&self.token.get_or_init(|| Token { text, used: AtomicBool::new(false) }).text)
    }

    /// Judges a bearer token.
    pub fn authority(&self, bearer: Option<&str>) -> Authority {
        let Some(token) = self.token.get() else { return Authority::Unclaimed };
        if bearer.is_some_and(|bearer| same(bearer.as_bytes(), token.text.as_bytes())) {
            token.used.store(true, Ordering::Relaxed);
            return Authority::Holder;
        }
        if bearer.is_none() && !token.used.load(Ordering::Relaxed) {
            return Authority::Unclaimed;
        }
        Authority::Stranger
    }
}

/// `N` random bytes as hexadecimal.
pub fn random_hex<const N: usize>() -> Result<String, getrandom::Error> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)?;
    Ok(hex(&bytes))
}

/// Compares in a time that does not tell how much of it was right.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differs, (x, y)| differs | (x ^ y)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_open_until_its_first_use_and_then_needed() {
        let board = Board::new(crate::status::awaiting("boot"), Arc::default(), mpsc::channel(1).0);
        assert_eq!(board.authority(None), Authority::Unclaimed);
        let token = board.token().unwrap().to_owned();
        assert_eq!(token.len(), 2 * TOKEN_BYTES);
        assert_eq!(board.authority(None), Authority::Unclaimed);
        assert_eq!(board.authority(Some("wrong")), Authority::Stranger);
        assert_eq!(board.authority(Some(&token)), Authority::Holder);
        assert_eq!(board.authority(None), Authority::Stranger);
        assert_eq!(board.token().unwrap(), token);
    }
}
