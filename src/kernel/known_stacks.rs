//! The call stacks that the programs have told of, by their hash. Those that nobody needs any more go, so that a session
//! of days does not grow with each program that it has seen.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::model::stack::CallStack;

/// Call stacks, by the programs' hash.
pub(super) struct KnownStacks {
    stacks: HashMap<u64, Arc<CallStack>>,
    /// As many are kept in any case.
    least: usize,
    /// With as many it is time to look which ones are needed.
    full_at: usize,
}

impl KnownStacks {
    pub(super) fn new(least: usize) -> Self {
        Self {
            stacks: HashMap::new(),
            least,
            full_at: least,
        }
    }

    pub(super) fn get(&self, hash: u64) -> Option<&Arc<CallStack>> {
        self.stacks.get(&hash)
    }

    /// A stack that is known already stays the same one.
    pub(super) fn add(&mut self, hash: u64, stack: CallStack) {
        self.stacks.entry(hash).or_insert_with(|| Arc::new(stack));
    }

    /// Whether those should go that nobody needs.
    pub(super) fn is_full(&self) -> bool {
        self.stacks.len() >= self.full_at
    }

    /// Drops what is neither among the hashes that the programs use nor held by anybody else.
    pub(super) fn keep(&mut self, used: &HashSet<u64>) {
        self.stacks
            .retain(|hash, stack| used.contains(hash) || Arc::strong_count(stack) > 1);
        // The work is that of looking at each. So it is done when they have doubled.
        self.full_at = self.least.max(2 * self.stacks.len());
        self.stacks.shrink_to(self.full_at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::stack::WalkEnd;

    #[test]
    fn stacks_that_nobody_uses_or_holds_go_when_there_are_twice_as_many() {
        let stack = || CallStack {
            frames: Vec::new(),
            end: WalkEnd::Complete,
            guessed: 0,
        };
        let mut known = KnownStacks::new(4);
        for hash in 0..3 {
            known.add(hash, stack());
        }
        assert!(!known.is_full());
        known.add(3, stack());
        assert!(known.is_full());
        let held = known.get(2).map(Arc::clone);
        known.add(2, stack());
        assert!(Arc::ptr_eq(known.get(2).unwrap(), held.as_ref().unwrap()));
        known.keep(&HashSet::from([1, 3, 9]));
        let found: Vec<_> = (0..10).filter(|hash| known.get(*hash).is_some()).collect();
        assert_eq!(found, [1, 2, 3]);
        // Three stay, so it is time again with six.
        for hash in 4..6 {
            known.add(hash, stack());
        }
        assert!(!known.is_full());
        known.add(6, stack());
        assert!(known.is_full());
        drop(held);
        known.keep(&HashSet::new());
        assert!(known.get(2).is_none() && !known.is_full());
    }
}
