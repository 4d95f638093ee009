//! How long the stages of a start and an end take. Only tests and measurements turn this on (`--test stages=yes`).

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::os::clock::monotonic;
use crate::os::say::say;

static BEGAN: OnceLock<Duration> = OnceLock::new();
static SAID: AtomicBool = AtomicBool::new(false);

/// memleak begins. Costs a read of the clock.
pub fn begin() {
    BEGAN.get_or_init(monotonic);
}

/// From now on, the end of each stage is said.
pub fn turn_on() {
    SAID.store(true, Ordering::Relaxed);
}

/// A stage has ended. Says how much time has passed since memleak began.
pub fn mark(stage: &str) {
    if SAID.load(Ordering::Relaxed)
        && let Some(began) = BEGAN.get()
    {
        let passed = monotonic().saturating_sub(*began);
        say(&format!(
            "stage {:8.3} ms {stage}",
            passed.as_secs_f64() * 1e3
        ));
    }
}
