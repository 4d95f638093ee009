//! When the memory of a process is to be scanned at its end, to tell what it lost from what it could still reach.

use crate::model::limits::Limits;
use crate::model::reach::Amount;

/// Which processes are to be scanned at their ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScanWanted {
    /// No process.
    Never,
    /// Every process that has a block that it never freed.
    Always,
    /// Only processes for which these limits of what is lost cannot be decided otherwise. There is at least one limit.
    Undecided(Limits),
}

impl ScanWanted {
    /// Scans only where limits of what is lost demand it.
    pub fn for_gates(limits: Limits) -> Self {
        match limits.are_none() {
            true => Self::Never,
            false => Self::Undecided(limits),
        }
    }

    /// Whether any process may be scanned.
    pub fn is_any(self) -> bool {
        self != Self::Never
    }

    /// Whether a process is to be scanned.
    ///
    /// `unfreed`: what the process never freed, with the blocks that could not be recorded. `unscanned`: the sum in bytes
    /// of what the processes that ended unscanned never freed. Nobody can lose more than that, so as long as that is
    /// within the limits, nothing needs to be scanned. A caller that knows what scanned processes lost may add that: then
    /// more sums are decided.
    pub fn wants(self, unfreed: Amount, unscanned: u64) -> bool {
        match self {
            Self::Never => false,
            Self::Always => unfreed.blocks > 0,
            Self::Undecided(Limits { process, total }) => {
                let sum = unscanned.saturating_add(unfreed.bytes);
                let exceeds = |amount, limit: Option<u64>| limit.is_some_and(|most| amount > most);
                exceeds(unfreed.bytes, process) || (unfreed.bytes > 0 && exceeds(sum, total))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn limits(process: Option<u64>, total: Option<u64>) -> ScanWanted {
        ScanWanted::for_gates(Limits { process, total })
    }

    #[test]
    fn a_process_is_scanned_where_a_limit_could_be_exceeded() {
        let both = limits(Some(10), Some(100));
        for (wanted, bytes, unscanned, is_wanted) in [
            (ScanWanted::Never, 1_000, 1_000, false),
            (ScanWanted::Always, 1, 0, true),
            (limits(None, None), 1_000, 1_000, false),
            (limits(Some(0), None), 0, 0, false),
            (limits(Some(0), None), 1, 0, true),
            (limits(Some(10), None), 10, 1_000, false),
            (limits(Some(10), None), 11, 0, true),
            (limits(None, Some(100)), 60, 40, false),
            (limits(None, Some(100)), 61, 40, true),
            (limits(None, Some(100)), 0, 1_000, false),
            (limits(None, Some(100)), 1, u64::MAX, true),
            (both, 11, 0, true),
            (both, 10, 90, false),
            (both, 10, 91, true),
        ] {
            let blocks = u64::from(bytes > 0);
            let found = wanted.wants(Amount { bytes, blocks }, unscanned);
            assert_eq!(found, is_wanted, "{wanted:?} {bytes} {unscanned}");
        }
        // A block may have no bytes.
        let empty = Amount {
            bytes: 0,
            blocks: 1,
        };
        assert!(ScanWanted::Always.wants(empty, 0));
        assert!(!limits(Some(0), Some(0)).wants(empty, 0));
        assert!(!ScanWanted::Always.wants(Amount::default(), 0));
    }

    proptest! {
        #[test]
        fn processes_that_are_not_scanned_cannot_exceed_a_limit(
            unfreed in prop::collection::vec(0..100_u64, 0..20),
            process in prop::option::of(0..100_u64),
            total in prop::option::of(0..500_u64),
        ) {
            let wanted = limits(process, total);
            let mut unscanned = 0;
            for bytes in unfreed {
                if !wanted.wants(Amount { bytes, blocks: 1 }, unscanned) {
                    unscanned += bytes;
                    prop_assert!(process.is_none_or(|limit| bytes <= limit));
                }
            }
            prop_assert!(total.is_none_or(|limit| unscanned <= limit));
        }
    }
}
