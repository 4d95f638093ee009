//! What a copy of the C library has counted in a process, joined with what the probes have counted. Pure: values in,
//! values out.
//!
//! The process could have written anything to its counters. It can only spoil its own row: what makes no sense is not
//! believed, and sums saturate.

use crate::kernel::skeletons::types::{heap, heap_flags, inside_flags, inside_sums};
use crate::model::image::{CountedBy, Uncovered};

/// Sums above this are not believed: more than any process can have allocated.
const INCREDIBLE: u64 = 1 << 60;

/// What was counted inside of a process.
#[derive(Clone, Copy, Debug)]
pub(super) struct Inside {
    /// What is to be added.
    sums: Option<inside_sums>,
    pub(super) counted_by: CountedBy,
    pub(super) uncovered: Option<Uncovered>,
    /// Calls that had not returned.
    pub(super) in_flight: u64,
}

impl Inside {
    /// Whether a heap's process counts inside.
    pub(super) fn is_in(record: &heap) -> bool {
        record.inside_at != 0
    }

    /// Reads a record. With `compares`, the probes have counted the same calls.
    pub(super) fn of(record: &heap, compares: bool) -> Self {
        let has_flag = |flag: inside_flags| record.inside_flags & flag.0 != 0;
        let nothing = Self {
            sums: None,
            counted_by: CountedBy::Uprobes,
            uncovered: has_flag(inside_flags::INSIDE_UNREAD).then_some(Uncovered::Unread),
            in_flight: 0,
        };
        if !Self::is_in(record) || nothing.uncovered.is_some() {
            return nothing;
        }
        let sums = record.inside;
        if !has_flag(inside_flags::INSIDE_TAKEN) || !makes_sense(&sums) {
            return Self {
                uncovered: Some(Uncovered::Unread),
                ..nothing
            };
        }
        let by_probes = record.sum.alloc_count > 0 || record.sum.free_count > 0;
        let nested = has_flag(inside_flags::INSIDE_NESTED) || compares;
        let twice = by_probes && nested;
        let in_flight = sums.in_flight;
        if compares && are_equal(record, &sums) {
            return Self {
                counted_by: CountedBy::Both,
                in_flight,
                ..nothing
            };
        }
        Self {
            sums: Some(sums),
            counted_by: match by_probes {
                true => CountedBy::Both,
                false => CountedBy::Inside,
            },
            uncovered: twice.then_some(Uncovered::Twice),
            in_flight,
        }
    }

    /// The record with what was counted inside.
    pub(super) fn added_to(&self, record: &heap) -> heap {
        let mut record = *record;
        let Some(inside) = &self.sums else {
            return record;
        };
        let has_own = record.sum.alloc_count > 0;
        // As in counts.bpf.h: an unknown free may be that of a block that was not remembered.
        let freed = inside.unknown_frees.min(inside.unrecorded);
        let free_bytes = (inside.alloc_bytes - inside.unrecorded_bytes)
            .saturating_sub(inside.live.cast_unsigned());
        let add = |sum: &mut u64, more: u64| *sum = sum.saturating_add(more);
        add(&mut record.sum.alloc_bytes, inside.alloc_bytes);
        add(&mut record.sum.alloc_count, inside.alloc_count);
        add(&mut record.sum.free_bytes, free_bytes);
        add(&mut record.sum.free_count, inside.free_count + freed);
        add(&mut record.sum.failed_allocs, inside.failed_allocs);
        add(&mut record.sum.unknown_frees, inside.unknown_frees - freed);
        add(&mut record.lost_blocks, inside.unrecorded);
        add(&mut record.lost_bytes, inside.unrecorded_bytes);
        add(&mut record.lost_freed, freed);
        // Of two parts, only the peak of each is known. With several threads, it is not kept.
        match has_own || inside.several != 0 {
            true => record.flags |= heap_flags::HEAP_PEAKLESS.0,
            false => record.live.peak = inside.peak,
        }
        record
    }
}

/// Whether a process can have counted this.
fn makes_sense(sums: &inside_sums) -> bool {
    let all = [
        sums.alloc_bytes,
        sums.alloc_count,
        sums.free_count,
        sums.unknown_frees,
        sums.failed_allocs,
        sums.unrecorded,
        sums.unrecorded_bytes,
        sums.in_flight,
        sums.peak,
    ];
    let recorded = sums.alloc_bytes.checked_sub(sums.unrecorded_bytes);
    let blocks = sums.alloc_count.checked_sub(sums.unrecorded);
    let live = u64::try_from(sums.live);
    all.iter().all(|&sum| sum < INCREDIBLE)
        && recorded
            .zip(live.ok())
            .is_some_and(|(recorded, live)| live <= recorded)
        && blocks.is_some_and(|blocks| sums.free_count <= blocks)
}

/// Whether the probes have counted the same.
fn are_equal(record: &heap, inside: &inside_sums) -> bool {
    let sum = &record.sum;
    let live = sum.alloc_bytes.wrapping_sub(sum.free_bytes).cast_signed();
    sum.alloc_bytes == inside.alloc_bytes
        && sum.alloc_count == inside.alloc_count
        && sum.free_count == inside.free_count
        && sum.unknown_frees == inside.unknown_frees
        && sum.failed_allocs == inside.failed_allocs
        && live == inside.live
        && (inside.several != 0 || record.live.peak == inside.peak)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::skeletons::types::counters;

    /// A process that has allocated three blocks of 100 bytes and freed one.
    fn record() -> heap {
        heap {
            inside_at: 0x1000,
            inside_flags: inside_flags::INSIDE_TAKEN.0,
            inside: inside_sums {
                alloc_bytes: 300,
                alloc_count: 3,
                free_count: 1,
                unknown_frees: 2,
                failed_allocs: 4,
                live: 200,
                peak: 250,
                ..inside_sums::default()
            },
            ..heap::default()
        }
    }

    fn joined(record: &heap) -> (heap, Inside) {
        let inside = Inside::of(record, false);
        (inside.added_to(record), inside)
    }

    #[test]
    fn what_was_counted_inside_is_added() {
        let (joined, inside) = joined(&record());
        assert_eq!(inside.counted_by, CountedBy::Inside);
        assert_eq!((inside.uncovered, inside.in_flight), (None, 0));
        let sum = &joined.sum;
        assert_eq!((sum.alloc_bytes, sum.alloc_count), (300, 3));
        assert_eq!((sum.free_bytes, sum.free_count), (100, 1));
        assert_eq!((sum.unknown_frees, sum.failed_allocs), (2, 4));
        assert_eq!(joined.live.peak, 250);
        assert_eq!(joined.flags & heap_flags::HEAP_PEAKLESS.0, 0);
    }

    #[test]
    fn without_counters_the_record_stays() {
        let mut record = record();
        record.inside_at = 0;
        let (joined, inside) = joined(&record);
        assert_eq!(inside.counted_by, CountedBy::Uprobes);
        assert_eq!(joined.sum.alloc_count, 0);
    }

    #[test]
    fn an_unknown_free_may_be_that_of_a_block_that_was_not_remembered() {
        let mut record = record();
        record.inside.unrecorded = 1;
        record.inside.unrecorded_bytes = 100;
        record.inside.live = 100;
        let (joined, _) = joined(&record);
        assert_eq!(
            (joined.lost_blocks, joined.lost_bytes, joined.lost_freed),
            (1, 100, 1)
        );
        assert_eq!((joined.sum.free_count, joined.sum.free_bytes), (2, 100));
        assert_eq!(joined.sum.unknown_frees, 1);
    }

    #[test]
    fn with_several_threads_the_peak_is_unknown() {
        let mut record = record();
        record.inside.several = 1;
        assert_ne!(joined(&record).0.flags & heap_flags::HEAP_PEAKLESS.0, 0);
    }

    #[test]
    fn what_makes_no_sense_or_was_not_read_is_not_believed() {
        let spoil: [fn(&mut heap); 9] = [
            |record| record.inside_flags = 0,
            |record| record.inside_flags |= inside_flags::INSIDE_UNREAD.0,
            |record| record.inside.live = -1,
            |record| record.inside.live = 301,
            |record| record.inside.free_count = 4,
            |record| record.inside.unrecorded = 4,
            |record| record.inside.unrecorded_bytes = 101,
            |record| record.inside.alloc_bytes = u64::MAX,
            |record| record.inside.in_flight = u64::MAX,
        ];
        for (number, spoil) in spoil.iter().enumerate() {
            let mut record = record();
            spoil(&mut record);
            let (joined, inside) = joined(&record);
            assert_eq!(inside.uncovered, Some(Uncovered::Unread), "{number}");
            assert_eq!(joined.sum.alloc_count, 0, "{number}");
        }
    }

    #[test]
    fn two_ways_of_counting_may_have_counted_a_call_twice() {
        let mut record = record();
        record.sum = counters {
            alloc_bytes: 50,
            alloc_count: 1,
            ..counters::default()
        };
        let (joined, inside) = joined(&record);
        assert_eq!(
            (inside.counted_by, inside.uncovered),
            (CountedBy::Both, None)
        );
        assert_eq!(joined.sum.alloc_bytes, 350);
        assert_ne!(joined.flags & heap_flags::HEAP_PEAKLESS.0, 0);
        record.inside_flags |= inside_flags::INSIDE_NESTED.0;
        let inside = Inside::of(&record, false);
        assert_eq!(inside.uncovered, Some(Uncovered::Twice));
    }

    #[test]
    fn equal_counts_of_both_are_counted_once() {
        let mut record = record();
        record.sum = counters {
            alloc_bytes: 300,
            alloc_count: 3,
            free_bytes: 100,
            free_count: 1,
            unknown_frees: 2,
            failed_allocs: 4,
            ..counters::default()
        };
        record.live.peak = 250;
        let inside = Inside::of(&record, true);
        assert_eq!(
            (inside.counted_by, inside.uncovered),
            (CountedBy::Both, None)
        );
        assert_eq!(inside.added_to(&record).sum.alloc_count, 3);
        record.sum.free_count = 2;
        let inside = Inside::of(&record, true);
        assert_eq!(inside.uncovered, Some(Uncovered::Twice));
    }
}
