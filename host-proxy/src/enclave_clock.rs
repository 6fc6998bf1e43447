//! Tells the enclave the time, for as long as it says that it has no better clock.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use crate::{backoff::Backoff, control::ControlError, state::Session, view::Shared};

/// Time between two tellings: a clock that is off by 100 ppm has drifted by 6 ms.
const INTERVAL: Duration = Duration::from_mins(1);
/// What a supervisor answers that does not set the clock.
const NOT_MANAGED: &str = "ClockNotManaged";

/// What one telling led to.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    /// It has set its clock.
    Yes,
    /// It never will, in this boot.
    NotManaged,
    /// It does not want this value now.
    Refused,
    /// No answer came.
    Unreachable,
}

/// Tells the enclave the time at once, after every outage, and every [`INTERVAL`]. Nothing depends on it: a
/// failure is logged once until it works again.
pub(crate) async fn keep(shared: Arc<Shared>, session: Session) {
    let mut outages = shared.outages.subscribe();
    let mut backoff = Backoff::default();
    let mut failing = false;
    loop {
        outages.mark_unchanged();
        match tell(&shared, &session, &mut failing).await {
            Told::Yes | Told::Refused => {
                backoff.reset();
                interval(&mut outages).await;
            }
            // Another boot is another session.
            Told::NotManaged => std::future::pending().await,
            Told::Unreachable => sleep(backoff.next()).await,
        }
    }
}

/// Waits until the enclave is to be told again: it may have been paused during an outage.
async fn interval(outages: &mut watch::Receiver<u64>) {
    // Either end of the wait is a reason.
    timeout(INTERVAL, outages.changed()).await.ok();
}

async fn tell(shared: &Shared, session: &Session, failing: &mut bool) -> Told {
    let error = match shared.control.set_clock(&session.token).await {
        Ok(()) => {
            *failing = false;
            return Told::Yes;
        }
        Err(ControlError::Refused(problem)) if problem.kind == NOT_MANAGED => {
            tracing::debug!("the enclave has a clock of its own");
            return Told::NotManaged;
        }
        Err(error) => error,
    };
    if !std::mem::replace(failing, true) {
        tracing::warn!(%error, "the enclave could not be told the time");
    }
    if matches!(error, ControlError::Refused(_)) { Told::Refused } else { Told::Unreachable }
}
