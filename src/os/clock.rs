//! Converts times. The kernel reports the time since the machine was started. People and files need the time since the
//! Unix epoch. The difference changes when the clock is set, or when the machine has slept.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};

/// CLOCK_MONOTONIC, the clock of the times in the kernel's records.
pub fn monotonic() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map(Duration::from)
        .unwrap_or_default()
}

/// The difference at one moment. Times that are converted with the same value keep their order and their distances,
/// even if the clock is set meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    /// The Unix time at which CLOCK_MONOTONIC began.
    began: Duration,
}

impl Clock {
    /// The difference now.
    pub fn read() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Self::beginning_at(now.unwrap_or_default().saturating_sub(monotonic()))
    }

    /// The value for a CLOCK_MONOTONIC that began at this Unix time.
    pub fn beginning_at(began: Duration) -> Self {
        Self { began }
    }

    /// Converts a time of CLOCK_MONOTONIC to a time since the Unix epoch.
    pub fn unix(self, monotonic: Duration) -> Duration {
        self.began + monotonic
    }
}
