//! Keeps the view current: the enclave's status, and whether the manifest on disk still is the one that runs.

use std::{path::PathBuf, sync::Arc, time::Duration};

use enclave_protocol::bundle::Bundle;
use enclave_protocol::control::{Condition, Event, Phase};
use tokio::{
    sync::Notify,
    time::{Instant, sleep, timeout},
};

use crate::{
    backoff::Backoff,
    counters::count,
    rules::{self, Reading, ReadingError},
    state::Session,
    view::{EVENTS_MAX, Shared},
};

/// Time between two status calls when no event asks for one. Below half of what makes an answer stale.
const POLL: Duration = Duration::from_secs(2);
/// The same while the plugins are being stopped: the end must be seen well within the enclave's 5 s.
const POLL_STOPPING: Duration = Duration::from_millis(500);
/// Events come in bursts; one status answers all of them.
const BURST: Duration = Duration::from_millis(50);
/// Time between two looks at the manifest on disk.
const DRIFT_POLL: Duration = Duration::from_secs(5);

/// Asks for the status again and again, at once when `refresh` says that something happened.
pub(crate) async fn watch_status(shared: Arc<Shared>, refresh: Arc<Notify>) {
    let mut backoff = Backoff::default();
    loop {
        let wait = match shared.control.status().await {
            Ok(status) => {
                backoff.reset();
                let stopping = status.phase == Phase::Stopping;
                shared.view.send_modify(|view| {
                    view.status = Some(status);
                    view.answered = Some(Instant::now());
                });
                if stopping { POLL_STOPPING } else { POLL }
            }
            Err(error) => {
                tracing::warn!(%error, "the enclave did not answer");
                count(&shared.counters.status_failures);
                shared.outages.send_modify(|outages| *outages += 1);
                backoff.next()
            }
        };
        if timeout(wait, refresh.notified()).await.is_ok() {
            sleep(BURST).await;
        }
    }
}

/// Follows the enclave's events: the newest are kept for `status`, and each asks for a new status. As log
/// records they are shipped already, with plugin and reason.
pub(crate) async fn follow_events(shared: Arc<Shared>, session: Session, after: u64, refresh: Arc<Notify>) {
    // A proxy that takes a session up again wants the last story too.
    let mut after = after.saturating_sub(EVENTS_MAX as u64);
    shared.view.send_modify(|view| view.events.clear());
    let mut backoff = Backoff::default();
    let mut outages = shared.outages.subscribe();
    loop {
        let before = after;
        let follow = async {
            let mut lines = shared.control.events(after, &session.token).await?;
            loop {
                let more = lines.next(|line| {
                    if let Ok(event) = serde_json::from_slice::<Event>(line) {
                        after = after.max(event.seq);
                        shared.view.send_modify(|view| view.take_event(event));
                    }
                    refresh.notify_one();
                });
                if !more.await? {
                    return Ok::<_, crate::control::ControlError>(());
                }
            }
        };
        outages.mark_unchanged();
        tokio::select! {
            ended = follow => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "the event stream ended");
                }
            }
            _ = outages.changed() => {}
        }
        if after > before {
            backoff.reset();
        }
        sleep(backoff.next()).await;
    }
}

/// Where the manifest lies, and what its ports must not be.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    /// The YAML file.
    pub(crate) manifest: PathBuf,
    /// The files beside it.
    pub(crate) config_dir: Option<PathBuf>,
    /// The signature of both.
    pub(crate) signature: Option<PathBuf>,
    /// Our own listeners.
    pub(crate) reserved: Vec<u16>,
}

impl Source {
    /// Reads and checks the manifest on a thread that may block.
    pub(crate) async fn read(&self) -> Result<Reading, ReadingError> {
        let source = self.clone();
        let read = tokio::task::spawn_blocking(move || {
            let bundle = Bundle::read(&source.manifest, source.config_dir.as_deref())?;
            let signature = source.signature.as_deref().map(rules::read_signature).transpose()?;
            Ok(Reading { signature, ..Reading::of(bundle, &source.reserved)? })
        });
        read.await.expect("invariant: reading a manifest does not panic and is not aborted")
    }
}

/// Looks whether the manifest on disk still is the one that runs; a change is reported once and never
/// applied.
pub(crate) async fn watch_drift(shared: Arc<Shared>, source: Source, running: String) {
    let mut last: Option<Bundle> = None;
    loop {
        // A bundle that is unchanged says what it said before.
        if let Some(message) = look(&source, &running, &mut last).await {
            let drift = message.map(|message| Condition { kind: "ManifestDrift".to_owned(), message });
            shared.view.send_if_modified(|view| {
                if let (None, Some(drift)) = (&view.drift, &drift) {
                    tracing::warn!(message = drift.message, "ManifestDrift");
                }
                let changed = view.drift != drift;
                view.drift.clone_from(&drift);
                changed
            });
        }
        sleep(DRIFT_POLL).await;
    }
}

/// `None`: as before. `Some(None)`: the same manifest. `Some(Some(_))`: another one.
async fn look(source: &Source, running: &str, last: &mut Option<Bundle>) -> Option<Option<String>> {
    let reading = {
        let (source, last) = (source.clone(), last.clone());
        let looked = tokio::task::spawn_blocking(move || {
            let bundle = Bundle::read(&source.manifest, source.config_dir.as_deref())?;
            if last.as_ref() == Some(&bundle) {
                return Ok(None);
            }
            let read = Reading::of(bundle.clone(), &source.reserved);
            Ok::<_, ReadingError>(Some((bundle, read.map(|reading| reading.digest))))
        });
        looked.await.ok()?
    };
    match reading {
        Ok(None) => None,
        Ok(Some((bundle, digest))) => {
            *last = Some(bundle);
            Some(match digest {
                Ok(digest) if digest == running => None,
                Ok(digest) => Some(format!(
                    "the manifest on disk has digest {digest}, the one that runs has {running}; \
                     it is not applied"
                )),
                Err(error) => {
                    Some(format!("the manifest on disk cannot be read, the running one goes on: {error}"))
                }
            })
        }
        // A mount that is being swapped may be unreadable for a moment; it is said all the same, and taken
        // back.
        Err(error) => {
            *last = None;
            Some(Some(format!("the manifest on disk cannot be read, the running one goes on: {error}")))
        }
    }
}
