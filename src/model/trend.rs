//! Whether a process grows in the long run, and how fast.
//!
//! A process that leaks grows as long as it runs. One that fills a cache grows for a while, and one that collects its
//! garbage now and then grows and shrinks. So the trend looks at the least that the process held in each half minute,
//! over ten minutes, and takes the median of the slopes between all pairs of these (Theil and Sen), which single steps
//! do not move. The process counts as growing only if it did so in the later half, too, and if its low marks rise from
//! each third of the time to the next.

use std::collections::VecDeque;
use std::time::Duration;

/// Of each such time, the low mark is kept.
const SLOT: Duration = Duration::from_secs(30);

/// How many low marks are kept: ten minutes of them, or more if the intervals are longer.
const KEPT: usize = 20;

/// How many there must be before anything is said: five minutes of them.
const NEEDED: usize = 10;

/// The least that a process held in a time.
#[derive(Clone, Copy, Debug)]
struct LowMark {
    begin: Duration,
    bytes: u64,
}

/// What a process held in the last minutes.
#[derive(Clone, Debug, Default)]
pub struct Trend {
    marks: VecDeque<LowMark>,
}

impl Trend {
    /// Adds what the process holds at a time, by any clock that only goes forward.
    pub fn add(&mut self, time: Duration, bytes: u64) {
        match self.marks.back_mut() {
            Some(last) if time.saturating_sub(last.begin) < SLOT => {
                last.bytes = last.bytes.min(bytes);
            }
            _ => {
                if self.marks.len() == KEPT {
                    self.marks.pop_front();
                }
                self.marks.push_back(LowMark { begin: time, bytes });
            }
        }
    }

    /// By how many bytes an hour the process grows. 0 if it does not grow in the long run. `None` if it was not seen for
    /// long enough.
    pub fn bytes_per_hour(&self) -> Option<u64> {
        if self.marks.len() < NEEDED {
            return None;
        }
        let marks: Vec<LowMark> = self.marks.iter().copied().collect();
        let later = &marks[marks.len() / 2..];
        let slope = median_slope(&marks).min(median_slope(later));
        if slope <= 0.0 || !floors_rise(&marks) {
            return Some(0);
        }
        // Beyond 2^64 the conversion saturates.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let rate = (slope * 3600.0).round() as u64;
        Some(rate)
    }
}

/// The median of the slopes between all pairs of marks, in bytes a second.
fn median_slope(marks: &[LowMark]) -> f64 {
    let mut slopes = Vec::with_capacity(marks.len() * marks.len() / 2);
    for (at, early) in marks.iter().enumerate() {
        for late in &marks[at + 1..] {
            #[expect(clippy::cast_precision_loss, reason = "no process holds 2^53 bytes")]
            let grown = late.bytes as f64 - early.bytes as f64;
            slopes.push(grown / (late.begin - early.begin).as_secs_f64());
        }
    }
    let middle = slopes.len() / 2;
    let (_, median, _) = slopes.select_nth_unstable_by(middle, f64::total_cmp);
    *median
}

/// Whether the least of each third of the marks is more than the least of the third before it.
fn floors_rise(marks: &[LowMark]) -> bool {
    let thirds = marks.chunks(marks.len().div_ceil(3));
    let floors = thirds.map(|third| third.iter().map(|mark| mark.bytes).min());
    floors.is_sorted_by(|early, late| early < late)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY: u64 = 5;
    const MEGABYTE: u64 = 1_000_000;

    /// What is said at each look, every five seconds for `minutes`, of a process that holds `held(second)`.
    fn told(minutes: u64, held: impl Fn(u64) -> u64) -> Vec<(u64, Option<u64>)> {
        let mut trend = Trend::default();
        let looks = (0..=minutes * 60).step_by(EVERY as usize);
        looks
            .map(|second| {
                trend.add(Duration::from_secs(second), held(second));
                (second, trend.bytes_per_hour())
            })
            .collect()
    }

    #[track_caller]
    fn assert_never_grows(minutes: u64, held: impl Fn(u64) -> u64) {
        for (second, rate) in told(minutes, held) {
            assert!(rate.unwrap_or(0) == 0, "{rate:?} after {second} s");
        }
    }

    #[test]
    fn a_server_that_leaks_a_megabyte_an_hour_is_named_within_ten_minutes() {
        let leaks: [&dyn Fn(u64) -> u64; 4] = [
            &|second| second * MEGABYTE / 3600,
            // A request each minute.
            &|second| 50 * MEGABYTE + second / 60 * (MEGABYTE / 60),
            // Beside memory that is taken and given back all the time.
            &|second| second * MEGABYTE / 3600 + second * 7_919 % 5 * 300_000,
            // Beside a garbage collector that lets 50 MB pile up in a minute.
            &|second| second * MEGABYTE / 3600 + second % 60 * MEGABYTE,
        ];
        for (which, leak) in leaks.iter().enumerate() {
            let told = told(20, leak);
            let (_, early) = told.iter().find(|(_, rate)| rate.is_some()).unwrap();
            let late = told.iter().filter(|(second, _)| *second >= 600);
            assert!(early.is_some());
            for (second, rate) in late {
                let rate = rate.unwrap();
                let range = MEGABYTE * 6 / 10..=MEGABYTE * 14 / 10;
                assert!(
                    range.contains(&rate),
                    "leak {which}: {rate} after {second} s"
                );
            }
        }
    }

    #[test]
    fn a_cache_that_fills_in_the_first_two_minutes_does_not_grow() {
        assert_never_grows(30, |second| second.min(120) * MEGABYTE);
        // One that fills ever more slowly soon grows by less than is worth a word.
        let filled = |second: u64| 100 * MEGABYTE - 100 * MEGABYTE / (1 << (second / 10).min(30));
        for (second, rate) in told(30, filled) {
            assert!(
                rate.unwrap_or(0) < MEGABYTE / 10,
                "{rate:?} after {second} s"
            );
        }
    }

    #[test]
    fn what_was_allocated_once_at_the_start_does_not_grow() {
        assert_never_grows(30, |_| 500 * MEGABYTE);
        assert_never_grows(30, |second| if second < 10 { 0 } else { 500 * MEGABYTE });
    }

    #[test]
    fn a_sawtooth_does_not_grow() {
        for period in [7, 10, 45, 60, 61, 90, 120, 150] {
            for phase in [0, period / 3, period / 2] {
                assert_never_grows(30, |second| (second + phase) % period * MEGABYTE);
            }
        }
        // Of one that is slow, the first five minutes look as a leak does.
        for period in [180, 200, 240, 300, 360] {
            for (second, rate) in told(60, |second| second % period * MEGABYTE) {
                assert!(
                    second < 600 || rate == Some(0),
                    "{period}: {rate:?} after {second} s"
                );
            }
        }
    }

    #[test]
    fn a_process_that_shrinks_does_not_grow() {
        assert_never_grows(30, |second| (3600 - second) * MEGABYTE);
    }

    #[test]
    fn nothing_is_said_before_five_minutes() {
        for (second, rate) in told(20, |second| second * MEGABYTE) {
            assert_eq!(rate.is_some(), second >= 270, "{second}");
        }
    }

    #[test]
    fn longer_intervals_take_longer_and_say_the_same() {
        let mut trend = Trend::default();
        for minute in 0..60_u64 {
            trend.add(Duration::from_secs(minute * 60), minute * MEGABYTE / 60);
            let expected = (minute >= 9).then_some(true);
            let found = trend
                .bytes_per_hour()
                .map(|rate| rate.abs_diff(MEGABYTE) < 100);
            assert_eq!(found, expected, "{minute}");
        }
    }

    #[test]
    fn the_largest_numbers_do_no_harm() {
        let told = told(20, |second| if second < 400 { 0 } else { u64::MAX });
        assert!(told.last().unwrap().1.is_some());
    }
}
