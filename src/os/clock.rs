//! The kernel tells times since the machine was started, people and files want them since the Unix epoch. The
//! difference changes when somebody sets the clock, or the machine has slept.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};

/// CLOCK_MONOTONIC, by which the kernel's records tell times.
pub fn monotonic() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map(Duration::from)
        .unwrap_or_default()
}

/// The difference as it was at one time. What is converted by one and the same keeps its order and its distances,
/// whatever has been done to the clock meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    /// The Unix time at which CLOCK_MONOTONIC began.
    began: Duration,
}

impl Clock {
    /// As it is now.
    pub fn read() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Self::beginning_at(now.unwrap_or_default().saturating_sub(monotonic()))
    }

    /// Where CLOCK_MONOTONIC began at that Unix time.
    pub fn beginning_at(began: Duration) -> Self {
        Self { began }
    }

    /// A time of CLOCK_MONOTONIC's as one since the Unix epoch.
    pub fn unix(self, monotonic: Duration) -> Duration {
        self.began + monotonic
    }
}
