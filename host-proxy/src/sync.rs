//! Brings one boot of the enclave and this proxy together: goes on with a known boot, or hands over the
//! manifest.

use std::{fmt::Write as _, path::Path, sync::Arc, time::Duration};

use enclave_protocol::control::{BOOT_FAILED, Condition, ManifestRequest, Phase, Problem, Status};
use tokio::time::{Instant, sleep, timeout_at};

use crate::{
    backoff::Backoff,
    control::ControlError,
    counters::count,
    exit::Exit,
    rules::{Reading, ReadingError},
    state::{Durability, Session},
    view::Shared,
};

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SyncError {
    /// The enclave does not answer.
    #[error("the enclave did not answer within {} s: {last}", .limit.as_secs())]
    Unreachable {
        /// How long it was given.
        limit: Duration,
        /// What the last attempt said.
        last: String,
    },
    /// The manifest on disk cannot be used. One line per mistake.
    #[error("{0}")]
    Reading(String),
    /// The enclave does not take it. One line per mistake.
    #[error("{0}")]
    Refused(String),
    /// The enclave takes no manifest at all.
    #[error("the enclave's boot failed: {0}")]
    BootFailed(String),
    /// The two sides read the manifest differently.
    #[error("the enclave reads the manifest differently ({0}): the two programs are of different versions")]
    Mismatch(String),
    /// The session cannot be kept.
    #[error("the session cannot be stored: {0}")]
    Store(#[source] std::io::Error),
}

impl SyncError {
    /// The exit code.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Unreachable { .. } => Exit::Unreachable,
            Self::BootFailed(_) => Exit::WorkloadFailed,
            Self::Reading(_) | Self::Refused(_) | Self::Mismatch(_) | Self::Store(_) => Exit::Invalid,
        }
    }

    /// A reading's failure, every mistake as `FILE:LINE:COL: path: message`.
    pub(crate) fn reading(manifest: &Path, error: &ReadingError) -> Self {
        match error {
            ReadingError::Bundle(error) => Self::Reading(error.to_string()),
            ReadingError::Signature { .. } => Self::Reading(error.to_string()),
            ReadingError::Invalid(mistakes) => {
                let lines: Vec<String> =
                    mistakes.iter().map(|mistake| format!("{}:{mistake}", manifest.display())).collect();
                Self::Reading(lines.join("\n"))
            }
        }
    }

    fn refused(manifest: &Path, problem: &Problem) -> Self {
        let mut text = format!("the enclave refused the manifest: {}: {}", problem.kind, problem.detail);
        for mistake in &problem.errors {
            // Writing to a String cannot fail.
            write!(text, "\n{}:{mistake}", manifest.display()).ok();
        }
        Self::Refused(text)
    }
}

/// Waits for the enclave's first answer.
pub(crate) async fn first_status(shared: &Shared, limit: Duration) -> Result<Status, SyncError> {
    let deadline = Instant::now() + limit;
    let mut backoff = Backoff::default();
    let mut last = "no answer yet".to_owned();
    let mut said = false;
    loop {
        match timeout_at(deadline, shared.control.status()).await {
            Ok(Ok(status)) => {
                shared.view.send_modify(|view| {
                    view.status = Some(status.clone());
                    view.answered = Some(Instant::now());
                });
                return Ok(status);
            }
            Ok(Err(error)) => last = error.to_string(),
            Err(_) => return Err(SyncError::Unreachable { limit, last }),
        }
        count(&shared.counters.status_failures);
        if !std::mem::replace(&mut said, true) {
            tracing::info!(error = last, limit_seconds = limit.as_secs(), "waiting for the enclave");
        }
        let wait = backoff.next();
        if Instant::now() + wait >= deadline {
            return Err(SyncError::Unreachable { limit, last });
        }
        sleep(wait).await;
    }
}

/// Hands the manifest over, compares the answer with our own reading and stores the session.
pub(crate) async fn put_manifest(
    shared: &Arc<Shared>,
    manifest: &Path,
    reading: &Reading,
    egress_port: u32,
    limit: Duration,
) -> Result<Session, SyncError> {
    let request = ManifestRequest {
        manifest: reading.bundle.manifest.clone(),
        files: reading.bundle.files.clone(),
        signature: reading.signature.as_ref().map(ToString::to_string),
        egress_port,
        instance_id: shared.instance.clone(),
        pod: shared.pod.clone(),
    };
    let deadline = Instant::now() + limit;
    let mut backoff = Backoff::default();
    let accepted = loop {
        let error = match shared.control.put_manifest(&request).await {
            Ok(accepted) => break accepted,
            Err(ControlError::Refused(problem)) if problem.kind == BOOT_FAILED => {
                // The newest status may be from before the failure.
                shared.view.send_modify(|view| {
                    view.status.iter_mut().for_each(|status| status.phase = Phase::Failed);
                });
                return Err(SyncError::BootFailed(problem.detail));
            }
            Err(ControlError::Refused(problem)) if (400..500).contains(&problem.status) => {
                return Err(SyncError::refused(manifest, &problem));
            }
            Err(error) => error,
        };
        tracing::warn!(%error, "the manifest could not be handed over");
        let wait = backoff.next();
        if Instant::now() + wait >= deadline {
            return Err(SyncError::Unreachable { limit, last: error.to_string() });
        }
        sleep(wait).await;
    };
    if accepted.digest != reading.digest {
        let both = format!("digest {} there, {} here", accepted.digest, reading.digest);
        return Err(SyncError::Mismatch(both));
    }
    if accepted.plan != reading.plan {
        let both = format!("plan {} there, {} here", json(&accepted.plan), json(&reading.plan));
        return Err(SyncError::Mismatch(both));
    }
    let session = Session {
        boot_id: accepted.boot_id,
        token: crate::state::Token(accepted.token),
        digest: accepted.digest,
        deployment: reading.deployment.clone(),
        egress_port,
        log_seq: 0,
        plan: reading.plan.clone(),
    };
    shared.persist(&session, 0, Durability::Disk).await.map_err(SyncError::Store)?;
    count(&shared.counters.manifests_accepted);
    note(&accepted.conditions);
    shared.view.send_modify(|view| view.remarks = accepted.conditions);
    tracing::info!(digest = session.digest, boot_id = session.boot_id, "the enclave accepted the manifest");
    Ok(session)
}

fn note(conditions: &[Condition]) {
    for condition in conditions {
        tracing::warn!(condition = condition.kind, message = condition.message, "the enclave remarks");
    }
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("invariant: wire types always serialise")
}
