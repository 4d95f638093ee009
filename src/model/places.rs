//! The places in programs where processes leaked: call stacks, each with what all processes of one name leaked by it.

use std::cmp::Reverse;
use std::collections::HashMap;

use crate::model::stack::NamedStack;
use crate::model::unfreed::Unfreed;

/// A call stack by which processes of one command name leaked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeakPlace {
    pub stack: NamedStack,
    pub unfreed: Unfreed,
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

/// The places of a report, the largest first. First those where processes lost something, then those where it is not
/// known what they lost.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LargestPlaces {
    pub shown: Vec<LeakPlace>,
    /// How many more there are.
    pub more: usize,
    /// In how many places processes lost something.
    pub lost: usize,
    /// In how many places processes leaked something that is not known to be reachable.
    pub all: usize,
}

impl LeakPlaces {
    /// Adds what a process leaked by one of its stacks, unless all of it is reachable.
    pub fn add(&mut self, comm: &[u8], unfreed: Unfreed, stack: &NamedStack) {
        if unfreed.alarming().blocks == 0 {
            return;
        }
        let key = (stack.identity, comm.to_vec());
        let place = self.places.entry(key).or_insert_with(|| LeakPlace {
            stack: stack.clone(),
            unfreed: Unfreed::default(),
            comm: comm.to_vec(),
            processes: 0,
        });
        place.unfreed += unfreed;
        place.processes += 1;
    }

    /// The largest places, at most `most`.
    pub fn largest(self, most: usize) -> LargestPlaces {
        let mut places: Vec<LeakPlace> = self.places.into_values().collect();
        let sizes = |place: &LeakPlace| {
            let Unfreed { reached, unknown } = place.unfreed;
            [reached.lost(), reached.possible, unknown].map(|amount| {
                // A block without bytes is one, too.
                (amount.bytes, amount.blocks)
            })
        };
        places.sort_by(|one, other| {
            let order = |place: &LeakPlace| (Reverse(sizes(place)), place.stack.identity);
            let names = || one.comm.cmp(&other.comm);
            order(one).cmp(&order(other)).then_with(names)
        });
        let all = places.len();
        let lost = |place: &&LeakPlace| place.unfreed.reached.lost().blocks > 0;
        let lost = places.iter().filter(lost).count();
        places.truncate(most);
        LargestPlaces {
            more: all - places.len(),
            shown: places,
            lost,
            all,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::reach::{Amount, Reached};
    use crate::model::stack::WalkEnd;

    fn stack(identity: u64) -> NamedStack {
        NamedStack {
            identity,
            frames: Vec::new(),
            end: WalkEnd::Complete,
            guessed: 0,
        }
    }

    fn amount(bytes: u64, blocks: u64) -> Amount {
        Amount { bytes, blocks }
    }

    fn unknown(bytes: u64, blocks: u64) -> Unfreed {
        Unfreed {
            unknown: amount(bytes, blocks),
            ..Unfreed::default()
        }
    }

    fn known(definite: Amount, possible: Amount, reachable: Amount) -> Unfreed {
        Unfreed {
            reached: Reached {
                definite,
                possible,
                reachable,
                ..Reached::default()
            },
            ..Unfreed::default()
        }
    }

    #[test]
    fn processes_of_one_name_are_added_up_and_the_largest_places_come_first() {
        let mut places = LeakPlaces::default();
        places.add(b"a", unknown(10, 1), &stack(1));
        places.add(b"a", unknown(20, 2), &stack(1));
        places.add(b"b", unknown(25, 1), &stack(1));
        places.add(b"a", unknown(0, 3), &stack(2));
        // Whoever has freed all of it has leaked nothing there.
        places.add(b"c", Unfreed::default(), &stack(3));
        let largest = places.largest(2);
        let found = largest.shown.iter().map(|place| {
            let Amount { bytes, blocks } = place.unfreed.sum();
            (&place.comm[..], bytes, blocks, place.processes)
        });
        assert_eq!(
            found.collect::<Vec<_>>(),
            [(&b"a"[..], 30, 3, 2), (b"b", 25, 1, 1)]
        );
        assert_eq!((largest.more, largest.lost, largest.all), (1, 0, 3));
    }

    #[test]
    fn lost_comes_first_and_what_is_only_reachable_is_no_place() {
        let none = Amount::default();
        let mut places = LeakPlaces::default();
        places.add(b"a", unknown(1_000, 1), &stack(1));
        places.add(b"a", known(none, amount(70, 1), none), &stack(2));
        places.add(b"a", known(amount(7, 1), none, none), &stack(3));
        places.add(b"a", known(amount(8, 1), none, amount(9_000, 9)), &stack(4));
        places.add(b"a", known(none, none, amount(5_000, 2)), &stack(5));
        // A block without bytes is lost, too.
        places.add(b"a", known(amount(0, 1), none, none), &stack(6));
        let largest = places.largest(10);
        let found: Vec<_> = largest.shown.iter().map(|p| p.stack.identity).collect();
        assert_eq!(found, [4, 3, 6, 2, 1]);
        assert_eq!((largest.more, largest.lost, largest.all), (0, 3, 5));
    }
}
