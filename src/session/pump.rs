//! One turn of a session's loop: waits for an event, and answers the processes that are held for memleak. Rows are left
//! to the caller.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::session::prober::Prober;

/// The longest turn of a session without a deadline of its own. A turn must end by itself, because a row that found the
/// ring full does not wake memleak.
pub const TICK: Duration = Duration::from_millis(500);

/// The result of a turn.
pub struct Turn {
    /// Which of `others` are readable, in the same order.
    pub readable: Vec<bool>,
    /// What failed in memleak.
    pub failures: Vec<anyhow::Error>,
}

/// Waits until images have ended, a process waits for its files, or one of `others` is readable. Waits at most for
/// `timeout`. Does not wait while blocks of ended heaps are still to be swept. Then examines the files for which
/// processes wait.
pub fn pump(prober: &mut Prober, others: &[BorrowedFd<'_>], timeout: Duration) -> Turn {
    let mut failures = Vec::new();
    let timeout = prober.collector.patience(timeout);
    let fds = prober.collector.fds();
    let mut ready: Vec<_> = fds
        .iter()
        .chain(others)
        .map(|fd| PollFd::new(*fd, PollFlags::POLLIN))
        .collect();
    // Rounded up, so that a rest of less than a millisecond does not become a turn without waiting. A poll waits for
    // 65 s at most.
    let milliseconds = timeout.as_micros().div_ceil(1000).min(u128::from(u16::MAX)) as u16;
    let readable = match poll(&mut ready, PollTimeout::from(milliseconds)) {
        Ok(_) => ready[fds.len()..]
            .iter()
            .map(|fd| fd.any().unwrap_or_default())
            .collect(),
        Err(error) => {
            if error != Errno::EINTR {
                failures.push(anyhow::Error::new(error).context("cannot wait for events"));
            }
            vec![false; others.len()]
        }
    };
    if let Err(error) = prober.examine_arrivals() {
        failures.push(error);
    }
    Turn { readable, failures }
}
