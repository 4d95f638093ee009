//! The places in programs where processes leaked: call stacks, each with what all processes of one name leaked by it.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use crate::model::reach::Amount;
use crate::model::stack::{CallStack, NamedStack};
use crate::model::stack_coverage::StackCoverage;
use crate::model::suppressed::SuppressionUse;
use crate::model::unfreed::Unfreed;

/// A call stack by which processes of one command name leaked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeakPlace {
    pub stack: NamedStack,
    /// What is not suppressed. In a list of what leaked, without what the C and C++ libraries keep.
    pub unfreed: Unfreed,
    /// The command name of the processes, of any bytes.
    pub comm: Vec<u8>,
    /// How many images leaked here.
    pub processes: u64,
}

/// The places of a report, the largest first. First those where processes lost something, then those where it is not
/// known what they lost. What is known to be reachable makes no place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LargestPlaces {
    pub shown: Vec<LeakPlace>,
    /// How many more there are.
    pub more: usize,
    /// In how many places processes lost something.
    pub lost: usize,
    /// How many places there are.
    pub all: usize,
    /// Where the processes that a gate has judged lost most.
    pub worst_lost: Option<LeakPlace>,
    /// Where they leaked most, whether it is reachable or not.
    pub worst_leak: Option<LeakPlace>,
}

/// What is known of where processes leaked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Located {
    pub places: LargestPlaces,
    /// How far the stacks of the processes that have ended are known.
    pub coverage: StackCoverage,
    /// How much each of the user's suppressions has matched.
    pub suppressions: Vec<SuppressionUse>,
    /// How much memleak's own have matched of what is reachable.
    pub kept_reachable: Vec<SuppressionUse>,
    /// The same of what is not known to be reachable.
    pub kept_otherwise: Vec<SuppressionUse>,
    /// A suppression of each place, if that was asked for.
    pub generated: Vec<String>,
    /// The directory in which memleak was started. Paths of sources below it are shown without it.
    pub directory: Option<PathBuf>,
}

/// What is added to a place.
#[derive(Clone, Copy, Debug, Default)]
pub struct PlaceShare {
    /// What is not suppressed.
    pub left: Unfreed,
    /// What the C and C++ libraries keep. It is not shown, but a gate judges it.
    pub kept: Unfreed,
    /// Whether a gate judges the process.
    pub judged: bool,
    /// Whether the place is among those that are to be shown.
    pub shown: bool,
}

/// The sums of a place.
#[derive(Debug)]
struct PlaceSum {
    /// One of the stacks with this identity.
    stack: Arc<CallStack>,
    named: Option<NamedStack>,
    left: Unfreed,
    judged: Unfreed,
    processes: u64,
    shown: bool,
}

/// The places, as they are added up: there may be a hundred thousand. Only the largest get names.
#[derive(Debug, Default)]
pub struct LeakPlaces {
    /// By the stack's identity and the command name.
    places: HashMap<(u64, Vec<u8>), PlaceSum>,
}

impl LeakPlaces {
    /// Adds what a process leaked by one of its stacks.
    /// `named`: the stack with its names, if these are of this process alone.
    pub fn add(
        &mut self,
        comm: &[u8],
        identity: u64,
        stack: &Arc<CallStack>,
        named: Option<&NamedStack>,
        share: PlaceShare,
    ) {
        let mut all = share.left;
        all += share.kept;
        if all.sum().blocks == 0 {
            return;
        }
        let key = (identity, comm.to_vec());
        let sum = self.places.entry(key).or_insert_with(|| PlaceSum {
            stack: Arc::clone(stack),
            named: named.cloned(),
            left: Unfreed::default(),
            judged: Unfreed::default(),
            processes: 0,
            shown: false,
        });
        sum.left += share.left;
        sum.shown |= share.shown;
        if share.judged {
            sum.judged += all;
        }
        sum.processes += 1;
    }

    /// The largest places, at most `most`. `name` gives a stack its names.
    pub fn largest(self, most: usize, name: impl Fn(&CallStack) -> NamedStack) -> LargestPlaces {
        let mut all: Vec<_> = self.places.into_iter().collect();
        // The order of a hash map is another one each time.
        all.sort_by(|(one, _), (other, _)| one.cmp(other));
        let place = |((_, comm), sum): &((u64, Vec<u8>), PlaceSum), unfreed: Unfreed| LeakPlace {
            stack: sum.named.clone().unwrap_or_else(|| name(&sum.stack)),
            unfreed,
            comm: comm.clone(),
            processes: sum.processes,
        };
        let worst = |size: fn(&Unfreed) -> Amount| {
            let size = |entry: &&(_, PlaceSum)| bytes_and_blocks(size(&entry.1.judged));
            let worst = all.iter().rev().max_by_key(size);
            let worst = worst.filter(|entry| size(entry).1 > 0);
            worst.map(|entry| place(entry, entry.1.judged))
        };
        let worst_lost = worst(|unfreed| unfreed.reached.lost());
        let worst_leak = worst(Unfreed::sum);
        let is_place = |(_, sum): &(_, PlaceSum)| sum.shown && sum.left.alarming().blocks > 0;
        all.retain(is_place);
        all.sort_by_key(|(_, sum)| {
            let Unfreed { reached, unknown } = sum.left;
            Reverse([reached.lost(), reached.possible, unknown].map(bytes_and_blocks))
        });
        let lost = all
            .iter()
            .filter(|(_, sum)| sum.left.reached.lost().blocks > 0);
        let shown = all.iter().take(most);
        let shown = shown.map(|entry| place(entry, entry.1.left));
        LargestPlaces {
            shown: shown.collect(),
            more: all.len().saturating_sub(most),
            lost: lost.count(),
            all: all.len(),
            worst_lost,
            worst_leak,
        }
    }
}

/// An amount in the order of sizes. A block without bytes is one, too.
fn bytes_and_blocks(amount: Amount) -> (u64, u64) {
    (amount.bytes, amount.blocks)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::reach::Reached;
    use crate::model::stack::WalkEnd;

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

    /// The share of a process that a gate judges, with what is left of it.
    fn left(left: Unfreed) -> PlaceShare {
        PlaceShare {
            left,
            judged: true,
            shown: true,
            ..PlaceShare::default()
        }
    }

    /// The places of shares, each of a command and the identity of its stack, which is shown by `guessed`.
    fn largest(most: usize, shares: &[(&str, u16, PlaceShare)]) -> LargestPlaces {
        let mut places = LeakPlaces::default();
        for (comm, identity, share) in shares {
            let stack = Arc::new(CallStack {
                frames: Vec::new(),
                end: WalkEnd::Complete,
                guessed: *identity,
            });
            places.add(comm.as_bytes(), u64::from(*identity), &stack, None, *share);
        }
        places.largest(most, |stack| NamedStack {
            identity: u64::from(stack.guessed),
            frames: Vec::new(),
            end: stack.end,
            guessed: stack.guessed,
        })
    }

    fn identities(places: &[LeakPlace]) -> Vec<u64> {
        places.iter().map(|place| place.stack.identity).collect()
    }

    #[test]
    fn processes_of_one_name_are_added_up_and_the_largest_places_come_first() {
        let largest = largest(
            2,
            &[
                ("a", 1, left(unknown(10, 1))),
                ("a", 1, left(unknown(20, 2))),
                ("b", 1, left(unknown(25, 1))),
                ("a", 2, left(unknown(0, 3))),
                // Whoever has freed all of it has leaked nothing there.
                ("c", 3, left(Unfreed::default())),
            ],
        );
        let found = largest.shown.iter().map(|place| {
            let Amount { bytes, blocks } = place.unfreed.sum();
            (&place.comm[..], bytes, blocks, place.processes)
        });
        assert_eq!(
            found.collect::<Vec<_>>(),
            [(&b"a"[..], 30, 3, 2), (b"b", 25, 1, 1)]
        );
        assert_eq!((largest.more, largest.lost, largest.all), (1, 0, 3));
        assert_eq!(largest.worst_lost, None);
        assert_eq!(largest.worst_leak.unwrap().unfreed.sum(), amount(30, 3));
    }

    #[test]
    fn lost_comes_first_and_what_is_only_reachable_is_no_place() {
        let none = Amount::default();
        let largest = largest(
            10,
            &[
                ("a", 1, left(unknown(1_000, 1))),
                ("a", 2, left(known(none, amount(70, 1), none))),
                ("a", 3, left(known(amount(7, 1), none, none))),
                ("a", 4, left(known(amount(8, 1), none, amount(9_000, 9)))),
                ("a", 5, left(known(none, none, amount(5_000, 2)))),
                // A block without bytes is lost, too.
                ("a", 6, left(known(amount(0, 1), none, none))),
            ],
        );
        assert_eq!(identities(&largest.shown), [4, 3, 6, 2, 1]);
        assert_eq!((largest.more, largest.lost, largest.all), (0, 3, 5));
    }

    #[test]
    fn the_worst_place_is_of_a_process_that_was_judged_whether_it_is_shown_or_not() {
        let none = Amount::default();
        let lost = |bytes| known(amount(bytes, 1), none, none);
        let unjudged = PlaceShare {
            judged: false,
            ..left(lost(9_000))
        };
        let unshown = PlaceShare {
            shown: false,
            ..left(lost(800))
        };
        let kept = PlaceShare {
            kept: known(none, none, amount(70_000, 1)),
            judged: true,
            shown: true,
            ..PlaceShare::default()
        };
        let largest = largest(
            10,
            &[
                ("a", 1, unjudged),
                ("a", 2, unshown),
                ("a", 3, left(lost(7))),
                ("a", 4, kept),
            ],
        );
        assert_eq!(identities(&largest.shown), [1, 3]);
        assert_eq!(largest.worst_lost.unwrap().stack.identity, 2);
        let worst = largest.worst_leak.unwrap();
        assert_eq!(
            (worst.stack.identity, worst.unfreed.sum()),
            (4, amount(70_000, 1))
        );
    }
}
