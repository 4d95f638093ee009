//! What the kernel missed, and what took a slower way.

use std::fs;
use std::os::fd::{AsFd, AsRawFd};

use libbpf_rs::ProgramMut;

use crate::kernel::collector::Collector;
use crate::model::image::Losses;
use crate::os::processes::field;

impl Collector {
    /// Whether anything is left of what is followed. Where nothing is, [`take_ended`](Self::take_ended) has
    /// all there is.
    pub(super) fn anyone_lives(&self) -> bool {
        self.globals.living_tasks.get() > 0
    }

    /// Whether everybody who is followed has ended. Where an end was missed the count stays too high for ever: then who
    /// is there is looked for.
    pub fn everyone_has_ended(&self) -> bool {
        !self.anyone_lives()
            || (self.told_twice
                && self.missed_events() > 0
                && self.thread_sums().is_ok_and(|sums| sums.is_empty()))
    }

    /// What was lost and belongs to no image.
    pub fn losses(&self) -> Losses {
        Losses {
            rows_lost: self.globals.rows_lost.get() + self.missed_events(),
            ..Losses::default()
        }
    }

    /// How many forks, execs and ends, and chances to hold who has executed something, were missed, at the most. What
    /// was told the second time is not, nor can more be than neither program was called for. The kernel counts what
    /// happens to anybody, so some of it may be nobody's of interest.
    fn missed_events(&self) -> u64 {
        let programs = self.object.second_chances().into_iter().flatten();
        let programs = programs.chain(self.object.holds_after_exec(self.holds));
        let globals = &self.globals;
        let missed = programs.zip(globals.retold.iter().zip(&globals.ignored));
        let missed = missed.map(|([first, again], (retold, [ignored, ignored_again]))| {
            let missed = (times_missed(first) + ignored.get()).saturating_sub(retold.get());
            match self.told_twice {
                true => missed.min(times_missed(again) + ignored_again.get()),
                false => missed,
            }
        });
        missed.sum()
    }

    /// What took a slower way, and lost nothing by it: how many, and of what. For `-v`.
    pub fn detours(&self) -> [(u64, &'static str); 4] {
        [
            (
                self.globals.holds.get(),
                "times a process waited for its files to be examined",
            ),
            (
                self.globals.longest_hold_ns.get() / 1000,
                "microseconds was the longest of these waits",
            ),
            (
                self.globals.rows_waiting.get(),
                "rows found the ring full and waited in the map",
            ),
            (
                // Of the object for older kernels it is the only one.
                self.object
                    .newer()
                    .map_or(0, |_| self.globals.late_count.get()),
                "threads were kept in the slower table",
            ),
        ]
    }

    /// How many bytes of the kernel's memory the maps take, as far as it tells that.
    pub fn kernel_memory(&self) -> u64 {
        let entries = fs::read_dir("/proc/self/fdinfo").into_iter().flatten();
        let of_map = |info: String| {
            let is_map = info.contains("map_type:");
            is_map.then(|| field::<u64>(&info, "memlock:")).flatten()
        };
        entries
            .filter_map(|entry| fs::read_to_string(entry.ok()?.path()).ok())
            .filter_map(of_map)
            .sum()
    }
}

/// How often the kernel did not call a loaded program because it was at work on the same CPU; 0 where it does not
/// tell (before 5.12).
fn times_missed(program: &ProgramMut<'_>) -> u64 {
    let fdinfo = format!("/proc/self/fdinfo/{}", program.as_fd().as_raw_fd());
    let fdinfo = fs::read_to_string(fdinfo).unwrap_or_default();
    field(&fdinfo, "recursion_misses:").unwrap_or_default()
}
