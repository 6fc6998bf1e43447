//! The wall clock of a machine: from the hypervisor where it has a clock, from the host within bounds
//! otherwise.
//!
//! TLS certificates and OTLP timestamps depend on it, and the host is not trusted: it may set the clock once,
//! not before the image was built, and afterwards move it no further than a real clock can have drifted.
//! Going back would break whoever measures time with it, so backwards it is slewed.

use std::time::Duration;

use tokio::time::{Instant, interval};

use crate::sys::time::{self, HypervisorClock};

/// What all corrections together may move the clock beyond drift: the host reads its clock before it sends
/// it, and an enclave may be starved for a while.
const CORRECTION_BASE: Duration = Duration::from_secs(1);
/// By how much a clock may have drifted: one part in this many. Crystals are within 1 in 10,000 (evervault
/// measured 6 s in a week, 1 in 100,000).
const DRIFT_PART: u32 = 1000;
/// A difference that is not worth a correction.
const TOLERANCE: Duration = Duration::from_millis(1);
/// A difference to the hypervisor's clock that is slewed and not stepped over.
const SLEW_MAX: Duration = Duration::from_millis(500);
/// Time between two looks at the hypervisor's clock. A slew makes up for 32 ms in this time.
const LOOK_INTERVAL: Duration = Duration::from_secs(64);

/// What to do with the wall clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Correction {
    /// It is right.
    None,
    /// Set it to this time since 1970.
    Set(Duration),
    /// Let it run faster until it has gained this.
    Gain(Duration),
    /// Let it run slower until it has lost this.
    Lose(Duration),
}

/// Why the host's time is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ClockRefusal {
    /// The first time is before the image was built.
    #[error("this time is before the image was built")]
    BeforeBuild,
    /// A later time is too far from the clock.
    #[error("the clock differs by {differs:?}, and no more than {allowed:?} can be drift")]
    TooFar {
        /// The difference.
        differs: Duration,
        /// What would have been taken.
        allowed: Duration,
    },
    /// The system call failed.
    #[error("the system does not set the clock")]
    System,
}

/// Takes the host's time within its bounds.
#[derive(Debug)]
pub struct HostClock {
    built: Duration,
    corrected: Option<Corrected>,
}

/// The last correction.
#[derive(Debug, Clone, Copy)]
struct Corrected {
    at: Instant,
    /// What it left of the bound, so that many small corrections reach no further than one.
    left: Duration,
}

impl HostClock {
    /// For an image that was built at this time since 1970.
    pub fn new(built: Duration) -> Self {
        Self { built, corrected: None }
    }

    /// Corrects the wall clock by the host's.
    pub fn take(&mut self, told: Duration) -> Result<Correction, ClockRefusal> {
        let wall = time::wall();
        let allowed = self.corrected.map(|last| last.left.saturating_add(last.at.elapsed() / DRIFT_PART));
        let correction = judge(self.built, allowed, wall, told)?;
        perform(correction).map_err(|error| {
            tracing::error!(%error, ?correction, "cannot correct the clock");
            ClockRefusal::System
        })?;
        let left = allowed.map_or(CORRECTION_BASE, |allowed| allowed.saturating_sub(told.abs_diff(wall)));
        self.corrected = Some(Corrected { at: Instant::now(), left });
        Ok(correction)
    }
}

/// Decides about the host's time. `allowed` is what it may differ by; there is no such bound for the first.
fn judge(
    built: Duration,
    allowed: Option<Duration>,
    wall: Duration,
    told: Duration,
) -> Result<Correction, ClockRefusal> {
    let differs = told.abs_diff(wall);
    let Some(allowed) = allowed else {
        return if told < built { Err(ClockRefusal::BeforeBuild) } else { Ok(Correction::Set(told)) };
    };
    if differs > allowed {
        Err(ClockRefusal::TooFar { differs, allowed })
    } else if differs <= TOLERANCE {
        Ok(Correction::None)
    } else if told > wall {
        Ok(Correction::Set(told))
    } else {
        Ok(Correction::Lose(differs))
    }
}

/// Decides about the hypervisor's time, which is believed: as the machine starts it is set, later small
/// differences are slewed.
fn follow(first: bool, wall: Duration, told: Duration) -> Correction {
    let differs = told.abs_diff(wall);
    if differs <= TOLERANCE {
        Correction::None
    } else if first || differs > SLEW_MAX {
        Correction::Set(told)
    } else if told > wall {
        Correction::Gain(differs)
    } else {
        Correction::Lose(differs)
    }
}

fn perform(correction: Correction) -> std::io::Result<()> {
    let micros = |time: Duration| i64::try_from(time.as_micros()).map_err(std::io::Error::other);
    match correction {
        Correction::None => Ok(()),
        Correction::Set(told) => time::set(told),
        Correction::Gain(differs) => time::slew(micros(differs)?),
        Correction::Lose(differs) => time::slew(-micros(differs)?),
    }
}

/// Sets the wall clock by the hypervisor's, once.
pub fn set_by(hypervisor: &HypervisorClock) -> std::io::Result<()> {
    perform(follow(true, time::wall(), hypervisor.read()?))
}

/// Keeps the wall clock with the hypervisor's for ever.
pub async fn keep_with(hypervisor: HypervisorClock) {
    let mut looks = interval(LOOK_INTERVAL);
    loop {
        looks.tick().await;
        let corrected = hypervisor.read().and_then(|told| perform(follow(false, time::wall(), told)));
        if let Err(error) = corrected {
            tracing::warn!(%error, "cannot follow the hypervisor's clock");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUILT: Duration = Duration::from_secs(1_000_000);
    fn ms(millis: u64) -> Duration {
        BUILT + Duration::from_millis(millis)
    }

    #[test]
    fn the_first_time_is_taken_as_it_is_unless_it_is_before_the_build() {
        assert_eq!(judge(BUILT, None, Duration::ZERO, ms(1)), Ok(Correction::Set(ms(1))));
        assert_eq!(judge(BUILT, None, ms(90_000), ms(1)), Ok(Correction::Set(ms(1))));
        assert_eq!(judge(BUILT, None, ms(90_000), BUILT), Ok(Correction::Set(BUILT)));
        let before = BUILT.saturating_sub(Duration::from_nanos(1));
        assert_eq!(judge(BUILT, None, Duration::ZERO, before), Err(ClockRefusal::BeforeBuild));
    }

    #[test]
    fn a_later_time_steps_forwards_within_what_may_have_drifted_and_slews_backwards() {
        let now = ms(100_000);
        let allowed = Duration::from_millis(4600);
        let judge = |told| judge(BUILT, Some(allowed), now, told);
        assert_eq!(judge(ms(104_600)), Ok(Correction::Set(ms(104_600))));
        assert_eq!(judge(ms(95_400)), Ok(Correction::Lose(allowed)));
        assert_eq!(judge(ms(100_001)), Ok(Correction::None));
        for told in [ms(104_601), ms(95_399), Duration::MAX, Duration::ZERO] {
            assert_eq!(judge(told), Err(ClockRefusal::TooFar { differs: told.abs_diff(now), allowed }));
        }
    }

    #[test]
    fn the_hypervisors_time_is_set_at_the_start_and_followed_smoothly_afterwards() {
        let (now, later) = (ms(100_000), ms(100_200));
        assert_eq!(follow(true, now, later), Correction::Set(later));
        assert_eq!(follow(false, now, later), Correction::Gain(Duration::from_millis(200)));
        assert_eq!(follow(false, later, now), Correction::Lose(Duration::from_millis(200)));
        assert_eq!(follow(false, now, ms(200_000)), Correction::Set(ms(200_000)));
        assert_eq!(follow(true, now, now), Correction::None);
    }
}
