//! How much work may still be done. Whoever wrote a file decides how long reading it takes, so each loop over its
//! content asks here.

use std::time::Instant;

/// Steps between two looks at the clock. A step is a read of some bytes, so these take less than a millisecond.
const STEPS: u64 = 1 << 12;

/// Time until a point in time.
#[derive(Debug)]
pub struct TimeLeft {
    deadline: Instant,
    steps: u64,
    over: bool,
}

impl TimeLeft {
    pub fn until(deadline: Instant) -> Self {
        Self {
            deadline,
            steps: 0,
            over: Instant::now() >= deadline,
        }
    }

    /// Notes this many steps. Returns whether there is time for more.
    pub fn goes_on(&mut self, steps: usize) -> bool {
        self.steps = self.steps.saturating_add(steps as u64);
        if self.steps >= STEPS && !self.over {
            self.steps = 0;
            self.over = Instant::now() >= self.deadline;
        }
        !self.over
    }

    /// Looks at the clock, before something that takes longer than a few steps. Returns whether there is time for it.
    pub fn goes_on_now(&mut self) -> bool {
        self.goes_on(STEPS as usize)
    }

    /// Whether the time is over.
    pub fn is_over(&self) -> bool {
        self.over
    }
}
