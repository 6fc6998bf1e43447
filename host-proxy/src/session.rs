//! One boot of the enclave that runs our manifest, from its acceptance to its end.

use std::{sync::Arc, time::Duration};

use enclave_protocol::control::{AckRequest, DrainRequest, Phase, Status};
use tokio::{
    io::AsyncWrite,
    sync::{Mutex, Notify, mpsc, watch},
    task::{JoinError, JoinSet},
    time::{Instant, sleep, sleep_until, timeout},
};

use crate::{
    backoff::Backoff,
    enclave_clock,
    exit::Exit,
    logs::{self, Shipper, Sink},
    monitor::{self, Source},
    state::{Durability, Session},
    throttle::Throttle,
    view::{Shared, Stop, View},
};

/// How long a drain may outlast its grace: stopping in order, and the enclave's wait for acknowledgements.
const DRAIN_SLACK: Duration = Duration::from_secs(15);
/// An enclave that was told to drain and does not answer for so long has powered off.
const DRAIN_SILENCE_MAX: Duration = Duration::from_secs(10);
/// How long the rest of the log may take: the enclave waits 5 s for all of it.
const REST_OF_LOG: Duration = Duration::from_secs(3);
/// How long the end may take in all: the enclave waits for its plugins' last output, then 5 s for us.
const END_MAX: Duration = Duration::from_secs(8);
/// Time between two looks whether the enclave is gone.
const END_POLL: Duration = Duration::from_millis(100);
/// How long the last acknowledgement may take.
const LAST_ACK: Duration = Duration::from_secs(2);

/// Why a session is over.
#[derive(Debug)]
pub(crate) enum Over {
    /// So is the run.
    Ended(Exit, String),
    /// The enclave started anew and knows nothing.
    Rebooted,
}

/// How long things may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// A drain, when the request does not say.
    pub(crate) grace_seconds: u32,
    /// The enclave's silence.
    pub(crate) silence: Duration,
}

/// The tasks of a session. Dropping it ends them.
struct Tasks<W> {
    /// Loops that do not end by themselves.
    loops: JoinSet<()>,
    /// The log shipper; it comes back when it is told to finish.
    shipping: JoinSet<Shipper<W>>,
    /// Tells the shipper to come to its end.
    finish: watch::Sender<bool>,
    /// Log records up to here are written.
    written: watch::Receiver<u64>,
    /// The request to drain, once it is on its way.
    draining: JoinSet<()>,
}

/// A drain that was asked for.
struct Drain {
    deadline: Instant,
}

/// Serves the session until it is over.
pub(crate) async fn serve<W: AsyncWrite + Send + Unpin + 'static>(
    shared: &Arc<Shared>,
    source: Source,
    session: &Session,
    sink: &Arc<Mutex<Sink<W>>>,
    stops: &mut mpsc::Receiver<Stop>,
    limits: Limits,
) -> Over {
    let mut tasks = Tasks::start(shared, source, session, sink);
    let mut view = shared.view.subscribe();
    let mut drain: Option<Drain> = None;
    loop {
        let (now, answered) = {
            let view = view.borrow_and_update();
            (outcome(&view, session), view.answered)
        };
        match now {
            Outcome::Running => {}
            Outcome::Rebooted => return Over::Rebooted,
            Outcome::Ended(status) => return tasks.end(shared, session, *status).await,
        }
        let silence = if drain.is_some() { limits.silence.min(DRAIN_SILENCE_MAX) } else { limits.silence };
        let silent_at = answered.unwrap_or_else(Instant::now) + silence;
        let drain_at = drain.as_ref().map_or(silent_at, |drain| drain.deadline);
        tokio::select! {
            changed = view.changed() => changed.expect("invariant: the proxy keeps the sender"),
            Some(stop) = stops.recv() => {
                let grace_seconds = stop.grace_seconds.unwrap_or(limits.grace_seconds);
                if drain.is_none() {
                    tracing::info!(grace_seconds, "draining the enclave");
                    let deadline = Instant::now() + Duration::from_secs(grace_seconds.into()) + DRAIN_SLACK;
                    drain = Some(Drain { deadline });
                    tasks.draining.spawn(ask_to_drain(Arc::clone(shared), session.clone(), grace_seconds));
                }
            }
            () = sleep_until(silent_at) => {
                let reason = format!("the enclave did not answer for {} s", silence.as_secs());
                return Over::Ended(Exit::Unreachable, reason);
            }
            () = sleep_until(drain_at), if drain.is_some() => {
                return Over::Ended(Exit::Unreachable, "the enclave did not end its drain in time".to_owned());
            }
            Some(joined) = tasks.loops.join_next() => ended_early(joined),
            Some(joined) = tasks.shipping.join_next() => ended_early(joined),
            Some(_) = tasks.draining.join_next() => {}
        }
    }
}

/// A loop that ends is a bug, and the process is better started anew than run without it.
fn ended_early<T>(joined: Result<T, JoinError>) {
    match joined {
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Ok(_) | Err(_) => unreachable!("invariant: a session's loops end with the session"),
    }
}

/// What the newest status means for the session.
enum Outcome {
    Running,
    Rebooted,
    Ended(Box<Status>),
}

fn outcome(view: &View, session: &Session) -> Outcome {
    let Some(status) = &view.status else { return Outcome::Running };
    if status.boot_id != session.boot_id {
        return Outcome::Rebooted;
    }
    match status.phase {
        // A status from before the manifest was accepted may still be the newest one.
        Phase::AwaitingManifest | Phase::Running | Phase::Stopping => Outcome::Running,
        Phase::Completed | Phase::Failed => Outcome::Ended(Box::new(status.clone())),
    }
}

impl<W: AsyncWrite + Send + Unpin + 'static> Tasks<W> {
    fn start(shared: &Arc<Shared>, source: Source, session: &Session, sink: &Arc<Mutex<Sink<W>>>) -> Self {
        let refresh = Arc::new(Notify::new());
        let (position, written) = watch::channel(session.log_seq);
        let (finish, finishing) = watch::channel(false);
        let shipper = Shipper {
            shared: Arc::clone(shared),
            sink: Arc::clone(sink),
            session: session.clone(),
            position,
            failures: Throttle::default(),
        };
        let mut shipping = JoinSet::new();
        shipping.spawn(shipper.run(finishing));
        let mut loops = JoinSet::new();
        loops.spawn(logs::acknowledge(Arc::clone(shared), session.clone(), written.clone()));
        let after = shared.view.borrow().status.as_ref().map_or(0, |status| status.seq);
        loops.spawn(monitor::follow_events(Arc::clone(shared), session.clone(), after, Arc::clone(&refresh)));
        loops.spawn(monitor::watch_status(Arc::clone(shared), refresh));
        loops.spawn(enclave_clock::keep(Arc::clone(shared), session.clone()));
        loops.spawn(monitor::watch_drift(Arc::clone(shared), source, session.digest.clone()));
        Self { loops, shipping, finish, written, draining: JoinSet::new() }
    }

    /// The workload is over: the rest of the log, and the acknowledgement of the log and of the status, again
    /// as long as more comes, until the enclave is satisfied and powers off.
    async fn end(mut self, shared: &Shared, session: &Session, status: Status) -> Over {
        let deadline = Instant::now() + END_MAX;
        self.finish.send_replace(true);
        let shipper = match timeout(REST_OF_LOG, self.shipping.join_next()).await {
            Ok(Some(Ok(shipper))) => Some(shipper),
            Ok(Some(Err(_)) | None) | Err(_) => None,
        };
        self.loops.shutdown().await;
        let phase = status.phase;
        let boot_failure = status.boot_failure().map(|why| format!("the enclave's boot failed: {why}"));
        let mut status = status;
        let mut acknowledged = None;
        loop {
            let complete = match &shipper {
                Some(shipper) => timeout(REST_OF_LOG, shipper.rest()).await.unwrap_or(false),
                None => false,
            };
            // Everything up to `status.log_seq` was there before this pass; what the pass did not bring stays
            // inside by the manifest's word and waits for nobody.
            let written = *self.written.borrow();
            let log_seq = if complete { written.max(status.log_seq) } else { written };
            if acknowledged != Some((log_seq, status.seq)) {
                last_ack(shared, session, log_seq, status.seq).await;
                acknowledged = Some((log_seq, status.seq));
            }
            if !complete {
                tracing::warn!(log_seq, newest = status.log_seq, "the log could not be shipped to its end");
                break;
            }
            sleep(END_POLL).await;
            match shared.control.status().await {
                Ok(newer) if newer.boot_id == session.boot_id && Instant::now() < deadline => {
                    shared.view.send_modify(|view| view.status = Some(newer.clone()));
                    status = newer;
                }
                // It powered off, which is what is waited for, or it takes too long.
                Ok(_) | Err(_) => break,
            }
        }
        match phase {
            Phase::Failed => {
                let reason = boot_failure.unwrap_or_else(|| "the workload failed".to_owned());
                Over::Ended(Exit::WorkloadFailed, reason)
            }
            Phase::AwaitingManifest | Phase::Running | Phase::Stopping | Phase::Completed => {
                Over::Ended(Exit::Ok, "the workload completed".to_owned())
            }
        }
    }
}

/// Stores the position and acknowledges it with the status, trying again for a while.
async fn last_ack(shared: &Shared, session: &Session, log_seq: u64, status_seq: u64) {
    if let Err(error) = shared.persist(session, log_seq, Durability::Process).await {
        tracing::warn!(%error, "the log position cannot be stored");
    }
    let ack = AckRequest { boot_id: session.boot_id.clone(), log_seq, status_seq: Some(status_seq) };
    let acknowledged = timeout(LAST_ACK, async {
        let mut backoff = Backoff::default();
        while let Err(error) = shared.control.ack(&ack, &session.token).await {
            tracing::debug!(%error, "the last acknowledgement failed");
            sleep(backoff.next()).await;
        }
    });
    if acknowledged.await.is_err() {
        tracing::warn!("the enclave did not take the last acknowledgement");
    }
}

/// Asks until the enclave has heard it; the session's deadlines end it otherwise.
async fn ask_to_drain(shared: Arc<Shared>, session: Session, grace_seconds: u32) {
    let mut backoff = Backoff::default();
    while let Err(error) = shared.control.drain(&DrainRequest { grace_seconds }, &session.token).await {
        tracing::warn!(%error, "the enclave could not be asked to drain");
        sleep(backoff.next()).await;
    }
}
