//! Events that the kernel missed, and events that took a slower way.

use std::collections::HashMap;
use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicU64, Ordering};

use libbpf_rs::ProgramMut;

use crate::kernel::collector::Collector;
use crate::kernel::readings::Readings;
use crate::kernel::verdicts::ReadingCosts;
use crate::model::image::Losses;
use crate::os::processes::field;

impl Collector {
    /// Whether any followed task is alive. If none is, the next [`take_ended`](Self::take_ended) returns all that is
    /// left.
    pub(super) fn has_living_tasks(&self) -> bool {
        self.globals.living_tasks.get() > 0
    }

    /// Whether all followed tasks have ended. After a missed exit, the count of living tasks stays too high for ever.
    /// And a process that ran before memleak is in that count only from its next call of an allocator on. In both cases
    /// this function lists the tasks that are alive.
    pub fn everyone_has_ended(&self) -> bool {
        let some_live = self.has_living_tasks();
        let count_is_right = match some_live {
            true => !self.told_twice || self.missed_events() == 0,
            false => self.globals.joining.get() == 0,
        };
        match count_is_right {
            true => !some_live,
            false => self.thread_sums().is_ok_and(|sums| sums.is_empty()),
        }
    }

    /// Losses that belong to no image.
    pub fn losses(&self) -> Losses {
        Losses {
            rows_lost: self.globals.rows_lost.get() + self.missed_events(),
            ..Losses::default()
        }
    }

    /// An upper bound of the missed forks, execs, exits and chances to hold a process after its exec.
    ///
    /// An event that the second program handled is not missed. An event is missed only if both programs were not
    /// called for it. The kernel counts missed calls for all tasks, so some may concern no followed task.
    fn missed_events(&self) -> u64 {
        let programs = self.object.second_programs().into_iter().flatten();
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

    /// What took a slower way, without a loss: how many, and of what. For `-v`.
    pub fn detours(&self) -> [(u64, &'static str); 8] {
        let costs = self.readings.as_ref().map(Readings::costs);
        let cost = |of: fn(&ReadingCosts) -> &AtomicU64| {
            costs.map_or(0, |costs| of(costs).load(Ordering::Relaxed))
        };
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
                // In the object for older kernels this is the only table.
                self.object
                    .newer()
                    .map_or(0, |_| self.globals.late_count.get()),
                "threads were kept in the slower table",
            ),
            (
                cost(|costs| &costs.count),
                "processes were read at their ends",
            ),
            (
                cost(|costs| &costs.longest_us),
                "microseconds was the longest that one was held for it",
            ),
            (
                cost(|costs| &costs.longest_verdict_us),
                "microseconds was the longest until one was judged",
            ),
            (
                cost(|costs| &costs.largest),
                "bytes was the largest copy of one",
            ),
        ]
    }

    /// How many bytes of kernel memory the maps take, as far as the kernel reports it.
    pub fn kernel_memory(&self) -> u64 {
        let entries = fs::read_dir("/proc/self/fdinfo").into_iter().flatten();
        // A map may have several descriptors.
        let maps: HashMap<u64, u64> = entries
            .filter_map(|entry| fs::read_to_string(entry.ok()?.path()).ok())
            .filter(|info| info.contains("map_type:"))
            .filter_map(|info| Some((field(&info, "map_id:")?, field(&info, "memlock:")?)))
            .collect();
        maps.values().sum()
    }
}

/// How often the kernel did not call a loaded program because that was running on the same CPU. 0 if the kernel does
/// not report it (before 5.12).
fn times_missed(program: &ProgramMut<'_>) -> u64 {
    let fdinfo = format!("/proc/self/fdinfo/{}", program.as_fd().as_raw_fd());
    let fdinfo = fs::read_to_string(fdinfo).unwrap_or_default();
    field(&fdinfo, "recursion_misses:").unwrap_or_default()
}
