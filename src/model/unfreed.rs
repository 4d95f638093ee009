//! Blocks that were never freed, by what is known of how they could be reached.

use crate::model::leak_kind::LeakKind;
use crate::model::reach::{Amount, Reached};
use crate::model::stack::StackShare;

/// Blocks that were never freed. Each is in one of the amounts. Those of a call stack are the ones that it allocated,
/// but for indirectly lost ones: these are with their owners.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unfreed {
    pub reached: Reached,
    /// Those of which nothing is known.
    pub unknown: Amount,
}

impl Unfreed {
    /// What an image never freed of what it allocated by one stack.
    pub fn of(share: &StackShare) -> Self {
        let reached = share.reached.unwrap_or_default();
        let known = reached.blocks.sum();
        // A verdict may lack blocks that the threads were about to replace by others.
        let unknown = Amount {
            bytes: share.leaked_bytes.saturating_sub(known.bytes),
            blocks: share.leaked_blocks.saturating_sub(known.blocks),
        };
        Self {
            reached: reached.under_owners(),
            unknown,
        }
    }

    /// The amount of one kind.
    pub fn of_kind(&mut self, kind: LeakKind) -> &mut Amount {
        match kind {
            LeakKind::Definite => &mut self.reached.definite,
            LeakKind::Indirect => &mut self.reached.indirect,
            LeakKind::Possible => &mut self.reached.possible,
            LeakKind::Reachable => &mut self.reached.reachable,
            LeakKind::Unknown => &mut self.unknown,
        }
    }

    /// All blocks.
    pub fn sum(&self) -> Amount {
        self.reached.sum() + self.unknown
    }

    /// Those that a list of leaks is about: all that are not known to be reachable.
    pub fn alarming(&self) -> Amount {
        self.reached.lost() + self.reached.possible + self.unknown
    }
}

impl std::ops::AddAssign for Unfreed {
    fn add_assign(&mut self, other: Self) {
        self.reached += other.reached;
        self.unknown += other.unknown;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::reach::StackReached;
    use crate::model::stack::{CallStack, WalkEnd};

    #[test]
    fn what_a_verdict_lacks_is_unknown() {
        let amount = |bytes, blocks| Amount { bytes, blocks };
        let mut share = StackShare {
            stack: Arc::new(CallStack {
                frames: Vec::new(),
                end: WalkEnd::Complete,
                guessed: 0,
            }),
            alloc_bytes: 100,
            alloc_count: 10,
            leaked_bytes: 60,
            leaked_blocks: 6,
            reached: None,
        };
        let unfreed = Unfreed::of(&share);
        assert_eq!(unfreed.unknown, amount(60, 6));
        assert_eq!(unfreed.alarming(), unfreed.sum());
        let blocks = Reached {
            definite: amount(10, 1),
            indirect: amount(9, 1),
            possible: amount(1, 1),
            reachable: amount(33, 2),
        };
        // Another stack's block is lost with these, and one of theirs with another stack's.
        let owned = amount(12, 2);
        share.reached = Some(StackReached { blocks, owned });
        let mut unfreed = Unfreed::of(&share);
        assert_eq!(unfreed.unknown, amount(7, 1));
        assert_eq!(unfreed.reached.indirect, owned);
        assert_eq!(unfreed.sum(), amount(63, 7));
        assert_eq!(unfreed.alarming(), amount(30, 5));
        let mut sum = Amount::default();
        for kind in LeakKind::ALL {
            sum += std::mem::take(unfreed.of_kind(kind));
        }
        assert_eq!((sum, unfreed), (amount(63, 7), Unfreed::default()));
    }
}
