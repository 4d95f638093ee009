//! The places in programs where processes leaked: call stacks, each with what all processes of one name leaked by it.

use std::collections::HashMap;

use crate::model::reach::Amount;
use crate::model::stack::{NamedStack, StackShare};

/// A call stack by which processes of one command name leaked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeakPlace {
    pub stack: NamedStack,
    pub leaked: Amount,
    /// The command name of the processes, of any bytes.
    pub comm: Vec<u8>,
    /// How many images leaked here.
    pub processes: u64,
}

/// The places, as they are added up.
#[derive(Debug, Default)]
pub struct LeakPlaces {
    /// By the stack's identity and the command name.
    places: HashMap<(u64, Vec<u8>), LeakPlace>,
}

impl LeakPlaces {
    /// Adds what a process leaked by one of its stacks, if anything.
    pub fn add(&mut self, comm: &[u8], share: &StackShare, stack: &NamedStack) {
        if share.leaked_blocks == 0 {
            return;
        }
        let key = (stack.identity, comm.to_vec());
        let place = self.places.entry(key).or_insert_with(|| LeakPlace {
            stack: stack.clone(),
            leaked: Amount::default(),
            comm: comm.to_vec(),
            processes: 0,
        });
        place.leaked.bytes = place.leaked.bytes.saturating_add(share.leaked_bytes);
        place.leaked.blocks = place.leaked.blocks.saturating_add(share.leaked_blocks);
        place.processes += 1;
    }

    /// The places that leaked most bytes, the largest first, at most `most`. Also returns how many more there are.
    pub fn largest(self, most: usize) -> (Vec<LeakPlace>, usize) {
        let mut places: Vec<LeakPlace> = self.places.into_values().collect();
        let order = |place: &LeakPlace| {
            let leaked = place.leaked;
            (
                std::cmp::Reverse((leaked.bytes, leaked.blocks)),
                place.stack.identity,
            )
        };
        places.sort_by(|one, other| {
            let names = || one.comm.cmp(&other.comm);
            order(one).cmp(&order(other)).then_with(names)
        });
        let more = places.len().saturating_sub(most);
        places.truncate(most);
        (places, more)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::stack::{CallStack, WalkEnd};

    fn stack(identity: u64) -> NamedStack {
        NamedStack {
            identity,
            frames: Vec::new(),
            end: WalkEnd::Complete,
            guessed: 0,
        }
    }

    fn share(leaked_bytes: u64, leaked_blocks: u64) -> StackShare {
        StackShare {
            stack: Arc::new(CallStack {
                frames: Vec::new(),
                end: WalkEnd::Complete,
                guessed: 0,
            }),
            alloc_bytes: 1000,
            alloc_count: 10,
            leaked_bytes,
            leaked_blocks,
        }
    }

    #[test]
    fn processes_of_one_name_are_added_up_and_the_largest_places_come_first() {
        let mut places = LeakPlaces::default();
        places.add(b"a", &share(10, 1), &stack(1));
        places.add(b"a", &share(20, 2), &stack(1));
        places.add(b"b", &share(25, 1), &stack(1));
        places.add(b"a", &share(0, 3), &stack(2));
        // Whoever has freed all of it has leaked nothing there.
        places.add(b"c", &share(0, 0), &stack(3));
        let (largest, more) = places.largest(2);
        let found = largest.iter().map(|place| {
            let Amount { bytes, blocks } = place.leaked;
            (&place.comm[..], bytes, blocks, place.processes)
        });
        assert_eq!(
            found.collect::<Vec<_>>(),
            [(&b"a"[..], 30, 3, 2), (b"b", 25, 1, 1)]
        );
        assert_eq!(more, 1);
    }
}
