//! Running processes: how much their memory has grown since they were last shown, and how fast it grows in the long
//! run. `report` prints the result.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::time::Duration;

use crate::model::image::Image;
use crate::model::stack::{NamedStack, StackShare};
use crate::model::trend::Trend;

/// The running processes at one time. Up to half of those that are shown are the ones that grow fastest in the long run.
/// The others follow, those that grew most first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Live {
    /// The time of this view, since the Unix epoch.
    pub time: Duration,
    /// The time from which the growth is measured, since the Unix epoch.
    pub since: Duration,
    /// Those that are shown.
    pub rows: Vec<Growing>,
    /// The others.
    pub rest: Vec<Growing>,
    /// What all these processes hold, in bytes.
    pub held_bytes: u64,
    /// By how much that has grown, in bytes.
    pub growth_bytes: i64,
    /// Places have only blocks that are at least so old. `None`: blocks of any age.
    pub older: Option<Duration>,
}

/// A running process, and the growth of its memory in bytes since the last view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Growing {
    /// Identifies it in later views.
    pub id: u64,
    pub image: Image,
    pub growth: i64,
    /// By how many bytes an hour it grows in the long run. `None` if it was not seen for long enough.
    pub rate: Option<u64>,
    /// Where it has grown most, if call stacks are recorded and it is among those that grew most. Where only old blocks
    /// are of interest: where it holds most of them.
    pub places: Vec<GrowingPlace>,
}

/// What a running process holds of what it allocated by one call stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrowingPlace {
    pub share: StackShare,
    pub stack: NamedStack,
    /// By how many bytes that has grown.
    pub growth: i64,
}

/// What one process held at the last view, and before.
#[derive(Clone, Debug, Default)]
struct Held {
    bytes: u64,
    trend: Trend,
}

/// Remembers how many bytes each process held at the last views.
#[derive(Clone, Debug)]
pub struct Growth {
    since: Duration,
    held: HashMap<u64, Held>,
}

impl Growth {
    /// At the beginning, every process counts as holding nothing.
    pub fn since(time: Duration) -> Self {
        Self {
            since: time,
            held: HashMap::new(),
        }
    }

    /// Ranks the running processes by their growth, in the long run and since the last call. Each process comes with a
    /// number that identifies it in later calls. Only processes that `kept` selects are shown, at most `top` of them.
    pub fn look(
        &mut self,
        time: Duration,
        running: Vec<(u64, Image)>,
        kept: impl Fn(&Image) -> bool,
        top: usize,
    ) -> Live {
        let mut held = HashMap::new();
        let mut rows = Vec::new();
        for (id, image) in running {
            let now = image.counters.leaked_bytes;
            let before = self.held.remove(&id).unwrap_or_default();
            let mut trend = before.trend;
            trend.add(time, now);
            if kept(&image) {
                // No process holds 2^63 bytes.
                let growth = now.wrapping_sub(before.bytes).cast_signed();
                let rate = trend.bytes_per_hour();
                rows.push(Growing {
                    id,
                    image,
                    growth,
                    rate,
                    places: Vec::new(),
                });
            }
            held.insert(id, Held { bytes: now, trend });
        }
        self.held = held;
        let since = std::mem::replace(&mut self.since, time);
        rank(&mut rows, top);
        let held = rows.iter().map(|row| row.image.counters.leaked_bytes);
        let held_bytes = held.fold(0, u64::saturating_add);
        let growth = rows.iter().map(|row| row.growth);
        let growth_bytes = growth.fold(0, i64::saturating_add);
        let rest = rows.split_off(top.min(rows.len()));
        Live {
            time,
            since,
            rows,
            rest,
            held_bytes,
            growth_bytes,
            older: None,
        }
    }
}

/// Puts those first that are to be shown. A slow leak grows little in one interval, and would not be seen among processes
/// that grow and shrink. A process that has just begun to grow has no rate yet. So each kind has half of the places, and
/// what the first kind does not need.
fn rank(rows: &mut [Growing], top: usize) {
    let lately = |row: &Growing| {
        let held = row.image.counters.leaked_bytes;
        (row.growth, held, row.image.start_time)
    };
    rows.sort_by_key(|row| Reverse((row.rate.unwrap_or(0), lately(row))));
    let lasting = rows.partition_point(|row| row.rate > Some(0));
    let (_, others) = rows.split_at_mut(lasting.min(top.div_ceil(2)));
    others.sort_by_key(|row| Reverse(lately(row)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::image::samples::image;

    fn holding(pid: u32, bytes: u64) -> (u64, Image) {
        let mut image = image();
        image.pid = pid;
        image.counters.leaked_bytes = bytes;
        (u64::from(pid), image)
    }

    fn look(growth: &mut Growth, at: u64, running: &[(u32, u64)], top: usize) -> Live {
        let running = running.iter().map(|&(pid, bytes)| holding(pid, bytes));
        let time = Duration::from_secs(at);
        growth.look(time, running.collect(), |image| image.pid != 9, top)
    }

    fn rows(live: &Live) -> Vec<(u32, i64)> {
        let row = |row: &Growing| (row.image.pid, row.growth);
        live.rows.iter().map(row).collect()
    }

    #[test]
    fn the_process_that_grew_most_comes_first_and_one_that_shrank_last() {
        let mut growth = Growth::since(Duration::from_secs(1));
        let first = look(&mut growth, 6, &[(1, 100), (2, 50), (3, 0)], 10);
        assert_eq!(rows(&first), [(1, 100), (2, 50), (3, 0)]);
        assert_eq!((first.since.as_secs(), first.time.as_secs()), (1, 6));
        let second = look(&mut growth, 11, &[(1, 90), (2, 60), (3, 0), (4, 5)], 10);
        assert_eq!(rows(&second), [(2, 10), (4, 5), (3, 0), (1, -10)]);
        assert_eq!(second.since.as_secs(), 6);
    }

    #[test]
    fn at_most_top_processes_are_shown_and_the_others_are_counted() {
        let mut growth = Growth::since(Duration::ZERO);
        let live = look(&mut growth, 1, &[(1, 1), (2, 2), (3, 3), (9, 9)], 2);
        assert_eq!(rows(&live), [(3, 3), (2, 2)]);
        assert_eq!(live.rest.len(), 1);
        assert_eq!((live.held_bytes, live.growth_bytes), (6, 6));
    }

    #[test]
    fn a_process_that_is_not_shown_is_remembered_too() {
        let mut growth = Growth::since(Duration::ZERO);
        look(&mut growth, 1, &[(1, 100), (2, 70)], 1);
        let live = look(&mut growth, 2, &[(1, 100), (2, 71)], 1);
        assert_eq!(rows(&live), [(2, 1)]);
    }

    /// The pids of what is shown last of processes that are looked at each five seconds for eleven minutes.
    fn last_shown(held: &[&dyn Fn(u64) -> u64], top: usize) -> Vec<u32> {
        let mut growth = Growth::since(Duration::ZERO);
        let mut shown = Vec::new();
        for second in (0..660).step_by(5) {
            let holds = (100_u32..).zip(held).map(|(pid, held)| (pid, held(second)));
            let live = look(&mut growth, second, &holds.collect::<Vec<_>>(), top);
            shown = rows(&live).into_iter().map(|(pid, _)| pid).collect();
        }
        shown
    }

    #[test]
    fn a_slow_leak_is_first_among_more_processes_that_are_noisy_than_are_shown() {
        let noisy = |second: u64| 1_000_000 + second / 5 % 2 * 500_000;
        let slow = |second: u64| second * 1_000_000 / 3600;
        let mut held: Vec<&dyn Fn(u64) -> u64> = vec![&noisy; 21];
        held.push(&slow);
        let shown = last_shown(&held, 20);
        assert_eq!((shown.len(), shown[0]), (20, 121));
    }

    #[test]
    fn slow_leaks_do_not_hide_what_has_just_begun_to_grow() {
        let slow = |second: u64| 1_000_000 + second * 100;
        let new = |second: u64| if second < 655 { 0 } else { 9_000 };
        let mut held: Vec<&dyn Fn(u64) -> u64> = vec![&slow; 21];
        held.push(&new);
        let shown = last_shown(&held, 20);
        assert_eq!((shown.len(), shown[10]), (20, 121));
        let shown = last_shown(&held, 1);
        assert!(shown[0] < 121);
    }
}
