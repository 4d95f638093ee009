//! What a session has cost, for people.

use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::text::units::megabytes;

/// A line with what memleak itself has cost. `elapsed` is its duration, `kernel` the memory of maps and programs in bytes.
pub(super) fn own_cost(elapsed: Duration, kernel: u64) -> Option<String> {
    let usage = getrusage(UsageWho::RUSAGE_SELF).ok()?;
    let seconds = |time: TimeVal| time.num_microseconds() as f64 / 1e6;
    let cpu = seconds(usage.user_time()) + seconds(usage.system_time());
    let elapsed = elapsed.as_secs_f64();
    // getrusage(2) returns kilobytes of 1024 bytes.
    let resident = megabytes(usage.max_rss().unsigned_abs() * 1024);
    let kernel = megabytes(kernel);
    Some(format!(
        "{cpu:.2} s of CPU in {elapsed:.1} s ({:.1} %), {resident} MB of memory at the most, {kernel} MB in the \
         kernel's maps",
        cpu / elapsed * 100.0,
    ))
}
