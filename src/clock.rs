//! The two clocks: monotonic time since the supervisor's start, and the wall clock.

use enclave_protocol::timestamp::Timestamp;
use tokio::time::Instant;

use crate::engine::Moment;

/// Reads both clocks. Cheap to copy; all copies share one origin.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    origin: Instant,
}

impl Clock {
    /// A clock whose origin is now.
    pub fn start() -> Self {
        Self { origin: Instant::now() }
    }

    /// Monotonic time since the origin.
    pub fn now(&self) -> Moment {
        Moment(self.origin.elapsed())
    }

    /// The instant of a moment, to arm a timer with.
    pub fn instant(&self, moment: Moment) -> Instant {
        self.origin + moment.0
    }

    /// The wall clock now. A clock before 1970 reads as the epoch.
    pub fn wall(&self) -> Timestamp {
        wall()
    }

    /// The wall-clock time at which `moment` was or will be, as the wall clock stands now.
    pub fn wall_at(&self, moment: Moment) -> Timestamp {
        let (now, wall) = (self.now(), wall());
        // One of the two spans is zero.
        let (ahead, ago) = (moment.since(now), now.since(moment));
        Timestamp(wall.0.saturating_add(nanos(ahead)).saturating_sub(nanos(ago)))
    }
}

/// The wall clock, for the places that have no [`Clock`] at hand (a log record's time).
pub fn wall() -> Timestamp {
    #[expect(clippy::disallowed_methods, reason = "this is the one place that reads the wall clock")]
    let now = std::time::SystemTime::now();
    Timestamp(now.duration_since(std::time::UNIX_EPOCH).map_or(0, nanos))
}

fn nanos(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
