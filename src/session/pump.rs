//! One turn of a session's loop: waits for something to happen, and answers the processes that wait for memleak.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::session::prober::Prober;

/// The longest turn of a session without a deadline of its own: a row that found the ring full wakes nobody.
pub const TICK: Duration = Duration::from_millis(500);

/// What a turn found.
pub struct Turn {
    /// Which of the descriptors have something to read, in the order in which they were given.
    pub readable: Vec<bool>,
    /// What memleak could not do.
    pub failures: Vec<anyhow::Error>,
}

/// Waits until images have ended, a process waits for its files, or one of `others` is readable; at most for
/// `timeout`, and not at all while blocks of ended heaps are left to be swept. Then examines the files that processes
/// wait for.
pub fn pump(prober: &mut Prober, others: &[BorrowedFd<'_>], timeout: Duration) -> Turn {
    let mut failures = Vec::new();
    let timeout = prober.collector.patience(timeout);
    let fds = prober.collector.fds();
    let mut ready: Vec<_> = fds
        .iter()
        .chain(others)
        .map(|fd| PollFd::new(*fd, PollFlags::POLLIN))
        .collect();
    // Rounded up: a rest of less than a millisecond is no reason to turn without waiting. A poll takes 65 s at most.
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
